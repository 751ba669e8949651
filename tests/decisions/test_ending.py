"""The end of a search before its budget is spent, decided only from its trials and bounds."""

import random
from dataclasses import replace

import numpy as np
import pytest
from promoting import EPOCHS, Search, order_of
from toy_worker import fresh
from toys import ask, begin

from studyloom.decisions.early_end import (
    FEWEST_TRIALS,
    Bounds,
    Hours,
    Outcome,
    estimate_gain,
    find_ending,
    read_outcomes,
)
from studyloom.metrics import ACCURACY, METRICS, ObjectiveValue, ideal_of
from studyloom.storage.attributes import PROVENANCE, TIMES, parse
from studyloom.storage.standings import OPEN, UNCLAIMED

VALUES = [float(value) for value in np.random.default_rng(0).normal(0.9, 0.02, 40)]
BOUNDS = Bounds(min_improvement=0.01, trials=40)


def outcomes(values, ended=True, epochs=3):
    return [Outcome(slot, ended, value, epochs) for slot, value in enumerate(values)]


def end_of(bounds, values=VALUES):
    """The number of trials after which a single worker ends."""
    counts = range(len(values) + 1)
    return next((n for n in counts if find_ending(bounds, outcomes(values[:n]))), None)


def test_a_search_ends_at_the_first_gain_below_min_improvement():
    asked = [estimate_gain(BOUNDS, outcomes(VALUES[:count])) for count in range(1, 41)]
    end = end_of(BOUNDS)
    assert 10 < end < 40
    assert asked[end - 1] < 0.01
    assert all(gain is None or gain >= 0.01 for gain in asked[: end - 1])
    found = find_ending(BOUNDS, outcomes(VALUES[:end]))
    assert found.gain == asked[end - 1]


def test_running_trials_do_not_change_a_decision():
    """Four workers: which of the slots under way ends next is drawn; it is asked at each claim."""
    fate, state, decided = random.Random(0), {}, None
    values = [*VALUES[:9], *(value + fate.random() * 0.05 for value in VALUES[9:])]
    while any(not ended for ended in state.values()) or (decided is None and len(state) < 40):
        known = [Outcome(n, ended, values[n] if ended else None, 3) for n, ended in state.items()]
        fate.shuffle(known)
        found = find_ending(BOUNDS, known, decided)
        if found is not None and decided is None:
            assert found.gain == estimate_gain(BOUNDS, [o for o in known if o.has_ended]) < 0.01
            decided = found.decision()
        assert (found is not None) == (decided is not None)
        assert found is None or found.decision() == decided
        under_way = [slot for slot, ended in state.items() if not ended]
        if decided is None and len(under_way) < 4 and len(state) < 40:
            state[len(state)] = False
        else:
            state[fate.choice(under_way)] = True
    assert find_ending(BOUNDS, outcomes(values[: len(state)]), decided).begun == len(state) < 40


def test_a_decision_holds_for_its_min_improvement_and_budget():
    decided = find_ending(BOUNDS, outcomes(VALUES[: end_of(BOUNDS)])).decision()
    spread = outcomes([0.1 * n for n in range(20)])  # which promises a lot
    assert find_ending(BOUNDS, spread) is None
    assert find_ending(BOUNDS, spread, decided).gain == decided["gain"]
    assert find_ending(replace(BOUNDS, trials=30), spread, decided) is not None
    assert find_ending(replace(BOUNDS, trials=41), spread, decided) is None
    assert find_ending(replace(BOUNDS, min_improvement=0.009), spread, decided) is None


def test_bounds_of_another_program_decide_nothing():
    assert (
        parse({"min_improvement": "x", "epochs": True, "trials": None, "further": 1}, Bounds)
        is None
    )
    assert parse({"min_improvement": 1, "epochs": 5, "trials": 8}, Bounds) == Bounds(1, 5, 8)
    for stored in (None, 1, "x", {}, {"gain": "x"}, {"gain": 0.1, "min_improvement": 0.01}):
        assert find_ending(BOUNDS, outcomes(VALUES[:11]), stored) is None
    assert find_ending(BOUNDS, outcomes(VALUES)) is None, "nor does a budget that is spent"


def test_a_search_ends_when_its_trials_have_reported_its_epochs():
    bounds = Bounds(epochs=12, trials=40)
    three = outcomes([0.5, None, 0.7])
    assert find_ending(bounds, three) is None
    found = find_ending(bounds, [*three, Outcome(3, False, None, 3)])
    assert (found.begun, found.gain, found.epochs) == (4, None, 12)
    assert found.reason == "ended after 4 of 40 trials: 12 epochs of study.epochs=12 are spent"


def test_running_trials_count_once_they_have_ended_or_paused():
    end = end_of(BOUNDS)
    waiting = [o._replace(value=None) if o.slot == 1 else o for o in outcomes(VALUES[:end])]
    running = [o._replace(has_ended=False) if o.slot == 1 else o for o in waiting]
    assert estimate_gain(BOUNDS, waiting) < estimate_gain(BOUNDS, running)


def test_a_search_ends_when_its_trials_have_cost_the_limit():
    bounds = Bounds(trials=40, cost=3.0, per_hour=2.0)
    for spent in (Hours(cores=0.5), Hours(cores=4.0, gpus=0.5)):
        three = [outcome._replace(hours=spent) for outcome in outcomes([0.5, None, 0.7])]
        assert find_ending(bounds, three[:2]) is None
        found = find_ending(bounds, three)
        assert found.reason == "ended after 3 of 40 trials: 3.00 of cost.limit=3 are spent"
        assert find_ending(replace(bounds, cost=3.5), three) is None, "a limit may be raised"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_search_ends_with_the_first_complete_trial_at_the_target(sign):
    bounds = Bounds(target=sign * 0.7, trials=40, sign=sign)
    below = outcomes([0.5, None, 0.69])
    pruned = Outcome(3, True, 0.8, 3, is_complete=False)
    assert find_ending(bounds, [*below, pruned]) is None
    reached = Outcome(4, True, 0.7, 3, number=5)
    better = Outcome(5, True, 0.9, 3, number=6)
    found = find_ending(bounds, [*below, pruned, reached, better])
    values = {1: "study.target=0.7 with 0.7000", -1: "study.target=-0.7 with −0.7000"}
    assert found.reason == f"ended after 6 of 40 trials: trial 5 has reached {values[sign]}"
    assert find_ending(replace(bounds, trials=6), [*below, pruned, reached, better]) is None


# What is expected to be gained


def last(values, trials):
    return estimate_gain(Bounds(trials=trials), outcomes(values))


def test_a_worker_with_a_trial_reads_the_cores_of_the_others(sqlite_url):
    stored = fresh(sqlite_url, ask("model=mlp"), 2)
    other, own = begin(stored), begin(stored)
    other.set_user_attr(TIMES, {"training": 3600.0})
    other.set_user_attr(PROVENANCE, {"environment": {"threads": 8}})
    stored.optuna.tell(other, 0.5)
    stored.storage.load(stored.ledger.study_id, own._trial_id)
    assert [outcome.hours.cores for outcome in read_outcomes(stored)] == [0.0, 8.0]


@pytest.mark.parametrize(("kind", "error"), [("exponential", 0.05), ("uniform", None)])
def test_the_expected_gain_is_near_what_is_gained(kind, error):
    """Over 1500 draws: the mean estimate after 40 of 80 trials against the mean of what came."""
    drawn = getattr(np.random.default_rng(0), kind)(size=(1500, 80))
    expected = np.mean([last(values[:40].tolist(), 80) for values in drawn])
    gained = np.mean(drawn.max(1) - drawn[:, :40].max(1))
    assert expected == pytest.approx(gained, rel=error) if error else expected > gained


def test_a_trial_without_a_value_counts_as_not_among_the_best():
    """Over 1500 draws, of which the worse half fails: the mean estimate, and what came."""
    drawn = np.random.default_rng(0).exponential(size=(1500, 80))
    drawn = np.where(drawn > np.median(drawn), drawn, np.nan)
    halves = [[None if np.isnan(x) else float(x) for x in row[:40]] for row in drawn]
    gained = np.mean(np.nanmax(drawn, 1) - np.nanmax(drawn[:, :40], 1))
    assert np.mean([last(half, 80) for half in halves]) == pytest.approx(gained, rel=0.1)


def test_too_few_values_give_no_estimate():
    three = [0.1, 0.2, 0.3] + [None] * 20
    for values in ([], [0.5] * (FEWEST_TRIALS - 1), [None] * 30, three):
        assert estimate_gain(Bounds(trials=100), outcomes(values)) is None
    none_complete = [o._replace(is_complete=False) for o in outcomes([0.1 * n for n in range(30)])]
    assert estimate_gain(Bounds(trials=100), none_complete) is None


def test_no_gain_is_expected_beyond_the_ideal_of_the_metric():
    spread, hundred = [0.9 + 0.001 * n * n / 9 for n in range(30)], Bounds(trials=100)
    assert estimate_gain(hundred, outcomes(spread)) > 0.02
    bounded = replace(hundred, ideal=ideal_of(ACCURACY))
    assert estimate_gain(bounded, outcomes(spread)) == pytest.approx(1 - max(spread))
    percents = outcomes([100 * value for value in spread])  # another metric of that name
    assert estimate_gain(bounded, percents) == estimate_gain(hundred, percents)
    losses = [value - 1 for value in spread]
    bounded = replace(hundred, ideal=ideal_of(METRICS["mse"]))
    assert estimate_gain(bounded, outcomes(losses)) == pytest.approx(-max(losses))
    for unknown in (ObjectiveValue("reward", "maximize"), ObjectiveValue("accuracy", "minimize")):
        assert ideal_of(unknown) is None


# A search of which most trials are pruned


class Promoted(Search):
    """A search by promotion, which records what was expected as each trial began."""

    def __init__(self, curves):
        super().__init__(curves, order_of(epochs=EPOCHS))
        self.bounds = Bounds(min_improvement=0.005, trials=len(curves), ideal=1.0)
        self.best, self.expected = [], []

    def claim(self, at_work):
        fresh = [*self.state.values()].count(UNCLAIMED)
        found, best = estimate_gain(self.bounds, self.outcomes()), self.best_so_far()
        claimed = super().claim(at_work)
        if [*self.state.values()].count(UNCLAIMED) < fresh:
            self.expected.append(found)
            self.best.append(best)
        return claimed

    def outcomes(self):
        return [
            Outcome(slot, True, self.curves[slot][n - 1], n, is_complete=n == EPOCHS)
            for slot, n in self.epochs.items()
            if n and (self.state[slot] == OPEN or n == EPOCHS or slot in self.pruned)
        ]

    def best_so_far(self):
        return max((self.curves[slot][-1] for slot in self.complete()), default=0.0)

    @property
    def ended(self):
        """The number of trials after which it would have ended."""
        below = (n for n, gain in enumerate(self.expected) if gain is not None and gain < 0.005)
        return next(below, None)


def accuracies(count, seed):
    """Curves that come nearer to their own accuracy, of 0.98 at most."""
    drawn = np.random.default_rng(seed)
    tops, paces = 0.98 - drawn.exponential(0.03, count), drawn.uniform(0.1, 1.0, count)
    over = np.arange(1, EPOCHS + 1)
    curves = 0.1 + (tops - 0.1)[:, None] * (1 - np.exp(-paces[:, None] * over))
    return (curves + drawn.normal(0, 0.002, curves.shape)).tolist()


@pytest.mark.chaos
def test_a_search_with_asha_ends_early_and_loses_little():
    """Of 80 trials about one of ten is complete; the others have the value at their last rung."""
    searches = [Promoted(accuracies(80, seed)).run() for seed in range(8)]
    assert all(20 < search.ended < 60 for search in searches)
    lost = [search.best_so_far() - search.best[search.ended] for search in searches]
    assert 0 <= np.mean(lost) < 0.005
    for count in (30, 40, 50):
        came = np.mean([search.best_so_far() - search.best[count] for search in searches])
        assert came < np.mean([search.expected[count] for search in searches]) < 4 * came
    assert all(
        gain is None or gain + best <= 1.0
        for search in searches
        for gain, best in zip(search.expected, search.best, strict=True)
    )
