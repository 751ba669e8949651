"""Examples of a Dataset, which are loaded when they are needed, item by item, under a seed.

What a batch holds depends only on its items and its seed: not on the process that loads it, nor
on the batches before it. So training draws the same whatever `data.num_workers` is.
"""

import functools
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, default_collate

from studyloom.data.split import Fold, Folds, Split, Tokens, make_folds
from studyloom.errors import TRAIN_IT_YOURSELF, DataError
from studyloom.text import name_error

SAMPLED = 16  # items of a large dataset that are looked at before the first trial
ALWAYS = 0  # the seed under which they are


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds PyTorch, NumPy and Python for the body, and restores their states afterwards."""
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
    """The items of one Dataset, or of several one after the other, and how they become a batch."""

    parts: tuple[tuple[str, Any], ...]  # the datasets, each after the key that names it
    collate: Callable[[list[Any]], Any] | None = None
    cache: dict[int, Any] | None = None

    def __len__(self) -> int:
        return sum(len(dataset) for _, dataset in self.parts)

    def __getitem__(self, index: int) -> Any:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        key, dataset, own = self._locate(index)
        try:
            item = dataset[own]
        except MemoryError:
            raise
        except Exception as error:  # whatever a user's dataset raises
            raise _explained(f"{key}: item {own} raised", error) from error
        if self.cache is not None:
            self.cache[index] = item
        return item

    def _locate(self, index: int) -> tuple[str, Any, int]:
        for key, dataset in self.parts:
            if index < len(dataset):
                return key, dataset, index
            index -= len(dataset)
        raise IndexError(index)

    def at(self, index: int, seed: int = ALWAYS) -> Any:
        """Returns an item, the same each time even if the Dataset draws random numbers."""
        with seeded(seed):
            return self[index]

    def some(self) -> list[int]:
        """Returns some evenly spaced indices, the first and the last among them."""
        if len(self) <= SAMPLED:
            return list(range(len(self)))
        return [k * (len(self) - 1) // (SAMPLED - 1) for k in range(SAMPLED)]

    def fetch(self, indices: Sequence[int], seed: int) -> Any:
        """Returns the batch of some items; DataError names what raises an exception there."""
        with seeded(seed):
            return self._put_together(self._items(indices))

    def _items(self, indices: Sequence[int]) -> list[Any]:
        together = getattr(self.parts[0][1], "__getitems__", None)
        if together is not None and len(self.parts) == 1 and self.cache is None:
            with suppress(Exception):  # one by one, to name the item
                return list(together(list(indices)))
        return [self[index] for index in indices]

    def _put_together(self, items: list[Any]) -> Any:
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
            )
            raise _explained(
                f"data.collate: {name} raised",
                error,
                f" for {len(items)} items{way_out if self.collate is None else ''}",
            ) from error
        if batch is None:
            raise DataError(
                f"data.collate must return the batch of a list of items; {name} returned None"
            )
        return batch


@dataclass(frozen=True)
class Loading:
    """How items are loaded; not part of the study definition, since it changes no result.

    With `persistent_workers` the processes that load outlive an epoch, and end with the trial.
    """

    num_workers: int = 0
    pin_memory: bool = False
    persistent_workers: bool = False


@dataclass(frozen=True, eq=False)
class Examples:
    """One part of a data set whose examples are loaded when they are needed; compare `Split`.

    Its length is the number of examples to train on.

    Args:
        training: the examples as one trains on them.
        evaluation: the same as one evaluates them, followed by those of a given validation set,
            if there is one.
        outputs: how many numbers a network returns for each input; None if that is not known.
        shape: of one input; None if it is not one tensor.
        targets: the class of each training example, int64 (n,); None if it is not known.
        targets_found: whether they are an attribute of the Dataset, and not given as data.targets.
        weights: with which each training example is drawn, (n,); None for each once an epoch.
        groups: of each training example, int64 (n,).
        group_names: the group of each example of a test set, such as its speaker.
        kind: what the inputs are made of, such as float32; None if they are not one tensor.
        device: where batches are moved to.
    """

    in_memory: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()
    references: ClassVar[Mapping[str, Tensor]] = {}
    mean: ClassVar[float] = 0.0
    std: ClassVar[float] = 1.0

    training: Items
    evaluation: Items
    loading: Loading
    digest: str
    outputs: int | None
    shape: tuple[int, ...] | None
    classifies: bool
    targets: Tensor | None = None
    targets_found: bool = False
    weights: Tensor | None = None
    groups: Tensor | None = None
    ordered: bool = False
    names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    tokens: Tokens | None = None
    kind: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.training)

    @property
    def _own(self) -> Tensor | None:
        # The indices of the given validation set, if there is one.
        if len(self.evaluation) == len(self):
            return None
        return torch.arange(len(self), len(self.evaluation))

    def to(self, device: torch.device | str) -> "Examples":
        return replace(self, device=torch.device(device))

    def as_dataset(self, indices: Tensor | None = None, *, to_train: bool = False) -> Subset[Any]:
        """Returns some examples as a Dataset.

        Args:
            indices: int64 (m,); None: all training examples.
            to_train: True: the view for training; False: the view for evaluation.
        """
        items: Any = self.evaluation
        if to_train:
            items = self.training
        if indices is None:
            return Subset(items, range(len(self)))
        return Subset(items, indices.tolist())

    def folds(self, count: int, validation: int | None, seed: int) -> Folds:
        """Divides the examples, or returns the given validation set as the only fold."""
        if self._own is not None:
            if count > 1:
                raise DataError(
                    f"objective.folds must be 1 where the data has its own validation set; "
                    f"got {count}; or leave out data.valid"
                )
            return [Fold(torch.arange(len(self)), self._own)]
        if validation is None:
            if count == 1:
                raise DataError(
                    "data.validation must be the number of training examples to hold out as the "
                    "validation set; or name its Dataset as data.valid"
                )
            validation = 0
        known = self.targets if self.targets is not None else torch.zeros(len(self))
        return make_folds(known, count, validation, seed, ordered=self.ordered, groups=self.groups)

    def whole_fold(self) -> Fold:
        """Returns a fold that trains on all examples; see `Split.whole_fold`.

        It evaluates the separate validation set, if there is one, and else a fifth of the examples.
        """
        indices = torch.arange(len(self))
        if self._own is not None:
            return Fold(indices, self._own)
        return Fold(indices, indices[: max(1, len(self) // 5)])

    def input_at(self, index: int) -> Tensor | None:
        """Returns the input of an example in evaluation; None if it is not one tensor."""
        return input_of(self.evaluation.at(index))

    def adapt_modules(self, modules: Sequence[Any], train: Tensor, part: str) -> None:
        """Calls `adapt` of modules of a loss with no inputs, (n, 0), and the classes."""
        if part == "network" or self.targets is None:
            raise DataError(
                f"the {part} learns from all inputs or targets before the first step (its method "
                "adapt, as in model.standardize=true and loss.weights=balanced), and a Dataset "
                "loads them one by one; normalize them in the Dataset, or give data.targets"
            )
        inputs, targets = torch.empty(len(train), 0), self.targets[train.cpu()].to(self.device)
        for module in modules:
            module.adapt(inputs, targets)

    def check(self) -> None:
        """Raises DataError if one of some items cannot be loaded, or differs from the others."""
        for items in dict.fromkeys((self.training, self.evaluation)):
            first = structure(items.at(0))
            for index in items.some():
                item = items.at(index)
                made = structure(item)
                if made != first and items.collate is None:
                    raise DataError(
                        f"{items.parts[0][0]}: all items must have the same structure; item 0 is "
                        f"{first}, and item {index} is {made}; make batches of them with your "
                        f"own data.collate, {TRAIN_IT_YOURSELF}"
                    )
                self._check_class(items, index, target_of(item))

    def _check_class(self, items: Items, index: int, target: Tensor | None) -> None:
        """Raises DataError if an item has another class than its Dataset says."""
        if self.targets is None or not self.targets_found or index >= len(self):
            return
        known = int(self.targets[index])
        if target is not None and not target.ndim and target.item() != known:
            raise DataError(
                f"{items.parts[0][0]}: item {index} is of class {target.item()}, but {known} in "
                "the targets or labels of the Dataset, as by a target_transform; give the classes "
                "of all items as data.targets, and their number as data.outputs"
            )

    def for_preflight(self) -> "Examples":
        """Returns a copy for tries before the first trial: each item is loaded once, and here."""
        return replace(
            self,
            training=replace(self.training, cache={}),
            evaluation=replace(self.evaluation, cache={}),
            loading=Loading(),
            device=torch.device("cpu"),
        )

    def order_for_preflight(self, train: Tensor) -> Tensor:
        return train


# A part of a data set: in memory, or loaded example by example.
Part = Split | Examples


def input_of(item: Any) -> Tensor | None:
    """Returns the input of an item `(input, target)`; None if it is not one tensor."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        return None
    return _as_tensor(item[0])


def target_of(item: Any) -> Tensor | None:
    """Returns the target of an item `(input, …, target)`; None if it is no tensor."""
    if not isinstance(item, tuple | list) or len(item) < 2:
        return None
    return _as_tensor(item[-1])


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor | np.ndarray | np.generic | int | float):
        with suppress(TypeError):  # of an array of words
            return torch.as_tensor(value)
    return None


def structure(value: Any, *, nested: bool = False) -> str:
    """Describes the structure of a batch or an item, without its sizes.

    A list of things alike, and a tuple of them within the batch, is described by one of them.
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
    if callable(getattr(value, "to", None)):  # a packed sequence, or a custom class
        return value.to(device)
    return value


def name_of(function: Any) -> str:
    """Returns the name of a custom function or class, for messages."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _explained(start: str, cause: Exception, end: str = "") -> DataError:
    """Returns an error whose traceback shows that of its cause, also from another process."""
    error = DataError(f"{start} {name_error(cause, 400)}{end}")
    error.add_note("".join(traceback.format_exception(cause)).rstrip())
    return error
