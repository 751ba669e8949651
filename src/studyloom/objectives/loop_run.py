"""`Run`, the argument `run` of a custom training loop: trial, data, checkpoint and reports."""

import functools
import itertools
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, GeneratorType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from studyloom.config.study_config import StudyConfig
from studyloom.data.split import Fold
from studyloom.data.training_data import TrainingData
from studyloom.errors import Infeasible, UndefinedMetric
from studyloom.objectives.objective import Attempt
from studyloom.seeds import derive
from studyloom.space.rule import Condition, Cost
from studyloom.storage.attributes import COLUMNS, LARGEST
from studyloom.text import error_text, nearest
from studyloom.training.checkpoint import copy_state, hash_files
from studyloom.training.device import training_device
from studyloom.training.randomness import get_random_state, set_random_state
from studyloom.training.states import load_state, plain_state
from studyloom.user_code.importing import is_users_code

LOOP = "studyloom.objectives.loop"  # the module whose frames call the loops
TEST = "test"  # the stage of a run that objective.test is given
log = logging.getLogger(__name__)


class UnfitState(ValueError):
    """A checkpoint does not fit what a loop keeps, since the code has changed."""


@dataclass(frozen=True)
class LoopJob:
    """One call of a loop, with the number of a fold from 0 and a seed.

    Args:
        seed: seeds the random numbers of Python, NumPy and PyTorch.
        parts: makes the training set and the validation set; two times None without `data`.
    """

    fold: int
    seed: int
    parts: Callable[[], tuple[Dataset[Any] | None, ...]] = lambda: (None, None)


@dataclass(frozen=True)
class RunContext:
    """The trial and job that a loop runs for.

    Args:
        trial: its number in its stage: search, re-evaluation, ablation, final-training or test.
        attempt: the attempt at the trial; its folder belongs to this job, None: a temporary one.
    """

    trial: int
    attempt: Attempt
    job: LoopJob


def loop_jobs(
    config: StudyConfig,
    data: TrainingData,
    seed: int,
    single: tuple[int, Fold | None] | None = None,
) -> list[LoopJob]:
    """Returns the jobs of a trial: one for each fold and seed, or a single one.

    A single job has the trial's seed; the seeds of several are derived from it.

    Args:
        single: the seed and the fold of a single job, as in re-evaluation and final training.
    """
    if single is not None:
        return [_loop_job(data, single[1], 0, single[0])]
    folds: Sequence[Fold | None] = data.folds or [None]
    seeds = config.objective.seeds
    only = len(folds) == seeds == 1
    return [
        _loop_job(data, fold, position, seed if only else derive(seed, position, repeat))
        for position, fold in enumerate(folds)
        for repeat in range(seeds)
    ]


def _loop_job(data: TrainingData, fold: Fold | None, position: int, seed: int) -> LoopJob:
    """Returns the call of a loop with one seed and, if the study has data, one fold."""
    if fold is None or data.split is None:
        return LoopJob(position, seed)
    split, (training, validation) = data.split, fold
    return LoopJob(
        position,
        seed,
        lambda: (split.as_dataset(training, to_train=True), split.as_dataset(validation)),
    )


class Run:
    """The argument `run` of a custom training loop, `(run, **params)` or `(config, run)`.

    A loop reports its values by `run.report` or `run(value, step)`, and may save its state:

        def train(run, *, lr=0.001, epochs=10):
            network = ...
            optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
            run.keep(network=network, optimizer=optimizer)  # checkpoints, resume, winner.pt
            for epoch in run.epochs(epochs):
                ...
                run.report(accuracy=accuracy, loss=loss)
            return run.value

    A report may end the trial by an exception, within `run.epochs` at the end of the epoch. The
    loop must not catch it.

    Args:
        context: the trial and job that it runs for.
        metric: the name of the value that the study optimizes.
        send: called with each report: its step, the value and the other quantities.
        limits: the constraints on the costs of a trial, by quantity.
        saved: the state to resume from; None to start.
        most: the number of epochs that the pruner is set to; None: any number.

    Attributes:
        trial: the number of the trial in its stage, an integer from 0.
        stage: search, re-evaluation, ablation, final-training or test.
        attempt: the number of the attempt at this trial.
        fold: the number of the fold, an integer from 0.
        seed: the seed of this training; Python, NumPy and PyTorch are seeded with it already.
        device: the `torch.device` to train on.
        train: the Dataset of the training set; None for a study without `data`.
        valid: the Dataset of the validation set; None for a study without `data`.
        metric: the name of the value that the study optimizes.
        generator: a seeded `torch.Generator` on the CPU, for the order of a DataLoader;
            checkpoints include its state.
        costs: the costs that the loop has reported, by quantity.
        not_kept: names of objects in the loop with a state that `keep` was not given.
        streams: names of streams in the loop whose position a resumed trial would lack.
        warnings: what `warn` was given.
        count: the number of epochs; None until `epochs` is called.
    """

    def __init__(
        self,
        context: RunContext,
        metric: str,
        send: Callable[[int, float, dict[str, float]], None],
        limits: Mapping[str, Condition] | None = None,
        saved: Mapping[str, Any] | None = None,
        most: int | None = None,
    ) -> None:
        attempt = context.attempt
        job = context.job
        self.trial, self.attempt, self.stage = context.trial, attempt.number, attempt.stage
        self.fold, self.seed, self.device = job.fold, job.seed, training_device()
        self.train, self.valid = job.parts()
        self.generator = torch.Generator().manual_seed(job.seed)
        self.costs: dict[str, Cost] = {}
        self.not_kept: list[str] = []
        self.streams: list[str] = []
        self.warnings: list[str] = []
        self.count: int | None = None
        self.most = most
        self.unfit: UnfitState | None = None
        self.metric = metric
        self._folder = attempt.folder
        self._send = send
        self._limits, self._saved = limits or {}, saved
        self._kept: dict[str, Any] = {}
        self._kept_at_end: dict[str, Any] = {}
        self._files: dict[str, str] | None = None  # of another library's trainer, in this epoch
        self._last = -1  # the step of the last report
        self._value: float | None = None
        self._epoch: int | None = None
        self._pending: dict[str, float] = {}
        self._begun = False  # whether `epochs` was called
        self._between = False  # whether an epoch is complete and the next has not begun
        self._temporary: Path | None = None

    @property
    def dir(self) -> Path:
        """A folder only for this trial, stage, fold and seed.

        It persists if another process resumes the trial, and is removed when the trial ends.
        """
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._folder
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="studyloom-"))
        return self._temporary

    @property
    def keeps(self) -> bool:
        """Whether the loop keeps any state."""
        return bool(self._kept or self._kept_at_end)

    @property
    def keeps_files(self) -> bool:
        """Whether `keep_files` was called in this epoch."""
        return self._files is not None

    @property
    def resumable(self) -> bool:
        """Whether another process can resume the trial from its last epoch."""
        return self._begun and self.keeps

    @property
    def value(self) -> float:
        """The value that was reported last; UndefinedMetric before the first report."""
        if self._pending:
            self._check_metric(self._pending)
            return self._pending[self.metric]
        if self._value is None and self._saved is not None and "value" in self._saved:
            return float(self._saved["value"])  # another library's trainer finds no epoch left
        if self._value is None:
            raise UndefinedMetric("run.value: the objective has reported nothing yet")
        return self._value

    def keep(self, **parts: Any) -> None:
        """Saves the states of objects in each checkpoint, and in winner.pt.

        If the trial resumes from a checkpoint, this call restores each of them.

        Args:
            parts: objects with `state_dict` and `load_state_dict`, by names that you choose.

        Raises:
            TypeError: an object lacks these methods, or a checkpoint cannot hold its state.
            RuntimeError: an epoch or a report came before.
        """
        if self._epoch is not None or self._value is not None:
            raise RuntimeError("run.keep must be called before run.epochs and before any report")
        for name, part in parts.items():
            _check_part("keep", name, part)
            copy_state(plain_state(part), f"run.keep({name}=…)")  # else known after an epoch
            if self._saved is not None:
                self._restore(name, part)
            self._kept[name] = part

    def keep_at_end(self, **parts: Any) -> None:
        """Saves the states of objects in winner.pt, but not in the checkpoints.

        For objects that another library's trainer saves itself; see `keep_files`.

        Args:
            parts: objects with `state_dict` and `load_state_dict`, by names that you choose.

        Raises:
            TypeError: an object lacks these methods.
        """
        for name, part in parts.items():
            _check_part("keep_at_end", name, part)
            self._kept_at_end[name] = part

    def keep_files(self, path: Path) -> None:
        """Adds the files of another library's trainer to the checkpoint of this epoch.

        The checkpoint holds their name and digest only. Keep the files until two later epochs have
        called this.

        Args:
            path: a file or folder below `dir` with the state after this epoch.

        Raises:
            ValueError: the path is not below `dir`.
        """
        name = str(path.relative_to(self.dir))
        try:
            digest = hash_files(path, durable=True)
        except OSError as error:
            log.warning("%s; a crash would now cost the epochs since the last checkpoint", error)
        else:
            self._files = {"name": name, "digest": digest}

    @functools.cached_property
    def checkpoint(self) -> Path | None:
        """The path that `keep_files` got, to resume from; None to start."""
        files = None if self._saved is None else self._saved.get("files")
        if files is None:
            return None
        path: Path = self.dir / files["name"]
        with suppress(OSError):
            if hash_files(path) == files["digest"]:
                return path
        raise self._unfit(f"the files {path} are not those of the checkpoint")

    def epochs(self, count: int | None) -> Iterator[int]:
        """Yields the numbers of the epochs from 1; after a resume only those that are left.

        At the end of each epoch it reports the values, saves a checkpoint if the last one is older
        than `checkpoints.interval`, and may end the trial. An epoch without a report, or a loop
        without `run.keep`, saves no checkpoint.

        Args:
            count: the number of epochs in all; None if it is not known.

        Yields:
            The number of each epoch, from 1.

        Raises:
            ValueError: the count is greater than the pruner is set to.
            RuntimeError: it was called before, or this is the test.
        """
        self._check_fit()
        if self._begun or self.stage == TEST:
            raise RuntimeError("run.epochs can be called once in a trial, and not in a test")
        if self.most is not None and count is not None and count > self.most:
            raise ValueError(
                f"pruner.max_resource={self.most} must be the number of epochs, and the objective "
                f"has {count}; set pruner.max_resource={count}, or a key of params that says it"
            )
        self._begun, self.count = True, count
        if self._kept:
            variables = _variables(sys._getframe(1))
            self.streams = _streams(variables, [*self._kept.values()])
        begun = self._go_on() if self._saved is not None else 0
        return self._each_epoch(begun)

    def _each_epoch(self, begun: int) -> Iterator[int]:
        to_come = itertools.count(begun + 1)
        try:
            for epoch in to_come if self.count is None else range(begun + 1, self.count + 1):
                self._epoch = epoch
                yield epoch
                if self._kept and epoch == begun + 1:
                    variables = _variables(sys._getframe(1))
                    self.not_kept = [*_not_kept(variables, [*self._kept.values()])]
                self._between = True
                self.flush()
                self._between = False
                self._files = None
        finally:  # after a `break`, the next report or the end of the loop sends what is pending
            self._epoch = None

    def __call__(self, value: Any, step: int) -> None:
        """Reports the value of the metric at a step; see `report`.

        Args:
            value: a finite number: of Python, NumPy, or a tensor of one number.
            step: an integer from 0, larger than that of the report before.
        """
        self._take({self.metric: value}, step)

    def report(self, *, step: int | None = None, **values: Any) -> None:
        """Reports quantities by name, such as accuracy=0.93; each becomes a learning curve.

        The study optimizes the one that `objective.metric` names.

        Args:
            step: an integer, larger than that of the report before; None: the number of the epoch
                within `run.epochs`, else one more than before, from 0.
            values: finite numbers: of Python, NumPy, or tensors of one number.

        Raises:
            TypeError: no value is given, or a name is reserved.
            UndefinedMetric: a value is not a finite number, the step is not larger, or the metric
                is missing; within `run.epochs` the last is raised at the end of the epoch.
        """
        if not values:
            raise TypeError("run.report must get a value by name, such as accuracy=0.9")
        self._take(values, step)

    def cost(self, **quantities: Any) -> None:
        """Reports costs of the trial, such as parameters=120_000.

        The study stores those that `objective.constraints` or `objective.metric` names.

        Args:
            quantities: finite numbers by name.

        Raises:
            Infeasible: a constraint is violated. The trial ends, and the sampler learns from it.
        """
        for name, value in quantities.items():
            number = finite(value, f"reported the cost {name}={value!r}")
            self.costs[name] = Cost(name, number, self._limits.get(name))
        if beyond := [str(cost) for cost in self.costs.values() if cost.excess > 0]:
            raise Infeasible("; ".join(beyond))

    def warn(self, words: str) -> None:
        """Warns of something in this trial, in the log and, once, at the end of the command.

        Args:
            words: a line.
        """
        log.warning("trial %d: %s", self.trial, words)
        self.warnings.append(words)

    def flush(self, step: int | None = None) -> None:
        """Sends the pending report; studyloom calls it.

        Args:
            step: the step of the report; None: the next one.
        """
        if self._pending:
            values, self._pending = self._pending, {}
            self._check_metric(values)
            self._last, self._value = self._next_step(step), values.pop(self.metric)
            self._send(self._last, self._value, values)

    def state(self) -> dict[str, Any] | None:
        """Returns the state from which another process can resume; None within an epoch."""
        if not self._between or not (self._kept or self._files):
            return None
        return {
            "epoch": self._epoch,
            "kept": _snapshots(self._kept),
            "files": self._files,
            "random": get_random_state(),
            "generator": self.generator.get_state(),
        }

    def states(self) -> dict[str, Any]:
        """Returns a snapshot of the states for winner.pt, by name."""
        return _snapshots(self._kept | self._kept_at_end)

    def close(self) -> None:
        """Removes the temporary folder, if it exists."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _unfit(self, words: str) -> UnfitState:
        """Returns the error that the checkpoint does not fit, and notes it for `_check_fit`."""
        self.unfit = UnfitState(words)
        return self.unfit

    def _check_fit(self) -> None:
        """Raises the error of a checkpoint that did not fit, in case the loop caught it."""
        if self.unfit is not None:
            raise self.unfit

    def _take(self, values: Mapping[str, Any], step: int | None) -> None:
        self._check_fit()
        if taken := [name for name in values if name in COLUMNS and name != self.metric]:
            raise TypeError(f"run.report: {taken[0]} is reserved; choose another name")
        checked = {name: finite(each, f"reported {name}={each!r}") for name, each in values.items()}
        if self._epoch is None:
            self.flush()
            self._pending = checked
            self.flush(step)
            return
        if step not in (None, self._epoch) or not self._pending.keys().isdisjoint(checked):
            raise UndefinedMetric(
                f"the objective reported {', '.join(checked)} at step {step!r} in epoch "
                f"{self._epoch} of run.epochs: expected each name once, at the step of the epoch"
            )
        self._pending |= checked

    def _next_step(self, step: Any) -> int:
        if self._epoch is not None and step is None:
            return self._epoch
        first = self._last + 1
        step = first if step is None else step
        is_whole = isinstance(step, int | np.integer) and not isinstance(step, bool)
        if not is_whole or not first <= step <= LARGEST:
            raise UndefinedMetric(
                f"the objective reported at step {step!r}: expected an integer from {first} to "
                f"{LARGEST}"
            )
        return int(step)

    def _check_metric(self, values: Mapping[str, float]) -> None:
        """Raises UndefinedMetric if the metric is not among the names that were reported."""
        if self.metric not in values:
            raise UndefinedMetric(
                f"the objective reported {', '.join(values)}, and not objective.metric="
                f"{self.metric}{nearest(self.metric, [*values])}"
            )

    def _restore(self, name: str, part: Any) -> None:
        assert self._saved is not None
        try:
            if name not in self._saved["kept"]:
                raise UnfitState(f"there is no {name} in it")
            load_state(part, copy_state(self._saved["kept"][name], name))
        except Exception as error:
            words = " ".join(error_text(error).split())[:300]
            raise self._unfit(f"the checkpoint does not fit run.keep({name}=…): {words}") from error

    def _go_on(self) -> int:
        """Restores the random state and returns the number of the last finished epoch."""
        assert self._saved is not None
        if missing := [name for name in self._saved["kept"] if name not in self._kept]:
            words = f"the checkpoint holds {', '.join(missing)}, which run.keep was not given"
            raise self._unfit(words)
        set_random_state(self._saved["random"])
        self.generator.set_state(self._saved["generator"])
        self._last = begun = int(self._saved["epoch"])
        self._value = float(self._saved["value"])
        return begun


def finite(value: Any, what: str) -> float:
    """Converts a number of any library, or a tensor of one number, to a float.

    Args:
        what: what the objective did, for the error: "returned nan".
    """
    if isinstance(value, Tensor):
        value = value.detach()  # else torch warns of its gradient
    try:
        number = math.nan if isinstance(value, str | bool | None) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UndefinedMetric(f"the objective {what}: expected a finite number")
    return number


def _check_part(method: str, name: str, part: Any) -> None:
    methods = ("state_dict", "load_state_dict")
    if missing := [m for m in methods if not callable(getattr(part, m, None))]:
        raise TypeError(
            f"run.{method}({name}=…) must have {' and '.join(methods)}; "
            f"{type(part).__name__} has no {' and no '.join(missing)}"
        )


def _variables(frame: FrameType | None) -> dict[str, Any]:
    """Returns the local variables of a loop, and of the user's functions that it has called.

    Args:
        frame: the frame that iterates over the epochs; only frames of user code count.
    """
    variables: dict[str, Any] = {}
    while frame is not None and frame.f_globals.get("__name__") != LOOP:
        if is_users_code(Path(frame.f_code.co_filename)):
            variables = frame.f_locals | variables
        frame = frame.f_back
    return variables


def _streams(variables: Mapping[str, Any], kept: Sequence[Any]) -> list[str]:
    """Returns the names of streams that were made before the first epoch, and are not kept.

    A stream is an IterableDataset or a DataLoader of one, which may continue where the last epoch
    has left it, or an iterator over any DataLoader, which does.
    """
    return [name for name, value in variables.items() if _is_stream(value, kept)]


def _is_stream(value: Any, kept: Sequence[Any]) -> bool:
    if any(value is part for part in kept):
        return False
    if isinstance(value, IterableDataset):
        return True
    if isinstance(value, DataLoader):
        return _is_stream(value.dataset, kept)
    if isinstance(value, _BaseDataLoaderIter):
        return not any(value._dataset is part for part in kept)
    if isinstance(value, GeneratorType) and value.gi_frame is not None:
        for inner in value.gi_frame.f_locals.values():
            if isinstance(inner, DataLoader) or _is_stream(inner, kept):
                return True
    return False


def _not_kept(variables: Mapping[str, Any], kept: Sequence[Any]) -> Iterator[str]:
    """Yields the names of a loop's objects whose state a resumed trial would lack.

    It skips objects without a state, networks that are not trained, and parts of what is kept.
    """
    tensors = {id(tensor) for part in kept for tensor in _tensors(part)}
    for name, part in variables.items():
        stateful = callable(getattr(part, "load_state_dict", None)) and not isinstance(part, type)
        if not stateful or any(part is other for other in kept):
            continue
        own = [*_tensors(part)]
        if own and (all(id(t) in tensors for t in own) or not any(t.requires_grad for t in own)):
            continue
        with suppress(Exception):  # whatever a user's class raises
            if part.state_dict():
                yield name


def _tensors(part: Any) -> Iterator[Tensor]:
    """Yields the parameters and buffers of a module."""
    if isinstance(part, nn.Module):
        yield from part.parameters()
        yield from part.buffers()


def _snapshots(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: copy_state(plain_state(part), f"run.keep({name}=…)") for name, part in parts.items()
    }
