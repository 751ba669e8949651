"""Lines of a terminal: broken between words, and aligned in columns."""

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from studyloom.views.state_colors import color_state

COLUMN_GAP = "  "
NO_BREAK_SPACE = "\xa0"


def say(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Prints lines; a terminal gets them broken between words, a pipe or a file gets them whole.

    Args:
        indent: how many spaces stand after a break.
    """
    for line in text.splitlines():
        parts = wrap_parts([line], width_of(console), indent=indent, breaks_words=False)
        console.print(Text("\n".join(parts), style), soft_wrap=True)


def width_of(console: Console) -> int:
    """Returns how many columns a line may have: any number in a pipe or a file."""
    if console.is_terminal:
        return console.width
    return sys.maxsize


def wrap_parts(
    parts: Iterable[str],
    width: int,
    separator: str = ", ",
    *,
    indent: int = 0,
    breaks_words: bool = True,
) -> list[str]:
    """Joins parts to lines of at most `width` columns; breaks a part only if it is longer.

    Args:
        separator: what stands between two parts.
        indent: how many spaces each line but the first begins with.
        breaks_words: whether a word that is longer than a line is broken.
    """
    unbroken = []
    for part in parts:
        if len(part) < width - indent:  # less, since a comma may follow the part
            part = part.replace(" ", NO_BREAK_SPACE)  # at which `textwrap` breaks no line
        unbroken.append(part)
    lines = textwrap.wrap(
        separator.join(unbroken),
        width,
        subsequent_indent=" " * indent,
        break_long_words=breaks_words,
        break_on_hyphens=False,
    )
    return [line.replace(NO_BREAK_SPACE, " ") for line in lines]


def render_rows(
    rows: Sequence[Sequence[str]], text_columns: Sequence[int] | None = None, best: str = "best"
) -> RenderableType:
    """Renders rows in columns; the first row is their header, and dim.

    Args:
        text_columns: the columns to align left; None for all.
        best: the row with this word is bold: its first column is the word, or its last column is a
            list such as "baseline, best".
    """
    head = rows[0]
    texts = []
    for row, line in zip(rows, align_rows(rows, text_columns), strict=True):
        style = ""
        if row is head:
            style = "dim"
        elif row[0] == best or best in row[-1].split(", "):
            style = "bold"
        text = Text(line, style)
        if "state" in head and row is not head:
            column = head.index("state")
            color_state(text, find_column_start(rows, column), row[column])
        texts.append(text)
    return Group(*texts)


def find_column_start(rows: Sequence[Sequence[str]], column: int) -> int:
    """Returns where a column that is aligned left begins in the lines of `align_rows`."""
    start = 0
    for earlier_column in range(column):
        start += max(len(row[earlier_column]) for row in rows) + len(COLUMN_GAP)
    return start


def align_rows(rows: Sequence[Sequence[str]], text_columns: Sequence[int] | None) -> Iterator[str]:
    """Yields rows as lines of untruncated columns.

    Args:
        text_columns: the columns to align left; the others are aligned right, as numbers are. None
            to align all left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = []
        for column, cell in enumerate(row):
            if text_columns is None or column in text_columns:
                cells.append(cell.ljust(widths[column]))
            else:
                cells.append(cell.rjust(widths[column]))
        yield COLUMN_GAP.join(cells).rstrip()
