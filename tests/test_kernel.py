"""The kernel searches and stores alone: without winner, views, commands and extras."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from commands import environment
from optuna.trial import TrialState

TRIALS = 7
SCRIPT = '''
import sys


class Blocked:
    """Has the import of each layer above the kernel fail."""

    layers = ("winner", "views", "commands", "extras")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] in [["studyloom", layer] for layer in self.layers]:
            raise ImportError(f"{name} is no part of the kernel")


sys.meta_path.insert(0, Blocked())
from studyloom.worker.process import run_search

run_search(sys.argv[1], sys.argv[2:])
'''
LOOP = """
import os
import signal
from pathlib import Path


def train(run, *, x=0.25):
    gate = Path(f"gate-{run.trial}")
    if gate.exists():
        pipe = gate.open("w", buffering=1)  # open until this process ends
        gate.unlink()
        pipe.write(f"{os.getpid()}\\n")
        signal.pause()
    run.report(accuracy=x)
    return x
"""
CONFIG = f"""
defaults: [studyloom, _self_]
study: {{name: alone, trials: {TRIALS}}}
objective: {{_target_: loop.train, metric: accuracy, direction: maximize}}
space: {{params: {{x: {{float: [0.0, 1.0]}}}}}}
"""


class Gate:
    """Stops the first attempt of a trial, and knows when the worker that ran it has ended."""

    def __init__(self, folder: Path, trial: int) -> None:
        path = folder / f"gate-{trial}"
        os.mkfifo(path)
        self.pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self) -> bytes:
        """Waits for the worker's next word, which is empty once it has ended."""
        assert select.select([self.pipe], [], [], 60)[0]
        return os.read(self.pipe, 100)


@pytest.mark.chaos
def test_a_search_is_killed_and_resumed_by_the_kernel_only(tmp_path):
    (tmp_path / "loop.py").write_text(LOOP)
    (tmp_path / "alone.yaml").write_text(CONFIG)
    (tmp_path / "script.py").write_text(SCRIPT)
    first, second = Gate(tmp_path, 2), Gate(tmp_path, 5)
    url = f"sqlite:///{tmp_path}/run/study.db"
    overrides = [f"run_dir={tmp_path}/run", f"storage.url={url}", "launcher.workers=2"]
    command = [sys.executable, "script.py", "alone.yaml", *overrides]
    place = {"cwd": tmp_path, "env": environment(PYTHONPATH=str(tmp_path))}

    with subprocess.Popen(command, **place) as search:
        os.kill(int(first.read()), signal.SIGKILL)
        assert first.read() == b""
        assert second.read(), "another worker has gone on"
        search.kill()
    assert second.read() == b"", "no worker outlives its launcher"
    subprocess.run(command, check=True, timeout=60, **place)

    study = optuna.load_study(study_name="alone", storage=url)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * TRIALS
    assert study.best_value == study.best_params["params.x"] == max(t.value for t in study.trials)
    assert study.trials[0].params == {"params.x": 0.25}, "the first trial is the baseline"
