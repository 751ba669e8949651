"""Trains a trial again from its provenance, and compares it with its learning curve by epoch.

The conf/ files of today play no part. Everything that the trial names is checked before any of it
is called, because a database can come from somebody else.
"""

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna import TrialPruned
from optuna.trial import FrozenTrial, TrialState

from studyloom.config import trust
from studyloom.config.build import build
from studyloom.config.runs import read_written
from studyloom.config.schema import SCHEMA, TrainSection
from studyloom.config.values import describe_error, value_at
from studyloom.data.datasets import location_keys
from studyloom.data.training_data import Part, TrainingData
from studyloom.definition.definition import names_data
from studyloom.definition.jobs import build_function, build_jobs, loop_jobs, named_goals
from studyloom.definition.loop import Loop, LoopObjective
from studyloom.definition.objective import NetworkObjective, Objective, Step
from studyloom.definition.rule import parse_limits
from studyloom.errors import ConfigError
from studyloom.metrics import Goal
from studyloom.seeds import derive
from studyloom.storage.attributes import COLUMNS, EPOCHS, JOBS, MADE
from studyloom.study import failures
from studyloom.study.provenance import Provenance
from studyloom.study.stopping import Stop
from studyloom.text import format_ranges
from studyloom.training.steps import on_threads
from studyloom.training.trainer import Training

QUANTITIES = ("value", "train_loss", "valid_loss")
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
class Course:
    """How a training went: as a trial stored it, or as a replay repeated it.

    Args:
        curve: by quantity, a number for each epoch from 1 on; None where a loop told none. The
            value is called by the name of the metric, and is the first.
        value: that a loop returned at its end; None if it did not come so far.
        jobs: epochs that were trained in all, those of each job counted.
    """

    curve: Mapping[str, Sequence[float | None]]
    failure: failures.Failure | None
    value: float | None = None
    jobs: int = 0

    @property
    def epochs(self) -> int:
        return len(next(iter(self.curve.values()), ()))


@dataclass(frozen=True)
class Tolerance:
    """How far apart two trainings may be and still count as equal."""

    metric: str
    examples: int

    @property
    def off(self) -> int:
        """The number of validation examples by which accuracies may differ; 0 if none count."""
        counts = self.metric == "accuracy" and self.examples
        return max(1, math.ceil(COUNTED * self.examples)) if counts else 0

    def holds(self, quantity: str, expected: float | None, now: float | None) -> bool:
        """Whether two values of a quantity are close enough; a loop may have told none."""
        if expected is None or now is None:
            return expected is now
        if quantity == self.metric and self.off:
            # Not in whole examples: the accuracy may be a mean over folds.
            return abs(now - expected) * self.examples <= self.off + 1e-6
        return math.isclose(expected, now, rel_tol=LOSS, abs_tol=1e-6)

    def __str__(self) -> str:
        if not self.off:
            return f"losses and {self.metric} within {LOSS:.0%}"
        return (
            f"losses within {LOSS:.0%}, "
            f"accuracies within {self.off} of {self.examples} validation examples"
        )


def find_trial(trials: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    """Returns a trial; raises ValueError with those that can be replayed if it cannot."""
    replayable = {trial.number: trial for trial in trials if MADE in trial.user_attrs}
    if number in replayable:
        return replayable[number]
    known = number in (trial.number for trial in trials)
    why = "stored nothing that it could be replayed from" if known else "does not exist"
    numbers = format_ranges([*replayable]) or "none"
    raise ValueError(f"--trial: trial {number} {why}; those that can be replayed: {numbers}")


def read_trial(trial: FrozenTrial, metric: str, *, loop: bool) -> Course:
    """Reads the course of a trial; if its workers died, as far as they had reported it.

    Args:
        loop: whether it called a loop, whose curves have names of its own.
    """
    reported = [value for _, value in sorted(trial.intermediate_values.items())]
    stored = trial.user_attrs.get(EPOCHS)
    columns = stored or {"value": reported}
    further = [name for name in columns if name not in COLUMNS] if loop else QUANTITIES[1:]
    curve = {metric: columns.get("value", [])}
    if stored:
        curve |= {name: columns.get(name, []) for name in further}
    if len({*map(len, curve.values())}) > 1:
        raise ValueError(f"its attribute `{EPOCHS}` must have a number for each epoch and quantity")
    jobs = sum(int(count or 0) for count in columns.get(JOBS, [1] * len(curve[metric])))
    failure = failures.Failure.read(trial)
    # Optuna gives a pruned trial the value of its last report.
    returned = loop and failure is None and trial.state != TrialState.PRUNED
    value = trial.values[0] if returned and trial.values else None
    return Course(curve, failure, value, jobs)


def trusted_in(run_dir: Path, named: Sequence[str]) -> Sequence[str] | None:
    """Returns what a stored trial may name; None for all.

    In a run directory of the user's own commands that is all, if the database is there too. In one
    that others write to it is `named`, and what the user's own command named.
    """
    if trust.consent(run_dir, named) is not None:
        return named
    if any((run_dir / name).exists() for name in ("study.db", "postgres")):
        return None
    config = OmegaConf.to_container(read_written(run_dir, "config.yaml"), resolve=False)
    return [*named, *trust.packages_to_trust(config)]


def rebuild(provenance: Provenance, trusted: Sequence[str] | None) -> DictConfig:
    """Returns the configuration of a trial, after checking that all it names may be called."""
    trust.check_targets(provenance.config, trusted)
    sections = {"train": OmegaConf.structured(TrainSection), "objective": SCHEMA.objective.copy()}
    try:
        cfg = OmegaConf.merge(sections, provenance.config)
    except OmegaConfBaseException as error:
        words = f"the configuration that the trial stored: {describe_error(error)}"
        raise ConfigError([words]) from None
    assert isinstance(cfg, DictConfig)
    return cfg


def is_loop(cfg: DictConfig) -> bool:
    """Whether the trial of a configuration called a loop, and trained no network of ours."""
    return cfg.objective["_target_"] is not None


def load_data(cfg: DictConfig, provenance: Provenance, run_dir: Path) -> TrainingData:
    """Loads the data of a run, and makes its folds; where they lie is set in the configuration.

    Returns:
        The data, on a GPU if the trial used one and there is one here; empty if they are a loop's
        own.
    """
    if is_loop(cfg) and not names_data(cfg):
        return TrainingData()
    written = value_at(read_written(run_dir, "config.yaml"), "data")
    for path in location_keys(written) if isinstance(written, dict) else ():
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
    backends = {"cuda": torch.cuda, "mps": torch.backends.mps}
    backend = None if is_loop(cfg) else backends.get(provenance.device)
    on_gpu = backend is not None and backend.is_available()
    data = TrainingData(source, split, folds)
    return data.to(torch.device(provenance.device, 0) if on_gpu else torch.device("cpu"))


@contextlib.contextmanager
def threads(count: Any) -> Iterator[None]:
    """Runs the body with as many threads as the trial had."""
    usable = type(count) is int and 1 <= count <= MOST_THREADS
    with on_threads(count if usable else torch.get_num_threads()):
        yield


class _Enough(Exception):
    """Ends a training after as many epochs as the trial has stored."""


def train_again(
    cfg: DictConfig,
    provenance: Provenance,
    data: TrainingData,
    metric: str,
    until: int | None,
    report: Callable[[int, Step], None],
) -> Course:
    """Trains the first epochs of a trial again.

    Args:
        until: how many epochs to train; if the jobs are trained in turn, those of each job count.
            None to train to the end.
        report: called with each epoch, and how many there are with it.
    """
    objective = _make_objective(cfg, provenance, data)
    value, failure, count = None, None, 0

    def take(step: Step | None) -> None:
        nonlocal count
        assert step is not None  # nothing is stored
        if is_loop(cfg) and objective.stride > 1 and step.number % objective.stride == 0:
            return  # the end of a job
        count += 1
        report(count, step)
        if count == until:
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
    curve = {metric: columns.get("value", ()), **columns}
    return Course(curve, failure, value)


def _make_objective(cfg: DictConfig, provenance: Provenance, data: TrainingData) -> Objective:
    if is_loop(cfg):
        goals = [Goal(name, direction) for name, direction in named_goals(cfg.objective)]
        limits = parse_limits(value_at(cfg, "objective.constraints"), None)
        calls = loop_jobs(cfg, data, provenance.seed)
        loop = Loop(build_function(cfg.objective), cfg, goals, limits)
        return LoopObjective(loop, calls)
    assert data.split is not None
    jobs = build_jobs(cfg, data.folds, provenance.seed)
    threads_now = torch.get_num_threads()  # as many as the trial had
    in_turn = provenance.in_turn
    return NetworkObjective(Training(jobs, data.split, in_turn=in_turn, threads=threads_now))


def first_difference(stored: Course, now: Course, tolerance: Tolerance | None) -> str | None:
    """Returns the first number or failure that differs: "epoch 3, value: stored 0.5, now 0.6".

    Without a tolerance numbers must be equal bit for bit.
    """

    def differ(quantity: str, before: float | None, value: float | None) -> bool:
        return before != value and not (tolerance and tolerance.holds(quantity, before, value))

    def words(epoch: int, quantity: str, before: Any, value: Any) -> str:
        return f"epoch {epoch}, {quantity}: stored {before}, now {value}"

    for position in range(min(stored.epochs, now.epochs)):
        for quantity, values in stored.curve.items():
            before = values[position]
            value = now.curve[quantity][position] if quantity in now.curve else None
            if differ(quantity, before, value):
                return words(position + 1, quantity, before, value)
    metric = next(iter(stored.curve))
    returned = stored.value is not None and now.failure is None
    if returned and differ(metric, stored.value, now.value):
        return words(now.epochs, metric, stored.value, now.value)
    outside = stored.failure is not None and stored.failure.kind in OUTSIDE
    exactly = tolerance is None
    failed = _format_failure(None if outside else stored.failure, exactly=exactly)
    fails = _format_failure(now.failure, exactly=exactly)
    if failed != fails:
        return words(now.epochs + (now.failure is not None), "failure", failed, fails)
    return None


def _format_failure(failure: failures.Failure | None, *, exactly: bool) -> str:
    """Formats the words that two failures of one kind share; ours differ between versions."""
    if failure is None:
        return "none"
    if exactly and failure.kind in WITH_NUMBERS:
        return f"{failure.kind} ({failure.reason})"
    if exactly and failure.kind == failures.ERROR:  # the class of the exception
        return f"{failure.kind} ({failure.reason.partition(':')[0]})"
    return failure.kind
