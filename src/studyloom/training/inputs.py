"""Inputs that are whole numbers: the type in which the batches of a network have them."""

from copy import deepcopy

import torch
from torch import nn

from studyloom.data.split import Split
from studyloom.errors import DataError
from studyloom.training.job import Job


def batch_dtype(job: Job, network: nn.Module, split: Split) -> torch.dtype:
    """Returns the type in which a network gets inputs, which are stored as `load` returned them.

    Floats are float32 already. Of whole numbers two examples show what the network takes: bytes,
    which are mostly pixels, are tried as float32 first, and then as int64; others first as whole
    numbers, which an embedding needs, and then as float32, which a linear layer needs. For a step
    of the user's own it is `unseen_dtype`.

    Args:
        job: whose network it is.
        network: on any device; it stays as it is, and so does PyTorch's random state.
        split: the examples.

    Raises:
        DataError: it takes neither.
    """
    stored = split.inputs.dtype
    if stored.is_floating_point or job.step is not None or job.evaluate is not None:
        return unseen_dtype(split)
    whole = stored if stored in (torch.int32, torch.int64) else torch.int64
    reasons = []
    for dtype in (torch.float32, whole) if stored == torch.uint8 else (whole, torch.float32):
        if (reason := _refusal(network, split, dtype)) is None:
            return dtype
        reasons.append(f"as {_name(dtype)}: {reason}")
    raise DataError(
        f"the inputs are {_name(stored)}, and the network takes them neither "
        f"{' nor '.join(reasons)}; return floats from load, or begin the network with an "
        "nn.Embedding"
    )


def unseen_dtype(split: Split) -> torch.dtype:
    """Returns the type in which batches have inputs if no network is tried: that of the split.

    Only bytes, which are mostly pixels, become float32.
    """
    stored = split.inputs.dtype
    return torch.float32 if stored == torch.uint8 else stored


def _refusal(network: nn.Module, split: Split, dtype: torch.dtype) -> str | None:
    """Returns why a network does not take inputs of a type; None if it does."""
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    inputs = torch.zeros(2, *split.shape, dtype=dtype, device=device)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            deepcopy(network).eval()(inputs)
    except Exception as error:  # of a network of the user's own
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
