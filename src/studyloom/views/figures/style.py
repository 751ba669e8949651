"""TODO views.figures.style."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial

from studyloom.storage.attributes import EPOCHS
from studyloom.views.figures.plot_study import ENOUGH

# Middle tones, with a contrast of 3 or so to white and to near black alike.
COLOURS = {
    "complete": "#4c8bf5",
    "pruned": "#8b95a5",
    "failed": "#e5484d",
    "running": "#d9870b",
    "best": "#12a150",
    "baseline": "#9a5cf0",
    "winner": "#d9870b",
}
RAMP = ["#98a2b1", "#4c8bf5"]  # of lines and points
TINT = [
    [0, "rgba(76,139,245,0.04)"],
    [1, "rgba(76,139,245,0.85)"],
]  # of areas: the page shines through at the low end
ROW = 44  # pixels of a bar with its label above
BAR = 0.32  # of which are the bar's
NO_PARAMETERS = f"No parameter has had different values in {ENOUGH} complete trials or more yet."


def dress(figure: go.Figure, height: int, title: str = "", **layout: Any) -> go.Figure:
    """What all figures share; the title stands at the upper left, where it names the vertical axis."""
    figure.update_layout(
        height=height,
        showlegend=False,
        dragmode=False,  # a finger scrolls the page
        hovermode="closest",
        margin={"l": 0, "r": 8, "t": 28 if title else 8, "b": 8},
        title={
            "text": title,
            "x": 0,
            "xref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 4},
        },
        plot_bgcolor=None,
        **layout,
    )
    figure.update_xaxes(fixedrange=True, automargin=True)
    figure.update_yaxes(fixedrange=True, automargin=True, title=None)
    return figure


def add_points(
    figure: go.Figure,
    name: str,
    x: Sequence[Any],
    y: Sequence[float],
    text: Sequence[str],
    size: int = 8,
    symbol: str = "circle",
) -> None:
    marker = {"color": COLOURS[name], "size": size, "symbol": symbol}
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            text=text,
            hoverinfo="text",
            mode="markers",
            name=name,
            marker=marker,
            showlegend=True,
        )


def points(trial: FrozenTrial) -> list[tuple[int, float]]:
    """The learning curve of a trial: epoch and value."""
    epochs = trial.user_attrs.get(EPOCHS) or {}
    stored = list(zip(epochs.get("number", ()), epochs.get("value", ()), strict=False))
    return stored or sorted(trial.intermediate_values.items())


def label_rows(figure: go.Figure, labels: Sequence[str]) -> None:
    """Writes labels above the bars at 0, 1, …: beside them they would take half of a phone."""
    for row, label in enumerate(labels):
        place = {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": row + BAR / 2,
            "yanchor": "bottom",
        }
        figure.add_annotation(text=label, showarrow=False, **place)
    figure.update_yaxes(visible=False, range=[-0.4, len(labels) - 0.25])
