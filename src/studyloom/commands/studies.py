"""`studyloom new` and `studyloom run`: a study is written, and run by its file."""

import argparse
import json
import os
import shlex
import sys
import textwrap
from pathlib import Path

from studyloom.commands.options import WIDEST, Entry, add_json, print_json
from studyloom.files import ASSETS


def add_new(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom new`, and a line for each kind of training to its help."""
    kinds = json.loads((ASSETS / "new" / "kinds.json").read_text(encoding="utf-8"))
    about = "of the study and its page, as in python -m studies.NAME"
    command.add_argument("name", metavar="NAME", help=about)
    about = "where to write it (default: the current folder)"
    command.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?", default=Path(), help=about
    )
    about = "how it is trained; one of the kinds below (default: tensors)"
    command.add_argument("--kind", metavar="KIND", choices=kinds, default="tensors", help=about)
    add_json(command)
    width = max(map(len, kinds))
    lines = [
        textwrap.fill(
            f"{name:{width}}  {kind['about']}",
            WIDEST - 2,
            initial_indent="  ",
            subsequent_indent=" " * (width + 4),
        )
        for name, kind in kinds.items()
    ]
    command.epilog = "\n".join(["kinds:", *lines, "", command.epilog or ""])


def new(arguments: argparse.Namespace) -> None:
    """Writes a new study and prints its files."""
    from studyloom.config.scaffold import write_study

    files = write_study(arguments.name, arguments.folder, arguments.kind)
    folder = arguments.folder
    begin = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    following = f"{begin}python -m studies.{arguments.name}"
    if arguments.json:
        print_json(
            {"files": {str(path): about for path, about in files.items()}, "next": following}
        )
        return
    width = max(len(str(path)) for path in files)
    for path, about in files.items():
        print(f"{path!s:{width}}  {about}")
    print(f"\nnext  {following}")


def add_run(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom run`."""
    about = "such as studies/mine.py or conf/mine.yaml; your own, since it is run as code is"
    command.add_argument("source", metavar="FILE", help=about)
    about = "of Hydra, such as study.trials=50; or --dry-run, --json, --events FILE, notify=URL"
    command.add_argument("overrides", metavar="OVERRIDE", nargs=argparse.REMAINDER, help=about)


def run(arguments: argparse.Namespace) -> None:
    """Runs a study, as `python -m studies.NAME` does; ends the process."""
    from studyloom.commands.command import run_source

    sys.path.insert(0, os.getcwd())  # as `python -m` does
    run_source(arguments.source, arguments.overrides)


COMMANDS = (
    Entry(
        "new",
        "write a study of your own that runs as it is",
        new,
        add_new,
        "Writes a study of your own: a page, its configs, and a test. It runs as it is, and names "
        "what to put in the place of the example's data and network.",
        ("studyloom new mine", "studyloom new mine ~/project --kind lightning"),
    ),
    Entry(
        "run",
        "run a study by its page or its primary config",
        run,
        add_run,
        "Runs a study, or resumes it, as `python -m studies.NAME` does. --events FILE writes a "
        "line of JSON for each thing that happens, --json one object at the end, and notify=… "
        "sends a notice at the end, at a halt and at a new best: a URL of apprise, or a command."
        "\n\nThe exit code is 0 if the study has its answer, 1 if it could not finish, 2 for a "
        "mistake, 3 after studyloom stop, and 128 and more after a signal; the same command goes "
        "on.",
        (
            "studyloom run studies/mine.py study.trials=50 launcher.workers=4",
            "studyloom run conf/mine.yaml --dry-run",
        ),
    ),
)
