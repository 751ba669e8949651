"""The parser of the command line of `studyloom`, made of the entries of all commands."""

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any, NoReturn

from studyloom._version import __version__
from studyloom.commands import control, machine, networks, progress, results, shell, studies
from studyloom.commands.options import WIDEST, Entry
from studyloom.text import nearest, printable

COMMANDS: tuple[Entry, ...] = (
    *studies.COMMANDS,
    *progress.COMMANDS,
    *control.COMMANDS,
    *results.COMMANDS,
    *networks.COMMANDS,
    *machine.COMMANDS,
    *shell.COMMANDS,
)
ABOUT = """Begins studies and looks at them.

A study is run by its page: python -m studies.mnist"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions and examples, and is no wider than 80 columns."""

    def __init__(self, prog: str) -> None:
        width = min(WIDEST, shutil.get_terminal_size().columns) - 2
        super().__init__(prog, max_help_position=26, width=width)


class Parser(argparse.ArgumentParser):
    """Suggests the command or option that a misspelt one may stand for."""

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
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2, and a line that says what is wrong."""
        if wrong := re.match(r"argument COMMAND: invalid choice: '(.*?)' \(", message):
            names = [entry.name for entry in COMMANDS]
            message = f"{wrong[1]}: no such command; there are {', '.join(names)}"
            message += nearest(wrong[1], names)
        elif wrong := re.match(r"unrecognized arguments: (--?\S+)", message):
            message += nearest(wrong[1].partition("=")[0], sorted(self.options))
        super().error(printable(message))

    @property
    def options(self) -> set[str]:
        """The options of all commands."""
        names = {*self._option_string_actions}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    names |= {*command._option_string_actions}
        return {name for name in names if name.startswith("--")}


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line.

    It sets `act` of the parsed arguments to the function of the command, and `parser` to itself.
    """
    parser = Parser(
        prog="studyloom",
        description=ABOUT,
        epilog=format_examples(("studyloom new mine", "studyloom status runs/mine --watch")),
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"studyloom {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for entry in COMMANDS:
        command = commands.add_parser(
            entry.name,
            help=entry.about,
            description=describe(entry),
            epilog=format_examples(entry.examples),
            formatter_class=HelpFormatter,
        )
        command.set_defaults(act=entry.act, parser=parser)
        entry.arguments(command)
    return parser


def describe(entry: Entry) -> str:
    """Returns what the help of a command says above its arguments, in lines that fit."""
    text = entry.description or f"{entry.about[0].upper()}{entry.about[1:]}."
    return "\n\n".join(textwrap.fill(part, WIDEST - 2) for part in text.split("\n\n"))


def format_examples(examples: tuple[str, ...]) -> str:
    """Formats examples as the end of a help."""
    lines = ["example:" if len(examples) == 1 else "examples:", *(f"  {e}" for e in examples)]
    return "\n".join(lines) if examples else ""
