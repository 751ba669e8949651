"""`studyloom status` and `studyloom trials`: how far a study has come."""

import argparse
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from studyloom.commands.options import Entry, add_run_dir, open_run
from studyloom.text import printable

if TYPE_CHECKING:
    from studyloom.views.progress import Progress


def add_status(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom status`."""
    add_run_dir(command)
    about = "go on until the job has ended: search, judging, final training; or Ctrl-C"
    command.add_argument("--watch", action="store_true", help=about)
    about = "one JSON object; with --watch a line for each change"
    command.add_argument("--json", action="store_true", help=about)
    about = "for cron: exit code 1: failed, 3: nobody works on it, 4: stopped or paused"
    command.add_argument("--check", action="store_true", help=about)


def status(arguments: argparse.Namespace) -> int:
    """Prints the status of a study.

    Returns:
        The exit code: 0, or with `--check` what `check` returns.
    """
    from studyloom.views import status
    from studyloom.views.progress import JobReader
    from studyloom.views.terminal import make_console

    # A shell makes commands that it starts with & ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A look that waits for a busy database is not worth a warning.
    logging.getLogger("studyloom").setLevel(logging.ERROR)
    reader, console = JobReader(open_run(arguments, status.DATABASE_DEADLINE)), make_console()

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    match arguments.watch, arguments.json:
        case False, False:
            status.print_status(status.read_status(reader), console)
        case False, True:
            write(f"{status.as_json(status.read_status(reader))}\n")
        case True, False:
            status.watch(reader, console)
        case True, True:
            status.watch_json(reader, write)
    return check(reader.read(), arguments.run_dir) if arguments.check else 0


def check(progress: "Progress", run_dir: Path) -> int:
    """Returns an exit code that says whether somebody has to look at a job.

    Args:
        progress: of the job.
        run_dir: where the command writes its heartbeat.

    Returns:
        0 if it has ended well or is worked on, 1 if it has failed, 3 if nobody works on it, and 4
        if another terminal has stopped or paused it.
    """
    from studyloom.commands.heartbeat import is_beating

    if progress.halted is not None or progress.exit_code:
        return 1
    if progress.ended:
        return 0
    if progress.control is not None:
        return 4
    alive = any(worker.alive for worker in progress.current.workers)
    return 0 if alive or is_beating(run_dir) else 3


def add_trials(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom trials`."""
    add_run_dir(command)
    formats = command.add_mutually_exclusive_group()
    formats.add_argument("--csv", action="store_true", help="with all columns, as in a DataFrame")
    formats.add_argument("--json", action="store_true", help="a list with an object for each trial")


def trials(arguments: argparse.Namespace) -> None:
    """Prints every trial of a study."""
    from studyloom.study.rows import as_csv, as_json, trial_rows
    from studyloom.views.terminal import make_console, print_trials

    stored = open_run(arguments)
    if arguments.csv or arguments.json:
        text = (as_csv if arguments.csv else as_json)(trial_rows(stored))
        # For a program, all is as it is stored.
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    else:
        print_trials(stored, make_console())


COMMANDS = (
    Entry(
        "status",
        "trials by state, best, workers, what matters, time left",
        status,
        add_status,
        "Shows how far a study has come: trials by state, the best of them, the workers, which "
        "parameters matter, and the time left. It may be asked at any time, from any terminal.",
        ("studyloom status runs/mnist --watch", "studyloom status runs/mnist --json"),
    ),
    Entry(
        "trials",
        "every trial: state, value, parameters",
        trials,
        add_trials,
        "Lists every trial of a study: its number, state, value, time and parameters.",
        ("studyloom trials runs/mnist", "studyloom trials runs/mnist --csv > trials.csv"),
    ),
)
