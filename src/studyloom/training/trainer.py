"""Training as a generator of epochs: the caller may report, prune, checkpoint or stop in between.

Nothing here knows why a job is trained, and nothing touches the caller's random state. After any
epoch the state can be saved; training resumes from it elsewhere and later as if it had never
stopped.
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
# On a CPU a convolution's outputs should stay in the cache: 2 000 images a call take up to twice as
# long as 256.
EVALUATION_BATCH = {"cpu": 256, "cuda": 4096}


def epochs(jobs: Sequence[Job], split: Split) -> Iterator[list[Epoch]]:
    """Trains jobs in lockstep on the split's device; a job's numbers do not depend on the others.

    Yields:
        after each epoch, one Epoch per job, in the order of the jobs.

    Raises:
        Diverged: a loss is not finite; raised at the end of that epoch.
    """
    return iter(Training(jobs, split))


@torch.inference_mode()
def predict_outputs(model: nn.Module, inputs: Tensor, precision: str = "fp32") -> Tensor:
    """Runs a network in eval mode, batch by batch.

    Args:
        model: the network; it is moved to the device of the inputs.
        inputs: (n, …), normalised.
        precision: fp32 or bf16.

    Returns:
        the outputs, float32 (n, outputs), on the device of the inputs.
    """
    model = model.to(inputs.device).eval()
    outputs = []
    for batch in torch.split(inputs, EVALUATION_BATCH[inputs.device.type]):
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs.append(model(batch).float())
    return torch.cat(outputs)


class Training:
    """Jobs in training, to be iterated over; each new iteration resumes after the last epoch.

    Args:
        jobs: the jobs, all with the same number of epochs.
        split: the examples, on the device to train on.
        in_turn: whether each job is trained to its end before the next one begins, an iteration
            being one epoch of one job. If not, all jobs are trained in lockstep, an iteration
            being one epoch of all.

    Attributes:
        epochs: the number of iterations in all.
        stride: the number of iterations from one comparable value to the next: 1 in lockstep, those
            of a whole job in turn.
        history: what each iteration so far has yielded, those before a restore included.
        evaluating: the seconds spent on evaluation so far, in this process.
    """

    def __init__(self, jobs: Sequence[Job], split: Split, *, in_turn: bool = False) -> None:
        assert len({job.epochs for job in jobs}) == 1, "jobs of one training have as many epochs"
        # Groups are trained one after the other, the jobs of a group in lockstep.
        self._groups = [[job] for job in jobs] if in_turn else [jobs]
        self._group_epochs = jobs[0].epochs
        self._split = split
        self.epochs = self._group_epochs * len(self._groups)
        self.stride = self._group_epochs if in_turn else 1
        self.history: list[list[Epoch]] = []
        self.evaluating = 0.0
        self._runs = self._begin(0)
        self._whole = True

    def _begin(self, group: int) -> "list[JobRun]":
        return [JobRun(job, self._split) for job in self._groups[group]]

    def __iter__(self) -> Iterator[list[Epoch]]:
        while len(self.history) < self.epochs:
            self._check_whole()
            self._whole = False
            group, done = divmod(len(self.history), self._group_epochs)
            if group and not done:
                self._runs.clear()  # before the next job takes its memory
                self._runs = self._begin(group)
            results = [run.with_own_randomness(run.run_epoch) for run in self._runs]
            self.evaluating += sum(run.evaluating for run in self._runs)
            for job, epoch in enumerate(results, group):
                for part, loss in (("train", epoch.train_loss), ("valid", epoch.valid_loss)):
                    if not math.isfinite(loss):
                        raise Diverged(job, epoch.number, self._group_epochs, part, loss)
            self.history.append(results)
            self._whole = True
            yield results

    def state(self) -> dict[str, Any]:
        """Returns all that the training needs to resume after this epoch.

        It is a snapshot, which later epochs leave alone: copying takes a small part of the time of
        writing. It holds the state_dict of model and optimizer, and not what a class of the user's
        own keeps elsewhere. Of jobs in turn it holds the one under way and the history of all.

        Returns:
            a dict that torch.load(weights_only=True) reads.

        Raises:
            RuntimeError: an exception has left an epoch unfinished; the state before it is gone.
        """
        self._check_whole()
        history = [[list(astuple(epoch)) for epoch in epochs] for epochs in self.history]
        # The key is "said" because stored checkpoints have it.
        return {"jobs": [run.state() for run in self._runs], "said": history}

    def restore(self, state: dict[str, Any]) -> None:
        """Resumes from a state.

        Raises:
            ValueError: the state is of other jobs; nothing has changed.
        """
        finished = len(state.get("said") or ())
        # The last group that has begun.
        group = min(max(0, finished - 1) // self._group_epochs, len(self._groups) - 1)
        runs = self._begin(group)
        try:
            if len(state["jobs"]) != len(runs):
                raise ValueError(f"{len(state['jobs'])} jobs in the state, {len(runs)} here")
            for run, saved in zip(runs, state["jobs"], strict=True):
                run.restore(saved)
            history = [[Epoch(*numbers) for numbers in epochs] for epochs in state["said"]]
            expected = finished - group * self._group_epochs
            if any(len(epochs) != len(runs) for epochs in history) or any(
                run.epoch != expected for run in runs
            ):
                raise ValueError("its history has another number of epochs than its jobs")
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"the state does not fit these jobs: {textwrap.shorten(reason, 300)}"
            ) from error
        self._runs, self.history, self._whole = runs, history, True

    def weights(self) -> list[dict[str, Tensor]]:
        """Returns the state dict of each job's network: its own tensors, not a copy."""
        return [run.model.state_dict() for run in self._runs]

    def _check_whole(self) -> None:
        if not self._whole:
            raise RuntimeError("the last epoch was left unfinished; restore an earlier state")


def adapt_to_data(parts: Iterable[Any], split: Split, train: Tensor) -> None:
    """Shows the training part to each module with a method `adapt(inputs, targets)`.

    This happens once, before the first step. What the modules learn, such as means to standardise
    by or weights of classes, is in their buffers and so in checkpoints and winner.pt. They see no
    example that is validated or tested.

    Args:
        parts: the network and the loss; those that are not modules are passed over.
        split: the examples.
        train: the indices of the training part, int64 (n,).
    """
    if adapters := [adapt for part in parts for adapt in learners(part)]:
        inputs, targets = split.inputs[train], split.targets[train]
        for adapt in adapters:
            adapt(inputs, targets)


def learners(part: Any) -> list[Callable[[Tensor, Tensor], None]]:
    """Returns the methods `adapt` of a module and of the modules within it."""
    if not isinstance(part, nn.Module):
        return []
    return [adapt for module in part.modules() if callable(adapt := getattr(module, "adapt", None))]


class JobRun:
    """A job in training: between epochs, model, optimizer, counters and random state are all of it.

    Args:
        job: the job.
        split: the examples, on the device to train on.
    """

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
        # Jobs may share one loss; if it adapts to the data, each job needs its own.
        self.loss = deepcopy(job.loss) if learners(job.loss) else job.loss
        adapt_to_data((model, self.loss), split, self.train)
        # PyTorch turns gradients off while it moves parameters: a signal must not leave them off.
        self.model = self.with_own_randomness(lambda: model.to(self.device))
        if isinstance(loss := self.loss, nn.Module):
            self.with_own_randomness(lambda: loss.to(self.device))
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
        """Returns the plain values of the job, by which the state of another job is recognised.

        The refusal can then say in plain words what differs, even where PyTorch would not notice.
        """
        values = {field.name: getattr(self.job, field.name) for field in fields(self.job)}
        return {
            name: value for name, value in values.items() if isinstance(value, (int, float, str))
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
        """Restores a state; one of another job raises any of several exceptions, half done."""
        here, there = self.signature(), state["signature"]
        for name in sorted({*here, *there}):
            if there.get(name) != here.get(name):
                raise ValueError(f"{name} is {there.get(name)} in the state, {here.get(name)} here")
        self.model.load_state_dict(state["model"])
        # A copy, since the optimizer would train the state's own tensors.
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
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
        train_loss = self.fit()
        trained = perf_counter()
        valid_loss, value = self.evaluate(self.valid)
        self.epoch += 1
        rate, ended = self.job.samples / (trained - start), perf_counter()
        self.evaluating = ended - trained
        return Epoch(self.epoch, train_loss, valid_loss, value, ended - start, rate)

    def fit(self) -> float:
        """Makes one pass over the epoch's examples in a fresh order.

        Only its end waits for the device.

        Returns:
            the mean loss.
        """
        # Permuted on the CPU: the same order on every device. The last batch may be smaller.
        order = self.train[torch.randperm(len(self.train))[: self.job.samples].to(self.device)]
        total = torch.zeros((), device=self.device)
        self.model.train()
        for batch in torch.split(order, self.job.batch_size):
            total += self.train_step(batch) * len(batch)
        return float(total) / len(order)

    def train_step(self, batch: Tensor) -> Tensor:
        """Makes one step on the examples at indices `batch`, int64 (n,), and returns the loss."""
        # A float, since NumPy's scalars cannot be saved.
        factor = float(self.job.schedule(self.step / self.total_steps))
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
        """Runs the network on the examples at indices `batch`, int64 (n,).

        Returns:
            the mean loss, and the outputs (n, outputs).
        """
        # index_select, a batch at a time: 54 000 images take 29 ms an epoch, [] 45 ms, one gather
        # per epoch 119 ms.
        inputs = self.split.inputs.index_select(0, batch)
        targets = self.split.targets.index_select(0, batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.precision == "bf16"):
            outputs = self.model(inputs)
        if self.job.precision == "bf16":
            outputs = outputs.float()
        return self.loss(outputs, targets), outputs

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
        total = torch.zeros((), device=self.device)
        batches = []
        self.model.eval()
        for batch in torch.split(indices, EVALUATION_BATCH[self.device.type]):
            loss, outputs = self.forward(batch)
            total += loss * len(batch)
            batches.append(outputs)
        mean = float(total) / len(indices)
        if not math.isfinite(mean):
            return mean, math.nan
        return mean, self.job.metric(torch.cat(batches), self.split.targets[indices])
