"""An exponential moving average of a network's weights, which is evaluated and kept."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class Average:
    """A copy of a network whose weights are an average of those that it had after each step.

    average = d·average + (1 - d)·weights, with d the smaller of `decay` and (1 + t)/(10 + t) at
    step t, so that the initial weights do not weigh on a short training (as in TensorFlow's
    ExponentialMovingAverage). Buffers, such as the means of a BatchNorm, are those of the network.

    Args:
        network: on its device, before the first step.
        decay: above 0 and below 1.

    Attributes:
        network: the copy.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = deepcopy(network).requires_grad_(False)
        self._average: list[Tensor] = [*self.network.parameters()]
        self._weights: list[Tensor] = [*network.parameters()]
        self._buffers = [*zip(self.network.buffers(), network.buffers(), strict=True)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the network's weights after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)

    @torch.no_grad()
    def take_buffers(self) -> None:
        """Copies the network's buffers, before the average is evaluated."""
        for average, buffer in self._buffers:
            average.copy_(buffer)
