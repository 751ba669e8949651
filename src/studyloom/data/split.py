"""One part of a data set: inputs and targets as tensors, and what is known about them."""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from studyloom.data.folds import Fold, Folds, make_folds
from studyloom.data.tokens import Tokens
from studyloom.errors import DataError, UnfitData

WHOLE = 2**28  # numbers of inputs that are converted as a whole for `adapt`: 1 GB as float32
PART = 2**20  # numbers of a tensor that are converted at once: 4 MB as float32


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Args:
        inputs: (n, …), such as float32 (n, channels, height, width), normalised. Whole numbers keep
            their type; a batch has them in the type that the network takes.
        targets: classes, int64 (n,), from 0 to outputs - 1; or numbers to predict, float32
            (n, outputs).
        outputs: how many numbers a network returns for each input; of classes, one for each.
        digest: the sha256 of the raw bytes and their shapes, the same on every device.
        mean: what was subtracted from pixels on the scale 0 to 1.
        std: what they were divided by after that.
        ordered: whether the rows are in time order.
        names: the names of the classes, or of the numbers.
        columns: the names of the inputs.
        references: predictions (n, outputs) of rules that need no network, by the rule's name.
        tokens: which words the numbers of texts stand for; None where inputs are no texts.

    Raises:
        DataError: shapes or types do not fit each other.
    """

    in_memory: ClassVar[bool] = True
    group_names: ClassVar[tuple[str, ...]] = ()

    inputs: Tensor
    targets: Tensor
    outputs: int
    digest: str
    mean: float = 0.0
    std: float = 1.0
    ordered: bool = False
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    references: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Tokens | None = None

    def __post_init__(self) -> None:
        sizes = f"inputs {format_sizes(self.inputs)} and targets {format_sizes(self.targets)}"
        if (
            self.inputs.ndim < 1
            or self.targets.ndim < 1
            or len(self.inputs) != len(self.targets)
            or not len(self)
        ):
            raise UnfitData(
                f"data must have as many targets as inputs, and at least one; got {sizes}"
            )
        if self.classifies and (self.targets.ndim > 1 or self.targets.dtype != torch.int64):
            raise UnfitData(
                "data must have targets int64 (n,), which are classes, or float32 (n, outputs); "
                f"got {sizes} of {self.targets.dtype}"
            )
        if not self.classifies and tuple(self.targets.shape[1:]) != (self.outputs,):
            raise UnfitData(
                f"data must have targets (n, {self.outputs}), a number for each output of the "
                f"network; got {sizes}"
            )
        if self.tokens is not None and not self.tokens.fits(self.inputs[0]):
            raise UnfitData(
                "data with tokens must have rows of whole numbers as inputs, each with room for a "
                f"text from place {self.tokens.first} on; got {sizes} of {self.inputs.dtype}"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def classifies(self) -> bool:
        """Whether the targets are classes, and not numbers."""
        return not self.targets.is_floating_point()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, such as (channels, height, width)."""
        return tuple(self.inputs.shape[1:])

    def part(self, indices: Tensor | None = None, *, to_train: bool = False) -> "TensorDataset":
        """Returns the examples at some indices as a Dataset of pairs (input, target).

        Args:
            indices: int64 (n,); None for all examples.
            to_train: whether one trains on them; here they are the same.
        """
        if indices is None:
            return TensorDataset(self.inputs, self.targets)
        indices = indices.to(self.inputs.device)
        return TensorDataset(self.inputs[indices], self.targets[indices])

    @property
    def kind(self) -> str:
        """The type of the inputs, such as float32."""
        return str(self.inputs.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    def to(self, device: torch.device | str) -> "Split":
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def folds(self, count: int, validation: int, seed: int) -> Folds:
        """Divides the examples; see `make_folds`."""
        return make_folds(self.targets, count, validation, seed, ordered=self.ordered)

    def whole(self) -> Fold:
        """Returns all examples to train on, and a fifth of them, whose value says little."""
        everything = torch.arange(len(self))
        return everything, everything[: max(1, len(self) // 5)]

    def input_at(self, index: int) -> Tensor:
        """Returns the input of an example."""
        return self.inputs[index]

    def show(self, modules: Sequence[Any], train: Tensor, part: str) -> None:
        """Shows the training examples to modules that adapt to them; see `Part`.

        Whole numbers are shown as float32. Of those that would take more than 1 GB so, no copy is
        made for modules with a method `adapt_in_parts`, which gets an iterator of parts `(inputs,
        targets)`, in the order of the examples.
        """
        numbers, whole = math.prod(self.shape), not self.inputs.is_floating_point()
        left = [*modules]
        if whole and len(train) * numbers > WHOLE:
            rows = max(1, PART // numbers)
            for module in [module for module in modules if hasattr(module, "adapt_in_parts")]:
                module.adapt_in_parts(
                    (self.inputs[some].float(), self.targets[some])
                    for some in torch.split(train, rows)
                )
                left.remove(module)
        if left:
            inputs, targets = self.inputs[train], self.targets[train]
            for module in left:
                module.adapt(inputs.float() if whole else inputs, targets)

    def check(self) -> None:
        """Checks the values; see `check_split`."""
        check_split(self)

    def for_preflight(self) -> "Split":
        """Returns the same for tries before the first trial."""
        return self

    def to_rehearse(self, train: Tensor) -> Tensor:
        """Puts the examples with the greatest and the least whole number before others."""
        if self.inputs.is_floating_point():
            return train
        return torch.cat([self.extremes.to(train.device), train])

    @functools.cached_property
    def extremes(self) -> Tensor:
        """Which examples have the greatest number and the least, int64 (2,)."""
        rows = self.inputs.flatten(1) if self.inputs.ndim > 1 else self.inputs[:, None]
        if rows.dtype in (torch.bool, torch.uint16, torch.uint32, torch.uint64):
            rows = rows.long()  # PyTorch does not compare these
        if not rows.numel():
            return torch.zeros(2, dtype=torch.int64, device=self.device)
        return torch.stack([rows.amax(1).argmax(), rows.amin(1).argmin()])


def digest_of(inputs: Tensor, targets: Tensor) -> str:
    """Returns the sha256 of two tensors on the CPU, and of their shapes.

    Inputs that are whole numbers are read as float32, part by part. So the digest is what it was
    when they were stored as such; whole numbers from 2^24 on may have that of their neighbours.
    """
    digest = hashlib.sha256(
        f"{tuple(inputs.shape)} {tuple(targets.shape)} {targets.dtype}".encode()
    )
    for part in parts_of(inputs):
        part = part if part.is_floating_point() else part.float()
        digest.update(part.contiguous().numpy().data)
    for part in parts_of(targets):
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def check_split(split: Split) -> None:
    """Checks the values of a training part, which may come from a class of the user's own.

    Raises:
        DataError: an input or a target is not finite, or a class has no output.
    """
    for name, tensor in (("inputs", split.inputs), ("targets", split.targets)):
        # A value that is not finite makes a sum that is not: 0.02 s for 60 000 images, and 0.2 s
        # to look at each number.
        # A whole number is always finite.
        suspect = tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum()))
        if suspect and not bool(torch.isfinite(tensor).all()):
            example = int((~torch.isfinite(tensor)).nonzero()[0, 0])
            raise DataError(
                f"data: the {name} must be finite; those of example {example} of the training part "
                "hold NaN or infinity"
            )
    if split.classifies:
        low, high = int(split.targets.min()), int(split.targets.max())
        if low < 0 or high >= split.outputs:
            raise DataError(
                f"data: classes must be from 0 to {split.outputs - 1}, one for each output; "
                f"got {low} to {high}"
            )


def parts_of(tensor: Tensor) -> Sequence[Tensor]:
    """Returns a tensor in parts along its first dimension, of a size to compute with at once."""
    rows = PART // max(1, math.prod(tensor.shape[1:]))
    return torch.split(tensor, max(1, rows)) if tensor.ndim else (tensor,)


def format_sizes(tensor: Tensor) -> str:
    """Formats the shape of a tensor: (60, 1, 4, 4)."""
    return f"({', '.join(map(str, tensor.shape))})"
