"""Explanations of a network on the test set."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from studyloom.averages import Interval
from studyloom.config.values import describe_error
from studyloom.data.examples import Examples, Items, Loading, NamedDataset, Part
from studyloom.data.split import Split, Tokens
from studyloom.data.transform import is_image
from studyloom.errors import UndefinedMetric
from studyloom.metrics import Metric, accuracy, example_scores
from studyloom.training.trainer import evaluate_network
from studyloom.winner.explanation_values import (
    Bin,
    Calibration,
    Column,
    ExplainedText,
    Explanations,
    GroupMean,
    Groups,
    Occlusion,
)
from studyloom.winner.predictions import (
    MeasuredNetwork,
    confident_errors,
    png,
    scores_classes,
)
from studyloom.winner.statistics import NORMAL, Outputs

MOST_ERRORS = 8  # explained predictions: 169 evaluations for an image, at most 121 for a text
BINS = 10  # of confidence, equally wide
GROUPS = 30  # that are kept, those with most examples
DRAWS = 999  # resamples of a group's examples
ORDERS = 20  # of each column
PATCHES = 7  # along a side of an image; they overlap by half
WORDS = 120  # of a text that are looked at and shown, its first ones

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
Ask = Callable[[Part], Tensor]  # returns the outputs of the network for a part, on the CPU


def explain(measured: MeasuredNetwork) -> Explanations | None:
    """Explains what a network predicts on the test set; None where nothing applies to its data."""
    metric, outputs, test = measured.metric, measured.outputs, measured.test
    explanations = Explanations(groups=attempt("groups", by_group, metric, outputs, test))

    def ask(part: Part) -> Tensor:
        return evaluate_network(measured.job, measured.network, part)[0].cpu()

    if isinstance(test, Split) and test.columns and test.inputs.ndim == 2:
        seed = measured.job.seed
        columns = attempt("columns", permute_columns, metric, ask, outputs, test, seed)
        explanations = replace(explanations, columns=columns or ())
    if scores_classes(outputs, test):
        probabilities, labels = outputs.outputs.softmax(1), outputs.targets
        errors = confident_errors(probabilities, labels)[:MOST_ERRORS]
        calibration = attempt("calibration", calibrate, probabilities, labels)
        explanations = replace(explanations, calibration=calibration)
        if test.shape is not None and is_image(test.shape):
            occlusions = attempt("occlusions", explain_images, ask, test, outputs, errors)
            explanations = replace(explanations, occlusions=occlusions or ())
        if test.tokens is not None:
            texts = attempt("texts", explain_texts, ask, test, test.tokens, labels, errors)
            explanations = replace(explanations, texts=texts or ())
    return None if explanations == Explanations() else explanations


def attempt(name: str, explain_part: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Returns a part of the explanations; None with a warning if the user's code fails in it."""
    try:
        return explain_part(*args, **kwargs)
    except Exception as error:  # the test has been made
        log.warning("the report lacks the winner's %s: %s", name, describe_error(error))
        return None


def calibrate(probabilities: Tensor, labels: Tensor) -> Calibration:
    """Compares a classifier's confidence with its accuracy.

    The expected calibration error is the mean distance of the two over bins of confidence, weighted
    by their examples (Naeini et al., AAAI 2015; Guo et al., ICML 2017).

    Args:
        probabilities: (n, classes), on the CPU.
        labels: (n,), on the CPU.
    """
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    bins, error = [], 0.0
    for number in sorted({*place.tolist()}):
        own = place == number
        count = int(own.sum())
        sure, share = float(confidence[own].mean()), float(right[own].mean())
        error += count / len(labels) * abs(share - sure)
        ends = wilson(int(right[own].sum()), count)
        bins.append(Bin(number / BINS, (number + 1) / BINS, count, sure, share, ends))
    return Calibration(error, float(confidence.mean()), float(right.mean()), tuple(bins))


def by_group(metric: Metric, found: Outputs, test: Part) -> Groups | None:
    """Measures a network on each group of the test set; without groups, on each class.

    Returns:
        None without groups or classes, and for a metric that is not a mean over examples.
    """
    targets = found.targets
    scores = example_scores(metric, found.outputs, targets)
    if scores is None:
        return None
    if len(test.group_names) == len(targets):
        kind, names = "group", list(test.group_names)
    elif scores_classes(found, test):
        known = test.names or tuple(map(str, range(found.outputs.shape[1])))
        kind, names = "class", [known[label] for label in targets.tolist()]
    else:
        return None
    members: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        members.setdefault(name, []).append(place)
    largest = sorted(members, key=lambda name: (-len(members[name]), name))[:GROUPS]
    order = [name for name in (test.names or sorted(members)) if name in largest]
    order = order if len(order) == len(largest) else sorted(largest)
    rows = []
    for name in order:
        own = scores[torch.tensor(members[name])]
        if metric.function is accuracy:
            ends = wilson(int(own.sum()), len(own))
        else:
            draws = np.random.default_rng(0).integers(0, len(own), (DRAWS, len(own)))
            ends = _percentiles(own.numpy()[draws].mean(1), 2.5)
        rows.append(GroupMean(name, len(own), float(own.mean()), ends))
    return Groups(kind, len(members) - len(rows), tuple(rows))


def wilson(right: int, count: int) -> Interval:
    """Returns the 95% interval of an accuracy (Wilson 1927, JASA 22).

    It is never empty, even if all or none are right.
    """
    share, square = right / count, NORMAL**2 / count
    middle = share + square / 2
    half = NORMAL * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def _percentiles(values: Any, tail: float) -> Interval:
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)


def permute_columns(
    metric: Metric, ask: Ask, found: Outputs, test: Split, seed: int
) -> tuple[Column, ...]:
    """Measures how much worse a network gets if one column is shuffled.

    A column that duplicates another one may seem unimportant (Breiman 2001, Machine Learning 45).

    Returns:
        the columns, the most important first, without those with an undefined metric.
    """
    generator = torch.Generator().manual_seed(seed)
    known, columns = found.score(metric), []
    for column, name in enumerate(test.columns):
        worse = []
        inputs = test.inputs.clone()
        for _ in range(ORDERS):
            order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
            inputs[:, column] = test.inputs[order, column]
            changed = replace(test, inputs=inputs, references={})
            try:
                worse.append(metric.sign * (known - metric(ask(changed), found.targets)))
            except UndefinedMetric:
                break
        else:
            columns.append(Column(name, float(np.mean(worse)), _percentiles(worse, 5)))
    return tuple(sorted(columns, key=lambda column: (-column.worse, column.name)))


def explain_images(
    ask: Ask, test: Part, outputs: Outputs, errors: Sequence[int]
) -> tuple[Occlusion, ...]:
    """Covers one patch after the other, and measures the confidence left in a wrong prediction.

    Occlusion sensitivity (Zeiler and Fergus, ECCV 2014), with patches of the image's own mean.
    Red patches on the images raised the confidence in the wrong prediction; blue ones lowered it.

    Args:
        test: the test set, of images (channels, height, width).
        outputs: those of the network on the test set.
        errors: the indices of wrong predictions.
    """
    explained = []
    for index in errors:
        image = test.input_at(index)
        if image is None:
            continue

        def ask_in_place(images: Tensor, index: int = index) -> Tensor:
            return ask(with_inputs(test, index, [*images]))

        change = occlude(ask_in_place, image)
        most = float(change.abs().max())
        drawn = overlay(image.float().cpu(), change / most if most else change)
        occlusion = Occlusion(
            index=index,
            label=int(outputs.targets[index]),
            predicted=int(outputs.outputs[index].argmax()),
            image=png(drawn),
            most=most,
        )
        explained.append(occlusion)
    return tuple(explained)


def occlude(ask: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Returns how much of a network's confidence in its prediction depends on each pixel.

    Args:
        ask: returns logits (n, classes) for images, on the CPU.
        image: (channels, height, width), also of integers.

    Returns:
        (height, width): the mean, over all patches that cover a pixel, of what the probability of
        the prediction loses if they are covered.
    """
    tall, wide = image.shape[-2:]
    places = [(rows, columns) for rows in _patches(tall) for columns in _patches(wide)]
    covered = image.repeat(len(places), 1, 1, 1)
    for number, (rows, columns) in enumerate(places):
        covered[number, :, rows, columns] = image.float().mean()
    probabilities = ask(torch.cat([image[None], covered])).softmax(1)
    chosen = int(probabilities[0].argmax())
    lost = probabilities[0, chosen] - probabilities[1:, chosen]
    total, count = torch.zeros(tall, wide), torch.zeros(tall, wide)
    for (rows, columns), loss in zip(places, lost, strict=True):
        total[rows, columns] += loss
        count[rows, columns] += 1
    return total / count


def _patches(size: int) -> list[slice]:
    """Returns the patches along a side of the given pixels."""
    length = min(size, max(2, -(-size // PATCHES)))
    starts = [*range(0, size - length + 1, max(1, length // 2))]
    starts += [size - length] if starts[-1] + length < size else []
    return [slice(start, start + length) for start in starts]


def overlay(image: Tensor, change: Tensor) -> Tensor:
    """Draws a map over an image: red where it is above 0, blue below.

    Args:
        image: (channels, height, width).
        change: (height, width), from -1 to 1.

    Returns:
        (3, height, width), from 0 to 1.
    """
    gray = image.mean(0)
    low, high = gray.min(), gray.max()
    gray = 0.25 + 0.5 * (gray - low) / (high - low).clamp(min=1e-12)
    red, blue = change.clamp(min=0), (-change).clamp(min=0)
    weight = 0.75 * (red + blue)
    tinted = [gray * (1 - weight) + 0.75 * part for part in (red, torch.zeros_like(red), blue)]
    return torch.stack(tinted)


def explain_texts(
    ask: Ask, test: Part, tokens: Tokens, labels: Tensor, errors: Sequence[int]
) -> tuple[ExplainedText, ...]:
    """Leaves out one word after the other, and measures the confidence left in a wrong prediction.

    Occlusion (Zeiler and Fergus, ECCV 2014), of words as Li, Monroe and Jurafsky erase them (2016,
    arXiv:1612.08220). A word is left out wherever it is in the text, and what follows moves up.
    The confidence in a wrong prediction is the log of how many times likelier the network rates it
    than the truth; unlike a probability near 1, it does not saturate.

    Args:
        tokens: the words of the texts.
        labels: the classes of the test set, int64 (n,), on the CPU.
        errors: the indices of wrong predictions.

    Returns:
        the texts, except those of one word and those in which no word changes the confidence.
    """
    explained = []
    for index in errors:
        if isinstance(test, Split):
            row: Tensor | None = test.inputs[index]
        else:
            assert isinstance(test, Examples)
            row = tokens.row_of(test.evaluation.load_item(index))
        numbers = [] if row is None else tokens.numbers_of(row)
        read = numbers[:WORDS]
        if row is None or len({*numbers}) < 2:  # without its one word a text is empty
            continue
        different = [*dict.fromkeys(read)]
        rows = [row, *(tokens.without(row, number) for number in different)]
        outputs = ask(with_inputs(test, index, rows, tokens.path)).double()
        label, likely = int(labels[index]), outputs[0].softmax(0)
        predicted = int(likely.argmax())
        margins = outputs[:, predicted] - outputs[:, label]
        owed = dict(zip(different, (margins[0] - margins[1:]).tolist(), strict=True))
        changes = tuple(round(owed[number], 4) for number in read)
        if any(changes) and all(map(math.isfinite, changes)):
            text = ExplainedText(
                index,
                label,
                predicted,
                (float(likely[label]), float(likely[predicted])),
                round(float(margins[0]), 4),
                tuple(tokens.word(number) for number in read),
                changes,
                len(numbers) - len(read),
            )
            explained.append(text)
    return tuple(explained)


def with_inputs(
    test: Part, index: int, inputs: Sequence[Tensor], path: Sequence[int | str] = (0,)
) -> Part:
    """Returns a data set that repeats one example with each of the inputs.

    They come to the network as those of the test do: through the collate function, in batches of
    the same size.

    Args:
        index: of the example.
        inputs: each replaces the example's input, and has its type.
        path: the positions and keys that lead to the input in an item of a Dataset.
    """
    if isinstance(test, Split):
        targets = test.targets[index].repeat(len(inputs))
        return replace(test, inputs=torch.stack([*inputs]), targets=targets, references={})
    assert isinstance(test, Examples)
    item = test.evaluation.load_item(index)
    items = [_put(item, [*path], each) for each in inputs]
    view = Items((NamedDataset("data.test", items),), test.evaluation.collate)
    return replace(test, training=view, evaluation=view, loading=Loading(), group_names=())


def _put(tree: Any, path: list[int | str], part: Tensor) -> Any:
    if not path:
        return part.numpy() if isinstance(tree, np.ndarray) else part
    step: Any = path[0]
    changed = _put(tree[step], path[1:], part)
    if isinstance(tree, Mapping):
        return {**tree, step: changed}
    parts = [*tree]
    parts[step] = changed
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
