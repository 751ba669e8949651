"""Faults of workers, on tiny trials and real databases."""

import os
import signal
import time
from pathlib import Path

import harness
import optuna
import pytest
from commands import FORKS
from harness import LEASE, NAME, PHASES, check, outcomes, prepare, run, start
from live_processes import until

from studyloom.study.opening import open_study

IN_TRANSACTIONS = ("after claim", "inside tell")  # where the two databases differ most

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_killed_at_any_phase_costs_nothing(sqlite_url, tmp_path, clean, phase):
    kill_at(phase, sqlite_url, tmp_path, clean)


@pytest.mark.parametrize("phase", IN_TRANSACTIONS)
def test_a_worker_killed_at_any_phase_costs_nothing_on_postgresql(
    postgres_url, tmp_path, clean, phase
):
    kill_at(phase, postgres_url, tmp_path, clean)


def kill_at(phase, url, tmp_path, clean):
    stored = prepare(url, 3)
    victim = start(url, 3, tmp_path, strike=(phase, 1, signal.SIGKILL))
    victim.join(180)
    assert victim.exitcode == -signal.SIGKILL
    run(url, 3, tmp_path)
    check(stored, 3, clean(3))


def test_a_worker_stopped_past_its_lease_and_continued_does_no_harm(sqlite_url, tmp_path, clean):
    stored = prepare(sqlite_url, 3)
    sleeper = start(sqlite_url, 3, tmp_path, strike=("between report and prune", 2, signal.SIGSTOP))
    until(lambda: is_stopped(sleeper.pid))
    run(sqlite_url, 3, tmp_path)  # waits for the lease to end, and goes on with the trial
    check(stored, 3, clean(3))
    os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join(180)
    assert sleeper.exitcode == 0
    check(stored, 3, clean(3))


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_damaged_checkpoint_costs_its_epochs_and_changes_nothing(sqlite_url, tmp_path, clean):
    stored = prepare(sqlite_url, 1)
    victim = start(sqlite_url, 1, tmp_path, strike=("after checkpoint", 1, signal.SIGKILL))
    victim.join(180)
    assert victim.exitcode == -signal.SIGKILL
    (file,) = tmp_path.glob("trial-0.pt")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    run(sqlite_url, 1, tmp_path)
    check(stored, 1, clean(1))


def create(url, barrier):
    barrier.wait(60)
    prepare(url, 5)


def test_six_processes_make_one_study_on_an_empty_database(sqlite_url):
    barrier = FORKS.Barrier(6)
    processes = [FORKS.Process(target=create, args=(sqlite_url, barrier)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    assert [process.exitcode for process in processes] == [0] * 6
    stored = open_study(sqlite_url, NAME)
    assert stored.ledger.counts() == {"free": 5, "held": 0, "done": 0}
    assert [study.study_name for study in stored.storage.get_all_studies()] == [NAME]


def test_a_strangers_lock_is_waited_for(sqlite_url, tmp_path, clean):
    stored = prepare(sqlite_url, 3)
    stranger = stored.ledger.storage.engine.raw_connection()
    stranger.cursor().execute("BEGIN IMMEDIATE")
    worker = start(sqlite_url, 3, tmp_path)
    worker.join(2 * LEASE)
    assert worker.is_alive()
    assert stored.trials() == []
    stranger.rollback()
    worker.join(180)
    assert worker.exitcode == 0
    check(stored, 3, clean(3))


def test_a_tell_that_meets_anothers_row_lock_waits_for_it(postgres_url, tmp_path, clean):
    stored = prepare(postgres_url, 1)
    worker = start(postgres_url, 1, tmp_path, strike=("before tell", 0, signal.SIGSTOP))
    until(lambda: is_stopped(worker.pid))
    with stored.ledger.storage.engine.begin() as connection:
        connection.exec_driver_sql("SELECT * FROM trials FOR UPDATE")
        os.kill(worker.pid, signal.SIGCONT)
        worker.join(0.5)
        assert worker.is_alive()
    worker.join(180)
    assert worker.exitcode == 0
    check(stored, 1, clean(1))


def test_workers_in_other_time_zones_agree(postgres_url, tmp_path, clean):
    url = postgres_url
    stored = prepare(url, 4)
    processes = []
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        process = FORKS.Process(target=in_zone, args=(zone, url, 4, str(tmp_path)))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(180)
        assert process.exitcode == 0
    check(stored, 4, clean(4))


def in_zone(zone, url, trials, folder):
    os.environ["TZ"] = zone
    time.tzset()
    harness.work(url, trials, folder)


def test_the_checker_sees_what_is_wrong(sqlite_url, tmp_path, clean):
    """A check that cannot fail checks nothing."""
    stored = prepare(sqlite_url, 3)
    run(sqlite_url, 3, tmp_path)
    check(stored, 3, clean(3))
    with pytest.raises(AssertionError, match="I5"):
        check(stored, 3, clean(3, seed=7))
    with pytest.raises(AssertionError, match="I2"):
        check(stored, 4)
    extra = optuna.load_study(study_name=NAME, storage=stored.storage).ask()
    with pytest.raises(AssertionError, match="I"):
        check(stored, 4)
    assert extra.number == 3
    stored.ledger.extend(4)
    with pytest.raises(AssertionError):
        check(stored, 3)
    assert outcomes(stored) == clean(3)  # a trial of another program is not counted
