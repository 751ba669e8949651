"""Weights & Biases: a run for each trial, in a group for the study; offline until it is synced."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
SERVICE = "WANDB_SERVICE"  # the variable with which W&B hands its service on to child processes


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
        # The service of a process that started this one would hold the run of a killed worker as
        # one in use, which no other process may write then. Of a token the second part is a pid.
        if os.environ.get(SERVICE, "").split("-")[1:2] != [str(os.getpid())]:
            os.environ.pop(SERVICE, None)
        self.patience = patience
        self.dir, self.project, self.mode, self.entity = Path(dir), str(project), str(mode), entity

    def write_trial(self, trial: TrackedTrial) -> None:
        facts = {f"studyloom.{name}": one_line(text) for name, text in trial.facts.items()}
        run_id, name = f"{trial.study.uuid}-{trial.number}", f"trial-{trial.number}"

        def write(run: Any) -> None:
            params = {name: _plain(value) for name, value in trial.params.items()}
            run.config.update({**params, **facts}, allow_val_change=True)
            run.define_metric(EPOCH)
            run.define_metric("*", step_metric=EPOCH)
            for epoch, points in groupby(trial.points, attrgetter("epoch")):
                run.log({EPOCH: epoch, **{one_line(p.name): p.value for p in points}}, step=epoch)
            finals = {f"final/{one_line(name)}": value for name, value in trial.values.items()}
            run.summary.update({"state": trial.state, **finals})

        self._write(write, trial.study, run_id, name, "trial", trial.state == "failed")

    def write_result(self, result: TrackedResult) -> None:
        import wandb

        def write(run: Any) -> None:
            params = {name: _plain(value) for name, value in result.params.items()}
            run.config.update(params, allow_val_change=True)
            run.summary.update({"winner": result.trial, **result.values})
            if result.files and self.mode != "disabled":
                artifact = wandb.Artifact(f"winner-{result.study.uuid[:8]}", type="model")
                for name, path in result.files.items():
                    artifact.add_file(str(path), name, policy="immutable")
                run.log_artifact(artifact)

        self._write(write, result.study, f"{result.study.uuid}-study", result.study.name, "study")

    def written(self, study: TrackedStudy) -> set[int]:
        folders = (self.dir / "wandb").glob(f"*run-*-{study.uuid}-*")
        numbers = (folder.name.rpartition("-")[2] for folder in folders)
        return {int(number) for number in numbers if number.isdecimal()}

    def _write(self, write: Callable[[Any], None], *run: Any) -> None:
        """Writes a run; once more if W&B's service has died, without which all later runs fail.

        Args:
            run: the arguments of `_run`.
        """
        import wandb
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

        try:
            with self._run(*run) as opened:
                write(opened)
        except (HandleAbandonedError, MailboxClosedError, ConnectionError):
            with suppress(Exception):  # as of a service that has died
                wandb.teardown()  # so that the next run starts another one
            with self._run(*run) as opened:
                write(opened)

    @contextmanager
    def _run(
        self, study: TrackedStudy, run_id: str, name: str, kind: str, failed: bool = False
    ) -> Iterator[Any]:
        """Yields a run, whose folder is in `wandb` once it is whole; of each id there is one."""
        import wandb

        logging.getLogger("wandb").setLevel(logging.ERROR)
        # Only what a tracker is given: no figures of the machine, no code, nothing that is printed.
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        runs = self.dir / "wandb"
        runs.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.dir, prefix=".wandb-", ignore_cleanup_errors=True) as made:
            run = wandb.init(
                entity=self.entity,
                project=self.project,
                dir=made,
                id=run_id,
                name=name,
                group=study.name,
                job_type=kind,
                mode=self.mode,
                resume="allow" if self.mode == "online" else None,
                reinit="create_new",
                settings=settings,
            )
            try:
                yield run
            except BaseException:
                run.finish(exit_code=1)
                raise
            run.finish(exit_code=int(failed))
            folders = [*Path(made).glob(f"wandb/*run-*-{run_id}")]
            if not folders and self.mode != "disabled":
                raise OSError(f"W&B left no file of {name}")  # so it is reported as missing
            for folder in folders:
                for other in runs.glob(f"*run-*-{run_id}"):
                    shutil.rmtree(other)
                shutil.move(folder, runs / folder.name)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | bool | None) else one_line(str(value))
