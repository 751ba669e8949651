"""What a winner says of pictures, arrays and lines of numbers: winner.pt answers, as winner.yaml builds it."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from studyloom.config import trust
from studyloom.data.idx import read_idx
from studyloom.errors import PredictError
from studyloom.question.jobs import build_network
from studyloom.text import format_shape, format_value
from studyloom.training.checkpoint import load_weights
from studyloom.training.trainer import predict_outputs


@dataclass(frozen=True)
class Network:
    """A trained network, and what it expects.

    shape: of an input, such as (channels, height, width); mean and std: of pixels from 0 to 1. names: of the classes or
    numbers that it tells; columns: of its inputs in a table.
    """

    model: nn.Module
    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 1.0
    classifies: bool = True
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def sees(self) -> bool:
        """Whether its inputs are pictures."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3)

    def __call__(self, inputs: Tensor) -> Tensor:
        """The probabilities (n, classes), or the numbers (n, outputs), of float32 inputs (n, *shape)."""
        outputs = predict_outputs(self.model, inputs)
        return outputs.softmax(1) if self.classifies else outputs


@dataclass(frozen=True)
class Answer:
    """name: the file, and for one of several inputs its place there; then a class and how sure it is, or numbers."""

    name: str
    label: int | None = None
    confidence: float | None = None
    values: tuple[float, ...] = ()
    word: str = ""

    def __str__(self) -> str:
        if self.confidence is None:
            return "\t".join((self.name, *map(format_value, self.values)))
        return f"{self.name}\t{self.word or self.label}\t{self.confidence:.4f}"


def load_network(run_dir: Path, trusted: Sequence[str] = ()) -> Network:
    """The winner below a run directory, which may be another person's: nothing in it is executed.

    Raises:
        PredictError: there is none.
        ConfigError: winner.yaml names what is not trusted.
        OSError: a file cannot be read.
    """
    try:
        facts = json.loads((run_dir / "winner.json").read_text())["data"]
        shape, outputs, mean, std = (facts[name] for name in ("shape", "outputs", "mean", "std"))
        names, columns = (tuple(map(str, facts.get(name, ()))) for name in ("names", "columns"))
    except FileNotFoundError:
        wait = "the study writes it when its search has ended"
        raise PredictError(f"{run_dir}: there is no winner.json; {wait}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise PredictError(
            f"{run_dir / 'winner.json'}: cannot be used: {type(error).__name__}: {error}"
        ) from None
    written = trust.load_foreign(run_dir / "winner.yaml", trusted)
    section = written.get("model")
    if not isinstance(section, DictConfig):
        raise PredictError(f"{run_dir / 'winner.yaml'}: has no section model")
    model = build_network(section, shape, outputs)
    try:
        model.load_state_dict(load_weights(run_dir / "winner.pt"))
    except (RuntimeError, ValueError) as error:
        raise PredictError(
            f"{run_dir / 'winner.pt'}: {' '.join(str(error).split())[:300]}"
        ) from None
    classifies = bool(facts.get("classifies", True))
    return Network(model, tuple(shape), float(mean), float(std), classifies, names, columns)


def predict(network: Network, paths: Sequence[Path]) -> Iterator[Answer]:
    """An answer for each input, in their order; all files are read before the first.

    Raises:
        PredictError: a file holds no input for this network.
    """
    for path, inputs in [(path, read_inputs(path, network)) for path in paths]:
        for place, row in enumerate(network(inputs)):
            name = f"{path}" if len(inputs) == 1 else f"{path}[{place}]"
            if network.classifies:
                label = int(row.argmax())
                word = network.names[label] if label < len(network.names) else ""
                yield Answer(name, label, float(row[label]), word=word)
            else:
                yield Answer(name, values=tuple(row.tolist()))


def read_inputs(path: Path, network: Network) -> Tensor:
    """What a file holds for a network, float32 (n, *shape): a .npy file of one or several, for pictures a picture or an
    IDX file, else a CSV file with a line for each."""
    if path.suffix == ".npy":
        return _array(path, network.shape)
    if network.sees:
        return (
            read_images(path, network.shape).float().div_(255).sub_(network.mean).div_(network.std)
        )
    return _lines(path, network)


def _array(path: Path, shape: tuple[int, ...]) -> Tensor:
    try:
        found = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
    except OSError as error:
        raise PredictError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, EOFError) as error:
        raise PredictError(
            f"{path}: is no .npy file of numbers: {' '.join(str(error).split())}"
        ) from None
    if tuple(found.shape) == shape:
        found = found[None]
    if tuple(found.shape[1:]) != shape or not len(found):
        raise PredictError(
            f"{path}: holds {format_shape(found.shape)}; the network takes {format_shape(shape)}, or several"
        )
    return found


def _lines(path: Path, network: Network) -> Tensor:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise PredictError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error):
        raise PredictError(f"{path}: is neither a .npy file nor a CSV file") from None
    places = list(range(math.prod(network.shape)))
    if network.columns:
        header = [name.strip() for name in rows.pop(0)] if rows else []
        if missing := [name for name in network.columns if name not in header]:
            raise PredictError(f"{path}: has no column {', '.join(missing)}")
        places = [header.index(name) for name in network.columns]
    found = []
    for line, row in enumerate(rows, 1 + bool(network.columns)):
        try:
            if not network.columns and len(row) != len(places):
                raise ValueError
            found.append([float(row[place]) for place in places])
        except (ValueError, IndexError):
            raise PredictError(
                f"{path}: line {line} is not {len(places)} numbers, which the network takes"
            ) from None
    if not found:
        raise PredictError(f"{path}: holds no line of numbers")
    return torch.tensor(found).reshape(len(found), *network.shape)


def read_images(path: Path, shape: Sequence[int]) -> Tensor:
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
        raise PredictError(
            f"{path}: is {wide} × {high} pixels; the network looks at {width} × {height}"
        )
    return pixels
