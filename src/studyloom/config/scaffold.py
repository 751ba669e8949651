"""A study of one's own to begin with: the files that `studyloom new` writes, which run as they are."""

import importlib.util
import keyword
import sys
from pathlib import Path

from studyloom.config.registration import GROUPS
from studyloom.errors import ScaffoldError
from studyloom.files import ASSETS

TEMPLATES = ASSETS / "new"
PLACEHOLDER = "NAME"
# What is written, from which template, and what it is.
FILES = {
    "studies/NAME.py": ("page", "the page: the network and the data, to be replaced by yours"),
    "conf/NAME.yaml": ("study", "the study: what it starts from, and how much it may try"),
    "conf/space/NAME.yaml": ("space", "what is searched"),
    "conf/model/NAME.yaml": ("model", "the network's arguments"),
    "conf/data/NAME.yaml": ("data", "where the data comes from, and how much is held out"),
    "tests/test_NAME.py": ("test", "python -m pytest tests/test_NAME.py"),
}
SHARED = {
    "studies/__init__.py": "studies"
}  # of all studies of a project: written where there is none


def write_study(name: str, folder: Path) -> dict[Path, str]:
    """Writes the files of a study into a folder, made if need be, and says what each is.

    Raises:
        ScaffoldError: all that stands against it; nothing is written then.
        OSError: the folder cannot be written to.
    """
    if problems := [*_check_name(name), *_check_place(name, folder)]:
        raise ScaffoldError("\n".join(problems))
    written = {}
    for target, (template, about) in FILES.items():
        path = folder / target.replace(PLACEHOLDER, name)
        _write(path, template, name)
        written[path] = about.replace(PLACEHOLDER, name)
    for target, template in SHARED.items():
        if not (folder / target).exists():
            _write(folder / target, template, name)
    return written


def _write(path: Path, template: str, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
    with path.open("x", encoding="utf-8") as file:  # another command may have been quicker
        file.write(text.replace(PLACEHOLDER, name))


def _check_name(name: str) -> list[str]:
    if not (name.isascii() and name.isidentifier() and name == name.lower()) or name.startswith(
        "_"
    ):
        return [
            f"{name}: is no name for a module; write small letters, digits and _, a letter first"
        ]
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return [f"{name}: is a word of Python's own; choose another name"]
    hidden = [path.relative_to(GROUPS) for path in GROUPS.rglob(f"{name}.yaml")]
    if hidden:
        return [
            f"{name}: studyloom has {', '.join(map(str, hidden))}, which it would hide; choose another name"
        ]
    if name in sys.stdlib_module_names or _is_installed(name):
        return [
            f"{name}: is a module that is installed here, which it would hide; choose another name"
        ]
    return []


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _check_place(name: str, folder: Path) -> list[str]:
    problems = [
        f"{path}: is there already, and is not written over"
        for path in (folder / target.replace(PLACEHOLDER, name) for target in FILES)
        if path.exists()
    ]
    shared = folder / "studies" / "__init__.py"
    if shared.is_file() and "CONF" not in shared.read_text(encoding="utf-8", errors="replace"):
        problems.append(
            f"{shared}: has no CONF, the folder of the configs, which the page takes from it"
        )
    return problems
