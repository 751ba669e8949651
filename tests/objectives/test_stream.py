"""`Stream`: the position in an iterable, saved in one object and restored in another."""

import itertools
import random

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from studyloom.objectives.stream import Stream
from studyloom.training.checkpoint import copy_state

NUMBERS = [0, 1, 2, 3, 4]


def test_each_for_continues_until_the_pass_ends():
    stream = Stream(NUMBERS)
    assert [*itertools.islice(stream, 2)] == [0, 1]
    assert (stream.passes, stream.items) == (0, 2)
    assert [*stream] == [2, 3, 4]
    assert (stream.passes, stream.items) == (1, 0)
    assert [*stream] == NUMBERS


@pytest.mark.parametrize("taken", range(12))
def test_a_stream_continues_after_the_item_at_which_it_was_saved(taken):
    stream = Stream(NUMBERS)
    endless = itertools.chain.from_iterable(itertools.repeat(stream))
    for _ in range(taken):
        next(endless)
    resumed = Stream(NUMBERS)
    resumed.load_state_dict(copy_state(stream.state_dict(), "stream"))
    assert (resumed.passes, resumed.items) == (stream.passes, stream.items)
    assert [*resumed] == [*stream]
    assert [*resumed] == NUMBERS


def test_a_restored_stream_leaves_the_random_state_of_the_training():
    def make_stream():
        return Stream(DataLoader(TensorDataset(torch.arange(9)), shuffle=True))

    stream = make_stream()
    next(stream)
    resumed = make_stream()
    resumed.load_state_dict(stream.state_dict())
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    next(resumed)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


class Own(IterableDataset):
    """Saves its position, and counts the items that it has loaded."""

    def __init__(self):
        self.place = self.loaded = 0

    def __iter__(self):
        while self.place < 5:
            self.place += 1
            self.loaded += 1
            yield self.place
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def test_an_iterable_with_a_state_restores_its_position_itself():
    stream = Stream(Own())
    assert [next(stream), next(stream)] == [1, 2]
    resumed = Stream(Own())
    resumed.load_state_dict(stream.state_dict())
    assert [*resumed] == [3, 4, 5]
    assert resumed.iterable.loaded == 3
    assert [*resumed] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"saved by another kind of iterable.*this one is a list"):
        Stream(NUMBERS).load_state_dict(stream.state_dict())


def test_what_cannot_be_read_again_is_refused():
    with pytest.raises(TypeError, match="got an iterator, generator; give what it iterates over"):
        Stream(number for number in NUMBERS)
    with pytest.raises(TypeError, match=r"got int; .*as DataLoader\(dataset\)"):
        Stream(5)
    with pytest.raises(ValueError, match="a DataLoader with persistent_workers=False: workers"):
        Stream(DataLoader(NUMBERS, num_workers=1, persistent_workers=True))


def test_an_iterable_that_has_become_shorter_is_named():
    stream = Stream(NUMBERS)
    [*itertools.islice(stream, 4)]
    shorter = Stream(NUMBERS[:2])
    shorter.load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match="had given 4 items, and now ends after 2; its list must"):
        next(shorter)
