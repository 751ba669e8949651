"""Trackio: a run for each trial, in a group for the study, in Trackio's own folder."""

import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from studyloom.extras.trackers.projection import (
    TrackedResult,
    TrackedStudy,
    TrackedTrial,
    Tracker,
    group_by_epoch,
    plain_value,
    require,
)
from studyloom.text import one_line


class Trackio(Tracker):
    """Writes a run for each trial, whose name is made of the trial's number and the study's uuid.

    Each process writes the run of a trial anew: it first deletes the one that an earlier process
    has written, so that no point is there twice.

    Args:
        project: the name of the project, for `trackio show --project NAME`.
    """

    def __init__(self, project: str) -> None:
        require("trackio")
        self.project = str(project)
        self._running: _RunningTrial | None = None  # the trial that this process runs

    def write_trial(self, trial: TrackedTrial) -> None:
        """Writes a trial as a run, instead of an earlier run of the trial."""
        self._close_running()
        run = self._begin_run(trial)
        try:
            for epoch, numbers in group_by_epoch(trial.points):
                run.log(numbers, step=epoch)
            if trial.values:
                run.log({f"final/{one_line(name)}": value for name, value in trial.values.items()})
        finally:
            _finish_run()

    def write_running(self, trial: TrackedTrial) -> None:
        """Adds the new points of a trial that runs to its run."""
        name = _name_run(trial.study, f"trial-{trial.number}")
        running = self._running
        if running is None or running.name != name:
            self._close_running()
            running = _RunningTrial(name, self._begin_run(trial))
            self._running = running
        for epoch, numbers in group_by_epoch(trial.points):
            if epoch > running.last_epoch:
                running.run.log(numbers, step=epoch)
                running.last_epoch = epoch

    def write_result(self, result: TrackedResult) -> None:
        """Writes the winner's hyperparameters and the values of a result as a run of its own."""
        config: dict[str, object] = {"winner": result.trial}
        run = self._init(result.study, "result", {**config, **result.params})
        try:
            run.log({one_line(name): value for name, value in result.values.items()})
        finally:
            _finish_run()

    def _begin_run(self, trial: TrackedTrial) -> Any:
        """Begins the run of a trial, with its hyperparameters, state and facts."""
        config = {one_line(name): value for name, value in trial.params.items()}
        config["studyloom.state"] = trial.state
        for name, text in trial.facts.items():
            config[f"studyloom.{name}"] = one_line(text)
        return self._init(trial.study, f"trial-{trial.number}", config)

    def _init(self, study: TrackedStudy, name: str, config: Mapping[str, object]) -> Any:
        """Begins a run of the type `trackio.Run`, after it has deleted an earlier one of its name.

        It holds only what this tracker writes: nothing of the machine.
        """
        import trackio

        _silence_trackio()
        run_name = _name_run(study, name)
        with suppress(ValueError):  # there is no such project yet
            for earlier_run in trackio.Api().runs(self.project):
                if earlier_run.name == run_name:
                    earlier_run.delete()
        return trackio.init(
            project=self.project,
            name=run_name,
            group=study.name,
            config={key: plain_value(value) for key, value in config.items()},
            resume="never",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def _close_running(self) -> None:
        """Ends the run of the trial that this process has run, if it has one."""
        if self._running is not None:
            _finish_run()
        self._running = None


@dataclass
class _RunningTrial:
    """A trial that this process runs, with its run of Trackio.

    Attributes:
        name: the name of the run.
        run: the run, of the type `trackio.Run`.
        last_epoch: the last epoch whose points the run has.
    """

    name: str
    run: Any
    last_epoch: int = -1


def _name_run(study: TrackedStudy, name: str) -> str:
    """Names a run, so that studies of the same name in one project have runs of their own."""
    return f"{name}-{study.uuid[:8]}"


def _finish_run() -> None:
    """Ends the run of this thread."""
    import trackio

    trackio.finish()


def _silence_trackio() -> None:
    """Keeps Trackio from printing what it does in the threads of trackers.

    It has no setting for this, so its modules get another `print`.
    """
    for name in ("trackio", "trackio.run", "trackio.utils"):
        module = sys.modules.get(name)
        if module is not None:
            vars(module)["print"] = _print_outside_of_trackers


def _print_outside_of_trackers(*values: object, **options: Any) -> None:
    if not threading.current_thread().name.startswith("track."):
        print(*values, **options)
