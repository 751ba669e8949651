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

MOST_BYTES = 256 * 2**20  # in a file
MOST_ARRAYS = 1000  # in a .npz file
ARRAY = b"\x93NUMPY"  # the first bytes of a .npy file
ARCHIVE = b"PK\x03\x04"  # the first bytes of a .npz file


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
        length = path.stat().st_size
        if length > MOST_BYTES:
            raise PredictError(f"it must have at most {MOST_BYTES >> 20} MiB; divide it")
        if length == 0:
            raise PredictError("it is empty")
        content = path.read_bytes()
        form = self.form
        facts = form.facts
        shape = form.shape
        transform = form.transform
        if content.startswith(ARRAY):
            return self._from_array(_read_array(content))
        if isinstance(transform, Sound | Reader):
            return self._from_content(content, transform)
        if content.startswith(ARCHIVE):
            return self._from_archive(_read_archive(content))
        if not facts.takes_arrays:
            raise PredictError(SEVERAL)
        if not shape:
            return form.finish(_read_lines(content, (), None))
        is_users = transform is not None and not isinstance(transform, Image)
        if is_image(shape) or (is_users and _is_image_file(content)):
            channels, *size = shape if is_image(shape) else (3, 64, 64)
            pixels, done = read_image(content, channels, size)
            return form.from_pixels(pixels[None], done)
        if facts.loads_tokens and len(shape) == 1:  # sequences may have any length
            return form.finish(_read_lines(content, (), None))
        lines = _read_lines(content, facts.columns, math.prod(shape))
        if is_users:
            return form.finish(form.apply_transform(lines))
        return form.finish(lines.reshape(-1, *shape))

    def _from_array(self, numbers: np.ndarray) -> Inputs:
        """Makes inputs from the array of a file."""
        with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite, and is refused
            single = torch.from_numpy(np.array(numbers, np.float32, order="C"))
        return self.form.from_numbers(single, numbers.dtype.name)

    def _from_archive(self, arrays: Mapping[str, np.ndarray]) -> Inputs:
        """Makes inputs from the arrays of a .npz file.

        Several arrays are several inputs of the network: in their order if they have the names that
        `numpy.savez` gives to arrays without one, and otherwise by name.
        """
        if len(arrays) == 1 and self.form.facts.takes_arrays:
            (numbers,) = arrays.values()
            return self._from_array(numbers)
        tensors: dict[str, Tensor] = {}
        for name, numbers in arrays.items():
            if not np.isfinite(numbers).all():
                raise PredictError(f"its numbers must be finite; {name} holds NaN or infinity")
            native = numbers.dtype.newbyteorder("=")
            tensors[name] = torch.from_numpy(np.array(numbers, native, order="C"))
        default_names = [f"arr_{position}" for position in range(len(tensors))]
        if [*tensors] == default_names:
            return tuple(tensors.values()), []
        return tensors, []

    def _from_content(self, content: bytes, read: Sound | Reader) -> Inputs:
        """Makes inputs from a whole file by a transform that reads it."""
        try:
            rows, notes = read(content)
        except ValueError as error:
            raise PredictError(str(error)) from None
        except Exception as error:  # whatever a user's class raises
            raise transform_error(error) from error
        if isinstance(read, Sound):
            rows = rows[None]  # one sound is one input
            notes = ["; ".join(notes)]
        if tuple(rows.shape[1:]) != self.form.shape or len(notes) not in (0, len(rows)):
            raise PredictError(
                f"winner.json: data.transform does not make {self.form.shape} of a file"
            )
        return self.form.finish(rows.float(), notes_of_reader=notes)


def _is_image_file(content: bytes) -> bool:
    """Whether a file begins like an image."""
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return is_webp or content.startswith(SIGNATURES)


def _read_array(content: bytes) -> np.ndarray:
    """Reads a .npy file of real numbers."""
    numbers: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    if numbers.dtype.kind not in "biuf":
        raise PredictError(f"it must hold real numbers, and holds {numbers.dtype}")
    return numbers


def _read_archive(content: bytes) -> dict[str, np.ndarray]:
    """Reads the arrays of a .npz file by name; they may be larger than the file, up to a limit."""
    # Each entry of the directory begins with these bytes. They are counted before zipfile reads the
    # directory as a whole, which a file of millions of entries could make it do.
    if content.count(b"PK\x01\x02") > MOST_ARRAYS:
        raise PredictError(f"it must hold at most {MOST_ARRAYS} arrays")
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MOST_BYTES:
                raise PredictError(
                    f"its arrays must have at most {MOST_BYTES >> 20} MiB; divide it"
                )
            for member in members:
                arrays[member.filename.removesuffix(".npy")] = _read_member(archive, member)
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


def _read_lines(content: bytes, columns: Sequence[str], count: int | None) -> Tensor:
    """Reads a CSV file with an input in each line, as float32 (n, count).

    Args:
        columns: the names that the header must have; empty for a file without a header.
        count: the numbers of an input; None for as many as the first line has.
    """
    if count is None:
        count = content.partition(b"\n")[0].count(b",") + 1
    positions = [*range(count)]  # of the numbers in a line
    width = count  # the number of fields in a line
    requirement = f"{count} numbers, which the network takes"
    rows = []
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        if columns:
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if header.count(name) != 1]
            if missing:
                raise PredictError(f"it must have one column {', '.join(missing)}")
            positions = [header.index(name) for name in columns]
            width = len(header)
            requirement = f"{width} fields, and numbers for {', '.join(columns)}"
        for row in reader:
            if not row:
                continue
            try:
                if len(row) != width:
                    raise ValueError("some numbers are missing, or too many")
                rows.append([float(row[position]) for position in positions])
            except ValueError:
                raise PredictError(f"line {reader.line_num} must have {requirement}") from None
    except (UnicodeDecodeError, csv.Error):
        raise PredictError("it must be a .npy file or a CSV file") from None
    if not rows:
        raise PredictError("it must hold at least one line of numbers")
    return torch.tensor(rows)
