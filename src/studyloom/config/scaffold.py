"""`studyloom new`: writes the files of a new study, which runs unchanged."""

import importlib.util
import json
import keyword
import sys
from collections.abc import Sequence
from pathlib import Path

from studyloom.config.compose import GROUPS
from studyloom.errors import ScaffoldError
from studyloom.files import ASSETS

TEMPLATES = ASSETS / "new"
PLACEHOLDER = "NAME"
# For each kind of training, in kinds.json: what it is, and its files with a word on each. A file's
# template lies below the folder of its kind, or below `shared`.
KINDS = json.loads((TEMPLATES / "kinds.json").read_text(encoding="utf-8"))
# What the studies of a project have in common; written if missing.
SHARED = "studies/__init__.py"


def write_study(name: str, folder: Path, kind: str = "tensors") -> dict[Path, str]:
    """Writes the files of a new study into a project, and returns what each of them is.

    Args:
        name: of the study and its modules: lower-case letters, digits and _.

    Raises:
        ScaffoldError: every reason why it cannot be written; nothing is written then.
    """
    targets = {target: target.replace(PLACEHOLDER, name) for target in KINDS[kind]["files"]}
    if problems := [*_check_name(name), *_check_folder(folder, [*targets.values()])]:
        raise ScaffoldError(problems)
    written = {}
    for target, about in KINDS[kind]["files"].items():
        path = folder / targets[target]
        _write(path, kind, target, name)
        written[path] = about.replace(PLACEHOLDER, name)
    if not (folder / SHARED).exists():
        _write(folder / SHARED, kind, SHARED, name)
    return written


def _write(path: Path, kind: str, target: str, name: str) -> None:
    paths = (TEMPLATES / owner / f"{target}.txt" for owner in (kind, "shared"))
    template = next(template for template in paths if template.is_file())
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:  # "x": another command may be quicker
        file.write(template.read_text(encoding="utf-8").replace(PLACEHOLDER, name))


def _check_name(name: str) -> list[str]:
    is_module_name = name.isascii() and name.isidentifier() and name == name.lower()
    if not is_module_name or name.startswith("_"):
        rule = "consist of lower-case letters, digits and _, and begin with a letter"
    elif keyword.iskeyword(name) or keyword.issoftkeyword(name):
        rule = "not be a keyword of Python"
    elif hidden := [path.relative_to(GROUPS) for path in GROUPS.rglob(f"{name}.yaml")]:
        rule = f"not hide a config of studyloom, {', '.join(map(str, hidden))}"
    elif name in sys.stdlib_module_names or importlib.util.find_spec(name):
        rule = "not hide an installed module"
    else:
        return []
    return [f"the name of a study must {rule}; got {name!r}; choose another name"]


def _check_folder(folder: Path, targets: Sequence[str]) -> list[str]:
    problems = [
        f"{folder / target}: exists already, and is not overwritten; choose another name or folder"
        for target in targets
        if (folder / target).exists()
    ]
    shared = folder / SHARED
    if shared.is_file() and "CONF" not in shared.read_text(encoding="utf-8", errors="replace"):
        problems.append(
            f"{shared}: must define CONF, the folder of the configs, which the study module imports"
        )
    return problems
