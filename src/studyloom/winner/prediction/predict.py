"""What a network predicts for files, input by input."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from studyloom.errors import PredictError
from studyloom.text import format_value
from studyloom.winner.prediction.files import shorten_error
from studyloom.winner.prediction.inputs import Inputs, read_inputs
from studyloom.winner.prediction.network import Network


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
            mistakes.append(f"{name}: {shorten_error(error)}")  # of memory
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
