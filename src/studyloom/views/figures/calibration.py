"""How often a classifier was right where it was so and so sure."""

from collections.abc import Mapping
from typing import Any

from studyloom.text import format_value
from studyloom.views.figures.chart import Chart, Mark, Scale, Table, Tick, plain_scale

HEIGHT = 320
UNIT = [round(0.2 * step, 1) for step in range(6)]


def calibration(stored: Mapping[str, Any]) -> Chart | str:
    """Draws the accuracy of each bin of confidence, with its interval, beside the diagonal.

    Args:
        stored: what winner.json holds under `calibration`.

    Returns:
        The chart, or the sentence to show in its place.
    """
    try:
        bins = [
            (
                float(one["confidence"]),
                float(one["accuracy"]),
                [float(end) for end in one["interval"]],
                int(one["count"]),
                f"{float(one['low']):.1f} to {float(one['high']):.1f}",
            )
            for one in stored["bins"]
        ]
        if not bins or any(len(ends) != 2 for *_, ends, _, _ in bins):
            raise ValueError(bins)
    except (KeyError, TypeError, ValueError):
        return "winner.json holds no calibration."
    marks = [
        Mark("as sure as right", "pruned", "line", [[(0, 0), (1, 1)]], width=1, style=("dotted",)),
        Mark(
            "", "best", "line", [[(x, low), (x, high)] for x, _, (low, high), _, _ in bins], (), 2
        ),
        Mark("accuracy", "best", "dot", [[(x, y)] for x, y, *_ in bins], width=9),
    ]
    rows = [
        (span, count, format_value(sure), format_value(right), f"{low:.3f} to {high:.3f}")
        for sure, right, (low, high), count, span in bins
    ]
    head = ("confidence", "examples", "mean confidence", "accuracy", "95 % interval")
    ticks = [Tick(at, f"{at:g}") for at in UNIT]
    x = Scale(-0.03, 1.03, ticks, "confidence")
    y = plain_scale([0.0, 1.0], "accuracy", upright=True, height=HEIGHT)
    label = f"the accuracy of {len(bins)} bins of confidence"
    return Chart(label, HEIGHT, x, y, marks, Table(head, rows, words=(0,)))
