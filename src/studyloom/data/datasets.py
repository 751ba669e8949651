"""Datasets of PyTorch: data that is loaded batch by batch, not held in memory as a tensor."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from studyloom.data.data_source import DataSource
from studyloom.data.examples import ALWAYS, Examples, Items, Loading, input_of, structure, target_of
from studyloom.data.split import Tokens
from studyloom.errors import TRAIN_IT_YOURSELF, ConfigError, DataError
from studyloom.text import name_error

NO_TEST = (
    "data.test must be the Dataset of the test set, on which the winner is tested once; without "
    "one, set winner.enabled=false: then the study ends with its search, and best.yaml"
)
# Keys of a section `data`: the Datasets, those whose sections may name folders, and those without
# influence on the result.
PARTS = ("train", "valid", "test", "evaluate")
LOADERS = (*PARTS, "load")
LOADING = ("num_workers", "pin_memory", "persistent_workers")


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
    DEFERRED: ClassVar[tuple[str, ...]] = PARTS

    def __init__(
        self,
        train: Any = None,
        valid: Any = None,
        test: Any = None,
        load: Callable[[str], Any] | None = None,
        evaluate: Any = None,
        validation: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        weights: Any = None,
        groups: Any = None,
        ordered: bool = False,
        outputs: int | None = None,
        shape: Sequence[int] | None = None,
        targets: Any = None,
        digest: Any = None,
        transform: Any = None,
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
        self._given = {"train": train, "valid": valid, "test": test, "evaluate": evaluate}
        self._load, self._collate = load, collate
        self._loading = Loading(num_workers, bool(pin_memory), bool(persistent_workers))
        self._weights, self._groups, self._targets = weights, groups, targets
        self._ordered, self._digest = ordered, digest
        self._outputs, self._shape = outputs, shape
        self.validation = validation
        self.transform = transform

    @property
    def has_test(self) -> bool:
        """Whether the data has a test set, as far as is known without loading it."""
        return self._load is not None or self._given["test"] is not None

    def train(self) -> Examples:
        """Returns the training set, with the validation set if there is a separate one."""
        known = self._training()
        views = [*dict.fromkeys((known.training, known.evaluation))]
        return replace(known, digest=self._identify(views, known.weights, known.groups))

    def test(self) -> Examples:
        """Returns the test set, once the winner is chosen."""
        if not self.has_test:
            raise DataError(NO_TEST)
        known, dataset = self._training(), self._dataset("test")
        _check_classes([*known.evaluation.parts, ("data.test", dataset)])
        items = Items((("data.test", dataset),), self._collate)
        expected, first = (structure(view.at(0)) for view in (known.evaluation, items))
        if self._collate is None and first != expected:
            raise DataError(
                "data.test must have items like those of the training set, "
                f"{expected}; its first is {first}"
            )
        return replace(
            known,
            training=items,
            evaluation=items,
            digest=self._identify([items]),
            targets=None,
            weights=None,
            groups=None,
            group_names=self._group_names(dataset),
        )

    def _training(self) -> Examples:
        """Makes the training set without its digest."""
        dataset = self._dataset("train")
        training = evaluation = Items((("data.train", dataset),), self._collate)
        parts = [*training.parts]
        if self._given["evaluate"] is not None:
            parts = [("data.evaluate", self._dataset("evaluate"))]
            if len(parts[0][1]) != len(dataset):
                raise DataError(
                    f"data.evaluate must be as long as the {len(dataset)} examples of data.train, "
                    f"to be another view of them; got {len(parts[0][1])}"
                )
        if self._given["valid"] is not None or (self._load is not None and self.validation is None):
            parts.append(("data.valid", self._dataset("valid")))
        if parts != [*training.parts]:
            evaluation = Items(tuple(parts), self._collate)
        _check_classes([*training.parts, *parts])
        weights, groups, classes = self._weights_of(dataset), None, self._classes_of(dataset)
        if self._groups is not None:
            if self._ordered:
                raise DataError(
                    "data.groups and data.ordered: choose one, since both divide the data"
                )
            groups = self._rows("groups", self._groups, dataset)
        item = evaluation.at(0)
        given, target = input_of(item), target_of(item)
        classifies = classes is not None
        if target is not None:
            classifies = not target.is_floating_point() and not target.ndim
        names = _class_names(dataset) if classifies else ()
        outputs = self._outputs
        if outputs is None and classifies:
            outputs = len(names) or (None if classes is None else int(classes.max()) + 1)
        elif outputs is None and target is not None and target.ndim < 2:
            outputs = target.numel()
        if classifies and classes is not None and outputs is not None and classes.max() >= outputs:
            raise DataError(
                f"data: classes must be from 0 to {outputs - 1}, one for each output; "
                f"got class {int(classes.max())}"
            )
        shape = given.shape if self._shape is None and given is not None else self._shape
        return Examples(
            training,
            evaluation,
            self._loading,
            digest="",
            outputs=outputs,
            shape=None if shape is None else tuple(shape),
            classifies=classifies,
            targets=classes if classifies else None,
            targets_found=self._targets is None,
            weights=weights,
            groups=groups,
            ordered=self._ordered,
            names=names if len(names) == outputs else (),
            tokens=_tokens_of(dataset, item),
            kind=None if given is None else str(given.dtype).removeprefix("torch."),
        )

    def _group_names(self, dataset: Any) -> tuple[str, ...]:
        if not callable(self._groups):
            return ()
        names: tuple[str, ...] = ()
        with suppress(Exception):  # it is written for the training set
            names = tuple(map(str, self._groups(dataset)))
        return names if len(names) == len(dataset) else ()

    def _dataset(self, part: str) -> Any:
        given, key = self._given[part], f"data.{part}"
        try:
            if given is None and self._load is not None:
                key = f"data.load({part!r})"
                dataset = self._load(part)
            else:
                called = callable(given) and not hasattr(given, "__getitem__")
                dataset = given() if called else given
        except (DataError, ConfigError, MemoryError):
            raise
        except Exception as error:  # whatever a user's class raises
            raise DataError(f"{key}: {name_error(error)}") from error
        # Those of an IterableDataset can be neither held out nor drawn by their number.
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise DataError(
                f"{key} must be a map-style Dataset, with __len__ and __getitem__, "
                f"{TRAIN_IT_YOURSELF}; got {type(dataset).__name__}"
            )
        if not len(dataset):
            raise DataError(f"{key} must have at least one item; {type(dataset).__name__} is empty")
        return dataset

    def _rows(self, name: str, given: Any, dataset: Any) -> Tensor:
        """Returns a value for each training example: its weight, group or class."""
        try:
            array = np.asarray(given(dataset) if callable(given) else given)
            if name == "groups":  # of any type, such as names of patients
                array = np.unique(array, return_inverse=True)[1].reshape(array.shape)
            rows = torch.as_tensor(array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"data.{name} must be a list or an array: {error}") from error
        if rows.ndim != 1 or len(rows) != len(dataset):
            raise DataError(
                f"data.{name} must be as long as the {len(dataset)} examples of data.train, one "
                f"for each; got {tuple(rows.shape)}"
            )
        return rows

    def _weights_of(self, dataset: Any) -> Tensor | None:
        if self._weights is None:
            return None
        weights = self._rows("weights", self._weights, dataset).double()
        if not bool(torch.isfinite(weights).all()) or weights.min() < 0 or not weights.sum():
            raise DataError(
                "data.weights must be finite numbers of at least 0, and not all 0; "
                f"got {float(weights.min()):.6g} to {float(weights.max()):.6g}"
            )
        return weights

    def _classes_of(self, dataset: Any) -> Tensor | None:
        if self._targets is None:
            return _known_classes(dataset)
        classes = self._rows("targets", self._targets, dataset)
        if classes.is_floating_point() or classes.min() < 0:
            raise DataError(
                "data.targets must be classes, integers from 0; leave it out where numbers "
                f"are predicted; got {classes.dtype} from {classes.min().item()} on"
            )
        return classes.long()

    def _identify(self, views: Sequence[Items], *rows: Tensor | None) -> str:
        """Returns a digest of the content, without reading all of it."""
        digest = hashlib.sha256()
        for key, dataset in {key: part for items in views for key, part in items.parts}.items():
            own = self._digest(dataset) if callable(self._digest) else self._digest
            if own is not None:
                digest.update(f"{key} {own}\n".encode())
                continue
            digest.update(f"{key} {len(dataset)}\n".encode())
            if (files := _files_of(dataset)) is not None:
                digest.update("\n".join(files).encode())
                continue
            items = Items(((key, dataset),))
            for index in items.some():
                for part in _content(items.at(index)):
                    digest.update(part)
        for each in rows:
            digest.update(b"" if each is None else each.numpy().tobytes())
        return digest.hexdigest()


def drawn_anew(part: Any) -> str:
    """Returns the key of the validation Dataset if its first item differs between two reads.

    Returns:
        "" if it does not differ, and for data in memory.
    """
    if not isinstance(part, Examples):
        return ""
    key, dataset = part.evaluation.parts[-1]
    items = Items(((key, dataset),))
    drawn = (items.at(0, seed) for seed in (ALWAYS, ALWAYS + 1))
    first, second = (b"".join(_content(item)) for item in drawn)
    return "" if first == second else key


def _class_names(dataset: Any) -> tuple[str, ...]:
    """Returns the names of the classes in their order, if a Dataset knows them."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def _check_classes(parts: Sequence[tuple[str, Any]]) -> None:
    """Raises DataError if a Dataset numbers the classes differently from the first.

    A folder of images counts its own classes, so that a missing class shifts the others.
    """
    key, expected = parts[0][0], _class_names(parts[0][1])
    for name, dataset in parts[1:]:
        classes = _class_names(dataset)
        if classes and expected and classes != expected:
            raise DataError(
                f"{name} must have the classes of {key} in their order, {', '.join(expected)}; got "
                f"{', '.join(classes)}: the same number would mean another class; give each part "
                "all classes, a missing one as an empty folder (allow_empty=true of torchvision's "
                "ImageFolder)"
            )


def _known_classes(dataset: Any) -> Tensor | None:
    """Returns the classes of a Dataset's items without loading them, if it knows them."""
    if isinstance(dataset, Subset):
        classes = _known_classes(dataset.dataset)
        return None if classes is None else classes[torch.as_tensor(dataset.indices)]
    tensors = getattr(dataset, "tensors", None) or (None,)
    for rows in (getattr(dataset, "targets", None), getattr(dataset, "labels", None), tensors[-1]):
        try:
            array = np.asarray(rows)
        except (TypeError, ValueError, RuntimeError):
            continue
        whole = array.ndim == 1 and len(array) == len(dataset) and array.dtype.kind in "iu"
        if whole and array.min() >= 0:
            return torch.as_tensor(array.astype(np.int64))
    return None


def _tokens_of(dataset: Any, item: Any) -> Tokens | None:
    """Returns the attribute `tokens` of a Dataset; raises DataError if it does not fit."""
    tokens = getattr(dataset, "tokens", None)
    if not isinstance(tokens, Tokens):
        return None
    if tokens.row_of(item) is None:
        path = "".join(f"[{step!r}]" for step in tokens.path)
        raise DataError(
            f"data.train: its attribute tokens says that item{path} is a row of integers with "
            f"a text from place {tokens.first} on, which the first item lacks; fix path and first "
            "of its studyloom.data.Tokens"
        )
    return tokens


def _files_of(dataset: Any) -> list[str] | None:
    """Describes the files that a folder of torchvision lists in `samples` or `imgs`."""
    for name in ("samples", "imgs"):
        try:
            rows = [
                row if isinstance(row, tuple | list) else (row,) for row in getattr(dataset, name)
            ]
            paths = [os.path.abspath(row[0]) for row in rows]
            # Not by the whole path, which may differ on another machine.
            above = os.path.commonpath([os.path.dirname(path) for path in paths])
            found = [os.stat(path) for path in paths]
        except (AttributeError, LookupError, OSError, TypeError, ValueError):
            continue  # something else of that name
        return [
            f"{os.path.relpath(path, above)} {stat.st_size} {stat.st_mtime_ns} {row[1:]}"
            for path, stat, row in zip(paths, found, rows, strict=True)
        ]
    return None


def _content(value: Any) -> Iterator[bytes]:
    """Yields the bytes of an item, and of what it is made of."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes() if value.dtype != object else repr(value.tolist()).encode()
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield repr(key).encode()
            yield from _content(part)
    elif isinstance(value, list | tuple):
        yield f"{type(value).__name__} {len(value)}".encode()
        for part in value:
            yield from _content(part)
    elif isinstance(value, str | bytes | int | float | bool | type(None) | np.generic):
        yield repr(value).encode()
    elif callable(getattr(value, "tobytes", None)):  # a Pillow image
        yield value.tobytes()
    else:
        yield type(value).__name__.encode()


def location_keys(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the paths of the keys of a section `data` that say where and how data are loaded."""
    found: list[tuple[str, ...]] = [("root",)] if "root" in data else []
    if str(data.get("_target_", "")).startswith("studyloom.data.") and {*data} & {*LOADERS}:
        found += [(name,) for name in LOADING if name in data]
        found += [(name, *path) for name in LOADERS for path in _roots(data.get(name))]
    return found


def _roots(value: Any) -> Iterator[tuple[str, ...]]:
    for name, inner in value.items() if isinstance(value, dict) else ():
        if name == "root":
            yield (name,)
        else:
            yield from ((name, *path) for path in _roots(inner))
