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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from studyloom.data.split import Split
from studyloom.errors import DataError
from studyloom.files import ASSETS

ASSET = ASSETS / "mnist5k.npz"
CLASSES = 10
Bytes = NDArray[np.uint8]


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
            raise DataError(
                f"data.dataset is {self.dataset!r}: expected {' or '.join(SOURCES)}{hint}"
            )

    def train(self) -> Split:
        return self._split("train")

    def test(self) -> Split:
        return self._split("t10k")

    def _split(self, prefix: str) -> Split:
        source = SOURCES[self.dataset]
        names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        folder, provenance = self._folder(source)
        if provenance == "download" and not all(_find(folder, name) for name in names):
            _download(source, folder)
        paths = []
        for name in names:
            path = _find(folder, name)
            if path is None:
                raise DataError(
                    f"no {name} or {name}.gz in {folder} ({provenance}): expected the four files of {self.dataset}"
                )
            paths.append(path)
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(images) != len(labels):
            raise DataError(
                f"{paths[0]} holds {len(images)} images, {paths[1]} {len(labels)} labels: expected as many"
            )
        if not images.size:
            raise DataError(
                f"{paths[0]}: expected images, found {' × '.join(map(str, images.shape))} pixels"
            )
        if labels.max() >= CLASSES:
            place = int((labels >= CLASSES).argmax())
            raise DataError(
                f"{paths[1]}: label {place} is {labels[place]}, expected 0 to {CLASSES - 1}"
            )
        return _split(images, labels, source)

    def _folder(self, source: Source) -> tuple[Path, str]:
        """The folder to read, and what named it."""
        if self.root is not None:
            folder = Path(self.root).expanduser()
            if not folder.is_dir():
                raise DataError(
                    f"data.root is {self.root!r}: expected a folder, found {_kind(folder)}"
                )
            return folder, "data.root"
        shared = os.environ.get("STUDYLOOM_DATA")
        if shared and (folder := Path(shared).expanduser() / source.folder).is_dir():
            return folder, "STUDYLOOM_DATA"
        return Path("data", source.torchvision, "raw").absolute(), "download"


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
        raise DataError(
            f"{path}: expected {expected} bytes for {' × '.join(map(str, sizes))}, {found}"
        )
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
    except (
        Exception
    ) as error:  # whatever a network, a proxy or a full disk does, the ways out are the same
        raise DataError(
            f"{source.torchvision} could not be downloaded to {folder}: {error}. Set data.root to a folder with its "
            f"four IDX files, or STUDYLOOM_DATA (now {os.environ.get('STUDYLOOM_DATA') or 'unset'}) to one that has "
            f"them in {source.folder}/"
        ) from error


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "nothing"
