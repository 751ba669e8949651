"""The figure of parallel coordinates: an upright axis for each hyperparameter, a line for a trial.

All axes have the same length, so that a value is drawn at its share of the range of its axis. The
last axis is the metric. A trial without a hyperparameter passes below that axis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from studyloom.text import shorten
from studyloom.views import axes, charts
from studyloom.views.drawn_settings import GOLDEN, make_setting_axis, spread_choices, tabulate_best
from studyloom.views.drawn_trials import SHADES, choose_shade, select_drawn
from studyloom.views.plain_names import name_plainly
from studyloom.views.trial_values import complete_trials, last_values

HEIGHT = 360  # pixels
MOST_AXES = 8  # of hyperparameters; more are too narrow for their names
LEAST_TRIALS = 3  # with a value
NOT_USED = -0.09  # where a trial passes an axis whose hyperparameter it lacks
LABELS = 12  # choices of an axis that have a label, at most
LABEL_LENGTH = 14  # letters
TITLE_LENGTH = 20  # letters of an axis' name
SHORT_FROM = 0.01  # smaller numbers are written with an exponent
CHOICE_SPACE = 0.35  # of the distance of two choices, over which the trials of one are spread
NOTHING = f"No {LEAST_TRIALS} trials have a value and varied hyperparameters yet."


@dataclass(frozen=True)
class UprightAxis:
    """An axis of the figure.

    Args:
        title: its name, below it.
        labels: texts beside it, by their share of its length from the bottom.
        shares: where each trial is drawn, by number: a share of its length.
    """

    title: str
    labels: Mapping[float, str]
    shares: Mapping[int, float]


def draw_parallel(
    trials: Sequence[FrozenTrial], names: Sequence[str], best: FrozenTrial | None, axis: axes.Axis
) -> charts.Chart | str:
    """Draws a line for each trial through its hyperparameters to its last value.

    The better a complete trial, the bluer its line; trials that ended early are gray. Of many
    trials the best and the latest are drawn.

    Args:
        trials: by number.
        names: the hyperparameters that varied, the most important one first.
        best: the trial with the thick line.
    """
    values = last_values(trials)
    drawn_numbers = select_drawn(values, axis.sign)
    drawn = [trial for trial in trials if trial.number in drawn_numbers]
    used_names: set[str] = set()
    for trial in drawn:
        used_names.update(trial.params)
    drawn_names = [name for name in names if name in used_names]
    if len(drawn) < LEAST_TRIALS or not drawn_names:
        return NOTHING
    shown_names = drawn_names[:MOST_AXES]
    titles = name_plainly(shown_names)
    uprights = []
    for name in shown_names:
        uprights.append(_make_parameter_axis(drawn, name, titles[name]))
    drawn_values = {}
    for trial in drawn:
        drawn_values[trial.number] = values[trial.number]
    uprights.append(_make_metric_axis(drawn_values, axis))
    lines = {}
    for trial in drawn:
        lines[trial.number] = _make_line(uprights, trial.number)
    marks = []
    for place in range(len(uprights)):
        marks.append(charts.make_dotted_line([(place, 0), (place, 1)], color=charts.GRAY))
    marks += _mark_lines(drawn, lines, values, best, axis)
    notes = []
    for place, upright in enumerate(uprights):
        for share, label in upright.labels.items():
            notes.append(charts.Note(place, share, label))
    ticks = []
    for place, upright in enumerate(uprights):
        ticks.append(axes.Tick(place, shorten(upright.title, TITLE_LENGTH)))
    x = axes.ChartScale(-0.5, len(uprights) - 0.5, ticks, kind="none")
    y = axes.ChartScale(NOT_USED - 0.03, 1.05, kind="none")
    label = f"{len(drawn)} trials through {len(shown_names)} hyperparameters to {axis.metric}"
    best_first = sorted(drawn, key=lambda trial: -axis.sign * values[trial.number])
    table = tabulate_best(best_first, shown_names, values, axis.metric)
    return charts.Chart(label, HEIGHT, x, y, marks, table, notes, kind="parallel")


def _make_parameter_axis(trials: Sequence[FrozenTrial], name: str, title: str) -> UprightAxis:
    """Returns the axis of a hyperparameter: of choices, or of numbers as its range has them."""
    members = [trial for trial in trials if name in trial.params]
    setting_axis = make_setting_axis(members, name)
    scale = setting_axis.scale
    coordinates = spread_choices(setting_axis, members, step=GOLDEN, width=CHOICE_SPACE)
    low = min(setting_axis.coordinates)
    high = max(setting_axis.coordinates)
    if scale.kind == "choices":
        low = scale.low
        high = scale.high
    shares = {}
    for trial, coordinate in zip(members, coordinates, strict=True):
        shares[trial.number] = _find_share(coordinate, low, high)
    labels = {}
    if scale.kind == "choices":
        for position, choice in enumerate(scale.choices[:LABELS]):
            labels[_find_share(position, low, high)] = shorten(choice, LABEL_LENGTH)
    else:
        settings = [trial.params[name] for trial in members]
        for share, setting in ((0.0, min(settings)), (1.0, max(settings))):
            labels[share] = _format_end(setting)
    return UprightAxis(title, labels, shares)


def _make_metric_axis(values: Mapping[int, float], axis: axes.Axis) -> UprightAxis:
    """Returns the axis of the metric, without values far worse than the others."""
    near = axis.drop_outliers(values.values())
    low = min(near)
    high = max(near)
    bottom = axis.coordinate(low)
    top = axis.coordinate(high)
    shares = {}
    for number, value in values.items():
        share = _find_share(axis.coordinate(value), bottom, top)
        shares[number] = min(max(share, 0.0), 1.0)
    labels = {0.0: _format_end(low), 1.0: _format_end(high)}
    return UprightAxis(axis.metric, labels, shares)


def _format_end(number: float) -> str:
    """Formats the number at an end of an axis in so few letters that a phone shows it: 1.5e-4."""
    if number == 0 or abs(number) >= SHORT_FROM:
        return f"{number:.3g}"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _find_share(coordinate: float, low: float, high: float) -> float:
    """Returns the share of an axis at which a coordinate lies; the middle if it has no length."""
    if high == low:
        return 0.5
    return (coordinate - low) / (high - low)


def _make_line(uprights: Sequence[UprightAxis], number: int) -> list[charts.Point]:
    """Returns the line of a trial through all axes."""
    line: list[charts.Point] = []
    for place, upright in enumerate(uprights):
        line.append((place, upright.shares.get(number, NOT_USED)))
    return line


def _mark_lines(
    trials: Sequence[FrozenTrial],
    lines: Mapping[int, Sequence[charts.Point]],
    values: Mapping[int, float],
    best: FrozenTrial | None,
    axis: axes.Axis,
) -> list[charts.Mark]:
    """Returns the lines of trials that ended early, then a mark for each shade of the others."""
    complete = complete_trials(trials)
    worst_first = sorted(complete, key=lambda trial: axis.sign * values[trial.number])
    early = [trial.number for trial in trials if trial not in complete]
    marks = [_mark_trials("ended early", charts.GRAY, early, lines, width=1.0)]
    for shade in range(SHADES):
        members = []
        for rank, trial in enumerate(worst_first):
            if choose_shade(rank, len(worst_first)) == shade:
                members.append(trial.number)
        marks.append(_mark_trials("", f"ramp-{shade}", members, lines, width=1.5))
    if best is not None and best.number in lines:
        marks.append(_mark_trials("best", "best", [best.number], lines, width=3.0))
    return charts.without_empty(marks)


def _mark_trials(
    name: str,
    color: str,
    numbers: Sequence[int],
    lines: Mapping[int, Sequence[charts.Point]],
    width: float,
) -> charts.Mark:
    """Returns the lines of some trials as a mark of one color."""
    parts = [lines[number] for number in numbers]
    return charts.Mark(name, color, "line", parts, numbers, width=width, style=("faint",))
