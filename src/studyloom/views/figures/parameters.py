"""Figures of parameters: each against the value, several together, and two at a time."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from studyloom.study.stored_study import value_of
from studyloom.text import format_parameter, format_value, one_line, shorten
from studyloom.views.figures.axes import Axis
from studyloom.views.figures.chart import (
    SIZE,
    Chart,
    Mark,
    Multiples,
    Note,
    Point,
    Scale,
    Table,
    Tick,
    log_scale,
    plain_scale,
    responsive,
    round_marks,
    spaced,
)
from studyloom.views.figures.trials import ENOUGH, NO_PARAMETERS, label_of, summary

MOST_AXES = 8  # parallel ones; more cannot be told apart
SHADES = 5  # of a ramp from grey to blue
SMALL, HEIGHT = 170, 360  # pixels
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
        choices = list(dict.fromkeys(sorted(settings, key=_order)))
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


def _order(setting: object) -> tuple[str, float, str]:
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
    value_axis = axis.scale_of(values, HEIGHT)
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
    return Chart(label, HEIGHT, x, Scale(-0.02, 1.04, reads="none"), marks, table, notes, "wide")


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
    shown = spaced([t for t in y.ticks if t.when != "narrow"], y.low, y.high, HEIGHT, upright=True)
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
    return Chart(label, HEIGHT, x, y, marks, table)


def _pair(trials: Sequence[FrozenTrial], names: Sequence[str]) -> tuple[str, str] | None:
    """Returns the two parameters to draw: the first pair of numbers, or else of anything."""
    pairs: list[tuple[int, int, tuple[str, str]]] = []
    for pair in itertools.combinations(names, 2):
        common = [trial.params for trial in trials if all(name in trial.params for name in pair)]
        if len(common) >= ENOUGH and all(len({str(p[n]) for p in common}) > 1 for n in pair):
            words = sum(isinstance(common[0][name], str | bool) for name in pair)
            pairs.append((words, len(pairs), pair))
    return min(pairs)[-1] if pairs else None
