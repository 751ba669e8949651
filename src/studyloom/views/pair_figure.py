"""The figure of the two most important hyperparameters that occur together."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from optuna.trial import FrozenTrial, TrialState

from studyloom.views import axes, charts
from studyloom.views.drawn_settings import (
    ENOUGH,
    GOLDEN,
    PLASTIC,
    make_setting_axis,
    spread_choices,
    tabulate_best,
)
from studyloom.views.drawn_trials import choose_shade, mark_shades, remove_points, select_points
from studyloom.views.importances import compare_values

PAIR_HEIGHT = 360  # pixels


@dataclass(frozen=True)
class _Pair:
    """Two hyperparameters, and the trials with a value that have both."""

    first: str
    second: str
    trials: list[FrozenTrial]

    @property
    def choice_count(self) -> int:
        """How many of the two are choices, and not numbers."""
        settings = self.trials[0].params
        return sum(isinstance(settings[name], str | bool) for name in (self.first, self.second))

    @property
    def is_varied(self) -> bool:
        """Returns whether enough trials have both, with different values of each."""
        if len(self.trials) < ENOUGH:
            return False
        for name in (self.first, self.second):
            if len({str(trial.params[name]) for trial in self.trials}) == 1:
                return False
        return True


def _choose_pair(trials: Sequence[FrozenTrial], names: Sequence[str]) -> _Pair | None:
    """Chooses two hyperparameters that vary together; None if there are none.

    Prefers two numbers to a number and a choice, and a number and a choice to two choices.

    Args:
        trials: those with a value.
        names: the most important hyperparameter first.
    """
    best: _Pair | None = None
    for first, second in itertools.combinations(names, 2):
        members = [trial for trial in trials if first in trial.params and second in trial.params]
        pair = _Pair(first, second, members)
        if not pair.is_varied:
            continue
        if pair.choice_count == 0:  # no later pair is preferred to two numbers
            return pair
        if best is None or pair.choice_count < best.choice_count:
            best = pair
    return best


def draw_pair(
    trials: Sequence[FrozenTrial], names: Sequence[str], axis: axes.Axis
) -> charts.Chart | str:
    """Draws trials over the two most important hyperparameters that occur together.

    The better a trial, the bluer its dot; it is a square if the trial ended early. Trials are
    compared by their values at one epoch, as for the importances.

    Args:
        names: the hyperparameters, the most important one first.
    """
    values = compare_values(trials).values
    pair = _choose_pair([trial for trial in trials if trial.number in values], names)
    if pair is None:
        return "No two hyperparameters have been varied together in enough trials yet."
    members = pair.trials
    x = make_setting_axis(members, pair.first)
    y = make_setting_axis(members, pair.second)
    # Trials with the same two choices are drawn side by side; multiples of GOLDEN and of PLASTIC
    # spread them evenly in both directions.
    x_coordinates = spread_choices(x, members, step=GOLDEN, width=0.4)
    y_coordinates = spread_choices(y, members, step=PLASTIC, width=0.4)
    points: dict[int, charts.Point] = {}
    for trial, from_left, from_bottom in zip(members, x_coordinates, y_coordinates, strict=True):
        points[trial.number] = (from_left, from_bottom)
    worst_first = sorted(members, key=lambda trial: axis.sign * values[trial.number])
    shades = {}
    for rank, trial in enumerate(worst_first):
        shades[trial.number] = choose_shade(rank, len(worst_first))
    complete = {trial.number for trial in members if trial.state == TrialState.COMPLETE}
    marks = mark_shades(remove_points(points, complete), shades, width=7, shape="square")
    marks += mark_shades(select_points(points, complete), shades, width=10)
    table = tabulate_best(worst_first[::-1], (pair.first, pair.second), values, axis.metric)
    label = f"{len(members)} trials over {pair.first} and {pair.second}, the better the bluer"
    return charts.Chart(
        label, PAIR_HEIGHT, x.scale, _turn_upright(y.scale, PAIR_HEIGHT), marks, table
    )


def _turn_upright(scale: axes.ChartScale, height: int) -> axes.ChartScale:
    """Returns a horizontal axis as a vertical one, whose labels are the same on all screens.

    Args:
        height: its length in pixels.
    """
    ticks = [tick for tick in scale.ticks if tick.when != "narrow"]
    fitting = axes.drop_overlapping(ticks, scale.low, scale.high, height, upright=True)
    return replace(scale, ticks=fitting)
