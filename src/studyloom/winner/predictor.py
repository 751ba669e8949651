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
from studyloom.config.trust import (
    check_targets,
    code_of_study,
    find_trusted_packages,
    read_yaml,
    seeding_as,
)
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
from studyloom.winner.result import DataFacts, DtypeName, Result

BATCH = 256  # inputs in a call of the network, as in an evaluation on the CPU
# The largest distance from 1 of the sum of probabilities in float32 or bfloat16.
ROUNDING = 1e-4
MOST_SHOWN_INPUTS = 20  # by a notebook
MOST_PROBABLE = 5  # classes that a notebook shows of a single input
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
        """The floating-point type of the network's weights, in which it takes its inputs."""
        for weight in self.model.parameters():
            if weight.is_floating_point():
                return weight.dtype
        return torch.float32

    def __call__(
        self,
        inputs: Any,
        batch: int | None = None,
        softmax: bool | None = None,
        output: str | int | None = None,
    ) -> tuple[Tensor, bool]:
        """Predicts for inputs (n, *shape), or for several; see `studyloom.Winner.predict`.

        Returns:
            Probabilities (n, classes, …) and True, or numbers (n, …) and False.

        Raises:
            PredictError: the network cannot take the inputs, or the outputs are not finite.
        """
        batch_size: int | None
        if batch:
            batch_size = batch
        elif self.batched:
            batch_size = BATCH
        else:
            batch_size = None  # all inputs in one call
        if self.form.facts.takes_integers and isinstance(inputs, Tensor):
            dtype = torch.int64
        else:
            dtype = self.precision
        try:
            converted = convert_inputs(inputs, dtype)
            outputs = predict_outputs(self.model, converted, batch_size, output)
            if softmax is None:
                classifies = self.form.facts.classifies and self._has_classes(outputs)
            else:
                classifies = softmax
            if classifies:
                # With softmax=True the user says that the outputs are logits.
                are_logits = softmax or not _are_probabilities(outputs)
                if are_logits:
                    outputs = outputs.softmax(1)
        except Exception as error:  # a user's network may raise anything
            shape = ""
            if isinstance(inputs, Tensor):
                shape = f" of {format_shape(inputs.shape)}"
            problem = f"{type(self.model).__name__} cannot take these inputs{shape}"
            reason = one_line(describe_error(error))[:300]
            raise PredictError(f"{problem}: {reason}") from error
        if not bool(torch.isfinite(outputs).all()):
            raise PredictError("its numbers are too far from the training data for finite outputs")
        return outputs, classifies

    def _has_classes(self, outputs: Tensor) -> bool:
        """Returns whether outputs (n, classes, …) have at least two classes.

        Outputs of three or more dimensions have them only if the first dimension is known to be
        the batch.
        """
        has_class_dimension = outputs.ndim == 2 or (self.batched and outputs.ndim > 2)
        return has_class_dimension and outputs.shape[1] > 1


def _are_probabilities(outputs: Tensor) -> bool:
    """Returns whether outputs (n, classes, …) are at least 0 and sum to 1 over the classes."""
    are_positive = bool((outputs >= 0).all())
    if not are_positive:
        return False
    errors_of_sums = (outputs.sum(1) - 1).abs()
    return bool((errors_of_sums < ROUNDING).all())


def convert_inputs(inputs: Any, precision: torch.dtype) -> Any:
    """Returns inputs as a network takes them: tensors, floats in its precision.

    Args:
        inputs: a tensor or an array, or several in nested mappings and tuples.
    """
    if isinstance(inputs, Mapping):
        return {name: convert_inputs(value, precision) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(convert_inputs(value, precision) for value in inputs)
    tensor = torch.as_tensor(inputs).detach().cpu()
    if tensor.is_floating_point():
        return tensor.to(precision)
    return tensor


@dataclass(frozen=True)
class UnloadedNetwork:
    """A network of a winner, and the weights that are to be loaded into it.

    Args:
        model: the network, with weights as it was made.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class WinnerFiles:
    """The contents of a winner's files: its result, its configuration and its weights.

    Args:
        trusted: the packages whose code may be called; None for all, see `find_trusted_packages`.
        config: the content of winner.yaml.
        state: the weights of a network, or the states of a loop by their names in `run.keep`.
        is_of_loop: whether a custom training loop has trained the winner.
    """

    run_dir: Path
    result: Result
    trusted: Sequence[str] | None
    config: Mapping[str, Any]
    state: dict[str, Any]
    is_of_loop: bool

    @classmethod
    def read(cls, run_dir: Path, trusted: Sequence[str] = ()) -> "WinnerFiles":
        """Reads the files of a run directory, which may be untrusted.

        Args:
            trusted: the packages whose code the user allows to be called.

        Raises:
            PredictError: the directory has no winner, or its files cannot be used.
            ConfigError: the config has an interpolation, or names code other than the loop that is
                not trusted.
        """
        result = Result.load(run_dir)
        allowed_packages = find_trusted_packages(run_dir, trusted)
        is_trusted = allowed_packages is None  # None stands for all packages
        file_names = [name for name in ("winner.yaml", "winner.pt") if name in result.files]
        result.check_whole(run_dir, *file_names)
        config = read_yaml(run_dir / "winner.yaml", trusted=is_trusted)
        is_of_loop = _check_config(config, allowed_packages)
        state: dict[str, Any] = {}
        if "winner.pt" in file_names:
            try:
                state = load_weights(run_dir / "winner.pt", untrusted=not is_trusted)
            except ValueError as error:
                raise PredictError(str(error)) from None
        return cls(
            run_dir=run_dir,
            result=result,
            trusted=allowed_packages,
            config=config,
            state=state,
            is_of_loop=is_of_loop,
        )

    @property
    def states(self) -> dict[str, Any]:
        """The state dict of each object that a loop gave to `run.keep`, by its name."""
        if not self.is_of_loop:
            return {}
        return self.state

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Loads the states that a loop kept into objects; see `studyloom.Winner.restore`."""
        for name in parts:
            if name not in self.states:
                names = ", ".join(self.states) or "nothing"
                raise PredictError(f"the winner kept no {name}; it kept {names}")
        for name, part in parts.items():
            load_state(part, self.states[name])

    def network(self, make: Any = None) -> Network:
        """Makes the network of the winner, with its weights.

        Args:
            make: the network, or a class or function that makes it; None if winner.yaml names it.

        Raises:
            PredictError: the files cannot be used.
            ConfigError: winner.yaml or winner.json names something that is not trusted.
        """
        if self.is_of_loop:
            network = self._make_network_of_loop(make)
        else:
            network = self._make_trained_network(make)
        model = network.model
        try:
            # A loop may have converted its network, for instance to bfloat16. With assign=True the
            # network takes the type of the stored weights, instead of converting them to its own.
            load_state(model, network.weights, assign=self.is_of_loop)
        except (ValueError, RuntimeError) as error:
            reason = one_line(str(error))[:300]
            raise PredictError(f"{self.run_dir / 'winner.pt'}: {reason}") from None
        facts = self.result.data
        if facts is None:  # of a loop that loads its own data
            guessed_facts = _guess_facts(model, self.result)
            return Network(model, InputFormat(guessed_facts), batched=False)
        transform = _build_transform(facts, self.trusted)
        return Network(model, InputFormat(facts, transform))

    @property
    def _known_arguments(self) -> dict[str, Any]:
        """The arguments, if known, that a class or function of a network may take.

        A loop that loads its own data has none.
        """
        facts = self.result.data
        if facts is None:
            return {}
        return {"shape": facts.shape, "outputs": facts.outputs}

    def _make_network_of_loop(self, make: Any) -> UnloadedNetwork:
        """Makes the network of a custom training loop.

        Args:
            make: the network, or a class or function that makes it, or {name: one of these} if the
                loop kept several networks; None if winner.yaml names it.
        """
        is_named_by_file = make is None
        if is_named_by_file:
            setting = written_values(self.config["objective"]).get("network")
        else:
            setting = make
        name = find_network_name(setting)  # in `run.keep`; None if the setting names none
        weights = select_weights(self.state, name)
        if setting is None:
            raise PredictError(NO_NETWORK.format(self.run_dir))
        maker = setting
        if name is not None:
            maker = setting[name]
        if is_named_by_file:
            # The file has the dotted name of a class or function, or a section with a `_target_`.
            section = maker
            if not isinstance(maker, Mapping):
                section = {"_target_": maker}
            check_targets({"objective": {"network": section}}, self.trusted)
            maker = build_named_function(section, NETWORK)
        model = make_loop_network(maker, self.config, **self._known_arguments)
        return UnloadedNetwork(model, weights)

    def _make_trained_network(self, make: Any) -> UnloadedNetwork:
        """Makes the network of the section `model`, which studyloom has trained.

        Args:
            make: a class or function that makes it instead, from the values of the section; None
                for the class that the section names.
        """
        facts = self.result.data
        if "model" not in self.config or facts is None:
            raise PredictError(f"{self.run_dir / 'winner.yaml'}: must have a section model")
        if make is None:
            maker = build_network(self.config["model"], facts.shape, facts.outputs)
            arguments = self._known_arguments
        else:
            maker = make
            arguments = {
                **self._known_arguments,
                "classes": facts.outputs,
                **value_at(self.config, "model"),
            }
        model = make_loop_network(maker, self.config, **arguments)
        return UnloadedNetwork(model, self.state)


def _check_config(config: Mapping[str, Any], trusted: Sequence[str] | None) -> bool:
    """Checks that winner.yaml names only trusted code, and returns whether it is of a loop.

    The loop itself and its network are left out: the loop is not called, and the network is checked
    when it is made.

    Args:
        trusted: the packages whose code may be called; None for all.
    """
    values = written_values(config)  # a copy, from which all that is left out is removed
    objective = values.get("objective")
    is_of_loop = isinstance(objective, dict) and objective.get("_target_") is not None
    if is_of_loop:
        is_interpolation = "${" in str(objective["_target_"])
        if not is_interpolation:  # `check_targets` reports an interpolation as an error
            del objective["_target_"]
        objective.pop("network", None)
    check_targets(values, trusted)
    return is_of_loop


def read_winner_files(run_dir: Path, trusted: Sequence[str] = ()) -> WinnerFiles:
    """Reads the files of a winner; code that they name is imported with the study's seed."""
    with seeding_as(run_dir):
        return WinnerFiles.read(run_dir, trusted)


def load_network(
    run_dir: Path, trusted: Sequence[str] = (), *, named: str | Mapping[str, str] | None = None
) -> Network:
    """Loads the network of the winner in a run directory; see `WinnerFiles`.

    Args:
        named: a value of `objective.network` that the user gives, whose code is called: what makes
            the network, such as "mine.Net". If a loop kept several networks, {name: "mine.Net"}
            says also which one. None if the files name what makes the network.
    """
    files = WinnerFiles.read(run_dir, trusted)
    if named is None:
        return files.network()
    make = build_named_function(named, NETWORK)
    name = find_network_name(named)
    if name is None:  # the only network that there is
        return files.network(make)
    return files.network({name: make})


def _guess_facts(model: nn.Module, result: Result) -> DataFacts:
    """Guesses the facts about the data of a loop that loads its own, from network and metric."""
    dtype: DtypeName
    if isinstance(_find_first_layer(model), nn.Embedding):
        dtype = "int64"  # the indices of an embedding
    else:
        dtype = "float32"
    metric = METRICS.get(result.metric.name)
    return DataFacts(
        digest="",
        test_digest="",
        shape=(),
        outputs=None,
        mean=0.0,
        std=1.0,
        dtype=dtype,
        classifies=metric is not None and metric.targets == "classes",
    )


def _find_first_layer(model: nn.Module) -> nn.Module | None:
    """Returns the first module of a network that has parameters itself; None if none has."""
    for module in model.modules():
        parameters = list(module.parameters(recurse=False))
        if parameters:
            return module
    return None


def _build_transform(facts: DataFacts, trusted: Sequence[str] | None) -> Transform | None:
    """Builds the transform that winner.json names, which makes inputs from files.

    Args:
        trusted: the packages whose code may be called; None for all.

    Raises:
        ConfigError: it names code that is not trusted.
    """
    if facts.transform is None:
        return None
    # As in a config, so that an error names the key `data.transform`.
    config = {"data": {"transform": facts.transform}}
    check_targets(config, trusted)
    transform = build(facts.transform, "data.transform")
    if not callable(transform):
        raise PredictError("winner.json: data.transform must have the _target_ of a function")
    if isinstance(transform, Image):
        # An `Image` without numbers of its own normalizes by those of the training set.
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
        """Returns a table for a notebook: the classes with their probabilities, or the numbers.

        A single input has its most probable classes; of several inputs each has only its class.
        A column without entries, such as the probability of numbers, is left out. Returns None for
        outputs of other shapes, which a notebook then shows as `print` does.
        """
        outputs: Tensor | None
        if self.probabilities is not None:
            outputs = self.probabilities
            heading = "class"
        else:
            outputs = self.values
            heading = "numbers"
        if outputs is None or outputs.ndim != 2:
            return None
        rows: list[tuple[object, ...]] = []
        for index in range(min(len(outputs), MOST_SHOWN_INPUTS)):
            rows += self._make_html_rows(outputs, index)
        table = html_table(("input", heading, "probability", "note"), rows)
        hidden_count = len(outputs) - MOST_SHOWN_INPUTS
        if hidden_count > 0:
            table += f"<p>and {hidden_count} more</p>"
        return table

    def _make_html_rows(self, outputs: Tensor, index: int) -> list[tuple[object, ...]]:
        """Makes the rows of an input in the table of a notebook.

        With classes, a single input gets a row for each of its most probable classes; of several
        inputs each gets one row, for its most probable class. With numbers, an input gets one row.

        Args:
            outputs: the probabilities (n, classes), or the numbers (n, outputs).
            index: the position of the input.

        Returns:
            For each row its columns: the number of the input, class or numbers, probability, note.
        """
        if len(outputs) > 1:
            input_number = index
            class_count = 1
        else:
            input_number = None  # a single input needs no number
            class_count = MOST_PROBABLE
        note = None
        if self.notes:
            note = self.notes[index]
        row = outputs[index]
        if self.probabilities is None:
            numbers = " ".join(f"{value:.5g}" for value in row.tolist())
            return [(input_number, numbers, None, note)]
        rows: list[tuple[object, ...]] = []
        best = row.topk(min(class_count, len(row)))
        for label, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            name = label
            if self.class_names:
                name = self.class_names[label]
            rows.append((input_number, name, f"{probability:.4f}", note))
        return rows


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
        # A network whose inputs have a shape takes one tensor: for it a tuple is an array, such as
        # ((0, 1), (2, 3)).
        is_tuple_of_inputs = isinstance(inputs, tuple) and not self.shape
        if isinstance(inputs, Mapping) or is_tuple_of_inputs:  # arguments of `forward`, unchanged
            outputs, classifies = self._network(inputs, batch, softmax, output)
            return self._make_prediction(outputs, (), classifies=classifies)
        try:
            tensor = torch.as_tensor(inputs).detach().cpu()
            dtype = str(tensor.dtype).removeprefix("torch.")
            if tensor.is_complex():
                raise TypeError("they are complex")
            numbers = tensor.to(torch.promote_types(self._network.precision, torch.float32))
        except (TypeError, ValueError, RuntimeError) as error:
            raise PredictError(f"inputs must be a tensor or an array of numbers: {error}") from None
        try:
            rows, notes = self._network.form.from_numbers(numbers, dtype)
            outputs, classifies = self._network(rows, batch, softmax, output)
        except PredictError as error:
            # The errors on an array are written for a file: "it must hold …".
            message = f"inputs: {error}".replace("inputs: it must", "inputs must")
            raise PredictError(message) from None
        return self._make_prediction(outputs, tuple(notes), classifies=classifies)

    def _make_prediction(
        self, outputs: Tensor, notes: tuple[str, ...], *, classifies: bool
    ) -> Prediction:
        """Makes the prediction from outputs: probabilities (n, classes, …), or numbers (n, …).

        Args:
            notes: a note on each input, or "".
            classifies: whether the outputs are probabilities of classes.
        """
        if not classifies:
            return Prediction(values=outputs, notes=notes)
        classes = outputs.argmax(1)
        class_names = self._network.form.facts.class_names
        names: tuple[str, ...] = ()
        if class_names and classes.ndim == 1:
            names = tuple(class_names[label] for label in classes.tolist())
        return Prediction(
            classes=classes,
            probabilities=outputs,
            names=names,
            notes=notes,
            class_names=class_names,
        )


def make_predictor(files: WinnerFiles, make: Any = None) -> Predictor:
    """Makes what predicts with the network of a winner, in any program of the user.

    Code that the files name is found as by `studyloom predict`: the script that searched is run up
    to its search, in the user's own run directory only.

    Args:
        make: the network, or a class or function that makes it; None if the files name it.

    Raises:
        PredictError: the files cannot be used.
        ConfigError: they name something that is not trusted, or the script is not there.
    """
    if make is not None:  # the script is not needed
        with seeding_as(files.run_dir):
            return Predictor(files.network(make))
    with code_of_study(files.run_dir, None, trusts_working_folder=False):
        return Predictor(files.network())
