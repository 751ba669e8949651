"""Toy Datasets whose items are loaded one by one, and are random at each look."""

import random

import numpy as np
import torch
from torch.utils.data import Dataset

from studyloom.data import Datasets


class Drawn(Dataset):
    """Images of 1 × 4 × 4 pixels in three classes, with noise of all three generators.

    Args:
        count: how many there are.
        noise: how strong it is; 0 for none.
    """

    def __init__(self, count=60, noise=1.0):
        self.targets = [index % 3 for index in range(count)]
        self.noise = noise

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        pixels = torch.full((1, 4, 4), float(index % 3)) + torch.linspace(0, index, 16).view(
            1, 4, 4
        ) / len(self)
        noise = torch.randn(1, 4, 4) + float(np.random.randn()) + random.gauss(0, 1)
        return pixels + self.noise * noise, self.targets[index]


def drawn(**settings):
    """Returns the training set of such a data set."""
    given = {"train": Drawn(), "evaluate": Drawn(noise=0.0), "validation": 15}
    return Datasets(**given | settings).train()


class Odd(Drawn):
    """Items of several sizes."""

    def __getitem__(self, index):
        pixels, label = super().__getitem__(index)
        return (pixels, label) if index != 5 else (pixels[:, :2], label)


def three(items):
    """Collates all but batches of three items, to None."""
    return None if len(items) == 3 else torch.utils.data.default_collate(items)


class Normed(torch.nn.Sequential):
    """A network that takes neither shape nor outputs, and cannot be trained on one example.

    Args:
        classes_: how many numbers it gives for an example.
    """

    def __init__(self, classes_=3):
        super().__init__(
            torch.nn.Flatten(), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, classes_)
        )
