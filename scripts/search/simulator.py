"""Replays a search: real definition, space, sampler, pruner, worker loop and ledger, no training.

A trial's epochs are read from a task of `tables`, and each takes simulated time. Simulated workers
are threads of which one runs at a time: the one that is furthest behind. So a search is the same
at each replay, whatever else the machine does. The database is a SQLite file in memory.
"""

import functools
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra

import studyloom
from studyloom import processes
from studyloom.config.compose import Composer
from studyloom.config.config_sources import register
from studyloom.config.overrides import Override
from studyloom.config.study_config import StudyConfig
from studyloom.data.training_data import TrainingData
from studyloom.decisions import auto_sampler
from studyloom.decisions.placement import place_configuration
from studyloom.decisions.strategy import Strategy
from studyloom.decisions.warm_start import WarmStart, WarmStarts, enqueue
from studyloom.definition.definition import Definition
from studyloom.definition.network import NetworkDefinition
from studyloom.definition.prepare import find_definition_class
from studyloom.objectives.objective import Attempt, Objective, Step
from studyloom.space.language import parse_space
from studyloom.space.rule import Cost
from studyloom.space.tree import Configuration
from studyloom.storage.failures import Limits
from studyloom.storage.opening import create_study, open_study
from studyloom.storage.stored_study import StoredStudy
from studyloom.worker import reporter, worker
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker

from .surrogates import BRANCHES, Surrogate
from .tables import Results, Task

CONF = Path(studyloom.__file__).parents[2] / "conf"  # of the checkout whose source is imported
TRAINING = 27.0  # simulated seconds of a whole training, on average
LIMITS = Limits(lease=86400.0)  # a simulated worker may have to wait for its turn for long
# Seconds: a report is posted before the worker continues, however slow the machine.
FOREVER = 86400.0
IN_MEMORY = "/dev/shm"


class Clock:
    """Simulated time: one of several threads runs at a time, the one whose time is the least.

    Args:
        workers: how many threads there are.
    """

    def __init__(self, workers: int) -> None:
        self.times = dict.fromkeys(range(workers), 0.0)  # of those that have not ended
        self._turn = threading.Condition()
        self._mine = threading.local()

    @property
    def worker(self) -> int:
        """The number of the worker that this thread is."""
        return int(self._mine.number)

    def now(self) -> float:
        """Returns this worker's time in seconds."""
        return self.times[self.worker]

    def read(self) -> float:
        """Returns the time of the worker that runs, in any of its threads."""
        return min(self.times.values())

    def sleep(self, seconds: float) -> None:
        """Lets simulated time pass, and with it the workers that are behind by then."""
        with self._turn:
            self.times[self.worker] += seconds
            self._turn.notify_all()
            self._turn.wait_for(self._is_next)

    def _is_next(self) -> bool:
        return min(self.times, key=lambda number: (self.times[number], number)) == self.worker

    def run(self, work: Callable[[], None]) -> None:
        """Calls a function in each worker, and returns when all have returned.

        Raises:
            BaseException: what one of them has raised, the first if several have.
        """
        errors: list[BaseException] = []

        def take_turns(number: int) -> None:
            self._mine.number = number
            try:
                self.sleep(0.0)
                work()
            except BaseException as error:
                errors.append(error)
            finally:
                with self._turn:
                    del self.times[number]
                    self._turn.notify_all()

        threads = [threading.Thread(target=take_turns, args=(number,)) for number in self.times]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


@dataclass
class Tape:
    """What a search has seen, epoch by epoch, in the order of simulated time.

    Args:
        budget: epochs after which it stops.
    """

    budget: int
    trials: list[int] = field(default_factory=list)  # the number of the trial of each epoch
    configurations: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.epochs) >= self.budget

    def add(self, trial: int, configuration: int, epoch: int, value: float) -> None:
        self.trials.append(trial)
        self.configurations.append(configuration)
        self.epochs.append(epoch)
        self.values.append(value)


@dataclass
class Stop:
    """A `Stopping` that stops all workers once the budget is spent."""

    tape: Tape
    clock: Clock
    epoch: float  # seconds
    lone_signal: None = None

    def __call__(self) -> bool:
        # An epoch takes at most half as long again. A search that only waits would never end.
        return self.tape.full or self.clock.now() > 2.0 * self.epoch * self.tape.budget

    def interruptible(self) -> AbstractContextManager[None]:
        return nullcontext()

    def give_way(self) -> None:
        raise AssertionError("no other process resumes its trials")


@dataclass(frozen=True)
class Replayed:
    """A step of a trial, which is read and not trained; see `Step`."""

    number: int
    value: float
    seconds: float


@dataclass
class ReplayedObjective(Objective):
    """An objective that reads its learning curve; see `Objective`.

    Args:
        curve: the value after each epoch.
        trial: the number of the trial.
        configuration: whose curve it is.
        cost: simulated seconds that an epoch takes.
        tape: of the search.
        clock: of the workers.
    """

    curve: list[float]
    trial: int
    configuration: int
    cost: float
    tape: Tape
    clock: Clock
    done: int = 0

    @property
    def epochs(self) -> int:
        return len(self.curve)

    def run(self, report: Callable[[Step], None], stopping: Callable[[], bool]) -> float:
        while self.done < len(self.curve):
            self.done += 1
            self.clock.sleep(self.cost)
            self.tape.add(self.trial, self.configuration, self.done, self.curve[self.done - 1])
            report(self.step(self.done))
        return self.curve[-1]

    def step(self, number: int) -> Replayed:
        return Replayed(number, self.curve[number - 1], self.cost)

    def steps(self) -> Sequence[Replayed]:
        return [self.step(number + 1) for number in range(self.done)]

    def cut(self, number: int) -> None:
        self.done = number

    def state(self) -> dict[str, Any]:
        return {"done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        self.done = int(state["done"])


@dataclass(frozen=True)
class ReplayedDefinition:
    """A real study definition whose objectives are replayed; all else is its own.

    Args:
        definition: of the study module.
        results: what is replayed.
        tape: of the search.
        clock: of the workers.
    """

    definition: Definition
    results: Results
    tape: Tape
    clock: Clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.definition, name)

    @property
    def epoch(self) -> float:
        """The simulated seconds of an epoch, on average."""
        return TRAINING / int(self.results.task.epochs)

    @property
    def baseline(self) -> None:
        """None: with a good default there is little left to find."""
        return None

    def provenance_sections(self, configuration: Configuration) -> None:
        return None

    def measure_costs(self, configuration: Configuration, data: TrainingData) -> list[Cost]:
        return []

    def trains_on(self, data: TrainingData) -> torch.device:
        return torch.device("cpu")

    def make_objective(
        self, configuration: Configuration, number: int, data: TrainingData, attempt: Attempt
    ) -> ReplayedObjective:
        at = self.results.find(configuration)
        curve = self.results.curve(at).tolist()
        seconds = cost_of(at) * self.epoch
        return ReplayedObjective(curve, number, at, seconds, self.tape, self.clock)


def cost_of(configuration: int) -> float:
    """Returns how long an epoch takes: networks differ, so that workers drift apart."""
    return 0.5 + random.Random(configuration).random()


@functools.lru_cache(maxsize=32)
def compose(module: str, overrides: tuple[str, ...]) -> tuple[Definition, Composer]:
    """Returns the definition of a study module with overrides, and its composer."""
    register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        cfg = hydra.compose(module, list(overrides), return_hydra_config=True)
        choices = {str(g): str(o) for g, o in cfg.hydra.runtime.choices.items()}
        composer = Composer(module, tuple(map(Override.parse, overrides)), choices)
        config = StudyConfig.of(cfg)
        definition = find_definition_class(config).from_config(config, composer)
    return definition, composer


def define(task: Task | Surrogate, overrides: Sequence[str], seed: int) -> Definition:
    """Returns the study definition of a task.

    Args:
        task: which names the study module.
        overrides: further ones, of a method.
        seed: of the study.
    """
    given = (*task.overrides, f"train.epochs={task.epochs}", "study.baseline=false", *overrides)
    definition, composer = compose(task.module, given)
    space = definition.space
    if task.space is not None:
        space = parse_space(
            {"params": dict(task.space)},
            lambda group: BRANCHES if group == "params/network" else (),
        )
    config = definition.config.with_values({"study.seed": seed})
    return NetworkDefinition(config, composer, space)


@contextmanager
def simulated(clock: Clock) -> Iterator[None]:
    """Gives the workers of this process simulated time, and an id each."""
    with ExitStack() as stack:
        # A host that is not this one: no process looks for the process of such a worker.
        stack.enter_context(
            patch.object(worker, "worker_id", lambda pid: f"simulated:{clock.worker}")
        )
        stack.enter_context(patch.object(worker, "time", SimpleNamespace(sleep=clock.sleep)))
        stack.enter_context(patch.object(reporter, "SEND_TIMEOUT", FOREVER))
        # Trainings keep their processors busy, and a proposal takes no time.
        stack.enter_context(patch.object(processes, "read_processor_time", clock.read))
        stack.enter_context(patch.object(auto_sampler, "thread_time", lambda: 0.0))
        yield


@contextmanager
def folder(within: Path | None = None) -> Iterator[Path]:
    """Makes a folder, in memory where there is one, for as long as the block.

    Args:
        within: the folder to make it in; None for one of the host's.
    """
    shared = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None
    prefix = f"studyloom-search-{os.getpid()}-"
    with tempfile.TemporaryDirectory(dir=within or shared, prefix=prefix) as name:
        yield Path(name)


def replay(
    results: Results,
    overrides: Sequence[str],
    seed: int,
    budget: int,
    workers: int = 1,
    trials: int | None = None,
    *,
    within: Path | None = None,
    first: Sequence[Mapping[str, Any]] = (),
) -> Tape:
    """Searches with the product until a budget is spent.

    Args:
        results: what is searched.
        overrides: of the method.
        seed: of the study.
        budget: epochs, of which a trial of a table has one.
        workers: simulated.
        trials: of the study; None for more than any method begins.
        within: a folder in which database and checkpoints have theirs; None for one of the host's.
        first: configurations to begin with.
    """
    task = results.task
    trials = trials or (budget if task.epochs == 1 else budget // 2 + 1)
    defined = define(task, (*overrides, f"study.trials={trials}"), seed)
    definition = ReplayedDefinition(defined, results, Tape(budget), Clock(workers))
    with folder(within) as place:
        run_workers(definition, trials, place, first).close()
    return definition.tape


def run_workers(
    definition: ReplayedDefinition,
    trials: int,
    place: Path,
    first: Sequence[Mapping[str, Any]] = (),
) -> StoredStudy:
    """Runs the workers of a definition's clock until its tape is full or all trials have ended.

    Args:
        definition: of the search.
        trials: of the study.
        place: an empty folder for database and checkpoints.
        first: configurations to begin with.
    """
    defined, clock = definition.definition, definition.clock
    url, stop = f"sqlite:///{place}/study.db", Stop(definition.tape, clock, definition.epoch)
    with closing(
        create_study(url, "replay", {"of": "a task"}, trials, objectives=defined.objectives)
    ) as stored:
        begin = [
            WarmStart(place_configuration(defined, each).configuration, "first") for each in first
        ]
        enqueue(stored, WarmStarts(begin), trials, baseline=None)

    def work() -> None:
        with closing(open_study(url, "replay")) as stored:
            stage = Stage("search", stored, definition, Strategy(defined), trials)
            Worker(stage, TrainingData(), stop, place / "checkpoints", LIMITS).run()

    with simulated(clock):
        clock.run(work)
    return open_study(url, "replay")
