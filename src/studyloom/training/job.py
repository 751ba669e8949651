"""TODO training.job."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from studyloom.metrics import ACCURACY, Metric

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, eq=False)
class Job:
    """Everything one training needs.

    model is called with shape= and outputs=; optimizer with the parameters, and holds the base learning rate, L2 (its
    own weight_decay) and whether it is fused; schedule maps progress in [0, 1) to a factor on the base rate; loss maps
    (batch, outputs) and (batch,) to a mean. train and valid are int64 indices into a Split. l1 is the weight of the sum
    of |w| over all weight matrices and kernels, not biases and norms. clip bounds the norm of the gradient.
    samples_per_epoch are drawn anew, without replacement, from train each epoch; all of it if None. seed decides all
    that is random. metric judges the validation part after each epoch. Raises ValueError.
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
        part, samples = len(self.train), self.samples
        if not len(self.valid):
            raise ValueError(
                f"data.validation leaves no example to validate on beside {part} to train on: expected 1 or more"
            )
        if self.epochs < 1:
            raise ValueError(f"train.epochs is {self.epochs}: expected 1 or more")
        if not 1 <= samples <= part:
            raise ValueError(
                f"train.samples_per_epoch is {samples}: expected 1 to {part}, the size of the training part"
            )
        if not 1 <= self.batch_size <= samples:
            raise ValueError(
                f"train.batch_size is {self.batch_size}: expected 1 to {samples}, the size of an epoch"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"train.precision is {self.precision!r}: expected {' or '.join(PRECISIONS)}"
            )
        if not 0 <= self.l1 < math.inf:
            raise ValueError(f"train.l1 is {self.l1}: expected 0 (off) or more, and finite")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(
                f"train.clip is {self.clip}: expected more than 0, and finite, or null (off)"
            )

    @property
    def samples(self) -> int:
        """Images trained on in an epoch."""
        return len(self.train) if self.samples_per_epoch is None else self.samples_per_epoch


@dataclass(frozen=True)
class Epoch:
    """What one epoch said.

    number: from 1. The losses are means over examples, train_loss while the weights moved and without L1. value: of the
    job's metric on the validation part. seconds: training and validation together; samples_per_second: training
    examples over the training time alone.
    """

    number: int
    train_loss: float
    valid_loss: float
    value: float
    seconds: float
    samples_per_second: float
