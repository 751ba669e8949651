"""`studyloom predict`: the predictions of a winner for the inputs in files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from studyloom.errors import PredictError
from studyloom.extras.predict.input_files import InputFiles
from studyloom.text import one_line
from studyloom.winner.predictor import Network
from studyloom.winner.result import InputPrediction


def predict(network: Network, paths: Sequence[Path]) -> Iterator[InputPrediction]:
    """Predicts for each input of each file, in their order.

    Files that cannot be read in full are skipped; one error at the end lists them all.

    Raises:
        PredictError: after all predictions; some files cannot be read, or do not fit the network.
    """
    errors = []
    files = InputFiles(network.form)
    for path in paths:
        name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
        try:
            inputs, notes = files.read(path)
            outputs, classifies = network(inputs)
        # OSError: of the file; RuntimeError: torch's, also of memory; TypeError: of the network.
        except (OSError, ValueError, MemoryError, RuntimeError, TypeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            errors.append(f"{name}: {one_line(reason)[:200]}")
            continue
        if not outputs.ndim:
            outputs = outputs[None]
        if len(notes) != len(outputs):  # a row may stand for a node or a time, and not for an input
            notes = [""] * len(outputs)
        for position, (row, note) in enumerate(zip(outputs, notes, strict=True)):
            single = name if len(outputs) == 1 else f"{name}[{position}]"
            if classifies:
                yield describe_class(single, row, note, network.form.facts.names)
            else:
                yield describe_numbers(single, row, note)
    if errors:
        raise PredictError(errors)


def describe_class(name: str, row: Tensor, note: str, names: Sequence[str]) -> InputPrediction:
    """Describes the class of an input, or the class at each place of a map.

    Args:
        row: probabilities (classes, …).
        names: of the classes; may be empty.
    """
    if row.ndim > 1:
        classes = row.argmax(0)
        labels = tuple(classes.flatten().tolist())
        return InputPrediction(name, labels=labels, shape=tuple(classes.shape), note=note)
    label = int(row.argmax())
    word = names[label] if label < len(names) else ""
    return InputPrediction(name, label, float(row[label]), word=word, note=note)


def describe_numbers(name: str, row: Tensor, note: str) -> InputPrediction:
    """Describes the numbers (…) for an input."""
    shape = tuple(row.shape) if row.ndim > 1 else ()
    return InputPrediction(name, values=tuple(row.flatten().tolist()), shape=shape, note=note)
