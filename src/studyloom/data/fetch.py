"""Fetches batches of a Dataset, one item after the other, under a seed that the batch brings.

What a batch holds depends on its items and its seed alone: not on the process that fetches it, nor
on the batches before it. So training draws the same whatever `data.num_workers` is.
"""

import functools
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from studyloom.errors import TRAIN_IT_YOURSELF, DataError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Has PyTorch, NumPy and Python draw from a seed in the body, and gives their states back.

    It takes 0.1 ms.

    Args:
        seed: from 0 to 2⁶³ - 1.
    """
    generator = torch.default_generator
    states = generator.get_state(), np.random.get_state(), random.getstate()
    try:
        generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@dataclass(frozen=True, eq=False)
class Items:
    """The items of one Dataset, or of several one after the other, and how they become a batch.

    Args:
        parts: the datasets, each after the key of the config that names it.
        collate: makes a batch of a list of items; None for PyTorch's own.
    """

    parts: tuple[tuple[str, Any], ...]
    collate: Callable[[list[Any]], Any] | None = None

    def __len__(self) -> int:
        return sum(len(dataset) for _, dataset in self.parts)

    def cached(self) -> "Items":
        """Returns the same items, each of which is loaded once."""
        return replace(self, parts=tuple((key, Cached(dataset)) for key, dataset in self.parts))

    def item(self, index: int) -> Any:
        """Returns the item at an index.

        Raises:
            DataError: its dataset raises an exception, which the message names.
        """
        key, dataset, own = self._locate(index)
        try:
            return dataset[own]
        except MemoryError:
            raise
        except Exception as error:  # whatever a user's dataset raises
            raise _explained(f"{key}: item {own} raised {_words(error)}", error) from error

    def __getitem__(self, index: int) -> Any:
        return self.item(index)

    def fetch(self, indices: Sequence[int], seed: int) -> Any:
        """Returns the batch of the items at some indices.

        Raises:
            DataError: an item or the collate function raises an exception, or there is no batch.
        """
        with seeded(seed):
            return self.put_together(self._items(indices))

    def put_together(self, items: list[Any]) -> Any:
        """Makes a batch of items; raises DataError as `fetch` does."""
        make = default_collate if self.collate is None else self.collate
        name = "PyTorch's default_collate" if self.collate is None else name_of(self.collate)
        try:
            batch = make(items)
        except MemoryError:
            raise
        except Exception as error:  # whatever a user's function raises
            way_out = (
                "; items of several shapes or types need a data.collate, a function of a list of "
                f"items to a batch, {TRAIN_IT_YOURSELF}"
                if self.collate is None
                else ""
            )
            raise _explained(
                f"data.collate: {name} raised {_words(error)} for {len(items)} items{way_out}",
                error,
            ) from error
        if batch is None:
            raise DataError(
                f"data.collate must return the batch of a list of items; {name} returned None"
            )
        return batch

    def _items(self, indices: Sequence[int]) -> list[Any]:
        if len(self.parts) == 1:
            together = getattr(self.parts[0][1], "__getitems__", None)
            if together is not None:
                try:
                    return list(together(list(indices)))
                except Exception:  # one by one, to name the item
                    pass
        return [self.item(index) for index in indices]

    def _locate(self, index: int) -> tuple[str, Any, int]:
        """Returns key and dataset of an item, and its index there."""
        for key, dataset in self.parts:
            if index < len(dataset):
                return key, dataset, index
            index -= len(dataset)
        raise IndexError(index)


class Cached:
    """A Dataset that keeps the items it was asked for: before the first trial, each is read once.

    Args:
        dataset: the dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._items: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        if index not in self._items:
            self._items[index] = self._dataset[index]
        return self._items[index]


def structure(value: Any, *, nested: bool = False) -> str:
    """Describes what a batch or an item is made of, without its sizes.

    A list of things alike is described by one of them, also if there is but one, and so is a tuple
    within the batch: such as ragged sequences, or the names of the files.

    Args:
        value: the batch or item.
        nested: whether it is a part of one.
    """
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        return f"{kind} of {str(value.dtype).removeprefix('torch.')}, {value.ndim} dimensions"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}: {structure(part, nested=True)}" for key, part in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list | tuple):
        parts = [structure(part, nested=True) for part in value]
        if (nested or type(value) is list) and len(set(parts)) == 1:
            parts = [parts[0], "…"]
        return f"({', '.join(parts)})"
    return type(value).__name__


def move(value: Any, device: torch.device) -> Any:
    """Moves the tensors of a batch to a device, in tuples, lists and mappings at any depth."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple) and hasattr(value, "_fields") and not hasattr(value, "to"):
        return type(value)(*(move(part, device) for part in value))
    if type(value) in (list, tuple):
        return type(value)(move(part, device) for part in value)
    if isinstance(value, dict):
        return {key: move(part, device) for key, part in value.items()}
    if callable(getattr(value, "to", None)):  # a packed sequence, or a class of the user's own
        return value.to(device)
    return value


def name_of(function: Any) -> str:
    """Returns the name of a function or class of the user's own, for messages."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}".removesuffix(": ")


def _explained(message: str, cause: Exception) -> DataError:
    """Makes an error whose traceback, also of another process, shows that of its cause."""
    error = DataError(message)
    error.add_note("".join(traceback.format_exception(cause)).rstrip())
    return error
