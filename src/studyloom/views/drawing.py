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
FIRST_ROW = 12  # pixels from the top to the first row
SAMPLE = 36  # pixels of the sample of a mark in the legend, and of the space around its name
WIDE = 600  # pixels from which on an image has the labels of a wide screen
BELOW_AXES = 38  # pixels, for labels and title


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
        values |= layout(figure, width=837, height=248)
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
