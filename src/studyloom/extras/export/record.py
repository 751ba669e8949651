"""The document winner.onnx.json, which describes a compressed winner, and its lines of text."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studyloom.averages import Interval
from studyloom.metrics import ObjectiveValue
from studyloom.text import format_value, plural
from studyloom.views.words import format_uses
from studyloom.winner.result import (
    Result,
    digest_of,
    from_document,
)

NETWORK = "winner.onnx"  # below the run directory, as is its record
RECORD = "winner.onnx.json"
CHOSEN = "chosen"  # stands in the last column of the chosen variant's row


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call: the median, the 10th and the 90th percentile."""

    median: float
    low: float
    high: float
    calls: int


@dataclass(frozen=True)
class VariantFacts:
    """A compressed variant of the winner, with its measurements.

    Attributes:
        note: why the variant could not be made; None if it was.
        drop: how much worse its value is than the original's, and `drop_interval` the 95% interval.
        latency: by the size of the batch.
    """

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
        covers_examples: whether the interval of the difference covers the choice of test examples.
        is_within_margin: whether the interval shows that the loss is at most the margin.
        test_set_uses: how often the test set has been used in the study.
        tested_before: whether an earlier command has tested this very file.
    """

    value: float
    original: float
    difference: float
    interval: Interval
    covers_examples: bool
    examples: int
    is_within_margin: bool = False
    test_set_uses: int = 1
    tested_before: bool = False


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
            digest = digest_of((run_dir / NETWORK).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if record.digest != digest or record.winner != result.files.get("winner.pt"):
            return None
        return record

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yields the header of the table of variants, and then a row for each variant."""
        yield (
            "variant",
            self.metric.name,
            "worse by",
            "bytes",
            "ms, batch 1",
            "ms, batch 64",
            "",  # the mark of the chosen variant, or why one could not be made
        )
        for variant in (self.original, *self.variants):
            if variant.note is not None:
                yield variant.name, "–", "–", "–", "–", "–", variant.note
                continue
            drop = ""
            if variant is not self.original:
                drop = _format_interval(variant.drop_interval)
            mark = ""
            if variant.name == self.chosen.name:
                mark = CHOSEN
            yield (
                variant.name,
                format_value(variant.value),
                drop,
                f"{variant.bytes:_}",
                _format_latency(variant.latency["1"]),
                _format_latency(variant.latency["64"]),
                mark,
            )

    def lines(self) -> list[str]:
        """Returns the lines about the chosen variant."""
        chosen = self.chosen
        return [
            f"chosen {chosen.name} by {self.rule}",
            f"{self.bytes_of_winner / chosen.bytes:.2f}× smaller: {chosen.bytes:_} bytes, "
            f"winner.pt has {self.bytes_of_winner:_}",
            self._speed_line(),
            *self._test_lines(),
        ]

    def _speed_line(self) -> str:
        """Returns how much faster than the original the chosen variant is."""
        speedups = []
        for batch, (median, median_of_original) in self.chosen.medians.items():
            speedups.append(f"{median_of_original / median:.2f}× as fast at batch {batch}")
        threads = plural(self.threads, "thread")
        return f"{', '.join(speedups)}, against PyTorch eager on {threads}: medians"

    def _test_lines(self) -> list[str]:
        """Returns how the chosen variant and the original compare on the test set."""
        test = self.test
        interval = ""
        if test.covers_examples:
            interval = f", 95% interval {_format_interval(test.interval)} over examples"
        verdict = "not shown to be within"
        if test.is_within_margin:
            verdict = "within"
        earlier = ""
        if test.tested_before:
            earlier = ", for this very file by an earlier command"
        return [
            f"test {self.metric.name} {format_value(test.value)}, the original has "
            f"{format_value(test.original)}, on {test.examples:,} examples",
            f"difference {format_value(test.difference, '+')}{interval}: "
            f"{verdict} the margin of {format_value(self.margin)}",
            f"the test set was {format_uses(test.test_set_uses)} in this study{earlier}",
        ]


def _format_interval(interval: Interval) -> str:
    low, high = interval
    return f"{format_value(low, '+')} to {format_value(high, '+')}"


def _format_latency(latency: Latency) -> str:
    return f"{latency.median:.3g} ({latency.low:.3g}–{latency.high:.3g})"
