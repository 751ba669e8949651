"""The computation on a batch: its loss, outputs and targets, by the built-in step or a custom one.

The *built-in step* calls the network with the inputs of a batch, and the loss of the section `loss`
with outputs and targets. A *custom step* is a function of the user. It is called as
`step(network, batch)`, and with `loss=` if it has a parameter of that name, which is then the loss
of the section `loss`. For tensors in memory a batch is `(inputs, targets)`, on the device of the
network: inputs (n, …), and targets (n,) of classes or (n, outputs) of numbers. A custom step runs
in autocast if the precision is not fp32, and draws its random numbers from PyTorch's own
generators, which are the job's while it runs.

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
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from studyloom.data.examples import function_name
from studyloom.errors import TRAIN_IT_YOURSELF

# The type that autocast computes in, by precision.
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = tuple(DTYPES)

# A step uses all threads if the forward pass of a batch takes at least so many operations.
MIN_OPERATIONS_FOR_THREADS = 50e6

Loss = Callable[[Tensor, Tensor], Tensor]
CustomStep = Callable[..., Any]
BatchContent = Any  # the inputs and targets of a batch, or whatever a collate function makes


class BatchResult(NamedTuple):
    """The result of a batch of n examples.

    Attributes:
        loss: the mean over the examples, a scalar ().
        outputs: (n, …).
        targets: (n, …).
    """

    loss: Tensor
    outputs: Tensor
    targets: Tensor


def check_gradient_scaler(device: torch.device) -> None:
    """Raises ValueError unless PyTorch can scale gradients on a device, as fp16 needs.

    On a Mac's GPU, PyTorch before 2.8 raises a TypeError instead.
    """
    reason = ""
    try:
        weight = torch.ones(1, device=device, requires_grad=True)
        optimizer = torch.optim.SGD([weight])
        scaler = torch.amp.GradScaler(device.type)
        loss = scaler.scale(weight.sum())
        loss.backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        assert weight.grad is not None
        gradient = weight.grad.item()
        if gradient != 1.0:
            reason = f"a gradient of 1 became {gradient:g}"
    except (TypeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
    if reason:
        raise ValueError(
            f"train.precision=fp16: PyTorch {torch.__version__} cannot scale gradients on "
            f"{device.type} ({reason}); choose bf16 or fp32, or install a later PyTorch"
        )


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which PyTorch computes in a precision; it does nothing for fp32."""
    dtype = DTYPES[precision]
    if dtype is None:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = torch.autocast(device.type, dtype)
    return context


class BatchComputation:
    """Computes the loss and the outputs of a job's batches; the loss is always in fp32.

    Args:
        step: for training batches: returns a loss, or (loss, outputs, targets), of which only the
            loss is used; None for the built-in step.
        evaluate: for batches to evaluate: returns (loss, outputs, targets); None for the built-in
            step.
    """

    def __init__(
        self,
        loss: Loss,
        device: torch.device,
        precision: str = "fp32",
        step: CustomStep | None = None,
        evaluate: CustomStep | None = None,
    ) -> None:
        check_precision(precision, device)
        self._loss = loss
        self._device = device
        self._precision = precision
        self._step: CustomStep | None = None
        self._evaluate: CustomStep | None = None
        if step is not None:
            self._step = bind_loss(step, loss)
        if evaluate is not None:
            self._evaluate = bind_loss(evaluate, loss)

    def train(self, network: nn.Module, batch: BatchContent) -> Tensor:
        """Returns the mean loss of a training batch, a scalar ().

        Raises:
            ValueError: a custom step returns something else, or the loss has no gradient.
        """
        if self._step is None:
            loss = self._run_built_in(network, batch).loss
        else:
            loss = self._run_custom(self._step, network, batch)
        if loss.ndim > 0 or not loss.requires_grad:
            raise _make_loss_error(loss, "train.step", self._step)
        return loss

    def evaluate(self, network: nn.Module, batch: BatchContent, count: int) -> BatchResult:
        """Returns the result of a batch of `count` examples.

        Raises:
            ValueError: a custom evaluation returns something else.
        """
        if self._evaluate is None:
            return self._run_built_in(network, batch)
        with autocast(self._device, self._precision):
            result = self._evaluate(network, batch)
        if not _has_three_tensors(result):
            raise ValueError(
                "train.evaluate must return (loss, outputs, targets), by which objective.metric "
                f"is computed; {function_name(self._evaluate)} returned {_describe(result)}"
            )
        loss, outputs, targets = result
        if loss.ndim > 0:
            raise _make_loss_error(loss, "train.evaluate", self._evaluate)
        for name, tensor in (("outputs", outputs), ("targets", targets)):
            has_one_for_each = tensor.ndim > 0 and len(tensor) == count
            if not has_one_for_each:
                raise ValueError(
                    f"train.evaluate must return {name} of each example; "
                    f"{function_name(self._evaluate)} returned {_describe(tensor)} for "
                    f"{count} examples"
                )
        if outputs.is_floating_point():
            outputs = outputs.float()
        return BatchResult(loss.float(), outputs, targets)

    def _run_built_in(self, network: nn.Module, batch: BatchContent) -> BatchResult:
        with autocast(self._device, self._precision):
            outputs, targets = apply_network(network, batch)
        if self._precision != "fp32":
            outputs = outputs.float()
        return BatchResult(self._loss(outputs, targets), outputs, targets)

    def _run_custom(self, step: CustomStep, network: nn.Module, batch: BatchContent) -> Tensor:
        """Returns the loss of a custom step."""
        with autocast(self._device, self._precision):
            result = step(network, batch)
        if isinstance(result, Tensor):
            return result.float()
        if _has_three_tensors(result):
            return result[0].float()
        raise ValueError(
            "train.step must return a loss, or (loss, outputs, targets); "
            f"{function_name(step)} returned {_describe(result)}"
        )


def _make_loss_error(loss: Tensor, key: str, function: CustomStep | None) -> ValueError:
    """Makes the error for a loss that is not a scalar, or else has no gradient.

    Args:
        key: of the custom step in the config.
        function: the custom step that returned the loss; None for the built-in step.
    """
    source = "of the section loss"
    if function is not None:
        source = f"that {key} ({function_name(function)}) returns"
    if loss.ndim > 0:
        return ValueError(
            f"the loss {source} must be a scalar, the mean over the batch; got {_describe(loss)}; "
            "return loss.mean(), or set loss.reduction=mean"
        )
    return ValueError(
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


def choose_threads(
    network: nn.Module, load_example: Callable[[], BatchContent], batch_size: int
) -> int:
    """Returns how many threads a training uses: one if its steps are small, else all.

    It depends only on network and batch, and not on the load of the machine: the number of threads
    decides the last bits of a result.

    Args:
        load_example: returns a batch of one example.
        batch_size: the largest of the training.
    """
    available = torch.get_num_threads()
    weights = list(network.parameters())
    is_on_cpu = all(weight.device.type == "cpu" for weight in weights)
    if available == 1 or not is_on_cpu:
        return available
    # An example takes at least two operations for each weight, a multiplication and an addition. A
    # network that is large by that measure need not be copied to count its operations. A lazy
    # weight has no size before the first forward pass.
    weight_count = sum(weight.numel() for weight in weights if not is_lazy(weight))
    fewest_operations = 2 * weight_count
    if batch_size * fewest_operations >= MIN_OPERATIONS_FOR_THREADS:
        return available
    try:
        with torch.random.fork_rng(devices=[]):
            operations = count_operations(deepcopy(network).eval(), load_example())
    except Exception:  # it cannot be copied, or takes other inputs, which its training will report
        return available
    if batch_size * operations >= MIN_OPERATIONS_FOR_THREADS:
        return available
    return 1


def count_operations(network: nn.Module, batch: BatchContent) -> int:
    """Returns about how many multiplications and additions a forward pass takes.

    The modules of the network keep the hooks that count them. PyTorch's own FlopCounterMode imports
    the compiler, which takes longer than a small trial.
    """
    total = 0

    def count_module(module: nn.Module, inputs: object, result: object) -> None:
        nonlocal total
        total += _count_operations_of_module(module, result)

    for module in network.modules():
        module.register_forward_hook(count_module)
    apply_network(network, batch)
    return total


def _count_operations_of_module(module: nn.Module, result: object) -> int:
    """Returns the number of operations that a module's own weights took in a forward pass.

    The modules within it are not counted.

    For each position of its output, such as a pixel or a token, a module multiplies each of its
    weights with a number of the inputs, and adds up the products. Biases and activations are not
    counted.

    Args:
        result: of the module's forward pass: its output, or a tuple that begins with it.
    """
    output = result
    if isinstance(result, tuple):
        output = result[0]
    if not isinstance(output, Tensor):
        return 0
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):  # it only looks up its weights
        return 0
    weight_count = 0
    for parameter in module.parameters(recurse=False):
        if parameter.dim() > 1:  # not a bias
            weight_count += parameter.numel()
    if isinstance(module, _ConvNd):
        features = output.shape[1]  # an output is (n, features, height, width) or similar
    else:
        features = output.shape[-1]  # an output is (n, …, features)
    positions = output.numel() // features
    return 2 * weight_count * positions


def apply_network(network: nn.Module, batch: BatchContent) -> tuple[Tensor, Any]:
    """Calls a network with the inputs of a batch; returns its outputs, and the targets.

    A batch is (inputs, targets), or (inputs, …, targets) for a network of several arguments. In a
    batch of two, inputs that are a list or tuple are several arguments too, and those that are a
    mapping are arguments by name (see `call_network`).
    """
    if not isinstance(batch, tuple | list):
        raise _make_batch_error(f"a {type(batch).__name__}")
    if len(batch) < 2:
        raise _make_batch_error(f"{len(batch)}")  # "must be (inputs, targets), …; got 1"
    *arguments, targets = batch
    # A subclass, such as a named tuple or a PackedSequence, is one argument.
    if len(arguments) == 1 and type(arguments[0]) in (list, tuple):
        arguments = arguments[0]
    outputs = select_logits(call_network(network, arguments))
    if isinstance(targets, Tensor) and targets.dtype == torch.float64:
        # A Dataset that returns Python's numbers gives targets of float64. The loss would be of
        # float64 too, and so would the gradients of a network of float32.
        targets = targets.to(outputs.dtype)
    return outputs, targets


def _make_batch_error(description: str) -> ValueError:
    """Returns the error for a batch that is not (inputs, targets).

    Args:
        description: what the batch is instead.
    """
    return ValueError(
        "a batch must be (inputs, targets), or (inputs, …, targets) for a network of several; "
        f"got {description}; compute its loss in a custom step, train.step and train.evaluate, "
        f"{TRAIN_IT_YOURSELF}"
    )


def call_network(network: nn.Module, inputs: Sequence[Any]) -> Any:
    """Calls a network with inputs as its arguments, by name if they are a single mapping."""
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return network(**inputs[0])
    return network(*inputs)


def select_logits(outputs: Any) -> Any:
    """Returns the logits of a network of Hugging Face; other outputs are returned unchanged."""
    if hasattr(outputs, "logits"):
        return outputs.logits
    return outputs


def bind_loss(function: CustomStep, loss: Loss) -> CustomStep:
    """Binds a loss to a custom step that has an unbound parameter `loss`."""
    is_bound = isinstance(function, functools.partial) and "loss" in function.keywords
    if is_bound:
        return function
    # A module itself is called as (*args, **kwargs), so that the signature of its forward is read.
    function_with_signature: CustomStep = function
    if isinstance(function, nn.Module):
        function_with_signature = function.forward
    try:
        parameters = inspect.signature(function_with_signature).parameters
    except ValueError:  # a function written in C has no signature
        return function
    if "loss" not in parameters:
        return function
    return functools.partial(function, loss=loss)


@functools.cache
def check_precision(precision: str, device: torch.device) -> None:
    """Raises ValueError if a device cannot compute in a precision.

    Only fp16 is tried, by a forward and a backward pass of a tiny layer.
    """
    if precision != "fp16":
        return
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            # On a device without fp16 autocast has no effect, and only warns: here it raises.
            warnings.simplefilter("error", UserWarning)
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


def _has_three_tensors(result: object) -> TypeGuard[tuple[Tensor, Tensor, Tensor]]:
    """Returns whether the result of a custom step is (loss, outputs, targets)."""
    if not isinstance(result, tuple) or len(result) != 3:
        return False
    return all(isinstance(part, Tensor) for part in result)


def _describe(result: object) -> str:
    """Describes the result of a custom step for an error."""
    if result is None:
        return "None"
    if isinstance(result, Tensor):
        return f"a tensor of the shape {tuple(result.shape)}"
    if isinstance(result, tuple):
        return f"({', '.join(type(part).__name__ for part in result)})"
    return f"a {type(result).__name__}"
