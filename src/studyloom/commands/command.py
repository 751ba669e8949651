"""The command of a study: its processes, and how it ends."""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from logging import LogRecord
from typing import NoReturn

import optuna
from omegaconf import DictConfig
from rich.console import Console

from studyloom.commands.answer import remove_left, search_and_report
from studyloom.commands.outputs import Outputs, take_environment
from studyloom.commands.plans import open_plan, prepare_command, task_of
from studyloom.commands.streams import LastingOutput, prepare_streams
from studyloom.config import hydra_main
from studyloom.config.invocation import invocation_of, module_path
from studyloom.errors import (
    CompressError,
    Halted,
    Interrupted,
    LaunchError,
    NoWinner,
    StorageLost,
    UserError,
    exit_with,
)
from studyloom.launch.command import WORKER_VARIABLE, Command
from studyloom.launch.fork_server import ForkServer
from studyloom.launch.line import Line
from studyloom.launch.prepare import prepare_to_join
from studyloom.launch.ranks import start_ranks
from studyloom.launch.task import follow_parent
from studyloom.launch.watch import Death, print_line, watch
from studyloom.processes import worker_id
from studyloom.study.control import following
from studyloom.study.stopping import Stop
from studyloom.text import PrintableFormatter
from studyloom.views.terminal import make_console, print_dry_run

STOPPED = 3  # the exit code of a command that `studyloom stop` has stopped


def run_study(cfg: DictConfig, command: Command | None = None) -> None:
    """Does what `studyloom.run.run` does.

    Args:
        cfg: the config as composed, inside `hydra_main`.
        command: starts the workers; None for the command of this process.
    """
    prepare_streams()
    command = command or Command.of_this_process()
    began = time.monotonic() - command.age()  # a fork is younger than the command
    command = replace(command, age=lambda: time.monotonic() - began)
    told = take_environment()  # before any fork, and in workers that a launcher starts
    if WORKER_VARIABLE in os.environ:
        run_here(cfg, command, Line.of_launcher())
    watch(lambda line, death: run_command(cfg, command, line, death, told))


def run_command(
    cfg: DictConfig, command: Command, line: Line, death: Death | None, told: Mapping[str, str]
) -> NoReturn:
    """Runs a command in this process, with a fork server for its workers.

    Args:
        cfg: the config as composed.
        command: starts the workers.
        line: to the process that watches this one.
        death: of the process in whose place this one goes on.
        told: the variables that say what is told and to whom.
    """
    launcher = cfg.launcher if isinstance(cfg.launcher, DictConfig) else {}
    forks = launcher.get("_target_") == "studyloom.launch.Local" and not cfg.study.dry_run
    fork_server = ForkServer.open(lambda line: run_here(cfg, command, line)) if forks else None
    try:
        run_here(cfg, command, line, fork_server, death, told)
    finally:
        if fork_server is not None:
            fork_server.close()


def run_source(source: str, arguments: Sequence[str]) -> None:
    """Runs the study of a page or of a primary config as a command; ends the process.

    Args:
        source: a page, such as studies/mine.py, or a primary config, such as conf/mine.yaml.
        arguments: Hydra's overrides and options.

    Raises:
        ConfigError: there is no such study.
    """
    invocation = invocation_of(source)
    sys.argv[1:] = arguments

    def task(cfg: DictConfig) -> None:
        # The arguments as hydra_main left them: without passwords.
        run_study(cfg, Command(("-m", "studyloom", "run", source), tuple(sys.argv[1:])))

    with module_path(invocation.root):
        hydra_main(str(invocation.config_dir), invocation.config_name)(task)()


def run_here(
    cfg: DictConfig,
    command: Command,
    line: Line,
    fork_server: ForkServer | None = None,
    death: Death | None = None,
    told: Mapping[str, str] | None = None,
) -> NoReturn:
    """Does the same in this process, which may be that of a worker that a launcher started.

    Args:
        cfg: the config as composed.
        command: starts the workers.
        line: to the process that watches this one, or has started it.
        fork_server: of the workers; None for commands in its place.
        death: of the process in whose place this one goes on.
        told: the variables that say what is told and to whom; a worker tells nothing.
    """
    worker, code = WORKER_VARIABLE in os.environ, 0
    prepare_logging(logging.INFO if worker else logging.WARNING)
    peers = start_ranks(cfg, command, line)
    if worker:
        follow_parent(line)
    line.follow()
    with line.saying_end(), peers, Stop(cfg.study.timeout, line.is_asked) as stop:
        outputs = Outputs()
        try:
            outputs = outputs if worker else Outputs.of_environment(told or {})
            prepared = (prepare_to_join if worker else prepare_command)(cfg, peers.connect())
            if cfg.study.dry_run:
                print_dry_run(prepared.question, console_of(outputs))
                outputs.finish(0)
                sys.exit()
            prepared, plan = open_plan(prepared, stop, worker=worker)
        except (ValueError, OSError) as error:
            outputs.finish(2, str(error))
            exit_with(error, 2)
        except Interrupted:  # the second signal; no trial is held yet
            outputs.finish(128 + (stop.signal or 2), "stopped at once")
            sys.exit(128 + (stop.signal or 2))
        task = task_of(prepared, plan, command, line, fork_server)
        stops = not (worker and line.is_connected)  # else the launcher stops its workers
        try:
            with telling_end(outputs, stop), following(plan.search.stored, stop, stops=stops):
                if death is not None:
                    task.ledger.record_death(worker_id(death.pid), death.words)
                if worker:
                    prepared.launcher.launch(task, stop)
                else:
                    code = search_and_report(
                        prepared, plan, task, stop, console_of(outputs), outputs
                    )
                    remove_left(plan, prepared)
                    outputs.finish(exit_code(code, stop), stop.ended_by if stop() else None)
        finally:
            plan.close()
        if stop.alone is not None:
            line.say_released()
        sys.exit(exit_code(code, stop))


def prepare_logging(level: int) -> None:
    """Writes log records and warnings on standard error, those of Optuna only if they are errors.

    Args:
        level: from which records are written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for each in logging.getLogger().handlers:  # also those that Hydra has made
        if isinstance(each, logging.StreamHandler):
            each.handleError = partial(_handle_error, each)  # type: ignore[method-assign]
    logging.captureWarnings(True)


def _handle_error(handler: logging.Handler, record: LogRecord) -> None:
    """Says nothing of a record that the handler's file cannot take.

    Its disk may be full, or the user's code may have closed it. Python writes a traceback of
    some 60 lines for each record then; it still does so for a wrong call of the user's.
    """
    if not isinstance(sys.exc_info()[1], OSError):
        type(handler).handleError(handler, record)


def console_of(outputs: Outputs) -> Console:
    """Returns where a command prints: standard output, unless that is for a program."""
    return make_console(LastingOutput(sys.stderr if outputs.as_json else sys.stdout))


def exit_code(code: int, stop: Stop) -> int:
    """Returns the exit code of a process: 128 and the signal that stopped it, or else `code`."""
    if stop.signal is not None:
        return 128 + stop.signal
    return STOPPED if stop.requested is not None else code


@contextmanager
def telling_end(outputs: Outputs, stop: Stop) -> Iterator[None]:
    """Ends the process by the error that the body raises, and tells of its end in any case."""
    try:
        yield
    except Interrupted:  # the second signal; the trials have been released
        outputs.finish(128 + (stop.signal or 2), "stopped at once")
        print_line("stopped at once; the same command goes on from here")
        return
    except Halted as error:
        outputs.finish(error.exit_code, str(error))
        exit_with(error, error.exit_code)
    except (CompressError, LaunchError, NoWinner, StorageLost, OSError) as error:
        outputs.finish(exit_code(1, stop), str(error))
        exit_with(error, exit_code(1, stop))
    except UserError as error:  # such as a database that a person must mend
        outputs.finish(exit_code(error.exit_code, stop), str(error))
        exit_with(error, exit_code(error.exit_code, stop))
    except BaseException as error:
        outputs.finish(1, type(error).__name__)
        if isinstance(error, Exception):
            raise
        exit_with(LaunchError(f"the user's code has ended the command: {error!r}"), 1)
