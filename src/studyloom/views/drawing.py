"""Figures as standalone SVG: for a notebook, and for the image of a report that is shared.

They have the light colors of the report's style sheet, and need neither it nor a script.
"""

import re
from typing import Any

from studyloom.views.figures import LETTER, Block, Chart, Mark, spaced
from studyloom.views.page import FOLDER, Head, fill

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
    return fill("figure.svg", **layout(chart, width, height))


def share(head: Head, figure: Block) -> str:
    """Returns the top of a report as an SVG image of 1,200 × 630 pixels, to share.

    Args:
        figure: a chart, or a sentence that says why there is none.
    """
    drawn = {"chart": None, "why": getattr(figure, "why", ""), "color": COLORS, "fonts": FONTS}
    drawn |= layout(figure, 837, 248) if isinstance(figure, Chart) else {}
    return fill("share.svg", name=head.name, sentence=head.sentence, facts=head.facts, **drawn)


def layout(chart: Chart, width: int, height: int) -> dict[str, Any]:
    """Returns the values of a chart's template: its sizes in pixels, and the labels that fit."""
    legend, x, y = list[tuple[float, int, Mark]](), 0.0, 12
    for mark in (mark for mark in chart.marks if mark.name):
        length = 36 + LETTER * len(mark.name)
        x, y = (x, y) if x + length <= width else (0.0, y + ROW)
        legend.append((x, y, mark))
        x += length
    top = y + (38 if chart.y.title else 18)
    sizes = {"width": width, "height": height, "wide": width - chart.gutter, "top": top}
    sizes["high"] = high = height - top - UNDER
    up = spaced(chart.y.ticks, chart.y.low, chart.y.high, high, upright=True)
    other = "narrow" if width >= 600 else "roomy"
    across = [tick for tick in chart.x.ticks if tick.when != other]
    labels = {"legend": legend, "up": up, "across": across}
    return {"chart": chart, "color": COLORS, "fonts": FONTS, **sizes, **labels}
