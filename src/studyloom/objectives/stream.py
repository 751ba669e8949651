"""`Stream`, which makes the position in an iterable of examples part of a checkpoint.

A *pass* reads the iterable once, from its first item to its last. The *position* is the number of
passes that have ended, and the number of items that the present one has given.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, Self, TypedDict, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from studyloom.training.checkpoint import State
from studyloom.training.randomness import RandomState, get_random_state, set_random_state

Item = TypeVar("Item")


@runtime_checkable
class Stateful(Protocol):
    """An iterable that saves and restores its own position."""

    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State, /) -> object: ...


class StreamState(TypedDict):
    """The position of a stream, as a checkpoint holds it.

    Attributes:
        passes: the number of passes that have ended.
        items: the number of items that the present pass has given.
        start: the random state in which the present pass began, which decides the order of a
            shuffling DataLoader; None between two passes.
        generator: the present state of a DataLoader's own generator; None if it has none.
        iterable: the iterable's own state; None if it has none.
    """

    passes: int
    items: int
    start: RandomState | None
    generator: Tensor | None
    iterable: State | None


class Stream(Generic[Item]):
    """An iterable of examples whose position `run.keep` saves and restores.

    For a custom training loop that reads an iterable Dataset or a DataLoader on from epoch to
    epoch:

        def train(run, *, lr=0.001):
            stream = Stream(DataLoader(Lines("corpus.txt"), batch_size=64))
            run.keep(net=net, optimizer=optimizer, stream=stream)
            for epoch in run.epochs(20):
                for batch in itertools.islice(stream, 500):  # an epoch is 500 batches
                    ...

    Each `for` continues where the last one stopped, also after a `break`. The end of a pass ends
    the `for`, and the next one begins another pass. In a resumed trial, the stream opens the
    iterable again and skips as many items as the present pass had given; that takes the time of
    loading them. An iterable with `state_dict` and `load_state_dict` restores its position itself;
    the pass after that one must begin at the first item again.

    A pass is opened again in the random state in which it began. So a DataLoader with
    `shuffle=True` has the same order again. An iterable Dataset that shuffles must draw a seed at
    the start of `__iter__`, or use a fixed one, and shuffle by a generator of its own: the global
    generators are also used by the training in between. Generators and positions that it keeps
    from pass to pass are restored only by its `state_dict`.

    Args:
        iterable: a DataLoader, an iterable Dataset, or anything else that begins again with each
            `for`. Do not give `run.keep` its Dataset too: the position would count twice.

    Attributes:
        iterable: the iterable.
        passes: the number of passes that have ended.
        items: the number of items that the present pass has given.
        sources: the objects whose position the stream's state includes, so that a loop need not
            keep them: the iterable, and the Dataset of a DataLoader.

    Raises:
        TypeError: it is no iterable, or it is an iterator, such as a generator, which cannot begin
            again.
        ValueError: a DataLoader has `persistent_workers=True`.

    Examples:
        >>> stream = Stream(["a", "b", "c"])
        >>> next(stream), next(stream)
        ('a', 'b')
        >>> resumed = Stream(["a", "b", "c"])
        >>> resumed.load_state_dict(stream.state_dict())
        >>> list(resumed), resumed.passes
        (['c'], 1)
    """

    def __init__(self, iterable: Iterable[Item]) -> None:
        kind = type(iterable).__name__
        if not isinstance(iterable, Iterable):
            raise TypeError(
                "studyloom.Stream must get an iterable, such as a DataLoader or an "
                f"IterableDataset; got {kind}; give a map-style Dataset as DataLoader(dataset)"
            )
        if isinstance(iterable, Iterator) and not isinstance(iterable, Stateful):
            raise TypeError(
                "studyloom.Stream must get an iterable that begins again with each `for`, such as "
                f"a DataLoader or a list; got an iterator, {kind}; give what it iterates over"
            )
        self.iterable = iterable
        self.passes = 0
        self.items = 0
        self.sources: list[object] = [iterable]
        self._generator: torch.Generator | None = None  # which a DataLoader was given
        self._iterator: Iterator[Item] | None = None  # of the present pass; None before it opens
        self._start: RandomState | None = None  # of the present pass; None between two passes
        if isinstance(iterable, DataLoader):
            if iterable.persistent_workers:
                raise ValueError(
                    "studyloom.Stream must get a DataLoader with persistent_workers=False: workers "
                    "that persist carry random numbers from pass to pass, which no checkpoint holds"
                )
            self.sources.append(iterable.dataset)
            self._generator = iterable.generator

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        if self._iterator is None:
            self._iterator = self._open_pass()
        try:
            item = next(self._iterator)
        except StopIteration:
            self._iterator = None
            self._start = None
            self.passes += 1
            self.items = 0
            raise
        self.items += 1
        return item

    def state_dict(self) -> StreamState:
        """Returns the position, and the iterable's own state if it has one."""
        own_state = None
        if isinstance(self.iterable, Stateful):
            own_state = self.iterable.state_dict()
        return {
            "passes": self.passes,
            "items": self.items,
            "start": self._start,
            "generator": self._get_generator_state(),
            "iterable": own_state,
        }

    def load_state_dict(self, state: StreamState) -> None:
        """Restores a position; the next item is the one after it.

        Args:
            state: what `state_dict` returned, also in another process.

        Raises:
            ValueError: only one of the two iterables has a state of its own.
        """
        own_state = state["iterable"]
        has_own_state = isinstance(self.iterable, Stateful)
        if has_own_state != (own_state is not None):
            raise ValueError(
                "the position was saved by another kind of iterable: one of the two has state_dict "
                f"and load_state_dict; this one is a {type(self.iterable).__name__}"
            )
        if isinstance(self.iterable, Stateful) and own_state is not None:
            self.iterable.load_state_dict(own_state)
        self._set_generator_state(state["generator"])
        self.passes = state["passes"]
        self.items = state["items"]
        self._start = state["start"]
        self._iterator = None

    def _open_pass(self) -> Iterator[Item]:
        """Begins the next pass, or opens again the pass of the position that was restored."""
        if self._start is None:
            self._start = self._get_random_state()
            return iter(self.iterable)
        # The training has drawn random numbers since the pass began. It continues from its state.
        training_state = self._get_random_state()
        self._set_random_state(self._start)
        try:
            iterator = iter(self.iterable)
            if not isinstance(self.iterable, Stateful):
                self._skip_items(iterator)
        finally:
            self._set_random_state(training_state)
        return iterator

    def _skip_items(self, iterator: Iterator[Item]) -> None:
        """Takes the items that the present pass had given.

        Raises:
            ValueError: the iterable has fewer items.
        """
        skipped = 0
        for _ in itertools.islice(iterator, self.items):
            skipped += 1
        if skipped < self.items:
            raise ValueError(
                f"a stream cannot return to its position: its pass had given {self.items} items, "
                f"and now ends after {skipped}; its {type(self.iterable).__name__} must give the "
                "same items each time"
            )

    def _get_random_state(self) -> RandomState:
        """Returns the state of all generators, that of the DataLoader's own included."""
        state = get_random_state()
        state["generator"] = self._get_generator_state()
        return state

    def _set_random_state(self, state: RandomState) -> None:
        set_random_state(state)
        self._set_generator_state(state["generator"])

    def _get_generator_state(self) -> Tensor | None:
        if self._generator is None:
            return None
        return self._generator.get_state()

    def _set_generator_state(self, state: Tensor | None) -> None:
        if self._generator is not None and state is not None:
            self._generator.set_state(state)
