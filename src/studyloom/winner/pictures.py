"""TODO winner.pictures."""

import base64
import io
import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from studyloom.data.split import Split

WRONG = 20  # of the wrong test images, those that the winner is surest of
POINTS = 1000  # predictions at most that are kept for the report


def report_part(outputs: Tensor, split: Split) -> dict[str, Any]:
    """What the report shows of the test part: of classes the mistakes, of numbers what was told beside what came."""
    if split.classifies:
        return confusion_and_wrong(outputs.softmax(1), split)
    every = math.ceil(len(split) / POINTS)
    told, came = outputs[::every], split.targets.cpu()[::every]
    return {"predictions": {"told": told.tolist(), "came": came.tolist(), "ordered": split.ordered}}


def confusion_and_wrong(probabilities: Tensor, split: Split) -> dict[str, Any]:
    """The confusion matrix (rows are true classes), and the wrong images that the network is surest of."""
    labels, classes = split.targets.cpu(), split.outputs
    sure, predicted = probabilities.max(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes * classes).reshape(
        classes, classes
    )
    wrong = (predicted != labels).nonzero().flatten()
    wrong = wrong[sure[wrong].argsort(descending=True)][:WRONG]
    return {
        "confusion": confusion.tolist(),
        "classes": list(split.names) or [str(number) for number in range(classes)],
        "wrong": [
            {
                "index": index,
                "label": int(labels[index]),
                "predicted": int(predicted[index]),
                "confidence": float(sure[index]),
                "image": picture(split.inputs[index]),
            }
            for index in wrong.tolist()
        ],
    }


def picture(image: Tensor) -> str | None:
    """An image (channels, height, width) as a PNG in a data URL, its darkest value black; None if it is no picture."""
    if image.ndim != 3 or len(image) not in (1, 3):
        return None
    low, high = image.min(), image.max()
    pixels = (
        ((image - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).cpu().numpy()
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(
        buffer, "PNG"
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
