"""The `studyloom` command: what one asks of a study that is there already. Studies are run by their own pages."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from studyloom import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command of `studyloom`; 0, or 2 with a line that says what is wrong."""
    parser = argparse.ArgumentParser(
        prog="studyloom",
        description="Looks at studies. A study is run by its page: python -m studies.mnist",
    )
    parser.add_argument("--version", action="version", version=f"studyloom {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser("status", help="trials by state, best so far, workers, budget left")
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="where the study runs, such as runs/mnist")
    command.set_defaults(act=status)
    command = commands.add_parser("report", help="write report.html, one page with all that was found")
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="where the study runs, such as runs/mnist")
    command.set_defaults(act=report)
    command = commands.add_parser("doctor", help="whether database, disks and machine are fit for a study")
    place = command.add_mutually_exclusive_group(required=True)
    place.add_argument(
        "run_dir", metavar="RUN_DIR", type=Path, nargs="?", help="where a study runs, such as runs/mnist"
    )
    place.add_argument("--storage", metavar="URL", help="a database, such as postgresql://user@host/name")
    command.set_defaults(act=doctor)
    arguments = parser.parse_args(argv)
    try:
        return arguments.act(arguments) or 0
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def status(arguments: argparse.Namespace) -> None:
    """Prints where a study stands."""
    # Torch, Optuna and Hydra take two seconds to import, which `--help` need not wait for.
    from studyloom import progress
    from studyloom.config import read_run
    from studyloom.study import open_record

    url, name = read_run(arguments.run_dir)
    progress.show(progress.take(open_record(url, name, deadline=0.0)), progress.console())


def report(arguments: argparse.Namespace) -> None:
    """Writes the report of a study and prints where."""
    from studyloom.config import read_run
    from studyloom.report import write
    from studyloom.study import open_record

    url, name = read_run(arguments.run_dir)
    print(write(open_record(url, name, deadline=0.0), arguments.run_dir))


def doctor(arguments: argparse.Namespace) -> int:
    """Prints what is fit for a study and what is not."""
    from studyloom.config import read_run
    from studyloom.doctor import show

    url = arguments.storage or read_run(arguments.run_dir)[0]
    return show(url, arguments.run_dir)
