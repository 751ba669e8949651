"""The document winner.onnx.json: what `studyloom compress` has made of a winner, and its words."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studyloom.averages import Interval
from studyloom.metrics import ObjectiveValue
from studyloom.text import format_value
from studyloom.winner.result import (
    Result,
    digest_of,
    format_uses,
    from_document,
    plural,
)

NETWORK = "winner.onnx"  # below the run directory, as is its record
RECORD = "winner.onnx.json"
CHOSEN = "chosen"  # what the row of the chosen variant has in its last column


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call: the median, the 10th and the 90th percentile."""

    median: float
    low: float
    high: float
    calls: int


@dataclass(frozen=True)
class VariantFacts:
    """A compressed variant of the winner, with its measurements; `note` says why it failed."""

    name: str
    note: str | None = None
    value: float = 0.0
    drop: float = 0.0
    drop_interval: Interval = (0.0, 0.0)
    bytes: int = 0
    parameters: int = 0
    latency: dict[str, Latency] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """The chosen variant; `medians` are the latencies of it and the original by batch size."""

    name: str
    bytes: int
    parameters: int
    medians: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Scores:
    """The chosen variant compared with the original on the test set.

    Attributes:
        covers: whether the interval of the difference covers examples.
        within: whether it shows that the loss is at most the margin.
    """

    value: float
    original: float
    difference: float
    interval: Interval
    covers: bool
    examples: int
    within: bool = False
    uses: int = 1
    earlier: bool = False


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """The document winner.onnx.json: the compressed winner.

    Attributes:
        winner: the SHA-256 of winner.pt, and `digest` that of winner.onnx.
    """

    winner: str
    digest: str
    settings: dict[str, Any]
    metric: ObjectiveValue
    threads: int
    rule: str
    margin: float
    original: VariantFacts
    variants: tuple[VariantFacts, ...]
    bytes_of_winner: int
    chosen: Chosen
    test: Scores

    @classmethod
    def read(cls, run_dir: Path, result: Result) -> "Compressed | None":
        """Reads winner.onnx.json; None if it is missing, or belongs to another winner."""
        try:
            record = from_document(json.loads((run_dir / RECORD).read_bytes()), cls)
            whole = record.digest == digest_of((run_dir / NETWORK).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return record if whole and record.winner == result.files.get("winner.pt") else None

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yields the header of the table of variants, and then a row for each."""
        heads = ("worse by", "bytes", "ms, batch 1", "ms, batch 64", "")
        yield "variant", self.metric.name, *heads
        for row in (self.original, *self.variants):
            if row.note is not None:
                yield row.name, *["–"] * 5, row.note
                continue
            low, high = (format_value(end, "+") for end in row.drop_interval)
            lost = "" if row is self.original else f"{low} to {high}"
            latencies = (row.latency[batch] for batch in ("1", "64"))
            times = [f"{each.median:.3g} ({each.low:.3g}–{each.high:.3g})" for each in latencies]
            mark = CHOSEN if row.name == self.chosen.name else ""
            yield row.name, format_value(row.value), lost, f"{row.bytes:_}", *times, mark

    def lines(self) -> list[str]:
        """Returns the lines about the chosen variant."""
        chosen, test = self.chosen, self.test
        faster = ", ".join(
            f"{theirs / ours:.2f}× as fast at batch {batch}"
            for batch, (ours, theirs) in chosen.medians.items()
        )
        low, high = (format_value(end, "+") for end in test.interval)
        interval = f", 95% interval {low} to {high} over examples" if test.covers else ""
        verdict = "within" if test.within else "not shown to be within"
        return [
            f"chosen {chosen.name} by {self.rule}",
            f"{self.bytes_of_winner / chosen.bytes:.2f}× smaller: {chosen.bytes:_} bytes, "
            f"winner.pt has {self.bytes_of_winner:_}",
            f"{faster}, against PyTorch eager on {plural(self.threads, 'thread')}: medians",
            f"test {self.metric.name} {format_value(test.value)}, the original has "
            f"{format_value(test.original)}, on {test.examples:,} examples",
            f"difference {format_value(test.difference, '+')}{interval}: "
            f"{verdict} the margin of {format_value(self.margin)}",
            f"the test set was {format_uses(test.uses)} in this study"
            f"{', for this very file by an earlier command' if test.earlier else ''}",
        ]
