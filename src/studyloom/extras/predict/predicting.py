"""`studyloom predict`: the predictions of a winner for the inputs in files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from studyloom.errors import PredictError
from studyloom.extras.predict.input_files import InputFiles
from studyloom.text import one_line
from studyloom.winner.predictor import Network
from studyloom.winner.result import InputPrediction

MAX_REASON_LENGTH = 200  # characters of an error of a file


def predict(network: Network, paths: Sequence[Path]) -> Iterator[InputPrediction]:
    """Predicts for each input of each file, in their order.

    Files that cannot be read in full are skipped; one error at the end lists them all.

    Raises:
        PredictError: after all predictions; some files cannot be read, or do not fit the network.
    """
    errors = []
    files = InputFiles(network.form)
    for path in paths:
        file_name = _escape(str(path))
        try:
            inputs, notes = files.read(path)
            outputs, classifies = network(inputs)
        # The file raises OSError; torch RuntimeError, also without memory; the network TypeError.
        except (OSError, ValueError, MemoryError, RuntimeError, TypeError) as error:
            reason = one_line(_explain(error))
            errors.append(f"{file_name}: {reason[:MAX_REASON_LENGTH]}")
            continue
        if outputs.ndim == 0:
            outputs = outputs[None]  # a single row
        # Of a graph, for example, the network may return a row for each node: rows are no inputs
        # then, and the notes on inputs are left out.
        if len(notes) != len(outputs):
            notes = [""] * len(outputs)
        for position, (row, note) in enumerate(zip(outputs, notes, strict=True)):
            name = file_name
            if len(outputs) > 1:
                name = f"{file_name}[{position}]"
            if classifies:
                yield describe_class(name, row, note, network.form.facts.class_names)
            else:
                yield describe_numbers(name, row, note)
    if errors:
        raise PredictError(errors)


def _escape(name: str) -> str:
    """Replaces the characters of a name that a terminal would not print as text."""
    characters = []
    for character in name:
        if character.isprintable():
            characters.append(character)
        else:
            characters.append(ascii(character).strip("'"))  # such as \x1b
    return "".join(characters)


def _explain(error: Exception) -> str:
    """Returns the reason of an error; for a file that cannot be read, without its name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def describe_class(name: str, row: Tensor, note: str, names: Sequence[str]) -> InputPrediction:
    """Describes the class of an input, or the class at each place of a map.

    Args:
        row: probabilities (classes, …).
        names: the names of the classes; may be empty.
    """
    is_map = row.ndim > 1
    if is_map:
        classes = row.argmax(0)
        labels = tuple(classes.flatten().tolist())
        return InputPrediction(name, labels=labels, shape=tuple(classes.shape), note=note)
    label = int(row.argmax())
    probability = float(row[label])
    class_name = ""
    if label < len(names):
        class_name = names[label]
    return InputPrediction(
        name, label=label, confidence=probability, class_name=class_name, note=note
    )


def describe_numbers(name: str, row: Tensor, note: str) -> InputPrediction:
    """Describes the numbers (…) for an input."""
    shape: tuple[int, ...] = ()
    if row.ndim > 1:
        shape = tuple(row.shape)
    return InputPrediction(name, values=tuple(row.flatten().tolist()), shape=shape, note=note)
