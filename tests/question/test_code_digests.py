"""The sources of one's own code as a part of the question."""

import importlib
import sys

import pytest

from studyloom.errors import ConfigError
from studyloom.question.sources import code_digests, digest_of_source

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
    return digest_of_source(source.encode()) == digest_of_source(NET.encode())


def test_what_may_change_a_result_changes_the_digest_and_nothing_else_does():
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
        return code_digests(sections)

    yield digests
    for name in ("own_net", "own_base", "own_wrapped"):
        sys.modules.pop(name, None)


def test_each_module_of_one_s_own_that_is_named_has_a_digest_at_any_depth(own):
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


def test_the_modules_of_bases_and_of_wrapped_functions_count_too(own):
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


def test_a_process_does_not_go_on_with_another_code_than_it_says(own, tmp_path, monkeypatch):
    """It has imported what the file held before, and calls that."""
    monkeypatch.chdir(tmp_path)
    sections = [{"_target_": "own_net.Net"}, {"_target_": "own_base.load"}]
    digests = own(sections, own_net=NET, own_base="def load(part): ...")
    source, base = tmp_path / "own_net.py", tmp_path / "own_base.py"
    source.write_text(NET.replace("0.5", "0.0625"))
    base.write_text("def load(part): return part")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"own_net\.py has changed since .*reload") as caught:
            code_digests(sections)
        assert [mistake.split()[0] for mistake in caught.value.mistakes] == [base.name, source.name]
    importlib.reload(sys.modules["own_base"])
    importlib.reload(sys.modules["own_net"])
    assert sys.modules["own_net"].half == 0.0625
    changed = code_digests(sections)
    assert all(changed[key] != digests[key] for key in digests)
