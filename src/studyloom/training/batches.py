"""The batches of one job: from tensors in memory, or from a Dataset. Only this module knows which.

An *optimizer step* trains on one batch, or with `train.accumulate` on several. A Dataset may draw
random numbers, such as those of an augmentation. Each of its batches is loaded under its own seed,
which is drawn from the job's generator: so the content of a batch does not depend on
`data.num_workers`, and a resumed training draws the same batches as without the interruption.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from multiprocessing.util import get_temp_dir
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from studyloom.data.examples import Examples, Items, Part, move_to_device
from studyloom.data.split import Split
from studyloom.errors import DataError, LoaderDied
from studyloom.processes import LINUX, deferring_signals, end_with_parent
from studyloom.text import name_error
from studyloom.training.job import Job
from studyloom.training.steps import BatchContent
from studyloom.user_code.importing import importing_module

# On a CPU a convolution's outputs should stay in the cache: 2,000 images a call take up to twice as
# long as 256.
EVALUATION_BATCH = {"cpu": 256, "cuda": 4096, "mps": 4096}


class Batch(NamedTuple):
    """A batch of examples.

    Attributes:
        content: whatever a collate function makes; for tensors in memory (inputs, targets).
        size: the number of its examples.
    """

    content: BatchContent
    size: int


class OptimizerStep(NamedTuple):
    """The batches that one step of the optimizer trains on.

    Attributes:
        size: the number of examples in all its batches.
        batches: all of which are to be taken before the next step.
    """

    size: int
    batches: Iterable[Batch]


class Request(NamedTuple):
    """A batch of a Dataset that is to be loaded.

    Attributes:
        is_training: whether the training view of the examples is loaded, with augmentation, or the
            evaluation view.
        seed: of the random numbers that the Dataset draws for the batch.
        indices: of the batch's examples.
    """

    is_training: bool
    seed: int
    indices: list[int]


def make_batches(job: Job, split: Part) -> "Batches":
    """Returns the batches of a job."""
    if isinstance(split, Split):
        return TensorBatches(job, split)
    return ExampleBatches(job, split)


class TensorBatches:
    """Batches `(inputs, targets)` of a split, on its device.

    Attributes:
        dtype: of the inputs in a batch, whatever they are stored in; `choose_input_dtype` sets the
            one that a network takes.
        train: indices of the training examples on that device, int64 (n,).
        valid: indices of the validation examples, likewise.
    """

    def __init__(self, job: Job, split: Split) -> None:
        self._job = job
        self._split = split
        self.dtype = default_input_dtype(split)
        self.train = job.train.to(split.device)
        self.valid = job.valid.to(split.device)
        self._evaluation_size = EVALUATION_BATCH[split.device.type]

    def draw_steps(self) -> Iterator[OptimizerStep]:
        """Draws the order of an epoch's examples, and returns its steps.

        The order is drawn from PyTorch's generator on the CPU: it is the same on every device. The
        last step and the last batch may be smaller.
        """
        job = self._job
        order = torch.randperm(len(self.train))[: job.samples]
        indices = self.train[order.to(self.train.device)]
        examples_per_step = job.batch_size * job.accumulate
        return map(self._make_step, torch.split(indices, examples_per_step))

    def _make_step(self, indices: Tensor) -> OptimizerStep:
        """Returns the step that trains on the examples at indices."""
        batches: Iterable[Batch]
        if self._job.accumulate == 1:  # the usual case: the step has one batch
            batches = (Batch(self.load_batch(indices), len(indices)),)
        else:
            batches = self._split_batches(indices, self._job.batch_size)
        return OptimizerStep(len(indices), batches)

    def _split_batches(self, indices: Tensor, size: int) -> Iterator[Batch]:
        """Yields the examples at indices in batches of a size; the last may be smaller."""
        for part in torch.split(indices, size):
            yield Batch(self.load_batch(part), len(part))

    def load_batches(self, indices: Tensor) -> Iterator[Batch]:
        """Yields the batches to evaluate the examples at indices, int64 (n,), in their order."""
        return self._split_batches(indices, self._evaluation_size)

    def load_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the inputs (n, …) and targets of the examples at indices, int64 (n,)."""
        # An epoch of 54,000 images takes 29 ms with index_select for each batch, 45 ms with
        # indexing by [], and 119 ms if the images of the whole epoch are gathered at once.
        split = self._split
        inputs = split.inputs.index_select(0, indices)
        if inputs.dtype is not self.dtype:
            inputs = inputs.to(self.dtype)
        return inputs, split.targets.index_select(0, indices)

    def choose_input_dtype(self, network: nn.Module) -> None:
        """Sets the type of the inputs in a batch to one that a network takes."""
        self.dtype = find_input_dtype(self._job, network, self._split)

    def close(self) -> None:
        """Does nothing: no other process loads these batches."""


class ExampleBatches:
    """Batches of examples, as their collate function makes them; compare `TensorBatches`."""

    def __init__(self, job: Job, examples: Examples) -> None:
        self._job = job
        self._examples = examples
        self.train = job.train.to(examples.device)
        self.valid = job.valid.to(examples.device)
        self._loader = Loader(examples)

    def draw_steps(self) -> Iterator[OptimizerStep]:
        """Draws the examples of an epoch and the seeds of its batches, and returns its steps."""
        indices_of_batches = torch.split(self._draw_indices(), self._job.batch_size)
        seeds = torch.randint(2**62, (len(indices_of_batches),)).tolist()
        requests = []
        for indices, seed in zip(indices_of_batches, seeds, strict=True):
            requests.append(Request(is_training=True, seed=seed, indices=indices.tolist()))
        return self._load_steps(requests)

    def _load_steps(self, requests: Sequence[Request]) -> Iterator[OptimizerStep]:
        """Yields the steps of an epoch; each batch is loaded when it is taken."""
        contents = self._loader.load(requests)
        batches_per_step = self._job.accumulate
        for start in range(0, len(requests), batches_per_step):
            requests_of_step = requests[start : start + batches_per_step]
            sizes = [len(request.indices) for request in requests_of_step]
            # A generator, so that a batch is loaded only when the training has used the last one.
            batches = (Batch(next(contents), size) for size in sizes)
            yield OptimizerStep(sum(sizes), batches)
        # The loader notices that the epoch is over only by a call for one more batch. Its processes
        # can load the evaluation only then.
        next(contents, None)

    def load_batches(self, indices: Tensor) -> Iterator[Batch]:
        """Yields the batches to evaluate the examples at indices, int64 (n,), in their order.

        Each batch has the same seed in each evaluation, its number, so that a Dataset that draws
        random numbers gives the same examples each time. An evaluation is the last part of an
        epoch: after it the processes that load end, unless they are persistent.
        """
        indices_of_batches = torch.split(indices.cpu(), self._job.batch_size)
        requests = []
        for number, batch_indices in enumerate(indices_of_batches):
            request = Request(is_training=False, seed=number, indices=batch_indices.tolist())
            requests.append(request)
        for request, content in zip(requests, self._loader.load(requests), strict=True):
            yield Batch(content, len(request.indices))
        self._loader.end_epoch()

    def load_batch(self, indices: Tensor) -> BatchContent:
        """Returns the batch of the training examples at indices, loaded in this process."""
        request = Request(is_training=True, seed=0, indices=indices.tolist())
        return self._loader.load_here(request)

    def choose_input_dtype(self, network: nn.Module) -> None:
        """Does nothing: a network gets the inputs that the Dataset gives."""

    def close(self) -> None:
        """Ends the processes that load, also during an epoch; the next epoch starts others."""
        self._loader.close()

    def _draw_indices(self) -> Tensor:
        """Draws the indices of an epoch's training examples, int64 (n,).

        Without weights, no example is drawn twice. With weights, each draw chooses among all
        examples, by their weights.
        """
        weights = self._examples.weights
        train_indices = self._job.train.cpu()
        samples = self._job.samples
        if weights is None:
            positions = torch.randperm(len(train_indices))[:samples]
        else:
            positions = torch.multinomial(weights[train_indices], samples, replacement=True)
        return train_indices[positions]


Batches = TensorBatches | ExampleBatches


class Loader:
    """Loads batches, in this process or in worker processes of a DataLoader.

    The processes are forked for each epoch, unless they are persistent. Two take 0.05 s and more,
    so those of the training load the evaluation of the epoch too: they are persistent to PyTorch in
    any case, and `end_epoch` ends them. They ignore the signals that stop a study: this process
    gets the same signals, and ends them. They do not outlive it.
    """

    def __init__(self, examples: Examples) -> None:
        # The examples with augmentation and without, by `is_training` of a request.
        self._views = {True: examples.training, False: examples.evaluation}
        self._loading = examples.loading
        self._device = examples.device
        # The requests of the current pass over the data, for training or for evaluation.
        self._requests: list[Request] = []
        self._loader: DataLoader[Any] | None = None
        self._iterator: Any = None  # the DataLoader's, which owns the processes

    def load(self, requests: Sequence[Request]) -> Iterator[BatchContent]:
        """Yields the batch of each request.

        Raises:
            DataError: an example cannot be loaded.
            LoaderDied: a process that loads has died.
        """
        if not self._loading.num_workers:
            for request in requests:
                yield self.load_here(request)
            return
        try:
            yield from self._load_in_processes(requests)
        except BaseException:  # also if the caller takes no further batch
            self.close()
            raise

    def _load_in_processes(self, requests: Sequence[Request]) -> Iterator[BatchContent]:
        """Yields the batch of each request, loaded in the processes of a DataLoader."""
        with self._explaining_death():
            self._start(requests)
        while True:
            with self._explaining_death():
                batch = next(self._iterator, None)
            if batch is None:  # the batch before was the last one
                return
            if isinstance(batch, DataError):  # `RequestedBatches` returns it instead of raising it
                raise batch
            yield self._to_device(batch)

    def load_here(self, request: Request) -> BatchContent:
        """Returns the batch of a request, loaded in this process."""
        view = self._views[request.is_training]
        return self._to_device(view.load_batch(request.indices, request.seed))

    def end_epoch(self) -> None:
        """Ends the processes that load, unless they are persistent."""
        if not self._loading.persistent_workers:
            self.close()

    def close(self) -> None:
        """Ends the processes that load, in whatever state they are."""
        iterator = self._iterator
        self._iterator = None
        self._loader = None
        if iterator is not None:
            with deferring_signals():
                # PyTorch ends the processes when the iterator is collected as garbage. That may be
                # late, since the traceback of an exception may still refer to the iterator.
                iterator._shutdown_workers()

    def _start(self, requests: Sequence[Request]) -> None:
        """Starts the processes, or gives persistent ones their next requests."""
        self._requests[:] = requests  # in place: the DataLoader iterates over this list
        with contextlib.ExitStack() as stack:
            # An exception between two forks would leave processes that never end.
            stack.enter_context(deferring_signals())
            # multiprocessing puts the sockets over which processes send batches into a folder. Each
            # process would make its own folder, and fail to remove it at its end if one of its
            # threads makes a socket at that moment. This process makes one that all of them use.
            get_temp_dir()
            # A process that is spawned, and not forked, gets a copy of `sys.argv`. It imports the
            # module of the Dataset, which may parse the arguments there: they are left out.
            stack.enter_context(importing_module("data.num_workers"))
            stack.enter_context(_fork_warnings_ignored())
            stack.enter_context(_child_signals_unhandled())
            if self._loader is None:
                self._loader = self._make_loader()
            self._iterator = iter(self._loader)

    def _make_loader(self) -> DataLoader[Any]:
        """Makes a DataLoader whose processes load the batches of the current requests."""
        loading = self._loading
        start_method = "spawn"
        if LINUX:
            # A fork shares the examples in memory, and starts at once. On macOS, system libraries
            # may crash in a fork.
            start_method = "fork"
        return DataLoader(
            RequestedBatches(self._views),
            sampler=self._requests,
            batch_size=None,  # since an item of the Dataset is a batch already
            num_workers=loading.num_workers,
            collate_fn=_return_unchanged,
            pin_memory=loading.pin_memory and self._device.type == "cuda",
            persistent_workers=True,
            worker_init_fn=functools.partial(_prepare_process, os.getpid()),
            multiprocessing_context=start_method,
            generator=torch.Generator(),  # else it would draw from the job's
        )

    def _to_device(self, batch: BatchContent) -> BatchContent:
        if self._device.type == "cpu":
            return batch
        return move_to_device(batch, self._device)

    @contextlib.contextmanager
    def _explaining_death(self) -> Iterator[None]:
        """Raises LoaderDied if PyTorch raises the RuntimeError of a process that has died."""
        try:
            yield
        except RuntimeError as error:
            raise LoaderDied(
                f"a process that loads batches (data.num_workers={self._loading.num_workers}) "
                f"failed: {' '.join(str(error).split())[:300]}; it was killed, as for want "
                "of memory, or the Dataset ended it; data.num_workers=0 loads in the trial itself"
            ) from error


@contextlib.contextmanager
def _fork_warnings_ignored() -> Iterator[None]:
    """Ignores Python 3.12's warning of forks where threads run: PyTorch's children use one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextlib.contextmanager
def _child_signals_unhandled() -> Iterator[None]:
    """Restores the handler of SIGCHLD that a DataLoader replaces when it starts its processes.

    PyTorch's handler would raise the death of a process in whatever the main thread does at that
    moment, such as a transaction. Without it `next` finds out within 5 s.
    """
    handler = signal.getsignal(signal.SIGCHLD)  # None for one of C code, which cannot be restored
    yield
    is_main_thread = threading.current_thread() is threading.main_thread()
    if is_main_thread and handler is not None:  # only the main thread may set one
        signal.signal(signal.SIGCHLD, handler)


class RequestedBatches(Dataset[Any]):
    """The Dataset of a DataLoader: the batches of requests, made in its processes."""

    def __init__(self, views: dict[bool, Items]) -> None:
        self._views = views

    def __getitem__(self, request: Request) -> Any:
        try:
            return self._views[request.is_training].load_batch(request.indices, request.seed)
        except DataError as error:
            return error  # PyTorch would raise another one, without its notes


def _return_unchanged(batch: BatchContent) -> BatchContent:
    """Collates nothing: the Dataset gives whole batches. A process that is spawned imports it."""
    return batch


def _prepare_process(parent: int, worker: int) -> None:
    """Prepares a process that loads: it ends with its parent, and leaves signals to it.

    Args:
        parent: its process id.
        worker: the number of the process among those of the DataLoader, which PyTorch passes.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.excepthook = _report_error
    end_with_parent(parent)


def _report_error(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Prints an error that ends a process that loads, unless a connection broke.

    A thread of multiprocessing hands over the memory of batches. It meets a broken connection if
    the process that a batch is on its way to has ended, which is no error.
    """
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, traceback)


def find_input_dtype(job: Job, network: nn.Module, split: Split) -> torch.dtype:
    """Returns the type in which a network gets inputs; raises DataError if it takes none.

    Integers may be numbers to compute with or positions in an embedding, so the network is tried on
    two examples. Bytes are mostly pixels, and are tried as float32 first, and then as int64. Other
    integers are tried as integers first, which an embedding needs, and then as float32, which a
    linear layer needs. For a custom step nothing is tried: it gets the default type.
    """
    stored_dtype = split.inputs.dtype
    has_custom_step = job.step is not None or job.evaluate is not None
    if stored_dtype.is_floating_point or has_custom_step:
        return default_input_dtype(split)
    if stored_dtype == torch.uint8:
        candidates = [torch.float32, torch.int64]
    elif stored_dtype == torch.int32:
        candidates = [torch.int32, torch.float32]
    else:
        candidates = [torch.int64, torch.float32]
    refusals = []
    for dtype in candidates:
        reason = _try_dtype(network, split, dtype)
        if reason is None:
            return dtype
        dtype_name = str(dtype).removeprefix("torch.")
        refusals.append(f"as {dtype_name}: {reason}")
    raise DataError(
        f"the inputs are {split.kind} {_describe_range(split)}, and the network takes them neither "
        f"{' nor '.join(refusals)}; return floats from load, or begin the network with an "
        "nn.Embedding that has a place for each"
    )


def _describe_range(split: Split) -> str:
    """Describes the least and the greatest integer of all inputs: "from 0 to 255"."""
    # `extremes`: the indices of the example with the greatest integer and of that with the least.
    example_with_greatest, example_with_least = split.inputs[split.extremes]
    if not example_with_least.numel():
        return "none"
    return f"from {int(example_with_least.min())} to {int(example_with_greatest.max())}"


def default_input_dtype(split: Split) -> torch.dtype:
    """Returns the type of inputs if no network is tried: the stored type, but float32 for bytes."""
    stored_dtype = split.inputs.dtype
    if stored_dtype == torch.uint8:
        return torch.float32
    return stored_dtype


def _try_dtype(network: nn.Module, split: Split, dtype: torch.dtype) -> str | None:
    """Calls a copy of a network with inputs of a type.

    Returns:
        Why the network does not take them; None if it does.
    """
    device = torch.device("cpu")
    first_weight = next(network.parameters(), None)
    if first_weight is not None:
        device = first_weight.device
    if dtype.is_floating_point:
        inputs = torch.zeros(2, *split.shape, dtype=dtype, device=device)
    else:
        # An embedding takes only integers that it has a row for. So the two examples with the
        # greatest and the least integer are tried, at the indices `extremes`.
        inputs = split.inputs[split.extremes].to(device, dtype)
    try:
        # Neither the weights nor PyTorch's random numbers may change by this call.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            deepcopy(network).eval()(inputs)
    except Exception as error:  # of the user's network
        return name_error(error, length=200)
    return None
