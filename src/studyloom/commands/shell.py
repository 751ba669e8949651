"""`studyloom completion` and `studyloom schema`: what shells and programs need to know."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from studyloom.commands.options import Entry, add_json, print_json
from studyloom.errors import ConfigError
from studyloom.files import ASSETS
from studyloom.text import nearest

SHELLS = ("bash", "zsh", "fish")


def add_completion(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom completion`."""
    command.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    add_json(command)


def completion(arguments: argparse.Namespace) -> None:
    """Prints the script by which a shell completes commands and options."""
    script = script_of(arguments.shell, options_of(arguments.parser))
    if arguments.json:
        print_json({"shell": arguments.shell, "script": script})
    else:
        print(script, end="")


def options_of(parser: argparse.ArgumentParser) -> dict[str, tuple[str, list[str]]]:
    """Returns what each command does and which options it has, by its name."""
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    about = {action.dest: action.help or "" for action in commands._choices_actions}
    return {
        name: (
            about.get(name, ""),
            [o for a in command._actions for o in a.option_strings if o.startswith("--")],
        )
        for name, command in commands.choices.items()
    }


def script_of(shell: str, commands: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    """Writes the script of a shell. Arguments that are no options are files and folders.

    Args:
        shell: bash, zsh or fish.
        commands: what each does, and its options.
    """
    return "\n".join({"bash": bash, "zsh": zsh, "fish": fish}[shell](commands)) + "\n"


def bash(commands: Mapping[str, tuple[str, Sequence[str]]]) -> Iterator[str]:
    """Yields the lines of the script of bash."""
    yield "# studyloom completion bash > ~/.local/share/bash-completion/completions/studyloom"
    yield "_studyloom() {"
    yield '  local word="${COMP_WORDS[COMP_CWORD]}" words=""'
    yield '  if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f'    COMPREPLY=($(compgen -W "{" ".join(commands)} --help --version" -- "$word"))'
    yield "    return"
    yield "  fi"
    yield '  case "${COMP_WORDS[1]}" in'
    for name, (_, options) in commands.items():
        yield f'    {name}) words="{" ".join(options)}" ;;'
    yield "  esac"
    yield '  if [ "${word#-}" != "$word" ]; then'
    yield '    COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "  else"
    yield '    COMPREPLY=($(compgen -f -- "$word"))'
    yield "    compopt -o filenames 2>/dev/null"
    yield "  fi"
    yield "}"
    yield "complete -F _studyloom studyloom"


def zsh(commands: Mapping[str, tuple[str, Sequence[str]]]) -> Iterator[str]:
    """Yields the lines of the script of zsh."""
    yield "#compdef studyloom"
    yield "# studyloom completion zsh > a folder of $fpath, as _studyloom"
    yield "_studyloom() {"
    yield "  local -a commands options"
    yield "  commands=("
    for name, (about, _) in commands.items():
        yield f"    {quoted(f'{name}:{about}')}"
    yield "  )"
    yield "  if (( CURRENT == 2 )); then"
    yield "    _describe command commands"
    yield "    return"
    yield "  fi"
    yield "  case $words[2] in"
    for name, (_, options) in commands.items():
        yield f"    {name}) options=({' '.join(options)}) ;;"
    yield "  esac"
    yield "  if [[ $PREFIX == -* ]]; then"
    yield "    compadd -- $options"
    yield "  else"
    yield "    _files"
    yield "  fi"
    yield "}"
    yield 'if [ "$funcstack[1]" = "_studyloom" ]; then _studyloom "$@"; '
    yield "else compdef _studyloom studyloom; fi"


def fish(commands: Mapping[str, tuple[str, Sequence[str]]]) -> Iterator[str]:
    """Yields the lines of the script of fish."""
    yield "# studyloom completion fish > ~/.config/fish/completions/studyloom.fish"
    for name, (about, options) in commands.items():
        first = f"complete -c studyloom -n __fish_use_subcommand -f -a {name}"
        yield f"{first} -d {quoted(about)}"
        for option in options:
            long = option.removeprefix("--")
            yield f"complete -c studyloom -n '__fish_seen_subcommand_from {name}' -l {long}"


def quoted(text: str) -> str:
    """Quotes a text for zsh and fish, neither of which reads anything but ' and \\ in it."""
    return "'" + text.replace("'", "’") + "'"


def add_schema(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom schema`."""
    about = "a command, or event, heartbeat, notice, errors (default: all of them)"
    command.add_argument("name", metavar="NAME", nargs="?", help=about)
    command.add_argument("--json", action="store_true", help="the same; a schema is JSON")


def schema(arguments: argparse.Namespace) -> None:
    """Prints the JSON Schema of what a command prints with `--json`."""
    schemas = read_schemas()
    if arguments.name is not None and arguments.name not in schemas:
        known = f"{', '.join(schemas)}{nearest(arguments.name, [*schemas])}"
        raise ConfigError([f"{arguments.name}: no such schema; there are {known}"])
    chosen = schemas if arguments.name is None else schemas[arguments.name]
    print(json.dumps(chosen, indent=1, ensure_ascii=False))


def read_schemas() -> dict[str, Any]:
    """Reads the JSON Schemas by name."""
    schemas: dict[str, Any] = json.loads((ASSETS / "schemas.json").read_text(encoding="utf-8"))
    return schemas


COMMANDS = (
    Entry(
        "completion",
        "the script by which a shell completes commands",
        completion,
        add_completion,
        "Prints the script by which bash, zsh or fish completes commands, options and files. A "
        "page has Hydra's own, which completes overrides: its --help says how.",
        (
            'eval "$(studyloom completion bash)"',
            "studyloom completion fish > ~/.config/fish/completions/studyloom.fish",
        ),
    ),
    Entry(
        "schema",
        "the JSON Schema of what --json and --events write",
        schema,
        add_schema,
        "Prints the JSON Schema of what a command prints with --json, or of the lines of --events "
        "FILE.",
        ("studyloom schema status", "studyloom schema event"),
    ),
)
