"""A whole job as one progress: which stage runs, what is left, and when it has ended."""

from dataclasses import replace

import optuna
import pytest
from made_trials import a_trial
from optuna.trial import TrialState
from results import result_of as make_result
from toys import begin

from studyloom.storage.attributes import HALTED, PROVENANCE, TIMES
from studyloom.storage.command_record import (
    CommandRecord,
    begin_command,
    end_command,
    store_result,
    store_stage,
)
from studyloom.storage.opening import create_study, open_study
from studyloom.storage.stored_study import FINAL_TRAINING, REEVALUATION
from studyloom.views.headline import make_headline
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.report_head import make_time_fact, make_winner_fact
from studyloom.views.words import describe_stored_result
from studyloom.worker.stopping import set_control

RECORD = CommandRecord(trials=4, reevaluated=True, tested=True, top=1, seeds=2)
MEAN = {"mean": 0.9725, "std": 0.004}


def result_of(stage):
    test = {"winner": MEAN, "baseline": {"mean": 0.93}, "difference": MEAN, "examples": 1000}
    row = {"trial": 1, "params": {"lr": 0.5}, "search_value": 0.9, **MEAN}
    return make_result(stage=stage, winner=row, test=test).in_short()


def work(stored, slots, *, value=0.5, seconds=10.0, running=0):
    """Has slots of a study done, and others held."""
    total = sum(stored.ledger.counts().values())
    for number in range(slots + running):
        trial = begin(stored)
        claim = stored.ledger.claim(f"host:{number}", total, 60, lambda *_, t=trial: t._trial_id)
        trial.suggest_float("lr", 0.0, 1.0)
        if number < slots:
            trial.set_user_attr(TIMES, {"training": seconds})
            stored.optuna.tell(trial, value, TrialState.PRUNED if value is None else None)
            stored.ledger.finish(claim)


@pytest.fixture
def stored(sqlite_url):
    return create_study(sqlite_url, "toy", {"asks": "nothing"}, trials=4)


@pytest.fixture
def later(sqlite_url, stored):
    """Returns a function that makes the study of a later stage."""

    def make(title, trials):
        name = f"{RECORD.stage_of(stored.name, title)}"
        store_stage(stored, title, name)
        return create_study(sqlite_url, name, {"asks": "less"}, trials=trials)

    return make


def test_search_reevaluation_and_final_training_are_one_progress(stored):
    """Page and note say what is worked on, and nothing when nobody works."""
    begin_command(stored, RECORD, 12.0)
    reader = ProgressReader(stored)
    assert not reader.read().is_at_work
    work(stored, 2, running=1)
    progress = reader.read()
    then = "then re-evaluation 4, final training 4"
    assert (progress.done, progress.budget) == (2, 12)
    assert progress.elapsed >= 12
    # One worker: two trials, then four trainings, then four.
    assert progress.eta == pytest.approx(100, abs=5)
    assert progress.is_at_work
    stages = "search, then re-evaluation, then final training"
    assert make_time_fact(progress, [], is_live=False).explanation.startswith(f"{stages}; ETA ")
    assert make_winner_fact(progress, None).explanation == (
        "not yet: re-evaluation 0/4, final training 0/4"
    )
    assert progress.describe_now()[:2] == ["search: 2 of 4 trials", then]
    assert make_time_fact(progress, [], is_live=True).explanation == stages
    set_control(stored, "pause")
    assert reader.read().is_at_work
    assert "pausing: 1 trial is released at its last epoch" in reader.read().describe_now()


def test_a_worker_that_replaced_another_does_not_count_as_two(stored):
    """The trials name processes, not workers; a reused training took no time."""
    begin_command(stored, RECORD, 0.0)
    times = {TIMES: {"training": 30.0, "start-up": 5.0}}
    trials = [a_trial(0, worker="host:1", **times), a_trial(1, worker="host:2", **times)]
    trials.append(a_trial(2, **times, reused="re-evaluation 0"))
    fact = make_time_fact(ProgressReader(stored).read(), trials, is_live=False)
    assert fact.explanation.endswith("; workers busy for 1 min 0 s in all; no worker runs")


def test_a_study_continues_after_its_search_until_the_winner_is_tested(stored, later):
    begin_command(stored, RECORD, 0.0)
    reader = ProgressReader(stored)
    work(stored, 4)
    assert (reader.read().title, reader.read().has_ended) == (REEVALUATION, False)
    reevaluation = later(REEVALUATION, 2)
    work(reevaluation, 1)
    progress = reader.read()
    assert (progress.title, progress.current.name) == (REEVALUATION, reevaluation.name)
    assert progress.describe_now()[:2] == [
        "re-evaluation: 1 of 2 trainings",
        "then final training 4",
    ]
    work(reevaluation, 1)
    assert reader.read().share == 0.6, "of the epochs of all three stages, 4 + 2 of 4 + 2 + 4"
    final = later(FINAL_TRAINING, 1)
    work(final, 1)
    store_result(stored, result_of("of another stage"))
    assert (reader.read().title, reader.read().has_ended) == ("test", False)
    store_result(stored, result_of(final.name))
    progress = reader.read()
    assert (progress.title, progress.has_ended) == ("done", True)
    end_command(stored, 1)
    progress = reader.read()
    assert (progress.title, progress.has_ended, progress.exit_code) == ("done", True, 1)
    summary = "test accuracy 0.9725 ± 0.0040, baseline 0.9300, trial 1"
    assert describe_stored_result(progress.result) == summary
    assert "test accuracy 0.9725" in progress.line


def test_a_continued_study_has_no_result_until_its_new_stages_end(stored, later):
    begin_command(stored, RECORD, 0.0)
    work(stored, 4)
    work(later(REEVALUATION, 4), 4)
    final = later(FINAL_TRAINING, 4)
    work(final, 4)
    store_result(stored, result_of(final.name))
    reader = ProgressReader(stored)
    assert reader.read().result["stage"] == final.name
    begin_command(stored, replace(RECORD, trials=8), 0.0)
    stored.reconcile(8)
    progress = reader.read()
    assert (progress.title, progress.result) == ("search", None)
    assert "best 0.5" in progress.line


def test_a_stage_of_ten_seeds_is_not_taken_for_one_of_one_seed(sqlite_url, stored):
    """The name for 1 seed is the beginning of that for 10."""
    work(stored, 4)
    reevaluation = replace(RECORD, seeds=10).stage_of(stored.name, REEVALUATION)
    create_study(sqlite_url, reevaluation, {"asks": "less"}, trials=20)
    store_stage(stored, REEVALUATION, reevaluation)
    for seeds, trials in ((10, 20), (1, 2)):
        begin_command(stored, replace(RECORD, seeds=seeds), 0.0)
        text = ProgressReader(stored).read().stage_text
        assert text == f"re-evaluation: 0 of {trials} trainings"


def test_trials_of_an_optuna_study_are_counted_since_it_has_no_slots(sqlite_url):
    study = optuna.create_study(study_name="own", storage=sqlite_url)
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=3)
    trial = study.ask()
    study.enqueue_trial({"x": 0.5})
    reader = ProgressReader(open_study(sqlite_url, "own"))
    progress = reader.read()
    assert progress.stage_text == "search: 3 of 5 trials"
    assert (progress.search.slots["free"], progress.has_ended) == (1, False)
    study.tell(trial, 0.5)
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=1)
    assert make_headline(reader.read().search).endswith("after 5 of 5 trials")


def test_a_later_stage_counts_no_pruned_trials_of_the_search(stored, later):
    begin_command(stored, RECORD, 0.0)
    reader = ProgressReader(stored)
    work(stored, 3)
    work(stored, 1, value=None)
    assert reader.read().stage_text == "re-evaluation: 0 of 4 trainings", "it has not begun"
    reevaluation = later(REEVALUATION, 3)
    work(reevaluation, 1)
    assert reader.read().stage_text == "re-evaluation: 1 of 3 trainings"
    work(reevaluation, 1, value=None)
    assert reader.read().stage_text == "re-evaluation: 2 of 3 trainings, 1 pruned"


def test_a_study_has_ended_until_a_worker_runs_again(stored):
    begin_command(stored, RECORD, 0.0)
    stored.optuna.set_user_attr(HALTED, "ValueError: no")
    end_command(stored, 1)
    progress = ProgressReader(stored).read()
    assert (progress.has_ended, progress.exit_code, progress.halted) == (True, 1, "ValueError: no")
    work(stored, 0, running=1)
    assert not ProgressReader(stored).read().has_ended


def test_hours_are_counted_by_threads_and_gpus(stored):
    begin_command(stored, CommandRecord(8, per_hour=2.0), 0.0)
    ran = {"cpu": {"threads": 4}, "cuda": {"threads": 4}}
    for device, environment in ran.items():
        trial = begin(stored)
        trial.set_user_attr(TIMES, {"training": 1800.0, "start-up": 1800.0})
        trial.set_user_attr(PROVENANCE, {"device": device, "environment": environment})
        stored.optuna.tell(trial, 0.5)
    progress = ProgressReader(stored).read()
    assert (progress.hours.cores, progress.hours.gpus) == (8.0, 1.0)
    assert progress.cost == 2.0  # of the GPUs, since there are some
    assert {"8.00 core-hours", "cost 2.00"} <= {*progress.list_times()}
