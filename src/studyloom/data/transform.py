"""Transforms from the content of a file to an input of the network, and ranges of inputs.

A data source has one as its attribute `transform`, for `studyloom predict`.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

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
INK = 20 / 28  # the share of MNIST's images that digits fill: all have 19 or 20 of 28 pixels
FAINT = 0.2  # of the strongest ink; fainter pixels are paper
SLACK = 0.05  # of the range of training inputs; what is further outside is reported
MOST_COLUMNS = 1000  # inputs of a table, whose ranges are kept one by one


@dataclass(frozen=True)
class Image:
    """Converts an image to an input: background, size and scale.

    Args:
        background: "black" or "white", the background of the training images; images with the other
            one are inverted. None: no image is inverted.
        fit: how an image of another size is resized. "pad" (the default), "crop" and "stretch"
            scale the image; "ink" cuts out what is drawn, scales and centers it as in MNIST.
        mean: what is subtracted from pixels on the scale 0 to 1: a float, or one for each channel.
            None: what the data source subtracts.
        std: what pixels are divided by after that: a float above 0, or one for each channel. None:
            what the data source divides by.

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
        for name, least in (("mean", -math.inf), ("std", 0.0)):
            numbers = _numbers(getattr(self, name))
            if not all(type(n) in (int, float) and least < n < math.inf for n in numbers):
                raise DataError(
                    f"data.transform.{name} must be a finite number{' above 0' * (name == 'std')}, "
                    f"one for each channel, or null; got {getattr(self, name)!r}"
                )

    def completed(self, mean: float, std: float) -> "Image":
        """Returns a copy in which the source's mean and std replace None.

        Args:
            mean: what the source subtracts.
            std: what the source divides by.
        """
        return replace(
            self,
            mean=mean if self.mean is None else self.mean,
            std=std if self.std is None else self.std,
        )

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
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(_numbers(numbers)) not in (0, 1, split.shape[0]):
                raise DataError(
                    f"data.transform.{name} must be one number, or {split.shape[0]}, one for each "
                    f"channel; got {numbers}"
                )
        if (self.mean, self.std) == (None, None) and (split.mean, split.std) != (0.0, 1.0):
            return  # the source's own, which it has normalized by
        complete = self.completed(split.mean, split.std)
        ends = [complete.scale(torch.full((1, *split.shape), end)) for end in (0.0, 1.0)]
        least, most = float(ends[0].min()), float(ends[1].max())
        low, high = (float(end) for end in split.inputs.aminmax())
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
        done = []
        if self.is_inverted(pixels):
            pixels = pixels.mul_(-1).add_(1)
            other = "white" if self.background == "black" else "black"
            done.append(f"inverted: {other} background, in training {self.background}")
        if not self._fits(pixels, size):
            before = " × ".join(map(str, reversed(pixels.shape[1:])))
            pixels = self._fit(pixels, size)
            done.append(f"{before} pixels, {FITS[self.fit]} {size[1]} × {size[0]}")
        return self.scale(pixels), done

    def scale(self, pixels: Tensor) -> Tensor:
        """Normalizes pixels by mean and std; it overwrites and returns them.

        Args:
            pixels: float32 (…, channels, height, width), on the scale 0 to 1.
        """
        mean, std = (
            value if isinstance(value, (int, float)) else torch.tensor(value)[:, None, None]
            for value in (self.mean or 0.0, self.std or 1.0)
        )
        return pixels.sub_(mean).div_(std)

    def is_inverted(self, pixels: Tensor) -> bool:
        """Whether an image has the other background, by the median of the pixels along its border.

        Args:
            pixels: float32 (channels, height, width), from 0 (black) to 1 (white).
        """
        if self.background is None:
            return False
        gray = pixels.mean(0)
        far, span = gray - _border(gray[None]), float(gray.max() - gray.min())
        drawn = far.abs() > span / 4
        side = float((far * drawn).sum() / drawn.sum().clamp(min=1))
        if self.background == "white":
            side = -side
        return side < -span / 4 and span > 1e-3

    def _fits(self, pixels: Tensor, size: tuple[int, int]) -> bool:
        """Whether an image needs no scaling, as MNIST's images do."""
        if tuple(pixels.shape[1:]) != size:
            return False
        ink = self._ink(pixels)
        if self.fit != "ink" or not bool(ink.any()):
            return True
        rows, columns = _box(ink)
        longest = max((rows.stop - rows.start) / size[0], (columns.stop - columns.start) / size[1])
        middles = zip(_center(ink), size, strict=True)
        off = max(abs(center - length / 2 - 0.5) for center, length in middles)
        return abs(longest - INK) < 3.5 / 28 and off <= 1 + min(size) / 28

    def _fit(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Resizes an image (channels, height, width)."""
        height, width = pixels.shape[1:]
        if self.fit == "stretch":
            return _resize(pixels, size)
        if self.fit == "ink" and bool((ink := self._ink(pixels)).any()):
            return self._centered(ink, size)
        pick = max if self.fit == "crop" else min
        factor = pick(size[0] / height, size[1] / width)
        scaled = _resize(pixels, (max(1, round(height * factor)), max(1, round(width * factor))))
        empty = _border(pixels) if self.background is None else BACKGROUNDS[self.background]
        whole = torch.zeros(len(pixels), *size) + torch.as_tensor(empty).reshape(-1, 1, 1)
        inside, outside = [], []  # where the visible part lies in each image, by dimension
        for some, length in zip(scaled.shape[1:], size, strict=True):
            seen = min(some, length)
            inside.append(slice((some - seen) // 2, (some - seen) // 2 + seen))
            outside.append(slice((length - seen) // 2, (length - seen) // 2 + seen))
        whole[:, outside[0], outside[1]] = scaled[:, inside[0], inside[1]]
        return whole

    def _ink(self, pixels: Tensor) -> Tensor:
        """Returns how much is drawn at each pixel (channels, height, width), at most 1."""
        ink = pixels - _border(pixels)[:, None, None]
        ink = (-ink if self.background == "white" else ink).clamp_(min=0)
        return ink / ink.max().clamp(min=1e-12)

    def _centered(self, ink: Tensor, size: tuple[int, int]) -> Tensor:
        """Scales ink to the share of an image that MNIST's digits fill, its mass in the middle."""
        rows, columns = _box(ink)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        factor = INK * min(size[0] / height, size[1] / width)
        small = (max(1, round(height * factor)), max(1, round(width * factor)))
        drawn = _resize(ink[:, rows, columns], small).clamp_(0, 1)
        drawn /= drawn.max().clamp(min=1e-12)
        whole = torch.zeros(len(ink), *size)
        top, left = (
            # MNIST's centers of mass lie up to one pixel behind the middle, and never before it.
            min(max(0, math.ceil(length / 2 - center)), length - part)
            for center, length, part in zip(_center(drawn), size, small, strict=True)
        )
        whole[:, top : top + small[0], left : left + small[1]] = drawn
        return 1 - whole if self.background == "white" else whole


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [*value]
    return [] if value is None else [value]


def _border(pixels: Tensor) -> Tensor:
    """Returns the median of the outermost pixels of (n, height, width), for each of n."""
    edges = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    return torch.cat(edges, 1).median(1).values


def _box(ink: Tensor) -> tuple[slice, slice]:
    """Returns the rows and the columns between which something is drawn."""
    strong = ink.amax(0) > FAINT
    lines = (strong.any(1).nonzero().flatten(), strong.any(0).nonzero().flatten())
    rows, columns = (slice(int(line[0]), int(line[-1]) + 1) for line in lines)
    return rows, columns


def _center(ink: Tensor) -> tuple[float, float]:
    """Returns the center of mass, from the upper left corner, in pixels."""
    mass = ink.sum(0)
    row, column = (
        float((mass.sum(1 - axis) * (torch.arange(mass.shape[axis]) + 0.5)).sum() / mass.sum())
        for axis in (0, 1)
    )
    return row, column


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


def is_image(shape: Sequence[int]) -> bool:
    """Whether inputs of a shape are images of one or three channels."""
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


# What a source may have as its `transform`. A function gets an image, uint8 (channels, height,
# width), or the numbers of one input in a file, and returns the input.
Transform = Image | Sound | Reader | Callable[[Tensor], Any]


def describe_transform(
    transform: Transform | None, section: Any, split: Part
) -> dict[str, Any] | None:
    """Describes the transform of a source as a section of a config; None if it has no name."""
    if isinstance(transform, Image):
        fields = asdict(transform.completed(split.mean, split.std))
        return {"_target_": "studyloom.data.Image", **fields}
    if isinstance(transform, Sound):
        return {"_target_": "studyloom.data.Sound", **asdict(transform)}
    if isinstance(section, Mapping) and "_target_" in section:
        return dict(section)
    if not inspect.isfunction(transform):
        return None
    target = f"{transform.__module__}.{transform.__qualname__}"
    try:
        named = find_member(target) is transform
    except (ImportError, AttributeError, ValueError):  # a lambda, or a function within another
        named = False
    return {"_target_": target, "_partial_": True} if named else None


@dataclass(frozen=True)
class InputRange:
    """The range of the training inputs, by which `predict` names inputs outside of it."""

    low: tuple[float, ...]  # the lowest value; for a table, of each column
    high: tuple[float, ...]
    means: tuple[float, float]  # the lowest and the highest mean of an input

    @classmethod
    def of(cls, split: Part) -> "InputRange | None":
        """Measures the inputs of a training set; None if they are not in memory."""
        if not isinstance(split, Split):
            return None
        rows = split.inputs.flatten(1) if split.inputs.ndim > 1 else split.inputs[:, None]
        by_column = len(split.shape) == 1 and split.shape[0] <= MOST_COLUMNS
        low, high = rows.aminmax(dim=0) if by_column else rows.aminmax()
        means = rows.mean(1, dtype=None if rows.is_floating_point() else torch.float32).aminmax()
        return cls(
            tuple(map(float, low.reshape(-1).tolist())),
            tuple(map(float, high.reshape(-1).tolist())),
            (float(means.min), float(means.max)),
        )

    def unlike(self, inputs: Tensor, columns: Sequence[str] = ()) -> dict[int, str]:
        """Describes differences from all training inputs, by the position in inputs (n, …)."""
        rows = inputs.flatten(1)
        if len(self.low) == rows.shape[1] > 1:
            names = [*columns, *(f"number {k + 1}" for k in range(len(columns), rows.shape[1]))]
            low, high, least, most = torch.tensor(self.low), torch.tensor(self.high), rows, rows
            slack = SLACK * (high - low)
        else:
            names, mean = ["values", "mean"], rows.mean(1)
            low = torch.tensor([min(self.low), self.means[0]])
            high = torch.tensor([max(self.high), self.means[1]])
            least, most = (torch.stack([end, mean], 1) for end in rows.aminmax(dim=1))
            slack = SLACK * (high - low) + 1e-6
        outside = (least < low - slack) | (most > high + slack)
        said = {}
        for row in outside.any(1).nonzero().flatten().tolist():
            where = outside[row].nonzero().flatten().tolist()
            words = []
            for k in where[:3]:
                values = {format_value(float(end[row, k])): None for end in (least, most)}
                there = f"{format_value(float(low[k]))} to {format_value(float(high[k]))}"
                words.append(f"{names[k]} {' to '.join(values)} (there {there})")
            words += [f"{len(where) - 3} more"] * (len(where) > 3)
            said[row] = f"unlike the training data: {', '.join(words)}"
        return said
