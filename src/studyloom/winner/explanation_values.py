"""Explanations of a winner's predictions on the test set, as data.

The command that tests a winner hands down the function that makes them, and the report shows them
in one section; in between they are one value.
"""

from dataclasses import dataclass

from studyloom.averages import Interval


@dataclass(frozen=True)
class Bin:
    """The predictions within a range of confidence.

    Attributes:
        low: the lower end of the range; `high` is the upper one.
        count: the number of predictions.
        confidence: the mean confidence.
        interval: the 95% interval of the accuracy.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float
    interval: Interval


@dataclass(frozen=True)
class Calibration:
    """The confidence of a classifier, compared with its accuracy.

    Attributes:
        error: the mean distance between confidence and accuracy over the bins, weighted by count.
        confidence: the mean confidence.
    """

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
    """The metric on each group of examples, or on each class.

    Attributes:
        grouped_by: "group" or "class".
        omitted: how many groups or classes are left out.
    """

    grouped_by: str
    omitted: int
    rows: tuple[GroupMean, ...]


@dataclass(frozen=True)
class Column:
    """The loss in the metric when one column of a table is shuffled.

    Attributes:
        worse_by: how much worse the metric gets, on average over several shuffles.
    """

    name: str
    worse_by: float
    interval: Interval


@dataclass(frozen=True)
class Occlusion:
    """A misclassified image; the parts that misled the network are red.

    Attributes:
        index: the position of the image in the test set.
        image: a PNG in a data URL.
        largest_loss: the largest loss of confidence.
    """

    index: int
    label: int
    predicted: int
    image: str
    largest_loss: float


@dataclass(frozen=True)
class ExplainedText:
    """A misclassified text of the test set.

    Attributes:
        index: the position of the text in the test set.
        probabilities: the probability of the true class, and of the predicted one.
        words: the words that were examined.
        changes: how much each word's absence lowers the margin.
        margin: the log of the ratio of the predicted class's probability to the true class's.
        unexamined_words: how many further words were not examined.
    """

    index: int
    label: int
    predicted: int
    probabilities: tuple[float, float]
    margin: float
    words: tuple[str, ...]
    changes: tuple[float, ...]
    unexamined_words: int = 0


@dataclass(frozen=True)
class Explanations:
    """All explanations of a winner.

    A field is empty if it does not apply to the data, or could not be made.

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
