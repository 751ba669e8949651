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
from dataclasses import astuple, replace
from functools import reduce
from inspect import isroutine
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from studyloom.data.training_data import Part
from studyloom.errors import TRAIN_IT_YOURSELF, Diverged
from studyloom.training.batches import Batches, Sized, make_batches
from studyloom.training.job import Epoch, Job
from studyloom.training.optimizer import Rates, make_optimizer, step_of
from studyloom.training.randomness import host_state, set_host_state
from studyloom.training.states import load_state, plain_state
from studyloom.training.steps import Steps, call_network, choose_threads, on_threads


def adapt_to_data(network: Any, loss: Any, split: Part, train: Tensor) -> None:
    """Shows the training set to each module with a method `adapt(inputs, targets)`, once.

    Their results, such as means for standardizing or class weights, are in buffers, and so in
    checkpoints and winner.pt. They see no example of the validation or test set.
    """
    for name, part in (("network", network), ("loss", loss)):
        if modules := _learners(part):
            split.show(modules, train, name)


def _learners(part: Any) -> list[Any]:
    if not isinstance(part, nn.Module):
        return []
    return [module for module in part.modules() if isroutine(getattr(module, "adapt", None))]


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
        self._buffers = [*zip(self.network.buffers(), network.buffers(), strict=True)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the network's weights after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)

    @torch.no_grad()
    def take_buffers(self) -> None:
        """Copies the network's buffers, before the average is evaluated."""
        for average, buffer in self._buffers:
            average.copy_(buffer)


class JobRun:
    """A job in training, whose state is complete between epochs.

    Attributes:
        epoch: the number of epochs so far.
        evaluating: the seconds of the last epoch that were spent on evaluation.
        best: the epoch with the best value so far, its value and its weights, which are None
            unless they are to be kept.
    """

    def __init__(self, job: Job, split: Part) -> None:
        self.job = job
        self.device = split.device
        self.batches: Batches = make_batches(job, split)
        self.epoch = 0
        self.step = 0
        self.evaluating = 0.0
        self.best: tuple[int, float, dict[str, Tensor] | None] | None = None
        self.generators = [torch.default_generator]
        if self.device.type == "cuda":
            self.generators.append(torch.cuda.default_generators[self.device.index])
        elif self.device.type == "mps":
            self.generators.append(torch.mps._get_default_mps_generator())
        self.random: list[Any] = [
            torch.Generator(g.device).manual_seed(job.seed).get_state() for g in self.generators
        ]
        self.random.append(host_state(job.seed))
        with self.own_randomness():
            # Drawn on the CPU: the same initial weights on every device.
            self.model = job.model(shape=split.shape, outputs=split.outputs)
        self.batches.fit(self.model)
        # Jobs may share one loss; if it adapts to the data, each job needs its own.
        self.loss = deepcopy(job.loss) if _learners(job.loss) else job.loss
        adapt_to_data(self.model, self.loss, split, self.batches.train)
        with self.own_randomness():
            for part in (self.model, self.loss, job.step, job.evaluate):
                if isinstance(part, nn.Module):
                    part.to(self.device)
        self.steps = Steps(self.loss, self.device, job.precision, job.step, job.evaluate)
        self.steps_per_epoch = math.ceil(job.samples / (job.batch_size * job.accumulate))
        self.total_steps = job.epochs * self.steps_per_epoch
        self.optimizer = make_optimizer(job.optimizer, self.model, job.groups)
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.rates = Rates(
            job.schedule, self.optimizer, job.epochs, self.steps_per_epoch, job.metric
        )
        self.optimizer_step = step_of(self.optimizer)
        self.weights = [
            weight for group in self.optimizer.param_groups for weight in group["params"]
        ]
        fp16 = job.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type) if fp16 else None
        self.average = None if job.ema is None else Average(self.model, job.ema)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated: that of the average, if there is one."""
        return self.model if self.average is None else self.average.network

    @property
    def ended(self) -> bool:
        """Whether training has ended: after the last epoch, or by early stopping."""
        best, patience = self.best, self.job.patience
        spent = best is not None and patience is not None and self.epoch - best[0] >= patience
        return spent or self.epoch >= self.job.last

    def kept_weights(self) -> dict[str, Tensor]:
        """Returns the state dict that is kept: its own tensors, not a copy."""
        kept = None if self.best is None else self.best[2]
        return plain_state(self.evaluated) if kept is None else kept

    def signature(self) -> dict[str, Any]:
        """Returns the plain values of the job, so that an error can say what differs."""
        values = vars(self.job).items()
        return {name: value for name, value in values if isinstance(value, (int, float, str))} | {
            "device": self.device.type,
            "images": len(self.batches.train),
            "optimizer": type(self.optimizer).__name__,
            "learning rates": self.base_rates,
        }

    def state(self) -> dict[str, Any]:
        state = {
            "signature": self.signature(),
            "model": plain_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "random": self.random,
            "rates": self.rates.state(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "average": None if self.average is None else plain_state(self.average.network),
            "best": self.best,
        }
        return deepcopy(state)

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state; that of another job raises various exceptions, and is half restored."""
        here, there = self.signature(), state["signature"]
        for name in sorted({*here, *there}):
            if there.get(name) != here.get(name):
                raise ValueError(f"{name} is {there.get(name)} in the state, {here.get(name)} here")
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
            self.best = int(number), float(value), deepcopy(weights)
        self.epoch, self.step = state["epoch"], state["step"]
        saved = deepcopy(state["random"])
        self.random[: len(saved)] = saved  # an earlier version saved only PyTorch's

    @contextlib.contextmanager
    def own_randomness(self) -> Iterator[None]:
        """Sets the job's random state for the body, and restores the caller's afterwards.

        Layers draw from the global generators of PyTorch, NumPy and Python, which is why their
        state is exchanged.
        """
        callers = self._get_random()
        try:
            self._set_random(self.random)
            yield
            self.random = self._get_random()
        finally:
            self._set_random(callers)

    def _get_random(self) -> list[Any]:
        return [*(generator.get_state() for generator in self.generators), host_state()]

    def _set_random(self, states: Sequence[Any]) -> None:
        *of_torch, of_host = states
        for generator, state in zip(self.generators, of_torch, strict=True):
            generator.set_state(state)
        set_host_state(of_host)

    def run_epoch(self) -> Epoch:
        """Trains for one epoch and evaluates the validation set."""
        start = perf_counter()
        with self.own_randomness():
            steps = self.batches.steps()
            total = torch.zeros((), device=self.device)
            # If a signal cuts `no_grad` short as it ends, this one turns gradients on again.
            with torch.enable_grad():
                self.model.train()
                for count, batches in steps:
                    total += self.train_step(count, batches)
                train_loss = float(total) / self.job.samples
                trained = perf_counter()
                valid_loss, value = self.evaluate(self.batches.valid)
        self.epoch += 1
        self.rates.after_epoch(value)
        job = self.job
        if self.best is None or job.metric.sign * value > job.metric.sign * self.best[1]:
            weights = deepcopy(plain_state(self.evaluated)) if job.weights == "best" else None
            self.best = self.epoch, value, weights
        rate, ended = job.samples / (trained - start), perf_counter()
        self.evaluating = ended - trained
        return Epoch(self.epoch, train_loss, valid_loss, value, ended - start, rate)

    def train_step(self, count: int, batches: Iterable[Sized]) -> Tensor:
        """Makes one step of the optimizer, and returns the sum of its examples' losses."""
        self.rates.before_step(self.step / self.total_steps)
        for weight in self.weights:
            weight.grad = None  # as zero_grad does, which takes 0.02 ms for it
        total = self._backward(count, batches)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.job.l1:
            self._add_l1()
        if self.job.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.job.clip)
        if self.scaler is None:
            self.optimizer_step()
        else:
            self.scaler.step(self.optimizer)  # unless a gradient is not finite
            self.scaler.update()
        self.rates.after_step()
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1
        return total

    def _backward(self, count: int, batches: Iterable[Sized]) -> Tensor:
        """Adds the gradients of batches to those of the weights; returns the sum of the losses."""
        losses = []
        for batch, size in batches:
            loss = self.steps.train(self.model, batch)
            # Gradients add up to that of the mean over all examples of the step.
            share = loss if size == count else loss * (size / count)
            scaled = share if self.scaler is None else self.scaler.scale(share)
            scaled.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach() * size)
        return reduce(torch.add, losses)

    @torch.no_grad()
    def _add_l1(self) -> None:
        """Adds the subgradient of l1·Σ|w| to the gradients.

        It takes 0.04 ms a step for 784-128-10; autograd takes 0.14 ms.
        """
        for weight in self.model.parameters():
            if weight.ndim > 1 and weight.grad is not None:
                weight.grad.add_(weight.sign(), alpha=self.job.l1)

    @torch.no_grad()
    def evaluate(self, indices: Tensor) -> tuple[float, float]:
        """Returns the mean loss and the metric on examples; NaN if the loss is not finite."""
        if self.average is not None:
            self.average.take_buffers()
        loss, outputs, targets = evaluate_part(self.evaluated, self.steps, self.batches, indices)
        if not math.isfinite(loss):
            return loss, math.nan
        return loss, self.job.metric(outputs, targets)


def evaluate_part(
    network: nn.Module, steps: Steps, batches: Batches, indices: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Evaluates a network in eval mode: returns its mean loss, outputs (n, …) and targets (n, …).

    Its callers turn gradients off, and not by inference mode: a network may keep what it computes
    here, such as a mask, and train with it.
    """
    total = torch.zeros((), device=indices.device)
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    network.eval()
    for batch, count in batches.part(indices):
        loss, predicted, wanted = steps.evaluate(network, batch, count)
        total += loss * count
        outputs.append(predicted)
        targets.append(wanted)
    return float(total) / len(indices), _joined("outputs", outputs), _joined("targets", targets)


def _joined(name: str, batches: list[Tensor]) -> Tensor:
    try:
        return torch.cat(batches)
    except RuntimeError as error:
        shapes = sorted({tuple(batch.shape[1:]) for batch in batches})
        raise ValueError(
            f"the {name} of all examples that are evaluated must have one shape, since "
            f"objective.metric takes them together; got {', '.join(map(str, shapes))}; pad the "
            "examples alike in data.collate, or return a row of one length for each in "
            f"train.evaluate, {TRAIN_IT_YOURSELF}"
        ) from error


@torch.inference_mode()
def predict_outputs(
    model: nn.Module, inputs: Any, size: int | None = None, output: str | int | None = None
) -> Tensor:
    """Runs a network in eval mode on inputs, on the CPU.

    Args:
        inputs: a tensor, or several in a mapping or a tuple, for a network of several arguments.
        size: how many entries of the first dimension of each are a batch; None for one call.
        output: the name or position of one of several outputs; None for `logits`, or the first.

    Returns:
        The output: float32, or float64 of a network in float64.
    """
    names = [*inputs] if isinstance(inputs, Mapping) else []
    parts = [inputs] if isinstance(inputs, Tensor) else [*(inputs.values() if names else inputs)]
    split = (torch.split(part, size) for part in parts) if size else ()
    batches: Iterable[Any] = zip(*split, strict=True) if size else [parts]
    calls = ([dict(zip(names, each, strict=True))] if names else each for each in batches)
    model = model.cpu().eval()
    outputs = [_select_output(call_network(model, call), output) for call in calls]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _select_output(outputs: Any, name: str | int | None) -> Tensor:
    """Returns one of several outputs: of a mapping, a tuple or a list."""
    if name is None:
        outputs = getattr(outputs, "logits", outputs)  # as networks of Hugging Face have them
    while isinstance(outputs, tuple | list | Mapping):
        several = dict(outputs if isinstance(outputs, Mapping) else enumerate(outputs))
        if name is not None and name not in several:
            raise ValueError(f"output={name!r}: the outputs are {', '.join(map(str, several))}")
        outputs, name = several[next(iter(several)) if name is None else name], None
    if name is not None:
        raise ValueError(f"output={name!r}: the network gives one output, which has no name")
    result: Tensor = outputs if outputs.dtype == torch.float64 else outputs.float()
    return result


def evaluate_network(
    job: Job, model: nn.Module, split: Part, indices: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Runs a network on examples of a split as the job evaluates them, on the split's device.

    Returns the outputs and the targets, both (n, …).
    """

    def no_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros((), device=outputs.device)

    device = split.device
    for part in (job.loss, job.evaluate):
        if isinstance(part, nn.Module):
            part.to(device)
    # The loss of the job may have to adapt to data before it can be called.
    loss = no_loss if job.evaluate is None else job.loss
    steps = Steps(loss, device, job.precision, evaluate=job.evaluate)
    everything = (torch.arange(len(split)) if indices is None else indices).to(device)
    # The training set stays: a batch of it may have more examples than are evaluated here.
    batches = make_batches(replace(job, valid=everything), split)
    model = model.to(device)
    batches.fit(model)
    with contextlib.closing(batches), torch.no_grad():
        return evaluate_part(model, steps, batches, everything)[1:]


class Training:
    """Jobs in training, to be iterated over: an iteration is one epoch of all of them.

    Each new iteration resumes after the last epoch. Early stopping (`patience`) may end a job; its
    kept epoch then represents it until the others end.

    Args:
        jobs: all with the same number of epochs.
        threads: of the processor; None for as many as the steps are worth.

    Attributes:
        history: what each iteration so far has yielded, those before a restore included.
        evaluating: the seconds spent on evaluation so far, in this process.
    """

    def __init__(self, jobs: Sequence[Job], split: Part, *, threads: int | None = None) -> None:
        assert len({job.last for job in jobs}) == 1, "jobs of one training have as many epochs"
        self._jobs = jobs
        self._split = split
        self.history: list[list[Epoch]] = []
        self.evaluating = 0.0
        self.ended = False
        self._runs = self._begin()
        self._whole = True
        self.threads = threads or torch.get_num_threads()
        if threads is None and split.in_memory:  # to load an example may take processes
            first, run = torch.zeros(1, dtype=torch.int64), self._runs[0]
            self.threads = choose_threads(
                run.model, lambda: run.batches.at(first), jobs[0].batch_size
            )

    @property
    def epochs(self) -> int:
        """The number of the last iteration; early stopping makes it smaller."""
        return len(self.history) if self.ended else self._jobs[0].last

    def _begin(self) -> list[JobRun]:
        return [JobRun(job, self._split) for job in self._jobs]

    def close(self) -> None:
        """Ends the processes that load its batches, if there are any.

        Call it after leaving an iteration: Python drops exceptions of generators that it collects.
        """
        for run in self._runs:
            run.batches.close()

    def __iter__(self) -> Iterator[list[Epoch]]:
        while True:
            self._check_whole()
            if self.ended:
                return self.close()
            self._whole = False
            going = [run for run in self._runs if not run.ended]
            with on_threads(self.threads):
                results = [
                    run.run_epoch() if run in going else self._stand_in(at)
                    for at, run in enumerate(self._runs)
                ]
            self.evaluating += sum(run.evaluating for run in going)
            for job, epoch in enumerate(results):
                for part, loss in (("train", epoch.train_loss), ("valid", epoch.valid_loss)):
                    if not math.isfinite(loss):
                        raise Diverged(job, epoch.number, self._jobs[0].last, part, loss)
            self.history.append(results)
            self.ended = self._has_ended()  # last: a thread that reports reads it
            self._whole = True
            yield results

    def _has_ended(self) -> bool:
        return all(run.ended for run in self._runs)

    def _stand_in(self, position: int) -> Epoch:
        """Returns the epoch that represents a job which has ended before the others."""
        kept = self._runs[position].job.kept([epochs[position] for epochs in self.history])
        return replace(kept, number=len(self.history) + 1, seconds=0.0)

    def kept(self) -> list[Epoch]:
        """Returns the epoch of each job so far whose value is that of the job."""
        columns = zip(*self.history, strict=True)
        return [job.kept(column) for job, column in zip(self._jobs, columns, strict=False)]

    def state(self) -> dict[str, Any]:
        """Returns a snapshot of all that the training needs to resume after this epoch.

        torch.load(weights_only=True) reads it. It holds the state_dict of model and optimizer, and
        not what a custom class keeps outside of it.

        Raises:
            RuntimeError: an exception has left an epoch unfinished; the state before it is gone.
        """
        self._check_whole()
        history = [[list(astuple(epoch)) for epoch in epochs] for epochs in self.history]
        return {"jobs": [run.state() for run in self._runs], "history": history}

    def restore(self, state: dict[str, Any]) -> None:
        """Resumes from a state.

        Raises:
            ValueError: the state is of other jobs; nothing has changed.
        """
        try:
            saved_jobs = state["jobs"]
            history = [[Epoch(*numbers) for numbers in epochs] for epochs in state["history"]]
            runs = self._begin()
            if len(saved_jobs) != len(runs):
                raise ValueError(f"{len(saved_jobs)} jobs in the state, {len(runs)} here")
            for run, saved in zip(runs, saved_jobs, strict=True):
                run.restore(saved)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"the state does not fit these jobs: {textwrap.shorten(reason, 300)}"
            ) from error
        self._runs, self.history, self._whole = runs, history, True
        self.ended = self._has_ended()

    def weights(self) -> list[dict[str, Tensor]]:
        """Returns the state dict that is kept of each job's network: its own tensors, not a copy.

        It is that of the average, if there is one, and of the best epoch, if that is kept.
        """
        return [run.kept_weights() for run in self._runs]

    def _check_whole(self) -> None:
        if not self._whole:
            raise RuntimeError("the last epoch was left unfinished; restore an earlier state")
