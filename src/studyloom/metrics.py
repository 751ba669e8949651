"""Metrics: functions that measure how good outputs are for their targets, in one number.

A metric also has a direction: whether a larger or a smaller number is better. Metrics that PyTorch
has are computed on the device. The others are scikit-learn's. torchmetrics would compute them on
the device too, but it imports torchvision and PyTorch's compiler, which takes 3 s of every worker's
start where scikit-learn takes 0.7 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from studyloom.errors import UndefinedMetric
from studyloom.text import name_error

if TYPE_CHECKING:  # `studyloom status` needs the names of metrics, and would wait for these imports
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Direction = Literal["maximize", "minimize"]
DIRECTIONS = ("maximize", "minimize")
Score = Callable[["Tensor", "Tensor"], Any]
ScoreOfClass = Callable[["NDArray[np.bool_]", "NDArray[np.float64]"], float]
COSTS = ("parameters", "flops")  # costs of a network, which are minimized and need no training
ANYTHING = (-math.inf, math.inf)  # the bounds of a metric that may have any value


@dataclass(frozen=True)
class ObjectiveValue:
    """A value of a trial that the study optimizes, such as accuracy or parameters."""

    name: str
    direction: Direction

    @property
    def sign(self) -> int:
        """The factor 1 or -1 by which values are multiplied, so that larger ones are better."""
        if self.direction == "maximize":
            return 1
        return -1


@dataclass(frozen=True)
class Metric(ObjectiveValue):
    """A score of outputs against targets.

    Args:
        function: maps raw outputs (n, k), and targets that are classes (n,) or numbers (n, k), to a
            number, or to a tensor of one number.
        targets: the targets that the metric is for, "classes" or "numbers"; None for both.
        scale: the axis on which its values are plotted: "unit" by their distance to 1, "factors" on
            a logarithmic axis, "plain" on a linear one.
        bounds: the least and the greatest value that the metric can have.
    """

    function: Score
    targets: str | None = None
    scale: str = "plain"
    bounds: tuple[float, float] = ANYTHING

    def can_be(self, value: float) -> bool:
        """Returns whether a value is within the bounds."""
        return self.bounds[0] <= value <= self.bounds[1]

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """Computes the value of outputs (n, k), and of targets (n,) or (n, k) on their device.

        Raises:
            UndefinedMetric: the value is not a finite number, or the function raised TypeError or
                ValueError.
        """
        key = f"objective.metric={self.name}"
        if outputs.device.type == "mps":  # Apple's GPU has no float64
            outputs = outputs.cpu()
            targets = targets.cpu()
        try:
            value = self.function(outputs, targets)
            if hasattr(value, "item"):  # a tensor or an array of one number
                number = float(value.item())
            else:
                number = float(value)
        except UndefinedMetric as error:
            raise UndefinedMetric(f"{key}: {error}") from None
        except (TypeError, ValueError) as error:
            raise UndefinedMetric(f"{key}: {name_error(error)}") from error
        is_text = isinstance(value, str)  # such as "0.5", which `float` reads
        if is_text or not math.isfinite(number):
            raise UndefinedMetric(
                f"{key}: must be a finite number; got {value!r} for {len(targets)} examples"
            )
        return number


def accuracy(outputs: Tensor, classes: Tensor) -> Tensor:
    """Returns the share of examples, or of pixels, whose largest output is that of their class."""
    correct = _is_correct(outputs, classes)
    return correct.double().sum() / correct.numel()


def cross_entropy(outputs: Tensor, classes: Tensor) -> Tensor:
    """Returns the mean negative log-likelihood of the true classes."""
    from torch.nn import functional

    return functional.cross_entropy(outputs, classes)


def mse(outputs: Tensor, numbers: Tensor) -> Tensor:
    """Returns the mean squared error."""
    from torch.nn import functional

    return functional.mse_loss(outputs.reshape(numbers.shape), numbers)


def rmse(outputs: Tensor, numbers: Tensor) -> Tensor:
    """Returns the root of the mean squared error."""
    return mse(outputs, numbers).sqrt()


def mae(outputs: Tensor, numbers: Tensor) -> Tensor:
    """Returns the mean absolute error."""
    from torch.nn import functional

    return functional.l1_loss(outputs.reshape(numbers.shape), numbers)


def r2(outputs: Tensor, numbers: Tensor) -> float:
    """Returns the share of the targets' variance that is explained, as a mean over outputs."""
    from sklearn.metrics import r2_score  # type: ignore[import-untyped]  # 0.7 s to import

    return float(r2_score(numbers.cpu().numpy(), outputs.cpu().numpy()))


def balanced_accuracy(outputs: Tensor, classes: Tensor) -> float:
    """Returns the recall of each class that has examples, as a mean over classes.

    A class without examples has no recall. It is left out even if it is predicted.
    """
    from sklearn.metrics import recall_score

    true_classes = classes.cpu().numpy()
    predicted_classes = outputs.argmax(dim=1).cpu().numpy()
    present_classes = list(set(true_classes.tolist()))
    return float(
        recall_score(true_classes, predicted_classes, labels=present_classes, average="macro")
    )


def f1_macro(outputs: Tensor, classes: Tensor) -> float:
    """Returns the harmonic mean of precision and recall, as a mean over classes."""
    from sklearn.metrics import f1_score

    true_classes = classes.cpu().numpy()
    predicted_classes = outputs.argmax(dim=1).cpu().numpy()
    return float(f1_score(true_classes, predicted_classes, average="macro", zero_division=0.0))


def roc_auc(outputs: Tensor, classes: Tensor) -> float:
    """Returns the area under the ROC curve of class 1.

    If there are more than two classes, it is the mean of the areas of each against the others.
    """
    from sklearn.metrics import roc_auc_score

    return _average_over_classes(roc_auc_score, outputs, classes)


def average_precision(outputs: Tensor, classes: Tensor) -> float:
    """Returns the area under the curve of precision over recall of class 1.

    If there are more than two classes, it is the mean of the areas of each against the others.
    """
    from sklearn.metrics import average_precision_score

    return _average_over_classes(average_precision_score, outputs, classes)


def example_scores(metric: Metric, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Returns the contribution of each example to a metric that is a mean over examples.

    Args:
        metric: the metric.
        outputs: the raw outputs of a network, (n, k) or (n, k, …) with a class for each pixel.
        targets: (n,), (n, …) or (n, k).

    Returns:
        Float64 (n,), whose mean is the value of the metric; None for a metric that is not a mean.
    """
    from torch.nn import functional

    if metric.function is accuracy:
        scores = _is_correct(outputs, targets)
    elif metric.function is cross_entropy:
        scores = functional.cross_entropy(outputs, targets, reduction="none")
    elif metric.function is mse:
        scores = (outputs.reshape(targets.shape) - targets).double().square()
    elif metric.function is mae:
        scores = (outputs.reshape(targets.shape) - targets).double().abs()
    else:
        return None
    scores_by_example = scores.double().reshape(len(targets), -1)  # (n, pixels or outputs)
    return scores_by_example.mean(dim=1)


def _is_correct(outputs: Tensor, classes: Tensor) -> Tensor:
    """Returns for each example or pixel whether its largest output is that of its class."""
    predicted = outputs.argmax(dim=1)
    return predicted == classes.reshape(predicted.shape)


def _average_over_classes(score: ScoreOfClass, outputs: Tensor, classes: Tensor) -> float:
    """Returns the mean score of the classes, each against all others; of two, that of class 1.

    Args:
        score: maps whether each example is of a class, (n,), and the class's log-odds, (n,), to a
            number. Only the order of the log-odds matters.
        outputs: raw outputs, (n, k).
        classes: the class of each example, (n,).

    Raises:
        UndefinedMetric: there is no example of a class.
    """
    example_counts = classes.bincount(minlength=outputs.shape[1])  # by class
    absent_classes = (example_counts == 0).nonzero().flatten().tolist()
    if absent_classes:
        raise UndefinedMetric(
            f"needs examples of every class; of {len(classes)} none is of class {absent_classes[0]}"
        )
    true_classes = classes.cpu().numpy()
    log_odds = _compute_log_odds(outputs.double()).cpu().numpy()
    class_count = log_odds.shape[1]
    if class_count == 2:
        return float(score(true_classes == 1, log_odds[:, 1]))
    total = sum(score(true_classes == label, log_odds[:, label]) for label in range(class_count))
    return float(total / class_count)


def _compute_log_odds(outputs: Tensor) -> Tensor:
    """Returns the log-odds, log(p / (1 - p)), of the probability p of each class.

    Examples have the same order by the log-odds of a class as by its probability, but probabilities
    would lose it: if the outputs differ by more than 37, they are rounded to 1.

    Args:
        outputs: raw outputs, float64 (n, k).

    Returns:
        Float64 (n, k).
    """
    if outputs.shape[1] == 2:
        # The log-odds of one of two classes are its output less that of the other.
        return outputs - outputs.flip(1)
    # The likeliest class may have p = 1 after rounding. Its log-odds are computed without p, as its
    # output less the logarithm of the summed exponentials of all others.
    top_class = outputs.argmax(dim=1, keepdim=True)  # (n, 1)
    other_outputs = outputs.scatter(1, top_class, -math.inf)
    log_odds_of_top = outputs.gather(1, top_class) - other_outputs.logsumexp(dim=1, keepdim=True)
    # Any other class has p of at most a half, so that log(1 - p) is exact.
    log_p = outputs.log_softmax(dim=1)
    log_not_p = log_p.exp().neg().log1p()
    log_odds = log_p - log_not_p
    return log_odds.scatter(1, top_class, log_odds_of_top)


UNIT = (0.0, 1.0)
NOT_NEGATIVE = (0.0, math.inf)
METRICS = {
    metric.name: metric
    for metric in (
        # Their name, direction, function, targets, scale and bounds.
        Metric("accuracy", "maximize", accuracy, "classes", "unit", UNIT),
        Metric("balanced_accuracy", "maximize", balanced_accuracy, "classes", "unit", UNIT),
        Metric("f1_macro", "maximize", f1_macro, "classes", "unit", UNIT),
        Metric("roc_auc", "maximize", roc_auc, "classes", "unit", UNIT),
        Metric("average_precision", "maximize", average_precision, "classes", "unit", UNIT),
        Metric("cross_entropy", "minimize", cross_entropy, "classes", "factors", NOT_NEGATIVE),
        Metric("rmse", "minimize", rmse, "numbers", "factors", NOT_NEGATIVE),
        Metric("mse", "minimize", mse, "numbers", "factors", NOT_NEGATIVE),
        Metric("mae", "minimize", mae, "numbers", "factors", NOT_NEGATIVE),
        Metric("r2", "maximize", r2, "numbers", "unit", (-math.inf, 1.0)),
    )
}
ACCURACY = METRICS["accuracy"]


def ideal_of(objective: ObjectiveValue) -> float | None:
    """Returns the best value that an objective can have, times its sign, so that more is better.

    It is 1.0 for accuracy, and 0.0 for mse. It is None for an objective that is not one of METRICS,
    or has another direction than the metric of its name.
    """
    metric = METRICS.get(objective.name)
    if metric is None or metric.sign != objective.sign:
        return None
    return max(objective.sign * bound for bound in metric.bounds)
