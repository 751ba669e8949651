"""The random state of Python, NumPy and PyTorch as plain values, and code with its own seed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from studyloom.data import examples


def host_state(seed: int | None = None) -> dict[str, Any]:
    """Returns the state of Python's and NumPy's generators: now, or as a seed sets it."""
    python: Any = random if seed is None else random.Random(seed)
    numpy: Any = np.random if seed is None else np.random.RandomState(seed % 2**32)
    kind, keys, *rest = numpy.get_state(legacy=True)
    words = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return {"python": python.getstate(), "numpy": (kind, words, *rest)}


def set_host_state(state: dict[str, Any]) -> None:
    """Sets Python's and NumPy's generators to a state."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))


def random_state() -> dict[str, Any]:
    """Returns the state of all generators, as `torch.load(weights_only=True)` can read it."""
    return {
        **host_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Sets all generators to a state, but for GPUs that are not here."""
    set_host_state(state)
    torch.set_rng_state(state["torch"])
    for device, of_device in enumerate(state["cuda"]):
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(of_device, device)
    for of_device in state.get("mps", []) if torch.backends.mps.is_available() else []:
        torch.mps.set_rng_state(of_device)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and PyTorch for the body, on GPUs too, and restores their states."""
    with torch.random.fork_rng(), examples.seeded(seed):
        torch.cuda.manual_seed_all(seed)
        yield
