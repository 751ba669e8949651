"""The variants of a winner: how each is made, and what it is judged by."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from studyloom.errors import StudyloomError
from studyloom.extras.export.export import OnnxNetwork, quantize
from studyloom.extras.export.latency import measure_latencies
from studyloom.extras.export.original import Original, differ, evaluate, export
from studyloom.extras.export.settings import COMMITTEE, Settings
from studyloom.extras.export.shrink import count_parameters
from studyloom.metrics import Metric
from studyloom.study.stopping import Stop
from studyloom.training.checkpoint import pack_weights
from studyloom.training.steps import on_threads

BATCHES = (1, 64)
FP32, INT8 = "fp32", "int8"
Say = Callable[[str], object]


@dataclass(frozen=True)
class Recipe:
    """How a variant is made of a trained network.

    Args:
        name: of the variant.
        make: called with the original; returns the network of the variant, trained.
    """

    name: str
    make: Callable[["Original"], nn.Module]


@dataclass(frozen=True)
class Made:
    """A variant before it is measured.

    Args:
        recipe: by which it was made.
        precision: fp32 or int8.
        content: of its ONNX file.
        row: what compress.json will hold of it.
    """

    recipe: Recipe
    precision: str
    content: bytes
    row: dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A variant that was made and judged.

    Args:
        recipe: by which it is made.
        precision: fp32 or int8.
        known: its values by name, for the rule.
        row: what compress.json holds of it.
    """

    recipe: Recipe
    precision: str
    known: Mapping[str, float]
    row: Mapping[str, Any]


def recipes(settings: Settings) -> list[Recipe]:
    """Returns the variants that are tried, but for their precision; their names say who taught."""
    taught = f" ({COMMITTEE})" if settings.teacher == COMMITTEE else ""
    return [
        Recipe("as it is", lambda original: original.network),
        *(
            Recipe(f"pruned by {ratio:g}{taught}", partial(Original.pruned, ratio=ratio))
            for ratio in settings.ratios
        ),
        *(
            Recipe(f"student of {width:g}{taught}", partial(Original.student, width=width))
            for width in settings.widths
        ),
    ]


class Judge:
    """Judges variants beside their original.

    Args:
        metric: of the study.
        settings: as the command line has them.
        original: trained without the validation part.
        facts: what winner.json says of the data.
    """

    def __init__(
        self, metric: Metric, settings: Settings, original: Original, facts: Mapping[str, Any]
    ) -> None:
        self.metric, self.settings, self.original = metric, settings, original
        self.facts = facts
        self.outputs, self.targets = evaluate(original, original.network)
        self.value = self.metric(self.outputs, self.targets)
        self.original_row: dict[str, Any] = {}

    def make(self, recipe: Recipe) -> Iterator[Made]:
        """Yields what a recipe makes, in fp32 and in int8, with all but its latency."""
        network = recipe.make(self.original)
        content = export(self.original, network, self.facts, quantized=False)
        yield self._judge(recipe, FP32, network, content)
        content = quantize(content, self.original.inputs)
        yield self._judge(recipe, INT8, network, content)

    def _judge(self, recipe: Recipe, precision: str, network: nn.Module, content: bytes) -> Made:
        session = OnnxNetwork(content)
        outputs = evaluate(self.original, session)[0]
        for batch in BATCHES:  # here, where what fails is a note of this variant
            session.run(self._examples(batch).numpy())
        row = self._row(f"{recipe.name}, {precision}", network, len(content), outputs)
        return Made(recipe, precision, content, row)

    def _examples(self, count: int) -> Tensor:
        """Returns training examples, some of them more than once if there are fewer."""
        examples = self.original.inputs
        return examples[torch.arange(count) % len(examples)]

    def _row(self, name: str, network: nn.Module, size: int, outputs: Tensor) -> dict[str, Any]:
        difference = differ(self.metric, self.original, self.outputs, outputs, self.targets)
        sign = self.metric.sign
        return {
            "name": name,
            "value": difference["value"],
            "drop": -sign * difference["mean"] + 0.0,  # and not -0.0
            "drop_interval": sorted(-sign * end + 0.0 for end in difference["interval"]),
            "bytes": size,
            "parameters": count_parameters(network),
        }

    def measure(self, made: Sequence[Made]) -> None:
        """Measures latencies beside PyTorch eager, and writes them into the rows."""
        network, threads = self.original.network.eval(), self.settings.threads
        size = len(pack_weights(network.state_dict()))
        self.original_row = self._row("PyTorch, eager", network, size, self.outputs)
        rows = [self.original_row, *(each.row for each in made)]
        sessions = [OnnxNetwork(each.content, threads) for each in made]
        for row in rows:
            row["latency"] = {}
        with on_threads(threads), torch.inference_mode():
            for batch in BATCHES:
                inputs = self._examples(batch)
                calls = [partial(network, inputs)]
                calls += [partial(session.run, inputs.numpy()) for session in sessions]
                measured = measure_latencies(calls, self.settings.repeats)
                for row, latency in zip(rows, measured, strict=True):
                    row["latency"][str(batch)] = asdict(latency)

    def medians(self, row: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        """Returns the median latencies of a variant and of PyTorch eager, by batch."""
        theirs = self.original_row["latency"]
        return {
            batch: (each["median"], theirs[batch]["median"])
            for batch, each in row["latency"].items()
        }

    def known(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Returns the values of a variant by name, for the rule."""
        latency = row["latency"]
        return {
            self.metric.name: row["value"],
            "drop": row["drop"],
            "drop_high": row["drop_interval"][1],
            "bytes": row["bytes"],
            "latency_ms": latency["1"]["median"],
            "latency_64_ms": latency["64"]["median"],
            "parameters": row["parameters"],
        }


def make_variants(
    judge: Judge, wanted: Sequence[Recipe], say: Say, stop: Stop
) -> Iterator[Variant | dict[str, Any]]:
    """Makes the variants and judges them.

    Args:
        judge: with the original.
        wanted: the first is the original itself.
        say: is told what is being done, in words.
        stop: whether to stop.

    Yields:
        each variant; or its name and a note that says why there is none.

    Raises:
        CompressError: the original itself cannot be exported.
        Stopped: it was asked to stop.
    """
    made: list[Made] = []
    failed: list[dict[str, Any]] = []
    for recipe in wanted:
        say(f"{recipe.name}: made, exported, quantized")
        try:
            with stop.interruptible():
                for each in judge.make(recipe):
                    made.append(each)
        except (StudyloomError, RuntimeError, ValueError) as error:
            if not made:  # if the original has no form in ONNX, nothing else has
                raise
            failed.append({"name": recipe.name, "note": " ".join(str(error).split())[:200]})
    threads = judge.settings.threads
    say(f"measuring latencies on {threads} thread{'' if threads == 1 else 's'}")
    with stop.interruptible():
        judge.measure(made)
    for each in made:
        yield Variant(each.recipe, each.precision, judge.known(each.row), each.row)
    yield from failed
