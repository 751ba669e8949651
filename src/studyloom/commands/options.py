"""What the commands of `studyloom` have in common: an entry for each, and shared arguments."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studyloom.study.stored_study import StoredStudy

WIDEST = 80  # columns of a help, however wide the terminal is

# The functions import what they need: torch, Optuna and Hydra take two seconds, for which `--help`
# should not wait.


@dataclass(frozen=True)
class Entry:
    """A command of `studyloom`.

    Args:
        about: what it does, in a line of the list of commands.
        act: does it with the parsed arguments, and returns the exit code; None for 0.
        arguments: adds the arguments to the parser of the command.
        description: what its own help says above the arguments.
        examples: commands as they are typed.
    """

    name: str
    about: str
    act: Callable[[argparse.Namespace], int | None]
    arguments: Callable[[argparse.ArgumentParser], None]
    description: str
    examples: tuple[str, ...]


def add_run_dir(
    command: argparse.ArgumentParser, about: str = "where the study runs, such as runs/mnist"
) -> None:
    """Adds `RUN_DIR`, and the consent that a run directory from elsewhere needs."""
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help=about)
    add_consent(command)


def add_json(command: argparse.ArgumentParser) -> None:
    """Adds `--json`; `studyloom schema COMMAND` says what it writes."""
    command.add_argument("--json", action="store_true", help="one JSON object, for programs")


def print_json(document: Any) -> None:
    """Prints a document of `commands.documents` as one line; what is not finite is null."""
    from studyloom.views.events import finite

    document = asdict(document) if is_dataclass(document) else document  # type: ignore[arg-type]
    print(json.dumps(finite(document), allow_nan=False, default=str), flush=True)


def add_consent(command: argparse.ArgumentParser) -> None:
    """Adds `--trust-server` and `--trust-config`: a run directory from elsewhere is data."""
    about = "the PostgreSQL server in RUN_DIR is yours: it runs what its folder says"
    command.add_argument("--trust-server", action="store_true", help=about)
    about = "the command and the database that RUN_DIR names are yours"
    command.add_argument("--trust-config", action="store_true", help=about)


def add_trust(command: argparse.ArgumentParser, about: str) -> None:
    command.add_argument("--trust", metavar="PACKAGE", action="append", default=[], help=about)


def add_code(command: argparse.ArgumentParser) -> None:
    about = "where the study was run: its own code is executed (default: here, if it was run here)"
    command.add_argument("--code", metavar="FOLDER", type=Path, help=about)


def locate_study(arguments: argparse.Namespace) -> tuple[str, str]:
    """Returns the storage URL and the name of the study that runs in a folder.

    If the study has an embedded server, it runs for as long as this process.

    Args:
        arguments: with `run_dir`, `trust_server` and `trust_config`.

    Raises:
        ValueError: no study has run there, or its server does not start.
    """
    from studyloom.config.runs import read_run
    from studyloom.storage.embedded_server import serve, trust_server

    url, name = read_run(arguments.run_dir, trusted=arguments.trust_config)
    if arguments.trust_server:
        trust_server(url)
    return serve(url), name


def open_run(arguments: argparse.Namespace, deadline: float = 0.0) -> "StoredStudy":
    """Opens the study that runs in a folder.

    Args:
        arguments: as for `locate_study`.
        deadline: the seconds to wait for a database that is busy or away.

    Raises:
        ValueError: no study has run there, or its database cannot be used.
    """
    from studyloom.study.opening import open_study

    url, name = locate_study(arguments)
    return open_study(url, name, deadline=deadline)
