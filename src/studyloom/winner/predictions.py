"""Predictions of a network on the test set, and what a report shows: errors with their images."""

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from studyloom.data.training_data import Part
from studyloom.metrics import Metric
from studyloom.plugins import load_plugin
from studyloom.training.job import Job
from studyloom.training.states import load_state
from studyloom.training.trainer import evaluate_network
from studyloom.winner.result import Predictions, Wrong
from studyloom.winner.statistics import Outputs

WRONG = 20  # wrong predictions that are kept, the most confident ones
POINTS = 1000  # predictions of numbers that are kept, at most


def make_network(job: Job, weights: Mapping[str, Tensor], part: Part) -> nn.Module:
    """Makes the network of a job for a set of examples, with weights."""
    network = job.model(shape=part.shape, outputs=part.outputs)
    load_state(network, weights)
    return network


def network_outputs(job: Job, weights: Mapping[str, Tensor], part: Part) -> Outputs:
    """Runs the network of a job on a set of examples."""
    outputs, targets = evaluate_network(job, make_network(job, weights, part), part)
    return Outputs(outputs.cpu(), targets.cpu())


def show(
    job: Job, weights: Mapping[str, Tensor], metric: Metric, found: Outputs, test: Part
) -> dict[str, Any]:
    """Returns what a report shows of a network on the test set, as fields of `Tested`."""
    shown = _show_predictions(found, test)
    errors = [each.index for each in shown.get("wrong", ())]
    network = make_network(job, weights, test)
    shown |= load_plugin("explain")(job, network, metric, found, test, errors)
    return shown


def scores_classes(found: Outputs, test: Part) -> bool:
    """Whether outputs (n, classes) have a column for each label, and at least two columns.

    A softmax over the single logit of a binary network would be 1 for every input.
    """
    outputs, labels = found.outputs, found.targets
    if not test.classifies or outputs.ndim != 2 or labels.ndim != 1 or outputs.shape[1] < 2:
        return False
    return bool(((labels >= 0) & (labels < outputs.shape[1])).all())


def _show_predictions(found: Outputs, test: Part) -> dict[str, Any]:
    """Returns the wrong predictions, most confident first, or numbers next to their targets.

    Other targets, such as a class for each pixel, are not shown.
    """
    outputs, targets = found.outputs, found.targets
    if scores_classes(found, test):
        return _show_errors(outputs.softmax(1), targets, test)
    if test.classifies or outputs.ndim != 2 or targets.shape != outputs.shape:
        return {}
    every = math.ceil(len(test) / POINTS)
    predicted, actual = (tuple(map(tuple, t[::every].tolist())) for t in (outputs, targets))
    return {"predictions": Predictions(predicted, actual, test.ordered)}


def _show_errors(probabilities: Tensor, labels: Tensor, test: Part) -> dict[str, Any]:
    classes = probabilities.shape[1]
    confidence, predicted = probabilities.max(1)
    counts = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    wrong = (predicted != labels).nonzero().flatten()
    errors = []
    for index in wrong[confidence[wrong].argsort(descending=True)][:WRONG].tolist():
        label, taken = int(labels[index]), int(predicted[index])
        image = _image(test.input_at(index))
        errors.append(Wrong(index, label, taken, float(confidence[index]), image))
    return {
        "confusion": tuple(map(tuple, counts.reshape(classes, classes).tolist())),
        "classes": tuple(test.names) or tuple(map(str, range(classes))),
        "wrong": tuple(errors),
    }


def _image(image: Tensor | None) -> str | None:
    """Converts an input, if it is an image, to a PNG in a data URL, its lowest value black.

    Args:
        image: (channels, height, width); None if the input is not one tensor.
    """
    if image is None or image.ndim != 3 or len(image) not in (1, 3):
        return None
    image = image.float()
    low, high = image.min(), image.max()
    return png((image - low) / (high - low).clamp(min=1e-12))


def png(image: Tensor) -> str:
    """Converts an image to a PNG in a data URL.

    Args:
        image: (1 or 3, height, width), from 0 to 1.
    """
    from PIL import Image  # here: no search waits for it

    pixels = (image * 255).round().to(torch.uint8).cpu().numpy()
    buffer = io.BytesIO()
    shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(shown).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
