"""The device that this process trains on."""

import os
import re

import torch

from studyloom.environment import DEVICE
from studyloom.errors import ConfigError

# The beginning of CUDA_VISIBLE_DEVICES if it names a GPU: by its number, or by its name or that of
# a slice of it. "" and "-1" name none.
GPU_NAMES = re.compile(r"\d|GPU-|MIG-")


def training_device() -> torch.device:
    """Returns the first GPU of this process, or the CPU if it has none.

    The GPU of a Mac is used only if the variable STUDYLOOM_DEVICE names it.
    """
    if DEVICE.get():
        return torch.device("mps")
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("cpu")


def describe_unused_accelerator() -> str | None:
    """Describes an accelerator of this machine on which trials do not train; None without one."""
    missing_gpu = describe_missing_gpu()
    if missing_gpu is not None:
        return missing_gpu
    if not torch.accelerator.is_available():
        return None
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type == training_device().type:
        return None
    if accelerator.type == "mps":
        return f"the GPU of this Mac is not used; {DEVICE.name}=mps trains on it"
    return (
        f"studyloom does not support the accelerator {accelerator.type} of this machine; networks, "
        "and loops that use run.device, train on the CPU"
    )


def describe_missing_gpu() -> str | None:
    """Describes the GPUs that CUDA_VISIBLE_DEVICES names, if PyTorch finds none of them.

    CUDA ignores a name that it does not know, such as a misspelled MIG slice, and all names after
    it. Then nothing but a slow training would show that it is on the CPU.

    Returns:
        None if PyTorch finds a GPU, or the variable names none.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not GPU_NAMES.match(names) or torch.cuda.is_available():
        return None
    return (
        f"CUDA_VISIBLE_DEVICES={names}: PyTorch finds no such GPU; networks, and loops that use "
        "run.device, train on the CPU"
    )


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
