"""Explanations of a network on the test set."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
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

MOST_ERRORS = 8  # wrong predictions that are explained; each needs up to 169 evaluations
BINS = 10  # of confidence, equally wide
MOST_GROUPS = 30  # groups or classes that are reported, those with the most examples
DRAWS = 999  # resamples of a group's examples
SHUFFLES = 20  # of each column
PATCHES = 7  # along a side of an image; they overlap by half
MOST_WORDS = 120  # the first words of a text, which are examined and shown

log = logging.getLogger(__name__)
T = TypeVar("T")
# Returns the outputs of the network for a set of examples, on the CPU.
Predict = Callable[[Part], Tensor]


def explain(measured: MeasuredNetwork) -> Explanations | None:
    """Explains what a network predicts on the test set; None if nothing applies to its data."""
    metric = measured.metric
    outputs = measured.outputs
    test = measured.test
    seed = measured.job.seed

    def predict(part: Part) -> Tensor:
        outputs_of_part, _ = evaluate_network(measured.job, measured.network, part)
        return outputs_of_part.cpu()

    groups = attempt("groups", lambda: measure_groups(metric, outputs, test))
    explanations = Explanations(groups=groups)
    if isinstance(test, Split) and test.columns and test.inputs.ndim == 2:
        columns = attempt("columns", lambda: permute_columns(metric, predict, outputs, test, seed))
        explanations = replace(explanations, columns=columns or ())
    if scores_classes(outputs, test):
        explanations = _explain_classes(explanations, predict, outputs, test)
    if explanations == Explanations():
        return None
    return explanations


def _explain_classes(
    explanations: Explanations, predict: Predict, outputs: Outputs, test: Part
) -> Explanations:
    """Returns explanations with those that only the network of a classifier has."""
    probabilities = outputs.outputs.softmax(1)
    labels = outputs.targets
    tokens = test.tokens
    errors = confident_errors(probabilities, labels)[:MOST_ERRORS]
    calibration = attempt("calibration", lambda: calibrate(probabilities, labels))
    explanations = replace(explanations, calibration=calibration)
    if test.shape is not None and is_image(test.shape):
        occlusions = attempt("occlusions", lambda: explain_images(predict, test, outputs, errors))
        explanations = replace(explanations, occlusions=occlusions or ())
    if tokens is not None:
        texts = attempt("texts", lambda: explain_texts(predict, test, tokens, labels, errors))
        explanations = replace(explanations, texts=texts or ())
    return explanations


def attempt(name: str, explain_part: Callable[[], T]) -> T | None:
    """Returns a part of the explanations; None with a warning if the user's code fails in it."""
    try:
        return explain_part()
    except Exception as error:  # the test itself has been made, and its result is not lost
        log.warning("the report lacks the winner's %s: %s", name, describe_error(error))
        return None


# Means over examples


def calibrate(probabilities: Tensor, labels: Tensor) -> Calibration:
    """Compares a classifier's confidence with its accuracy.

    The expected calibration error is the mean distance of the two over bins of confidence, weighted
    by their examples (Naeini et al., AAAI 2015; Guo et al., ICML 2017).

    Args:
        probabilities: (n, classes), on the CPU.
        labels: (n,), on the CPU.
    """
    confidence, predicted = probabilities.double().max(1)
    is_right = (predicted == labels).double()
    bin_numbers = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = []
    error = 0.0
    for number in sorted(set(bin_numbers.tolist())):
        in_bin = bin_numbers == number
        count = int(in_bin.sum())
        mean_confidence = float(confidence[in_bin].mean())
        bin_accuracy = float(is_right[in_bin].mean())
        error += count / len(labels) * abs(bin_accuracy - mean_confidence)
        bins.append(
            Bin(
                low=number / BINS,
                high=(number + 1) / BINS,
                count=count,
                confidence=mean_confidence,
                accuracy=bin_accuracy,
                interval=wilson(int(is_right[in_bin].sum()), count),
            )
        )
    return Calibration(
        error=error,
        confidence=float(confidence.mean()),
        accuracy=float(is_right.mean()),
        bins=tuple(bins),
    )


def measure_groups(metric: Metric, outputs: Outputs, test: Part) -> Groups | None:
    """Measures a network on each group of the test set; without groups, on each class.

    Returns:
        None without groups or classes, and for a metric that is not a mean over examples.
    """
    scores = example_scores(metric, outputs.outputs, outputs.targets)
    if scores is None:
        return None
    if len(test.group_names) == len(outputs.targets):
        kind = "group"
        names_of_examples = list(test.group_names)
    elif scores_classes(outputs, test):
        kind = "class"
        names_of_examples = _class_names_of_examples(outputs, test)
    else:
        return None
    positions: dict[str, list[int]] = {}  # of the examples of each group
    for position, name in enumerate(names_of_examples):
        positions.setdefault(name, []).append(position)
    largest_first = sorted(positions, key=lambda name: (-len(positions[name]), name))
    rows = []
    for name in _in_order_of_classes(largest_first[:MOST_GROUPS], test.names):
        scores_of_group = scores[torch.tensor(positions[name])]
        rows.append(_mean_of_group(name, scores_of_group, metric))
    return Groups(kind, len(positions) - len(rows), tuple(rows))


def _class_names_of_examples(outputs: Outputs, test: Part) -> list[str]:
    """Returns the name of each example's class; its number if classes have no names."""
    class_names = test.names
    if not class_names:
        classes = outputs.outputs.shape[1]
        class_names = tuple(map(str, range(classes)))
    return [class_names[label] for label in outputs.targets.tolist()]


def _in_order_of_classes(names: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Sorts names as the classes are; by the alphabet if some are not the name of a class."""
    in_order = [name for name in class_names if name in names]
    if len(in_order) == len(names):
        return in_order
    return sorted(names)


def _mean_of_group(name: str, scores: Tensor, metric: Metric) -> GroupMean:
    """Returns the mean of a group's scores, with its 95% interval."""
    count = len(scores)
    if metric.function is accuracy:
        interval = wilson(int(scores.sum()), count)
    else:
        resamples = np.random.default_rng(0).integers(0, count, (DRAWS, count))
        interval = _percentiles(scores.numpy()[resamples].mean(1), 2.5)
    return GroupMean(name, count, float(scores.mean()), interval)


def wilson(right: int, count: int) -> Interval:
    """Returns the 95% interval of an accuracy (Wilson 1927, JASA 22).

    It is never empty, even if all or none are right.

    Args:
        right: how many of the `count` predictions are right.
    """
    share = right / count
    square = NORMAL**2 / count
    middle = share + square / 2
    half = NORMAL * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def _percentiles(values: Sequence[float] | NDArray[np.floating], tail: float) -> Interval:
    """Returns the interval of values that leaves out `tail` percent of them at each end."""
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)


def permute_columns(
    metric: Metric, predict: Predict, outputs: Outputs, test: Split, seed: int
) -> tuple[Column, ...]:
    """Measures how much worse a network gets if one column is shuffled.

    A column that duplicates another one may seem unimportant (Breiman 2001, Machine Learning 45).

    Args:
        outputs: the outputs of the network on the test set.
        seed: draws the orders in which columns are shuffled.

    Returns:
        The columns, the most important first, without those with an undefined metric.
    """
    generator = torch.Generator().manual_seed(seed)
    original_value = outputs.score(metric)
    columns = []
    for position, name in enumerate(test.columns):
        inputs = test.inputs.clone()
        losses = []
        try:
            for _ in range(SHUFFLES):
                order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
                inputs[:, position] = test.inputs[order, position]
                shuffled = replace(test, inputs=inputs, references={})
                value = metric(predict(shuffled), outputs.targets)
                losses.append(metric.sign * (original_value - value))
        except UndefinedMetric:
            continue
        columns.append(Column(name, float(np.mean(losses)), _percentiles(losses, 5)))
    return tuple(sorted(columns, key=lambda column: (-column.worse, column.name)))


# Images


def explain_images(
    predict: Predict, test: Part, outputs: Outputs, errors: Sequence[int]
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
        if image is not None:
            explained.append(_explain_image(predict, test, outputs, index, image))
    return tuple(explained)


def _explain_image(
    predict: Predict, test: Part, outputs: Outputs, index: int, image: Tensor
) -> Occlusion:
    """Explains the prediction for an image, which is the input at an index of the test set."""

    def predict_images(images: Tensor) -> Tensor:
        return predict(with_inputs(test, index, list(images)))

    change = occlude(predict_images, image)
    largest_change = float(change.abs().max())
    if largest_change:
        change = change / largest_change
    return Occlusion(
        index=index,
        label=int(outputs.targets[index]),
        predicted=int(outputs.outputs[index].argmax()),
        image=png(overlay(image.float().cpu(), change)),
        most=largest_change,
    )


def occlude(predict: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Returns how much of a network's confidence in its prediction depends on each pixel.

    Args:
        predict: returns logits (n, classes) for images, on the CPU.
        image: (channels, height, width), also of integers.

    Returns:
        (height, width): the mean, over all patches that cover a pixel, of what the probability of
        the prediction loses if they are covered.
    """
    height, width = image.shape[-2:]
    patches = [(rows, columns) for rows in _patches(height) for columns in _patches(width)]
    covered = image.repeat(len(patches), 1, 1, 1)
    for position, (rows, columns) in enumerate(patches):
        covered[position, :, rows, columns] = image.float().mean()
    probabilities = predict(torch.cat([image[None], covered])).softmax(1)
    predicted = int(probabilities[0].argmax())
    losses = probabilities[0, predicted] - probabilities[1:, predicted]
    total = torch.zeros(height, width)
    count = torch.zeros(height, width)
    for (rows, columns), loss in zip(patches, losses, strict=True):
        total[rows, columns] += loss
        count[rows, columns] += 1
    return total / count


def _patches(size: int) -> list[slice]:
    """Returns the patches along a side of an image, which cover all of its pixels."""
    length = min(size, max(2, math.ceil(size / PATCHES)))
    stride = max(1, length // 2)
    last_start = size - length
    starts = list(range(0, last_start + 1, stride))
    if starts[-1] < last_start:
        starts.append(last_start)
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
    low = gray.min()
    high = gray.max()
    gray = 0.25 + 0.5 * (gray - low) / (high - low).clamp(min=1e-12)
    red = change.clamp(min=0)
    green = torch.zeros_like(red)
    blue = (-change).clamp(min=0)
    opacity = 0.75 * (red + blue)
    tinted = [gray * (1 - opacity) + 0.75 * color for color in (red, green, blue)]
    return torch.stack(tinted)


# Texts


def explain_texts(
    predict: Predict, test: Part, tokens: Tokens, labels: Tensor, errors: Sequence[int]
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
        row = _row_of_text(test, tokens, index)
        # A text of one word would be empty without it.
        if row is None or len(set(tokens.numbers_of(row))) < 2:
            continue
        text = _explain_text(predict, test, tokens, int(labels[index]), index, row)
        if any(text.changes) and all(map(math.isfinite, text.changes)):
            explained.append(text)
    return tuple(explained)


def _row_of_text(test: Part, tokens: Tokens, index: int) -> Tensor | None:
    """Returns the row of token numbers of a text; None if the item has none."""
    if isinstance(test, Split):
        return test.inputs[index]
    assert isinstance(test, Examples)
    return tokens.row_of(test.evaluation.load_item(index))


def _explain_text(
    predict: Predict, test: Part, tokens: Tokens, label: int, index: int, row: Tensor
) -> ExplainedText:
    """Explains the prediction for a text, whose row is at an index of the test set."""
    numbers = tokens.numbers_of(row)
    examined = numbers[:MOST_WORDS]
    different = list(dict.fromkeys(examined))
    shortened_rows = [tokens.without(row, number) for number in different]
    outputs = predict(with_inputs(test, index, [row, *shortened_rows], tokens.path)).double()
    probabilities = outputs[0].softmax(0)
    predicted = int(probabilities.argmax())
    margins = outputs[:, predicted] - outputs[:, label]  # of the text, then of each shortened row
    losses = (margins[0] - margins[1:]).tolist()
    loss_without = dict(zip(different, losses, strict=True))
    return ExplainedText(
        index=index,
        label=label,
        predicted=predicted,
        probabilities=(float(probabilities[label]), float(probabilities[predicted])),
        margin=round(float(margins[0]), 4),
        words=tuple(tokens.word(number) for number in examined),
        changes=tuple(round(loss_without[number], 4) for number in examined),
        left=len(numbers) - len(examined),
    )


# An example with other inputs


def with_inputs(
    test: Part, index: int, inputs: Sequence[Tensor], path: Sequence[int | str] = (0,)
) -> Part:
    """Returns a data set that repeats one example with each of the inputs.

    They come to the network as those of the test do: through the collate function, in batches of
    the same size.

    Args:
        index: the index of the example in the test set.
        inputs: each replaces the example's input, and has its type.
        path: the positions and keys that lead to the input in an item of a Dataset.
    """
    if isinstance(test, Split):
        targets = test.targets[index].repeat(len(inputs))
        return replace(test, inputs=torch.stack(list(inputs)), targets=targets, references={})
    assert isinstance(test, Examples)
    item = test.evaluation.load_item(index)
    items = [_replace_at(path, item, replacement) for replacement in inputs]
    view = Items((NamedDataset("data.test", items),), test.evaluation.collate)
    return replace(test, training=view, evaluation=view, loading=Loading(), group_names=())


def _replace_at(path: Sequence[Any], value: Any, replacement: Tensor) -> Any:
    """Returns a copy of nested mappings and sequences that holds the replacement at a path.

    Each part of the copy keeps its type: a namedtuple is copied to a namedtuple, and the
    replacement of an array becomes an array.

    Args:
        path: the keys and positions that lead to the tensor or array to replace; empty if `value`
            is that tensor or array.
        value: an item of a Dataset, or a value within it; it is not changed.
    """
    if not path:
        if isinstance(value, np.ndarray):
            return replacement.numpy()
        return replacement
    step = path[0]
    changed = _replace_at(path[1:], value[step], replacement)
    if isinstance(value, Mapping):
        return {**value, step: changed}
    elements = list(value)
    elements[step] = changed
    is_namedtuple = hasattr(value, "_fields")
    if is_namedtuple:  # its class takes the elements as separate arguments
        return type(value)(*elements)
    return type(value)(elements)
