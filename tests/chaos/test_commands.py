"""Faults of whole commands: whatever ends one, the same command continues to the same values.

They are compared with those of an undisturbed run.
"""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from commands import ROOT, start, study
from live_processes import linux, until
from runs import Run, kill
from servers import Server

pytestmark = [pytest.mark.chaos, linux]


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run", f"sqlite:///{tmp_path}/run/study.db")
    yield run
    kill(run.processes())  # where a test has failed


def test_the_same_command_resumes_after_any_signal(run, undisturbed):
    """tests/worker has Ctrl-C."""

    def send(number):
        run.latest.send_signal(number)
        run.latest.stderr.readline()  # that it stops

    for number, code in ((signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        process = run.at_work(meanwhile=lambda number=number: send(number))
        run.end(process, code, 20)
        assert run.stored().ledger.counts()["held"] == 0
    run.finish(undisturbed)


# A clock


@pytest.mark.nightly
def test_a_clock_that_is_an_hour_off_changes_no_result(run, undisturbed, needs):
    needs("faketime")
    whole = run.overrides

    def join():
        run.overrides = tuple(way for way in whole if not way.startswith("launcher."))
        run.start(
            "launcher=join", within=["faketime", "-f", "+1h"], FAKETIME_DONT_FAKE_MONOTONIC="1"
        )
        run.until_done(1)  # the others have not done any

    process, ahead = run.at_work(meanwhile=join), run.latest
    printed = [each.communicate(timeout=300) for each in (process, ahead)]
    for each, (out, err) in zip((process, ahead), printed, strict=True):  # once both have ended
        run.ended(each.returncode, out, err, 0)
    run.check(undisturbed)


# A database that is away


@pytest.fixture(scope="module")
def server():
    # Not below pytest's folder, which the server's own user may not enter.
    with tempfile.TemporaryDirectory(prefix="studyloom-pg") as folder:
        server = Server(Path(folder))
        yield server
        server.start()
        server.stop(signal.SIGQUIT)
        server.server.cleanup_mode = None  # else it takes seconds to stop what is gone
        server.server.cleanup()


@pytest.fixture
def served(server, tmp_path):
    server.start()
    server.ask("DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public")
    yield Run(tmp_path / "run", server.url)
    server.start()


def test_a_study_outlives_a_server_that_crashes_and_comes_back(server, served, undisturbed):
    def crash():
        server.stop(signal.SIGQUIT)
        until(lambda: "trying again" in served.logs(), 60)

    process = served.at_work(meanwhile=crash)
    server.start()
    served.end(process, 0)
    assert "is back after" in served.logs()
    served.check(undisturbed)


@pytest.mark.nightly
def test_a_server_that_stays_away_ends_the_command_which_later_resumes(server, served, undisturbed):
    process = served.at_work("storage.deadline=20", meanwhile=lambda: server.stop(signal.SIGQUIT))
    printed = served.end(process, 1, 36)  # whatever it asks at its end
    assert "it did not recover in" in printed
    assert "once it is back, the same command resumes the study" in printed
    server.start()
    served.finish(undisturbed)


SLEEPER = """
import os
import time

import torch


def train(config, run):
    run.keep(net=torch.nn.Linear(1, 1))
    return config.optimizer.lr


def test(config, run, part):
    run.keep(net=torch.nn.Linear(1, 1))
    if gate := os.environ.get("STUDYLOOM_TEST_GATE"):
        os.mkdir(gate)
        time.sleep(300)
    return {"rate": config.optimizer.lr}
"""


def test_a_command_that_sleeps_in_its_test_blocks_no_other_study(server, served, tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    gate, path = tmp_path / "gate", os.pathsep.join((str(tmp_path), str(ROOT)))
    shared = {"STUDYLOOM_STORAGE": server.url, "PYTHONPATH": path, "cwd": tmp_path}
    asked = (
        *("objective._target_=sleeper.train", "+objective.test=sleeper.test"),
        *("objective.metric=rate", "objective.direction=maximize", "space=lr", "storage=postgres"),
        *("sampler=random", "pruner=none", "study.trials=2", "launcher.workers=1"),
        *("winner.top=1", "winner.seeds=2"),
    )
    sleeper = start(*asked, f"run_dir={tmp_path}/a", STUDYLOOM_TEST_GATE=str(gate), **shared)
    until(gate.exists)
    sleeper.send_signal(signal.SIGSTOP)
    other = study(*asked, f"run_dir={tmp_path}/b", "study.name=other", **shared)
    sleeper.kill()
    sleeper.communicate()
    assert other.returncode == 0, other.stderr
    assert "waiting for another command" not in other.stderr


# A database that is gone


def test_a_database_deleted_in_mid_run_is_named_and_not_made_again(run):
    file = run.folder / "study.db"
    printed = run.end(run.at_work(meanwhile=file.unlink), 1)
    assert "error: storage.url: cannot use sqlite:///" in printed
    assert not file.exists()


# A disk


@pytest.mark.nightly
def test_a_full_disk_for_checkpoints_costs_no_trial(run, undisturbed):
    """A small one, which is mounted for the command alone."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("mounting a disk needs root")
    folder = run.folder / "checkpoints"
    folder.mkdir(parents=True)
    script = f'mount -t tmpfs -o size=64k none {folder} && exec "$@"'
    within = ["unshare", "--mount", "sh", "-c", script, "sh"]
    run.end(run.start("checkpoints.interval=0", within=within), 0)
    assert "a crash would now cost this trial's epochs so far" in run.logs()
    run.check(undisturbed)
