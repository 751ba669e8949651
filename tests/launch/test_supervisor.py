"""The supervisor, with shells for workers; test_local.py has real ones."""

import os
import signal
from types import SimpleNamespace

from live_processes import gone, linux, until

from studyloom.errors import StorageLost
from studyloom.launch.local import LocalWorker
from studyloom.launch.supervisor import Supervisor
from studyloom.launch.task import Task, renewing_leases
from studyloom.processes import worker_id
from studyloom.storage.slots import HeldClaim
from studyloom.study.reporter import Limits


@linux
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
    deaths = []
    ledger = SimpleNamespace(record_death=lambda worker_id, death: deaths.append(worker_id))
    task = Task(lambda stop: None, lambda: 1, ledger, tmp_path, Limits(), "s")
    pid = workers[1].process.pid
    Supervisor(task, workers).kill_all()
    assert deaths == [worker_id(pid)]
    until(lambda: all(map(gone, [pid, *other])), 10)


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


class Overdue:
    """A ledger and the workers of two overdue trials; the second ends its own during a kill."""

    def __init__(self):
        self.claims = {"a": HeldClaim("a", 1, 0, 1), "b": HeldClaim("b", 1, 1, 1)}
        self.late = [*self.claims.values()]
        self.deaths, self.killed, self.started = [], [], []

    def overdue(self, worker_ids, limit):
        return [self.claims[id] for id in worker_ids if self.claims.get(id) in self.late]

    def record_death(self, worker_id, death, *, overdue=None):
        self.deaths.append((worker_id, overdue))
        del self.claims[worker_id]

    def worker(self, worker_id):
        def kill():
            self.killed.append(worker_id)
            self.claims["b"] = HeldClaim("b", 1, 2, 1)

        start = lambda: self.started.append(worker_id)  # noqa: E731
        return SimpleNamespace(worker_id=worker_id, kill=kill, start=start)


def test_a_worker_that_begins_another_trial_during_the_kill_of_one_lives_on(tmp_path):
    fake = Overdue()
    task = Task(lambda stop: None, lambda: 1, fake, tmp_path, Limits(trial_timeout=1.0), "s")
    Supervisor(task, [fake.worker("a"), fake.worker("b")])._kill_timed_out()
    assert fake.killed == fake.started == ["a"]
    assert fake.deaths == [("a", HeldClaim("a", 1, 0, 1))]
    assert fake.claims == {"b": HeldClaim("b", 1, 2, 1)}
