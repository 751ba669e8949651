"""Trains a trial again from its provenance, and compares it with its learning curve by epoch.

The conf/ files of today play no part. Everything that the trial names is checked before any of it
is called, because a database can come from somebody else.
"""

import contextlib
import functools
import json
import math
import operator
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna import TrialPruned
from optuna.trial import FrozenTrial, TrialState

from studyloom._version import __version__
from studyloom.config import trust
from studyloom.config.build import build
from studyloom.config.runs import read_written
from studyloom.config.schema import SCHEMA, TrainSection
from studyloom.config.values import describe_error, value_at
from studyloom.data.datasets import places
from studyloom.data.training_data import Part, TrainingData
from studyloom.errors import ConfigError
from studyloom.metrics import Goal
from studyloom.question.jobs import build_jobs, build_loop, loop_device, loop_jobs, named_goals
from studyloom.question.loop import LoopObjective, Report
from studyloom.question.objective import Step, group_by_epoch, mean_epoch, mean_epochs
from studyloom.question.question import names_data
from studyloom.question.rule import parse_limits
from studyloom.seeds import derive
from studyloom.storage.attributes import COLUMNS, EPOCHS, FAILURE, JOBS, MADE, REASON
from studyloom.study import failures
from studyloom.study.failures import Failure
from studyloom.study.stopping import Stop
from studyloom.text import format_ranges
from studyloom.training.job import Epoch
from studyloom.training.steps import on_threads
from studyloom.training.trainer import Training


@dataclass(frozen=True)
class Provenance:
    """What a trial stores about its making, as one JSON object of about 1.2 kB.

    Args:
        config: the resolved sections, without data.root.
        study_seed: of the study; it decides the folds.
        data: the digest of the training data.
        in_turn: whether the jobs were trained one after the other.
    """

    config: dict[str, Any]
    seed: int
    study_seed: int
    data: str
    in_turn: bool
    device: str
    claims: int
    environment: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Returns plain values; a value that JSON does not know, such as a path, becomes text."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return plain

    def on_threads(self, count: int) -> "Provenance":
        """Returns the provenance of a training that used so many threads."""
        return replace(self, environment={**self.environment, "threads": count})

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> "Provenance":
        """Reads a provenance from a database, which anybody may have written.

        Args:
            stored: what `as_json` returned.

        Raises:
            ValueError: a field is missing or has the wrong type.
        """
        try:
            return msgspec.convert(stored, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"its attribute `{MADE}` cannot be used: {error}") from None


def current_environment(device: torch.device) -> dict[str, Any]:
    """Returns versions, device, threads and commit: if one differs, so may a trial's result.

    If several processes train a trial together, it has their number as `ranks` too.
    """
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "optuna": optuna.__version__,
        "studyloom": __version__,
        "device": processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        **({"ranks": ranks} if ranks > 1 else {}),
    }


@functools.cache
def processor() -> str:
    """Returns the CPU, and the set of its instructions that PyTorch's kernels use."""
    try:
        cpu_info = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpu_info = ""
    match = re.search(r"^model name\s*:\s*(.+)$", cpu_info, re.MULTILINE)
    name = match[1] if match else platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def commit() -> str | None:
    """Returns the commit of the working directory, with -dirty if tracked files differ from it.

    None without git, outside a repository, and before the first commit.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    env = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # writes nothing
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


QUANTITIES = ("value", "train_loss", "valid_loss")
SECTIONS = ("data", "model", "optimizer", "scheduler")  # that a configuration must have
# Another number of threads, processor or release adds in another order. Between one and two
# threads, six epochs on MNIST-5k were at most 0.9 % apart in their losses and 1 of 800 images.
# Near divergence the same rounding is amplified without bound (150 images at a rate of 0.3): that
# is reported as different, since no tolerance would mean anything there.
LOSS = 0.05  # relative
COUNTED = 0.01  # of the validation examples, and at least one
# The parts of an environment that change the order.
REORDERING = ("torch", "device", "threads", "ranks")
MOST_THREADS = 1024  # a greater number in a database is ignored
OUTSIDE = (failures.TIMEOUT, failures.CRASHED)  # failures whose cause lies outside the trial
# Failures whose reason holds what was computed; the words of the others may change.
WITH_NUMBERS = (failures.DIVERGED, failures.INFEASIBLE)


@dataclass(frozen=True)
class ExpectedTrial:
    """What a trial stored about its course, which a replay is to repeat.

    Args:
        curve: a list for each quantity, with a number for each epoch from 1 on; None where a loop
            told none.
        failure: how the trial failed; None if it did not.
        value: that a loop returned at its end; None if it did not come so far.
    """

    curve: Mapping[str, Sequence[float | None]]
    failure: Failure | None
    jobs: Sequence[int]
    metric: str = "accuracy"
    value: float | None = None

    @property
    def epochs(self) -> int:
        return len(self.curve["value"])

    def called(self, quantity: str) -> str:
        """Returns the name of a quantity of the curve, which for the value is the metric's."""
        return self.metric if quantity == "value" else quantity


@dataclass(frozen=True)
class Course:
    """How a replay went.

    Args:
        failure: how it failed; None if it did not.
        value: that a loop returned at its end; None if it did not come so far.
    """

    steps: Sequence[Step]
    failure: Failure | None
    value: float | None = None


@dataclass(frozen=True)
class Difference:
    """A number or failure that differs between a stored trial and its replay.

    Args:
        quantity: what differs, such as `train_loss` or `failure`.
    """

    epoch: int
    quantity: str
    expected: Any
    now: Any

    def __str__(self) -> str:
        return f"epoch {self.epoch}, {self.quantity}: stored {self.expected}, now {self.now}"


@dataclass(frozen=True)
class Tolerance:
    """How far apart two trainings may be and still count as equal.

    Args:
        loss: the relative difference of losses, and of values if the metric is not accuracy.
        examples: the number of validation examples; 0 if it is not known.
    """

    loss: float
    off: int
    examples: int
    metric: str = "accuracy"

    def holds(self, quantity: str, expected: float | None, now: float | None) -> bool:
        """Whether two values of a quantity are close enough; a loop may have told none."""
        if expected is None or now is None:
            return expected is now
        if quantity == "value" and self.metric == "accuracy" and self.examples:
            # Not in whole examples: the accuracy may be a mean over folds.
            return abs(now - expected) * self.examples <= self.off + 1e-6
        return math.isclose(expected, now, rel_tol=self.loss, abs_tol=1e-6)

    def __str__(self) -> str:
        if self.metric != "accuracy" or not self.examples:
            return f"losses and {self.metric} within {self.loss:.0%}"
        return (
            f"losses within {self.loss:.0%}, "
            f"accuracies within {self.off} of {self.examples} validation examples"
        )


def find_trial(trials: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    """Returns the trial with a number.

    Raises:
        ValueError: there is no such trial, or it stored no provenance; names those that did.
    """
    replayable = [trial.number for trial in trials if MADE in trial.user_attrs]
    hint = f"those that can be replayed: {format_ranges(replayable) or 'none'}"
    for trial in trials:
        if trial.number == number:
            if number in replayable:
                return trial
            state = trial.state.name.lower()
            raise ValueError(
                f"trial {number} ({state}) stored nothing that it could be replayed from; {hint}"
            )
    raise ValueError(f"--trial {number}: there is no such trial; {hint}")


def read_trial(
    trial: FrozenTrial, metric: str = "accuracy", *, loop: bool = False
) -> ExpectedTrial:
    """Reads the course of a trial; if its workers died, as far as they had reported it.

    Args:
        trial: as it is stored; anybody may have written the database.
        loop: whether it called a loop, whose curves have names of its own.

    Raises:
        ValueError: the stored learning curve has the wrong form.
    """
    columns = trial.user_attrs.get(EPOCHS, {})
    names = ["value", *(name for name in columns if name not in COLUMNS)] if loop else QUANTITIES
    curve = {name: columns.get(name, []) for name in names}
    if EPOCHS not in trial.user_attrs:
        curve = {"value": [value for _, value in sorted(trial.intermediate_values.items())]}
    lengths = {len(values) for values in curve.values()}
    kinds = (int, float, type(None)) if loop else (int, float)
    numbers = all(type(v) in kinds for values in curve.values() for v in values)
    if len(lengths) > 1 or not numbers:
        raise ValueError(f"its attribute `{EPOCHS}` must have a number for each epoch and quantity")
    jobs = columns.get(JOBS, [1] * len(curve["value"]))
    counted = all(type(count) is int and count > 0 for count in jobs)
    if len(jobs) != len(curve["value"]) or not counted:
        raise ValueError(
            f"`{JOBS}` in its attribute `{EPOCHS}` must have a number of jobs for each epoch"
        )
    kind, reason = trial.user_attrs.get(FAILURE), str(trial.user_attrs.get(REASON))
    failure = None if kind is None else Failure(str(kind), reason)
    value = trial.values[0] if loop and trial.values and failure is None else None
    pruned = trial.state == TrialState.PRUNED  # Optuna gives it the value of its last report
    return ExpectedTrial(curve, failure, jobs, metric, None if pruned else value)


def rebuild(provenance: Provenance, trusted: Sequence[str]) -> DictConfig:
    """Returns the configuration of a trial, after checking that all it names may be called.

    Raises:
        ConfigError: it names something that is not trusted, or has the wrong form.
    """
    trust.check_targets(provenance.config, trusted)
    sections = {
        "train": OmegaConf.structured(TrainSection),
        "objective": SCHEMA.objective.copy(),
    }
    try:
        cfg = OmegaConf.merge(sections, provenance.config)
    except OmegaConfBaseException as error:
        raise ConfigError(
            [f"the configuration that the trial stored: {describe_error(error)}"]
        ) from None
    assert isinstance(cfg, DictConfig)
    if is_loop(cfg):
        return cfg
    if missing := [name for name in SECTIONS if name not in cfg]:
        raise ConfigError([f"the configuration that the trial stored has no {', '.join(missing)}"])
    return cfg


def is_loop(cfg: DictConfig) -> bool:
    """Whether the trial of a configuration called a loop, and trained no network of ours."""
    return cfg.objective["_target_"] is not None


def load_data(cfg: DictConfig, provenance: Provenance, run_dir: Path) -> TrainingData:
    """Loads the data of a run, and makes its folds.

    Args:
        cfg: the configuration of the trial; where the data lie is set in it, as the run has it.

    Returns:
        The data, on a GPU if the trial used one and there is one here; empty if they are a loop's
        own.

    Raises:
        ValueError: the trial was trained on other data.
    """
    if is_loop(cfg) and not names_data(cfg):
        return TrainingData()
    written = value_at(read_written(run_dir, "config.yaml"), "data")
    for path in places(written) if isinstance(written, dict) else ():
        value = functools.reduce(operator.getitem, path, written)
        if isinstance(value, str | int):  # no section, in which somebody else could name code
            OmegaConf.update(cfg, ".".join(("data", *path)), value, force_add=True)
    source = build(cfg.data)
    split: Part = source.train()
    if split.digest != provenance.data:
        raise ValueError(
            f"the trial was trained on data with the digest {provenance.data}, and the data here "
            f"has {split.digest}; put the same files where data.root or STUDYLOOM_DATA points"
        )
    folds = split.folds(cfg.objective.folds, source.validation, derive(provenance.study_seed))
    cuda = provenance.device == "cuda" and torch.cuda.is_available() and not is_loop(cfg)
    data = TrainingData(source, split, folds)
    return data.to(torch.device("cuda", 0) if cuda else torch.device("cpu"))


@contextlib.contextmanager
def threads(count: Any) -> Iterator[None]:
    """Runs the body with as many threads as the trial had.

    Args:
        count: from a database; anything but a whole number from 1 to MOST_THREADS is ignored.
    """
    usable = type(count) is int and 1 <= count <= MOST_THREADS
    with on_threads(count if usable else torch.get_num_threads()):
        yield


def train_again(
    cfg: DictConfig,
    provenance: Provenance,
    data: TrainingData,
    until: int | None,
    report: Callable[[Step], None],
) -> Course:
    """Trains the first epochs of a trial again.

    Args:
        until: how many epochs to train; if the jobs are trained in turn, those of each job count.
            None to train to the end.

    Raises:
        ConfigError: the configuration cannot be built.
    """
    if is_loop(cfg):
        return _call_again(cfg, provenance, data, until, report)
    history: list[list[Epoch]] = []
    failure = None
    assert data.split is not None
    try:
        jobs = build_jobs(cfg, data.folds, provenance.seed)
        threads_now = torch.get_num_threads()  # as many as the trial had
        for epochs in Training(jobs, data.split, in_turn=provenance.in_turn, threads=threads_now):
            history.append(epochs)
            report(mean_epochs(history)[-1])
            if len(history) == until:
                break
    except ConfigError:
        raise
    except Exception as error:  # as in the trial
        failure = failures.explain(error)
    return Course([mean_epoch(epochs) for epochs in group_by_epoch(history)], failure)


class _Enough(Exception):
    """Ends a loop after as many reports as the trial has stored."""


def _call_again(
    cfg: DictConfig,
    provenance: Provenance,
    data: TrainingData,
    until: int | None,
    report: Callable[[Step], None],
) -> Course:
    """Calls the loop of a trial again, for as many reports; see `train_again`."""
    names = named_goals(cfg.objective)
    goals = [Goal(name, direction) for name, direction in names]
    limits = parse_limits(value_at(cfg, "objective.constraints"), None)
    jobs = loop_jobs(cfg, data, provenance.seed)
    objective = LoopObjective(build_loop(cfg, goals, limits), jobs, loop_device())
    value, failure, reports = None, None, 0

    def take(step: Step) -> None:
        nonlocal reports
        if len(jobs) > 1 and step.number % objective.stride == 0:  # the end of a job
            return
        reports += 1
        report(Report(reports, step.value, step.seconds, reports))
        if reports == until:
            raise _Enough

    try:
        value = objective.run(take, Stop())
    except ConfigError:
        raise
    except (_Enough, TrialPruned):
        pass
    except Exception as error:  # as in the trial
        failure = failures.explain(error)
    columns = objective.curves()
    steps = [
        Report(at + 1, value, 0.0, at + 1, {name: columns[name][at] for name in columns})
        for at, value in enumerate(columns.get("value", ()))
    ]
    return Course(steps, failure, value)


def quantity_of(step: Step, name: str) -> float | None:
    """Returns a quantity of a step by its name; None if a loop has not told it there."""
    if isinstance(step, Report):
        return step.further.get(name)
    number: float = getattr(step, name)
    return number


def compare(expected: ExpectedTrial, now: Course, tolerance: Tolerance | None) -> list[Difference]:
    """Compares a replay with the trial.

    Args:
        tolerance: None if numbers must be equal bit for bit.

    Returns:
        All differences, by epoch.
    """
    differences = []
    for position, epoch in enumerate(now.steps[: expected.epochs]):
        for quantity, values in expected.curve.items():
            before, value = values[position], quantity_of(epoch, quantity)
            close = tolerance is not None and tolerance.holds(quantity, before, value)
            if before != value and not close:
                name = expected.called(quantity)
                differences.append(Difference(epoch.number, name, before, value))
    if expected.value is not None and now.failure is None and expected.value != now.value:
        before, value = expected.value, now.value
        if tolerance is None or not tolerance.holds("value", before, value):
            differences.append(Difference(len(now.steps), expected.metric, before, value))
    outside = expected.failure is not None and expected.failure.kind in OUTSIDE
    pair, exactly = (None if outside else expected.failure, now.failure), tolerance is None
    if not _is_same_failure(*pair, exactly=exactly):
        stored, again = (_format_failure(f, exactly=exactly) for f in pair)
        last = len(now.steps) + (now.failure is not None)
        differences.append(Difference(last, "failure", stored, again))
    return sorted(differences, key=lambda difference: difference.epoch)


def _format_failure(failure: Failure | None, *, exactly: bool) -> str:
    if failure is None:
        return "none"
    return f"{failure.kind} ({failure.reason})" if exactly else failure.kind


def _is_same_failure(one: Failure | None, other: Failure | None, *, exactly: bool) -> bool:
    """Whether a trial failed in the same way. Words of ours may differ between versions."""
    if one is None or other is None or one.kind != other.kind:
        return one is other
    if exactly and one.kind in WITH_NUMBERS:
        return one.reason == other.reason
    if exactly and one.kind == failures.ERROR:  # the class of the exception
        return one.reason.partition(":")[0] == other.reason.partition(":")[0]
    return True
