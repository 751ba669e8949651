"""The fast step of an optimizer equals its own step."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch import nn

from studyloom.training import optimizer_step
from studyloom.training.optimizer_step import fast_step

OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01, fused=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, amsgrad=True),
    "fused sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, fused=True),
    "fused sgd with momentum": lambda weights: torch.optim.SGD(
        weights, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, fused=True
    ),
    "fused adam": lambda weights: torch.optim.Adam(
        weights, lr=0.01, betas=(0.8, 0.99), weight_decay=0.1, maximize=True, fused=True
    ),
    "fused adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, fused=True),
    "fused adamw, two groups": lambda weights: torch.optim.AdamW(
        [{"params": [weight], "lr": 0.01 * n} for n, weight in enumerate(weights, 1)], fused=True
    ),
    "fused adam, its decay decoupled": lambda weights: torch.optim.Adam(
        weights, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True, fused=True
    ),
    "fused amsgrad": lambda weights: torch.optim.AdamW(weights, amsgrad=True, fused=True),
    "fused with a tensor as rate": lambda weights: torch.optim.Adam(
        weights, lr=torch.tensor(0.01), fused=True
    ),
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


FUSED = [name for name in OPTIMIZERS if "fused" in name]


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_step_is_the_optimizers_whatever_happens_between_steps(name):
    """A parameter without a gradient, other settings, and a restored state."""

    def train(step_of):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = OPTIMIZERS[name](model.parameters())
        step = step_of(optimizer)
        for number in range(12):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().mean().backward()
            if number == 3:
                model[0].bias.grad = None
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * 0.9
                group["weight_decay"] = 0.01 * number
                if "momentum" in group and number in (5, 6, 8):
                    group["momentum"] = 0.5 if number == 5 else 0.0 if number == 6 else 0.7
                if "betas" in group and number == 5:
                    group["betas"] = (0.7, 0.9)
            step()
            if number == 9:
                optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
        return [weight.detach() for weight in model.parameters()], optimizer.state_dict()

    (ours, our_state), (plain, state) = train(fast_step), train(lambda o: o.step)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert str(our_state) == str(state)


def test_a_fused_step_is_the_kernel_alone(monkeypatch):
    """Otherwise the tests above would compare the optimizer with itself."""
    for make in (
        OPTIMIZERS[name]
        for name in FUSED
        if not any(more in name for more in ("amsgrad", "rate", "decoupled"))
    ):
        weights = [nn.Parameter(torch.ones(3))]
        optimizer = make(weights)
        step = fast_step(optimizer)
        own = []
        monkeypatch.setattr(step, "_own", lambda own=own, run=step._own: (own.append(1), run()))
        for _ in range(4):
            weights[0].grad = torch.ones(3)
            step()
        assert own == [1]


def test_where_the_kernel_takes_other_settings_the_step_is_the_optimizers(monkeypatch):
    def other(*_, **__):
        raise TypeError("_fused_adam_() got an unexpected keyword argument")

    monkeypatch.setattr(torch, "_fused_adam_", other)
    optimizer_step._kernel_works.cache_clear()
    assert not optimizer_step._kernel_works(torch.optim.Adam)
    optimizer_step._kernel_works.cache_clear()
    monkeypatch.undo()
    for kind in optimizer_step.KERNELS:
        assert optimizer_step._kernel_works(kind), "else nothing here tests the kernels"


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
