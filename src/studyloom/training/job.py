"""The job of one training, and the result of one epoch."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from studyloom.metrics import ACCURACY, Metric
from studyloom.training.optimizer import ParameterGroup, Schedule
from studyloom.training.steps import PRECISIONS, OwnStep

WEIGHTS = ("last", "best")


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that one training needs.

    Args:
        model: called with shape= and outputs=; returns the network.
        optimizer: called with the parameters. It holds the base learning rate, L2 (its own
            weight_decay), and whether it is fused.
        schedule: maps progress in [0, 1) to a factor on the base learning rate; or a scheduler of
            PyTorch.
        train: indices of training examples in a Split, int64 (n,); as `valid` of validation.
        l1: the weight of the sum of |w| over all weight matrices and kernels, not biases and norms.
        clip: the bound on the norm of the gradient.
        precision: fp32, bf16 or fp16, whose gradients are scaled.
        samples_per_epoch: how many examples are drawn again from `train` for each epoch, without
            replacement; None for all of them.
        step: computes the loss of a training batch; None for the network's outputs and `loss`.
        evaluate: computes loss, outputs and targets of a batch to evaluate; None as for `step`.
        groups: parameters with their own settings; all others have those of the optimizer.
        accumulate: the batches whose gradients make one step of the optimizer. The gradient is that
            of one batch of all their examples.
        drop_last: whether to leave out the last batch of an epoch if it is smaller.
        ema: the decay of an average of the weights, which is evaluated and kept instead of them.
        patience: training ends after so many epochs in a row without a better value.
        weights: `last`, or `best` for the epoch with the best value: its weights and its value are
            those of the training.
        until: the epoch after which training ends, on the schedule of all `epochs`; None for all.

    Raises:
        ValueError: sizes do not fit the data, or a number is out of range.
    """

    model: Callable[..., nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    schedule: Schedule
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
    step: OwnStep | None = None
    evaluate: OwnStep | None = None
    groups: Sequence[ParameterGroup] = ()
    accumulate: int = 1
    drop_last: bool = False
    ema: float | None = None
    patience: int | None = None
    weights: str = "last"
    until: int | None = None

    def __post_init__(self) -> None:
        available = len(self.train)
        samples = available if self.samples_per_epoch is None else self.samples_per_epoch
        if not len(self.valid):
            raise ValueError(
                "data.validation must leave at least one example to validate on; "
                f"got none, and {available} to train on"
            )
        clips = self.clip is None or 0 < self.clip < math.inf
        checks = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "samples_per_epoch": (
                1 <= samples <= available,
                f"from 1 to {available}, the size of the training set",
            ),
            "batch_size": (1 <= self.batch_size <= samples, f"from 1 to {samples}, an epoch's"),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            "l1": (0 <= self.l1 < math.inf, "finite and at least 0 (off)"),
            "clip": (clips, "finite and above 0, or null (off)"),
            "accumulate": (self.accumulate >= 1, "at least 1 (off)"),
            "ema": (self.ema is None or 0 < self.ema < 1, "between 0 and 1, or null (off)"),
            "patience": (self.patience is None or self.patience >= 1, "at least 1, or null (off)"),
            "weights": (self.weights in WEIGHTS, " or ".join(WEIGHTS)),
            "until": (1 <= self.last <= self.epochs, f"from 1 to {self.epochs}, or null (all)"),
        }
        for key, (fits, must) in checks.items():
            if not fits:
                raise ValueError(f"train.{key} must be {must}; got {getattr(self, key)!r}")

    @property
    def samples(self) -> int:
        """How many examples an epoch trains on."""
        samples = len(self.train) if self.samples_per_epoch is None else self.samples_per_epoch
        return samples // self.batch_size * self.batch_size if self.drop_last else samples

    @property
    def last(self) -> int:
        """The last epoch, if patience does not end the training before."""
        return self.epochs if self.until is None else self.until

    @property
    def last_batch(self) -> int:
        """How many examples the last batch of an epoch has."""
        return self.samples % self.batch_size or self.batch_size

    def kept(self, epochs: "Sequence[Epoch]") -> "Epoch":
        """Returns the epoch whose weights and value are kept: the last, or the first best one."""
        if self.weights == "last":
            return epochs[-1]
        return max(epochs, key=lambda epoch: self.metric.sign * epoch.value)


@dataclass(frozen=True)
class Epoch:
    """The numbers of one epoch, counted from 1.

    Attributes:
        train_loss: the mean over the epoch's examples, while the weights moved, without L1.
        value: the job's metric on the validation set.
        seconds: the time of training and validation together.
        samples_per_second: training examples over the time of training only.
    """

    number: int
    train_loss: float
    valid_loss: float
    value: float
    seconds: float
    samples_per_second: float
