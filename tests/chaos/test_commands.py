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
from live_processes import linux, until
from runs import TRIALS, Run, kill, nap
from servers import Server

pytestmark = [pytest.mark.chaos, linux]


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


def send(run, number):
    """Sends a signal to the command, which prints that it stops."""
    run.latest.send_signal(number)
    run.latest.stderr.readline()


def test_whatever_signal_ends_it_the_same_command_goes_on(run, undisturbed):
    """tests/launch has Ctrl-C."""
    for number, code in ((signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        process = run.at_work(meanwhile=lambda number=number: send(run, number))
        run.end(process, code, 20)
        assert run.stored().ledger.counts()["held"] == 0
    run.finish(undisturbed)


def test_ctrl_c_while_it_starts(run, undisturbed):
    gate = run.folder.with_name("gate")  # it does not end before, however fast it is
    for seconds, count in ((0.3, 1), (1.5, 2)):
        process = run.start(STUDYLOOM_TEST_GATE=str(gate))
        nap(seconds)
        for _ in range(count):
            process.send_signal(signal.SIGINT)
            nap(0.05)
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


def crash(server, run):
    """Ends the server as a crash does, and returns once the workers wait for it."""
    server.stop(signal.SIGQUIT)
    until(lambda: "trying again" in run.logs(), 60)


def test_a_server_that_crashes_and_comes_back(server, served, undisturbed):
    process = served.at_work(meanwhile=lambda: crash(server, served))
    server.start()
    served.end(process, 0)
    assert "is back after" in served.logs()
    served.check(undisturbed)


@pytest.mark.nightly
def test_a_server_that_stays_away_ends_the_command_with_the_cause_and_it_goes_on_when_it_is_back(
    server, served, undisturbed
):
    process = served.at_work("storage.deadline=3", meanwhile=lambda: server.stop(signal.SIGQUIT))
    printed = served.end(process, 1)
    assert "it did not recover in" in printed
    assert "once it is back, the same command goes on from here" in printed
    server.start()
    served.finish(undisturbed)


@pytest.mark.nightly
def test_ctrl_c_while_the_server_is_away(server, served, undisturbed):
    process = served.at_work(meanwhile=lambda: crash(server, served))
    send(served, signal.SIGINT)
    served.end(process, 130, 20)
    server.start()
    served.finish(undisturbed)


# A database that is gone


def test_a_file_that_is_deleted_in_mid_run_is_named_and_nothing_made_in_its_place(run):
    file = run.folder / "study.db"
    printed = run.end(run.at_work(meanwhile=file.unlink), 1)
    assert "error: storage.url: cannot use sqlite:///" in printed
    assert not file.exists()


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
