"""Explanations of a winner's predictions on the test set, as data.

The command that tests a winner hands down the function that makes them, and the report shows them
in one section; in between they are one value.
"""

from dataclasses import dataclass

from studyloom.averages import Interval


@dataclass(frozen=True)
class Bin:
    """The predictions within a range of confidence; `interval` is that of their accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float
    interval: Interval


@dataclass(frozen=True)
class Calibration:
    """The confidence of a classifier, and its accuracy."""

    error: float
    confidence: float
    accuracy: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class GroupMean:
    """The mean of the metric over the examples of a group or class."""

    name: str
    count: int
    value: float
    interval: Interval


@dataclass(frozen=True)
class Groups:
    """The metric on each group of examples, or class; `left` is how many are left out."""

    of: str
    left: int
    rows: tuple[GroupMean, ...]


@dataclass(frozen=True)
class Column:
    """How much worse the metric gets when one column is shuffled, over several shuffles."""

    name: str
    worse: float
    interval: Interval


@dataclass(frozen=True)
class Occlusion:
    """A misclassified image with what misled the network in red.

    Attributes:
        image: a PNG in a data URL.
        most: the largest loss of confidence.
    """

    index: int
    label: int
    predicted: int
    image: str
    most: float


@dataclass(frozen=True)
class ExplainedText:
    """A misclassified text of the test set.

    Attributes:
        margin: the log of the ratio of the predicted class's probability to the true class's.
        left: how many further words were not examined.
    """

    index: int
    label: int
    predicted: int
    probabilities: tuple[float, float]
    margin: float
    words: tuple[str, ...]
    changes: tuple[float, ...]
    left: int = 0


@dataclass(frozen=True)
class Explanations:
    """All that explains a winner; empty where it does not apply to the data, or failed.

    Attributes:
        calibration: how confident a classifier is, and how often it is right.
        groups: the metric on each class or group.
        columns: how much the network needs each column of a table.
        occlusions: the parts of images that misled the network.
        texts: the words of texts that misled it.
    """

    calibration: Calibration | None = None
    groups: Groups | None = None
    columns: tuple[Column, ...] = ()
    occlusions: tuple[Occlusion, ...] = ()
    texts: tuple[ExplainedText, ...] = ()
