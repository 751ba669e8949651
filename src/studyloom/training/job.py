"""The job of one training, and the result of one epoch."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from studyloom.metrics import ACCURACY, Metric
from studyloom.training.optimizer import ParameterGroup, Schedule
from studyloom.training.steps import PRECISIONS, CustomStep

WEIGHTS = ("last", "best")


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that one training needs.

    Args:
        model: is called with shape= and outputs=, and returns the network.
        optimizer: is called with the parameters, and returns the optimizer. It holds the base
            learning rate and the weight decay.
        schedule: maps progress in [0, 1) to a factor on the base learning rate; or a scheduler of
            PyTorch.
        train: indices of the training examples in a Split, int64 (n,).
        valid: indices of the validation examples, likewise.
        l1: the weight of the sum of |w| over all weight matrices and kernels; biases and norms are
            left out.
        clip_norm: the bound on the norm of the gradient; None for no bound.
        precision: fp32, bf16 or fp16; with fp16 gradients are scaled, so that small ones do not
            become 0.
        batch_size: the number of examples in a batch. An epoch with fewer examples is one batch.
        samples_per_epoch: the number of examples that are drawn from `train` for each epoch,
            without replacement; None for all of them.
        step: computes the loss of a training batch; None to call the network and then `loss`.
        evaluate: computes loss, outputs and targets of a validation batch; None as for `step`.
        groups: parameters with their own settings; all others have those of the optimizer.
        accumulate: the number of batches whose gradients make one step of the optimizer. The
            gradient is that of one batch with all their examples.
        drop_last: whether the last batch of an epoch is left out if it is smaller.
        ema: the decay of an average of the weights, which is evaluated and kept instead of them.
        patience: the training ends after this number of epochs in a row without a better value.
        weights: `last`, or `best` for the epoch with the best value. Its weights and its value are
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
    clip_norm: float | None = None
    precision: str = "fp32"
    samples_per_epoch: int | None = None
    metric: Metric = ACCURACY
    step: CustomStep | None = None
    evaluate: CustomStep | None = None
    groups: Sequence[ParameterGroup] = ()
    accumulate: int = 1
    drop_last: bool = False
    ema: float | None = None
    patience: int | None = None
    weights: str = "last"
    until: int | None = None

    def __post_init__(self) -> None:
        """Checks the numbers; ValueError names the key of the config and the range."""
        available = len(self.train)
        if not len(self.valid):
            raise ValueError(
                "data.validation must leave at least one example to validate on; "
                f"got none, and {available} to train on"
            )
        self._require("epochs", self.epochs >= 1, "at least 1")
        drawn = self.drawn_samples
        self._require(
            "samples_per_epoch",
            1 <= drawn <= available,
            f"from 1 to {available}, the size of the training set",
        )
        self._require("batch_size", self.batch_size >= 1, "at least 1")
        if self.drop_last:
            requirement = (
                f"from 1 to {drawn} with train.drop_last=true, which leaves out a smaller batch: "
                f"an epoch has {drawn} examples"
            )
            self._require("batch_size", self.batch_size <= drawn, requirement)
        self._require("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        self._require("l1", 0 <= self.l1 < math.inf, "finite and at least 0 (off)")
        if self.clip_norm is not None:
            is_bound = 0 < self.clip_norm < math.inf
            self._require("clip_norm", is_bound, "finite and above 0, or null (off)")
        self._require("accumulate", self.accumulate >= 1, "at least 1 (off)")
        if self.ema is not None:
            self._require("ema", 0 < self.ema < 1, "between 0 and 1, or null (off)")
        if self.patience is not None:
            self._require("patience", self.patience >= 1, "at least 1, or null (off)")
        self._require("weights", self.weights in WEIGHTS, " or ".join(WEIGHTS))
        if self.until is not None:
            in_range = 1 <= self.until <= self.epochs
            self._require("until", in_range, f"from 1 to {self.epochs}, or null (all)")

    def _require(self, key: str, is_satisfied: bool, requirement: str) -> None:
        """Raises ValueError for a value of the section `train`, unless it is as required.

        Args:
            requirement: the end of "train.KEY must be …".
        """
        if not is_satisfied:
            value = getattr(self, key)
            raise ValueError(f"train.{key} must be {requirement}; got {value!r}")

    @property
    def drawn_samples(self) -> int:
        """The number of examples that are drawn for an epoch."""
        if self.samples_per_epoch is None:
            return len(self.train)
        return self.samples_per_epoch

    @property
    def samples(self) -> int:
        """The number of examples that an epoch trains on."""
        if self.drop_last:
            whole_batches = self.drawn_samples // self.batch_size
            return whole_batches * self.batch_size
        return self.drawn_samples

    @property
    def last_epoch(self) -> int:
        """The last epoch, unless patience ends the training before."""
        if self.until is None:
            return self.epochs
        return self.until

    @property
    def largest_batch_size(self) -> int:
        """The number of examples in the first batch of an epoch."""
        return min(self.batch_size, self.samples)

    @property
    def last_batch_size(self) -> int:
        """The number of examples in the last batch of an epoch."""
        remainder = self.samples % self.batch_size
        if remainder == 0:
            return self.batch_size
        return remainder

    def select_epoch(self, epochs: "Sequence[Epoch]") -> "Epoch":
        """Returns the epoch whose weights and value are those of the training.

        It is the last one, or with weights=best the first of those with the best value.
        """
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
