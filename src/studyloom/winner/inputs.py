"""Makes inputs of a network from arrays, as described by the study's data source."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studyloom.data.sound import Sound
from studyloom.data.transform import Image, InputRange, Transform, is_image
from studyloom.errors import PredictError
from studyloom.text import format_shape, name_error, one_line
from studyloom.winner.result import DataFacts

MOST_INPUTS = 1_000_000  # of a file or an array
IN_PYTHON = "call it in Python: studyloom.load_winner(RUN_DIR).network"
NORMALIZED = f"for inputs as in training {IN_PYTHON}"
SEVERAL = (
    "the network of this winner takes several tensors, or named ones; give a .npz file of "
    "numpy.savez(FILE, first, second) or (FILE, name=array), or in Python a tuple or a dict"
)
SILENT = (
    "the data source of this winner does not say how an image becomes an input; name it as "
    "data.transform and call `studyloom winner`, or give a .npy file of what `load` returns"
)


# Float32 (n, *shape), and for each input a note to print with its prediction, or "". Or several
# tensors by name or in order, without notes.
Inputs = tuple[Any, list[str]]


@dataclass(frozen=True)
class InputFormat:
    """Makes inputs of a network from arrays, and checks those that are read from files.

    Args:
        transform: makes an input from a file; None if the study has none.
    """

    facts: DataFacts
    transform: Transform | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input; () if inputs are passed unchanged, or only from Python."""
        return self.facts.shape or ()

    def from_numbers(self, numbers: Tensor, dtype: str) -> Inputs:
        """Makes inputs from an array of one or several.

        For images, integers are pixels from 0 (black) to 255 (white), or to 65535 for uint16.
        Floats are pixels from 0 to 1 if the data source normalizes its images itself, and
        otherwise inputs as in training.

        Args:
            numbers: float (n, *shape), or one input (*shape); the channel dimension of grayscale
                images may be missing.
            dtype: the name of their original type.
        """
        shape, transform = self.shape, self.transform
        if not self.facts.takes_arrays:
            raise PredictError(SEVERAL)
        if self.facts.loads_tokens and numbers.ndim in (len(shape), len(shape) + 1):
            shape = tuple(numbers.shape[-len(shape) :])  # sequences may have any length
        if not shape:
            if not numbers.ndim or not len(numbers):
                raise PredictError("it must hold an input for each entry of its first dimension")
            return self.finish(numbers)
        gray = is_image(shape) and shape[0] == 1 and tuple(numbers.shape[-2:]) == shape[1:]
        if gray and numbers.ndim < 4 and tuple(numbers.shape) != shape:
            numbers = numbers.unsqueeze(-3)
        rows = numbers[None] if tuple(numbers.shape) == shape else numbers
        if tuple(rows.shape[1:]) != shape or rows.ndim != 1 + len(shape) or not len(rows):
            raise PredictError(
                f"it must hold an input of {format_shape(shape)} numbers, or several; "
                f"got {format_shape(numbers.shape) or 'one number'}"
            )
        if not is_image(shape) or transform is None or isinstance(transform, Sound):
            return self.finish(rows)
        # Whether the data source normalizes its images itself, by known values.
        normal = isinstance(transform, Image) and (self.facts.mean, self.facts.std) != (0, 1)
        whole = dtype.startswith(("int", "uint"))
        if not whole and not normal:
            return self.finish(rows)
        most = 65535 if dtype == "uint16" else 255 if whole else 1
        low, high = (float(end) for end in rows.aminmax())
        if low < 0 or high > most:
            wanted = f"its integers must be pixels from 0 to {most}, or to 65535 as uint16"
            if not whole:
                wanted = f"its numbers must be pixels from 0 to 1, or integers to 255; {NORMALIZED}"
            raise PredictError(f"{wanted}; got {low:.6g} to {high:.6g}")
        return self.from_pixels(rows / most)

    def from_pixels(self, pixels: Tensor, done: Sequence[str] | None = None) -> Inputs:
        """Makes inputs from pixels (n, channels, height, width) from 0 to 1.

        Args:
            done: the changes made to the image of a file, which may have another size and
                background; None for arrays, whose images must fit.
        """
        if self.transform is None:
            raise PredictError(SILENT)
        if not isinstance(self.transform, Image):
            levels = (pixels * 255).round().to(torch.uint8)
            return self.finish(self.apply_transform(levels), done or ())
        if done is not None:
            row, more = self.transform(pixels[0], (self.shape[-2], self.shape[-1]))
            return self.finish(row[None], [*done, *more])
        return self.finish(self.transform.normalize(pixels))

    def apply_transform(self, items: Tensor) -> Tensor:
        """Calls the user's transform for each item."""
        make: Callable[..., Any] | None = self.transform
        assert make is not None
        try:
            rows = torch.stack([torch.as_tensor(make(item)).float() for item in items])
        except Exception as error:  # whatever a user's function raises
            raise transform_error(error) from error
        if tuple(rows.shape[1:]) != self.shape:
            wanted, got = format_shape(self.shape), format_shape(rows.shape[1:]) or "one number"
            raise PredictError(f"data.transform must return {wanted} numbers; got {got}")
        return rows

    def finish(self, rows: Tensor, done: Iterable[str] = (), own: Sequence[str] = ()) -> Inputs:
        """Checks inputs, and notes how they were changed and differ from the training data.

        Args:
            own: the notes of a `Reader`, one for each input.
        """
        if len(rows) > MOST_INPUTS:
            raise PredictError(f"it must hold at most {MOST_INPUTS:_} inputs; divide it")
        finite = torch.isfinite(rows).reshape(len(rows), -1).all(1)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            raise PredictError(f"its numbers must be finite; input {first} holds NaN or infinity")
        if self.facts.takes_integers and not bool((rows == rows.round()).all()):
            raise PredictError("its numbers must be integers, as the network takes them")
        facts, unlike = self.facts, dict[int, str]()
        if facts.inputs is not None and not facts.reads:  # a `Reader` says it itself
            unlike = InputRange(**vars(facts.inputs)).describe_differences(rows, facts.columns)
        words = [(*done, each, unlike.get(n, "")) for n, each in enumerate(own or [""] * len(rows))]
        return rows, ["; ".join(filter(None, each)) for each in words]


def transform_error(error: Exception) -> PredictError:
    """Returns the error for an exception that the user's transform has raised."""
    return PredictError(f"data.transform: {one_line(name_error(error, 200))}")
