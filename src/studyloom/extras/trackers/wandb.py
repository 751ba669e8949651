"""Weights & Biases: a run for each trial, in a group for the study; offline until it is synced."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from studyloom.extras.trackers.projection import (
    PATIENCE,
    TrackedResult,
    TrackedStudy,
    TrackedTrial,
    Tracker,
    require,
)
from studyloom.text import one_line

EPOCH = "epoch"
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

    def write_trial(self, trial: TrackedTrial) -> None:
        """Writes a trial as a run; the same trial written again is the same run."""

        def write(run: Any) -> None:
            """Writes the hyperparameters, the facts, the curves and the values of the trial."""
            config = {name: _plain(value) for name, value in trial.params.items()}
            for name, text in trial.facts.items():
                config[f"studyloom.{name}"] = one_line(text)
            run.config.update(config, allow_val_change=True)
            run.define_metric(EPOCH)
            run.define_metric("*", step_metric=EPOCH)
            for epoch, points in groupby(trial.points, attrgetter("epoch")):
                numbers = {EPOCH: epoch}
                for point in points:
                    numbers[one_line(point.name)] = point.value
                run.log(numbers, step=epoch)
            summary: dict[str, object] = {"state": trial.state}
            for name, value in trial.values.items():
                summary[f"final/{one_line(name)}"] = value
            run.summary.update(summary)

        settings = _RunSettings(
            trial.study,
            run_id=f"{trial.study.uuid}-{trial.number}",
            name=f"trial-{trial.number}",
            kind="trial",
            has_failed=trial.state == "failed",
        )
        self._write(write, settings)

    def write_result(self, result: TrackedResult) -> None:
        """Writes a result as a run of its own; a later result of the study is the same run."""
        import wandb

        def write(run: Any) -> None:
            """Writes the hyperparameters and values of the winner, and its files as an artifact."""
            params = {name: _plain(value) for name, value in result.params.items()}
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


def _plain(value: object) -> int | float | bool | str | None:
    """Returns a value of a hyperparameter as JSON can hold it."""
    if isinstance(value, int | float | bool | None):
        return value
    return one_line(str(value))
