"""The figure of a comparison: the best value so far of several studies."""

from collections.abc import Mapping

from studyloom.text import format_value
from studyloom.views import axes, charts
from studyloom.views.drawn_trials import NOTHING_COMPLETE

STUDY_COLORS = ("complete", "failed", "best", "baseline", "running", "paused", "pruned")
MOST_STUDIES = len(STUDY_COLORS)  # more lines cannot be distinguished
LINE_ROWS = 12  # of each study, in the table behind a comparison: improvements, then its end


def draw_best_lines(
    lines: Mapping[str, charts.Part], metric: str, sign: int, *, over_time: bool
) -> charts.Chart | str:
    """Draws the best value so far of several studies, over their trials or seconds of workers.

    Args:
        lines: when each study improved and when it ended, by label.
        sign: 1 if more is better, -1 if less is.
    """
    height = 340  # pixels
    values = []
    positions = []
    for line in lines.values():
        for position, value in line:
            positions.append(position)
            values.append(value)
    if not values:
        return NOTHING_COMPLETE
    axis = axes.Axis.choose(metric, sign, values)
    marks = []
    for index, (label, line) in enumerate(lines.items()):
        corners = [(position, axis.coordinate(value)) for position, value in _make_staircase(line)]
        lines_above = len(lines) - 1 - index
        width = 2 + 1.5 * lines_above  # both are seen where lines meet
        if corners:
            marks.append(charts.Mark(label, STUDY_COLORS[index], "line", [corners], width=width))
    y = axis.make_scale(values, height)
    if over_time:
        title = "seconds of workers"
        x = axes.make_linear_scale([0.0, max(positions)], title)
    else:
        title = "trials"
        x = axes.make_integer_scale(1, int(max(positions)), title)
    rows = []
    for label, line in lines.items():
        for position, value in line[-LINE_ROWS:]:
            rows.append((label, f"{position:.0f}", format_value(value)))
    table = charts.PageTable(
        ("study", title, f"best {axis.metric} so far"), rows, text_columns=(0,)
    )
    label = f"the best {axis.metric} so far of {len(lines)} studies, by {title}"
    return charts.Chart(label, height, x, y, marks, table)


def _make_staircase(line: charts.Part) -> list[charts.Point]:
    """Returns the corners of a line on which each value holds until the next one."""
    corners: list[charts.Point] = []
    for position, value in line:
        if corners:
            _, previous_value = corners[-1]
            if value != previous_value:
                corners.append((position, previous_value))
        corners.append((position, value))
    return corners
