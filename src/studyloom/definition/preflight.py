"""Tries the networks of a study before trial 0, each on a few examples.

All that the config names is built and tried once, at the defaults, corners and choices of each
branch of the space. Networks are trained on two examples, and a metric sees random outputs.
"""

import contextlib
import inspect
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch

from studyloom.config.values import describe_error, value_at
from studyloom.data.examples import Examples, Part
from studyloom.data.split import Fold, Split
from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import Definition
from studyloom.errors import (
    TRAIN_IT_YOURSELF,
    DataError,
    UndefinedMetric,
    list_messages,
    or_train_it_yourself,
)
from studyloom.metrics import METRICS, Metric
from studyloom.objectives.jobs import build_jobs
from studyloom.text import format_scalar
from studyloom.training.job import Job
from studyloom.training.optimizer import check_schedule
from studyloom.training.steps import apply_network, on_threads
from studyloom.training.trainer import JobRun


def try_networks(definition: Definition, data: TrainingData) -> Iterator[str]:
    """Builds the jobs of each branch at each of its probes, and tries them and the metric.

    Yields:
        A line for each error, except those of an outer branch.
    """
    assert data.split is not None
    reported: list[tuple[Mapping[str, str], str]] = []
    split = data.split.for_preflight()
    uneven = _uneven_folds(definition, data)
    for branch in definition.branches:
        for probe in branch.probes():
            try:
                config = branch.config.with_values(probe)
                point = definition.space.read_default(branch.opened, partial(value_at, config))
                if definition.space.find_breach(point.params) is not None:
                    continue
                jobs = build_jobs(config, data.folds, seed=0)
                # The final training is on all examples.
                later = [torch.arange(len(split)), *(train for train, _ in uneven)]
                jobs_later = [replace(jobs[0], train=train) for train in later]
                try_out(jobs[0], split, {job.last_batch_size for job in [*jobs, *jobs_later]})
                continue
            except Exception as error:  # of a user's class: better now than in trial 17
                errors = list_messages(error, describe_error(error))
            values = (f"{key}={format_scalar(value)}" for key, value in probe.items())
            where = ", ".join(filter(None, [str(branch), *values]))
            for line in errors:
                if not any(
                    line == known and outer.items() <= branch.choices.items()
                    for outer, known in reported
                ):
                    reported.append((branch.choices, line))
                    yield f"{where}: {line}" if where else line
    if not reported and definition.config.train.evaluate is None:  # which gives its own targets
        yield from _try_metric(definition.metric, data)


def _uneven_folds(definition: Definition, data: TrainingData) -> list[Fold]:
    """Returns the splits of the re-evaluation, if groups make other sizes than in the search."""
    split, winner = data.split, definition.config.winner
    has_groups = isinstance(split, Examples) and split.groups is not None
    if not winner.enabled or not has_groups or data.source is None:
        return []
    folds = (definition.new_fold(data, seed) for seed in range(winner.seeds))
    return [fold for fold in folds if fold is not None]


def try_out(job: Job, split: Part, last_batches: Collection[int] = ()) -> None:
    """Builds a job's network, optimizer and loss, and runs a few examples through them on the CPU.

    It takes two examples, or one if a batch may have only one. A custom step is tried on whole
    batches; examples that are loaded one by one are first collected into batches. The optimizer
    makes a step with their gradients.

    Args:
        last_batches: how many examples the last batch of an epoch may have.
    """
    own = job.step is not None or job.evaluate is not None
    sizes = {job.batch_size, *last_batches}
    with torch.random.fork_rng(devices=[]), on_threads(1):
        check_schedule(job.schedule)
        run = JobRun(replace(job, precision="fp32"), split)  # this may be no device for another
        model, batches, steps = run.model, run.batches, run.steps
        if not own:
            for size in () if isinstance(split, Split) else sorted(sizes, reverse=True):
                batches.load_batch(job.train[:size])
            sizes = {min(2, job.batch_size), *sizes} & {1, 2}
        with _explained("step", None, 2), torch.no_grad():
            if isinstance(split, Split) and job.evaluate is None:
                outputs, targets = apply_network(model.eval(), batches.load_batch(job.valid[:2]))
                if tuple(outputs.shape) != (wanted := (len(targets), split.outputs)):
                    raise ValueError(
                        f"the outputs of the network must be {wanted} for {wanted[0]} examples; "
                        f"got {tuple(outputs.shape)}; change the network, {TRAIN_IT_YOURSELF}"
                    )
        for size in sorted(sizes, reverse=True):
            single = job.batch_size if size == 1 else None
            with _explained("step", job.step, size, single):
                batch = batches.load_batch(split.order_for_preflight(job.train)[:size])
                steps.train(model.train(), batch).backward()  # type: ignore[no-untyped-call]
        with _explained("evaluate", job.evaluate, max(sizes)), torch.no_grad():
            batch = next(iter(batches.load_batches(job.valid[: max(sizes)])))
            evaluated = steps.evaluate(model.eval(), batch.content, batch.size)[1:]
        _try_step(run)  # last: a large learning rate may spoil the network
    if isinstance(split, Split) and job.evaluate is None:
        return  # the metric is tried on whole folds
    if job.evaluate is None:
        _check_kind(job.metric, classifies=not evaluated[1].is_floating_point())
    try:
        job.metric(*evaluated)
    except UndefinedMetric:
        pass  # there are so few examples
    except Exception as error:
        shapes = " and ".join(str(tuple(part.shape)) for part in evaluated)
        raise ValueError(
            f"objective.metric={job.metric.name}: {describe_error(error)}; the outputs and targets "
            f"of the evaluation are {shapes}"
        ) from error


def _try_step(run: JobRun) -> None:
    """Makes a step of the optimizer on the gradients that the weights have.

    Raises:
        ValueError: the optimizer cannot train the network.
    """
    optimizer = run.optimizer
    name = type(optimizer).__name__
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer: {name} computes the loss several times in a step (its closure), and "
            "studyloom computes it once for each batch; choose another one, such as "
            f"torch.optim.AdamW, {TRAIN_IT_YOURSELF}"
        )
    try:
        run.optimizer_step()
    except Exception as error:
        raise ValueError(
            f"optimizer: {name} cannot train the network: {describe_error(error)}; choose another "
            f"one, such as torch.optim.AdamW, {TRAIN_IT_YOURSELF}"
        ) from error


@contextlib.contextmanager
def _explained(name: str, own: object, size: int, single: int | None = None) -> Iterator[None]:
    """Raises ValueError, with a fix, for what the user's `own` step or studyloom's raises.

    Args:
        single: the batch size, if that leaves a last batch of one.
    """
    try:
        with warnings.catch_warnings():
            if own is None:  # PyTorch's losses only warn of targets of another shape
                warnings.filterwarnings("error", "Using a target size", UserWarning)
            yield
    except DataError:
        raise
    except Exception as error:
        words = describe_error(error)
        if single is not None and single > 1:
            words = (
                "the last batch of an epoch has a single example, on which the network cannot be "
                f"trained ({words}); set train.drop_last=true, or another train.batch_size than "
                f"{single}"
            )
        elif own is None and isinstance(error, ValueError):
            words = or_train_it_yourself(words)
        elif own is None:
            way_out = f"compute the loss in your own step, train.step, {TRAIN_IT_YOURSELF}"
            words = f"network and loss, on {size} examples: {words}; {way_out}"
        elif f"train.{name}" not in words:
            words = f"train.{name}: {words}, for {size} examples"
        raise ValueError(words) from error


def _try_metric(metric: Metric, data: TrainingData) -> Iterator[str]:
    """Computes a metric of random outputs for the validation set of each fold."""
    folds, split = data.folds, data.split
    assert split is not None
    try:
        _check_kind(metric, classifies=split.classifies)
    except ValueError as error:
        yield str(error)
        return
    highest = max(int(valid.max()) for _, valid in folds)
    if split.targets is None or split.outputs is None or len(split) <= highest:
        return  # only the examples on which the networks were tried tell them
    generator = torch.Generator().manual_seed(0)
    for fold, (_, valid) in enumerate(folds):
        outputs = torch.randn(len(valid), split.outputs, generator=generator)
        try:
            metric(outputs, split.targets[valid].cpu())
        except UndefinedMetric as error:
            of_fold = f" of fold {fold}" if len(folds) > 1 else ""
            yield f"{error}, in the validation set{of_fold}"
        except Exception as error:  # of a custom metric
            yield f"objective.metric={metric.name}: {describe_error(error)}"


def _check_kind(metric: Metric, *, classifies: bool) -> None:
    """Raises ValueError if a metric is not for the targets of the data."""
    kind = "classes" if classifies else "numbers"
    if metric.targets not in (None, kind):
        options = ", ".join(other.name for other in METRICS.values() if other.targets == kind)
        own = "" if classifies else ", or for masks your own metric over outputs.argmax(1)"
        raise ValueError(
            f"objective.metric={metric.name}: is for {metric.targets}, and the targets of the data "
            f"are {kind}; choose one of {options}{own}"
        )
