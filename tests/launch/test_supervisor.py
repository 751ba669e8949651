"""The supervisor, with shells for workers; test_local.py has real ones."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from live_processes import gone, until

from studyloom.launch.local import LocalWorker
from studyloom.launch.supervisor import Supervisor
from studyloom.launch.task import Task
from studyloom.processes import worker_id
from studyloom.study.trials.reporter import Limits


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="environments are read in /proc")
def test_what_a_killed_worker_started_in_other_sessions_ends_with_it_and_nothing_else(tmp_path):
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
    workers[1].kill()
    until(lambda: all(map(gone, other)), 10)


def two_lines(path):
    lines = path.read_text().split()
    return lines if len(lines) == 2 else None


def test_a_supervisor_kills_all_that_its_workers_started(tmp_path):
    deaths = []
    ledger = SimpleNamespace(record_death=lambda worker_id, death: deaths.append(worker_id))
    worker = LocalWorker(["sh", "-c", "sleep 600 & echo $!; wait"], {}, tmp_path / "log")
    task = Task(lambda stop: None, lambda: 1, ledger, tmp_path, Limits(), "s")
    supervisor = Supervisor(task, [worker])
    worker.start()
    grandchild = int(until(lambda: worker.log.read_text()))
    pid, guard = worker.process.pid, worker.guard.pid
    supervisor.kill_all()
    assert deaths == [worker_id(pid)]
    until(lambda: all(gone(process) for process in (pid, grandchild, guard)), 10)
