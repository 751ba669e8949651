"""Tries the networks of a study before trial 0, each on a few examples.

A *probe* is a configuration at which a branch of the search space is tried: its defaults, its low
and its high corner, and each of its choices. All that the config names is built at each probe.
Networks are trained on two examples, and a metric sees random outputs.
"""

import contextlib
import inspect
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from studyloom.config.values import describe_error, value_at
from studyloom.data.examples import Examples, Part
from studyloom.data.split import Folds, Split
from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import Branch, Definition
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
from studyloom.training.device import training_device
from studyloom.training.job import Job
from studyloom.training.optimizer import check_schedule
from studyloom.training.steps import apply_network, check_gradient_scaler, on_threads
from studyloom.training.trainer import JobRun


def try_networks(definition: Definition, data: TrainingData) -> Iterator[str]:
    """Tries the networks of each branch of the search space, and then the metric.

    A branch is tried at its probes: its defaults, its low and its high corner, and each choice.

    Yields:
        A line for each error. A branch such as `model=cnn, model/block=residual` mostly repeats the
        errors of `model=cnn`: an error of a branch with fewer choices is yielded only for that one.
    """
    assert data.split is not None
    split = data.split.for_preflight()
    # Training sets after the search may have a last batch of another size, which is tried too.
    later_training_sets = _list_later_training_sets(definition, data, split)
    reported_errors: list[ReportedError] = []
    for branch in definition.branches:
        for probe in branch.probes():
            messages = _try_probe(definition, branch, probe, data.folds, split, later_training_sets)
            for message in messages:
                was_reported = any(error.occurs_in(branch, message) for error in reported_errors)
                if was_reported:
                    continue
                reported_errors.append(ReportedError(branch.choices, message))
                probe_text = _describe_probe(branch, probe)
                if probe_text:
                    yield f"{probe_text}: {message}"
                else:
                    yield message
    # A custom evaluation gives its own targets, and only on these the metric can be tried.
    has_custom_evaluation = definition.config.train.evaluate is not None
    if not reported_errors and not has_custom_evaluation:
        yield from _try_metric(definition.metric, data)


@dataclass(frozen=True)
class ReportedError:
    """An error of a branch that was reported. The branches within that branch have it too."""

    choices: Mapping[str, str]
    message: str

    def occurs_in(self, branch: Branch, message: str) -> bool:
        """Returns whether this is an error of a branch: of the same one, or of one within it."""
        is_within = self.choices.items() <= branch.choices.items()
        return is_within and message == self.message


def _try_probe(
    definition: Definition,
    branch: Branch,
    probe: Mapping[str, object],
    folds: Folds,
    split: Part,
    later_training_sets: Sequence[Tensor],
) -> list[str]:
    """Builds the jobs of a branch with a probe's values, and tries the first; returns the errors.

    A probe that breaks a relation of the space is not tried, since no trial can have its values.

    Args:
        probe: values, by key.
        split: the examples on which it is tried.
        later_training_sets: the indices of the training sets after the search, int64 (n,) each,
            whose last batches may have other sizes.
    """
    try:
        config = branch.config.with_values(probe)
        # The configuration of a trial that draws exactly the values of this config.
        configuration = definition.space.read_default(
            branch.opened_options, partial(value_at, config)
        )
        if definition.space.find_breach(configuration.params) is not None:
            return []
        jobs = build_jobs(config, folds, seed=0)
        later_jobs = [replace(jobs[0], train=indices) for indices in later_training_sets]
        last_batch_sizes = {job.last_batch_size for job in [*jobs, *later_jobs]}
        try_out(jobs[0], split, last_batch_sizes)
    except Exception as error:  # of a user's class: better now than in trial 17
        return list_messages(error, describe_error(error))
    return []


def _describe_probe(branch: Branch, probe: Mapping[str, object]) -> str:
    """Describes where an error occurs: the options and values that are not the defaults."""
    parts = []
    if branch.choices:
        parts.append(str(branch))
    for key, value in probe.items():
        parts.append(f"{key}={format_scalar(value)}")
    return ", ".join(parts)


def _list_later_training_sets(
    definition: Definition, data: TrainingData, split: Part
) -> list[Tensor]:
    """Lists the training sets after the search whose size may differ from those of the search.

    The final training is on all examples. In the re-evaluation, groups of examples that stay
    together make splits of other sizes.

    Returns:
        The indices of each set, int64 (n,).
    """
    all_examples = torch.arange(len(split))
    training_sets = [all_examples]
    winner = definition.config.winner
    has_groups = isinstance(data.split, Examples) and data.split.groups is not None
    if winner.enabled and has_groups and data.source is not None:
        for seed in range(winner.seeds):
            fold = definition.make_new_fold(data, seed)
            if fold is not None:
                training_sets.append(fold.training)
    return training_sets


def try_out(job: Job, split: Part, last_batch_sizes: Collection[int] = ()) -> None:
    """Builds a job's network, optimizer and loss, and runs a few examples through them on the CPU.

    The optimizer makes a step with their gradients. For tensors, the metric is tried later, on all
    targets. For a Dataset or a custom evaluation, it is tried here on the targets of a batch, since
    all targets may not be known.

    Args:
        split: the examples: a `Split` if they are tensors; those of a Dataset are loaded one by
            one.
        last_batch_sizes: how many examples the last batch of an epoch may have.

    Raises:
        ValueError: a part fails, with a fix.
    """
    device = training_device()
    if job.precision == "fp16" and device.type == "mps":  # other devices can scale gradients
        check_gradient_scaler(device)
    batch_sizes = {job.largest_batch_size, *last_batch_sizes}
    tried_sizes = _choose_tried_sizes(job, batch_sizes)
    has_tensors = isinstance(split, Split)
    has_custom_step = job.step is not None or job.evaluate is not None
    with torch.random.fork_rng(devices=[]), on_threads(1):
        check_schedule(job.schedule)
        # The device of the preflight may not have the precision of the job.
        run = JobRun(replace(job, precision="fp32"), split)
        # A custom step is tried below on batches of all sizes, which collects them too.
        if not has_tensors and not has_custom_step:
            _collect_batches(run, batch_sizes)
        if isinstance(split, Split) and job.evaluate is None:
            _check_outputs(run, split)
        for size in sorted(tried_sizes, reverse=True):
            _try_training(run, split, size)
        outputs, targets = _try_evaluation(run, max(tried_sizes))
        _try_optimizer_step(run)  # last: a large learning rate may spoil the network
    targets_are_tried_later = has_tensors and job.evaluate is None
    if not targets_are_tried_later:
        _try_metric_of_job(job, outputs, targets)


def _choose_tried_sizes(job: Job, batch_sizes: Set[int]) -> Set[int]:
    """Returns the sizes of the batches on which a job's network is tried.

    A custom step is tried on batches of all sizes. A step of studyloom is tried on two examples,
    which stand for any larger batch; and on one, if a batch may have only one: some networks cannot
    be trained on a single example.

    Args:
        batch_sizes: all sizes that a batch of the job may have.
    """
    if job.step is not None or job.evaluate is not None:
        return batch_sizes
    tried_sizes = {min(2, job.largest_batch_size)}
    if 1 in batch_sizes:
        tried_sizes.add(1)
    return tried_sizes


def _collect_batches(run: JobRun, sizes: Collection[int]) -> None:
    """Collects examples of a Dataset into batches of each size, and drops them.

    This raises the error of a Dataset whose items do not fit together.
    """
    for size in sorted(sizes, reverse=True):
        run.batches.load_batch(run.job.train[:size])


def _check_outputs(run: JobRun, split: Split) -> None:
    """Raises ValueError unless the network's outputs for n examples have the shape (n, outputs).

    The number of outputs follows from the targets of the split.
    """
    size = 2  # examples
    with _explained("step", custom_step=None, size=size), torch.no_grad():
        batch = run.batches.load_batch(run.job.valid[:size])
        outputs, targets = apply_network(run.model.eval(), batch)
        expected_shape = (len(targets), split.outputs)
        if tuple(outputs.shape) != expected_shape:
            raise ValueError(
                f"the outputs of the network must be {expected_shape} for {len(targets)} examples; "
                f"got {tuple(outputs.shape)}; change the network, {TRAIN_IT_YOURSELF}"
            )


def _try_training(run: JobRun, split: Part, size: int) -> None:
    """Computes the loss and the gradients of a batch, as a training does.

    Args:
        size: the number of examples in the batch.
    """
    job = run.job
    with _explained("step", job.step, size, train_batch_size=job.batch_size):
        indices = split.order_for_preflight(job.train)[:size]
        batch = run.batches.load_batch(indices)
        loss = run.computation.train(run.model.train(), batch)
        loss.backward()  # type: ignore[no-untyped-call]


def _try_evaluation(run: JobRun, size: int) -> tuple[Tensor, Tensor]:
    """Evaluates the network on a batch; returns the outputs and targets that the metric gets.

    Args:
        size: the number of examples in the batch.
    """
    with _explained("evaluate", run.job.evaluate, size), torch.no_grad():
        batch = next(iter(run.batches.load_batches(run.job.valid[:size])))
        _loss, outputs, targets = run.computation.evaluate(
            run.model.eval(), batch.content, batch.size
        )
        return outputs, targets


def _try_optimizer_step(run: JobRun) -> None:
    """Makes a step of the optimizer on the gradients that the weights have.

    Raises:
        ValueError: the optimizer cannot train the network; or it is one such as LBFGS, which must
            be given a function that computes the loss.
    """
    optimizer = run.optimizer
    name = type(optimizer).__name__
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    requires_closure = closure is not None and closure.default is inspect.Parameter.empty
    if requires_closure:
        raise ValueError(
            f"optimizer: {name} computes the loss several times in a step (its closure), and "
            "studyloom computes it once for each batch; choose another one, such as "
            f"torch.optim.AdamW, {TRAIN_IT_YOURSELF}"
        )
    try:
        run.make_optimizer_step()
    except Exception as error:
        raise ValueError(
            f"optimizer: {name} cannot train the network: {describe_error(error)}; choose another "
            f"one, such as torch.optim.AdamW, {TRAIN_IT_YOURSELF}"
        ) from error


@contextlib.contextmanager
def _explained(
    name: str, custom_step: object, size: int, train_batch_size: int | None = None
) -> Iterator[None]:
    """Raises ValueError, with a fix, for each exception that a step on a batch raises in the body.

    Args:
        name: the key of the step in `train`, step or evaluate.
        custom_step: the user's step; None for that of studyloom.
        size: the number of examples in the batch.
        train_batch_size: for a training step, `train.batch_size`; None for an evaluation.
    """
    try:
        with warnings.catch_warnings():
            if custom_step is None:  # PyTorch's losses only warn of targets of another shape
                warnings.filterwarnings("error", "Using a target size", UserWarning)
            yield
    except DataError:
        raise
    except Exception as error:
        is_last_batch_of_one = size == 1 and train_batch_size is not None and train_batch_size > 1
        if is_last_batch_of_one:
            message = (
                "the last batch of an epoch has a single example, on which the network cannot be "
                f"trained ({describe_error(error)}); set train.drop_last=true, or another "
                f"train.batch_size than {train_batch_size}"
            )
        elif custom_step is None:
            message = _explain_built_in_step(error, size)
        else:
            message = _explain_custom_step(error, f"train.{name}", size)
        raise ValueError(message) from error


def _explain_built_in_step(error: Exception, size: int) -> str:
    """Explains an error of studyloom's own step on so many examples, with a fix."""
    reason = describe_error(error)
    if isinstance(error, ValueError):  # its message says how to fix it
        return or_train_it_yourself(reason)
    return (
        f"network and loss, on {size} examples: {reason}; compute the loss in your own "
        f"step, train.step, {TRAIN_IT_YOURSELF}"
    )


def _explain_custom_step(error: Exception, key: str, size: int) -> str:
    """Explains an error of the user's step on so many examples.

    Args:
        key: the key of the step, such as train.step.
    """
    reason = describe_error(error)
    if key in reason:  # an error of studyloom about what the step returned
        return reason
    return f"{key}: {reason}, for {size} examples"


# The metric


def _try_metric_of_job(job: Job, outputs: Tensor, targets: Tensor) -> None:
    """Computes the metric of a job for a batch; raises ValueError if that is not possible.

    Args:
        outputs: the outputs for the batch, as its evaluation returns them.
        targets: the targets of the batch, as its evaluation returns them.
    """
    if job.evaluate is None:  # a custom evaluation may return classes as floats
        _check_targets_of(job.metric, classifies=not targets.is_floating_point())
    try:
        job.metric(outputs, targets)
    except UndefinedMetric:
        pass  # a few examples may lack a class that the metric needs
    except Exception as error:
        raise ValueError(
            f"objective.metric={job.metric.name}: {describe_error(error)}; the outputs and targets "
            f"of the evaluation are {tuple(outputs.shape)} and {tuple(targets.shape)}"
        ) from error


def _try_metric(metric: Metric, data: TrainingData) -> Iterator[str]:
    """Computes a metric of random outputs for the validation set of each fold; yields errors.

    Nothing is computed if the targets of these sets are not known. Those of a Dataset may be, as
    one of its attributes; those of its separate validation set are not.
    """
    split = data.split
    assert split is not None
    try:
        _check_targets_of(metric, classifies=split.classifies)
    except ValueError as error:
        yield str(error)
        return
    # The indices of a separate validation set follow those of the training examples.
    last_index = max(int(fold.validation.max()) for fold in data.folds)
    has_separate_validation_set = last_index >= len(split)
    if split.targets is None or split.outputs is None or has_separate_validation_set:
        return
    generator = torch.Generator().manual_seed(0)
    for position, fold in enumerate(data.folds):
        targets = split.targets[fold.validation].cpu()
        outputs = torch.randn(len(targets), split.outputs, generator=generator)
        try:
            metric(outputs, targets)
        except UndefinedMetric as error:
            fold_text = ""
            if len(data.folds) > 1:
                fold_text = f" of fold {position}"
            yield f"{error}, in the validation set{fold_text}"
        except Exception as error:  # of a custom metric
            yield f"objective.metric={metric.name}: {describe_error(error)}"


def _check_targets_of(metric: Metric, *, classifies: bool) -> None:
    """Raises ValueError if a metric is not for the targets of the data.

    Args:
        classifies: whether the targets are classes, and not numbers.
    """
    kind = "numbers"
    alternative = ", or for masks your own metric over outputs.argmax(1)"
    if classifies:
        kind = "classes"
        alternative = ""
    if metric.targets in (None, kind):
        return
    suitable_metrics = [other.name for other in METRICS.values() if other.targets == kind]
    raise ValueError(
        f"objective.metric={metric.name}: is for {metric.targets}, and the targets of the data "
        f"are {kind}; choose one of {', '.join(suitable_metrics)}{alternative}"
    )
