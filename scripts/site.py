"""Builds the documentation site: pip install -e '.[docs]'

    python scripts/site.py                   # writes build/site/html; a broken link is an error
    python scripts/site.py --serve           # and shows it on http://localhost:8000

The sources are in .github/site. They are copied to build/site/docs, together with documents that
are generated from the code (keys, commands, Python API, environment variables, JSON documents) and
those that the repository has elsewhere (the example studies, the changelog).
"""

import argparse
import contextlib
import http.server
import importlib.util
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints, is_typeddict

import studyloom
import studyloom.data
from studyloom import environment
from studyloom.cli import main as studyloom_command
from studyloom.commands.documents import DOCUMENTS
from studyloom.commands.parser import make_parser

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / ".github" / "site"
DOCS = ".github/site/docs"
BUILD = ROOT / "build" / "site"
# Documents of the site that the repository has elsewhere, for GitHub.
ELSEWHERE = {
    "studies/README.md": "examples.md",
    ".github/SECURITY.md": "security.md",
    ".github/CHANGELOG.md": "changelog.md",
}
HOME = {"README.md": "index.md"}  # a link to it leads to the home page, which has other words
OUTPUTS = SOURCES / "outputs"  # what commands print, by `scripts/screenshots.py site RUNS --write`
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)|(?<=src=)\"([^\"]+)\"")


def keys_page() -> str:
    """The configuration keys, as `studyloom keys` prints them."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        studyloom_command(["keys"])
    return printed.getvalue()


def commands_page() -> str:
    """The help of each command, from the parser."""
    parser = make_parser()
    texts = [("studyloom", parser)]
    texts += [(f"studyloom {name}", command) for name, command in parser.commands.items()]
    return "\n".join(f"## {name}\n\n{describe_command(name, each)}" for name, each in texts)


def describe_command(name: str, command: argparse.ArgumentParser) -> str:
    """Returns the help of a command, and what it prints for a study of digits if that is stored."""
    text = f"```text\n{command.format_help()}```\n"
    output = OUTPUTS / f"{name.removeprefix('studyloom ')}.txt"
    if output.exists():
        text += f"\nFor example:\n\n```text\n{output.read_text()}```\n"
    return text


def why_page() -> str:
    """The section of the README that compares studyloom with Optuna, for the home page."""
    text = moved("README.md")
    _, _, rest = text.partition("\n## Why not plain Optuna?\n")
    section, _, _ = rest.partition("\n## ")
    return section.strip()


def study_options_page() -> str:
    """The options of a study module, which Hydra parses."""
    from studyloom.config.overrides import OPTIONS

    return f"```text\n{OPTIONS.strip()}\n```\n"


def python_page() -> str:
    """A table of all public names with their first sentence, and a link to the page of each."""
    lines = []
    for module in (studyloom, studyloom.data):
        lines += [f"## {module.__name__}", "", "| name | |", "|---|---|"]
        for name in public_names(module):
            docstring = inspect.getdoc(member(module, name)) or ""
            summary = " ".join(docstring.partition("\n\n")[0].split()).replace("|", "\\|")
            link = f"[`{name}`]({python_page_of(module, name).removeprefix('reference/')})"
            lines.append(f"| {link} | {summary} |")
        lines.append("")
    return "\n".join(lines)


def public_names(module: ModuleType) -> list[str]:
    """Returns the public names of a module: `search`, functions, classes, errors, modules."""
    names = [name for name in module.__all__ if name != "__version__"]
    return sorted(names, key=lambda name: (name != "search", kind_of(module, name)))


def python_page_of(module: ModuleType, name: str) -> str:
    """Returns the place on the site of the page of a public name."""
    folder = "reference/python"
    if module is studyloom.data:
        folder += "/data"
    return f"{folder}/{name}.md"


def write_python_pages(docs: Path) -> str:
    """Writes a page for each public name, and returns their entries in the navigation."""
    entries = ['{ "All names" = "reference/python.md" }']
    for module in (studyloom, studyloom.data):
        for name in public_names(module):
            place = python_page_of(module, name)
            path = docs / place
            path.parent.mkdir(parents=True, exist_ok=True)
            title = f"{module.__name__}.{name}"
            path.write_text(f"# {title}\n\n{directive(module, name)}")
            label = title.removeprefix("studyloom.")
            entries.append(f'{{ "{label}" = "{place}" }}')
    return ", ".join(entries)


def kind_of(module: ModuleType, name: str) -> int:
    """Returns the place of the kind of a name: function, class, error, module."""
    value = member(module, name)
    if inspect.ismodule(value):
        return 3
    if not inspect.isclass(value):
        return 0
    if issubclass(value, BaseException):
        return 2
    return 1


def member(module: ModuleType, name: str) -> object:
    """Returns what a public name of a module stands for, also a submodule."""
    return getattr(module, name, None) or importlib.import_module(f"{module.__name__}.{name}")


def directive(module: ModuleType, name: str) -> str:
    """Returns the directive for a name; for a submodule only its own docstring."""
    value = member(module, name)
    path = f"{module.__name__}.{name}"
    options = {"show_root_heading": "false", "heading_level": "2"}
    if inspect.ismodule(value):
        options["members"] = "false"
    elif importlib.util.find_spec(path) is not None:  # a function named as its module
        path = f"{path}.{name}"
    listed = "".join(f"      {key}: {value}\n" for key, value in options.items())
    return f"::: {path}\n    options:\n{listed}"


def environment_page() -> str:
    """The table of environment variables."""
    rows = [f"| `{each.name}` | {each.meaning} |" for each in environment.PUBLIC]
    return "\n".join(["| variable | meaning |", "|---|---|", *rows, ""])


def documents_page() -> str:
    """The JSON documents with the fields of each, and those of the objects in them."""
    commands: dict[Any, list[str]] = {}  # by the class of their document
    for name, kind in DOCUMENTS.items():
        commands.setdefault(kind, []).append(name)
    fields: dict[type, list[str]] = {}  # by the class of the object that they hold
    rows = []
    for kind, names in commands.items():
        (document,) = classes_in(kind)
        rows.append(fields_row(names, document))
        note_objects(document, fields)
    objects = [fields_row(names, kind) for kind, names in fields.items()]
    line = "|---|---|---|\n"
    documents_table = f"| document | fields | meaning |\n{line}{''.join(rows)}"
    objects_table = f"| object | fields | meaning |\n{line}{''.join(objects)}"
    return f"{documents_table}\n{objects_table}"


def fields_row(names: Sequence[str], kind: type) -> str:
    """Returns the row of a document or object; a field that may be missing has a `?`."""
    optional = getattr(kind, "__optional_keys__", ())
    fields = [f"`{name}`{'?' if name in optional else ''}" for name in get_type_hints(kind)]
    meaning = " ".join((kind.__doc__ or "").split())
    for heading in ("Args: ", "Attributes: "):
        meaning = meaning.replace(heading, "")
    quoted = " ".join(f"`{name}`" for name in names)
    return f"| {quoted} | {' '.join(fields) or 'any'} | {meaning} |\n"


def note_objects(kind: type, fields: dict[type, list[str]]) -> None:
    """Notes which fields of a document hold objects, at any depth, by the class of the object."""
    for name, value in get_type_hints(kind).items():
        for inner in classes_in(value):
            names = fields.setdefault(inner, [])
            if name not in names:
                names.append(name)
            note_objects(inner, fields)


def classes_in(kind: Any) -> Iterator[type]:
    """Yields the classes with fields that a type has at any depth: `list[BestTrial] | None`."""
    if is_typeddict(kind) or is_dataclass(kind):
        yield kind
    for argument in get_args(kind):
        yield from classes_in(argument)


GENERATED = {
    "keys": keys_page,
    "commands": commands_page,
    "study-options": study_options_page,
    "python": python_page,
    "environment": environment_page,
    "why": why_page,
    "documents": documents_page,
}
MARK = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
PYTHON_ENTRY = '{ "Python API" = "reference/python.md" }'  # in the navigation


def generated(text: str) -> str:
    """Replaces each mark of a generated part by that part."""
    return MARK.sub(lambda match: GENERATED[match[1]](), text)


def place_of(name: str) -> str | None:
    """Returns the place on the site of a file of the repository; None if it has none."""
    inside = name.startswith(f"{DOCS}/")
    if inside:
        return name.removeprefix(f"{DOCS}/")
    return (ELSEWHERE | HOME).get(name)


def moved(source: str) -> str:
    """Returns a document with its links rewritten from the repository, as on GitHub, to the site.

    Images are copied. A link to a file that is not on the site becomes its text.
    """
    folder = os.path.dirname(place_of(source) or "") or "."

    def rewrite(match: re.Match[str]) -> str:
        words, link, image = match.groups()
        target, _, anchor = (link or image).partition("#")
        if "://" in target or not target:
            return match[0]
        path = ((ROOT / source).parent / target).resolve()
        if image:
            (BUILD / "docs" / "images").mkdir(exist_ok=True)
            shutil.copy(path, BUILD / "docs" / "images")
            return f'"images/{path.name}" loading="lazy"'
        place = place_of(str(path.relative_to(ROOT)))
        if place is None:
            return words
        return f"[{words}]({os.path.relpath(place, folder)}{anchor and f'#{anchor}'})"

    return LINK.sub(rewrite, (ROOT / source).read_text())


def copy_sources() -> None:
    """Fills build/site with the sources, the generated parts and further documents."""
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(SOURCES, BUILD)
    pages = [str(path.relative_to(ROOT)) for path in (SOURCES / "docs").rglob("*.md")]
    for source in (*pages, *ELSEWHERE):
        (BUILD / "docs" / str(place_of(source))).write_text(generated(moved(source)))
    config = BUILD / "zensical.toml"
    entries = write_python_pages(BUILD / "docs")
    text = config.read_text().replace(PYTHON_ENTRY, f'{{ "Python API" = [{entries}] }}', 1)
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    if "Repository" in urls:
        line = f'repo_url = "{urls["Repository"]}"'
        text = text.replace("[project]", f"[project]\n{line}", 1)
    config.write_text(text)


def main() -> int:
    """Builds the site, and returns the exit code of Zensical."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help="show the site on localhost:8000")
    arguments = parser.parse_args()
    os.environ["COLUMNS"] = "80"  # of the helps
    copy_sources()
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    code = subprocess.run(command, cwd=BUILD).returncode
    if code == 0:
        print(f"{BUILD / 'html' / 'index.html'}")
    if code == 0 and arguments.serve:
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(BUILD / "html"))
        http.server.ThreadingHTTPServer(("127.0.0.1", 8000), handler).serve_forever()
    return code


if __name__ == "__main__":
    sys.exit(main())
