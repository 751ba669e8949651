"""Images of ten classes: the embedded MNIST-5k, and MNIST and Fashion-MNIST from IDX files."""

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
from studyloom.data.transform import Picture
from studyloom.errors import DataError
from studyloom.files import ASSETS, asset
from studyloom.text import format_shape, nearest

ASSET = ASSETS / "mnist5k.npz"
CLASSES = 10
MOST_MEMBERS = 10_000  # of a gzip file; of MNIST's each has one
Bytes = NDArray[np.uint8]


class Source(NamedTuple):
    """Where a data set lies, what its pixels are normalised by, and how pictures become like its.

    Attributes:
        folder: its folder below $STUDYLOOM_DATA.
        torchvision: torchvision's class, and the folder below data/.
        mean: the mean of the training pixels on the scale 0 to 1.
        std: their standard deviation.
        transform: of pictures for `predict`, where a config says nothing else.
    """

    folder: str
    torchvision: str
    mean: float
    std: float
    transform: Picture


SOURCES = {
    "mnist": Source("mnist", "MNIST", 0.1307, 0.3081, Picture("black", "ink")),
    "fashion_mnist": Source("fashion-mnist", "FashionMNIST", 0.2860, 0.3530, Picture("black")),
}


@dataclass(frozen=True)
class Embedded:
    """MNIST-5k, shipped with the package: 400 training and 100 test images of each digit.

    `scripts/embed.py` made it.

    Args:
        validation: how many training images are held out to choose by.
        transform: how `studyloom predict` makes an input of a picture.

    Raises:
        DataError: from `train`, if `transform` has another scale.
    """

    validation: int = 800
    transform: Picture = SOURCES["mnist"].transform

    def train(self) -> Split:
        split = self._split("train")
        self.transform.check(split)
        return split

    def test(self) -> Split:
        return self._split("test")

    def _split(self, part: str) -> Split:
        with asset(ASSET.name) as file, np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        return _split(images, labels, SOURCES["mnist"])


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
        transform: how `studyloom predict` makes an input of a picture; None: as the data set needs
            it.

    Raises:
        DataError: there is no such data set; from `train` and `test`, a file is missing or damaged,
            or `transform` has another scale.
    """

    dataset: str
    validation: int
    root: str | None = None
    transform: Picture | None = None

    def __post_init__(self) -> None:
        if self.dataset not in SOURCES:
            raise DataError(
                f"data.dataset must be {' or '.join(SOURCES)}; got {self.dataset!r}"
                f"{nearest(self.dataset, [*SOURCES])}"
            )
        if self.transform is None:
            object.__setattr__(self, "transform", SOURCES[self.dataset].transform)

    def train(self) -> Split:
        split = self._split("train")
        assert self.transform is not None
        self.transform.check(split)
        return split

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

    Args:
        path: the file.
        dimensions: how many dimensions its array must have.

    Raises:
        DataError: the file cannot be read, or has another format.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_idx(raw, str(path), dimensions, packed=path.suffix == ".gz")


def parse_idx(
    raw: bytes, name: str, dimensions: int, *, packed: bool, most: float = math.inf
) -> Bytes:
    """Parses what an IDX file of bytes holds.

    That is the magic number 0x0800 + dimensions and the size of each dimension, all big-endian, and
    then the bytes; see https://yann.lecun.com/exdb/mnist. No more is unpacked than the sizes need.

    Args:
        raw: the content of the file.
        name: the file, for messages.
        dimensions: how many dimensions its array must have.
        packed: whether the content is gzip's.
        most: the bytes that its array may take.

    Raises:
        DataError: the content has another format, or is too large.
    """
    header = 4 + 4 * dimensions
    head = _unpack(raw, header, name) if packed else raw[:header]
    if len(head) < header:
        raise DataError(f"{name}: expected at least {header} bytes, found {len(head)}: truncated")
    magic, *sizes = (int.from_bytes(head[at : at + 4], "big") for at in range(0, header, 4))
    if magic != 0x0800 + dimensions:
        raise DataError(f"{name}: expected the magic number {0x0800 + dimensions}, found {magic}")
    expected = header + math.prod(sizes)
    if expected > most:
        raise DataError(
            f"{name}: must have at most {most} bytes; its header says {format_shape(sizes)}"
        )
    content = _unpack(raw, expected + 1, name) if packed else raw
    if len(content) != expected:
        longer = packed and len(content) > expected
        raise DataError(
            f"{name}: expected {expected} bytes for {format_shape(sizes)}, found "
            f"{'more' if longer else len(content)}: "
            f"{'truncated' if len(content) < expected else 'over-long'}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


def _unpack(packed: bytes, most: int, name: str) -> bytes:
    """Unpacks gzip, whose members follow each other, and stops at `most` bytes.

    8 MB of gzip may hold 8 GB. If it ends before, its checksum is right.

    Raises:
        DataError: it is damaged.
    """
    parts: list[bytes] = []
    left, position, members, member = most, 0, 0, None
    try:
        while left > 0 and position < len(packed):
            if member is None:
                if packed[position] == 0:  # what follows the last member is padding
                    break
                if (members := members + 1) > MOST_MEMBERS:
                    raise EOFError(f"it has more than {MOST_MEMBERS} members")
                member = zlib.decompressobj(wbits=31)  # gzip's header and checksum
            block = packed[position : position + 65536]
            parts.append(member.decompress(block, left))
            left -= len(parts[-1])
            position += len(block) - len(member.unused_data)
            if member.eof:
                member = None
        if left > 0 and member is not None:
            raise EOFError("it ends before its end-of-stream marker")
    except (EOFError, zlib.error) as error:
        raise DataError(
            f"{name} ({len(packed)} bytes): expected a gzip file, found a corrupt one: {error}"
        ) from error
    return b"".join(parts)


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
