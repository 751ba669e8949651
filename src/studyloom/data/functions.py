"""TODO data.functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studyloom.data.split import Split, digest_of, format_sizes
from studyloom.errors import DataError


@dataclass(frozen=True)
class Loaded:
    """Data that a function of one's own loads.

    load: called with "train" or "test"; gives inputs (n, …) and targets (n,), as tensors or arrays. Whole numbers from
    0 are classes, of which a network gives one number each; others are to be predicted, (n,) or (n, outputs). The test
    part is asked for once. validation: how many of the training part are held out to choose by. ordered: whether they
    are in the order of time, the test part after the training part; then the last are held out. Raises DataError.
    """

    load: Callable[[str], tuple[Any, Any]]
    validation: int
    ordered: bool = False

    def train(self) -> Split:
        return self._split("train", None)

    def test(self) -> Split:
        return self._split("test", self.train())

    def _split(self, part: str, like: Split | None) -> Split:
        given = self.load(part)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise DataError(
                f"data.load({part!r}) gave {type(given).__name__}: expected a pair of inputs and targets"
            )
        inputs, targets = (
            _tensor(value, part, name)
            for value, name in zip(given, ("inputs", "targets"), strict=True)
        )
        sizes = f"inputs {format_sizes(inputs)} and targets {format_sizes(targets)}"
        if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or not len(inputs):
            raise DataError(
                f"data.load({part!r}) gave {sizes}: expected as many of both, and at least one"
            )
        if targets.ndim > 2:
            raise DataError(
                f"data.load({part!r}) gave {sizes}: expected targets (n,) or (n, outputs)"
            )
        classes = not targets.is_floating_point()
        if classes and (targets.ndim > 1 or targets.min() < 0):
            raise DataError(
                f"data.load({part!r}) gave whole targets {format_sizes(targets)} from {int(targets.min())} on: expected "
                "classes (n,) from 0 on, or floats, where numbers are to be predicted"
            )
        inputs, targets = (
            inputs.float(),
            targets.long() if classes else targets.float().reshape(len(targets), -1),
        )
        outputs = int(targets.max()) + 1 if classes else targets.shape[1]
        if like is not None:
            if (
                inputs.shape[1:] != like.inputs.shape[1:]
                or targets.shape[1:] != like.targets.shape[1:]
            ):
                sizes_of_train = f"{format_sizes(like.inputs)} and {format_sizes(like.targets)}"
                raise DataError(
                    f"data.load({part!r}) gave {sizes}: those of the training part are {sizes_of_train}"
                )
            if classes and outputs > like.outputs:
                raise DataError(
                    f"data.load({part!r}) gave class {outputs - 1}: the training part has {like.outputs}"
                )
            outputs = like.outputs
        return Split(inputs, targets, outputs, digest_of(inputs, targets), ordered=self.ordered)


def _tensor(value: Any, part: str, name: str) -> Tensor:
    """A tensor on the CPU, of finite numbers."""
    try:
        tensor = torch.as_tensor(value).detach().cpu()
        bad = not bool(torch.isfinite(tensor).all())
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"data.load({part!r}): its {name} are no tensor or array: {error}"
        ) from error
    if bad or tensor.is_complex():
        raise DataError(f"data.load({part!r}): its {name} hold NaN, infinity or complex numbers")
    return tensor
