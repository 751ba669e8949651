"""The inputs that files and arrays hold for a network."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studyloom.data.sound import Sound
from studyloom.data.transform import Picture, Reader, is_picture
from studyloom.errors import PredictError
from studyloom.text import format_shape
from studyloom.winner.prediction import files
from studyloom.winner.prediction.network import Network

SILENT = (
    "the data source of this winner does not say how a picture becomes an input; name it as "
    "data.transform in conf/data/ and call `studyloom winner` on this study, or give the inputs as "
    "`load` returns them in a .npy file"
)
AS_BEFORE = "numbers taken as inputs and not as pixels: the winner is of before data.transform"


@dataclass(frozen=True)
class Inputs:
    """What a network is asked for, and what is to be said beside its answers.

    Args:
        rows: float32 (n, *shape), finite.
        done: what was done to all of them, in words.
        unlike: in what single ones differ from the training data, by their position.
    """

    rows: Tensor
    done: Sequence[str]
    unlike: Mapping[int, str]

    def note(self, position: int) -> str:
        """Returns what is to be said beside an answer; "" if nothing is."""
        return "; ".join(word for word in (*self.done, self.unlike.get(position, "")) if word)


def read_inputs(path: Path, network: Network) -> Inputs:
    """Reads the inputs that a file holds for a network; what it is, its content says.

    Args:
        path: a .npy file of one input or several. Otherwise for sounds a WAV file, and what a
            `Reader` reads; for pictures a picture or an IDX file; else a CSV file of inputs.
        network: the network.

    Raises:
        PredictError: the file cannot be read, or holds something else.
    """
    files.check_answered(network.refusal)
    content = files.read_content(path)
    pictures = is_picture(network.shape)
    own = network.transform is not None and not isinstance(network.transform, Picture)
    if files.is_array(content):
        return from_numbers(*files.read_array(content), network)
    if isinstance(network.transform, Sound | Reader):
        return _from_content(content, network.transform, network)
    if pictures and (files.is_packed(content) or files.is_idx(content)):
        return _from_pictures(files.read_idx_images(content), [], network)
    if pictures or (own and files.is_picture_file(content)):
        channels, *size = network.shape if pictures else (3, 64, 64)
        pixels, done = files.read_picture(content, channels, size)
        return _from_pictures(pixels[None], done, network)
    lines = files.read_lines(content, network.columns, math.prod(network.shape))
    if own:
        return _finish(_apply(network, lines), [], network)
    return _finish(lines.reshape(len(lines), *network.shape), [], network)


def from_numbers(numbers: Tensor, whole: bool, network: Network) -> Inputs:
    """Makes inputs of an array of one or several.

    Of pictures, numbers from 0 on are pixels: whole numbers from 0 (black) to 255 (white) or to
    65535, others from 0 to 1 too. Where some are below 0, all are inputs as in training; so are
    all numbers where the data source does not say how pictures become inputs.

    Args:
        numbers: float32 (n, *shape), or one input (*shape); pictures of one channel also without.
        whole: whether they were whole numbers.
        network: the network.

    Raises:
        PredictError: they have another shape, are not finite, or are whole and no pixels.
    """
    files.check_answered(network.refusal)
    shape = network.shape
    grey = is_picture(shape) and shape[0] == 1 and tuple(numbers.shape[-2:]) == shape[1:]
    if grey and numbers.ndim < 4 and tuple(numbers.shape) != shape:
        numbers = numbers.unsqueeze(-3)
    rows = numbers[None] if tuple(numbers.shape) == shape else numbers
    if tuple(rows.shape[1:]) != shape or rows.ndim != 1 + len(shape) or not len(rows):
        raise PredictError(
            f"it must hold an input of {format_shape(shape)} numbers, or several; "
            f"got {format_shape(numbers.shape) or 'one number'}"
        )
    files.check_finite(rows)
    if network.transform is None or isinstance(network.transform, Sound) or not is_picture(shape):
        return _finish(rows, [], network)
    low, high = (float(end) for end in rows.aminmax())
    if low < 0 and not whole:
        return _finish(rows, [], network)
    if network.takes_numbers and not whole:
        return _finish(rows, [AS_BEFORE], network)
    if not (whole or isinstance(network.transform, Picture)):
        return _finish(rows, [], network)
    if low < 0 or high > 65535:
        raise PredictError(f"its pixels must be from 0 to 65535; got {low:.6g} to {high:.6g}")
    if whole and high <= 255:
        return _from_pictures(rows.to(torch.uint8), [], network)
    most = next(most for most in (1, 255, 65535) if high <= most)
    return _from_pictures(rows / most, [f"numbers taken as pixels from 0 to {most}"], network)


def _from_pictures(pixels: Tensor, done: Iterable[str], network: Network) -> Inputs:
    """Makes inputs of pictures (n, channels, height, width), uint8 or from 0 to 1."""
    if network.transform is None:
        raise PredictError(SILENT)
    size = (network.shape[-2], network.shape[-1])
    if not isinstance(network.transform, Picture):
        levels = pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().to(torch.uint8)
        return _finish(_apply(network, levels), done, network)
    if len(pixels) > 1 and pixels.shape[2:] != size:
        raise PredictError(
            f"its images must be {format_shape(size[::-1])} pixels, as the network takes them; got "
            f"{format_shape(tuple(pixels.shape[:1:-1]))}; a picture file of one may have any size"
        )
    if pixels.dtype == torch.uint8:
        pixels = pixels.float().div_(255)
    inputs, more = network.transform(pixels.expand(-1, network.shape[0], -1, -1), size)
    return _finish(inputs, [network.remark, *done, *more], network)


def _from_content(content: bytes, read: Sound | Reader, network: Network) -> Inputs:
    """Makes inputs of what a file holds, by a transform that reads it as a whole."""
    notes: Sequence[str] = ()
    try:
        rows, done = read(content)
        if isinstance(read, Reader):
            done, notes = [], done
        else:
            rows = rows[None]
    except ValueError as error:
        raise PredictError(str(error)) from None
    except Exception as error:  # whatever a user's class raises
        raise files.explain(error) from error
    if tuple(rows.shape[1:]) != network.shape or len(notes) not in (0, len(rows)):
        raise PredictError(f"winner.json: data.transform does not make {network.shape} of a file")
    inputs = _finish(rows.float(), done, network)
    return replace(inputs, unlike=dict(enumerate(notes))) if notes else inputs


def _apply(network: Network, items: Tensor) -> Tensor:
    """Calls a transform of the user's own for each of some items."""
    assert network.transform is not None
    make: Callable[..., Any] = network.transform
    rows = []
    for item in items:
        try:
            row = torch.as_tensor(make(item)).float()
        except Exception as error:  # whatever a user's function raises
            raise files.explain(error) from error
        if tuple(row.shape) != network.shape:
            raise PredictError(
                f"data.transform must return {format_shape(network.shape)} numbers; "
                f"got {format_shape(row.shape) or 'one number'}"
            )
        rows.append(row)
    return torch.stack(rows)


def _finish(rows: Tensor, done: Iterable[str], network: Network) -> Inputs:
    """Checks inputs, and says in what they are unlike those of the training."""
    if len(rows) > files.MOST_INPUTS:
        raise PredictError(f"it must hold at most {files.MOST_INPUTS:_} inputs; divide it")
    files.check_finite(rows)
    unlike = {} if network.seen is None else network.seen.unlike(rows, network.columns)
    return Inputs(rows, list(done), unlike)
