"""Sources of data in memory: the embedded digits, IDX files, CSV files, and your own function."""

import csv
import gzip
import hashlib
import io
import math
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
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
GZIP = b"\x1f\x8b"  # the first bytes of a gzipped file
PREFIX = "studyloom:"  # the prefix of a path that names a file which comes with studyloom
Bytes = NDArray[np.uint8]


class ImageSet(NamedTuple):
    """A public data set of images.

    Args:
        folder: its folder below $STUDYLOOM_DATA.
        torchvision: its class in torchvision, and the name of its folder below data/.
        mean: the number that is subtracted from pixels on the scale 0 to 1.
        std: the number by which they are divided after that.
        transform: how `predict` converts an image, unless the config has another transform.
    """

    folder: str
    torchvision: str
    mean: float
    std: float
    transform: Image


IMAGE_SETS = {
    "mnist": ImageSet("mnist", "MNIST", 0.1307, 0.3081, Image("black", "ink")),
    "fashion_mnist": ImageSet("fashion-mnist", "FashionMNIST", 0.2860, 0.3530, Image("black")),
}


class ImageSource(DataSource):
    """A source of images. A subclass defines `_split`, which reads the set "train" or "test"."""

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
class Embedded(ImageSource):
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
    transform: Image = IMAGE_SETS["mnist"].transform

    def _split(self, part: str) -> Split:
        with asset(ASSET.name) as file, np.load(file, allow_pickle=False) as arrays:
            images = arrays[f"{part}_images"]
            labels = arrays[f"{part}_labels"]
        return _normalize(images, labels, IMAGE_SETS["mnist"])


@dataclass(frozen=True)
class Idx(ImageSource):
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
        if self.dataset not in IMAGE_SETS:
            raise DataError(
                f"data.dataset must be {' or '.join(IMAGE_SETS)}; got {self.dataset!r}"
                f"{nearest(self.dataset, IMAGE_SETS)}"
            )
        if self.transform is None:
            transform = IMAGE_SETS[self.dataset].transform
            object.__setattr__(self, "transform", transform)  # as a frozen dataclass sets a field

    def _split(self, part: str) -> Split:
        """Reads the training set or the test set; downloads it if no folder is named.

        Args:
            part: "train" or "test".
        """
        image_set = IMAGE_SETS[self.dataset]
        prefix = "train"
        if part == "test":
            prefix = "t10k"  # the authors' name for the 10,000 test images
        image_file = f"{prefix}-images-idx3-ubyte"
        label_file = f"{prefix}-labels-idx1-ubyte"
        folder = self._find_folder(image_set)
        if folder is None:
            folder = Path("data", image_set.torchvision, "raw").absolute()
            has_images = any(folder.glob(f"{image_file}*"))  # or gzipped, with .gz at the end
            has_labels = any(folder.glob(f"{label_file}*"))
            if not has_images or not has_labels:
                _download(image_set, folder)
        images = read_idx(folder, image_file, dimensions=3)
        labels = read_idx(folder, label_file, dimensions=1)
        if len(images) != len(labels) or not images.size or labels.max() >= CLASSES:
            raise DataError(
                f"{folder}: {image_file} and {label_file} must hold as many images as labels from "
                f"0 to {CLASSES - 1}; got images {format_shape(images.shape)} and {len(labels)} "
                "labels"
            )
        return _normalize(images, labels, image_set)

    def _find_folder(self, image_set: ImageSet) -> Path | None:
        """Returns the folder that the config or $STUDYLOOM_DATA names; None if neither does."""
        if self.root is not None:
            return Path(self.root).expanduser()
        parent = DATA.get()
        if parent:
            folder = Path(parent, image_set.folder).expanduser()
            if folder.is_dir():
                return folder
        return None


def _normalize(images: Bytes, labels: Bytes, image_set: ImageSet) -> Split:
    """Makes a split of normalized images (n, height, width) with labels (n,)."""
    digest = hashlib.sha256(f"{images.shape} {labels.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    pixels = torch.tensor(images)[:, None].float()
    pixels.div_(255).sub_(image_set.mean).div_(image_set.std)
    return Split(
        inputs=pixels,
        targets=torch.tensor(labels).long(),
        outputs=CLASSES,
        digest=digest.hexdigest(),
        mean=image_set.mean,
        std=image_set.std,
    )


def read_idx(folder: Path, name: str, dimensions: int) -> Bytes:
    """Reads an IDX file of a folder, gzipped or not, as an array.

    The file holds the magic number 0x0800 + dimensions and the size of each dimension, all of them
    big-endian, and then the bytes; see https://yann.lecun.com/exdb/mnist. At most one byte more
    than the sizes say is unpacked, so that a damaged file cannot fill the memory.

    Args:
        folder: the folder of the file.
        name: the name of the file, without .gz.
        dimensions: the number of dimensions of the array.

    Raises:
        DataError: there is no such file, or it has another format.
    """
    path = folder / name
    if not path.is_file():
        path = folder / f"{name}.gz"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{folder} must hold {name} or {name}.gz: {error.strerror or error}"
        ) from error
    file: io.BytesIO | gzip.GzipFile = io.BytesIO(raw)
    if raw.startswith(GZIP):
        file = gzip.GzipFile(fileobj=file)
    try:
        return _read_idx_content(file, dimensions)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an IDX file: {error}") from error


def _read_idx_content(file: io.BytesIO | gzip.GzipFile, dimensions: int) -> Bytes:
    """Reads the content of an IDX file; raises ValueError if it has another format."""
    expected_magic = 0x0800 + dimensions  # 08 says that the file holds bytes
    header = file.read(4 + 4 * dimensions)
    magic, *sizes = np.frombuffer(header, ">u4").tolist()
    if magic != expected_magic or len(sizes) != dimensions:
        raise ValueError(f"expected the magic number {expected_magic}, found {magic}")
    count = math.prod(sizes)
    body = file.read(count + 1)  # one more, to find out if the file is longer
    if len(body) != count:
        fault = "truncated"
        if len(body) > count:
            fault = "over-long"
        raise ValueError(f"expected {count} bytes for {format_shape(sizes)}: {fault}")
    return np.frombuffer(body, np.uint8).reshape(sizes)


def _download(image_set: ImageSet, folder: Path) -> None:
    """Downloads the four files, checked by torchvision's md5.

    The files are downloaded to a temporary folder and then renamed, since several workers may start
    on an empty folder at once.
    """
    try:
        from torchvision import datasets  # type: ignore[import-untyped]  # 2.2 s to import

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            download = getattr(datasets, image_set.torchvision)
            download(temporary, download=True)
            for path in Path(temporary, image_set.torchvision, "raw").glob("*-ubyte"):
                path.replace(folder / path.name)
    # A network, a proxy or a full disk may raise anything, and the fixes are the same.
    except Exception as error:
        raise DataError(
            f"{image_set.torchvision} could not be downloaded to {folder}: {error}. Set data.root "
            f"to a folder with its four IDX files, or {DATA.name} (now {DATA.get() or 'unset'}) to "
            f"one that has them in {image_set.folder}/"
        ) from error


class Sizes(NamedTuple):
    """The sizes of one example of a training set, with which its test set is compared.

    Args:
        inputs: the shape of one input.
        targets: the shape of one target; () for a class.
        outputs: the number of outputs of the network.
    """

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    outputs: int


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
    # The sizes of the training set; None until `train` has loaded it.
    _training_sizes: "Sizes | None" = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.transform is not None and not callable(self.transform):
            raise DataError(
                "data.transform must be a studyloom.data.Image, or your own function with "
                f"_partial_: true; got {type(self.transform).__name__}"
            )

    def train(self) -> Split:
        """Returns the training set, from which the validation set is held out."""
        split = self._split("train")
        # `test` compares the test set with these sizes, without loading the training set again.
        object.__setattr__(self, "_training_sizes", _measure_sizes(split))  # of a frozen dataclass
        if isinstance(self.transform, Image):
            self.transform.check(split)
        return split

    def test(self) -> Split:
        """Returns the test set.

        Loads the training set first if `train` was not called, to compare the sizes of both.

        Raises:
            UnfitData: the test set's shapes are not those of the training set.
        """
        expected = self._training_sizes
        if expected is None:
            expected = _measure_sizes(self.train())
        split = self._split("test", expected.outputs)
        sizes = _measure_sizes(split)
        if sizes != expected:
            raise UnfitData(
                "data.load('test') must return examples like those of the training set, each of "
                f"inputs {format_sizes(expected.inputs)} and targets "
                f"{format_sizes(expected.targets)}; got {format_sizes(sizes.inputs)} and "
                f"{format_sizes(sizes.targets)}"
            )
        return split

    def _split(self, part: str, outputs: int | None = None) -> Split:
        """Loads a set.

        Args:
            part: "train" or "test".
            outputs: the number of outputs by the training set; None: it is derived from this set.
        """
        call = f"data.load({part!r})"
        pair = self.load(part)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UnfitData(
                f"{call} must return a pair of inputs and targets; got {type(pair).__name__}"
            )
        loaded_inputs, loaded_targets = pair
        inputs = _convert_inputs(_as_tensor(loaded_inputs, f"{call}: its inputs"))
        targets = _as_tensor(loaded_targets, f"{call}: its targets")
        check_sizes(inputs, targets, f"{call} must return")
        if targets.is_floating_point():
            targets = targets.float()
            if targets.ndim == 1:
                targets = targets[:, None]
            output_count = targets.shape[1]
        else:
            targets = targets.long()
            output_count = int(targets.max()) + 1
        if outputs is not None:
            output_count = outputs
        is_mapped = False
        if isinstance(loaded_inputs, np.memmap):
            # Numbers that needed a conversion were copied into memory, to another address.
            is_mapped = inputs.data_ptr() == loaded_inputs.ctypes.data
        try:
            split = Split(
                inputs,
                targets,
                output_count,
                digest_of(inputs, targets),
                ordered=self.ordered,
                mapped=is_mapped,
            )
            split.check()
        except DataError as error:
            raise type(error)(f"{call}: {error}") from None
        return split


def _measure_sizes(split: Split) -> Sizes:
    """Returns the sizes of each example of a set, and the number of outputs of its network."""
    return Sizes(split.shape, tuple(split.targets.shape[1:]), split.outputs)


class Arrays(NamedTuple):
    """The inputs and targets of a set, each a `numpy.memmap`."""

    inputs: NDArray[Any]
    targets: NDArray[Any]


def read_arrays(part: str, root: str) -> Arrays:
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
        inputs = np.load(folder / f"{part}_inputs.npy", mmap_mode="r", allow_pickle=False)
        targets = np.load(folder / f"{part}_targets.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"data.load.root={root}: {error}") from error
    return Arrays(inputs, targets)


def _convert_inputs(inputs: Tensor) -> Tensor:
    """Converts floats to float32, and integers that PyTorch can hardly use to wider ones."""
    if inputs.dtype == torch.bool:
        return inputs.view(torch.uint8)
    if inputs.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        return inputs
    if inputs.dtype == torch.uint16:
        return inputs.to(torch.int32)
    if inputs.dtype == torch.uint32:
        return inputs.to(torch.int64)
    return inputs.float()


def _as_tensor(value: object, name: str) -> Tensor:
    """Converts a value to a tensor of real numbers on the CPU.

    Args:
        value: an array or a tensor that a user's function has returned.
        name: the beginning of the error's message.
    """
    try:
        with warnings.catch_warnings():
            # PyTorch warns of writing to an array that is read-only, such as a memory map. Nothing
            # writes to it.
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
        return self._split(is_test=False)

    def test(self) -> Split:
        """Returns the test set."""
        return self._split(is_test=True)

    def _split(self, *, is_test: bool) -> Split:
        """Reads the training set or the test set."""
        table = read_csv(self.path)
        _check_column(table, self.path, "data.target", self.target)
        columns = [name for name in table if name != self.target]
        inputs = torch.stack([_read_numbers(table, self.path, name) for name in columns], 1)
        cells = table[self.target]
        if self.numbers:
            targets = _read_numbers(table, self.path, self.target)[:, None]
            names = [self.target]
        else:
            names = _sort_classes(set(cells))
            targets = torch.tensor([names.index(cell) for cell in cells])
        _check_within("test_size", self.test_size, len(cells) - 1, f"{len(cells)} rows")
        # The rows are divided as a fold is: what it would validate is the test set.
        (fold,) = make_folds(targets, count=1, validation=self.test_size, seed=0)
        rows = fold.training
        if is_test:
            rows = fold.validation
        inputs_of_set = inputs[rows]
        targets_of_set = targets[rows]
        return Split(
            inputs_of_set,
            targets_of_set,
            outputs=len(names),
            digest=digest_of(inputs_of_set, targets_of_set),
            names=tuple(names),
            columns=tuple(columns),
        )


def _sort_classes(words: Iterable[str]) -> list[str]:
    """Sorts the names of classes: numbers by their value, and then other words."""
    numbers: dict[str, Decimal] = {}
    other_words = []
    for word in words:
        try:
            number = Decimal(word)
        except InvalidOperation:
            other_words.append(word)
            continue
        if number.is_finite():
            numbers[word] = number
        else:
            other_words.append(word)
    # Words of equal value, such as 1 and 1.0, are sorted as words.
    sorted_numbers = sorted(numbers, key=lambda word: (numbers[word], word))
    return [*sorted_numbers, *sorted(other_words)]


@dataclass(frozen=True)
class Series(DataSource):
    """A time series, one column of a CSV file; the network predicts the next value.

    An example is a window of values (window, 1) and the value that follows (1,). No window of an
    earlier set holds a value that a later set predicts. Metrics are compared with persistence,
    which predicts the last value of the window.

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
        return self._split(slice(None, -self.test_size))

    def test(self) -> Split:
        """Returns the test set."""
        return self._split(slice(-self.test_size, None))

    def _split(self, examples: slice) -> Split:
        """Reads some of the examples, which are in time order."""
        table = read_csv(self.path)
        _check_column(table, self.path, "data.column", self.column)
        values = _read_numbers(table, self.path, self.column)[:, None]  # (count, 1)
        size = f"{len(values)} values in {self.path}"
        # Each set needs at least one window, and the value after it.
        _check_within("window", self.window, len(values) - 2, size)
        _check_within("test_size", self.test_size, len(values) - self.window - 1, size)
        # All windows but the last one, which no value follows. They are views of the values, and
        # overlap, so that those of the set are copied.
        windows = values[:-1].unfold(dimension=0, size=self.window, step=1)  # (n, 1, window)
        windows = windows.transpose(1, 2)  # (n, window, 1)
        inputs = windows[examples].clone(memory_format=torch.contiguous_format)
        next_values = values[self.window :]
        targets = next_values[examples].clone()
        return Split(
            inputs,
            targets,
            outputs=1,
            digest=digest_of(inputs, targets),
            ordered=True,
            names=(self.column,),
            references={"persistence": inputs[:, -1]},
        )


def read_csv(path: str) -> dict[str, list[str]]:
    """Reads a CSV file; empty lines are skipped.

    Args:
        path: the file, or studyloom:NAME for one that comes with studyloom.

    Returns:
        The cells of each column below its name, by the name.

    Raises:
        DataError: the file cannot be read, or is not a table.
    """
    if path.startswith(PREFIX):
        file = asset_path(path.removeprefix(PREFIX))
    else:
        file = Path(path).expanduser()
    try:
        # Spreadsheet programs put a byte order mark before the first name: utf-8-sig drops it.
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            names = [name.strip() for name in next(reader, [])]
            rows = []
            for row in reader:
                if not row:  # an empty line
                    continue
                if len(row) != len(names):
                    raise DataError(
                        f"data.path={path}: line {reader.line_num} has {len(row)} fields; "
                        f"the header has {len(names)}"
                    )
                rows.append([cell.strip() for cell in row])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise DataError(f"data.path={path}: cannot be read as a CSV file: {reason}") from error
    has_header = all(names) and len(set(names)) == len(names)  # without empty or repeated names
    if not has_header or len(rows) < 2:
        raise DataError(
            f"data.path={path}: must begin with a line of column names, all different, and have "
            "two lines of values or more"
        )
    cells_by_column = {}
    for position, name in enumerate(names):
        cells_by_column[name] = [row[position] for row in rows]
    return cells_by_column


def _check_column(table: dict[str, list[str]], path: str, key: str, name: str) -> None:
    """Raises DataError if a table has no column of a name.

    Args:
        table: the cells of each column.
        path: the file of the table, for the error.
        key: the key of the config that names the column, for the error.
        name: the name of the column.
    """
    if name not in table:
        raise DataError(
            f"{key}={name}: {path} has no such column; it has {', '.join(table)}"
            f"{nearest(name, table)}"
        )


def _read_numbers(table: dict[str, list[str]], path: str, column: str) -> Tensor:
    """Returns a column as float32 (n,); raises DataError unless its cells are finite numbers."""
    numbers = []
    for row, cell in enumerate(table[column], start=1):
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"data.path={path}: row {row} of values must have a finite number for {column}; "
                f"got {cell!r}"
            )
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.float32)


def _check_within(key: str, value: int, limit: int, size: str) -> None:
    """Raises DataError unless a number of the section `data` is from 1 to a limit.

    Args:
        key: the key of the number.
        value: the number.
        limit: the largest number that is valid.
        size: the size of the data that sets the limit, such as "150 rows".
    """
    if not 0 < value <= limit:
        raise DataError(f"data.{key} must be from 1 to {limit}, for {size}; got {value}")
