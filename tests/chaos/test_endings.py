"""Objectives that end their process, or leave something behind: it costs their trial alone.

What they raise is in tests/worker.
"""

import os

import pytest
from commands import BARE, QUICK, ROOT, study
from deeds import DEEDS
from live_processes import linux
from runs import Run, kill

pytestmark = [pytest.mark.chaos, linux]

OWN = f"""
defaults:
  [studyloom, sampler: grid, pruner: none, storage: sqlite, launcher: local, space: none, _self_]
study: {{name: own, trials: {len(DEEDS)}, max_attempts: 2, lease: 5}}
objective: {{_target_: deeds.objective, metric: length, direction: maximize}}
params: {{deed: nothing}}
space: {{params: {{deed: {{choice: [{", ".join(DEEDS)}]}}}}}}
winner: {{top: 1, seeds: 1}}
"""
DIED = ("FAIL", "crashed", "2 workers crashed in this trial; the last: the worker ")
ENDS = {
    "exit 0": ("FAIL", "error", "SystemExit: 0"),
    "_exit 0": (*DIED[:2], DIED[2] + "ended with exit code 0"),
    "device-side assert": (
        "FAIL",
        "error",
        "RuntimeError: CUDA error: device-side assert triggered",
    ),
    "SIGTERM": (*DIED[:2], DIED[2] + "got SIGTERM"),
    "SIGINT": (*DIED[:2], DIED[2] + "got SIGINT"),
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "own.yaml").write_text(OWN)
    own = ("--config-dir", str(tmp_path), "--config-name", "own", "trust=[deeds]")
    run = Run(folder, f"sqlite:///{folder}/study.db", own, name="own", trials=len(DEEDS))
    run.environment["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests' / 'chaos'}"
    yield run
    kill(run.processes())


def test_an_objective_that_ends_its_process_costs_only_its_trial(run):
    printed = run.end(run.start("launcher.workers=2"), 0)
    trials = {trial.params["params.deed"]: trial for trial in run.stored().trials()}
    assert {*trials} == {*DEEDS}
    for deed, trial in trials.items():
        attributes = trial.user_attrs
        end = trial.state.name, attributes.get("failure"), attributes.get("reason")
        assert end == ENDS.get(deed, ("COMPLETE", None, None)), deed
    assert "crashed  " in printed


def test_a_trial_that_breaks_the_gpu_costs_the_command_only_that_trial(run):
    """The command trains in its own process until that has lost its GPU."""
    deeds = ("nothing", "device-side assert", "thread", "argparse", "pool by fork")
    space = f"space.params.deed.choice=[{', '.join(deeds)}]"
    run.end(run.start("launcher.workers=1", space, f"study.trials={len(deeds)}"), 0)
    states = {trial.params["params.deed"]: trial.state.name for trial in run.stored().trials()}
    assert states.pop("device-side assert") == "FAIL"
    assert {*states.values()} == {"COMPLETE"}


@pytest.mark.parametrize(
    ("place", "deed", "code", "words"),
    [
        ("constructor", "exit 0", 2, "SystemExit"),
        ("test", "exit 0", 1, "your code ended the command: SystemExit(0)"),
    ],
)
def test_user_code_cannot_end_a_command_with_exit_code_0(tmp_path, place, deed, code, words):
    """Before the first trial, and when the winner is tested: in the process of the command."""
    quick = [override for override in QUICK if not override.startswith(("model.", "winner."))]
    run = (*quick, "model._target_=deeds.Net", *BARE, "winner.top=1", "winner.seeds=1")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "chaos")))
    done = study(
        *(*run, "study.trials=1", "launcher.workers=1", f"run_dir={tmp_path / 'run'}"),
        PYTHONPATH=path,
        STUDYLOOM_TEST_PLACE=place,
        STUDYLOOM_TEST_DEED=deed,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "winner.yaml").exists()
