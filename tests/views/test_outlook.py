"""What is still to come of a search, in all views."""

import json

import pytest
from made_trials import a_trial
from optuna.trial import TrialState
from snapshots import joined, shown
from toys import fill, two_sided

from studyloom.study.early_end import Bounds, ending, look_ahead, set_bounds
from studyloom.views.figures import outlook
from studyloom.views.progress import ProgressReader
from studyloom.views.report import read_report
from studyloom.views.snapshot import take_snapshot
from studyloom.views.terminal import render_status
from studyloom.winner.result import RunFiles

VALUES = [0.9 + 0.001 * (7 * n % 12) for n in range(12)]
WORDS = (
    "ended after 12 of 40 trials: the 28 further trials are expected to gain less than "
    "study.min_improvement=0.1"
)


@pytest.fixture
def twelve(study_of):
    """A study of forty slots whose first twelve are done."""
    stored = study_of(a_trial(number, accuracy=value) for number, value in enumerate(VALUES))
    stored.ledger.compare(mend=True)
    return stored


def test_a_search_that_goes_on_shows_what_further_trials_are_expected_to_gain(twelve):
    """In numbers, in words, and drawn over time."""
    set_bounds(twelve, Bounds(0.0005, None, 40))
    snapshot = take_snapshot(twelve)
    gain = snapshot.outlook.gain
    assert (snapshot.left, snapshot.outlook.ending) == (28, None)
    assert 0.0005 < gain < 0.02
    status = ProgressReader(twelve).status()
    printed = shown(render_status(status, 100), width=100)
    assert "budget left: 28 trials" in printed
    assert f"further trials: {gain:.4f} accuracy; the search ends below 0.0005" in printed
    found = json.loads(status.as_json())
    assert (found["ended"], found["gain"]) == (None, gain)
    figure = outlook(twelve, look_ahead(twelve))
    assert (
        f"After 12 trials it was {gain:.4f} accuracy; the search ends below 0.0005"
        in figure.caption
    )
    (estimates,), (limit,) = (mark.parts for mark in figure.marks)
    assert [x for x, _ in estimates] == [10, 11, 12]
    assert 10 ** estimates[-1][1] == pytest.approx(gain)
    assert [10**y for _, y in limit] == pytest.approx([0.0005, 0.0005])


def test_of_a_search_whose_trials_are_mostly_pruned_no_impossible_gain_is_drawn(study_of):
    """Of forty trials four are complete, as under promotion; the others were far behind."""
    made = [a_trial(n, accuracy=0.96 + n / 400) for n in range(4)]
    made += [a_trial(n, TrialState.PRUNED, accuracy=0.6 - n / 100, epochs=1) for n in range(4, 36)]
    stored = study_of(made)
    set_bounds(stored, Bounds(0.0005, None, 40))
    figure, best = outlook(stored, look_ahead(stored)), 0.96 + 3 / 400
    (estimates,), _ = (mark.parts for mark in figure.marks)
    assert estimates[0][0] == 10
    assert all(0 < 10**gain <= 1 - best + 1e-9 for _, gain in estimates)


def test_one_that_has_ended_says_so_in_all_views(twelve):
    set_bounds(twelve, Bounds(0.1, None, 40))
    ending(twelve, 40)
    snapshot = take_snapshot(twelve)
    assert (snapshot.left, snapshot.budget, snapshot.done) == (0, 40, 12)
    status = ProgressReader(twelve).status()
    assert status.progress.eta == 0.0
    assert joined(WORDS) in joined(shown(render_status(status, 40), width=40))
    assert status.progress.line.endswith(WORDS)
    assert json.loads(status.as_json())["ended"] == WORDS
    assert len([*ProgressReader(twelve).statuses()]) == 1  # it waits for nothing
    top, _ = read_report(twelve, RunFiles())
    assert f"The search {WORDS}." in [block.text for block in top.blocks]
    assert status.progress.title == "done"
    fill(twelve, a_trial(12, TrialState.RUNNING))
    twelve.ledger.compare(mend=True)
    snapshot = take_snapshot(twelve)
    assert (snapshot.left, snapshot.outlook.under_way) == (1, 1), "it runs to its end"


def test_what_cannot_be_drawn_is_said(study_of, sqlite_url):
    equal = [a_trial(number, accuracy=0.5) for number in range(10)]
    few = study_of(equal[:3])
    said = [outlook(few, look_ahead(few))]
    fill(few, *equal[3:])
    two = two_sided(sqlite_url, *[(0.9, n) for n in range(3)])
    said += [outlook(stored, look_ahead(stored)) for stored in (few, two)]
    assert said == [
        "Too few trials have a value to estimate the gain of more.",
        "No trial has been better than another one yet.",
        "With several objectives, no single number says what trials gain.",
    ]
    assert "further trials" not in shown(render_status(ProgressReader(two).status(), 80))
