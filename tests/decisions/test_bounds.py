"""The end of a stored search: workers, the next command and views come to the same one."""

import math
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from optuna.trial import TrialState, create_trial
from toy_worker import RANDOM, fresh, outcomes, work, work_side_by_side
from toys import Signal, ask, fill

from studyloom.decisions.early_end import (
    Bounds,
    decide_early_end,
    read_forecast,
    read_outcomes,
    set_bounds,
)
from studyloom.decisions.strategy import Strategy
from studyloom.metrics import ObjectiveValue
from studyloom.space.rule import Rule
from studyloom.storage.attributes import FAILURE, PAUSED, SLOT, TIMES
from studyloom.storage.opening import create_study, open_study
from studyloom.worker.stage import Stage

TRIALS = 24
REGRET = 0.9  # of an accuracy: ends at the first estimate, which is that after ten trials


@pytest.fixture(scope="module")
def definition():
    return ask(*RANDOM, f"study.trials={TRIALS}")


def done(stored, count):
    """Ends the first trials of a study without training them."""
    fill(stored, *(complete(0.5 + n / 100) for n in range(count)))
    stored.ledger.compare(repair=True)


def complete(value, **constraints):
    state = TrialState.FAIL if value is None else TrialState.COMPLETE
    return create_trial(state=state, value=value, constraints=constraints or None)


@pytest.mark.usefixtures("threads_are_workers")
def test_workers_begin_no_trial_once_the_search_has_ended(url, definition):
    """Two, of which one may begin the eleventh trial while the other is in the tenth."""
    stored = fresh(url, definition, TRIALS)
    set_bounds(stored, Bounds(REGRET, None, TRIALS))
    done(stored, 8)
    work_side_by_side(definition, url, TRIALS, workers=2)
    count = stored.ledger.counts()["done"]
    assert count in (10, 11, 12)  # one may have begun as the other asked
    assert sorted(trial.user_attrs[SLOT] for trial in stored.trials()) == [*range(count)]
    assert decide_early_end(open_study(url, "s"), TRIALS) == decide_early_end(stored, TRIALS)
    assert (
        Stage("search", stored, definition, Strategy(definition), TRIALS).count_open_trials() == 0
    )
    before = outcomes(stored)
    set_bounds(stored, Bounds(REGRET, None, TRIALS))  # as the same command does again
    work(definition, stored, TRIALS)
    assert outcomes(stored) == before


def test_an_interrupted_trial_completes_after_the_search_has_ended(url, definition):
    stored = fresh(url, definition, TRIALS)
    done(stored, 10)
    work(definition, stored, TRIALS, Signal(2))
    assert stored.trials()[-1].state == TrialState.RUNNING
    set_bounds(stored, Bounds(REGRET, None, TRIALS))
    assert (decide_early_end(stored, TRIALS).begun, read_forecast(stored).running) == (11, 1)
    work(definition, stored, TRIALS)
    assert stored.ledger.counts() == {"free": 13, "held": 0, "done": 11}
    assert all(trial.state.is_finished() for trial in stored.trials())
    assert read_forecast(stored).running == 0


@pytest.mark.usefixtures("threads_are_workers")
def test_a_trial_that_has_reached_the_target_is_followed_by_none(url, definition):
    stored = fresh(url, definition, TRIALS)
    done(stored, 8)  # with values from 0.50 to 0.57
    work(definition, stored, TRIALS, Signal(2))
    bounds = Bounds(target=0.55, trials=TRIALS)
    set_bounds(stored, bounds)
    assert read_forecast(stored).running == 1
    work_side_by_side(definition, url, TRIALS, workers=2)
    assert stored.ledger.counts() == {"free": 15, "held": 0, "done": 9}
    ending = decide_early_end(open_study(url, "s"), TRIALS)
    assert (ending.begun, ending.reached.number) == (9, 5)
    assert read_forecast(stored).ending == ending
    set_bounds(stored, replace(bounds, target=1.1))  # which no accuracy reaches
    work(definition, stored, 10)
    assert stored.ledger.counts()["done"] == 10


def test_only_other_bounds_continue_an_ended_search(url, definition):
    stored, more = fresh(url, definition, TRIALS), TRIALS + 6
    done(stored, 10)
    stored.ledger.extend(more)
    for min_improvement, end in ((REGRET, 10), (1e-9, 11), (REGRET, 11), (None, 12)):
        set_bounds(stored, Bounds(min_improvement, None, more))
        work(definition, stored, end)
        assert stored.ledger.counts()["done"] == end
        found = decide_early_end(stored, more)
        assert (found and found.begun) == (end if min_improvement == REGRET else None)


def test_a_decision_is_kept_until_other_bounds_are_set(url, definition):
    stored = fresh(url, definition, TRIALS)
    set_bounds(stored, Bounds(0.2, None, TRIALS))
    done(stored, 10)
    assert read_forecast(stored).ending is None  # it only looks
    decided = decide_early_end(stored, TRIALS)
    assert read_forecast(stored).ending == decided
    fill(stored, complete(5.0), complete(1.0))  # which were under way
    assert read_forecast(stored).gain > 0.2
    set_bounds(stored, Bounds(0.2, None, TRIALS))
    assert decide_early_end(stored, TRIALS).decision() == decided.decision()
    set_bounds(stored, Bounds(0.2, 1000, TRIALS))
    assert decide_early_end(stored, TRIALS) is None


def test_values_that_may_win_and_last_values_of_pruned_trials_count(url):
    objectives = [ObjectiveValue("loss", "minimize")]
    stored = create_study(url, "s", {"asks": "nothing"}, TRIALS, objectives=objectives)
    fill(stored, complete(0.8), complete(0.1, parameters=1.0), complete(None))
    for attributes in ({}, {PAUSED: None}, {PAUSED: 2}):
        reports = {"intermediate_values": {1: 0.5, 2: 0.4}, "user_attrs": attributes}
        fill(stored, create_trial(state=TrialState.RUNNING, **reports))
    reports = {"intermediate_values": {1: 0.5, 2: 0.3}, "state": TrialState.PRUNED}
    nothing = {"intermediate_values": {1: 0.5, 2: math.inf}, "state": TrialState.PRUNED}
    fill(stored, create_trial(**reports), create_trial(**nothing))
    fill(stored, create_trial(**reports, user_attrs={FAILURE: "diverged"}))
    found = sorted(read_outcomes(stored))
    assert [o.value for o in found] == [-0.8, None, None, None, None, -0.4, -0.3, None, None]
    assert [o.has_ended for o in found] == [*[True] * 3, False, False, *[True] * 4]
    assert [o.epochs for o in found] == [*[0] * 3, *[2] * 6]
    assert [o.slot for o in found if o.is_complete] == [0, 1]
    objectives += [ObjectiveValue("parameters", "minimize")]
    stored.store_rule(Rule.parse("min loss where parameters < 9", objectives))
    assert {o.value for o in read_outcomes(stored)} == {None}, "what is pruned may break it"


def test_outcomes_are_in_the_order_in_which_trials_ended(url):
    """The first is pruned late, after an hour at a rung; the second trained for half an hour."""
    stored = create_study(
        url, "s", {"asks": "nothing"}, TRIALS, objectives=[ObjectiveValue("loss", "minimize")]
    )
    noon, hour = datetime(2026, 1, 1, 12), timedelta(hours=1)
    for state, begun, ended, worked in (
        (TrialState.PRUNED, noon, noon + 2 * hour, hour / 10),
        (TrialState.COMPLETE, noon + hour / 10, noon + hour / 2, hour / 2),
        (TrialState.PRUNED, noon, noon + hour / 5, hour / 5),
        (TrialState.RUNNING, noon, None, hour / 4),
    ):
        times = {TIMES: {"training": worked.total_seconds()}, PAUSED: 2 if ended is None else None}
        value = 0.5 if state == TrialState.COMPLETE else None
        trial = create_trial(state=state, value=value, user_attrs=times)
        trial.datetime_start, trial.datetime_complete = begun, ended
        fill(stored, trial)
    assert [outcome.slot for outcome in read_outcomes(stored)] == [0, 2, 3, 1]
