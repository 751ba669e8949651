"""How a network does on each group of examples: its own groups, or the classes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studyloom.data.training_data import Part
from studyloom.metrics import Metric, accuracy, example_scores
from studyloom.winner.statistics import NORMAL

MOST = 30  # groups that are kept, those with most examples
DRAWS = 999  # resamples of a group's examples


def by_group(
    metric: Metric, outputs: Tensor, targets: Tensor, sealed: Part
) -> dict[str, Any] | None:
    """Measures a network on each group of the test part; without groups, on each class.

    Args:
        metric: of the study.
        outputs: of the network on the test part, (n, …), on the CPU.
        targets: those of the test part, on the CPU.
        sealed: the test part.

    Returns:
        `of`, group or class; `left`, how many groups are left out; and `rows`, each the `name` of
        its group, how many examples it has (`count`), the mean of the metric over them (`value`)
        and its 95 % `interval`. None without groups or classes, and for a metric that is no mean
        over examples.
    """
    scores = example_scores(metric, outputs, targets)
    if scores is None:
        return None
    classes = sealed.classifies and targets.ndim == 1
    if len(sealed.group_names) == len(targets):
        kind, names = "group", list(sealed.group_names)
    elif classes:
        known = sealed.names or tuple(map(str, range(outputs.shape[1])))
        kind, names = "class", [known[label] for label in targets.tolist()]
    else:
        return None
    members: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        members.setdefault(name, []).append(place)
    largest = sorted(members, key=lambda name: (-len(members[name]), name))[:MOST]
    order = [name for name in (sealed.names or sorted(members)) if name in largest]
    order = order if len(order) == len(largest) else sorted(largest)
    share = metric.function is accuracy
    rows = [_row(name, scores[torch.tensor(members[name])], share) for name in order]
    return {"of": kind, "left": len(members) - len(rows), "rows": rows}


def _row(name: str, scores: Tensor, share: bool) -> dict[str, Any]:
    if share:
        ends = wilson(int(scores.sum()), len(scores))
    else:
        draws = np.random.default_rng(0).integers(0, len(scores), (DRAWS, len(scores)))
        low, high = np.percentile(scores.numpy()[draws].mean(1), (2.5, 97.5))
        ends = [float(low), float(high)]
    return {"name": name, "count": len(scores), "value": float(scores.mean()), "interval": ends}


def wilson(right: int, count: int) -> Sequence[float]:
    """Returns the 95 % interval of a share (Wilson 1927, JASA 22).

    It is never empty, also where all or none are right.

    Args:
        right: how many are.
        count: of how many.
    """
    share, square = right / count, NORMAL**2 / count
    middle = share + square / 2
    half = NORMAL * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return [max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))]
