"""Training as a generator of epochs: the caller may report, prune, checkpoint or stop in between.

Nothing here knows why a job is trained, and nothing touches the caller's random state. After any
epoch the state can be saved; training resumes from it later, on any host, as if it had never
stopped.
"""

import contextlib
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import astuple, dataclass, replace
from functools import reduce
from inspect import isroutine
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from studyloom.data.examples import Part
from studyloom.errors import TRAIN_IT_YOURSELF, Diverged
from studyloom.training.batches import Batches, OptimizerStep, make_batches
from studyloom.training.checkpoint import State
from studyloom.training.job import Epoch, Job
from studyloom.training.optimizer import Rates, find_step, make_optimizer
from studyloom.training.randomness import (
    get_host_state,
    make_host_state,
    seeded,
    set_host_state,
)
from studyloom.training.states import load_state, plain_state
from studyloom.training.steps import (
    BatchComputation,
    Loss,
    call_network,
    choose_threads,
    on_threads,
    select_logits,
)

# The states of PyTorch's generators that a job draws from, and last that of Python and NumPy.
JobRandomState = list[Any]


def adapt_to_data(network: nn.Module, loss: object, split: Part, train: Tensor) -> None:
    """Calls the method `adapt(inputs, targets)` of modules that have one, with the training set.

    Such a module computes something from the data, such as means for standardizing or class
    weights. A network keeps that in buffers, which are saved in checkpoints and in winner.pt; a
    loss adapts again when its job is resumed. It sees no example of the validation or test set.

    Only a Split has all inputs in memory. If the data are a Dataset, a loss gets the classes alone,
    and no network may adapt.

    Args:
        loss: a module, or any function, which adapts to nothing.
        train: indices of the training examples, int64 (n,).

    Raises:
        DataError: the data are a Dataset, and the network has such a module, or the loss has one
            and the classes are not known.
    """
    modules_of_network = _find_adapting_modules(network)
    if modules_of_network:
        split.adapt_modules(modules_of_network, train, "network")
    modules_of_loss = _find_adapting_modules(loss)
    if modules_of_loss:
        split.adapt_modules(modules_of_loss, train, "loss")


def _find_adapting_modules(network_or_loss: object) -> list[nn.Module]:
    """Returns the modules in a network or loss that have a method `adapt`."""
    if not isinstance(network_or_loss, nn.Module):
        return []
    adapting_modules = []
    for module in network_or_loss.modules():
        adapt = getattr(module, "adapt", None)
        if isroutine(adapt):  # and not a layer that a user has named `adapt`
            adapting_modules.append(module)
    return adapting_modules


def _copy_adapting_loss(loss: Loss) -> Loss:
    """Returns a loss for one job: a copy if the loss adapts to data, else the loss itself.

    Jobs may share one loss, and each job adapts its own to its training set.
    """
    if _find_adapting_modules(loss):
        return deepcopy(loss)
    return loss


class Average:
    """A copy of a network whose weights are an average of those that it had after each step.

    average = d·average + (1 - d)·weights, with d the smaller of `decay` and (1 + t)/(10 + t) at
    step t, so that the initial weights do not weigh on a short training (as in TensorFlow's
    ExponentialMovingAverage). Buffers, such as the means of a BatchNorm, are those of the network.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = deepcopy(network).requires_grad_(False)
        self._average: list[Tensor] = [*self.network.parameters()]
        self._weights: list[Tensor] = [*network.parameters()]
        # Pairs of a buffer of the average and that of the network.
        self._buffers = [*zip(self.network.buffers(), network.buffers(), strict=True)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the network's weights after a step, counted from 0.

        The decay is smaller in the first steps, so that the average soon forgets the initial
        weights.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        # For all tensors in one call: average += (1 - decay)·(weights - average).
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Copies the network's buffers, which are not averaged, before an evaluation."""
        for average, buffer in self._buffers:
            average.copy_(buffer)


@dataclass(frozen=True)
class BestEpoch:
    """The epoch of a job with the best value so far.

    Attributes:
        weights: the state dict after it; None unless the job keeps its best weights.
    """

    number: int
    value: float
    weights: dict[str, Tensor] | None


@dataclass(frozen=True)
class Score:
    """How good a network is on some examples.

    Attributes:
        loss: the mean over the examples.
        value: the job's metric; NaN if the loss is not finite.
    """

    loss: float
    value: float


class JobRun:
    """A job in training, whose state is complete between epochs.

    A job has its own random state: the states of the generators that it draws from. They replace
    the caller's while the job trains.

    Attributes:
        epoch: the number of epochs so far.
        step_count: the number of optimizer steps so far.
        evaluation_seconds: the time of the last epoch that was spent on evaluation.
        best: the best epoch so far; None before the first.
        random: the states of PyTorch's `generators`, and last that of Python's and NumPy's.
        weights: the parameters that the optimizer trains.
    """

    def __init__(self, job: Job, split: Part) -> None:
        self.job = job
        self.device = split.device
        self.batches: Batches = make_batches(job, split)
        self.epoch = 0
        self.step_count = 0
        self.evaluation_seconds = 0.0
        self.best: BestEpoch | None = None
        self.generators = _find_generators(self.device)
        self.random: JobRandomState = _seed_states(self.generators, job.seed)

        # The network and the loss. The network is made on the CPU, and then moved, so that its
        # initial weights are the same on every device.
        with self.exchange_random_state():
            self.model = job.model(shape=split.shape, outputs=split.outputs)
        self.batches.choose_input_dtype(self.model)
        self.loss = _copy_adapting_loss(job.loss)
        # A custom module may draw random numbers when it adapts. A job that is resumed adapts its
        # loss again, from the same random state, and so alike.
        with self.exchange_random_state():
            adapt_to_data(self.model, self.loss, split, self.batches.train)
        self._move_to_device((self.model, self.loss, job.step, job.evaluate))
        self.computation = BatchComputation(
            self.loss, self.device, job.precision, job.step, job.evaluate
        )

        # The optimizer, and the learning rates that the schedule gives it.
        self.steps_per_epoch = math.ceil(job.samples / (job.batch_size * job.accumulate))
        self.total_steps = job.epochs * self.steps_per_epoch
        self.optimizer = make_optimizer(job.optimizer, self.model, job.groups)
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.rates = Rates(
            job.schedule, self.optimizer, job.epochs, self.steps_per_epoch, job.metric
        )
        self.make_optimizer_step = find_step(self.optimizer)
        self.weights: list[Tensor] = []
        for group in self.optimizer.param_groups:
            self.weights += group["params"]

        # Only some jobs have a scaler of gradients, or an average of the weights.
        self.scaler: torch.amp.GradScaler | None = None
        if job.precision == "fp16":
            self.scaler = torch.amp.GradScaler(self.device.type)
        self.average: Average | None = None
        if job.ema is not None:
            self.average = Average(self.model, job.ema)

    def _move_to_device(self, functions: Sequence[object]) -> None:
        """Moves those of the job's functions that are modules to its device.

        A custom module may draw random numbers when it is moved: it then draws them from the job's
        random state.
        """
        with self.exchange_random_state():
            for function in functions:
                if isinstance(function, nn.Module):
                    function.to(self.device)

    @property
    def evaluated_network(self) -> nn.Module:
        """The network that is evaluated: the average, if there is one."""
        if self.average is None:
            return self.model
        return self.average.network

    @property
    def has_ended(self) -> bool:
        """True once training has ended: after the last epoch, or by early stopping.

        The last epoch is that of `train.until` if it is set, or else the last of `train.epochs`.
        """
        if self.epoch >= self.job.last_epoch:
            return True
        if self.best is None or self.job.patience is None:
            return False
        epochs_since_best = self.epoch - self.best.number
        return epochs_since_best >= self.job.patience

    def select_weights(self) -> dict[str, Tensor]:
        """Returns the state dict of the network that the job results in: its tensors, no copy."""
        if self.best is not None and self.best.weights is not None:
            return self.best.weights
        weights: dict[str, Tensor] = plain_state(self.evaluated_network)
        return weights

    def signature(self) -> State:
        """Returns the settings of the job by name, as numbers and strings.

        The signature is saved with the job's state, so that `restore` refuses the state of a job
        with other settings.
        """
        signature: State = {}
        for name, setting in vars(self.job).items():
            if isinstance(setting, (int, float, str)):
                signature[name] = setting
        signature["device"] = self.device.type
        signature["images"] = len(self.batches.train)
        signature["optimizer"] = type(self.optimizer).__name__
        signature["learning rates"] = self.base_rates
        return signature

    def state(self) -> State:
        """Returns a copy of all that the job needs to resume after its last epoch."""
        state: State = {
            "signature": self.signature(),
            "model": plain_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step_count,
            "random": self.random,
            "rates": self.rates.state(),
            "scaler": None,
            "average": None,
            "best": None,
        }
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if self.average is not None:
            state["average"] = plain_state(self.average.network)
        if self.best is not None:
            # A tuple, since a checkpoint may hold plain values only.
            state["best"] = (self.best.number, self.best.value, self.best.weights)
        return deepcopy(state)

    def restore(self, state: State) -> None:
        """Resumes from a state.

        The state of another job raises one of several exceptions, and leaves this run half
        restored: it must not be used any more.
        """
        self._check_signature(state["signature"])
        load_state(self.model, state["model"])
        # A copy, since the optimizer would train the state's own tensors.
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self.rates.restore(state["rates"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            load_state(self.average.network, state["average"])
        self.best = None
        if state["best"] is not None:
            number, value, weights = state["best"]
            self.best = BestEpoch(int(number), float(value), deepcopy(weights))
        self.epoch = state["epoch"]
        self.step_count = state["step"]
        # The states of PyTorch's generators, and last that of Python's and NumPy's. An earlier
        # version did not save the last one: it then stays as the job's seed made it.
        saved_random = deepcopy(state["random"])
        unsaved_random = self.random[len(saved_random) :]
        self.random = saved_random + unsaved_random

    def _check_signature(self, saved_signature: State) -> None:
        """Raises ValueError if a saved signature differs from this job's; it names the setting."""
        signature = self.signature()
        for name in sorted({*signature, *saved_signature}):
            value = signature.get(name)
            saved_value = saved_signature.get(name)
            if saved_value != value:
                raise ValueError(f"{name} is {saved_value} in the state, {value} here")

    @contextlib.contextmanager
    def exchange_random_state(self) -> Iterator[None]:
        """Sets the job's random state for the body, and restores the caller's afterwards.

        Layers and data sets draw from the global generators of PyTorch, NumPy and Python, and take
        no generator as an argument. So the states of the global ones are exchanged.
        """
        callers_state = self._get_global_states()
        try:
            self._set_global_states(self.random)
            yield
            self.random = self._get_global_states()
        finally:
            self._set_global_states(callers_state)

    def _get_global_states(self) -> JobRandomState:
        """Returns the states of PyTorch's global generators, and last Python's and NumPy's."""
        states: JobRandomState = [generator.get_state() for generator in self.generators]
        states.append(get_host_state())
        return states

    def _set_global_states(self, states: JobRandomState) -> None:
        """Sets the global generators to states that `_get_global_states` has returned."""
        *torch_states, host_state = states
        for generator, state in zip(self.generators, torch_states, strict=True):
            generator.set_state(state)
        set_host_state(host_state)

    def run_epoch(self) -> Epoch:
        """Trains for one epoch and evaluates the validation set."""
        start = perf_counter()
        # The job has its own random state, which replaces the caller's for the epoch.
        with self.exchange_random_state():
            total_loss = torch.zeros((), device=self.device)
            # A signal may have ended the last evaluation before it turned gradients on again.
            with torch.enable_grad():
                # The epoch's order is drawn before the network draws anything, such as dropout.
                steps = self.batches.draw_steps()
                self.model.train()
                for step in steps:
                    total_loss += self.train_step(step)
                train_loss = float(total_loss) / self.job.samples
                training_end = perf_counter()
                score = self.evaluate(self.batches.valid)
        self.epoch += 1
        self.rates.after_epoch(score.value)
        self._update_best(score.value)
        end = perf_counter()
        self.evaluation_seconds = end - training_end
        return Epoch(
            number=self.epoch,
            train_loss=train_loss,
            valid_loss=score.loss,
            value=score.value,
            seconds=end - start,
            samples_per_second=self.job.samples / (training_end - start),
        )

    def _update_best(self, value: float) -> None:
        """Makes the epoch that has ended the best one if its value is better than all before."""
        sign = self.job.metric.sign  # 1 if more is better, else -1
        # A NaN, the value of a diverged epoch, is never better: no comparison with it is true.
        # As the first value it stays the best, but then `Training` raises Diverged.
        is_best = self.best is None or sign * value > sign * self.best.value
        if not is_best:
            return
        weights = None
        if self.job.weights == "best":
            weights = deepcopy(plain_state(self.evaluated_network))
        self.best = BestEpoch(self.epoch, value, weights)

    def train_step(self, step: OptimizerStep) -> Tensor:
        """Makes one step of the optimizer, and returns the sum of its examples' losses, ()."""
        self.rates.before_step(self.step_count / self.total_steps)
        for weight in self.weights:
            weight.grad = None  # as the optimizer's zero_grad does, which takes 0.02 ms more

        total_loss = self._compute_gradients(step)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.job.l1:
            self._add_l1()
        if self.job.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.job.clip_norm)

        if self.scaler is None:
            self.make_optimizer_step()
        else:
            self.scaler.step(self.optimizer)  # makes no step if a gradient is not finite
            self.scaler.update()
        self.rates.after_step()
        if self.average is not None:
            self.average.update(self.step_count)
        self.step_count += 1
        return total_loss

    def _compute_gradients(self, step: OptimizerStep) -> Tensor:
        """Computes the gradients of the mean loss of a step, which may have several batches.

        Returns:
            The sum of the losses of all its examples, a scalar ().
        """
        total_losses = []
        for batch in step.batches:
            loss = self.computation.train(self.model, batch.content)  # the mean over the batch
            total_losses.append(loss.detach() * batch.size)
            # The mean over the step is the sum of the means of its batches, weighted by their size.
            if batch.size != step.size:
                loss = loss * (batch.size / step.size)
            if self.scaler is not None:
                loss = self.scaler.scale(loss)
            loss.backward()  # type: ignore[no-untyped-call]
        return reduce(torch.add, total_losses)

    @torch.no_grad()
    def _add_l1(self) -> None:
        """Adds the subgradient of l1·Σ|w| to the gradients of weight matrices and kernels.

        It takes 0.04 ms a step for 784-128-10; autograd takes 0.14 ms.
        """
        for weight in self.model.parameters():
            if weight.ndim > 1 and weight.grad is not None:
                weight.grad.add_(weight.sign(), alpha=self.job.l1)

    @torch.no_grad()
    def evaluate(self, indices: Tensor) -> Score:
        """Evaluates the network on the examples at indices, int64 (n,)."""
        if self.average is not None:
            # Buffers, such as the statistics of batch norm, are not averaged as the weights are.
            self.average.copy_buffers()
        evaluation = evaluate_examples(
            self.evaluated_network, self.computation, self.batches, indices
        )
        value = math.nan
        if math.isfinite(evaluation.loss):
            value = self.job.metric(evaluation.outputs, evaluation.targets)
        return Score(evaluation.loss, value)


def _find_generators(device: torch.device) -> list[torch.Generator]:
    """Returns PyTorch's global generators that a training on a device draws from."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    return generators


def _seed_states(generators: Sequence[torch.Generator], seed: int) -> JobRandomState:
    """Returns the states of generators with a seed: PyTorch's, and last Python's and NumPy's.

    The generators themselves keep their states.
    """
    states: JobRandomState = []
    for generator in generators:
        seeded_generator = torch.Generator(generator.device).manual_seed(seed)
        states.append(seeded_generator.get_state())
    states.append(make_host_state(seed))
    return states


@dataclass(frozen=True)
class Evaluation:
    """A network's results on some examples, in their order.

    Attributes:
        loss: the mean over the examples.
        outputs: (n, …).
        targets: (n, …).
    """

    loss: float
    outputs: Tensor
    targets: Tensor


def evaluate_examples(
    network: nn.Module, computation: BatchComputation, batches: Batches, indices: Tensor
) -> Evaluation:
    """Evaluates a network in eval mode on the examples at indices, int64 (n,).

    The caller turns gradients off with `no_grad`. Inference mode would be faster, but a network may
    keep what it computes here, such as a mask, and train with it.
    """
    total_loss = torch.zeros((), device=indices.device)
    outputs_of_batches: list[Tensor] = []
    targets_of_batches: list[Tensor] = []
    network.eval()
    for batch in batches.load_batches(indices):
        result = computation.evaluate(network, batch.content, batch.size)
        total_loss += result.loss * batch.size
        outputs_of_batches.append(result.outputs)
        targets_of_batches.append(result.targets)
    return Evaluation(
        loss=float(total_loss) / len(indices),
        outputs=_join_batches("outputs", outputs_of_batches),
        targets=_join_batches("targets", targets_of_batches),
    )


def _join_batches(name: str, tensors: list[Tensor]) -> Tensor:
    """Joins the outputs or targets of all batches to one tensor (n, …).

    Args:
        name: outputs or targets, for the error.

    Raises:
        ValueError: the examples of two batches have different shapes.
    """
    try:
        return torch.cat(tensors)
    except RuntimeError as error:
        shapes = sorted({tuple(tensor.shape[1:]) for tensor in tensors})
        raise ValueError(
            f"the {name} of all examples that are evaluated must have one shape, since "
            f"objective.metric takes them together; got {', '.join(map(str, shapes))}; pad the "
            "examples alike in data.collate, or return a row of one length for each in "
            f"train.evaluate, {TRAIN_IT_YOURSELF}"
        ) from error


Inputs = Tensor | Mapping[str, Tensor] | Sequence[Tensor]


@torch.inference_mode()
def predict_outputs(
    model: nn.Module, inputs: Inputs, size: int | None = None, output: str | int | None = None
) -> Tensor:
    """Runs a network in eval mode on inputs, on the CPU.

    Args:
        inputs: a tensor (n, …), or several in a mapping or a tuple, for a network of several
            arguments.
        size: how many entries of the first dimension of each are a batch; None for one call.
        output: the name or position of one of several outputs; None for `logits`, or the first.

    Returns:
        The output (n, …): float32, or float64 of a network in float64.
    """
    model = model.cpu().eval()
    outputs_of_batches = []
    for arguments in _split_inputs(inputs, size):
        all_outputs = call_network(model, arguments)
        outputs_of_batches.append(_select_output(all_outputs, output))
    if len(outputs_of_batches) == 1:
        return outputs_of_batches[0]  # torch.cat would copy it
    return torch.cat(outputs_of_batches)


def _split_inputs(inputs: Inputs, size: int | None) -> Iterator[Sequence[Any]]:
    """Yields the arguments of each call of a network: tensors, or one mapping of tensors by name.

    `call_network` passes the tensors of a mapping as arguments of these names.

    Args:
        size: how many examples a call has; None for all.
    """
    if isinstance(inputs, Mapping):
        for tensors in _split_tensors([*inputs.values()], size):
            tensors_by_name = dict(zip(inputs, tensors, strict=True))
            yield [tensors_by_name]
    elif isinstance(inputs, Tensor):
        yield from _split_tensors([inputs], size)
    else:
        yield from _split_tensors([*inputs], size)


def _split_tensors(tensors: Sequence[Tensor], size: int | None) -> Iterable[Sequence[Tensor]]:
    """Splits several tensors along their first dimension, and returns the parts of each call.

    Args:
        tensors: the inputs of the same examples, each (n, …).
        size: how many examples a call has; None for all.

    Returns:
        For each call, the part of every tensor.
    """
    if not size:
        return [tensors]
    parts_of_tensors = [torch.split(tensor, size) for tensor in tensors]
    return zip(*parts_of_tensors, strict=True)


def _select_output(outputs: Any, name: str | int | None) -> Tensor:
    """Returns one output tensor of a network, as float32 or float64.

    A network may return a tensor, a mapping, a tuple or a list, and these may be nested. A name
    selects among the outermost outputs; None selects `logits` if there are any. Of outputs that
    are nested in the selected one, the first is taken, at every depth.
    """
    if name is None:
        output = select_logits(outputs)
    else:
        output = _find_output(outputs, name)
    while isinstance(output, tuple | list | Mapping):
        outputs_by_name = _name_outputs(output)
        output = next(iter(outputs_by_name.values()))
    tensor: Tensor = output
    if tensor.dtype == torch.float64:
        return tensor
    return tensor.float()


def _find_output(outputs: object, name: str | int) -> object:
    """Returns the output with a name or position; ValueError if the network has none such."""
    if not isinstance(outputs, tuple | list | Mapping):
        raise ValueError(f"output={name!r}: the network gives one output, which has no name")
    outputs_by_name = _name_outputs(outputs)
    if name not in outputs_by_name:
        raise ValueError(f"output={name!r}: the outputs are {', '.join(map(str, outputs_by_name))}")
    return outputs_by_name[name]


def _name_outputs(
    outputs: Sequence[object] | Mapping[object, object],
) -> dict[object, object]:
    """Returns several outputs by their names, or by their positions if they have no names."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    return dict(enumerate(outputs))


def _zero_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Stands in for a loss whose value is not used; returns 0, a scalar ()."""
    return torch.zeros((), device=outputs.device)


def evaluate_network(
    job: Job, model: nn.Module, split: Part, indices: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Runs a network on examples of a split as the job evaluates them, on the split's device.

    A custom evaluation may draw random numbers. Their generators are seeded by the job's seed, so
    that an evaluation repeats, and have the caller's state again afterwards.

    Args:
        indices: the positions of the examples, int64 (n,); None for all of the split.

    Returns:
        The outputs and the targets, both (n, …).
    """
    device = split.device
    for function in (job.loss, job.evaluate):
        if isinstance(function, nn.Module):
            function.to(device)
    loss = job.loss
    if job.evaluate is None:
        # The value of the loss is not used. It might not be callable either: some losses compute
        # something from a training set before their first call, such as class weights (see
        # `adapt_to_data`). A custom evaluation gets the job's loss, which it may use.
        loss = _zero_loss
    computation = BatchComputation(loss, device, job.precision, evaluate=job.evaluate)

    if indices is None:
        indices = torch.arange(len(split))
    indices = indices.to(device)
    # Only the validation set is replaced, since a job refuses batches larger than its training set.
    batches = make_batches(replace(job, valid=indices), split)
    model = model.to(device)
    batches.choose_input_dtype(model)
    with seeded(job.seed), contextlib.closing(batches), torch.no_grad():
        evaluation = evaluate_examples(model, computation, batches, indices)
    return evaluation.outputs, evaluation.targets


class Training:
    """Jobs in training, to be iterated over: an iteration is one epoch of all of them.

    Each new iteration resumes after the last epoch. Early stopping (`patience`) may end a job
    before the others; until they end, the epoch that it has selected represents it.

    Args:
        jobs: all with the same number of epochs.
        threads: of the processor; None to choose by the size of a step, see `choose_threads`.

    Attributes:
        history: what each iteration so far has yielded, those before a restore included.
        evaluation_seconds: the time spent on evaluation so far, in this process.
        has_ended: whether the last epoch is over, or early stopping has ended all jobs.
    """

    def __init__(self, jobs: Sequence[Job], split: Part, *, threads: int | None = None) -> None:
        last_epochs = {job.last_epoch for job in jobs}
        assert len(last_epochs) == 1, "jobs of one training have as many epochs"
        self._jobs = jobs
        self._split = split
        self.history: list[list[Epoch]] = []
        self.evaluation_seconds = 0.0
        self.has_ended = False
        self._runs = self._make_runs()
        # False while an epoch runs, and after an exception in it: the jobs have then no state that
        # a training could resume from.
        self._is_between_epochs = True
        if threads is None:
            threads = self._choose_threads()
        self.threads = threads

    @property
    def epochs(self) -> int:
        """The number of the last iteration; early stopping makes it smaller."""
        if self.has_ended:
            return len(self.history)
        return self._jobs[0].last_epoch

    def _choose_threads(self) -> int:
        """Returns how many threads the training uses, by the steps of its first job.

        Examples that are not in memory are trained on with all threads that PyTorch may use. The
        choice would take an example, which the Dataset would have to load.
        """
        if not self._split.in_memory:
            return torch.get_num_threads()
        run = self._runs[0]
        first_example = torch.zeros(1, dtype=torch.int64)
        return choose_threads(
            run.model,
            load_example=lambda: run.batches.load_batch(first_example),
            batch_size=run.job.largest_batch_size,
        )

    def _make_runs(self) -> list[JobRun]:
        return [JobRun(job, self._split) for job in self._jobs]

    def close(self) -> None:
        """Ends the processes that load its batches, if there are any.

        Call it after leaving an iteration: Python drops exceptions of generators that it collects.
        """
        for run in self._runs:
            run.batches.close()

    def __iter__(self) -> Iterator[list[Epoch]]:
        """Trains for one epoch after the other, and yields the epoch of each job.

        A caller may leave the iteration after any epoch; the next iteration resumes there.
        """
        while True:
            self._check_between_epochs()
            if self.has_ended:
                self.close()
                return
            self._is_between_epochs = False
            epochs = []
            with on_threads(self.threads):
                for position, run in enumerate(self._runs):
                    if run.has_ended:
                        epochs.append(self._repeat_selected_epoch(position))
                    else:
                        epochs.append(run.run_epoch())
                        self.evaluation_seconds += run.evaluation_seconds
            self._check_losses(epochs)
            self.history.append(epochs)
            # Set only now: another thread that reads it expects the last epoch in the history.
            self.has_ended = self._have_runs_ended()
            self._is_between_epochs = True
            yield epochs

    def _check_losses(self, epochs: Sequence[Epoch]) -> None:
        """Raises Diverged for the first job whose loss is not finite."""
        last_epoch = self._jobs[0].last_epoch
        for position, epoch in enumerate(epochs):
            if not math.isfinite(epoch.train_loss):
                raise Diverged(position, epoch.number, last_epoch, "train", epoch.train_loss)
            if not math.isfinite(epoch.valid_loss):
                raise Diverged(position, epoch.number, last_epoch, "valid", epoch.valid_loss)

    def _have_runs_ended(self) -> bool:
        return all(run.has_ended for run in self._runs)

    def _repeat_selected_epoch(self, position: int) -> Epoch:
        """Returns the next epoch of a job that early stopping has ended before the others.

        It has the values of the epoch that the job has selected, and took no time.

        Args:
            position: of the job among all, from 0.
        """
        job_history = [epochs[position] for epochs in self.history]
        selected_epoch = self._jobs[position].select_epoch(job_history)
        return replace(selected_epoch, number=len(self.history) + 1, seconds=0.0)

    def select_epochs(self) -> list[Epoch]:
        """Returns for each job its selected epoch: the last one, or the best so far.

        The list is empty before the first epoch.
        """
        if not self.history:
            return []
        epochs_by_job = zip(*self.history, strict=True)  # the history has the epochs of all jobs
        selected_epochs = []
        for job, epochs_of_job in zip(self._jobs, epochs_by_job, strict=True):
            selected_epochs.append(job.select_epoch(epochs_of_job))
        return selected_epochs

    def state(self) -> State:
        """Returns a snapshot of all that the training needs to resume after the last epoch.

        torch.load(weights_only=True) reads it. Of a custom class it holds what `state_dict`
        returns, and nothing that the class keeps outside of that.

        Raises:
            RuntimeError: an exception has left an epoch unfinished; the state before it is gone.
        """
        self._check_between_epochs()
        history = []
        for epochs in self.history:
            history.append([list(astuple(epoch)) for epoch in epochs])
        return {"jobs": [run.state() for run in self._runs], "history": history}

    def restore(self, state: State) -> None:
        """Resumes from a state. Nothing has changed if this raises an exception.

        Raises:
            ValueError: the state does not fit: it is of other jobs, or damaged.
        """
        try:
            job_states = state["jobs"]
            history = [_unpack_epochs(rows) for rows in state["history"]]
            runs = self._restore_runs(job_states)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            # A state that does not fit raises one of these; other exceptions are passed on.
            reason = str(error)
            if isinstance(error, KeyError):
                reason = f"{error} is missing"
            raise ValueError(
                f"the state does not fit these jobs: {textwrap.shorten(reason, 300)}"
            ) from error
        self._runs = runs
        self.history = history
        self._is_between_epochs = True
        self.has_ended = self._have_runs_ended()

    def _restore_runs(self, job_states: Sequence[State]) -> list[JobRun]:
        """Returns new runs of the jobs in these states.

        The present runs do not change, so that they stay usable if a state does not fit.

        Raises:
            ValueError: there is another number of states.
            Exception: `JobRun.restore` has raised it for a state that is of another job.
        """
        runs = self._make_runs()
        if len(job_states) != len(runs):
            raise ValueError(f"{len(job_states)} jobs in the state, {len(runs)} here")
        for run, job_state in zip(runs, job_states, strict=True):
            run.restore(job_state)
        return runs

    def weights(self) -> list[dict[str, Tensor]]:
        """Returns the state dict that each job results in: its tensors, and not a copy.

        It is that of the last epoch, or of the best one if the job keeps the best weights. If the
        job averages its weights, it is that of the average.
        """
        return [run.select_weights() for run in self._runs]

    def _check_between_epochs(self) -> None:
        if not self._is_between_epochs:
            raise RuntimeError("the last epoch was left unfinished; restore an earlier state")


def _unpack_epochs(rows: Sequence[Sequence[Any]]) -> list[Epoch]:
    """Returns the epochs of one iteration from their stored numbers."""
    return [Epoch(*numbers) for numbers in rows]
