"""The supervisor, with shells for workers; test_local.py has real ones."""

from types import SimpleNamespace

from live_processes import gone, until

from studyloom.launch.local import LocalWorker
from studyloom.launch.supervisor import Supervisor
from studyloom.launch.task import Task
from studyloom.processes import worker_id
from studyloom.study.reporter import Limits


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
