"""Faults of whole commands: whatever ends one, the same command continues to the same values.

They are compared with those of an undisturbed run.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from commands import BARE
from harness import until
from runs import TRIALS, Run, kill, nap
from servers import Server

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(
        not Path("/proc/self/environ").exists(), reason="processes are looked up in /proc"
    ),
]


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run", f"sqlite:///{tmp_path}/run/study.db")
    yield run
    kill(run.processes())  # where a test has failed


# Commands and workers that are killed or stopped


@pytest.mark.nightly
def test_a_storm_of_kills_among_the_workers_of_one_command(run, undisturbed):
    # Many attempts: the storm may meet the same trial again and again.
    process = run.start("study.max_attempts=99")
    fate = random.Random(0)
    for done in range(1, TRIALS):
        run.until_done(done)
        run.kill_a_worker(process, fate)
    printed = run.end(process, 0)
    assert "a worker ended with signal SIGKILL" in printed
    run.check(undisturbed)


STOPS = {
    "Ctrl-C": ([signal.SIGINT], 130),
    "SIGTERM": ([signal.SIGTERM], 143),
    "SIGHUP": ([signal.SIGHUP], 129),
    "Ctrl-C twice": ([signal.SIGINT] * 2, 130),
}


def send(run, signals):
    """Sends signals to the command, which prints at each that it stops."""
    for number in signals:
        run.latest.send_signal(number)
        run.latest.stderr.readline()


def test_whatever_signal_ends_it_the_same_command_goes_on(run, undisturbed):
    for signals, code in STOPS.values():
        process = run.at_work(meanwhile=lambda signals=signals: send(run, signals))
        run.end(process, code, 20)
        assert run.stored().ledger.counts()["held"] == 0
    run.finish(undisturbed)


@pytest.mark.parametrize(("seconds", "count"), [(0.3, 1), (1.5, 2)])
def test_ctrl_c_while_it_starts(run, undisturbed, seconds, count):
    gate = run.folder.with_name("gate")  # it does not end before, however fast it is
    process = run.start(STUDYLOOM_TEST_GATE=str(gate))
    nap(seconds)
    for _ in range(count):
        process.send_signal(signal.SIGINT)
        nap(0.05)
    gate.touch()
    out, err = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT), (out, err)
    run.finish(undisturbed)


def test_two_commands_at_once_one_of_which_is_killed(run, undisturbed):
    first, second = run.start(), run.start()
    run.until_done(2)
    kill([first.pid])
    assert first.wait() == -signal.SIGKILL
    first.communicate()
    run.end(second, 0)
    run.check(undisturbed)


# A clock


@pytest.mark.nightly
def test_a_worker_whose_clock_is_an_hour_off(run, undisturbed, needs):
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


@pytest.fixture(scope="session")
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


@pytest.mark.parametrize(
    ("end", "seconds"),
    [(signal.SIGINT, 0), (signal.SIGQUIT, 5)],
    ids=["restarted", "crashed, away for 5 s"],
)
def test_a_server_that_goes_and_comes_back(server, served, undisturbed, end, seconds):
    process = served.at_work(meanwhile=lambda: server.stop(end))
    nap(seconds)
    server.start()
    served.end(process, 0)
    assert not seconds or "is back after" in served.logs()
    served.check(undisturbed)


def test_a_server_that_stays_away_ends_the_command_with_the_cause_and_it_goes_on_when_it_is_back(
    server, served, undisturbed
):
    process = served.at_work("storage.deadline=3", meanwhile=lambda: server.stop(signal.SIGQUIT))
    printed = served.end(process, 1)
    assert "it did not recover in" in printed
    assert "once it is back, the same command goes on from here" in printed
    server.start()
    served.finish(undisturbed)


def test_ctrl_c_while_the_server_is_away(server, served, undisturbed):
    process = served.at_work(meanwhile=lambda: server.stop(signal.SIGQUIT))
    nap(1)
    send(served, [signal.SIGINT])
    served.end(process, 130, 20)
    server.start()
    served.finish(undisturbed)


# A database that is gone


@pytest.mark.parametrize("damage", ["deleted", "overwritten"])
def test_a_file_that_is_spoilt_in_mid_run_is_named_and_nothing_made_in_its_place(run, damage):
    file = run.folder / "study.db"
    size = None

    def spoil():
        nonlocal size
        size = file.stat().st_size
        match damage:
            case "deleted":
                file.unlink()
            case "overwritten":
                file.write_bytes(random.Random(0).randbytes(size))

    printed = run.end(run.at_work(meanwhile=spoil), 1)
    assert "error: storage.url: cannot use sqlite:///" in printed
    assert file.exists() == (damage != "deleted")
    assert not file.exists() or file.stat().st_size <= size or damage == "overwritten"


# Disks


@contextlib.contextmanager
def small_disk(folder, size):
    """Mounts a small disk at a folder.

    Args:
        folder: where the disk is mounted.
        size: of the disk, in KiB.

    Yields:
        The command within which other commands see the disk, and a path to the files on it.
    """
    if os.geteuid() or shutil.which("nsenter") is None:
        pytest.skip("mounting a disk needs root")
    folder.mkdir(parents=True)
    script = f"mount -t tmpfs -o size={size}k none {folder} && echo up && exec sleep 600"
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True
    )
    try:
        if holder.stdout.readline() != "up\n":
            pytest.skip("no mount namespaces here")
        yield ["nsenter", "-t", str(holder.pid), "-m"], Path(f"/proc/{holder.pid}/root{folder}")
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.nightly
def test_a_disk_that_is_full_under_the_database_in_mid_run(tmp_path, undisturbed):
    run = Run(tmp_path / "disk" / "run", f"sqlite:///{tmp_path}/copy/study.db")
    run.hidden = True
    with small_disk(tmp_path / "disk", 12_000) as (within, files):
        process = run.start(within=within)
        until(lambda: list((files / "run" / "checkpoints").glob("*.pt")))
        with contextlib.suppress(OSError), (files / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1000))
        printed = run.end(process, 1)
        assert "disk is full (free some space, or name another run_dir)" in printed
        (files / "filler").unlink()
        run.end(run.start(within=within), 0)
        shutil.copytree(files / "run", tmp_path / "copy")
    run.check(undisturbed)


@pytest.mark.nightly
def test_a_disk_that_is_full_under_the_checkpoints_costs_no_trial(run, undisturbed):
    with small_disk(run.folder / "checkpoints", 64) as (within, _):
        run.end(run.start(within=within), 0)
    assert "a crash would now cost this trial's epochs so far" in run.logs()
    run.check(undisturbed)


# Trials that fail, on purpose

NETWORK = """
import os, signal, subprocess, time, torch

class Net(torch.nn.Linear):
    def __init__(self, shape, classes, deed):
        super().__init__(784, classes)
        self.deed = deed
        self.fails = bool(torch.rand(()) < 0.3)

    def forward(self, images):
        if len(images) > 2 and (self.fails or self.deed == "always"):
            raise RuntimeError("one of five" if self.deed != "always" else "a bug")
        return super().forward(images.flatten(1))
"""


@pytest.fixture
def failing(run, tmp_path):
    (tmp_path / "failing.py").write_text(NETWORK)
    network = ("model._target_=failing.Net", *BARE)

    def make(deed):
        kept = tuple(override for override in run.overrides if not override.startswith("model."))
        run.overrides = (*kept, *network, f"+model.deed={deed}")
        run.environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
        return run

    return make


def test_an_exception_in_some_trials_fails_them_alone_with_the_reason(failing):
    run = failing("some")
    out, err = run.start("study.seed=5").communicate(timeout=120)
    trials = run.stored().trials()
    assert len(trials) == TRIALS
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    assert 0 < len(failed) < TRIALS
    assert {trial.user_attrs["reason"] for trial in failed} == {"RuntimeError: one of five"}
    assert all(trial.user_attrs["failure"] == "error" for trial in failed)
    assert f"error  {len(failed)} × such as: RuntimeError: one of five" in out
    assert "Traceback" not in out + err


def test_an_exception_in_all_trials_ends_the_study_with_it_once(failing):
    run = failing("always")
    process = run.start()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.count("RuntimeError: a bug") == 1
    assert len(run.stored().trials()) <= 3
    assert "Traceback" not in out + err
    assert run.stored().ledger.counts()["held"] == 0
