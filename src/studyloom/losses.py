"""Losses that PyTorch lacks. Cross entropy is torch.nn.CrossEntropyLoss, which a configuration names itself."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class MSE(nn.Module):
    """Mean squared error of the raw outputs (batch, classes) against the one-hot labels (batch,), a scalar.

    Hui and Belkin 2021 (arXiv:2006.07322) find it as good as cross entropy for classification. label_smoothing moves
    that share of each target evenly to all classes, as in torch.nn.CrossEntropyLoss. Raises ValueError.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"loss.label_smoothing is {label_smoothing!r}: expected a number from 0 to 1")
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        share = self.label_smoothing / outputs.shape[1]
        targets = torch.full_like(outputs, share).scatter_(1, labels[:, None], 1 - self.label_smoothing + share)
        return functional.mse_loss(outputs, targets)
