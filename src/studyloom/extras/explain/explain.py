"""Explanations of a network on the test set."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

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

MAX_ERRORS = 8  # wrong predictions that are explained; each needs up to 169 evaluations
BINS = 10  # of confidence, equally wide
MAX_GROUPS = 30  # groups or classes that are reported, those with the most examples
DRAWS = 999  # resamples of a group's examples
SHUFFLES = 20  # of each column
PATCH_FRACTION = 7  # a patch is a seventh of an image's side long
MAX_WORDS = 120  # the first words of a text, which are examined and shown
TAIL_OF_95 = 2.5  # percent of the values at each end, outside of their 95% interval
TAIL_OF_90 = 5.0
# The brightness of an image below a map of colors, and how opaque the colors are at most.
DARKEST = 0.25
BRIGHTEST = 0.75
OPACITY = 0.75

log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")
# Returns the outputs of the network for a set of examples, on the CPU.
Predict = Callable[[Part], Tensor]


def explain(measured: MeasuredNetwork) -> Explanations | None:
    """Explains what a network predicts on the test set; None if nothing applies to its data.

    An explanation in which the user's code fails is left out, with a warning.
    """
    metric = measured.metric
    outputs = measured.outputs
    test = measured.test

    def predict(part: Part) -> Tensor:
        outputs_of_part, _ = evaluate_network(measured.job, measured.network, part)
        return outputs_of_part.cpu()

    groups = attempt("groups", measure_groups, metric, outputs, test)
    explanations = Explanations(groups=groups)
    if isinstance(test, Split) and test.inputs.ndim == 2 and test.columns:  # a table
        seed = measured.job.seed
        columns = attempt("columns", permute_columns, metric, predict, outputs, test, seed)
        explanations = replace(explanations, columns=columns or ())
    if scores_classes(outputs, test):
        explanations = _explain_classes(explanations, predict, outputs, test)
    if explanations == Explanations():
        return None
    return explanations


def _explain_classes(
    explanations: Explanations, predict: Predict, outputs: Outputs, test: Part
) -> Explanations:
    """Adds the explanations that only a classifier has: its calibration, and misled predictions.

    Args:
        explanations: those that are added to.
        predict: returns the outputs of the network for a set of examples.
        outputs: the outputs of the network on the test set.
    """
    probabilities = outputs.outputs.softmax(1)
    labels = outputs.targets
    error_indices = confident_errors(probabilities, labels)[:MAX_ERRORS]
    calibration = attempt("calibration", calibrate, probabilities, labels)
    explanations = replace(explanations, calibration=calibration)
    if test.shape is not None and is_image(test.shape):
        occlusions = attempt("occlusions", explain_images, predict, test, outputs, error_indices)
        explanations = replace(explanations, occlusions=occlusions or ())
    tokens = test.tokens
    if tokens is not None:
        texts = attempt("texts", explain_texts, predict, test, tokens, labels, error_indices)
        explanations = replace(explanations, texts=texts or ())
    return explanations


def attempt(
    name: str, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs
) -> T | None:
    """Calls a function with arguments; logs a warning and returns None if it raises.

    The test itself has been made, and its result must not be lost.

    Args:
        name: the part of the explanations that the function returns.
    """
    try:
        return function(*arguments, **keywords)
    except Exception as error:  # whatever the user's code raises
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
    confidences, predicted = probabilities.double().max(1)  # both (n,)
    is_right = (predicted == labels).double()
    # The number of each prediction's bin; a confidence of 1 is in the last one.
    bin_numbers = (confidences * BINS).long().clamp(max=BINS - 1)
    bins = []
    calibration_error = 0.0
    for number in sorted(set(bin_numbers.tolist())):
        in_bin = bin_numbers == number
        count = int(in_bin.sum())
        mean_confidence = float(confidences[in_bin].mean())
        bin_accuracy = float(is_right[in_bin].mean())
        share_of_examples = count / len(labels)
        calibration_error += share_of_examples * abs(bin_accuracy - mean_confidence)
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
        error=calibration_error,
        confidence=float(confidences.mean()),
        accuracy=float(is_right.mean()),
        bins=tuple(bins),
    )


def measure_groups(metric: Metric, outputs: Outputs, test: Part) -> Groups | None:
    """Measures a network on each group of the test set; without groups, on each class.

    Of many groups, those with the most examples are measured.

    Returns:
        None without groups or classes, and for a metric that is not a mean over examples.
    """
    scores = example_scores(metric, outputs.outputs, outputs.targets)  # (n,)
    if scores is None:
        return None
    if len(test.group_names) == len(outputs.targets):
        kind = "group"
        group_of_example = list(test.group_names)
    elif scores_classes(outputs, test):
        kind = "class"
        group_of_example = _class_names_of_examples(outputs, test)
    else:
        return None
    members: dict[str, list[int]] = {}  # the indices of each group's examples
    for index, name in enumerate(group_of_example):
        members.setdefault(name, []).append(index)
    largest_first = sorted(members, key=lambda name: (-len(members[name]), name))
    measured_names = largest_first[:MAX_GROUPS]
    rows = []
    for name in _in_order_of_classes(measured_names, test.names):
        scores_of_group = scores[torch.tensor(members[name])]
        rows.append(_measure_group(name, scores_of_group, metric))
    return Groups(grouped_by=kind, omitted=len(members) - len(rows), rows=tuple(rows))


def _class_names_of_examples(outputs: Outputs, test: Part) -> list[str]:
    """Returns the name of each example's class; its number if classes have no names."""
    class_names = test.names
    if not class_names:
        classes = outputs.outputs.shape[1]
        class_names = tuple(str(number) for number in range(classes))
    return [class_names[label] for label in outputs.targets.tolist()]


def _in_order_of_classes(names: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Sorts names as the classes are; by the alphabet if some are not the name of a class."""
    in_order = [name for name in class_names if name in names]
    if len(in_order) == len(names):
        return in_order
    return sorted(names)


def _measure_group(name: str, scores: Tensor, metric: Metric) -> GroupMean:
    """Returns the mean of a group's scores (n,), with its 95% interval.

    For an accuracy the interval is Wilson's. For any other metric it is the bootstrap's:
    percentiles of the means of many resamples, each of n scores drawn with replacement.
    """
    count = len(scores)
    if metric.function is accuracy:
        interval = wilson(int(scores.sum()), count)
    else:
        resamples = np.random.default_rng(0).integers(0, count, (DRAWS, count))  # indices
        means = scores.numpy()[resamples].mean(1)  # (DRAWS,)
        interval = _percentiles(means, TAIL_OF_95)
    return GroupMean(name, count, float(scores.mean()), interval)


def wilson(right: int, count: int) -> Interval:
    """Returns the 95% interval of an accuracy (Wilson 1927, JASA 22).

    It is never empty, even if all or none are right. With the accuracy p, the count n, and the
    97.5% quantile z of the normal distribution, its ends are
    (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        right: how many of the `count` predictions are right.
    """
    share = right / count
    square = NORMAL**2 / count
    middle = share + square / 2
    half = NORMAL * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low = (middle - half) / (1 + square)
    high = (middle + half) / (1 + square)
    return max(0.0, low), min(1.0, high)


def _percentiles(values: Sequence[float] | NDArray[np.floating], tail: float) -> Interval:
    """Returns the interval of values that leaves out `tail` percent of them at each end."""
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)


def permute_columns(
    metric: Metric, predict: Predict, outputs: Outputs, test: Split, seed: int
) -> tuple[Column, ...]:
    """Measures how much worse a network gets if one column of its inputs is shuffled.

    Shuffling keeps the values of a column, and removes what they say about the targets. A column
    that duplicates another one may seem unimportant (Breiman 2001, Machine Learning 45).

    Args:
        outputs: the outputs of the network on the test set.
        test: the test set, with inputs (n, columns).
        seed: draws the orders in which columns are shuffled.

    Returns:
        The columns, the most important first, without those with an undefined metric.
    """
    generator = torch.Generator().manual_seed(seed)
    original_value = outputs.score(metric)
    columns = []
    for position, name in enumerate(test.columns):
        inputs = test.inputs.clone()
        drops = []  # of the metric, for each shuffle
        try:
            for _ in range(SHUFFLES):
                order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
                inputs[:, position] = test.inputs[order, position]
                # The references are predictions from the former inputs.
                shuffled = replace(test, inputs=inputs, references={})
                value = metric(predict(shuffled), outputs.targets)
                drops.append(metric.sign * (original_value - value))
        except UndefinedMetric:
            continue
        interval = _percentiles(drops, TAIL_OF_90)
        columns.append(Column(name, float(np.mean(drops)), interval))
    return tuple(sorted(columns, key=lambda column: (-column.worse_by, column.name)))


# Images


def explain_images(
    predict: Predict, test: Part, outputs: Outputs, error_indices: Sequence[int]
) -> tuple[Occlusion, ...]:
    """Shows which parts of images misled a network, by covering one patch after the other.

    Occlusion sensitivity (Zeiler and Fergus, ECCV 2014), with patches of the image's own mean.
    Red patches on the images raised the confidence in the wrong prediction; blue ones lowered it.

    Args:
        test: the test set, of images (channels, height, width).
        outputs: the outputs of the network on the test set.
        error_indices: the indices of wrong predictions.
    """
    occlusions = []
    for index in error_indices:
        image = test.input_at(index)
        if image is not None:  # an item whose input is not one tensor has none
            occlusions.append(_explain_image(predict, test, outputs, index, image))
    return tuple(occlusions)


def _explain_image(
    predict: Predict, test: Part, outputs: Outputs, index: int, image: Tensor
) -> Occlusion:
    """Explains the prediction for an image of the test set by hiding patches of it.

    Args:
        index: the index of the image in the test set.
    """

    def predict_images(images: Tensor) -> Tensor:
        """Predicts for variants of the image, as if each were an example of the test set."""
        variants = with_inputs(test, index, list(images))
        return predict(variants)

    confidence_map = occlude(predict_images, image)
    largest_change = float(confidence_map.abs().max())
    if largest_change:
        confidence_map = confidence_map / largest_change
    return Occlusion(
        index=index,
        label=int(outputs.targets[index]),
        predicted=int(outputs.outputs[index].argmax()),
        image=png(overlay(image.float().cpu(), confidence_map)),
        largest_loss=largest_change,
    )


def occlude(predict: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Returns how much of a network's confidence in its prediction depends on each pixel.

    The image is covered with one patch after the other. Each patch costs the prediction some of its
    probability; a pixel gets the mean of this over all patches that cover it.

    Args:
        predict: returns logits (n, classes) for images, on the CPU.
        image: (channels, height, width), also of integers.

    Returns:
        (height, width), from -1 to 1; below 0 where a patch makes the prediction more probable.
    """
    height, width = image.shape[-2:]
    patches = []
    for rows in _make_patches(height):
        for columns in _make_patches(width):
            patches.append((rows, columns))
    covered_images = image.repeat(len(patches), 1, 1, 1)  # (patches, channels, height, width)
    for number, (rows, columns) in enumerate(patches):
        covered_images[number, :, rows, columns] = image.float().mean()
    probabilities = predict(torch.cat([image[None], covered_images])).softmax(1)
    predicted = int(probabilities[0].argmax())
    drops = probabilities[0, predicted] - probabilities[1:, predicted]  # (patches,)
    total = torch.zeros(height, width)
    count = torch.zeros(height, width)
    for (rows, columns), drop in zip(patches, drops, strict=True):
        total[rows, columns] += drop
        count[rows, columns] += 1
    return total / count


def _make_patches(size: int) -> list[slice]:
    """Returns the patches along a side of an image, which cover all of its pixels.

    A patch overlaps the next by half; the last one ends with the image. For a side of 28 pixels
    each is 4 long, and they start at 0, 2, 4, …, 24.

    Args:
        size: the number of pixels along the side.
    """
    length = max(2, math.ceil(size / PATCH_FRACTION))
    length = min(size, length)
    stride = max(1, length // 2)
    last_start = size - length
    starts = list(range(0, last_start + 1, stride))
    if starts[-1] < last_start:
        starts.append(last_start)
    return [slice(start, start + length) for start in starts]


def overlay(image: Tensor, color_map: Tensor) -> Tensor:
    """Draws a map over an image in gray: red where the map is above 0, blue below.

    Args:
        image: (channels, height, width).
        color_map: (height, width), from -1 to 1.

    Returns:
        (3, height, width), from 0 to 1.
    """
    gray = image.mean(0)
    darkest = gray.min()
    brightest = gray.max()
    gray = (gray - darkest) / (brightest - darkest).clamp(min=1e-12)  # from 0 to 1
    gray = DARKEST + (BRIGHTEST - DARKEST) * gray
    red = color_map.clamp(min=0)
    green = torch.zeros_like(red)
    blue = (-color_map).clamp(min=0)
    opacity = OPACITY * (red + blue)
    channels = [gray * (1 - opacity) + OPACITY * color for color in (red, green, blue)]
    return torch.stack(channels)


# Texts


def explain_texts(
    predict: Predict, test: Part, tokens: Tokens, labels: Tensor, error_indices: Sequence[int]
) -> tuple[ExplainedText, ...]:
    """Shows which words of texts misled a network, by leaving out one word after the other.

    As in the occlusion of images (Zeiler and Fergus, ECCV 2014), applied to words (Li, Monroe and
    Jurafsky 2016, arXiv:1612.08220). A word is left out wherever it is in the text, and what
    follows moves up.

    Args:
        tokens: the words of the texts.
        labels: the classes of the test set, int64 (n,), on the CPU.
        error_indices: the indices of wrong predictions.

    Returns:
        The texts, except those of one word and those in which no word changes the confidence.
    """
    texts = []
    for index in error_indices:
        row = _row_of_text(test, tokens, index)
        if row is None:
            continue
        different_words = set(tokens.numbers_of(row))
        if len(different_words) < 2:  # a text of one word would be empty without it
            continue
        text = _explain_text(predict, test, tokens, int(labels[index]), index, row)
        are_finite = all(math.isfinite(change) for change in text.changes)
        if any(text.changes) and are_finite:
            texts.append(text)
    return tuple(texts)


def _row_of_text(test: Part, tokens: Tokens, index: int) -> Tensor | None:
    """Returns the row of token numbers of a text; None if the item has none."""
    if isinstance(test, Split):
        return test.inputs[index]
    assert isinstance(test, Examples)
    return tokens.row_of(test.evaluation.load_item(index))


def _explain_text(
    predict: Predict, test: Part, tokens: Tokens, label: int, index: int, row: Tensor
) -> ExplainedText:
    """Measures how much of the confidence in a wrong prediction depends on each word of a text.

    The confidence is the margin: the log of how many times likelier the network rates the
    prediction than the truth. Unlike a probability near 1, it does not saturate.

    Args:
        label: the true class of the text.
        index: the position of the text in the test set.
        row: the numbers of the words of the text, as the network takes them.
    """
    word_numbers = tokens.numbers_of(row)
    examined_words = word_numbers[:MAX_WORDS]
    different_words = list(dict.fromkeys(examined_words))  # each once, in order
    shortened_rows = [tokens.without(row, number) for number in different_words]
    # The text itself, and the text without each of its words.
    variants = with_inputs(test, index, [row, *shortened_rows], path=tokens.path)
    outputs = predict(variants).double()  # (1 + different words, classes)
    probabilities = outputs[0].softmax(0)
    predicted = int(probabilities.argmax())
    margins = outputs[:, predicted] - outputs[:, label]
    margin_of_text = margins[0]
    drops = (margin_of_text - margins[1:]).tolist()
    drop_without_word = dict(zip(different_words, drops, strict=True))
    return ExplainedText(
        index=index,
        label=label,
        predicted=predicted,
        probabilities=(float(probabilities[label]), float(probabilities[predicted])),
        margin=round(float(margin_of_text), 4),
        words=tuple(tokens.word(number) for number in examined_words),
        changes=tuple(round(drop_without_word[number], 4) for number in examined_words),
        unexamined_words=len(word_numbers) - len(examined_words),
    )


# An example with other inputs


def with_inputs(
    test: Part, index: int, inputs: Sequence[Tensor], path: Sequence[int | str] = (0,)
) -> Part:
    """Returns a data set that repeats one example of the test set, with each of the inputs.

    The inputs reach the network as those of the test set do: through the Dataset's collate
    function, in batches of the same size.

    Args:
        index: the index of the example in the test set.
        inputs: each replaces the example's input, and has its type.
        path: the positions and keys that lead to the input in an item of a Dataset.
    """
    if isinstance(test, Split):
        targets = test.targets[index].repeat(len(inputs))
        # The references are predictions from the former inputs.
        return replace(test, inputs=torch.stack(list(inputs)), targets=targets, references={})
    assert isinstance(test, Examples)
    item = test.evaluation.load_item(index)
    items = [_replace_at(path, item, new_input) for new_input in inputs]
    view = Items((NamedDataset("data.test", items),), test.evaluation.collate)
    return replace(
        test,
        training=view,
        evaluation=view,
        loading=Loading(),  # in this process: there are few items, and they are in memory
        group_names=(),  # these name the groups of the former examples
    )


def _replace_at(path: Sequence[Any], container: Any, replacement: Tensor) -> Any:
    """Returns a copy of nested mappings and sequences, with one tensor or array replaced.

    Each part of the copy keeps its type: a namedtuple is copied to a namedtuple, and the
    replacement of an array becomes an array.

    Args:
        path: the keys and positions that lead to the tensor or array; empty if `container` itself
            is replaced.
        container: an item of a Dataset, or a value within it; it is not changed.
    """
    if not path:
        if isinstance(container, np.ndarray):
            return replacement.numpy()
        return replacement
    key = path[0]
    new_value = _replace_at(path[1:], container[key], replacement)
    if isinstance(container, Mapping):
        return {**container, key: new_value}
    elements = list(container)
    elements[key] = new_value
    is_namedtuple = hasattr(container, "_fields")
    if is_namedtuple:  # its class takes the elements as separate arguments
        return type(container)(*elements)
    return type(container)(elements)
