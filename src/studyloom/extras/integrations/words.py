"""The words of a command, with places such as `{lr}` for values.

It is split into words before the values are put in, so that each value stays within its word,
whatever it is, and no shell reads it.
"""

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from studyloom.question.sources import CODE, digest_of_source
from studyloom.space.tree import Group, Space
from studyloom.text import as_yaml, nearest

PLACE = re.compile(r"(?P<text>\{\{[A-Za-z_][\w.]*\}\})|\{(?P<name>[A-Za-z_][\w.]*)\}")
# What may be named in a command and decide a value. Others, such as .json, may be its results.
SOURCES = {".py", ".sh", ".yaml", ".yml", ".toml"}
LARGEST = 2**20  # bytes of a source
INTERPRETERS = re.compile(r"(python|pypy|bash|sh|Rscript|julia)[\d.]*")


def names_in(run: str) -> list[str]:
    """Returns the names of the places in a command, in their order."""
    return [match["name"] for match in PLACE.finditer(run) if match["name"]]


def fill(run: str, values: Mapping[str, Any]) -> list[str]:
    """Returns the words of a command with values in their places, as YAML writes them.

    Args:
        run: the command; `{{lr}}` stands for the text `{lr}`.
        values: by name.
    """

    def put(match: re.Match[str]) -> str:
        return match["text"][1:-1] if match["text"] else as_yaml(values[match["name"]])

    return [PLACE.sub(put, word) for word in shlex.split(run)]


def word_mistakes(run: Any, known: Sequence[str]) -> Iterator[str]:
    """Finds what is wrong with a command before it is run.

    Args:
        run: the command.
        known: the names that may have a place.
    """
    if not isinstance(run, str) or not run.strip():
        yield f"objective.run must be a command, such as 'python main.py --lr {{lr}}'; got {run!r}"
        return
    for name in dict.fromkeys(names_in(run)):
        if name not in known:
            yield (
                f"objective.run: nothing is called {name}, and {{{name}}} stands there; there are "
                f"{', '.join(known)}; write {{{{{name}}}}} for the text{nearest(name, known)}"
            )
    try:
        words = shlex.split(run)
    except ValueError as error:
        yield f"objective.run: {error} in {run}"
        return
    program, script = words[0], words[1] if len(words) > 1 else "-"
    if not PLACE.search(program) and shutil.which(program) is None:
        where = "cannot be executed" if Path(program).is_file() else "is not found"
        yield f"objective.run: the program {program} {where}; name one on PATH, or its path"
    elif INTERPRETERS.fullmatch(Path(program).name) and not script.startswith("-"):
        folder = Path(script).parent
        if not PLACE.search(script) and not Path(script).exists():
            beside = [str(path) for path in folder.glob("*")]
            yield (
                f"objective.run: there is no file {script} in {Path.cwd()}{nearest(script, beside)}"
            )


def space_mistakes(run: Any, space: Space) -> Iterator[str]:
    """Finds what a space searches and a command is not told."""
    named = names_in(str(run))
    for node in (*space.groups(), *(leaf for _, leaves in space.branches() for leaf in leaves)):
        below = node.key.removeprefix("params.")
        if below == node.key or isinstance(node, Group):
            yield (
                f"space.{node.name}: a command is told what lies below params; write "
                f"space.params.{below}, and a default in params.{below}"
            )
        elif below not in named:
            yield (
                f"space.{node.name}: it would change nothing, since objective.run has no place for "
                f"it; write {{{below}}} there, or take it out of the space"
            )


def source_digests(run: str) -> dict[str, str]:
    """Returns the digests of the source files of the project that a command names.

    Also that of `python -m package.module`. Files outside the working directory are others' code.
    """
    words = [word for word in shlex.split(run) if not PLACE.search(word)]
    named = [Path(word.rpartition("=")[2]) for word in words]
    for option, module in pairwise(words):
        if option == "-m":
            path = Path(*module.split("."))
            named += [path.with_suffix(".py"), path / "__main__.py"]
    here, digests = Path.cwd().resolve(), dict[str, str]()
    for path in named:
        real = path.resolve()
        is_source = path.suffix in SOURCES or path == named[0]
        if is_source and real.is_relative_to(here) and real.is_file():
            content = real.read_bytes() if real.stat().st_size <= LARGEST else b""
            digests[f"{CODE}{real.relative_to(here)}"] = digest_of_source(content)
    return digests
