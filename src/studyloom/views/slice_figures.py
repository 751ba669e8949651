"""Slices: the values of trials over each hyperparameter, as small charts with one vertical axis."""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from optuna.trial import FrozenTrial

from studyloom.text import format_value
from studyloom.views import axes, charts
from studyloom.views.drawn_settings import (
    ENOUGH,
    GOLDEN,
    is_number,
    label_setting,
    make_setting_axis,
    setting_sort_key,
    spread_choices,
)
from studyloom.views.drawn_trials import (
    choose_shade,
    mark_shades,
    remove_points,
    select_drawn,
    select_points,
)
from studyloom.views.trial_values import complete_trials, ended_early, last_values, metric_value

NO_PARAMETERS = f"No hyperparameter has had different values in {ENOUGH} trials with a value yet."
BINS = 4  # of a hyperparameter's settings, in the table behind its figure
SMALL = 170  # pixels of the height of a small chart
PHONE = 124  # pixels of a small chart's axis on a phone, where two share a row


@dataclass(frozen=True)
class _SliceValues:
    """The values of trials, on the vertical axis that all slices share.

    Args:
        coordinates: where each trial is on the axis, by number.
        early: the trials that ended early, by outcome.
        within_axis: the trials that lie within the axis; the others are strokes at its end.
    """

    y: axes.ChartScale
    coordinates: Mapping[int, float]
    early: Mapping[str, Collection[int]]
    within_axis: Collection[int]


def draw_slices(
    trials: Sequence[FrozenTrial], names: Sequence[str], best: FrozenTrial | None, axis: axes.Axis
) -> charts.Multiples | str:
    """Draws the value of each trial over each hyperparameter; the last value if it ended early.

    Of many trials that have a hyperparameter, its best and its latest are drawn. The axes and the
    tables are those of all.

    The axis covers the range of the complete trials, and those that ended early with a value near
    it: at most the length of this range above or below it. Trials further away are strokes at the
    end of the axis.
    """
    if not names:
        return NO_PARAMETERS
    shared = _place_slice_values(trials, axis)
    values = last_values(trials)
    charts_by_name = {}
    for name in names:
        members = []
        for trial in trials:
            if trial.number in shared.coordinates and name in trial.params:
                members.append(trial)
        last_number = trials[-1].number
        if members:  # else no trial with a value has it
            values_of_members = {trial.number: values[trial.number] for trial in members}
            drawn_numbers = select_drawn(values_of_members, axis.sign)
            if best is not None:
                drawn_numbers.add(best.number)
            chart = _draw_slice(members, drawn_numbers, name, shared, best, axis, last_number)
            charts_by_name[name] = chart
    return charts.Multiples(charts_by_name)


def _place_slice_values(trials: Sequence[FrozenTrial], axis: axes.Axis) -> _SliceValues:
    """Returns the vertical axis of all slices, and where each trial with a value is on it.

    The axis covers the range of the complete trials, and those that ended early with a value near
    it: at most the length of this range above or below it. The others are put at an end of the
    axis. Before any trial is complete it covers all.
    """
    early = ended_early(trials)  # the last values of trials that were pruned or are paused
    values = {trial.number: metric_value(trial) for trial in complete_trials(trials)}
    bottom = 0.0
    reach = 0.0  # a value is near if it lies at most so far above or below
    if values:
        bottom = axis.coordinate(min(values.values()))
        reach = axis.coordinate(max(values.values())) - bottom
    top = bottom + reach
    if reach == 0:  # no complete trials differ in their value: every trial is within the axis
        reach = math.inf
    for last_values_of_outcome in early.values():
        values |= last_values_of_outcome
    within_axis = set()
    for number, value in values.items():
        if bottom - reach <= axis.coordinate(value) <= top + reach:
            within_axis.add(number)
    y = axis.make_scale([values[number] for number in within_axis], SMALL)
    coordinates = {number: y.clip(axis.coordinate(value)) for number, value in values.items()}
    return _SliceValues(y, coordinates, early, within_axis)


def _draw_slice(
    trials: Sequence[FrozenTrial],
    drawn_numbers: Collection[int],
    name: str,
    shared: _SliceValues,
    best: FrozenTrial | None,
    axis: axes.Axis,
    last_number: int,
) -> charts.Chart:
    """Draws trials over one hyperparameter: the later a trial began, the bluer its dot.

    Args:
        trials: those that have the hyperparameter and a value.
        drawn_numbers: the numbers of the trials that are drawn, if they are among `trials`.
        best: the trial that gets a ring.
        last_number: the number of the study's last trial.
    """
    setting_axis = make_setting_axis(trials, name, PHONE)
    # Trials of one choice are drawn side by side; multiples of GOLDEN spread them evenly.
    x_coordinates = spread_choices(setting_axis, trials, step=GOLDEN, width=0.5)
    points: dict[int, charts.Point] = {}
    for trial, coordinate in zip(trials, x_coordinates, strict=True):
        if trial.number in drawn_numbers:
            points[trial.number] = (coordinate, shared.coordinates[trial.number])
    ended_early_numbers = set[int]().union(*shared.early.values())
    complete_points = remove_points(points, ended_early_numbers)
    trial_count = last_number + 1
    shades = {number: choose_shade(number, trial_count) for number in complete_points}
    marks = _mark_ended_early(points, shared.early, shared.within_axis)
    marks += mark_shades(complete_points, shades, width=7)
    if best is not None and best.number in points:
        ring = select_points(points, [best.number])
        marks.append(charts.make_trial_dots(ring, color="best", width=12, shape="ring"))
    label = f"{axis.metric} over {name}, of {len(complete_points)} complete trials"
    early_count = len(points) - len(complete_points)
    if early_count:
        label += f" and {early_count} that ended early"
    table = summarize_settings(complete_trials(trials), name, axis.sign)
    return charts.Chart(label, SMALL, setting_axis.scale, shared.y, marks, table)


def _mark_ended_early(
    points: Mapping[int, charts.Point],
    early: Mapping[str, Collection[int]],
    within_axis: Collection[int],
) -> list[charts.Mark]:
    """Returns a square for each trial that ended early, or a stroke if it lies beyond the axis.

    Args:
        points: the coordinates of all trials, by number.
        early: the trials that ended early, by outcome.
        within_axis: the trials that lie within the axis.
    """
    marks = []
    for outcome, numbers in early.items():
        members = select_points(points, numbers)
        squares = select_points(members, within_axis)
        strokes = remove_points(members, within_axis)
        marks.append(charts.make_trial_dots(squares, color=outcome, width=5, shape="square"))
        marks.append(charts.make_trial_dots(strokes, color=outcome, width=2, shape="rug"))
    return charts.without_empty(marks)


def summarize_settings(trials: Sequence[FrozenTrial], name: str, sign: int) -> charts.PageTable:
    """Returns a table of a hyperparameter's settings: how many trials, and their values.

    Many different numbers are divided into four ranges with as many trials each.

    Args:
        trials: complete trials that have the hyperparameter.
        sign: 1 if more is better, -1 if less is.
    """
    rows = []
    for label, members in _group_by_setting(trials, name):
        values = sorted(map(metric_value, members), key=lambda value: -sign * value)
        best = values[0]
        rows.append((label, len(members), format_value(best), format_value(median(values))))
    return charts.PageTable((name, "complete trials", "best", "median"), rows, text_columns=(0,))


def _group_by_setting(
    trials: Sequence[FrozenTrial], name: str
) -> Iterator[tuple[str, Sequence[FrozenTrial]]]:
    """Yields each setting of a hyperparameter as a label, and the trials that have it.

    Yields BINS ranges instead, with as many trials each, if there are many different numbers.
    """
    ordered = sorted(trials, key=lambda trial: setting_sort_key(trial.params[name]))
    settings = list(dict.fromkeys(trial.params[name] for trial in ordered))  # without repetitions
    has_many_numbers = len(settings) > 2 * BINS and all(map(is_number, settings))
    if not has_many_numbers:
        for setting in settings:
            trials_with_setting = [trial for trial in trials if trial.params[name] == setting]
            yield label_setting(setting, 60), trials_with_setting
        return
    # The positions in `ordered` at which the ranges begin, and the end of the last one.
    limits = [len(ordered) * part // BINS for part in range(BINS + 1)]
    for start, end in itertools.pairwise(limits):
        members = ordered[start:end]
        lowest = label_setting(members[0].params[name])
        highest = label_setting(members[-1].params[name])
        yield f"{lowest} to {highest}", members
