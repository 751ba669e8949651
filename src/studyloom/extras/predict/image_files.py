"""Reads images of any size and format as pixels from 0 to 1."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from studyloom.errors import PredictError
from studyloom.text import one_line

# The formats that are read. Pillow knows more, but for EPS it would start Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
# The first bytes of images; no text begins with them.
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = 1  # the value of that tag for an image that need not be turned
# An image that is larger by this factor than the inputs is reduced before it becomes floats.
MAX_SIZE_FACTOR = 16
WHITE_LEVELS = (1, 255, 65535)  # of pixels that are not bytes: floats, 8 bits or 16 bits
MAX_OPACITY = 255  # of a pixel in an image of bytes
MIDDLE_GRAY = 127


@dataclass(frozen=True)
class _Opaque:
    """An image without transparency.

    Args:
        background: the color below its transparent parts; empty if there are none.
    """

    image: PIL.Image.Image
    background: str = ""


@dataclass(frozen=True)
class DecodedImage:
    """An image as a network takes it.

    Args:
        pixels: float32 (channels, height, width) from 0 (black) to 1 (white).
        changes: the changes to the image that the file holds, in words.
    """

    pixels: Tensor
    changes: list[str]


def read_image(content: bytes, channels: int, size: Sequence[int]) -> DecodedImage:
    """Reads an image, upright and without transparency; only the first of several frames.

    Args:
        channels: 1 for grayscale, 3 for color.
        size: the height and width of the network's inputs; much larger images are reduced.

    Raises:
        PredictError: it is damaged, or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata
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


def _decode(image: PIL.Image.Image, channels: int, size: Sequence[int]) -> DecodedImage:
    """Makes the first frame of an image upright, opaque, and not much larger than the inputs.

    An image whose pixels are not bytes keeps its size.

    Args:
        channels: 1 for grayscale, 3 for color.
        size: the height and width of the network's inputs.
    """
    changes = []
    if getattr(image, "is_animated", False):  # only formats of several frames have the attribute
        changes.append("first of several frames")
    if image.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT:
        image = PIL.ImageOps.exif_transpose(image)
        changes.append("turned upright")
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits, or floats
        pixels = _read_wide_pixels(image)
        return DecodedImage(pixels.expand(channels, -1, -1).clone(), changes)

    if image.has_transparency_data:
        opaque = _remove_transparency(image)
        image = opaque.image
        if opaque.background:
            changes.append(f"its transparent parts laid on {opaque.background}")
    mode = "RGB"
    if channels == 1:
        mode = "L"  # grayscale
    image = image.convert(mode)

    height, width = size
    factor_of_height = image.height // (MAX_SIZE_FACTOR * height)
    factor_of_width = image.width // (MAX_SIZE_FACTOR * width)
    factor = min(factor_of_height, factor_of_width)
    if factor > 1:
        changes.append(f"{image.width} × {image.height} pixels, every {factor} × {factor} made one")
        image = image.reduce(factor)
    pixels = torch.from_numpy(np.array(image)).float().div_(255)
    if channels == 1:
        pixels = pixels[None]
    else:
        pixels = pixels.permute(2, 0, 1).contiguous()  # the channels first
    return DecodedImage(pixels, changes)


def _read_wide_pixels(image: PIL.Image.Image) -> Tensor:
    """Returns pixels that are not bytes as float32 (1, height, width) from 0 to 1.

    White is 65535 among integers. Floats may be from 0 to 1, or to the largest integer of 8 or 16
    bits: white is the least of these three that no pixel exceeds.
    """
    levels = torch.from_numpy(np.asarray(image).astype(np.float32))[None]
    are_finite = bool(torch.isfinite(levels).all())
    are_valid = are_finite and float(levels.min()) >= 0
    possible_whites = [white for white in WHITE_LEVELS if float(levels.max()) <= white]
    if not are_valid or not possible_whites:
        raise PredictError("its pixels must be from 0 to 1, or integers from 0 to 65535")
    if image.mode == "F":  # floats
        white = min(possible_whites)
    else:
        white = max(WHITE_LEVELS)
    return levels / white


def _remove_transparency(image: PIL.Image.Image) -> _Opaque:
    """Puts an image on white, or on black if its visible parts are light."""
    image = image.convert("RGBA")
    opacity = np.asarray(image.getchannel("A"), dtype=np.float32)  # from 0 to 255
    if opacity.min() == MAX_OPACITY:
        return _Opaque(image)
    gray = np.asarray(image.convert("L"))
    mean_gray = float((gray * opacity).sum() / max(1.0, opacity.sum()))  # weighted by opacity
    color = "white"
    if mean_gray > MIDDLE_GRAY:
        color = "black"
    background = PIL.Image.new("RGBA", image.size, color)
    background.alpha_composite(image)
    return _Opaque(background, color)
