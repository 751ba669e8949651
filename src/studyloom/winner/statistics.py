"""Means over seeds, their intervals, and the difference between winner and baseline."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any


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
