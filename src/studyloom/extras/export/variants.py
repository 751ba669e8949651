"""The variants of a winner: how each is made, and what it is compared by."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from studyloom.data.examples import Part
from studyloom.errors import ConfigError, StudyloomError
from studyloom.extras.export.exported_network import Original, count_parameters
from studyloom.extras.export.onnx import OnnxNetwork, check_equal, export_network, quantize
from studyloom.extras.export.record import Latency, VariantFacts
from studyloom.extras.export.settings import Settings
from studyloom.metrics import Metric, ObjectiveValue
from studyloom.space.rule import Condition, Rule
from studyloom.training.checkpoint import pack_weights
from studyloom.training.steps import on_threads
from studyloom.training.trainer import evaluate_network
from studyloom.winner.result import DataFacts, Summary, to_document
from studyloom.winner.statistics import Outputs, compare, resample
from studyloom.worker.stopping import Stop

BATCHES = (1, 64)
WARM = 3  # calls before the first that counts
LONGEST = 5.0  # seconds of calls of each network; slow ones are measured less often
# What of winner.json's `data` who runs the file must know; stored in the file as JSON.
NEEDED = ("shape", "mean", "std", "transform", "names", "columns")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Recipe:
    """How a variant is made: `make` returns its network, trained, for the original."""

    name: str
    make: Callable[[Original], nn.Module]


@dataclass(frozen=True)
class Variant:
    """A variant that was made; `facts` lack the latency until it is measured."""

    recipe: Recipe
    quantized: bool
    content: bytes
    facts: VariantFacts


def evaluate(original: Original, network: nn.Module, part: Part | None = None) -> Outputs:
    """Evaluates a network on the CPU: on a part, or else on the original's validation set."""
    job = replace(original.job, precision="fp32")
    where = job.valid.cpu() if part is None else None
    return Outputs(*evaluate_network(job, network, (part or original.part).to("cpu"), where))


def export(original: Original, network: nn.Module, facts: DataFacts, *, quantized: bool) -> bytes:
    """Exports a network, checks that the file predicts the same, and quantizes it if `quantized`.

    Args:
        original: with whose examples both is done.
        network: on the CPU.

    Raises:
        CompressError: it has no form in ONNX, or the file predicts something else.
    """
    known = to_document(facts)
    needed = {name: known[name] for name in NEEDED}
    content = export_network(network, original.inputs[:2], needed)
    check_equal(*(evaluate(original, e).outputs for e in (network, OnnxNetwork(content))))
    return quantize(content, original.inputs) if quantized else content


def differ(metric: Metric, original: Original, before: Outputs, after: Outputs) -> Summary:
    """Compares what two networks predict for the same examples.

    Returns:
        the difference, after minus before; without an interval if it is not known over examples.
    """
    values = {"before": [before.score(metric)], "after": [after.score(metric)]}
    sampled = None
    if original.job.evaluate is None:  # outputs of a custom one may mean anything
        outputs = {"before": [before], "after": [after]}
        sampled = resample(metric, outputs, len(before.targets), original.seed)
    difference = compare(values, "after", "before", sampled).difference
    assert difference is not None
    return difference


class Evaluator:
    """Evaluates variants and their original on the original's validation set.

    Args:
        original: trained without the validation set.
        facts: what winner.json says of the data.
    """

    def __init__(
        self, metric: Metric, settings: Settings, original: Original, facts: DataFacts
    ) -> None:
        self.metric, self.settings, self.original, self.facts = metric, settings, original, facts
        self.outputs = evaluate(original, original.network)
        size = len(pack_weights(original.network.state_dict()))
        self.original_facts = self._facts("PyTorch, eager", original.network, size, self.outputs)

    @property
    def margin(self) -> float:
        """What may be lost of the metric.

        That is a share of 1 for what ends at 1, such as accuracy; of an error one of its value.
        """
        unit = 1.0 if self.metric.scale == "unit" else abs(self.original_facts.value)
        return self.settings.margin * unit

    def default_rule(self) -> Rule:
        """Returns the rule for the smallest variant that surely loses no more than the margin."""
        return Rule(
            ObjectiveValue("bytes", "minimize"), (Condition("drop_high", "<=", self.margin),)
        )

    def recipes(self) -> list[Recipe]:
        """Returns the variants that are tried, but for their precision."""
        settings = self.settings
        pruned = [
            Recipe(f"pruned by {ratio:g}", partial(Original.pruned, ratio=ratio))
            for ratio in settings.ratios
        ]
        students = [
            Recipe(f"student of {width:g}", partial(Original.student, width=width))
            for width in settings.widths
        ]
        return [Recipe("unchanged", lambda original: original.network), *pruned, *students]

    def make(
        self, wanted: Sequence[Recipe], say: Say, stop: Stop
    ) -> tuple[list[Variant], list[VariantFacts]]:
        """Makes the variants of recipes, evaluates them and measures their latencies.

        Args:
            wanted: the first is the original itself.
            say: is given what is being done, in words.
            stop: whether to stop.

        Returns:
            the variants; and those that could not be made, with a note that says why.

        Raises:
            CompressError: the original itself cannot be exported.
            Stopped: a signal or command requested a stop.
        """
        made: list[Variant] = []
        failed: list[VariantFacts] = []
        for recipe in wanted:
            say(f"{recipe.name}: made, exported, quantized")
            try:
                with stop.interruptible():
                    made += self._make(recipe)
            except (StudyloomError, RuntimeError, ValueError) as error:
                if not made:  # if the original has no form in ONNX, nothing else has
                    raise
                failed.append(VariantFacts(recipe.name, note=" ".join(str(error).split())[:200]))
        threads = self.settings.threads
        say(f"measuring latencies on {threads} thread{'' if threads == 1 else 's'}")
        with stop.interruptible():
            return self._measure(made), failed

    def choose(self, rule: Rule, variants: Sequence[Variant]) -> Variant:
        """Chooses a variant by a rule; of equal ones that of fewer bytes.

        Raises:
            ConfigError: none satisfies the rule.
        """
        known = [(self._known(each.facts), each) for each in variants]
        fitting = [pair for pair in known if rule.holds(pair[0])]
        if fitting:
            return min(fitting, key=lambda pair: (rule.rank(pair[0]), pair[0]["bytes"]))[1]
        names = dict.fromkeys(
            [rule.objective.name, *(condition.name for condition in rule.conditions)]
        )
        values = "; ".join(
            f"{each.facts.name}: {', '.join(f'{name} {its[name]:.4g}' for name in names)}"
            for its, each in known
        )
        ways = "loosen it, or have more variants with ratios and widths"
        raise ConfigError([f"rule: no variant satisfies {rule}; {ways}; there are {values}"])

    def _make(self, recipe: Recipe) -> list[Variant]:
        """Returns the variants of a recipe, in fp32 and in int8."""
        network = recipe.make(self.original)
        content = export(self.original, network, self.facts, quantized=False)
        made = [self._evaluate(recipe, network, content, quantized=False)]
        content = quantize(content, self.original.inputs)
        return [*made, self._evaluate(recipe, network, content, quantized=True)]

    def _evaluate(
        self, recipe: Recipe, network: nn.Module, content: bytes, *, quantized: bool
    ) -> Variant:
        session = OnnxNetwork(content)
        outputs = evaluate(self.original, session)
        for batch in BATCHES:  # here, where what fails is a note of this variant
            session.run(self._examples(batch).numpy())
        name = f"{recipe.name}, {'int8' if quantized else 'fp32'}"
        facts = self._facts(name, network, len(content), outputs)
        return Variant(recipe, quantized, content, facts)

    def _examples(self, count: int) -> Tensor:
        """Returns training examples, some of them more than once if there are fewer."""
        examples = self.original.inputs
        return examples[torch.arange(count) % len(examples)]

    def _facts(self, name: str, network: nn.Module, size: int, outputs: Outputs) -> VariantFacts:
        difference = differ(self.metric, self.original, self.outputs, outputs)
        ends = difference.interval or (difference.mean, difference.mean)
        # Plus 0.0, so that it is not -0.0.
        low, high = sorted(-self.metric.sign * end + 0.0 for end in ends)
        return VariantFacts(
            name,
            value=outputs.score(self.metric),
            drop=-self.metric.sign * difference.mean + 0.0,
            drop_interval=(low, high),
            bytes=size,
            parameters=count_parameters(network),
        )

    def _measure(self, made: Sequence[Variant]) -> list[Variant]:
        """Measures latencies, also of PyTorch eager, and returns the variants with theirs."""
        network, threads = self.original.network.eval(), self.settings.threads
        sessions = [OnnxNetwork(each.content, threads) for each in made]
        latencies: list[dict[str, Latency]] = [{} for _ in range(1 + len(made))]
        with on_threads(threads), torch.inference_mode():
            for batch in BATCHES:
                inputs = self._examples(batch)
                calls: list[Callable[[], object]] = [partial(network, inputs)]
                calls += [partial(session.run, inputs.numpy()) for session in sessions]
                for each, known in zip(
                    measure_latencies(calls, self.settings.repeats), latencies, strict=True
                ):
                    known[str(batch)] = each
        self.original_facts = replace(self.original_facts, latency=latencies[0])
        return [
            replace(each, facts=replace(each.facts, latency=known))
            for each, known in zip(made, latencies[1:], strict=True)
        ]

    def _known(self, facts: VariantFacts) -> Mapping[str, float]:
        """Returns the values of a variant by name, for the rule."""
        return {
            self.metric.name: facts.value,
            "drop": facts.drop,
            "drop_high": facts.drop_interval[1],
            "bytes": facts.bytes,
            "latency_ms": facts.latency["1"].median,
            "latency_64_ms": facts.latency["64"].median,
            "parameters": facts.parameters,
        }


def measure_latencies(calls: Sequence[Callable[[], object]], repeats: int) -> list[Latency]:
    """Measures calls in turns, so that what else the machine does falls on all of them alike.

    Args:
        repeats: how often each is measured at most.
    """
    for call in calls:
        for _ in range(WARM):
            call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, each in zip(calls, seconds, strict=True):
            if sum(each) > LONGEST:
                continue
            call()  # so that its weights are in the cache again, after the others
            began = time.perf_counter()
            call()
            each.append(time.perf_counter() - began)
    milliseconds: Any = [np.percentile(each, (50, 10, 90)) * 1e3 for each in seconds]
    return [
        Latency(float(median), float(low), float(high), len(measured))
        for (median, low, high), measured in zip(milliseconds, seconds, strict=True)
    ]
