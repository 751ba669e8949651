"""What further trials were expected to gain, over the search."""

import plotly.graph_objects as go  # type: ignore[import-untyped]

from studyloom.search.ending import ended_values
from studyloom.search.regret import gains
from studyloom.study.bounds import Outlook, read_outcomes
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_value
from studyloom.views.figures.axes import integer_ticks
from studyloom.views.figures.plot_study import literal
from studyloom.views.figures.style import COLOURS, apply_style

TITLE = "What further trials may gain"
FACTORS = 1000  # between the largest gain and the smallest that is drawn


def outlook(stored: StoredStudy, now: Outlook) -> tuple[str, str, go.Figure | str]:
    """Draws what the rest of the budget was expected to gain, after each trial.

    Args:
        stored: the study.
        now: what is still to come of it.

    Returns:
        The title, the caption, which says in words what the figure shows, and the figure or a
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
    counts = [count for count, _ in known]
    heights = [max(gain, largest / FACTORS) for _, gain in known]
    metric = literal(stored.metric)
    text = [f"after {count} trials: {format_value(gain)}" for count, gain in known]
    figure = go.Figure()
    line = {"color": COLOURS["complete"], "width": 2}
    figure.add_scatter(
        x=counts, y=heights, text=text, hoverinfo="text", mode="lines", line=line, name="expected"
    )
    figure.data[-1].showlegend = True
    if now.regret is not None:
        style = {"color": COLOURS["best"], "width": 1.5, "dash": "dot"}
        figure.add_scatter(
            x=[counts[0], counts[-1]],
            y=[now.regret, now.regret],
            mode="lines",
            line=style,
            hoverinfo="skip",
            name="study.regret",
        )
        figure.data[-1].showlegend = True
    xaxis = integer_ticks(len(counts)) | {"title": "trials that have ended"}
    figure = apply_style(figure, 260, f"gain in {metric}", xaxis=xaxis, yaxis={"type": "log"})
    return TITLE, caption(known[-1], metric, now), figure


def caption(last: tuple[int, float], metric: str, now: Outlook) -> str:
    """Words the last estimate, as HTML, and how it was made."""
    count, gain = last
    words = (
        f"What the trials that were left of the budget of {now.trials} were expected to gain "
        "together, after each trial, told by how close the best ones are to each other. "
        f"After {count} trials it was {format_value(gain)} {metric}"
    )
    below = "" if now.regret is None else f"; the search ends below {now.regret:g}"
    return f"{words}{below}."
