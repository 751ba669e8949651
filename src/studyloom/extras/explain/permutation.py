"""Which columns of a table a network needs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studyloom.data.split import Split
from studyloom.data.training_data import Part
from studyloom.errors import UndefinedMetric
from studyloom.metrics import Metric

REPEATS = 20  # orders of each column


def permute_columns(
    metric: Metric,
    answer: Callable[[Part], Tensor],
    sealed: Split,
    outputs: Tensor,
    targets: Tensor,
    seed: int,
) -> list[dict[str, Any]]:
    """Measures how much worse a network gets if one column is put in a random order.

    A column that tells what another one tells too may seem not to matter (Breiman 2001, Machine
    Learning 45).

    Args:
        metric: of the study.
        answer: returns the outputs of the network for a part, on the CPU.
        sealed: the test part, with inputs (n, columns).
        outputs: of the network on it.
        targets: those of the test part, on the CPU.
        seed: of the orders.

    Returns:
        a row for each column, the one that matters most first: its `name`, the mean of how much
        worse the metric gets (`worse`), and the 5th and 95th percentile over orders, `interval`.
        Columns for which the metric is not defined are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    known, rows = metric(outputs, targets), []
    for column, name in enumerate(sealed.columns):
        worse = []
        inputs = sealed.inputs.clone()
        for _ in range(REPEATS):
            order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
            inputs[:, column] = sealed.inputs[order, column]
            changed = replace(sealed, inputs=inputs, references={})
            try:
                worse.append(metric.sign * (known - metric(answer(changed), targets)))
            except UndefinedMetric:
                break
        if len(worse) == REPEATS:
            low, high = np.percentile(worse, (5, 95))
            mean = float(np.mean(worse))
            rows.append({"name": name, "worse": mean, "interval": [float(low), float(high)]})
    return sorted(rows, key=lambda row: (-row["worse"], row["name"]))
