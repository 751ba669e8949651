"""Predictions of a winner for pictures, arrays and lines of numbers.

winner.yaml builds the network, and winner.pt holds its weights.
"""

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

    Args:
        model: the network.
        shape: the shape of one input, such as (channels, height, width).
        mean: what is subtracted from pixels on the scale 0 to 1.
        std: what they are divided by after that.
        classifies: whether it predicts classes, and not numbers.
        names: the names of the classes or numbers that it predicts.
        columns: the names of its inputs in a table.
    """

    model: nn.Module
    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 1.0
    classifies: bool = True
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def takes_pictures(self) -> bool:
        """Whether its inputs are pictures, of one or three channels."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Predicts for float32 inputs (n, *shape).

        Returns:
            probabilities (n, classes), or numbers (n, outputs).
        """
        outputs = predict_outputs(self.model, inputs)
        return outputs.softmax(1) if self.classifies else outputs


@dataclass(frozen=True)
class Answer:
    """The prediction for one input: a class and its probability, or numbers.

    Attributes:
        name: the file; for one of several inputs with its position there.
        label: the class.
        confidence: the probability of the class, from 0 to 1.
        values: the numbers, if it is not a class.
        word: the name of the class, if it has one.
    """

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
    """Loads the winner below a run directory, which may be another person's.

    Nothing in its files is executed, and only classes of trusted packages are built.

    Args:
        run_dir: the run directory.
        trusted: packages, modules or classes that winner.yaml may name, beside those of ours.

    Raises:
        PredictError: there is no winner, or its files cannot be used.
        ConfigError: winner.yaml names something that is not trusted.
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
    section = trust.load_foreign(run_dir / "winner.yaml", trusted).get("model")
    if not isinstance(section, DictConfig):
        raise PredictError(f"{run_dir / 'winner.yaml'}: must have a section model")
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
    """Predicts for each input of each file, in their order.

    Args:
        network: the network.
        paths: the files; all are read before the first prediction.

    Raises:
        PredictError: a file cannot be read, or does not hold inputs for this network.
    """
    for path, inputs in [(path, read_inputs(path, network)) for path in paths]:
        for position, row in enumerate(network(inputs)):
            name = f"{path}" if len(inputs) == 1 else f"{path}[{position}]"
            if network.classifies:
                label = int(row.argmax())
                word = network.names[label] if label < len(network.names) else ""
                yield Answer(name, label, float(row[label]), word=word)
            else:
                yield Answer(name, values=tuple(row.tolist()))


def read_inputs(path: Path, network: Network) -> Tensor:
    """Reads the inputs that a file holds for a network.

    Args:
        path: a .npy file of one input or several. For pictures otherwise a picture or an IDX file;
            for other inputs a CSV file with a line for each.
        network: the network.

    Returns:
        inputs float32 (n, *shape), normalised.

    Raises:
        PredictError: the file cannot be read, or holds something else.
    """
    if path.suffix == ".npy":
        return _read_array(path, network.shape)
    if network.takes_pictures:
        pixels = read_images(path, network.shape).float()
        return pixels.div_(255).sub_(network.mean).div_(network.std)
    return _read_lines(path, network)


def _read_array(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Reads a .npy file of one input or several."""
    try:
        inputs = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
    except OSError as error:
        raise PredictError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, EOFError) as error:
        raise PredictError(
            f"{path}: must be a .npy file of numbers: {' '.join(str(error).split())}"
        ) from None
    if tuple(inputs.shape) == shape:
        inputs = inputs[None]
    if tuple(inputs.shape[1:]) != shape or not len(inputs):
        raise PredictError(
            f"{path}: must hold an input of {format_shape(shape)} numbers, or several; "
            f"got {format_shape(inputs.shape)}"
        )
    return inputs


def _read_lines(path: Path, network: Network) -> Tensor:
    """Reads a CSV file with an input in each line, with a header if the inputs have names."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise PredictError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error):
        raise PredictError(f"{path}: must be a .npy file or a CSV file") from None
    positions = list(range(math.prod(network.shape)))
    if network.columns:
        header = [name.strip() for name in rows.pop(0)] if rows else []
        if missing := [name for name in network.columns if name not in header]:
            raise PredictError(f"{path}: has no column {', '.join(missing)}")
        positions = [header.index(name) for name in network.columns]
    inputs = []
    for line, row in enumerate(rows, 1 + bool(network.columns)):
        try:
            if not network.columns and len(row) != len(positions):
                raise ValueError
            inputs.append([float(row[position]) for position in positions])
        except (ValueError, IndexError):
            raise PredictError(
                f"{path}: line {line} must have {len(positions)} numbers, which the network takes"
            ) from None
    if not inputs:
        raise PredictError(f"{path}: must hold at least one line of numbers")
    return torch.tensor(inputs).reshape(len(inputs), *network.shape)


def read_images(path: Path, shape: Sequence[int]) -> Tensor:
    """Reads the images of a file: the one of a picture, or all of an IDX file.

    Args:
        path: the file.
        shape: the shape that the images must have, (channels, height, width).

    Returns:
        images uint8 (n, *shape).

    Raises:
        PredictError: the file cannot be read, or its images have another size.
    """
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
        raise PredictError(f"{path}: must be a picture or an IDX file of images") from None
    except OSError as error:
        raise PredictError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise PredictError(str(error)) from None
    if tuple(pixels.shape[1:]) != tuple(shape):
        *_, rows, columns = pixels.shape
        raise PredictError(
            f"{path}: must be {width} × {height} pixels, as the network takes them; "
            f"got {columns} × {rows}"
        )
    return pixels
