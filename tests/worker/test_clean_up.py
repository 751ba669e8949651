"""What a trial leaves in its process is gone before the next one begins."""

import gc
import itertools
import weakref
from dataclasses import replace

import pytest
import torch
from toy_worker import fresh, work
from toys import ask

from studyloom.definition.definition import Definition

TRIALS = 14  # PyTorch compiles a function eight times, and then runs it as it is
CYCLIC_NETWORKS = weakref.WeakSet()  # that are alive
WIDTHS = itertools.count(4)  # of the networks to come
COMPILED_WIDTHS = []  # the width of the network, for each graph that is compiled


class Cyclic(torch.nn.Linear):
    """A network that only the garbage collector frees, as a trainer's is that refers to itself."""

    def __init__(self, shape, classes):
        super().__init__(shape[0] * shape[1] * shape[2], classes)
        self.itself = [self]
        CYCLIC_NETWORKS.add(self)

    def forward(self, images):
        return super().forward(images.flatten(1))


class Compiled(torch.nn.Module):
    """A compiled network, wider than the one before."""

    def __init__(self, shape, classes):
        super().__init__()
        self.width = next(WIDTHS)
        layer = torch.nn.Linear(shape[0] * shape[1] * shape[2], self.width)
        head = torch.nn.Linear(self.width, classes)
        network = torch.nn.Sequential(torch.nn.Flatten(), layer, head)
        self.compiled = torch.compile(network, backend=self.compile)

    def compile(self, graph, _):
        COMPILED_WIDTHS.append(self.width)
        return graph.forward

    def forward(self, images):
        return self.compiled(images)


@pytest.fixture
def search(sqlite_url, monkeypatch):
    """A function that runs trials of a network in this process."""

    def run(network, trials):
        asked = ask("space=lr", "sampler=random", "train.epochs=1", "train.batch_size=32")
        config = asked.config.with_values({"model": {"_target_": f"test_clean_up.{network}"}})
        definition = replace(asked, config=config)
        monkeypatch.setattr(Definition, "compose_config", lambda self, configuration: self.config)
        work(definition, fresh(sqlite_url, definition, trials), trials)

    return run


def test_a_trial_gives_its_memory_back_to_the_gpu(search, monkeypatch):
    alive = []  # how many networks there were, each time that memory was returned
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(len(CYCLIC_NETWORKS)))
    gc.collect()
    gc.disable()  # it may run at any time
    try:
        search("Cyclic", 3)
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


def test_the_memory_of_a_macs_gpu_is_given_back_too(search, monkeypatch):
    returned = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.mps, name, lambda *_: torch.zeros(1))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: returned.append(True))
    search("Cyclic", 2)
    assert returned == [True, True]


def test_each_trial_is_compiled_however_many_came_before(search):
    search("Compiled", TRIALS)
    assert len(set(COMPILED_WIDTHS)) == TRIALS
