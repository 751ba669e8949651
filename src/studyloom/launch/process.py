"""The processes of a search: the one that runs it, its workers, and how they end.

`run_search` needs nothing but the kernel. The command of a study does the same, shows how far it
is, and goes on with the stages after the search.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from studyloom.config.main import invocation_of
from studyloom.environment import WORKER
from studyloom.error_display import exit_with
from studyloom.errors import CompressError, Halted, Interrupted, LaunchError, StudyloomError
from studyloom.launch.forks import ForkServer, can_fork, print_line
from studyloom.launch.line import Line
from studyloom.launch.ranks import start_ranks
from studyloom.launch.search import MakeStages, open_search, prepare, search_only
from studyloom.launch.task import Command, launcher_class
from studyloom.pickled import receive
from studyloom.processes import collect_as_usual
from studyloom.study.stopping import Stop, following
from studyloom.training.ranks import Ranks

STOPPED = 3  # the exit code of a process that `studyloom stop` has stopped


def run_search(source: str | Path | DictConfig, overrides: Sequence[str] = ()) -> None:
    """Runs the search of a study with the workers of its launcher, or resumes it.

    Call it before the process computes anything: on the CPU its workers are forks of it.

    Args:
        source: a primary config, such as conf/mine.yaml, a study module, or a composed config.
        overrides: Hydra's, such as storage.url=… or launcher.workers=2.

    Raises:
        ConfigError: all mistakes of the configuration.
        StorageError: the database cannot be used; StorageLost if it stays away.
        Halted: all trials fail for the same reason.
        LaunchError: workers die before they claim a trial.
    """
    invocation = invocation_of(source, overrides)

    def search(cfg: DictConfig, arguments: tuple[str, ...]) -> None:
        command = Command(invocation.program, arguments)
        launcher = launcher_class(cfg)
        with ExitStack() as ending, Stop(cfg.study.timeout) as stop:
            server = fork_workers(launcher, partial(work_here, cfg, command), ending)
            prepared, stages = ending.enter_context(open_search(prepare(cfg), stop, create=True))
            ending.enter_context(following(stages.search.stored, stop))
            task = prepared.task(stages, command, fork_server=server)
            prepared.launcher.launch(task, stop)

    invocation.call(overrides, search)


def work_here(
    cfg: DictConfig, command: Command, line: Line, make_stages: MakeStages = search_only
) -> NoReturn:
    """Works in this process, as a worker that a launcher has started, on the stages of a study.

    Args:
        line: to the process that has started this one.
    """
    command = replace(command, is_worker=True)
    WORKER.take()  # a command that a trial starts is no worker
    with (
        ExitStack() as ending,
        line.ending(),
        Stop(cfg.study.timeout, line.is_asked) as stop,
        ExitStack() as opened,
    ):
        with reporting_mistakes(stop):
            prepared = prepare(cfg, connect_ranks(cfg, command, line, ending), joins=True)
            search = open_search(prepared, stop, make_stages, create=False)
            prepared, stages = opened.enter_context(search)
        stored, alone = next(iter(stages)).stored, not line.is_connected
        # A launcher stops its workers itself.
        with reporting_end(stop), following(stored, stop, stops=alone):
            task = prepared.task(stages, command, on_claim=line.say_claimed)
            prepared.launcher.launch(task, stop)
        sys.exit(exit_code(0, stop))


def fork_workers(
    launcher: Any, work: Callable[[Line], object], ending: ExitStack
) -> ForkServer | None:
    """Makes the fork server of a launcher's workers; None if they are commands, or none are.

    Args:
        launcher: its class, see `launcher_class`.
    """
    if not getattr(launcher, "may_fork", False) or not can_fork():
        return None
    return ending.enter_context(closing(ForkServer(work)))


def connect_ranks(
    cfg: DictConfig, command: Command, line: Line, ending: ExitStack, launcher: Any = None
) -> Ranks:
    """Starts the other ranks of this process, if it has any, and listens to its launcher.

    Args:
        ending: ends them.
        launcher: the class of the launcher that a command uses.
    """
    receive()

    def follow(ranks: Ranks) -> Callable[[Any], None]:
        """Prepares another rank than the first, which takes part in what that one calls."""
        prepared = prepare(cfg, ranks, joins=True)
        collect_as_usual()
        return lambda call: prepared.definition.take_part(call, prepared.data)

    peers = ending.enter_context(start_ranks(cfg, command, line, follow, launcher))
    line.follow()
    return peers.connect()


def exit_code(code: int, stop: Stop) -> int:
    """Returns the exit code of a process: 128 and the signal that stopped it, or else `code`."""
    if stop.signal is not None:
        return 128 + stop.signal
    return STOPPED if stop.requested is not None else code


# Gets the exit code of a process, and why it is not 0.
Finish = Callable[[int, str | None], None]


def _finish(code: int, reason: str | None) -> None:
    """Does nothing: a worker reports its end to nobody but its launcher."""


@contextmanager
def reporting_mistakes(stop: Stop, finish: Finish = _finish) -> Iterator[None]:
    """Ends the process by the error that the body raises, which opens a study."""
    try:
        yield
    except (ValueError, OSError, LaunchError) as error:
        finish(2, str(error))
        exit_with(error, 2)
    except Interrupted:  # the second signal; no trial is held yet
        finish(128 + (stop.signal or 2), "stopped at once")
        sys.exit(128 + (stop.signal or 2))


@contextmanager
def reporting_end(stop: Stop, finish: Finish = _finish) -> Iterator[None]:
    """Ends the process by the error that the body raises, and reports its end in any case."""
    try:
        yield
    except Interrupted:  # the second signal; the trials have been released
        finish(128 + (stop.signal or 2), "stopped at once")
        print_line("stopped at once; the same command goes on from here")
    except (StudyloomError, OSError) as error:
        # The search is done, and what remains can be done later.
        unfinished = isinstance(error, OSError | CompressError)
        code = 1 if unfinished else error.exit_code  # type: ignore[union-attr]
        code = code if isinstance(error, Halted) else exit_code(code, stop)
        finish(code, str(error))
        exit_with(error, code)
    except BaseException as error:
        finish(1, type(error).__name__)
        if isinstance(error, Exception):
            raise
        exit_with(LaunchError(f"the user's code has ended the command: {error!r}"), 1)
