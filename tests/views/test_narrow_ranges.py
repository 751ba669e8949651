"""Ranges that are too narrow: the best trials lie at an end of a hyperparameter that matters."""

import math

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from studyloom.views.importances import Importances
from studyloom.views.narrow_ranges import find_narrow_range, rank_by_progress, widen

RATE = FloatDistribution(1e-4, 1e-2, log=True)
MATTERS = Importances({"lr": 1.0}, compared=40, outstanding=frozenset(["lr"]))


def trials_at(places, distribution=RATE, losses=None):
    """Complete trials with learning rates at places from 0 to 1; the first ones are the best."""
    trials = []
    for number, place in enumerate(places):
        rate = 10 ** (-4 + 2 * place)
        trial = create_trial(value=number, params={"lr": rate}, distributions={"lr": distribution})
        trial.number = number
        trials.append(trial)
    return trials


def spread(count):
    """Places all over the range, but for its ends."""
    return [0.15 + 0.7 * number / count for number in range(count)]


def test_a_range_is_too_narrow_if_the_best_and_many_others_lie_at_its_end():
    found = find_narrow_range(trials_at([0.95] * 4 + spread(30) + [0.99] * 6), -1, MATTERS)
    assert found is not None
    assert (found.name, found.end, found.trials) == ("lr", "high", 40)
    assert (found.at_end, found.best_at_end) == (10, 4)
    assert found.wider == FloatDistribution(1e-4, 0.1, log=True)


@pytest.mark.parametrize(
    "places",
    [
        [0.95] * 3 + spread(30) + [0.99] * 7,  # three of the best five
        [0.95] * 4 + spread(36),  # the sampler is elsewhere
        [0.95] * 2 + [0.05] * 2 + spread(26) + [0.95] * 10,  # at both ends
        [0.95] * 10 + spread(9),  # nineteen trials
    ],
)
def test_a_range_is_wide_enough_otherwise(places):
    assert find_narrow_range(trials_at(places), -1, MATTERS) is None


def test_a_hyperparameter_that_may_matter_by_chance_has_no_narrow_range():
    trials = trials_at([0.95] * 4 + spread(30) + [0.99] * 6)
    chance = Importances({"lr": 1.0}, compared=40)
    assert find_narrow_range(trials, -1, chance) is None
    assert find_narrow_range([], -1, MATTERS) is None


def test_choices_and_few_integers_have_no_ends():
    for distribution in (CategoricalDistribution([1, 2, 3]), IntDistribution(1, 3)):
        trials = []
        for number in range(40):
            trial = create_trial(value=number, params={"lr": 3}, distributions={"lr": distribution})
            trials.append(trial)
        assert find_narrow_range(trials, -1, MATTERS) is None


def test_a_trial_that_ends_with_nan_comes_after_others():
    values = [math.nan, 0.2, math.nan, 0.3, math.nan, 0.1]
    trials = []
    for number, value in enumerate(values):
        trial = create_trial(state=TrialState.PRUNED, intermediate_values={1: value})
        trial.number = number
        trials.append(trial)
    assert [trial.number for trial in rank_by_progress(trials, 1)][:3] == [3, 1, 5]
    assert [trial.number for trial in rank_by_progress(trials, -1)][:3] == [5, 1, 3]


def test_complete_trials_come_first_then_those_at_the_last_rung():
    def pruned(number, *values):
        trial = create_trial(
            state=TrialState.PRUNED, intermediate_values=dict(enumerate(values, 1))
        )
        trial.number = number
        return trial

    complete = create_trial(value=0.5)
    complete.number = 0
    trials = [pruned(1, 0.9), pruned(2, 0.8), pruned(3, 0.2, 0.3), complete, pruned(4)]
    assert [trial.number for trial in rank_by_progress(trials, 1)] == [0, 3, 1, 2]


@pytest.mark.parametrize(
    ("distribution", "end", "wider"),
    [
        (RATE, "high", FloatDistribution(1e-4, 0.1, log=True)),
        (RATE, "low", FloatDistribution(1e-5, 1e-2, log=True)),
        (FloatDistribution(0.0, 0.5), "low", None),  # such as a dropout
        (FloatDistribution(0.0, 0.5), "high", FloatDistribution(0.0, 0.75)),
        (FloatDistribution(0.0, 0.99), "high", None),  # such as a momentum
        (FloatDistribution(0.1, 2.1), "low", FloatDistribution(0.0, 2.1)),
        (FloatDistribution(-1.0, 1.0), "low", FloatDistribution(-2.0, 1.0)),
        (FloatDistribution(0.0, 5.0, step=0.5), "high", FloatDistribution(0.0, 7.5, step=0.5)),
        (FloatDistribution(0.05, 0.85, step=0.1), "high", None),  # the next step is beyond 0.9
        (FloatDistribution(0.05, 0.85, step=0.1), "low", None),
        (FloatDistribution(0.2, 0.7, step=0.1), "high", FloatDistribution(0.2, 0.9, step=0.1)),
        (FloatDistribution(0.2, 0.7, step=0.1), "low", FloatDistribution(0.0, 0.7, step=0.1)),
        (FloatDistribution(1e7, 1e7 + 1), "high", FloatDistribution(1e7, 1e7 + 1.5)),
        (IntDistribution(4, 256, log=True), "high", IntDistribution(4, 1024, log=True)),
        (IntDistribution(4, 256, log=True), "low", IntDistribution(1, 256, log=True)),
        (IntDistribution(1, 20), "low", None),
        (IntDistribution(1, 20), "high", IntDistribution(1, 30)),
        (IntDistribution(3, 20), "low", IntDistribution(1, 20)),
        (IntDistribution(-9, 9), "low", IntDistribution(-18, 9)),
    ],
)
def test_a_wider_range_reads_as_one_would_write_it(distribution, end, wider):
    assert widen(distribution, end) == wider
