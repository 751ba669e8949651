"""The winner's predictions on the test part: of numbers, of classes, and its worst mistakes."""

import re
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]

from studyloom.text import format_value
from studyloom.views.figures.style import COLOURS, add_points, apply_style
from studyloom.views.page import absent, get, number, text

PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


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


def confusion(winner: dict[str, Any]) -> str:
    """Renders the confusion matrix, with shades by count."""
    rows = [row for row in get(winner, "confusion") or () if isinstance(row, list)]
    if not rows or any(not isinstance(count, int) for row in rows for count in row):
        return absent("winner.json holds no confusion matrix.")
    errors = [
        count for true, row in enumerate(rows) for column, count in enumerate(row) if column != true
    ]
    right = [row[true] for true, row in enumerate(rows) if true < len(row)]
    most = {True: max(1, *right, 0), False: max(1, *errors, 0)}
    hue = {True: "76,139,245", False: "229,72,77"}
    classes = get(winner, "classes")
    if not isinstance(classes, list) or len(classes) != len(rows):
        classes = [*range(len(rows))]
    parts = ["<tr><th></th>", *(f"<th>{text(name)}</th>" for name in classes), "</tr>"]
    for true, row in enumerate(rows):
        parts.append(f"<tr><th>{text(classes[true])}</th>")
        for column, count in enumerate(row):
            same = column == true
            shade = f"rgba({hue[same]},{0.08 + 0.5 * count / most[same]:.2f})"
            parts.append(
                f'<td style="background:{shade}">{count}</td>'
                if count
                else '<td class="none">·</td>'
            )
        parts.append("</tr>")
    return f'<div class="wide"><table class="confusion">{"".join(parts)}</table></div>'


def wrong(winner: dict[str, Any]) -> str:
    """Renders the images that the winner gets wrong; only pictures that winner.json embeds."""
    parts = []
    for item in get(winner, "wrong") or ():
        picture = get(item, "image")
        if isinstance(picture, str) and PICTURE.fullmatch(picture):
            parts.append(
                f'<figure><img src="{picture}" alt="test image {text(get(item, "index"))}">'
                f"<figcaption>{text(get(item, 'label'))} → <b>{text(get(item, 'predicted'))}</b> "
                f'<span class="quiet">{number(get(item, "confidence"))}</span>'
                "</figcaption></figure>"
            )
    if not parts:
        return absent("winner.json holds no images.")
    return f'<div class="wrong">{"".join(parts)}</div>'
