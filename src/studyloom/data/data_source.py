"""The base class of data sources, which the section `data` of a config names."""

from abc import ABC, abstractmethod

from studyloom.data.examples import Part
from studyloom.data.transform import Transform


class DataSource(ABC):
    """A source of examples. A custom source is a subclass, whose keys are in the section `data`.

    Attributes:
        validation: the number of training examples that are held out as the validation set; None
            if the source comes with a validation set.
        transform: how `studyloom predict` converts the content of a file to an input; None: it
            reads no such files.
    """

    validation: int | None
    transform: Transform | None = None

    @property
    def has_test(self) -> bool:
        """True if there is a test set, as far as is known without loading it."""
        return True

    @abstractmethod
    def train(self) -> Part:
        """Returns the training set, from which the validation set is held out."""

    @abstractmethod
    def test(self) -> Part:
        """Returns the test set. It is loaded once the winner is chosen."""
