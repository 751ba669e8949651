"""The winner's network for Python code: what it predicts for tensors and arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from studyloom.config.trust import check_targets, read_yaml
from studyloom.errors import PredictError
from studyloom.files import is_own
from studyloom.text import format_shape
from studyloom.training.checkpoint import load_weights
from studyloom.winner.answer import check_whole, is_of_loop, load_answer
from studyloom.winner.prediction.inputs import from_numbers
from studyloom.winner.prediction.network import Network, load_network


@dataclass(frozen=True)
class Prediction:
    """What a winner predicts: classes with probabilities, or numbers.

    Attributes:
        classes: int64 (n,), the most probable class of each input; None for numbers.
        probabilities: float32 (n, classes); None for numbers.
        names: the names of the predicted classes, one per input; empty if classes have none.
        values: float32 (n, outputs), the predicted numbers; None for classes.
        notes: what was done to each input, and in what it is unlike the training data; "" if there
            is nothing to say.
    """

    classes: Tensor | None = None
    probabilities: Tensor | None = None
    names: tuple[str, ...] = ()
    values: Tensor | None = None
    notes: tuple[str, ...] = ()


class Predictor:
    """The network of a winner, with its weights. `load_winner` makes it.

    Args:
        network: the network, and what it expects.
    """

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def network(self) -> nn.Module:
        """The network in eval mode, on the CPU."""
        return self._network.model.eval()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, such as (channels, height, width)."""
        return self._network.shape

    def predict(self, inputs: Tensor | ArrayLike) -> Prediction:
        """Predicts the classes or the numbers of inputs.

        Args:
            inputs: a tensor or an array (n, *shape), or one input (*shape). They become inputs as
                those of a .npy file do: of pictures, numbers from 0 on are pixels.

        Raises:
            PredictError: the inputs have another shape, or are not finite numbers.
        """
        try:
            given = torch.as_tensor(inputs).detach().cpu()
            whole = not (given.is_floating_point() or given.dtype == torch.bool)
            if given.is_complex():
                raise TypeError("they are complex")
            numbers = given.float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise PredictError(f"inputs must be a tensor or an array of numbers: {error}") from None
        try:
            asked = from_numbers(numbers, whole, self._network)
            outputs = self._network(asked.rows)
        except PredictError as error:
            raise PredictError(
                f"inputs: {error}".replace("inputs: it must", "inputs must")
            ) from None
        notes = tuple(asked.note(position) for position in range(len(outputs)))
        if not self._network.classifies:
            return Prediction(values=outputs, notes=notes)
        classes, words = outputs.argmax(1), self._network.names
        names = tuple(words[k] for k in classes.tolist()) if words else ()
        return Prediction(classes, outputs, names, notes=notes)

    def __repr__(self) -> str:
        task = "classes" if self._network.classifies else "numbers"
        name = type(self._network.model).__name__
        return f"<studyloom.Predictor {name}: {format_shape(self.shape)} → {task}>"


@dataclass(frozen=True)
class LoopWinner:
    """The winner of a study that calls a loop of one's own. `load_winner` makes it.

    Attributes:
        config: with which the loop was called; `config.params` are the best parameters.
        states: what the loop kept, a state dict for each name that it gave to `run.keep`.
    """

    config: DictConfig
    states: Mapping[str, Any]

    def restore(self, **parts: Any) -> None:
        """Restores objects, such as the network that the loop makes for `config`.

        Args:
            parts: objects with `load_state_dict`, by the names that the loop gave to `run.keep`.

        Raises:
            PredictError: the loop kept nothing under a name.
        """
        if unknown := [name for name in parts if name not in self.states]:
            raise PredictError(
                f"the winner kept no {unknown[0]}; it kept {', '.join(self.states) or 'nothing'}"
            )
        for name, part in parts.items():
            part.load_state_dict(self.states[name])


def load_winner(
    run_dir: str | Path, trust: Sequence[str] = (), *, committee: bool = False
) -> Predictor | LoopWinner:
    """Loads the winner of a study: its network in eval mode, with its weights.

    Of a loop of one's own it loads the configuration and what the loop kept, and calls nothing. So
    its config may name any loop, and if a command of yours has run in the folder, any code.

    Nothing in the folder is executed, so that it may be another person's. Its config may name
    networks of studyloom and torch, and code of your own only if `trust` names it.

    Args:
        run_dir: the folder of the study, with winner.json, winner.yaml and winner.pt.
        trust: packages, modules or classes that winner.yaml may name and call.
        committee: whether to load the committee of `winner.committee=true` in its place. Its
            `network` averages those of its members.

    Raises:
        PredictError: there is no winner, or no committee, or its files cannot be used.
        ConfigError: winner.yaml names what is not trusted.
        OSError: a file cannot be read.
    """
    folder = Path(run_dir)
    if is_of_loop(answer := load_answer(folder)) and not committee:
        return _load_loop(folder, answer, trust)
    return Predictor(load_network(folder, trust, committee=committee))


def _load_loop(run_dir: Path, answer: Mapping[str, Any], trusted: Sequence[str]) -> LoopWinner:
    kept = "winner.pt" in answer.get("files", ())
    names = ("winner.yaml", "winner.pt") if kept else ("winner.yaml",)
    check_whole(run_dir, answer, *names)
    config = read_yaml(run_dir / "winner.yaml")
    if not is_own(run_dir):
        _check_loop(config, trusted)
    states: dict[str, Any] = {}
    if kept:
        try:
            states = load_weights(run_dir / "winner.pt")
        except ValueError as error:
            raise PredictError(str(error)) from None
    check_whole(run_dir, answer, *names)  # they may have been replaced
    return LoopWinner(config, states)


def _check_loop(config: DictConfig, trusted: Sequence[str]) -> None:
    """Checks what the user's code may read or build from the config of a loop from elsewhere.

    Raises:
        ConfigError: it has an interpolation, or names code that is not trusted beside the loop.
    """
    checked: Any = OmegaConf.to_container(config, resolve=False)
    objective = checked.get("objective")
    if isinstance(objective, dict) and "${" not in str(objective.get("_target_")):
        objective.pop("_target_", None)  # the loop itself, which nobody calls here
    check_targets(checked, trusted)
