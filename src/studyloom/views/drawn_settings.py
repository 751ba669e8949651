"""Settings of hyperparameters in figures: on an axis, in labels and in a table."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from studyloom.text import format_parameter, format_value, shorten, write_minus
from studyloom.views import axes, charts

ENOUGH = 3  # trials with a value that must have a hyperparameter before it is drawn
BEST_ROWS = 20  # of a table of the best trials
MOST_CHOICES = 5  # of a number, each has a label
LETTERS = 24  # in the labels of all choices together, on a small chart
# Multiples of these irrational numbers, modulo 1, are spread evenly over 0 to 1, however many
# there are. Two axes take different ones; with the same, dots of two choices would lie on a
# diagonal.
GOLDEN = 0.618034
PLASTIC = 0.754878


def label_setting(setting: object, length: int = 24) -> str:
    """Formats a setting for a label of at most `length` letters."""
    return shorten(format_parameter(setting), length)


def is_number(setting: object) -> bool:
    """Returns whether a setting is a number, which True and False are not."""
    return isinstance(setting, int | float) and not isinstance(setting, bool)


def setting_sort_key(setting: object) -> tuple[str, float, str]:
    """Returns a key that sorts numbers by size, and other settings after them by type and name."""
    if isinstance(setting, int | float):
        return "", float(setting), str(setting)
    return type(setting).__name__, 0.0, str(setting)


@dataclass(frozen=True)
class SettingAxis:
    """The axis of a hyperparameter, and the coordinate of each trial on it."""

    scale: axes.ChartScale
    coordinates: Sequence[float]


def make_setting_axis(
    trials: Sequence[FrozenTrial], name: str, pixels: float | None = None
) -> SettingAxis:
    """Returns the horizontal axis of a hyperparameter, which has choices at 0, 1 and so on.

    Args:
        trials: at least one; all have the hyperparameter.
        pixels: the length of the axis, if it is the same on a phone and on a wide screen.
    """
    settings = [trial.params[name] for trial in trials]
    distribution = trials[0].distributions[name]
    if isinstance(distribution, CategoricalDistribution) or not all(map(is_number, settings)):
        return _make_choice_axis(settings, name, pixels)
    is_logarithmic = False
    has_step = False
    if isinstance(distribution, IntDistribution | FloatDistribution):
        is_logarithmic = distribution.log and min(settings) > 0
        has_step = distribution.step is not None
    is_whole = all(isinstance(setting, int) for setting in settings)
    to_coordinate: Callable[[float], float]
    if is_logarithmic:
        to_coordinate = math.log10
        scale = axes.make_log_scale(settings, name, pixels)
    else:
        to_coordinate = float
        scale = axes.make_linear_scale(settings, name)

    # The labels. Without numbers to label, those of the scale stay.
    distinct = _distinct_settings(settings)
    numbers: Sequence[float] = []
    if (is_whole or has_step) and len(distinct) <= MOST_CHOICES:
        numbers = distinct
    elif not is_logarithmic:
        numbers = _choose_numbers(settings, pixels, is_whole=is_whole)
    if numbers:
        format_spec = ".4g"  # short enough for a small chart: a million is 1e+06
        if is_whole and pixels is None:
            format_spec = ".0f"  # a large chart has space for all digits of an integer
        ticks = [
            axes.Tick(to_coordinate(number), write_minus(format(number, format_spec)))
            for number in numbers
        ]
        scale = replace(scale, ticks=axes.fit_labels(ticks, scale.low, scale.high, pixels))
    if is_whole and not is_logarithmic:
        scale = replace(scale, kind="whole")
    return SettingAxis(scale, [to_coordinate(setting) for setting in settings])


def _distinct_settings(settings: Sequence[float]) -> list[float]:
    """Returns each setting once, in ascending order."""
    return list(dict.fromkeys(sorted(settings, key=setting_sort_key)))


def _choose_numbers(
    settings: Sequence[float], pixels: float | None, *, is_whole: bool
) -> list[float]:
    """Returns the round numbers that the axis of a hyperparameter labels; few on a small chart.

    The list is empty for a large chart of floats, whose axis keeps its usual labels.

    Args:
        pixels: the length of a small chart's axis; None for a large chart.
        is_whole: whether all settings are integers, and so must be the labels.
    """
    count = 5
    if pixels is not None:
        count = 3
    numbers = axes.choose_round_numbers(min(settings), max(settings), count)
    if is_whole:
        return [number for number in numbers if number % 1 == 0]
    if pixels is None:
        return []
    return numbers


def _make_choice_axis(settings: Sequence[object], name: str, pixels: float | None) -> SettingAxis:
    """Returns an axis with choices at 0, 1 and so on; the more, the shorter their labels.

    Args:
        settings: the choice of each trial.
        pixels: the length of the axis, if it is a small chart's.
    """
    choices = list(dict.fromkeys(sorted(settings, key=setting_sort_key)))  # without repetitions
    letters = 4 * LETTERS  # as many fit on the axis of a large chart
    if pixels is not None:
        letters = LETTERS
    letters_per_choice = letters // len(choices)
    longest_label = max(3, letters_per_choice - 1)  # one letter is the gap between two labels
    ticks = []
    for position, choice in enumerate(choices):
        ticks.append(axes.Tick(position, label_setting(choice, longest_label)))
    low = -0.5
    high = len(choices) - 0.5
    scale = axes.ChartScale(
        low,
        high,
        axes.fit_labels(ticks, low, high, pixels),
        title=name,
        kind="choices",
        choices=[label_setting(choice) for choice in choices],
    )
    positions = {choice: float(position) for position, choice in enumerate(choices)}
    return SettingAxis(scale, [positions[setting] for setting in settings])


def spread_choices(
    axis: SettingAxis, trials: Sequence[FrozenTrial], step: float, width: float
) -> Sequence[float]:
    """Returns the coordinates of trials; on an axis of choices, those of one choice side by side.

    Their dots would otherwise hide each other. On an axis of numbers, trials keep their
    coordinates.

    Args:
        step: GOLDEN, or PLASTIC for a second axis: irrational numbers, whose multiples modulo 1 are
            spread evenly over 0 to 1. Trial n is drawn at the share n × `step`, modulo 1, of the
            space of its choice.
        width: the width of the space that a choice has; choices are at 0, 1 and so on.
    """
    if axis.scale.kind != "choices":
        return axis.coordinates
    spread = []
    for coordinate, trial in zip(axis.coordinates, trials, strict=True):
        share = step * trial.number % 1
        spread.append(coordinate + width * (share - 0.5))
    return spread


def tabulate_best(
    best_first: Sequence[FrozenTrial],
    names: Sequence[str],
    values: Mapping[int, float],
    metric: str,
) -> charts.PageTable:
    """Returns the table of the best trials with their settings of some hyperparameters.

    Args:
        names: the hyperparameters.
        values: the values by which the trials are compared, by number.
    """
    rows = []
    for trial in best_first[:BEST_ROWS]:
        settings = [_format_setting(trial, name) for name in names]
        rows.append((trial.number, *settings, format_value(values[trial.number])))
    note = f"The best {len(rows)} of {len(best_first)}."
    head = ("trial", *names, metric)
    return charts.PageTable(head, rows, text_columns=range(1, len(names) + 1), note=note)


def _format_setting(trial: FrozenTrial, name: str) -> str:
    """Formats a trial's setting of a hyperparameter; a dash if the trial has none."""
    if name not in trial.params:
        return "–"
    return format_parameter(trial.params[name])
