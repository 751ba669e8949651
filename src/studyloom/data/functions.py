"""Data that a function of the user's own loads."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from studyloom.data.split import Split, digest_of, format_sizes, parts_of
from studyloom.data.transform import Picture, Transform
from studyloom.errors import DataError, UnfitData


class Facts(NamedTuple):
    """What the test part must have in common with the training part.

    Attributes:
        shape: of one input.
        targets: the shape of one target.
        outputs: how many numbers a network returns.
    """

    shape: tuple[int, ...]
    targets: tuple[int, ...]
    outputs: int


@dataclass(frozen=True)
class Loaded:
    """Data that a function of the user's own loads.

    Args:
        load: called with "train" or "test"; returns inputs (n, …) and targets (n,) or (n, outputs),
            as tensors or arrays. Inputs that are whole numbers keep their type; a batch has bytes
            as float32, unscaled, and others as the network takes them: whole for an embedding, else
            float32. A memory map stays one. Targets that are whole numbers from 0 are classes; the
            network has one output for each. Floats are numbers to predict. The test part is loaded
            once; so is the training part, for all workers of a command, from 64 MB on.
        validation: how many training examples are held out to choose by.
        ordered: whether the examples are in time order, the test part after the training part; if
            so, the last ones are held out.
        transform: how `studyloom predict` makes an input of what a file holds: a `Picture`, or a
            function of a picture, uint8 (channels, height, width), or of the numbers in a line.

    Raises:
        DataError: `transform` is neither; from `train` and `test`, if `load` returns something
            else, or inputs on another scale than a `Picture` makes.
    """

    load: Callable[[str], tuple[Any, Any]]
    validation: int
    ordered: bool = False
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if self.transform is not None and not callable(self.transform):
            raise DataError(
                "data.transform must be a studyloom.data.Picture, or a function of yours with "
                f"_partial_: true; got {type(self.transform).__name__}"
            )

    def train(self) -> Split:
        split = self._split("train", None)
        # What the test part is compared with: it need not load the training part again.
        facts = Facts(split.shape, tuple(split.targets.shape[1:]), split.outputs)
        object.__setattr__(self, "_training", facts)
        if isinstance(self.transform, Picture):
            self.transform.check(split)
        return split

    def test(self) -> Split:
        if not hasattr(self, "_training"):
            self.train()
        facts: Facts = self._training  # type: ignore[attr-defined]
        return self._split("test", facts)

    def _split(self, part: str, training: Facts | None) -> Split:
        inputs, targets = self._call(part)
        sizes = f"inputs {format_sizes(inputs)} and targets {format_sizes(targets)}"
        classes = not targets.is_floating_point()
        if classes and (targets.ndim > 1 or targets.min() < 0):
            raise UnfitData(
                f"data.load({part!r}) must return classes (n,), whole numbers from 0 on, or floats "
                f"to predict numbers; got whole targets {format_sizes(targets)} from "
                f"{int(targets.min())} on"
            )
        inputs = _stored(inputs)
        targets = targets.long() if classes else targets.float().reshape(len(targets), -1)
        outputs = int(targets.max()) + 1 if classes else targets.shape[1]
        if training is not None:
            if (
                tuple(inputs.shape[1:]) != training.shape
                or tuple(targets.shape[1:]) != training.targets
            ):
                raise UnfitData(
                    f"data.load({part!r}) must return examples like those of the training part, "
                    f"inputs {_of_any(training.shape)} and targets {_of_any(training.targets)}; "
                    f"got {sizes}"
                )
            if classes and outputs > training.outputs:
                raise DataError(
                    f"data.load({part!r}) must return classes of the training part, "
                    f"0 to {training.outputs - 1}; got class {outputs - 1}"
                )
            outputs = training.outputs
        return Split(inputs, targets, outputs, digest_of(inputs, targets), ordered=self.ordered)

    def _call(self, part: str) -> tuple[Tensor, Tensor]:
        """Calls the function, and checks that inputs and targets go together."""
        pair = self.load(part)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UnfitData(
                f"data.load({part!r}) must return a pair of inputs and targets; "
                f"got {type(pair).__name__}"
            )
        inputs, targets = (
            _tensor(value, part, name)
            for value, name in zip(pair, ("inputs", "targets"), strict=True)
        )
        sizes = f"inputs {format_sizes(inputs)} and targets {format_sizes(targets)}"
        if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or not len(inputs):
            raise UnfitData(
                f"data.load({part!r}) must return as many targets as inputs, and at least one; "
                f"got {sizes}"
            )
        if targets.ndim > 2:
            raise UnfitData(
                f"data.load({part!r}) must return targets (n,) or (n, outputs); got {sizes}"
            )
        return inputs, targets


def _of_any(shape: tuple[int, ...]) -> str:
    """Formats the shape of any number of examples: (n, 1, 28, 28)."""
    return f"({', '.join(map(str, ('n', *shape)))})"


def _stored(inputs: Tensor) -> Tensor:
    """Converts inputs to the type in which they are stored, if they have another one.

    Floats become float32. Whole numbers keep their type, but for those with which PyTorch cannot
    do much.
    """
    if inputs.dtype == torch.bool:
        return inputs.view(torch.uint8)
    if inputs.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        return inputs
    wider = {torch.uint16: torch.int32, torch.uint32: torch.int64}
    return inputs.to(wider.get(inputs.dtype, torch.float32))


def _tensor(value: Any, part: str, name: str) -> Tensor:
    """Converts a value to a tensor of finite numbers on the CPU."""
    try:
        with warnings.catch_warnings():  # of a memory map that must not be written to; none is
            warnings.filterwarnings("ignore", ".*not writable", UserWarning)
            tensor = torch.as_tensor(value).detach().cpu()
        finite = not tensor.dtype.is_floating_point or all(
            bool(torch.isfinite(part).all()) for part in parts_of(tensor)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnfitData(
            f"data.load({part!r}): its {name} must be a tensor or an array: {error}"
        ) from error
    if not finite or tensor.is_complex():
        raise DataError(
            f"data.load({part!r}): its {name} must be finite real numbers; "
            "they hold NaN, infinity or complex numbers"
        )
    return tensor
