"""How often a classifier is right where it is so and so sure."""

from typing import Any

import torch
from torch import Tensor

from studyloom.extras.explain.groups import wilson

BINS = 10  # of confidence, equally wide


def calibrate(probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    """Compares how sure a classifier is with how often it is right.

    The expected calibration error is the mean distance of the two over bins of confidence, each
    with the share of its examples (Naeini et al., AAAI 2015; Guo et al., ICML 2017).

    Args:
        probabilities: (n, classes), on the CPU.
        labels: (n,), on the CPU.

    Returns:
        `error`, the expected calibration error; `confidence` and `accuracy`, the means over all
        examples; and `bins`, those that have examples: each its `low` and `high` end, how many
        examples it has (`count`), their mean `confidence`, their `accuracy` and its 95 %
        `interval`.
    """
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = []
    error = 0.0
    for number in range(BINS):
        own = place == number
        if (count := int(own.sum())) == 0:
            continue
        sure, share = float(confidence[own].mean()), float(right[own].mean())
        error += count / len(labels) * abs(share - sure)
        bins.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "count": count,
                "confidence": sure,
                "accuracy": share,
                "interval": wilson(int(right[own].sum()), count),
            }
        )
    means = torch.stack([confidence.mean(), right.mean()]).tolist()
    return {"error": error, "confidence": means[0], "accuracy": means[1], "bins": bins}
