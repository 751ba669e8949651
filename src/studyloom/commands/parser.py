"""The parser of the `studyloom` command line: all commands, in the groups of `--help`."""

import argparse
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from studyloom._version import __version__
from studyloom.commands import looking, networks, studies, tuning
from studyloom.commands.options import Entry, ForUntrusted
from studyloom.environment import variables_help
from studyloom.text import nearest, printable

# The commands by the heading of `--help` that lists them.
GROUPS: Mapping[str, tuple[Entry, ...]] = {
    "create and run: write a study, run it, control it, propose configurations": (
        *(studies.new, studies.run, tuning.tune, looking.pause, looking.resume, looking.stop),
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
MAX_WIDTH = 80  # columns of a help, however wide the terminal is
MARGIN = 2  # columns at the right, as argparse leaves them
ABOUT = """Hyperparameter search for PyTorch: run, monitor and compare studies.

A study is run by its module: python -m studies.mnist"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks, fits 80 columns, and lists commands by group."""

    def __init__(self, prog: str) -> None:
        width = min(MAX_WIDTH, shutil.get_terminal_size().columns) - MARGIN
        super().__init__(prog, max_help_position=26, width=width)

    def _format_action(self, action: argparse.Action) -> str:
        """Formats an argument as argparse does, and the commands below the heading of each group.

        argparse calls it for each argument, and takes all commands together for one argument.
        """
        if not isinstance(action, argparse._SubParsersAction):
            return super()._format_action(action)
        lines_by_command = {}
        for command in action._choices_actions:
            lines_by_command[command.dest] = super()._format_action(command)
        groups = []
        for heading, entries in GROUPS.items():
            lines = [lines_by_command[entry.act.__name__] for entry in entries]
            groups.append(f"{heading}\n{''.join(lines)}")
        return "\n".join(groups)


class Parser(argparse.ArgumentParser):
    """Suggests the nearest command or option for a misspelled one."""

    commands: Mapping[str, argparse.ArgumentParser]  # by name; of the top-level parser only

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parses arguments; settings of `compress` may also follow an option.

        In Python 3.11, argparse does not assign `margin=0.01` of `compress RUN_DIR --json
        margin=0.01` to the list `settings`, but returns it as unknown.
        """
        arguments, unknown = self.parse_known_args(args, namespace)
        if "settings" in arguments:
            settings = [argument for argument in unknown if not argument.startswith("-")]
            arguments.settings = arguments.settings + settings
            unknown = [argument for argument in unknown if argument.startswith("-")]
        if unknown:
            option, _, _ = unknown[0].partition("=")
            command = arguments.act.__name__
            hint = self._hint_at_option(option, command)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return arguments

    def _hint_at_option(self, option: str, used_command: str) -> str:
        """Returns which commands have an option, or else an option of this command that is similar.

        Args:
            option: the option that the command does not have.
            used_command: the command.

        Returns:
            The end of an error; "" if there is no such option.
        """
        commands_with_option = []
        for name, command in self.commands.items():
            if option in options_of(command):
                commands_with_option.append(name)
        if commands_with_option:
            return f"; {option} is an option of {', '.join(commands_with_option)}"
        if option.startswith("-"):
            return nearest(option, options_of(self.commands[used_command]))
        return ""

    def error(self, message: str) -> NoReturn:
        """Prints an error on one line, and ends the process with exit code 2."""
        # argparse's error "argument COMMAND: invalid choice: 'x' (choose from …)" is replaced.
        match = re.match(r"argument COMMAND: invalid choice: '(.*?)' \(", message)
        if match:
            unknown_command = match[1]
            names = ", ".join(self.commands)
            hint = nearest(unknown_command, [*self.commands])
            message = f"{unknown_command}: no such command; there are {names}{hint}"
        super().error(printable(message))


def make_parser() -> Parser:
    """Makes the parser of the command line.

    The parsed arguments have the function of the command as `act`, and this parser as `parser`.
    """
    examples = ("studyloom new mine", "studyloom status runs/mine --watch")
    parser = Parser(
        prog="studyloom",
        description=ABOUT,
        epilog=f"{format_examples(examples)}\n\n{variables_help()}",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"studyloom {__version__}")
    # argparse would print "positional arguments:" above the commands, whose groups have headings.
    parser._positionals.title = argparse.SUPPRESS
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    parser.commands = commands.choices
    for entry in COMMANDS:
        docstring = inspect.getdoc(entry.act) or entry.about
        paragraphs = []
        for paragraph in docstring.split("\n\n"):
            paragraphs.append(textwrap.fill(paragraph, MAX_WIDTH - MARGIN))
        command = commands.add_parser(
            entry.act.__name__,
            help=entry.about,
            description="\n\n".join(paragraphs),
            epilog=format_examples(entry.examples),
            formatter_class=HelpFormatter,
            # Options of a script that `tune` runs may begin like its own.
            allow_abbrev=entry is not tuning.tune,
        )
        command.set_defaults(act=entry.act, parser=parser)
        add_arguments(command, entry)
    return parser


def add_arguments(command: argparse.ArgumentParser, entry: Entry) -> None:
    """Adds the arguments of a command to its parser; the help shows options of trust last."""
    for add_argument in entry.arguments:
        if not isinstance(add_argument, ForUntrusted):
            add_argument(command)
    group = command.add_argument_group(UNTRUSTED)  # the help leaves out an empty group
    for add_argument in entry.arguments:
        if isinstance(add_argument, ForUntrusted):
            add_argument(group)


def options_of(command: argparse.ArgumentParser) -> list[str]:
    """Returns the long options of a command."""
    return [name for name in command._option_string_actions if name.startswith("--")]


def format_examples(examples: Sequence[str]) -> str:
    """Formats the examples that a help ends with."""
    heading = "examples:"
    if len(examples) == 1:
        heading = "example:"
    indented_examples = [f"  {example}" for example in examples]
    return "\n".join([heading, *indented_examples])
