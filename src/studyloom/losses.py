"""Losses that PyTorch lacks: cross entropy by balanced classes, and one squared error for classes and numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross entropy of raw outputs (batch, classes) and labels (batch,), a scalar.

    weights: none; balanced, by which each class has the same share in the loss of the training part: n / (k·n_c), for n
    examples of k classes, n_c of them of class c (King and Zeng 2001); or a number for each class. They multiply what
    an example costs, and the mean is over examples. Raises ValueError.
    """

    def __init__(
        self, weights: str | Sequence[float] = "none", label_smoothing: float = 0.0
    ) -> None:
        if not 0 <= label_smoothing <= 1:
            raise ValueError(
                f"loss.label_smoothing is {label_smoothing!r}: expected a number from 0 to 1"
            )
        given = None
        if isinstance(weights, str):
            if weights not in ("none", "balanced"):
                raise ValueError(
                    f"loss.weights is {weights!r}: expected none, balanced, or a number for each class"
                )
        elif not weights or min(weights) <= 0:
            raise ValueError(
                f"loss.weights is {list(weights)}: expected numbers above 0, one for each class"
            )
        else:
            given = torch.tensor([float(weight) for weight in weights])
        super().__init__(weight=given, label_smoothing=label_smoothing)
        self.balance = Balance() if weights == "balanced" else None

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            raise ValueError(
                "loss=cross_entropy is for classes, and the targets are numbers; choose mse, mae or huber"
            )
        weight = self.weight if self.balance is None else self.balance.weight
        if weight is None:
            return super().forward(outputs, labels)
        classes = outputs.shape[1]
        if (
            len(weight) < classes and self.balance
        ):  # of those that the training part lacks none is met
            weight = functional.pad(weight, (0, classes - len(weight)), value=1.0)
        if len(weight) != classes:
            raise ValueError(
                f"loss.weights has {len(weight)} numbers: expected one for each of {classes} classes"
            )
        smooth = self.label_smoothing
        total = functional.cross_entropy(
            outputs, labels, weight, reduction="sum", label_smoothing=smooth
        )
        return total / len(labels)


class Balance(nn.Module):
    """A weight for each class, learnt from the training part. What has nothing to learn is not shown it: 0.06 s."""

    weight: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", None)

    def adapt(self, inputs: Tensor, targets: Tensor) -> None:
        """Counts the classes of the training part."""
        counts = targets.bincount()
        self.weight = len(targets) / (counts.clamp(min=1) * (counts > 0).sum())


class MSE(nn.Module):
    """Mean squared error of the raw outputs (batch, outputs), to numbers of that shape or one-hot labels.

    Hui and Belkin 2021 (arXiv:2006.07322) find it as good as cross entropy for classification. label_smoothing moves
    that share of each label evenly to all classes, as in torch.nn.CrossEntropyLoss. Raises ValueError.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(
                f"loss.label_smoothing is {label_smoothing!r}: expected a number from 0 to 1"
            )
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            return functional.mse_loss(outputs, labels)
        share = self.label_smoothing / outputs.shape[1]
        targets = torch.full_like(outputs, share).scatter_(
            1, labels[:, None], 1 - self.label_smoothing + share
        )
        return functional.mse_loss(outputs, targets)
