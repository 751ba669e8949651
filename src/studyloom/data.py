"""Examples as tensors on one device: the embedded MNIST-5k, MNIST and Fashion-MNIST, and what functions load.

Training and test part are loaded by different calls, so that whoever searches cannot touch the test part by accident.
"""

import difflib
import gzip
import hashlib
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ASSET = Path(__file__).with_name("assets") / "mnist5k.npz"
CLASSES = 10

Bytes = NDArray[np.uint8]


class DataError(ValueError):
    """A data set that is missing, damaged or not what it is said to be."""


class Source(NamedTuple):
    """Where a data set is found, and the mean and standard deviation of its training pixels on the scale 0 to 1."""

    folder: str  # below $STUDYLOOM_DATA
    torchvision: str  # torchvision's class, and its folder below data/
    mean: float
    std: float


SOURCES = {
    "mnist": Source("mnist", "MNIST", 0.1307, 0.3081),
    "fashion_mnist": Source("fashion-mnist", "FashionMNIST", 0.2860, 0.3530),
}


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    inputs: (n, …), such as float32 (n, channels, height, width), normalised. targets: classes, int64 (n,), from 0 to
    outputs - 1, or numbers to be predicted, float32 (n, outputs). outputs: how many numbers a network gives of each
    input, which for classes is one per class. digest: sha256 of the raw bytes and their shapes, the same on every
    device. mean and std: what pixels from 0 to 1 were normalised by. ordered: whether the rows are in the order of
    time. names: of the classes, or of the numbers; columns: of the inputs. references: what rules that need no network
    say, (n, outputs) each, by the name of the rule. Raises DataError.
    """

    inputs: Tensor
    targets: Tensor
    outputs: int
    digest: str
    mean: float = 0.0
    std: float = 1.0
    ordered: bool = False
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    references: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = f"inputs {_sizes(self.inputs)} and targets {_sizes(self.targets)}"
        if self.inputs.ndim < 1 or self.targets.ndim < 1 or len(self.inputs) != len(self.targets) or not len(self):
            raise DataError(f"{sizes}: expected as many of both, and at least one")
        if self.classifies and (self.targets.ndim > 1 or self.targets.dtype != torch.int64):
            raise DataError(f"{sizes} of {self.targets.dtype}: expected classes, int64 (n,), or float32 (n, outputs)")
        if not self.classifies and tuple(self.targets.shape[1:]) != (self.outputs,):
            raise DataError(f"{sizes}: expected targets (n, {self.outputs}), as many numbers as the network gives")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def classifies(self) -> bool:
        """Whether its targets are classes; else they are numbers."""
        return not self.targets.is_floating_point()

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image."""
        return tuple(self.inputs.shape[1:])

    def to(self, device: torch.device | str) -> "Split":
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


@dataclass(frozen=True)
class Embedded:
    """MNIST-5k, shipped with the package: 400 training and 100 test images of each digit. scripts/embed.py made it."""

    validation: int = 800

    def train(self) -> Split:
        return self._split("train")

    def test(self) -> Split:
        return self._split("test")

    def _split(self, part: str) -> Split:
        with np.load(ASSET, allow_pickle=False) as arrays:
            return _split(arrays[f"{part}_images"], arrays[f"{part}_labels"], SOURCES["mnist"])


@dataclass(frozen=True)
class Idx:
    """MNIST or Fashion-MNIST from the four IDX files their authors publish, each packed (.gz) or not.

    They lie in `root`; without it in $STUDYLOOM_DATA/mnist or $STUDYLOOM_DATA/fashion-mnist where that is a folder,
    else in data/MNIST/raw or data/FashionMNIST/raw below the working directory, where torchvision downloads them to.
    `validation` of the training images are held out to choose by. Raises DataError.
    """

    dataset: str
    validation: int
    root: str | None = None

    def __post_init__(self) -> None:
        if self.dataset not in SOURCES:
            near = difflib.get_close_matches(str(self.dataset), SOURCES, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise DataError(f"data.dataset is {self.dataset!r}: expected {' or '.join(SOURCES)}{hint}")

    def train(self) -> Split:
        return self._split("train")

    def test(self) -> Split:
        return self._split("t10k")

    def _split(self, prefix: str) -> Split:
        source = SOURCES[self.dataset]
        names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        folder, origin = self._folder(source)
        if origin == "download" and not all(_find(folder, name) for name in names):
            _download(source, folder)
        paths = []
        for name in names:
            path = _find(folder, name)
            if path is None:
                raise DataError(
                    f"no {name} or {name}.gz in {folder} ({origin}): expected the four files of {self.dataset}"
                )
            paths.append(path)
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(images) != len(labels):
            raise DataError(f"{paths[0]} holds {len(images)} images, {paths[1]} {len(labels)} labels: expected as many")
        if not images.size:
            raise DataError(f"{paths[0]}: expected images, found {' × '.join(map(str, images.shape))} pixels")
        if labels.max() >= CLASSES:
            place = int((labels >= CLASSES).argmax())
            raise DataError(f"{paths[1]}: label {place} is {labels[place]}, expected 0 to {CLASSES - 1}")
        return _split(images, labels, source)

    def _folder(self, source: Source) -> tuple[Path, str]:
        """The folder to read, and what named it."""
        if self.root is not None:
            folder = Path(self.root).expanduser()
            if not folder.is_dir():
                raise DataError(f"data.root is {self.root!r}: expected a folder, found {_kind(folder)}")
            return folder, "data.root"
        shared = os.environ.get("STUDYLOOM_DATA")
        if shared and (folder := Path(shared).expanduser() / source.folder).is_dir():
            return folder, "STUDYLOOM_DATA"
        return Path("data", source.torchvision, "raw").absolute(), "download"


@dataclass(frozen=True)
class Loaded:
    """Data that a function of one's own loads.

    load: called with "train" or "test"; gives inputs (n, …) and targets (n,), as tensors or arrays. Whole numbers from
    0 are classes, of which a network gives one number each; others are to be predicted, (n,) or (n, outputs). The test
    part is asked for once. validation: how many of the training part are held out to choose by. ordered: whether they
    are in the order of time, the test part after the training part; then the last are held out. Raises DataError.
    """

    load: Callable[[str], tuple[Any, Any]]
    validation: int
    ordered: bool = False

    def train(self) -> Split:
        return self._split("train", None)

    def test(self) -> Split:
        return self._split("test", self.train())

    def _split(self, part: str, like: Split | None) -> Split:
        given = self.load(part)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise DataError(f"data.load({part!r}) gave {type(given).__name__}: expected a pair of inputs and targets")
        inputs, targets = (_tensor(value, part, name) for value, name in zip(given, ("inputs", "targets"), strict=True))
        sizes = f"inputs {_sizes(inputs)} and targets {_sizes(targets)}"
        if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or not len(inputs):
            raise DataError(f"data.load({part!r}) gave {sizes}: expected as many of both, and at least one")
        if targets.ndim > 2:
            raise DataError(f"data.load({part!r}) gave {sizes}: expected targets (n,) or (n, outputs)")
        classes = not targets.is_floating_point()
        if classes and (targets.ndim > 1 or targets.min() < 0):
            raise DataError(
                f"data.load({part!r}) gave whole targets {_sizes(targets)} from {int(targets.min())} on: expected "
                "classes (n,) from 0 on, or floats, where numbers are to be predicted"
            )
        inputs, targets = inputs.float(), targets.long() if classes else targets.float().reshape(len(targets), -1)
        outputs = int(targets.max()) + 1 if classes else targets.shape[1]
        if like is not None:
            if inputs.shape[1:] != like.inputs.shape[1:] or targets.shape[1:] != like.targets.shape[1:]:
                sizes_of_train = f"{_sizes(like.inputs)} and {_sizes(like.targets)}"
                raise DataError(f"data.load({part!r}) gave {sizes}: those of the training part are {sizes_of_train}")
            if classes and outputs > like.outputs:
                raise DataError(f"data.load({part!r}) gave class {outputs - 1}: the training part has {like.outputs}")
            outputs = like.outputs
        return Split(inputs, targets, outputs, digest_of(inputs, targets), ordered=self.ordered)


def digest_of(inputs: Tensor, targets: Tensor) -> str:
    digest = hashlib.sha256(f"{tuple(inputs.shape)} {tuple(targets.shape)} {targets.dtype}".encode())
    for tensor in (inputs, targets):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def check(split: Split) -> None:
    """Looks through the values of a split that a source made.

    Raises:
        DataError: an input or a target is no finite number, or a class has no output.
    """
    for name, tensor in (("inputs", split.inputs), ("targets", split.targets)):
        # What is not finite makes a sum that is not: 0.02 s for 60 000 images, and 0.2 s to look at each number.
        suspect = tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum()))
        if suspect and not bool(torch.isfinite(tensor).all()):
            place = int((~torch.isfinite(tensor)).nonzero()[0, 0])
            raise DataError(f"data: the {name} of example {place} of the training part hold NaN or infinity")
    if split.classifies:
        low, high = int(split.targets.min()), int(split.targets.max())
        if low < 0 or high >= split.outputs:
            raise DataError(
                f"data: classes from {low} to {high}: expected 0 to {split.outputs - 1}, one for each output"
            )


def _tensor(value: Any, part: str, name: str) -> Tensor:
    """A tensor on the CPU, of finite numbers."""
    try:
        tensor = torch.as_tensor(value).detach().cpu()
        bad = not bool(torch.isfinite(tensor).all())
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"data.load({part!r}): its {name} are no tensor or array: {error}") from error
    if bad or tensor.is_complex():
        raise DataError(f"data.load({part!r}): its {name} hold NaN, infinity or complex numbers")
    return tensor


def _sizes(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def folds(
    targets: Tensor, count: int, validation: int, seed: int, *, ordered: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Partitions of `targets` (n, …) into training and validation indices, int64, ascending, on its device.

    count 1: one hold-out of exactly `validation` indices. count ≥ 2: as many folds, whose sizes differ by at most one;
    each index is validated once, and `validation` is not looked at. Of classes (n,) the counts of each differ by at
    most one too. The seed alone decides, on every device.

    ordered: in the order of time, where nothing is drawn. count 1 holds out the last. count ≥ 2 moves forward: the rows
    make count + 1 blocks, the first a little longer where they do not divide, and each but the first is validated by
    what all before it have taught (rolling origin; Tashman 2000). Raises ValueError where there are too few examples.
    """
    total = len(targets)
    if count < 1:
        raise ValueError(f"objective.folds: {count} is below 1")
    if count == 1 and not 0 < validation < total:
        raise ValueError(f"data.validation is {validation}: expected 1 to {total - 1}, of {total} training examples")
    if count > total - ordered:
        raise ValueError(
            f"objective.folds is {count}: expected at most {total - ordered}, of {total} training examples"
            + (" in the order of time" if ordered else "")
        )
    if ordered:
        size = validation if count == 1 else total // (count + 1)
        everything = torch.arange(total, device=targets.device)
        starts = [total - size * (count - k) for k in range(count)]
        return [(everything[:start], everything[start : start + size]) for start in starts]

    # Shuffled, then sorted stably by class: every k-th of this row is a random sample with each class in proportion.
    row = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    if not targets.is_floating_point():
        row = row[targets.cpu()[row].argsort(stable=True)]
    place = torch.arange(total)
    fold = torch.empty(total, dtype=torch.int64)
    if count == 1:
        # One in total/validation: where the running total of validation/total passes an integer.
        fold[row] = 1 - ((place + 1) * validation // total - place * validation // total)
    else:
        fold[row] = place % count
    fold = fold.to(targets.device)
    return [((fold != k).nonzero().flatten(), (fold == k).nonzero().flatten()) for k in range(count)]


def _split(images: Bytes, labels: Bytes, source: Source) -> Split:
    """images (n, height, width), labels (n,)."""
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


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path, dimensions: int) -> Bytes:
    """An IDX file of bytes: magic number 0x0800 + dimensions, the size of each dimension, all big-endian, the bytes.

    The format is described at https://yann.lecun.com/exdb/mnist.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} ({path.stat().st_size} bytes): expected a gzip file, found a corrupt one: {error}"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    header = 4 + 4 * dimensions
    if len(raw) < header:
        raise DataError(f"{path}: expected at least {header} bytes, found {len(raw)}: truncated")
    magic, *sizes = (int.from_bytes(raw[at : at + 4], "big") for at in range(0, header, 4))
    if magic != 0x0800 + dimensions:
        raise DataError(f"{path}: expected the magic number {0x0800 + dimensions}, found {magic}")
    expected = header + math.prod(sizes)
    if len(raw) != expected:
        found = f"found {len(raw)}: {'truncated' if len(raw) < expected else 'over-long'}"
        raise DataError(f"{path}: expected {expected} bytes for {' × '.join(map(str, sizes))}, {found}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(sizes)


def _download(source: Source, folder: Path) -> None:
    """Downloads the four files, checked by torchvision's md5, to `folder`.

    They are downloaded beside it and renamed into place: several workers may start on an empty folder at once.
    """
    try:
        from torchvision import datasets  # type: ignore[import-untyped]  # 2.2 s to import

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            dataset: Any = getattr(datasets, source.torchvision)
            dataset(temporary, download=True)
            for path in Path(temporary, source.torchvision, "raw").glob("*-ubyte"):
                path.replace(folder / path.name)
    except Exception as error:  # whatever a network, a proxy or a full disk does, the ways out are the same
        raise DataError(
            f"{source.torchvision} could not be downloaded to {folder}: {error}. Set data.root to a folder with its "
            f"four IDX files, or STUDYLOOM_DATA (now {os.environ.get('STUDYLOOM_DATA') or 'unset'}) to one that has "
            f"them in {source.folder}/"
        ) from error


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "nothing"
