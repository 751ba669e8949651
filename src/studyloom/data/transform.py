"""Transforms from the content of a file to an input of the network, and ranges of inputs.

A data source has a transform as its attribute `transform`, for `studyloom predict`. The range of
the training inputs lets `predict` name inputs that differ from all of them.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from studyloom.data.examples import Part
from studyloom.data.sound import Sound
from studyloom.data.split import Split
from studyloom.errors import DataError
from studyloom.text import format_shape, format_value, nearest
from studyloom.user_code.importing import find_member

BACKGROUNDS = {"black": 0.0, "white": 1.0}
FITS = {
    "pad": "scaled and padded to",
    "crop": "scaled and cut to",
    "stretch": "stretched to",
    "ink": "what is drawn scaled and centered in",
}

# MNIST's digits: the longer side of each has 19 or 20 of the image's 28 pixels, and its center of
# mass lies in the middle, or up to one pixel behind it. Images that are near enough pass unchanged.
INK = 20 / 28  # the longer side of what is drawn, as a share of the image's
INK_TOLERANCE = 3.5 / 28
CENTER_TOLERANCE = 1 / 28

FAINT = 0.2  # a share of the strongest ink; fainter pixels are paper
BLANK_CONTRAST = 1e-3  # the most difference between two pixels of an image without a drawing
SLACK = 0.05  # a share of the range of training inputs; values further outside are reported
ROUNDING = 1e-6  # the most by which two means of equal inputs differ
MOST_COLUMNS = 1000  # the most columns of a table whose ranges are stored one by one
MOST_NAMED = 3  # the most quantities that a note on an input names


@dataclass(frozen=True)
class Image:
    """Converts an image to an input: background, size and scale.

    Args:
        background: "black" or "white", the background of the training images; images with the other
            one are inverted. None: no image is inverted.
        fit: how an image of another size is resized. "pad" (the default), "crop" and "stretch"
            scale the image; "ink" cuts out what is drawn, scales and centers it as in MNIST.
        mean: the number that is subtracted from pixels on the scale 0 to 1, or one for each
            channel. None: the number that the data source subtracts.
        std: the number by which pixels are divided after that, or one for each channel, above 0.
            None: the number by which the data source divides.

    Examples:
        >>> import torch
        >>> transform = Image("white", mean=0.5, std=0.5)
        >>> inputs, notes = transform(torch.ones(1, 40, 20), (28, 28))
        >>> inputs.shape, notes
        (torch.Size([1, 28, 28]), ['20 × 40 pixels, scaled and padded to 28 × 28'])
    """

    background: str | None = None
    fit: str = "pad"
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.background not in (None, *BACKGROUNDS):
            raise DataError(
                "data.transform.background must be black, white or null; "
                f"got {self.background!r}{nearest(self.background, [*BACKGROUNDS])}"
            )
        if self.fit not in FITS:
            raise DataError(
                f"data.transform.fit must be one of {', '.join(FITS)}; "
                f"got {self.fit!r}{nearest(self.fit, [*FITS])}"
            )
        if self.fit == "ink" and self.background is None:
            raise DataError(
                "data.transform.fit=ink needs data.transform.background, black or white: ink is "
                "what differs from it"
            )
        _check_numbers("mean", self.mean, "a finite number", above=-math.inf)
        _check_numbers("std", self.std, "a finite number above 0", above=0.0)

    def complete(self, mean: float, std: float) -> "Image":
        """Returns a copy in which the source's mean and std replace None.

        Args:
            mean: the number that the source subtracts.
            std: the number by which the source divides.
        """
        complete = self
        if self.mean is None:
            complete = replace(complete, mean=mean)
        if self.std is None:
            complete = replace(complete, std=std)
        return complete

    def check(self, split: Split) -> None:
        """Raises DataError if the training inputs are no images, or on another scale.

        The scale needs no check if the data source has normalized the inputs itself, and this
        transform sets no mean and std of its own: `predict` then uses those of the source.

        Args:
            split: the training set.
        """
        if not is_image(split.shape):
            raise DataError(
                "data.transform: an Image makes inputs of (channels, height, width) with one or "
                f"three channels, and the training inputs are {format_shape(split.shape)}; name "
                "your own function"
            )
        channels = split.shape[0]
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            allowed_counts = (0, 1, channels)  # not set, one for all channels, one for each
            if len(_list_numbers(numbers)) not in allowed_counts:
                raise DataError(
                    f"data.transform.{name} must be one number, or {channels}, one for each "
                    f"channel; got {numbers}"
                )
        is_normalized_by_source = split.mean != 0.0 or split.std != 1.0
        sets_normalization = self.mean is not None or self.std is not None
        if sets_normalization or not is_normalized_by_source:
            self._check_scale(split)

    def _check_scale(self, split: Split) -> None:
        """Raises DataError if training inputs are outside the range from black to white."""
        complete = self.complete(split.mean, split.std)
        black = float(complete.normalize(torch.zeros(1, *split.shape)).min())
        white = float(complete.normalize(torch.ones(1, *split.shape)).max())
        lowest, highest = map(float, split.inputs.aminmax())
        slack = SLACK * (white - black)
        if lowest < black - slack or highest > white + slack:
            raise DataError(
                f"data.transform makes inputs from {format_value(black)} to {format_value(white)} "
                f"of images, and the training inputs go from {format_value(lowest)} to "
                f"{format_value(highest)}; mean and std must be those that the data is normalized "
                "by"
            )

    def __call__(self, pixels: Tensor, size: tuple[int, int]) -> tuple[Tensor, list[str]]:
        """Converts the image of a file to an input.

        Args:
            pixels: float32 (channels, height, width), from 0 (black) to 1 (white); overwritten.
            size: height and width of the input, in pixels.

        Returns:
            The input, float32 (channels, *size), and a note for each conversion that this image
            needed, such as an inversion.
        """
        notes = []
        if self.is_inverted(pixels):
            pixels = pixels.mul_(-1).add_(1)
            other_background = "black"
            if self.background == "black":
                other_background = "white"
            notes.append(f"inverted: {other_background} background, in training {self.background}")
        if not self._fits_unchanged(pixels, size):
            height, width = pixels.shape[1:]
            pixels = self._resize_to_fit(pixels, size)
            notes.append(f"{width} × {height} pixels, {FITS[self.fit]} {size[1]} × {size[0]}")
        return self.normalize(pixels), notes

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalizes pixels by mean and std; it overwrites and returns them.

        Args:
            pixels: float32 (…, channels, height, width), on the scale 0 to 1.
        """
        mean = _for_channels(self.mean or 0.0)
        std = _for_channels(self.std or 1.0)
        return pixels.sub_(mean).div_(std)

    def is_inverted(self, pixels: Tensor) -> bool:
        """Returns whether an image has the other background than the training images.

        Pixels that differ from the image's background by more than a quarter of its contrast are
        the drawing. The background is black if the drawing is brighter, and white if it is darker.

        Args:
            pixels: float32 (channels, height, width), from 0 (black) to 1 (white).
        """
        if self.background is None:
            return False
        gray = pixels.mean(0)
        contrast = float(gray.max() - gray.min())
        if contrast <= BLANK_CONTRAST:
            return False
        threshold = contrast / 4
        differences = gray - _find_border_color(gray[None])
        is_drawn = differences.abs() > threshold
        drawn_count = is_drawn.sum().clamp(min=1)
        mean_difference = float((differences * is_drawn).sum() / drawn_count)
        has_black_background = mean_difference > threshold
        has_white_background = mean_difference < -threshold
        if self.background == "white":
            return has_black_background
        return has_white_background

    def _fits_unchanged(self, pixels: Tensor, size: tuple[int, int]) -> bool:
        """Returns whether an image needs no resizing, which holds for all of MNIST's images.

        With fit=ink, a drawing must also have about the size and the center of MNIST's digits.

        Args:
            pixels: the image, (channels, height, width).
            size: the height and width that are needed.
        """
        if tuple(pixels.shape[1:]) != size:
            return False
        ink = self._compute_ink(pixels)
        if self.fit != "ink" or not bool(ink.any()):
            return True
        height, width = size
        box = _find_box(ink)
        # The longer side of MNIST's digits is about 20/28 of the image's, which is INK.
        share = max(box.height / height, box.width / width)
        if abs(share - INK) >= INK_TOLERANCE:
            return False
        center = _find_center(ink)
        # MNIST's centers lie up to one pixel behind the middle: half a pixel behind it on average.
        row_distance = abs(center.row - (height / 2 + 0.5))
        column_distance = abs(center.column - (width / 2 + 0.5))
        # One pixel in an image of any size, and a share of the size: two pixels of 28
        largest_distance = 1 + min(size) * CENTER_TOLERANCE
        return max(row_distance, column_distance) <= largest_distance

    def _resize_to_fit(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Resizes an image (channels, height, width) to a height and width, as `fit` says.

        With fit=ink, an image on which nothing is drawn is padded.
        """
        if self.fit == "stretch":
            return _resize(pixels, size)
        if self.fit == "ink":
            ink = self._compute_ink(pixels)
            if bool(ink.any()):
                return self._center_ink(ink, size)
        height, width = pixels.shape[1:]
        factor = min(size[0] / height, size[1] / width)
        if self.fit == "crop":
            # Large enough to cover the canvas; what sticks out of it is cut off there.
            factor = max(size[0] / height, size[1] / width)
        scaled = _resize(pixels, _scale_size(height, width, factor))
        if self.background is None:
            color = _find_border_color(pixels)
        else:
            color = torch.tensor([BACKGROUNDS[self.background]])
        canvas = torch.zeros(len(pixels), *size) + color.reshape(-1, 1, 1)
        _put_into_middle(scaled, canvas)
        return canvas

    def _compute_ink(self, pixels: Tensor) -> Tensor:
        """Computes how much is drawn at each pixel, (channels, height, width) from 0 to 1.

        It is 0 where a pixel has the color of the border, and 1 where it differs most.
        """
        ink = pixels - _find_border_color(pixels)[:, None, None]
        if self.background == "white":
            ink = -ink
        ink.clamp_(min=0)
        return ink / ink.max().clamp(min=1e-12)

    def _center_ink(self, ink: Tensor, size: tuple[int, int]) -> Tensor:
        """Makes an image of a drawing: as large as MNIST's digits, and centered by its mass.

        Args:
            ink: how much is drawn at each pixel of the given image, (channels, height, width).
            size: the height and width of the new image.
        """
        # The drawing, without the empty margins, at its new size.
        box = _find_box(ink)
        factor = INK * min(size[0] / box.height, size[1] / box.width)
        height, width = _scale_size(box.height, box.width, factor)
        drawing = _resize(ink[:, box.rows, box.columns], (height, width)).clamp_(0, 1)
        drawing /= drawing.max().clamp(min=1e-12)

        # Its place in the new image.
        center = _find_center(drawing)
        first_row = _find_start(size[0], height, center.row)
        first_column = _find_start(size[1], width, center.column)
        rows = slice(first_row, first_row + height)
        columns = slice(first_column, first_column + width)
        image = torch.zeros(len(ink), *size)
        image[:, rows, columns] = drawing
        if self.background == "white":
            return 1 - image
        return image


def _check_numbers(name: str, value: object, requirement: str, *, above: float) -> None:
    """Raises DataError unless a value is None, or one or several finite numbers above a limit.

    Args:
        name: the key of the section data.transform.
        requirement: what the number must be, for the message.
        above: the limit.
    """
    for number in _list_numbers(value):
        if type(number) not in (int, float) or not above < number < math.inf:
            raise DataError(
                f"data.transform.{name} must be {requirement}, one for each channel, or null; "
                f"got {value!r}"
            )


def _list_numbers(value: object) -> list[Any]:
    """Returns the numbers of a setting: those of a sequence, a single one, or none of None."""
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [value]


def _for_channels(value: float | Sequence[float]) -> float | Tensor:
    """Returns a number for all channels, or a tensor (channels, 1, 1) of one number for each."""
    if isinstance(value, (int, float)):
        return value
    return torch.tensor(value)[:, None, None]


def _find_border_color(pixels: Tensor) -> Tensor:
    """Finds the median of the outermost pixels of each channel, (channels,).

    Args:
        pixels: (channels, height, width).
    """
    edges = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    return torch.cat(edges, 1).median(1).values


class Box(NamedTuple):
    """The rows and columns of an image between which something is drawn."""

    rows: slice
    columns: slice

    @property
    def height(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def width(self) -> int:
        return int(self.columns.stop - self.columns.start)


def _find_box(ink: Tensor) -> Box:
    """Finds the smallest box around a drawing; faint pixels do not count.

    Args:
        ink: how much is drawn at each pixel, (channels, height, width) from 0 to 1.
    """
    is_drawn = ink.amax(0) > FAINT
    drawn_rows = is_drawn.any(1).nonzero().flatten().tolist()
    drawn_columns = is_drawn.any(0).nonzero().flatten().tolist()
    rows = slice(drawn_rows[0], drawn_rows[-1] + 1)
    columns = slice(drawn_columns[0], drawn_columns[-1] + 1)
    return Box(rows, columns)


class Center(NamedTuple):
    """A center of mass, in pixels from the upper left corner."""

    row: float
    column: float


def _find_center(ink: Tensor) -> Center:
    """Finds the center of mass of a drawing.

    Args:
        ink: how much is drawn at each pixel, (channels, height, width).
    """
    mass = ink.sum(0)
    total = mass.sum()
    row_positions = torch.arange(mass.shape[0]) + 0.5  # the middle of each pixel
    column_positions = torch.arange(mass.shape[1]) + 0.5
    row = (mass.sum(1) * row_positions).sum() / total
    column = (mass.sum(0) * column_positions).sum() / total
    return Center(float(row), float(column))


def _find_start(image_length: int, drawing_length: int, center: float) -> int:
    """Returns the row or column of an image at which a drawing begins.

    The drawing's center of mass is put into the middle of the image or up to one pixel behind it,
    as in MNIST, unless the drawing would then stick out of the image.

    Args:
        image_length: the height or width of the image.
        drawing_length: that of the drawing.
        center: the center of mass, in pixels from the beginning of the drawing.
    """
    centered_start = math.ceil(image_length / 2 - center)
    last_start = image_length - drawing_length
    return min(max(0, centered_start), last_start)


def _put_into_middle(image: Tensor, canvas: Tensor) -> None:
    """Puts the middle of an image into the middle of a canvas, both (channels, height, width).

    Where the image is larger, its margins are cut off. Where the canvas is, its margins stay.
    """
    _, image_height, image_width = image.shape
    _, canvas_height, canvas_width = canvas.shape
    height = min(image_height, canvas_height)
    width = min(image_width, canvas_width)
    visible = image[:, _find_middle(image_height, height), _find_middle(image_width, width)]
    canvas[:, _find_middle(canvas_height, height), _find_middle(canvas_width, width)] = visible


def _find_middle(length: int, count: int) -> slice:
    """Returns the `count` positions in the middle of `length` positions."""
    start = (length - count) // 2
    return slice(start, start + count)


def _scale_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """Multiplies a height and a width by a factor; both remain at least 1."""
    return max(1, round(height * factor)), max(1, round(width * factor))


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolates an image (channels, height, width) to another height and width."""
    return functional.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


def is_image(shape: Sequence[int]) -> bool:
    """Returns whether inputs of a shape are images of one or three channels."""
    return len(shape) == 3 and shape[0] in (1, 3)


class Reader(ABC):
    """Base class for your own transform of a whole file, such as a text, to inputs.

    class Lines(Reader):
        def __call__(self, content):
            rows = [[float(word) for word in line.split()] for line in content.splitlines()]
            return torch.tensor(rows), [""] * len(rows)
    """

    @abstractmethod
    def __call__(self, content: bytes) -> tuple[Tensor, Sequence[str]]:
        """Converts the content of a file, which may be untrusted, to inputs.

        Args:
            content: the bytes of the file, at most 256 MiB.

        Returns:
            Inputs (n, …), and a note for each of them on what was done to it; "" for nothing.

        Raises:
            ValueError: the file has another content; the message follows the name of the file.
        """


# The `transform` of a source. A function gets an image, uint8 (channels, height, width), or the
# numbers of one input in a file, and returns the input.
Transform = Image | Sound | Reader | Callable[[Tensor], Any]


def describe_transform(
    transform: Transform | None, section: object, split: Part
) -> dict[str, Any] | None:
    """Describes the transform of a source as a section of a config, so that it can be stored.

    Args:
        transform: the transform; None if the source has none.
        section: the section of the config that has built it; None if Python has.
        split: the training set, which has the mean and std of an `Image` without its own.

    Returns:
        The section; None if the transform is a function that cannot be imported by a name.
    """
    if isinstance(transform, Image):
        fields = asdict(transform.complete(split.mean, split.std))
        return {"_target_": "studyloom.data.Image", **fields}
    if isinstance(transform, Sound):
        return {"_target_": "studyloom.data.Sound", **asdict(transform)}
    if isinstance(section, Mapping) and "_target_" in section:
        return dict(section)
    if not inspect.isfunction(transform):
        return None
    target = f"{transform.__module__}.{transform.__qualname__}"
    try:
        imported = find_member(target)
    except (ImportError, AttributeError, ValueError):  # a lambda, or a function within another
        return None
    if imported is not transform:
        return None
    return {"_target_": target, "_partial_": True}


@dataclass(frozen=True)
class InputRange:
    """The range of the training inputs, by which `predict` names inputs outside of it.

    Args:
        low: for a table, the lowest value of each column; otherwise only one, the lowest value of
            all inputs.
        high: the highest values, likewise.
        means: the lowest and the highest mean of an input. An input has one mean, over all its
            values.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    means: tuple[float, float]

    @classmethod
    def measure(cls, split: Part) -> "InputRange | None":
        """Measures the inputs of a training set; returns None if they are not in memory."""
        if not isinstance(split, Split):  # the other kind of training set loads its examples
            return None
        rows = split.inputs[:, None].flatten(1)  # (n, 1) if each input is a single number
        is_table = len(split.shape) == 1 and split.shape[0] <= MOST_COLUMNS
        if is_table:
            low, high = rows.aminmax(dim=0)  # for each column
        else:
            low, high = rows.aminmax()  # for all values together
        dtype = rows.dtype
        if not rows.is_floating_point():
            dtype = torch.float32
        means_of_inputs = rows.mean(1, dtype=dtype)  # (n,)
        lowest_mean, highest_mean = means_of_inputs.aminmax()
        return cls(
            low=tuple(map(float, low.reshape(-1).tolist())),
            high=tuple(map(float, high.reshape(-1).tolist())),
            means=(float(lowest_mean), float(highest_mean)),
        )

    def describe_differences(self, inputs: Tensor, columns: Sequence[str] = ()) -> dict[int, str]:
        """Describes inputs that differ from all training inputs.

        Args:
            inputs: (n, …).
            columns: the names of the inputs, for a table.

        Returns:
            A note for each input that differs, by its position.
        """
        rows = inputs.flatten(1)
        column_count = rows.shape[1]
        if column_count > 1 and column_count == len(self.low):
            comparison = self._compare_columns(rows, columns)
        else:
            comparison = self._compare_values_and_means(rows)
        is_outside = comparison.is_outside()  # bool (n, quantities)
        notes = {}
        for row in is_outside.any(1).nonzero().flatten().tolist():
            quantities = is_outside[row].nonzero().flatten().tolist()
            descriptions = []
            for quantity in quantities[:MOST_NAMED]:
                descriptions.append(comparison.describe(row, quantity))
            if len(quantities) > MOST_NAMED:
                descriptions.append(f"{len(quantities) - MOST_NAMED} more")
            notes[row] = f"unlike the training data: {', '.join(descriptions)}"
        return notes

    def _compare_columns(self, rows: Tensor, columns: Sequence[str]) -> "Comparison":
        """Compares each column of a table with its range in the training set.

        Args:
            rows: the inputs, (n, columns).
            columns: the names of the columns, or of the first ones; empty if they have none.
        """
        names = list(columns)
        for number in range(len(columns) + 1, rows.shape[1] + 1):
            names.append(f"number {number}")
        training_low = torch.tensor(self.low)
        training_high = torch.tensor(self.high)
        return Comparison(
            names=names,
            input_low=rows,  # an input has a single value in each column
            input_high=rows,
            training_low=training_low,
            training_high=training_high,
            slack=SLACK * (training_high - training_low),
        )

    def _compare_values_and_means(self, rows: Tensor) -> "Comparison":
        """Compares two quantities of each input with the training set: all its values, their mean.

        Args:
            rows: the values of each input, (n, values).
        """
        means = rows.mean(1)
        low_values, high_values = rows.aminmax(dim=1)
        training_low_mean, training_high_mean = self.means
        training_low_value = min(self.low)  # `low` has one value for all inputs, or one a column
        training_high_value = max(self.high)
        training_low = torch.tensor([training_low_value, training_low_mean])
        training_high = torch.tensor([training_high_value, training_high_mean])
        return Comparison(
            names=["values", "mean"],
            input_low=torch.stack([low_values, means], 1),
            input_high=torch.stack([high_values, means], 1),
            training_low=training_low,
            training_high=training_high,
            slack=SLACK * (training_high - training_low) + ROUNDING,
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Quantities of some inputs, and their ranges in the training set.

    A quantity is a column of a table, for instance. An input may have several values of it.

    Args:
        names: the name of each quantity.
        input_low: the lowest value of each quantity in each input, (n, quantities).
        input_high: the highest value, likewise.
        training_low: the lowest value of each quantity in the whole training set, (quantities,).
        training_high: the highest value, likewise.
        slack: how far outside of its range a quantity may be, (quantities,).
    """

    names: Sequence[str]
    input_low: Tensor
    input_high: Tensor
    training_low: Tensor
    training_high: Tensor
    slack: Tensor

    def is_outside(self) -> Tensor:
        """Returns which quantities of which inputs are outside of their range, (n, quantities)."""
        is_below = self.input_low < self.training_low - self.slack
        is_above = self.input_high > self.training_high + self.slack
        return is_below | is_above

    def describe(self, row: int, quantity: int) -> str:
        """Describes a quantity of an input, and its range in the training set.

        Args:
            row: the position of the input, from 0.
            quantity: the position of the quantity, from 0.

        Returns:
            Such as "values -1 to 3 (there 0 to 1)", or "mean 2 (there 0 to 1)".
        """
        input_low = format_value(float(self.input_low[row, quantity]))
        input_high = format_value(float(self.input_high[row, quantity]))
        training_low = format_value(float(self.training_low[quantity]))
        training_high = format_value(float(self.training_high[quantity]))
        values = f"{input_low} to {input_high}"
        if input_low == input_high:
            values = input_low
        return f"{self.names[quantity]} {values} (there {training_low} to {training_high})"
