"""`Run`, the argument `run` of a custom training loop: trial, data, checkpoint and reports.

A *report* is the value of the metric at a *step* of the loop, with other quantities of that step.
Within `run.epochs` a step is an epoch: what the loop reports is *pending* until the epoch ends, and
is then sent to the worker in one report.

A loop *keeps* objects by `run.keep`: their states are saved in each checkpoint, between two epochs,
and restored when another process resumes the trial.
"""

import functools
import itertools
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, GeneratorType
from typing import Any, SupportsFloat, SupportsIndex, TypedDict

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
from studyloom.objectives.stream import Stream
from studyloom.seeds import derive
from studyloom.space.rule import Condition, Cost
from studyloom.storage.attributes import COLUMNS, LARGEST
from studyloom.text import error_text, nearest
from studyloom.training.checkpoint import State, copy_state, hash_files
from studyloom.training.device import training_device
from studyloom.training.randomness import RandomState, get_random_state, set_random_state
from studyloom.training.states import load_state, plain_state
from studyloom.user_code.importing import is_users_code

LOOP_MODULE = "studyloom.objectives.loop"  # the module whose frames call the loops
TEST = "test"  # the stage of a run that objective.test is given
LONGEST_REASON = 300  # characters of an exception that are shown
STATE_METHODS = ("state_dict", "load_state_dict")  # the methods of an object that a loop can keep
log = logging.getLogger(__name__)


class UnfitState(ValueError):
    """A checkpoint does not fit what a loop keeps, since the code has changed."""


class SavedFiles(TypedDict):
    """The files of another library's trainer: their name below `run.dir`, and their digest."""

    name: str
    digest: str


class RunState(TypedDict, total=False):
    """The state of a run at the end of an epoch, as a checkpoint holds it.

    Attributes:
        epoch: the number of the epoch, from 1.
        value: the value that was reported last.
        kept: the state of each object, by its name in `run.keep`.
        files: the files that `run.keep_files` got in this epoch; None if it was not called.
        random: the state of the random generators of Python, NumPy and PyTorch.
        generator: the state of `run.generator`.
    """

    epoch: int | None
    value: float
    kept: State
    files: SavedFiles | None
    random: RandomState
    generator: Tensor


LoopDatasets = tuple[Dataset[Any] | None, Dataset[Any] | None]


def _load_no_datasets() -> LoopDatasets:
    """Returns no Datasets, for a loop that loads its data itself."""
    return None, None


@dataclass(frozen=True)
class LoopJob:
    """One call of a loop, with the number of a fold from 0 and a seed.

    Args:
        seed: seeds the random numbers of Python, NumPy and PyTorch.
        load_datasets: makes the training set and the validation set; None for each without `data`.
    """

    fold: int
    seed: int
    load_datasets: Callable[[], LoopDatasets] = _load_no_datasets


@dataclass(frozen=True)
class SingleJob:
    """The only job of a trial, as in re-evaluation and final training.

    Args:
        fold: the training and validation split; None where there are no data.
    """

    seed: int
    fold: Fold | None


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


def make_loop_jobs(
    config: StudyConfig,
    data: TrainingData,
    trial_seed: int,
    single_job: SingleJob | None = None,
) -> list[LoopJob]:
    """Makes the jobs of a trial: one for each fold and seed, or a single one.

    The seeds of several jobs are derived from the seed of the trial. A single job has the seed of
    the trial itself, so that a script with this seed and without studyloom gives the same result.

    Args:
        single_job: the only job; None for those that the config describes.
    """
    if single_job is not None:
        return [_make_loop_job(data, single_job.fold, position=0, seed=single_job.seed)]
    folds: Sequence[Fold | None] = data.folds or [None]
    seed_count = config.objective.seeds
    if len(folds) == 1 and seed_count == 1:
        return [_make_loop_job(data, folds[0], position=0, seed=trial_seed)]
    jobs = []
    for position, fold in enumerate(folds):
        for repeat in range(seed_count):
            seed = derive(trial_seed, position, repeat)
            jobs.append(_make_loop_job(data, fold, position, seed))
    return jobs


def _make_loop_job(data: TrainingData, fold: Fold | None, position: int, seed: int) -> LoopJob:
    """Makes the job of one seed and, if the study has data, one fold at its position from 0."""
    split = data.split
    if fold is None or split is None:
        return LoopJob(position, seed)
    training_indices, validation_indices = fold

    def load_datasets() -> LoopDatasets:
        training_set = split.as_dataset(training_indices, to_train=True)
        validation_set = split.as_dataset(validation_indices)
        return training_set, validation_set

    return LoopJob(position, seed, load_datasets)


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
        pruner_epochs: the number of epochs that the pruner is set to; None: any number.

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
        warnings: the messages that `warn` got.
        count: the number of epochs; None until `epochs` is called.
    """

    def __init__(
        self,
        context: RunContext,
        metric: str,
        send: Callable[[int, float, dict[str, float]], None],
        limits: Mapping[str, Condition] | None = None,
        saved: RunState | None = None,
        pruner_epochs: int | None = None,
    ) -> None:
        attempt = context.attempt
        job = context.job
        self.trial = context.trial
        self.attempt = attempt.number
        self.stage = attempt.stage
        self.fold = job.fold
        self.seed = job.seed
        self.device = training_device()
        self.train, self.valid = job.load_datasets()
        self.generator = torch.Generator().manual_seed(job.seed)
        self.metric = metric
        self.costs: dict[str, Cost] = {}
        self.not_kept: list[str] = []
        self.streams: list[str] = []
        self.warnings: list[str] = []
        self.count: int | None = None
        self.unfit_state: UnfitState | None = None  # the error of a checkpoint that does not fit

        self._send = send
        self._limits = limits or {}
        self._saved = saved
        self._pruner_epochs = pruner_epochs
        self._folder = attempt.folder
        self._temporary_folder: Path | None = None

        # The objects that `keep` and `keep_at_end` were given, by name, and the files of another
        # library's trainer in this epoch.
        self._parts: dict[str, object] = {}
        self._final_parts: dict[str, object] = {}
        self._files: SavedFiles | None = None

        # Whether `keep_files` was called in any epoch, of this process or of an earlier one.
        self._has_kept_files = saved is not None and saved.get("files") is not None

        # The reports: the quantities of the next one, and the step and value of the last one.
        self._pending: dict[str, float] = {}
        self._last_step = -1
        self._last_value: float | None = None

        self._epoch: int | None = None  # the epoch that runs; None outside of `epochs`
        self._has_called_epochs = False
        self._is_between_epochs = False  # an epoch is complete and the next has not begun

    @property
    def dir(self) -> Path:
        """A folder only for this trial, stage, fold and seed.

        It persists if another process resumes the trial, and is removed when the trial ends.
        """
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._folder
        if self._temporary_folder is None:
            self._temporary_folder = Path(tempfile.mkdtemp(prefix="studyloom-"))
        return self._temporary_folder

    @property
    def keeps_state(self) -> bool:
        """True if the loop keeps any object."""
        return bool(self._parts or self._final_parts)

    @property
    def keeps_files(self) -> bool:
        """True if `keep_files` was called in this epoch."""
        return self._files is not None

    @property
    def can_resume(self) -> bool:
        """True if another process can resume the trial from the state of an epoch.

        That state holds the objects that `keep` got, or names the files that `keep_files` got.
        """
        saves_state = bool(self._parts) or self._has_kept_files
        return self._has_called_epochs and saves_state

    @property
    def may_resume(self) -> bool:
        """True if the trial can resume, or if that may still come.

        A loop that calls `keep_at_end` may call `keep_files` in a later epoch.
        """
        may_keep_files = bool(self._final_parts)
        return self.can_resume or (self._has_called_epochs and may_keep_files)

    @property
    def value(self) -> float:
        """The value that was reported last; UndefinedMetric before the first report."""
        if self._pending:  # a report of this epoch, which is sent at its end
            self._check_metric(self._pending)
            return self._pending[self.metric]
        if self._last_value is not None:
            return self._last_value
        # A resumed trainer of another library may find no epoch left, and so reports nothing.
        if self._saved is not None and "value" in self._saved:
            return float(self._saved["value"])
        raise UndefinedMetric("run.value: the objective has reported nothing yet")

    def keep(self, **parts: object) -> None:
        """Saves the states of objects in each checkpoint, and in winner.pt.

        If the trial resumes from a checkpoint, this call restores each of them.

        Args:
            parts: objects with `state_dict` and `load_state_dict`, by names that you choose. Give
                data that are read on from epoch to epoch as a `studyloom.Stream`.

        Raises:
            TypeError: an object lacks these methods, or a checkpoint cannot hold its state.
            RuntimeError: an epoch or a report came before.
        """
        if self._epoch is not None or self._last_value is not None:
            raise RuntimeError("run.keep must be called before run.epochs and before any report")
        for name, part in parts.items():
            _check_part("keep", name, part)
            _copy_part_state(name, part)  # raises here what would fail at the end of an epoch
            if self._saved is not None:
                self._restore_part(name, part, self._saved)
            self._parts[name] = part

    def keep_at_end(self, **parts: object) -> None:
        """Saves the states of objects in winner.pt, but not in the checkpoints.

        For objects that another library's trainer saves itself; see `keep_files`.

        Args:
            parts: objects with `state_dict` and `load_state_dict`, by names that you choose.

        Raises:
            TypeError: an object lacks these methods.
        """
        for name, part in parts.items():
            _check_part("keep_at_end", name, part)
            self._final_parts[name] = part

    def keep_files(self, path: Path) -> None:
        """Adds the files of another library's trainer to the checkpoint of this epoch.

        The checkpoint holds their name and digest only. Keep the files until two later epochs have
        called this: the next checkpoint is saved only at the end of an epoch. If they cannot be
        read, a warning is logged, and the epoch has no checkpoint.

        Args:
            path: a file or folder below `dir` with the state after this epoch.

        Raises:
            ValueError: the path is not below `dir`.
        """
        name = str(path.relative_to(self.dir))
        self._has_kept_files = True
        try:
            digest = hash_files(path, durable=True)
        except OSError as error:
            log.warning("%s; a crash would now cost the epochs since the last checkpoint", error)
            return
        self._files = {"name": name, "digest": digest}

    @functools.cached_property
    def checkpoint(self) -> Path | None:
        """The path that `keep_files` got, to resume from; None to start."""
        if self._saved is None:
            return None
        files = self._saved.get("files")
        if files is None:
            return None
        path = self.dir / files["name"]
        with suppress(OSError):  # they are missing
            if hash_files(path) == files["digest"]:
                return path
        raise self._note_unfit_state(f"the files {path} are not those of the checkpoint")

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
        self._check_state_fits()
        if self._has_called_epochs or self.stage == TEST:
            raise RuntimeError("run.epochs can be called once in a trial, and not in a test")
        pruner_epochs = self._pruner_epochs
        if pruner_epochs is not None and count is not None and count > pruner_epochs:
            raise ValueError(
                f"pruner.max_resource={pruner_epochs} must be the number of epochs, and the "
                f"objective has {count}; set pruner.max_resource={count}, or a key of params that "
                "says it"
            )
        self._has_called_epochs = True
        self.count = count
        if self._parts:
            # A resumed trial continues with other examples if the loop reads them from an iterator
            # whose position is not saved. The names of such iterators are found for a warning.
            loop_frame = sys._getframe(1)  # the caller
            self.streams = _find_streams(_find_variables(loop_frame), [*self._parts.values()])
        last_epoch = 0
        if self._saved is not None:
            last_epoch = self._restore_progress(self._saved)
        return self._run_epochs(last_epoch + 1)

    def _run_epochs(self, first: int) -> Iterator[int]:
        """Yields the number of each epoch, and sends its report once the loop's body has run."""
        epochs: Iterable[int] = itertools.count(first)
        if self.count is not None:
            epochs = range(first, self.count + 1)
        try:
            for epoch in epochs:
                self._epoch = epoch
                yield epoch  # the body of the loop runs
                if self._parts and epoch == first:
                    # Objects whose state a resumed trial would lack are found for a warning. Only
                    # now the loop has all its variables: some are first set in its body.
                    loop_frame = sys._getframe(1)  # the loop that iterates over the epochs
                    variables = _find_variables(loop_frame)
                    self.not_kept = _find_unsaved_names(variables, [*self._parts.values()])
                # The worker that stores the report may save a checkpoint.
                self._is_between_epochs = True
                self.flush()
                self._is_between_epochs = False
                self._files = None  # those that `keep_files` got in this epoch, now saved
        finally:  # after a `break`, the next report or the end of the loop sends what is pending
            self._epoch = None

    def __call__(self, value: SupportsFloat, step: int) -> None:
        """Reports the value of the metric at a step; see `report`.

        Args:
            value: a finite number: of Python, NumPy, or a tensor of one number.
            step: an integer from 0, larger than that of the report before.
        """
        self._add_report({self.metric: value}, step)

    def report(self, *, step: int | None = None, **values: SupportsFloat) -> None:
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
        self._add_report(values, step)

    def cost(self, **quantities: SupportsFloat) -> None:
        """Reports costs of the trial, such as parameters=120_000.

        The study stores those that `objective.constraints` or `objective.metric` names.

        Args:
            quantities: finite numbers by name.

        Raises:
            Infeasible: a constraint is violated. The trial ends, and the sampler learns from it.
        """
        for name, value in quantities.items():
            number = to_finite_number(value, f"reported the cost {name}={value!r}")
            self.costs[name] = Cost(name, number, self._limits.get(name))
        excessive = [str(cost) for cost in self.costs.values() if cost.excess > 0]
        if excessive:
            raise Infeasible("; ".join(excessive))

    def warn(self, message: str) -> None:
        """Warns of something in this trial, in the log and, once, at the end of the command.

        Args:
            message: a line.
        """
        log.warning("trial %d: %s", self.trial, message)
        self.warnings.append(message)

    def flush(self, step: int | None = None) -> None:
        """Sends the pending report, if there is one; studyloom calls it.

        Within `run.epochs`, what the loop reports is pending until the epoch ends.

        Args:
            step: the step of the report; None: the next one.
        """
        if not self._pending:
            return
        values = self._pending
        self._pending = {}
        self._check_metric(values)
        self._last_step = self._next_step(step)
        self._last_value = values.pop(self.metric)
        self._send(self._last_step, self._last_value, values)

    def state(self) -> RunState | None:
        """Returns the state from which another process can resume.

        Returns:
            None within an epoch, and if the loop has kept neither objects nor files.
        """
        if not self._is_between_epochs:
            return None
        if not self._parts and self._files is None:
            return None
        return {
            "epoch": self._epoch,
            "kept": _copy_states(self._parts),
            "files": self._files,
            "random": get_random_state(),
            "generator": self.generator.get_state(),
        }

    def copy_states(self) -> State:
        """Returns a snapshot of the states for winner.pt, by name."""
        return _copy_states(self._parts | self._final_parts)

    def close(self) -> None:
        """Removes the temporary folder, if it exists."""
        if self._temporary_folder is not None:
            shutil.rmtree(self._temporary_folder, ignore_errors=True)

    def _note_unfit_state(self, message: str) -> UnfitState:
        """Returns the error of a checkpoint that does not fit, and notes it in `unfit_state`.

        A loop may catch the exception and train with half of its state restored. The note lets
        `_check_state_fits`, and the caller of the loop, raise it again.
        """
        self.unfit_state = UnfitState(message)
        return self.unfit_state

    def _check_state_fits(self) -> None:
        """Raises the error of a checkpoint that did not fit, in case the loop caught it."""
        if self.unfit_state is not None:
            raise self.unfit_state

    def _add_report(self, values: Mapping[str, object], step: int | None) -> None:
        """Sends a report, or adds it to the pending one, which is sent at the end of the epoch."""
        self._check_state_fits()
        for name in values:
            if name in COLUMNS and name != self.metric:
                raise TypeError(f"run.report: {name} is reserved; choose another name")
        numbers: dict[str, float] = {}
        for name, value in values.items():
            numbers[name] = to_finite_number(value, f"reported {name}={value!r}")
        if self._epoch is None:
            self.flush()  # the report of an epoch that ended by a `break`
            self._pending = numbers
            self.flush(step)  # outside of an epoch each report is sent at once
            return
        is_other_step = step not in (None, self._epoch)
        is_repeated = not self._pending.keys().isdisjoint(numbers)
        if is_other_step or is_repeated:
            raise UndefinedMetric(
                f"the objective reported {', '.join(numbers)} at step {step!r} in epoch "
                f"{self._epoch} of run.epochs: expected each name once, at the step of the epoch"
            )
        self._pending |= numbers

    def _next_step(self, step: object) -> int:
        """Returns the step of the next report, an integer above the step of the last report.

        Args:
            step: the step that the loop gave. If it is None, the step is the number of the epoch;
                outside of epochs, the next integer.

        Raises:
            UndefinedMetric: the loop gave something else.
        """
        least = self._last_step + 1
        if step is None and self._epoch is not None:
            return self._epoch
        if step is None:
            step = least
        if (
            isinstance(step, int | np.integer)
            and not isinstance(step, bool)
            and least <= step <= LARGEST
        ):
            return int(step)
        raise UndefinedMetric(
            f"the objective reported at step {step!r}: expected an integer from {least} to "
            f"{LARGEST}"
        )

    def _check_metric(self, values: Mapping[str, float]) -> None:
        """Raises UndefinedMetric if the metric is not among the names that were reported."""
        if self.metric not in values:
            raise UndefinedMetric(
                f"the objective reported {', '.join(values)}, and not objective.metric="
                f"{self.metric}{nearest(self.metric, [*values])}"
            )

    def _restore_part(self, name: str, part: object, saved: RunState) -> None:
        """Loads the saved state of an object that the loop keeps; UnfitState if it does not fit."""
        try:
            if name not in saved["kept"]:
                raise UnfitState(f"there is no {name} in it")
            load_state(part, copy_state(saved["kept"][name], name))
        except Exception as error:  # whatever the object's load_state_dict raises
            reason = " ".join(error_text(error).split())[:LONGEST_REASON]
            message = f"the checkpoint does not fit run.keep({name}=…): {reason}"
            raise self._note_unfit_state(message) from error

    def _restore_progress(self, saved: RunState) -> int:
        """Restores the random state, and returns the number of the last finished epoch.

        Raises:
            UnfitState: the checkpoint holds an object that the loop no longer keeps.
        """
        missing_names = [name for name in saved["kept"] if name not in self._parts]
        if missing_names:
            raise self._note_unfit_state(
                f"the checkpoint holds {', '.join(missing_names)}, which run.keep was not given"
            )
        set_random_state(saved["random"])
        self.generator.set_state(saved["generator"])
        assert saved["epoch"] is not None
        self._last_step = int(saved["epoch"])
        self._last_value = float(saved["value"])
        return self._last_step


def to_finite_number(value: object, action: str) -> float:
    """Converts a number of any library, or a tensor of one number, to a float.

    Args:
        action: how the objective gave the number, for the error: "returned nan".

    Raises:
        UndefinedMetric: it is no number, or not finite.
    """
    if isinstance(value, Tensor):
        value = value.detach()  # PyTorch warns if a tensor with a gradient becomes a float
    number = math.nan
    if isinstance(value, SupportsFloat | SupportsIndex) and not isinstance(value, bool):
        with suppress(TypeError, ValueError):  # an array of several numbers has no float
            number = float(value)
    if not math.isfinite(number):
        raise UndefinedMetric(f"the objective {action}: expected a finite number")
    return number


def _check_part(method: str, name: str, part: object) -> None:
    """Raises TypeError if an object has no state that a method of a run could keep."""
    missing_methods = []
    for state_method in STATE_METHODS:
        if not callable(getattr(part, state_method, None)):
            missing_methods.append(state_method)
    if missing_methods:
        raise TypeError(
            f"run.{method}({name}=…) must have {' and '.join(STATE_METHODS)}; "
            f"{type(part).__name__} has no {' and no '.join(missing_methods)}"
        )


def _copy_part_state(name: str, part: object) -> State:
    """Returns a copy of an object's state; TypeError if a checkpoint cannot hold it."""
    state: State = copy_state(plain_state(part), f"run.keep({name}=…)")
    return state


def _copy_states(parts: Mapping[str, object]) -> State:
    """Returns a copy of each object's state, by name."""
    return {name: _copy_part_state(name, part) for name, part in parts.items()}


# Objects of the loop that a resumed trial would lack
#
# A loop may forget to keep an object, such as a schedule: its resumed trials would differ, and no
# error would show it. So the variables of the loop are searched for objects with a state.


def _find_variables(frame: FrameType | None) -> dict[str, object]:
    """Returns the local variables of a running loop, and of the functions that it has called.

    If two functions have a variable of the same name, the variable of the inner function counts.

    Args:
        frame: the frame that iterates over the epochs. From there the frames of the user's code
            are read, out to the module of studyloom that has called the loop.
    """
    variables: dict[str, object] = {}
    while frame is not None and frame.f_globals.get("__name__") != LOOP_MODULE:
        if is_users_code(Path(frame.f_code.co_filename)):
            variables = {**frame.f_locals, **variables}
        frame = frame.f_back
    return variables


def _find_streams(variables: Mapping[str, object], parts: Sequence[object]) -> list[str]:
    """Returns the names of streams that were made before the first epoch, and are not kept.

    A stream gives examples one after the other, and continues in the next epoch where the last one
    has left it: an iterator over a DataLoader does, and an IterableDataset, or a DataLoader of one,
    may do so.

    Args:
        variables: the loop's variables, by name.
        parts: the objects that the loop keeps. With a `Stream`, its iterable is kept too.
    """
    kept = [*parts]
    for part in parts:
        if isinstance(part, Stream):
            kept += part.sources
    return [name for name, value in variables.items() if _is_stream(value, kept)]


def _is_stream(value: object, parts: Sequence[object]) -> bool:
    """Returns whether a variable of a loop is a stream whose position is not saved.

    A stream is data that the loop reads on from where the last epoch has left it. A checkpoint has
    its position only if the loop keeps the stream, or the Dataset of an iterator. Otherwise a
    resumed trial reads other examples.

    Args:
        parts: the objects that the loop keeps, which are saved.
    """
    if _is_among(value, parts):
        return False
    if isinstance(value, Stream | IterableDataset):  # an IterableDataset may have a position
        return True
    if isinstance(value, DataLoader):
        # Each epoch iterates over it from its beginning, unless its Dataset has a position.
        return _is_stream(value.dataset, parts)
    if isinstance(value, _BaseDataLoaderIter):
        # An iterator over a DataLoader has a position, which the state of its Dataset may include.
        return not _is_among(value._dataset, parts)
    if isinstance(value, GeneratorType) and value.gi_frame is not None:
        # A generator that has not ended, and may iterate over a DataLoader.
        for variable in value.gi_frame.f_locals.values():
            if isinstance(variable, DataLoader) or _is_stream(variable, parts):
                return True
    return False


def _find_unsaved_names(variables: Mapping[str, object], parts: Sequence[object]) -> list[str]:
    """Returns the names of a loop's objects whose state a resumed trial would lack.

    Args:
        variables: the loop's variables, by name.
        parts: the objects that the loop keeps.
    """
    saved_tensors: set[int] = set()
    for part in parts:
        saved_tensors.update(id(tensor) for tensor in _list_tensors(part))
    names = []
    for name, value in variables.items():
        if not _is_among(value, parts) and _has_unsaved_state(value, saved_tensors):
            names.append(name)
    return names


def _has_unsaved_state(value: Any, saved_tensors: Collection[int]) -> bool:
    """Returns whether an object of a loop has a state that must be saved, and is not.

    An object has a state if it can load one, as networks, optimizers and schedulers can. A network
    needs no saving if it is not trained, or if all its tensors are part of another network that
    the loop keeps.

    Args:
        saved_tensors: the `id` of each tensor of the networks that the loop keeps.
    """
    is_class = isinstance(value, type)
    can_load_state = hasattr(value, "load_state_dict") and callable(value.load_state_dict)
    if is_class or not can_load_state:
        return False
    tensors = _list_tensors(value)  # none if it is not a network
    if tensors:
        is_saved = all(id(tensor) in saved_tensors for tensor in tensors)
        is_trained = any(tensor.requires_grad for tensor in tensors)
        if is_saved or not is_trained:
            return False
    try:
        return bool(value.state_dict())
    except Exception:  # whatever a user's class raises
        return False


def _is_among(value: object, parts: Sequence[object]) -> bool:
    """Returns whether an object is one of some objects, and not only equal to one."""
    return any(value is part for part in parts)


def _list_tensors(part: object) -> list[Tensor]:
    """Returns the parameters and buffers of a network; none for any other object."""
    if not isinstance(part, nn.Module):
        return []
    return [*part.parameters(), *part.buffers()]
