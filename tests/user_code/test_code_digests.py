"""The sources of one's own code as a part of the question."""

import ast
import importlib
import json
import linecache
import subprocess
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from commands import ROOT, environment

from studyloom.errors import ConfigError, DefinitionError
from studyloom.storage.opening import check_definition
from studyloom.user_code import pickled
from studyloom.user_code.digests import compute_code_digests, find_main_globals
from studyloom.user_code.pickled import passing_objects
from studyloom.user_code.source_code import digest_source

NET = '''"""A network."""
from torch import nn

class Net(nn.Linear):
    """One layer."""

    def __init__(self, shape, outputs, activation=None):
        super().__init__(shape[0], outputs, bias=activation is None)

def call(config, report):
    return {"x": 0, **config}["x"]

half = 0.5
'''


def same(source):
    return digest_source(source.encode()) == digest_source(NET.encode())


def test_only_a_change_of_code_changes_the_digest():
    assert same("# mine\n" + NET.replace("One layer.", "One layer\n\n    of weights."))
    assert same(NET.replace("(shape[0], outputs, ", "(\n            (shape[0]),\n outputs,\n"))
    assert same(NET.replace('{"x": 0, **config}["x"]', "({'x':0,**config}  ['x'])"))
    for old, new in (("0.5", "0.25"), ("nn.Linear", "nn.Module"), ('{"x": 0', '{"x": 0.0')):
        assert not same(NET.replace(old, new))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Returns the digests of targets, with the modules of a folder imported anew."""
    monkeypatch.syspath_prepend(tmp_path)

    def digests(sections, **sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        for name in ("own_net", "own_base", "own_wrapped"):
            sys.modules.pop(name, None)
        return compute_code_digests(sections)

    yield digests
    for name in ("own_net", "own_base", "own_wrapped"):
        sys.modules.pop(name, None)


def test_each_named_module_of_the_user_has_a_digest_at_any_depth(own):
    sections = {
        "model": {"_target_": "own_net.Net"},
        "data": {"load": [{"_target_": "own_base.load", "_partial_": True}]},
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
        "optimizer": {"_target_": "studyloom.models.MLP"},
        "scheduler": {"_target_": "math.sqrt"},
        "objective": {"_target_": "own_net.missing"},
    }
    digests = own(sections, own_net=NET, own_base="def load(part): ...")
    assert [*digests] == ["code.own_base", "code.own_net"]
    assert own(sections, own_net=NET.replace("0.5", "0.25")) != digests
    assert own(sections, own_net=f"{NET}\n# nothing") == digests


def test_modules_of_bases_and_wrapped_functions_have_digests(own):
    sections = [{"_target_": f"own_net.{name}"} for name in ("Net", "step", "partial", "made")]
    base = "class Base:\n    width = 4\n"
    wrapped = "def step(x): return x\n"
    net = (
        "import functools, own_base, own_wrapped\n"
        "class Net(own_base.Base): pass\n"
        "@functools.wraps(own_wrapped.step)\ndef step(*x): return own_wrapped.step(*x)\n"
        "partial = functools.partial(own_wrapped.step, 1)\n"
        "made = Net()\n"
    )
    digests = own(sections, own_net=net, own_base=base, own_wrapped=wrapped)
    assert [*digests] == ["code.own_base", "code.own_net", "code.own_wrapped"]
    changed = own(sections, own_base=base.replace("4", "5"))
    assert {key for key in digests if digests[key] != changed[key]} == {"code.own_base"}


def test_a_process_refuses_code_that_has_changed_since_its_import(own, tmp_path, monkeypatch):
    """It has imported what the file held before, and calls that."""
    monkeypatch.chdir(tmp_path)
    sections = [{"_target_": "own_net.Net"}, {"_target_": "own_base.load"}]
    digests = own(sections, own_net=NET, own_base="def load(part): ...")
    source, base = tmp_path / "own_net.py", tmp_path / "own_base.py"
    source.write_text(NET.replace("0.5", "0.0625"))
    base.write_text("def load(part): return part")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"own_net\.py has changed since .*reload") as caught:
            compute_code_digests(sections)
        assert [mistake.split()[0] for mistake in caught.value.errors] == [base.name, source.name]
    importlib.reload(sys.modules["own_base"])
    importlib.reload(sys.modules["own_net"])
    assert sys.modules["own_net"].half == 0.0625
    changed = compute_code_digests(sections)
    assert all(changed[key] != digests[key] for key in digests)


CELL = """
import dataclasses, functools, threading, torch
from torch import nn

WIDTH = 4
SIZES = {"hidden": [WIDTH, 8], "act": torch.relu}
LAYERS = {"relu": lambda: nn.ReLU()}
unused = 1
lock = threading.Lock()

@dataclasses.dataclass
class Settings:
    rate: float = 0.5

settings = Settings()

def decorate(function):
    return functools.wraps(function)(lambda *args: function(*args))

class Base(nn.Module):
    width = WIDTH

class Net(Base):
    def forward(self, x):
        return scale(LAYERS["relu"]()(x))

@decorate
def scale(x, unused=2):
    return [each * 2 for each in x] if SIZES else settings.rate

def train(run):
    with lock:
        return Net().forward(run)
"""
LOOP_OF_MAIN = {"objective": {"_target_": "__main__.train"}}


@pytest.fixture
def of_cells(monkeypatch):
    """Returns the digests of a loop of a notebook, which this process runs anew."""

    def digests(*cells):
        main = types.ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", main)
        for number, cell in enumerate(cells):
            name = f"<cell {number}>"
            lines = cell.splitlines(keepends=True)
            monkeypatch.setitem(linecache.cache, name, (len(cell), None, lines, name))
            exec(compile(cell, name, "exec"), vars(main))
        found = compute_code_digests(LOOP_OF_MAIN)
        return {key.removeprefix("code.__main__."): each for key, each in found.items()}

    return digests


def test_the_digest_of_a_notebook_loop_covers_the_globals_it_uses(of_cells):
    digests = of_cells(CELL)
    used = {"train", "Net", "Base", "WIDTH", "scale", "decorate", "LAYERS", "SIZES", "settings"}
    assert digests.keys() == used, "what has no stable form is left out"
    for old, new, changed in (
        ("* 2", "* 3", {"scale"}),
        ("WIDTH = 4", "WIDTH = 5", {"WIDTH", "SIZES"}),
        ("nn.ReLU()", "nn.Tanh()", {"LAYERS"}),
        ("torch.relu", "torch.tanh", {"SIZES"}),
        ("Settings()", "Settings(0.25)", {"settings"}),
        ("(*args))", "(*args) or 1)", {"decorate"}),
        ("width = WIDTH", "width = WIDTH + 1", {"Base", "Net"}),
        ("rate: float", "decay: float = 0.0; rate: float", {"settings"}),
        ("unused = 1", "unused = 3", set()),
        ("return scale", "# as ever\n        return scale", set()),
    ):
        assert CELL.count(old) == 1, old
        other = of_cells(CELL.replace(old, new))
        assert {key for key in used if other[key] != digests[key]} == changed, old


@dataclass(slots=True)
class Slotted:
    center: float


def test_globals_that_hold_themselves_or_have_slots_have_a_text(monkeypatch):
    def make_text(center):
        held = [center, Slotted(center)]
        held.append(held)
        monkeypatch.setattr(sys.modules["__main__"], "held", held, raising=False)
        return find_main_globals(["__main__.held"])

    assert make_text(1) == make_text(1) != make_text(2)


def test_an_unpicklable_global_is_named_and_not_its_users(of_cells, monkeypatch):
    monkeypatch.setattr(pickled, "_objects", {})
    of_cells(CELL)
    used = find_main_globals(["__main__.train"])
    with (
        pytest.raises(ConfigError, match=r"^lock: cannot be given to worker processes: cannot pi"),
        passing_objects(["__main__.train"], {}, used),
    ):
        pass


def test_a_global_that_the_code_assigns_itself_defines_nothing(of_cells):
    code = "def train(run):\n    global count\n    count += step"
    first = of_cells("count, step = 0, 1", code)
    assert of_cells("count, step = 5, 1", code) == first
    assert of_cells("count, step = 0, 2", code) != first


def test_digests_of_a_notebook_are_equal_in_each_process(of_cells, tmp_path):
    names = "NAMES = {'b', 'a', 'c'}\ndef train(run): return NAMES, print\n"
    (tmp_path / "cells.json").write_text(json.dumps([names]))
    code = (
        "import kernel; kernel.run_cells('cells.json')\n"
        "from studyloom.user_code.digests import compute_code_digests\n"
        f"print(compute_code_digests({LOOP_OF_MAIN!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT / "tests" / "helpers"), PYTHONHASHSEED="7"),
        capture_output=True,
        text=True,
        check=True,
    )
    printed = ast.literal_eval(done.stdout)
    assert printed == {f"code.__main__.{key}": each for key, each in of_cells(names).items()}
    assert len(printed) == 2


# Data that a module holds

SPLIT = """
import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset
split = np.random.permutation(50)
points = torch.rand(20, 2)
parts = Subset(TensorDataset(points), split[:10].tolist())
weights = torch.nn.Parameter(torch.rand(3))
unused = np.random.rand(3)

def first():
    return split[0], weights

def train(run):
    return first(), parts
"""


def drawn_with(seed, digests):
    np.random.seed(seed)
    torch.manual_seed(seed)
    return digests()


def test_data_that_notebook_code_uses_is_in_the_definition(of_cells):
    one, again, other = (drawn_with(seed, lambda: of_cells(SPLIT)) for seed in (0, 0, 1))
    assert one == again
    assert {name for name in one if one[name] != other[name]} == {"split", "parts"}


def test_data_that_module_code_uses_is_in_the_definition(own):
    sections = {"objective": {"_target_": "own_net.train"}}
    one, again, other = (
        drawn_with(seed, lambda: own(sections, own_net=SPLIT)) for seed in (0, 0, 1)
    )
    assert one == again
    assert [*one] == ["code.own_net", "code.own_net.parts", "code.own_net.split"]
    changed = {name for name in one if one[name] != other[name]}
    assert changed == {"code.own_net.parts", "code.own_net.split"}
    with pytest.raises(DefinitionError, match=r"the data own_net\.split have.* seed what draws"):
        check_definition("mine", one, other)
