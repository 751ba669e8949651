"""What a question is trained on, passed around as one: the source, its training part, the folds."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from studyloom.data.folds import Folds
from studyloom.data.shared import share
from studyloom.data.split import Split


@dataclass(frozen=True)
class TrainingData:
    """The data that networks are trained on and judged by; empty if the objective is a function.

    Attributes:
        source: what the config names under `data`, such as `Embedded` or `Table`.
        split: its training part.
        folds: training and validation indices into the split.
    """

    source: Any = None
    split: Split | None = None
    folds: Folds = ()

    @property
    def digest(self) -> str:
        return "" if self.split is None else self.split.digest

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.split is None else self.split.inputs.device

    def test(self) -> Split:
        """Loads the test part."""
        split: Split = self.source.test()
        return split

    def shared(self, key: str) -> "TrainingData":
        """Returns this with its training part in one copy for all processes of the host.

        Args:
            key: what the part follows from.
        """
        return self if self.split is None else replace(self, split=share(self.split, key))

    def to(self, device: torch.device) -> "TrainingData":
        return self if self.split is None else replace(self, split=self.split.to(device))
