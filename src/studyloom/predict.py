"""What a winner says of images: PNGs and the like, or IDX files, classified by winner.pt as winner.yaml builds it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from studyloom import parts, train, trust
from studyloom.checkpoint import load_weights
from studyloom.data import read_idx


class PredictError(ValueError):
    """There is no winner, or an image is none that it can look at; says which, and what was expected."""


@dataclass(frozen=True)
class Network:
    """A trained network, and what it expects. shape: (channels, height, width); mean and std: of pixels from 0 to 1."""

    model: nn.Module
    shape: tuple[int, ...]
    mean: float
    std: float

    def __call__(self, pixels: Tensor) -> Tensor:
        """The probabilities (n, classes) of uint8 images (n, *shape)."""
        images = pixels.float().div_(255).sub_(self.mean).div_(self.std)
        return train.predict(self.model, images).softmax(1)


@dataclass(frozen=True)
class Answer:
    """name: the file, and for one of several images its place there."""

    name: str
    label: int
    confidence: float


def load(run_dir: Path, trusted: Sequence[str] = ()) -> Network:
    """The winner below a run directory, which may be another person's: nothing in it is executed.

    Raises:
        PredictError: there is none.
        ConfigError: winner.yaml names what is not trusted.
        OSError: a file cannot be read.
    """
    try:
        facts = json.loads((run_dir / "winner.json").read_text())["data"]
        shape, outputs, mean, std = (facts[name] for name in ("shape", "outputs", "mean", "std"))
    except FileNotFoundError:
        wait = "the study writes it when its search has ended"
        raise PredictError(f"{run_dir}: there is no winner.json; {wait}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise PredictError(f"{run_dir / 'winner.json'}: cannot be used: {type(error).__name__}: {error}") from None
    written = trust.load(run_dir / "winner.yaml", trusted)
    section = written.get("model")
    if not isinstance(section, DictConfig):
        raise PredictError(f"{run_dir / 'winner.yaml'}: has no section model")
    model = parts.build_network(section, shape, outputs)
    try:
        model.load_state_dict(load_weights(run_dir / "winner.pt"))
    except (RuntimeError, ValueError) as error:
        raise PredictError(f"{run_dir / 'winner.pt'}: {' '.join(str(error).split())[:300]}") from None
    return Network(model, tuple(shape), float(mean), float(std))


def classify(network: Network, paths: Sequence[Path]) -> Iterator[Answer]:
    """An answer for each image, in their order; all files are read before the first.

    Raises:
        PredictError: a file holds no image, or one of another shape.
    """
    for path, pixels in [(path, read(path, network.shape)) for path in paths]:
        sure, labels = network(pixels).max(1)
        for place, (label, confidence) in enumerate(zip(labels.tolist(), sure.tolist(), strict=True)):
            yield Answer(f"{path}" if len(pixels) == 1 else f"{path}[{place}]", label, confidence)


def read(path: Path, shape: Sequence[int]) -> Tensor:
    """The images of a file, uint8 (n, *shape): one of a picture, all of an IDX file."""
    channels, height, width = shape
    try:
        with open(path, "rb") as file:
            head = file.read(4)
        if head[:3] == b"\0\0\x08" or path.suffix == ".gz":  # IDX of bytes, plain or packed
            pixels = torch.from_numpy(read_idx(path, 3).copy())[:, None]
        else:
            with Image.open(path) as image:
                grey = image.convert("L" if channels == 1 else "RGB")
                pixels = torch.from_numpy(np.array(grey))
            pixels = pixels[None, None] if channels == 1 else pixels.permute(2, 0, 1)[None]
    except UnidentifiedImageError:
        raise PredictError(f"{path}: is neither a picture nor an IDX file of images") from None
    except OSError as error:
        raise PredictError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise PredictError(str(error)) from None
    if tuple(pixels.shape[1:]) != tuple(shape):
        *_, high, wide = pixels.shape
        raise PredictError(f"{path}: is {wide} × {high} pixels; the network looks at {width} × {height}")
    return pixels
