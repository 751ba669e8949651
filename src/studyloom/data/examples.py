"""Examples of a Dataset, which are loaded when they are needed, item by item, under a seed.

The content of a batch depends only on its items and its seed. It does not depend on the process
that loads it, nor on the batches before it: training draws the same for any `data.num_workers`.
"""

import functools
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, default_collate

from studyloom.data.split import Fold, Folds, Split, Tokens, make_folds
from studyloom.errors import TRAIN_IT_YOURSELF, DataError
from studyloom.text import name_error

SAMPLE_SIZE = 16  # the number of items of a large Dataset that are loaded before the first trial
SAMPLE_SEED = 0  # the seed under which they are loaded


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds PyTorch, NumPy and Python for the body, and restores their states afterwards."""
    generator = torch.default_generator
    state_of_torch = generator.get_state()
    state_of_numpy = np.random.get_state()
    state_of_python = random.getstate()
    try:
        generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        generator.set_state(state_of_torch)
        np.random.set_state(state_of_numpy)
        random.setstate(state_of_python)


class MapDataset(Protocol):
    """A map-style Dataset: its items are numbered from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class NamedDataset(NamedTuple):
    """A Dataset, and the key of the config that names it, such as data.train."""

    key: str
    dataset: MapDataset


class ItemPlace(NamedTuple):
    """The place of an item: its Dataset, the key that names it, and the item's position there."""

    key: str
    dataset: MapDataset
    position: int


@dataclass(frozen=True, eq=False)
class Items:
    """The items of one Dataset, or of several one after the other, and how they become a batch.

    Args:
        parts: the Datasets in their order.
        collate: a function from a list of items to a batch; None: PyTorch's default_collate.
        cache: the items that have been loaded, by their index; None: each item is loaded again when
            it is needed.
    """

    parts: tuple[NamedDataset, ...]
    collate: Callable[[list[Any]], Any] | None = None
    cache: dict[int, Any] | None = None

    def __len__(self) -> int:
        return sum(len(dataset) for _, dataset in self.parts)

    def __getitem__(self, index: int) -> Any:
        """Returns an item from the cache, or else from its Dataset; an error names the item."""
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        place = self._locate(index)
        try:
            item = place.dataset[place.position]
        except MemoryError:
            raise
        except Exception as error:  # a user's Dataset may raise anything
            raise _make_error(f"{place.key}: item {place.position} raised", error) from error
        if self.cache is not None:
            self.cache[index] = item
        return item

    def _locate(self, index: int) -> ItemPlace:
        """Finds the item at an index that counts through all Datasets, the first one's first."""
        position = index
        for key, dataset in self.parts:
            if position < len(dataset):
                return ItemPlace(key, dataset, position)
            position -= len(dataset)
        raise IndexError(position)

    def load_item(self, index: int, seed: int = SAMPLE_SEED) -> Any:
        """Returns an item, the same each time even if the Dataset draws random numbers."""
        with seeded(seed):
            return self[index]

    def sample_indices(self) -> list[int]:
        """Returns at most 16 evenly spaced indices, the first and the last among them."""
        last_index = len(self) - 1
        if last_index < SAMPLE_SIZE:
            return list(range(len(self)))
        return [number * last_index // (SAMPLE_SIZE - 1) for number in range(SAMPLE_SIZE)]

    def load_batch(self, indices: Sequence[int], seed: int) -> Any:
        """Returns the batch of some items.

        Args:
            indices: the positions of the items.
            seed: seeds the random numbers that the Dataset and `collate` draw.

        Raises:
            DataError: an item, or `collate`, raises an exception; the message names it.
        """
        with seeded(seed):
            return self._collate_items(self._load_items(indices))

    def _load_items(self, indices: Sequence[int]) -> list[Any]:
        """Returns the items at indices, by one call of the Dataset if it can load several at once.

        If such a call fails, its error does not say which item has caused it. So the items are then
        loaded one by one, which raises the error again, with the item's position.
        """
        dataset = self.parts[0].dataset
        if hasattr(dataset, "__getitems__") and len(self.parts) == 1 and self.cache is None:
            with suppress(Exception):
                return list(dataset.__getitems__(list(indices)))
        return [self[index] for index in indices]

    def _collate_items(self, items: list[Any]) -> Any:
        """Makes a batch of items by `collate`, or by PyTorch's default_collate; explains errors."""
        if self.collate is None:
            make_batch = default_collate
            name = "PyTorch's default_collate"
            fix = (
                "; items of several shapes or types need a data.collate, a function of a list of "
                f"items to a batch, {TRAIN_IT_YOURSELF}"
            )
        else:
            make_batch = self.collate
            name = function_name(self.collate)
            fix = ""
        try:
            batch = make_batch(items)
        except MemoryError:
            raise
        except Exception as error:  # a user's function may raise anything
            end = f" for {len(items)} items{fix}"
            raise _make_error(f"data.collate: {name} raised", error, end) from error
        if batch is None:
            raise DataError(
                f"data.collate must return the batch of a list of items; {name} returned None"
            )
        return batch


@dataclass(frozen=True)
class Loading:
    """How items are loaded; not part of the study definition, since it changes no result.

    Args:
        num_workers: the number of processes that load batches; 0: the trial's own process.
        pin_memory: whether batches are loaded into pinned memory.
        persistent_workers: whether these processes outlive an epoch, and end with the trial.
    """

    num_workers: int = 0
    pin_memory: bool = False
    persistent_workers: bool = False


@dataclass(frozen=True, eq=False)
class Examples:
    """One part of a data set whose examples are loaded when they are needed; compare `Split`.

    Its length is the number of examples to train on.

    Args:
        training: the examples for training, which may be cropped at random and the like.
        evaluation: the same examples for evaluation, without random changes. The examples of a
            separate validation set follow, if there is one.
        loading: how items are loaded.
        digest: a string that identifies the data.
        outputs: the number of outputs of a network for each input; None if it is not known.
        shape: the shape of one input; None if it is not one tensor.
        classifies: whether the targets are classes.
        targets: the class of each training example, int64 (n,); None if it is not known.
        targets_found: whether they are an attribute of the Dataset, and not the key data.targets.
        weights: how often each training example is drawn, relative to the others, (n,); None: each
            once an epoch.
        groups: the number of each training example's group, int64 (n,); None: no groups.
        ordered: whether the examples are in time order.
        names: the names of the classes; empty if they have none.
        group_names: the group of each example of a test set, such as its speaker.
        tokens: the vocabulary, if the inputs are texts; None otherwise.
        kind: the type of the inputs, such as float32; None if they are not one tensor.
        device: the device to which batches are moved.
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
    def _validation_indices(self) -> Tensor | None:
        """The indices of the separate validation set in `evaluation`; None if there is none."""
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
        """Divides the examples as `Split.folds` does.

        If there is a separate validation set, the only fold trains on all examples, and validates
        on that set.
        """
        validation_indices = self._validation_indices
        if validation_indices is not None:
            if count > 1:
                raise DataError(
                    f"objective.folds must be 1 where the data has its own validation set; "
                    f"got {count}; or leave out data.valid"
                )
            return [Fold(torch.arange(len(self)), validation_indices)]
        if validation is None:
            if count == 1:
                raise DataError(
                    "data.validation must be the number of training examples to hold out as the "
                    "validation set; or name its Dataset as data.valid"
                )
            validation = 0  # unused, since several folds divide all examples
        targets = self.targets
        if targets is None:
            targets = torch.zeros(len(self))  # folds are stratified by integers, not by floats
        return make_folds(
            targets, count, validation, seed, ordered=self.ordered, groups=self.groups
        )

    def whole_fold(self) -> Fold:
        """Returns a fold that trains on all examples; see `Split.whole_fold`.

        It evaluates the separate validation set, if there is one, and else a fifth of the examples.
        """
        indices = torch.arange(len(self))
        if self._validation_indices is not None:
            return Fold(indices, self._validation_indices)
        return Fold(indices, indices[: max(1, len(self) // 5)])

    def input_at(self, index: int) -> Tensor | None:
        """Returns the input of an example in evaluation; None if it is not one tensor."""
        return read_input(self.evaluation.load_item(index))

    def adapt_modules(self, modules: Sequence[Any], train: Tensor, part: str) -> None:
        """Lets modules of a loss adapt to the classes of the training examples.

        Their method `adapt` gets the classes only: its inputs are an empty tensor, (n, 0).

        Args:
            modules: modules with a method `adapt`, such as one that weights the classes.
            train: the indices of the training examples, int64.
            part: "network" or "loss", of which the modules are part.

        Raises:
            DataError: the modules are part of a network, or the classes are not known: a Dataset
                would have to load each item.
        """
        if part == "network" or self.targets is None:
            raise DataError(
                f"the {part} learns from all inputs or targets before the first step (its method "
                "adapt, as in model.standardize=true and loss.weights=balanced), and a Dataset "
                "loads them one by one; normalize them in the Dataset, or give data.targets"
            )
        inputs = torch.empty(len(train), 0)  # none
        targets = self.targets[train.cpu()].to(self.device)
        for module in modules:
            module.adapt(inputs, targets)

    def check(self) -> None:
        """Loads a sample of the items, in their view for training and in that for evaluation.

        Raises:
            DataError: an item cannot be loaded, has another structure than the first, or another
                class than its Dataset says.
        """
        views = [self.training]
        if self.evaluation is not self.training:
            views.append(self.evaluation)
        for items in views:
            dataset_key = items.parts[0].key  # such as data.train
            first_structure = describe_structure(items.load_item(0))
            for index in items.sample_indices():
                item = items.load_item(index)
                structure = describe_structure(item)
                if structure != first_structure and items.collate is None:
                    raise DataError(
                        f"{dataset_key}: all items must have the same structure; item 0 is "
                        f"{first_structure}, and item {index} is {structure}; make batches of them "
                        f"with your own data.collate, {TRAIN_IT_YOURSELF}"
                    )
                self._check_class(items, index, read_target(item))

    def _check_class(self, items: Items, index: int, target: Tensor | None) -> None:
        """Raises DataError if an item has another class than an attribute of its Dataset says.

        Args:
            target: that of the item; None if it is not a tensor.
        """
        if self.targets is None or not self.targets_found:  # no attribute says the classes
            return
        if index >= len(self):  # an item of the separate validation set, which has no `targets`
            return
        if target is None or target.ndim > 0:  # the target is no class
            return
        expected_class = int(self.targets[index])
        if target.item() != expected_class:
            raise DataError(
                f"{items.parts[0].key}: item {index} is of class {target.item()}, but "
                f"{expected_class} in the targets or labels of the Dataset, as by a "
                "target_transform; give the classes of all items as data.targets, and their number "
                "as data.outputs"
            )

    def for_preflight(self) -> "Examples":
        """Returns a copy for the checks before the first trial.

        The copy loads each item once, in this process, and leaves batches on the CPU.
        """
        return replace(
            self,
            training=replace(self.training, cache={}),  # keeps each item that was loaded
            evaluation=replace(self.evaluation, cache={}),
            loading=Loading(),  # without processes that load items
            device=torch.device("cpu"),
        )

    def order_for_preflight(self, train: Tensor) -> Tensor:
        """Returns the indices unchanged: no item is known to be special before it is loaded."""
        return train


# A training or test set: in memory, or loaded example by example.
Part = Split | Examples


def read_input(item: object) -> Tensor | None:
    """Returns the input of an item `(input, target)`; None if it is not one tensor."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        return None
    return _as_tensor(item[0])


def read_target(item: object) -> Tensor | None:
    """Returns the target of an item `(input, …, target)`; None if it is not a tensor."""
    if not isinstance(item, tuple | list) or len(item) < 2:
        return None
    return _as_tensor(item[-1])


def _as_tensor(value: object) -> Tensor | None:
    """Converts a tensor, an array or a number to a tensor; returns None for anything else."""
    if isinstance(value, Tensor | np.ndarray | np.generic | int | float):
        with suppress(TypeError):  # an array of strings, or of other objects
            return torch.as_tensor(value)
    return None


def describe_structure(value: object, *, nested: bool = False) -> str:
    """Describes the structure of a batch or an item, without its sizes.

    For example "(tensor of float32, 3 dimensions, int)". If all values of a list have the same
    structure, it is shortened: "(int, …)" for [1, 2, 3]. A nested tuple is shortened likewise. The
    outermost tuple is not: it is an item, whose inputs and target are described one by one.

    Args:
        nested: whether the value is within another one.
    """
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"tensor of {dtype}, {value.ndim} dimensions"
    if isinstance(value, np.ndarray):
        return f"array of {value.dtype}, {value.ndim} dimensions"
    if isinstance(value, Mapping):
        entries = []
        for key, part in value.items():
            entries.append(f"{key}: {describe_structure(part, nested=True)}")
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list | tuple):
        parts = [describe_structure(part, nested=True) for part in value]
        is_shortened = nested or type(value) is list
        if is_shortened and len(set(parts)) == 1:
            parts = [parts[0], "…"]
        return f"({', '.join(parts)})"
    return type(value).__name__


def move_to_device(value: Any, device: torch.device) -> Any:
    """Moves the tensors of a batch to a device, in tuples, lists and mappings at any depth."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if type(value) in (list, tuple):
        return type(value)(move_to_device(part, device) for part in value)
    if isinstance(value, dict):
        return {key: move_to_device(part, device) for key, part in value.items()}
    if hasattr(value, "to"):  # a custom class, or PyTorch's PackedSequence, a named tuple
        if callable(value.to):
            return value.to(device)
        return value  # `to` is an attribute of the user's, not a method
    is_named_tuple = isinstance(value, tuple) and hasattr(value, "_fields")
    if is_named_tuple:
        moved_fields = [move_to_device(part, device) for part in value]
        return type(value)(*moved_fields)
    return value


def function_name(function: object) -> str:
    """Returns the name of a custom function or class, for messages."""
    while isinstance(function, functools.partial):
        function = function.func
    if hasattr(function, "__name__"):
        return str(function.__name__)
    return type(function).__name__


def _make_error(start: str, cause: Exception, end: str = "") -> DataError:
    """Makes the error for an exception of a user's code, with its traceback as a note.

    Without the note the traceback would be lost when a process that loads sends the error: the
    cause of an exception is not pickled with it.

    Args:
        start: the beginning of the message, before the type and text of the exception.
        cause: the exception.
        end: the end of the message.
    """
    error = DataError(f"{start} {name_error(cause, length=400)}{end}")
    error.add_note("".join(traceback.format_exception(cause)).rstrip())
    return error
