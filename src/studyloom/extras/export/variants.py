"""The variants of a winner: how each is made, evaluated, measured and chosen.

A recipe makes the network of a variant from an original network, which it prunes or teaches a
narrower student. Each network becomes two variants, one in fp32 and one in int8.
"""

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
from studyloom.text import plural
from studyloom.training.checkpoint import pack_weights
from studyloom.training.steps import on_threads
from studyloom.training.trainer import evaluate_network
from studyloom.winner.result import DataFacts, Summary, to_document
from studyloom.winner.statistics import Outputs, compare, resample
from studyloom.worker.stopping import Stop

BATCHES = (1, 64)
WARM = 3  # calls before the first that counts
LONGEST = 5.0  # seconds of calls of each network; slow ones are measured less often
# The fields of winner.json's `data` that a user of the file needs; stored in the file as JSON.
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


def evaluate(original: Original, network: nn.Module, test: Part | None = None) -> Outputs:
    """Evaluates a network on the CPU: on the test set if there is one, else on the validation set.

    Args:
        original: the network that the other one was made of; it has the validation set.
    """
    job = replace(original.job, precision="fp32")
    if test is None:
        examples = original.examples.to("cpu")
        outputs, targets = evaluate_network(job, network, examples, job.valid.cpu())
    else:
        outputs, targets = evaluate_network(job, network, test.to("cpu"))
    return Outputs(outputs, targets)


def export(original: Original, network: nn.Module, facts: DataFacts, *, quantized: bool) -> bytes:
    """Exports a network, checks that the file predicts the same, and quantizes it if `quantized`.

    Args:
        original: the network whose examples are used to trace, check and quantize.
        network: on the CPU.

    Raises:
        CompressError: it has no form in ONNX, or the file predicts something else.
    """
    document = to_document(facts)
    needed = {name: document[name] for name in NEEDED}
    content = export_network(network, original.inputs[:2], needed)
    outputs_of_network = evaluate(original, network).outputs
    outputs_of_file = evaluate(original, OnnxNetwork(content)).outputs
    check_equal(outputs_of_network, outputs_of_file)
    if quantized:
        return quantize(content, original.inputs)
    return content


def compare_outputs(metric: Metric, original: Original, before: Outputs, after: Outputs) -> Summary:
    """Compares the values of two networks on the same examples.

    Returns:
        The difference, after minus before. Its interval covers the choice of examples; it has none
        if a custom evaluation made the outputs.
    """
    values = {"before": [before.score(metric)], "after": [after.score(metric)]}
    sampled = None
    if original.job.evaluate is None:  # a custom evaluation may return outputs of any meaning
        outputs = {"before": [before], "after": [after]}
        sampled = resample(metric, outputs, len(before.targets), original.seed)
    difference = compare(values, "after", "before", sampled).difference
    assert difference is not None
    return difference


class Evaluator:
    """Evaluates variants and their original on the original's validation set.

    Args:
        original: trained without the validation set.
        facts: the description of the data in winner.json.
    """

    def __init__(
        self, metric: Metric, settings: Settings, original: Original, facts: DataFacts
    ) -> None:
        self.metric = metric
        self.settings = settings
        self.original = original
        self.facts = facts
        self.outputs = evaluate(original, original.network)
        size = len(pack_weights(original.network.state_dict()))
        self.original_facts = self._facts("PyTorch, eager", original.network, size, self.outputs)

    @property
    def margin(self) -> float:
        """How much of the metric may be lost.

        The setting is a share of the original's value, but a difference for a metric that ends at
        1, such as accuracy.
        """
        unit = 1.0
        if self.metric.scale != "unit":
            unit = abs(self.original_facts.value)
        return self.settings.margin * unit

    def default_rule(self) -> Rule:
        """Returns the rule for the smallest variant whose loss is shown to be within the margin."""
        fewest_bytes = ObjectiveValue("bytes", "minimize")
        is_within_margin = Condition("drop_high", "<=", self.margin)
        return Rule(fewest_bytes, (is_within_margin,))

    def recipes(self) -> list[Recipe]:
        """Returns the recipes of the variants that are tried; the first is the original itself."""
        recipes = [Recipe("unchanged", lambda original: original.network)]
        for ratio in self.settings.ratios:
            make_pruned = partial(Original.pruned, ratio=ratio)
            recipes.append(Recipe(f"pruned by {ratio:g}", make_pruned))
        for width in self.settings.widths:
            make_student = partial(Original.student, width=width)
            recipes.append(Recipe(f"student of {width:g}", make_student))
        return recipes

    def make(
        self, recipes: Sequence[Recipe], say: Say, stop: Stop
    ) -> tuple[list[Variant], list[VariantFacts]]:
        """Makes the variants of recipes, evaluates them and measures their latencies.

        Args:
            recipes: the first is the original itself.
            say: called with a description of each step.
            stop: ends the work where a signal or command requests it.

        Returns:
            The variants; and the facts of those that could not be made, with a note that says why.

        Raises:
            CompressError: the original itself cannot be exported.
            Stopped: a signal or command requested a stop.
        """
        variants: list[Variant] = []
        failed: list[VariantFacts] = []
        for recipe in recipes:
            say(f"{recipe.name}: made, exported, quantized")
            try:
                with stop.interruptible():
                    variants += self._make(recipe)
            except (StudyloomError, RuntimeError, ValueError) as error:
                if not variants:  # if the original has no form in ONNX, nothing else has
                    raise
                reason = " ".join(str(error).split())  # in one line
                failed.append(VariantFacts(recipe.name, note=reason[:200]))
        say(f"measuring latencies on {plural(self.settings.threads, 'thread')}")
        with stop.interruptible():
            return self._measure(variants), failed

    def choose(self, rule: Rule, variants: Sequence[Variant]) -> Variant:
        """Chooses a variant by a rule; among equal variants the one of fewer bytes.

        Raises:
            ConfigError: none satisfies the rule.
        """
        fitting = [variant for variant in variants if rule.holds(self._values(variant.facts))]
        if not fitting:
            descriptions = "; ".join(self._describe(variant, rule) for variant in variants)
            fix = "loosen it, or have more variants with ratios and widths"
            raise ConfigError(
                [f"rule: no variant satisfies {rule}; {fix}; there are {descriptions}"]
            )

        def rank(variant: Variant) -> tuple[Any, int]:
            return rule.rank(self._values(variant.facts)), variant.facts.bytes

        return min(fitting, key=rank)

    def _describe(self, variant: Variant, rule: Rule) -> str:
        """Returns the values of a variant that a rule names."""
        values = self._values(variant.facts)
        names = [rule.objective.name]
        names += [condition.name for condition in rule.conditions]
        parts = [f"{name} {values[name]:.4g}" for name in dict.fromkeys(names)]
        return f"{variant.facts.name}: {', '.join(parts)}"

    def _make(self, recipe: Recipe) -> list[Variant]:
        """Returns the variants of a recipe, in fp32 and in int8."""
        network = recipe.make(self.original)
        content = export(self.original, network, self.facts, quantized=False)
        quantized_content = quantize(content, self.original.inputs)
        return [
            self._evaluate(recipe, network, content, quantized=False),
            self._evaluate(recipe, network, quantized_content, quantized=True),
        ]

    def _evaluate(
        self, recipe: Recipe, network: nn.Module, content: bytes, *, quantized: bool
    ) -> Variant:
        """Evaluates the file of a variant, and tries it for each size of batch.

        A file that cannot run a batch fails here, where the error becomes a note of this variant;
        if it failed when latencies are measured, the error would end all variants.
        """
        session = OnnxNetwork(content)
        outputs = evaluate(self.original, session)
        for batch in BATCHES:
            session.run(self._examples(batch).numpy())
        precision = "int8" if quantized else "fp32"
        name = f"{recipe.name}, {precision}"
        facts = self._facts(name, network, len(content), outputs)
        return Variant(recipe, quantized, content, facts)

    def _examples(self, count: int) -> Tensor:
        """Returns training examples, some of them more than once if there are fewer."""
        examples = self.original.inputs
        return examples[torch.arange(count) % len(examples)]

    def _facts(self, name: str, network: nn.Module, size: int, outputs: Outputs) -> VariantFacts:
        """Compares the outputs of a variant with those of the original; a drop is a loss."""
        difference = compare_outputs(self.metric, self.original, self.outputs, outputs)
        ends = difference.interval or (difference.mean, difference.mean)
        # Adding 0.0 turns -0.0, which would be printed with its sign, into 0.0.
        low, high = sorted(-self.metric.sign * end + 0.0 for end in ends)
        return VariantFacts(
            name,
            value=outputs.score(self.metric),
            drop=-self.metric.sign * difference.mean + 0.0,
            drop_interval=(low, high),
            bytes=size,
            parameters=count_parameters(network),
        )

    def _measure(self, variants: Sequence[Variant]) -> list[Variant]:
        """Measures the latencies of the original, in PyTorch eager, and of the variants.

        Returns:
            The variants with their latencies; those of the original become its facts.
        """
        network = self.original.network.eval()
        threads = self.settings.threads
        sessions = [OnnxNetwork(variant.content, threads) for variant in variants]
        latencies_of_original: dict[str, Latency] = {}  # by the size of the batch
        latencies_of_variants: list[dict[str, Latency]] = [{} for _ in variants]
        with on_threads(threads), torch.inference_mode():
            for batch in BATCHES:
                inputs = self._examples(batch)
                calls: list[Callable[[], object]] = [partial(network, inputs)]
                for session in sessions:
                    calls.append(partial(session.run, inputs.numpy()))
                measured = measure_latencies(calls, self.settings.repeats)
                latencies_of_original[str(batch)] = measured[0]
                for latencies, latency in zip(latencies_of_variants, measured[1:], strict=True):
                    latencies[str(batch)] = latency
        self.original_facts = replace(self.original_facts, latency=latencies_of_original)
        measured_variants = []
        for variant, latencies in zip(variants, latencies_of_variants, strict=True):
            facts = replace(variant.facts, latency=latencies)
            measured_variants.append(replace(variant, facts=facts))
        return measured_variants

    def _values(self, facts: VariantFacts) -> Mapping[str, float]:
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
    """Measures calls one after the other, again and again.

    In this order, other work of the machine slows all calls alike.

    Args:
        repeats: how often each is measured, or less often if its calls take more than LONGEST.
    """
    for call in calls:
        for _ in range(WARM):
            call()
    seconds_of_calls: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, seconds in zip(calls, seconds_of_calls, strict=True):
            if sum(seconds) > LONGEST:
                continue
            # Not measured: loads its weights into the cache, from which other calls removed them.
            call()
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
    latencies = []
    for seconds in seconds_of_calls:
        median, low, high = np.percentile(seconds, (50, 10, 90)) * 1e3  # milliseconds
        latencies.append(Latency(float(median), float(low), float(high), len(seconds)))
    return latencies
