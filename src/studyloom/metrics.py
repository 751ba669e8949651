"""Metrics: how good outputs are against the targets, in one number, and which way it is better.

Those that PyTorch has are computed on the device. The others are scikit-learn's: torchmetrics
would compute them on the device too, but it imports torchvision and PyTorch's compiler, which takes
3 s of every worker's start where scikit-learn takes 0.7 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from studyloom.errors import UndefinedMetric
from studyloom.text import name_error

if TYPE_CHECKING:  # torch is not imported only for names, as in `studyloom status`
    from torch import Tensor

Direction = Literal["maximize", "minimize"]
DIRECTIONS = ("maximize", "minimize")
Score = Callable[["Tensor", "Tensor"], Any]
COSTS = ("parameters", "flops")  # of a network, known before its training: the less the better
ANYTHING = (-math.inf, math.inf)


@dataclass(frozen=True)
class ObjectiveValue:
    """A value of a trial that the study optimizes, such as accuracy or parameters."""

    name: str
    direction: Direction

    @property
    def sign(self) -> int:
        """1 or -1: a value times this is the better the larger it is."""
        return 1 if self.direction == "maximize" else -1


@dataclass(frozen=True)
class Metric(ObjectiveValue):
    """A score of outputs against targets.

    Args:
        function: maps raw outputs (n, k), and targets that are classes (n,) or numbers (n, k), to a
            number, or to a tensor of one number.
        targets: "classes" or "numbers", which it is for; None for both.
        scale: of the axis on which its values are plotted: "unit" by their distance to 1, "factors"
            on a logarithmic axis, "plain" on a linear one.
        bounds: the least and the greatest value that there can be.
    """

    function: Score
    targets: str | None = None
    scale: str = "plain"
    bounds: tuple[float, float] = ANYTHING

    def can_be(self, value: float) -> bool:
        """Whether a value is within the bounds."""
        return self.bounds[0] <= value <= self.bounds[1]

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """Computes the value of outputs (n, k), and of targets (n,) or (n, k) on their device.

        Raises:
            UndefinedMetric: the value is not a finite number, or the function raised TypeError or
                ValueError.
        """
        name = f"objective.metric={self.name}"
        if outputs.device.type == "mps":  # it has no float64
            outputs, targets = outputs.cpu(), targets.cpu()
        try:
            value = self.function(outputs, targets)
            number = float(value.item() if hasattr(value, "item") else value)
        except UndefinedMetric as error:
            raise UndefinedMetric(f"{name}: {error}") from None
        except (TypeError, ValueError) as error:
            raise UndefinedMetric(f"{name}: {name_error(error)}") from error
        if isinstance(value, str) or not math.isfinite(number):
            raise UndefinedMetric(
                f"{name}: must be a finite number; got {value!r} for {len(targets)} examples"
            )
        return number


def accuracy(outputs: Tensor, classes: Tensor) -> Tensor:
    """Returns the share of examples, or of pixels, whose largest output is that of their class."""
    right = _is_right(outputs, classes)
    return right.double().sum() / right.numel()


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


def r2(outputs: Tensor, numbers: Tensor) -> Any:
    """Returns the share of the targets' variance that is explained, as a mean over outputs."""
    from sklearn.metrics import r2_score  # type: ignore[import-untyped]  # 0.7 s to import

    return r2_score(numbers.cpu().numpy(), outputs.cpu().numpy())


def balanced_accuracy(outputs: Tensor, classes: Tensor) -> Any:
    """Returns the recall of each class that has examples, as a mean over classes."""
    from sklearn.metrics import recall_score

    # Of the classes that there are: one that is absent has no recall, also if it is predicted.
    truth, predicted = _predictions(outputs, classes)
    return recall_score(truth, predicted, labels=[*{*truth.tolist()}], average="macro")


def f1_macro(outputs: Tensor, classes: Tensor) -> Any:
    """Returns the harmonic mean of precision and recall, as a mean over classes."""
    from sklearn.metrics import f1_score

    return f1_score(*_predictions(outputs, classes), average="macro", zero_division=0.0)


def roc_auc(outputs: Tensor, classes: Tensor) -> Any:
    """Returns the area under the ROC curve; of several classes the mean, each against the rest."""
    from sklearn.metrics import roc_auc_score

    return _mean_over_classes(roc_auc_score, outputs, classes)


def average_precision(outputs: Tensor, classes: Tensor) -> Any:
    """Returns the area under the curve of precision over recall of class 1, or the mean of all."""
    from sklearn.metrics import average_precision_score

    return _mean_over_classes(average_precision_score, outputs, classes)


def example_scores(metric: Metric, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Returns the contribution of each example, (n,) in float64; None if the metric is no mean."""
    from torch.nn import functional

    if metric.function is accuracy:
        each = _is_right(outputs, targets)
    elif metric.function is cross_entropy:
        each = functional.cross_entropy(outputs, targets, reduction="none")
    elif metric.function is mse:
        each = (outputs.reshape(targets.shape) - targets).double().square()
    elif metric.function is mae:
        each = (outputs.reshape(targets.shape) - targets).double().abs()
    else:
        return None
    return each.double().reshape(len(targets), -1).mean(1)


def _is_right(outputs: Tensor, classes: Tensor) -> Tensor:
    """Whether the largest output is that of the class, which may be (n,) or (n, 1)."""
    guess = outputs.argmax(1)
    return guess == classes.reshape(guess.shape)


def _predictions(outputs: Tensor, classes: Tensor) -> tuple[Any, Any]:
    """Returns the classes and the predicted classes, as NumPy arrays."""
    return classes.cpu().numpy(), outputs.argmax(1).cpu().numpy()


def _mean_over_classes(score: Any, outputs: Tensor, classes: Tensor) -> Any:
    """Returns the mean of each class's score against the rest; of two classes, that of class 1.

    Raises:
        UndefinedMetric: there is no example of a class.
    """
    counts = classes.bincount(minlength=outputs.shape[1])
    if absent := (counts == 0).nonzero().flatten().tolist():
        raise UndefinedMetric(
            f"needs examples of every class; of {len(classes)} none is of class {absent[0]}"
        )
    # The log-odds are in the order of the probabilities, which are all 1 from a margin of 37 on.
    outputs = outputs.double()
    if outputs.shape[1] == 2:
        odds = outputs - outputs.flip(1)
    else:
        logs = outputs.log_softmax(1)
        top = outputs.argmax(1, keepdim=True)
        others = outputs.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)
        # Of all but the likeliest, which may be as good as certain, 1 - p is at least a half.
        odds = (logs - logs.exp().neg().log1p()).scatter(1, top, outputs.gather(1, top) - others)
    truth, scores = classes.cpu().numpy(), odds.cpu().numpy()
    found = [1] if odds.shape[1] == 2 else range(odds.shape[1])
    return sum(score(truth == label, scores[:, label]) for label in found) / len(found)


def _metrics(
    direction: Direction, targets: str, scale: str, low: float, high: float, *functions: Any
) -> list[Metric]:
    bounds = (low, high)
    return [Metric(each.__name__, direction, each, targets, scale, bounds) for each in functions]


_OF_CLASSES = (accuracy, balanced_accuracy, f1_macro, roc_auc, average_precision)
METRICS = {
    metric.name: metric
    for metric in (
        *_metrics("maximize", "classes", "unit", 0.0, 1.0, *_OF_CLASSES),
        *_metrics("minimize", "classes", "factors", 0.0, math.inf, cross_entropy),
        *_metrics("minimize", "numbers", "factors", 0.0, math.inf, rmse, mse, mae),
        *_metrics("maximize", "numbers", "unit", -math.inf, 1.0, r2),
    )
}
ACCURACY = METRICS["accuracy"]


def ideal_of(objective: ObjectiveValue) -> float | None:
    """Returns the best value that a metric can have, times its sign; None if it is not known."""
    known = METRICS.get(objective.name)
    if known is None or known.sign != objective.sign:
        return None
    return max(objective.sign * bound for bound in known.bounds)
