"""Reads the inputs of a network from files: arrays, sounds, images and tables.

Nothing in a file is executed.
"""

import csv
import io
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from studyloom.data.sound import Sound
from studyloom.data.transform import Image, Reader, is_image
from studyloom.errors import PredictError
from studyloom.extras.predict.image_files import SIGNATURES, read_image
from studyloom.text import one_line
from studyloom.winner.inputs import SEVERAL, InputFormat, Inputs, transform_error

MAX_BYTES = 256 * 2**20  # in a file
MAX_ARRAYS = 1000  # in a .npz file
ARRAY = b"\x93NUMPY"  # the first bytes of a .npy file
REAL_KINDS = "biuf"  # NumPy's letters for booleans, integers, unsigned integers and floats
ARCHIVE = b"PK\x03\x04"  # the first bytes of a .npz file, which is a zip file of .npy files
DIRECTORY_ENTRY = b"PK\x01\x02"  # the first bytes of an entry in the directory of a zip file
ANY_IMAGE = (3, 64, 64)  # how an image is read for a custom transform of inputs that are no images


@dataclass(frozen=True)
class InputFiles:
    """Reads the inputs of a network from files.

    Args:
        form: makes inputs of the numbers in a file.
    """

    form: InputFormat

    def read(self, path: Path) -> Inputs:
        """Reads the inputs in a file, whose format is detected from its content.

        It may be a .npy file of one input or several. Otherwise it is a WAV file for sounds,
        any file for a `Reader`, a .npz file for a network of several inputs, an image for images,
        and else a CSV file of inputs.
        """
        content = _read_content(path)
        transform = self.form.transform
        if content.startswith(ARRAY):
            return self._from_array(_read_array(content))
        if isinstance(transform, Sound | Reader):
            return self._from_content(content, transform)
        if content.startswith(ARCHIVE):
            return self._from_archive(_read_archive(content))
        if not self.form.facts.takes_arrays:
            raise PredictError(SEVERAL)
        if self._holds_image(content):
            return self._from_image(content)
        return self._from_lines(content)

    @property
    def _has_custom_transform(self) -> bool:
        """True if a transform of the user, and not one of studyloom, makes the inputs."""
        transform = self.form.transform
        return transform is not None and not isinstance(transform, Image)

    def _holds_image(self, content: bytes) -> bool:
        """Returns True if a file must be read as an image.

        Every file must be one if the inputs are images. A custom transform may make inputs of any
        shape from images as well as from numbers: then the content decides.
        """
        shape = self.form.shape
        if not shape:
            return False
        if is_image(shape):
            return True
        return self._has_custom_transform and _is_image_file(content)

    def _from_image(self, content: bytes) -> Inputs:
        """Makes an input from an image."""
        shape = self.form.shape
        if not is_image(shape):
            shape = ANY_IMAGE
        channels, *size = shape
        image = read_image(content, channels, size)
        return self.form.from_pixels(image.pixels[None], image.changes)

    def _from_lines(self, content: bytes) -> Inputs:
        """Makes inputs from the lines of a CSV file, one from each; `form.finish` checks them."""
        form = self.form
        shape = form.shape
        has_unknown_shape = not shape
        are_sequences = form.facts.loads_tokens and len(shape) == 1
        if has_unknown_shape or are_sequences:  # lines of any length, all as long as the first
            return form.finish(_read_lines(content, columns=(), count=None))
        lines = _read_lines(content, form.facts.columns, math.prod(shape))  # (n, count)
        if self._has_custom_transform:
            return form.finish(form.apply_transform(lines))
        return form.finish(lines.reshape(-1, *shape))

    def _from_array(self, numbers: np.ndarray) -> Inputs:
        """Makes inputs from the array of a file."""
        with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite, and is refused
            tensor = torch.from_numpy(np.array(numbers, np.float32, order="C"))
        return self.form.from_numbers(tensor, numbers.dtype.name)

    def _from_archive(self, arrays: Mapping[str, np.ndarray]) -> Inputs:
        """Makes inputs from the arrays of a .npz file.

        Several arrays are several inputs of the network.

        Returns:
            The tensors, and no notes on them. The tensors are in their order if they have the names
            that `numpy.savez` gives to arrays without one, and otherwise by name.
        """
        if len(arrays) == 1 and self.form.facts.takes_arrays:
            (numbers,) = arrays.values()
            return self._from_array(numbers)
        tensors: dict[str, Tensor] = {}
        for name, numbers in arrays.items():
            if not np.isfinite(numbers).all():
                raise PredictError(f"its numbers must be finite; {name} holds NaN or infinity")
            native_dtype = numbers.dtype.newbyteorder("=")  # PyTorch has no other byte order
            tensors[name] = torch.from_numpy(np.array(numbers, native_dtype, order="C"))
        no_notes: list[str] = []
        default_names = [f"arr_{position}" for position in range(len(tensors))]
        if list(tensors) == default_names:
            return tuple(tensors.values()), no_notes
        return tensors, no_notes

    def _from_content(self, content: bytes, transform: Sound | Reader) -> Inputs:
        """Makes inputs from a whole file by a transform that reads it.

        A Reader returns the inputs (n, *shape), and notes on what it changed: none, or one for each
        input. A Sound returns a single input (*shape), and any number of notes on it.
        """
        try:
            inputs, notes = transform(content)
        except ValueError as error:
            raise PredictError(str(error)) from None
        except Exception as error:  # whatever a user's class raises
            raise transform_error(error) from error
        if isinstance(transform, Sound):
            inputs = inputs[None]
            notes = ["; ".join(notes)]
        if tuple(inputs.shape[1:]) != self.form.shape or len(notes) not in (0, len(inputs)):
            raise PredictError(
                f"winner.json: data.transform does not make {self.form.shape} of a file"
            )
        return self.form.finish(inputs.float(), notes_of_reader=notes)


def _read_content(path: Path) -> bytes:
    """Reads a file that is neither empty nor too large."""
    length = path.stat().st_size
    if length > MAX_BYTES:
        raise PredictError(f"it must have at most {MAX_BYTES // 2**20} MiB; divide it")
    if length == 0:
        raise PredictError("it is empty")
    return path.read_bytes()


def _is_image_file(content: bytes) -> bool:
    """Returns True if a file begins like an image."""
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return is_webp or content.startswith(SIGNATURES)


def _read_array(content: bytes) -> np.ndarray:
    """Reads a .npy file of real numbers."""
    numbers: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    if numbers.dtype.kind not in REAL_KINDS:
        raise PredictError(f"it must hold real numbers, and holds {numbers.dtype}")
    return numbers


def _read_archive(content: bytes) -> dict[str, np.ndarray]:
    """Reads the arrays of a .npz file, by name.

    The file may be compressed: the arrays may be larger than it is, up to MAX_BYTES.

    Raises:
        PredictError: it is damaged, too large, or holds something else than arrays.
    """
    # zipfile reads the whole directory at once, and a hostile file could fill the memory with
    # millions of entries. Therefore they are counted before zipfile sees the file.
    if content.count(DIRECTORY_ENTRY) > MAX_ARRAYS:
        raise PredictError(f"it must hold at most {MAX_ARRAYS} arrays")
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            uncompressed_bytes = sum(member.file_size for member in members)
            if uncompressed_bytes > MAX_BYTES:
                raise PredictError(
                    f"its arrays must have at most {MAX_BYTES // 2**20} MiB; divide it"
                )
            for member in members:
                name = member.filename.removesuffix(".npy")
                arrays[name] = _read_member(archive, member)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise PredictError(f"it is a damaged .npz file: {one_line(str(error))}") from None
    if not arrays:
        raise PredictError("it holds no array")
    return arrays


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Reads an array of a .npz file."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PredictError("it must be compressed as by numpy.savez_compressed, or not at all")
    with archive.open(member) as file:
        content = file.read(member.file_size)  # no more, even if it expands to more
    if not content.startswith(ARRAY):
        raise PredictError(f"it must be a .npz file; {member.filename} in it is no array")
    return _read_array(content)


@dataclass(frozen=True)
class _LineFormat:
    """The format that all lines of a CSV file must have.

    Args:
        fields: the number of fields in a line.
        positions: the positions of the fields that hold the numbers of an input, in their order.
        requirement: the format in words, for errors.
    """

    fields: int
    positions: Sequence[int]
    requirement: str

    def read(self, line: Sequence[str]) -> list[float]:
        """Returns the numbers of an input; raises ValueError for a line of another format."""
        if len(line) != self.fields:
            raise ValueError("some numbers are missing, or too many")
        return [float(line[position]) for position in self.positions]


def _read_lines(content: bytes, columns: Sequence[str], count: int | None) -> Tensor:
    """Reads a CSV file with an input in each line, as float32 (n, count).

    Args:
        columns: the names that the header must have; empty for a file without a header.
        count: how many numbers an input has; None for as many as the first line has.
    """
    if count is None:
        first_line, _, _ = content.partition(b"\n")
        count = first_line.count(b",") + 1
    rows = []
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        if columns:
            line_format = _format_by_header(next(reader, []), columns)
        else:
            requirement = f"{count} numbers, which the network takes"
            line_format = _LineFormat(count, range(count), requirement)
        for line in reader:
            if not line:
                continue
            try:
                rows.append(line_format.read(line))
            except ValueError:
                raise PredictError(
                    f"line {reader.line_num} must have {line_format.requirement}"
                ) from None
    except (UnicodeDecodeError, csv.Error):
        raise PredictError("it must be a .npy file or a CSV file") from None
    if not rows:
        raise PredictError("it must hold at least one line of numbers")
    return torch.tensor(rows)


def _format_by_header(header: Sequence[str], columns: Sequence[str]) -> _LineFormat:
    """Returns the format of the lines below a header, which must have all columns once."""
    names = [name.strip() for name in header]
    missing_or_repeated = [name for name in columns if names.count(name) != 1]
    if missing_or_repeated:
        raise PredictError(f"it must have one column {', '.join(missing_or_repeated)}")
    positions = [names.index(name) for name in columns]
    requirement = f"{len(names)} fields, and numbers for {', '.join(columns)}"
    return _LineFormat(len(names), positions, requirement)
