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
from studyloom.extras.export.exported_network import EXAMPLES_TO_TRACE, Original, count_parameters
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

BATCH_SIZES = (1, 64)  # for which latencies are measured
WARM_UP_CALLS = 3  # before the first that counts
MAX_SECONDS = 5.0  # of calls of each network; slow ones are measured less often
MAX_NOTE_LENGTH = 200  # characters
# The fields of winner.json's `data` that a user of the file needs; stored in the file as JSON.
FIELDS_IN_FILE = ("shape", "mean", "std", "transform", "class_names", "columns")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Recipe:
    """How a variant is made: `make` returns its network, trained, for the original."""

    name: str
    make: Callable[[Original], nn.Module]


@dataclass(frozen=True)
class Variant:
    """A variant that was made.

    Args:
        recipe: how its network was made.
        quantized: whether its file is in int8.
        content: the content of its ONNX file.
        facts: its measurements, without the latency until that is measured.
    """

    recipe: Recipe
    quantized: bool
    content: bytes
    facts: VariantFacts


@dataclass(frozen=True)
class Variants:
    """The variants that were made, and the facts of those that failed, with the reason as note."""

    made: Sequence[Variant]
    failed: Sequence[VariantFacts]


def evaluate(original: Original, network: nn.Module, test: Part | None = None) -> Outputs:
    """Evaluates a network on the CPU: on the test set if it is passed, else on the validation set.

    Args:
        original: the network of which `network` was made; it has the validation set.
    """
    job = replace(original.job, precision="fp32")
    if test is None:
        examples = original.examples.to("cpu")
        outputs, targets = evaluate_network(job, network, examples, job.valid.cpu())
    else:
        outputs, targets = evaluate_network(job, network, test.to("cpu"))
    return Outputs(outputs, targets)


def export(original: Original, network: nn.Module, facts: DataFacts, *, quantized: bool) -> bytes:
    """Exports a network, and checks that the file predicts the same.

    Args:
        original: the network whose examples are used to trace, check and quantize.
        network: on the CPU.
        facts: what winner.json says about the data; some of it is stored in the file.
        quantized: whether the file is quantized after the check.

    Returns:
        The content of an ONNX file.

    Raises:
        CompressError: it has no form in ONNX, or the file predicts something else.
    """
    document = to_document(facts)
    facts_in_file = {name: document[name] for name in FIELDS_IN_FILE}
    content = export_network(network, original.inputs[:EXAMPLES_TO_TRACE], facts_in_file)
    outputs_of_network = evaluate(original, network).outputs
    outputs_of_file = evaluate(original, OnnxNetwork(content)).outputs
    check_equal(outputs_of_network, outputs_of_file)
    if quantized:
        return quantize(content, original.inputs)
    return content


def compare_outputs(metric: Metric, original: Original, before: Outputs, after: Outputs) -> Summary:
    """Compares the values of two networks on the same examples.

    Args:
        before: the outputs of the original network.
        after: the outputs of the network that was made of it.

    Returns:
        The difference, after minus before. Its interval covers the choice of examples; it has none
        if a custom evaluation made the outputs.
    """
    values = {"before": [before.score(metric)], "after": [after.score(metric)]}
    resamples = None
    # A custom evaluation may return outputs of any meaning, not one for each example: then examples
    # cannot be resampled.
    has_outputs_by_example = original.job.evaluate is None
    if has_outputs_by_example:
        outputs = {"before": [before], "after": [after]}
        resamples = resample(metric, outputs, len(before.targets), original.seed)
    difference = compare(values, "after", "before", resamples).difference
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
        size = len(pack_weights(original.network.state_dict()))  # bytes
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

    def make(self, recipes: Sequence[Recipe], say: Say, stop: Stop) -> Variants:
        """Makes the variants of recipes, evaluates them and measures their latencies.

        Args:
            recipes: the first is the original itself.
            say: called with a description of each step.
            stop: ends the work where a signal or command requests it.

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
                failed.append(VariantFacts(recipe.name, note=reason[:MAX_NOTE_LENGTH]))
        say(f"measuring latencies on {plural(self.settings.threads, 'thread')}")
        with stop.interruptible():
            measured_variants = self._measure(variants)
        return Variants(measured_variants, failed)

    def choose(self, rule: Rule, variants: Sequence[Variant]) -> Variant:
        """Chooses a variant by a rule; among equal variants the one of fewer bytes.

        Raises:
            ConfigError: none satisfies the rule.
        """
        satisfying = [variant for variant in variants if rule.holds(self._values(variant.facts))]
        if not satisfying:
            descriptions = [self._describe(variant, rule) for variant in variants]
            raise ConfigError(
                [
                    f"rule: no variant satisfies {rule}; loosen it, or have more variants with "
                    f"ratios and widths; there are {'; '.join(descriptions)}"
                ]
            )

        def rank(variant: Variant) -> tuple[Any, int]:
            return rule.rank(self._values(variant.facts)), variant.facts.bytes

        return min(satisfying, key=rank)

    def _describe(self, variant: Variant, rule: Rule) -> str:
        """Formats the values of a variant that a rule names: `pruned by 0.5, int8: bytes 9000`."""
        values = self._values(variant.facts)
        names = [rule.objective.name]
        for condition in rule.conditions:
            if condition.name not in names:
                names.append(condition.name)
        parts = [f"{name} {values[name]:.4g}" for name in names]
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
        for batch_size in BATCH_SIZES:
            session.run(self._examples(batch_size).numpy())
        precision = "fp32"
        if quantized:
            precision = "int8"
        facts = self._facts(f"{recipe.name}, {precision}", network, len(content), outputs)
        return Variant(recipe, quantized, content, facts)

    def _examples(self, count: int) -> Tensor:
        """Returns training examples, some of them more than once if there are fewer."""
        examples = self.original.inputs
        return examples[torch.arange(count) % len(examples)]

    def _facts(self, name: str, network: nn.Module, size: int, outputs: Outputs) -> VariantFacts:
        """Returns the value of a network, and how much worse it is than the original's.

        Args:
            size: the bytes of the network's file.
            outputs: the outputs of the network on the validation set.
        """
        difference = compare_outputs(self.metric, self.original, self.outputs, outputs)
        ends = difference.interval
        if ends is None:  # it is not known, as for a custom evaluation
            ends = (difference.mean, difference.mean)
        # Adding 0.0 turns -0.0, which would be printed with its sign, into 0.0.
        drop = -self.metric.sign * difference.mean + 0.0
        low, high = sorted(-self.metric.sign * end + 0.0 for end in ends)
        return VariantFacts(
            name,
            value=outputs.score(self.metric),
            drop=drop,
            drop_interval=(low, high),
            bytes=size,
            parameters=count_parameters(network),
        )

    def _measure(self, variants: Sequence[Variant]) -> list[Variant]:
        """Measures the latencies of the original, in PyTorch eager, and of the variants.

        Returns:
            The variants with their latencies. `original_facts` gets those of the original.
        """
        network = self.original.network.eval()
        threads = self.settings.threads
        sessions = [OnnxNetwork(variant.content, threads) for variant in variants]
        # By the size of the batch: the latency of the original, then those of the variants.
        latencies: dict[str, list[Latency]] = {}
        with on_threads(threads), torch.inference_mode():
            for batch_size in BATCH_SIZES:
                inputs = self._examples(batch_size)
                calls: list[Callable[[], object]] = [partial(network, inputs)]
                for session in sessions:
                    calls.append(partial(session.run, inputs.numpy()))
                latencies[str(batch_size)] = measure_latencies(calls, self.settings.repeats)

        latency_of_original = {batch_size: row[0] for batch_size, row in latencies.items()}
        self.original_facts = replace(self.original_facts, latency=latency_of_original)
        measured_variants = []
        for position, variant in enumerate(variants, start=1):
            latency = {batch_size: row[position] for batch_size, row in latencies.items()}
            facts = replace(variant.facts, latency=latency)
            measured_variants.append(replace(variant, facts=facts))
        return measured_variants

    def _values(self, facts: VariantFacts) -> Mapping[str, float]:
        """Returns the values of a variant, by the names that the rule which chooses one may use.

        Latencies are by the size of the batch, as text.
        """
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
    """Measures each call many times, in rounds of all calls, and returns a latency for each.

    In this order, other work of the machine slows all calls alike.

    Args:
        repeats: the number of rounds; a call whose times sum up to MAX_SECONDS takes part in fewer.
    """
    for call in calls:
        for _ in range(WARM_UP_CALLS):
            call()
    times: list[list[float]] = [[] for _ in calls]  # seconds, a list for each call
    for _ in range(repeats):
        for call, times_of_call in zip(calls, times, strict=True):
            if sum(times_of_call) > MAX_SECONDS:
                continue
            # Not measured: loads its weights into the cache, from which other calls removed them.
            call()
            began = time.perf_counter()
            call()
            times_of_call.append(time.perf_counter() - began)
    latencies = []
    for times_of_call in times:
        median, low, high = np.percentile(times_of_call, (50, 10, 90)) * 1e3  # milliseconds
        latencies.append(Latency(float(median), float(low), float(high), len(times_of_call)))
    return latencies
