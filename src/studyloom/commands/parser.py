"""The parser of the `studyloom` command line: all commands, in the groups of `--help`."""

import argparse
import inspect
import itertools
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from studyloom._version import __version__
from studyloom.commands import looking, networks, studies
from studyloom.commands.options import Entry, ForUntrusted
from studyloom.environment import variables_help
from studyloom.text import nearest, printable

# The commands by the heading of `--help` that lists them.
GROUPS: Mapping[str, tuple[Entry, ...]] = {
    "create and run: write a study, run it, control it, propose configurations": (
        *(studies.new, studies.run, looking.pause, looking.resume, looking.stop),
        looking.redo,
        *(looking.ask, looking.propose, looking.mcp),
    ),
    "monitor: follow a study while it runs": (looking.status, looking.trials, looking.dashboard),
    "results: look at what a study found, and use its winner": (
        *(looking.report, looking.compare, looking.adopt, networks.winner, networks.ablate),
        *(networks.predict, networks.compress, networks.replay),
    ),
    "maintenance: check the machine, look up keys, set up the shell": (
        *(looking.doctor, studies.keys, studies.completion),
    ),
}
COMMANDS = tuple(entry for entries in GROUPS.values() for entry in entries)
UNTRUSTED = "options for an untrusted folder: use them only if you trust who wrote it"
WIDEST = 80  # columns of a help, however wide the terminal is
ABOUT = """Hyperparameter search for PyTorch: run, monitor and compare studies.

A study is run by its module: python -m studies.mnist"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks, fits 80 columns, and lists commands by group."""

    def __init__(self, prog: str) -> None:
        width = min(WIDEST, shutil.get_terminal_size().columns) - 2
        super().__init__(prog, max_help_position=26, width=width)

    def _format_action(self, action: argparse.Action) -> str:
        if not isinstance(action, argparse._SubParsersAction):
            return super()._format_action(action)
        write = super()._format_action
        lines = {each.dest: write(each) for each in action._choices_actions}
        listed = {head: [lines[e.act.__name__] for e in group] for head, group in GROUPS.items()}
        return "\n".join(f"{head}\n{''.join(group)}" for head, group in listed.items())


class Parser(argparse.ArgumentParser):
    """Suggests the nearest command or option for a misspelled one."""

    commands: Mapping[str, argparse.ArgumentParser]  # by name; of the top-level parser only

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parses arguments; settings of `compress` may also follow an option.

        In Python 3.11, argparse does not assign `margin=0.01` of `compress RUN_DIR --json
        margin=0.01` to the list `settings`, but returns it as unknown.
        """
        found, left = self.parse_known_args(args, namespace)
        if "settings" in found:
            found.settings = found.settings + [word for word in left if not word.startswith("-")]
            left = [word for word in left if word.startswith("-")]
        if left:
            option = left[0].partition("=")[0]
            options = {name: options_of(command) for name, command in self.commands.items()}
            owners = [name for name in options if option in options[name]]
            wrong = ""
            if owners:
                wrong = f"; {option} is an option of {', '.join(owners)}"
            elif option.startswith("-"):
                wrong = nearest(option, sorted({*itertools.chain(*options.values())}))
            self.error(f"unrecognized arguments: {' '.join(left)}{wrong}")
        return found

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong on one line, and ends the process with exit code 2."""
        if wrong := re.match(r"argument COMMAND: invalid choice: '(.*?)' \(", message):
            known = f"{', '.join(self.commands)}{nearest(wrong[1], [*self.commands])}"
            message = f"{wrong[1]}: no such command; there are {known}"
        super().error(printable(message))


def make_parser() -> Parser:
    """Makes the parser of the command line.

    Of the parsed arguments, `act` is the function of the command, and `parser` this parser.
    """
    examples = ("studyloom new mine", "studyloom status runs/mine --watch")
    parser = Parser(
        prog="studyloom",
        description=ABOUT,
        epilog=f"{format_examples(examples)}\n\n{variables_help()}",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"studyloom {__version__}")
    parser._positionals.title = argparse.SUPPRESS  # each group has its heading
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
        untrusted = [add for add in entry.arguments if isinstance(add, ForUntrusted)]
        for add in (each for each in entry.arguments if each not in untrusted):
            add(command)
        group = command.add_argument_group(UNTRUSTED)  # of which nothing is printed if it is empty
        for add in untrusted:
            add(group)
    return parser


def options_of(command: argparse.ArgumentParser) -> list[str]:
    """Returns the long options of a command."""
    return [name for name in command._option_string_actions if name.startswith("--")]


def format_examples(examples: Sequence[str]) -> str:
    """Formats the examples that a help ends with."""
    head = "example:" if len(examples) == 1 else "examples:"
    return "\n".join([head, *(f"  {example}" for example in examples)])
