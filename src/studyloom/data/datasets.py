"""Datasets of PyTorch: data that is loaded batch by batch, not held in memory as a tensor.

A training set has two views of its examples: one for training, which a Dataset may crop or flip at
random, and one for evaluation, without such changes.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from studyloom.data.data_source import DataSource
from studyloom.data.examples import (
    SAMPLE_SEED,
    Examples,
    Items,
    Loading,
    MapDataset,
    NamedDataset,
    Part,
    describe_structure,
    read_input,
    read_target,
)
from studyloom.data.split import Tokens
from studyloom.data.transform import Transform
from studyloom.errors import TRAIN_IT_YOURSELF, ConfigError, DataError
from studyloom.text import name_error

NO_TEST = (
    "data.test must be the Dataset of the test set, on which the winner is tested once; without "
    "one, set winner.enabled=false: then the study ends with its search, and best.yaml"
)
# Keys of a section `data`: those of Datasets, those whose sections may name folders, and those
# that change how data are loaded but no result.
DATASET_KEYS = ("train", "valid", "test", "evaluate")
KEYS_WITH_FOLDERS = (*DATASET_KEYS, "load")
LOADING_KEYS = ("num_workers", "pin_memory", "persistent_workers")


class Datasets(DataSource):
    """Data as map-style Datasets of PyTorch: anything with `__len__` and `__getitem__`.

    An item is `(input, target)`. The target is a class, an integer from 0, or a tensor of numbers
    to predict. An item may have several inputs, `(input, …, target)`, and inputs may be dicts; the
    network is called with all of them. For other items, define `train.step` and `train.evaluate`.

    `weights`, `groups`, `targets` and `digest` may be functions of the training Dataset. If it has
    an attribute `tokens`, a `Tokens`, the report shows which words misled the winner.

    Args:
        train: the Dataset of the training set, or a function that returns it.
        valid: the Dataset of the validation set, or a function that returns it. None: examples of
            `train` are held out.
        test: the Dataset of the test set, or a function that returns it. None: `load` returns it;
            without either, set `winner.enabled=false`.
        load: a function that returns the Dataset for "train", "test" or, if `validation` is None,
            "valid"; called for those that are not given. None: `train` must be given.
        evaluate: the examples of `train`, in the same order, for evaluation: without random crops,
            for instance. None: `train` itself.
        validation: the number of training examples that are held out as the validation set. None:
            `valid` or `load` provides it.
        collate: a function from a list of items to a batch. None: PyTorch's default_collate.
        num_workers: the number of processes that load batches; 0: the trial's own process.
        pin_memory: True: batches are loaded into pinned memory, for faster copies to a GPU.
        persistent_workers: True: the processes that load batches live as long as the trial; False:
            an epoch.
        weights: how often each training example is drawn with replacement, relative to the others,
            (n,). None: each once an epoch.
        groups: the group of each training example, n integers or strings; no group is in both the
            training set and the validation set. None: no groups.
        ordered: True: the examples are in time order, and the last ones are held out.
        outputs: the number of outputs of the network. None: derived from the items.
        shape: the shape of one input. None: that of the first item.
        targets: the class of each training example, n integers from 0, so that held-out sets are
            stratified. None: the attribute `targets` or `labels` of the Dataset, if it has one,
            which must be the classes of its items: a `target_transform` may change them.
        digest: a string that identifies the data. None: for a folder, names, sizes and times of
            its files; else the length of the Dataset and 16 items.
        transform: converts the content of a file to an input, for `studyloom predict`; see
            `Loaded`. None: `predict` reads no image files.
    """

    # Built when they are needed, so that the test set is not loaded before.
    DEFERRED: ClassVar[tuple[str, ...]] = DATASET_KEYS

    def __init__(
        self,
        train: MapDataset | Callable[[], MapDataset] | None = None,
        valid: MapDataset | Callable[[], MapDataset] | None = None,
        test: MapDataset | Callable[[], MapDataset] | None = None,
        load: Callable[[str], MapDataset] | None = None,
        evaluate: MapDataset | Callable[[], MapDataset] | None = None,
        validation: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        weights: ArrayLike | Callable[[MapDataset], ArrayLike] | None = None,
        groups: ArrayLike | Callable[[MapDataset], ArrayLike] | None = None,
        ordered: bool = False,
        outputs: int | None = None,
        shape: Sequence[int] | None = None,
        targets: ArrayLike | Callable[[MapDataset], ArrayLike] | None = None,
        digest: str | Callable[[MapDataset], str] | None = None,
        transform: Transform | None = None,
    ) -> None:
        if type(num_workers) is not int or num_workers < 0:
            raise DataError(
                "data.num_workers must be an integer from 0 (the trial loads its batches "
                f"itself); got {num_workers!r}"
            )
        if load is None and train is None:
            raise DataError(
                "data.train must be a Dataset by its _target_, or data.load a function of "
                '"train", "valid" or "test" that returns one, with _partial_: true'
            )
        # The keys of Datasets: each a Dataset, a function that returns one, or None.
        self._datasets = {"train": train, "valid": valid, "test": test, "evaluate": evaluate}
        self._load = load
        self._collate = collate
        self._loading = Loading(num_workers, bool(pin_memory), bool(persistent_workers))
        self._weights = weights
        self._groups = groups
        self._ordered = ordered
        self._outputs = outputs
        self._shape = shape
        self._targets = targets
        self._digest = digest
        self.validation = validation
        self.transform = transform

    @property
    def has_test(self) -> bool:
        """True if the data has a test set, as far as is known without loading it."""
        return self._load is not None or self._datasets["test"] is not None

    def train(self) -> Examples:
        """Returns the training set, with the validation set if there is a separate one."""
        examples = self._make_training_set()
        different_views = list(dict.fromkeys((examples.training, examples.evaluation)))
        digest = self._compute_digest(different_views, examples.weights, examples.groups)
        return replace(examples, digest=digest)

    def test(self) -> Examples:
        """Returns the test set; it is called only once the winner is chosen."""
        if not self.has_test:
            raise DataError(NO_TEST)
        training_set = self._make_training_set()
        dataset = self._load_dataset("test")
        named_dataset = NamedDataset("data.test", dataset)
        _check_classes([*training_set.evaluation.parts, named_dataset])
        items = Items((named_dataset,), self._collate)
        expected_structure = describe_structure(training_set.evaluation.load_item(0))
        structure = describe_structure(items.load_item(0))
        # A custom `collate` may make like batches of items that differ, so they are not compared.
        if self._collate is None and structure != expected_structure:
            raise DataError(
                "data.test must have items like those of the training set, "
                f"{expected_structure}; its first is {structure}"
            )
        # A test set has one view of its items, for evaluation. No network is trained on them.
        return replace(
            training_set,
            training=items,
            evaluation=items,
            digest=self._compute_digest([items]),
            targets=None,
            weights=None,
            groups=None,
            group_names=self._find_group_names(dataset),
        )

    def _make_training_set(self) -> Examples:
        """Makes the training set, without its digest."""
        dataset = self._load_dataset("train")
        training = Items((NamedDataset("data.train", dataset),), self._collate)
        evaluation = self._make_evaluation_view(training)
        _check_classes([*training.parts, *evaluation.parts])

        # The weight, class and group of each example, as the config or the Dataset says.
        weights = self._read_weights(dataset)
        classes = self._read_classes(dataset)
        groups = self._read_groups(dataset)
        # Whether the classes, if there are any, are found in the Dataset, not set in the config.
        are_classes_found = self._targets is None

        # The types and shapes of inputs and targets are those of the first item.
        first_item = evaluation.load_item(0)
        targets = self._describe_targets(dataset, classes, read_target(first_item))
        first_input = read_input(first_item)
        kind = None
        if first_input is not None:
            kind = str(first_input.dtype).removeprefix("torch.")
        return Examples(
            training,
            evaluation,
            self._loading,
            digest="",
            outputs=targets.outputs,
            shape=self._find_shape(first_input),
            classifies=targets.classifies,
            targets=targets.classes,
            targets_found=are_classes_found,
            weights=weights,
            groups=groups,
            ordered=self._ordered,
            names=targets.names,
            tokens=_find_tokens(dataset, first_item),
            kind=kind,
        )

    def _describe_targets(
        self, dataset: MapDataset, classes: Tensor | None, first_target: Tensor | None
    ) -> "Targets":
        """Describes the targets of a training set.

        Args:
            dataset: the Dataset of the training set.
            classes: the class of each example, by the config or the Dataset; None if neither says.
            first_target: the target of the first item; None if it is not a tensor.

        Raises:
            DataError: there are more classes than outputs.
        """
        # Whether the targets are classes. The first one says so, unless it is not a tensor.
        if first_target is None:
            classifies = classes is not None
        else:
            is_scalar = first_target.ndim == 0
            classifies = is_scalar and not first_target.is_floating_point()
        names: tuple[str, ...] = ()
        if classifies:
            names = _find_class_names(dataset)
        else:
            classes = None  # the integers in the Dataset's attribute are not what its items return

        outputs = self._outputs
        if outputs is None:
            outputs = _count_outputs(classifies, names, classes, first_target)
        if classes is not None and outputs is not None and classes.max() >= outputs:
            raise DataError(
                f"data: classes must be from 0 to {outputs - 1}, one for each output; "
                f"got class {int(classes.max())}"
            )
        if len(names) != outputs:  # it is unknown which name belongs to which output
            names = ()
        return Targets(classifies, classes, names, outputs)

    def _find_shape(self, first_input: Tensor | None) -> tuple[int, ...] | None:
        """Returns the shape of an input: that of the config, or else of the first input."""
        if self._shape is not None:
            return tuple(self._shape)
        if first_input is not None:
            return tuple(first_input.shape)
        return None

    def _make_evaluation_view(self, training: Items) -> Items:
        """Returns the examples for evaluation.

        The view has the examples of `data.evaluate`, or else of `data.train`. The examples of a
        separate validation set follow, if there is one.

        Args:
            training: the view for training, which is returned if it is the view for evaluation too.
        """
        parts = list(training.parts)
        if self._datasets["evaluate"] is not None:
            dataset = self._load_dataset("evaluate")
            if len(dataset) != len(training):
                raise DataError(
                    f"data.evaluate must be as long as the {len(training)} examples of data.train, "
                    f"to be another view of them; got {len(dataset)}"
                )
            parts = [NamedDataset("data.evaluate", dataset)]
        # `data.load` loads the validation set too, unless `data.validation` says that it is held
        # out from the training set.
        loads_valid = self._load is not None and self.validation is None
        if self._datasets["valid"] is not None or loads_valid:
            parts.append(NamedDataset("data.valid", self._load_dataset("valid")))
        keys = [part.key for part in parts]
        if keys == ["data.train"]:  # nothing else is given
            return training
        return Items(tuple(parts), self._collate)

    def _find_group_names(self, dataset: MapDataset) -> tuple[str, ...]:
        """Returns the group of each example of a test set, if `groups` is a function that knows it.

        The function is written for the training set. For another Dataset it may fail, or return
        groups of another number of examples: then no groups are returned.
        """
        if not callable(self._groups):
            return ()
        names: tuple[str, ...] = ()
        with suppress(Exception):
            groups: Any = self._groups(dataset)
            names = tuple(map(str, groups))
        if len(names) != len(dataset):
            return ()
        return names

    def _load_dataset(self, part: str) -> MapDataset:
        """Returns the Dataset of a part, and checks that it is map-style and not empty.

        Args:
            part: train, valid, test or evaluate.
        """
        setting = self._datasets[part]  # a Dataset, a function that returns one, or None
        key = f"data.{part}"
        dataset: Any = setting
        try:
            if setting is None and self._load is not None:
                key = f"data.load({part!r})"
                dataset = self._load(part)
            elif callable(setting) and not hasattr(setting, "__getitem__"):  # not yet a Dataset
                dataset = setting()
        except (DataError, ConfigError, MemoryError):
            raise
        except Exception as error:  # a user's class may raise anything
            raise DataError(f"{key}: {name_error(error)}") from error
        # The examples of an IterableDataset can be neither held out nor drawn by their number. It
        # may have `__len__`, and inherits a `__getitem__` that only raises an error.
        has_methods = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if not has_methods or isinstance(dataset, IterableDataset):
            raise DataError(
                f"{key} must be a map-style Dataset, with __len__ and __getitem__, "
                f"{TRAIN_IT_YOURSELF}; got {type(dataset).__name__}"
            )
        if not len(dataset):
            raise DataError(f"{key} must have at least one item; {type(dataset).__name__} is empty")
        map_dataset: MapDataset = dataset
        return map_dataset

    def _read_rows(
        self,
        name: str,
        rows: ArrayLike | Callable[[MapDataset], ArrayLike],
        dataset: MapDataset,
    ) -> Tensor:
        """Returns a number for each training example: its weight, group or class.

        Args:
            name: the key of the config.
            rows: the value of the key: numbers, or a function of the Dataset that returns them.
                Groups may be of any type, such as names of patients; they are numbered.
            dataset: the Dataset of the training set.
        """
        try:
            if callable(rows):
                rows = rows(dataset)
            array = np.asarray(rows)
            if name == "groups":
                _, group_numbers = np.unique(array, return_inverse=True)  # numbered from 0
                array = group_numbers.reshape(array.shape)
            tensor = torch.as_tensor(array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"data.{name} must be a list or an array: {error}") from error
        if tensor.ndim != 1 or len(tensor) != len(dataset):
            raise DataError(
                f"data.{name} must be as long as the {len(dataset)} examples of data.train, one "
                f"for each; got {tuple(tensor.shape)}"
            )
        return tensor

    def _read_groups(self, dataset: MapDataset) -> Tensor | None:
        """Reads `data.groups`: the number of each training example's group, (n,); None if unset."""
        if self._groups is None:
            return None
        if self._ordered:
            raise DataError("data.groups and data.ordered: choose one, since both divide the data")
        return self._read_rows("groups", self._groups, dataset)

    def _read_weights(self, dataset: MapDataset) -> Tensor | None:
        """Reads `data.weights`: how often each training example is drawn, (n,); None if unset."""
        if self._weights is None:
            return None
        weights = self._read_rows("weights", self._weights, dataset).double()
        if not bool(torch.isfinite(weights).all()) or weights.min() < 0 or not weights.sum():
            raise DataError(
                "data.weights must be finite numbers of at least 0, and not all 0; "
                f"got {float(weights.min()):.6g} to {float(weights.max()):.6g}"
            )
        return weights

    def _read_classes(self, dataset: MapDataset) -> Tensor | None:
        """Reads the class of each training example, int64 (n,), from `data.targets`.

        If `data.targets` is not set, returns the classes that the Dataset itself stores in an
        attribute such as `targets`; None if it stores none.
        """
        if self._targets is None:
            return _find_classes(dataset)
        classes = self._read_rows("targets", self._targets, dataset)
        if classes.is_floating_point() or classes.min() < 0:
            raise DataError(
                "data.targets must be classes, integers from 0; leave it out where numbers "
                f"are predicted; got {classes.dtype} from {classes.min().item()} on"
            )
        return classes.long()

    def _compute_digest(self, views: Sequence[Items], *rows: Tensor | None) -> str:
        """Returns a digest of the content, without reading all of it.

        Args:
            views: the items whose Datasets are hashed.
            rows: further tensors to hash, such as weights; None for those that there are not.
        """
        # A Dataset that is part of several views has the same key in each, and is hashed once.
        datasets: dict[str, MapDataset] = {}
        for view in views:
            for part in view.parts:
                datasets[part.key] = part.dataset
        digest = hashlib.sha256()
        for key, dataset in datasets.items():
            for content in self._identify_dataset(key, dataset):
                digest.update(content)
        for tensor in rows:
            if tensor is not None:
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def _identify_dataset(self, key: str, dataset: MapDataset) -> Iterator[bytes]:
        """Yields bytes that identify the content of a Dataset, without reading all of it.

        The bytes are `data.digest` if the config sets it; or else the names, sizes and times of the
        files if the Dataset reads a folder; or else a sample of the items.

        Args:
            key: the key of the config that names the Dataset.
        """
        identity = self._digest
        if callable(identity):
            identity = identity(dataset)
        if identity is not None:
            yield f"{key} {identity}\n".encode()
            return
        yield f"{key} {len(dataset)}\n".encode()
        files = _describe_files(dataset)
        if files is not None:
            yield "\n".join(files).encode()
            return
        items = Items((NamedDataset(key, dataset),))
        for index in items.sample_indices():
            yield from _iterate_bytes(items.load_item(index))


class Targets(NamedTuple):
    """The targets of a training set.

    Args:
        classifies: whether they are classes, and not numbers.
        classes: the class of each example, int64 (n,); None if it is not known.
        names: the name of the class of each output; empty if they are not known.
        outputs: the number of outputs of the network; None if it is not known.
    """

    classifies: bool
    classes: Tensor | None
    names: tuple[str, ...]
    outputs: int | None


def _count_outputs(
    classifies: bool, names: Sequence[str], classes: Tensor | None, target: Tensor | None
) -> int | None:
    """Returns how many outputs a network needs, or None if nothing says so.

    Args:
        classifies: whether the targets are classes.
        names: the names of the classes; empty if they are not known.
        classes: the class of each training example; None if they are not known.
        target: the target of the first item; None if it is not a tensor.
    """
    if not classifies:
        if target is None or target.ndim > 1:
            return None
        return target.numel()  # an output for each number to predict
    if names:
        return len(names)
    if classes is not None:
        return int(classes.max()) + 1  # classes are numbered from 0
    return None


def find_random_validation(examples: Part | None) -> str:
    """Finds a validation Dataset that draws random numbers for its items, as augmentation does.

    Its first item is loaded under two seeds, and compared.

    Args:
        examples: a training set.

    Returns:
        The key that names the Dataset; "" if both items are equal, and for data in memory.
    """
    if not isinstance(examples, Examples):
        return ""
    validation_part = examples.evaluation.parts[-1]  # the separate validation set comes last
    items = Items((validation_part,))
    content = b"".join(_iterate_bytes(items.load_item(0, SAMPLE_SEED)))
    content_of_other_seed = b"".join(_iterate_bytes(items.load_item(0, SAMPLE_SEED + 1)))
    if content == content_of_other_seed:
        return ""
    return validation_part.key


def _find_class_names(dataset: object) -> tuple[str, ...]:
    """Returns the names of the classes in their order; empty if a Dataset does not know them."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if hasattr(dataset, "classes") and isinstance(dataset.classes, list | tuple):
        return tuple(map(str, dataset.classes))
    return ()


def _check_classes(parts: Sequence[NamedDataset]) -> None:
    """Raises DataError if a Dataset numbers the classes differently from the first.

    A folder of images counts its own classes, so that a missing class shifts the numbers of others.
    """
    first_part, *other_parts = parts
    expected_classes = _find_class_names(first_part.dataset)
    for part in other_parts:
        classes = _find_class_names(part.dataset)
        if classes and expected_classes and classes != expected_classes:
            raise DataError(
                f"{part.key} must have the classes of {first_part.key} in their order, "
                f"{', '.join(expected_classes)}; got {', '.join(classes)}: the same number would "
                "mean another class; give each part all classes, a missing one as an empty folder "
                "(allow_empty=true of torchvision's ImageFolder)"
            )


def _find_classes(dataset: MapDataset) -> Tensor | None:
    """Returns the classes of a Dataset's items without loading them; None if it lacks them.

    The classes are in the attribute `targets` or `labels` of the Dataset, or the last one of a
    TensorDataset's `tensors`.
    """
    if isinstance(dataset, Subset):
        full_dataset: Any = dataset.dataset
        classes = _find_classes(full_dataset)
        if classes is None:
            return None
        return classes[torch.as_tensor(dataset.indices)]
    candidates = [getattr(dataset, name, None) for name in ("targets", "labels")]
    if hasattr(dataset, "tensors") and dataset.tensors:
        candidates.append(dataset.tensors[-1])
    for candidate in candidates:
        try:
            array = np.asarray(candidate)
        except (TypeError, ValueError, RuntimeError):
            continue
        has_one_for_each_item = array.ndim == 1 and len(array) == len(dataset)
        has_integers = array.dtype.kind in "iu"  # signed or unsigned
        if has_one_for_each_item and has_integers and array.min() >= 0:
            return torch.as_tensor(array.astype(np.int64))
    return None


def _find_tokens(dataset: MapDataset, item: object) -> Tokens | None:
    """Returns the vocabulary of a Dataset of texts, its attribute `tokens`; None if it has none.

    Args:
        item: an item of the Dataset, its first one.

    Raises:
        DataError: the item has no row of token numbers where the vocabulary says.
    """
    if not hasattr(dataset, "tokens") or not isinstance(dataset.tokens, Tokens):
        return None
    tokens = dataset.tokens
    # The keys and positions of `tokens.path` lead from an item to its row of token numbers, in
    # which the text begins at position `tokens.first`.
    if tokens.row_of(item) is None:
        path = "".join(f"[{step!r}]" for step in tokens.path)  # ['text'] or [0]
        raise DataError(
            f"data.train: its attribute tokens says that item{path} is a row of integers with "
            f"a text from place {tokens.first} on, which the first item lacks; fix path and first "
            "of its studyloom.data.Tokens"
        )
    return tokens


def _describe_files(dataset: MapDataset) -> list[str] | None:
    """Describes the files of a Dataset of torchvision that has a list of them, `samples` or `imgs`.

    Returns:
        For each file a line of its path, size, time, and what the Dataset says of it, such as its
        class. None if the Dataset has no such list.
    """
    for name in ("samples", "imgs"):
        try:
            return _describe_samples(getattr(dataset, name))
        except (AttributeError, LookupError, OSError, TypeError, ValueError):
            continue  # the Dataset has no attribute of that name, or it is something else
    return None


def _describe_samples(samples: Iterable[Any]) -> list[str]:
    """Describes each file of a list of torchvision by a line of its path, size, time and class.

    The path is relative to the common folder of all files, which may be another one on another
    machine.

    Args:
        samples: for each file its path, or a tuple that begins with the path, such as
            (path, class).
    """
    rows = []
    for sample in samples:
        row = sample
        if not isinstance(sample, tuple | list):
            row = (sample,)
        rows.append(row)
    paths = [os.path.abspath(row[0]) for row in rows]
    common_folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    lines = []
    for path, row in zip(paths, rows, strict=True):
        status = os.stat(path)
        relative_path = os.path.relpath(path, common_folder)
        other_values = row[1:]
        lines.append(f"{relative_path} {status.st_size} {status.st_mtime_ns} {other_values}")
    return lines


def _iterate_bytes(value: Any) -> Iterator[bytes]:
    """Yields bytes that identify an item: those of its tensors, arrays and plain values."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        if value.numel():
            yield value.flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        if value.dtype == object:  # its bytes are addresses
            yield repr(value.tolist()).encode()
        else:
            yield value.tobytes()
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield repr(key).encode()
            yield from _iterate_bytes(part)
    elif isinstance(value, list | tuple):
        yield f"{type(value).__name__} {len(value)}".encode()
        for part in value:
            yield from _iterate_bytes(part)
    elif isinstance(value, str | bytes | int | float | bool | type(None) | np.generic):
        yield repr(value).encode()
    elif hasattr(value, "tobytes") and callable(value.tobytes):  # a Pillow image
        yield value.tobytes()
    else:
        yield type(value).__name__.encode()


def find_location_keys(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Finds the keys of a section `data` that say where and how data are loaded.

    These keys are not part of the study definition, since they change no result.

    Returns:
        The path of each key: ("root",), ("train", "dataset", "root").
    """
    paths: list[tuple[str, ...]] = []
    if "root" in data:
        paths.append(("root",))
    # The other keys say this only where they are arguments of studyloom's own sources, such as
    # `Datasets`. Arguments of a custom source may have the same names, and change results.
    is_of_studyloom = str(data.get("_target_", "")).startswith("studyloom.data.")
    has_datasets = any(key in data for key in KEYS_WITH_FOLDERS)
    if is_of_studyloom and has_datasets:
        for key in LOADING_KEYS:
            if key in data:
                paths.append((key,))
        for key in KEYS_WITH_FOLDERS:
            for path_in_section in _find_roots(data.get(key)):
                paths.append((key, *path_in_section))
    return paths


def _find_roots(section: object) -> Iterator[tuple[str, ...]]:
    """Yields the path of each key `root` in a section, at any depth: ("dataset", "root")."""
    if not isinstance(section, dict):
        return
    for key, value in section.items():
        if key == "root":
            yield (key,)
        else:
            for path_in_value in _find_roots(value):
                yield (key, *path_in_value)
