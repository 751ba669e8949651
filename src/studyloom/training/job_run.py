"""A job in training: its network, optimizer, rates, average and random state, epoch by epoch."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import MISSING, fields
from functools import partial
from statistics import fmean
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from studyloom.data.training_data import Part
from studyloom.errors import TRAIN_IT_YOURSELF
from studyloom.seeds import derive
from studyloom.training.batches import Batches, make_batches
from studyloom.training.ema import Average
from studyloom.training.job import Epoch, Job
from studyloom.training.optimizer_step import ScaledSteps, avoid_compiler_import, fast_step
from studyloom.training.parameter_groups import make_optimizer
from studyloom.training.ranks import ALONE, Ranks
from studyloom.training.schedule import make_rates
from studyloom.training.steps import Steps, backpropagate

T = TypeVar("T")


def adapt_to_data(network: Any, loss: Any, split: Part, train: Tensor) -> None:
    """Shows the training part to each module with a method `adapt(inputs, targets)`.

    This happens once, before the first step. What the modules learn, such as means to standardise
    by or weights of classes, is in their buffers and so in checkpoints and winner.pt. They see no
    example that is validated or tested.

    Inputs that are whole numbers are shown as float32.

    Args:
        network: the network.
        loss: the loss; it is passed over if it is no module.
        split: the examples.
        train: the indices of the training part, int64 (n,).

    Raises:
        DataError: the examples are not in memory, and cannot be shown.
    """
    for name, part in (("network", network), ("loss", loss)):
        if modules := learners(part):
            split.show(modules, train, name)


def learners(part: Any) -> list[Any]:
    """Returns those of a module and the modules within it that have a method `adapt`."""
    if not isinstance(part, nn.Module):
        return []
    return [module for module in part.modules() if callable(getattr(module, "adapt", None))]


class JobRun:
    """A job in training: between epochs its state is all of it.

    Args:
        job: the job.
        split: the examples, on the device to train on.
        ranks: the processes that train the job together.

    Attributes:
        epoch: the number of epochs so far.
        evaluating: the seconds of the last epoch that were spent on evaluation.
        best: the epoch with the best value so far, its value and its weights; the weights are None
            unless they are to be kept.
    """

    def __init__(self, job: Job, split: Part, ranks: Ranks = ALONE) -> None:
        self.job, self.ranks = job, ranks
        self.device = split.device
        self.batches = make_batches(job, split, ranks)
        self.epoch = 0
        self.step = 0
        self.evaluating = 0.0
        self.best: tuple[int, float, dict[str, Tensor] | None] | None = None
        self.generators = [torch.default_generator]
        if self.device.type == "cuda":
            self.generators.append(torch.cuda.default_generators[self.device.index])
        self.random = [
            torch.Generator(g.device).manual_seed(job.seed).get_state() for g in self.generators
        ]
        # Drawn on the CPU: the same initial weights on every device.
        model = self.with_own_randomness(
            lambda: job.model(shape=split.shape, outputs=split.outputs)
        )
        self.batches.fit(model)
        # Jobs may share one loss; if it adapts to the data, each job needs its own.
        self.loss = deepcopy(job.loss) if learners(job.loss) else job.loss
        adapt_to_data(model, self.loss, split, self.batches.train)
        # PyTorch turns gradients off while it moves parameters: a signal must not leave them off.
        self.model = self.with_own_randomness(lambda: model.to(self.device))
        for part in (self.loss, job.step, job.evaluate):
            if isinstance(part, nn.Module):
                self.with_own_randomness(partial(part.to, self.device))
        self.steps = Steps(self.loss, self.device, job.precision, job.step, job.evaluate)
        self.steps_per_epoch = math.ceil(job.samples / (job.batch_size * job.accumulate))
        self.total_steps = job.epochs * self.steps_per_epoch
        avoid_compiler_import()
        self.optimizer = make_optimizer(job.optimizer, self.model, job.groups)
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.rates = make_rates(
            job.schedule, self.optimizer, job.epochs, self.steps_per_epoch, job.metric
        )
        self.optimizer_step = fast_step(self.optimizer)
        self.weights = [
            weight for group in self.optimizer.param_groups for weight in group["params"]
        ]
        fp16 = job.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type) if fp16 else None
        self.scaled_steps = (
            None if self.scaler is None else ScaledSteps(self.optimizer, self.scaler)
        )
        self.average = None if job.ema is None else Average(self.model, job.ema)
        self.aligned = ranks.alone  # whether all ranks have the weights of rank 0

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated: that of the average, if there is one."""
        return self.model if self.average is None else self.average.network

    @property
    def ended(self) -> bool:
        """Whether there is no epoch to come: it was the last, or patience is at its end."""
        best, patience = self.best, self.job.patience
        spent = best is not None and patience is not None and self.epoch - best[0] >= patience
        return spent or self.epoch >= self.job.last

    def kept_weights(self) -> dict[str, Tensor]:
        """Returns the state dict that is kept: its own tensors, not a copy."""
        if self.best is not None and self.best[2] is not None:
            return self.best[2]
        return self.evaluated.state_dict()

    def signature(self) -> dict[str, Any]:
        """Returns the plain values of the job, by which the state of another job is recognised.

        The refusal can then say in plain words what differs, even where PyTorch would not notice.
        """
        values = {field.name: getattr(self.job, field.name) for field in fields(self.job)}
        return {
            name: value for name, value in values.items() if isinstance(value, (int, float, str))
        } | {
            "device": self.device.type,
            "images": len(self.batches.train),
            "optimizer": type(self.optimizer).__name__,
            "learning rates": self.base_rates,
        }

    def state(self) -> dict[str, Any]:
        state = {
            "signature": self.signature(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "random": self.random,
            "rates": self.rates.state(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "average": None if self.average is None else self.average.network.state_dict(),
            "best": self.best,
        }
        return deepcopy({name: part for name, part in state.items() if part is not None})

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state; one of another job raises any of several exceptions, half done."""
        here, there = self.signature(), state["signature"]
        # A state from before a field existed has its default.
        defaults = {
            field.name: field.default for field in fields(self.job) if field.default is not MISSING
        }
        for name in sorted({*here, *there}):
            if (before := there.get(name, defaults.get(name))) != here.get(name):
                raise ValueError(f"{name} is {before} in the state, {here.get(name)} here")
        self.model.load_state_dict(state["model"])
        # A copy, since the optimizer would train the state's own tensors.
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self.rates.restore(state.get("rates"))
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.network.load_state_dict(state["average"])
        self.best = None
        if "best" in state:
            number, value, weights = state["best"]
            self.best = int(number), float(value), deepcopy(weights)
        self.epoch, self.step = state["epoch"], state["step"]
        if self.step != self.epoch * self.steps_per_epoch:
            raise ValueError(
                f"step {self.step} at epoch {self.epoch}, but an epoch has {self.steps_per_epoch}"
            )
        for generator, random in zip(self.generators, state["random"], strict=True):
            torch.Generator(generator.device).set_state(random)  # raises if it is not a state
        self.random = deepcopy(state["random"])

    def with_own_randomness(self, work: Callable[[], T]) -> T:
        """Calls a function with the job's random state, and gives the caller's state back.

        Layers draw from the global generators, which is why their state is exchanged.
        """
        callers = [generator.get_state() for generator in self.generators]
        give_back = map(torch.Generator.set_state, self.generators, callers)
        grad = torch.is_grad_enabled()
        try:
            for generator, state in zip(self.generators, self.random, strict=True):
                generator.set_state(state)
            result = work()
            self.random = [generator.get_state() for generator in self.generators]
            return result
        finally:
            # One call into C, which no signal handler's exception can cut in two. PyTorch's
            # contexts can be cut: 5 of 5 000 interrupts left gradients off.
            list(give_back)
            torch.set_grad_enabled(grad)

    def run_epoch(self) -> Epoch:
        """Trains for one epoch and evaluates the validation part."""
        start = perf_counter()
        if not self.aligned:  # they differ if the user's code draws from generators of its own
            self.ranks.copy_from_first(self.model.state_dict().values())
            self.aligned = True
        with contextlib.ExitStack() as noise:
            train_loss = self.fit(noise)
            # Such as the means of a BatchNorm, which has seen this rank's shares alone.
            self.ranks.copy_from_first(self.model.buffers())
            trained = perf_counter()
            valid_loss, value = self.evaluate(self.batches.valid)
        self.epoch += 1
        self.rates.after_epoch(value)
        self.note_best(value)
        rate, ended = self.job.samples / (trained - start), perf_counter()
        self.evaluating = ended - trained
        return Epoch(self.epoch, train_loss, valid_loss, value, ended - start, rate)

    def note_best(self, value: float) -> None:
        """Notes the value of this epoch, and its weights, if it is better than all before."""
        job = self.job
        if job.patience is None and job.keep != "best":
            return
        if self.best is None or job.metric.sign * value > job.metric.sign * self.best[1]:
            weights = deepcopy(self.evaluated.state_dict()) if job.keep == "best" else None
            self.best = self.epoch, value, weights

    def fit(self, noise: contextlib.ExitStack) -> float:
        """Makes one pass over the epoch's examples in a fresh order.

        Only its end waits for the device.

        Args:
            noise: entered with the random state of this rank, once the order is drawn.

        Returns:
            the mean loss.
        """
        total = torch.zeros((), device=self.device)
        self.model.train()
        steps = iter(self.batches.steps())
        first = next(steps)
        noise.enter_context(self.noise())
        for count, batches in itertools.chain([first], steps):
            total += self.train_step(count, batches)
        return float(total) / self.job.samples

    @contextlib.contextmanager
    def noise(self) -> Iterator[None]:
        """Gives each of several ranks random numbers of its own while the body runs.

        They follow from the job's seed, the epoch and the rank. What all ranks draw alike, such as
        the order of the examples, goes on from where it was.
        """
        if self.ranks.alone:
            yield
            return
        common = [generator.get_state() for generator in self.generators]
        for generator in self.generators:
            generator.manual_seed(derive(self.job.seed, self.epoch, self.ranks.rank))
        yield
        for generator, state in zip(self.generators, common, strict=True):
            generator.set_state(state)

    def train_step(self, count: int, batches: Iterable[tuple[Any, int]]) -> Tensor:
        """Makes one step of the optimizer.

        Args:
            count: how many examples all batches have.
            batches: of this rank, each with the number of its examples.

        Returns:
            the sum of the losses of the examples.
        """
        self.rates.before_step(self.step / self.total_steps)
        for weight in self.weights:
            weight.grad = None  # as zero_grad does, which takes 0.02 ms for it
        if self.ranks.alone:
            total = self.backward(count, batches)
        else:
            total = self.ranks.sum_gradients(self.weights, lambda: self.backward(count, batches))
        if self.scaled_steps is not None:
            self.scaled_steps.unscale()
        if self.job.l1:
            self.add_l1()
        if self.job.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.job.clip)
        if self.scaled_steps is None:
            self.optimizer_step()
        else:
            self.scaled_steps.make_step()
        self.rates.after_step()
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1
        return total

    def backward(self, count: int, batches: Iterable[tuple[Any, int]]) -> Tensor:
        """Adds the gradients of batches to those of the weights.

        Args:
            count: how many examples the whole step has.
            batches: each with the number of its examples.

        Returns:
            the sum of the losses of the examples.
        """
        total: Tensor | None = None
        for batch, size in batches:
            loss = self.steps.train(self.model, batch)
            # Gradients add up to that of the mean over all examples of the step.
            share = loss if size == count else loss * (size / count)
            scaled = share if self.scaler is None else self.scaler.scale(share)
            backpropagate(scaled)
            part = loss.detach() * size
            total = part if total is None else total + part
        if total is None:  # fewer examples than ranks
            total = torch.zeros((), device=self.device)
        return total

    @torch.no_grad()
    def add_l1(self) -> None:
        """Adds the subgradient of l1·Σ|w| to the gradients.

        It takes 0.04 ms a step for 784-128-10; autograd takes 0.14 ms.
        """
        for weight in self.model.parameters():
            if weight.ndim > 1 and weight.grad is not None:
                weight.grad.add_(weight.sign(), alpha=self.job.l1)

    @torch.inference_mode()
    def evaluate(self, indices: Tensor) -> tuple[float, float]:
        """Evaluates the network on the examples at `indices`, int64 (n,).

        Returns:
            the mean loss and the metric, which is NaN if the loss is not finite.
        """
        if self.average is not None:
            self.average.take_buffers()
        share = self.ranks.share(indices)

        def work() -> tuple[float, Tensor, Tensor] | None:
            if not len(share):
                return None
            return evaluate_part(self.evaluated, self.steps, self.batches, share)

        return self.ranks.agree(work, self.judge)

    def judge(self, parts: Sequence[tuple[float, Tensor, Tensor] | None]) -> tuple[float, float]:
        """Returns loss and metric of the whole, given those of the share of each rank."""
        losses, outputs, targets = zip(*filter(None, parts), strict=True)
        loss = losses[0] if len(losses) == 1 else fmean(losses, map(len, targets))
        if not math.isfinite(loss):
            return loss, math.nan
        if len(losses) == 1:
            return loss, self.job.metric(outputs[0], targets[0])
        whole = [torch.cat([part.to(self.device) for part in kind]) for kind in (outputs, targets)]
        return loss, self.job.metric(*whole)


def evaluate_part(
    network: nn.Module, steps: Steps, batches: Batches, indices: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Evaluates a network in eval mode on a part of the data, batch by batch.

    Its callers are in inference mode. Two guards, one within the other, are undone in the wrong
    order if a signal cuts them short, and gradients stay off.

    Args:
        network: on the device of the batches.
        steps: compute a batch.
        batches: of the data.
        indices: of the part, int64 (n,).

    Returns:
        the mean loss, and the outputs (n, …) and targets (n, …).
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
    """Joins what the batches of a part have given."""
    try:
        return torch.cat(batches)
    except RuntimeError as error:
        shapes = sorted({tuple(batch.shape[1:]) for batch in batches})
        raise ValueError(
            f"the {name} of all examples that are evaluated must have one shape, since "
            f"objective.metric judges them together; got {', '.join(map(str, shapes))}; pad the "
            "examples alike in data.collate, or return a row of one length for each in "
            f"train.evaluate, {TRAIN_IT_YOURSELF}"
        ) from error
