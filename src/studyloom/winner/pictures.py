"""What the report shows of the winner on the test part: its mistakes, or its predictions."""

import base64
import io
import math
from typing import Any

import torch
from torch import Tensor

from studyloom.data.training_data import Part

WRONG = 20  # wrong predictions that are kept, the most confident ones
POINTS = 1000  # predictions of numbers that are kept, at most


def report_part(outputs: Tensor, targets: Tensor, split: Part) -> dict[str, Any]:
    """Collects the entries of winner.json that only the report shows.

    Args:
        outputs: the winner's outputs on the test part, (n, outputs), on the CPU.
        targets: those of the test part, on the CPU.
        split: the test part.

    Returns:
        for classes what `confusion_and_wrong` returns. For numbers `predictions`: what the network
        predicted (`told`), the targets (`came`), and whether they are in time order. Nothing for
        what is neither, such as a class for each pixel.
    """
    if split.classifies and outputs.ndim == 2 and targets.ndim == 1:
        return confusion_and_wrong(outputs.softmax(1), targets, split)
    if split.classifies or outputs.ndim != 2 or targets.shape != outputs.shape:
        return {}
    every = math.ceil(len(split) / POINTS)
    predicted, targets = outputs[::every], targets[::every]
    return {
        "predictions": {
            "told": predicted.tolist(),
            "came": targets.tolist(),
            "ordered": split.ordered,
        }
    }


def confusion_and_wrong(probabilities: Tensor, labels: Tensor, split: Part) -> dict[str, Any]:
    """Counts predictions by class, and finds the most confident mistakes.

    Args:
        probabilities: (n, classes), on the CPU.
        labels: (n,), on the CPU.
        split: the test part.

    Returns:
        `confusion`, whose rows are true classes, `classes`, their names, and `wrong`, the mistakes,
        the most confident first.
    """
    classes = probabilities.shape[1]
    confidence, predicted = probabilities.max(1)
    counts = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    wrong = (predicted != labels).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True)][:WRONG]
    return {
        "confusion": counts.reshape(classes, classes).tolist(),
        "classes": list(split.names) or [str(number) for number in range(classes)],
        "wrong": [
            {
                "index": index,
                "label": int(labels[index]),
                "predicted": int(predicted[index]),
                "confidence": float(confidence[index]),
                "image": picture(split.input_at(index)),
            }
            for index in wrong.tolist()
        ],
    }


def picture(image: Tensor | None) -> str | None:
    """Converts an input to a PNG in a data URL, its lowest value black.

    Args:
        image: (channels, height, width); None if the input is not one tensor.

    Returns:
        the URL; None if the input is not a picture of one or three channels.
    """
    if image is None or image.ndim != 3 or len(image) not in (1, 3):
        return None
    image = image.float()
    low, high = image.min(), image.max()
    return png((image - low) / (high - low).clamp(min=1e-12))


def png(image: Tensor) -> str:
    """Converts a picture to a PNG in a data URL.

    Args:
        image: (1 or 3, height, width), from 0 to 1.
    """
    from PIL import Image  # here: no search waits for it

    pixels = (image * 255).round().to(torch.uint8).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(
        buffer, "PNG"
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
