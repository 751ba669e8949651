"""What a section of a page is made of. Blocks hold text and numbers, never HTML: templates do that.

To add a section to the report, write a function that returns a `Section`, and name it in
`sections.all_sections`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

from studyloom.text import format_value
from studyloom.views.figures.chart import Chart, Multiples, Table
from studyloom.views.importances import Importance

PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
FAINT = 0.2  # of the strongest word of a text; weaker ones are not shaded


@dataclass(frozen=True)
class Absent:
    """A sentence in place of something that is missing."""

    why: str


@dataclass(frozen=True)
class Words:
    """A paragraph.

    Args:
        text: what it says.
        kind: `bad`, `quiet` or `parameters`; empty for plain words.
    """

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Lines:
    """A list of short lines."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names with what belongs to them, a row each."""

    rows: Sequence[tuple[str, object]]


@dataclass(frozen=True)
class Card:
    """A number that is read at a glance.

    Args:
        title: what it is.
        value: the number.
        aside: what follows it in small print, such as ± its deviation.
        note: how it came about.
    """

    title: str
    value: str
    aside: str = ""
    note: str = ""


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Folded:
    """A long text that is folded away below its title."""

    title: str
    text: str


@dataclass(frozen=True)
class Part:
    """Blocks below a heading of their own, with a quiet remark beside it."""

    title: str
    blocks: "Sequence[Block]"
    remark: str = ""


@dataclass(frozen=True)
class Bars:
    """Shares as bars, with the interval of each."""

    shares: Sequence[Importance]


@dataclass(frozen=True)
class Heat:
    """A table of counts in shades, such as a confusion matrix.

    Args:
        names: of the rows and columns.
        rows: the counts.
        label: what it shows.
    """

    names: Sequence[object]
    rows: Sequence[Sequence[int]]
    label: str

    @cached_property
    def most(self) -> dict[bool, int]:
        """The largest count on the diagonal, under True, and the largest beside it."""
        most = {True: 1, False: 1}
        for row, counts in enumerate(self.rows):
            for column, count in enumerate(counts):
                most[row == column] = max(most[row == column], count)
        return most

    def shade(self, row: int, column: int) -> float:
        """Returns how dark a cell is, from 0 to 1, beside the others on the diagonal, or off it."""
        return self.rows[row][column] / self.most[row == column]


@dataclass(frozen=True)
class Picture:
    """A picture with words below it.

    Args:
        source: a `data:` URL of a PNG file, which `is_embedded` has approved.
        label: what it is, for who does not see it.
        words: below it.
        strong: of these, what stands out.
        remark: a quiet remark.
    """

    source: str
    label: str
    words: str = ""
    strong: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Shaded:
    """A text whose words are shaded by what they spoke for.

    Args:
        words: each with its weight, from -1 to 1: above 0 if it spoke for the answer, which was
            wrong, below 0 if for the right one.
    """

    words: Sequence[tuple[str, float]]

    @property
    def runs(self) -> list[tuple[str, float]]:
        """The same words, neighbours of which that say next to nothing are one, of weight 0."""
        runs: list[tuple[str, float]] = []
        for word, weight in self.words:
            weight = weight if abs(weight) >= FAINT else 0.0
            if runs and not weight and not runs[-1][1]:
                runs[-1] = (f"{runs[-1][0]} {word}", 0.0)
            else:
                runs.append((word, weight))
        return runs


@dataclass(frozen=True)
class Cell:
    """A cell of the table of the trials.

    Args:
        shown: what is written there.
        value: the same as it is stored, for sorting and for CSV; None if there is nothing.
    """

    shown: str
    value: Any = None


@dataclass(frozen=True)
class Row:
    """A row of the table of the trials.

    Args:
        number: of the trial.
        state: how it ended, or stands.
        cells: one for each column.
        mark: `best`, `baseline` or `winner`, or several.
    """

    number: int
    state: str
    cells: Sequence[Cell]
    mark: str = ""


@dataclass(frozen=True)
class Trials:
    """The table of all trials, which can be sorted, filtered and saved as CSV.

    Args:
        head: the titles of the columns.
        words: the columns whose cells are words.
        rows: a row for each trial.
    """

    head: Sequence[str]
    words: Sequence[int]
    rows: Sequence[Row]


Block = (
    Absent
    | Words
    | Lines
    | Facts
    | Cards
    | Folded
    | Part
    | Bars
    | Heat
    | Pictures
    | Shaded
    | Trials
    | Table
    | Chart
    | Multiples
)


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Args:
        key: its id, which names it for good: letters and hyphens.
        title: the heading.
        caption: a sentence or two that say how to read it; left out if all of it is absent.
        blocks: what is below.
    """

    key: str
    title: str
    blocks: Sequence[Block]
    caption: str = ""

    @property
    def is_absent(self) -> bool:
        """Whether there is nothing but sentences that say why."""
        return all(isinstance(block, Absent) for block in self.blocks)


def drawn(figure: Chart | Multiples | Table | str) -> Block:
    """Returns a figure as a block, or the sentence in its place."""
    return Absent(figure) if isinstance(figure, str) else figure


def get(tree: Any, *keys: str) -> Any:
    """Returns what nested dictionaries hold under these keys; None where one is missing.

    Args:
        tree: nested dictionaries, or anything else.
        keys: a key for each level.

    Returns:
        The value; None where a key is missing, or a level is not a dictionary.
    """
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def number(value: object, sign: str = "") -> str:
    """Formats a number for people.

    Args:
        value: the number; a dash is shown for anything else.
        sign: "+" to show the sign of positive numbers too.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–"
    return format_value(value, sign).replace("-", "−")


def spread(tree: Any) -> str:
    """Formats the `mean` and the standard deviation `std` of a dictionary."""
    return f"{number(get(tree, 'mean'))} ± {number(get(tree, 'std'))}"


def is_embedded(source: object) -> TypeGuard[str]:
    """Whether a text is a PNG file that the page holds itself: no other address is shown."""
    return isinstance(source, str) and PICTURE.fullmatch(source) is not None
