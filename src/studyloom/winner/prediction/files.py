"""What the files given to `predict` hold; they may be anybody's, and lie about their size.

A file is read once, to a limit. Nothing in it is executed, and what its header says is compared
with what it has before memory is taken for it.
"""

import csv
import io
import math
import os
import stat
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from studyloom.data.sources import parse_idx
from studyloom.errors import PredictError, UserError
from studyloom.text import format_shape

MOST_BYTES = 256 * 2**20  # of a file, packed or not; MNIST's largest has 47 million
MOST_INPUTS = 1_000_000  # of a file
MOST_PIXELS = 50_000_000  # of a picture
MOST_CHARACTERS = 4 * 2**20  # of a row of a CSV file
SPARE = (
    16  # times the size of the inputs: a larger picture is reduced before it is turned to floats
)
# Not all that Pillow reads: for EPS it starts Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")  # no word begins so
NODES: dict[str, Callable[[int], bool]] = {
    "a folder": stat.S_ISDIR,
    "a FIFO": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_content(path: Path) -> bytes:
    """Reads a regular file; nothing else is opened, since a FIFO would be waited for.

    Raises:
        PredictError: it cannot be read, is something else, empty or too large.
    """
    try:
        mode = path.stat().st_mode
        for what, is_it in NODES.items():
            if is_it(mode):
                raise PredictError(f"it must be a file, and is {what}")
        # It may have become another since.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PredictError("it must be a file, and is something else")
            content = file.read(MOST_BYTES + 1)
    except PredictError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise PredictError(f"{getattr(error, 'strerror', None) or error}") from None
    if not content:
        raise PredictError("it is empty")
    if len(content) > MOST_BYTES:
        raise PredictError(f"it must have at most {MOST_BYTES >> 20} MiB; divide it")
    return content


def is_packed(content: bytes) -> bool:
    return content.startswith(b"\x1f\x8b")


def is_idx(content: bytes) -> bool:
    return content.startswith(b"\0\0\x08")


def is_array(content: bytes) -> bool:
    return content.startswith(b"\x93NUMPY")


def is_picture_file(content: bytes) -> bool:
    """Whether a file is a picture beyond doubt; a BMP and a PPM begin as a word may."""
    webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return webp or content.startswith(SIGNATURES)


def read_idx_images(content: bytes) -> Tensor:
    """Reads the images of an IDX file, packed or not.

    Returns:
        uint8 (n, 1, height, width).

    Raises:
        PredictError: it is damaged, too large, or holds no images.
    """
    try:
        images = parse_idx(content, "IDX", 3, packed=is_packed(content), most=MOST_BYTES)
    except UserError as error:
        raise PredictError(str(error)) from None
    if not images.size:
        raise PredictError(f"it must hold images; its header says {format_shape(images.shape)}")
    return torch.from_numpy(images.copy())[:, None]


def read_array(content: bytes) -> tuple[Tensor, bool]:
    """Reads a .npy file of numbers.

    Returns:
        float32, in the shape that the file says, and whether the numbers are whole.

    Raises:
        PredictError: it holds something else, or not what its header says.
    """
    file = io.BytesIO(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = npy.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"its version is {version[0]}.{version[1]}")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, by_column, kind = read(file)
    except Exception as error:  # whatever NumPy and Python's parser say of a header
        raise PredictError(f"it must be a .npy file of numbers: {shorten_error(error)}") from None
    if kind.kind not in "biuf":
        raise PredictError(f"it must be a .npy file of real numbers, and holds {kind.name}")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise PredictError(f"it must be a .npy file of numbers; its header says {shape}")
    body, expected = len(content) - file.tell(), math.prod(shape) * kind.itemsize
    if body != expected:
        raise PredictError(
            f"its header says {format_shape(shape) or 'one number'}, which is {expected} bytes, "
            f"and {body} follow"
        )
    flat = np.frombuffer(content, kind, offset=file.tell())
    with np.errstate(all="ignore"):  # a float64 beyond float32 becomes infinite, and is refused
        numbers = flat.astype(np.float32).reshape(shape, order="F" if by_column else "C")
    return torch.from_numpy(np.ascontiguousarray(numbers)), kind.kind in "iu"


def read_lines(content: bytes, columns: Sequence[str], count: int) -> Tensor:
    """Reads a CSV file with an input in each line.

    Args:
        content: what the file holds.
        columns: the names of the inputs, which its first line then has; empty for no such line.
        count: how many numbers an input has.

    Returns:
        float32 (n, count).

    Raises:
        PredictError: it holds something else; the first line that cannot be used.
    """
    numbers, positions = array("f"), list(range(count)) if not columns else []
    try:
        for number, row in _rows(content):
            if not positions:
                positions = _positions([name.strip() for name in row], columns)
                width = len(row)
                continue
            if not columns:
                width = count
            try:
                if len(row) != width:
                    raise ValueError
                values = [float(row[position]) for position in positions]
            except ValueError:
                raise PredictError(
                    f"line {number} must have {width} numbers, which the network takes"
                    if not columns
                    else f"line {number} must have {width} fields, and numbers for "
                    f"{', '.join(columns)}"
                ) from None
            numbers.extend(values)
            if len(numbers) > MOST_INPUTS * count:
                raise PredictError(f"it must hold at most {MOST_INPUTS:_} inputs; divide it")
    except (UnicodeDecodeError, csv.Error):
        raise PredictError("it must be a .npy file or a CSV file") from None
    if not numbers:
        raise PredictError("it must hold at least one line of numbers")
    return torch.frombuffer(numbers, dtype=torch.float32).reshape(-1, count)


def _positions(header: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Finds the columns in the first line of a CSV file."""
    if missing := [name for name in columns if name not in header]:
        raise PredictError(f"it has no column {', '.join(missing)}")
    if double := [name for name in columns if header.count(name) > 1]:
        raise PredictError(f"it has several columns {', '.join(double)}")
    return [header.index(name) for name in columns]


def _rows(content: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the line in which a row of a CSV file ends, and its fields."""
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
        while line := text.readline(MOST_CHARACTERS + 1):
            taken += len(line)
            if taken > MOST_CHARACTERS:
                raise PredictError(f"a row must have at most {MOST_CHARACTERS} characters")
            yield line

    reader = csv.reader(lines())
    for row in reader:
        taken = 0
        if row:
            yield reader.line_num, row


def read_picture(content: bytes, channels: int, size: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Reads a picture, upright and without transparency; the first of several.

    Args:
        content: what the file holds.
        channels: 1 makes it grey, 3 gives it colours.
        size: height and width of what will become of it.

    Returns:
        float32 (channels, height, width) from 0 (black) to 1 (white), and what was done, in words.

    Raises:
        PredictError: it is no picture, damaged, or too large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, and of sizes, which are checked here
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_pixels(image.size)
                return _decode(image, channels, size)
        except PredictError:
            raise
        except UnidentifiedImageError:
            raise PredictError(
                "it must be a picture or an IDX file of images, or a .npy file; pictures are "
                f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]}"
            ) from None
        except Image.DecompressionBombError:
            raise PredictError(too_many_pixels("more")) from None
        except Exception as error:  # decoders raise all kinds of errors for damaged files
            raise PredictError(f"it is a damaged picture: {shorten_error(error)}") from None


def _check_pixels(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise PredictError(too_many_pixels(f"{size[0]} × {size[1]}"))


def too_many_pixels(found: str) -> str:
    return f"it must have at most {MOST_PIXELS:_} pixels, and says {found}; scale it down"


def _decode(image: Image.Image, channels: int, size: Sequence[int]) -> tuple[Tensor, list[str]]:
    done = []
    if getattr(image, "is_animated", False):
        done.append("first of several frames")
    image.load()
    upright = UPRIGHT.get(_orientation(image))
    drawn: Image.Image = image
    if upright is not None:
        drawn = drawn.transpose(upright)
        done.append("turned upright")
    if drawn.mode.startswith("I") or drawn.mode == "F":
        levels = torch.from_numpy(_deep(np.asarray(drawn)))
        return levels.expand(channels, -1, -1).clone(), done
    drawn, laid = _without_alpha(drawn)
    drawn = drawn.convert("L" if channels == 1 else "RGB")
    shrink = min(drawn.height // (SPARE * size[0]), drawn.width // (SPARE * size[1]))
    if shrink > 1:
        laid.append(f"{drawn.width} × {drawn.height} pixels, every {shrink} × {shrink} made one")
        drawn = drawn.reduce(shrink)
    pixels = torch.from_numpy(np.array(drawn)).float().div_(255)
    return (pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()), done + laid


def _orientation(image: Image.Image) -> int:
    """Returns EXIF's orientation; 1, which is upright, if it says none or is damaged."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF is no reason to refuse its picture
        return 1


def _deep(levels: np.ndarray) -> np.ndarray:
    """Returns the pixels of 16 or 32 bits, or of floats, on the scale 0 to 1."""
    numbers = levels.astype(np.float32)[None]
    if not np.isfinite(numbers).all() or numbers.min() < 0 or numbers.max() > 65535:
        raise PredictError("its pixels must be from 0 to 1, or whole and from 0 to 65535")
    if levels.dtype.kind == "f":
        return numbers / (1 if numbers.max() <= 1 else 255 if numbers.max() <= 255 else 65535)
    return numbers / np.float32(65535)


def _without_alpha(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Lays a picture on white, or on black if what it shows is light."""
    if not (image.mode.endswith(("A", "a")) or "transparency" in image.info):
        return image, []
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB"), []
    shown = np.asarray(alpha, dtype=np.float32)
    brightness = float((np.asarray(image.convert("L")) * shown).sum() / max(1.0, shown.sum()))
    paper = "black" if brightness > 127 else "white"
    below = Image.new("RGBA", image.size, paper)
    below.alpha_composite(image)
    return below.convert("RGB"), [f"its transparent parts laid on {paper}"]


def shorten_error(error: BaseException) -> str:
    """Puts an error on one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def explain(error: Exception) -> PredictError:
    """Returns the error of a transform of the user's own, in our words."""
    return PredictError(f"data.transform: {type(error).__name__}: {shorten_error(error)}")


IN_PYTHON = "call it in Python: studyloom.load_winner(RUN_DIR).network"


def why_no_file(facts: Mapping[str, Any]) -> str:
    """Says why no file holds an input of a winner; "" if some do.

    Args:
        facts: what winner.json says of the data. Those in memory are tensors of numbers.
    """
    if facts["shape"] is None:
        return f"the inputs of this winner are more than one tensor of numbers; {IN_PYTHON}"
    kind = str(facts.get("kind"))
    if facts.get("loaded") and kind.startswith("int"):
        return f"the inputs of this winner are {kind}, such as token ids; {IN_PYTHON}"
    return ""


def check_answered(refusal: str) -> None:
    """Raises PredictError if files hold no inputs, with the reason."""
    if refusal:
        raise PredictError(refusal)


def check_rows(outputs: Tensor) -> None:
    """Checks that a network gives a row of numbers for each input.

    Raises:
        PredictError: it gives something else.
    """
    if outputs.ndim != 2:
        raise PredictError(
            f"the network gives {format_shape(outputs.shape[1:]) or 'one number'} for an input, "
            f"and not a row of numbers; {IN_PYTHON}"
        )


def check_finite(rows: Tensor) -> None:
    """Checks that inputs are finite.

    Raises:
        PredictError: one is not.
    """
    finite = torch.isfinite(rows).flatten(1).all(1)
    if not bool(finite.all()):
        raise PredictError(
            f"its numbers must be finite; input {int((~finite).nonzero()[0])} holds NaN or infinity"
        )
