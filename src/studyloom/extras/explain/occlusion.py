"""Which part of a picture misled a network."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from studyloom.data.training_data import Part
from studyloom.extras.explain.inputs import with_inputs
from studyloom.winner.pictures import png

PARTS = 7  # patches along a side; they overlap by half


def explain_mistakes(
    answer: Callable[[Part], Tensor], sealed: Part, mistakes: Sequence[int]
) -> list[dict[str, Any]]:
    """Covers one patch after the other, and sees how sure the network still is of its mistake.

    Occlusion sensitivity (Zeiler and Fergus, ECCV 2014), with patches of the picture's own mean.

    Args:
        answer: returns the outputs of the network for a part, on the CPU.
        sealed: the test part, of pictures (channels, height, width).
        mistakes: the indices of wrong answers.

    Returns:
        for each its `index`, and an `image` on which red is what spoke for the mistake and blue
        what spoke against it; and `most`, by how much a covered patch changed the confidence in the
        mistake at the most.
    """
    told = []
    for index in mistakes:
        image = sealed.input_at(index)
        if image is None:
            continue

        def answer_in_place(images: Tensor, index: int = index) -> Tensor:
            return answer(with_inputs(sealed, index, [*images]))

        change = occlude(answer_in_place, image)
        most = float(change.abs().max())
        drawn = overlay(image.float().cpu(), change / most if most else change)
        told.append({"index": index, "image": png(drawn), "most": most})
    return told


def occlude(answer: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Returns how much of the confidence in its answer a network owes to each pixel.

    Args:
        answer: returns logits (n, classes) for pictures, on the CPU.
        image: (channels, height, width), also of whole numbers.

    Returns:
        (height, width): the mean, over all patches that cover a pixel, of what the probability of
        the answer loses if they are covered.
    """
    tall, wide = image.shape[-2:]
    places = [
        (slice(top, top + height), slice(left, left + width))
        for top, height in _steps(tall)
        for left, width in _steps(wide)
    ]
    covered = image.repeat(len(places), 1, 1, 1)
    for number, (rows, columns) in enumerate(places):
        covered[number, :, rows, columns] = image.float().mean()
    probabilities = answer(torch.cat([image[None], covered])).softmax(1)
    chosen = int(probabilities[0].argmax())
    lost = probabilities[0, chosen] - probabilities[1:, chosen]
    total, count = torch.zeros(tall, wide), torch.zeros(tall, wide)
    for (rows, columns), loss in zip(places, lost, strict=True):
        total[rows, columns] += loss
        count[rows, columns] += 1
    return total / count


def _steps(size: int) -> list[tuple[int, int]]:
    """Returns where patches begin along a side, and how long they are."""
    length = min(size, max(2, -(-size // PARTS)))
    starts = [*range(0, size - length + 1, max(1, length // 2))]
    starts += [size - length] if starts[-1] + length < size else []
    return [(start, length) for start in starts]


def overlay(image: Tensor, change: Tensor) -> Tensor:
    """Draws a map over a picture: red where it is above 0, blue below.

    Args:
        image: (channels, height, width).
        change: (height, width), from -1 to 1.

    Returns:
        (3, height, width), from 0 to 1.
    """
    grey = image.mean(0)
    low, high = grey.min(), grey.max()
    grey = 0.25 + 0.5 * (grey - low) / (high - low).clamp(min=1e-12)
    red, blue = change.clamp(min=0), (-change).clamp(min=0)
    weight = 0.75 * (red + blue)
    tinted = [grey * (1 - weight) + 0.75 * part for part in (red, torch.zeros_like(red), blue)]
    return torch.stack(tinted)
