"""The memory that a training takes on its device, predicted from shapes: nothing is computed."""

import weakref
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from studyloom.data.examples import move
from studyloom.data.training_data import Part
from studyloom.errors import ConfigError
from studyloom.text import name_error
from studyloom.training.batches import make_batches
from studyloom.training.job import Job
from studyloom.training.optimizer import make_optimizer
from studyloom.training.steps import Steps
from studyloom.training.trainer import adapt_to_data

CPU = torch.device("cpu")


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that operations return, for as long as these live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, values: Any) -> None:
        """Counts the memory of tensors at any depth; what several of them share counts once."""
        for tensor in filter(torch.is_tensor, tree_leaves(values)):
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key not in self._known:
                self._known[key] = weakref.ref(storage, partial(self._drop, key, size))
                self.now += size
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int, size: int, _: object) -> None:
        del self._known[key]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(result)
        return result


@torch.random.fork_rng(devices=[])
@torch.inference_mode(False)
@torch.enable_grad()
def predict_memory(job: Job, split: Part, together: int = 1) -> float:
    """Predicts the most memory in GiB (2**30 bytes) that a training holds at once on its device.

    Two steps, an evaluation and a checkpoint are run on PyTorch's fake tensors, which have shapes
    and no numbers, as on a CPU: the result is the same on every machine. It counts parameters,
    buffers, gradients, the optimizer's state, activations and whatever else operations return, and
    the copies that `ema`, `keep` and a checkpoint make.

    It does not count the data set, CUDA's context (some 0.5 GiB a process), what kernels take for
    themselves, and the blocks that CUDA's allocator keeps. Against the allocator on a CPU it was
    within 3% for perceptrons, convolutions, recurrent layers, transformers and ResNet-18, and 23%
    too low for convolutions in bf16, which are copied on their way. `studyloom doctor --gpu`
    compares it on a GPU, where kernels may save less.

    Args:
        together: how many such jobs are trained in lockstep, each with its own weights.

    Raises:
        ConfigError: it cannot run without numbers, as if it branches on what it has computed.
    """
    # They import PyTorch's compiler, which takes some seconds.
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    network = job.model(shape=split.shape, outputs=split.outputs)
    batches = make_batches(job, split)
    batches.fit(network)
    loss = deepcopy(job.loss)
    adapt_to_data(None, loss, split, batches.train)
    train = split.to_rehearse(batches.train)[: job.batch_size]
    valid = batches.valid[: batches.evaluation_size]
    batch, valid_batch = (move(batches.at(part), CPU) for part in (train, valid))
    live, fake = Live(), FakeTensorMode()
    try:
        with FakeCopyMode(fake):
            network, loss, step, evaluate, batch, valid_batch = deepcopy(
                (network, move(loss, CPU), job.step, job.evaluate, batch, valid_batch)
            )
        with fake, live:
            live.add((batch, [*network.parameters()], [*network.buffers()]))
            # fp16 takes as much as bf16.
            precision = "fp32" if job.precision == "fp32" else "bf16"
            steps = Steps(loss, CPU, precision, step=step, evaluate=evaluate)
            optimizer = make_optimizer(job.optimizer, network, job.groups)
            for _ in range(2):  # the first one makes the optimizer's state
                for weight in network.parameters():
                    weight.grad = None
                for _ in range(min(2, job.accumulate)):
                    steps.train(network.train(), batch).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            live.add(valid_batch)
            with torch.no_grad():
                steps.evaluate(network.eval(), valid_batch, len(valid))
        weights = size_of(network.state_dict())
        copies = weights * ((job.ema is not None) + (job.weights == "best"))
        saved = weights + copies + size_of(optimizer.state_dict())
    except Exception as error:
        raise ConfigError(
            "memory_gib is predicted only from shapes, and this training needs numbers "
            f"({name_error(error, 300)}); take memory_gib out of objective.constraints and "
            "objective.metric"
        ) from error
    # With gradients, which stay until the next step.
    rest = live.now - size_of((batch, valid_batch))
    once = max(live.peak - rest, 2 * size_of(batch))  # one is loaded while the last is still there
    return (together * (rest + copies) + max(once, together * saved)) / 2**30


def size_of(values: Any) -> int:
    """Returns the bytes of the tensors at any depth of a state."""
    return sum(each.nbytes for each in filter(torch.is_tensor, tree_leaves(values)))
