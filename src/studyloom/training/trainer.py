"""Training as a generator of epochs: the caller may report, prune, checkpoint or stop in between.

Nothing here knows why a job is trained, and nothing touches the caller's random state. After any
epoch the state can be saved; training resumes from it elsewhere and later as if it had never
stopped.
"""

import contextlib
import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from typing import Any

import torch
from torch import Tensor, nn

from studyloom.data.split import Split
from studyloom.data.training_data import Part
from studyloom.errors import Diverged
from studyloom.training.batches import EVALUATION_BATCH, batch_dtype, make_batches
from studyloom.training.job import Epoch, Job
from studyloom.training.job_run import JobRun, evaluate_part
from studyloom.training.ranks import ALONE, Ranks
from studyloom.training.steps import Steps, autocast, choose_threads, on_threads

OTHER_HISTORY = "its history has another number of epochs than its jobs"


def epochs(jobs: Sequence[Job], split: Part) -> Iterator[list[Epoch]]:
    """Trains jobs in lockstep on the split's device; a job's numbers do not depend on the others.

    Yields:
        after each epoch, one Epoch per job, in the order of the jobs.

    Raises:
        Diverged: a loss is not finite; raised at the end of that epoch.
    """
    return iter(Training(jobs, split))


@torch.inference_mode()
def predict_outputs(
    model: nn.Module,
    inputs: Tensor,
    precision: str = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Runs a network in eval mode, batch by batch.

    Args:
        model: the network; it is moved to the device of the inputs.
        inputs: (n, …), normalised.
        precision: fp32, bf16 or fp16.
        dtype: in which the network takes the inputs.

    Returns:
        the outputs, float32 (n, outputs), on the device of the inputs.
    """
    model = model.to(inputs.device).eval()
    outputs = []
    for batch in torch.split(inputs, EVALUATION_BATCH[inputs.device.type]):
        with autocast(inputs.device, precision):
            outputs.append(model(batch.to(dtype)).float())
    return torch.cat(outputs)


def evaluate_network(
    job: Job, model: nn.Module, split: Part, indices: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Runs a network on examples of a split as the job's evaluation does.

    Args:
        job: whose network it is.
        model: the network; it is moved to the device of the split.
        split: the examples.
        indices: int64 (n,); None for all of the split.

    Returns:
        the outputs and the targets, both (n, …), on the device of the split.
    """
    if job.evaluate is None and isinstance(split, Split):
        dtype, inputs, targets = batch_dtype(job, model, split), split.inputs, split.targets
        if indices is not None:
            at = indices.to(split.device)
            inputs, targets = inputs[at], targets[at]
        return predict_outputs(model, inputs, job.precision, dtype), targets
    device = split.device
    for part in (job.loss, job.evaluate):
        if isinstance(part, nn.Module):
            part.to(device)
    steps = Steps(job.loss, device, job.precision, evaluate=job.evaluate)
    everything = torch.arange(len(split), device=device)
    if indices is not None:
        everything = indices.to(device)
    # The training part stays: a batch of it may have more examples than are evaluated here.
    batches = make_batches(replace(job, valid=everything), split)
    model = model.to(device)
    with contextlib.closing(batches), torch.inference_mode():
        return evaluate_part(model, steps, batches, everything)[1:]


class Training:
    """Jobs in training, to be iterated over; each new iteration resumes after the last epoch.

    A job whose patience is at its end is trained no more. In lockstep its kept epoch stands for it
    until the others end; in turn the next job begins.

    Args:
        jobs: the jobs, all with the same number of epochs.
        split: the examples, on the device to train on.
        in_turn: whether each job is trained to its end before the next one begins, an iteration
            being one epoch of one job. If not, all jobs are trained in lockstep, an iteration
            being one epoch of all.
        ranks: the processes that train together. Each of them makes this object of the same jobs,
            and iterates over it; rank 0 decides whether there is another iteration.
        threads: of the processor; None for as many as the steps are worth.

    Attributes:
        stride: the number of iterations from one comparable value to the next: 1 in lockstep, those
            of a whole job in turn.
        history: what each iteration so far has yielded, those before a restore included.
        numbers: the number of each of these iterations, from 1. In turn the last of a job is always
            a multiple of the stride, so that numbers are left out after one that patience ended.
        ended: whether all jobs are trained to their end.
        evaluating: the seconds spent on evaluation so far, in this process.
        threads: of the processor, on which it trains.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        split: Part,
        *,
        in_turn: bool = False,
        ranks: Ranks = ALONE,
        threads: int | None = None,
    ) -> None:
        assert len({job.last for job in jobs}) == 1, "jobs of one training have as many epochs"
        # Groups are trained one after the other, the jobs of a group in lockstep.
        self._groups = [[job] for job in jobs] if in_turn else [jobs]
        self._group_epochs = jobs[0].last
        self._split = split
        self.ranks = ranks
        self.stride = self._group_epochs if in_turn else 1
        self.history: list[list[Epoch]] = []
        self.numbers: list[int] = []
        self.evaluating = 0.0
        self.ended = False
        self._group = 0
        self._runs = self._begin(0)
        self.threads = threads or self._choose_threads(jobs[0].batch_size)
        self._whole = True

    @property
    def epochs(self) -> int:
        """The number of the last iteration, which is known sooner if patience ends the training."""
        if self.ended:
            return self.numbers[-1]
        return self._group_epochs * len(self._groups)

    @property
    def _group_ended(self) -> bool:
        return all(run.ended for run in self._runs)

    def _begin(self, group: int) -> list[JobRun]:
        return [JobRun(job, self._split, self.ranks) for job in self._groups[group]]

    def _choose_threads(self, batch_size: int) -> int:
        if not isinstance(self._split, Split):  # to load an example may take processes
            return torch.get_num_threads()
        first, run = torch.zeros(1, dtype=torch.int64), self._runs[0]
        return choose_threads(run.model, lambda: run.batches.at(first), batch_size)

    def close(self) -> None:
        """Ends the processes that load its batches, if there are any."""
        for run in self._runs:
            run.batches.close()

    def __iter__(self) -> Iterator[list[Epoch]]:
        try:
            yield from self._iterate()
        finally:  # also if an exception, or nobody, asks for a further epoch
            self.close()

    def _iterate(self) -> Iterator[list[Epoch]]:
        while True:
            self._check_whole()
            if self.ended or not self.ranks.go_on():
                return
            self._whole = False
            if self._group_ended:
                self.close()
                self._runs.clear()  # before the next job takes its memory
                self._runs = self._begin(self._group + 1)
                self._group += 1
            going = [run for run in self._runs if not run.ended]
            with on_threads(self.threads):
                results = [
                    run.with_own_randomness(run.run_epoch) if run in going else self._stand_in(at)
                    for at, run in enumerate(self._runs)
                ]
            self.ranks.rest()
            self.evaluating += sum(run.evaluating for run in going)
            for job, epoch in enumerate(results, self._group):
                for part, loss in (("train", epoch.train_loss), ("valid", epoch.valid_loss)):
                    if not math.isfinite(loss):
                        raise Diverged(job, epoch.number, self._group_epochs, part, loss)
            self.history.append(results)
            self.numbers.append(self._number(results))
            self.ended = self._has_ended()  # last: a thread that reports asks for it
            self._whole = True
            yield results

    def _has_ended(self) -> bool:
        return self._group == len(self._groups) - 1 and self._group_ended

    def _stand_in(self, position: int) -> Epoch:
        """Returns the epoch that stands for a job of the group that has ended before the others."""
        kept = self._runs[position].job.kept([epochs[position] for epochs in self.history])
        return replace(kept, number=len(self.history) + 1, seconds=0.0)

    def _number(self, epochs: Sequence[Epoch]) -> int:
        """Returns the number of the iteration that has just yielded these epochs."""
        in_group = epochs[0].number
        if len(self._groups) > 1 and self._group_ended:
            in_group = self._group_epochs
        return self._group * self._group_epochs + in_group

    def kept(self) -> list[Epoch]:
        """Returns the epoch of each job, as far as it has come, whose value is that of the job."""
        columns: list[list[Epoch]] = []
        for epochs in self.history:
            if epochs[0].number == 1:  # a group begins
                columns += [[] for _ in epochs]
            for column, epoch in zip(columns[-len(epochs) :], epochs, strict=True):
                column.append(epoch)
        jobs = [job for group in self._groups for job in group]
        return [job.kept(column) for job, column in zip(jobs, columns, strict=False)]

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
        try:
            saved_jobs = state["jobs"]
            history = [[Epoch(*numbers) for numbers in epochs] for epochs in state["said"]]
            starts = [at for at, epochs in enumerate(history) if epochs[0].number == 1]
            group = max(0, len(starts) - 1)  # the last that has begun
            runs = self._begin(min(group, len(self._groups) - 1))
            if len(saved_jobs) != len(runs):
                raise ValueError(f"{len(saved_jobs)} jobs in the state, {len(runs)} here")
            for run, saved in zip(runs, saved_jobs, strict=True):
                run.restore(saved)
            expected = len(history) - (starts[-1] if starts else 0)
            matches = group < len(self._groups) and all(len(e) == len(runs) for e in history)
            if not matches or any(
                run.epoch != expected and not (run.ended and run.epoch < expected) for run in runs
            ):
                raise ValueError(OTHER_HISTORY)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"the state does not fit these jobs: {textwrap.shorten(reason, 300)}"
            ) from error
        self._runs, self._group, self.history, self._whole = runs, group, history, True
        self.numbers, self.ended = self._number_all(starts), self._has_ended()

    def _number_all(self, starts: Sequence[int]) -> list[int]:
        """Returns the numbers of all iterations, given the positions where groups begin."""
        numbers = [
            group * self._group_epochs + epochs[0].number
            for group, (start, end) in enumerate(itertools.pairwise([*starts, len(self.history)]))
            for epochs in self.history[start:end]
        ]
        for group, start in enumerate(starts[1:], 1):
            numbers[start - 1] = group * self._group_epochs
        if numbers:
            numbers[-1] = self._number(self.history[-1])
        return numbers

    def weights(self) -> list[dict[str, Tensor]]:
        """Returns the state dict that is kept of each job's network: its own tensors, not a copy.

        It is that of the average, if there is one, and of the best epoch, if that is kept.
        """
        return [run.kept_weights() for run in self._runs]

    def _check_whole(self) -> None:
        if not self._whole:
            raise RuntimeError("the last epoch was left unfinished; restore an earlier state")
