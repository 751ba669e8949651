"""Small steps are made on one thread."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from studyloom.models import CNN, MLP, Recurrent, Transformer
from studyloom.training.steps import choose_threads, count_operations, on_threads

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
def test_operations_are_counted_as_by_pytorchs_counter(network, least):
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

    class Counting(MLP):
        calls = 0

        def forward(self, inputs):
            self.calls += 1
            return super().forward(inputs) + torch.rand(1)

    def lazy(width):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(width))

    small, large = Counting(IMAGE, 10, hidden=[16]), MLP(IMAGE, 10, hidden=[512, 512])
    with on_threads(2):
        before = torch.get_rng_state()
        assert chosen(small, 64) == 1
        assert torch.equal(before, torch.get_rng_state())
        assert chosen(small, 4096) == 2
        assert chosen(large, 64) == 2
        assert chosen(CNN(IMAGE, 10), 64) == 2  # whose weights are few
        assert chosen(small, 64, fail) == 2  # it cannot be told
        assert chosen(lazy(10), 64) == 1  # its weights have no size yet
        assert chosen(lazy(512), 4096) == 2
    with on_threads(1):
        assert chosen(large, 64) == 1
    assert (small.calls, small.training) == (0, True), "it is not changed"
