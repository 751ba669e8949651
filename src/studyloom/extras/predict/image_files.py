"""Reads images of any size and format as pixels from 0 to 1."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from studyloom.errors import PredictError
from studyloom.text import one_line

# Not every format of Pillow: for EPS it starts Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")  # no word begins so
ORIENTATION = 0x0112  # EXIF's tag
SPARE = 16  # times the size of inputs: a larger image is reduced before it becomes floats


def read_image(content: bytes, channels: int, size: Sequence[int]) -> tuple[Tensor, list[str]]:
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
