"""A loop of the user's own as the objective: it is called once for each fold and seed.

Whatever has a value can be searched so. The loop is called with the configuration of the trial and
a `Run`, by which it reports, keeps its state, and learns what it is.
"""

import inspect
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna import TrialPruned
from torch.utils.data import Dataset

from studyloom.config.compose import own_world
from studyloom.config.values import keys_explained
from studyloom.errors import UndefinedMetric
from studyloom.metrics import Goal
from studyloom.question.costs import Cost, Limit
from studyloom.question.objective import Attempt, Step, Stopping
from studyloom.question.reports import Place, Report, Unstopped, finite, standard_error_of
from studyloom.question.run import Run, UnfitState
from studyloom.storage.attributes import JOBS, STANDARD_ERROR
from studyloom.training.randomness import seeded
from studyloom.training.ranks import ALONE, Ranks, Recipe

Function = Callable[[DictConfig, Any], Any]
# What a job's steps are numbered by if there are several; its end is a multiple, which is compared.
STRIDE = 1_000_000
SIGNATURE = "(config, run) -> value"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopJob:
    """One call of a loop.

    Args:
        fold: its number, from 0.
        seed: of the call.
        parts: makes what to train on and what to validate on; None without `data`.
    """

    fold: int
    seed: int
    parts: Callable[[], tuple[Dataset[Any], Dataset[Any]]] | None = None


@dataclass(frozen=True)
class Loop:
    """What the calls of a loop have in common.

    Args:
        function: called as function(config, run).
        config: of the trial; the function gets a read-only copy, with the seed as `config.seed`.
        goals: what it returns, the metric first.
        limits: of what it may cost.
        most_epochs: that the pruner knows of; None for any number.
        keeps: whether it must keep something, since it is to be tested.
        resumes: whether it must be able to go on from each epoch, since the pruner pauses trials.
    """

    function: Function
    config: DictConfig
    goals: Sequence[Goal]
    limits: Sequence[Limit] = ()
    most_epochs: int | None = None
    keeps: bool = False
    resumes: bool = False

    @property
    def metric(self) -> str:
        return self.goals[0].name

    @property
    def limit_of(self) -> dict[str, Limit]:
        """The limits by the quantity that they are of."""
        return {limit.quantity: limit for limit in self.limits}

    @property
    def quantities(self) -> list[str]:
        """What a call must tell beside the value: the further goals, and what has a limit."""
        return [*dict.fromkeys([*(goal.name for goal in self.goals[1:]), *self.limit_of])]

    def config_of(self, seed: int) -> DictConfig:
        """Returns the config that a call with a seed gets."""
        config = self.config.copy()
        with open_dict(config):
            config["seed"] = seed
        OmegaConf.set_readonly(config, True)
        return config

    def run_at(
        self,
        place: Place,
        send: Callable[[int, float, dict[str, float]], None],
        saved: Mapping[str, Any] | None,
    ) -> Run:
        """Makes the run for a call at a place; see `Run`."""
        return Run(place, self.metric, send, self.limit_of, saved, self.most_epochs)

    def values_of(self, returned: Any, run: Run) -> float:
        """Takes the value out of what a call has returned; the further values are costs of the run.

        Raises:
            UndefinedMetric: it is not a finite number, or one for each goal.
            Infeasible: a value is beyond its limit.
        """
        further = [goal.name for goal in self.goals[1:]]
        if isinstance(returned, Mapping):
            if self.metric not in returned:
                raise UndefinedMetric(
                    f"the objective returned {', '.join(map(str, returned)) or 'nothing'}: "
                    f"expected objective.metric={self.metric} among the names"
                )
            value = returned[self.metric]
            wanted = self.quantities
            run.cost(**{name: v for name, v in returned.items() if name in wanted})
        elif further and isinstance(returned, tuple | list):
            if len(returned) != len(self.goals):
                raise UndefinedMetric(
                    f"the objective returned {len(returned)} value{'s' * (len(returned) != 1)}: "
                    f"expected {', '.join(goal.name for goal in self.goals)}"
                )
            value = returned[0]
            run.cost(**dict(zip(further, returned[1:], strict=True)))
        else:
            value = returned
        try:
            number = finite(value, f"returned {value!r}")
        except UndefinedMetric as error:
            if value is None and run.has_reported:
                raise UndefinedMetric(f"{error}; end it with return run.value") from None
            raise
        run.check_costs()
        if missing := [name for name in self.quantities if name not in run.costs]:
            raise UndefinedMetric(
                f"the objective told no {missing[0]}, which objective.constraints or "
                f"objective.metric names: expected it by run.cost({missing[0]}=…), or in a dict "
                "that it returns"
            )
        return number


@dataclass
class LoopObjective:
    """Calls a loop for each job in turn: each of its reports is a step.

    The value is the mean of what the calls return. Of several jobs the end of each is compared with
    those of other trials. A loop that keeps its state goes on after its last whole epoch, and one
    that does not begins its job anew.

    Args:
        loop: to be called.
        jobs: one for each call.
        device: to train on.
        trial: the number of the trial in its stage.
        attempt: at the trial.
        ranks: the processes in which the loop is called together.
        recipe: makes the same objective in the others.
    """

    loop: Loop
    jobs: Sequence[LoopJob]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    trial: int = 0
    attempt: Attempt = field(default_factory=Attempt)
    ranks: Ranks = ALONE
    recipe: Recipe | None = None
    evaluating: float = 0.0
    _reports: list[list[Report]] = field(default_factory=lambda: [[]])  # of each job so far
    _values: list[float] = field(default_factory=list)  # of each job that has ended
    _costs: list[dict[str, Cost]] = field(default_factory=list)
    _states: dict[str, Any] | None = None  # what the first job has kept at its end
    _saved: dict[str, Any] | None = None  # the state that the job under way goes on from
    _run: Run | None = None
    _cut: int | None = None
    _restored: dict[str, Any] | None = None  # for the other ranks

    @property
    def stride(self) -> int:
        return 1 if len(self.jobs) == 1 else STRIDE

    @property
    def epochs(self) -> int | None:
        if len(self.jobs) > 1:
            return len(self.jobs) * STRIDE
        return None if self._run is None else self._run.count

    def run(self, report: Callable[[Step], None], stopping: Stopping) -> float:
        """Calls the loop; between its reports a signal may end it at any moment.

        Raises:
            UndefinedMetric: the value, or one that the loop reports, is not a finite number.
            Exception: what `report` raises, even if the loop catches it; see `Objective.run`.
        """
        call, self._restored = (self.recipe, self._restored), None
        with self.ranks.leading(call, lambda: stopping.give_way()):
            self._call_all(report, stopping)
        return fmean(self._values)

    def follow(self) -> None:
        """Calls the loop as rank 0 does, which reports and decides."""
        self._call_all(lambda step: None, Unstopped())

    def _call_all(self, report: Callable[[Step], None], stopping: Stopping) -> None:
        """Calls the loop for each job that is left."""
        while len(self._values) < len(self.jobs):
            position = len(self._values)
            try:
                value = self._call(position, report, stopping)
            except UnfitState as unfit:
                log.warning("trial %d: %s; it starts anew", self.trial, unfit)
                self._saved, self._reports[position] = None, []
                continue
            with self.ranks.deciding():
                self._values.append(value)
                self._saved, self._run = None, None
                if len(self.jobs) > 1:
                    self._reports.append([])
                    report(self._end_of(position))

    def _call(self, position: int, report: Callable[[Step], None], stopping: Stopping) -> float:
        """Calls the loop for one job, and returns its value."""
        job, reports = self.jobs[position], self._reports[position]
        began = time.perf_counter()
        # A loop may catch the exception that ends it: the next report raises it again.
        ended_by: list[BaseException] = []
        with ExitStack() as interruptible, seeded(job.seed):

            def send(step: int, value: float, further: dict[str, float]) -> None:
                nonlocal began
                if ended_by:
                    raise ended_by[0]
                self._check_kept(run)
                self._note(position, run)
                interruptible.close()  # no signal may cut a report in two
                seconds = time.perf_counter() - began
                number = step if self.stride == 1 else position * STRIDE + len(reports) + 1
                reports.append(Report(number, value, seconds, step, further))
                try:
                    report(reports[-1])
                except BaseException as error:
                    ended_by.append(error)
                    raise
                began = time.perf_counter()
                interruptible.enter_context(stopping.interruptible())

            interruptible.enter_context(stopping.interruptible())
            run = self._run = self.loop.run_at(self._place(job), send, self._saved)
            try:
                config = self.loop.config_of(job.seed)
                with own_world(), keys_explained():
                    returned = self.loop.function(config, run)
                with self.ranks.deciding():
                    run.flush()
                    first = self.ranks.rank == 0  # the others need not return anything
                    value = self.loop.values_of(returned, run) if first else 0.0
            except BaseException as error:
                own = isinstance(error, TrialPruned) and not ended_by  # raised by the loop itself
                if own and self.ranks.alone:
                    run.flush()
                if ended_by:
                    raise ended_by[0] from None
                if run.unfit is not None and isinstance(error, Exception):
                    raise run.unfit from None
                raise
            finally:
                run.close()
                self._note(position, run)
            self._check_kept(run)
            if position == 0:
                self._states = run.states()
        if ended_by:
            raise ended_by[0]
        if run.unfit is not None:
            raise run.unfit
        return value

    def _check_kept(self, run: Run) -> None:
        """Raises ValueError if the loop lacks what it must have to be paused, or to be tested."""
        pauses = self.loop.resumes and self.attempt.stage == "search"
        if pauses and not run.resumable:
            raise ValueError(
                "pruner=promotion goes on with trials from their state, and the objective keeps "
                "none; call run.keep(net=…), loop over run.epochs(…) and report there, or set "
                "pruner=asha"
            )
        names = [goal.name for goal in self.loop.goals[1:] if goal.name not in run.costs]
        if pauses and names:
            raise ValueError(
                f"pruner=promotion ranks trials by objective.metric={self.loop.metric} and "
                f"{', '.join(names)}; tell {names[0]} before the first report, by "
                f"run.cost({names[0]}=…), or set pruner=none"
            )
        if self.loop.keeps and not run.keeps:
            raise ValueError(
                "objective.test is given what run.keep keeps, and the objective keeps nothing; "
                "call run.keep(net=…) before the first epoch"
            )

    def _place(self, job: LoopJob) -> Place:
        attempt, folder = self.attempt, self.attempt.folder
        if folder is not None and len(self.jobs) > 1:
            folder = folder / f"job-{self.jobs.index(job)}"
        train, valid = (None, None) if job.parts is None else job.parts()
        return Place(
            trial=self.trial,
            attempt=attempt.number,
            stage=attempt.stage,
            fold=job.fold,
            seed=job.seed,
            device=self.device,
            folder=folder,
            train=train,
            valid=valid,
            ranks=self.ranks,
        )

    def _note(self, position: int, run: Run) -> None:
        del self._costs[position:]
        self._costs.append(run.costs)

    def _end_of(self, position: int) -> Report:
        value = self._values[position]
        return Report((position + 1) * STRIDE, value, 0.0, len(self._reports[position]))

    def costs(self) -> list[Cost]:
        """Returns what the loop has told of its costs, as means over jobs."""
        told = defaultdict[str, list[Cost]](list)
        for costs in self._costs:
            for name, cost in costs.items():
                told[name].append(cost)
        named = {*(goal.name for goal in self.loop.goals), *(x.quantity for x in self.loop.limits)}
        return [
            replace(of_jobs[0], value=fmean(cost.value for cost in of_jobs))
            for name, of_jobs in told.items()
            if name in named
        ]

    def steps(self) -> list[Report]:
        steps = []
        for position, reports in enumerate(self._reports):
            steps += reports
            if len(self.jobs) > 1 and position < len(self._values):
                steps.append(self._end_of(position))
        return [step for step in steps if self._cut is None or step.number <= self._cut]

    def cut(self, number: int) -> None:
        self._cut = number

    def curves(self) -> dict[str, list[Any]]:
        """Returns a column for each quantity that was reported, as means over jobs."""
        cut = self._cut
        by_step = defaultdict[int, list[Report]](list)
        for reports in self._reports:
            for report in reports:
                if cut is None or report.number <= cut:
                    by_step[report.step].append(report)
        rows = [by_step[step] for step in sorted(by_step)]
        columns: dict[str, list[Any]] = {
            "number": [of_jobs[0].step for of_jobs in rows],
            "value": [fmean(report.value for report in of_jobs) for of_jobs in rows],
            "seconds": [sum(report.seconds for report in of_jobs) for of_jobs in rows],
        }
        names = (name for row in rows for report in row for name in report.further)
        for name in dict.fromkeys(names):
            columns[name] = [_mean_of(row, name) for row in rows]
        if any(len(of_jobs) > 1 for of_jobs in rows):
            columns[STANDARD_ERROR] = [
                standard_error_of([report.value for report in of_jobs]) for of_jobs in rows
            ]
            columns[JOBS] = [len(of_jobs) for of_jobs in rows]
        return columns if rows else {}

    def standard_error(self) -> float | None:
        jobs = None if self._cut is None else self._cut // STRIDE  # before the cut
        return standard_error_of(self._values[:jobs])

    def state(self) -> dict[str, Any] | None:
        now = None if self._run is None else self._run.state()
        if now is None and (self._run is not None or not self._values):
            return None
        reports = [[asdict(report) for report in of_job] for of_job in self._reports]
        costs = [{name: cost.value for name, cost in of_job.items()} for of_job in self._costs]
        return {
            "seeds": [job.seed for job in self.jobs],
            "reports": reports,
            "values": self._values,
            "costs": costs,
            "states": self._states,
            "now": now,
        }

    def restore(self, state: dict[str, Any]) -> None:
        try:
            if state["seeds"] != [job.seed for job in self.jobs]:
                raise ValueError("it has other folds and seeds")
            reports = [[Report(**fields) for fields in of_job] for of_job in state["reports"]]
            values, saved = [float(value) for value in state["values"]], state["now"]
            if not len(values) <= len(reports) <= len(self.jobs) + 1:
                raise ValueError("it has other jobs")
            if saved is not None:
                saved = {**saved, "value": reports[-1][-1].value}
            limits = self.loop.limit_of
            costs = [
                {name: Cost(name, float(value), limits.get(name)) for name, value in told.items()}
                for told in state["costs"]
            ]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"the state does not fit this objective: {error}") from error
        self._reports, self._values, self._costs = reports, values, costs
        self._states, self._saved = state["states"], saved
        self._restored = None if self.ranks.alone else state

    def weights(self) -> dict[str, Any] | None:
        """Returns the states that the first call has kept; None if it has kept nothing."""
        return self._states or None


def _mean_of(reports: Sequence[Report], name: str) -> float | None:
    values = [report.further[name] for report in reports if name in report.further]
    return fmean(values) if values else None


def why_not_callable(
    function: Callable[..., Any], arguments: int = 2, signature: str = SIGNATURE
) -> str | None:
    """Says why a function cannot be called with so many arguments, or None."""
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError as error:
        return f"{error}; it is called as {signature}"
    except ValueError:  # a function written in C has no signature
        return None
    return None
