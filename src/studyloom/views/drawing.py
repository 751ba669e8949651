"""Figures as standalone SVG: for a notebook, and for the image of a report that is shared.

They have the light colors of the report's style sheet, and need neither it nor a script.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studyloom.text import one_line, shorten
from studyloom.views.axes import LETTER, drop_overlapping
from studyloom.views.charts import Block, Chart, Mark
from studyloom.views.page import FOLDER, Absent, Head, fill_template

LIGHT, _ = re.findall(r":root \{(.*?)\}", (FOLDER / "page.css").read_text("utf-8"), re.DOTALL)
COLORS = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", LIGHT))
FONTS = "system-ui, 'DejaVu Sans', sans-serif"
ROW = 20  # pixels of a row of the legend
FIRST_ROW = 12  # pixels from the top to the first row
SAMPLE = 36  # pixels of the sample of a mark in the legend, and of the space around its name
WIDE = 600  # pixels from which on an image has the labels of a wide screen
BELOW_AXES = 38  # pixels, for labels and title
LETTER_WIDTH = 0.6  # of the size of a font: the mean width of its bold letters, rather too large
LINE_HEIGHT = 1.25  # of a font's size
NAME_LENGTH = 60  # characters of the name of a study in the image to share


def svg(chart: Chart, *, width: int = 720, height: int = 320) -> str:
    """Returns a chart as standalone SVG of a size in pixels, in light colors."""
    return fill_template("figure.svg", **layout(chart, width, height))


def share(head: Head, figure: Block) -> str:
    """Returns the top of a report as an SVG image of 1,200 × 630 pixels, to share.

    Args:
        figure: a chart, or a sentence that says why there is none.
    """
    values: dict[str, Any] = {"chart": None, "why": "", "color": COLORS, "fonts": FONTS}
    if isinstance(figure, Chart):
        values |= layout(figure, width=837, height=242)
    elif isinstance(figure, Absent):
        values["why"] = figure.why
    facts = []
    for fact in head.facts:
        explanation = fit_text(fact.explanation, sizes=(14, 13, 12, 11), width=262, height=58)
        value = fit_text(fact.value, sizes=(25, 18, 12), width=262, height=32)
        facts.append(_SharedFact(fact.label, value, explanation))
    return fill_template(
        "share.svg",
        name=shorten(head.name, NAME_LENGTH),
        headline=fit_text(head.sentence, sizes=(28, 24, 20, 17, 15), width=1088, height=106),
        facts=facts,
        **values,
    )


@dataclass(frozen=True)
class FittedText:
    """A text in lines that fit an area.

    Attributes:
        size: the size of the font in pixels.
    """

    lines: Sequence[str]
    size: int


@dataclass(frozen=True)
class _SharedFact:
    """A fact of the image to share."""

    label: str
    value: FittedText
    explanation: FittedText


def fit_text(text: str, *, sizes: Sequence[int], width: int, height: int) -> FittedText:
    """Breaks a text into lines, in the largest size with which all of it fits an area.

    If it does not even fit in the smallest size, it loses its last clauses or, as one clause, its
    middle, and has … there. So no number and no interval is cut.

    Args:
        sizes: the sizes of the font to try, in pixels, the largest first.
        width: the width of the area in pixels.
        height: its height.
    """
    text = one_line(text)
    for size in sizes:
        lines = _break_lines(text, size, width)
        if len(lines) <= _count_lines(size, height):
            return FittedText(lines, size)
    smallest = sizes[-1]
    most_lines = _count_lines(smallest, height)
    clauses = re.split(r"(?<=[;,]) ", text)
    while len(clauses) > 1:
        clauses.pop()
        lines = _break_lines(f"{' '.join(clauses).rstrip(';,')} …", smallest, width)
        if len(lines) <= most_lines:
            return FittedText(lines, smallest)
    length = most_lines * _count_letters(smallest, width)
    lines = _break_lines(shorten(text, length), smallest, width)
    while len(lines) > most_lines:  # some lines are not full, since words are not broken
        length -= 1
        lines = _break_lines(shorten(text, length), smallest, width)
    return FittedText(lines, smallest)


def _break_lines(text: str, size: int, width: int) -> list[str]:
    """Breaks a text between words, into lines of a width in pixels."""
    return textwrap.wrap(text, _count_letters(size, width), break_on_hyphens=False)


def _count_letters(size: int, width: int) -> int:
    """Returns how many letters of a size in pixels a line of a width has."""
    return int(width / (LETTER_WIDTH * size))


def _count_lines(size: int, height: int) -> int:
    """Returns how many lines of letters of a size in pixels a height has."""
    return int(height / (LINE_HEIGHT * size))


@dataclass(frozen=True)
class _LegendEntry:
    """A mark in the legend; its sample and name begin at `x` and `y`, in pixels."""

    x: float
    y: int
    mark: Mark


def layout(chart: Chart, width: int, height: int) -> dict[str, Any]:
    """Returns the values of a chart's template: its sizes in pixels, and the labels that fit.

    Args:
        width: the width of the image in pixels, with its legend and labels.
        height: its height.
    """
    legend = _lay_out_legend(chart.marks, width)
    top = 18  # pixels above the axes
    if chart.y.title:
        top = 38
    top += max((entry.y for entry in legend), default=FIRST_ROW)
    plot_height = height - top - BELOW_AXES
    plot_width = width - chart.gutter
    hidden_ticks = "roomy"  # labels that only a wide screen shows
    if width >= WIDE:
        hidden_ticks = "narrow"
    y_ticks = drop_overlapping(chart.y.ticks, chart.y.low, chart.y.high, plot_height, upright=True)
    return {
        "chart": chart,
        "color": COLORS,
        "fonts": FONTS,
        "width": width,
        "height": height,
        "plot_width": plot_width,
        "top": top,
        "plot_height": plot_height,
        "legend": legend,
        "y_ticks": y_ticks,
        "x_ticks": [tick for tick in chart.x.ticks if tick.when != hidden_ticks],
    }


def _lay_out_legend(marks: Sequence[Mark], width: int) -> list[_LegendEntry]:
    """Places the named marks of a chart in rows, each mark after the one before it if it fits."""
    entries = []
    x = 0.0
    y = FIRST_ROW
    for mark in marks:
        if mark.name:
            entry_width = SAMPLE + LETTER * len(mark.name)
            if x + entry_width > width:
                x = 0.0
                y += ROW
            entries.append(_LegendEntry(x, y, mark))
            x += entry_width
    return entries
