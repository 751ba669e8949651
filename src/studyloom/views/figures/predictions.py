"""The winner's predictions of numbers on the test part."""

from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]

from studyloom.text import format_value
from studyloom.views.figures.style import COLOURS, add_points, apply_style


def predictions(stored: dict[str, Any]) -> go.Figure | str:
    """Draws what a network predicted against what came.

    Both are drawn over time if the examples are in the order of time, else one over the other.

    Args:
        stored: what winner.json holds under `predictions`: `told`, `came` and `ordered`.
    """
    try:
        pairs = [
            (float(predicted[0]), float(actual[0]))
            for predicted, actual in zip(stored["told"], stored["came"], strict=True)
        ]
    except (KeyError, IndexError, TypeError, ValueError):
        return "winner.json holds no predictions."
    told, came = ([pair[position] for pair in pairs] for position in (0, 1))
    text = [f"told {format_value(one)}, came {format_value(other)}" for one, other in pairs]
    figure = go.Figure()
    if stored.get("ordered"):
        for name, values, kind in (("what came", came, "pruned"), ("told", told, "best")):
            line = {"color": COLOURS[kind], "width": 2}
            figure.add_scatter(
                x=[*range(len(pairs))],
                y=values,
                text=text,
                hoverinfo="text",
                mode="lines",
                name=name,
            )
            figure.data[-1].update(line=line, showlegend=True)
        return apply_style(figure, 300, xaxis={"title": "example"})
    low, high = min([*told, *came], default=0.0), max([*told, *came], default=1.0)
    line = {"color": COLOURS["pruned"], "width": 1, "dash": "dot"}
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line=line,
        hoverinfo="skip",
        name="told what came",
    )
    figure.data[-1].showlegend = True
    add_points(figure, "best", came, told, text)
    return apply_style(figure, 380, "told", xaxis={"title": "what came"})
