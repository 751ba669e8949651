"""The figures of the pages, as charts.

Each function returns a chart, or a sentence that says why there is nothing to draw yet.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from math import log10
from statistics import median
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import EPOCHS, RUNGS, TIMES, WORKER
from studyloom.study.bounds import Outlook, read_outcomes
from studyloom.study.ending import ended_values
from studyloom.study.failures import outcome
from studyloom.study.regret import gains
from studyloom.study.rows import quantities
from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.text import (
    format_cost,
    format_duration,
    format_parameter,
    format_value,
    one_line,
    shorten,
)
from studyloom.views.charts import (
    SIZE,
    Axis,
    Chart,
    Mark,
    Multiples,
    Note,
    Part,
    Point,
    Scale,
    Table,
    Tick,
    log_marks,
    log_scale,
    plain_scale,
    responsive,
    round_marks,
    spaced,
    whole_scale,
)

ENOUGH = 3  # complete trials that must have a parameter before it is drawn
NO_PARAMETERS = f"No parameter has had different values in {ENOUGH} complete trials or more yet."
BINS = 4  # of a parameter's settings, in the table behind its figure


def complete_trials(trials: Sequence[FrozenTrial], goal: int = 0) -> list[FrozenTrial]:
    """Returns the complete trials whose value is a finite number, by number.

    Args:
        trials: all trials of a study, by number.
        goal: the position of the value.
    """
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and math.isfinite(value_of(trial, goal) or 0.0)
    ]


def learning_curve(trial: FrozenTrial) -> list[tuple[int, float]]:
    """Returns the learning curve that a trial stored, or else the values that it reported.

    Returns:
        The epochs, from 1, with the value after each; empty if there are none.
    """
    epochs = trial.user_attrs.get(EPOCHS) or {}
    stored = list(zip(epochs.get("number", ()), epochs.get("value", ()), strict=False))
    return stored or sorted(trial.intermediate_values.items())


def best_of(stored: StoredStudy, count: int) -> list[FrozenTrial]:
    """Returns the complete trials with the best values, the best first.

    Args:
        stored: the study.
        count: how many trials to return at most. Trials that break a constraint, or the rule by
            which the best is chosen, are taken only if there is room after all others.
    """
    ranked = stored.ranked()
    numbers = {trial.number for trial in ranked}
    rest = [trial for trial in complete_trials(stored.trials()) if trial.number not in numbers]
    rest.sort(key=stored.costs)
    return [*ranked, *rest][:count]


def best_so_far(complete: Sequence[FrozenTrial], sign: int) -> list[FrozenTrial]:
    """Returns the trials that were better than all feasible ones before them.

    Args:
        complete: trials with a finite value, by number.
        sign: 1 if more of the value is better, -1 if less is.
    """
    steps: list[FrozenTrial] = []
    for trial in complete:
        value = sign * (value_of(trial) or 0.0)
        feasible = all(broken <= 0 for broken in (trial.constraints or {}).values())
        if feasible and (not steps or value > sign * (value_of(steps[-1]) or 0.0)):
            steps.append(trial)
    return steps


def label_of(setting: object, length: int = 24) -> str:
    """Returns the setting of a parameter as a label, cut in its middle if it is long."""
    return shorten(format_parameter(setting), length)


def summary(trials: Sequence[FrozenTrial], name: str, sign: int, goal: int = 0) -> Table:
    """Returns what the values were by the setting of a parameter, as a table.

    Args:
        trials: complete trials that have the parameter.
        name: the parameter.
        sign: 1 if more of the value is better, -1 if less is.
        goal: the position of the value.
    """
    settings = [trial.params[name] for trial in trials]
    distinct = list(dict.fromkeys(sorted(settings, key=_order)))
    groups: list[tuple[str, list[FrozenTrial]]]
    if len(distinct) <= 2 * BINS or not _are_numbers(distinct):
        by_setting: dict[object, list[FrozenTrial]] = {}
        for trial in trials:
            by_setting.setdefault(trial.params[name], []).append(trial)
        groups = [(label_of(setting, 60), by_setting[setting]) for setting in distinct]
    else:
        ordered = sorted(trials, key=lambda trial: _order(trial.params[name]))
        ends = [len(ordered) * part // BINS for part in range(BINS + 1)]
        groups = [
            (f"{label_of(part[0].params[name])} to {label_of(part[-1].params[name])}", part)
            for part in (ordered[a:b] for a, b in itertools.pairwise(ends))
            if part
        ]
    rows = []
    for label, members in groups:
        values = [value_of(trial, goal) or 0.0 for trial in members]
        best = max(values, key=lambda value: sign * value)
        rows.append((label, len(members), format_value(best), format_value(median(values))))
    return Table((name, "complete trials", "best", "median"), rows, words=(0,))


def _order(setting: object) -> tuple[bool, float, str]:
    number = isinstance(setting, int | float)
    return not number, float(setting) if isinstance(setting, int | float) else 0.0, str(setting)


def _are_numbers(settings: Sequence[object]) -> bool:
    return all(isinstance(s, int | float) and not isinstance(s, bool) for s in settings)


def by_outcome(trials: Sequence[FrozenTrial], kind: str) -> list[FrozenTrial]:
    """Returns the trials that ended, or stand, in one way."""
    return [trial for trial in trials if outcome(trial) == kind]


HISTORY_HEIGHT = 320
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
    y = axis.scale_of([value_of(trial) or 0.0 for trial in complete], HISTORY_HEIGHT)
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
    return Chart(label, HISTORY_HEIGHT, x, y, [mark for mark in marks if mark.parts], table)


def _points(name: str, colour: str, trials: Sequence[FrozenTrial], axis: Axis) -> Mark:
    parts = [[(trial.number, axis.height(value_of(trial) or 0.0))] for trial in trials]
    return Mark(name, colour, "dot", parts, [trial.number for trial in trials])


CURVES_HEIGHT, LOSSES_HEIGHT = 360, 280
LINES = ("complete", "baseline", "running", "failed", "pruned")  # colours of further quantities
# Drawn in this order, the last on top.
CURVE_KINDS = ("failed", "pruned", "paused", "running", "complete")
LOSSES = {"train_loss": "training loss", "valid_loss": "validation loss"}
MOST_BEST, MOST_LATEST = 100, 200  # curves that are drawn; more are one stain
CURVE_ROWS = 60  # of the table
QUANTITIES = "What the loop reported beside the value."
OVER_FITTING = (
    "Where the validation loss rises again while the training loss goes on falling, "
    "the network is over-fitting."
)

Curve = Sequence[tuple[int, float]]  # epochs, and the value after each; a loop may begin at 0


def curves(
    trials: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    baseline: FrozenTrial | None,
    axis: Axis,
) -> Chart | str:
    """Draws the learning curves of the trials, as one mark for each outcome.

    Of many trials, these are the curves of the best and of the latest.

    Args:
        trials: all trials of the study, by number.
        best: the trial to draw as the best.
        baseline: the trial to draw as the baseline.
        axis: the axis of the values.

    Returns:
        The chart, or the sentence to show in its place.
    """
    every = {trial.number: learning_curve(trial) for trial in trials}
    every = {
        number: curve
        for number, curve in every.items()
        if curve and all(math.isfinite(value) for _, value in curve)
    }
    if not every:
        return "No trial has ended an epoch yet."
    marked = {"baseline": baseline, "best": best}
    special = {trial.number for trial in marked.values() if trial is not None}
    known = _drawn(every, special, axis.sign)
    heights = {n: [(e, axis.height(value)) for e, value in curve] for n, curve in known.items()}
    kinds = {trial.number: outcome(trial) for trial in trials}
    marks = []
    for kind in CURVE_KINDS:
        own = [n for n in heights if kinds[n] == kind and n not in special]
        marks.append(_curve_lines(kind, kind, own, heights, 1.3, ("faint",)))
        if kind in ("failed", "pruned", "paused"):
            ends = [[heights[number][-1]] for number in own]
            marks.append(Mark("", kind, "square", ends, own, 5))
    for name, trial in marked.items():
        own = [trial.number] if trial is not None and trial.number in heights else []
        marks.append(_curve_lines(name, name, own, heights, 3, ()))
    y = axis.scale_of([value for curve in known.values() for _, value in curve], CURVES_HEIGHT)
    epochs = [epoch for curve in known.values() for epoch, _ in curve]
    x = whole_scale(min(1, *epochs), max(epochs), "epoch")
    for rung in sorted({rung for trial in trials for rung in trial.user_attrs.get(RUNGS, ())}):
        line = [[(rung, y.low), (rung, y.high)]]
        marks.append(Mark("", "paused", "line", line, width=1, style=("dotted",)))
    label = f"{axis.metric} after each epoch, of {len(known)} of {len(every)} trials"
    shown = [mark for mark in marks if mark.parts]
    return Chart(label, CURVES_HEIGHT, x, y, shown, _curve_table(every, kinds, axis))


def _drawn(known: Mapping[int, Curve], special: set[int], sign: int) -> dict[int, Curve]:
    """Returns the curves to draw, by number: those of the best trials and of the latest."""
    if len(known) <= MOST_BEST + MOST_LATEST:
        return dict(known)
    ranked = sorted(known, key=lambda number: -sign * known[number][-1][1])
    chosen = {*ranked[:MOST_BEST], *[*known][-MOST_LATEST:], *special}
    return {number: curve for number, curve in known.items() if number in chosen}


def _curve_lines(
    name: str,
    colour: str,
    numbers: Sequence[int],
    curves: Mapping[int, Sequence[tuple[int, float]]],
    width: float,
    style: Sequence[str],
) -> Mark:
    """Returns curves of one kind; of a single epoch each is a point, which needs some width."""
    single = all(len(curves[number]) == 1 for number in numbers)
    parts = [curves[number] for number in numbers]
    return Mark(
        name, colour, "dot" if single else "line", parts, numbers, 7 if single else width, style
    )


def _curve_table(known: Mapping[int, Curve], kinds: Mapping[int, str], axis: Axis) -> Table:
    """Returns the first, best and last value of each curve, of the best trials first."""
    ranked = sorted(known, key=lambda number: -axis.sign * known[number][-1][1])
    rows = []
    for number in ranked[:CURVE_ROWS]:
        values = [value for _, value in known[number]]
        best = max(values, key=lambda value: axis.sign * value)
        first, top, last = (format_value(value) for value in (values[0], best, values[-1]))
        rows.append((number, kinds[number], len(values), first, top, last))
    left = len(ranked) - len(rows)
    note = f"{left} further trials are left out." if left else ""
    head = ("trial", "state", "epochs", "first", "best", "last")
    return Table(head, rows, words=(1,), note=note)


def beside(trial: FrozenTrial | None, which: str) -> tuple[str, str]:
    """Returns the title and the caption of what `losses` draws.

    Args:
        trial: that is drawn.
        which: trial it is, in words.
    """
    if trial is not None and {*quantities([trial])} - {*LOSSES}:
        return "Further quantities", which + QUANTITIES
    return "Over-fitting", which + OVER_FITTING


def losses(trial: FrozenTrial) -> Chart | str:
    """Draws the training and validation loss of a trial, epoch by epoch.

    Of a loop of one's own it draws all that the loop reported beside the value.

    Returns:
        The chart, or the sentence to show in its place.
    """
    epochs = trial.user_attrs.get(EPOCHS) or {}
    numbers, names = epochs.get("number") or [], quantities([trial])
    columns = {
        name: [(n, v) for n, v in zip(numbers, epochs[name], strict=False) if _is_finite(v)]
        for name in names
    }
    told = [value for column in columns.values() for _, value in column]
    if not told or any(len(epochs[name]) != len(numbers) for name in names):
        return f"Trial {trial.number} stored no losses."
    marks, notes = [], []
    for position, name in enumerate(names):
        colour = "best" if name in LOSSES else LINES[position % len(LINES)]
        style = ("dotted",) if name == "train_loss" else ()
        shown = LOSSES.get(name, name)
        shape, width = ("line", 2.5) if len(columns[name]) > 1 else ("dot", 8)
        parts = [columns[name]] if columns[name] else []
        marks.append(Mark(shown, colour, shape, parts, width=width, style=style))
    y = plain_scale([0.0, *told], upright=True, height=LOSSES_HEIGHT)
    y = Scale(min(0.0, y.low if min(told) < 0 else 0.0), y.high, y.ticks, _title(names), y.reads)
    x = whole_scale(numbers[0], numbers[-1], "epoch")
    if {*names} == {*LOSSES} and len(columns["valid_loss"]) > 1:
        epoch, _ = min(columns["valid_loss"], key=lambda pair: pair[1])
        line = [[(epoch, y.low), (epoch, y.high)]]
        marks.append(Mark("", "pruned", "line", line, width=1, style=("dotted",)))
        side = "left" if epoch > (numbers[0] + numbers[-1]) / 2 else "right"
        notes.append(Note(epoch, y.high, f"lowest at epoch {epoch}", side))
    rows = [
        (number, *("" if not _is_finite(v) else format_value(v) for v in row))
        for number, *row in zip(numbers, *(epochs[name] for name in names), strict=True)
    ]
    table = Table(("epoch", *(LOSSES.get(name, name) for name in names)), rows)
    label = (
        f"{', '.join(LOSSES.get(name, name) for name in names)} of trial {trial.number} by epoch"
    )
    return Chart(label, LOSSES_HEIGHT, x, y, [m for m in marks if m.parts], table, notes)


def _title(names: Sequence[str]) -> str:
    return "loss" if {*names} <= {*LOSSES} else ""


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


SPREAD = 10.0  # costs that differ by more than this factor are drawn on a logarithmic axis
FRONT_HEIGHT = 400


def front(stored: StoredStudy, marked: Mapping[str, FrozenTrial | None], axis: Axis) -> Chart | str:
    """Draws each complete trial by its cost and its value, also those that break a constraint.

    Args:
        stored: a study with two objectives, the second a cost.
        marked: the trials to mark with a ring, by name: baseline, best, winner.
        axis: the axis of the values.

    Returns:
        The chart, or the sentence to show in its place.
    """
    trials = [trial for trial in complete_trials(stored.trials()) if len(trial.values or ()) > 1]
    if not trials:
        return "No trial is complete yet."
    cost = stored.goals[1].name
    feasible = {trial.number for trial in stored.feasible()}
    ahead = {trial.number for trial in stored.front()}
    x = _cost_scale([trial.values[1] for trial in trials], f"{cost}, less is better")
    kinds = {
        "infeasible": ("failed", [t for t in trials if t.number not in feasible]),
        "beaten": ("complete", [t for t in trials if t.number in feasible - ahead]),
        "front": ("best", [t for t in trials if t.number in ahead]),
    }
    if stored.goals[1].sign > 0:
        x = Scale(x.low, x.high, x.ticks, f"{cost}, more is better", x.reads)
    steps = sorted(_front_point(trial, x, axis) for trial in kinds["front"][1])
    marks = [Mark("staircase", "best", "line", [steps], width=1.5, style=("stepped", "quiet"))]
    for name, (colour, members) in kinds.items():
        parts = [[_front_point(trial, x, axis)] for trial in members]
        shape = "square" if name == "infeasible" else "dot"
        style = ("faint",) if name == "beaten" else ()
        marks.append(Mark(name, colour, shape, parts, [t.number for t in members], 8, style))
    for name, trial in marked.items():
        if trial is not None and trial.values:
            size = 20 if name == "winner" else 14  # the winner may be the best: around its ring
            marks.append(
                Mark(name, name, "ring", [[_front_point(trial, x, axis)]], [trial.number], size)
            )
    y = axis.scale_of([trial.values[0] for trial in trials], FRONT_HEIGHT)
    label = f"{axis.metric} over {cost}, of {len(trials)} complete trials"
    return Chart(
        label,
        FRONT_HEIGHT,
        x,
        y,
        [mark for mark in marks if mark.parts],
        _front_table(kinds, axis, cost),
    )


def _front_point(trial: FrozenTrial, x: Scale, axis: Axis) -> tuple[float, float]:
    value, cost = trial.values[:2]
    return (log10(cost) if x.reads == "tens" else cost), axis.height(value)


def _cost_scale(costs: Sequence[float], title: str) -> Scale:
    """Returns the axis of the costs, labelled in the digits that a rule accepts."""
    if 0 < SPREAD * min(costs) < max(costs):
        scale = log_scale(costs, title)
        ticks = [Tick(tick.at, format_cost(10**tick.at)) for tick in scale.ticks]
    else:
        scale = plain_scale(costs, title)
        ticks = [Tick(tick.at, format_cost(tick.at)) for tick in scale.ticks]
    shown = responsive(ticks, scale.low, scale.high)
    return Scale(scale.low, scale.high, shown, title, scale.reads)


def _front_table(
    kinds: Mapping[str, tuple[str, Sequence[FrozenTrial]]], axis: Axis, cost: str
) -> Table:
    members = sorted(kinds["front"][1], key=lambda trial: trial.values[1])
    rows = [(t.number, format_value(t.values[0]), format_cost(t.values[1])) for t in members]
    beaten = len(kinds["beaten"][1])
    return Table(
        ("trial", axis.metric, cost), rows, note=f"The front; {beaten} further trials are beaten."
    )


MOST_AXES = 8  # parallel ones; more cannot be told apart
SHADES = 5  # of a ramp from grey to blue
SMALL, PARAMETERS_HEIGHT = 170, 360  # pixels
PHONE = 124  # pixels of a small chart's axis on a phone, where two share a row
LETTERS = 24  # of the labels of all choices together, in so many pixels


def place_of(distribution: BaseDistribution, setting: Any) -> float:
    """Returns the coordinate of a number: its logarithm, if the space is logarithmic."""
    log = getattr(distribution, "log", False) and setting > 0
    return math.log10(setting) if log else float(setting)


def setting_scale(
    trials: Sequence[FrozenTrial], name: str, pixels: float | None = None
) -> tuple[Scale, list[float]]:
    """Returns the axis of a parameter, and where each trial lies on it.

    Args:
        trials: that have the parameter; at least one.
        name: the parameter.
        pixels: the length of the axis, if it is the same on all screens.

    Returns:
        The axis, on which choices are 0, 1, …; and a coordinate for each trial.
    """
    settings = [trial.params[name] for trial in trials]
    distribution = trials[0].distributions[name]
    if not all(isinstance(s, int | float) and not isinstance(s, bool) for s in settings):
        choices = list(dict.fromkeys(sorted(settings, key=_choice_order)))
        length = LETTERS if pixels is not None else 4 * LETTERS
        letters = max(3, length // len(choices) - 1)
        ticks = [Tick(at, label_of(choice, letters)) for at, choice in enumerate(choices)]
        ends = -0.5, len(choices) - 0.5
        return Scale(*ends, ticks, name, "words"), [float(choices.index(s)) for s in settings]
    places = [place_of(distribution, setting) for setting in settings]
    if getattr(distribution, "log", False) and min(settings) > 0:
        return log_scale(settings, name, pixels), places
    scale = plain_scale(settings, name)
    if all(isinstance(setting, int) for setting in settings):
        marks = [mark for mark in round_marks(min(settings), max(settings)) if mark == int(mark)]
        ticks = [Tick(mark, f"{mark:.0f}") for mark in marks]
        shown = responsive(ticks, scale.low, scale.high)
        scale = Scale(scale.low, scale.high, shown, name, "whole")
    if pixels is not None:
        marks = round_marks(min(settings), max(settings), 3)
        ticks = [
            Tick(mark, f"{mark:.4g}")
            for mark in marks
            if scale.reads != "whole" or mark == int(mark)
        ]
        shown = spaced(ticks, scale.low, scale.high, pixels)
        scale = Scale(scale.low, scale.high, shown, name, scale.reads)
    return scale, places


def _choice_order(setting: object) -> tuple[str, float, str]:
    number = float(setting) if isinstance(setting, int | float) else 0.0
    return (
        type(setting).__name__ if not isinstance(setting, int | float) else "",
        number,
        str(setting),
    )


def slices(
    trials: Sequence[FrozenTrial], names: Sequence[str], best: FrozenTrial | None, axis: Axis
) -> Multiples | str:
    """Draws the value over each parameter.

    Args:
        trials: complete trials, by number.
        names: the parameters.
        best: the trial to mark as the best.
        axis: the axis of the values.

    Returns:
        A chart by name; a sentence if there is no parameter to draw.
    """
    if not names:
        return NO_PARAMETERS
    y = axis.scale_of([value_of(trial) or 0.0 for trial in trials], SMALL)
    return Multiples({name: _slice(trials, name, best, axis, y) for name in names})


def _slice(
    trials: Sequence[FrozenTrial], name: str, best: FrozenTrial | None, axis: Axis, y: Scale
) -> Chart:
    own = [trial for trial in trials if name in trial.params]
    x, places = setting_scale(own, name, PHONE)
    if x.reads == "words":  # beside each other, so that they can be counted
        places = [
            at + 0.5 * (0.618034 * t.number % 1 - 0.5) for at, t in zip(places, own, strict=True)
        ]
    points = [(at, axis.height(value_of(t) or 0.0)) for at, t in zip(places, own, strict=True)]
    last = max(1, trials[-1].number)
    shades = [min(SHADES - 1, SHADES * trial.number // (last + 1)) for trial in own]
    marks = _shaded(points, own, shades, 7)
    for trial, point in zip(own, points, strict=True):
        if best is not None and trial.number == best.number:
            marks.append(Mark("", "best", "ring", [[point]], [trial.number], 12))
    label = f"{axis.metric} over {name}, of {len(own)} complete trials"
    return Chart(label, SMALL, x, y, marks, summary(own, name, axis.sign))


def _shaded(
    points: Sequence[Point], trials: Sequence[FrozenTrial], shades: Sequence[int], width: float
) -> list[Mark]:
    """Returns points as a mark for each shade of the ramp."""
    marks = []
    for shade in range(SHADES):
        chosen = [n for n, own in enumerate(shades) if own == shade]
        parts, numbers = [[points[n]] for n in chosen], [trials[n].number for n in chosen]
        marks.append(Mark("", f"ramp-{shade}", "dot", parts, numbers, width))
    return [mark for mark in marks if mark.parts]


def parallel(trials: Sequence[FrozenTrial], names: Sequence[str], axis: Axis) -> Chart | str:
    """Draws a line for each trial, from its value over the most important parameters.

    Args:
        trials: complete trials, the best first.
        names: the parameters, the most important first.
        axis: the axis of the values.

    Returns:
        The chart, or the sentence to show in its place.
    """
    known = [name for name in names if any(name in trial.params for trial in trials)]
    names = sorted(known[:MOST_AXES])
    if not names:
        return NO_PARAMETERS
    columns: dict[str, dict[int, float]] = {}
    notes, values = [], [value_of(trial) or 0.0 for trial in trials]
    value_axis = axis.scale_of(values, PARAMETERS_HEIGHT)
    notes += [Note(0, value_axis.place(tick.at) / SIZE, tick.label) for tick in value_axis.ticks]
    heights = [value_axis.place(axis.height(value)) / SIZE for value in values]
    for position, name in enumerate(names, 1):
        own = [trial for trial in trials if name in trial.params]
        scale, places = setting_scale(own, name)
        absent = 0.1 if len(own) < len(trials) else 0.0  # below it is who lacks the parameter
        at = [absent + (1 - absent) * scale.place(place) / SIZE for place in places]
        columns[name] = dict(zip((trial.number for trial in own), at, strict=True))
        for tick in scale.ticks:
            if tick.when != "narrow":
                place = absent + (1 - absent) * scale.place(tick.at) / SIZE
                notes.append(Note(position, place, shorten(tick.label, 12)))
        if absent:
            notes.append(Note(position, 0.02, "–"))
    lines = [
        [
            (0.0, height),
            *((p, columns[name].get(trial.number, 0.02)) for p, name in enumerate(names, 1)),
        ]
        for trial, height in zip(trials, heights, strict=True)
    ]
    marks = _ranked_lines(trials, lines, len(names))
    ticks = [Tick(p, _broken(name)) for p, name in enumerate([axis.metric, *names])]
    rows = [
        (t.number, format_value(value_of(t) or 0.0), *(_cell(t, name) for name in names))
        for t in trials[:10]
    ]
    note = f"The best {len(rows)} of {len(trials)}; all are in the table of the trials."
    table = Table(("trial", axis.metric, *names), rows, words=range(2, 2 + len(names)), note=note)
    x = Scale(-0.4, len(names) + 0.75, ticks, "", "none")
    label = f"the best {len(trials)} trials over {len(names)} parameters"
    return Chart(
        label, PARAMETERS_HEIGHT, x, Scale(-0.02, 1.04, reads="none"), marks, table, notes, "wide"
    )


def _broken(name: str) -> str:
    """Breaks a name at its last dot into two lines: a parallel axis is a hundred pixels wide."""
    above, dot, last = one_line(name).rpartition(".")
    return f"{shorten(above + dot, 15)}\n{shorten(last, 15)}"


def _ranked_lines(
    trials: Sequence[FrozenTrial], lines: Sequence[Sequence[Point]], axes: int
) -> list[Mark]:
    """Returns the upright axes and the lines, the worst first: the last is drawn on top."""
    uprights = [[(p, 0.0), (p, 1.0)] for p in range(axes + 1)]
    marks = [Mark("", "pruned", "line", uprights, width=1)]
    for shade in range(SHADES):
        lowest, highest = ((SHADES - s) * len(trials) // SHADES for s in (shade + 1, shade))
        own = range(max(1, lowest), highest)
        numbers = [trials[n].number for n in own]
        marks.append(Mark("", f"ramp-{shade}", "line", [lines[n] for n in own], numbers, 1.5))
    marks.append(Mark("the best", "best", "line", [lines[0]], [trials[0].number], 3))
    return [mark for mark in marks if mark.parts]


def _cell(trial: FrozenTrial, name: str) -> str:
    return format_parameter(trial.params[name]) if name in trial.params else "–"


def together(trials: Sequence[FrozenTrial], names: Sequence[str], axis: Axis) -> Chart | str:
    """Draws the trials over the two most important parameters that occur together.

    Args:
        trials: complete trials, by number.
        names: the parameters, the most important first.
        axis: the axis of the values.

    Returns:
        The chart, or the sentence to show in its place.
    """
    found = _pair(trials, names)
    if found is None:
        return "No two parameters have been varied together in enough trials yet."
    first, second = pair = found
    common = [trial for trial in trials if all(name in trial.params for name in pair)]
    (x, left), (y, up) = (setting_scale(common, name) for name in pair)
    shown = spaced(
        [t for t in y.ticks if t.when != "narrow"], y.low, y.high, PARAMETERS_HEIGHT, upright=True
    )
    y = Scale(y.low, y.high, shown, second, y.reads)
    if x.reads == "words":
        left = [
            at + 0.4 * (0.618034 * t.number % 1 - 0.5) for at, t in zip(left, common, strict=True)
        ]
    if y.reads == "words":
        up = [at + 0.4 * (0.754878 * t.number % 1 - 0.5) for at, t in zip(up, common, strict=True)]
    ranked = sorted(common, key=lambda trial: axis.sign * (value_of(trial) or 0.0))
    ranks = {trial.number: rank for rank, trial in enumerate(ranked)}
    shades = [SHADES * ranks[trial.number] // len(common) for trial in common]
    marks = _shaded([*zip(left, up, strict=True)], common, shades, 10)
    rows = [
        (t.number, _cell(t, first), _cell(t, second), format_value(value_of(t) or 0.0))
        for t in ranked[::-1][:20]
    ]
    note = f"The best {len(rows)} of {len(common)}."
    table = Table(("trial", first, second, axis.metric), rows, words=(1, 2), note=note)
    label = f"{len(common)} complete trials over {first} and {second}, the better the bluer"
    return Chart(label, PARAMETERS_HEIGHT, x, y, marks, table)


def _pair(trials: Sequence[FrozenTrial], names: Sequence[str]) -> tuple[str, str] | None:
    """Returns the two parameters to draw: the first pair of numbers, or else of anything."""
    pairs: list[tuple[int, int, tuple[str, str]]] = []
    for pair in itertools.combinations(names, 2):
        common = [trial.params for trial in trials if all(name in trial.params for name in pair)]
        if len(common) >= ENOUGH and all(len({str(p[n]) for p in common}) > 1 for n in pair):
            words = sum(isinstance(common[0][name], str | bool) for name in pair)
            pairs.append((words, len(pairs), pair))
    return min(pairs)[-1] if pairs else None


ROW, BAR = 44, 0.32  # pixels of a bar with its label above it, and the bar's share of them
BAR_KINDS = ("complete", "pruned", "failed", "paused", "running")
TIME_LABELS = 5  # of the axis

Span = tuple[FrozenTrial, datetime, datetime]  # a trial, its start and its end


def timeline(trials: Sequence[FrozenTrial], alive: Collection[int]) -> Chart | str:
    """Draws a row for each worker, with a bar for each trial that began there.

    Args:
        trials: all trials of the study.
        alive: the ids of the trials that a worker trains now. Their bars end now; those of other
            unfinished trials end at the last moment that any trial stored.

    Returns:
        The chart, or the sentence to show in its place.
    """
    rows = _spans_by_worker(trials, alive)
    if not rows:
        return "No trial has begun yet."
    names = sorted(rows, reverse=True)  # rows are drawn from the bottom up
    first = min(start for row in rows.values() for _, start, _ in row)
    last = max(end for row in rows.values() for *_, end in row)

    def at(moment: datetime) -> float:
        return (moment - first).total_seconds()

    marks = []
    for kind in BAR_KINDS:
        bars = [
            (trial.number, [(at(start), row), (at(end), row)])
            for row, name in enumerate(names)
            for trial, start, end in rows[name]
            if outcome(trial) == kind
        ]
        parts, numbers = [part for _, part in bars], [number for number, _ in bars]
        marks.append(Mark(kind, kind, "bar", parts, numbers, BAR))
    idle = {name: idle_share([(start, end) for _, start, end in rows[name]]) for name in names}
    notes = [
        Note(0, row + BAR + 0.02, f"{shorten(name, 32)} · {100 * idle[name]:.1f} % idle", "above")
        for row, name in enumerate(names)
    ]
    table = Table(
        ("worker", "trials", "trained for", "idle"),
        [
            (name, len(rows[name]), _trained(rows[name]), f"{100 * idle[name]:.1f} %")
            for name in reversed(names)
        ],
        words=(0,),
    )
    x = _time_scale(first, last)
    y = Scale(-0.12, len(names) - 0.12, reads="none")
    shown = [mark for mark in marks if mark.parts]
    label = f"when each of {len(names)} workers trained which trial"
    return Chart(label, ROW * len(names) + 8, x, y, shown, table, notes)


def _trained(spans: Sequence[Span]) -> str:
    return format_duration(sum((end - start).total_seconds() for _, start, end in spans))


def _time_scale(first: datetime, last: datetime) -> Scale:
    """Returns the axis of seconds since the first start, labelled with the time of the day."""
    length = max((last - first).total_seconds(), 1.0)
    ends = 0.0, length
    pattern = "%H:%M:%S" if length < 600 else "%H:%M" if length < 86400 else "%d %b %H:%M"
    ticks = []
    for part in range(TIME_LABELS + 1):
        at = length * part / TIME_LABELS
        ticks.append(Tick(at, (first + timedelta(seconds=at)).strftime(pattern)))
    return Scale(*ends, responsive(ticks, *ends), "", "none")


def _spans_by_worker(
    trials: Sequence[FrozenTrial], alive: Collection[int]
) -> dict[str, list[Span]]:
    started = [trial for trial in trials if trial.datetime_start is not None]
    moments = [moment for t in started for moment in (t.datetime_start, t.datetime_complete)]
    latest = max((moment for moment in moments if moment is not None), default=datetime.min)
    rows: dict[str, list[Span]] = {}
    for trial in started:
        start = trial.datetime_start or latest
        now = max(datetime.now(), start) if trial._trial_id in alive else latest
        worker = str(trial.user_attrs.get(WORKER, "unknown worker"))
        end = trial.datetime_complete or now
        if RUNGS in trial.user_attrs:  # without its pauses
            worked = timedelta(seconds=sum(trial.user_attrs.get(TIMES, {}).values()))
            end = min(end, start + worked) if worked else end
        rows.setdefault(worker, []).append((trial, start, end))
    return rows


def idle_share(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """Computes the share of time without a trial, between the first start and the last end.

    Args:
        spans: start and end of each trial; they may overlap.

    Returns:
        A number from 0 to 1.
    """
    first = until = min(start for start, _ in spans)
    busy = 0.0
    for start, end in sorted(spans):
        busy += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    total = (until - first).total_seconds()
    return 1 - busy / total if total else 0.0


OUTLOOK_TITLE = "What further trials may gain"
FACTORS = 1000  # between the largest gain and the smallest that is drawn
OUTLOOK_HEIGHT = 240
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
        return OUTLOOK_TITLE, "", "With several objectives, no single number says what trials gain."
    values = ended_values(read_outcomes(stored))
    known = [
        (count, gain) for count, gain in enumerate(gains(values, now.trials), 1) if gain is not None
    ]
    if not known:
        return OUTLOOK_TITLE, "", "Too few trials have ended to tell what further ones gain."
    largest = max(gain for _, gain in known)
    if not largest:
        return OUTLOOK_TITLE, "", "No trial has been better than another one yet."
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
    y = _gain_scale(drawn, f"gain in {stored.metric}")
    return (
        OUTLOOK_TITLE,
        outlook_caption(known[-1], stored.metric, now),
        Chart(label, OUTLOOK_HEIGHT, x, y, marks, table),
    )


def _gain_scale(heights: list[float], title: str) -> Scale:
    low, high = min(heights), max(heights)
    margin = 0.06 * (high - low) or 0.1
    ends = low - margin, high + margin
    ticks = [Tick(math.log10(mark), f"{mark:.3g}") for mark in log_marks(10**low, 10**high)]
    return Scale(*ends, spaced(ticks, *ends, OUTLOOK_HEIGHT, upright=True), title, "tens")


def outlook_caption(last: tuple[int, float], metric: str, now: Outlook) -> str:
    """Words the last estimate, and how it was made."""
    count, gain = last
    words = (
        f"What the trials that were left of the budget of {now.trials} were expected to gain "
        "together, after each trial, told by how close the best ones are to each other. "
        f"After {count} trials it was {format_value(gain)} {metric}"
    )
    below = "" if now.regret is None else f"; the search ends below {now.regret:g}"
    return f"{words}{below}."


EXAMPLE_ROWS = 40  # of the table
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
        for number, (told, came) in enumerate(pairs[:EXAMPLE_ROWS])
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


CALIBRATION_HEIGHT = 320
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
    y = plain_scale([0.0, 1.0], "accuracy", upright=True, height=CALIBRATION_HEIGHT)
    label = f"the accuracy of {len(bins)} bins of confidence"
    return Chart(label, CALIBRATION_HEIGHT, x, y, marks, Table(head, rows, words=(0,)))
