"""What further trials were expected to gain, over the search."""

import math

from studyloom.study.bounds import Outlook, read_outcomes
from studyloom.study.ending import ended_values
from studyloom.study.regret import gains
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_value
from studyloom.views.figures.chart import (
    Chart,
    Mark,
    Scale,
    Table,
    Tick,
    log_marks,
    spaced,
    whole_scale,
)

TITLE = "What further trials may gain"
FACTORS = 1000  # between the largest gain and the smallest that is drawn
HEIGHT = 240
POINTS = 2000  # more than are drawn lie too close to tell apart


def outlook(stored: StoredStudy, now: Outlook) -> tuple[str, str, Chart | str]:
    """Draws what the rest of the budget was expected to gain, after each trial.

    Args:
        stored: the study.
        now: what is still to come of it.

    Returns:
        The title, the caption, which says in words what the figure shows, and the chart or a
        sentence in its place.
    """
    if len(stored.goals) > 1:
        return TITLE, "", "With several objectives, no single number says what trials gain."
    values = ended_values(read_outcomes(stored))
    known = [
        (count, gain) for count, gain in enumerate(gains(values, now.trials), 1) if gain is not None
    ]
    if not known:
        return TITLE, "", "Too few trials have ended to tell what further ones gain."
    largest = max(gain for _, gain in known)
    if not largest:
        return TITLE, "", "No trial has been better than another one yet."
    least = largest / FACTORS
    thin = known if len(known) <= POINTS else [*known[:: len(known) // POINTS], known[-1]]
    points = [(count, math.log10(max(gain, least))) for count, gain in thin]
    shape, width = ("line", 2.0) if len(points) > 1 else ("dot", 8.0)
    marks = [Mark("expected", "complete", shape, [points], width=width)]
    x = whole_scale(known[0][0], known[-1][0], "trials that have ended")
    drawn = [height for _, height in points]
    if now.regret is not None:
        height = math.log10(max(now.regret, least))
        drawn.append(height)
        ends = [(x.low, height), (x.high, height)]
        marks.append(Mark("study.regret", "best", "line", [ends], width=1.5, style=("dotted",)))
    table = Table(
        ("trials that have ended", "expected gain"),
        [(count, format_value(gain)) for count, gain in known[-30:]],
        note="The last 30 are shown." if len(known) > 30 else "",
    )
    label = f"the gain in {stored.metric} that was expected of the rest of the budget"
    y = _scale(drawn, f"gain in {stored.metric}")
    return TITLE, caption(known[-1], stored.metric, now), Chart(label, HEIGHT, x, y, marks, table)


def _scale(heights: list[float], title: str) -> Scale:
    low, high = min(heights), max(heights)
    margin = 0.06 * (high - low) or 0.1
    ends = low - margin, high + margin
    ticks = [Tick(math.log10(mark), f"{mark:.3g}") for mark in log_marks(10**low, 10**high)]
    return Scale(*ends, spaced(ticks, *ends, HEIGHT, upright=True), title, "tens")


def caption(last: tuple[int, float], metric: str, now: Outlook) -> str:
    """Words the last estimate, and how it was made."""
    count, gain = last
    words = (
        f"What the trials that were left of the budget of {now.trials} were expected to gain "
        "together, after each trial, told by how close the best ones are to each other. "
        f"After {count} trials it was {format_value(gain)} {metric}"
    )
    below = "" if now.regret is None else f"; the search ends below {now.regret:g}"
    return f"{words}{below}."
