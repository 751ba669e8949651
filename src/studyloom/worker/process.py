"""The processes of a study: the one that runs it, its workers, and how they end.

`run_search` needs only the kernel: it searches, and raises errors. A `StudyProcess` runs a whole
process to its exit code: a worker, or the command of a study, which passes the stages after the
search and what to report.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from studyloom.config.build import find_target
from studyloom.config.invocation import Source, find_invocation
from studyloom.config.study_config import StudyConfig
from studyloom.environment import WORKER
from studyloom.error_display import exit_with
from studyloom.errors import ConfigError, Halted, Interrupted, LaunchError, StudyloomError
from studyloom.user_code.pickled import receive_objects
from studyloom.worker.driver import SEARCH_ONLY, Reporting, run_study
from studyloom.worker.forks import make_fork_server
from studyloom.worker.line import Line
from studyloom.worker.open_study import Stages
from studyloom.worker.stopping import STDERR, Stop
from studyloom.worker.task import Command, Launcher

# Exit codes
FAILED = 1
INVALID_INPUT = 2
STOPPED = 3  # `studyloom stop` has stopped the process
SIGNAL_OFFSET = 128  # plus the number of the signal that has stopped the process


def run_search(source: Source, overrides: Sequence[str] = ()) -> None:
    """Runs the search of a study with the workers of its launcher, or resumes it.

    Call it before the process computes anything: its workers are forks of it.

        run_search("conf/mine.yaml", ["launcher.workers=2", "run_dir=runs/mine"])

    Args:
        source: a primary config, a study module, or a full config.
        overrides: Hydra's, such as storage.url=… or study.trials=50.

    Raises:
        ConfigError: all errors of the config.
        StorageError: the database cannot be used; StorageLost if it stays away.
        Halted: all trials fail for the same reason.
        LaunchError: workers die before they claim a trial.
    """
    invocation = find_invocation(source, overrides)

    def search(config: StudyConfig, arguments: tuple[str, ...]) -> None:
        """Runs the search of a composed config."""
        command = Command(invocation.program, arguments)
        with ExitStack() as cleanup, Stop(config.study.timeout) as stop:
            work = partial(run_worker, config, command)
            fork_server = make_fork_server(find_launcher_class(config), work, cleanup)
            command = replace(command, fork_server=fork_server)
            run_study(config, command, Reporting(), stop)

    invocation.call(overrides, search)


class ProcessReporting(Reporting):
    """Reports on the study of a whole process. The base class reports nothing, as in a worker."""

    def open(self) -> None:
        """Prepares to report, before the study is prepared."""

    def end(self, code: int, reason: str | None) -> None:
        """Reports the exit code of the process, and why it is not 0."""


@dataclass(frozen=True)
class StudyProcess:
    """A process that runs a study, from its config to its exit code.

    Args:
        command: the command that has started the process.
        reporting: reports on the study, to the terminal for example.
        stages: the stages of the study that this process knows.
        worker: runs a fork of this process as a worker; None without forks.
    """

    config: StudyConfig
    command: Command
    reporting: ProcessReporting
    stages: Stages = SEARCH_ONLY
    worker: Callable[[Line], object] | None = None

    def run(self) -> NoReturn:
        """Runs the study, and ends the process."""
        WORKER.take()  # a command that a trial starts is no worker
        config = self.config
        command = self.command
        reporting = self.reporting
        line = command.line  # the connection to the launcher, if this process is its worker
        with (
            ExitStack() as cleanup,
            line.sending_exit_code(),
            Stop(config.study.timeout, line.is_requested) as stop,
        ):
            if self.worker is not None and not config.study.dry_run:
                fork_server = make_fork_server(find_launcher_class(config), self.worker, cleanup)
                command = replace(command, fork_server=fork_server)
            with exiting_on_errors(stop, reporting):
                receive_objects()
                line.follow()  # from now on this process stops when its launcher has ended
                reporting.open()
                code_of_study = run_study(config, command, reporting, stop, self.stages)
                code = find_exit_code(code_of_study, stop)
                reason = None
                if stop():
                    reason = stop.reason
                reporting.end(code, reason)
            sys.exit(code)


def run_worker(
    config: StudyConfig,
    command: Command,
    line: Line,
    reporting: ProcessReporting | None = None,
    stages: Stages = SEARCH_ONLY,
) -> NoReturn:
    """Works in this process on the stages of a study, as a worker that a launcher has started.

    Args:
        command: the command of the launcher, which has begun the study.
        line: the connection to the launcher.
        reporting: reports on the study; None to report nothing.
        stages: the stages of the study that this process knows.
    """
    reporting = reporting or ProcessReporting()
    command = replace(command, begins=False, is_worker=True, line=line)
    StudyProcess(config, command, reporting, stages).run()


def find_launcher_class(config: StudyConfig) -> type[Launcher] | None:
    """Returns the class of a config's launcher; None if it has none, which `prepare` reports."""
    section = config["launcher"]
    if not isinstance(section, dict):
        return None
    try:
        target = find_target(section, "launcher")
    except ConfigError:
        return None
    if isinstance(target, type) and issubclass(target, Launcher):
        return target
    return None


def find_exit_code(code: int, stop: Stop) -> int:
    """Returns the exit code of a process that may have been stopped.

    Args:
        code: the exit code of one that was not stopped.
    """
    if stop.signal is not None:
        return SIGNAL_OFFSET + stop.signal
    if stop.requested is not None:
        return STOPPED
    return code


@contextmanager
def exiting_on_errors(stop: Stop, reporting: ProcessReporting) -> Iterator[None]:
    """Ends the process with an exit code if the body raises an error, and reports that end.

    An unexpected error is raised again, so that its traceback is shown.
    """
    try:
        yield
    except BaseException as error:
        if was_interrupted(error):
            exit_at_once(stop, reporting)
        elif reporting.study is None:
            exit_before_study(error, reporting)
        else:
            exit_in_study(error, stop, reporting)
        raise


def was_interrupted(error: BaseException) -> bool:
    """Returns whether a second signal has raised an error.

    Until Python 3.12 an exception becomes the cause of a RuntimeError if it is raised while a class
    is made, as it is by an import.
    """
    return isinstance(error, Interrupted) or isinstance(error.__cause__, Interrupted)


def exit_at_once(stop: Stop, reporting: ProcessReporting) -> NoReturn:
    """Ends the process after a second signal; its trials have been released."""
    code = SIGNAL_OFFSET + (stop.signal or signal.SIGINT)
    reporting.end(code, "stopped at once")
    if reporting.study is not None:
        with suppress(OSError):
            os.write(STDERR, b"stopped at once; the same command resumes here\n")
    sys.exit(code)


def exit_before_study(error: BaseException, reporting: ProcessReporting) -> None:
    """Ends the process by an error from before the study is open, such as an invalid config.

    Returns if the error is unexpected, so that its traceback is to be shown.
    """
    if isinstance(error, ValueError | OSError | LaunchError):
        reporting.end(INVALID_INPUT, str(error))
        exit_with(error, INVALID_INPUT)


def exit_in_study(error: BaseException, stop: Stop, reporting: ProcessReporting) -> None:
    """Ends the process by an error in an open study, whose trials so far are stored.

    Returns if the error is unexpected, so that its traceback is to be shown.
    """
    if isinstance(error, StudyloomError | OSError):
        if isinstance(error, StudyloomError):
            code = error.exit_code
        else:
            code = FAILED
        # A study whose trials all fail needs a fix, even if a stop was requested meanwhile.
        if not isinstance(error, Halted):
            code = find_exit_code(code, stop)
        reporting.end(code, str(error))
        exit_with(error, code)
    reporting.end(FAILED, type(error).__name__)
    if not isinstance(error, Exception):  # such as a SystemExit
        exit_with(LaunchError(f"your code ended the command: {error!r}"), FAILED)
