"""A chart as data: scales, marks, and the table that says the same to whoever does not see it.

It knows no HTML. The page draws it as SVG that stretches to its width, so that it needs no script,
no network and no picture for each size.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from studyloom.metrics import METRICS

SIZE = 1000  # units of the drawing along each axis
NARROW, ROOMY = 280, 860  # pixels of an axis on a phone, and on a wide screen
LETTER, GAP = 7.2, 8  # pixels of a label's letter, and between two labels
LINE = 22  # pixels between the labels of a vertical axis

Point = tuple[float, float]
Part = Sequence[Point]  # one connected line, or one point alone


class Block:
    """A piece of a page."""


@dataclass(frozen=True)
class Table(Block):
    """A table of a page, with a note below it.

    Args:
        words: the columns whose cells are words; the others are aligned as numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: Sequence[int] = ()
    note: str = ""


@dataclass(frozen=True)
class Tick:
    """A label of an axis; `when` it is shown: on `narrow` or `roomy` screens; empty for both."""

    at: float
    label: str
    when: str = ""


@dataclass(frozen=True)
class Scale:
    """An axis: where its coordinates lie, and its labels.

    Args:
        reads: how the page's script tells a value from a coordinate: `plain`, `whole` (rounded),
            `tens` (10 to that power), `unit` (the distance to 1 in factors of ten), `words` (the
            one at that place), or `none`.
    """

    low: float
    high: float
    ticks: Sequence[Tick] = ()
    title: str = ""
    reads: str = "plain"
    words: Sequence[str] = ()

    def place(self, at: float) -> float:
        """Returns where a coordinate is drawn, from 0 to SIZE."""
        span = self.high - self.low
        return SIZE * (at - self.low) / span if span else SIZE / 2


@dataclass(frozen=True)
class Mark:
    """Lines or points of one kind.

    Args:
        shape: `line`, `dot`, `square`, `ring`, `rug` (a short upright line) or `bar` (a part is its
            two lower corners, `width` its height).
        parts: the coordinates; of points each part is one.
        trials: the number of the trial of each part; None for what is no trial.
        style: `dotted`, `stepped`, `faint` or `quiet`, or several of them.
    """

    name: str
    colour: str
    shape: str
    parts: Sequence[Part]
    trials: Sequence[int | None] = ()
    width: float = 8
    style: Sequence[str] = ()


def points(
    name: str,
    colour: str,
    places: Mapping[int, Point],
    width: float = 8,
    style: Sequence[str] = (),
    shape: str = "dot",
) -> Mark:
    """Returns a point for each trial, by the trial's number."""
    return Mark(name, colour, shape, [[at] for at in places.values()], [*places], width, style)


def dotted(name: str, colour: str, ends: Part, width: float = 1) -> Mark:
    return Mark(name, colour, "line", [ends], width=width, style=("dotted",))


@dataclass(frozen=True)
class Note:
    """A few words to the `right` or `left` of a point of a chart, or `above` it."""

    x: float
    y: float
    words: str
    side: str = "right"


@dataclass(frozen=True)
class Chart(Block):
    """A chart; its kind is `wide` if it scrolls sideways on a phone.

    Args:
        caption: what it shows, in words.
    """

    label: str
    height: int
    x: Scale
    y: Scale
    marks: Sequence[Mark]
    table: Table
    notes: Sequence[Note] = ()
    kind: str = ""
    caption: str = ""

    def names(self) -> list[str]:
        """Returns the names of its marks."""
        return [mark.name for mark in self.marks if mark.name]

    def path(self, mark: Mark) -> str:
        """Returns a mark as the data of an SVG path."""
        return "".join(self._part(mark, part) for part in mark.parts)

    def _part(self, mark: Mark, part: Part) -> str:
        places = [(self.x.place(x), SIZE - self.y.place(y)) for x, y in part]
        (x, y), *others = places
        start = f"M{_digits(x)} {_digits(y)}"
        if mark.shape == "bar":
            wide = _digits(max(others[0][0] - x, 0.6))  # what took no time is seen too
            height = _digits(mark.width * SIZE / (self.y.high - self.y.low))
            return f"{start}h{wide}v-{height}h-{wide}z"
        if mark.shape == "rug":
            return f"M{_digits(x)} {_digits(y - 16)}v32"
        if mark.shape != "line" or not others:  # a curve of one epoch is a point
            return "".join(f"M{_digits(x)} {_digits(y)}h.01" for x, y in places)
        corner = "H{}V{}" if "stepped" in mark.style else "L{} {}"
        return start + "".join(corner.format(_digits(x), _digits(y)) for x, y in others)


def _digits(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Multiples(Block):
    """Small charts side by side, each below its title."""

    charts: Mapping[str, Chart] = field(default_factory=dict)


def spaced(
    ticks: Sequence[Tick], low: float, high: float, pixels: float, *, upright: bool = False
) -> Sequence[Tick]:
    """Leaves out labels, of ascending coordinates, until no two overlap."""
    scale = pixels / ((high - low) or 1)

    def is_clear(left: Tick, right: Tick) -> bool:
        width = LETTER * (len(left.label) + len(right.label)) / 2 + GAP
        return (right.at - left.at) * scale >= (LINE if upright else width)

    ends = ticks[:: max(1, len(ticks) - 1)]
    for kept in (*(ticks[::every] for every in range(1, len(ticks))), ends):
        if all(itertools.starmap(is_clear, itertools.pairwise(kept))):
            return kept
    return ticks[:1]


def responsive(
    ticks: Sequence[Tick], low: float, high: float, pixels: float | None = None
) -> Sequence[Tick]:
    """Returns the labels of a horizontal axis: fewer on a phone than on a wide screen.

    Args:
        pixels: the length of the axis, if it is the same on all screens.
    """
    if pixels is not None:
        return spaced(ticks, low, high, pixels)
    narrow, roomy = (spaced(ticks, low, high, pixels) for pixels in (NARROW, ROOMY))
    whens = {(True, True): "", (True, False): "narrow", (False, True): "roomy"}
    shown = [(tick, (tick in narrow, tick in roomy)) for tick in ticks]
    return [replace(tick, when=whens[on]) for tick, on in shown if any(on)]


def whole_scale(low: float, high: float, title: str = "") -> Scale:
    """Returns a horizontal axis of whole numbers, with labels that are whole."""
    margin = 0.03 * (high - low) + 0.3
    ends = low - margin, high + margin
    steps = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= 12)
    first = math.ceil(low / step) * step
    ticks = [Tick(at, str(at)) for at in range(first, math.floor(high) + 1, step)]
    return Scale(*ends, responsive(ticks, *ends), title, "whole")


def round_marks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers between two; the lower one alone if they are equal."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(s * power for s in (1, 2, 5, 10) if (high - low) / (s * power) <= count)
    found = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    if len(found) < 2:  # one number on an axis gives no measure
        return round_marks(low, high, count + 1)
    return [float(f"{n * step:.10g}") for n in found]


def plain_scale(
    values: Sequence[float], title: str = "", *, upright: bool = False, height: int = 300
) -> Scale:
    """Returns an axis of numbers, at least one, with round labels."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * max(1.0, abs(high))
    ends = low - margin, high + margin
    ticks = [Tick(mark, f"{mark:.4g}") for mark in round_marks(*ends, 6)]
    shown = spaced(ticks, *ends, height, upright=True) if upright else responsive(ticks, *ends)
    return Scale(*ends, shown, title)


def log_scale(values: Sequence[float], title: str = "", pixels: float | None = None) -> Scale:
    """Returns a horizontal axis of values above 0 on which equal steps are equal factors.

    Args:
        pixels: its length, if it is the same on all screens.
    """
    low, high = (math.log10(value) for value in (min(values), max(values)))
    margin = 0.05 * (high - low) or 0.1
    ends = low - margin, high + margin
    ticks = [Tick(math.log10(mark), f"{mark:.3g}") for mark in log_marks(min(values), max(values))]
    shown = responsive(ticks, *ends, pixels)
    if len(shown) < 2 and low < high:  # there is no room between two round numbers
        shown = [Tick(at, f"{10**at:.2g}") for at in (low, high)]
    return Scale(*ends, shown, title, "tens")


def log_marks(low: float, high: float) -> list[float]:
    """Returns two to four round numbers between two values, powers of ten first; else the two."""
    digits = (1,) if high >= 100 * low else (1, 3)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [float(f"{digit * 10.0**power:.10g}") for power in powers for digit in digits]
    marks = [mark for mark in marks if low <= mark <= high]
    if len(marks) < 2:
        marks = round_marks(low, high, 4)
    if len(marks) < 2:
        marks = sorted({low, high})
    return marks[:: math.ceil(len(marks) / 4)]


LEAST = {"unit": 1e-4, "factors": 1e-12}  # the error, or the value, at which an axis ends


@dataclass(frozen=True)
class Axis:
    """The axis of a metric's values.

    Args:
        scale: how values are spread. `unit` draws factors of ten in the distance to 1, so that
            0.99 is as far above 0.9 as 0.9 is above 0; trials that learn nothing would otherwise
            squeeze all the others into the top tenth. `factors` draws factors of ten in the value,
            and `plain` the value itself.
    """

    metric: str
    scale: str
    sign: int

    @classmethod
    def of(cls, metric: str, sign: int, values: Collection[float]) -> "Axis":
        """Returns the axis of a metric by name, of which there are finite values.

        The scale of an unknown metric is `factors` if less is better and its values, all above 0,
        differ by more than a factor of ten, and else `plain`.
        """
        known = METRICS.get(metric)
        scale = known.scale if known is not None and known.sign == sign else "plain"
        if scale == "plain" and sign < 0 and 0 < 10 * min(values, default=0) < max(values):
            scale = "factors"
        return cls(metric, scale, sign)

    def height(self, value: float) -> float:
        """Returns the coordinate at which a value is drawn."""
        if self.scale == "plain":
            return value
        rest = 1.0 - value if self.scale == "unit" else value
        tens = math.log10(max(rest, LEAST[self.scale]))
        return -tens if self.scale == "unit" else tens

    def near(self, values: Collection[float]) -> list[float]:
        """Returns the values; of a metric to minimize none that is far from the best nine tenths.

        These take a third of the axis or more then.
        """
        ordered = sorted(values)
        best, last = (self.height(ordered[n]) for n in (0, math.ceil(0.9 * len(ordered)) - 1))
        most = best + 3 * (last - best) if self.sign < 0 else math.inf
        return [value for value in ordered if self.height(value) <= most]

    def marks(self, low: float, high: float) -> list[float]:
        """Returns some round values between `low` and `high`; `low` alone if there are none."""
        marks: list[float] = []
        if self.scale == "unit":
            digits = [digit * 10.0**-power for power in range(5) for digit in (5, 3, 2, 1)]
            marks = [mark for rest in digits if low <= (mark := round(1 - rest, 10)) <= high]
        elif self.scale == "factors" and low > 0:
            marks = log_marks(low, high)
        return marks if len(marks) >= 3 else round_marks(low, high, 8)

    def scale_of(self, values: Collection[float], height: int) -> Scale:
        """Returns the vertical axis for some values."""
        low, high = min(values), max(values)
        bottom, top = self.height(low), self.height(high)
        margin = 0.06 * (top - bottom) or 0.05 * max(1.0, abs(top))
        ends = bottom - margin, top + margin
        ticks = [Tick(self.height(mark), f"{mark:g}") for mark in self.marks(low, high)]
        shown = spaced(ticks, *ends, height, upright=True)
        reads = {"unit": "unit", "factors": "tens", "plain": "plain"}[self.scale]
        return Scale(*ends, shown, self.metric, reads)
