"""Losses that PyTorch lacks: balanced cross entropy, and a squared error that also takes classes.

Configs name them by `_target_`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross entropy of raw outputs (batch, classes, …) and labels (batch, …): a scalar.

    Each class may have a weight that multiplies the losses of its labels. Unlike in PyTorch, their
    sum is divided by the number of labels, and not by the sum of their weights. Labels of -100
    (`ignore_index`) are left out, as in PyTorch.

    Args:
        weights: none; or balanced, which gives each class the same share in the loss of the
            training set: n / (k·n_c), for n examples of k classes, n_c of them of class c (King
            and Zeng 2001); or a positive number for each class.
        label_smoothing: the share of each label that moves evenly to all classes, from 0 to 1.

    Raises:
        ValueError: an argument is out of its range; or, when it is called, the targets are
            numbers, or the weights and the classes differ in number.
    """

    def __init__(
        self, weights: str | Sequence[float] = "none", label_smoothing: float = 0.0
    ) -> None:
        _check_smoothing(label_smoothing)
        fixed = None
        if isinstance(weights, str):
            if weights not in ("none", "balanced"):
                raise ValueError(
                    "loss.weights must be none, balanced, or a number for each class; "
                    f"got {weights!r}"
                )
        elif not weights or min(weights) <= 0:
            raise ValueError(
                f"loss.weights must be positive numbers, one for each class; got {list(weights)}"
            )
        else:
            fixed = torch.tensor([float(weight) for weight in weights])
        super().__init__(weight=fixed, label_smoothing=label_smoothing)
        self.balanced = weights == "balanced"
        if self.balanced:
            # Training calls the method `adapt` of modules that have one with the training set,
            # which takes 0.06 s. Other losses do without.
            self.adapt = self._balance

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            raise ValueError(
                "loss=cross_entropy is for classes, and targets are numbers; take mse, mae or huber"
            )
        weight = self.weight
        if weight is None:
            return super().forward(outputs, labels)
        classes = outputs.shape[1]
        if len(weight) < classes and self.balanced:
            # The training set has no example of the last classes: their weights are never used.
            weight = functional.pad(weight, (0, classes - len(weight)), value=1.0)
        if len(weight) != classes:
            raise ValueError(
                f"loss.weights must have a number for each of {classes} classes; got {len(weight)}"
            )
        total = functional.cross_entropy(
            outputs, labels, weight, reduction="sum", label_smoothing=self.label_smoothing
        )
        count = (labels != self.ignore_index).sum()
        return total / count

    def _balance(self, inputs: Tensor, targets: Tensor) -> None:
        """Sets the weights by the classes of the training set, (n,); ignores the inputs."""
        labels = targets[targets != self.ignore_index]
        counts = labels.bincount()
        self.weight = len(labels) / (counts.clamp(min=1) * (counts > 0).sum())


class MSE(nn.Module):
    """Mean squared error of raw outputs (batch, outputs), to numbers of that shape or to classes.

    Labels (batch,) of classes become one-hot, and are smoothed as in `CrossEntropy`. Hui and Belkin
    2021 (arXiv:2006.07322) find this loss as good as cross entropy for classification.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        _check_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            return functional.mse_loss(outputs, labels)
        low = self.label_smoothing / outputs.shape[1]
        high = 1 - self.label_smoothing + low
        targets = torch.full_like(outputs, low).scatter_(1, labels[:, None], high)
        return functional.mse_loss(outputs, targets)


def _check_smoothing(value: float) -> None:
    """Raises ValueError unless a label smoothing is a share."""
    if not 0 <= value <= 1:
        raise ValueError(f"loss.label_smoothing must be a number from 0 to 1; got {value!r}")
