"""The random state of Python, NumPy and PyTorch as plain values, and code with its own seed.

A state is a dict of tensors and plain values, which a checkpoint can hold. The generators of Python
and NumPy are the *host* generators here: they have no device.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from studyloom.data import examples

RandomState = dict[str, Any]  # `torch.load(weights_only=True)` can read it


def get_host_state() -> RandomState:
    """Returns the current state of Python's and NumPy's global generators."""
    return _pack_host_state(random.getstate(), np.random.get_state(legacy=True))


def make_host_state(seed: int) -> RandomState:
    """Returns the state of Python's and NumPy's generators after they were seeded."""
    python = random.Random(seed)
    numpy = np.random.RandomState(seed % 2**32)  # NumPy takes seeds of 32 bits
    return _pack_host_state(python.getstate(), numpy.get_state(legacy=True))


def _pack_host_state(python_state: tuple[Any, ...], numpy_state: Any) -> RandomState:
    """Returns the states of both generators as one dict; NumPy's array of keys becomes a tensor.

    A tensor of int64: the keys are integers of 32 bits without a sign, which PyTorch hardly
    supports.
    """
    kind, keys, *position = numpy_state
    tensor = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return {"python": python_state, "numpy": (kind, tensor, *position)}


def set_host_state(state: RandomState) -> None:
    """Sets Python's and NumPy's global generators to a state."""
    version, python_keys, next_normal = state["python"]
    random.setstate((version, tuple(python_keys), next_normal))
    kind, tensor, *position = state["numpy"]
    numpy_keys = tensor.numpy().astype(np.uint32)
    np.random.set_state((kind, numpy_keys, *position))


def get_random_state() -> RandomState:
    """Returns the current state of all generators, those of every GPU included."""
    state = get_host_state()
    state["torch"] = torch.get_rng_state()
    state["cuda"] = []
    state["mps"] = []
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = [torch.mps.get_rng_state()]
    return state


def set_random_state(state: RandomState) -> None:
    """Sets all generators to a state; the state of a GPU that this host lacks is ignored."""
    set_host_state(state)
    torch.set_rng_state(state["torch"])
    device_count = torch.cuda.device_count()
    for device, device_state in enumerate(state["cuda"][:device_count]):
        torch.cuda.set_rng_state(device_state, device)
    if torch.backends.mps.is_available():
        for device_state in state.get("mps", []):  # an earlier version saved no such state
            torch.mps.set_rng_state(device_state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and PyTorch for the body, on GPUs too, and restores their states."""
    # Without a list of devices, PyTorch warns where there are several.
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices), examples.seeded(seed):
        torch.cuda.manual_seed_all(seed)
        yield
