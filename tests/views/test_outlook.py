"""What is still to come of a search, in all views."""

import json

import pytest
from made_trials import a_trial
from optuna.trial import TrialState
from snapshots import joined, shown
from toys import fill, two_sided

from studyloom.decisions.early_end import Bounds, decide_early_end, set_bounds
from studyloom.views.page import Facts
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.report import read_report
from studyloom.views.snapshot import take_snapshot
from studyloom.views.terminal import render_status

VALUES = [0.9 + 0.001 * (7 * n % 12) for n in range(12)]
WORDS = (
    "ended after 12 of 40 trials: the 28 further trials are expected to gain less than "
    "study.min_improvement=0.1"
)


@pytest.fixture
def twelve(study_of):
    """A study of forty slots whose first twelve are done."""
    stored = study_of(a_trial(number, accuracy=value) for number, value in enumerate(VALUES))
    stored.ledger.compare(repair=True)
    return stored


def test_a_running_search_shows_the_expected_gain_of_further_trials(twelve):
    """In numbers and in words, on a terminal and in the report."""
    set_bounds(twelve, Bounds(0.0005, None, 40))
    snapshot = take_snapshot(twelve)
    gain = snapshot.forecast.gain
    assert (snapshot.left, snapshot.forecast.ending) == (28, None)
    assert 0.0005 < gain < 0.02
    status = ProgressReader(twelve).status()
    printed = shown(render_status(status, 100), width=100)
    assert "budget left: 28 trials" in printed
    assert f"further trials: {gain:.4f} accuracy; the search ends below 0.0005" in printed
    document = json.loads(status.as_json())
    assert (document["end_reason"], document["expected_improvement"]) == (None, gain)
    sections = read_report(twelve).sections
    details = next(section for section in sections if section.key == "details")
    facts = next(dict(block.items) for block in details.blocks if isinstance(block, Facts))
    gained = f"{gain:.4f} accuracy; the search ends below 0.0005"
    assert facts["expected gain of further trials"] == gained


def test_all_views_show_that_a_search_has_ended_early(twelve):
    set_bounds(twelve, Bounds(0.1, None, 40))
    decide_early_end(twelve, 40)
    snapshot = take_snapshot(twelve)
    assert (snapshot.left, snapshot.budget, snapshot.done) == (0, 40, 12)
    status = ProgressReader(twelve).status()
    assert status.progress.eta == 0.0
    assert joined(WORDS) in joined(shown(render_status(status, 40), width=40))
    assert status.progress.line.endswith(WORDS)
    assert json.loads(status.as_json())["end_reason"] == WORDS
    assert len([*ProgressReader(twelve).statuses()]) == 1  # it waits for nothing
    top = read_report(twelve).head
    assert f"The search {WORDS}." in [block.text for block in top.blocks]
    assert status.progress.title == "done"
    fill(twelve, a_trial(12, TrialState.RUNNING))
    twelve.ledger.compare(repair=True)
    snapshot = take_snapshot(twelve)
    assert (snapshot.left, snapshot.forecast.running) == (1, 1), "it runs to its end"


def test_several_objectives_have_no_expected_gain(sqlite_url):
    two = two_sided(sqlite_url, *[(0.9, n) for n in range(3)])
    assert "further trials" not in shown(render_status(ProgressReader(two).status(), 80))
