"""The history of a search: each trial's value, and the best so far."""

import math
from collections.abc import Sequence
from dataclasses import replace

from optuna.trial import FrozenTrial

from studyloom.study.failures import outcome
from studyloom.study.stored_study import value_of
from studyloom.text import format_value
from studyloom.views.figures.axes import Axis
from studyloom.views.figures.chart import Chart, Mark, Part, Table, whole_scale
from studyloom.views.figures.trials import best_so_far, by_outcome, complete_trials

HEIGHT = 320
NOT_COMPLETE = ("pruned", "failed", "paused", "running")


def history(
    trials: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    baseline: FrozenTrial | None,
    axis: Axis,
) -> Chart | str:
    """Draws each complete trial and the best so far; below them, trials that ended otherwise.

    Args:
        trials: all trials of the study, by number.
        best: the trial to mark as the best.
        baseline: the trial whose value is drawn as a dotted line.
        axis: the axis of the values.

    Returns:
        The chart, or the sentence to show in its place.
    """
    complete = complete_trials(trials)
    numbered = {trial.number for trial in complete}
    if not complete:
        return "No trial is complete yet."
    y = axis.scale_of([value_of(trial) or 0.0 for trial in complete], HEIGHT)
    span = y.high - y.low
    rug = y.low - 0.05 * span
    y = replace(y, low=rug - 0.05 * span)
    x = whole_scale(0, max(trial.number for trial in trials), "trial")
    marks = [
        _points(
            kind, colour, [trial for trial in complete if (outcome(trial) == "failed") == bad], axis
        )
        for kind, colour, bad in (("complete", "complete", False), ("infeasible", "failed", True))
    ]
    steps = best_so_far(complete, axis.sign)
    line = [(trial.number, axis.height(value_of(trial) or 0.0)) for trial in steps]
    ended = [*line, (max(trial.number for trial in trials), line[-1][1])] if line else []
    marks.append(
        Mark("best so far", "best", "line", [ended] if ended else [], width=2, style=("stepped",))
    )
    for kind in NOT_COMPLETE:
        others = [trial for trial in by_outcome(trials, kind) if trial.number not in numbered]
        numbers = [trial.number for trial in others]
        marks.append(Mark(kind, kind, "rug", [[(n, rug)] for n in numbers], numbers, 2))
    if (start := value_of(baseline)) is not None and math.isfinite(start):
        height = axis.height(start)
        ends: Part = [(x.low, height), (x.high, height)]
        marks.append(Mark("baseline", "baseline", "line", [ends], width=1.5, style=("dotted",)))
    if best is not None and (value := value_of(best)) is not None:
        point = [[(best.number, axis.height(value))]]
        marks.append(Mark("best", "best", "ring", point, [best.number], 13))
    rows = [(trial.number, format_value(value_of(trial) or 0.0)) for trial in steps]
    note = (
        "" if baseline is None else f"The baseline has {format_value(value_of(baseline) or 0.0)}."
    )
    table = Table(("from trial", f"best {axis.metric} so far"), rows, note=note)
    label = f"{axis.metric} of {len(complete)} complete trials, in the order in which they began"
    return Chart(label, HEIGHT, x, y, [mark for mark in marks if mark.parts], table)


def _points(name: str, colour: str, trials: Sequence[FrozenTrial], axis: Axis) -> Mark:
    parts = [[(trial.number, axis.height(value_of(trial) or 0.0))] for trial in trials]
    return Mark(name, colour, "dot", parts, [trial.number for trial in trials])
