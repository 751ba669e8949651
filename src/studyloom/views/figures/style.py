"""What all figures share: colours, sizes, layout and labels."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial

from studyloom.storage.attributes import EPOCHS

# Middle tones, with a contrast of about 3 both to white and to near black.
COLOURS = {
    "complete": "#4c8bf5",
    "pruned": "#8b95a5",
    "failed": "#e5484d",
    "running": "#d9870b",
    "paused": "#0f9fb0",
    "best": "#12a150",
    "baseline": "#9a5cf0",
    "winner": "#d9870b",
}
RAMP = ["#98a2b1", "#4c8bf5"]  # of lines and points
# Of areas: the page shows through at the low end.
TINT = [[0, "rgba(76,139,245,0.04)"], [1, "rgba(76,139,245,0.85)"]]
ROW = 44  # pixels of a bar with its label above
BAR = 0.32  # the bar's share of a row
ENOUGH = 3  # complete trials that must have a parameter before it is drawn
NO_PARAMETERS = f"No parameter has had different values in {ENOUGH} complete trials or more yet."


def apply_style(figure: go.Figure, height: int, title: str = "", **layout: Any) -> go.Figure:
    """Applies the layout that all figures share, and returns the figure.

    Args:
        figure: the figure to change.
        height: its height in pixels.
        title: the name of the vertical axis; it stands at the upper left.
        layout: further properties of the layout.
    """
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
    """Adds a trace of points to a figure; nothing if there are no points.

    Args:
        figure: the figure to change.
        name: the trace's name in the legend, and the key of its colour.
        x: the horizontal coordinates.
        y: the vertical coordinates, one for each in `x`.
        text: what is shown when the pointer is over a point, one for each in `x`.
        size: the diameter in pixels.
        symbol: plotly's name of the shape.
    """
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


def learning_curve(trial: FrozenTrial) -> list[tuple[int, float]]:
    """Returns the learning curve that a trial stored, or else the values that it reported.

    Returns:
        The epochs, from 1, with the value after each; empty if there are none.
    """
    epochs = trial.user_attrs.get(EPOCHS) or {}
    stored = list(zip(epochs.get("number", ()), epochs.get("value", ()), strict=False))
    return stored or sorted(trial.intermediate_values.items())


def label_rows(figure: go.Figure, labels: Sequence[str]) -> None:
    """Writes labels above the bars: beside them they would fill half of a phone's screen.

    Args:
        figure: the figure to change.
        labels: the label of the bar at 0, 1, …, as plotly's HTML.
    """
    for row, label in enumerate(labels):
        anchor = {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": row + BAR / 2,
            "yanchor": "bottom",
        }
        figure.add_annotation(text=label, showarrow=False, **anchor)
    figure.update_yaxes(visible=False, range=[-0.4, len(labels) - 0.25])
