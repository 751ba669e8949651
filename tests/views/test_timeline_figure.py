"""The timeline: when each worker trained which trial."""

from datetime import datetime, timedelta

import pytest
from made_trials import BEGAN, a_trial, mark_of, numbered, points_of
from optuna.trial import TrialState

from studyloom.views.timeline_figure import draw_timeline, idle_share
from studyloom.views.worked_time import Period


def test_idle_is_the_share_of_gaps_and_a_running_trial_lasts_until_now():
    for spans, share in (
        ([(5, 5)], 0),
        ([(5, 10), (0, 4)], 0.1),
        ([(0, 10), (2, 4), (8, 20), (30, 40)], 0.25),
    ):
        times = [Period(*(BEGAN + timedelta(seconds=end) for end in ends)) for ends in spans]
        assert idle_share(times) == pytest.approx(share)
    trials = numbered(a_trial(0), a_trial(1, TrialState.RUNNING))
    left, worked = (
        points_of(mark_of(draw_timeline(trials, alive), state))[-1][0]
        for alive, state in (((), "interrupted"), ((1,), "running"))
    )
    assert left == 11
    since = (datetime.now() - trials[1].datetime_start).total_seconds()
    assert worked - 11 == pytest.approx(since, abs=60)
