"""Data in memory: the embedded digits, IDX files, CSV files, and what your function loads."""

import csv
import gzip
import hashlib
import io
import math
import tempfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studyloom.data.data_source import DataSource
from studyloom.data.split import Split, check_sizes, digest_of, format_sizes, make_folds
from studyloom.data.transform import Image, Transform
from studyloom.environment import DATA
from studyloom.errors import DataError, UnfitData
from studyloom.files import ASSETS, asset, asset_path
from studyloom.text import format_shape, nearest

ASSET = ASSETS / "mnist5k.npz"
CLASSES = 10
GZIP = b"\x1f\x8b"
OWN = "studyloom:"  # the prefix of a file that comes with studyloom
Bytes = NDArray[np.uint8]


class Source(NamedTuple):
    """Where a data set lies, and what its training pixels, from 0 to 1, are normalized by."""

    folder: str  # below $STUDYLOOM_DATA
    torchvision: str  # torchvision's class, and the folder below data/
    mean: float
    std: float
    transform: Image  # where a config says nothing else


SOURCES = {
    "mnist": Source("mnist", "MNIST", 0.1307, 0.3081, Image("black", "ink")),
    "fashion_mnist": Source("fashion-mnist", "FashionMNIST", 0.2860, 0.3530, Image("black")),
}


class _Images(DataSource):
    """A source of images; `_split` reads the set "train" or "test"."""

    transform: Image | None
    _split: Callable[[str], Split]

    def train(self) -> Split:
        """Returns the training set, from which the validation set is held out."""
        split = self._split("train")
        assert self.transform is not None
        self.transform.check(split)
        return split

    def test(self) -> Split:
        """Returns the test set."""
        return self._split("test")


@dataclass(frozen=True)
class Embedded(_Images):
    """MNIST-5k, shipped with the package: 400 training and 100 test images of each digit.

    Inputs are float32 (1, 28, 28), with the mean and standard deviation of MNIST removed.

    Args:
        validation: the number of training images that are held out as the validation set.
        transform: how `studyloom predict` converts an image to an input; by default as in MNIST.

    Examples:
        >>> Embedded().train().inputs.shape
        torch.Size([4000, 1, 28, 28])
    """

    validation: int = 800
    transform: Image = SOURCES["mnist"].transform

    def _split(self, part: str) -> Split:
        with asset(ASSET.name) as file, np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        return _normalized(images, labels, SOURCES["mnist"])


@dataclass(frozen=True)
class Idx(_Images):
    """MNIST or Fashion-MNIST from the four IDX files of their authors, gzipped or not.

    Args:
        dataset: "mnist" or "fashion_mnist".
        validation: the number of training images that are held out as the validation set.
        root: the folder of the files. None: $STUDYLOOM_DATA/mnist or $STUDYLOOM_DATA/fashion-mnist
            if that folder exists; else data/MNIST/raw or data/FashionMNIST/raw in the working
            directory, to which torchvision downloads them.
        transform: how `studyloom predict` converts an image to an input. None: as fits the data
            set.

    Raises:
        DataError: there is no such data set; from `train` and `test`, a file is missing or damaged,
            or `transform` has another scale.
    """

    dataset: str  # mnist or fashion_mnist
    validation: int
    root: str | None = None
    transform: Image | None = None

    def __post_init__(self) -> None:
        if self.dataset not in SOURCES:
            raise DataError(
                f"data.dataset must be {' or '.join(SOURCES)}; got {self.dataset!r}"
                f"{nearest(self.dataset, [*SOURCES])}"
            )
        if self.transform is None:
            object.__setattr__(self, "transform", SOURCES[self.dataset].transform)

    def _split(self, part: str) -> Split:
        source, prefix = SOURCES[self.dataset], "train" if part == "train" else "t10k"
        names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        folder = Path("data", source.torchvision, "raw").absolute()
        shared = DATA.get()
        if self.root is not None:
            folder = Path(self.root).expanduser()
        elif shared and Path(shared, source.folder).expanduser().is_dir():
            folder = Path(shared, source.folder).expanduser()
        elif not all(any(folder.glob(f"{name}*")) for name in names):
            _download(source, folder)
        images, labels = read_idx(folder, names[0], 3), read_idx(folder, names[1], 1)
        if len(images) != len(labels) or not images.size or labels.max() >= CLASSES:
            raise DataError(
                f"{folder}: {names[0]} and {names[1]} must hold as many images as labels from 0 to "
                f"{CLASSES - 1}; got images {format_shape(images.shape)} and {len(labels)} labels"
            )
        return _normalized(images, labels, source)


def _normalized(images: Bytes, labels: Bytes, source: Source) -> Split:
    """Returns a split of normalized images (n, height, width) with labels (n,)."""
    digest = hashlib.sha256(f"{images.shape} {labels.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    pixels = torch.tensor(images)[:, None].float()
    pixels.div_(255).sub_(source.mean).div_(source.std)
    return Split(
        inputs=pixels,
        targets=torch.tensor(labels).long(),
        outputs=CLASSES,
        digest=digest.hexdigest(),
        mean=source.mean,
        std=source.std,
    )


def read_idx(folder: Path, name: str, dimensions: int) -> Bytes:
    """Reads an IDX file of a folder, gzipped or not, as an array.

    It holds the magic number 0x0800 + dimensions and the size of each dimension, all big-endian,
    then the bytes; see https://yann.lecun.com/exdb/mnist. It unpacks only what the sizes need.

    Raises:
        DataError: there is no such file, or it has another format.
    """
    plain = folder / name
    path = plain if plain.is_file() else folder / f"{name}.gz"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{folder} must hold {name} or {name}.gz: {error.strerror or error}"
        ) from error
    packed, content = raw.startswith(GZIP), io.BytesIO(raw)
    file = gzip.GzipFile(fileobj=content) if packed else content
    try:
        magic, *sizes = np.frombuffer(file.read(4 + 4 * dimensions), ">u4").tolist()
        count = math.prod(sizes)
        if magic != 0x0800 + dimensions or len(sizes) != dimensions:
            raise ValueError(f"expected the magic number {0x0800 + dimensions}, found {magic}")
        body = file.read(count + 1)
        if len(body) != count:
            found = "truncated" if len(body) < count else "over-long"
            raise ValueError(f"expected {count} bytes for {format_shape(sizes)}: {found}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an IDX file: {error}") from error
    return np.frombuffer(body, np.uint8).reshape(sizes)


def _download(source: Source, folder: Path) -> None:
    """Downloads the four files, checked by torchvision's md5.

    Each is renamed into place, since several workers may start on an empty folder at once.
    """
    try:
        from torchvision import datasets  # type: ignore[import-untyped]  # 2.2 s to import

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            dataset: Any = getattr(datasets, source.torchvision)
            dataset(temporary, download=True)
            for path in Path(temporary, source.torchvision, "raw").glob("*-ubyte"):
                path.replace(folder / path.name)
    # Whatever a network, a proxy or a full disk does, the fixes are the same.
    except Exception as error:
        raise DataError(
            f"{source.torchvision} could not be downloaded to {folder}: {error}. Set data.root to "
            f"a folder with its four IDX files, or {DATA.name} (now {DATA.get() or 'unset'}) to "
            f"one that has them in {source.folder}/"
        ) from error


@dataclass(frozen=True)
class Loaded(DataSource):
    """Data in memory that your own function loads.

    The test set is loaded once. From 64 MB on, a command loads the training set once for all its
    workers. A `numpy.memmap` stays one, which each worker maps.

    Args:
        load: called with "train" or "test"; returns inputs (n, …) and targets (n,) or (n, outputs),
            as tensors or arrays. Integer targets from 0 are classes, and the network has one output
            for each; float targets are numbers to predict. Integer inputs keep their type; in a
            batch uint8 becomes float32, unscaled, and other integers stay integers for an embedding
            and become float32 for other layers.
        validation: the number of training examples that are held out as the validation set.
        ordered: True: the examples are in time order, the test set after the training set, and the
            last ones are held out.
        transform: how `studyloom predict` converts the content of a file to an input: an `Image`,
            a `Sound`, a `Reader`, or your function of an image, uint8 (channels, height, width), or
            of the numbers in a line. None: `predict` reads no image files.

    Examples:
        >>> import torch
        >>> def load(part):
        ...     inputs = torch.randn(500 if part == "train" else 100, 2)
        ...     return inputs, (inputs.prod(1) > 0).long()
        >>> Loaded(load, validation=100).train().outputs
        2
    """

    load: Callable[[str], tuple[Any, Any]]
    validation: int
    ordered: bool = False
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if self.transform is not None and not callable(self.transform):
            raise DataError(
                "data.transform must be a studyloom.data.Image, or your own function with "
                f"_partial_: true; got {type(self.transform).__name__}"
            )

    def train(self) -> Split:
        """Returns the training set, from which the validation set is held out."""
        split = self._split("train")
        # What the test set is compared with, so that it need not load the training set again.
        object.__setattr__(self, "_known", (split.shape, split.targets.shape[1:], split.outputs))
        if isinstance(self.transform, Image):
            self.transform.check(split)
        return split

    def test(self) -> Split:
        """Returns the test set.

        Raises:
            UnfitData: its shapes are not those of the training set.
        """
        if not hasattr(self, "_known"):
            self.train()
        shape, shape_of_targets, outputs = self._known  # type: ignore[attr-defined]
        split = self._split("test", outputs)
        if (split.shape, split.targets.shape[1:]) != (shape, shape_of_targets):
            raise UnfitData(
                "data.load('test') must return examples like those of the training set, each of "
                f"inputs {format_sizes(shape)} and targets {format_sizes(shape_of_targets)}; got "
                f"{format_sizes(split.shape)} and {format_sizes(split.targets.shape[1:])}"
            )
        return split

    def _split(self, part: str, outputs: int | None = None) -> Split:
        """Loads a set; `outputs` are those of the training set, if they are known."""
        where = f"data.load({part!r})"
        pair = self.load(part)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UnfitData(
                f"{where} must return a pair of inputs and targets; got {type(pair).__name__}"
            )
        inputs = _stored(_tensor(pair[0], f"{where}: its inputs"))
        targets = _tensor(pair[1], f"{where}: its targets")
        check_sizes(inputs, targets, f"{where} must return")
        if targets.is_floating_point():
            targets = targets.float().reshape(len(targets), *(targets.shape[1:] or (1,)))
            outputs = outputs or targets.shape[1]
        else:
            targets = targets.long()
            outputs = outputs or int(targets.max()) + 1
        try:
            split = Split(
                inputs,
                targets,
                outputs,
                digest_of(inputs, targets),
                ordered=self.ordered,
                mapped=isinstance(pair[0], np.memmap) and inputs.data_ptr() == pair[0].ctypes.data,
            )
            split.check()
        except DataError as error:
            raise type(error)(f"{where}: {error}") from None
        return split


def read_arrays(part: str, root: str) -> tuple[Any, Any]:
    """Maps the files PART_inputs.npy and PART_targets.npy of a folder, for `Loaded.load`.

    In YAML: `load: {_target_: studyloom.data.read_arrays, _partial_: true, root: FOLDER}`.

    Args:
        part: "train" or "test".
        root: the folder; ~ is the home directory.

    Returns:
        Inputs and targets, each a `numpy.memmap` of the shape and type of its file.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = Path(root).expanduser()
    try:
        inputs, targets = (
            np.load(folder / f"{part}_{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("inputs", "targets")
        )
    except (OSError, ValueError) as error:
        raise DataError(f"data.load.root={root}: {error}") from error
    return inputs, targets


def _stored(inputs: Tensor) -> Tensor:
    """Converts floats to float32, and integers that PyTorch can hardly use to wider ones."""
    if inputs.dtype == torch.bool:
        return inputs.view(torch.uint8)
    if inputs.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        return inputs
    wider = {torch.uint16: torch.int32, torch.uint32: torch.int64}
    return inputs.to(wider.get(inputs.dtype, torch.float32))


def _tensor(value: Any, name: str) -> Tensor:
    """Converts a value to a tensor of real numbers on the CPU."""
    try:
        with warnings.catch_warnings():  # of a memory map that must not be written to; none is
            warnings.filterwarnings("ignore", ".*not writable", UserWarning)
            tensor = torch.as_tensor(value).detach().cpu()
        if tensor.is_complex():
            raise TypeError("they are complex numbers")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnfitData(f"{name} must be a tensor or an array of real numbers: {error}") from error
    return tensor


@dataclass(frozen=True)
class Table(DataSource):
    """A CSV file with a header; the network predicts one column from the others.

    The other columns must hold numbers; they are the inputs, float32 (n, columns), not scaled.

    Args:
        path: the file, or studyloom:NAME for one that comes with studyloom.
        target: the name of the column to predict.
        test_size: the number of rows in the test set, a stratified sample that depends only on the
            file.
        validation: the number of the other rows that are held out as the validation set.
        numbers: True: the target is a number to predict; False: it is a class, in any words.
    """

    path: str
    target: str
    test_size: int
    validation: int
    numbers: bool = False

    def train(self) -> Split:
        """Returns the training set, from which the validation set is held out."""
        return self._part(0)

    def test(self) -> Split:
        """Returns the test set."""
        return self._part(1)

    def _part(self, part: int) -> Split:
        """Reads the training set (0) or the test set (1)."""
        table = read_csv(self.path)
        columns = [name for name in table if name != self.target]
        words = _column(table, self.path, "data.target", self.target)
        inputs = torch.stack([_numbers(table, self.path, name) for name in columns], 1)
        if self.numbers:
            targets = _numbers(table, self.path, self.target)[:, None]
            classes = [self.target]
        else:
            classes = sorted({*words}, key=_class_order)
            targets = torch.tensor([classes.index(word) for word in words])
        _check_within("test_size", self.test_size, len(words) - 1, f"{len(words)} rows")
        chosen = make_folds(targets, 1, self.test_size, 0)[0][part]
        inputs, targets = inputs[chosen], targets[chosen]
        digest = digest_of(inputs, targets)
        return Split(
            inputs, targets, len(classes), digest, names=tuple(classes), columns=tuple(columns)
        )


def _class_order(word: str) -> tuple[bool, Decimal, str]:
    """Returns the key by which classes are sorted: numbers by their value, before other words."""
    try:
        number = Decimal(word)
    except InvalidOperation:
        number = Decimal("nan")
    return (False, number, word) if number.is_finite() else (True, Decimal(0), word)


@dataclass(frozen=True)
class Series(DataSource):
    """A time series, one column of a CSV file; the network predicts the next value.

    An example is a window of values (window, 1) and the value that follows (1,). No window of an
    earlier set holds a value that a later set predicts. The reference is persistence, which
    predicts the last value.

    Args:
        path: the file, or studyloom:NAME for one that comes with studyloom; rows in time order.
        column: the name of the column.
        window: the number of values in an input.
        test_size: the number of values at the end that the test set predicts.
        validation: the number of values before those that the validation set predicts.
    """

    path: str
    column: str
    window: int
    test_size: int
    validation: int

    def train(self) -> Split:
        """Returns the training set, from which the validation set is held out."""
        return self._part(slice(None, -self.test_size))

    def test(self) -> Split:
        """Returns the test set."""
        return self._part(slice(-self.test_size, None))

    def _part(self, chosen: slice) -> Split:
        table = read_csv(self.path)
        _column(table, self.path, "data.column", self.column)
        values = _numbers(table, self.path, self.column)[:, None]
        size = f"{len(values)} values in {self.path}"
        _check_within("window", self.window, len(values) - 2, size)
        _check_within("test_size", self.test_size, len(values) - self.window - 1, size)
        windows = values[:-1].unfold(0, self.window, 1).transpose(1, 2)
        inputs = windows[chosen].clone(memory_format=torch.contiguous_format)
        targets = values[self.window :][chosen].clone()
        return Split(
            inputs,
            targets,
            1,
            digest_of(inputs, targets),
            ordered=True,
            names=(self.column,),
            references={"persistence": inputs[:, -1]},
        )


def read_csv(path: str) -> dict[str, list[str]]:
    """Reads a CSV file into the words of each column by its name; empty lines are skipped."""
    file = asset_path(path.removeprefix(OWN)) if path.startswith(OWN) else Path(path).expanduser()
    try:
        # Spreadsheet programs put a byte order mark before the first name.
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            names = [name.strip() for name in next(reader, [])]
            rows = []
            for row in filter(None, reader):
                if len(row) != len(names):
                    raise DataError(
                        f"data.path={path}: line {reader.line_num} has {len(row)} fields; "
                        f"the header has {len(names)}"
                    )
                rows.append([word.strip() for word in row])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"data.path={path}: cannot be read as a CSV file: {reason}") from error
    if len({*names}) != len(names) or not all(names) or len(rows) < 2:
        raise DataError(
            f"data.path={path}: must begin with a line of column names, all different, and have "
            "two lines of values or more"
        )
    return {name: [*words] for name, words in zip(names, zip(*rows, strict=True), strict=True)}


def _column(table: dict[str, list[str]], path: str, key: str, name: str) -> list[str]:
    if name not in table:
        raise DataError(
            f"{key}={name}: {path} has no such column; it has {', '.join(table)}"
            f"{nearest(name, [*table])}"
        )
    return table[name]


def _numbers(table: dict[str, list[str]], path: str, column: str) -> Tensor:
    """Returns a column as float32 (n,)."""
    numbers = []
    for row, word in enumerate(table[column], 1):
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"data.path={path}: row {row} of values must have a finite number for {column}; "
                f"got {word!r}"
            )
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.float32)


def _check_within(key: str, value: int, most: int, size: str) -> None:
    if not 0 < value <= most:
        raise DataError(f"data.{key} must be from 1 to {most}, for {size}; got {value}")
