"""Predictions of a winner for pictures, sounds, arrays and lines of numbers.

winner.yaml builds the network, winner.pt holds its weights, and winner.json how what a file holds
becomes an input, as the data source of the study said it.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from studyloom.config import trust
from studyloom.config.build import build
from studyloom.data.sound import Sound
from studyloom.data.transform import InputRange, Picture, Reader, Transform, is_picture
from studyloom.errors import PredictError
from studyloom.files import open_below
from studyloom.question.jobs import build_network
from studyloom.text import format_shape, format_value
from studyloom.training.checkpoint import load_weights
from studyloom.training.trainer import predict_outputs
from studyloom.winner import input_files
from studyloom.winner.answer import check_whole, is_of_loop, load_answer, unusable
from studyloom.winner.committee import DTYPES, load_committee

# The sources of ours, whose winners of before this was stored have it in their classes.
SOURCES = ("studyloom.data.Embedded", "studyloom.data.Idx")
SILENT = (
    "the data source of this winner does not say how a picture becomes an input; name it as "
    "data.transform in conf/data/ and call `studyloom winner` on this study, or give the inputs as "
    "`load` returns them in a .npy file"
)
OF_A_LOOP = (
    "{}: the winner is a loop of your own, which has no network of ours; studyloom.load_winner "
    "gives its configuration and what it kept"
)
AS_BEFORE = "numbers taken as inputs and not as pixels: the winner is of before data.transform"
ASSUMED = "pixels scaled to {low} to {high}, since the data source does not say how"


@dataclass(frozen=True)
class Network:
    """A trained network, and what it expects.

    Args:
        model: the network.
        shape: the shape of one input, such as (channels, height, width).
        transform: how what a file holds becomes an input; None if nobody said it.
        remark: what is said of each picture.
        seen: the range of the training inputs, if it is known.
        classifies: whether it predicts classes, and not numbers.
        names: the names of the classes or numbers that it predicts.
        columns: the names of its inputs in a table.
        takes_numbers: whether numbers with a fraction are its inputs even if they may be pixels, as
            they were for winners of before a transform was stored.
        dtype: in which the network takes inputs; whole for one that begins with an embedding.
        refusal: why no file holds an input for it; "" if some do.
    """

    model: nn.Module
    shape: tuple[int, ...]
    transform: Transform | None = None
    remark: str = ""
    seen: InputRange | None = None
    classifies: bool = True
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    takes_numbers: bool = False
    dtype: torch.dtype = torch.float32
    refusal: str = ""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Predicts for float32 inputs (n, *shape).

        Returns:
            probabilities (n, classes), or numbers (n, outputs).

        Raises:
            PredictError: they are not finite, or no row for each input.
        """
        outputs = predict_outputs(self.model, inputs, dtype=self.dtype)
        input_files.check_rows(outputs)
        if not bool(torch.isfinite(outputs).all()):
            raise PredictError(
                "its numbers are so far from those of the training data that the network's outputs "
                "are not finite"
            )
        return outputs.softmax(1) if self.classifies else outputs


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


@dataclass(frozen=True)
class Answer:
    """The prediction for one input: a class and its probability, or numbers.

    Attributes:
        name: the file; for one of several inputs with its position there.
        label: the class.
        confidence: the probability of the class, from 0 to 1.
        values: the numbers, if it is not a class.
        word: the name of the class, if it has one.
        note: what was done to the input, and in what it is unlike the training data.
    """

    name: str
    label: int | None = None
    confidence: float | None = None
    values: tuple[float, ...] = ()
    word: str = ""
    note: str = ""

    def __str__(self) -> str:
        if self.confidence is None:
            words = [self.name, *map(format_value, self.values)]
        else:
            words = [self.name, self.word or str(self.label), f"{self.confidence:.4f}"]
        return "\t".join([*words, self.note] if self.note else words)


def load_network(run_dir: Path, trusted: Sequence[str] = (), *, committee: bool = False) -> Network:
    """Loads the winner below a run directory, which may be another person's.

    Nothing in its files is executed, and only classes and functions of trusted packages are called.

    Args:
        run_dir: the run directory.
        trusted: packages, modules or classes that winner.yaml and winner.json may name, beside
            those of ours.
        committee: whether to load the committee in its place.

    Raises:
        PredictError: there is no such answer, or its files cannot be used.
        ConfigError: winner.yaml or winner.json names something that is not trusted.
        OSError: a file cannot be read.
    """
    answer = load_answer(run_dir)
    if is_of_loop(answer):
        raise PredictError(OF_A_LOOP.format(run_dir))
    try:
        facts = answer["data"]
        several = facts["shape"] is None and facts.get("loaded") is True
        shape = () if several else tuple(map(int, facts["shape"]))
        outputs = None if facts["outputs"] is None else int(facts["outputs"])
        mean, std = float(facts["mean"]), float(facts["std"])
        names, columns = (tuple(map(str, facts.get(name, ()))) for name in ("names", "columns"))
        seen = InputRange.stored(facts.get("inputs"), math.prod(shape))
        dtype = DTYPES[facts.get("dtype", "float32")]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise unusable(run_dir, error) from None
    known = None if several else shape, outputs
    config = _read_config(run_dir, answer, trusted)
    if committee:
        model: nn.Module = load_committee(run_dir, answer, trusted, *known)
    else:
        model = _load_model(run_dir, answer, config, *known)
    old = "transform" not in facts
    stored = _transform_of_before(config) if old else facts["transform"]
    transform, remark = build_transform(stored, trusted), ""
    if isinstance(transform, Picture):
        transform = transform.completed(mean, std)
    elif transform is None and is_picture(shape) and not facts.get("loaded"):
        transform, remark = _assume(mean, std, seen)
    classifies = bool(facts.get("classifies", True))
    refusal = input_files.why_no_file(facts)
    if isinstance(transform, Reader):  # says itself in what an input is unlike the training data
        seen, refusal = None, ""
    return Network(
        *(model, shape, transform, remark, seen, classifies, names, columns, old, dtype, refusal)
    )


def _read_config(run_dir: Path, answer: Mapping[str, Any], trusted: Sequence[str]) -> DictConfig:
    check_whole(run_dir, answer, "winner.yaml")
    os.close(open_below(run_dir, "winner.yaml"))
    config = trust.load_foreign(run_dir / "winner.yaml", trusted)
    check_whole(run_dir, answer, "winner.yaml")  # it may have been replaced
    return config


def _load_model(
    run_dir: Path,
    answer: Mapping[str, Any],
    config: DictConfig,
    shape: Sequence[int] | None,
    outputs: int | None,
) -> nn.Module:
    check_whole(run_dir, answer, "winner.pt")
    os.close(open_below(run_dir, "winner.pt"))
    section = config.get("model")
    if not isinstance(section, DictConfig):
        raise PredictError(f"{run_dir / 'winner.yaml'}: must have a section model")
    model: nn.Module = build_network(section, shape, outputs)
    try:
        model.load_state_dict(load_weights(run_dir / "winner.pt"))
    except (RuntimeError, ValueError) as error:
        raise PredictError(
            f"{run_dir / 'winner.pt'}: {' '.join(str(error).split())[:300]}"
        ) from None
    check_whole(run_dir, answer, "winner.pt")  # it may have been replaced
    return model


def _transform_of_before(config: DictConfig) -> Any:
    """Returns what our own source says of its pictures, for a winner of before it was stored."""
    section = config.get("data")
    if not isinstance(section, DictConfig) or section.get("_target_") not in SOURCES:
        return None
    return {"_target_": "studyloom.data.Picture", **asdict(build(section).transform)}


def _assume(mean: float, std: float, seen: InputRange | None) -> tuple[Picture | None, str]:
    """Assumes how pictures become inputs, where the training inputs do not contradict it."""
    assumed = Picture(mean=mean, std=std or 1.0)
    low, high = (0 - mean) / (std or 1.0), (1 - mean) / (std or 1.0)
    if seen is not None and not (
        low - 1e-3 <= min(seen.low) and (low + high) / 2 < max(seen.high) <= high + 1e-3
    ):
        return None, ""
    return assumed, ASSUMED.format(low=format_value(low), high=format_value(high))


def build_transform(stored: Any, trusted: Sequence[str]) -> Transform | None:
    """Builds the transform that a winner has stored, of trusted code alone.

    Args:
        stored: a `_target_` with its arguments; None if there is none.
        trusted: packages, modules or classes that it may name, beside those of ours.

    Raises:
        PredictError: it is no transform.
        ConfigError: it names something that is not trusted.
    """
    if stored is None:
        return None
    if not isinstance(stored, dict) or "_target_" not in stored:
        raise PredictError("winner.json: data.transform must have a _target_")
    whole = {"data": {"transform": stored}}
    trust.check_targets(whole, trusted)
    transform = build(OmegaConf.create(whole).data.transform)
    if not callable(transform):
        raise PredictError(f"winner.json: data.transform={stored['_target_']} is no function")
    return transform  # type: ignore[no-any-return]


def predict(network: Network, paths: Sequence[Path]) -> Iterator[Answer]:
    """Predicts for each input of each file, in their order.

    A file is answered if all of it can be read. The others are named at the end, all of them.

    Args:
        network: the network.
        paths: the files.

    Raises:
        PredictError: after all answers; a file cannot be read, or holds no inputs for this network.
    """
    mistakes = []
    for path in paths:
        name = show_path(path)
        try:
            inputs = read_inputs(path, network)
            rows = network(inputs.rows)
        except (PredictError, MemoryError, RuntimeError) as error:  # RuntimeError: torch's, also
            mistakes.append(f"{name}: {input_files.shorten_error(error)}")  # of memory
            continue
        yield from _answers(name, network, inputs, rows)
    if mistakes:
        raise PredictError(*mistakes)


def _answers(name: str, network: Network, inputs: Inputs, rows: Tensor) -> Iterator[Answer]:
    for position, row in enumerate(rows):
        own = name if len(rows) == 1 else f"{name}[{position}]"
        note = inputs.note(position)
        if network.classifies:
            label = int(row.argmax())
            word = network.names[label] if label < len(network.names) else ""
            yield Answer(own, label, float(row[label]), word=word, note=note)
        else:
            yield Answer(own, values=tuple(row.tolist()), note=note)


def show_path(path: Path) -> str:
    """Returns the name of a file, each character that is not printed as its escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


def read_inputs(path: Path, network: Network) -> Inputs:
    """Reads the inputs that a file holds for a network; what it is, its content says.

    Args:
        path: a .npy file of one input or several. Otherwise for sounds a WAV file, and what a
            `Reader` reads; for pictures a picture or an IDX file; else a CSV file of inputs.
        network: the network.

    Raises:
        PredictError: the file cannot be read, or holds something else.
    """
    input_files.check_answered(network.refusal)
    content = input_files.read_content(path)
    pictures = is_picture(network.shape)
    own = network.transform is not None and not isinstance(network.transform, Picture)
    if input_files.is_array(content):
        return from_numbers(*input_files.read_array(content), network)
    if isinstance(network.transform, Sound | Reader):
        return _from_content(content, network.transform, network)
    if pictures and (input_files.is_packed(content) or input_files.is_idx(content)):
        return _from_pictures(input_files.read_idx_images(content), [], network)
    if pictures or (own and input_files.is_picture_file(content)):
        channels, *size = network.shape if pictures else (3, 64, 64)
        pixels, done = input_files.read_picture(content, channels, size)
        return _from_pictures(pixels[None], done, network)
    lines = input_files.read_lines(content, network.columns, math.prod(network.shape))
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
    input_files.check_answered(network.refusal)
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
    input_files.check_finite(rows)
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
        raise input_files.explain(error) from error
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
            raise input_files.explain(error) from error
        if tuple(row.shape) != network.shape:
            raise PredictError(
                f"data.transform must return {format_shape(network.shape)} numbers; "
                f"got {format_shape(row.shape) or 'one number'}"
            )
        rows.append(row)
    return torch.stack(rows)


def _finish(rows: Tensor, done: Iterable[str], network: Network) -> Inputs:
    """Checks inputs, and says in what they are unlike those of the training."""
    if len(rows) > input_files.MOST_INPUTS:
        raise PredictError(f"it must hold at most {input_files.MOST_INPUTS:_} inputs; divide it")
    input_files.check_finite(rows)
    unlike = {} if network.seen is None else network.seen.unlike(rows, network.columns)
    return Inputs(rows, list(done), unlike)
