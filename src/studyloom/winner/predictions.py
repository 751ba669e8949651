"""Predictions of a network on the test set, and what a report shows: errors with their images."""

import base64
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from studyloom.data.examples import Part
from studyloom.metrics import Metric
from studyloom.training.job import Job
from studyloom.training.randomness import seeded
from studyloom.training.states import load_state
from studyloom.training.trainer import evaluate_network
from studyloom.winner.explanation_values import Explanations
from studyloom.winner.result import Predictions, Wrong
from studyloom.winner.statistics import Outputs

MOST_WRONG = 20  # wrong predictions are kept, at most
MOST_POINTS = 1000  # predictions of numbers are kept, at most
LEAST_RANGE = 1e-12  # of the values of an image, which are divided by it


@dataclass(frozen=True)
class MeasuredNetwork:
    """The network of a winner that was measured on the test set.

    Args:
        job: the training that it comes from, which says how it is evaluated.
        metric: the metric that measured it.
        outputs: its outputs on the test set, with the targets.
    """

    job: Job
    network: nn.Module
    metric: Metric
    outputs: Outputs
    test: Part


@dataclass(frozen=True)
class DescribedPredictions:
    """The predictions of a winner on the test set as a report shows them, see `Tested`.

    A field is None if it does not apply to the data.
    """

    confusion: tuple[tuple[int, ...], ...] | None = None
    classes: tuple[str, ...] | None = None
    wrong: tuple[Wrong, ...] | None = None
    predictions: Predictions | None = None
    explanations: Explanations | None = None


Explain = Callable[[MeasuredNetwork], Explanations | None]


def make_network(job: Job, weights: Mapping[str, Tensor], part: Part) -> nn.Module:
    """Makes the network of a job for a set of examples, with weights."""
    with seeded(job.seed):  # initial weights, which are replaced, change no state of the caller
        network = job.model(shape=part.shape, outputs=part.outputs)
    load_state(network, weights)
    return network


def compute_outputs(job: Job, weights: Mapping[str, Tensor], part: Part) -> Outputs:
    """Runs the network of a job on a set of examples."""
    outputs, targets = evaluate_network(job, make_network(job, weights, part), part)
    return Outputs(outputs.cpu(), targets.cpu())


def describe_predictions(
    measured: MeasuredNetwork, explain: Explain | None
) -> DescribedPredictions:
    """Describes the predictions of a network on the test set for a report.

    Args:
        explain: explains the predictions; None for a result without explanations.
    """
    described = _describe_outputs(measured.outputs, measured.test)
    if explain is not None:
        described = replace(described, explanations=explain(measured))
    return described


def scores_classes(outputs: Outputs, test: Part) -> bool:
    """Returns whether outputs (n, classes) have a column for each label, and at least two columns.

    A softmax over the single logit of a binary network would be 1 for every input.
    """
    scores = outputs.outputs
    labels = outputs.targets
    if not test.classifies or scores.ndim != 2 or labels.ndim != 1:
        return False
    class_count = scores.shape[1]
    if class_count < 2:
        return False
    has_column = (labels >= 0) & (labels < class_count)  # (n,)
    return bool(has_column.all())


def confident_errors(probabilities: Tensor, labels: Tensor) -> list[int]:
    """Returns the indices of wrong predictions, the most confident first, at most MOST_WRONG.

    Args:
        probabilities: (n, classes), on the CPU.
        labels: (n,), on the CPU.
    """
    confidence, predicted = probabilities.max(1)
    wrong_indices = (predicted != labels).nonzero().flatten()
    order = confidence[wrong_indices].argsort(descending=True)
    indices: list[int] = wrong_indices[order][:MOST_WRONG].tolist()
    return indices


def _describe_outputs(outputs: Outputs, test: Part) -> DescribedPredictions:
    """Describes the predictions of classes by their errors, and numbers next to their targets.

    Other predictions, such as a class for each pixel, are not described.
    """
    predicted = outputs.outputs
    targets = outputs.targets
    if scores_classes(outputs, test):
        return _describe_errors(predicted.softmax(1), targets, test)
    predicts_numbers = predicted.ndim == 2 and targets.shape == predicted.shape
    if test.classifies or not predicts_numbers:  # such as a class for each pixel
        return DescribedPredictions()
    stride = math.ceil(len(test) / MOST_POINTS)  # keeps at most MOST_POINTS examples
    predictions = Predictions(
        predicted=_as_rows(predicted[::stride]),
        targets=_as_rows(targets[::stride]),
        in_time_order=test.ordered,
    )
    return DescribedPredictions(predictions=predictions)


def _as_rows(numbers: Tensor) -> tuple[tuple[float, ...], ...]:
    """Converts a matrix to tuples, one for each row."""
    return tuple(tuple(row) for row in numbers.tolist())


def _describe_errors(probabilities: Tensor, labels: Tensor, test: Part) -> DescribedPredictions:
    """Describes the wrong predictions of classes, and counts all by true and predicted class.

    Args:
        probabilities: (n, classes), on the CPU.
        labels: (n,), on the CPU.
    """
    class_count = probabilities.shape[1]
    confidence, predicted = probabilities.max(1)
    # Each pair of classes has a number: true class × number of classes + predicted class.
    pairs = labels * class_count + predicted
    counts = torch.bincount(pairs, minlength=class_count**2).reshape(class_count, class_count)
    if test.names:
        names = tuple(test.names)
    else:
        names = tuple(str(label) for label in range(class_count))
    errors = []
    for index in confident_errors(probabilities, labels):
        error = Wrong(
            index=index,
            label=int(labels[index]),
            predicted=int(predicted[index]),
            confidence=float(confidence[index]),
            image=_draw_input(test.input_at(index)),
        )
        errors.append(error)
    return DescribedPredictions(
        confusion=tuple(tuple(row) for row in counts.tolist()),
        classes=names,
        wrong=tuple(errors),
    )


def _draw_input(tensor: Tensor | None) -> str | None:
    """Converts an input to a PNG in a data URL, from its lowest value, black, to its highest.

    Args:
        tensor: the input; None if it is not one tensor.

    Returns:
        None if the input is not an image (channels, height, width).
    """
    if tensor is None or tensor.ndim != 3 or len(tensor) not in (1, 3):
        return None
    image = tensor.float()
    low = image.min()
    high = image.max()
    return png((image - low) / (high - low).clamp(min=LEAST_RANGE))


def png(image: Tensor) -> str:
    """Converts an image to a PNG in a data URL.

    Args:
        image: (1 or 3, height, width), from 0 to 1.
    """
    from PIL import Image  # imported here, so that a search starts without it

    levels = (image * 255).round().to(torch.uint8).cpu().numpy()
    if len(levels) == 1:
        pixels = levels[0]
    else:
        pixels = levels.transpose(1, 2, 0)  # Pillow has the channels last
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
