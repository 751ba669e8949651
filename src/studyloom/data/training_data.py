"""TODO data.training_data."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from studyloom.data.folds import Folds
from studyloom.data.split import Split


@dataclass(frozen=True)
class TrainingData:
    """What networks are trained on and judged by; a function of one's own has none of ours."""

    source: Any = None
    split: Split | None = None
    folds: Folds = ()

    @property
    def digest(self) -> str:
        return "" if self.split is None else self.split.digest

    def test(self) -> Split:
        """Opens the test part."""
        split: Split = self.source.test()
        return split

    def to(self, device: torch.device) -> "TrainingData":
        return self if self.split is None else replace(self, split=self.split.to(device))
