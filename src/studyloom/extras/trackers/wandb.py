"""Weights & Biases: a run for each trial, in a group for the study; offline until it is synced."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from studyloom.extras.trackers.projection import (
    EPOCH,
    PATIENCE,
    CurvePoint,
    TrackedResult,
    TrackedStudy,
    TrackedTrial,
    Tracker,
    group_by_epoch,
    plain_value,
    require,
)
from studyloom.text import one_line

STATE = "state"  # in the summary of a run, of the trial; written after its curves
# The variable with which W&B hands its service on to child processes. The second of its parts is
# the pid of the process that started the service.
SERVICE = "WANDB_SERVICE"


@dataclass(frozen=True)
class _RunSettings:
    """The settings of a run of W&B.

    Args:
        kind: `trial` or `study`.
        has_failed: whether the run is shown as failed.
    """

    study: TrackedStudy
    run_id: str
    name: str
    kind: str
    has_failed: bool = False


@dataclass
class _RunningTrial:
    """A trial that this process runs, with its run of W&B.

    Attributes:
        run: the run, of the type `wandb.Run`.
        last_epoch: the last epoch whose points the run has.
    """

    run_id: str
    run: Any
    last_epoch: int


class WandB(Tracker):
    """Writes a run for each trial, whose id is made of the study's uuid and the trial's number.

    Args:
        dir: the folder that gets a folder `wandb` with the runs.
        mode: offline, online or disabled.
        entity: a user or team; None for that of `wandb login`.
        patience: seconds that a command waits for the service at its end.
    """

    def __init__(
        self,
        dir: str,
        project: str,
        mode: str = "offline",
        entity: str | None = None,
        patience: float = PATIENCE,
    ) -> None:
        require("wandb")
        _forget_inherited_service()
        self.patience = patience
        self.dir = Path(dir)
        self.project = str(project)
        self.mode = str(mode)
        self.entity = entity
        self._running: _RunningTrial | None = None  # the trial that this process runs

    def write_trial(self, trial: TrackedTrial) -> None:
        """Writes a trial as a run; the same trial written again is the same run."""

        def write(run: Any) -> None:
            """Writes the hyperparameters, the facts, the curves and the values of the trial."""
            _begin_curves(run, trial)
            _log_points(run, _find_unsent(run, trial))
            summary: dict[str, object] = {STATE: trial.state}
            for name, value in trial.values.items():
                summary[f"final/{one_line(name)}"] = value
            run.summary.update(summary)

        self._close_running()
        settings = _describe_run(trial)
        self._write(write, settings)
        shutil.rmtree(self._running_folder(settings), ignore_errors=True)

    def write_running(self, trial: TrackedTrial) -> None:
        """Adds the new points of a trial that runs to its run, below the folder wandb-running.

        Each process that runs the trial writes that folder anew. A run of the server goes on after
        the last epoch that the server has.
        """
        if self.mode == "disabled":
            return
        settings = _describe_run(trial)
        running = self._running
        if running is None or running.run_id != settings.run_id:
            self._close_running()
            folder = self._running_folder(settings)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            run = self._start_run(settings, str(folder))
            _begin_curves(run, trial)
            running = _RunningTrial(settings.run_id, run, _read_last_epoch(run))
        self._running = None  # after an error, the run begins anew
        unsent = [point for point in trial.points if point.epoch > running.last_epoch]
        _log_points(running.run, unsent)
        if unsent:
            running.last_epoch = unsent[-1].epoch
        self._running = running

    def _running_folder(self, settings: "_RunSettings") -> Path:
        return self.dir / "wandb-running" / settings.run_id

    def _close_running(self) -> None:
        """Ends the run of the trial that this process has run, if it has one that goes on."""
        running = self._running
        self._running = None
        if running is not None:
            with suppress(Exception):  # the service that has died cannot end as it should
                running.run.finish()

    def write_result(self, result: TrackedResult) -> None:
        """Writes a result as a run of its own; a later result of the study is the same run."""
        import wandb

        def write(run: Any) -> None:
            """Writes the hyperparameters and values of the winner, and its files as an artifact."""
            params = {name: plain_value(value) for name, value in result.params.items()}
            run.config.update(params, allow_val_change=True)
            run.summary.update({"winner": result.trial, **result.values})
            if result.files and self.mode != "disabled":
                artifact = wandb.Artifact(f"winner-{result.study.uuid[:8]}", type="model")
                for name, path in result.files.items():
                    artifact.add_file(str(path), name, policy="immutable")
                run.log_artifact(artifact)

        run_id = f"{result.study.uuid}-study"
        settings = _RunSettings(result.study, run_id, name=result.study.name, kind="study")
        self._write(write, settings)

    def written(self, study: TrackedStudy) -> set[int]:
        numbers = set()
        for folder in (self.dir / "wandb").glob(f"*run-*-{study.uuid}-*"):
            number = folder.name.rpartition("-")[2]
            if number.isdecimal():
                numbers.add(int(number))
        return numbers

    def _write(self, write: Callable[[Any], None], settings: _RunSettings) -> None:
        """Creates a run, and calls `write` with it, which writes the content.

        If W&B's service has died, all later runs would fail: then the run is written again, by
        another service.
        """
        import wandb
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

        try:
            with self._run(settings) as run:
                write(run)
        except (HandleAbandonedError, MailboxClosedError, ConnectionError):
            with suppress(Exception):  # the service that has died cannot end as it should
                wandb.teardown()  # lets the next run start another service
            with self._run(settings) as run:
                write(run)

    @contextmanager
    def _run(self, run_settings: _RunSettings) -> Iterator[Any]:
        """Yields a run, whose folder appears in `wandb` once all is written.

        Until then W&B writes it in a temporary folder.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(
            dir=self.dir, prefix=".wandb-", ignore_cleanup_errors=True
        ) as unfinished:
            run = self._start_run(run_settings, unfinished)
            try:
                yield run
            except BaseException:
                run.finish(exit_code=1)
                raise
            run.finish(exit_code=int(run_settings.has_failed))
            self._move_run(run_settings, Path(unfinished))

    def _start_run(self, run_settings: _RunSettings, folder: str) -> Any:
        """Starts a run, which W&B writes below a folder.

        A run holds only what this tracker writes: nothing of the machine, code or output.
        """
        import wandb

        logging.getLogger("wandb").setLevel(logging.ERROR)
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        resume = None
        if self.mode == "online":
            resume = "allow"  # a second write reaches the same run of the server
        return wandb.init(
            entity=self.entity,
            project=self.project,
            dir=folder,
            id=run_settings.run_id,
            name=run_settings.name,
            group=run_settings.study.name,
            job_type=run_settings.kind,
            mode=self.mode,
            resume=resume,
            reinit="create_new",
            settings=settings,
        )

    def _move_run(self, run_settings: _RunSettings, unfinished: Path) -> None:
        """Moves the folder of a run into `wandb`, instead of that of an earlier run of the same id.

        Raises:
            OSError: W&B has left no folder. The command then reports the run as missing.
        """
        pattern = f"*run-*-{run_settings.run_id}"
        runs = self.dir / "wandb"
        runs.mkdir(exist_ok=True)
        folders = [*(unfinished / "wandb").glob(pattern)]
        if not folders and self.mode != "disabled":
            raise OSError(f"W&B left no file of {run_settings.name}")
        for folder in folders:
            for earlier_folder in runs.glob(pattern):
                shutil.rmtree(earlier_folder)
            shutil.move(folder, runs / folder.name)


def _describe_run(trial: TrackedTrial) -> _RunSettings:
    """Returns the settings of the run of a trial."""
    return _RunSettings(
        trial.study,
        run_id=f"{trial.study.uuid}-{trial.number}",
        name=f"trial-{trial.number}",
        kind="trial",
        has_failed=trial.state == "failed",
    )


def _begin_curves(run: Any, trial: TrackedTrial) -> None:
    """Writes the hyperparameters and facts of a trial; makes the epoch the axis of its curves."""
    config = {name: plain_value(value) for name, value in trial.params.items()}
    for name, text in trial.facts.items():
        config[f"studyloom.{name}"] = one_line(text)
    run.config.update(config, allow_val_change=True)
    run.define_metric(EPOCH)
    run.define_metric("*", step_metric=EPOCH)


def _read_last_epoch(run: Any) -> int:
    """Returns the last epoch that a run of the server has; -1 for a new run, as any offline."""
    return int(run.summary.get(EPOCH, -1))


def _find_unsent(run: Any, trial: TrackedTrial) -> list[CurvePoint]:
    """Returns the points of an ended trial that its run lacks.

    A run of the server goes on with the summary that it has there: the last epoch that was logged,
    and at the end the state of the trial. While a trial runs, only its metric is logged.
    """
    if run.summary.get(STATE) is not None:
        return []
    metric = next(iter(trial.study.objectives), None)
    last_epoch = _read_last_epoch(run)
    unsent = []
    for point in trial.points:
        if point.name != metric or point.epoch > last_epoch:
            unsent.append(point)
    return unsent


def _log_points(run: Any, points: Sequence[CurvePoint]) -> None:
    """Logs points of the curves of a trial, those of an epoch together.

    W&B's own step is the epoch, unless the run has a later step: W&B would ignore the points.
    """
    for epoch, numbers in group_by_epoch(points):
        step = None
        if epoch >= run.step:
            step = epoch
        run.log(numbers, step=step, commit=True)


def _forget_inherited_service() -> None:
    """Removes the service of W&B that another process has started from the environment.

    A process hands its service on to the processes that it starts. An inherited service would still
    hold the run of a killed worker as one in use, and no other process could write it.
    """
    service = os.environ.get(SERVICE)
    if service is None:
        return
    parts = service.split("-")  # 3-4711-tcp-localhost-40321; 4711 is the process id
    is_of_this_process = len(parts) > 1 and parts[1] == str(os.getpid())
    if not is_of_this_process:
        del os.environ[SERVICE]
