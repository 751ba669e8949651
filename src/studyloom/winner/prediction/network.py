"""The network of a winner, and how what a file holds becomes its input."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from studyloom.config import trust
from studyloom.data.transform import InputRange, Picture, Reader, Transform, is_picture
from studyloom.errors import PredictError
from studyloom.text import format_value
from studyloom.training.checkpoint import load_weights
from studyloom.training.trainer import predict_outputs
from studyloom.winner.answer import check_whole, is_of_loop, load_answer, unusable
from studyloom.winner.committee import DTYPES, load_committee
from studyloom.winner.loading import build_light, load_into
from studyloom.winner.prediction import files

# The sources of ours, whose winners of before this was stored have it in their classes.
SOURCES = ("studyloom.data.Embedded", "studyloom.data.Idx")
OF_A_LOOP = (
    "{}: the winner is a loop of your own, which has no network of ours; studyloom.load_winner "
    "gives its configuration and what it kept"
)
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
        files.check_rows(outputs)
        if not bool(torch.isfinite(outputs).all()):
            raise PredictError(
                "its numbers are so far from those of the training data that the network's outputs "
                "are not finite"
            )
        return outputs.softmax(1) if self.classifies else outputs


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
    refusal = files.why_no_file(facts)
    if isinstance(transform, Reader):  # says itself in what an input is unlike the training data
        seen, refusal = None, ""
    return Network(
        *(model, shape, transform, remark, seen, classifies, names, columns, old, dtype, refusal)
    )


def _read_config(run_dir: Path, answer: Mapping[str, Any], trusted: Sequence[str]) -> DictConfig:
    check_whole(run_dir, answer, "winner.yaml")
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
    path, section = run_dir / "winner.pt", config.get("model")
    if not isinstance(section, DictConfig):
        raise PredictError(f"{run_dir / 'winner.yaml'}: must have a section model")
    try:
        weights = load_weights(path)
    except ValueError as error:
        raise PredictError(str(error)) from None
    origin = f"{run_dir / 'winner.yaml'}: model"
    (model,) = load_into([section], [weights], (shape, outputs), origin, path)
    check_whole(run_dir, answer, "winner.pt")  # it may have been replaced
    return model


def _transform_of_before(config: DictConfig) -> Any:
    """Returns what our own source says of its pictures, for a winner of before it was stored."""
    section = config.get("data")
    if not isinstance(section, DictConfig) or section.get("_target_") not in SOURCES:
        return None
    return {
        "_target_": "studyloom.data.Picture",
        **asdict(build_light(section, "winner.yaml: data").transform),
    }


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
    section = OmegaConf.create(whole).data.transform
    transform = build_light(section, "winner.json: data.transform")
    if not callable(transform):
        raise PredictError(f"winner.json: data.transform={stored['_target_']} is no function")
    return transform  # type: ignore[no-any-return]
