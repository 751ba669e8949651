"""Means over seeds, their intervals, and differences; and the mean of what networks return."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor


def compare(
    values: Mapping[int, Sequence[float]], winner: int, baseline: int | None
) -> dict[str, Any]:
    """Summarises winner and baseline, and the difference between them seed by seed.

    Args:
        values: one value per seed, by the number of the candidate.
        winner: the number of the winner.
        baseline: the number of the baseline; None if there is none.

    Returns:
        the summaries `winner`, `baseline` and `difference`; the last two only if there is a
        baseline and it has not won.
    """
    summaries: dict[str, Any] = {"winner": {"values": values[winner], **summarise(values[winner])}}
    if baseline not in (None, winner):
        summaries["baseline"] = {"values": values[baseline], **summarise(values[baseline])}
        differences = [a - b for a, b in zip(values[winner], values[baseline], strict=True)]
        summaries["difference"] = summarise(differences)
    return summaries


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Summarises values that differ by their seed alone.

    Returns:
        `mean`, `std` (the sample standard deviation) and `interval` (Student's 95 % interval of the
        mean, a list of two); the last two are None for a single value.
    """
    mean = fmean(values)
    if len(values) < 2:
        return {"mean": mean, "std": None, "interval": None}
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # 0.4 s to import

    quantile = float(stdtrit(len(values) - 1, 0.975))
    half = quantile * stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "std": stdev(values), "interval": [mean - half, mean + half]}


@dataclass(frozen=True)
class Average:
    """How outputs of several networks become one output, of the same meaning.

    Args:
        to_mean: maps the outputs of a network, float64 (n, …), to what is averaged.
        to_outputs: maps the mean back.
    """

    to_mean: Callable[[Tensor], Tensor]
    to_outputs: Callable[[Tensor], Tensor]

    def __call__(self, outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Returns the outputs of a committee, float32 (n, …).

        Args:
            outputs: of each member, (n, …).
            shares: of each member, above 0; together 1.
        """
        mean = sum(s * self.to_mean(o.double()) for s, o in zip(shares, outputs, strict=True))
        assert isinstance(mean, Tensor)
        return self.to_outputs(mean).float()


TINY = torch.finfo(torch.float32).tiny  # so that no probability has an infinite logarithm
AVERAGES = {
    # Probabilities of classes, whose softmax they are again.
    "softmax": Average(lambda o: o.softmax(1), lambda mean: mean.clamp_min(TINY).log()),
    # Probabilities of labels that do not exclude each other.
    "sigmoid": Average(torch.sigmoid, lambda mean: mean.logit(eps=1e-12)),
    "mean": Average(lambda o: o, lambda mean: mean),  # numbers
}
