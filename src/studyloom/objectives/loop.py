"""A custom training loop as the objective: it is called once for each fold and seed.

The loop gets the configuration of the trial and a `Run`, which takes its reports, saves its state
and says for which trial, fold and seed it runs. Anything that returns a value can be searched so.
"""

import copy
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import optuna
from optuna import TrialPruned
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    check_distribution_compatibility,
)
from optuna.trial import BaseTrial

from studyloom.averages import mean
from studyloom.config.compose import isolated_hydra
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import describe_error, keys_explained, value_at
from studyloom.errors import NoWinner, UndefinedMetric
from studyloom.metrics import ObjectiveValue
from studyloom.objectives.loop_run import TEST, LoopJob, Run, RunContext, UnfitState, finite
from studyloom.objectives.objective import (
    Attempt,
    Objective,
    Report,
    Step,
    Stopping,
    Tell,
    spread_over_jobs,
    standard_error_of,
)
from studyloom.objectives.user_functions import Adapter, UserFunction
from studyloom.space.rule import Condition, Cost
from studyloom.storage.attributes import OF_STUDIES, OF_TRIALS
from studyloom.text import is_scalar
from studyloom.training.randomness import seeded
from studyloom.user_code.digests import describe_place

# The methods of a trial's study that would end or repeat trials of which studyloom keeps count.
REFUSED = {
    "stop": "other workers search too; set study.epochs or study.stop=improvement",
    "tell": "studyloom ends each trial with the value that the objective returns; return it",
    "add_trial": "studyloom counts the trials; `studyloom propose` has a configuration tried",
}
log = logging.getLogger(__name__)


class ObjectiveTrial(optuna.Trial):
    """The trial of an Optuna `objective(trial) -> value`, which suggests while it runs.

    It is an `optuna.Trial` that commits each hyperparameter when it is suggested, and reports
    through a `Run`.

    Args:
        trial: the stored trial, which suggests by the study's sampler; None to give the `known`
            parameters again, by the rules of `optuna.trial.FixedTrial`.
        uncut: surrounds what no signal may cut in two.
        store: commits what is new of the trial.
    """

    def __init__(
        self,
        trial: BaseTrial | None,
        known: Mapping[str, Any],
        objectives: Sequence[ObjectiveValue],
        run: Run,
        uncut: Callable[[], AbstractContextManager[None]],
        store: Callable[[], None],
    ) -> None:
        self._known = None if trial else known
        if trial is None:
            study = optuna.create_study(
                directions=[objective.direction for objective in objectives]
            )
            study.enqueue_trial(dict(known))
            trial = study.ask()
        vars(self).update(vars(trial))
        self.study = copy.copy(self.study)
        vars(self.study).update({name: partial(_refuse, name) for name in REFUSED})
        vars(self.study).update(set_user_attr=self._set_study_attr)
        self._run, self._uncut, self._store = run, uncut, store
        self._before = {*self._cached_frozen_trial.distributions}  # suggested by an attempt before
        self._steps: set[int] = set()
        self._pruned = False

    @property
    def number(self) -> int:
        """The number of the trial in its stage, as that of its run."""
        return self._run.trial

    @property
    def system_attrs(self) -> dict[str, Any]:
        """The system attributes, as Optuna had them before 5.0.

        To `RetryFailedTrialCallback.retry_history`, a trial that another process resumes is a retry
        of itself, so that it finds the artifacts of the attempt before.
        """
        stored = self.storage.get_trial_system_attrs(self._trial_id)
        if self._known is not None or self._run.attempt == 1:
            return stored
        return {**stored, "failed_trial": self.number, "retry_history": [self.number]}

    def report(self, value: float, step: int) -> None:
        """Reports through the run; `should_prune` says afterwards whether to prune."""
        if self._pruned:
            raise optuna.TrialPruned  # for an objective that has not called should_prune
        if (step := int(step)) in self._steps:
            return  # as Optuna, which takes the first
        self._steps.add(step)
        try:
            self._run(value, step)
        except optuna.TrialPruned:
            self._pruned = True

    def should_prune(self) -> bool:
        return self._pruned

    def set_user_attr(self, key: str, value: Any) -> None:
        _check_name("trial", key, OF_TRIALS)
        with self._uncut():
            super().set_user_attr(key, value)

    def _set_study_attr(self, key: str, value: Any) -> None:
        _check_name("study", key, OF_STUDIES)
        with self._uncut():
            optuna.Study.set_user_attr(self.study, key, value)

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._cached_frozen_trial.distributions:
            if name in self._before:
                self._before.remove(name)
                self._skip(name, distribution)
            return super()._suggest(name, distribution)
        with self._uncut():
            _check_choices(name, distribution)
            if self._known is None:
                self._check_other_trials(name, distribution)
            elif name not in self._known:
                raise ValueError(
                    f"the repeated trial has no hyperparameter {name}, it has "
                    f"{', '.join(self._known) or 'none'}; suggest what follows from those before"
                )
            value = super()._suggest(name, distribution)
            if self._known is None:
                self._store()
        return value

    def _skip(self, name: str, distribution: BaseDistribution) -> None:
        """Draws the known values again, so that the sampler continues as if nothing had crashed."""
        drawn = distribution.single() or self._is_fixed_param(name, distribution)
        if not drawn and not self._is_relative_param(name, distribution):
            trial = self._cached_frozen_trial
            self.study.sampler.sample_independent(self.study, trial, name, distribution)

    def _check_other_trials(self, name: str, distribution: BaseDistribution) -> None:
        """Raises ValueError, with a fix, for what Optuna's storage refuses."""
        for other in self.study.get_trials(deepcopy=False):
            if (known := other.distributions.get(name)) is not None:
                try:
                    check_distribution_compatibility(known, distribution)
                except ValueError as error:
                    raise ValueError(
                        f"{name} is suggested as {distribution}, and in trial {other.number} as "
                        f"{known}: {error} Give another hyperparameter another name"
                    ) from error
                return


@dataclass(frozen=True)
class Loop:
    """The state that all calls of a loop share.

    Args:
        config: of the trial; the function gets a read-only copy, with the seed as `config.seed`.
        objectives: the objectives that it returns, the metric first.
        keeps: whether it must keep something, since it is to be tested.
        resumes: whether it must be able to resume at each epoch, since the pruner pauses trials.
    """

    function: Callable[..., Any]
    config: StudyConfig
    objectives: Sequence[ObjectiveValue]
    limits: Sequence[Condition] = ()
    keeps: bool = False
    resumes: bool = False

    @property
    def most_epochs(self) -> int | None:
        """How many epochs Hyperband compares trials by; None for any number."""
        most = value_at(self.config, "pruner.max_resource")
        return most if isinstance(most, int) else None

    @property
    def metric(self) -> str:
        return self.objectives[0].name

    @property
    def further(self) -> list[str]:
        """The names of the objectives after the metric."""
        return [objective.name for objective in self.objectives[1:]]

    @property
    def limit_of(self) -> dict[str, Condition]:
        """The limits by the quantity that they are of."""
        return {limit.name: limit for limit in self.limits}

    @property
    def quantities(self) -> list[str]:
        """Names that a call must report with the value: further objectives and limited costs."""
        return [*dict.fromkeys([*self.further, *self.limit_of])]

    def config_of(self, seed: int) -> Any:
        """Returns the config that a call with a seed gets."""
        return self.config.for_user(seed=seed)

    def values_of(self, returned: Any, run: Run) -> float:
        """Takes the value out of what a call has returned; further values are costs of the run."""
        names = [self.metric, *self.further]
        if isinstance(returned, tuple | list) and len(returned) == len(names) > 1:
            returned = dict(zip(names, returned, strict=True))
        values = returned if isinstance(returned, Mapping) else {self.metric: returned}
        run.cost(**{name: value for name, value in values.items() if name in self.quantities})
        if self.metric not in values:
            raise UndefinedMetric(
                f"the objective returned {', '.join(map(str, values)) or 'nothing'}: expected "
                f"objective.metric={self.metric} among the names"
            )
        if missing := [name for name in self.quantities if name not in run.costs]:
            raise UndefinedMetric(
                f"the objective reported no {missing[0]}, which objective.constraints or "
                f"objective.metric names: expected run.cost({missing[0]}=…), or a dict with it"
            )
        value = values[self.metric]
        shown = "None, and not run.value" if value is None else repr(value)
        return finite(value, f"returned {shown}")

    def check_kept(self, run: Run) -> None:
        """Raises ValueError if a call lacks what it must have to be paused, or to be tested."""
        if self.resumes and run.stage == "search":
            if not run.resumable:
                raise ValueError(
                    "pruner=asha resumes trials from their checkpoints; call run.keep(net=…), "
                    "loop over run.epochs(…) and report there, or set pruner=successive_halving"
                )
            if missing := [name for name in self.further if name not in run.costs]:
                raise ValueError(
                    f"pruner=asha ranks trials by {missing[0]} too; report {missing[0]} before "
                    f"the first report, by run.cost({missing[0]}=…), or set pruner=none"
                )
        if self.keeps and not run.keeps:
            raise ValueError(
                "objective.test is given what run.keep keeps; call run.keep(net=…) before the "
                "first epoch"
            )

    def test(
        self, function: Callable[..., Any], seed: int, states: dict[str, Any], part: Any
    ) -> dict[str, float]:
        """Calls `objective.test` for a trained loop, and returns its values, the metric first.

        Args:
            function: of `objective.test`.
            states: that the training has kept; `run.keep` restores them.
            part: the examples of the test set; None without `data`.

        Raises:
            NoWinner: it raises an exception, or returns something else.
        """
        context = RunContext(0, Attempt(stage=TEST), LoopJob(0, seed))
        run = Run(context, self.metric, lambda *_: None, saved={"kept": states})
        try:
            with seeded(seed), isolated_hydra(), keys_explained():
                return _test_values(function(self.config_of(seed), run, part), self.metric)
        except (Exception, SystemExit) as error:
            raise NoWinner(
                f"objective.test={self.config.objective.test}: {describe_error(error)}"
                f"{describe_place(error)}; fix it, and repeat the command with "
                "study.accept_code_change=true, which keeps the search"
            ) from error
        finally:
            run.close()


@dataclass
class LoopObjective(Objective):
    """Calls a loop for one job after the other: each of its reports is a step.

    The value is the mean of what the calls return. With several jobs, the pruner compares trials
    at the end of each job. A loop that keeps its state resumes after its last complete epoch; any
    other repeats its job. An Optuna objective gets `suggesting`, or a trial that repeats the values
    of `params`.
    """

    loop: Loop
    jobs: Sequence[LoopJob]
    trial: int = 0
    attempt: Attempt = field(default_factory=Attempt)
    suggesting: BaseTrial | None = None
    _reports: list[list[Report]] = field(default_factory=lambda: [[]])  # of each job so far
    _values: list[float] = field(default_factory=list)  # of each job that has ended
    _costs: list[dict[str, Cost]] = field(default_factory=list)  # of each job so far
    _states: dict[str, Any] | None = None  # what the first job has kept at its end
    _saved: dict[str, Any] | None = None  # the state from which the running job resumes
    _run: Run | None = None
    _not_kept: list[str] = field(default_factory=list)
    _warnings: list[str] = field(default_factory=list)

    @property
    def compared_jobs(self) -> int | None:
        return len(self.jobs) if len(self.jobs) > 1 else None

    def compared_number(self, step: Step) -> int | None:
        if self.compared_jobs is None:
            return step.number
        assert isinstance(step, Report)
        return step.job + 1 if step.ends_job else None

    def is_new(self, step: Step, reported: int) -> bool:
        if self.compared_jobs is None:
            return step.number > reported
        assert isinstance(step, Report)
        return step.job >= reported

    @property
    def epochs(self) -> int | None:
        if self.compared_jobs is None:
            return None if self._run is None else self._run.count
        has_ended = len(self._values) == len(self.jobs)
        return self._steps_before(len(self.jobs)) if has_ended else None

    def _steps_before(self, position: int) -> int:
        """Returns the number of steps of the jobs before one: their reports and their ends."""
        return sum(len(reports) + 1 for reports in self._reports[:position])

    @property
    def keeps_files(self) -> bool:
        return self._run is not None and self._run.keeps_files

    @property
    def finds_files(self) -> bool:
        folder = self.attempt.folder
        function = self.loop.function
        if not isinstance(function, Adapter) or not function.resumes_from_files:
            return False
        return folder is not None and folder.exists()

    def run(self, report: Tell, stopping: Stopping) -> float:
        """Calls the loop; between its reports a signal may end it at any moment.

        What `report` raises is raised even if the loop catches it; see `Objective.run`.
        """
        while len(self._values) < len(self.jobs):
            position = len(self._values)
            try:
                value = self._call(position, report, stopping)
            except UnfitState as unfit:
                log.warning("trial %d: %s; it starts again from the beginning", self.trial, unfit)
                self._saved, self._reports[position] = None, []
                continue
            self._values.append(value)
            self._saved = None
            self._run = None
            if len(self.jobs) > 1:
                self._reports.append([])
                report(self._end_of(position))
        return mean(self._values)

    def _call(self, position: int, report: Tell, stopping: Stopping) -> float:
        """Calls the loop for one job, and returns its value."""
        loop, job, reports = self.loop, self.jobs[position], self._reports[position]
        attempt, folder = self.attempt, self.attempt.folder
        if folder is not None and len(self.jobs) > 1:
            attempt = replace(attempt, folder=folder / f"job-{position}")
        began = 0.0  # when the time that counts as training began
        # A loop may catch the exception that ends it: the next report raises it again.
        ended_by: list[BaseException] = []
        with ExitStack() as interruptible, seeded(job.seed):

            def tell(step: Report | None = None) -> None:
                try:
                    report(step)
                except BaseException as error:
                    ended_by.append(error)
                    raise

            @contextmanager
            def uncut() -> Iterator[None]:
                """Lets no signal cut the body in two; the time that it takes is not training."""
                nonlocal began
                interruptible.close()
                entered = time.perf_counter()
                try:
                    yield
                finally:
                    began += time.perf_counter() - entered
                    if not ended_by:
                        interruptible.enter_context(stopping.interruptible())

            def send(step: int, value: float, further: dict[str, float]) -> None:
                nonlocal began
                if ended_by:
                    raise ended_by[0]
                loop.check_kept(run)
                with uncut():
                    seconds, began = time.perf_counter() - began, time.perf_counter()
                    number = step
                    if self.compared_jobs is not None:
                        number = self._steps_before(position) + len(reports) + 1
                    reports.append(Report(number, value, seconds, step, further, position))
                    tell(reports[-1])

            interruptible.enter_context(stopping.interruptible())
            run = Run(
                RunContext(self.trial, attempt, job),
                loop.metric,
                send,
                limits=loop.limit_of,
                saved=self._saved,
                most=loop.most_epochs,
            )
            self._run, self._costs[position:] = run, [run.costs]
            try:
                make_trial = partial(
                    ObjectiveTrial,
                    self.suggesting,
                    objectives=loop.objectives,
                    run=run,
                    uncut=uncut,
                    store=tell,
                )
                function = UserFunction(loop.function)
                config = loop.config_of(job.seed) if function.takes_config else loop.config
                with isolated_hydra(), keys_explained():
                    began = time.perf_counter()
                    returned = function.call(config, run, make_trial)
                if ended_by or run.unfit is not None:
                    raise RuntimeError("the loop must not catch the exception that ends its trial")
                run.flush()
                value = loop.values_of(returned, run)
            except BaseException as error:
                own = isinstance(error, TrialPruned) and not ended_by  # raised by the loop itself
                if own:
                    run.flush()
                if ended_by:
                    raise ended_by[0] from None
                if run.unfit is not None and isinstance(error, Exception):
                    raise run.unfit from None
                raise
            finally:
                self._not_kept = run.not_kept
                self._warnings += run.warnings
                run.close()
            loop.check_kept(run)
            if position == 0:
                self._states = run.states()
        return value

    def _end_of(self, position: int) -> Report:
        return Report(
            number=self._steps_before(position + 1),
            value=self._values[position],
            seconds=0.0,
            step=len(self._reports[position]),
            job=position,
            ends_job=True,
        )

    def costs(self) -> list[Cost]:
        """Returns the costs that the loop has reported, as means over jobs."""
        names = dict.fromkeys([self.loop.metric, *self.loop.quantities])
        by_name = [[costs[name] for costs in self._costs if name in costs] for name in names]
        return [replace(each[0], value=mean([c.value for c in each])) for each in by_name if each]

    def not_kept(self) -> list[str]:
        return self._not_kept

    def streams(self) -> list[str]:
        return [] if self._run is None else self._run.streams

    def warnings(self) -> list[str]:
        return self._warnings

    def steps(self) -> list[Report]:
        steps = []
        for position, reports in enumerate(self._reports):
            steps += reports
            if len(self.jobs) > 1 and position < len(self._values):
                steps.append(self._end_of(position))
        return [step for step in steps if self._cut is None or step.number <= self._cut]

    def curves(self) -> dict[str, list[Any]]:
        """Returns a column for each quantity that was reported, as means over jobs."""
        by_step = defaultdict[int, list[Report]](list)
        for report in (report for of_job in self._reports for report in of_job):
            if self._cut is None or report.number <= self._cut:
                by_step[report.step].append(report)
        rows = [by_step[step] for step in sorted(by_step)]
        columns: dict[str, list[Any]] = {
            "number": [of_jobs[0].step for of_jobs in rows],
            "value": [mean([report.value for report in of_jobs]) for of_jobs in rows],
            "seconds": [sum(report.seconds for report in of_jobs) for of_jobs in rows],
        }
        names = (name for row in rows for report in row for name in report.further)
        for name in dict.fromkeys(names):
            by_epoch = [
                [each.further[name] for each in row if name in each.further] for row in rows
            ]
            columns[name] = [mean(values) if values else None for values in by_epoch]
        return columns | spread_over_jobs(rows) if rows else {}

    def standard_error(self) -> float | None:
        values = [
            value
            for position, value in enumerate(self._values)
            if self._cut is None or self._steps_before(position + 1) <= self._cut
        ]
        return standard_error_of(values)

    def state(self) -> dict[str, Any] | None:
        now = None if self._run is None else self._run.state()
        if now is None and (self._run is not None or not self._values):
            return None
        return {
            "seeds": [job.seed for job in self.jobs],
            "reports": [[asdict(report) for report in of_job] for of_job in self._reports],
            "values": self._values,
            "costs": [{name: cost.value for name, cost in costs.items()} for costs in self._costs],
            "states": self._states,
            "now": now,
        }

    def restore(self, state: dict[str, Any]) -> None:
        limits = self.loop.limit_of
        try:
            if state["seeds"] != [job.seed for job in self.jobs]:
                raise ValueError("it has other folds and seeds")
            reports = [[Report(**fields) for fields in of_job] for of_job in state["reports"]]
            saved = state["now"]
            if saved is not None:
                saved = {**saved, "value": reports[-1][-1].value}
            costs = [
                {name: Cost(name, value, limits.get(name)) for name, value in costs.items()}
                for costs in state["costs"]
            ]
            self._values, self._states = [*state["values"]], state["states"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"the state does not fit this objective: {error}") from error
        self._reports, self._costs, self._saved = reports, costs, saved

    def weights(self) -> dict[str, Any] | None:
        """Returns the states that the first call has kept; None if it has kept nothing."""
        return self._states or None


class Unstopped(Stopping):
    """A `Stopping` that stops nothing."""


def _test_values(returned: Any, metric: str) -> dict[str, float]:
    """Takes the values out of what `objective.test` has returned, the metric first."""
    values = dict(returned) if isinstance(returned, Mapping) else {metric: returned}
    checked = {str(k): finite(v, f"returned {v!r} from objective.test") for k, v in values.items()}
    if metric not in checked:
        raise UndefinedMetric(
            f"must return a number, or a dict with {metric}; got {', '.join(checked) or 'nothing'}"
        )
    return {metric: checked.pop(metric), **checked}


def _refuse(name: str, *_: Any, **__: Any) -> None:
    raise ValueError(f"trial.study.{name}: {REFUSED[name]}")


def _check_name(what: str, key: str, ours: Sequence[str]) -> None:
    if key in ours:
        raise ValueError(f"{what}.set_user_attr: {key} is reserved; choose another name")


def _check_choices(name: str, distribution: BaseDistribution) -> None:
    """Raises ValueError for choices that a database or YAML would change."""
    if not isinstance(distribution, CategoricalDistribution):
        return
    for choice in distribution.choices:
        if not is_scalar(choice) or "${" in str(choice):
            raise ValueError(
                f"the choices of {name} must be strings without ${{, numbers, true, false or None; "
                f"got {choice!r}; choose by a name, and look up what it stands for"
            )
