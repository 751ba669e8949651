"""`studyloom new`: writes the files of a new study, which runs as it is."""

import importlib.util
import keyword
import sys
from pathlib import Path

from studyloom.config.registration import GROUPS
from studyloom.errors import ScaffoldError
from studyloom.files import ASSETS

TEMPLATES = ASSETS / "new"
PLACEHOLDER = "NAME"
# For each file: its template, and a description for the user.
FILES = {
    "studies/NAME.py": ("page", "the page: replace its network and data with yours"),
    "conf/NAME.yaml": ("study", "the study: its starting point and its budget"),
    "conf/space/NAME.yaml": ("space", "the search space"),
    "conf/model/NAME.yaml": ("model", "the network's arguments"),
    "conf/data/NAME.yaml": ("data", "the data, and how much of it is held out"),
    "tests/test_NAME.py": ("test", "python -m pytest tests/test_NAME.py"),
}
# The files that the studies of a project share, with their templates; written if missing.
SHARED = {"studies/__init__.py": "studies"}


def write_study(name: str, folder: Path) -> dict[Path, str]:
    """Writes the files of a new study.

    Args:
        name: of the study and its modules: lower-case letters, digits and _.
        folder: the project; created if it does not exist.

    Returns:
        A description of each file, by path.

    Raises:
        ScaffoldError: every reason why it cannot be written; nothing is written then.
        OSError: the folder cannot be written to.
    """
    if problems := [*_check_name(name), *_check_folder(name, folder)]:
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
    with path.open("x", encoding="utf-8") as file:  # "x": another command may be quicker
        file.write(text.replace(PLACEHOLDER, name))


def _check_name(name: str) -> list[str]:
    is_module_name = name.isascii() and name.isidentifier() and name == name.lower()
    if not is_module_name or name.startswith("_"):
        return [
            "the name of a study must consist of lower-case letters, digits and _, and begin with "
            f"a letter; got {name!r}"
        ]
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return [f"the name of a study must not be a keyword of Python; got {name!r}"]
    hidden = [path.relative_to(GROUPS) for path in GROUPS.rglob(f"{name}.yaml")]
    if hidden:
        return [
            f"the name of a study must not hide a config of studyloom; got {name!r}, which would "
            f"hide {', '.join(map(str, hidden))}; choose another name"
        ]
    if name in sys.stdlib_module_names or _is_installed(name):
        return [
            f"the name of a study must not hide an installed module; got {name!r}; choose another "
            "name"
        ]
    return []


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _check_folder(name: str, folder: Path) -> list[str]:
    problems = [
        f"{path}: exists already, and is not overwritten; choose another name or folder"
        for path in (folder / target.replace(PLACEHOLDER, name) for target in FILES)
        if path.exists()
    ]
    shared = folder / "studies" / "__init__.py"
    if shared.is_file() and "CONF" not in shared.read_text(encoding="utf-8", errors="replace"):
        problems.append(
            f"{shared}: must define CONF, the folder of the configs, which the page imports"
        )
    return problems
