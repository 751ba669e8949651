"""TODO winner.statistics."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

# Quantiles 0.975 of Student's t, for 1 to 30 degrees of freedom; above, that of the normal distribution is near.
T975 = (
    *(
        12.706,
        4.303,
        3.182,
        2.776,
        2.571,
        2.447,
        2.365,
        2.306,
        2.262,
        2.228,
        2.201,
        2.179,
        2.160,
        2.145,
        2.131,
    ),
    *(
        2.120,
        2.110,
        2.101,
        2.093,
        2.086,
        2.080,
        2.074,
        2.069,
        2.064,
        2.060,
        2.056,
        2.052,
        2.048,
        2.045,
        2.042,
    ),
)
NORMAL975 = 1.960


def compare(
    values: Mapping[int, Sequence[float]], winner: int, baseline: int | None
) -> dict[str, Any]:
    """Means, standard deviations and 95 % intervals over seeds; the difference is that of each seed with itself.

    Without a difference where there is no baseline, or where it has won.
    """
    found: dict[str, Any] = {"winner": {"values": values[winner], **summarise(values[winner])}}
    if baseline not in (None, winner):
        found["baseline"] = {"values": values[baseline], **summarise(values[baseline])}
        differences = [a - b for a, b in zip(values[winner], values[baseline], strict=True)]
        found["difference"] = summarise(differences)
    return found


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, and Student's 95 % interval of the mean, of which one value has none."""
    mean = fmean(values)
    if len(values) < 2:
        return {"mean": mean, "std": None, "interval": None}
    quantile = T975[len(values) - 2] if len(values) - 2 < len(T975) else NORMAL975
    half = quantile * stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "std": stdev(values), "interval": [mean - half, mean + half]}
