"""Paused trials: kept without a worker, gone on with when they are promoted, told at the end."""

import errno
import os

import pytest
from optuna.trial import TrialState
from toy_worker import FOLDER, Killed, fresh, work
from toys import EACH_KIND, KINDS, TINY, Signal, ask

from studyloom.errors import Halted
from studyloom.processes import worker_id
from studyloom.storage.attributes import EPOCHS, MADE, PAUSED, REASON, RUNGS, TIMES
from studyloom.study.failures import outcome
from studyloom.study.opening import open_study
from studyloom.study.reporter import Reporter
from studyloom.training.checkpoint import Checkpoint
from studyloom.views.status import as_json, read_status

pytestmark = pytest.mark.chaos  # real workers; what decides is tested by itself in tests/search

TRIALS = 9
PROMOTED = (*TINY, "sampler=random", "pruner=promotion", "train.epochs=5")


@pytest.fixture(scope="module", params=EACH_KIND)
def promoted(request):
    """A question whose trials are paused: of networks, or of a loop that keeps its state."""
    return ask(*PROMOTED, *KINDS[request.param])


@pytest.fixture(scope="module")
def undisturbed(promoted, tmp_path_factory):
    """The curves of all trials when none is paused or pruned, and their parameters."""
    folder = tmp_path_factory.mktemp("undisturbed")
    before, FOLDER["checkpoints"] = FOLDER.get("checkpoints"), None
    loop = promoted.config.objective["_target_"] is not None
    question = ask(*PROMOTED, "pruner=none", *KINDS["loop" if loop else "network"])
    stored = fresh(f"sqlite:///{folder}/s.db", question, TRIALS)
    work(question, stored, TRIALS)
    FOLDER["checkpoints"] = before
    trials = stored.trials()
    stored.close()
    return trials


def check(stored, undisturbed, checkpoints):
    """Checks that a search has ended, and that all of it is a part of the undisturbed one."""
    trials = stored.trials()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": TRIALS}
    for trial, whole in zip(trials, undisturbed, strict=True):
        assert trial.params == whole.params
        steps = [*trial.intermediate_values]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) in (1, 3, 5)
        for step in steps:
            assert trial.intermediate_values[step] == whole.intermediate_values[step]
        assert trial.value == trial.intermediate_values[steps[-1]]
        assert (trial.state == TrialState.COMPLETE) == (len(steps) == 5)
        curve = trial.user_attrs[EPOCHS]
        for name in curve.keys() - {"seconds", "samples_per_second"}:
            assert curve[name] == whole.user_attrs[EPOCHS][name][: len(steps)], name
        assert trial.user_attrs[MADE]["seed"] == whole.user_attrs[MADE]["seed"]
        assert TIMES in trial.user_attrs
        assert outcome(trial) in ("complete", "pruned")
    reached = sorted((len(trial.intermediate_values) for trial in trials), reverse=True)
    assert reached[0] == 5, "the baseline"
    assert sum(steps >= 3 for steps in reached) >= TRIALS // 3
    assert list(checkpoints.iterdir()) == []


def test_promoted_is_undisturbed_bit_for_bit(url, promoted, undisturbed, checkpoints):
    stored = fresh(url, promoted, TRIALS)
    work(promoted, stored, TRIALS)
    check(stored, undisturbed, checkpoints)
    assert stored.trials()[0].user_attrs.get(RUNGS) is None, "the baseline is never paused"
    assert {tuple(t.user_attrs[RUNGS]) for t in stored.trials()[1:]} <= {(1,), (1, 3)}


def test_tpe_learns_from_the_paused(url, checkpoints):
    """It draws its first trials at random, and each one after that by all that has ended before."""
    trials, draws = 5, {}
    tpe = ("sampler=tpe", "+sampler.n_startup_trials=2")
    for name, overrides in (("tpe", tpe), ("random", ())):
        question = ask(*PROMOTED, *overrides)
        stored = fresh(url, question, trials, name)
        work(question, stored, trials)
        draws[name] = [trial.params for trial in stored.trials()]
        stored.close()
    differs = [a != b for a, b in zip(draws["tpe"], draws["random"], strict=True)]
    assert differs == [False, False, True, True, True]


def test_a_paused_trial_holds_no_worker_and_is_shown(url, promoted, undisturbed, checkpoints):
    stored = fresh(url, promoted, TRIALS)
    work(promoted, stored, TRIALS, Signal(8))  # in the second trial after the baseline
    assert [outcome(trial) for trial in stored.trials()] == ["complete", "paused", "running"]
    paused = stored.trials()[1]
    assert paused.state == TrialState.RUNNING
    assert paused.user_attrs[PAUSED] == 1
    assert len(paused.user_attrs[EPOCHS]["number"]) == 1
    assert stored.ledger.counts() == {"free": 8, "held": 0, "done": 1}
    assert (checkpoints / "trial-1.pt").exists()
    assert '"paused": 1' in as_json(read_status(stored))
    work(promoted, open_study(url, "s"), TRIALS)
    check(stored, undisturbed, checkpoints)


def test_a_worker_that_dies_at_a_rung_changes_nothing(
    url, promoted, undisturbed, checkpoints, monkeypatch
):
    """After the report, before the trial is given back: another worker pauses or promotes it."""
    whole, deaths = Reporter.pause, []

    def die(reporter):
        deaths.append(reporter.trial.number)
        if len(deaths) % 2:
            raise Killed
        whole(reporter)

    monkeypatch.setattr(Reporter, "pause", die)
    stored = fresh(url, promoted, TRIALS)
    for _ in range(4 * TRIALS):
        try:
            work(promoted, open_study(url, "s"), TRIALS, max_attempts=99)
        except Killed:
            stored.ledger.record_death(worker_id(os.getpid()), "killed")
        else:
            break
    assert len({*deaths[::2]}) > 3
    check(stored, undisturbed, checkpoints)


def test_a_full_disk_costs_epochs_and_no_trial(
    sqlite_url, promoted, undisturbed, checkpoints, monkeypatch, caplog
):
    """A trial that was paused without its state begins anew when it is promoted."""

    def full(self, state):
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    monkeypatch.setattr(Checkpoint, "save", full)
    stored = fresh(sqlite_url, promoted, TRIALS)
    work(promoted, stored, TRIALS)
    check(stored, undisturbed, checkpoints)
    assert "No space left on device" in caplog.text
    assert "it starts anew" in caplog.text


def test_a_study_begun_with_another_pruner_goes_on_with_promotion(url, checkpoints):
    """What its trials have reported counts at the rungs; what has ended stays so."""
    begun, goes_on = ask(*PROMOTED, "pruner=median"), ask(*PROMOTED)
    stored = fresh(url, begun, TRIALS)
    work(begun, stored, TRIALS, Signal(15))  # in the third epoch of trial 2
    before = stored.trials()
    assert [trial.last_step for trial in before] == [5, 5, 2]
    assert before[2].state == TrialState.RUNNING
    stored = fresh(url, goes_on, TRIALS)
    work(goes_on, stored, TRIALS)
    trials = stored.trials()
    assert [t.value for t in trials[:2]] == [t.value for t in before[:2]]
    assert trials[2].last_step in (3, 5), "it had passed the lowest rung"
    assert {trial.last_step for trial in trials[3:]} <= {1, 3, 5}
    assert {outcome(trial) for trial in trials} == {"complete", "pruned"}
    assert list(checkpoints.iterdir()) == []


def keeps_nothing(config, run):
    """A loop that reports and keeps nothing, which nobody can tell from its code."""
    for step in range(1, 6):
        run(0.1 * step, step)
    return 0.5


def test_a_loop_that_keeps_nothing_ends_the_study_in_trial_0(sqlite_url):
    question = ask(
        *PROMOTED,
        "objective._target_=test_promotion_worker.keeps_nothing",
        "objective.direction=maximize",
    )
    stored = fresh(sqlite_url, question, 3)
    with pytest.raises(Halted, match=r"call run\.keep"):
        work(question, stored, 3)
    (trial,) = stored.trials()
    assert "pruner=promotion goes on with trials from their state" in trial.user_attrs[REASON]
