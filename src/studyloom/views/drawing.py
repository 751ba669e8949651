"""Figures as standalone SVG: for a notebook, and for the image of a report that is shared.

They have the light colors of the report's style sheet, and need neither it nor a script.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from studyloom.views.figures import LETTER, SIZE, Chart, Mark, Tick
from studyloom.views.page import FOLDER, fill

LIGHT, _ = re.findall(r":root \{(.*?)\}", (FOLDER / "page.css").read_text("utf-8"), re.DOTALL)
COLORS = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", LIGHT))
ROW = 20  # pixels of a row of the legend
UNDER = 38  # pixels below the axes, for labels and title


@dataclass(frozen=True)
class Drawing:
    """A chart with the sizes of its SVG in pixels."""

    chart: Chart
    width: int
    height: int

    @staticmethod
    def color(name: str) -> str:
        """Returns a color of the style sheet; that of complete trials for a shade of the ramp."""
        return str(COLORS.get(name, COLORS["complete"]))

    @cached_property
    def legend(self) -> Sequence[tuple[int, int, Mark]]:
        """The marks with a name, each with its place in the legend."""
        return [*self._legend()]

    def _legend(self) -> Iterator[tuple[int, int, Mark]]:
        at, row = 0, ROW - 8
        for mark in self.chart.marks:
            if mark.name:
                wide = round(22 + LETTER * len(mark.name) + 14)
                if at and at + wide > self.width:
                    at, row = 0, row + ROW
                yield at, row, mark
                at += wide

    @property
    def top(self) -> int:
        """Where the axes begin, below legend and title."""
        rows = self.legend[-1][1] + 8 if self.legend else 0
        return rows + (ROW + 10 if self.chart.y.title else 10)

    @property
    def wide(self) -> int:
        """The length of the horizontal axis."""
        return self.width - self.chart.gutter

    @property
    def high(self) -> int:
        """The length of the vertical axis."""
        return self.height - self.top - UNDER

    @property
    def across(self) -> Sequence[Tick]:
        """The labels of the horizontal axis: those for a phone on a narrow one."""
        left_out = "narrow" if self.width >= 600 else "roomy"
        return [tick for tick in self.chart.x.ticks if tick.when != left_out]

    def right(self, at: float) -> float:
        """Returns where a coordinate of the horizontal axis is drawn."""
        return round(self.chart.x.place(at) * self.wide / SIZE, 1)

    def up(self, at: float) -> float:
        """Returns where a coordinate of the vertical axis is drawn, from the top."""
        return round((1 - self.chart.y.place(at) / SIZE) * self.high, 1)


def svg(chart: Chart, *, width: int = 720, height: int = 320) -> str:
    """Returns a chart as standalone SVG, in light colors and with its texts as text.

    Args:
        chart: what it draws.
        width: of the image in pixels, and `height` likewise.
    """
    return str(fill("figure.svg", drawing=Drawing(chart, width, height)))
