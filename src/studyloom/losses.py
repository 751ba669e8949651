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
        class_weights = None  # "none", or "balanced" before the training set is known
        if not isinstance(weights, str):
            if not weights or min(weights) <= 0:
                raise ValueError(
                    "loss.weights must be positive numbers, one for each class; "
                    f"got {list(weights)}"
                )
            class_weights = torch.tensor([float(weight) for weight in weights])
        elif weights not in ("none", "balanced"):
            raise ValueError(
                f"loss.weights must be none, balanced, or a number for each class; got {weights!r}"
            )
        super().__init__(weight=class_weights, label_smoothing=label_smoothing)
        self.balanced = weights == "balanced"
        if self.balanced:
            # Before the first step, training passes the training set to the method `adapt` of each
            # module that has one. That takes 0.06 s, so only a balanced loss has the method.
            self.adapt = self._balance

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean loss, a scalar, of outputs (n, classes, …) for labels (n, …)."""
        if labels.is_floating_point():
            raise ValueError(
                "loss=cross_entropy is for classes, and targets are numbers; take mse, mae or huber"
            )
        if self.weight is None:
            return super().forward(outputs, labels)
        weighted_sum = functional.cross_entropy(
            outputs,
            labels,
            self._select_weights(class_count=outputs.shape[1]),
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        # PyTorch would divide by the sum of the labels' weights. How much a label counts would then
        # depend on the other labels of its batch: in a batch of one class the weights would cancel.
        label_count = (labels != self.ignore_index).sum()
        return weighted_sum / label_count

    def _select_weights(self, class_count: int) -> Tensor:
        """Returns the weight of each class, (class_count,).

        Raises:
            ValueError: there are other weights than classes.
        """
        weights = self.weight
        assert weights is not None
        missing_count = class_count - len(weights)
        if missing_count > 0 and self.balanced:
            # The training set has no example of the last classes: their weights are never used.
            weights = functional.pad(weights, (0, missing_count), value=1.0)
        if len(weights) != class_count:
            raise ValueError(
                f"loss.weights must have a number for each of {class_count} classes; "
                f"got {len(weights)}"
            )
        return weights

    def _balance(self, inputs: Tensor, targets: Tensor) -> None:
        """Sets the weight of each class to n / (k·n_c), by the examples of the training set.

        Args:
            inputs: not used.
            targets: the class of each example in the training set, (n,).
        """
        labels = targets[targets != self.ignore_index]
        example_counts = labels.bincount()  # n_c by class
        class_count = (example_counts > 0).sum()  # k
        # A class without examples counts as if it had one; its weight is never used.
        self.weight = len(labels) / (class_count * example_counts.clamp(min=1))


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
        """Returns the mean squared error of outputs (n, k), for numbers (n, k) or classes (n,)."""
        if labels.is_floating_point():
            return functional.mse_loss(outputs, labels)
        # The target of a class is a row with 1 for the class and 0 for the others, of which the
        # share `label_smoothing` is divided among all classes.
        value_of_others = self.label_smoothing / outputs.shape[1]
        value_of_label = 1 - self.label_smoothing + value_of_others
        targets = torch.full_like(outputs, value_of_others)
        targets.scatter_(1, labels[:, None], value_of_label)
        return functional.mse_loss(outputs, targets)


def _check_smoothing(value: float) -> None:
    """Raises ValueError unless a label smoothing is a share."""
    if not 0 <= value <= 1:
        raise ValueError(f"loss.label_smoothing must be a number from 0 to 1; got {value!r}")
