"""The preflight: before the first trial, everything a config names is built and tried once.

Networks see two examples, a metric sees random outputs, samplers and pruners see made-up trials.
"""

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
import torch
from omegaconf import DictConfig
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial
from torch import nn

from studyloom.config.values import describe_error, with_values
from studyloom.data.split import Folds, Split
from studyloom.data.training_data import Part
from studyloom.errors import (
    TRAIN_IT_YOURSELF,
    ConfigError,
    DataError,
    UndefinedMetric,
    or_train_it_yourself,
)
from studyloom.metrics import METRICS, Direction, Goal, Metric
from studyloom.question.jobs import build_jobs
from studyloom.space.tree import Leaf, ListLeaf, Node
from studyloom.text import as_yaml
from studyloom.training.batches import batch_dtype, make_batches
from studyloom.training.job import Job
from studyloom.training.optimizer_step import avoid_compiler_import
from studyloom.training.parameter_groups import make_optimizer
from studyloom.training.schedule import check_schedule, make_rates
from studyloom.training.steps import Steps, on_threads
from studyloom.training.trainer import Training

LARGE = 10_000_000  # parameters; building a network with so many takes about 0.1 s


@dataclass(frozen=True)
class Branch:
    """A part of the space: what is searched after certain choices of groups.

    Args:
        choices: the option of each group on the way, by the name of the group.
        nodes: what is searched there.
        config: with those options; everything else has its default.
    """

    choices: Mapping[str, str]
    nodes: tuple[Node, ...]
    config: DictConfig

    def __str__(self) -> str:
        return ", ".join(f"{group}={option}" for group, option in self.choices.items())


@contextlib.contextmanager
def saying_the_way_out() -> Iterator[None]:
    """Adds to whatever goes wrong between a network, its data and its loss that there is a way out.

    Raises:
        ValueError: with the words of the exception, and the way out.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(or_train_it_yourself(describe_error(error))) from error


def probes(nodes: Sequence[Node]) -> Iterator[dict[str, Any]]:
    """Yields the values to try a branch at, by key; what is not named keeps its default.

    They are the defaults, the low and the high corner of the space, and each choice alone.

    Args:
        nodes: of the branch.
    """
    yield {}
    leaves = [node for node in nodes if isinstance(node, Leaf | ListLeaf)]
    if not leaves:
        return
    low, high = (dict(_corner(node, end, leaves) for node in leaves) for end in (0, -1))
    yield from (low, high)
    for node in leaves:
        if isinstance(node, Leaf) and isinstance(node.distribution, CategoricalDistribution):
            yield from ({node.key: choice} for choice in node.distribution.choices)
        elif isinstance(node, ListLeaf) and isinstance(node.item, CategoricalDistribution):
            yield from (
                low | {node.key: [choice] * len(low[node.key])} for choice in node.item.choices
            )


def _corner(node: Leaf | ListLeaf, end: int, leaves: Sequence[Leaf | ListLeaf]) -> tuple[str, Any]:
    """The key of a node, and its value at the low end (0) or the high end (-1)."""
    if isinstance(node, Leaf):
        return node.key, end_of(node.distribution, end)
    length = node.length
    if isinstance(length, str):
        length = next(n.length for n in leaves if isinstance(n, ListLeaf) and n.key == node.length)
    assert isinstance(length, IntDistribution)
    return node.key, [end_of(node.item, end)] * int(end_of(length, end))


def end_of(distribution: BaseDistribution, end: int) -> Any:
    """Returns the low end of a distribution, or its high end.

    Args:
        end: 0 for the low end or the first choice, -1 for the high end or the last choice.
    """
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[end]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return (distribution.low, distribution.high)[end]


def try_branches(branches: Sequence[Branch], folds: Folds, split: Part) -> Iterator[str]:
    """Builds what each branch names, at each of its probes.

    Args:
        branches: of the space.
        folds: of the data.
        split: of which a network sees the shape and two examples. Those that are loaded one by one
            become whole batches first, the last and smaller one too.

    Yields:
        A line for each mistake. One that an outer branch has made already is not repeated.
    """
    reported: list[tuple[Mapping[str, str], str]] = []
    split = split.for_preflight()
    for branch in branches:
        for probe in probes(branch.nodes):
            try:
                jobs = build_jobs(with_values(branch.config, probe), folds, seed=0)
                # The retraining of the winner is on all examples.
                everything = replace(jobs[0], train=torch.arange(len(split)))
                try_out(jobs[0], split, {job.last_batch for job in [*jobs, everything]})
            except Exception as error:  # of a user's class: better now than in trial 17
                mistakes = error.mistakes if isinstance(error, ConfigError) else None
                for mistake in mistakes or [describe_error(error)]:
                    if any(
                        mistake == known and outer.items() <= branch.choices.items()
                        for outer, known in reported
                    ):
                        continue
                    reported.append((branch.choices, mistake))
                    values = (f"{key}={as_yaml(value)}" for key, value in probe.items())
                    where = ", ".join(filter(None, [str(branch), *values]))
                    yield f"{where}: {mistake}" if where else mistake


def try_out(job: Job, split: Part, last_batches: Collection[int] = ()) -> None:
    """Builds a job's network, optimizer and loss, and runs two examples through them.

    A large network that can go to the meta device is tried there, without memory or arithmetic. All
    others are tried on the CPU, since the meta device imports PyTorch's compiler, which takes a
    second. A step of the user's own is tried on the CPU, with whole batches of real examples, and
    so is a network whose examples are loaded.

    Args:
        job: of a trial.
        split: whose shape and targets the two examples have.
        last_batches: how many examples the last batch of an epoch may have.

    Raises:
        ValueError: the outputs are not (batch, outputs), or the last batch has a single example
            and the network cannot be trained on one.
        Exception: what the parts raise.
    """
    own = job.step is not None or job.evaluate is not None
    if own or not isinstance(split, Split):
        _try_steps(job, split, {job.batch_size, *last_batches}, whole=own)
        if job.evaluate is not None or not isinstance(split, Split):
            return
    # What fails here is tried on the CPU, which shows whether only the meta device is the reason.
    # There, whole numbers are refused by a linear layer too.
    takes_any = split.inputs.is_floating_point() or split.inputs.dtype == torch.uint8
    with contextlib.suppress(Exception):
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = job.model(shape=split.shape, outputs=split.outputs)
        if takes_any and sum(weight.numel() for weight in model.parameters()) > LARGE:
            _forward(job, split, "meta", last_batches)
            return
    _forward(job, split, "cpu", last_batches)


def try_metric(metric: Metric, folds: Folds, split: Part) -> Iterator[str]:
    """Computes a metric of random outputs for the validation part of each fold.

    Args:
        metric: of the study.
        folds: of the data.
        split: with the targets.

    Yields:
        A line for each mistake.
    """
    try:
        _check_kind(metric, classifies=split.classifies)
    except ValueError as error:
        yield str(error)
        return
    if split.targets is None or split.outputs is None or len(split) <= _highest(folds):
        return  # they are known of the examples that the networks were tried on alone
    generator = torch.Generator().manual_seed(0)
    for fold, (_, valid) in enumerate(folds):
        outputs = torch.randn(len(valid), split.outputs, generator=generator)
        try:
            metric(outputs, split.targets[valid].cpu())
        except UndefinedMetric as error:
            of_fold = f" of fold {fold}" if len(folds) > 1 else ""
            yield f"{error}, in the validation part{of_fold}"
        except Exception as error:  # of a function of the user's own
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
            yield f"objective.metric={metric.name}: {problem}"


def _highest(folds: Folds) -> int:
    """Returns the highest index of all validation parts."""
    return max(int(valid.max()) for _, valid in folds)


def try_pruner(pruner: BasePruner, direction: Direction) -> None:
    """Has a pruner compare two trials, since some import what they need only then.

    Args:
        pruner: of the study.
        direction: in which the value of a trial is better.

    Raises:
        Exception: what the pruner raises.
    """
    study = optuna.create_study(direction=direction, pruner=pruner)
    reports = dict.fromkeys(range(1, 6), 0.5)
    study.add_trial(create_trial(value=0.5, intermediate_values=reports))
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values=reports))
    pruner.prune(study, study.trials[1])


def try_goals(
    goals: Sequence[Goal],
    sampler: Callable[[], BaseSampler],
    pruner: Callable[[], BasePruner],
    choices: Mapping[str, str],
) -> Iterator[str]:
    """Checks that the sampler and the pruner can be used with several objectives.

    Optuna has no pruner that can, since it cannot tell which of two trials is behind before both
    values are there. Ours that pauses trials knows what they cost by then.

    Args:
        goals: what the values of a trial are.
        sampler: makes the sampler.
        pruner: makes the pruner.
        choices: the option of each group, by name, for the messages.

    Yields:
        A line for each mistake. That the sampler and the pruner can be made is checked elsewhere.
    """
    names = " and ".join(goal.name for goal in goals)
    single = f"a single objective, objective.metric={goals[0].name}"
    with contextlib.suppress(Exception):
        made = pruner()
        if not isinstance(made, NopPruner) and not getattr(made, "pauses", False):
            yield (
                f"pruner={choices.get('pruner')} compares trials by a single value, and "
                f"objective.metric names {names}; set pruner=promotion or none, or {single}"
            )
    study = optuna.create_study(directions=[goal.direction for goal in goals])
    try:
        sampler().sample_relative(study, create_trial(state=TrialState.RUNNING), {})
    except ValueError as error:
        if "multi-objective" in str(error):
            yield (
                f"sampler={choices.get('sampler')} works for a single objective, and "
                f"objective.metric names {names}; set sampler=tpe, nsga2, random, grid, qmc or gp, "
                f"or {single}"
            )
    except Exception:
        return


def _forward(job: Job, split: Split, device: str, last_batches: Collection[int]) -> None:
    """Builds the parts of a job and computes the loss of two examples."""
    with torch.device(device), torch.random.fork_rng(devices=[]), on_threads(1):
        model = _build(job, split, device)
        _compute(job, model, split, last_batches)


def _compute(job: Job, model: nn.Module, split: Split, last_batches: Collection[int]) -> None:
    """Computes the loss of two examples; what does not fit together is said with the way out."""
    with saying_the_way_out():
        dtype = batch_dtype(job, model, split)
        outputs = model(torch.zeros(2, *split.shape, dtype=dtype))
        if tuple(outputs.shape) != (2, split.outputs):
            raise ValueError(
                f"the outputs of the network must be (2, {split.outputs}) for 2 examples; "
                f"got {tuple(outputs.shape)}; change the network, {TRAIN_IT_YOURSELF}"
            )
        with warnings.catch_warnings():  # PyTorch's losses only warn of targets of another shape
            warnings.simplefilter("error", UserWarning)
            targets = torch.zeros((2, *split.targets.shape[1:]), dtype=split.targets.dtype)
            try:
                loss = job.loss(outputs, targets)
            except TypeError as error:
                raise ValueError(
                    f"loss: {error}; a loss is called with outputs and targets, and one with other "
                    "arguments in a step of your own: train.step, and train.evaluate"
                ) from error
        if getattr(loss, "ndim", 0):
            raise ValueError(
                f"the loss must be a scalar, the mean over the batch; got {tuple(loss.shape)}"
            )
        if 1 in last_batches and job.step is None:
            try:
                model(torch.zeros(1, *split.shape, dtype=dtype))
            except Exception as error:
                raise _single_example(job, error) from error


def _try_steps(job: Job, split: Part, sizes: Collection[int], *, whole: bool) -> None:
    """Runs the steps of a job on batches of the first training examples, on the CPU.

    Args:
        job: of a trial.
        split: the examples.
        sizes: how many examples a batch of training may have.
        whole: whether the network is tried on whole batches, as a step of the user's own needs it,
            and not on two examples.

    Raises:
        ValueError: a step raises an exception, or returns something else than it must.
    """
    with torch.random.fork_rng(devices=[]), on_threads(1):
        if not isinstance(split, Split):
            Training([job], split)  # its modules may want to learn from what is not in memory
        model = _build(job, split, "cpu")
        steps = Steps(job.loss, torch.device("cpu"), "fp32", job.step, job.evaluate)
        batches = make_batches(job, split.to("cpu"))
        if not whole:
            for size in sorted(sizes, reverse=True):
                batches.at(job.train[:size])
            sizes = {min(2, job.batch_size), *sizes} & {1, 2}
        for size in sorted(sizes, reverse=True):
            indices = split.to_rehearse(job.train)[:size]
            try:
                model.train()
                steps.train(model, batches.at(indices)).backward()  # type: ignore[no-untyped-call]
            except DataError:
                raise
            except Exception as error:
                if size == 1 < job.batch_size:
                    raise _single_example(job, error) from error
                raise _of_step("step", size, error, own=job.step is not None) from error
        indices = job.valid[: max(sizes)]
        try:
            model.eval()
            with torch.inference_mode():
                batch, count = next(iter(batches.part(indices)))
                judged = steps.evaluate(model, batch, count)[1:]
        except DataError:
            raise
        except Exception as error:
            own = job.evaluate is not None
            raise _of_step("evaluate", len(indices), error, own=own) from error
    if job.evaluate is None:
        _check_kind(job.metric, classifies=not judged[1].is_floating_point())
    try:
        job.metric(*judged)
    except UndefinedMetric:
        pass  # of so few examples
    except Exception as error:
        shapes = " and ".join(str(tuple(part.shape)) for part in judged)
        raise ValueError(
            f"objective.metric={job.metric.name}: {describe_error(error)}; the outputs and targets "
            f"of the evaluation are {shapes}"
        ) from error


def _build(job: Job, split: Part, device: str) -> nn.Module:
    """Builds the network of a job on a device, and tries its optimizer and schedule."""
    avoid_compiler_import()
    model = job.model(shape=split.shape, outputs=split.outputs).to(device)
    optimizer = make_optimizer(job.optimizer, model, job.groups)
    check_schedule(job.schedule)
    make_rates(job.schedule, optimizer, job.epochs, 1, job.metric)
    return model


def _check_kind(metric: Metric, *, classifies: bool) -> None:
    """Checks that a metric is for the targets of the data.

    Raises:
        ValueError: it is not.
    """
    kind = "classes" if classifies else "numbers"
    if metric.targets not in (None, kind):
        options = ", ".join(other.name for other in METRICS.values() if other.targets == kind)
        raise ValueError(
            f"objective.metric={metric.name}: is for {metric.targets}, and the targets of the data "
            f"are {kind}; choose one of {options}"
        )


def _single_example(job: Job, error: Exception) -> ValueError:
    return ValueError(
        "the last batch of an epoch has a single example, on which the network cannot be trained "
        f"({describe_error(error)}); set train.drop_last=true, or another train.batch_size than "
        f"{job.batch_size}"
    )


def _of_step(name: str, size: int, error: Exception, *, own: bool) -> ValueError:
    """Says what a step raised; the errors of ours about it stay as they are."""
    words = describe_error(error)
    if f"train.{name}" in words:
        return ValueError(words)
    if own:
        return ValueError(f"train.{name}: {words}, for {size} examples")
    return ValueError(
        f"network and loss, on a batch of {size}: {words}; a batch is (inputs, …, targets), and a "
        "step of your own says what else is computed of it: train.step, and train.evaluate, "
        f"{TRAIN_IT_YOURSELF}"
    )
