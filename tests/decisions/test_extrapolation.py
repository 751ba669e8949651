"""What samplers that learn from complete trials see of those that stopped earlier."""

import math

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from studyloom.decisions.extrapolation import Extrapolating, extrapolate
from studyloom.storage.attributes import FAILURE, PAUSED

MAXIMIZE, MINIMIZE = (StudyDirection.MAXIMIZE,), (StudyDirection.MINIMIZE,)
COMPLETE, PRUNED, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING


def trial(state, *values, steps=(1, 3, 9), **attributes):
    """A trial that has reported these values at the first steps."""
    reports = dict(zip(steps, values, strict=False))
    constraints = attributes.pop("constraints", {})
    value = values[-1] if values and state == COMPLETE else None
    made = create_trial(
        state=state,
        value=value,
        user_attrs=attributes,
        intermediate_values=reports,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
        constraints=constraints,
    )
    made.number = id(made)
    return made


def shown(trials, directions=MAXIMIZE, costs=()):
    return [
        each.values if each.state == COMPLETE else each.state
        for each in extrapolate(trials, directions, costs)
    ]


LADDER = (trial(COMPLETE, 0.2, 0.5, 0.9), trial(COMPLETE, 0.1, 0.5, 0.7))
# The gains from 1 to 3 are .3, .4 and .5, those from 3 to 9 are .4 and .2.


@pytest.mark.parametrize("sign", [1, -1], ids=["maximize", "minimize"])
def test_a_trial_that_stopped_has_its_value_at_the_end(sign):
    def make(state, *values, **attributes):
        return trial(state, *(sign * value for value in values), **attributes)

    trials = [
        *(make(COMPLETE, 0.2, 0.5, 0.9), make(COMPLETE, 0.1, 0.5, 0.7)),
        make(PRUNED, 0.3, 0.8),
        make(RUNNING, 0.4, **{PAUSED: 1}),
        make(RUNNING, 0.6, 0.7, 0.7, steps=(1, 3, 4)),  # on its way from 3 to 9
        make(RUNNING, 0.1, steps=(0,)),
        make(TrialState.FAIL, 0.9),
        make(TrialState.WAITING),
    ]
    ends = shown(trials, MAXIMIZE if sign > 0 else MINIMIZE)
    assert ends[:2] == [trials[0].values, trials[1].values]
    gains = 0.35, 0.3  # the medians of .3 .4 .5 .1, and of .4 .2
    assert ends[2] == [pytest.approx(sign * (0.8 + gains[1]))]
    assert ends[3] == [pytest.approx(sign * (0.4 + sum(gains)))]
    assert ends[4] == [pytest.approx(sign * (0.7 + gains[1]))]
    assert ends[5:] == [RUNNING, TrialState.FAIL, TrialState.WAITING]
    assert trials[2].state == PRUNED, "it is a copy that is shown"


def test_a_gain_of_a_single_trial_is_not_extrapolated():
    trials = [LADDER[0], trial(PRUNED, 0.1, 0.2), trial(PRUNED, 0.3)]
    # From 1 to 3 two have gained, .3 and .1; from 3 to 9 one.
    assert shown(trials)[1:] == [[0.2], [pytest.approx(0.3 + 0.2)]]


def test_equal_values_stay_equal():
    same = [trial(COMPLETE, 0.5, 0.5, 0.5), *(trial(PRUNED, 0.5) for _ in range(3))]
    assert shown(same) == 4 * [[0.5]]


def test_a_report_between_stops_counts_for_the_stop_before():
    loops = [trial(COMPLETE, 0.2, 0.6, steps=(2, 7)), trial(COMPLETE, 0.1, 0.3, steps=(2, 7))]
    assert shown([*loops, trial(PRUNED, 0.5, steps=(3,))])[2] == [pytest.approx(0.5 + 0.3)]


def test_a_nan_is_not_a_report():
    trials = [*LADDER, trial(PRUNED, 0.4, math.nan), trial(PRUNED, math.nan), trial(PRUNED)]
    ends = shown(trials)
    assert ends[2] == shown([*LADDER, trial(PRUNED, 0.4)])[2]
    assert ends[3:] == [PRUNED, PRUNED]


def test_failed_configurations_are_the_worst_and_show_no_gain():
    diverged = trial(PRUNED, 0.9, 0.99, constraints={"diverged": 1.0}, **{FAILURE: "diverged"})
    large = trial(PRUNED, constraints={"infeasible": 1.0}, **{FAILURE: "infeasible"})
    assert shown([*LADDER, diverged, large])[2:] == [[0.7], [0.7]]
    assert shown([*LADDER, diverged], MINIMIZE)[2] == [0.9]
    assert shown([diverged, large]) == [PRUNED, PRUNED], "nothing is known"


def test_extrapolated_trials_have_the_constraints_that_all_have():
    limited = [trial(COMPLETE, 0.2, constraints={"parameters": -5.0}) for _ in range(2)]
    large = {"parameters": 3.0, "infeasible": 1.0}
    trials = [*limited, trial(PRUNED, constraints=large, **{FAILURE: "infeasible"})]
    assert [each.constraints for each in extrapolate(trials, MAXIMIZE)] == [
        *({"parameters": -5.0}, {"parameters": -5.0}, {"parameters": 3.0})
    ]
    assert trials[2].constraints == large


def test_costs_are_not_extrapolated():
    ways, costs = (*MAXIMIZE, *MINIMIZE), ("parameters",)
    complete = [trial(COMPLETE, 0.2, 0.5, 0.9), trial(COMPLETE, 0.1, 0.5, 0.7)]
    for each, size in zip(complete, (10.0, 30.0), strict=True):
        each.values = [each.values[0], size]
    paused = trial(RUNNING, 0.4, 0.6, parameters=20, **{PAUSED: 3})
    pruned = trial(PRUNED, 0.4, 0.6, parameters=50, constraints={"pruned": 0.3})
    unknown, failed = trial(PRUNED, 0.4), trial(PRUNED, **{FAILURE: "diverged"})
    ends = shown([*complete, paused, pruned, unknown, failed], ways, costs)
    end = pytest.approx(0.9)
    assert ends == [[0.9, 10.0], [0.7, 30.0], [end, 20], [end, 50], PRUNED, [0.7, 50]]


@pytest.mark.parametrize(
    ("make", "asked", "options"),
    [
        ("GPSampler", "_sample_relative_impl", {}),
        ("NSGAIISampler", "select_parent", {"population_size": 10}),
        ("CmaEsSampler", "_init_optimizer", {"n_startup_trials": 2}),
    ],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_of_complete_trials_see_extrapolated_ones(make, asked, options, monkeypatch):
    if make == "CmaEsSampler":
        pytest.importorskip("cmaes", reason="the extra samplers is missing")
    kind, calls = getattr(optuna.samplers, make), []
    before = getattr(kind, asked)

    def counted(*arguments):
        calls.append(asked)
        return before(*arguments)

    monkeypatch.setattr(kind, asked, counted)
    study = optuna.create_study(direction="maximize")
    for number in range(12):
        study.sampler = Extrapolating(kind(seed=number, **options))
        asking = study.ask({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
        asking.report(asking.params["x"], 1)
        study.tell(asking, state=PRUNED)
    assert calls
