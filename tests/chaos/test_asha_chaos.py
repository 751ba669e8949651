"""Faults of workers that pause and promote trials: nothing is lost, and no value is another."""

import random
import time

import pytest
from harness import EPOCHS, NAME, check, kill_at, outcomes, prepare, run, start
from live_processes import until
from optuna.trial import TrialState

from studyloom.storage.opening import open_study
from studyloom.storage.trial_record import TrialRecord

pytestmark = pytest.mark.chaos
ASHA = ("pruner=asha",)
PHASES = ("between report and prune", "at a rung", "before pause", "after pause")


def check_promoted(stored, whole, checkpoints):
    """Checks a search with promotion: N of N, each trial a part of its own undisturbed training."""
    check(stored, len(whole))
    trials = stored.trials()
    assert [trial.params for trial in trials] == [trial.params for trial in whole]
    for trial, undisturbed in zip(trials, whole, strict=True):
        reports = trial.intermediate_values
        assert reports.items() <= undisturbed.intermediate_values.items()
        assert trial.value == reports[max(reports)]
        assert TrialRecord(trial).outcome == ("complete" if max(reports) == EPOCHS else "pruned")
        curve, other = (t.user_attrs["epochs"] for t in (trial, undisturbed))
        for name in ("number", "value", "train_loss", "valid_loss"):
            assert curve[name] == other[name][: len(reports)], (trial.number, name)
        assert "provenance" in trial.user_attrs
    assert trials[0].state is TrialState.COMPLETE, "the baseline"
    for rung in (1, 3):
        there = [trial for trial in trials if rung in trial.intermediate_values]
        there.sort(key=lambda t, r=rung: (-t.intermediate_values[r], t.user_attrs["slot"]))
        best = there[: len(there) // 3]
        assert all(trial.last_step > rung for trial in best), "the best go on"
    left = [path.name for path in checkpoints.iterdir() if not path.name.startswith("study.db")]
    assert left == [], "no checkpoint"


def test_workers_killed_at_any_phase_of_promotion_cost_nothing(sqlite_url, tmp_path, whole):
    trials, folder = 9, tmp_path / "checkpoints"
    stored = prepare(sqlite_url, trials, 0, *ASHA)
    for phase in PHASES:
        kill_at(phase, sqlite_url, trials, folder, ASHA)
    run(sqlite_url, trials, folder, overrides=ASHA)
    check_promoted(stored, whole(trials), folder)


@pytest.mark.nightly
def test_kills_change_nothing_of_a_search_by_a_gaussian_process(url, tmp_path):
    trials, overrides = 14, (*ASHA, "sampler=gp", "+sampler.n_startup_trials=4")
    undisturbed = f"sqlite:///{tmp_path}/undisturbed.db"
    expected = prepare(undisturbed, trials, 0, *overrides)
    run(undisturbed, trials, tmp_path / "undisturbed", overrides=overrides)
    stored, folder = prepare(url, trials, 0, *overrides), tmp_path / "checkpoints"
    for phase in PHASES:
        kill_at(phase, url, trials, folder, overrides)
        stored.ledger.record_gone()  # as launchers do, or the next worker begins another trial
    run(url, trials, folder, overrides=overrides)
    assert outcomes(stored) == outcomes(expected)


@pytest.mark.nightly
def test_a_storm_of_kills_changes_no_value_of_a_search_with_asha(sqlite_url, tmp_path, whole):
    kills, trials, seed = 15, 45, 3
    url, folder, lives = sqlite_url, tmp_path / "checkpoints", random.Random(seed)
    stored = prepare(url, trials, seed, *ASHA)

    def worker():
        return start(url, trials, folder, seed, overrides=ASHA)

    workers = [worker() for _ in range(3)]
    looks = open_study(url, NAME, deadline=30.0)

    def reports():
        return sum(len(trial.intermediate_values) for trial in looks.trials())

    for _ in range(kills):
        if not stored.ledger.count_open(trials):
            break
        before = reports()
        until(lambda n=before: reports() > n or not any(w.is_alive() for w in workers), 180)
        time.sleep(lives.random() * 0.02)  # somewhere in a trial
        victim = lives.randrange(3)
        workers[victim].kill()
        workers[victim].join()
        workers[victim] = worker()
    for process in workers:
        process.join(180)
        assert process.exitcode == 0
    looks.close()
    check_promoted(stored, whole(trials, seed), folder)
