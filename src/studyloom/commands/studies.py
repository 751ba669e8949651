"""`studyloom new`, `run`, `keys`, `completion`: writing, running and typing studies."""

import argparse
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studyloom.commands.options import JSON, argument, command, print_json
from studyloom.files import ASSETS

if TYPE_CHECKING:
    from studyloom.worker.task import Command

SHELLS = ("bash", "zsh", "fish")
KIND_WIDTH = 76  # columns of the text about a kind in the help


def add_kind(parser: argparse.ArgumentParser) -> None:
    """Adds `--kind`, and a line for each kind of training to the help."""
    kinds = json.loads((ASSETS / "new" / "kinds.json").read_text(encoding="utf-8"))
    about = "how it is trained; one of the kinds below (default: tensors)"
    parser.add_argument("--kind", metavar="KIND", choices=kinds, default="tensors", help=about)
    name_width = max(len(name) for name in kinds)
    descriptions = []
    for name, kind in kinds.items():
        description = f"{name:{name_width}}  {kind['about']}"
        indent = " " * (name_width + 2)  # further lines begin below the text
        descriptions.append(textwrap.fill(description, KIND_WIDTH, subsequent_indent=indent))
    list_of_kinds = textwrap.indent("\n".join(descriptions), "  ")
    parser.epilog = f"kinds:\n{list_of_kinds}\n\n{parser.epilog or ''}"


@command(
    "create a study from a template that runs as written",
    argument("name", "NAME", "the name of the study and its module, as in python -m studies.NAME"),
    argument(
        *("folder", "FOLDER"),
        "where to write it (default: the current folder)",
        type=Path,
        nargs="?",
        default=Path(),
    ),
    *(add_kind, JSON),
    examples=["studyloom new mine", "studyloom new mine ~/project --kind lightning"],
)
def new(arguments: argparse.Namespace) -> None:
    """Writes a new study: a module, its configs, and a test. It runs unchanged, and its comments
    say what to replace with your data and network.
    """
    from studyloom.config.scaffold import write_study

    files = write_study(arguments.name, arguments.folder, arguments.kind)
    folder = arguments.folder
    next_command = f"python -m studies.{arguments.name}"
    if folder != Path():
        next_command = f"cd {shlex.quote(str(folder))} && {next_command}"
    if arguments.json:
        abouts = {str(path): about for path, about in files.items()}
        print_json({"files": abouts, "next": next_command})
        return
    width = max(len(str(path)) for path in files)
    for path, about in files.items():
        print(f"{path!s:{width}}  {about}")
    print(f"\nnext  {next_command}")


@command(
    "run a study by its module or primary config",
    argument(
        *("source", "FILE"),
        "your study module or config, which is run as code, such as studies/mine.py or "
        "conf/mine.yaml; or one of studyloom's, such as mnist",
    ),
    argument(
        *("overrides", "OVERRIDE"),
        "Hydra's, such as study.trials=50; or --dry-run, --json, --events FILE, notify=URL",
        nargs=argparse.REMAINDER,
    ),
    examples=[
        "studyloom run mnist",
        "studyloom run studies/mine.py study.trials=50 launcher.workers=4",
        "studyloom run conf/mine.yaml --dry-run",
    ],
)
def run(arguments: argparse.Namespace) -> None:
    """Runs or resumes a study, as `python -m studies.NAME` does. --events FILE writes a line of
    JSON for each event, --json one object at the end, and notify=URL (of apprise) or
    notify=COMMAND sends a notice at the end, if the study aborts, and for each new best trial.

    The exit code is 0 if the study has its result, 1 if it could not finish, 2 for an error in
    the command or config, 3 after studyloom stop, and 128 or more after a signal. Run the same
    command again to resume.
    """
    run_source(arguments.source, arguments.overrides)


def make_command(program: tuple[str, ...], overrides: tuple[str, ...]) -> "Command":
    """Makes the command of a study that its user types as `studyloom run`."""
    from studyloom.worker.task import Command

    return Command(program, overrides)


def run_source(
    source: str,
    overrides: Sequence[str],
    make_command: Callable[[tuple[str, ...], tuple[str, ...]], "Command"] = make_command,
) -> None:
    """Runs the study of a module or primary config in this process, which is its command.

    Args:
        overrides: Hydra's, or options such as --dry-run.
        make_command: makes the command from the program of a worker and its overrides; it knows
            what the user types to run the study again.
    """
    from studyloom.config.invocation import find_invocation, module_path
    from studyloom.config.main import hydra_main

    sys.path.insert(0, os.getcwd())  # as `python -m` does
    invocation = find_invocation(source)
    sys.argv[1:] = overrides

    # Hydra calls it with the composed config, and shows the docstring that is set below.
    def run_study(cfg: Any) -> None:
        from studyloom.processes import importing_torch

        # The import takes seconds; `starting` is printed before it.
        with importing_torch():
            from studyloom.commands.run_study import command_process
            from studyloom.config.study_config import StudyConfig

        # `hydra_main` has removed its options from the arguments: only overrides are left.
        program = ("-m", "studyloom", "run", source)
        command = make_command(program, tuple(sys.argv[1:]))
        command_process(StudyConfig.of(cfg), command).run()

    run_study.__doc__ = f"Runs the study {source}: studyloom run {source} [OVERRIDES]"
    with module_path(invocation.root):
        hydra_main(str(invocation.config_dir), invocation.config_name)(run_study)()


@command(
    "list the keys of a config, with their defaults",
    JSON,
    examples=["studyloom keys", "studyloom keys --json"],
)
def keys(arguments: argparse.Namespace) -> None:
    """Prints the keys of studyloom's own sections as a Markdown table, with their defaults and
    meanings.
    """
    from studyloom.config.schema import describe_keys

    rows = []
    for key, default, meaning in describe_keys():
        if key != "train.loss":  # the group `loss` fills it
            rows.append({"key": key, "default": default, "meaning": meaning})
    if arguments.json:
        print_json(rows)
        return
    print("| key | default | meaning |\n|---|---|---|")
    for row in rows:
        default = ""
        if row["default"]:
            default = f"`{row['default']}`"
        print(f"| `{row['key']}` | {default} | {row['meaning']} |")


@command(
    "print a completion script for a shell",
    argument("shell", "SHELL", ", ".join(SHELLS), choices=SHELLS),
    JSON,
    examples=[
        'eval "$(studyloom completion bash)"',
        "studyloom completion fish > ~/.config/fish/completions/studyloom.fish",
    ],
)
def completion(arguments: argparse.Namespace) -> None:
    """Prints a script with which bash, zsh or fish completes commands, options and files. For the
    overrides of a study module, use Hydra's completion: see the --help of the module.
    """
    import shtab

    for parser in arguments.parser.commands.values():
        for action in parser._actions:
            # A source or program may be a file.
            takes_file = action.type is Path or action.dest in ("source", "program")
            if takes_file:
                action.complete = shtab.FILE
    script = shtab.complete(arguments.parser, arguments.shell)
    if arguments.json:
        print_json({"shell": arguments.shell, "script": script})
    else:
        print(script)
