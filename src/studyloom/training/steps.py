"""The computation on a batch: its loss, outputs and targets, by the built-in step or a custom one.

A custom step is called as `step(network, batch)`, and with `loss=` if it has a parameter
of that name: the loss of the job, which is that of the section `loss`. For tensors in memory a
batch is `(inputs, targets)`, on the device of the network: inputs (n, …), and targets (n,) of
classes or (n, outputs) of numbers. It runs in autocast if the precision is not fp32, and draws its
random numbers from PyTorch's own generators, which are the job's while it runs.

Small steps are made on one thread of the processor. On two quiet cores a second one made a step of
a perceptron, below 25 million operations, 1.05 to 1.15 times as fast, and took 1.3 to 1.6 times the
processor time. With one other running process a step took 5 to 10 times as long on two threads
as on one: threads wait for each other in every operation. From 130 million on a second one gained
1.5 to 1.6 times.
"""

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from studyloom.data.examples import name_of
from studyloom.errors import TRAIN_IT_YOURSELF

# What autocast computes in, by the name of the precision.
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = tuple(DTYPES)

WORTH = 50e6  # operations of a batch's forward pass, from which on it gets all threads

OwnStep = Callable[..., Any]
Outcome = tuple[Tensor, Tensor, Tensor]  # the mean loss (), outputs (n, …), targets (n, …)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which PyTorch computes in a precision; it does nothing for fp32."""
    dtype = DTYPES[precision]
    if dtype is None:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = torch.autocast(device.type, dtype)
    return context


class Steps:
    """Computes the batches of one job, whose loss is always in fp32.

    Args:
        step: for training batches: returns a loss, or (loss, outputs, targets), of which only the
            loss is used; None for the network's outputs and `loss`.
        evaluate: for batches to evaluate: returns (loss, outputs, targets); None for the same.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        device: torch.device,
        precision: str = "fp32",
        step: OwnStep | None = None,
        evaluate: OwnStep | None = None,
    ) -> None:
        check_precision(precision, device)
        self._loss, self._device, self._precision = loss, device, precision
        self._step = None if step is None else give_loss(step, loss)
        self._evaluate = None if evaluate is None else give_loss(evaluate, loss)

    def train(self, network: nn.Module, batch: Any) -> Tensor:
        """Returns the mean loss of a training batch; ValueError if a step returns no such loss."""
        if self._step is None:
            loss = self._forward(network, batch)[0]
        else:
            with autocast(self._device, self._precision):
                result = self._step(network, batch)
            if not isinstance(result, Tensor) and not _is_outcome(result):
                raise ValueError(
                    "train.step must return a loss, or (loss, outputs, targets); "
                    f"{name_of(self._step)} returned {_describe(result)}"
                )
            loss = result if isinstance(result, Tensor) else result[0]
        if loss.ndim or not loss.requires_grad:
            _refuse_loss(loss, "train.step", self._step)
        return loss if self._step is None else loss.float()

    def evaluate(self, network: nn.Module, batch: Any, count: int) -> Outcome:
        """Returns the mean loss of a batch of `count` examples, its outputs and its targets."""
        if self._evaluate is None:
            return self._forward(network, batch)
        with autocast(self._device, self._precision):
            result = self._evaluate(network, batch)
        if not _is_outcome(result):
            raise ValueError(
                "train.evaluate must return (loss, outputs, targets), by which objective.metric "
                f"is computed; {name_of(self._evaluate)} returned {_describe(result)}"
            )
        loss, outputs, targets = result
        if loss.ndim:
            _refuse_loss(loss, "train.evaluate", self._evaluate)
        for name, tensor in (("outputs", outputs), ("targets", targets)):
            if not tensor.ndim or len(tensor) != count:
                raise ValueError(
                    f"train.evaluate must return {name} of each example; "
                    f"{name_of(self._evaluate)} returned {_describe(tensor)} for {count} examples"
                )
        if outputs.is_floating_point():
            outputs = outputs.float()
        return loss.float(), outputs, targets

    def _forward(self, network: nn.Module, batch: Any) -> Outcome:
        with autocast(self._device, self._precision):
            outputs, targets = apply_network(network, batch)
        if self._precision != "fp32":
            outputs = outputs.float()
        return self._loss(outputs, targets), outputs, targets


def _refuse_loss(loss: Tensor, key: str, function: OwnStep | None) -> NoReturn:
    """Raises ValueError for a loss without a gradient or with more than one value."""
    of_function = function is not None
    source = f"that {key} ({name_of(function)}) returns" if of_function else "of the section loss"
    if loss.ndim:
        raise ValueError(
            f"the loss {source} must be a scalar, the mean over the batch; got {_describe(loss)}; "
            "return loss.mean(), or set loss.reduction=mean"
        )
    raise ValueError(
        f"the loss {source} must depend on parameters that are trained, and has no gradient: it "
        "was detached, computed under torch.no_grad() or made of numbers, or all parameters are "
        "frozen"
    )


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Sets the number of PyTorch's threads for the body."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_threads(network: nn.Module, read: Callable[[], Any], batch_size: int) -> int:
    """Returns how many threads a training uses; `read` gives a batch of one example.

    It is one for small steps, else all that the process has. It depends only on network and
    batch, since the number of threads decides the last bits of a result.
    """
    available, weights = torch.get_num_threads(), list(network.parameters())
    if available == 1 or any(weight.device.type != "cpu" for weight in weights):
        return available
    known = sum(weight.numel() for weight in weights if not is_lazy(weight))
    if 2 * batch_size * known >= WORTH:
        return available  # without a copy of what may be large
    try:
        with torch.random.fork_rng(devices=[]):
            operations = count_operations(deepcopy(network).eval(), read())
    except Exception:  # it cannot be copied, or takes something else: its training says what
        return available
    return available if batch_size * operations >= WORTH else 1


def count_operations(network: nn.Module, batch: Any) -> int:
    """Counts the multiplications and additions of a forward pass, nearly; adds hooks.

    PyTorch's own FlopCounterMode imports the compiler, which takes longer than a small trial.
    """
    total = 0

    def count(module: nn.Module, _: Any, result: Any) -> None:
        nonlocal total
        output = result[0] if isinstance(result, tuple) else result
        if isinstance(output, Tensor) and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            own = module.parameters(recurse=False)
            weights = sum(weight.numel() for weight in own if weight.dim() > 1)
            channels = output.shape[1 if isinstance(module, _ConvNd) else -1]
            total += 2 * weights * (output.numel() // channels)

    for module in network.modules():
        module.register_forward_hook(count)
    apply_network(network, batch)
    return total


def apply_network(network: nn.Module, batch: Any) -> tuple[Tensor, Any]:
    """Calls a network with the inputs of a batch; returns its outputs, and the targets.

    A batch is (inputs, targets), or (inputs, …, targets) for a network of several arguments. Inputs
    that are a mapping, list or tuple are several arguments too.
    """
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        made = f"{len(batch)}" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
        raise ValueError(
            "a batch must be (inputs, targets), or (inputs, …, targets) for a network of several; "
            f"got {made}; compute its loss in a custom step, train.step and train.evaluate, "
            f"{TRAIN_IT_YOURSELF}"
        )
    *inputs, targets = batch
    if len(inputs) == 1 and type(inputs[0]) in (list, tuple):
        inputs = inputs[0]
    outputs = call_network(network, inputs)
    outputs = getattr(outputs, "logits", outputs)  # as networks of Hugging Face have them
    if isinstance(targets, Tensor) and targets.dtype == torch.float64:  # of numbers of Python
        targets = targets.to(outputs.dtype)
    return outputs, targets


def call_network(network: nn.Module, inputs: Sequence[Any]) -> Any:
    """Calls a network with its arguments, or with the single mapping that holds them by name."""
    named = len(inputs) == 1 and isinstance(inputs[0], Mapping)
    return network(**inputs[0]) if named else network(*inputs)


def give_loss(function: OwnStep, loss: Callable[[Tensor, Tensor], Tensor]) -> OwnStep:
    """Binds a loss to a function that has an unbound parameter `loss`."""
    try:
        # A Module is called as (*args, **kwargs), which it passes on to its forward.
        called = function.forward if isinstance(function, nn.Module) else function
        parameters = inspect.signature(called).parameters
    except ValueError:  # a function written in C has no signature
        return function
    if "loss" not in parameters or "loss" in getattr(function, "keywords", {}):
        return function
    return functools.partial(function, loss=loss)


@functools.cache
def check_precision(precision: str, device: torch.device) -> None:
    """Raises ValueError if a device cannot compute in a precision; tries a tiny layer."""
    if precision != "fp16":
        return
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("error", UserWarning)  # PyTorch only warns, and leaves it off
            weight = torch.ones(2, 2, device=device, requires_grad=True)
            with autocast(device, precision):
                outputs = nn.functional.linear(torch.ones(2, 2, device=device), weight)
            if outputs.dtype != torch.float16:
                raise RuntimeError(f"autocast computes in {outputs.dtype}")
            outputs.float().sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ValueError(
            f"train.precision=fp16: {device.type} cannot compute in it here "
            f"({' '.join(str(error).split())[:200]}); choose train.precision=bf16 or fp32"
        ) from None


def _is_outcome(result: Any) -> bool:
    return (
        isinstance(result, tuple)
        and len(result) == 3
        and all(isinstance(part, Tensor) for part in result)
    )


def _describe(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"a tensor of the shape {tuple(result.shape)}"
    if isinstance(result, tuple):
        return f"({', '.join(type(part).__name__ for part in result)})"
    return "None" if result is None else f"a {type(result).__name__}"
