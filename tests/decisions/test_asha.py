"""Promotion: what is claimed next follows only from the reports, and the best are promoted."""

import math
import random
from collections import Counter
from dataclasses import replace

from optuna.pruners import MedianPruner, NopPruner
from promoting import EPOCHS, Search, order_of, standing
from toys import TINY, ask

from studyloom.decisions.asha import AshaPruner
from studyloom.decisions.strategy import Strategy
from studyloom.metrics import ACCURACY, ObjectiveValue
from studyloom.storage.standings import DONE, HELD, OPEN, OWN, UNCLAIMED, SlotChoice

TWO = (ACCURACY, ObjectiveValue("parameters", "minimize"))


def test_the_lowest_rung_is_that_of_the_study_as_it_began():
    lowest = {epochs: AshaPruner(epochs=epochs).min_resource for epochs in (None, 3, 12, 27, 50)}
    assert lowest == {None: 1, 3: 1, 12: 1, 27: 2, 50: 4}
    assert [
        AshaPruner(epochs=50, stored_rung=stored_rung).min_resource for stored_rung in (0, 1, 3)
    ] == [1, 1, 3]
    assert AshaPruner(5, epochs=50, stored_rung=3).min_resource == 5, "what the config says counts"


def test_the_default_pruner_promotes_networks_that_can_pause():
    def pruner_of(*overrides, **stored_rung):
        return Strategy(
            ask(*TINY, "train.epochs=4", "pruner=auto", *overrides), **stored_rung
        ).pruner()

    for promoted in (pruner_of(), pruner_of("train.epochs=50"), pruner_of(stored_rung=1)):
        assert isinstance(promoted, AshaPruner)
    assert pruner_of("train.epochs=50").min_resource == 4
    for other in (
        pruner_of("checkpoints.dir=null"),
        pruner_of("train.epochs=2"),
        pruner_of(stored_rung=0),
    ):
        assert isinstance(other, MedianPruner)
    several = "objective.metric=[accuracy,parameters]"
    assert isinstance(pruner_of(several), AshaPruner)
    for neither in (pruner_of(several, "train.epochs=2"), pruner_of(several, stored_rung=0)):
        assert isinstance(neither, NopPruner)
        assert "no trial is pruned" in neither.note


def random_curves(count, seed=0):
    """Curves that rise to their own height, with noise."""
    fate = random.Random(seed)
    curves = []
    for _ in range(count):
        top, pace = fate.random(), fate.uniform(0.05, 1.0)
        curves.append(
            [top * (1 - math.exp(-pace * e)) + fate.gauss(0, 0.01) for e in range(1, EPOCHS + 1)]
        )
    return curves


def by_the_paper(curves, eta=3):
    """Algorithm 2 of Li et al. (2020) with one worker: the slots in the order of their jobs."""
    levels = [1, 3, 9, EPOCHS]
    rungs, promoted, jobs, fresh = [{} for _ in levels], [set() for _ in levels], [], 0
    while True:
        job = None
        for level in reversed(range(len(levels) - 1)):
            best = sorted(rungs[level], key=lambda slot, at=level: (-rungs[at][slot], slot))
            able = [s for s in best[: len(best) // eta] if s not in promoted[level]]
            if able:
                promoted[level].add(able[0])
                job = able[0], level + 1
                break
        if job is None:
            if fresh == len(curves):
                return jobs
            job, fresh = (fresh, 0), fresh + 1
        slot, level = job
        rungs[level][slot] = curves[slot][levels[level] - 1]
        jobs.append(slot)


def test_one_worker_runs_the_jobs_of_the_paper_in_its_order():
    curves = random_curves(36)
    assert Search(curves, order_of()).run().log == by_the_paper(curves)


def test_the_best_of_each_rung_are_promoted_and_the_others_pruned():
    """By four workers, in two brackets."""
    curves = random_curves(45, 5)
    order = order_of(brackets=2)
    search = Search(curves, order, 4, seed=3).run()
    assert {*search.state.values()} == {DONE}
    assert sorted([*search.complete(), *search.pruned]) == [*range(45)]
    for bracket in range(2):
        slots = [slot for slot in range(45) if order.find_bracket(slot) == bracket]
        for rung in order.rungs(EPOCHS - 1)[bracket:]:
            there = [slot for slot in slots if search.epochs[slot] >= rung]
            best = sorted(there, key=lambda s, r=rung: -curves[s][r - 1])[: len(there) // 3]
            assert all(search.epochs[slot] > rung for slot in best)


def test_no_rung_promotes_more_than_its_share_of_trials():
    """The bound of conf/pruner/asha.yaml, in the order that is worst for it."""
    curves = sorted(random_curves(45, 1), key=lambda curve: curve[-1])
    search, most = Search(curves, order_of(), workers=2, seed=1), 0
    claim = search.claim

    def counted(at_work):
        nonlocal most
        claimed, over = claim(at_work), search.order.find_unpromotable(search.standings())
        kept = [slot for slot, state in search.state.items() if state == OPEN and slot not in over]
        most = max(most, *Counter(search.epochs[slot] for slot in kept).values(), 0)
        return claimed

    search.claim = counted
    search.run()
    assert most <= 45 // 3


def test_a_trial_whose_worker_died_at_a_rung_counts_as_paused():
    others = [standing(slot, OPEN, 0.1 * slot) for slot in range(5)]
    for state, able in ((OPEN, [5, 4]), (OWN, [5, 4]), (HELD, [4])):
        assert order_of().find_promotable([*others, standing(5, state, 0.9)]) == able


def test_a_trial_whose_worker_died_after_its_last_epoch_completes():
    trained = replace(standing(0, OPEN, *[0.1] * 9), paused=3)
    others = [standing(slot, DONE, *[0.9] * 9) for slot in range(1, 4)]
    assert order_of().choose([trained, *others]) == SlotChoice(0)


def test_the_best_trial_of_the_highest_rung_is_promoted_first():
    order = order_of()
    low = [standing(slot, OPEN, 0.1 * slot) for slot in range(6)]
    high = [standing(6 + k, OPEN, 0.0, 0.9, 0.1 * k) for k in range(3)]
    assert order.find_promotable([*low, *high]) == [8, 5, 4, 3]
    fresh = [standing(9 + k, UNCLAIMED) for k in range(18)]
    assert order.choose([*low, *high, *fresh]) == SlotChoice(8)
    assert order.is_next([*low, *high], 8)
    assert not order.is_next([*low, *high], 5)


def test_the_baseline_counts_at_its_rungs():
    two = [standing(1, OPEN, 0.1), standing(2, OPEN, 0.2)]
    assert order_of().find_promotable([standing(0, HELD, exempt=True), *two]) == []
    assert order_of().find_promotable([standing(0, HELD, -1.0, exempt=True), *two]) == [2]


def test_the_best_of_few_trials_completes():
    """Of 20 trials 6 come to epoch 3 and 2 to epoch 9, of which one of three would go on."""
    for count, workers in ((1, 1), (4, 3), (20, 1)):
        curves = random_curves(count, 7)
        search = Search(curves, order_of(), workers, seed=1).run()
        complete = search.complete()
        assert 1 <= len(complete) <= workers
        there = [slot for slot, epochs in search.epochs.items() if epochs >= 9]
        assert max(there, key=lambda slot: curves[slot][8]) in complete
        assert len(search.pruned) == count - len(complete)


def test_no_trial_is_pruned_while_a_running_one_may_change_the_rung():
    order = order_of()
    two = [standing(0, OPEN, 0.1), standing(1, OPEN, 0.2)]
    assert order.choose([*two, standing(2, HELD)]) == SlotChoice(
        0, ends_pruned=True
    )  # 1 of 3 at most
    assert order.choose([standing(0, DONE, 0.1), *two[1:], standing(2, HELD)]) is None
    assert order.choose([standing(0, DONE, 0.3), *two[1:]]) == SlotChoice(1, ends_pruned=True)
    assert order.choose([standing(0, DONE, 0.1), *two[1:]]) == SlotChoice(1)  # nobody else may come


def test_a_claim_whose_reply_was_lost_is_answered_again():
    order = order_of()
    slots = [standing(0, OWN, 0.1), standing(1, OPEN, 0.9), standing(2, OPEN, 0.5)]
    assert order.choose(slots) == SlotChoice(0, ends_pruned=True)
    assert order.choose([standing(0, OWN), *slots[1:]]) == SlotChoice(0)


def test_after_the_end_of_a_search_no_trial_begins_or_is_promoted():
    order = order_of()
    slots = [standing(slot, OPEN, 0.1 * slot) for slot in range(3)]
    released = standing(3, OPEN, 0.5, 0.5)
    every = [*slots, released, standing(4, UNCLAIMED)]
    told = []
    while (chosen := order.choose(every, closed=True)) is not None and chosen.ends_pruned:
        told.append(chosen.slot)
        every[chosen.slot] = replace(every[chosen.slot], state=DONE)
    assert told == [0, 1, 2]
    assert chosen == SlotChoice(3)
    every[3] = replace(released, state=DONE)
    assert order.choose(every, closed=True) is None


def test_a_trial_is_compared_at_its_first_report_after_a_rung():
    order = order_of()
    slots = [standing(slot, OPEN, 0.1 * slot, apart=5) for slot in range(3)]
    assert {*slots[0].reports} == {1, 3}
    assert order.find_promotable(slots) == [2]
    assert order.pauses_at(0, -1, 5)
    assert not order.pauses_at(0, 5, 8)
    assert order.pauses_at(0, 5, 10)


def test_brackets_have_the_shares_of_hyperband_and_their_rungs():
    order = order_of(brackets=3)
    shares = Counter(order.find_bracket(slot) for slot in range(1700))
    assert [round(shares[b] / 100) for b in range(3)] == [9, 5, 3]
    assert order_of(brackets=3).find_bracket(7) == order.find_bracket(7)
    for slot in range(20):
        first = next(step for step in range(1, 28) if order.pauses_at(slot, step - 1, step))
        assert first == 3 ** order.find_bracket(slot)
