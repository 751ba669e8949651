"""Predictions of a winner, for files and for tensors.

winner.yaml builds the network, winner.pt holds its weights, and winner.json says how what a file
holds becomes an input, as the data source of the study said it. Nothing in these files is executed.
"""

import csv
import functools
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from studyloom.config.build import build
from studyloom.config.trust import check_targets, consent, read_yaml
from studyloom.config.values import describe_error, value_at
from studyloom.data.sound import Sound
from studyloom.data.transform import InputRange, Picture, Reader, Transform, is_picture
from studyloom.definition.jobs import (
    NETWORK,
    build_named,
    build_network,
    kept_name,
    network_of,
    weights_of,
)
from studyloom.errors import PredictError
from studyloom.metrics import METRICS
from studyloom.text import format_shape, format_value, name_error, one_line
from studyloom.training.checkpoint import load_weights
from studyloom.training.trainer import predict_outputs
from studyloom.winner.result import DataFacts, DtypeName, Result, check_whole, load_result

MOST_BYTES = 256 * 2**20  # of a file
MOST_INPUTS = 1_000_000  # of a file
# Not all that Pillow reads: for EPS it starts Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")  # no word begins so
ORIENTATION = 0x0112  # EXIF's tag
SPARE = 16  # times the size of inputs: a larger picture is reduced before it becomes floats
BATCH = 256  # inputs of a call, as in an evaluation on the CPU
ROUNDING = 1e-4  # by which probabilities of float32 or bfloat16 may differ from a sum of 1
IN_PYTHON = "call it in Python: studyloom.load_winner(RUN_DIR).network"
NORMALISED = f"for inputs as in training {IN_PYTHON}"
NO_FILE = f"the inputs of this winner are not one tensor of numbers, or token ids; {IN_PYTHON}"
NO_NETWORK = (
    "{}: the winner is of a custom training loop, and nothing says what makes its network; name it "
    "as objective.network and call `studyloom winner` on this study, or give it in Python: "
    "studyloom.load_winner(RUN_DIR, network=Net)"
)
SILENT = (
    "the data source of this winner does not say how a picture becomes an input; name it as "
    "data.transform and call `studyloom winner`, or give a .npy file of what `load` returns"
)


@dataclass(frozen=True)
class Network:
    """A trained network, the facts of its data, and how what a file holds becomes an input.

    Attributes:
        transform: None if nobody said it.
        batched: whether the first dimension of its inputs is known to be that of a batch.
    """

    model: nn.Module
    facts: DataFacts
    transform: Transform | None = None
    batched: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input; () if they are taken as they are, or in Python alone."""
        return self.facts.shape or ()

    @property
    def precision(self) -> torch.dtype:
        """The type of its weights, in which it takes numbers that are not whole."""
        types = (weight.dtype for weight in self.model.parameters() if weight.is_floating_point())
        return next(types, torch.float32)

    def __call__(
        self, inputs: Any, batch: int | None = None, softmax: bool | None = None, output: Any = None
    ) -> tuple[Tensor, bool]:
        """Predicts for inputs (n, *shape), or for several; see `Predictor.predict`.

        Returns:
            Probabilities (n, classes, …) and True, or numbers (n, …) and False.

        Raises:
            PredictError: the network cannot take the inputs, or the outputs are not finite.
        """
        whole = self.facts.dtype == "int64" and isinstance(inputs, Tensor)
        size = batch or (BATCH if self.batched else None)
        try:
            given = as_taken(inputs, torch.int64 if whole else self.precision)
            outputs = predict_outputs(self.model, given, size, output)
            # Of three dimensions or more, one is known to be that of the classes beside a batch.
            known = outputs.ndim == 2 or (self.batched and outputs.ndim > 2)
            classifies = (self.facts.classifies and known) if softmax is None else softmax
            if classifies and (softmax or not _are_probabilities(outputs)):
                outputs = outputs.softmax(1)
        except Exception as error:  # whatever a user's network raises
            shape = f" of {format_shape(inputs.shape)}" if isinstance(inputs, Tensor) else ""
            words = f"{type(self.model).__name__} cannot take these inputs{shape}: "
            raise PredictError(words + one_line(describe_error(error))[:300]) from error
        if not bool(torch.isfinite(outputs).all()):
            raise PredictError("its numbers are too far from the training data for finite outputs")
        return outputs, classifies


def _are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (n, classes, …) are at least 0 and sum to 1 over the classes."""
    return bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < ROUNDING).all())


def as_taken(inputs: Any, precision: torch.dtype) -> Any:
    """Returns inputs as a network takes them: tensors, those that are not whole in its precision.

    Args:
        inputs: a tensor or an array, or several in nested mappings and tuples.
    """
    if isinstance(inputs, Mapping):
        return {name: as_taken(each, precision) for name, each in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(as_taken(each, precision) for each in inputs)
    given = torch.as_tensor(inputs).detach().cpu()
    return given.to(precision) if given.is_floating_point() else given


def load_network(run_dir: Path, trusted: Sequence[str] = (), *, make: Any = None) -> Network:
    """Loads the winner below a run directory, which may be another person's.

    Nothing in its files is executed, and only classes and functions of trusted packages are called,
    or all if a command of the user's own has run there.

    Args:
        make: the network, or what makes it, in place of what the files name.

    Raises:
        PredictError: there is no such answer, or its files cannot be used.
        ConfigError: winner.yaml or winner.json names something that is not trusted.
    """
    answer, allowed = load_result(run_dir), consent(run_dir, trusted)
    config, states, is_loop = _read_winner(run_dir, answer, allowed)
    facts, known = answer.data, dict[str, Any]()
    if facts is not None:
        known = {"shape": facts.shape, "outputs": facts.outputs}
    if is_loop:
        plain: Any = OmegaConf.to_container(config.objective, resolve=False)
        named = plain.get("network") if make is None else make
        kept = kept_name(named)
        states = weights_of(states, kept)
        if named is None:
            raise PredictError(NO_NETWORK.format(run_dir))
        named = named if kept is None else named[kept]
        if make is None:
            section = named if isinstance(named, Mapping) else {"_target_": named}
            check_targets({"objective": {"network": section}}, allowed)
            named = build_named(section, NETWORK)
        make = named
    else:
        if "model" not in config or facts is None:
            raise PredictError(f"{run_dir / 'winner.yaml'}: must have a section model")
        if make is None:
            make = build_network(config.model, facts.shape, facts.outputs)
        else:
            known |= {"classes": facts.outputs} | value_at(config, "model")
    model = network_of(make, config, **known)
    try:
        # A loop may have brought its network to another precision, which its weights have.
        model.load_state_dict(states, assign=is_loop)
    except (ValueError, RuntimeError) as error:
        raise PredictError(f"{run_dir / 'winner.pt'}: {one_line(str(error))[:300]}") from None
    return _describe(model, answer, allowed)


def _describe(model: nn.Module, answer: Result, allowed: Sequence[str] | None) -> Network:
    """Describes what a network takes and gives, as far as the data of the study say it."""
    if (facts := answer.data) is None:  # of a loop that has its own
        metric = METRICS.get(answer.metric.name)
        layers = (each for each in model.modules() if [*each.parameters(recurse=False)])
        whole = isinstance(next(layers, None), nn.Embedding)
        classifies = metric is not None and metric.targets == "classes"
        dtype: DtypeName = "int64" if whole else "float32"
        facts = DataFacts("", "", (), None, 0.0, 1.0, dtype, classifies)
    return Network(model, facts, _transform_of(facts, allowed), answer.data is not None)


def _transform_of(facts: DataFacts, trusted: Sequence[str] | None) -> Transform | None:
    """Builds the transform that a winner has stored, of trusted code alone."""
    if facts.transform is None:
        return None
    config = {"data": {"transform": facts.transform}}
    check_targets(config, trusted)
    transform = build(OmegaConf.create(config).data.transform)
    if not callable(transform):
        raise PredictError("winner.json: data.transform must have the _target_ of a function")
    if isinstance(transform, Picture):
        return transform.completed(facts.mean, facts.std)
    return transform  # type: ignore[no-any-return]


# Inputs of a network, float32 (n, *shape), and for each a note beside its answer, "" for nothing.
Inputs = tuple[Tensor, list[str]]


def read_inputs(path: Path, network: Network) -> Inputs:
    """Reads the inputs that a file holds for a network; its content says its kind.

    It is a .npy file of one input or several. Otherwise it is for sounds a WAV file, and what a
    `Reader` reads; for pictures a picture; else a CSV file of inputs.
    """
    if not network.facts.fits_files:
        raise PredictError(NO_FILE)
    length = path.stat().st_size
    if length > MOST_BYTES:
        raise PredictError(f"it must have at most {MOST_BYTES >> 20} MiB; divide it")
    if length == 0:
        raise PredictError("it is empty")
    content = path.read_bytes()
    pictures, transform = is_picture(network.shape), network.transform
    own = transform is not None and not isinstance(transform, Picture)
    if content.startswith(b"\x93NUMPY"):
        numbers = np.load(io.BytesIO(content), allow_pickle=False)
        if numbers.dtype.kind not in "biuf":
            raise PredictError(f"it must hold real numbers, and holds {numbers.dtype}")
        with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite, and is refused
            single = torch.from_numpy(np.array(numbers, np.float32, order="C"))
        return from_numbers(single, most_of(numbers.dtype.name), network)
    if isinstance(transform, Sound | Reader):
        return _from_content(content, transform, network)
    if not network.shape:
        return _finish(_read_lines(content, (), None), [], network)
    webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    if pictures or (own and (webp or content.startswith(SIGNATURES))):
        channels, *size = network.shape if pictures else (3, 64, 64)
        pixels, done = _read_picture(content, channels, size)
        return _from_pixels(pixels[None], network, done)
    lines = _read_lines(content, network.facts.columns, math.prod(network.shape))
    rows = _apply(network, lines) if own else lines.reshape(-1, *network.shape)
    return _finish(rows, [], network)


def _read_lines(content: bytes, columns: Sequence[str], count: int | None) -> Tensor:
    """Reads a CSV file with an input in each line, as float32 (n, count).

    Args:
        columns: the names of the inputs, which its first line then has; empty for no such line.
        count: None for as many as are in the first line.
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


def _read_picture(content: bytes, channels: int, size: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Reads a picture, upright and without transparency; the first of several.

    Args:
        channels: 1 makes it grey, 3 gives it colours.

    Returns:
        float32 (channels, height, width) from 0 (black) to 1 (white), and what was done, in words.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.load()
                return _decode(image, channels, size)
    except PredictError:
        raise
    except UnidentifiedImageError:
        raise PredictError(
            f"it must be a picture or a .npy file; pictures are {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise PredictError(f"it is a damaged picture: {one_line(str(error))}") from None


def _decode(image: Image.Image, channels: int, size: Sequence[int]) -> tuple[Tensor, list[str]]:
    done = ["first of several frames"] if getattr(image, "is_animated", False) else []
    drawn: Image.Image = image
    if image.getexif().get(ORIENTATION, 1) != 1:
        drawn = ImageOps.exif_transpose(image)
        done.append("turned upright")
    if drawn.mode.startswith("I") or drawn.mode == "F":  # 16 or 32 bits, or floats
        levels = torch.from_numpy(np.asarray(drawn).astype(np.float32))[None]
        most = next((most for most in (1, 255, 65535) if float(levels.max()) <= most), 0)
        if not most or not bool(torch.isfinite(levels).all()) or float(levels.min()) < 0:
            raise PredictError("its pixels must be from 0 to 1, or whole and from 0 to 65535")
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


def _without_alpha(image: Image.Image) -> tuple[Image.Image, str]:
    """Lays a picture on white, or on black if what it shows is light; "" if nothing is seen."""
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"), dtype=np.float32)
    if alpha.min() == 255:
        return image, ""
    brightness = float((np.asarray(image.convert("L")) * alpha).sum() / max(1.0, alpha.sum()))
    paper = "black" if brightness > 127 else "white"
    below = Image.new("RGBA", image.size, paper)
    below.alpha_composite(image)
    return below, paper


def from_numbers(numbers: Tensor, most: int | None, network: Network) -> Inputs:
    """Makes inputs of an array of one or several.

    Of pictures, whole numbers are pixels from 0 (black) to 255 (white), or to 65535 if they are
    uint16. Other numbers are pixels from 0 to 1 where the data source of the study normalises its
    pictures itself, and else inputs as in training.

    Args:
        numbers: float32 (n, *shape), or one input (*shape); pictures of one channel also without.
        most: the greatest pixel of whole numbers; None for others.
    """
    facts, shape, transform = network.facts, network.shape, network.transform
    if not facts.fits_files:
        raise PredictError(NO_FILE)
    if not shape:
        if not numbers.ndim or not len(numbers):
            raise PredictError("it must hold an input for each entry of its first dimension")
        return _finish(numbers, [], network)
    grey = is_picture(shape) and shape[0] == 1 and tuple(numbers.shape[-2:]) == shape[1:]
    if grey and numbers.ndim < 4 and tuple(numbers.shape) != shape:
        numbers = numbers.unsqueeze(-3)
    rows = numbers[None] if tuple(numbers.shape) == shape else numbers
    if tuple(rows.shape[1:]) != shape or rows.ndim != 1 + len(shape) or not len(rows):
        raise PredictError(
            f"it must hold an input of {format_shape(shape)} numbers, or several; "
            f"got {format_shape(numbers.shape) or 'one number'}"
        )
    if not is_picture(shape) or transform is None or isinstance(transform, Sound):
        return _finish(rows, [], network)
    # A source that normalises its pictures itself has told by what.
    if most is None and (not isinstance(transform, Picture) or (facts.mean, facts.std) == (0, 1)):
        return _finish(rows, [], network)
    low, high = (float(end) for end in rows.aminmax())
    if low < 0 or high > (most or 1):
        wanted = f"its whole numbers must be pixels from 0 to {most}, or to 65535 as uint16"
        if most is None:
            wanted = f"its numbers must be pixels from 0 to 1, or whole ones to 255; {NORMALISED}"
        raise PredictError(f"{wanted}; got {low:.6g} to {high:.6g}")
    return _from_pixels(rows / (most or 1), network)


def most_of(dtype: str) -> int | None:
    """Returns the greatest pixel that numbers of a type mean, by its name; None if not whole."""
    if dtype == "uint16":
        return 65535
    return 255 if dtype.startswith(("int", "uint")) else None


def _from_pixels(pixels: Tensor, network: Network, done: Sequence[str] | None = None) -> Inputs:
    """Makes inputs of pixels (n, channels, height, width) from 0 to 1.

    Args:
        done: what was done to the picture of a file, which alone may have another size and
            background; None for arrays, whose pictures are taken as they are.
    """
    if network.transform is None:
        raise PredictError(SILENT)
    if not isinstance(network.transform, Picture):
        levels = (pixels * 255).round().to(torch.uint8)
        return _finish(_apply(network, levels), done or (), network)
    if done is not None:
        row, more = network.transform(pixels[0], (network.shape[-2], network.shape[-1]))
        return _finish(row[None], [*done, *more], network)
    return _finish(network.transform.scale(pixels), (), network)


def _from_content(content: bytes, read: Sound | Reader, network: Network) -> Inputs:
    """Makes inputs of a file by a transform that reads it as a whole."""
    try:
        rows, said = read(content)
    except ValueError as error:
        raise PredictError(str(error)) from None
    except Exception as error:  # whatever a user's class raises
        raise _own_fault(error) from error
    if isinstance(read, Sound):
        rows, said = rows[None], ["; ".join(said)]
    if tuple(rows.shape[1:]) != network.shape or len(said) not in (0, len(rows)):
        raise PredictError(f"winner.json: data.transform does not make {network.shape} of a file")
    return _finish(rows.float(), (), network, said)


def _apply(network: Network, items: Tensor) -> Tensor:
    """Calls a transform of the user's own for each of some items."""
    make: Callable[..., Any] | None = network.transform
    assert make is not None
    try:
        rows = torch.stack([torch.as_tensor(make(item)).float() for item in items])
    except Exception as error:  # whatever a user's function raises
        raise _own_fault(error) from error
    if tuple(rows.shape[1:]) != network.shape:
        wanted, got = format_shape(network.shape), format_shape(rows.shape[1:]) or "one number"
        raise PredictError(f"data.transform must return {wanted} numbers; got {got}")
    return rows


def _own_fault(error: Exception) -> PredictError:
    return PredictError(f"data.transform: {one_line(name_error(error, 200))}")


def _finish(rows: Tensor, done: Iterable[str], network: Network, own: Sequence[str] = ()) -> Inputs:
    """Checks inputs, and notes how they were changed and differ from the training data.

    Args:
        own: what a `Reader` says of each.
    """
    if len(rows) > MOST_INPUTS:
        raise PredictError(f"it must hold at most {MOST_INPUTS:_} inputs; divide it")
    finite = torch.isfinite(rows).reshape(len(rows), -1).all(1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise PredictError(f"its numbers must be finite; input {first} holds NaN or infinity")
    facts, unlike = network.facts, dict[int, str]()
    if facts.inputs is not None and not facts.reads:  # a Reader says itself what is unlike
        unlike = InputRange(**vars(facts.inputs)).unlike(rows, facts.columns)
    words = [(*done, each, unlike.get(n, "")) for n, each in enumerate(own or [""] * len(rows))]
    return rows, ["; ".join(filter(None, each)) for each in words]


@dataclass(frozen=True)
class FileResult:
    """The prediction for one input of a file: a class and its probability, or numbers."""

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


def predict(network: Network, paths: Sequence[Path]) -> Iterator[FileResult]:
    """Predicts for each input of each file, in their order.

    A file is answered if all of it can be read. The others are named at the end, all of them.

    Raises:
        PredictError: after all answers; a file cannot be read, or holds no inputs for this network.
    """
    mistakes = []
    for path in paths:
        name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
        try:
            inputs, notes = read_inputs(path, network)
            rows, classifies = network(inputs)
            if rows.ndim != 2:
                given = format_shape(rows.shape[1:]) or "one number"
                wanted = "for an input, and not a row of numbers"
                raise PredictError(f"the network gives {given} {wanted}; {IN_PYTHON}")
        # OSError: of the file; RuntimeError: torch's, also of memory; TypeError: of the network.
        except (OSError, ValueError, MemoryError, RuntimeError, TypeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            mistakes.append(f"{name}: {one_line(reason)[:200]}")
            continue
        names = network.facts.names
        for position, (row, note) in enumerate(zip(rows, notes, strict=True)):
            own = name if len(rows) == 1 else f"{name}[{position}]"
            if classifies:
                label = int(row.argmax())
                word = names[label] if label < len(names) else ""
                yield FileResult(own, label, float(row[label]), word=word, note=note)
            else:
                yield FileResult(own, values=tuple(row.tolist()), note=note)
    if mistakes:
        raise PredictError(mistakes)


@dataclass(frozen=True)
class Prediction:
    """The predictions of a winner: classes with probabilities, or numbers.

    Attributes:
        classes: int64 (n,), the most probable class of each input; None for numbers.
        probabilities: float32 (n, classes), float64 of a network in float64; None for numbers.
        names: the names of the predicted classes, one per input; empty if classes have none.
        values: the predicted numbers (n, outputs), of the same types; None for classes.
        notes: what was done to each input, and in what it is unlike the training data.
    """

    classes: Tensor | None = None
    probabilities: Tensor | None = None
    names: tuple[str, ...] = ()
    values: Tensor | None = None
    notes: tuple[str, ...] = ()


class Predictor:
    """The network of a winner, with its weights. `load_winner` makes it."""

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def network(self) -> nn.Module:
        """The network in eval mode, on the CPU."""
        return self._network.model.eval()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, such as (channels, height, width); () if it is not known."""
        return self._network.shape

    def predict(
        self,
        inputs: Tensor | ArrayLike | Mapping[str, Any],
        *,
        batch: int | None = None,
        softmax: bool | None = None,
        output: str | int | None = None,
    ) -> Prediction:
        """Predicts the classes or the numbers of inputs.

        Args:
            inputs: a tensor or an array (n, *shape), or one input (*shape). They become inputs as
                those of a .npy file do: of pictures, whole numbers are pixels. For a network of
                several inputs a mapping or a tuple of them, as it takes them; also nested, such as
                the state (h, c) of an LSTM.
            batch: how many entries of the first dimension the network gets in one call. None is
                256 where the study has data, whose first dimension is that of the examples. A
                custom training loop with its own data may have time or nodes there: its network
                gets everything in one call.
            softmax: whether the outputs (n, classes, …) become probabilities by a softmax over
                their second dimension; False returns them as `values`, as they are. None decides
                by the metric: no softmax where rows sum to 1 already, and with a loop's own data
                none for outputs of three dimensions or more.
            output: which one of several outputs, by its name or position; None for the first.

        Raises:
            PredictError: the inputs have another shape, or are not finite numbers.
        """
        network, how = self._network, {"batch": batch, "softmax": softmax, "output": output}
        if isinstance(inputs, Mapping) or (isinstance(inputs, tuple) and not self.shape):
            return self._say(inputs, (), **how)
        try:
            given = torch.as_tensor(inputs).detach().cpu()
            most = most_of(str(given.dtype).removeprefix("torch."))
            if given.is_complex():
                raise TypeError("they are complex")
            numbers = given.to(torch.promote_types(network.precision, torch.float32))
        except (TypeError, ValueError, RuntimeError) as error:
            raise PredictError(f"inputs must be a tensor or an array of numbers: {error}") from None
        try:
            rows, notes = from_numbers(numbers, most, network)
            return self._say(rows, tuple(notes), **how)
        except PredictError as error:
            raise PredictError(
                f"inputs: {error}".replace("inputs: it must", "inputs must")
            ) from None

    def _say(self, inputs: Any, notes: tuple[str, ...], **how: Any) -> Prediction:
        outputs, classifies = self._network(inputs, **how)
        if not classifies:
            return Prediction(values=outputs, notes=notes)
        classes, words = outputs.argmax(1), self._network.facts.names
        names = tuple(words[k] for k in classes.tolist()) if words and classes.ndim == 1 else ()
        return Prediction(classes, outputs, names, notes=notes)

    def __repr__(self) -> str:
        task = "classes" if self._network.facts.classifies else "numbers"
        name = type(self._network.model).__name__
        return f"<studyloom.Predictor {name}: {format_shape(self.shape)} → {task}>"


class LoopWinner(Predictor):
    """The winner of a study of a custom training loop. `load_winner` makes it.

    It predicts where `objective.network`, or `load_winner(…, network=…)`, makes its network. What
    else the loop kept is restored by `winner.restore(policy=policy, value=value)`.

    Attributes:
        config: of the winner.
        states: what the loop kept, a state dict for each name that it gave to `run.keep`.
    """

    def __init__(
        self, config: DictConfig, states: Mapping[str, Any], load: Callable[[], Network]
    ) -> None:
        self.config, self.states, self._load = config, states, load

    @functools.cached_property
    def _network(self) -> Network:  # type: ignore[override]
        return self._load()

    def __repr__(self) -> str:
        return f"<studyloom.LoopWinner: {', '.join(self.states) or 'nothing kept'}>"

    def restore(self, **parts: Any) -> None:
        """Restores objects, such as the network that the loop makes for `config`.

        Args:
            parts: objects with `load_state_dict`, by the names that the loop gave to `run.keep`.
        """
        if unknown := [name for name in parts if name not in self.states]:
            raise PredictError(
                f"the winner kept no {unknown[0]}; it kept {', '.join(self.states) or 'nothing'}"
            )
        for name, part in parts.items():
            part.load_state_dict(self.states[name])


def load_winner(
    run_dir: str | Path, trust: Sequence[str] = (), *, network: Any = None
) -> Predictor | LoopWinner:
    """Loads the winner of a study: its network in eval mode, with its weights.

    Of a loop of one's own it loads the configuration and what the loop kept, as a `LoopWinner`, and
    makes the network when it is asked for.

    Nothing in the folder is executed, so that it may be another person's. Unless a command of yours
    has run there, its config may name networks of studyloom and torch, and what `trust` names.

    Args:
        trust: packages, modules or classes that winner.yaml may name and call.
        network: a network, or a class or function that makes it of those settings of the winner
            that its signature names, such as `network=Net`; for code that no file holds. Where a
            loop kept several, {"policy": Net} says by its name in `run.keep` which one predicts.

    Raises:
        PredictError: there is no winner, or its files cannot be used.
        ConfigError: winner.yaml names what is not trusted.
    """
    folder = Path(run_dir)
    load = functools.partial(load_network, folder, trust, make=network)
    config, kept, is_loop = _read_winner(folder, load_result(folder), consent(folder, trust))
    return LoopWinner(config, kept, load) if is_loop else Predictor(load())


def _read_winner(
    run_dir: Path, answer: Result, trusted: Sequence[str] | None
) -> tuple[DictConfig, dict[str, Any], bool]:
    """Reads the config of a winner, its weights or what its loop kept, and whether it is of a loop.

    Raises:
        ConfigError: the config has an interpolation, or names code that is not trusted beside the
            loop.
    """
    names = [name for name in ("winner.yaml", "winner.pt") if name in answer.files]
    check_whole(run_dir, answer, *names)
    config = read_yaml(run_dir / "winner.yaml", own=trusted is None)
    checked: Any = OmegaConf.to_container(config, resolve=False)
    objective = checked.get("objective")
    is_loop = isinstance(objective, dict) and objective.get("_target_") is not None
    if is_loop:
        if "${" not in str(objective["_target_"]):
            del objective["_target_"]  # the loop itself, which nobody calls here
        objective.pop("network", None)  # is checked when it is called
    check_targets(checked, trusted)
    read = functools.partial(load_weights, untrusted=trusted is not None)
    try:
        kept = read(run_dir / "winner.pt") if "winner.pt" in names else {}
    except ValueError as error:
        raise PredictError(str(error)) from None
    return config, kept, is_loop
