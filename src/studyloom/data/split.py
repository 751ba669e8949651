"""TODO data.split."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from studyloom.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    inputs: (n, …), such as float32 (n, channels, height, width), normalised. targets: classes, int64 (n,), from 0 to
    outputs - 1, or numbers to be predicted, float32 (n, outputs). outputs: how many numbers a network gives of each
    input, which for classes is one per class. digest: sha256 of the raw bytes and their shapes, the same on every
    device. mean and std: what pixels from 0 to 1 were normalised by. ordered: whether the rows are in the order of
    time. names: of the classes, or of the numbers; columns: of the inputs. references: what rules that need no network
    say, (n, outputs) each, by the name of the rule. Raises DataError.
    """

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

    def __post_init__(self) -> None:
        sizes = f"inputs {format_sizes(self.inputs)} and targets {format_sizes(self.targets)}"
        if (
            self.inputs.ndim < 1
            or self.targets.ndim < 1
            or len(self.inputs) != len(self.targets)
            or not len(self)
        ):
            raise DataError(f"{sizes}: expected as many of both, and at least one")
        if self.classifies and (self.targets.ndim > 1 or self.targets.dtype != torch.int64):
            raise DataError(
                f"{sizes} of {self.targets.dtype}: expected classes, int64 (n,), or float32 (n, outputs)"
            )
        if not self.classifies and tuple(self.targets.shape[1:]) != (self.outputs,):
            raise DataError(
                f"{sizes}: expected targets (n, {self.outputs}), as many numbers as the network gives"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def classifies(self) -> bool:
        """Whether its targets are classes; else they are numbers."""
        return not self.targets.is_floating_point()

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image."""
        return tuple(self.inputs.shape[1:])

    def to(self, device: torch.device | str) -> "Split":
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


def digest_of(inputs: Tensor, targets: Tensor) -> str:
    digest = hashlib.sha256(
        f"{tuple(inputs.shape)} {tuple(targets.shape)} {targets.dtype}".encode()
    )
    for tensor in (inputs, targets):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def check_split(split: Split) -> None:
    """Looks through the values of a split that a source made.

    Raises:
        DataError: an input or a target is no finite number, or a class has no output.
    """
    for name, tensor in (("inputs", split.inputs), ("targets", split.targets)):
        # What is not finite makes a sum that is not: 0.02 s for 60 000 images, and 0.2 s to look at each number.
        suspect = tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum()))
        if suspect and not bool(torch.isfinite(tensor).all()):
            place = int((~torch.isfinite(tensor)).nonzero()[0, 0])
            raise DataError(
                f"data: the {name} of example {place} of the training part hold NaN or infinity"
            )
    if split.classifies:
        low, high = int(split.targets.min()), int(split.targets.max())
        if low < 0 or high >= split.outputs:
            raise DataError(
                f"data: classes from {low} to {high}: expected 0 to {split.outputs - 1}, one for each output"
            )


def format_sizes(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
