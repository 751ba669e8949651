"""The batches of one job: from tensors in memory, or from a Dataset. Only this module knows which.

Each batch of a Dataset brings its own seed, drawn from the job's generator, so that its content
does not depend on `data.num_workers`, and a resumed training draws the same batches as without
the interruption.
"""

import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from multiprocessing.util import get_temp_dir
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from studyloom.data.examples import Examples, Items, move
from studyloom.data.split import Split
from studyloom.data.training_data import Part
from studyloom.errors import DataError, LoaderDied
from studyloom.processes import LINUX, deferring_signals, end_with_parent
from studyloom.text import name_error
from studyloom.training.job import Job
from studyloom.user_code.importing import importing_module

# On a CPU a convolution's outputs should stay in the cache: 2,000 images a call take up to twice as
# long as 256.
EVALUATION_BATCH = {"cpu": 256, "cuda": 4096, "mps": 4096}

# Whether to train on the batch, its seed, and the indices of its examples.
Request = tuple[bool, int, list[int]]
Sized = tuple[Any, int]  # a batch, and the number of its examples
# How many examples a step has, and its batches, all of which are to be taken before the next step.
Step = tuple[int, Iterable[Sized]]


def make_batches(job: Job, split: Part) -> "Batches":
    """Returns the batches of a job."""
    if isinstance(split, Split):
        return TensorBatches(job, split)
    return ExampleBatches(job, split)


class TensorBatches:
    """Batches `(inputs, targets)` of a split, on its device.

    Attributes:
        train: indices of the training examples, int64 (n,), on that device; compare `valid`.
        evaluation_size: how many examples a batch to evaluate has.
        dtype: of the inputs in a batch, whatever they are stored in; `fit` sets that which a
            network takes.
    """

    def __init__(self, job: Job, split: Split) -> None:
        self._job = job
        self._split = split
        self.dtype = unseen_dtype(split)
        self.train = job.train.to(split.device)
        self.valid = job.valid.to(split.device)
        self.evaluation_size = EVALUATION_BATCH[split.device.type]
        self._whole = job.accumulate == 1  # whether a step has one batch

    def steps(self) -> Iterator[Step]:
        """Draws the order of an epoch's examples, and returns what each step trains on.

        It is drawn from PyTorch's generator on the CPU: the same on every device. The last step and
        the last batch may be smaller.
        """
        job = self._job
        order = self.train[torch.randperm(len(self.train))[: job.samples].to(self.train.device)]
        return map(self._step, torch.split(order, job.batch_size * job.accumulate))

    def _step(self, indices: Tensor) -> Step:
        if self._whole:
            return len(indices), ((self.at(indices), len(indices)),)
        parts = torch.split(indices, self._job.batch_size)
        return len(indices), ((self.at(part), len(part)) for part in parts)

    def part(self, indices: Tensor) -> Iterator[Sized]:
        """Yields the batches to evaluate the examples at `indices`, in their order."""
        for part in torch.split(indices, self.evaluation_size):
            yield self.at(part), len(part)

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        # index_select, a batch at a time: 54,000 images take 29 ms an epoch, [] 45 ms, one gather
        # per epoch 119 ms.
        split = self._split
        inputs = split.inputs.index_select(0, indices)
        if inputs.dtype is not self.dtype:
            inputs = inputs.to(self.dtype)
        return inputs, split.targets.index_select(0, indices)

    def fit(self, network: nn.Module) -> None:
        self.dtype = batch_dtype(self._job, network, self._split)

    def close(self) -> None:
        """Does nothing: no process loads."""


class ExampleBatches:
    """Batches of examples, as their collate function makes them; compare `TensorBatches`."""

    def __init__(self, job: Job, examples: Examples) -> None:
        self._job = job
        self._examples = examples
        self.train = job.train.to(examples.device)
        self.valid = job.valid.to(examples.device)
        self.evaluation_size = job.batch_size
        self._loader = Loader(examples)

    def steps(self) -> Iterator[Step]:
        parts = torch.split(self._draw(), self._job.batch_size)
        seeds = torch.randint(2**62, (len(parts),))
        return self._load_steps(parts, seeds.tolist())

    def _load_steps(self, parts: Sequence[Tensor], seeds: list[int]) -> Iterator[Step]:
        batches = self._loader.load(
            [(True, seed, part.tolist()) for seed, part in zip(seeds, parts, strict=True)]
        )
        for first in range(0, len(parts), self._job.accumulate):
            sizes = [len(part) for part in parts[first : first + self._job.accumulate]]
            loaded = ((next(batches), size) for size in sizes)
            yield sum(sizes), loaded
        next(batches, None)  # the processes that load are free for what comes next

    def part(self, indices: Tensor) -> Iterator[Sized]:
        # Seeds that are always the same: a Dataset that draws gives the same each time. An epoch
        # ends with this, and so do the processes that have loaded it.
        parts = torch.split(indices.cpu(), self.evaluation_size)
        requests = ((False, number, part.tolist()) for number, part in enumerate(parts))
        for part, batch in zip(parts, self._loader.load(requests), strict=True):
            yield batch, len(part)
        self._loader.rest()

    def at(self, indices: Tensor) -> Any:
        return self._loader.load_here((True, 0, indices.tolist()))

    def fit(self, network: nn.Module) -> None:
        """Does nothing: a network gets what the Dataset gives."""

    def close(self) -> None:
        """Ends the processes that load, also in the midst of an epoch; `steps` starts others."""
        self._loader.close()

    def _draw(self) -> Tensor:
        """Draws the examples of an epoch: in a new order, or by their weights."""
        job, weights, train = self._job, self._examples.weights, self._job.train.cpu()
        if weights is None:
            return train[torch.randperm(len(train))[: job.samples]]
        return train[torch.multinomial(weights[train], job.samples, replacement=True)]


Batches = TensorBatches | ExampleBatches


class Loader:
    """Loads batches, in this process or in worker processes of a DataLoader.

    These are forked for each epoch, unless they are to persist: two take 0.05 s and more, so the
    evaluation uses those of the training. They ignore the signals that stop a study, since
    this process ends them, and they do not outlive it.
    """

    def __init__(self, examples: Examples) -> None:
        self._views = {True: examples.training, False: examples.evaluation}
        self._loading, self._device = examples.loading, examples.device
        self._requests: list[Request] = []  # of the current pass
        self._loader: DataLoader[Any] | None = None
        self._running: Any = None

    def load(self, requests: Iterable[Request]) -> Iterator[Any]:
        """Yields the batch of each request. Raises DataError, and LoaderDied if a process dies."""
        if not self._loading.num_workers:
            yield from map(self.load_here, requests)
            return
        try:
            self._explained(lambda: self._start(requests))
            while (batch := self._explained(lambda: next(self._running, None))) is not None:
                if isinstance(batch, DataError):
                    raise batch
                yield self._to_device(batch)
        except BaseException:
            self.close()
            raise

    def load_here(self, request: Request) -> Any:
        """Returns the batch of a request, loaded in this process."""
        training, seed, indices = request
        return self._to_device(self._views[training].fetch(indices, seed))

    def rest(self) -> None:
        """Ends the processes that load, unless they are persistent."""
        if not self._loading.persistent_workers:
            self.close()

    def close(self) -> None:
        """Ends the processes that load, in whatever state they are."""
        running, self._running, self._loader = self._running, None, None
        if running is not None:
            with deferring_signals():
                # PyTorch does it when the iterator is collected, and an exception may keep it.
                running._shutdown_workers()

    def _start(self, requests: Iterable[Request]) -> None:
        """Starts the processes, or gives persistent ones their next work."""
        self._requests[:] = requests
        before = signal.getsignal(signal.SIGCHLD)
        # An exception between two forks would leave processes that never end.
        # And a process that is no fork imports the Dataset's module, with this one's arguments.
        with deferring_signals(), warnings.catch_warnings(), importing_module("data.num_workers"):
            # Python 3.12 warns of forks where threads run. PyTorch's children use one thread.
            warnings.simplefilter("ignore", DeprecationWarning)
            # Where processes send batches from, and this one removes at its end. Else each makes
            # a folder, and fails to remove it where one of its threads makes a socket meanwhile.
            get_temp_dir()
            if self._loader is None:
                self._loader = self._make_loader()
            self._running = iter(self._loader)
            # PyTorch's handler would raise the death of a loader in whatever the main thread does
            # at that moment, such as a transaction. Without it `next` finds out within 5 s.
            if threading.current_thread() is threading.main_thread() and before is not None:
                signal.signal(signal.SIGCHLD, before)

    def _make_loader(self) -> DataLoader[Any]:
        loading = self._loading
        return DataLoader(
            Requested(self._views),
            sampler=self._requests,
            batch_size=None,
            num_workers=loading.num_workers,
            collate_fn=_unchanged,
            pin_memory=loading.pin_memory and self._device.type == "cuda",
            persistent_workers=True,
            worker_init_fn=functools.partial(_begin, os.getpid()),
            multiprocessing_context="fork" if LINUX else "spawn",
            generator=torch.Generator(),  # else it would draw from the job's
        )

    def _to_device(self, batch: Any) -> Any:
        return batch if self._device.type == "cpu" else move(batch, self._device)

    def _explained(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except RuntimeError as error:
            raise LoaderDied(
                f"a process that loads batches (data.num_workers={self._loading.num_workers}) "
                f"failed: {' '.join(str(error).split())[:300]}; it was killed, as for want "
                "of memory, or the Dataset ended it; data.num_workers=0 loads in the trial itself"
            ) from error


class Requested(Dataset[Any]):
    """The Dataset of a DataLoader: the batches of requests, made in its processes."""

    def __init__(self, views: dict[bool, Items]) -> None:
        self._views = views

    def __getitem__(self, request: Any) -> Any:
        training, seed, indices = request
        try:
            return self._views[training].fetch(indices, seed)
        except DataError as error:
            return error  # PyTorch would raise another one, without its notes


def _unchanged(batch: Any) -> Any:
    return batch


def _begin(parent: int, _: int) -> None:
    """Prepares a process that loads: it ends with its parent, and only that handles signals."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.excepthook = _report_error
    end_with_parent(parent)


def _report_error(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    # A thread of multiprocessing hands over the memory of batches, and meets the end of the process
    # that they are on their way to.
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def batch_dtype(job: Job, network: nn.Module, split: Split) -> torch.dtype:
    """Returns the type in which a network gets inputs; raises DataError if it takes none.

    Of integers two examples show it: bytes, which are mostly pixels, are tried as float32
    first, and then as int64; others first as integers, which an embedding needs, and then as
    float32, which a linear layer needs. For a custom step it is `unseen_dtype`.
    """
    stored = split.inputs.dtype
    if stored.is_floating_point or job.step is not None or job.evaluate is not None:
        return unseen_dtype(split)
    whole = stored if stored in (torch.int32, torch.int64) else torch.int64
    reasons = []
    for dtype in (torch.float32, whole) if stored == torch.uint8 else (whole, torch.float32):
        if (reason := _refusal(network, split, dtype)) is None:
            return dtype
        reasons.append(f"as {str(dtype).removeprefix('torch.')}: {reason}")
    greatest, least = split.inputs[split.extremes]
    span = f"from {int(least.min())} to {int(greatest.max())}" if least.numel() else "none"
    raise DataError(
        f"the inputs are {split.kind} {span}, and the network takes them neither "
        f"{' nor '.join(reasons)}; return floats from load, or begin the network with an "
        "nn.Embedding that has a place for each"
    )


def unseen_dtype(split: Split) -> torch.dtype:
    """Returns the type of inputs if no network is tried: that of the split; bytes as float32."""
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
    except Exception as error:  # of the user's network
        return name_error(error, 200)
    return None
