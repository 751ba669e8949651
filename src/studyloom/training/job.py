"""What one training needs, and what one epoch of it returns."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from studyloom.metrics import ACCURACY, Metric

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that one training needs.

    Args:
        model: called with shape= and outputs=; returns the network.
        optimizer: called with the parameters. It holds the base learning rate, L2 (its own
            weight_decay), and whether it is fused.
        schedule: maps progress in [0, 1) to a factor on the base learning rate.
        loss: maps outputs (batch, outputs) and targets (batch,) to a mean.
        train: indices of training examples in a Split, int64 (n,).
        valid: indices of validation examples, int64 (n,).
        epochs: the number of epochs.
        batch_size: examples per step; the last batch of an epoch may be smaller.
        seed: decides everything random.
        l1: the weight of the sum of |w| over all weight matrices and kernels, not biases and norms.
        clip: the bound on the norm of the gradient; None for no bound.
        precision: fp32 or bf16.
        samples_per_epoch: how many examples are drawn anew from `train` for each epoch, without
            replacement; None for all of them.
        metric: judges the validation part after each epoch.

    Raises:
        ValueError: sizes do not fit the data, or a number is out of range.
    """

    model: Callable[..., nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    schedule: Callable[[float], float]
    loss: Callable[[Tensor, Tensor], Tensor]
    train: Tensor
    valid: Tensor
    epochs: int
    batch_size: int
    seed: int
    l1: float = 0.0
    clip: float | None = None
    precision: str = "fp32"
    samples_per_epoch: int | None = None
    metric: Metric = ACCURACY

    def __post_init__(self) -> None:
        available, samples = len(self.train), self.samples
        if not len(self.valid):
            raise ValueError(
                "data.validation must leave at least one example to validate on; "
                f"got none, beside {available} to train on"
            )
        if self.epochs < 1:
            raise ValueError(f"train.epochs must be at least 1; got {self.epochs}")
        if not 1 <= samples <= available:
            raise ValueError(
                f"train.samples_per_epoch must be from 1 to {available}, the size of the training "
                f"part; got {samples}"
            )
        if not 1 <= self.batch_size <= samples:
            raise ValueError(
                f"train.batch_size must be from 1 to {samples}, the size of an epoch; "
                f"got {self.batch_size}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"train.precision must be {' or '.join(PRECISIONS)}; got {self.precision!r}"
            )
        if not 0 <= self.l1 < math.inf:
            raise ValueError(f"train.l1 must be finite and at least 0 (off); got {self.l1}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(
                f"train.clip must be finite and above 0, or null (off); got {self.clip}"
            )

    @property
    def samples(self) -> int:
        """How many examples an epoch trains on."""
        return len(self.train) if self.samples_per_epoch is None else self.samples_per_epoch


@dataclass(frozen=True)
class Epoch:
    """The numbers of one epoch.

    Attributes:
        number: from 1.
        train_loss: the mean over the epoch's examples, while the weights moved, without L1.
        valid_loss: the mean over the validation part.
        value: the job's metric on the validation part.
        seconds: the time of training and validation together.
        samples_per_second: training examples over the time of training alone.
    """

    number: int
    train_loss: float
    valid_loss: float
    value: float
    seconds: float
    samples_per_second: float
