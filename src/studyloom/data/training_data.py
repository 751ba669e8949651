"""The data of a study definition: its source, training set and folds, shared between workers.

A command keeps a large training set in an unnamed file, and its workers map it: they share
one copy. Nothing of it is left once the last process ends, however that happens. What a process
writes to its tensors becomes that process's own. Outside Linux no process can open such a file of
another one: each worker loads its own copy.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pickle import UnpicklingError
from typing import Any

import torch

from studyloom.data.data_source import DataSource
from studyloom.data.examples import Part
from studyloom.data.split import Folds, Split, Tokens
from studyloom.environment import SHARED
from studyloom.processes import LINUX, descriptor_path

# Bytes from which on a part is shared. To load 64 MB again takes a worker 0.05 s.
LARGE = 64 * 2**20

# What PyTorch raises for a full disk, a file that is gone, or values that it does not read.
FAILURES = (OSError, RuntimeError, UnpicklingError)

log = logging.getLogger(__name__)

_held: dict[str, int] = {}  # what this process shares: the key of the data, and its file


@dataclass(frozen=True)
class TrainingData:
    """The data that networks are trained and validated on; empty if the objective is a function."""

    source: DataSource | None = None  # what the config names under `data`, such as `Table`
    split: Part | None = None  # its training set
    folds: Folds = ()

    @property
    def digest(self) -> str:
        return "" if self.split is None else self.split.digest

    @property
    def network_kwargs(self) -> dict[str, Any]:
        """The shape of the inputs and the number of outputs, as networks take them."""
        split = self.split
        return {} if split is None else {"shape": split.shape, "outputs": split.outputs}

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.split is None else self.split.device

    @property
    def has_test(self) -> bool:
        """Whether there is a test set, as far as is known without loading it."""
        return self.source is not None and self.source.has_test

    def test(self) -> Part:
        assert self.source is not None
        return self.source.test()

    def shared(self, key: str) -> "TrainingData":
        return self if self.split is None else replace(self, split=share(self.split, key))

    def to(self, device: torch.device) -> "TrainingData":
        return self if self.split is None else replace(self, split=self.split.to(device))


def share(split: Part, key: str) -> Part:
    """Shares a large training set with the workers of this process; returns it mapped from a file.

    A small one, one already in a file, or one too large for the temporary folder is unchanged.
    """
    if not LINUX or type(split) is not Split or split.mapped or split.device.type != "cpu":
        return split
    tensors = (split.inputs, split.targets, *split.references.values())
    if (size := sum(tensor.nbytes for tensor in tensors)) < LARGE:
        return split
    try:
        with tempfile.TemporaryFile(prefix="studyloom-") as file:
            torch.save(replace(split, mapped=True), file)
            file.flush()
            shared = _open(descriptor_path(file.fileno()))
            descriptor = os.dup(file.fileno())
    except FAILURES as error:
        log.warning(
            "the training set (%.1f GB) is not shared between workers; each loads it: %s",
            size / 1e9,
            error,
        )
        return split
    _held[key] = descriptor
    return shared


def load_shared(train: Callable[[], Part], key: str) -> Part:
    """Returns the training set that the launcher has shared under the same key; else loads it."""
    while _held:
        os.close(_held.popitem()[1])
    # Removed, since a worker may run another study, of other data.
    known, _, place = (SHARED.take() or "").partition(":")
    if place and known == key:
        with suppress(*FAILURES):  # its launcher has ended
            return _open(place)
    return train()


def shared_variables() -> dict[str, str]:
    """Returns the variables by which a worker of this process finds the part that it has shared."""
    for key, descriptor in _held.items():
        return {SHARED.name: f"{key}:{descriptor_path(descriptor)}"}
    return {}


def _open(place: str) -> Split:
    with torch.serialization.safe_globals([Split, Tokens]):
        split: Split = torch.load(place, mmap=True, weights_only=True)
    return split
