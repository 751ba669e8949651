"""`studyloom new`: writes the files of a new study, which runs unchanged."""

import importlib.util
import json
import keyword
import sys
from collections.abc import Collection
from pathlib import Path

from studyloom.config.config_sources import GROUPS
from studyloom.errors import ScaffoldError
from studyloom.files import ASSETS

TEMPLATES = ASSETS / "new"
PLACEHOLDER = "NAME"
# For each kind of training, in kinds.json: a description, and its files with a word on each. A
# file's template lies in the folder of its kind, or in `shared`.
KINDS = json.loads((TEMPLATES / "kinds.json").read_text(encoding="utf-8"))
# The package of a project's studies; written if missing.
SHARED = "studies/__init__.py"


def write_study(name: str, folder: Path, kind: str = "tensors") -> dict[Path, str]:
    """Writes the files of a new study into a project, and returns a description of each.

    Args:
        name: the name of the study and its modules: lower-case letters, digits and _.

    Raises:
        ScaffoldError: every reason why it cannot be written; nothing is written then.
    """
    descriptions: dict[str, str] = KINDS[kind]["files"]
    paths = {template: folder / template.replace(PLACEHOLDER, name) for template in descriptions}
    problems = _check_name(name) + _check_folder(folder, paths.values())
    if problems:
        raise ScaffoldError(problems)
    written = {}
    for template, description in descriptions.items():
        path = paths[template]
        _write(path, kind, template, name)
        written[path] = description.replace(PLACEHOLDER, name)
    if not (folder / SHARED).exists():
        _write(folder / SHARED, kind, SHARED, name)
    return written


def _write(path: Path, kind: str, template: str, name: str) -> None:
    """Writes a template with the study's name in it."""
    source = TEMPLATES / kind / f"{template}.txt"
    if not source.is_file():
        source = TEMPLATES / "shared" / f"{template}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:  # "x": another command may be quicker
        file.write(source.read_text(encoding="utf-8").replace(PLACEHOLDER, name))


def _check_name(name: str) -> list[str]:
    """Returns why a name cannot be that of a study; an empty list if it can."""
    is_module_name = name.isascii() and name.isidentifier() and name == name.lower()
    hidden_configs = []
    for path in GROUPS.rglob("*.yaml"):
        if path.stem == name:
            hidden_configs.append(str(path.relative_to(GROUPS)))
    if not is_module_name or name.startswith("_"):
        rule = "consist of lower-case letters, digits and _, and begin with a letter"
    elif keyword.iskeyword(name) or keyword.issoftkeyword(name):
        rule = "not be a keyword of Python"
    elif hidden_configs:
        rule = f"not hide a config of studyloom, {', '.join(hidden_configs)}"
    elif name in sys.stdlib_module_names or importlib.util.find_spec(name):
        rule = "not hide an installed module"
    else:
        return []
    return [f"the name of a study must {rule}; got {name!r}; choose another name"]


def _check_folder(folder: Path, paths: Collection[Path]) -> list[str]:
    """Returns why the files of a study cannot be written into a folder; empty if they can."""
    problems = []
    for path in paths:
        if path.exists():
            problems.append(
                f"{path}: exists already, and is not overwritten; choose another name or folder"
            )
    shared = folder / SHARED
    if shared.is_file() and "CONF" not in shared.read_text(encoding="utf-8", errors="replace"):
        problems.append(
            f"{shared}: must define CONF, the folder of the configs, which the study module imports"
        )
    return problems
