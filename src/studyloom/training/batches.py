"""The batches of one job: from tensors in memory, or from a Dataset. Nothing else knows which."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from studyloom.data.examples import Examples
from studyloom.data.split import Split
from studyloom.data.training_data import Part
from studyloom.errors import DataError
from studyloom.training.job import Job
from studyloom.training.loading import ExampleBatches
from studyloom.training.ranks import ALONE, Ranks

# On a CPU a convolution's outputs should stay in the cache: 2 000 images a call take up to twice as
# long as 256.
EVALUATION_BATCH = {"cpu": 256, "cuda": 4096}

Batch = tuple[Tensor, Tensor]  # inputs (n, …), targets (n,) or (n, outputs)


class Batches(Protocol):
    """Where the batches of a job come from, on the device to train on.

    Attributes:
        train: indices of the training examples, int64 (n,), on that device.
        valid: indices of the validation examples.
    """

    train: Tensor
    valid: Tensor

    def steps(self) -> Iterator[tuple[int, Iterable[tuple[Any, int]]]]:
        """Yields what each step of an epoch trains on, drawn from PyTorch's generator on the CPU.

        Yields:
            the number of examples in all ranks; and this rank's share of the batches, with the
            number of examples of each, all of which are to be taken before the next step.
        """
        ...

    def part(self, indices: Tensor) -> Iterator[tuple[Any, int]]:
        """Yields the batches to evaluate the examples at `indices`, int64 (n,), in their order."""
        ...

    def at(self, indices: Tensor) -> Any:
        """Returns the batch to train on the examples at `indices`, int64 (n,)."""
        ...

    def fit(self, network: nn.Module) -> None:
        """Finds out what a network takes.

        Raises:
            DataError: it does not take the inputs.
        """
        ...

    def close(self) -> None:
        """Ends whatever loads batches, also in the midst of an epoch; `steps` begins it again."""
        ...


def make_batches(job: Job, split: Part, ranks: Ranks = ALONE) -> Batches:
    """Returns the batches of a job.

    Args:
        job: whose batches they are.
        split: the examples, on the device to train on.
        ranks: the processes among which each batch is divided.
    """
    if isinstance(split, Split):
        return TensorBatches(job, split, ranks)
    assert isinstance(split, Examples)
    return ExampleBatches(job, split, ranks)


class TensorBatches:
    """Batches `(inputs, targets)` of a split, on its device.

    Args:
        job: whose batches they are.
        split: the examples.
        ranks: the processes among which each batch is divided.

    Attributes:
        dtype: of the inputs in a batch, whatever they are stored in; `fit` sets that which a
            network takes.
    """

    def __init__(self, job: Job, split: Split, ranks: Ranks = ALONE) -> None:
        self._job, self._split, self._ranks = job, split, ranks
        self.dtype = unseen_dtype(split)
        self.train = job.train.to(split.inputs.device)
        self.valid = job.valid.to(split.inputs.device)
        self._whole = ranks.alone and job.accumulate == 1  # whether a step has one batch

    def steps(self) -> Iterator[tuple[int, Iterable[tuple[Batch, int]]]]:
        """Yields what each step of an epoch trains on, in a fresh order of the examples.

        The order is drawn from PyTorch's generator on the CPU: the same on every device. The last
        step and the last batch may be smaller.

        Yields:
            the number of examples in all ranks; and this rank's share of the batches, with the
            number of examples of each.
        """
        job, share = self._job, self._ranks.share
        order = self.train[torch.randperm(len(self.train))[: job.samples].to(self.train.device)]
        for indices in torch.split(order, job.batch_size * job.accumulate):
            count = indices.numel()
            if self._whole:
                yield count, ((self.at(indices), count),)
                continue
            shares = filter(len, map(share, torch.split(indices, job.batch_size)))
            yield count, ((self.at(share), len(share)) for share in shares)

    def part(self, indices: Tensor) -> Iterator[tuple[Batch, int]]:
        """Yields the batches to evaluate the examples at `indices`, int64 (n,), in their order."""
        for part in torch.split(indices, EVALUATION_BATCH[self.train.device.type]):
            yield self.at(part), len(part)

    def at(self, indices: Tensor) -> Batch:
        """Returns the batch of the examples at `indices`, int64 (n,)."""
        # index_select, a batch at a time: 54 000 images take 29 ms an epoch, [] 45 ms, one gather
        # per epoch 119 ms.
        split = self._split
        inputs = split.inputs.index_select(0, indices)
        if inputs.dtype is not self.dtype:
            inputs = inputs.to(self.dtype)
        return inputs, split.targets.index_select(0, indices)

    def fit(self, network: nn.Module) -> None:
        """Finds out in which type a network takes the inputs; see `batch_dtype`."""
        self.dtype = batch_dtype(self._job, network, self._split)

    def close(self) -> None:
        """Does nothing: nobody loads."""


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
    greatest, least = split.inputs[split.extremes]
    span = f"from {int(least.min())} to {int(greatest.max())}" if least.numel() else "none"
    raise DataError(
        f"the inputs are {_name(stored)} {span}, and the network takes them neither "
        f"{' nor '.join(reasons)}; return floats from load, or begin the network with an "
        "nn.Embedding that has a place for each"
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
    if not dtype.is_floating_point:  # an embedding has a place for each number, or not
        inputs += split.inputs[split.extremes].to(inputs)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            deepcopy(network).eval()(inputs)
    except Exception as error:  # of a network of the user's own
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
