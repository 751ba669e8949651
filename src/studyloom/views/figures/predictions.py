"""What the winner predicted on the test part, where that is numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from studyloom.text import format_value
from studyloom.views.figures.chart import Chart, Mark, Table, plain_scale, whole_scale

MOST_ROWS = 40  # of the table
WAYS = {"ordered": 280, "scattered": 360}  # pixels of height


def predictions(stored: Mapping[str, Any]) -> Chart | str:
    """Draws what a network predicted against what came.

    Both are drawn over time if the examples are in the order of time, else one over the other.

    Args:
        stored: what winner.json holds under `predictions`: `told`, `came` and `ordered`.

    Returns:
        The chart, or the sentence to show in its place.
    """
    try:
        pairs = [
            (float(predicted[0]), float(actual[0]))
            for predicted, actual in zip(stored["told"], stored["came"], strict=True)
        ]
    except (KeyError, IndexError, TypeError, ValueError):
        return "winner.json holds no predictions."
    if not pairs:
        return "winner.json holds no predictions."
    rows = [
        (number, format_value(came), format_value(told))
        for number, (told, came) in enumerate(pairs[:MOST_ROWS])
    ]
    left = len(pairs) - len(rows)
    note = f"{left} further examples are left out." if left else ""
    table = Table(("example", "what came", "told"), rows, note=note)
    return (_over_time if stored.get("ordered") else _one_over_other)(pairs, table)


def _over_time(pairs: Sequence[tuple[float, float]], table: Table) -> Chart:
    height = WAYS["ordered"]
    told, came = ([(n, pair[side]) for n, pair in enumerate(pairs)] for side in (0, 1))
    marks = [
        Mark("what came", "pruned", "line", [came], width=2),
        Mark("told", "best", "line", [told], width=2),
    ]
    numbers = [value for pair in pairs for value in pair]
    y = plain_scale(numbers, upright=True, height=height)
    x = whole_scale(0, max(1, len(pairs) - 1), "example")
    label = f"what was predicted and what came, of {len(pairs)} examples in the order of time"
    return Chart(label, height, x, y, marks, table)


def _one_over_other(pairs: Sequence[tuple[float, float]], table: Table) -> Chart:
    height = WAYS["scattered"]
    numbers = [value for pair in pairs for value in pair]
    low, high = min(numbers), max(numbers)
    marks = [
        Mark(
            "told what came",
            "pruned",
            "line",
            [[(low, low), (high, high)]],
            width=1,
            style=("dotted",),
        ),
        Mark("best", "best", "dot", [[(came, told)] for told, came in pairs], width=6),
    ]
    x = plain_scale(numbers, "what came")
    y = plain_scale(numbers, "told", upright=True, height=height)
    label = f"what was predicted over what came, of {len(pairs)} examples"
    return Chart(label, height, x, y, marks, table)
