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
        fixed_weights = None
        if not isinstance(weights, str):
            if not weights or min(weights) <= 0:
                raise ValueError(
                    "loss.weights must be positive numbers, one for each class; "
                    f"got {list(weights)}"
                )
            fixed_weights = torch.tensor([float(weight) for weight in weights])
        elif weights not in ("none", "balanced"):
            raise ValueError(
                f"loss.weights must be none, balanced, or a number for each class; got {weights!r}"
            )
        super().__init__(weight=fixed_weights, label_smoothing=label_smoothing)
        self.balanced = weights == "balanced"
        if self.balanced:
            # Training passes the training set to modules that have a method `adapt`. It takes
            # 0.06 s, so that only a loss which needs the training set has the method.
            self.adapt = self._balance

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            raise ValueError(
                "loss=cross_entropy is for classes, and targets are numbers; take mse, mae or huber"
            )
        if self.weight is None:
            return super().forward(outputs, labels)
        weighted_sum = functional.cross_entropy(
            outputs,
            labels,
            self._weights_of_classes(outputs.shape[1]),
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        # PyTorch would divide by the sum of the weights of these labels. The part of a label in the
        # loss would then depend on the others in its batch: in a batch of one class, whatever its
        # weight, each label would count as in a batch without weights.
        count = (labels != self.ignore_index).sum()
        return weighted_sum / count

    def _weights_of_classes(self, classes: int) -> Tensor:
        """Returns the weight of each class, (classes,); raises ValueError if there are others."""
        weight = self.weight
        assert weight is not None
        if len(weight) < classes and self.balanced:
            # The training set has no example of the last classes: their weights are never used.
            weight = functional.pad(weight, (0, classes - len(weight)), value=1.0)
        if len(weight) != classes:
            raise ValueError(
                f"loss.weights must have a number for each of {classes} classes; got {len(weight)}"
            )
        return weight

    def _balance(self, inputs: Tensor, targets: Tensor) -> None:
        """Sets the weights by the classes of the training set, (n,); ignores the inputs.

        A class without examples gets a weight as if it had one, which is never used.
        """
        labels = targets[targets != self.ignore_index]
        counts = labels.bincount()
        present_classes = (counts > 0).sum()
        self.weight = len(labels) / (present_classes * counts.clamp(min=1))


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
        # One-hot rows, of which a share moves evenly to all classes, that of the label included.
        share_of_each = self.label_smoothing / outputs.shape[1]
        share_of_label = 1 - self.label_smoothing + share_of_each
        targets = torch.full_like(outputs, share_of_each)
        targets.scatter_(1, labels[:, None], share_of_label)
        return functional.mse_loss(outputs, targets)


def _check_smoothing(value: float) -> None:
    """Raises ValueError unless a label smoothing is a share."""
    if not 0 <= value <= 1:
        raise ValueError(f"loss.label_smoothing must be a number from 0 to 1; got {value!r}")
