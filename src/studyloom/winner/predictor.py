"""Predictions of a winner, for files and for tensors.

winner.yaml builds the network, winner.pt holds its weights, and winner.json says how what a file
holds becomes an input, as the data source of the study said it. Nothing in these files is executed.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from studyloom.config.build import build
from studyloom.config.trust import check_targets, consent, read_yaml
from studyloom.config.values import describe_error, value_at
from studyloom.data.transform import Picture, Transform
from studyloom.definition.jobs import build_network
from studyloom.definition.user_functions import (
    NETWORK,
    build_named,
    kept_name,
    network_of,
    weights_of,
)
from studyloom.errors import PredictError
from studyloom.metrics import METRICS
from studyloom.text import format_shape, one_line
from studyloom.training.checkpoint import load_weights
from studyloom.training.trainer import predict_outputs
from studyloom.winner.inputs import IN_PYTHON, InputFormat
from studyloom.winner.result import DataFacts, InputPrediction, Result

BATCH = 256  # inputs of a call, as in an evaluation on the CPU
ROUNDING = 1e-4  # by which probabilities of float32 or bfloat16 may differ from a sum of 1
NO_NETWORK = (
    "{}: the winner is of a custom training loop, and nothing says what makes its network; name it "
    "as objective.network and call `studyloom winner` on this study, or give it in Python: "
    "studyloom.load_winner(RUN_DIR, network=Net)"
)


@dataclass(frozen=True)
class Network:
    """A trained network, and how files and arrays become its inputs.

    Attributes:
        batched: whether the first dimension of its inputs is known to be that of a batch.
    """

    model: nn.Module
    form: InputFormat
    batched: bool = True

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
        whole = self.form.facts.dtype == "int64" and isinstance(inputs, Tensor)
        size = batch or (BATCH if self.batched else None)
        try:
            given = as_taken(inputs, torch.int64 if whole else self.precision)
            outputs = predict_outputs(self.model, given, size, output)
            # Of three dimensions or more, one is known to be that of the classes beside a batch.
            known = outputs.ndim == 2 or (self.batched and outputs.ndim > 2)
            classifies = (self.form.facts.classifies and known) if softmax is None else softmax
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


@dataclass(frozen=True)
class WinnerFiles:
    """Holds what the files of a winner say: its result, its configuration and what it has kept.

    Args:
        trusted: the packages whose code may be called; None for all, see `consent`.
        kept: weights of a network, or the states of a loop by their names in `run.keep`.
    """

    run_dir: Path
    result: Result
    trusted: Sequence[str] | None
    config: DictConfig
    kept: dict[str, Any]
    is_of_loop: bool

    @classmethod
    def read(cls, run_dir: Path, trusted: Sequence[str] = ()) -> "WinnerFiles":
        """Reads the files below a run directory, which may be another person's.

        Raises:
            PredictError: there is no such result, or its files cannot be used.
            ConfigError: the config has an interpolation, or names code that is not trusted next to
                the loop.
        """
        result, allowed = Result.load(run_dir), consent(run_dir, trusted)
        names = [name for name in ("winner.yaml", "winner.pt") if name in result.files]
        result.check_whole(run_dir, *names)
        config = read_yaml(run_dir / "winner.yaml", own=allowed is None)
        checked: Any = OmegaConf.to_container(config, resolve=False)
        objective = checked.get("objective")
        is_of_loop = isinstance(objective, dict) and objective.get("_target_") is not None
        if is_of_loop:
            if "${" not in str(objective["_target_"]):
                del objective["_target_"]  # the loop itself, which nobody calls here
            objective.pop("network", None)  # is checked when it is called
        check_targets(checked, allowed)
        kept: dict[str, Any] = {}
        try:
            if "winner.pt" in names:
                kept = load_weights(run_dir / "winner.pt", untrusted=allowed is not None)
        except ValueError as error:
            raise PredictError(str(error)) from None
        return cls(run_dir, result, allowed, config, kept, is_of_loop)

    def network(self, make: Any = None) -> Network:
        """Makes the network of the winner, with its weights.

        Args:
            make: the network, or what makes it, instead of what the files name.

        Raises:
            PredictError: the files cannot be used.
            ConfigError: winner.yaml or winner.json names something that is not trusted.
        """
        config, facts, weights, known = self.config, self.result.data, self.kept, dict[str, Any]()
        if facts is not None:
            known = {"shape": facts.shape, "outputs": facts.outputs}
        if self.is_of_loop:
            plain: Any = OmegaConf.to_container(config.objective, resolve=False)
            named = plain.get("network") if make is None else make
            name = kept_name(named)
            weights = weights_of(weights, name)
            if named is None:
                raise PredictError(NO_NETWORK.format(self.run_dir))
            named = named if name is None else named[name]
            if make is None:
                section = named if isinstance(named, Mapping) else {"_target_": named}
                check_targets({"objective": {"network": section}}, self.trusted)
                named = build_named(section, NETWORK)
            make = named
        else:
            if "model" not in config or facts is None:
                raise PredictError(f"{self.run_dir / 'winner.yaml'}: must have a section model")
            if make is None:
                make = build_network(config.model, facts.shape, facts.outputs)
            else:
                known |= {"classes": facts.outputs} | value_at(config, "model")
        model = network_of(make, config, **known)
        try:
            # A loop may have brought its network to another precision, which its weights have.
            model.load_state_dict(weights, assign=self.is_of_loop)
        except (ValueError, RuntimeError) as error:
            file, reason = self.run_dir / "winner.pt", one_line(str(error))[:300]
            raise PredictError(f"{file}: {reason}") from None
        if facts is None:
            return Network(model, InputFormat(_facts_of(model, self.result)), batched=False)
        return Network(model, InputFormat(facts, _transform_of(facts, self.trusted)))


def load_network(run_dir: Path, trusted: Sequence[str] = (), *, make: Any = None) -> Network:
    """Loads the winner below a run directory; see `WinnerFiles`."""
    return WinnerFiles.read(run_dir, trusted).network(make)


def _facts_of(model: nn.Module, result: Result) -> DataFacts:
    """Describes the data of a loop that has its own, as far as network and metric say it."""
    metric = METRICS.get(result.metric.name)
    layers = (each for each in model.modules() if [*each.parameters(recurse=False)])
    whole = isinstance(next(layers, None), nn.Embedding)
    classifies = metric is not None and metric.targets == "classes"
    return DataFacts("", "", (), None, 0.0, 1.0, "int64" if whole else "float32", classifies)


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


def predict(network: Network, paths: Sequence[Path]) -> Iterator[InputPrediction]:
    """Predicts for each input of each file, in their order.

    A file is answered if all of it can be read. The others are named at the end, all of them.

    Raises:
        PredictError: after all answers; a file cannot be read, or holds no inputs for this network.
    """
    mistakes = []
    for path in paths:
        name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
        try:
            inputs, notes = network.form.read(path)
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
        names = network.form.facts.names
        for position, (row, note) in enumerate(zip(rows, notes, strict=True)):
            own = name if len(rows) == 1 else f"{name}[{position}]"
            if classifies:
                label = int(row.argmax())
                word = names[label] if label < len(names) else ""
                yield InputPrediction(own, label, float(row[label]), word=word, note=note)
            else:
                yield InputPrediction(own, values=tuple(row.tolist()), note=note)
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
        return self._network.form.shape

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
                those of a .npy file do: of pictures, integers are pixels. For a network of
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
            dtype = str(given.dtype).removeprefix("torch.")
            if given.is_complex():
                raise TypeError("they are complex")
            numbers = given.to(torch.promote_types(network.precision, torch.float32))
        except (TypeError, ValueError, RuntimeError) as error:
            raise PredictError(f"inputs must be a tensor or an array of numbers: {error}") from None
        try:
            rows, notes = network.form.from_numbers(numbers, dtype)
            return self._say(rows, tuple(notes), **how)
        except PredictError as error:
            raise PredictError(
                f"inputs: {error}".replace("inputs: it must", "inputs must")
            ) from None

    def _say(self, inputs: Any, notes: tuple[str, ...], **how: Any) -> Prediction:
        outputs, classifies = self._network(inputs, **how)
        if not classifies:
            return Prediction(values=outputs, notes=notes)
        classes, words = outputs.argmax(1), self._network.form.facts.names
        names = tuple(words[k] for k in classes.tolist()) if words and classes.ndim == 1 else ()
        return Prediction(classes, outputs, names, notes=notes)

    def __repr__(self) -> str:
        task = "classes" if self._network.form.facts.classifies else "numbers"
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
    files = WinnerFiles.read(Path(run_dir), trust)
    if files.is_of_loop:
        return LoopWinner(files.config, files.kept, functools.partial(files.network, network))
    return Predictor(files.network(network))
