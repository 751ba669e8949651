"""The gradients of a step are those of `loss.backward()`."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from studyloom.training import steps


def gradients_of(backpropagate):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 1))
    unused = nn.Parameter(torch.ones(2))
    seen = []
    network[3].register_full_backward_hook(lambda *_: seen.append("module"))
    network[0].bias.register_hook(lambda gradient: gradient * 3)
    for _ in range(2):  # the second adds to the first
        loss = network(torch.randn(8, 5)).square().mean()
        loss.register_hook(lambda gradient: gradient * 2)
        assert backpropagate(loss) is None
    assert seen == ["module"] * 2
    assert unused.grad is None
    with pytest.raises(RuntimeError, match="second time"):  # its graph is gone
        backpropagate(loss)
    return [weight.grad for weight in network.parameters()]


def test_gradients_are_those_of_backward_bit_for_bit_hooks_included():
    assert steps._has_engine()
    ours, plain = gradients_of(steps.backpropagate), gradients_of(Tensor.backward)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_without_the_engine_where_it_is_expected_it_is_backward(monkeypatch):
    def moved(loss):
        raise TypeError("run_backward() has other arguments now")

    monkeypatch.setattr(steps, "_run_engine", moved)
    steps._has_engine.cache_clear()
    try:
        ours = gradients_of(steps.backpropagate)
        assert not steps._has_engine()
    finally:
        steps._has_engine.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(ours, gradients_of(Tensor.backward), strict=True))


def test_a_loss_of_a_class_of_ones_own_and_a_transform_get_backward_itself():
    called = []

    class Own(Tensor):
        def backward(self, *args, **kwargs):
            called.append("own")
            return super().backward(*args, **kwargs)

    weight = nn.Parameter(torch.ones(3))
    steps.backpropagate((weight * 2).sum().as_subclass(Own))
    assert called == ["own"]
    assert weight.grad.tolist() == [2.0] * 3

    network = nn.Linear(3, 1)

    def loss_of(rows):
        loss = functional_call(network, dict(network.named_parameters()), (rows,)).sum()
        with pytest.raises(RuntimeError, match="functorch"):  # as of backward: say what to call
            steps.backpropagate(loss)
        return loss

    vmap(loss_of)(torch.ones(2, 4, 3))
