"""Charts: marks between two axes with labels, and a table of the same values.

A chart contains no HTML. `page` draws it as SVG that stretches to its width, without script,
network or images of several sizes.

The function that draws a figure returns a chart, or several small ones (`Multiples`), or a sentence
that says why there is nothing to draw yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from studyloom.views.axes import LETTER, SIZE, ChartScale

THINNEST_BAR = 0.6  # units of the drawing, so that a bar of no duration is visible
STROKE = 0.032  # the share of a chart's height that a stroke at its edge takes
# Some colors of the style sheet, which calls each after what it marks in the history of a search.
GRAY = "pruned"
BLUE = "complete"
TEAL = "best"
ROW_HEIGHT = 44  # pixels of a row: a bar or dot with its label above it

Point = tuple[float, float]
Part = Sequence[Point]  # one connected line, or a single dot


class Block:
    """A piece of a report."""


@dataclass(frozen=True)
class PageTable(Block):
    """A table of a report, with a note below it.

    Args:
        text_columns: the columns of text; the others are aligned as numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    text_columns: Sequence[int] = ()
    note: str = ""


@dataclass(frozen=True)
class Mark:
    """Lines or dots of one kind.

    Args:
        name: its name in the legend; empty if the legend does not show it.
        color: the name of a color of the style sheet.
        shape: `line`, `dot`, `square`, `ring`, `rug` (a short upright line) or `bar` (a part is its
            two lower corners).
        parts: the coordinates; a part is a line or one dot.
        trials: the number of the trial of each part; None for parts that are not trials.
        width: the width of the stroke in pixels; of a bar, its height on the vertical axis.
        style: `dotted`, `stepped`, `faint` or `quiet`, or several of them.
        hint: what the page shows under the pointer, for a mark without a name; may be empty.
    """

    name: str
    color: str
    shape: str
    parts: Sequence[Part]
    trials: Sequence[int | None] = ()
    width: float = 8
    style: Sequence[str] = ()
    hint: str = ""


def make_trial_dots(
    points: Mapping[int, Point],
    *,
    color: str,
    name: str = "",
    width: float = 8,
    shape: str = "dot",
) -> Mark:
    """Returns a mark with a dot, or another shape, for each trial.

    Args:
        points: the coordinates of each trial, by its number.
        name: its name in the legend; empty if the legend does not show it.
    """
    parts = [[point] for point in points.values()]
    return Mark(name, color, shape, parts, [*points], width)


def make_dotted_line(ends: Part, *, color: str, name: str = "", width: float = 1) -> Mark:
    """Returns a dotted line between two ends.

    Args:
        name: its name in the legend; empty if the legend does not show it.
    """
    return Mark(name, color, "line", [ends], width=width, style=("dotted",))


def make_interval_lines(intervals: Sequence[Part], *, color: str) -> Mark:
    """Returns a line for each interval, from its lower end to its upper one, without a name."""
    return Mark("", color, "line", intervals, width=2)


@dataclass(frozen=True)
class Note:
    """A few words to the `right` or `left` of a position in a chart, or `above` it."""

    x: float
    y: float
    text: str
    side: str = "right"


@dataclass(frozen=True)
class Chart(Block):
    """Marks between two axes, and a table of the same values.

    Args:
        kind: `history` if the report can change its axes, `parallel` if it has an upright axis at
            each tick of x; else empty.
    """

    label: str
    height: int
    x: ChartScale
    y: ChartScale
    marks: Sequence[Mark]
    table: PageTable
    notes: Sequence[Note] = ()
    kind: str = ""

    def names(self) -> list[str]:
        """Returns the names of its marks."""
        return [mark.name for mark in self.marks if mark.name]

    @property
    def gutter(self) -> int:
        """The pixels that the labels of its vertical axis take."""
        longest = max((len(tick.label) for tick in self.y.ticks), default=0)
        if longest == 0:
            return 2
        return round(LETTER * longest + 8)

    def shows_values(self, mark: Mark) -> bool:
        """Returns True if the script shows the values of a mark under the pointer."""
        if mark.trials:
            return True
        is_guide = "dotted" in mark.style or "stepped" in mark.style
        return bool(mark.name) and not is_guide

    def path(self, mark: Mark, width: float = SIZE, height: float = SIZE) -> str:
        """Returns a mark as the data of an SVG path, in a drawing so wide and high."""
        return "".join(self._make_part_path(mark, part, width, height) for part in mark.parts)

    def _make_part_path(self, mark: Mark, part: Part, width: float, height: float) -> str:
        """Returns one line or dot of a mark as the data of an SVG path.

        In such data, `M` moves the pen, and `L`, `H` and `V` draw a line to a place; in lower case
        they draw by a distance, and `z` closes an outline. SVG counts y from the top.
        """
        places = []
        for x, y in part:
            from_left = width * self.x.place(x) / SIZE
            from_top = height * (1 - self.y.place(y) / SIZE)
            places.append((from_left, from_top))
        x, y = places[0]
        start = f"M{_format_place(x)} {_format_place(y)}"
        if mark.shape == "bar":  # a rectangle from its lower left corner
            end, _ = places[1]
            across = _format_place(max(end - x, THINNEST_BAR))
            pixels_per_unit = height / (self.y.high - self.y.low)  # `mark.width` is in units of y
            up = _format_place(mark.width * pixels_per_unit)
            return f"{start}h{across}v-{up}h-{across}z"
        if mark.shape == "rug":  # a short upright stroke
            stroke = STROKE * height
            top = _format_place(y - stroke / 2)
            return f"M{_format_place(x)} {top}v{_format_place(stroke)}"
        if mark.shape != "line" or len(places) == 1:  # a curve of one epoch is a dot
            return f"{start}h.01"  # hardly a line: the ends of its stroke make a dot or a square
        path = start
        for corner_x, corner_y in places[1:]:
            across = _format_place(corner_x)
            down = _format_place(corner_y)
            if "stepped" in mark.style:
                path += f"H{across}V{down}"
            else:
                path += f"L{across} {down}"
        return path


def _format_place(number: float) -> str:
    """Formats a number of an SVG path, with at most one digit after the point."""
    return f"{number:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Multiples(Block):
    """Small charts side by side, each below its title."""

    charts: Mapping[str, Chart] = field(default_factory=dict)


def without_empty(marks: Sequence[Mark]) -> list[Mark]:
    """Returns the marks that have something to draw."""
    return [mark for mark in marks if mark.parts]


def note_left_out(rows: Sequence[object], total: int, what: str) -> str:
    """Returns a note on how many trials or examples have no row; empty if all have one."""
    count = total - len(rows)
    if count == 0:
        return ""
    return f"{count} further {what} are left out."
