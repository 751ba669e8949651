"""TensorBoard: a folder of event files for each trial, with what its hparams plugin shows."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from studyloom.extras.trackers.projection import (
    TrackedResult,
    TrackedStudy,
    TrackedTrial,
    Tracker,
    require,
)
from studyloom.text import one_line, printable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Tracker):
    """Writes DIR/STUDY-UUID/trial-N for each trial, and DIR/STUDY-UUID/result.

    While trial N runs, its curve is in running-N. Each process that runs the trial writes that
    folder anew, so that no point is there twice.

    Args:
        dir: the folder for `tensorboard --logdir`.
    """

    def __init__(self, dir: str) -> None:
        require("tensorboard")
        self.dir = Path(dir)
        self._running: _RunningFolder | None = None  # of the trial that this process runs

    def write_trial(self, trial: TrackedTrial) -> None:
        """Writes a trial as a folder of event files: its curves, state, and hyperparameters."""
        lines = [trial.state]
        for name, text in trial.facts.items():
            lines.append(f"{name}: {text}")
        params = {printable(name): _plain(value) for name, value in trial.params.items()}
        values = {f"final/{printable(name)}": value for name, value in trial.values.items()}
        with self._writer(trial.study, f"trial-{trial.number}") as writer:
            for point in trial.points:
                writer.add_scalar(printable(point.name), point.value, point.epoch, point.time)
            writer.add_text("state", _as_code(lines), global_step=0, walltime=trial.ended)
            writer.add_hparams(params, values, run_name=".", global_step=0)
        self._close_running()
        shutil.rmtree(self._running_folder(trial), ignore_errors=True)

    def write_running(self, trial: TrackedTrial) -> None:
        """Adds the new points of a trial that runs to its folder running-N."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self._running_folder(trial)
        with _quiet_threads():
            if self._running is None or self._running.folder != folder:
                self._close_running()
                shutil.rmtree(folder, ignore_errors=True)
                self._running = _RunningFolder(folder, SummaryWriter(str(folder)))
            running = self._running
            for point in trial.points:
                if point.epoch > running.last_epoch:
                    name = printable(point.name)
                    running.writer.add_scalar(name, point.value, point.epoch, point.time)
                    running.last_epoch = point.epoch
            running.writer.flush()

    def _running_folder(self, trial: TrackedTrial) -> Path:
        return self._folder(trial.study) / f"running-{trial.number}"

    def _close_running(self) -> None:
        """Closes the files of the trial that this process has run; an error loses nothing."""
        running = self._running
        self._running = None
        if running is not None:
            with _quiet_threads(), suppress(OSError):
                running.writer.close()

    def write_result(self, result: TrackedResult) -> None:
        lines = [f"trial {result.trial}"]
        for name, value in {**result.values, **result.params}.items():
            lines.append(f"{name}: {value}")
        with self._writer(result.study, "result") as writer:
            writer.add_text("result", _as_code(lines), global_step=0)

    def written(self, study: TrackedStudy) -> set[int]:
        numbers = set()
        for path in self._folder(study).glob("trial-*"):
            number = path.name.removeprefix("trial-")
            if number.isdecimal():
                numbers.add(int(number))
        return numbers

    def _folder(self, study: TrackedStudy) -> Path:
        return self.dir / f"{study.name}-{study.uuid[:8]}"

    @contextmanager
    def _writer(self, study: TrackedStudy, name: str) -> Iterator["SummaryWriter"]:
        """Yields a writer of event files, whose folder gets its name once all is written.

        Args:
            name: the name of the folder, below that of the study.
        """
        from torch.utils.tensorboard import SummaryWriter

        folder = self._folder(study)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".", ignore_cleanup_errors=True) as unfinished:
            try:
                with _quiet_threads(), SummaryWriter(unfinished) as writer:
                    yield writer
            except OSError as error:  # from a thread of the writer; it names no path
                raise OSError(error.errno, error.strerror, str(self.dir)) from error
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.move(unfinished, folder / name)


@dataclass
class _RunningFolder:
    """The folder of a trial that runs, with its writer of event files.

    Attributes:
        last_epoch: the last epoch whose points it has.
    """

    folder: Path
    writer: "SummaryWriter"
    last_epoch: int = -1


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keeps Python from printing tracebacks of TensorBoard's threads while the body runs.

    The writer raises the errors of its threads itself, so that they would be printed twice.
    """
    print_traceback = threading.excepthook

    def print_unless_tensorboard(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            print_traceback(args)

    threading.excepthook = print_unless_tensorboard
    try:
        yield
    finally:
        threading.excepthook = print_traceback


def _plain(value: object) -> bool | int | float | str:
    """Returns a value of a hyperparameter as the hparams plugin takes it."""
    if isinstance(value, bool | int | float):
        return value
    return one_line(str(value))


def _as_code(lines: list[str]) -> str:
    """Returns lines as a block of code: the text plugin renders Markdown, also images."""
    return "\n".join(f"    {printable(line)}" for line in lines)
