"""Commands whose user code does more than define something when it is imported, or is interrupted
while libraries are imported; and what a trial starts."""

import os
import signal
import subprocess
import sys

import pytest
from commands import ROOT, environment, start, studyloom
from live_processes import linux, processes_of, until

from studyloom.config.scaffold import KINDS, write_study

pytestmark = pytest.mark.chaos

SEARCHES = """
import studyloom
def train(run, *, lr=0.1):
    for _ in run.epochs(2):
        run.report(loss=lr)
    return run.value
print("imported", flush=True)
settings = dict(name="mine", run_dir="run", sampler="random", winner={"enabled": False})
studyloom.search(train, minimize="loss", space={"lr": studyloom.Float(0.1, 1.0)}, workers=2,
                 trials=4, **settings)
"""
# As many of pytorch/examples do.
PARSES = """
import argparse, os, sys
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
args = parser.parse_args()
def train(run, *, lr=0.1):
    with open("seen", "a") as file:
        print(*sorted({"STUDYLOOM_WORKER", "STUDYLOOM_PICKLED"} & {*os.environ}), file=file)
    for _ in run.epochs(args.epochs):
        run.report(loss=lr)
    return run.value
"""
CONFIG = """
defaults: [studyloom, sampler: random, pruner: none]
study: {name: mine, trials: 2}
objective: {_target_: parses.train, metric: loss, direction: minimize}
params: {lr: 0.1}
space: {params: {lr: {float: [0.01, 1.0]}}}
winner: {enabled: false}
launcher: {workers: 2}
"""
# A search of what a script itself defines, by workers that are no forks.
SCRIPT = """
import studyloom, parses
def train(run, *, lr=0.1):
    return parses.train(run, lr=lr)
if __name__ == "__main__":
    studyloom.search(train, minimize="loss", space={"lr": studyloom.Float(0.1, 1.0)}, workers=2,
                     trials=2, sampler="random", winner={"enabled": False}, run_dir="run")
"""
# Sends SIGINT to its process when a module is imported.
INTERRUPTS = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == os.environ.get("STUDYLOOM_TEST_MODULE"):
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


def run_python(folder, *arguments):
    command = [sys.executable, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(), **pipes)


@linux
@pytest.mark.parametrize("stopped", [False, True])
def test_a_module_that_searches_at_import_starts_no_process(stopped, tmp_path):
    (tmp_path / "mine.py").write_text(SEARCHES)
    process = run_python(tmp_path, "-c", "import mine")
    logs = tmp_path / "run" / "logs"
    if stopped:
        until(lambda: len([*logs.glob("*worker*.log")]) == 2)
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGTERM if stopped else 1)
    guard = 'put that below `if __name__ == "__main__":`'
    sentence = f"mine: runs a study when it is imported, and each worker imports it; {guard}"
    assert err.endswith(f"error: {sentence}\n") or stopped
    until(lambda: processes_of("run/.hydra") == [], 10)
    for log in logs.glob("*worker*.log"):
        *printed, last = ["", *log.read_text().splitlines()]  # a check imports it again
        assert {*printed} <= {"", "imported"}
        assert last in ("", "imported", f"error: {sentence}")


@pytest.mark.parametrize("portable", ["", "1"])
def test_a_module_may_parse_its_command_line_and_start_processes(portable, tmp_path):
    (tmp_path / "parses.py").write_text(PARSES)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    done = studyloom(
        "run", "mine.yaml", "study.trials=3", cwd=tmp_path, STUDYLOOM_PORTABLE=portable
    )
    assert done.returncode == 0, done.stderr
    assert "usage" not in done.stderr
    assert (tmp_path / "seen").read_text() == "\n" * 3


def test_workers_import_the_modules_of_a_script_with_arguments(
    tmp_path,
):
    (tmp_path / "parses.py").write_text(PARSES)
    (tmp_path / "script.py").write_text(SCRIPT)
    process = run_python(tmp_path, "script.py", "--epochs=3")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert (tmp_path / "seen").read_text() == "\n" * 2


@pytest.mark.parametrize(
    "module",
    [
        "studyloom.config.main",
        "omegaconf",
        "hydra.core.override_parser.overrides_visitor",
        "torch",
        "studyloom.worker.worker",
        "studyloom.worker.forks",
    ],
)
def test_an_interrupt_during_imports_prints_one_line_and_exits_with_130(module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS)
    path = os.pathsep.join(map(str, (tmp_path, ROOT)))
    process = start(f"run_dir={tmp_path}/run", PYTHONPATH=path, STUDYLOOM_TEST_MODULE=module)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "stopped before the first trial\n")
    assert not (tmp_path / "run" / "study.db").exists()


@linux
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-", "# trap '' CHLD"])
def test_closed_streams_and_ignored_children_do_not_stop_a_command(closed, tmp_path):
    (tmp_path / "parses.py").write_text(PARSES)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    before = "trap '' CHLD; " if closed.startswith("#") else ""
    shell = f'{before}exec "$0" -m studyloom run mine.yaml run_dir=run {closed}'
    command = ["sh", "-c", shell, sys.executable]
    assert subprocess.run(command, cwd=tmp_path, env=environment(), timeout=60).returncode == 0
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_while_a_new_study_starts_prints_one_line(kind, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS)
    write_study("mine", tmp_path, kind)
    module = "omegaconf" if kind == "command" else "torch"
    process = start(page="mine", cwd=tmp_path, PYTHONPATH=".", STUDYLOOM_TEST_MODULE=module)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "stopped before the first trial\n")
