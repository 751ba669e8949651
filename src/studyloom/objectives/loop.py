"""A custom training loop as the objective: it is called once for each fold and seed.

The loop gets the configuration of the trial and a `Run`, which takes its reports, saves its state
and says for which trial, fold and seed it runs. Anything that returns a value can be searched so.

A call for one fold and seed is a *job*. A signal may interrupt it at any moment, except while a
report is stored (`SignalGuard`). A report may end the trial by an exception, such as that of a
pruned trial, which reaches the worker even if the loop catches it.
"""

import copy
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

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
from studyloom.objectives.loop_run import (
    TEST,
    LoopJob,
    Run,
    RunContext,
    RunState,
    UnfitState,
    to_finite_number,
)
from studyloom.objectives.objective import (
    Attempt,
    Curves,
    Objective,
    Report,
    Step,
    StepReporter,
    Stopping,
    compute_standard_error,
    spread_over_jobs,
)
from studyloom.objectives.user_functions import Adapter, UserFunction
from studyloom.space.rule import Condition, Cost
from studyloom.storage.attributes import STUDY_KEYS, TRIAL_KEYS
from studyloom.text import is_scalar
from studyloom.training.checkpoint import State
from studyloom.training.randomness import seeded
from studyloom.user_code.source_code import describe_place

# The methods of a trial's study that would end or repeat trials, which studyloom counts.
REFUSED_METHODS = {
    "stop": "other workers search too; set study.target, study.epochs or study.stop",
    "tell": "studyloom ends each trial with the value that the objective returns; return it",
    "add_trial": "studyloom counts the trials; `studyloom propose` has a configuration tried",
}
log = logging.getLogger(__name__)


# The trial of an Optuna objective


class ObjectiveTrial(optuna.Trial):
    """The trial of an Optuna `objective(trial) -> value`, which suggests while it runs.

    It is an `optuna.Trial` that commits each hyperparameter when it is suggested, and reports
    through a `Run`. Without a stored trial it repeats `params`, as `optuna.trial.FixedTrial` does.

    Args:
        trial: the stored trial, which suggests by the study's sampler; None to repeat `params`.
        params: the hyperparameters to repeat, by name.
        block_signals: makes a context whose body no signal may interrupt.
        store: commits the hyperparameters and attributes that the database lacks.
    """

    def __init__(
        self,
        trial: BaseTrial | None,
        params: Mapping[str, Any],
        objectives: Sequence[ObjectiveValue],
        run: Run,
        block_signals: Callable[[], AbstractContextManager[None]],
        store: Callable[[], None],
    ) -> None:
        self._repeated_params: Mapping[str, Any] | None = None
        if trial is None:
            self._repeated_params = params
            trial = _make_trial_in_memory(params, objectives)
        vars(self).update(vars(trial))  # becomes the same trial, with the methods of this class

        # The objective sees its own copy of the study, in which some methods are refused.
        self.study = copy.copy(self.study)
        for name in REFUSED_METHODS:
            vars(self.study)[name] = partial(_refuse_method, name)
        vars(self.study)["set_user_attr"] = self._set_study_attr

        self._run = run
        self._block_signals = block_signals
        self._store = store
        # The hyperparameters that an earlier attempt has suggested, and this attempt has not yet.
        self._names_of_earlier_attempt = {*self._cached_frozen_trial.distributions}
        self._reported_steps: set[int] = set()
        self._is_pruned = False

    @property
    def number(self) -> int:
        """The number of the trial in its stage, as that of its run."""
        return self._run.trial

    @property
    def system_attrs(self) -> dict[str, Any]:
        """The system attributes, a property that Optuna had before 5.0.

        An objective may look for the artifacts of the attempts before by Optuna's
        `RetryFailedTrialCallback.retry_history`. So a trial that another process resumes is shown
        as a retry of itself.
        """
        attributes = self.storage.get_trial_system_attrs(self._trial_id)
        if self._repeated_params is not None or self._run.attempt == 1:
            return attributes
        return {**attributes, "failed_trial": self.number, "retry_history": [self.number]}

    def report(self, value: float, step: int) -> None:
        """Reports a value to studyloom; `should_prune` says afterwards whether to prune.

        An objective that has not called `should_prune` is ended by its next report.
        """
        if self._is_pruned:
            raise optuna.TrialPruned
        step = int(step)
        if step in self._reported_steps:
            return  # as in Optuna, which stores the first value of a step
        self._reported_steps.add(step)
        try:
            self._run(value, step)
        except optuna.TrialPruned:
            self._is_pruned = True

    def should_prune(self) -> bool:
        return self._is_pruned

    def set_user_attr(self, key: str, value: Any) -> None:
        _refuse_reserved_name("trial", key, TRIAL_KEYS)
        with self._block_signals():
            super().set_user_attr(key, value)

    def _set_study_attr(self, key: str, value: Any) -> None:
        _refuse_reserved_name("study", key, STUDY_KEYS)
        with self._block_signals():
            optuna.Study.set_user_attr(self.study, key, value)

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        """Suggests a value; all methods `suggest_…` of `optuna.Trial` call this.

        There are three cases: a value that the trial has already, also by an earlier attempt, is
        returned again; a trial that repeats `params` returns the value from there; any other value
        is drawn by the sampler and committed at once.
        """
        if name in self._cached_frozen_trial.distributions:
            if name in self._names_of_earlier_attempt:  # an earlier attempt has drawn it
                self._names_of_earlier_attempt.remove(name)
                self._advance_sampler(name, distribution)
            return super()._suggest(name, distribution)
        with self._block_signals():
            _check_choices(name, distribution)
            if self._repeated_params is not None:
                _check_is_repeated(name, self._repeated_params)
                return super()._suggest(name, distribution)
            self._check_other_trials(name, distribution)
            value = super()._suggest(name, distribution)
            self._store()
            return value

    def _advance_sampler(self, name: str, distribution: BaseDistribution) -> None:
        """Draws a value that an earlier attempt has drawn already, and drops it.

        The sampler's random state is that of the start of the trial. Without these draws, the
        values that this attempt suggests next would not be those of an uninterrupted trial.
        """
        # The sampler draws nothing here for a range of one value, for a value that was queued with
        # the trial, and for a value that it drew together with others when the trial began.
        needs_no_draw = (
            distribution.single()
            or self._is_fixed_param(name, distribution)
            or self._is_relative_param(name, distribution)
        )
        if not needs_no_draw:
            trial = self._cached_frozen_trial
            self.study.sampler.sample_independent(self.study, trial, name, distribution)

    def _check_other_trials(self, name: str, distribution: BaseDistribution) -> None:
        """Raises ValueError, with a fix, for a distribution that Optuna's storage refuses.

        The distributions of a hyperparameter must be compatible in all trials of a study. So the
        first trial that has the hyperparameter decides.
        """
        for other_trial in self.study.get_trials(deepcopy=False):
            if name not in other_trial.distributions:
                continue
            first_distribution = other_trial.distributions[name]
            try:
                check_distribution_compatibility(first_distribution, distribution)
            except ValueError as error:
                raise ValueError(
                    f"{name} is suggested as {distribution}, and in trial {other_trial.number} as "
                    f"{first_distribution}: {error} Give another hyperparameter another name"
                ) from error
            return  # the first trial has decided


def _make_trial_in_memory(
    params: Mapping[str, Any], objectives: Sequence[ObjectiveValue]
) -> optuna.Trial:
    """Makes a trial in a separate study, which suggests the values of `params`."""
    study = optuna.create_study(directions=[objective.direction for objective in objectives])
    study.enqueue_trial(dict(params))
    return study.ask()


def _refuse_method(name: str, *_arguments: object, **_keywords: object) -> None:
    """Raises ValueError in place of a method of the study that an objective must not call."""
    raise ValueError(f"trial.study.{name}: {REFUSED_METHODS[name]}")


def _refuse_reserved_name(owner: str, name: str, reserved: Collection[str]) -> None:
    """Raises ValueError for a user attribute under whose name studyloom stores its own."""
    if name in reserved:
        raise ValueError(f"{owner}.set_user_attr: {name} is reserved; choose another name")


def _check_is_repeated(name: str, repeated_params: Mapping[str, object]) -> None:
    """Raises ValueError if a trial that is repeated had no hyperparameter of a name."""
    if name not in repeated_params:
        raise ValueError(
            f"the repeated trial has no hyperparameter {name}, it has "
            f"{', '.join(repeated_params) or 'none'}; suggest what follows from those before"
        )


def _check_choices(name: str, distribution: BaseDistribution) -> None:
    """Raises ValueError for choices that would change when they are stored or written to YAML."""
    if not isinstance(distribution, CategoricalDistribution):
        return
    for choice in distribution.choices:
        if not is_scalar(choice) or "${" in str(choice):
            raise ValueError(
                f"the choices of {name} must be strings without ${{, numbers, true, false or None; "
                f"got {choice!r}; choose by a name, and look up what it stands for"
            )


# The calls of a loop


@dataclass(frozen=True)
class Loop:
    """A loop and what all its calls share.

    Args:
        config: the config of the trial; the function gets a read-only copy, with the seed as
            `config.seed`.
        objectives: the objectives that it returns, the metric first.
        limits: the constraints on what it reports by `run.cost`.
        must_keep: whether it must keep an object, since `objective.test` is to measure it.
        must_resume: whether it must be able to resume at each epoch, since the pruner pauses
            trials.
    """

    function: Callable[..., object]
    config: StudyConfig
    objectives: Sequence[ObjectiveValue]
    limits: Sequence[Condition] = ()
    must_keep: bool = False
    must_resume: bool = False

    @property
    def pruner_epochs(self) -> int | None:
        """The number of epochs that the pruner is set to; None for any number."""
        count = value_at(self.config, "pruner.max_resource")
        if isinstance(count, int):
            return count
        return None

    @property
    def metric(self) -> str:
        """The name of the metric."""
        return self.objectives[0].name

    @property
    def further_objectives(self) -> list[str]:
        """The names of the objectives after the metric."""
        return [objective.name for objective in self.objectives[1:]]

    @property
    def limits_by_name(self) -> dict[str, Condition]:
        """The limit of each quantity that has one."""
        return {limit.name: limit for limit in self.limits}

    @property
    def required_costs(self) -> list[str]:
        """Names that a call must report besides the metric: further objectives, limited costs."""
        names = dict.fromkeys([*self.further_objectives, *self.limits_by_name])  # an ordered set
        return list(names)

    def make_config(self, seed: int) -> Any:
        """Makes the config that a call with a seed gets, an OmegaConf config."""
        return self.config.for_user(seed=seed)

    def read_value(self, result: object, run: Run) -> float:
        """Returns the metric's value in what a call has returned, and reports the costs in it.

        Args:
            result: the value; or the values of all objectives, in order or by name. Those after
                the metric become costs of the run.

        Raises:
            UndefinedMetric: a value is missing, or is not a finite number.
            Infeasible: a constraint is violated.
        """
        values = self._name_values(result)
        required_costs = self.required_costs
        costs = {name: value for name, value in values.items() if name in required_costs}
        run.cost(**costs)
        if self.metric not in values:
            raise UndefinedMetric(
                f"the objective returned {', '.join(map(str, values)) or 'nothing'}: expected "
                f"objective.metric={self.metric} among the names"
            )
        for name in required_costs:
            if name not in run.costs:
                raise UndefinedMetric(
                    f"the objective reported no {name}, which objective.constraints or "
                    f"objective.metric names: expected run.cost({name}=…), or a dict with it"
                )
        value = values[self.metric]
        action = f"returned {value!r}"
        if value is None:  # it probably lacks the line `return run.value`
            action = "returned None, and not run.value"
        return to_finite_number(value, action)  # its error says "the objective returned …"

    def _name_values(self, result: object) -> Mapping[Any, Any]:
        """Returns the values that a call has returned, by the names of the objectives."""
        if isinstance(result, Mapping):
            return result
        names = [self.metric, *self.further_objectives]
        if len(names) > 1 and isinstance(result, tuple | list) and len(result) == len(names):
            return dict(zip(names, result, strict=True))
        return {self.metric: result}

    def check_run(self, run: Run) -> None:
        """Raises ValueError if the call of a run cannot be paused, or tested, although it must be.

        Args:
            run: the object by which the call reports values and keeps its state.
        """
        if self.must_resume and run.stage == "search":
            if not run.may_resume:
                raise ValueError(
                    "pruner=asha resumes trials from their checkpoints; call run.keep(net=…), "
                    "loop over run.epochs(…) and report there, or set pruner=successive_halving"
                )
            for name in self.further_objectives:
                if name not in run.costs:
                    raise ValueError(
                        f"pruner=asha ranks trials by {name} too; report {name} before "
                        f"the first report, by run.cost({name}=…), or set pruner=none"
                    )
        if self.must_keep and not run.keeps_state:
            raise ValueError(
                "objective.test is given what run.keep keeps; call run.keep(net=…) before the "
                "first epoch"
            )

    def test(
        self, function: Callable[..., object], seed: int, states: State, examples: object
    ) -> dict[str, float]:
        """Calls `objective.test` for a trained loop, and returns its values, the metric first.

        Args:
            function: the user's function.
            states: the states of the objects that the training kept; `run.keep` restores them.
            examples: the Dataset of the test set; None without `data`.

        Raises:
            NoWinner: it raises an exception, or returns something else.
        """
        job = LoopJob(fold=0, seed=seed)
        context = RunContext(trial=0, attempt=Attempt(stage=TEST), job=job)
        run = Run(context, self.metric, _ignore_report, saved={"kept": states})
        try:
            return self._call_test(lambda: function(self.make_config(seed), run, examples), seed)
        finally:
            run.close()

    def test_params(
        self, function: Callable[..., object], params: Mapping[str, object], seed: int
    ) -> dict[str, float]:
        """Calls `objective.test` of an Optuna objective, and returns its values, the metric first.

        The function trains and tests by itself, since an Optuna objective keeps no states.

        Args:
            function: the user's function, called as (params, seed).
            params: the values of the hyperparameters, by the names that the objective suggests.

        Raises:
            NoWinner: it raises an exception, or returns something else.
        """
        return self._call_test(lambda: function(params, seed), seed)

    def _call_test(self, call: Callable[[], object], seed: int) -> dict[str, float]:
        """Calls a function of the user that tests, and returns its values by name.

        Raises:
            NoWinner: it raises an exception, or returns something else.
        """
        try:
            with seeded(seed), isolated_hydra(), keys_explained():
                return _read_test_values(call(), self.metric)
        except (Exception, SystemExit) as error:
            raise NoWinner(
                f"objective.test={self.config.objective.test}: {describe_error(error)}"
                f"{describe_place(error)}; fix it, and repeat the command with "
                "study.accept_code_change=true, which keeps the search"
            ) from error


def _ignore_report(step: int, value: float, further: dict[str, float]) -> None:
    """Takes a report of a test, whose values are those that the function returns."""


def _read_test_values(result: object, metric: str) -> dict[str, float]:
    """Reads the values in what `objective.test` has returned: a number, or numbers by name.

    The metric comes first in the result.
    """
    values: Mapping[Any, object] = {metric: result}
    if isinstance(result, Mapping):
        values = result
    numbers: dict[str, float] = {}
    for name, value in values.items():
        numbers[str(name)] = to_finite_number(value, f"returned {value!r} from objective.test")
    if metric not in numbers:
        raise UndefinedMetric(
            f"must return a number, or a dict with {metric}; got {', '.join(numbers) or 'nothing'}"
        )
    return {metric: numbers.pop(metric), **numbers}


class SignalGuard:
    """Lets signals interrupt a loop, but not while studyloom stores something of its trial.

    A signal to stop raises Stopped anywhere in the loop. If it did so while a report is stored, the
    database could hold half of the report. So signals wait until the report is stored.

    The guard also measures the seconds of each step: the time in which signals wait is no training.

    Args:
        report: stores a step, and may end the trial by an exception.
        stopping: lets signals interrupt the body of its context.

    Attributes:
        ending: the exception by which a report has ended the trial; None while the trial runs.
    """

    def __init__(self, report: StepReporter, stopping: Stopping) -> None:
        self.ending: BaseException | None = None
        self._report = report
        self._stopping = stopping
        # Holds the context in which signals may interrupt the loop; empty while they must wait.
        self._interruptible = ExitStack()
        self._step_start = 0.0  # by the clock perf_counter, in seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        # Leaves the context that `allow_signals` has entered.
        return self._interruptible.__exit__(kind, error, traceback)

    def allow_signals(self) -> None:
        """Lets signals interrupt the loop from now on."""
        self._interruptible.enter_context(self._stopping.interruptible())

    @contextmanager
    def block_signals(self) -> Iterator[None]:
        """Makes signals wait until the body has ended.

        The seconds of the body are no training: the start of the step is moved by them.
        """
        self._interruptible.close()  # leaves the context in which signals may interrupt the loop
        body_start = time.perf_counter()
        try:
            yield
        finally:
            self._step_start += time.perf_counter() - body_start
            if self.ending is None:
                self.allow_signals()

    def start_step(self) -> None:
        """Starts the time of the first step."""
        self._step_start = time.perf_counter()

    def end_step(self) -> float:
        """Returns the seconds of the step that ends now, and starts the time of the next step."""
        now = time.perf_counter()
        seconds = now - self._step_start
        self._step_start = now
        return seconds

    def report(self, step: Step | None = None) -> None:
        """Stores a step, or with None what is new of the trial; called within `block_signals`.

        If that ends the trial, the exception is kept as `ending`: the loop may catch it.
        """
        try:
            self._report(step)
        except BaseException as error:
            self.ending = error
            raise


@dataclass
class LoopObjective(Objective):
    """Calls a loop for one job after the other: each of its reports is a step.

    The value is the mean of what the calls return. With several jobs, the pruner compares trials
    at the end of each job. A loop that keeps its state resumes after its last complete epoch; any
    other repeats its job.

    Args:
        trial: the number of the trial in its stage.
        stored_trial: the stored trial, which an Optuna objective gets; None to repeat the values of
            `params`.
    """

    loop: Loop
    jobs: Sequence[LoopJob]
    trial: int = 0
    attempt: Attempt = field(default_factory=Attempt)
    stored_trial: BaseTrial | None = None
    _reports: list[list[Report]] = field(default_factory=lambda: [[]])  # of each job so far
    _values: list[float] = field(default_factory=list)  # of each job that has ended
    _costs: list[dict[str, Cost]] = field(default_factory=list)  # of each job so far, by name
    _states: State | None = None  # of the objects that the first job kept, at its end
    _saved: RunState | None = None  # the state from which the current job resumes
    _run: Run | None = None  # of the current job
    _not_kept: list[str] = field(default_factory=list)
    _resumable_epochs: int | None = field(default=None, init=False)
    _warnings: list[str] = field(default_factory=list)

    @property
    def has_several_jobs(self) -> bool:
        """True if the loop is called for several folds or seeds, each of them a job."""
        return len(self.jobs) > 1

    @property
    def compared_jobs(self) -> int | None:
        if self.has_several_jobs:
            return len(self.jobs)
        return None

    def compared_number(self, step: Step) -> int | None:
        """Returns the number by which the pruner compares a step; None if it skips the step.

        With several jobs, trials are compared only at the end of each job, by the number of jobs
        that have ended.
        """
        if not self.has_several_jobs:
            return step.number
        assert isinstance(step, Report)
        if step.ends_job:
            return step.job + 1
        return None

    def is_new(self, step: Step, reported: int) -> bool:
        """Returns whether a step comes after the one that was reported last.

        Args:
            reported: the compared number of the step that was reported last. With several jobs it
                is the number of jobs that had ended, and so the position of the next job.
        """
        if not self.has_several_jobs:
            return step.number > reported
        assert isinstance(step, Report)
        next_job = reported
        return step.job >= next_job

    @property
    def epochs(self) -> int | None:
        """Number of steps in all; None until it is known.

        The loop gives it to `run.epochs`. With several jobs it is known once all have ended.
        """
        if not self.has_several_jobs:
            if self._run is None:
                return None
            return self._run.count
        if len(self._values) < len(self.jobs):
            return None
        return self._count_steps(len(self.jobs))

    def _count_steps(self, job_count: int) -> int:
        """Counts the steps of the first jobs: their reports, and the end of each."""
        return sum(len(reports) + 1 for reports in self._reports[:job_count])

    @property
    def resumable_epochs(self) -> int | None:
        return self._resumable_epochs

    @property
    def keeps_files(self) -> bool:
        return self._run is not None and self._run.keeps_files

    @property
    def finds_files(self) -> bool:
        """True if an earlier attempt has left a folder, from whose files an adapter may resume."""
        folder = self.attempt.folder
        function = self.loop.function
        if not isinstance(function, Adapter) or not function.resumes_from_files:
            return False
        return folder is not None and folder.exists()

    def run(self, report: StepReporter, stopping: Stopping) -> float:
        """Calls the loop for each job, and returns the mean of their values.

        Between two reports a signal may end the loop at any moment. An exception that `report`
        raises reaches the caller even if the loop catches it. A job whose checkpoint does not fit
        the loop any more starts again.
        """
        while len(self._values) < len(self.jobs):
            position = len(self._values)  # of the first job that has not ended
            try:
                value = self._run_job(position, report, stopping)
            except UnfitState as error:
                log.warning("trial %d: %s; it starts again from the beginning", self.trial, error)
                self._saved = None  # the job has no checkpoint to resume from
                self._reports[position] = []  # those of the job so far are dropped
                continue  # with the same job
            self._values.append(value)
            self._saved = None  # the next job starts from the beginning
            self._run = None
            if self.has_several_jobs:
                self._reports.append([])  # of the next job
                report(self._make_end_report(position))
        return mean(self._values)

    def _run_job(self, position: int, report: StepReporter, stopping: Stopping) -> float:
        """Calls the loop for the job at a position, and returns its value.

        Raises:
            BaseException: the exception by which a report has ended the trial, even if the loop
                has caught it; or else the exception of the loop.
            UnfitState: the checkpoint does not fit what the loop keeps.
        """
        job = self.jobs[position]
        guard = SignalGuard(report, stopping)
        with guard, seeded(job.seed):
            guard.allow_signals()
            run = self._make_run(position, guard)
            try:
                value = self._call_function(run, guard)
            except BaseException as error:
                prunes_itself = isinstance(error, TrialPruned) and guard.ending is None
                if prunes_itself:
                    run.flush()  # sends the last report, which may be pending
                # The loop may have caught the exception of studyloom that ends its job, and raised
                # another one, `error`. The first one counts.
                library_error = _find_library_error(error, run, guard)
                if library_error is not None:
                    raise library_error from None
                raise
            finally:
                self._record_end(run)
            self.loop.check_run(run)  # each report checks it, but the loop may have sent none
            if position == 0:
                self._states = run.copy_states()
        return value

    def _record_end(self, run: Run) -> None:
        """Closes the run of a job, however it has ended, and keeps what the trial's record needs.

        It is whether the job could have resumed, what the loop did not keep, and warnings.
        """
        if run.can_resume:
            self._resumable_epochs = run.count
        self._not_kept = run.not_kept
        self._warnings += run.warnings
        run.close()

    def _make_run(self, position: int, guard: SignalGuard) -> Run:
        """Makes the run of the job at a position, which is the current run from now on."""
        loop = self.loop
        attempt = self.attempt
        if attempt.folder is not None and self.has_several_jobs:  # each job has its own folder
            attempt = replace(attempt, folder=attempt.folder / f"job-{position}")
        run = Run(
            RunContext(self.trial, attempt, self.jobs[position]),
            loop.metric,
            partial(self._send_report, position, guard),
            limits=loop.limits_by_name,
            saved=self._saved,
            pruner_epochs=loop.pruner_epochs,
        )
        self._run = run
        del self._costs[position:]  # those of an earlier call of this job, if it starts again
        self._costs.append(run.costs)
        return run

    def _call_function(self, run: Run, guard: SignalGuard) -> float:
        """Calls the loop or Optuna objective with a run, and returns its value."""
        loop = self.loop

        def make_trial(params: Mapping[str, Any]) -> ObjectiveTrial:
            return ObjectiveTrial(
                self.stored_trial,
                params,
                objectives=loop.objectives,
                run=run,
                block_signals=guard.block_signals,
                store=guard.report,
            )

        function = UserFunction(loop.function)
        config: Any = loop.config
        if function.takes_config:
            config = loop.make_config(run.seed)
        with isolated_hydra(), keys_explained():
            guard.start_step()
            result = function.call(config, run, make_trial)
        has_caught_report = guard.ending is not None
        has_caught_unfit_state = run.unfit_state is not None  # the checkpoint did not fit the loop
        if has_caught_report or has_caught_unfit_state:
            # The loop has caught the exception that ends its trial. The caller of this method
            # raises that exception again, in place of the one here.
            raise RuntimeError("the loop must not catch the exception that ends its trial")
        run.flush()
        return loop.read_value(result, run)

    def _send_report(
        self, position: int, guard: SignalGuard, step: int, value: float, further: dict[str, float]
    ) -> None:
        """Stores a report of the job at a position; `Run` calls it.

        Args:
            step: the number that the loop gave. It is the number of the stored report too, unless
                there are several jobs: the reports of all jobs are counted together.
            value: the value of the metric.
            further: other quantities of the step, by name.
        """
        if guard.ending is not None:  # the loop has caught the exception that ends its trial
            raise guard.ending
        assert self._run is not None
        self.loop.check_run(self._run)
        with guard.block_signals():
            seconds = guard.end_step()
            reports_of_job = self._reports[position]
            number = step
            if self.has_several_jobs:
                number = self._count_steps(position) + len(reports_of_job) + 1
            report = Report(number, value, seconds, step, further, job=position)
            reports_of_job.append(report)
            guard.report(report)

    def _make_end_report(self, position: int) -> Report:
        """Makes the report of the end of a job, with its value."""
        return Report(
            number=self._count_steps(position + 1),
            value=self._values[position],
            seconds=0.0,
            step=len(self._reports[position]),
            job=position,
            ends_job=True,
        )

    # The record of the trial

    def costs(self) -> list[Cost]:
        """Returns the costs that the loop has reported, as means over jobs.

        Only those are returned that the study names. A loop may report the metric as a cost too.
        """
        names = dict.fromkeys([self.loop.metric, *self.loop.required_costs])  # an ordered set
        means = []
        for name in names:
            costs = [costs_of_job[name] for costs_of_job in self._costs if name in costs_of_job]
            if costs:
                mean_value = mean([cost.value for cost in costs])
                means.append(replace(costs[0], value=mean_value))
        return means

    def not_kept(self) -> list[str]:
        return self._not_kept

    def streams(self) -> list[str]:
        if self._run is None:
            return []
        return self._run.streams

    def warnings(self) -> list[str]:
        return self._warnings

    def steps(self) -> list[Report]:
        """Returns the reports of all jobs.

        With several jobs, the reports of each job that has ended are followed by one of its end.
        """
        steps = []
        for position, reports in enumerate(self._reports):
            steps += reports
            if self.has_several_jobs and position < len(self._values):
                steps.append(self._make_end_report(position))
        return [step for step in steps if self._is_counted(step.number)]

    def curves(self) -> Curves:
        """Returns a column for each quantity that was reported, as means over jobs.

        The means are over the reports of one step, as the loop numbers its steps in each job. The
        `number` of a report grows over all jobs, and shows only whether the report came before the
        trial was pruned.
        """
        reports_by_step = defaultdict[int, list[Report]](list)
        for reports_of_job in self._reports:
            for report in reports_of_job:
                if self._is_counted(report.number):
                    reports_by_step[report.step].append(report)
        if not reports_by_step:
            return {}
        rows = [reports_by_step[step] for step in sorted(reports_by_step)]
        columns: Curves = {"number": [], "value": [], "seconds": []}
        names: dict[str, None] = {}  # an ordered set
        for reports in rows:
            columns["number"].append(reports[0].step)
            columns["value"].append(mean([report.value for report in reports]))
            columns["seconds"].append(sum(report.seconds for report in reports))
            for report in reports:
                names.update(dict.fromkeys(report.further))
        for name in names:
            columns[name] = [_average_quantity(name, reports) for reports in rows]
        return columns | spread_over_jobs(rows)

    def standard_error(self) -> float | None:
        """Returns the standard error over the jobs that have ended; None for fewer than two."""
        values = []
        for position, value in enumerate(self._values):
            if self._is_counted(self._count_steps(position + 1)):
                values.append(value)
        return compute_standard_error(values)

    def _is_counted(self, number: int) -> bool:
        """True unless the pruner has ended the trial before the step of a number."""
        return self._last_number is None or number <= self._last_number

    def state(self) -> State | None:
        """Returns the results of all jobs so far, and the state of the run of the current job.

        Returns:
            None if there is nothing to resume from: within an epoch, and before the first job.
        """
        run_state = None
        if self._run is not None:
            run_state = self._run.state()
            if run_state is None:
                return None  # within an epoch
        elif not self._values:
            return None  # nothing has run yet
        reports = []
        for reports_of_job in self._reports:
            reports.append([asdict(report) for report in reports_of_job])
        costs = []
        for costs_of_job in self._costs:
            costs.append({name: cost.value for name, cost in costs_of_job.items()})
        return {
            "seeds": [job.seed for job in self.jobs],
            "reports": reports,  # a list for each job that has begun
            "values": self._values,  # of the jobs that have ended
            "costs": costs,  # of the jobs that have begun
            "states": self._states,  # of the objects that the first job kept, at its end
            "now": run_state,  # the state of the current job; None between two jobs
        }

    def restore(self, state: State) -> None:
        """Resumes from what `state` has returned; ValueError if it is of another objective.

        The attributes are set once the whole state has been read, so that an error changes nothing.
        """
        try:
            if state["seeds"] != [job.seed for job in self.jobs]:
                raise ValueError("it has other folds and seeds")
            reports = []
            for reports_of_job in state["reports"]:
                reports.append([Report(**fields) for fields in reports_of_job])
            run_state = state["now"]  # of the job that ran; None between two jobs
            if run_state is not None:
                # The run needs the value that it reported last, which `state` stores only once,
                # with the reports.
                reports_of_current_job = reports[-1]
                last_report = reports_of_current_job[-1]
                run_state = {**run_state, "value": last_report.value}
            costs = [self._restore_costs(values_by_name) for values_by_name in state["costs"]]
            values = [*state["values"]]  # of the jobs that had ended
            states_of_first_job = state["states"]  # of the objects that it kept, at its end
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"the state does not fit this objective: {error}") from error
        self._reports = reports
        self._values = values
        self._costs = costs
        self._states = states_of_first_job
        self._saved = run_state

    def _restore_costs(self, values_by_name: Mapping[str, float]) -> dict[str, Cost]:
        """Returns the costs of a job from their values in a state."""
        limits = self.loop.limits_by_name
        costs = {}
        for name, value in values_by_name.items():
            costs[name] = Cost(name, value, limits.get(name))
        return costs

    def weights(self) -> State | None:
        """Returns the states that the first call has kept; None if it has kept nothing."""
        return self._states or None


def _find_library_error(error: BaseException, run: Run, guard: SignalGuard) -> BaseException | None:
    """Returns the exception that studyloom has raised within a loop, and that ends its job.

    It is the exception by which a report has ended the trial, or the error of a checkpoint that
    does not fit.

    Args:
        error: the exception that has left the loop: the same one, or another if the loop has caught
            it.

    Returns:
        None if the job ends by `error`.
    """
    if guard.ending is not None:
        return guard.ending
    # A job whose checkpoint does not fit starts again. A request to stop, which is no `Exception`,
    # must end the job instead.
    if isinstance(error, Exception):
        return run.unfit_state
    return None


class Unstopped(Stopping):
    """A `Stopping` that stops nothing."""


def _average_quantity(name: str, reports: Sequence[Report]) -> float | None:
    """Returns the mean of a quantity over the jobs that have reported it; None if none has."""
    values = [report.further[name] for report in reports if name in report.further]
    if not values:
        return None
    return mean(values)
