"""Faults of workers, on tiny trials and real databases."""

import os
import signal
from pathlib import Path

import pytest
from commands import FORKS
from harness import NAME, PHASES, check, kill_at, prepare, run, start
from live_processes import until

from studyloom.storage.opening import open_study

pytestmark = pytest.mark.chaos


IN_TRANSACTIONS = ("after claim", "inside tell")  # where the two databases differ most


@pytest.mark.parametrize(
    ("database", "phases", "trials"),
    [("sqlite_url", PHASES, 14), ("postgres_url", IN_TRANSACTIONS, 3)],
    ids=["sqlite", "postgresql"],
)
def test_workers_killed_at_any_phase_cost_nothing(
    database, phases, trials, request, tmp_path, clean
):
    """One after the other, each of which meets what the ones before have left."""
    url = request.getfixturevalue(database)
    stored = prepare(url, trials)
    for phase in phases:
        kill_at(phase, url, trials, tmp_path)
    assert stored.ledger.count_open(trials)
    run(url, trials, tmp_path)
    check(stored, trials, clean(trials))


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
    kill_at("after checkpoint", sqlite_url, 1, tmp_path)
    (file,) = tmp_path.glob("trial-0.pt")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    run(sqlite_url, 1, tmp_path)
    check(stored, 1, clean(1))


def create(url, barrier):
    barrier.wait(60)
    prepare(url, 5)


def test_several_processes_create_one_study_in_an_empty_database(sqlite_url):
    barrier = FORKS.Barrier(4)
    processes = [FORKS.Process(target=create, args=(sqlite_url, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        assert process.exitcode == 0
    stored = open_study(sqlite_url, NAME)
    assert stored.ledger.counts() == {"free": 5, "held": 0, "done": 0}
    assert [study.study_name for study in stored.storage.get_all_studies()] == [NAME]
