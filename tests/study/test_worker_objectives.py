"""Trials of two objectives."""

import optuna
from toy_worker import work
from toys import TWO, ask

from studyloom.errors import Diverged
from studyloom.question import objective
from studyloom.question.objective import run_epochs
from studyloom.storage.attributes import (
    EPOCHS,
    FAILURE,
)
from studyloom.study.opening import create_study


def two(url, question, trials, name="s"):
    return create_study(url, name, question.identity("toy"), trials, goals=question.goals)


def test_of_two_objectives_a_trial_has_both_values_and_its_learning_curve(sqlite_url):
    question = ask(*TWO)
    stored = two(sqlite_url, question, 4)
    work(question, stored, 4)
    for trial in stored.trials():
        width = trial.params["model.hidden.0"] if trial.params else 16
        assert trial.values[1] == 17 * width + 10 * (width + 1)
        assert (
            trial.values[0] == trial.user_attrs[EPOCHS]["value"][-1] == trial.intermediate_values[2]
        )
        assert list(trial.intermediate_values) == [1, 2]
        assert trial.constraints in (None, {})
    assert stored.optuna.metric_names == ["accuracy", "parameters"]
    assert optuna.load_study(study_name="s", storage=stored.storage).best_trials


def test_of_two_objectives_what_fails_or_breaks_a_limit_is_neither_on_the_front_nor_best(
    sqlite_url, monkeypatch
):
    question = ask(*TWO, "+objective.constraints.parameters='<= 700'", "study.baseline=false")
    stored = two(sqlite_url, question, 12)
    tried, measure = [], run_epochs

    def diverges(training, stopping):
        tried.append(training)
        if len(tried) == 2:
            raise Diverged(0, 1, 2, "train", float("nan"))
        yield from measure(training, stopping)

    monkeypatch.setattr(objective, "run_epochs", diverges)
    work(question, stored, 12)
    failed = {t.number: t.user_attrs[FAILURE] for t in stored.trials() if FAILURE in t.user_attrs}
    assert {*failed.values()} == {"diverged", "infeasible"}
    assert all(t.values is None for t in stored.trials() if t.number in failed)
    assert (
        {t.number for t in stored.front()}
        <= {t.number for t in stored.ranked()}
        == {*range(12)} - {*failed}
    )
