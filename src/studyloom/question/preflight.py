"""A rehearsal before the first trial: what a configuration names is built and tried once, on a few examples."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

from studyloom.config.values import describe_error, with_values
from studyloom.data.folds import Folds
from studyloom.data.split import Split
from studyloom.errors import UndefinedMetric
from studyloom.metrics import METRICS, Direction, Goal, Metric
from studyloom.question.jobs import build_jobs
from studyloom.space.tree import Leaf, ListLeaf, Node
from studyloom.text import as_yaml
from studyloom.training.job import Job
from studyloom.training.optimizer_step import avoid_compiler_import

LARGE = 10_000_000  # parameters; building one of as many takes about 0.1 s


@dataclass(frozen=True)
class Branch:
    """A part of the space: the choices that lead there, what is asked there, and a config that stands there."""

    choices: Mapping[str, str]
    nodes: tuple[Node, ...]
    config: DictConfig

    def __str__(self) -> str:
        return ", ".join(f"{group}={option}" for group, option in self.choices.items())


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For two examples threads are too many: on a busy machine they wait for each other 0.01 s an operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def probes(nodes: Sequence[Node]) -> Iterator[dict[str, Any]]:
    """The values at which a branch is tried out: its defaults, its two corners, and each single choice."""
    yield {}
    leaves = [node for node in nodes if isinstance(node, Leaf | ListLeaf)]
    if not leaves:
        return
    low, high = (dict(_corner(node, place, leaves) for node in leaves) for place in (0, -1))
    yield from (low, high)
    for node in leaves:
        if isinstance(node, Leaf) and isinstance(node.distribution, CategoricalDistribution):
            yield from ({node.key: choice} for choice in node.distribution.choices)
        elif isinstance(node, ListLeaf) and isinstance(node.item, CategoricalDistribution):
            yield from (
                low | {node.key: [choice] * len(low[node.key])} for choice in node.item.choices
            )


def _corner(
    node: Leaf | ListLeaf, place: int, leaves: Sequence[Leaf | ListLeaf]
) -> tuple[str, Any]:
    if isinstance(node, Leaf):
        return node.key, end_of(node.distribution, place)
    length = node.length
    if isinstance(length, str):
        length = next(n.length for n in leaves if isinstance(n, ListLeaf) and n.key == node.length)
    assert isinstance(length, IntDistribution)
    return node.key, [end_of(node.item, place)] * int(end_of(length, place))


def end_of(distribution: BaseDistribution, place: int) -> Any:
    """The low end (0) or the high end (-1) of a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[place]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return (distribution.low, distribution.high)[place]


def try_branches(branches: Sequence[Branch], folds: Folds, split: Split) -> Iterator[str]:
    """Builds what each branch names at its probes; a mistake of an outer branch is told only there.

    Returns:
        A line for each mistake.
    """
    told: list[tuple[Mapping[str, str], str]] = []
    for branch in branches:
        for probe in probes(branch.nodes):
            try:
                jobs = build_jobs(with_values(branch.config, probe), folds, seed=0)
                try_out(jobs[0], split)
            except Exception as error:  # whatever a user's class raises: now, and not in trial 17
                words = describe_error(error)
                if any(
                    words == known and outer.items() <= branch.choices.items()
                    for outer, known in told
                ):
                    continue
                told.append((branch.choices, words))
                values = (f"{key}={as_yaml(value)}" for key, value in probe.items())
                where = ", ".join(filter(None, [str(branch), *values]))
                yield f"{where}: {words}" if where else words


def try_out(job: Job, split: Split) -> None:
    """Builds a job's network, optimizer and loss, and runs two examples through them.

    A large network without memory or arithmetic, on the meta device, if it can go there; others on the CPU, since the
    meta device imports PyTorch's compiler, which takes a second.

    Raises:
        Exception: what the parts raise; ValueError where the outputs are not (batch, outputs).
    """
    with contextlib.suppress(
        Exception
    ):  # the CPU tells what is wrong, if not just that a network cannot go there
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = job.model(shape=split.shape, outputs=split.outputs)
        if sum(parameter.numel() for parameter in model.parameters()) > LARGE:
            _forward(job, split, "meta")
            return
    _forward(job, split, "cpu")


def try_metric(metric: Metric, folds: Folds, split: Split) -> Iterator[str]:
    """What is wrong with a metric on the validation part of each fold, by made-up outputs."""
    kind = "classes" if split.classifies else "numbers"
    if metric.targets not in (None, kind):
        rest = ", ".join(other.name for other in METRICS.values() if other.targets == kind)
        yield f"objective.metric={metric.name}: is for {metric.targets}, and the targets of the data are {kind}: {rest}"
        return
    generator = torch.Generator().manual_seed(0)
    for fold, (_, valid) in enumerate(folds):
        outputs = torch.randn(len(valid), split.outputs, generator=generator)
        try:
            metric(outputs, split.targets[valid].cpu())
        except UndefinedMetric as error:
            yield f"{error}, in the validation part" + (
                f" of fold {fold}" if len(folds) > 1 else ""
            )
        except Exception as error:  # of a function of the user's own
            yield f"objective.metric={metric.name}: {type(error).__name__}: {' '.join(str(error).split())}"


def try_pruner(pruner: BasePruner, direction: Direction) -> None:
    """Has a pruner compare two trials, since some find out only then what they lack.

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
    """Which of sampler and pruner cannot do with several objectives; what is wrong with them alone is told elsewhere.

    Optuna has no pruner for them: it cannot say which of two trials is behind before both values are there.
    """
    names = " and ".join(goal.name for goal in goals)
    single = f"a single objective, objective.metric={goals[0].name}"
    with contextlib.suppress(Exception):
        if not isinstance(pruner(), NopPruner):
            yield (
                f"pruner={choices.get('pruner')}: ends trials by one value, and objective.metric names {names}; set "
                f"pruner=none, or {single}"
            )
    study = optuna.create_study(directions=[goal.direction for goal in goals])
    try:
        sampler().sample_relative(study, create_trial(state=TrialState.RUNNING), {})
    except ValueError as error:
        if "multi-objective" in str(error):
            yield (
                f"sampler={choices.get('sampler')}: knows one objective, and objective.metric names {names}; set "
                f"sampler=tpe, nsga2, random, grid, qmc or gp, or {single}"
            )
    except Exception:
        return


def _forward(job: Job, split: Split, device: str) -> None:
    avoid_compiler_import()
    with torch.device(device), torch.random.fork_rng(devices=[]), one_thread():
        model = job.model(shape=split.shape, outputs=split.outputs).to(device)
        job.optimizer(model.parameters())
        job.schedule(0.0)
        made = model(torch.zeros(2, *split.shape, dtype=split.inputs.dtype))
        if tuple(made.shape) != (2, split.outputs):
            raise ValueError(
                f"the network makes {tuple(made.shape)} of 2 examples; (2, {split.outputs}) is wanted"
            )
        with warnings.catch_warnings():  # of targets of another shape PyTorch's losses only warn
            warnings.simplefilter("error", UserWarning)
            job.loss(made, torch.zeros((2, *split.targets.shape[1:]), dtype=split.targets.dtype))
