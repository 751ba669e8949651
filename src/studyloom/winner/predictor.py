"""The winner's network for Python code: what it predicts for tensors and arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from studyloom.errors import PredictError
from studyloom.text import format_shape
from studyloom.winner.prediction import Network, load_network


@dataclass(frozen=True)
class Prediction:
    """What a winner predicts: classes with probabilities, or numbers.

    Attributes:
        classes: int64 (n,), the most probable class of each input; None for numbers.
        probabilities: float32 (n, classes); None for numbers.
        names: the names of the predicted classes, one per input; empty if classes have none.
        values: float32 (n, outputs), the predicted numbers; None for classes.
    """

    classes: Tensor | None = None
    probabilities: Tensor | None = None
    names: tuple[str, ...] = ()
    values: Tensor | None = None


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
            inputs: a tensor or an array (n, *shape), or one input (*shape). Pictures of uint8,
                from 0 to 255, are normalised as in training; anything else is taken as it is.

        Raises:
            PredictError: the inputs have another shape, or are not numbers.
        """
        try:
            given = torch.as_tensor(inputs)
        except (TypeError, ValueError, RuntimeError) as error:
            raise PredictError(f"inputs must be a tensor or an array of numbers: {error}") from None
        shape = self._network.shape
        batch = given[None] if tuple(given.shape) == shape else given
        if tuple(batch.shape[1:]) != shape or not len(batch):
            raise PredictError(
                f"inputs must have the shape n × {format_shape(shape)}, or that of one input; "
                f"got {format_shape(given.shape) or 'a number'}"
            )
        rows = batch.float()
        if batch.dtype == torch.uint8 and self._network.takes_pictures:
            rows = rows.div(255).sub(self._network.mean).div(self._network.std)
        with torch.no_grad():
            outputs = self._network(rows.cpu())
        if not self._network.classifies:
            return Prediction(values=outputs)
        classes, words = outputs.argmax(1), self._network.names
        names = tuple(words[k] for k in classes.tolist()) if words else ()
        return Prediction(classes, outputs, names)

    def __repr__(self) -> str:
        task = "classes" if self._network.classifies else "numbers"
        name = type(self._network.model).__name__
        return f"<studyloom.Predictor {name}: {format_shape(self.shape)} → {task}>"


def load_winner(run_dir: str | Path, trust: Sequence[str] = ()) -> Predictor:
    """Loads the winner of a study: its network in eval mode, with its weights.

    Nothing in the folder is executed, so that it may be another person's. Its config may name
    networks of studyloom and torch, and code of your own only if `trust` names it.

    Args:
        run_dir: the folder of the study, with winner.json, winner.yaml and winner.pt.
        trust: packages, modules or classes that winner.yaml may name and call.

    Raises:
        PredictError: there is no winner, or its files cannot be used.
        ConfigError: winner.yaml names what is not trusted.
        OSError: a file cannot be read.
    """
    return Predictor(load_network(Path(run_dir), trust))
