"""What a network's outputs are worth against the targets: a number, and whether more of it is better.

What PyTorch has is computed on the device. The others are scikit-learn's: torchmetrics would compute them on the device
too, but takes torchvision and PyTorch's compiler along, 3 s of every worker's start where scikit-learn takes 0.7 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from studyloom.errors import UndefinedMetric

if TYPE_CHECKING:  # whoever only asks for names, such as `studyloom status`, needs no torch
    from torch import Tensor

Direction = Literal["maximize", "minimize"]
DIRECTIONS = ("maximize", "minimize")
Score = Callable[["Tensor", "Tensor"], Any]
# What a network costs. It is known before training, and less of it is better.
COSTS = ("parameters", "flops", "latency_ms")


@dataclass(frozen=True)
class Goal:
    """A value that a trial has, by name, and which way it is better: maximize or minimize."""

    name: str
    direction: Direction

    @property
    def sign(self) -> int:
        """1 or -1: of values times this, more is better."""
        return 1 if self.direction == "maximize" else -1


@dataclass(frozen=True)
class Metric(Goal):
    """A score by name. function maps raw outputs (n, k) and targets, classes (n,) or numbers (n, k), to a number.

    targets: classes or numbers, whichever it is for; None for both. scale: how its values are drawn: by their distance
    to 1 (unit), by factors (factors), or as they are (plain).
    """

    function: Score
    targets: str | None = None
    scale: str = "plain"

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """The value for outputs (n, k) in float32, as the network made them, on the targets' device.

        Raises:
            Undefined: it is no finite number.
        """
        name = f"objective.metric={self.name}"
        try:
            value = self.function(outputs, targets)
            number = float(value.item() if hasattr(value, "item") else value)
        except UndefinedMetric as error:
            raise UndefinedMetric(f"{name}: {error}") from None
        except (TypeError, ValueError) as error:
            raise UndefinedMetric(
                f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if isinstance(value, str) or not math.isfinite(number):
            raise UndefinedMetric(
                f"{name}: is {value!r} for {len(targets)} examples: a number is wanted"
            )
        return number


def accuracy(outputs: Tensor, classes: Tensor) -> Tensor:
    """The fraction of examples whose largest output is that of their class."""
    return (outputs.argmax(1) == classes).double().sum() / len(classes)


def cross_entropy(outputs: Tensor, classes: Tensor) -> Tensor:
    """The mean negative log-likelihood of the true classes."""
    from torch.nn import functional

    return functional.cross_entropy(outputs, classes)


def mse(outputs: Tensor, numbers: Tensor) -> Tensor:
    """The mean squared error."""
    from torch.nn import functional

    return functional.mse_loss(outputs, numbers)


def rmse(outputs: Tensor, numbers: Tensor) -> Tensor:
    """The root of the mean squared error."""
    return mse(outputs, numbers).sqrt()


def mae(outputs: Tensor, numbers: Tensor) -> Tensor:
    """The mean absolute error."""
    from torch.nn import functional

    return functional.l1_loss(outputs, numbers)


def r2(outputs: Tensor, numbers: Tensor) -> Any:
    """The share of the targets' variance that is explained, a mean over outputs."""
    from sklearn.metrics import r2_score  # type: ignore[import-untyped]  # 0.7 s to import

    return r2_score(numbers.cpu().numpy(), outputs.cpu().numpy())


def balanced_accuracy(outputs: Tensor, classes: Tensor) -> Any:
    """The mean over classes of the fraction that is found."""
    from sklearn.metrics import recall_score

    return recall_score(*_predicted(outputs, classes), average="macro", zero_division=0.0)


def f1_macro(outputs: Tensor, classes: Tensor) -> Any:
    """The mean over classes of the harmonic mean of precision and recall."""
    from sklearn.metrics import f1_score

    return f1_score(*_predicted(outputs, classes), average="macro", zero_division=0.0)


def roc_auc(outputs: Tensor, classes: Tensor) -> Any:
    """The area under the ROC curve of two classes; of more the mean over each against the rest.

    Raises:
        Undefined: a class is absent.
    """
    from sklearn.metrics import roc_auc_score

    found, probabilities = _probable(outputs, classes)
    if outputs.shape[1] == 2:
        return roc_auc_score(found, probabilities[:, 1])
    return roc_auc_score(found, probabilities, multi_class="ovr", labels=[*range(outputs.shape[1])])


def average_precision(outputs: Tensor, classes: Tensor) -> Any:
    """The area under the curve of precision over recall of class 1; of more than two the mean over all.

    Raises:
        Undefined: a class is absent.
    """
    from sklearn.metrics import average_precision_score
    from torch.nn import functional

    found, probabilities = _probable(outputs, classes)
    if outputs.shape[1] == 2:
        return average_precision_score(found, probabilities[:, 1])
    one_hot = functional.one_hot(classes.cpu(), outputs.shape[1])
    return average_precision_score(one_hot.numpy(), probabilities)


def _predicted(outputs: Tensor, classes: Tensor) -> tuple[Any, Any]:
    return classes.cpu().numpy(), outputs.argmax(1).cpu().numpy()


def _probable(outputs: Tensor, classes: Tensor) -> tuple[Any, Any]:
    counts = classes.bincount(minlength=outputs.shape[1])
    if absent := (counts == 0).nonzero().flatten().tolist():
        raise UndefinedMetric(
            f"of {len(classes)} examples none is of class {absent[0]}, and it needs some of each"
        )
    return classes.cpu().numpy(), outputs.double().softmax(1).cpu().numpy()


def _known(direction: Direction, targets: str, scale: str, *functions: Any) -> list[Metric]:
    return [Metric(each.__name__, direction, each, targets, scale) for each in functions]


ACCURACY = Metric("accuracy", "maximize", accuracy, "classes", "unit")
METRICS = {
    metric.name: metric
    for metric in (
        ACCURACY,
        *_known(
            "maximize", "classes", "unit", balanced_accuracy, f1_macro, roc_auc, average_precision
        ),
        *_known("minimize", "classes", "factors", cross_entropy),
        *_known("minimize", "numbers", "factors", rmse, mse, mae),
        *_known("maximize", "numbers", "unit", r2),
    )
}
