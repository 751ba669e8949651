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
    descriptions_by_template: dict[str, str] = KINDS[kind]["files"]
    paths = {}
    for template in descriptions_by_template:
        paths[template] = folder / template.replace(PLACEHOLDER, name)
    problems = _check_name(name) + _check_folder(folder, paths.values())
    if problems:
        raise ScaffoldError(problems)
    descriptions = {}
    for template, path in paths.items():
        _write_template(path, kind, template, name)
        descriptions[path] = descriptions_by_template[template].replace(PLACEHOLDER, name)
    if not (folder / SHARED).exists():
        _write_template(folder / SHARED, kind, SHARED, name)
    return descriptions


def _write_template(path: Path, kind: str, template: str, name: str) -> None:
    """Writes a file from its template, in which NAME stands for the name of the study.

    Raises:
        FileExistsError: another command has just written it.
    """
    template_file = TEMPLATES / kind / f"{template}.txt"
    if not template_file.is_file():
        template_file = TEMPLATES / "shared" / f"{template}.txt"
    text = template_file.read_text(encoding="utf-8").replace(PLACEHOLDER, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:  # "x" overwrites no file
        file.write(text)


def _check_name(name: str) -> list[str]:
    """Returns why a name cannot be that of a study; an empty list if it can."""
    is_module_name = name.isascii() and name.isidentifier() and name == name.lower()
    # The configs of studyloom that Hydra would no longer find, since it finds the study's first.
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
