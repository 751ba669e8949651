"""Many workers on one PostgreSQL server: sleeping trials under the real worker loop.

A trial of 60 s has 10 epochs. So that a bench ends in minutes, its seconds are divided by a factor,
which is printed: the largest at which no more trials end in a second than 1,000 workers end of
60 s. A worker is a thread with connections, its ledger, buffer and reporter, under
`study.worker.Worker`; some processes hold all threads. Threads of a process share its interpreter
lock, so a call waits for those of others where separate hosts would not: the processor time
that is printed next to the waits does not know that.
"""

import collections
import functools
import os
import random
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import sqlalchemy
import torch
from optuna.trial import TrialState

from studyloom.data.training_data import TrainingData
from studyloom.objectives.objective import Objective
from studyloom.processes import is_alive
from studyloom.space.tree import Configuration
from studyloom.storage import urls
from studyloom.storage.ledger import Ledger
from studyloom.storage.opening import create_study, open_study
from studyloom.worker import worker as worker_module
from studyloom.worker.held_trial import HeldTrial
from studyloom.worker.reporter import Reporter
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker

from .pooling import pooled
from .toy import Bare

EPOCHS, SECONDS, MOST_A_SECOND = 10, 60.0, 1000 / 60
PROCESSES = 4  # which hold the threads
CONNECTIONS = 450  # more workers than this go through pgbouncer: the server takes 500
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Epoch:
    """One step of a sleeping trial."""

    number: int
    value: float
    seconds: float


class Sleep(Objective):
    """An objective that sleeps, and whose value comes to what its parameters say.

    Args:
        configuration: Its hyperparameters.
        nap: Seconds of an epoch.
    """

    epochs = EPOCHS

    def __init__(self, configuration: Configuration, nap: float) -> None:
        self.best = 1 - sum((value - 0.3) ** 2 for value in configuration.params.values()) / 6
        self.nap, self._steps = nap, list[Epoch]()

    def run(self, report: Callable[[Epoch], None], stopping: Any) -> float:
        """Sleeps and reports, epoch by epoch."""
        while len(self._steps) < EPOCHS:
            time.sleep(self.nap)
            log().slept += self.nap
            number = len(self._steps) + 1
            self._steps.append(Epoch(number, self.best * number / (number + 1), self.nap))
            report(self._steps[-1])
        return self._steps[-1].value

    def steps(self) -> Sequence[Epoch]:
        return self._steps

    def cut(self, number: int) -> None:
        self._steps = [step for step in self._steps if step.number <= number]

    def curves(self) -> dict[str, list[Any]]:
        names = ("number", "value", "seconds")
        return {name: [getattr(step, name) for step in self._steps] for name in names}


class Asleep(Bare):
    """The definition of six numbers with trials that sleep.

    Args:
        sampler: random, or tpe, which goes with the median.
        nap: Seconds of an epoch.
    """

    def __init__(self, sampler: str, nap: float) -> None:
        self.kind, self.nap = sampler, nap

    def make_objective(
        self, configuration: Configuration, number: int, data: Any, attempt: Any
    ) -> Any:
        began = log()
        if began.claimed:
            began.took["start"].append(time.perf_counter() - began.claimed)
        return Sleep(configuration, self.nap)

    def sampler(self, number: int, *, redraws: bool = False) -> optuna.samplers.BaseSampler:
        if self.kind == "tpe":
            return super().sampler(number)
        return optuna.samplers.RandomSampler(seed=number)

    def pruner(self) -> optuna.pruners.BasePruner:
        return super().pruner() if self.kind == "tpe" else optuna.pruners.NopPruner()


class Log:
    """What a worker, which is a thread, has met.

    Attributes:
        took: Seconds of each call, by its kind: claim, start (from the claim to the first epoch),
            report, and tell.
        slept: Seconds that its trials have slept.
        claimed: When it was given its last claim; 0 if none.
        first, last: When its first claim was requested, and its last trial ended.
    """

    def __init__(self) -> None:
        self.took = collections.defaultdict[str, list[float]](list)
        self.slept = self.claimed = self.first = self.last = 0.0


class _Own(threading.local):
    log: Log


_own = _Own()


def log() -> Log:
    """Returns the log of the worker that this thread is."""
    return _own.log


def timed(kind: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a method note in the log of its worker how long each call took."""

    @functools.wraps(method)
    def measured(self: Any, *arguments: Any, **named: Any) -> Any:
        # Reports are posted by a thread of their trial.
        own = getattr(_own, "log", None) or getattr(self, "held", self).stopwatch.log
        began = time.perf_counter()
        own.first = own.first or began
        try:
            result = method(self, *arguments, **named)
        finally:
            now = time.perf_counter()
        if kind != "claim" or result is not None:
            own.took[kind].append(now - began)
            own.claimed = now if kind == "claim" else own.claimed
            own.last = now if kind == "tell" else own.last
        return result

    return measured


def watch_calls() -> None:
    """Has the calls of all workers of this process measured, and each thread be a worker."""
    Ledger.claim = timed("claim", Ledger.claim)  # type: ignore[method-assign]
    Reporter.post = timed("report", Reporter.post)  # type: ignore[method-assign]
    HeldTrial.end = timed("tell", HeldTrial.end)  # type: ignore[method-assign]
    worker_module.worker_id = lambda pid: f"bench:{pid}-{threading.get_ident()}"  # type: ignore[assignment]


class Never:
    """Never stops a worker."""

    lone_signal = None

    def __call__(self) -> bool:
        return False

    def interruptible(self) -> Any:
        return nullcontext()


def hold(
    url: str, kind: str, factor: float, trials: int, delays: list[float], ready: Any, replies: Any
) -> None:
    """Runs workers as the threads of this process, each from its delay on.

    Args:
        url: The database.
        kind: The sampler.
        factor: By which seconds are divided.
        trials: The budget of the study.
        delays: Seconds after which each worker requests its first trial.
        ready: A barrier for all processes.
        replies: Where the logs go.
    """
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    watch_calls()
    definition = Asleep(kind, SECONDS / EPOCHS / factor)
    logs = [Log() for _ in delays]

    def work(own: Log, delay: float) -> None:
        time.sleep(delay)
        _own.log = own
        stored = open_study(url, "cluster")
        stage = Stage("search", stored, definition, definition, trials)  # type: ignore[arg-type]
        worker = Worker(stage, DATA, Never(), None)
        worker.stopwatch.log = own  # type: ignore[attr-defined]
        worker.run()
        stored.close()

    threading.stack_size(512 * 1024)
    threads = [threading.Thread(target=work, args=pair) for pair in zip(logs, delays, strict=True)]
    ready.wait()
    worked = os.times()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = os.times()
    replies.put((logs, now.user + now.system - worked.user - worked.system))


DATA = TrainingData(None, None, [])  # type: ignore[arg-type]


def serve(folder: Path, pipe: Any) -> None:
    """Keeps the embedded server of a folder alive until the other end of a pipe is closed."""
    pipe.send(urls.start_embedded_server(f"embedded_postgres:///{folder}", create=True))
    with suppress(EOFError):
        pipe.recv()


@contextmanager
def server(folder: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """Runs the embedded server; gives its URL, and a function for its processor time so far."""
    context = torch.multiprocessing.get_context("spawn")
    place, (near, far) = Path(folder, "server"), context.Pipe()
    process = context.Process(target=serve, args=(place, far))
    process.start()
    try:
        url = near.recv()
        pid = int((place / "data" / "postmaster.pid").read_text().splitlines()[0])
        yield url, functools.partial(processor_time, pid)
    finally:
        near.send(None)
        process.join()
        while is_alive(pid):
            time.sleep(0.05)


def processor_time(pid: int) -> float:
    """Returns the seconds of a process and all below it, those that have ended included."""
    total = 0
    for one in (pid, *[each.pid for each in psutil.Process(pid).children(recursive=True)]):
        with suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / TICK


def cluster(sizes: Sequence[int], rounds: int, factor: float | None = None) -> None:
    """Prints how so many workers get on with one server, each with so many trials in the mean."""
    for workers in sizes:
        shrunk = factor or min(10.0, max(1.0, MOST_A_SECOND * SECONDS / workers))
        for kind in ("random", "tpe"):
            with tempfile.TemporaryDirectory() as folder, server(folder) as (url, spent):
                pool = pooled(url, folder) if workers > CONNECTIONS else nullcontext(url)
                with pool as entry:
                    measure(url, entry, spent, kind, workers, rounds * workers, shrunk)


def measure(
    url: str,
    entry: str,
    spent: Callable[[], float],
    kind: str,
    workers: int,
    trials: int,
    factor: float,
) -> None:
    """Runs one study with so many workers, and prints what came of it.

    Args:
        url: The server itself.
        entry: Where the workers connect, which may be a pool of connections.
        spent: Returns the server's processor time.
        kind: The sampler.
        workers: How many.
        trials: The budget.
        factor: By which seconds are divided.
    """
    create_study(entry, "cluster", {"bench": "cluster"}, trials).close()
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    fate, count = random.Random(0), min(PROCESSES, workers)
    delays = [fate.uniform(0, SECONDS / factor) for _ in range(workers)]
    ready, replies = context.Barrier(count + 1), context.SimpleQueue()
    shares = [delays[n::count] for n in range(count)]
    processes = [
        context.Process(target=hold, args=(entry, kind, factor, trials, share, ready, replies))
        for share in shares
    ]
    for process in processes:
        process.start()
    ready.wait()
    before, began, most = spent(), time.perf_counter(), 0
    looks = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with looks.connect() as connection:
        while replies.empty() and all(process.exitcode in (None, 0) for process in processes):
            most = max(most, connections(connection))
            time.sleep(0.5)
        found = [replies.get() for _ in processes]
    seconds, server_time = time.perf_counter() - began, spent() - before
    for process in processes:
        process.join()
    looks.dispose()
    logs = [one for own, _ in found for one in own]
    print_result(
        Result(kind, workers, trials, factor, seconds, most, server_time, sum(w for _, w in found)),
        logs,
        duplicates(url, trials),
    )


def connections(connection: sqlalchemy.Connection) -> int:
    """Counts the connections that the server has, but for this one."""
    query = "SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend'"
    return int(connection.exec_driver_sql(query).scalar_one())


@dataclass
class Result:
    """How a study went; seconds are real ones."""

    kind: str
    workers: int
    trials: int
    factor: float
    seconds: float
    connections: int
    server_time: float
    worker_time: float


def duplicates(url: str, trials: int) -> int:
    """Counts the trials beyond one for each slot, and the slots beyond one for each trial."""
    stored = open_study(url, "cluster")
    numbers = [trial.number for trial in stored.trials()]
    ended = [t for t in stored.trials() if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    slots = {trial.user_attrs["slot"] for trial in ended}
    stored.close()
    return abs(len(numbers) - trials) + abs(len(set(numbers)) - trials) + abs(len(slots) - trials)


def print_result(result: Result, logs: Sequence[Log], twice: int) -> None:
    """Prints the figures of a study."""
    counts = [len(own.took["tell"]) for own in logs]
    used = [own.slept / (own.last - own.first) for own in logs if own.last > own.first]
    print(
        f"{result.workers} workers, sampler={result.kind}, {result.trials} trials of "
        f"{SECONDS / result.factor:g} s (60 s / {result.factor:g}) in {result.seconds:.0f} s\n"
        f"  {result.trials / result.seconds:.1f} trials/s, utilization {np.mean(used):.3f}, "
        f"{result.connections} connections, {twice} duplicates, "
        f"{min(counts)} to {max(counts)} trials a worker\n"
        f"  processor time a trial: server {1000 * result.server_time / result.trials:.1f} ms, "
        f"workers {1000 * result.worker_time / result.trials:.1f} ms; "
        f"{(result.server_time + result.worker_time) / result.seconds:.2f} cores in use"
    )
    for kind in ("claim", "start", "report", "tell"):
        took = 1000 * np.array([seconds for own in logs for seconds in own.took[kind]] or [0.0])
        p50, p99 = np.percentile(took, [50, 99])
        print(f"  {kind:7} p50 {p50:8.1f} ms, p99 {p99:8.1f} ms, most {took.max():8.1f} ms")
