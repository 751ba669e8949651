"""Laws of the race: what it costs, that order does not matter, and whom it drops."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as some

from studyloom.study.race import ALPHA, count_entrants, run_race

BUDGET, SEEDS = 20, 5


def finish(entrants, measure, budget=BUDGET, sign=1, pick=lambda race: race.open):
    """Runs a race to its end, a round at a time, or those of it that `pick` picks."""
    results = {}
    while (race := run_race(entrants, results, budget, sign)).open:
        results |= {training: measure(*training) for training in pick(race)}
    return race


def noise(draw, spread=1.0):
    """Returns values that depend on candidate and seed alone."""
    return lambda candidate, seed: random.Random(f"{draw}-{candidate}-{seed}").gauss(0, spread)


budgets = some.tuples(some.integers(1, 9), some.integers(2, 9))


@settings(max_examples=20, deadline=None)
@given(budgets, some.integers(0, 10**6), some.floats(0, 0.5))
def test_a_race_never_has_more_trainings_than_its_budget_and_always_ends(sizes, draw, failing):
    top, seeds = sizes
    budget = (top + 1) * seeds
    entrants = [*range(count_entrants(budget, seeds))]
    assert len(entrants) >= 2

    def measure(candidate, seed):
        value = noise(draw)(candidate, seed)
        return None if random.Random(f"{draw} {candidate} {seed}").random() < failing else value

    race = finish(entrants, measure, budget)
    assert len(race.trainings) <= budget
    assert len({*race.trainings}) == len(race.trainings)
    assert sorted([*race.running, *(leaving.candidate for leaving in race.left)]) == entrants
    counts = Counter(candidate for candidate, _ in race.trainings)
    assert all(counts[leaving.candidate] == leaving.seeds for leaving in race.left)
    assert len({counts[candidate] for candidate in race.running}) <= 1, "they had the same seeds"


@settings(max_examples=10, deadline=None)
@given(some.integers(0, 10**6), some.randoms())
def test_the_order_in_which_results_arrive_changes_nothing_and_trainings_are_only_added(draw, dice):
    """So the n-th training has the n-th slot, whatever is known by then."""
    whole, measure, results = finish([*range(8)], noise(draw)), noise(draw), {}
    assert finish([*range(8)], measure, pick=lambda race: [dice.choice(race.open)]) == whole
    for training in whole.trainings:
        race = run_race([*range(8)], results, BUDGET)
        assert whole.trainings[: len(race.trainings)] == race.trainings
        results[training] = measure(*training)


def test_the_best_leaves_as_worse_beyond_doubt_no_more_often_than_alpha():
    """Among equals any may be the best: so nobody is to be dropped more often."""
    races, dropped = 150, 0
    for draw in range(races):
        race = finish([*range(8)], noise(draw))
        dropped += any(leaving.cause == "worse" and leaving.candidate == 0 for leaving in race.left)
    assert dropped / races <= ALPHA


def test_seeds_that_are_hard_for_all_hide_no_difference():
    """The test is paired: what a seed does to all candidates does not count."""

    def measure(candidate, seed):
        hard = 10 * random.Random(seed).random()
        return hard + (1.0 if candidate == 0 else 0.0) + noise(1, 0.01)(candidate, seed)

    race = finish([*range(8)], measure)
    assert race.running == (0,)
    causes = Counter(leaving.cause for leaving in race.left)
    assert causes == {"behind": 4, "worse": 3}
    assert all(leaving.p < ALPHA for leaving in race.left if leaving.cause == "worse")
    assert len(race.trainings) == 12, "and what nobody needs is not spent"


def test_two_equal_differences_are_not_taken_for_certainty():
    """Of two candidates on two seeds there is one residual, and it is 0 by chance at times."""
    race = finish([0, 1], lambda c, s: {0: [0.9, 0.8, 0.9], 1: [0.89, 0.79, 0.9]}[c][s], budget=6)
    assert not race.left
    assert len(race.trainings) == 6


def test_a_candidate_whose_training_fails_leaves_at_that_look_and_the_others_go_on():
    race = finish([*range(4)], lambda c, s: None if (c, s) == (2, 0) else float(c), budget=12)
    first = race.left[0]
    assert (first.candidate, first.seeds, first.cause, first.leader) == (2, 1, "failed", 3)
    assert race.running[0] == 3
