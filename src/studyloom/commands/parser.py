"""The parser of the command line of `studyloom`, made of the entries of all commands."""

import argparse
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from studyloom._version import __version__
from studyloom.commands import looking, networks, studies
from studyloom.commands.options import Entry
from studyloom.environment import variables_help
from studyloom.text import nearest, printable

COMMANDS: tuple[Entry, ...] = (
    *(studies.new, studies.run),
    *(looking.status, looking.trials, looking.report, looking.compare),
    *(looking.stop, looking.pause, looking.resume, looking.ask, looking.propose, looking.mcp),
    *(networks.winner, networks.compress, networks.predict, networks.replay),
    *(looking.doctor, looking.dashboard),
    *(studies.keys, studies.completion, studies.schema),
)
WIDEST = 80  # columns of a help, however wide the terminal is
ABOUT = """Hyperparameter search for PyTorch: run, monitor and compare studies.

A study is run by its module: python -m studies.mnist"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions and examples, and is no wider than 80 columns."""

    def __init__(self, prog: str) -> None:
        width = min(WIDEST, shutil.get_terminal_size().columns) - 2
        super().__init__(prog, max_help_position=26, width=width)


class Parser(argparse.ArgumentParser):
    """Suggests the command or option that a misspelt one may stand for."""

    commands: Mapping[str, argparse.ArgumentParser]  # of the parser of all of them

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parses arguments, those of a list also behind an option.

        Python 3.11 gives a list that may be empty nothing once an option stands behind what comes
        before it: of `compress RUN_DIR --json margin=0.01` the setting is left over.
        """
        found, left = self.parse_known_args(args, namespace)
        if "settings" in found:
            found.settings = found.settings + [word for word in left if not word.startswith("-")]
            left = [word for word in left if word.startswith("-")]
        if left:
            known = sorted({o for each in self.commands.values() for o in options_of(each)})
            wrong = nearest(left[0].partition("=")[0], known) if left[0].startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(left)}{wrong}")
        return found

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2, and a line that says what is wrong."""
        if wrong := re.match(r"argument COMMAND: invalid choice: '(.*?)' \(", message):
            known = f"{', '.join(self.commands)}{nearest(wrong[1], [*self.commands])}"
            message = f"{wrong[1]}: no such command; there are {known}"
        super().error(printable(message))


def make_parser() -> Parser:
    """Makes the parser of the command line.

    It sets `act` of the parsed arguments to the function of the command, and `parser` to itself.
    """
    examples = ("studyloom new mine", "studyloom status runs/mine --watch")
    parser = Parser(
        prog="studyloom",
        description=ABOUT,
        epilog=f"{format_examples(examples)}\n\n{variables_help()}",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"studyloom {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    parser.commands = commands.choices
    for entry in COMMANDS:
        said = inspect.getdoc(entry.act) or entry.about
        parts = (textwrap.fill(part, WIDEST - 2) for part in said.split("\n\n"))
        command = commands.add_parser(
            entry.act.__name__,
            help=entry.about,
            description="\n\n".join(parts),
            epilog=format_examples(entry.examples),
            formatter_class=HelpFormatter,
        )
        command.set_defaults(act=entry.act, parser=parser)
        for add in entry.arguments:
            add(command)
    return parser


def options_of(command: argparse.ArgumentParser) -> list[str]:
    """Returns the long options of a command."""
    return [name for name in command._option_string_actions if name.startswith("--")]


def format_examples(examples: Sequence[str]) -> str:
    """Formats examples as the end of a help."""
    head = "example:" if len(examples) == 1 else "examples:"
    return "\n".join([head, *(f"  {example}" for example in examples)])
