"""The user's code when it is imported, and objects that a program passes on to its workers."""

import os
import pickle
import random
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest
import torch
from commands import environment

import studyloom
from studyloom.environment import PICKLED
from studyloom.errors import ConfigError
from studyloom.user_code import pickled
from studyloom.user_code.digests import compute_code_digests
from studyloom.user_code.importing import find_member, seeding_imports
from studyloom.user_code.pickled import (
    MOST_BYTES_IF_NOT_NEEDED,
    can_pass_objects,
    child_arguments,
    passing_objects,
    receive_objects,
)

DRAWS = """
import random
import numpy
drawn = [random.random(), numpy.random.random()]
import torch
drawn.append(float(torch.rand(())))
"""
GUARD = r'put that below `if __name__ == "__main__":`$'
# As many of pytorch/examples do.
PARSES = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
args = parser.parse_args()
"""
SEARCHES = """
import studyloom
def train(run, *, lr=0.1): ...
studyloom.search(train, minimize="loss", space={"lr": studyloom.Float(0.1, 1.0)}, workers=2)
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes a module, found by its name while the test runs."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", "study.trials=3", "launcher=join"])
    written = []

    def write_module(name, text):
        written.append(name)
        (tmp_path / f"{name}.py").write_text(text)

    yield write_module
    for name in written:
        sys.modules.pop(name, None)


def test_an_imported_module_sees_an_empty_command_line(write):
    write("parses", PARSES)
    assert find_member("parses.args").epochs == 2
    assert sys.argv == ["program", "study.trials=3", "launcher=join"]


def test_a_module_that_ends_its_process_at_import_is_named(write, capsys):
    write("demands", PARSES.replace("--epochs", "epochs"))
    words = r"^demands: ends its process when it is imported \(SystemExit: 2\), as a module does "
    with pytest.raises(ConfigError, match=words + rf"that parses the command line; {GUARD}"):
        find_member("demands.args")
    assert "required: epochs" in capsys.readouterr().err
    assert compute_code_digests({"model": {"_target_": "demands.args"}}) == {}


def test_a_module_that_searches_at_import_is_named(write, tmp_path):
    write("searches", SEARCHES)
    write("imports", "import searches\n")
    for name in ("searches.train", "imports.searches.train"):
        with pytest.raises(ConfigError, match=rf"^searches: runs a study when it is.*; {GUARD}"):
            find_member(name)
    assert [path.name for path in tmp_path.rglob("*.db")] == []


def test_a_study_module_without_a_guard_is_named(write, tmp_path):
    write("bare", "import studyloom\nstudyloom.run('mnist')\n")
    with pytest.raises(ConfigError, match=r"^bare: runs a study when it is imported"):
        studyloom.run(tmp_path / "bare.py", quiet=True)


@pytest.mark.parametrize(
    "make",
    [lambda: np.zeros(MOST_BYTES_IF_NOT_NEEDED + 1, np.uint8), threading.Lock],
    ids=["large", "lock"],
)
def test_large_and_unpicklable_objects_are_passed_only_if_needed(monkeypatch, make):
    monkeypatch.setattr(pickled, "_objects", {"given": make()})
    names = ["studyloom.user_code.pickled.registered_object"]
    with passing_objects(names, {}, [], needed=False):
        assert not can_pass_objects()
        assert PICKLED.name not in child_arguments({})["env"]
    assert can_pass_objects()
    monkeypatch.setattr(pickled, "_objects", {"small": np.zeros(9)})
    with passing_objects(names, {}, [], needed=False):
        assert can_pass_objects()
        assert PICKLED.name in child_arguments({})["env"]


class Deed:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_a_worker_unpickles_only_the_file_with_its_word(monkeypatch):
    monkeypatch.setattr(pickled, "_objects", {"number": 7})
    with passing_objects(["studyloom.user_code.pickled.registered_object"], {}, []):
        (told,) = [
            each for each in child_arguments({})["env"].items() if each not in os.environ.items()
        ]
        pickled._objects.clear()
        monkeypatch.setenv(*told)
        receive_objects()
        assert pickled._objects == {"number": 7}
    descriptor, word = told[1].split()
    with tempfile.TemporaryFile() as other:
        other.write(b"0" * len(word) + pickle.dumps(({}, {"deed": Deed()}, {})))
        other.flush()
        for number in (str(other.fileno()), descriptor, "987654"):  # another, closed, none
            monkeypatch.setenv(PICKLED.name, f"{number} {word}")
            receive_objects()
            assert PICKLED.name not in os.environ
    assert "deed" not in pickled._objects
    assert PICKLED.name not in child_arguments({})["env"]


# Random numbers that a module draws when it is imported


def draw():
    """Draws the next numbers of this process."""
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


def test_modules_draw_the_same_in_any_order_of_imports(write):
    write("outer", "import inner\n" + DRAWS)
    write("inner", DRAWS)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = draw()
    imported = []
    for names in (("outer", "inner"), ("inner", "outer")):
        for name in names:
            sys.modules.pop(name, None)
        random.seed(len(imported))
        with seeding_imports(3):
            imported += [find_member(f"{name}.drawn") for name in names]
    assert imported == [expected] * 4


def test_an_import_leaves_the_random_state_of_its_process_unchanged(write):
    write("draws", DRAWS)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = draw()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = [*sys.meta_path]
    with seeding_imports(0):
        find_member("draws.drawn")
        assert draw() == expected
    assert sys.meta_path == before


def test_a_module_that_imports_pytorch_first_draws_the_same(write):
    write("draws", DRAWS)
    code = (
        "import sys; from studyloom.user_code.importing import find_member, seeding_imports\n"
        "assert 'torch' not in sys.modules\n"
        "with seeding_imports(3): print(find_member('draws.drawn'))"
    )
    command = [sys.executable, "-c", code]
    env = environment(PYTHONPATH=os.getcwd())
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    with seeding_imports(3):
        assert done.stdout.strip() == str(find_member("draws.drawn"))
