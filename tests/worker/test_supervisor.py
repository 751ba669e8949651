"""The supervisor, with shells for workers; test_local.py has real ones."""

import os
import signal
from types import SimpleNamespace

import psutil
from live_processes import gone, imitate_killpg_of_macos, linux, until, wait_for_zombie

from studyloom.errors import StorageLost
from studyloom.processes import worker_id
from studyloom.storage.failures import Limits
from studyloom.worker.local import LocalWorker
from studyloom.worker.supervisor import Supervisor
from studyloom.worker.task import Task, renewing_leases


@linux
def test_only_the_programs_of_a_killed_worker_end_with_it(tmp_path):
    """As the ranks of torchrun are, whose parent is then neither the worker nor we."""
    start = "setsid sleep 600 & echo $!; (setsid sleep 600 & echo $!); wait"
    workers = [
        LocalWorker(["sh", "-c", start], {}, tmp_path / f"log-{number}") for number in range(2)
    ]
    for worker in workers:
        worker.start()
    killed, other = (
        [int(pid) for pid in until(lambda worker=worker: two_lines(worker.log))]
        for worker in workers
    )
    os.kill(workers[0].process.pid, signal.SIGKILL)
    until(lambda: workers[0].poll() is not None)
    assert not any(map(gone, killed))
    workers[0].kill()
    until(lambda: all(map(gone, killed)), 10)
    assert not any(map(gone, other))
    deaths = []
    ledger = SimpleNamespace(record_death=lambda worker_id, death: deaths.append(worker_id))
    task = Task(lambda stop: None, lambda: 1, ledger, tmp_path, Limits(), "s")
    pid = workers[1].process.pid
    Supervisor(task, workers).kill_all()
    assert deaths == [worker_id(pid)]
    until(lambda: all(map(gone, [pid, *other])), 10)


def test_a_zombie_is_a_killed_worker_as_on_macos(tmp_path, monkeypatch):
    imitate_killpg_of_macos(monkeypatch)
    worker = LocalWorker(["true"], {}, tmp_path / "log")
    worker.start()
    pid = worker.process.pid
    wait_for_zombie(pid)
    assert worker.kill() == worker_id(pid)
    assert not worker.active


@linux
def test_a_stray_whose_environment_is_hidden_is_found_by_its_parents(tmp_path, monkeypatch):
    """As programs of macOS are; here a grandchild, in a session of its own."""

    def hide(process):
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "environ", hide)
    start = "setsid sh -c 'sleep 600 & echo $$ $!; wait' & wait"
    worker = LocalWorker(["sh", "-c", start], {}, tmp_path / "log")
    worker.start()
    strays = [int(pid) for pid in until(lambda: two_lines(worker.log))]
    worker.kill()
    until(lambda: all(map(gone, strays)), 10)


def two_lines(path):
    lines = path.read_text().split()
    return lines if len(lines) == 2 else None


def test_leases_are_renewed_again_after_the_database_was_away(tmp_path):
    renewed = []

    def renew_for(worker_ids, lease):
        renewed.append(worker_ids)
        if len(renewed) == 1:
            raise StorageLost("locked")

    ledger = SimpleNamespace(renew_for=renew_for)
    task = Task(lambda stop: None, lambda: 1, ledger, tmp_path, Limits(lease=0.04), "s")
    with renewing_leases(task, lambda: ["w"]):
        until(lambda: len(renewed) > 2, 10)
    assert renewed[0] == renewed[-1] == ["w"]
