"""Training as a generator: one Epoch per job and epoch. Whoever iterates may report, prune, checkpoint or stop.

It knows nothing about why a job is trained, and nothing of the caller's random state. After any epoch it can be saved
and gone on with, elsewhere and later, as if it had never stopped.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import astuple, fields
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from studyloom.data.split import Split
from studyloom.errors import Diverged
from studyloom.training.job import Epoch, Job
from studyloom.training.optimizer_step import avoid_compiler_import, fast_step

T = TypeVar("T")
# On a CPU a convolution's outputs should stay in the cache: 2 000 images a call take up to twice as long as 256.
EVALUATION_BATCH = {"cpu": 256, "cuda": 4096}


def epochs(jobs: Sequence[Job], split: Split) -> Iterator[list[Epoch]]:
    """Trains all jobs in lockstep on the split's device: yields one Epoch per job, in their order, after each epoch.

    A job's numbers do not depend on its neighbours. Raises Diverged at the end of the epoch that lost the way.
    """
    return iter(Training(jobs, split))


@torch.inference_mode()
def predict_outputs(model: nn.Module, images: Tensor, precision: str = "fp32") -> Tensor:
    """A network's outputs (n, outputs) in float32 for normalised images, on their device."""
    model = model.to(images.device).eval()
    parts = []
    for batch in torch.split(images, EVALUATION_BATCH[images.device.type]):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            parts.append(model(batch).float())
    return torch.cat(parts)


class Training:
    """The same, for whoever wants to stop and go on: each iteration goes on after the last finished epoch.

    in_turn: each job is trained to its end before the next one begins, and an iteration is an epoch of that one job.
    epochs: how many iterations there are to be. stride: how many of them lead to something that can be compared: one in
    lockstep, those of a whole job in turn. said: what they said so far, one list each, those before a restore included.
    """

    def __init__(self, jobs: Sequence[Job], split: Split, *, in_turn: bool = False) -> None:
        assert len({job.epochs for job in jobs}) == 1, "jobs of one training have as many epochs"
        self._heats = (
            [[job] for job in jobs] if in_turn else [jobs]
        )  # one after the other; lockstep within each
        self._heat_epochs = jobs[0].epochs
        self._split = split
        self.epochs = self._heat_epochs * len(self._heats)
        self.stride = self._heat_epochs if in_turn else 1
        self.said: list[list[Epoch]] = []
        self.evaluating = 0.0  # seconds of evaluation so far, here
        self._runs = self._begin(0)
        self._whole = True

    def _begin(self, heat: int) -> "list[JobRun]":
        return [JobRun(job, self._split) for job in self._heats[heat]]

    def __iter__(self) -> Iterator[list[Epoch]]:
        while len(self.said) < self.epochs:
            self._check_whole()
            self._whole = False
            heat, done = divmod(len(self.said), self._heat_epochs)
            if heat and not done:
                self._runs.clear()  # before the next job takes its memory
                self._runs = self._begin(heat)
            said = [run.with_own_randomness(run.run_epoch) for run in self._runs]
            self.evaluating += sum(run.evaluating for run in self._runs)
            for job, epoch in enumerate(said, heat):
                for part, loss in (("train", epoch.train_loss), ("valid", epoch.valid_loss)):
                    if not math.isfinite(loss):
                        raise Diverged(job, epoch.number, self._heat_epochs, part, loss)
            self.said.append(said)
            self._whole = True
            yield said

    def state(self) -> dict[str, Any]:
        """All that training is at the end of an epoch, as torch.load(weights_only=True) reads it.

        A snapshot that later epochs leave alone: the copy takes a small part of the time of writing it. Of model and
        optimizer it holds the state_dict; what a class of one's own keeps elsewhere is not in it. Of jobs in turn it
        holds the one under way, and what the others said. Raises RuntimeError if an exception has left an epoch
        unfinished, since the state of the epoch before is gone by then.
        """
        self._check_whole()
        said = [[list(astuple(epoch)) for epoch in epochs] for epochs in self.said]
        return {"jobs": [run.state() for run in self._runs], "said": said}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state. Raises ValueError, and changes nothing, if it is of other jobs."""
        told = len(state.get("said") or ())
        heat = min(
            max(0, told - 1) // self._heat_epochs, len(self._heats) - 1
        )  # the last that has begun
        runs = self._begin(heat)
        try:
            if len(state["jobs"]) != len(runs):
                raise ValueError(f"{len(state['jobs'])} jobs in the state, {len(runs)} here")
            for run, saved in zip(runs, state["jobs"], strict=True):
                run.restore(saved)
            said = [[Epoch(*numbers) for numbers in epochs] for epochs in state["said"]]
            epoch = told - heat * self._heat_epochs
            if any(len(epochs) != len(runs) for epochs in said) or {run.epoch for run in runs} != {
                epoch
            }:
                raise ValueError("its epochs are not as many as it tells of")
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"the state does not fit these jobs: {textwrap.shorten(reason, 300)}"
            ) from error
        self._runs, self.said, self._whole = runs, said, True

    def weights(self) -> list[dict[str, Tensor]]:
        """The weights and buffers of each job's network, by name; those of training themselves, and no copy."""
        return [run.model.state_dict() for run in self._runs]

    def _check_whole(self) -> None:
        if not self._whole:
            raise RuntimeError("the last epoch was left unfinished: restore a state of before")


def adapt_to_data(parts: Iterable[Any], split: Split, train: Tensor) -> None:
    """Shows the training part to all modules that have a method `adapt(inputs, targets)`, once before the first step.

    What they learn of it, such as means to standardise by or weights of classes, lies in their buffers and so in
    checkpoints and winner.pt; no example that is validated or tested has a part in it.
    """
    if found := [learn for part in parts for learn in learners(part)]:
        inputs, targets = split.inputs[train], split.targets[train]
        for learn in found:
            learn(inputs, targets)


def learners(part: Any) -> list[Callable[[Tensor, Tensor], None]]:
    """The methods `adapt` of a module and those within it."""
    if not isinstance(part, nn.Module):
        return []
    return [learn for module in part.modules() if callable(learn := getattr(module, "adapt", None))]


class JobRun:
    """A job under way: its model, optimizer, counters and random state are all there is to save at an epoch's end."""

    def __init__(self, job: Job, split: Split) -> None:
        self.job = job
        self.split = split
        self.device = split.inputs.device
        self.train = job.train.to(self.device)
        self.valid = job.valid.to(self.device)
        self.epoch = 0
        self.step = 0
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
        self.loss = (
            deepcopy(job.loss) if learners(job.loss) else job.loss
        )  # one that all jobs have learns for each
        adapt_to_data((model, self.loss), split, self.train)
        self.model = model.to(self.device)
        if isinstance(self.loss, nn.Module):
            self.loss.to(self.device)
        avoid_compiler_import()
        self.optimizer = job.optimizer(self.model.parameters())
        self.optimizer_step = fast_step(self.optimizer)
        self.weights = [
            weight for group in self.optimizer.param_groups for weight in group["params"]
        ]
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.steps_per_epoch = math.ceil(job.samples / job.batch_size)
        self.total_steps = job.epochs * self.steps_per_epoch

    def signature(self) -> dict[str, Any]:
        """What tells another job's state in plain words, and where PyTorch would not notice: all that is a number."""
        plain = {field.name: getattr(self.job, field.name) for field in fields(self.job)}
        return {
            name: value for name, value in plain.items() if isinstance(value, (int, float, str))
        } | {
            "device": self.device.type,
            "images": len(self.train),
            "optimizer": type(self.optimizer).__name__,
            "learning rates": [float(rate) for rate in self.rates],
        }

    def state(self) -> dict[str, Any]:
        state = {
            "signature": self.signature(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "random": self.random,
        }
        return deepcopy(state)

    def restore(self, state: dict[str, Any]) -> None:
        """If the state is of another job, raises one of several exceptions when half done."""
        here, there = self.signature(), state["signature"]
        for name in sorted({*here, *there}):
            if there.get(name) != here.get(name):
                raise ValueError(f"{name} is {there.get(name)} in the state, {here.get(name)} here")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(
            deepcopy(state["optimizer"])
        )  # it would train the state's own tensors
        self.epoch, self.step = state["epoch"], state["step"]
        if self.step != self.epoch * self.steps_per_epoch:
            raise ValueError(
                f"step {self.step} at epoch {self.epoch}, where an epoch has {self.steps_per_epoch}"
            )
        for generator, random in zip(self.generators, state["random"], strict=True):
            torch.Generator(generator.device).set_state(random)  # raises if it is none
        self.random = deepcopy(state["random"])

    def with_own_randomness(self, work: Callable[[], T]) -> T:
        """Layers draw from the global generators; this lends them the job's state and gives the caller's back."""
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
            list(give_back)  # one call into C, which no signal handler's exception can cut in two
            torch.set_grad_enabled(
                grad
            )  # but PyTorch's contexts it can: 5 of 5 000 interrupts left gradients off

    def run_epoch(self) -> Epoch:
        start = perf_counter()
        train_loss = self.fit()
        trained = perf_counter()
        valid_loss, value = self.evaluate(self.valid)
        self.epoch += 1
        rate, ended = self.job.samples / (trained - start), perf_counter()
        self.evaluating = ended - trained
        return Epoch(self.epoch, train_loss, valid_loss, value, ended - start, rate)

    def fit(self) -> float:
        """One pass over the epoch's images in a fresh order; the mean loss. Only its end waits for the device."""
        # Permuted on the CPU: the same order on every device. The last batch may be smaller.
        order = self.train[torch.randperm(len(self.train))[: self.job.samples].to(self.device)]
        total = torch.zeros((), device=self.device)
        self.model.train()
        for batch in torch.split(order, self.job.batch_size):
            total += self.train_step(batch) * len(batch)
        return float(total) / len(order)

    def train_step(self, batch: Tensor) -> Tensor:
        factor = float(
            self.job.schedule(self.step / self.total_steps)
        )  # NumPy's scalars cannot be saved
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        loss, _ = self.forward(batch)
        for weight in self.weights:
            weight.grad = None  # as zero_grad does, which takes 0.02 ms for it
        loss.backward()  # type: ignore[no-untyped-call]
        if self.job.l1:
            self.add_l1()
        if self.job.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.job.clip)
        self.optimizer_step()
        self.step += 1
        return loss.detach()

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of the images at indices `batch`, and what the network makes of them (batch, outputs)."""
        # index_select, a batch at a time: 54 000 images take 29 ms an epoch, [] 45 ms, one gather per epoch 119 ms.
        images, labels = (
            self.split.inputs.index_select(0, batch),
            self.split.targets.index_select(0, batch),
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.precision == "bf16"):
            outputs = self.model(images)
        if self.job.precision == "bf16":
            outputs = outputs.float()
        return self.loss(outputs, labels), outputs

    @torch.no_grad()
    def add_l1(self) -> None:
        """Adds the subgradient of l1·Σ|w|; 0.04 ms a step for 784-128-10, where autograd takes 0.14 ms."""
        for weight in self.model.parameters():
            if weight.ndim > 1 and weight.grad is not None:
                weight.grad.add_(weight.sign(), alpha=self.job.l1)

    @torch.inference_mode()
    def evaluate(self, indices: Tensor) -> tuple[float, float]:
        """Mean loss and metric over the examples at `indices`; NaN for the metric where the loss is not finite."""
        total = torch.zeros((), device=self.device)
        made = []
        self.model.eval()
        for batch in torch.split(indices, EVALUATION_BATCH[self.device.type]):
            loss, outputs = self.forward(batch)
            total += loss * len(batch)
            made.append(outputs)
        mean = float(total) / len(indices)
        value = (
            self.job.metric(torch.cat(made), self.split.targets[indices])
            if math.isfinite(mean)
            else math.nan
        )
        return mean, value
