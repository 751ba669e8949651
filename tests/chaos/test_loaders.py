"""Studies of Datasets whose batches other processes load, killed in the midst, as real commands."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
import torch
from commands import QUICK
from harness import outcomes, until
from runs import Run, kill

from studyloom.study.failures import outcome

pytestmark = pytest.mark.chaos
DATA = (
    "~data",
    "+data={_target_: studyloom.data.Datasets, validation: 15, train: {_target_: drawn.Drawn}, "
    "evaluate: {_target_: drawn.Drawn, noise: 0.0}, test: {_target_: drawn.Drawn, count: 12}}",
)
STUDY = (
    *(way for way in QUICK if not way.startswith(("winner", "data", "train"))),
    *DATA,
    *("model._target_=gate.Net", "model.dropout=0.1", "train.epochs=8", "train.batch_size=23"),
    *("winner.top=1", "winner.seeds=2", "study.trials=3", "launcher.workers=2", "study.lease=5"),
)


def run_of(folder, url, *overrides):
    return Run(folder, url, (*STUDY, *overrides), trials=3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing disturbed, which loads its batches itself, and its outcomes."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run = run_of(folder, f"sqlite:///{folder}/study.db")
    run.end(run.start(), 0)
    return run, outcomes(run.stored())


def test_a_study_killed_while_others_load_comes_to_the_winner_of_one_that_loads_itself(
    tmp_path, undisturbed
):
    expected, values = undisturbed
    folder = tmp_path / "run"
    loading = ("+data.num_workers=2", "+data.persistent_workers=true")
    run = run_of(folder, f"sqlite:///{folder}/study.db", *loading)
    process = run.at_work(meanwhile=lambda: kill([run.latest.pid]))
    process.communicate()
    until(lambda: not run.processes(), 10)  # no loader outlives the command
    run.end(run.start(), 0)
    assert outcomes(run.stored()) == values
    answers = [json.loads((r.folder / "winner.json").read_text()) for r in (run, expected)]
    assert answers[0]["test"] == answers[1]["test"]
    weights = [torch.load(r.folder / "winner.pt", weights_only=True) for r in (run, expected)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def loaders(run):
    found = []
    for pid in run.processes():
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "pt_data_worker":
                found.append(pid)
        except OSError:
            continue
    return found


def test_ctrl_c_ends_the_loaders_too_and_the_same_command_goes_on(tmp_path, undisturbed):
    folder = tmp_path / "run"
    loading = ("+data.num_workers=2", "+data.persistent_workers=true")
    run = run_of(folder, f"sqlite:///{folder}/study.db", *loading)

    def interrupt():
        until(lambda: len(loaders(run)) >= 2)
        os.kill(run.latest.pid, signal.SIGINT)

    run.end(run.at_work(meanwhile=interrupt), 130)
    assert loaders(run) == []
    run.end(run.start(), 0)
    assert outcomes(run.stored()) == undisturbed[1]


def test_a_loader_that_is_killed_costs_its_trial_alone(tmp_path):
    folder = tmp_path / "run"
    loading = ("+data.num_workers=1", "+data.persistent_workers=true", "winner.enabled=false")
    url = f"sqlite:///{folder}/study.db"
    run = run_of(folder, url, *loading, "study.max_failures=9")
    killed = []

    def kill_one():
        """Not that of trial 0, whose error would stop the study."""
        first = {t._trial_id for t in run.stored().trials() if t.number == 0}
        held = [slot for slot in run.stored().ledger.held() if slot.trial_id not in first]
        owner = int(held[0].owner.rpartition(":")[2])
        (loader,) = [
            pid
            for pid in [each.pid for each in psutil.Process(owner).children(recursive=True)]
            if pid in loaders(run)
        ]
        killed.append(loader)
        kill(killed)

    process = run.at_work(meanwhile=kill_one)
    run.end(process, 0)
    trials = run.stored().trials()
    failed = [trial for trial in trials if outcome(trial) == "failed"]
    assert len(failed) == 1
    assert "a process that loads batches (data.num_workers=1)" in failed[0].user_attrs["reason"]
    assert len(trials) == 3
