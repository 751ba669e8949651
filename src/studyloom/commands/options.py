"""The parts that the commands of `studyloom` share: entries, common arguments, opening a study."""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from studyloom.storage.stored_study import StoredStudy

Argument = Callable[[Any], object]  # adds an argument to a parser, or to one of its groups
Act = Callable[[argparse.Namespace], int | None]
NetworkTarget = str | dict[str, str]  # a value of the option `--network`

# The functions import what they need: torch, Optuna and Hydra take two seconds, for which `--help`
# should not wait.


@dataclass(frozen=True)
class Entry:
    """A command of `studyloom`.

    Args:
        about: its line in the list of commands.
        act: runs it with the parsed arguments, and returns the exit code; None for 0. The function
            has the name of the command, and its docstring is the description in the help.
        arguments: functions that add the arguments to the command's parser.
        examples: command lines that its help ends with.
    """

    about: str
    act: Act
    arguments: Sequence[Argument]
    examples: Sequence[str]


def command(about: str, *arguments: Argument, examples: Sequence[str]) -> Callable[[Act], Entry]:
    """Returns a decorator that turns the function of a command into its entry.

    Args:
        about: its line in the list of commands.
        arguments: functions that add the arguments, as `argument`, `flag` and `either` return.
        examples: command lines that its help ends with.
    """
    return lambda act: Entry(about, act, arguments, examples)


def argument(name: str, metavar: str | None, about: str, **options: Any) -> Argument:
    """Returns a function that adds an argument to a parser; `options` are `add_argument`'s."""
    return lambda parser: parser.add_argument(name, metavar=metavar, help=about, **options)


def flag(name: str, about: str) -> Argument:
    """Returns a function that adds an option without a value."""
    return lambda parser: parser.add_argument(name, action="store_true", help=about)


def either(*arguments: Argument, required: bool = False) -> Argument:
    """Returns a function that adds arguments that exclude each other.

    Args:
        required: whether one of them must be given.
    """

    def add(parser: argparse.ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group(required=required)
        for add_argument in arguments:
            add_argument(group)

    return add


@dataclass(frozen=True)
class ForUntrusted:
    """An option for an untrusted folder; the help of a command shows it after the others."""

    add: Argument

    def __call__(self, parser: Any) -> object:
        return self.add(parser)


# Without these, an untrusted run directory is read as data, and nothing in it is executed.
CONSENT = (
    ForUntrusted(
        flag("--trust-server", "start the PostgreSQL server in RUN_DIR; its files can execute code")
    ),
    ForUntrusted(
        flag("--trust-config", "use the command and the database that the files of RUN_DIR name")
    ),
)
RUN_DIR = argument("run_dir", "RUN_DIR", "the folder of the study, such as runs/mnist", type=Path)
CODE = argument(
    *("--code", "FOLDER"),
    "the folder with the study's own code, which is imported (default, in your own run directory: "
    "the folder where the study was run)",
    type=Path,
)
JSON = flag("--json", "print JSON, for programs")


def parse_network(text: str) -> NetworkTarget:
    """Parses the option `--network` to a value of `objective.network`.

    `mine.Net` stays text, and `encoder=mine.Net` becomes {"encoder": "mine.Net"}.
    """
    name, equals, target = text.rpartition("=")
    if equals:
        return {name: target}
    return target


NETWORK = argument(
    *("--network", "CLASS"),
    "what makes the network of a training loop, such as mine.Net; with several networks in "
    "run.keep, NAME=mine.Net says which one predicts",
    type=parse_network,
)


def trust(about: str) -> Argument:
    """Returns a function that adds the option `--trust`, which may be repeated."""
    return ForUntrusted(argument("--trust", "PACKAGE", about, action="append", default=[]))


def replace_unencodable_characters() -> None:
    """Lets the standard streams write `?` for characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test or an embedding program has its own
            stream.reconfigure(errors="replace")


def text_stream(arguments: argparse.Namespace) -> TextIO:
    """Returns the stream for text: standard output, which `--json` leaves to the document."""
    if arguments.json:
        return sys.stderr
    return sys.stdout


def print_json(document: Any) -> None:
    """Prints a document of `commands.documents` on one line; NaN and infinity become null."""
    from studyloom.json_text import to_json

    print(to_json(document), flush=True)


def locate_study(arguments: argparse.Namespace) -> tuple[str, str]:
    """Returns the storage URL and the name of the study of a run directory.

    An embedded PostgreSQL server is started if needed, and ends with this process.

    Raises:
        ValueError: no study has run there, or its server does not start.
    """
    from studyloom.config.runs import read_run
    from studyloom.storage.urls import start_embedded_server

    url, name = read_run(arguments.run_dir, trusted=arguments.trust_config)
    return start_embedded_server(url, trusted=arguments.trust_server), name


def open_run(arguments: argparse.Namespace, deadline: float = 0.0) -> "StoredStudy":
    """Opens the study of a run directory.

    Args:
        deadline: the seconds to wait for a database that is busy or cannot be reached.

    Raises:
        ValueError: no study has run there, or its database cannot be used.
    """
    from studyloom.storage.opening import open_study

    url, name = locate_study(arguments)
    return open_study(url, name, deadline=deadline)
