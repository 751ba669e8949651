"""Stored studies: their trials, what decides, and which are best."""

import numpy as np
from optuna.trial import TrialState, create_trial
from toys import LOOP, TINY, ask, fill, two_sided

from studyloom.space.rule import Rule
from studyloom.storage.attributes import EPOCHS, RULE
from studyloom.storage.opening import create_study, open_study
from studyloom.storage.stored_study import open_in_same_database
from studyloom.storage.trial_record import TrialRecord
from studyloom.views.snapshot import take_snapshot


def beaten(one, by):
    """Whether accuracy and parameters are beaten by others."""
    return by != one and by[0] >= one[0] and by[1] <= one[1]


def test_the_front_is_what_brute_force_finds_the_best_by_the_metric_first(sqlite_url):
    points = np.random.default_rng(0).integers(0, 6, (24, 2)).astype(float)  # many are alike
    drawn = [None if place % 7 == 3 else (a / 8, p) for place, (a, p) in enumerate(points)]
    stored = two_sided(sqlite_url, *drawn)
    fill(stored, create_trial(values=[2.0, 0.0], constraints={"flops": 0.5}))
    fill(stored, create_trial(state=TrialState.PRUNED, constraints={"diverged": 1.0}))
    fill(stored, create_trial(state=TrialState.RUNNING, intermediate_values={1: 0.99}))
    whole = {number: values for number, values in enumerate(drawn) if values is not None}
    unbeaten = {n for n, one in whole.items() if not any(beaten(one, by) for by in whole.values())}
    front = stored.front()
    assert {trial.number for trial in front} == unbeaten
    accuracies = [trial.values[0] for trial in front]
    assert accuracies == sorted(accuracies, reverse=True)


def test_the_default_rule_allows_no_more_parameters_than_the_baseline(
    sqlite_url,
):
    stored = two_sided(
        sqlite_url, (0.9, 100), (0.95, 101), (0.92, 100), (0.92, 60), (0.8, 10), None
    )
    assert str(stored.rule()) == "max accuracy where parameters <= 100"
    assert [trial.number for trial in stored.ranked()] == [3, 2, 0, 4], (
        "of two alike the smaller first"
    )


def test_a_stored_rule_ranks_for_every_command_that_opens_the_study(url):
    stored = two_sided(url, (0.9, 100), (0.95, 101), (0.92, 40))
    stored.store_rule(Rule.parse("min parameters where accuracy > 0.91", stored.objectives))
    elsewhere = open_study(url, "two")
    assert str(elsewhere.rule()) == "min parameters where accuracy > 0.91"
    assert [trial.number for trial in elsewhere.ranked()] == [2, 1]
    stored.store_rule(None)
    assert elsewhere.rule() == elsewhere.default_rule()


def test_a_rule_over_a_cost_of_a_loop_ranks_alike_in_all_views(sqlite_url):
    rule = "winner.rule='max accuracy where size < 3'"
    definition = ask(*TINY, *LOOP, "+objective.constraints.size='<= 3'", rule)
    stored = create_study(
        sqlite_url, "s", definition.identity("toy"), 3, objectives=definition.objectives
    )
    stored.store_rule(definition.rule)
    for accuracy, size in ((0.9, 3), (0.8, 2), (0.7, 1)):
        fill(stored, create_trial(value=accuracy, user_attrs={"size": size}))
    assert str(stored.rule()) == str(definition.rule)
    assert [trial.number for trial in stored.ranked(definition.rule)] == [1, 2]
    snapshot = take_snapshot(stored)
    assert (snapshot.best.number, snapshot.rule) == (1, "max accuracy where size < 3")


def test_an_invalid_rule_in_an_untrusted_database_is_ignored(sqlite_url):
    stored = two_sided(sqlite_url, (0.9, 100))
    for stated in ("max nothing", "rm -rf", 7, {"a": 1}):
        stored.optuna.set_user_attr(RULE, stated)
        assert stored.rule() == stored.default_rule()


def test_another_study_of_the_database_is_opened_on_the_same_connections(url):
    stored = create_study(url, "toy", {"asks": "nothing"}, trials=8)
    create_study(url, "toy/re-evaluation 8-3-5", {"asks": "less"}, trials=2)
    beside = open_in_same_database(stored, "toy/re-evaluation 8-3-5")
    assert beside.ledger.counts() == {"free": 2, "held": 0, "done": 0}
    assert open_in_same_database(stored, "toy/final-training 8-3-5") is None


def test_a_curve_has_the_reports_until_its_epochs_are_stored():
    reported = {2: 0.5, 1: 0.25}
    trial = create_trial(state=TrialState.RUNNING, intermediate_values=reported)
    assert TrialRecord(trial).curve == {"number": [1, 2], "value": [0.25, 0.5]}
    assert TrialRecord(create_trial(state=TrialState.RUNNING)).curve == {}
    columns = {"number": [1], "train_loss": [2.0], "value": [0.25]}
    attributes = {EPOCHS: columns}
    ended = create_trial(value=0.25, user_attrs=attributes, intermediate_values=reported)
    assert TrialRecord(ended).curve == columns
