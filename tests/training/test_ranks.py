"""Two processes that train together give what one gives, and stay equal."""

import math
import os
from functools import partial

import pytest
import torch
from drawn import Drawn, drawn
from ranks_at_work import together
from test_trainer import RESUMABLE, SPLIT, equal, through_a_file, timeless, toy_job
from torch import nn

from studyloom.models import MLP
from studyloom.training.ranks import Ranks
from studyloom.training.trainer import Training

pytestmark = pytest.mark.chaos  # processes that wait for one another: 13 s
PLAIN = {"model": partial(MLP, hidden=(8,))}  # without dropout, of which each rank has its own
EXACT = ("adamw fused", "groups")
# Of these one process is the measure; batches of 10 and 5 are divided 5 and 5, 3 and 2.
MEASURED = {
    **{name: (False, RESUMABLE[name] | PLAIN) for name in EXACT},
    "accumulation": (False, {"accumulate": 2, "batch_size": 7, **PLAIN}),
    "fp16": (False, RESUMABLE["fp16"] | PLAIN),
    "patience": (False, {"patience": 1, "epochs": 9, **PLAIN}),
    "a layer unused": (False, {"model": "unused"}),
    "in turn": (True, PLAIN),
    "a Dataset": (False, {"accumulate": 2, "batch_size": 7, **PLAIN}),
}


def data_of(name):
    """What a way is trained on."""
    return drawn(train=Drawn(noise=0.0)) if name == "a Dataset" else SPLIT


def overflowing(network, batch, loss):
    """A step whose gradients are now and then infinite in rank 1 alone."""
    inputs, targets = batch
    outputs = network(inputs)
    if os.environ.get("RANK") == "1" and torch.rand(()) < 0.5:
        outputs.register_hook(lambda gradient: gradient * math.inf)
    return loss(outputs, targets)


# Here each rank has noise of its own, or sees its share alone.
NOISY = ("batch norm and dropout", "everything at once", "noise of Python and NumPy")
WAYS = MEASURED | {name: (False, RESUMABLE[name]) for name in NOISY}
WAYS["fp16 that overflows in one rank"] = (False, {"precision": "fp16", "step": overflowing})


class Unused(nn.Module):
    """Has a layer that no output depends on, whose weights must not decay."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.used, self.unused = nn.Linear(16, outputs), nn.Linear(3, 3)

    def forward(self, inputs):
        return self.used(inputs.flatten(1))


UNUSED = {"model": Unused, "optimizer": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.9)}
MEASURED["a layer unused"] = WAYS["a layer unused"] = (False, UNUSED)


def trained(ranks, names, stop=None):
    """Trains a job in each of the `WAYS`, resumed after `stop` epochs; returns the last states."""
    results = {}

    def make(name):
        in_turn, changes = WAYS[name]
        jobs = [toy_job(seed=seed, **changes) for seed in range(1 + in_turn)]
        return Training(jobs, data_of(name), in_turn=in_turn, ranks=ranks)

    def train(name):
        training = make(name)
        for number, _ in enumerate(training, 1):
            if number == stop:
                break
        if stop is not None and not training.ended:
            if ranks.rank:
                assert not ranks.go_on()  # the end of the first
            return training
        results[name] = timeless(training.state())
        return None

    def take_part(call):
        name, state = call
        ranks.together(lambda: None)
        if state is None:
            train(name)
        else:
            finish(name, state)

    def finish(name, state):
        training = make(name)
        training.restore(through_a_file(state))
        list(training)
        results[name] = timeless(training.state())

    if ranks.rank:
        ranks.follow(take_part)
        return results
    for name in names:
        with ranks.leading((name, None)):
            first = train(name)
        if first is not None:
            with ranks.leading((name, first.state())):
                finish(name, first.state())
    return results


@pytest.fixture(scope="module")
def two():
    return together(2, trained, [*WAYS])


@pytest.fixture(scope="module")
def one():
    return trained(Ranks(), MEASURED)


def close(one, other):
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.allclose(one, other, 1e-3, 1e-4)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(close, one, other))
    return one == other or one == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", MEASURED)
def test_two_ranks_give_what_one_process_gives(one, two, name):
    assert close(one[name], two[0][name])


@pytest.mark.parametrize("name", WAYS)
def test_ranks_have_the_same_weights_numbers_and_state(two, name):
    assert equal(two[0][name], two[1][name])


def test_ranks_that_resume_equal_those_that_never_stopped(two):
    names = (*NOISY, "patience", "in turn", "a Dataset", "fp16 that overflows in one rank")
    resumed = together(2, trained, names, 2)
    for name in names:
        assert equal(resumed[0][name], two[0][name]), name
