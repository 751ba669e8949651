"""States of wrapped networks: plain names when saved, and any names when loaded."""

from functools import partial

import pytest
import torch
from test_trainer import SPLIT, toy_job
from torch import nn

from studyloom.models import MLP
from studyloom.training.states import load_state, plain_state
from studyloom.training.trainer import Training

compiled = partial(torch.compile, backend="eager")


class Net(nn.Module):
    """A network with a buffer, a version, and a child that has the name of a wrapped network."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.module = nn.Linear(2, 3)

    def forward(self, inputs):
        return self.module(self.norm(inputs))


def inside(network):
    """Compiles only a part of a network."""
    network.module = compiled(network.module)
    return network


WRAPPERS = {
    "nothing": lambda network: network,
    "a compiled network": compiled,
    "a compiled part": inside,
    "data parallel": nn.DataParallel,
    "compiled, then parallel": lambda network: nn.DataParallel(compiled(network)),
    "parallel, then compiled": lambda network: compiled(nn.DataParallel(inside(network))),
}


@pytest.fixture
def trained():
    network = Net()
    network(torch.randn(8, 2))
    return network


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_network_has_the_state_of_the_plain_one(trained, wrapper):
    state = trained.state_dict()
    saved = plain_state(WRAPPERS[wrapper](trained))
    assert [*saved] == [*state]
    assert all(saved[name].data_ptr() == state[name].data_ptr() for name in state)
    assert saved._metadata == state._metadata


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("saved_by", ["today", "an earlier version"])
@pytest.mark.parametrize("saved_from", WRAPPERS)
def test_a_state_loads_whatever_wraps_the_network(trained, saved_from, saved_by, wrapper):
    expected = trained.state_dict()
    source = WRAPPERS[saved_from](trained)
    state = plain_state(source) if saved_by == "today" else source.state_dict()
    network = Net()
    received = []
    network.norm.register_load_state_dict_pre_hook(
        lambda _module, _state, _prefix, metadata, *_: received.append(metadata)
    )
    load_state(WRAPPERS[wrapper](network), state)
    loaded = plain_state(network)
    assert [*loaded] == [*expected]
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert [metadata["version"] for metadata in received] == [nn.BatchNorm1d._version]


def test_missing_and_unknown_names_are_errors_of_pytorch():
    with pytest.raises(RuntimeError, match=r'(?s)Missing key.*"weight".*Unexpected key.*"other"'):
        load_state(nn.Linear(1, 1, bias=False), {"_orig_mod.other": torch.zeros(1)})


def test_a_compiled_network_resumes_and_is_saved_under_plain_names():
    def model(**known):
        return compiled(MLP(**known, hidden=(8,)))

    job = toy_job(model=model, ema=0.9)
    plain = Training([toy_job(model=partial(MLP, hidden=(8,)), ema=0.9)], SPLIT)
    list(plain)
    training = Training([job], SPLIT)
    next(iter(training))
    state = training.state()
    (run,) = training._runs
    state["jobs"][0]["model"] = run.model.state_dict()  # as an earlier version saved it
    resumed = Training([job], SPLIT)
    resumed.restore(state)
    list(resumed)
    weights = resumed.weights()[0]
    expected = plain.weights()[0]
    assert [*weights] == [*expected]
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
