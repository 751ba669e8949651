"""Predictions of a winner for arrays and tensors; `extras/predict` reads files.

winner.yaml describes the network, winner.pt holds its weights, and winner.json records how the
study's data source turns the content of a file into an input. Nothing in these files is executed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from studyloom.config.build import build
from studyloom.config.trust import check_targets, consent, read_yaml, seeding_as
from studyloom.config.values import describe_error, value_at, written_values
from studyloom.data.transform import Image, Transform
from studyloom.errors import PredictError
from studyloom.metrics import METRICS
from studyloom.objectives.jobs import build_network
from studyloom.objectives.user_functions import (
    NETWORK,
    build_named_function,
    find_network_name,
    make_loop_network,
    select_weights,
)
from studyloom.text import format_shape, html_table, one_line
from studyloom.training.checkpoint import load_weights
from studyloom.training.states import load_state
from studyloom.training.trainer import predict_outputs
from studyloom.winner.inputs import InputFormat
from studyloom.winner.result import DataFacts, Result

BATCH = 256  # inputs of a call, as in an evaluation on the CPU
ROUNDING = 1e-4  # by which probabilities of float32 or bfloat16 may differ from a sum of 1
SHOWN, MOST_PROBABLE = 20, 5  # inputs in a notebook, and the classes of a single one
NO_NETWORK = (
    "{}: the winner is of a custom training loop, and nothing says what makes its network; add "
    "--network mine.Net, here or once to `studyloom winner RUN_DIR`, which tests nothing again; "
    "or in Python: studyloom.load_winner(RUN_DIR, network=Net)"
)


@dataclass(frozen=True)
class Network:
    """A trained network, and how files and arrays become its inputs.

    Attributes:
        batched: whether the first dimension of its inputs is known to be the batch.
    """

    model: nn.Module
    form: InputFormat
    batched: bool = True

    @property
    def precision(self) -> torch.dtype:
        """The type of its weights, in which it takes floats."""
        types = (weight.dtype for weight in self.model.parameters() if weight.is_floating_point())
        return next(types, torch.float32)

    def __call__(
        self, inputs: Any, batch: int | None = None, softmax: bool | None = None, output: Any = None
    ) -> tuple[Tensor, bool]:
        """Predicts for inputs (n, *shape), or for several; see `studyloom.Winner.predict`.

        Returns:
            Probabilities (n, classes, …) and True, or numbers (n, …) and False.

        Raises:
            PredictError: the network cannot take the inputs, or the outputs are not finite.
        """
        whole = self.form.facts.takes_integers and isinstance(inputs, Tensor)
        size = batch or (BATCH if self.batched else None)
        try:
            given = as_taken(inputs, torch.int64 if whole else self.precision)
            outputs = predict_outputs(self.model, given, size, output)
            # Of three dimensions or more, the second is known to be the classes next to a batch.
            known = outputs.ndim == 2 or (self.batched and outputs.ndim > 2)
            known = known and outputs.shape[1] > 1  # one logit is the value of no class
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
    """Returns inputs as a network takes them: tensors, floats in its precision.

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
    """The contents of a winner's files: its result, its configuration and its weights.

    Args:
        trusted: the packages whose code may be called; None: all, see `consent`.
        kept: weights of a network, or the states of a loop by their names in `run.keep`.
    """

    run_dir: Path
    result: Result
    trusted: Sequence[str] | None
    config: Mapping[str, Any]
    kept: dict[str, Any]
    is_of_loop: bool

    @classmethod
    def read(cls, run_dir: Path, trusted: Sequence[str] = ()) -> "WinnerFiles":
        """Reads the files of a run directory, which may be untrusted.

        Raises:
            PredictError: the directory has no winner, or its files cannot be used.
            ConfigError: the config has an interpolation, or names code other than the loop that is
                not trusted.
        """
        result, allowed = Result.load(run_dir), consent(run_dir, trusted)
        names = [name for name in ("winner.yaml", "winner.pt") if name in result.files]
        result.check_whole(run_dir, *names)
        config = read_yaml(run_dir / "winner.yaml", trusted=allowed is None)
        checked = written_values(config)
        objective = checked.get("objective")
        is_of_loop = isinstance(objective, dict) and objective.get("_target_") is not None
        if is_of_loop:
            if "${" not in str(objective["_target_"]):
                del objective["_target_"]  # the loop itself, which is not called here
            objective.pop("network", None)  # is checked when it is called
        check_targets(checked, allowed)
        kept: dict[str, Any] = {}
        try:
            if "winner.pt" in names:
                kept = load_weights(run_dir / "winner.pt", untrusted=allowed is not None)
        except ValueError as error:
            raise PredictError(str(error)) from None
        return cls(run_dir, result, allowed, config, kept, is_of_loop)

    @property
    def states(self) -> dict[str, Any]:
        """The state dict of each object that a loop gave to `run.keep`, by its name."""
        return self.kept if self.is_of_loop else {}

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Loads the states that a loop kept into objects; see `studyloom.Winner.restore`."""
        unknown = [name for name in parts if name not in self.states]
        if unknown:
            kept = ", ".join(self.states) or "nothing"
            raise PredictError(f"the winner kept no {unknown[0]}; it kept {kept}")
        for name, part in parts.items():
            load_state(part, self.states[name])

    def network(self, make: Any = None) -> Network:
        """Makes the network of the winner, with its weights.

        Args:
            make: the network, or a class or function that makes it; None: what the files name.

        Raises:
            PredictError: the files cannot be used.
            ConfigError: winner.yaml or winner.json names something that is not trusted.
        """
        config, facts, weights, known = self.config, self.result.data, self.kept, dict[str, Any]()
        if facts is not None:
            known = {"shape": facts.shape, "outputs": facts.outputs}
        if self.is_of_loop:
            named = written_values(config["objective"]).get("network") if make is None else make
            name = find_network_name(named)
            weights = select_weights(weights, name)
            if named is None:
                raise PredictError(NO_NETWORK.format(self.run_dir))
            named = named if name is None else named[name]
            if make is None:
                section = named if isinstance(named, Mapping) else {"_target_": named}
                check_targets({"objective": {"network": section}}, self.trusted)
                named = build_named_function(section, NETWORK)
            make = named
        else:
            if "model" not in config or facts is None:
                raise PredictError(f"{self.run_dir / 'winner.yaml'}: must have a section model")
            if make is None:
                make = build_network(config["model"], facts.shape, facts.outputs)
            else:
                known |= {"classes": facts.outputs} | value_at(config, "model")
        model = make_loop_network(make, config, **known)
        try:
            # A loop may have brought its network to another precision, which its weights have.
            load_state(model, weights, assign=self.is_of_loop)
        except (ValueError, RuntimeError) as error:
            file, reason = self.run_dir / "winner.pt", one_line(str(error))[:300]
            raise PredictError(f"{file}: {reason}") from None
        if facts is None:
            return Network(model, InputFormat(_facts_of(model, self.result)), batched=False)
        return Network(model, InputFormat(facts, _transform_of(facts, self.trusted)))


def read_winner_files(run_dir: Path, trusted: Sequence[str] = ()) -> WinnerFiles:
    """Reads the files of a winner; code that they name is imported with the study's seed."""
    with seeding_as(run_dir):
        return WinnerFiles.read(run_dir, trusted)


def load_network(
    run_dir: Path, trusted: Sequence[str] = (), *, named: str | Mapping[str, str] | None = None
) -> Network:
    """Loads the network of the winner in a run directory; see `WinnerFiles`.

    Args:
        named: what makes the network, as a value of `objective.network` that the user gives, whose
            code is called; None: what the files name.
    """
    files = WinnerFiles.read(run_dir, trusted)
    if named is None:
        return files.network()
    make = build_named_function(named, NETWORK)
    kept = find_network_name(named)
    return files.network(make if kept is None else {kept: make})


def _facts_of(model: nn.Module, result: Result) -> DataFacts:
    """Describes the data of a loop that loads its own, as far as network and metric show it."""
    metric = METRICS.get(result.metric.name)
    layers = (each for each in model.modules() if [*each.parameters(recurse=False)])
    whole = isinstance(next(layers, None), nn.Embedding)
    classifies = metric is not None and metric.targets == "classes"
    return DataFacts("", "", (), None, 0.0, 1.0, "int64" if whole else "float32", classifies)


def _transform_of(facts: DataFacts, trusted: Sequence[str] | None) -> Transform | None:
    """Builds the transform that a winner has stored, only from trusted code."""
    if facts.transform is None:
        return None
    config = {"data": {"transform": facts.transform}}
    check_targets(config, trusted)
    transform = build(facts.transform, "data.transform")
    if not callable(transform):
        raise PredictError("winner.json: data.transform must have the _target_ of a function")
    if isinstance(transform, Image):
        return transform.complete(facts.mean, facts.std)
    return transform  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Prediction:
    """The predictions of a winner for n inputs: classes with probabilities, or numbers.

    Attributes:
        classes: int64 (n,), the most probable class of each input; None for numbers.
        probabilities: float32 (n, classes); float64 if the network is; None for numbers.
        names: the name of each predicted class, n strings; empty if the classes have no names.
        values: the predicted numbers (n, outputs), float32 or float64; None for classes.
        notes: for each input, how it was converted and how it differs from the training data; ""
            for nothing.
        class_names: the name of each class, in the order of `probabilities`; empty without names.
    """

    classes: Tensor | None = None
    probabilities: Tensor | None = None
    names: tuple[str, ...] = ()
    values: Tensor | None = None
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = field(default=(), repr=False)

    def _repr_html_(self) -> str | None:
        """The most probable classes of one input; of several, the class of each; or numbers.

        None for outputs of other shapes, which a notebook then shows as `print` does.
        """
        outputs = self.values if self.probabilities is None else self.probabilities
        if outputs is None or outputs.ndim != 2:
            return None
        several = len(outputs) > 1
        rows = list[tuple[Any, ...]]()
        for place, row in enumerate(outputs[:SHOWN]):
            key, note = place if several else None, self.notes[place] if self.notes else None
            if self.probabilities is None:
                rows.append((key, " ".join(f"{value:.5g}" for value in row.tolist()), None, note))
                continue
            best = row.topk(min(1 if several else MOST_PROBABLE, len(row)))
            for label, share in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                name = self.class_names[label] if self.class_names else label
                rows.append((key, name, f"{share:.4f}", note))
        found = "numbers" if self.probabilities is None else "class"
        table = html_table(("input", found, "probability", "note"), rows)
        return f"{table}<p>and {len(outputs) - SHOWN} more</p>" if len(outputs) > SHOWN else table


class Predictor:
    """Predicts with the network of a winner.

    Args:
        network: the network, and how it gets its inputs.
    """

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def network(self) -> nn.Module:
        """The network in eval mode, on the CPU."""
        return self._network.model.eval()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, such as (channels, height, width); () if it is unknown."""
        return self._network.form.shape

    def predict(
        self,
        inputs: Tensor | ArrayLike | Mapping[str, Any],
        *,
        batch: int | None = None,
        softmax: bool | None = None,
        output: str | int | None = None,
    ) -> Prediction:
        """Predicts classes or numbers; see `studyloom.Winner.predict`."""
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
        return Prediction(classes, outputs, names, notes=notes, class_names=words)
