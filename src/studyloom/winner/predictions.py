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
from studyloom.training.states import load_state
from studyloom.training.trainer import evaluate_network
from studyloom.winner.explanation_values import Explanations
from studyloom.winner.result import Predictions, Wrong
from studyloom.winner.statistics import Outputs

WRONG = 20  # wrong predictions that are kept, the most confident ones
POINTS = 1000  # predictions of numbers that are kept, at most


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
    if scores.shape[1] < 2:
        return False
    return bool(((labels >= 0) & (labels < scores.shape[1])).all())


def confident_errors(probabilities: Tensor, labels: Tensor) -> list[int]:
    """Returns the indices of the most confident wrong predictions, the most confident first.

    Args:
        probabilities: (n, classes), on the CPU.
        labels: (n,), on the CPU.
    """
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    order = confidence[wrong].argsort(descending=True)
    indices: list[int] = wrong[order][:WRONG].tolist()
    return indices


def _describe_outputs(outputs: Outputs, test: Part) -> DescribedPredictions:
    """Describes the wrong predictions, most confident first, or numbers next to their targets.

    Other targets, such as a class for each pixel, are not shown.
    """
    predicted = outputs.outputs
    targets = outputs.targets
    if scores_classes(outputs, test):
        return _describe_errors(predicted.softmax(1), targets, test)
    if test.classifies or predicted.ndim != 2 or targets.shape != predicted.shape:
        return DescribedPredictions()
    stride = math.ceil(len(test) / POINTS)
    predictions = Predictions(
        predicted=_as_rows(predicted[::stride]),
        targets=_as_rows(targets[::stride]),
        ordered=test.ordered,
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
    classes = probabilities.shape[1]
    confidence, predicted = probabilities.max(1)
    # Each pair of classes has a number: true class × number of classes + predicted class.
    counts = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    names = tuple(test.names)
    if not names:
        names = tuple(map(str, range(classes)))
    errors = []
    for index in confident_errors(probabilities, labels):
        error = Wrong(
            index=index,
            label=int(labels[index]),
            predicted=int(predicted[index]),
            confidence=float(confidence[index]),
            image=_image(test.input_at(index)),
        )
        errors.append(error)
    return DescribedPredictions(
        confusion=tuple(map(tuple, counts.reshape(classes, classes).tolist())),
        classes=names,
        wrong=tuple(errors),
    )


def _image(image: Tensor | None) -> str | None:
    """Converts an input, if it is an image, to a PNG in a data URL, its lowest value black.

    Args:
        image: (channels, height, width); None if the input is not one tensor.
    """
    if image is None or image.ndim != 3 or len(image) not in (1, 3):
        return None
    image = image.float()
    low = image.min()
    high = image.max()
    return png((image - low) / (high - low).clamp(min=1e-12))


def png(image: Tensor) -> str:
    """Converts an image to a PNG in a data URL.

    Args:
        image: (1 or 3, height, width), from 0 to 1.
    """
    from PIL import Image  # here: no search waits for it

    channels = (image * 255).round().to(torch.uint8).cpu().numpy()
    if len(channels) == 1:
        pixels = channels[0]
    else:
        pixels = channels.transpose(1, 2, 0)  # Pillow has the channels last
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
