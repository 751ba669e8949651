"""Parts of all commands of `studyloom`: an entry for each, and shared arguments."""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studyloom.study.stored_study import StoredStudy

Argument = Callable[[Any], object]  # adds itself to a parser, or to a group of one
Act = Callable[[argparse.Namespace], int | None]

# The functions import what they need: torch, Optuna and Hydra take two seconds, for which `--help`
# should not wait.


@dataclass(frozen=True)
class Entry:
    """A command of `studyloom`; `about` is its line in the list of commands.

    Args:
        act: does it with the parsed arguments, and returns the exit code; None for 0. Its name is
            that of the command, and its docstring what its own help says above the arguments.
    """

    about: str
    act: Act
    arguments: Sequence[Argument]
    examples: Sequence[str]


def command(about: str, *arguments: Argument, examples: Sequence[str]) -> Callable[[Act], Entry]:
    """Makes an entry of a function."""
    return lambda act: Entry(about, act, arguments, examples)


def argument(name: str, metavar: str | None, about: str, **options: Any) -> Argument:
    """Returns a function that adds an argument to a parser; with options of `add_argument`."""
    return lambda parser: parser.add_argument(name, metavar=metavar, help=about, **options)


def flag(name: str, about: str) -> Argument:
    return lambda parser: parser.add_argument(name, action="store_true", help=about)


def either(*arguments: Argument, required: bool = False) -> Argument:
    """Returns a function that adds arguments of which one may be given, or must be."""

    def add(parser: argparse.ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group(required=required)
        for each in arguments:
            each(group)

    return add


# A run directory from elsewhere is data without this consent.
CONSENT = (
    flag(
        "--trust-server", "the PostgreSQL server in RUN_DIR is yours: it runs what its folder says"
    ),
    flag("--trust-config", "the command and the database that RUN_DIR names are yours"),
)
RUN_DIR = argument("run_dir", "RUN_DIR", "where the study runs, such as runs/mnist", type=Path)
CODE = argument(
    *("--code", "FOLDER"),
    "where the study was run: its own code is executed (default: here, if it was run here)",
    type=Path,
)
JSON = flag("--json", "one JSON object, for programs")


def trust(about: str) -> Argument:
    return argument("--trust", "PACKAGE", about, action="append", default=[])


def replace_unencodable() -> None:
    """Has `?` printed for what the encoding of the standard streams lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test or an embedding program has its own
            stream.reconfigure(errors="replace")


def print_json(document: Any) -> None:
    """Prints a document of `commands.documents` as one line; what is not finite is null."""
    from studyloom.views.progress import to_json

    print(to_json(document), flush=True)


def locate_study(arguments: argparse.Namespace) -> tuple[str, str]:
    """Returns the storage URL and the name of the study that runs in a folder.

    If the study has an embedded server, it runs for as long as this process.

    Raises:
        ValueError: no study has run there, or its server does not start.
    """
    from studyloom.config.runs import read_run
    from studyloom.storage.urls import serve

    url, name = read_run(arguments.run_dir, trusted=arguments.trust_config)
    return serve(url, trusted=arguments.trust_server), name


def open_run(arguments: argparse.Namespace, deadline: float = 0.0) -> "StoredStudy":
    """Opens the study that runs in a folder.

    Args:
        deadline: the seconds to wait for a database that is busy or away.

    Raises:
        ValueError: no study has run there, or its database cannot be used.
    """
    from studyloom.study.opening import open_study

    url, name = locate_study(arguments)
    return open_study(url, name, deadline=deadline)
