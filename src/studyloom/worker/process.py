"""The processes of a study: the one that runs it, its workers, and how they end.

`run_search` needs only the kernel: it searches, and raises errors. `run_process` runs a whole
process and returns its exit code: a worker, or the command of a study, which passes the stages
after the search and what to report.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig

from studyloom.config.build import find_target
from studyloom.config.main import invocation_of
from studyloom.definition.definition import Definition
from studyloom.environment import WORKER
from studyloom.error_display import exit_with
from studyloom.errors import (
    BrokenProcess,
    ConfigError,
    Halted,
    Interrupted,
    LaunchError,
    StudyloomError,
)
from studyloom.user_code.pickled import receive
from studyloom.worker.forks import fork_workers
from studyloom.worker.line import Line
from studyloom.worker.prepare_search import MakeStages, open_search, prepare
from studyloom.worker.stopping import Stop, following
from studyloom.worker.task import Command, Launcher, StudyTask, make_task

STOPPED = 3  # the exit code of a process that `studyloom stop` has stopped


def run_search(source: str | Path | DictConfig, overrides: Sequence[str] = ()) -> None:
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
    invocation = invocation_of(source, overrides)

    def search(cfg: DictConfig, arguments: tuple[str, ...]) -> None:
        command = Command(invocation.program, arguments)
        with ExitStack() as ending, Stop(cfg.study.timeout) as stop:
            worker = partial(run_worker, cfg, command)
            server = fork_workers(launcher_class(cfg), worker, ending)
            opened = open_search(prepare(cfg), stop, create=True)
            prepared, stages = ending.enter_context(opened)
            with following(next(iter(stages)).stored, stop):
                task = make_task(prepared, stages, command, fork_server=server)
                prepared.launcher.launch(task, stop)

    invocation.call(overrides, search)


@dataclass(frozen=True)
class Reporting:
    """What a process reports; a worker reports nothing.

    Args:
        begin: called before the study is prepared.
        show: called with the definition of a dry run, which ends then.
        finish: called with the exit code, and why it is not 0.
    """

    begin: Callable[[], None] = lambda: None
    show: Callable[[Definition], None] = lambda definition: None
    finish: Callable[[int, str | None], None] = lambda code, reason: None


def run_process(
    cfg: DictConfig,
    command: Command,
    line: Line,
    work: Callable[[StudyTask, Stop], int],
    *,
    make_stages: MakeStages | None,
    reporting: Reporting,
    worker: Callable[[Line], object] | None = None,
) -> NoReturn:
    """Runs a study in this process, from its config to the exit code.

    Args:
        line: to the launcher that has started this process, if one has.
        work: works on the task, and returns the exit code.
        worker: what a fork of this process does as a worker; None without forks.
    """
    WORKER.take()  # a command that a trial starts is no worker
    joins, finish = command.is_worker, reporting.finish
    with (
        ExitStack() as ending,
        line.ending(),
        Stop(cfg.study.timeout, line.is_asked) as stop,
        ExitStack() as opened,
    ):
        launcher, server = launcher_class(cfg), None
        if worker is not None and not cfg.study.dry_run:
            server = fork_workers(launcher, worker, ending)
        with reporting_errors(stop, finish):
            receive()
            line.follow()
            reporting.begin()
            prepared = prepare(cfg, joins=joins)
            if cfg.study.dry_run:
                reporting.show(prepared.definition)
                finish(0, None)
                sys.exit()
            search = open_search(prepared, stop, make_stages, create=not joins)
            prepared, stages = opened.enter_context(search)
        task = make_task(prepared, stages, command, on_claim=line.say_claimed, fork_server=server)
        stops = not (joins and line.is_connected)  # else the launcher stops its workers
        code, stored = 0, next(iter(stages)).stored
        with reporting_end(stop, finish), following(stored, stop, stops=stops):
            code = work(task, stop)
            finish(exit_code(code, stop), stop.ended_by if stop() else None)
        sys.exit(exit_code(code, stop))


def run_worker(
    cfg: DictConfig, command: Command, line: Line, make_stages: MakeStages | None = None
) -> NoReturn:
    """Works in this process on the stages of a study, as a worker that a launcher has started."""

    def work(task: StudyTask, stop: Stop) -> int:
        try:
            task.prepared.launcher.launch(task, stop)
        except BrokenProcess as broken:
            line.say("died", broken)
            raise
        return 0

    command, silent = replace(command, is_worker=True), Reporting()
    run_process(cfg, command, line, work, make_stages=make_stages, reporting=silent)


def launcher_class(cfg: DictConfig) -> type[Launcher] | None:
    """Returns the class of a config's launcher; None if it is wrong, as `prepare` reports."""
    if not isinstance(cfg.launcher, DictConfig):
        return None
    try:
        named = find_target(cfg.launcher)
    except ConfigError:
        return None
    if isinstance(named, type) and issubclass(named, Launcher):
        return named
    return None


def exit_code(code: int, stop: Stop) -> int:
    """Returns the exit code of a process: 128 and the signal that stopped it, or else `code`."""
    if stop.signal is not None:
        return 128 + stop.signal
    return STOPPED if stop.requested is not None else code


@contextmanager
def reporting_errors(stop: Stop, finish: Callable[[int, str | None], None]) -> Iterator[None]:
    """Ends the process with an exit code if the body, which opens a study, raises an error."""
    try:
        yield
    except (ValueError, OSError, LaunchError) as error:
        finish(2, str(error))
        exit_with(error, 2)
    except Interrupted:  # the second signal; no trial is held yet
        finish(128 + (stop.signal or 2), "stopped at once")
        sys.exit(128 + (stop.signal or 2))


@contextmanager
def reporting_end(stop: Stop, finish: Callable[[int, str | None], None]) -> Iterator[None]:
    """Ends the process with an exit code if the body raises an error; always reports the end."""
    try:
        yield
    except Interrupted:  # the second signal; the trials have been released
        finish(128 + (stop.signal or 2), "stopped at once")
        with suppress(OSError):
            os.write(2, b"stopped at once; the same command resumes here\n")
    except (StudyloomError, OSError) as error:
        # The search is done, and what remains can be done later.
        code = 1 if isinstance(error, OSError) else error.exit_code
        code = code if isinstance(error, Halted) else exit_code(code, stop)
        finish(code, str(error))
        exit_with(error, code)
    except BaseException as error:
        finish(1, type(error).__name__)
        if isinstance(error, Exception):
            raise
        exit_with(LaunchError(f"your code ended the command: {error!r}"), 1)
