"""Images of ten classes: the embedded MNIST-5k, and MNIST and Fashion-MNIST from IDX files."""

import gzip
import hashlib
import math
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from studyloom.data.split import Split
from studyloom.errors import DataError
from studyloom.files import ASSETS
from studyloom.text import format_shape, nearest

ASSET = ASSETS / "mnist5k.npz"
CLASSES = 10
Bytes = NDArray[np.uint8]


class Source(NamedTuple):
    """Where a data set lies, and what its pixels are normalised by.

    Attributes:
        folder: its folder below $STUDYLOOM_DATA.
        torchvision: torchvision's class, and the folder below data/.
        mean: the mean of the training pixels on the scale 0 to 1.
        std: their standard deviation.
    """

    folder: str
    torchvision: str
    mean: float
    std: float


SOURCES = {
    "mnist": Source("mnist", "MNIST", 0.1307, 0.3081),
    "fashion_mnist": Source("fashion-mnist", "FashionMNIST", 0.2860, 0.3530),
}


@dataclass(frozen=True)
class Embedded:
    """MNIST-5k, shipped with the package: 400 training and 100 test images of each digit.

    `scripts/embed.py` made it.

    Args:
        validation: how many training images are held out to choose by.
    """

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
    """MNIST or Fashion-MNIST from the four IDX files that their authors publish.

    Each file may be packed (.gz) or not.

    Without `root` they are read from $STUDYLOOM_DATA/mnist or $STUDYLOOM_DATA/fashion-mnist, if
    that folder exists; else from data/MNIST/raw or data/FashionMNIST/raw below the working
    directory, where torchvision downloads them to.

    Args:
        dataset: mnist or fashion_mnist.
        validation: how many training images are held out to choose by.
        root: the folder of the four files.

    Raises:
        DataError: there is no such data set; from `train` and `test`, a file is missing or damaged.
    """

    dataset: str
    validation: int
    root: str | None = None

    def __post_init__(self) -> None:
        if self.dataset not in SOURCES:
            raise DataError(
                f"data.dataset must be {' or '.join(SOURCES)}; got {self.dataset!r}"
                f"{nearest(self.dataset, [*SOURCES])}"
            )

    def train(self) -> Split:
        return self._split("train")

    def test(self) -> Split:
        return self._split("t10k")

    def _split(self, prefix: str) -> Split:
        source = SOURCES[self.dataset]
        names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        folder, named_by = self._folder(source)
        if named_by == "download" and not all(_find(folder, name) for name in names):
            _download(source, folder)
        paths = []
        for name in names:
            path = _find(folder, name)
            if path is None:
                raise DataError(
                    f"{folder} ({named_by}) must hold the four files of {self.dataset}; "
                    f"it has no {name} or {name}.gz"
                )
            paths.append(path)
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(images) != len(labels):
            raise DataError(
                f"{paths[0]} and {paths[1]} must hold as many images as labels; "
                f"got {len(images)} images and {len(labels)} labels"
            )
        if not images.size:
            raise DataError(f"{paths[0]}: expected images, found {format_shape(images.shape)}")
        if labels.max() >= CLASSES:
            position = int((labels >= CLASSES).argmax())
            raise DataError(
                f"{paths[1]}: label {position} must be from 0 to {CLASSES - 1}; "
                f"got {labels[position]}"
            )
        return _split(images, labels, source)

    def _folder(self, source: Source) -> tuple[Path, str]:
        """Returns the folder to read, and what named it."""
        if self.root is not None:
            folder = Path(self.root).expanduser()
            if not folder.is_dir():
                instead = "is a file" if folder.exists() else "does not exist"
                raise DataError(f"data.root must be a folder; {self.root!r} {instead}")
            return folder, "data.root"
        shared = os.environ.get("STUDYLOOM_DATA")
        if shared and (folder := Path(shared).expanduser() / source.folder).is_dir():
            return folder, "STUDYLOOM_DATA"
        return Path("data", source.torchvision, "raw").absolute(), "download"


def _split(images: Bytes, labels: Bytes, source: Source) -> Split:
    """Normalises images (n, height, width) with labels (n,)."""
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
    """Reads an IDX file of bytes, packed (.gz) or not.

    The file holds the magic number 0x0800 + dimensions and the size of each dimension, all
    big-endian, and then the bytes; see https://yann.lecun.com/exdb/mnist.

    Args:
        path: the file.
        dimensions: how many dimensions its array must have.

    Raises:
        DataError: the file cannot be read, or has another format.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} ({path.stat().st_size} bytes): expected a gzip file, found a corrupt one: "
            f"{error}"
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
        raise DataError(
            f"{path}: expected {expected} bytes for {format_shape(sizes)}, found {len(raw)}: "
            f"{'truncated' if len(raw) < expected else 'over-long'}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(sizes)


def _download(source: Source, folder: Path) -> None:
    """Downloads the four files to `folder`, checked by torchvision's md5.

    They are downloaded to a temporary folder and renamed into place, since several workers may
    start on an empty folder at once.
    """
    try:
        from torchvision import datasets  # type: ignore[import-untyped]  # 2.2 s to import

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            dataset: Any = getattr(datasets, source.torchvision)
            dataset(temporary, download=True)
            for path in Path(temporary, source.torchvision, "raw").glob("*-ubyte"):
                path.replace(folder / path.name)
    # Whatever a network, a proxy or a full disk does, the ways out are the same.
    except Exception as error:
        raise DataError(
            f"{source.torchvision} could not be downloaded to {folder}: {error}. Set data.root to "
            f"a folder with its four IDX files, or STUDYLOOM_DATA (now "
            f"{os.environ.get('STUDYLOOM_DATA') or 'unset'}) to one that has them in "
            f"{source.folder}/"
        ) from error
