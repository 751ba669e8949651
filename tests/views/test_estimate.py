"""How far a stage has come in epochs, and how long the rest of a job takes."""

import random
from datetime import datetime

import pytest
from optuna.trial import TrialState, create_trial
from promoting import EPOCHS, Search, order_of
from snapshots import snapshot_of

from studyloom.storage import attributes
from studyloom.storage.attributes import PAUSED, PLANNED_EPOCHS, RUNGS, TIMES
from studyloom.storage.standings import DONE, OPEN, UNCLAIMED
from studyloom.views.progress import StageProgress, Work, estimate_seconds, estimate_work
from studyloom.views.snapshot import WorkerStatus


def a_trial(number, epochs, state=TrialState.RUNNING, seconds=0.0, **attributes):
    trial = create_trial(
        state=state,
        value=0.5 if state == TrialState.COMPLETE else None,
        intermediate_values=dict.fromkeys(range(1, epochs + 1), 0.5),
        user_attrs={TIMES: {"training": seconds}, **attributes},
    )
    trial.number, trial.datetime_start = number, datetime(2026, 1, 1)
    return trial


def work_of(trials, left, workers=(), before=None):
    done = sum(trial.state.is_finished() for trial in trials)
    stage = StageProgress("search", done, left, snapshot_of(workers=workers))
    return estimate_work(stage, trials, before or Work())


def test_stages_take_the_epochs_that_are_left_at_the_pace_of_those_done():
    search = Work(
        done=40, remaining=[5.0], new_trials=3, new_length=10.0, full_length=10.0, pace=2.0
    )
    assert estimate_seconds([search], 1) == 70.0
    assert estimate_seconds([search], 3) == pytest.approx(
        70 / 3 + 20 / 2 * 2 / 3
    )  # the last ends later
    assert estimate_seconds([search, Work(new_trials=2, new_length=10.0)], 1) == 110.0, (
        "at the pace of the search"
    )
    assert estimate_seconds([Work(remaining=[30.0], pace=1.0)], 4) == 30.0, (
        "one trial is on one worker"
    )
    assert estimate_seconds([Work(new_trials=4)], 1) is None, "nothing is known"
    assert estimate_seconds([search], 0) is None, "no worker runs"


def test_a_trial_that_reports_nothing_is_one_epoch_and_its_age_counts():
    ended = [a_trial(n, 0, TrialState.COMPLETE, seconds=10.0) for n in range(4)]
    half = work_of([*ended, a_trial(4, 0)], 5, [WorkerStatus("a:1", 4, held=5.0)])
    assert (half.pace, half.done, half.remaining, half.new_trials) == (10.0, 4.5, [0.5], 4)
    assert half.share == 0.5
    over = work_of([*ended, a_trial(4, 0)], 1, [WorkerStatus("a:1", 4, held=99.0)])
    assert (over.remaining, over.share) == ([0.0], 1.0)


def test_before_a_trial_has_ended_those_that_run_say_how_long_it_takes():
    running = a_trial(0, 2, **{PLANNED_EPOCHS: 10})
    work = work_of([running], 4, [WorkerStatus("a:1", 0, 2, held=4.0)])
    assert (work.pace, work.remaining, work.new_trials, work.new_length) == (2.0, [8.0], 3, 10.0)
    later = work_of([], 6, before=work)
    assert (later.new_length, later.share, later.pace) == (10.0, 0.0, None)


def test_the_calls_of_a_loop_that_ended_are_counted_and_not_their_epochs():
    """Three jobs of twenty epochs take a minute, of which one job is left."""
    curve = {"number": [*range(20)], "value": [0.5] * 20, attributes.JOBS: [3] * 20}
    jobs = {attributes.PLANNED_JOBS: 3}
    ended = a_trial(0, 3, TrialState.COMPLETE, 60.0, **jobs)
    ended.user_attrs[attributes.EPOCHS] = curve
    work = work_of([ended, a_trial(1, 2, **jobs)], 1)
    assert (work.pace, work.remaining, work.new_trials) == (20.0, [1.0], 0)
    assert estimate_seconds([work], 1) == 20.0


def test_without_rungs_ended_trials_say_how_early_others_end():
    pruned = [a_trial(n, 2, TrialState.PRUNED) for n in range(3)]
    whole = a_trial(3, 10, TrialState.COMPLETE)
    work = work_of([*pruned, whole, a_trial(4, 1), a_trial(5, 4)], 12)
    assert (work.remaining, work.new_length) == ([4.0 - 1, 10.0 - 4], 4.0)


class Watched(Search):
    """A search whose share is looked at after each epoch, next to the epochs so far."""

    def look(self):
        trials = []
        for slot, epochs in self.epochs.items():
            if (state := self.state[slot]) == UNCLAIMED:
                continue
            ended = TrialState.COMPLETE if epochs == EPOCHS else TrialState.PRUNED
            waits = {PAUSED: epochs} if state == OPEN else {}
            rungs = {PLANNED_EPOCHS: EPOCHS, RUNGS: self.order.rungs(epochs)}
            state = ended if state == DONE else TrialState.RUNNING
            trials.append(a_trial(slot, epochs, state, **rungs, **waits))
        work = work_of(trials, len(self.state) - sum(t.state.is_finished() for t in trials))
        return sum(self.epochs.values()), work.share

    def train(self, slot):
        goes_on = super().train(slot)
        self.shares.append(self.look())
        return goes_on


@pytest.mark.parametrize(("trials", "workers", "rung"), [(36, 2, 2), (20, 4, 2), (30, 1, 1)])
def test_paused_trials_count_by_their_epochs_so_that_the_share_neither_stands_nor_leaps(
    trials, workers, rung
):
    """By trials alone it would stand at 0 for a third of the epochs."""
    fate = random.Random(trials)
    ends = [(fate.random(), fate.uniform(0.2, 1)) for _ in range(trials)]
    curves = [[end * (1 - 2.7 ** (-rate * n)) for n in range(1, EPOCHS + 1)] for end, rate in ends]
    search = Watched(curves, order_of(min_resource=rung), workers=workers)
    search.shares = []
    search.run()
    total, last = search.look()
    assert last == 1.0
    shares = [share for _, share in search.shares]
    steps = [after - before for before, after in zip(shares, [*shares[1:], last], strict=True)]
    assert min(steps) > -0.05, "a promotion brings more to do"
    assert max(steps) < 0.12
    assert max(abs(share - epochs / total) for epochs, share in search.shares) < 0.25
