"""The fast step of an optimizer equals its own step."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from studyloom.training.optimizer_step import fast_step

OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01, fused=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, amsgrad=True),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=0.01, centered=True),
    "nadam": lambda weights: torch.optim.NAdam(weights, lr=0.01),
    "differentiable": lambda weights: torch.optim.SGD(
        weights, lr=0.01, differentiable=False, foreach=True
    ),
}


def weights_after(make, steps, step_of):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = make(model.parameters())
    step = step_of(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 5)).square().mean().backward()
        step()
    return [weight.detach() for weight in model.parameters()], optimizer.state_dict()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_that_of_the_optimizer_bit_for_bit(name):
    ours, our_state = weights_after(OPTIMIZERS[name], 5, fast_step)
    plain, state = weights_after(OPTIMIZERS[name], 5, lambda optimizer: optimizer.step)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert str(our_state) == str(state)


def test_hooks_and_classes_of_ones_own_are_called_as_ever():
    called = []

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            called.append("own")
            return super().step(closure)

    weights_after(lambda weights: Own(weights, lr=0.1), 2, fast_step)
    assert called == ["own"] * 2

    def hooked(weights):
        optimizer = torch.optim.SGD(weights, lr=0.1)
        optimizer.register_step_post_hook(lambda *_: called.append("hook"))
        return optimizer

    weights_after(hooked, 2, fast_step)
    assert called[2:] == ["hook"] * 2


PROGRAM = """
import functools, sys
import torch
from torch import nn
from studyloom.data.split import Split
from studyloom.training.job import Job
from studyloom.training.trainer import Training

def net(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, outputs))

split = Split(torch.randn(20, 1, 4, 4), torch.arange(20) % 10, 10, "toy")
part, adam = torch.arange(20), functools.partial(torch.optim.Adam, fused=True)
loss = nn.CrossEntropyLoss()
job = Job(net, adam, lambda progress: 1.0, loss, part, part, epochs=2, batch_size=4, seed=0)
training = Training([job], split)
assert len(list(training)) == 2
Training([job], split).restore(training.state())
sys.exit("torch._dynamo" in sys.modules)
"""


def test_training_does_not_import_the_compiler():
    """The import takes a worker a second."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
