"""Makes inputs of a network from files and arrays, as described by the study's data source.

Nothing in a file is executed.
"""

import csv
import io
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from studyloom.data.sound import Sound
from studyloom.data.transform import Image, InputRange, Reader, Transform, is_image
from studyloom.errors import PredictError
from studyloom.text import format_shape, name_error, one_line
from studyloom.winner.result import DataFacts

MOST_BYTES = 256 * 2**20  # of a file
MOST_INPUTS = 1_000_000  # of a file
MOST_ARRAYS = 1000  # of a .npz file
# Not every format of Pillow: for EPS it starts Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")  # no word begins so
ORIENTATION = 0x0112  # EXIF's tag
SPARE = 16  # times the size of inputs: a larger image is reduced before it becomes floats
IN_PYTHON = "call it in Python: studyloom.load_winner(RUN_DIR).network"
NORMALIZED = f"for inputs as in training {IN_PYTHON}"
SEVERAL = (
    "the network of this winner takes several tensors, or named ones; give a .npz file of "
    "numpy.savez(FILE, first, second) or (FILE, name=array), or in Python a tuple or a dict"
)
ARRAY, ARCHIVE = b"\x93NUMPY", b"PK\x03\x04"  # how .npy and .npz files begin
SILENT = (
    "the data source of this winner does not say how an image becomes an input; name it as "
    "data.transform and call `studyloom winner`, or give a .npy file of what `load` returns"
)


# Float32 (n, *shape), and for each input a note to print with its prediction, or "". Or several
# tensors by name or in order, without notes.
Inputs = tuple[Any, list[str]]


@dataclass(frozen=True)
class InputFormat:
    """Makes inputs of a network from the content of a file or an array.

    Args:
        transform: makes an input from a file; None if the study has none.
    """

    facts: DataFacts
    transform: Transform | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input; () if inputs are passed unchanged, or only from Python."""
        return self.facts.shape or ()

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
        images, transform = is_image(self.shape), self.transform
        own = transform is not None and not isinstance(transform, Image)
        if content.startswith(ARRAY):
            return self._from_array(_read_array(content))
        if isinstance(transform, Sound | Reader):
            return self._from_content(content, transform)
        if content.startswith(ARCHIVE):
            return self._from_archive(_read_archive(content))
        if not self.facts.takes_arrays:
            raise PredictError(SEVERAL)
        if not self.shape:
            return self._finish(_read_lines(content, (), None))
        webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
        if images or (own and (webp or content.startswith(SIGNATURES))):
            channels, *size = self.shape if images else (3, 64, 64)
            pixels, done = _read_image(content, channels, size)
            return self._from_pixels(pixels[None], done)
        if self.facts.loads_tokens and len(self.shape) == 1:  # sequences may have any length
            return self._finish(_read_lines(content, (), None))
        lines = _read_lines(content, self.facts.columns, math.prod(self.shape))
        rows = self._apply(lines) if own else lines.reshape(-1, *self.shape)
        return self._finish(rows)

    def _from_array(self, numbers: np.ndarray) -> Inputs:
        """Makes inputs from the array of a file."""
        with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite, and is refused
            single = torch.from_numpy(np.array(numbers, np.float32, order="C"))
        return self.from_numbers(single, numbers.dtype.name)

    def _from_archive(self, arrays: Mapping[str, np.ndarray]) -> Inputs:
        """Makes inputs from the arrays of a .npz file.

        Several arrays are several inputs of the network: in their order if they have the names that
        `numpy.savez` gives to arrays without one, and otherwise by name.
        """
        if len(arrays) == 1 and self.facts.takes_arrays:
            (numbers,) = arrays.values()
            return self._from_array(numbers)
        tensors: dict[str, Tensor] = {}
        for name, numbers in arrays.items():
            if not np.isfinite(numbers).all():
                raise PredictError(f"its numbers must be finite; {name} holds NaN or infinity")
            native = numbers.dtype.newbyteorder("=")
            tensors[name] = torch.from_numpy(np.array(numbers, native, order="C"))
        unnamed = [f"arr_{place}" for place in range(len(tensors))]
        if [*tensors] == unnamed:
            return tuple(tensors.values()), []
        return tensors, []

    def from_numbers(self, numbers: Tensor, dtype: str) -> Inputs:
        """Makes inputs from an array of one or several.

        For images, integers are pixels from 0 (black) to 255 (white), or to 65535 for uint16.
        Floats are pixels from 0 to 1 if the data source normalizes its images itself, and
        otherwise inputs as in training.

        Args:
            numbers: float (n, *shape), or one input (*shape); the channel dimension of grayscale
                images may be missing.
            dtype: the name of their original type.
        """
        shape, transform = self.shape, self.transform
        if not self.facts.takes_arrays:
            raise PredictError(SEVERAL)
        if self.facts.loads_tokens and numbers.ndim in (len(shape), len(shape) + 1):
            shape = tuple(numbers.shape[-len(shape) :])  # sequences may have any length
        if not shape:
            if not numbers.ndim or not len(numbers):
                raise PredictError("it must hold an input for each entry of its first dimension")
            return self._finish(numbers)
        gray = is_image(shape) and shape[0] == 1 and tuple(numbers.shape[-2:]) == shape[1:]
        if gray and numbers.ndim < 4 and tuple(numbers.shape) != shape:
            numbers = numbers.unsqueeze(-3)
        rows = numbers[None] if tuple(numbers.shape) == shape else numbers
        if tuple(rows.shape[1:]) != shape or rows.ndim != 1 + len(shape) or not len(rows):
            raise PredictError(
                f"it must hold an input of {format_shape(shape)} numbers, or several; "
                f"got {format_shape(numbers.shape) or 'one number'}"
            )
        if not is_image(shape) or transform is None or isinstance(transform, Sound):
            return self._finish(rows)
        # Whether the data source normalizes its images itself, by known values.
        normal = isinstance(transform, Image) and (self.facts.mean, self.facts.std) != (0, 1)
        whole = dtype.startswith(("int", "uint"))
        if not whole and not normal:
            return self._finish(rows)
        most = 65535 if dtype == "uint16" else 255 if whole else 1
        low, high = (float(end) for end in rows.aminmax())
        if low < 0 or high > most:
            wanted = f"its integers must be pixels from 0 to {most}, or to 65535 as uint16"
            if not whole:
                wanted = f"its numbers must be pixels from 0 to 1, or integers to 255; {NORMALIZED}"
            raise PredictError(f"{wanted}; got {low:.6g} to {high:.6g}")
        return self._from_pixels(rows / most)

    def _from_pixels(self, pixels: Tensor, done: Sequence[str] | None = None) -> Inputs:
        """Makes inputs from pixels (n, channels, height, width) from 0 to 1.

        Args:
            done: the changes made to the image of a file, which may have another size and
                background; None for arrays, whose images must fit.
        """
        if self.transform is None:
            raise PredictError(SILENT)
        if not isinstance(self.transform, Image):
            levels = (pixels * 255).round().to(torch.uint8)
            return self._finish(self._apply(levels), done or ())
        if done is not None:
            row, more = self.transform(pixels[0], (self.shape[-2], self.shape[-1]))
            return self._finish(row[None], [*done, *more])
        return self._finish(self.transform.scale(pixels))

    def _from_content(self, content: bytes, read: Sound | Reader) -> Inputs:
        """Makes inputs from a whole file by a transform that reads it."""
        try:
            rows, said = read(content)
        except ValueError as error:
            raise PredictError(str(error)) from None
        except Exception as error:  # whatever a user's class raises
            raise _own_fault(error) from error
        if isinstance(read, Sound):
            rows, said = rows[None], ["; ".join(said)]
        if tuple(rows.shape[1:]) != self.shape or len(said) not in (0, len(rows)):
            raise PredictError(f"winner.json: data.transform does not make {self.shape} of a file")
        return self._finish(rows.float(), own=said)

    def _apply(self, items: Tensor) -> Tensor:
        """Calls the user's transform for each item."""
        make: Callable[..., Any] | None = self.transform
        assert make is not None
        try:
            rows = torch.stack([torch.as_tensor(make(item)).float() for item in items])
        except Exception as error:  # whatever a user's function raises
            raise _own_fault(error) from error
        if tuple(rows.shape[1:]) != self.shape:
            wanted, got = format_shape(self.shape), format_shape(rows.shape[1:]) or "one number"
            raise PredictError(f"data.transform must return {wanted} numbers; got {got}")
        return rows

    def _finish(self, rows: Tensor, done: Iterable[str] = (), own: Sequence[str] = ()) -> Inputs:
        """Checks inputs, and notes how they were changed and differ from the training data.

        Args:
            own: the notes of a `Reader`, one for each input.
        """
        if len(rows) > MOST_INPUTS:
            raise PredictError(f"it must hold at most {MOST_INPUTS:_} inputs; divide it")
        finite = torch.isfinite(rows).reshape(len(rows), -1).all(1)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            raise PredictError(f"its numbers must be finite; input {first} holds NaN or infinity")
        if self.facts.takes_integers and not bool((rows == rows.round()).all()):
            raise PredictError("its numbers must be integers, as the network takes them")
        facts, unlike = self.facts, dict[int, str]()
        if facts.inputs is not None and not facts.reads:  # a `Reader` says it itself
            unlike = InputRange(**vars(facts.inputs)).unlike(rows, facts.columns)
        words = [(*done, each, unlike.get(n, "")) for n, each in enumerate(own or [""] * len(rows))]
        return rows, ["; ".join(filter(None, each)) for each in words]


def _read_array(content: bytes) -> np.ndarray:
    """Reads a .npy file of real numbers."""
    numbers: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    if numbers.dtype.kind not in "biuf":
        raise PredictError(f"it must hold real numbers, and holds {numbers.dtype}")
    return numbers


def _read_archive(content: bytes) -> dict[str, np.ndarray]:
    """Reads the arrays of a .npz file by name; they may be larger than the file, up to a limit."""
    if content.count(b"PK\x01\x02") > MOST_ARRAYS:  # of a directory, which is read as a whole
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
        content = file.read(member.file_size)  # no more, whatever its compressed data holds
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
    rows, positions, width = [], [*range(count)], count
    wanted = f"{count} numbers, which the network takes"
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        if columns:
            header = [name.strip() for name in next(reader, [])]
            if missing := [name for name in columns if header.count(name) != 1]:
                raise PredictError(f"it must have one column {', '.join(missing)}")
            positions, width = [header.index(name) for name in columns], len(header)
            wanted = f"{width} fields, and numbers for {', '.join(columns)}"
        for row in reader:
            if not row:
                continue
            try:
                if len(row) != width:
                    raise ValueError("some numbers are missing, or too many")
                rows.append([float(row[position]) for position in positions])
            except ValueError:
                raise PredictError(f"line {reader.line_num} must have {wanted}") from None
    except (UnicodeDecodeError, csv.Error):
        raise PredictError("it must be a .npy file or a CSV file") from None
    if not rows:
        raise PredictError("it must hold at least one line of numbers")
    return torch.tensor(rows)


def _read_image(content: bytes, channels: int, size: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Reads an image, upright and without transparency; only the first of several frames.

    Args:
        channels: 1 for grayscale, 3 for color.

    Returns:
        float32 (channels, height, width) from 0 (black) to 1 (white), and what was done, in words.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            with PIL.Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.load()
                return _decode(image, channels, size)
    except PredictError:
        raise
    except PIL.UnidentifiedImageError:
        raise PredictError(
            f"it must be an image or a .npy file; images are {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise PredictError(f"it is a damaged image: {one_line(str(error))}") from None


def _decode(image: PIL.Image.Image, channels: int, size: Sequence[int]) -> tuple[Tensor, list[str]]:
    done = ["first of several frames"] if getattr(image, "is_animated", False) else []
    drawn: PIL.Image.Image = image
    if image.getexif().get(ORIENTATION, 1) != 1:
        drawn = PIL.ImageOps.exif_transpose(image)
        done.append("turned upright")
    if drawn.mode.startswith("I") or drawn.mode == "F":  # 16 or 32 bits, or floats
        levels = torch.from_numpy(np.asarray(drawn).astype(np.float32))[None]
        most = next((most for most in (1, 255, 65535) if float(levels.max()) <= most), 0)
        if not most or not bool(torch.isfinite(levels).all()) or float(levels.min()) < 0:
            raise PredictError("its pixels must be from 0 to 1, or integers from 0 to 65535")
        levels /= most if drawn.mode == "F" else 65535
        return levels.expand(channels, -1, -1).clone(), done
    if drawn.has_transparency_data:
        drawn, paper = _without_alpha(drawn)
        done += [f"its transparent parts laid on {paper}"] if paper else []
    drawn = drawn.convert("L" if channels == 1 else "RGB")
    shrink = min(drawn.height // (SPARE * size[0]), drawn.width // (SPARE * size[1]))
    if shrink > 1:
        done.append(f"{drawn.width} × {drawn.height} pixels, every {shrink} × {shrink} made one")
        drawn = drawn.reduce(shrink)
    pixels = torch.from_numpy(np.array(drawn)).float().div_(255)
    return (pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()), done


def _without_alpha(image: PIL.Image.Image) -> tuple[PIL.Image.Image, str]:
    """Puts an image on white, or on black if it is light; returns which, "" if all is opaque."""
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"), dtype=np.float32)
    if alpha.min() == 255:
        return image, ""
    brightness = float((np.asarray(image.convert("L")) * alpha).sum() / max(1.0, alpha.sum()))
    paper = "black" if brightness > 127 else "white"
    below = PIL.Image.new("RGBA", image.size, paper)
    below.alpha_composite(image)
    return below, paper


def _own_fault(error: Exception) -> PredictError:
    return PredictError(f"data.transform: {one_line(name_error(error, 200))}")
