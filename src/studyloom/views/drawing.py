"""Figures as standalone SVG: for a notebook, and for the image of a report that is shared.

They have the light colors of the report's style sheet, and need neither it nor a script.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studyloom.views.charts import LETTER, Block, Chart, Mark, drop_overlapping
from studyloom.views.page import FOLDER, Absent, Head, fill_template

LIGHT, _ = re.findall(r":root \{(.*?)\}", (FOLDER / "page.css").read_text("utf-8"), re.DOTALL)
COLORS = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", LIGHT))
FONTS = "system-ui, 'DejaVu Sans', sans-serif"
ROW = 20  # pixels of a row of the legend
UNDER = 38  # pixels below the axes, for labels and title


def svg(chart: Chart, *, width: int = 720, height: int = 320) -> str:
    """Returns a chart as standalone SVG, in light colors and with its texts as text.

    Args:
        chart: what it draws.
        width: of the image in pixels, and `height` likewise.
    """
    return fill_template("figure.svg", **layout(chart, width, height))


def share(head: Head, figure: Block) -> str:
    """Returns the top of a report as an SVG image of 1,200 × 630 pixels, to share.

    Args:
        figure: a chart, or a sentence that says why there is none.
    """
    values: dict[str, Any] = {"chart": None, "why": "", "color": COLORS, "fonts": FONTS}
    if isinstance(figure, Chart):
        values |= layout(figure, 837, 248)
    elif isinstance(figure, Absent):
        values["why"] = figure.why
    return fill_template(
        "share.svg", name=head.name, sentence=head.sentence, facts=head.facts, **values
    )


@dataclass(frozen=True)
class _LegendEntry:
    """A mark in the legend; its sample and name begin at `x` and `y`, in pixels."""

    x: float
    y: int
    mark: Mark


def layout(chart: Chart, width: int, height: int) -> dict[str, Any]:
    """Returns the values of a chart's template: its sizes in pixels, and the labels that fit."""
    legend = _lay_out_legend(chart.marks, width)
    top = 18  # pixels above the axes
    if chart.y.title:
        top = 38
    top += max((entry.y for entry in legend), default=12)
    high = height - top - UNDER
    other_screen = "roomy"
    if width >= 600:
        other_screen = "narrow"
    return {
        "chart": chart,
        "color": COLORS,
        "fonts": FONTS,
        "width": width,
        "height": height,
        "wide": width - chart.gutter,
        "top": top,
        "high": high,
        "legend": legend,
        "up": drop_overlapping(chart.y.ticks, chart.y.low, chart.y.high, high, upright=True),
        "across": [tick for tick in chart.x.ticks if tick.when != other_screen],
    }


def _lay_out_legend(marks: Sequence[Mark], width: int) -> list[_LegendEntry]:
    """Places the named marks of a chart in rows, each mark after the one before it if it fits."""
    entries = []
    x = 0.0
    y = 12
    for mark in marks:
        if mark.name:
            length = 36 + LETTER * len(mark.name)
            if x + length > width:
                x = 0.0
                y += ROW
            entries.append(_LegendEntry(x, y, mark))
            x += length
    return entries
