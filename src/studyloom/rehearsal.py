"""A rehearsal before the first trial: what a configuration names is built and tried once, on a few examples."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial
from torch import Tensor

from studyloom.data import Split
from studyloom.metrics import METRICS, Aim, Direction, Metric, Undefined
from studyloom.space import Leaf, Many, Node
from studyloom.steps import spare_compiler
from studyloom.train import Job

LARGE = 10_000_000  # parameters; building one of as many takes about 0.1 s

Folds = Sequence[tuple[Tensor, Tensor]]


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
    leaves = [node for node in nodes if isinstance(node, Leaf | Many)]
    if not leaves:
        return
    low, high = (dict(_corner(node, place, leaves) for node in leaves) for place in (0, -1))
    yield from (low, high)
    for node in leaves:
        if isinstance(node, Leaf) and isinstance(node.distribution, CategoricalDistribution):
            yield from ({node.key: choice} for choice in node.distribution.choices)
        elif isinstance(node, Many) and isinstance(node.item, CategoricalDistribution):
            yield from (low | {node.key: [choice] * len(low[node.key])} for choice in node.item.choices)


def _corner(node: Leaf | Many, place: int, leaves: Sequence[Leaf | Many]) -> tuple[str, Any]:
    if isinstance(node, Leaf):
        return node.key, end(node.distribution, place)
    length = node.length
    if isinstance(length, str):
        length = next(n.length for n in leaves if isinstance(n, Many) and n.key == node.length)
    assert isinstance(length, IntDistribution)
    return node.key, [end(node.item, place)] * int(end(length, place))


def end(distribution: BaseDistribution, place: int) -> Any:
    """The low end (0) or the high end (-1) of a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[place]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return (distribution.low, distribution.high)[place]


def try_out(job: Job, split: Split) -> None:
    """Builds a job's network, optimizer and loss, and runs two examples through them.

    A large network without memory or arithmetic, on the meta device, if it can go there; others on the CPU, since the
    meta device imports PyTorch's compiler, which takes a second.

    Raises:
        Exception: what the parts raise; ValueError where the outputs are not (batch, outputs).
    """
    with contextlib.suppress(Exception):  # the CPU tells what is wrong, if not just that a network cannot go there
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
        except Undefined as error:
            yield f"{error}, in the validation part" + (f" of fold {fold}" if len(folds) > 1 else "")
        except Exception as error:  # of a function of the user's own
            yield f"objective.metric={metric.name}: {type(error).__name__}: {' '.join(str(error).split())}"


def ask_once(pruner: BasePruner, direction: Direction) -> None:
    """Has a pruner compare two trials, since some find out only then what they lack.

    Raises:
        Exception: what the pruner raises.
    """
    study = optuna.create_study(direction=direction, pruner=pruner)
    reports = dict.fromkeys(range(1, 6), 0.5)
    study.add_trial(create_trial(value=0.5, intermediate_values=reports))
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values=reports))
    pruner.prune(study, study.trials[1])


def try_aims(
    aims: Sequence[Aim],
    sampler: Callable[[], BaseSampler],
    pruner: Callable[[], BasePruner],
    choices: Mapping[str, str],
) -> Iterator[str]:
    """Which of sampler and pruner cannot do with several objectives; what is wrong with them alone is told elsewhere.

    Optuna has no pruner for them: it cannot say which of two trials is behind before both values are there.
    """
    names = " and ".join(aim.name for aim in aims)
    single = f"a single objective, objective.metric={aims[0].name}"
    with contextlib.suppress(Exception):
        if not isinstance(pruner(), NopPruner):
            yield (
                f"pruner={choices.get('pruner')}: ends trials by one value, and objective.metric names {names}; set "
                f"pruner=none, or {single}"
            )
    study = optuna.create_study(directions=[aim.direction for aim in aims])
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
    spare_compiler()
    with torch.device(device), torch.random.fork_rng(devices=[]), one_thread():
        model = job.model(shape=split.shape, outputs=split.outputs).to(device)
        job.optimizer(model.parameters())
        job.schedule(0.0)
        made = model(torch.zeros(2, *split.shape, dtype=split.inputs.dtype))
        if tuple(made.shape) != (2, split.outputs):
            raise ValueError(f"the network makes {tuple(made.shape)} of 2 examples; (2, {split.outputs}) is wanted")
        with warnings.catch_warnings():  # of targets of another shape PyTorch's losses only warn
            warnings.simplefilter("error", UserWarning)
            job.loss(made, torch.zeros((2, *split.targets.shape[1:]), dtype=split.targets.dtype))
