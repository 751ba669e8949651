"""Makes inputs of a network from arrays, as the study's data source makes them from files."""

from collections.abc import Callable, Sequence
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
NO_TRANSFORM = (
    "the data source of this winner does not say how an image becomes an input; name it as "
    "data.transform and call `studyloom winner`, or give a .npy file of what `load` returns"
)


# The inputs of a network, and a note to print with the prediction of each, or "". The inputs are a
# float32 tensor (n, *shape), or several tensors by name or in order, which have no notes.
Inputs = tuple[Any, list[str]]


@dataclass(frozen=True)
class InputFormat:
    """Makes inputs of a network from arrays, and checks inputs that were read from files.

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
        """Makes inputs from an array that holds one or several.

        For images, integers are pixels from 0 (black) to 255 (white), or to 65535 for uint16.
        Floats are pixels from 0 to 1 if the data source normalizes its images itself, and
        otherwise inputs as in training.

        Args:
            numbers: float (n, *shape), or one input (*shape); the channel dimension of grayscale
                images may be missing.
            dtype: the name of the array's type, before it was converted to float.

        Raises:
            PredictError: the network does not take such an array.
        """
        if not self.facts.takes_arrays:
            raise PredictError(SEVERAL)
        shape = self.shape  # of one input; () if it is unknown
        dimensions = len(shape)
        # One input, or several
        has_known_dimensions = numbers.ndim in (dimensions, dimensions + 1)
        if self.facts.loads_tokens and has_known_dimensions:
            shape = tuple(numbers.shape[-dimensions:])  # texts may have any length
        if not shape:  # the inputs are passed unchanged
            has_inputs = numbers.ndim > 0 and len(numbers) > 0
            if not has_inputs:
                raise PredictError("it must hold an input for each entry of its first dimension")
            return self.finish(numbers)
        rows = self._as_rows(numbers, shape)
        if not is_image(shape) or self.transform is None or isinstance(self.transform, Sound):
            return self.finish(rows)
        has_integers = dtype.startswith(("int", "uint"))
        has_normalization = (self.facts.mean, self.facts.std) != (0, 1)
        source_normalizes = isinstance(self.transform, Image) and has_normalization
        if has_integers or source_normalizes:
            return self._from_levels(rows, dtype)
        return self.finish(rows)

    def _as_rows(self, numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Returns the inputs that an array holds, as (n, *shape).

        Raises:
            PredictError: the array has another shape.
        """
        # Grayscale images (h, w) and (n, h, w) lack the dimension of the channel.
        takes_grayscale = is_image(shape) and shape[0] == 1
        ends_with_size = tuple(numbers.shape[-2:]) == shape[1:]  # height and width
        # (n, 1, h, w), or one image (1, h, w)
        has_channels = numbers.ndim >= 4 or tuple(numbers.shape) == shape
        if takes_grayscale and ends_with_size and not has_channels:
            numbers = numbers.unsqueeze(-3)
        is_single_input = tuple(numbers.shape) == shape
        if is_single_input:
            rows = numbers[None]
        else:
            rows = numbers
        if tuple(rows.shape[1:]) != shape or rows.ndim != 1 + len(shape) or len(rows) == 0:
            raise PredictError(
                f"it must hold an input of {format_shape(shape)} numbers, or several; "
                f"got {format_shape(numbers.shape) or 'one number'}"
            )
        return rows

    def _from_levels(self, rows: Tensor, dtype: str) -> Inputs:
        """Makes inputs from images whose numbers are levels from black to white.

        Args:
            rows: (n, channels, height, width).
            dtype: the name of their original type, which says how large white is.
        """
        has_integers = dtype.startswith(("int", "uint"))
        if dtype == "uint16":
            white = 65535
        elif has_integers:
            white = 255
        else:
            white = 1
        low = float(rows.min())
        high = float(rows.max())
        if low < 0 or high > white:
            if has_integers:
                rule = f"its integers must be pixels from 0 to {white}, or to 65535 as uint16"
            else:
                rule = f"its numbers must be pixels from 0 to 1, or integers to 255; {NORMALIZED}"
            raise PredictError(f"{rule}; got {low:.6g} to {high:.6g}")
        return self.from_pixels(rows / white)

    def from_pixels(self, pixels: Tensor, changes: Sequence[str] | None = None) -> Inputs:
        """Makes inputs from pixels (n, channels, height, width) from 0 to 1.

        A transform of the user gets each image as integers from 0 to 255. The transform `Image`
        normalizes the images of an array, which must have the size and background of the training
        images; the single image of a file is also resized and, if need be, inverted.

        Args:
            changes: the changes made so far to the image of a file; None for an array.

        Raises:
            PredictError: the study has no transform, or the user's raises an exception.
        """
        if self.transform is None:
            raise PredictError(NO_TRANSFORM)
        if not isinstance(self.transform, Image):
            levels = (pixels * 255).round().to(torch.uint8)
            return self.finish(self.apply_transform(levels), changes or ())
        if changes is None:  # these are the images of an array
            return self.finish(self.transform.normalize(pixels))
        image = pixels[0]  # the only one
        height = self.shape[-2]
        width = self.shape[-1]
        row, further_changes = self.transform(image, (height, width))
        return self.finish(row[None], [*changes, *further_changes])

    def apply_transform(self, items: Tensor) -> Tensor:
        """Calls the user's transform for each item (n, …).

        Raises:
            PredictError: it raises an exception, or returns another shape.
        """
        transform: Callable[..., Any] | None = self.transform
        assert transform is not None
        try:
            rows = torch.stack([torch.as_tensor(transform(item)).float() for item in items])
        except Exception as error:  # a user's function may raise anything
            raise transform_error(error) from error
        if tuple(rows.shape[1:]) != self.shape:
            shape = format_shape(rows.shape[1:]) or "one number"
            raise PredictError(
                f"data.transform must return {format_shape(self.shape)} numbers; got {shape}"
            )
        return rows

    def finish(
        self, rows: Tensor, changes: Sequence[str] = (), notes_of_reader: Sequence[str] = ()
    ) -> Inputs:
        """Checks inputs, and adds a note on each: how it was changed and differs from training.

        Args:
            rows: the inputs, (n, *shape).
            changes: the changes made to all of them, such as "resized".
            notes_of_reader: the notes of a `Reader`, the user's code that makes inputs from files,
                one for each input.
        """
        self._check(rows)
        differences: dict[int, str] = {}  # from the training inputs, by the index of the input
        range_facts = self.facts.input_range
        has_reader = self.facts.has_reader  # a `Reader`, whose notes tell how its inputs differ
        if range_facts is not None and not has_reader:
            training_range = InputRange(**vars(range_facts))  # both have the same fields
            differences = training_range.describe_differences(rows, self.facts.columns)
        notes = []
        for index in range(len(rows)):
            parts = [*changes]
            if notes_of_reader:
                parts.append(notes_of_reader[index])
            if index in differences:
                parts.append(differences[index])
            notes.append("; ".join(part for part in parts if part))
        return rows, notes

    def _check(self, rows: Tensor) -> None:
        """Raises PredictError if a network cannot take inputs (n, *shape)."""
        if len(rows) > MOST_INPUTS:
            raise PredictError(f"it must hold at most {MOST_INPUTS:_} inputs; divide it")
        is_finite = torch.isfinite(rows).reshape(len(rows), -1).all(1)  # (n,)
        if not bool(is_finite.all()):
            first_index = int((~is_finite).nonzero()[0])
            raise PredictError(
                f"its numbers must be finite; input {first_index} holds NaN or infinity"
            )
        if self.facts.takes_integers:
            has_only_integers = bool((rows == rows.round()).all())
            if not has_only_integers:
                raise PredictError("its numbers must be integers, as the network takes them")


def transform_error(error: Exception) -> PredictError:
    """Returns the error for an exception that the user's transform has raised."""
    return PredictError(f"data.transform: {one_line(name_error(error, 200))}")
