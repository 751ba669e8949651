"""Gradients are those of `loss.backward()`, and small steps are made on one thread."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.flop_counter import FlopCounterMode

from studyloom.models import CNN, MLP, Recurrent, Transformer
from studyloom.training import steps
from studyloom.training.steps import choose_threads, count_operations, on_threads


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


IMAGE = (1, 28, 28)


@pytest.mark.parametrize(
    ("network", "least"),
    [
        (MLP(IMAGE, 10, hidden=[32, 16]), 1.0),
        (CNN(IMAGE, 10, channels=4), 1.0),
        (Recurrent(IMAGE, 10, cell="gru", hidden=16), 1.0),
        (nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)), 1.0),
        (Transformer(IMAGE, 10), 0.5),  # its attention, and the layer after it, call no module
    ],
)
def test_operations_are_those_of_pytorchs_own_counter(network, least):
    read = torch.zeros(1, 3, dtype=torch.int64) if type(network) is nn.Sequential else None
    batch = (torch.randn(1, *IMAGE) if read is None else read, torch.zeros(1))
    network.eval()
    with FlopCounterMode(display=False) as counter:
        network(batch[0])
    counted = count_operations(network, batch) / counter.get_total_flops()
    assert least <= counted <= 1.0


def test_small_steps_get_one_thread_and_large_ones_all():
    def chosen(network, batch_size, read=lambda: (torch.randn(1, *IMAGE), torch.zeros(1))):
        return choose_threads(network, read, batch_size)

    def fail():
        raise RuntimeError("nothing to read")

    small, large = MLP(IMAGE, 10, hidden=[16]), MLP(IMAGE, 10, hidden=[512, 512])
    with on_threads(2):
        assert chosen(small, 64) == 1
        assert chosen(small, 4096) == 2
        assert chosen(large, 64) == 2
        assert chosen(CNN(IMAGE, 10), 64) == 2  # whose weights are few
        assert chosen(small, 64, fail) == 2  # it cannot be told
    with on_threads(1):
        assert chosen(large, 64) == 1


def test_choosing_threads_leaves_the_network_and_the_random_state_alone():
    class Counting(MLP):
        calls = 0

        def forward(self, inputs):
            self.calls += 1
            return super().forward(inputs) + torch.rand(1)

    network = Counting(IMAGE, 10, hidden=[16])
    with on_threads(2):
        before = torch.get_rng_state()
        choose_threads(network, lambda: (torch.randn(1, *IMAGE), torch.zeros(1)), 64)
    assert torch.equal(before, torch.get_rng_state())
    assert (network.calls, network.training) == (0, True)
    assert not any(module._forward_hooks for module in network.modules())
