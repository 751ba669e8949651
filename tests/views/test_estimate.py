"""How many epochs of a stage are done, and how long the rest of a study takes."""

import random
from datetime import datetime
from itertools import pairwise

import pytest
from optuna.trial import TrialState, create_trial
from promoting import EPOCHS, Search, order_of

from studyloom.storage import attributes
from studyloom.storage.attributes import PAUSED, PLANNED_EPOCHS, RUNGS, TIMES
from studyloom.storage.standings import DONE, OPEN, UNCLAIMED
from studyloom.views.estimate import Work, estimate_seconds, estimate_work
from studyloom.views.snapshot import WorkerStatus


def a_trial(number, epochs, state=TrialState.RUNNING, seconds=0.0, **attributes):
    trial = create_trial(
        state=state,
        value=0.5 if state == TrialState.COMPLETE else None,
        intermediate_values=dict.fromkeys(range(1, epochs + 1), 0.5),
        user_attrs={TIMES: {"training": seconds}, **attributes},
    )
    trial.number = number
    trial.datetime_start = datetime(2026, 1, 1)
    return trial


def estimate(trials, left, workers=(), before=None):
    return estimate_work(trials, left, workers, before or Work())


def test_stages_take_their_remaining_epochs_at_the_pace_so_far():
    search = Work(
        done=40, remaining=[5.0], new_trials=3, new_length=10.0, full_length=10.0, pace=2.0
    )
    assert estimate_seconds([search], 1) == 70.0
    last_trial = 20 / 2 * 2 / 3  # ends later than the others
    assert estimate_seconds([search], 3) == pytest.approx(70 / 3 + last_trial)
    later = Work(new_trials=2, new_length=10.0)
    assert estimate_seconds([search, later], 1) == 110.0, "at the pace of the search"
    one_trial = Work(remaining=[30.0], pace=1.0)
    assert estimate_seconds([one_trial], 4) == 30.0, "one trial is on one worker"
    assert estimate_seconds([Work(new_trials=4)], 1) is None, "nothing is known"
    assert estimate_seconds([search], 0) is None, "no worker runs"


def test_a_trial_without_reports_counts_as_one_epoch():
    ended = [a_trial(number, 0, TrialState.COMPLETE, seconds=10.0) for number in range(4)]
    half = estimate([*ended, a_trial(4, 0)], 5, [WorkerStatus("a:1", 4, held_seconds=5.0)])
    assert (half.pace, half.done, half.remaining, half.new_trials) == (10.0, 4.5, [0.5], 4)
    assert half.share == 0.5
    late = estimate([*ended, a_trial(4, 0)], 1, [WorkerStatus("a:1", 4, held_seconds=99.0)])
    assert (late.remaining, late.share) == ([0.0], 1.0)


def test_running_trials_give_the_pace_until_one_has_ended():
    running = a_trial(0, 2, **{PLANNED_EPOCHS: 10})
    search = estimate([running], 4, [WorkerStatus("a:1", 0, 2, held_seconds=4.0)])
    assert (search.pace, search.remaining) == (2.0, [8.0])
    assert (search.new_trials, search.new_length) == (3, 10.0)
    later = estimate([], 6, before=search)
    assert (later.new_length, later.share, later.pace) == (10.0, 0.0, None)


def test_a_loop_called_for_folds_counts_calls_and_not_epochs():
    """Three jobs of twenty epochs take a minute, of which one job is left."""
    curve = {"number": [*range(20)], "value": [0.5] * 20, attributes.JOBS: [3] * 20}
    jobs = {attributes.PLANNED_JOBS: 3}
    ended = a_trial(0, 3, TrialState.COMPLETE, 60.0, **jobs)
    ended.user_attrs[attributes.EPOCHS] = curve
    work = estimate([ended, a_trial(1, 2, **jobs)], 1)
    assert (work.pace, work.remaining, work.new_trials) == (20.0, [1.0], 0)
    assert estimate_seconds([work], 1) == 20.0


def test_without_rungs_trials_are_expected_to_end_as_early_as_ended_ones():
    pruned = [a_trial(number, 2, TrialState.PRUNED) for number in range(3)]
    complete = a_trial(3, 10, TrialState.COMPLETE)
    work = estimate([*pruned, complete, a_trial(4, 1), a_trial(5, 4)], 12)
    assert (work.remaining, work.new_length) == ([4.0 - 1, 10.0 - 4], 4.0)


class WatchedSearch(Search):
    """A simulated search whose share of done epochs is recorded after each epoch."""

    def look(self):
        """Returns the number of epochs so far, and the share that is estimated to be done."""
        trials = []
        for slot, epochs in self.epochs.items():
            slot_state = self.state[slot]
            if slot_state == UNCLAIMED:
                continue
            stored = {PLANNED_EPOCHS: EPOCHS, RUNGS: self.order.rungs(epochs)}
            if slot_state == OPEN:
                stored[PAUSED] = epochs
            state = TrialState.RUNNING
            if slot_state == DONE:
                state = TrialState.COMPLETE if epochs == EPOCHS else TrialState.PRUNED
            trials.append(a_trial(slot, epochs, state, **stored))
        ended = sum(trial.state.is_finished() for trial in trials)
        work = estimate(trials, len(self.state) - ended)
        return sum(self.epochs.values()), work.share

    def train(self, slot):
        continues = super().train(slot)
        self.looks.append(self.look())
        return continues


@pytest.mark.parametrize(("trials", "workers", "rung"), [(36, 2, 2), (20, 4, 2), (30, 1, 1)])
def test_the_share_rises_evenly_since_paused_trials_count_by_their_epochs(trials, workers, rung):
    """If only ended trials counted, it would stay at 0 for a third of the epochs."""
    fate = random.Random(trials)
    ends = [(fate.random(), fate.uniform(0.2, 1)) for _ in range(trials)]
    curves = [[end * (1 - 2.7 ** (-rate * n)) for n in range(1, EPOCHS + 1)] for end, rate in ends]
    search = WatchedSearch(curves, order_of(min_resource=rung), workers=workers)
    search.looks = []
    search.run()
    all_epochs, last_share = search.look()
    assert last_share == 1.0
    shares = [share for _, share in search.looks]
    steps = [after - before for before, after in pairwise([*shares, last_share])]
    assert min(steps) > -0.05, "a promotion adds epochs"
    assert max(steps) < 0.12
    assert max(abs(share - epochs / all_epochs) for epochs, share in search.looks) < 0.25
