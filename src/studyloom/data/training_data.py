"""The data of a study definition: its source, training set and folds, shared between workers.

A command stores a large training set in a file without a name, and its workers map the file into
memory, so that they share one copy. The file disappears when the last of these processes ends, even
if it is killed. If a process writes to the tensors, only its own copy changes. Outside Linux no
process can open such a file of another one: each worker loads its own copy.
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

# A smaller training set is not shared: a worker loads 64 MB in 0.05 s.
FEWEST_SHARED_BYTES = 64 * 2**20

# The errors that PyTorch raises for a full disk, a file that is gone, or values it does not read.
FILE_ERRORS = (OSError, RuntimeError, UnpicklingError)

log = logging.getLogger(__name__)

# The file that this process shares: its descriptor, by the key of the data. It has at most one.
_shared_files: dict[str, int] = {}


@dataclass(frozen=True)
class TrainingData:
    """The data on which networks are trained and validated; empty if a loop loads its own.

    Args:
        source: the source that the section `data` names, such as a `Table`.
        split: its training set.
        folds: the folds of the training set.
    """

    source: DataSource | None = None
    split: Part | None = None
    folds: Folds = ()

    @property
    def digest(self) -> str:
        """The string that identifies the training set; "" if there is none."""
        if self.split is None:
            return ""
        return self.split.digest

    @property
    def network_kwargs(self) -> dict[str, Any]:
        """The shape of the inputs and the number of outputs, as networks take them."""
        if self.split is None:
            return {}
        return {"shape": self.split.shape, "outputs": self.split.outputs}

    @property
    def device(self) -> torch.device:
        """The device of the training set."""
        if self.split is None:
            return torch.device("cpu")
        return self.split.device

    @property
    def has_test(self) -> bool:
        """True if there is a test set, as far as is known without loading it."""
        return self.source is not None and self.source.has_test

    def test(self) -> Part:
        """Loads the test set."""
        assert self.source is not None
        return self.source.test()

    def share(self, key: str) -> "TrainingData":
        """Returns a copy whose training set is shared with workers, if it is large enough.

        Args:
            key: identifies the data; a worker finds the training set by it.
        """
        if self.split is None:
            return self
        return replace(self, split=share_split(self.split, key))

    def to(self, device: torch.device) -> "TrainingData":
        """Returns a copy whose training set is on a device."""
        if self.split is None:
            return self
        return replace(self, split=self.split.to(device))


def share_split(split: Part, key: str) -> Part:
    """Shares a large training set with the workers of this process.

    Args:
        split: the training set.
        key: identifies the data; a worker finds the training set by it.

    Returns:
        The training set, mapped from a file. It is unchanged if it is small, mapped already, or too
        large for the temporary folder.
    """
    if not LINUX or type(split) is not Split:
        return split
    if split.mapped or split.device.type != "cpu":
        return split
    tensors = (split.inputs, split.targets, *split.references.values())
    size = sum(tensor.nbytes for tensor in tensors)
    if size < FEWEST_SHARED_BYTES:
        return split
    try:
        with tempfile.TemporaryFile(prefix="studyloom-") as file:
            torch.save(replace(split, mapped=True), file)
            file.flush()
            mapped_split = _map_split(descriptor_path(file.fileno()))
            # The file has no name, and exists as long as a process has it open: here by a second
            # descriptor, since the first is closed with `file`.
            descriptor = os.dup(file.fileno())
    except FILE_ERRORS as error:
        log.warning(
            "the training set (%.1f GB) is not shared between workers; each loads it: %s",
            size / 1e9,
            error,
        )
        return split
    _shared_files[key] = descriptor
    return mapped_split


def load_shared(train: Callable[[], Part], key: str) -> Part:
    """Returns the training set that the launcher shares, or else loads it.

    Args:
        train: loads the training set.
        key: identifies the data. A training set that is shared under another key is that of another
            study.
    """
    # This process may itself have shared the data of an earlier study.
    for descriptor in _shared_files.values():
        os.close(descriptor)
    _shared_files.clear()
    # The variable is "KEY:PATH". It is removed, since processes of this one may run other studies.
    variable = SHARED.take() or ""
    shared_key, _, path = variable.partition(":")
    if path and shared_key == key:
        with suppress(*FILE_ERRORS):  # the launcher has ended, and its file is gone
            return _map_split(path)
    return train()


def shared_variables() -> dict[str, str]:
    """Returns the environment variable by which a worker finds the shared training set, if any."""
    if not _shared_files:
        return {}
    key, descriptor = next(iter(_shared_files.items()))
    return {SHARED.name: f"{key}:{descriptor_path(descriptor)}"}


def _map_split(path: str) -> Split:
    """Loads a split from a file, into which its tensors are mapped."""
    with torch.serialization.safe_globals([Split, Tokens]):
        split: Split = torch.load(path, mmap=True, weights_only=True)
    return split
