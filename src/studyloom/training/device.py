"""The device that this process trains on."""

import torch

from studyloom.environment import DEVICE
from studyloom.errors import ConfigError


def training_device() -> torch.device:
    """Returns the first GPU of this process, or the CPU if it has none.

    The GPU of a Mac is used only if the variable STUDYLOOM_DEVICE names it.
    """
    if DEVICE.get():
        return torch.device("mps")
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("cpu")


def check_device() -> None:
    """Raises ConfigError if the device that the environment names cannot be used."""
    name = DEVICE.name
    value = DEVICE.get()
    if not value:
        return
    fix = "unset it to train on a GPU of CUDA, or else on the CPU"
    if value != "mps":
        raise ConfigError([f"{name} must be mps, or unset; got {value!r}; {fix}"])
    if not torch.backends.mps.is_available():
        raise ConfigError([f"{name}=mps: PyTorch finds no GPU of a Mac here; {fix}"])
