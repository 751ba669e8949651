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
BLANK = 1e-3  # the most difference between two pixels of an image on which nothing is drawn
SLACK = 0.05  # a share of the range of training inputs; values further outside are reported
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
        _check_numbers("mean", "a finite number", self.mean, -math.inf)
        _check_numbers("std", "a finite number above 0", self.std, 0.0)

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
            if len(_list_numbers(numbers)) not in (0, 1, channels):
                raise DataError(
                    f"data.transform.{name} must be one number, or {channels}, one for each "
                    f"channel; got {numbers}"
                )
        has_own_numbers = self.mean is not None or self.std is not None
        source_has_numbers = split.mean != 0.0 or split.std != 1.0
        if source_has_numbers and not has_own_numbers:
            return  # the source has normalized its images by the numbers that are used here
        self._check_scale(split)

    def _check_scale(self, split: Split) -> None:
        """Raises DataError if training inputs are outside the range from black to white."""
        complete = self.complete(split.mean, split.std)
        least = float(complete.normalize(torch.zeros(1, *split.shape)).min())
        most = float(complete.normalize(torch.ones(1, *split.shape)).max())
        low, high = map(float, split.inputs.aminmax())
        slack = SLACK * (most - least)
        if low < least - slack or high > most + slack:
            raise DataError(
                f"data.transform makes inputs from {format_value(least)} to {format_value(most)} "
                f"of images, and the training inputs go from {format_value(low)} to "
                f"{format_value(high)}; mean and std must be those that the data is normalized by"
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

        The background is the median of the pixels along the border. Pixels that differ from it by
        more than a quarter of the image's contrast are drawn. They are brighter than a black
        background, and darker than a white one.

        Args:
            pixels: float32 (channels, height, width), from 0 (black) to 1 (white).
        """
        if self.background is None:
            return False
        gray = pixels.mean(0)
        contrast = float(gray.max() - gray.min())
        if contrast <= BLANK:
            return False
        threshold = contrast / 4
        differences = gray - _border(gray[None])
        is_drawn = differences.abs() > threshold
        mean_difference = float((differences * is_drawn).sum() / is_drawn.sum().clamp(min=1))
        if self.background == "white":
            return mean_difference > threshold
        return mean_difference < -threshold

    def _fits_unchanged(self, pixels: Tensor, size: tuple[int, int]) -> bool:
        """Returns whether an image needs no resizing, as all of MNIST's images do."""
        if tuple(pixels.shape[1:]) != size:
            return False
        ink = self._ink(pixels)
        if self.fit != "ink" or not bool(ink.any()):
            return True
        box = _find_box(ink)
        share = max(box.height / size[0], box.width / size[1])
        if abs(share - INK) >= INK_TOLERANCE:
            return False
        center = _find_center(ink)
        # MNIST's centers lie up to one pixel behind the middle: half a pixel behind it on average.
        expected_row = size[0] / 2 + 0.5
        expected_column = size[1] / 2 + 0.5
        distance = max(abs(center.row - expected_row), abs(center.column - expected_column))
        return distance <= 1 + min(size) * CENTER_TOLERANCE

    def _resize_to_fit(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Resizes an image (channels, height, width) to a height and width, as `fit` says.

        An image without ink cannot be fitted by it, and is padded.
        """
        if self.fit == "stretch":
            return _resize(pixels, size)
        if self.fit == "ink":
            ink = self._ink(pixels)
            if bool(ink.any()):
                return self._center_ink(ink, size)
        height, width = pixels.shape[1:]
        factor = min(size[0] / height, size[1] / width)
        if self.fit == "crop":
            factor = max(size[0] / height, size[1] / width)
        scaled = _resize(pixels, _scale_size(height, width, factor))
        if self.background is None:
            color = _border(pixels)
        else:
            color = torch.tensor([BACKGROUNDS[self.background]])
        canvas = torch.zeros(len(pixels), *size) + color.reshape(-1, 1, 1)
        _put_into_middle(scaled, canvas)
        return canvas

    def _ink(self, pixels: Tensor) -> Tensor:
        """Returns how much is drawn at each pixel, (channels, height, width) from 0 to 1."""
        ink = pixels - _border(pixels)[:, None, None]
        if self.background == "white":
            ink = -ink
        ink.clamp_(min=0)
        return ink / ink.max().clamp(min=1e-12)

    def _center_ink(self, ink: Tensor, size: tuple[int, int]) -> Tensor:
        """Draws ink as large as MNIST's digits, with its center of mass in the middle.

        Args:
            ink: how much is drawn at each pixel, (channels, height, width).
            size: the height and width of the image to return.
        """
        box = _find_box(ink)
        factor = INK * min(size[0] / box.height, size[1] / box.width)
        height, width = _scale_size(box.height, box.width, factor)
        drawing = _resize(ink[:, box.rows, box.columns], (height, width)).clamp_(0, 1)
        drawing /= drawing.max().clamp(min=1e-12)
        center = _find_center(drawing)
        first_row = _find_start(size[0], height, center.row)
        first_column = _find_start(size[1], width, center.column)
        image = torch.zeros(len(ink), *size)
        rows = slice(first_row, first_row + height)
        columns = slice(first_column, first_column + width)
        image[:, rows, columns] = drawing
        if self.background == "white":
            return 1 - image
        return image


def _check_numbers(name: str, requirement: str, value: object, least: float) -> None:
    """Raises DataError unless a value is None, a finite number above `least`, or several."""
    for number in _list_numbers(value):
        if type(number) not in (int, float) or not least < number < math.inf:
            raise DataError(
                f"data.transform.{name} must be {requirement}, one for each channel, or null; "
                f"got {value!r}"
            )


def _list_numbers(value: object) -> list[Any]:
    """Returns the numbers of a value, which may be a sequence, a number or None."""
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


def _border(pixels: Tensor) -> Tensor:
    """Returns the median of the outermost pixels of images (n, height, width), (n,)."""
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
    """Finds the smallest box that holds all ink that is not faint."""
    is_drawn = ink.amax(0) > FAINT
    rows = is_drawn.any(1).nonzero().flatten().tolist()
    columns = is_drawn.any(0).nonzero().flatten().tolist()
    return Box(slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))


class Center(NamedTuple):
    """A center of mass, in pixels from the upper left corner."""

    row: float
    column: float


def _find_center(ink: Tensor) -> Center:
    """Finds the center of mass of ink (channels, height, width)."""
    mass = ink.sum(0)
    total = mass.sum()
    rows = torch.arange(mass.shape[0]) + 0.5
    columns = torch.arange(mass.shape[1]) + 0.5
    row = (mass.sum(1) * rows).sum() / total
    column = (mass.sum(0) * columns).sum() / total
    return Center(float(row), float(column))


def _find_start(length: int, part: int, center: float) -> int:
    """Returns the position in an image at which a drawing begins, by its center of mass.

    The center is put into the middle of the image or up to one pixel behind it, as in MNIST, unless
    the drawing would then stick out of the image.

    Args:
        length: the height or width of the image.
        part: that of the drawing.
        center: the center of mass within the drawing.
    """
    start = math.ceil(length / 2 - center)
    return min(max(0, start), length - part)


def _put_into_middle(image: Tensor, canvas: Tensor) -> None:
    """Puts the middle of an image into the middle of a canvas, both (channels, height, width).

    Where the image is larger, its margins are cut off. Where the canvas is, its margins stay.
    """
    _, image_height, image_width = image.shape
    _, canvas_height, canvas_width = canvas.shape
    height = min(image_height, canvas_height)
    width = min(image_width, canvas_width)
    visible = image[:, _middle(image_height, height), _middle(image_width, width)]
    canvas[:, _middle(canvas_height, height), _middle(canvas_width, width)] = visible


def _middle(length: int, part: int) -> slice:
    """Returns the positions of the middle `part` of `length` positions."""
    start = (length - part) // 2
    return slice(start, start + part)


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
        means: two numbers. Each input has a mean over all its values; these are the lowest and the
            highest one.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    means: tuple[float, float]

    @classmethod
    def measure(cls, split: Part) -> "InputRange | None":
        """Measures the inputs of a training set; returns None if they are not in memory."""
        if not isinstance(split, Split):
            return None
        rows = split.inputs[:, None].flatten(1)  # (n, 1) if each input is a single number
        is_table = len(split.shape) == 1 and split.shape[0] <= MOST_COLUMNS
        if is_table:
            low, high = rows.aminmax(dim=0)
        else:
            low, high = rows.aminmax()
        dtype = rows.dtype
        if not rows.is_floating_point():
            dtype = torch.float32
        lowest_mean, highest_mean = rows.mean(1, dtype=dtype).aminmax()
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
        is_outside = comparison.is_outside()
        notes = {}
        for row in is_outside.any(1).nonzero().flatten().tolist():
            quantities = is_outside[row].nonzero().flatten().tolist()
            parts = [comparison.describe(row, quantity) for quantity in quantities[:MOST_NAMED]]
            if len(quantities) > MOST_NAMED:
                parts.append(f"{len(quantities) - MOST_NAMED} more")
            notes[row] = f"unlike the training data: {', '.join(parts)}"
        return notes

    def _compare_columns(self, rows: Tensor, columns: Sequence[str]) -> "Comparison":
        """Compares each column of a table (n, columns) with its range in the training set."""
        names = list(columns)
        for number in range(len(columns) + 1, rows.shape[1] + 1):
            names.append(f"number {number}")
        low = torch.tensor(self.low)
        high = torch.tensor(self.high)
        # An input has one value in each column, which is its least and its greatest one.
        return Comparison(
            names=names, least=rows, most=rows, low=low, high=high, slack=SLACK * (high - low)
        )

    def _compare_values_and_means(self, rows: Tensor) -> "Comparison":
        """Compares two quantities of each input with the training set: its values and their mean.

        Args:
            rows: the values of each input, (n, values).
        """
        means = rows.mean(1)
        least_values, greatest_values = rows.aminmax(dim=1)
        lowest_mean, highest_mean = self.means
        low = torch.tensor([min(self.low), lowest_mean])
        high = torch.tensor([max(self.high), highest_mean])
        return Comparison(
            names=["values", "mean"],
            # An input has many values, from the least to the greatest, but a single mean.
            least=torch.stack([least_values, means], 1),
            most=torch.stack([greatest_values, means], 1),
            low=low,
            high=high,
            slack=SLACK * (high - low) + 1e-6,  # means differ by rounding
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Quantities of some inputs, and their ranges in the training set.

    A quantity is a column of a table, for instance. An input may have several values of it.

    Args:
        names: the name of each quantity.
        least: the least value of each quantity in each input, (n, quantities).
        most: the greatest value, likewise.
        low: the least value of each quantity in the whole training set, (quantities,).
        high: the greatest value, likewise.
        slack: how far outside of its range a quantity may be, (quantities,).
    """

    names: Sequence[str]
    least: Tensor
    most: Tensor
    low: Tensor
    high: Tensor
    slack: Tensor

    def is_outside(self) -> Tensor:
        """Returns which quantities of which inputs are outside of their range, (n, quantities)."""
        is_below = self.least < self.low - self.slack
        is_above = self.most > self.high + self.slack
        return is_below | is_above

    def describe(self, row: int, quantity: int) -> str:
        """Describes a quantity of an input, and its range in the training set.

        Args:
            row: the position of the input, from 0.
            quantity: the position of the quantity, from 0.
        """
        least = format_value(float(self.least[row, quantity]))
        most = format_value(float(self.most[row, quantity]))
        low = format_value(float(self.low[quantity]))
        high = format_value(float(self.high[quantity]))
        values = f"{least} to {most}"
        if least == most:
            values = least
        return f"{self.names[quantity]} {values} (there {low} to {high})"
