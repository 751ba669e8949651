"""Validates a question as a whole before trial 0: every mistake at once, each with the way out.

All that the config names is built and tried once, at the defaults, corners and choices of each
branch of the space. Networks see two examples, a metric sees random outputs, samplers and pruners
see made-up trials.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial
from torch import nn

from studyloom.config.overrides import group_options
from studyloom.config.schema import STOPS, Config, check_name
from studyloom.config.values import describe_error, has_key, value_at, with_values
from studyloom.data.split import Split
from studyloom.data.training_data import Part, TrainingData
from studyloom.errors import (
    TRAIN_IT_YOURSELF,
    ConfigError,
    DataError,
    UndefinedMetric,
    or_train_it_yourself,
)
from studyloom.metrics import METRICS, Goal, Metric
from studyloom.question.jobs import build_jobs, build_test, why_not_callable
from studyloom.question.question import (
    STEPS,
    Branch,
    FunctionQuestion,
    Question,
    end_of,
)
from studyloom.space.tree import Leaf, ListLeaf, Node, Space, group_of, why_not
from studyloom.text import as_yaml, nearest, no_such_key
from studyloom.training.batches import batch_dtype, make_batches
from studyloom.training.job import Job
from studyloom.training.optimizer import Rates, check_schedule, make_optimizer
from studyloom.training.steps import Steps, on_threads
from studyloom.training.trainer import Training

log = logging.getLogger(__name__)
LARGEST_SEED = 2**32 - 1  # of numpy's older generators, which samplers use
# The sections whose objects are made anew for each trial.
SEARCHED = ("model", "optimizer", "scheduler", "loss", "train", "params")
LARGE = 10_000_000  # parameters; building a network with so many takes about 0.1 s
REMEMBERED = (bool, int, float, str, bytes, tuple, list, dict, set)  # no generators of numbers


def validate(question: Question, data: TrainingData) -> None:
    """Composes every branch of the space and builds what it names: defaults, corners and choices.

    Raises:
        ConfigError: every mistake found. Nothing is built if keys or ranges are wrong, since that
            would only repeat the mistakes.
    """
    mistakes = [*check_sections(question), *_check_groups(question)]
    try:
        for branch in question.branches:
            mistakes += _check_leaves(question, branch)
    except ConfigError as error:
        mistakes += error.mistakes
    if not mistakes:
        if isinstance(question, FunctionQuestion):
            mistakes += _check_functions(question, data)
        else:
            mistakes += _try_networks(question, data)
    if not mistakes:
        mistakes += _check_search(question)
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))


# The values of our own sections


def check_sections(question: Question) -> Iterator[str]:
    """Yields the mistakes in studyloom's own sections; they need neither the data nor the space."""
    config = question.config
    study, objective, winner = config.study, config.objective, config.winner
    yield from filter(None, [check_name(study.name)])
    yield from _check_goals(question)
    at_least = {
        "study.trials": (study.trials, 1),
        "study.seed": (study.seed, 0),
        "study.epochs": (study.epochs, 1),
        "objective.folds": (objective.folds, 1),
        "objective.seeds": (objective.seeds, 1),
        "winner.top": (winner.top, 1),
        "winner.seeds": (winner.seeds, 1),
    }
    for key, (value, low) in at_least.items():
        if value is not None and value < low:
            yield f"{key} must be at least {low}; got {value}"
    if study.seed > LARGEST_SEED:
        yield f"study.seed must be at most {LARGEST_SEED}; got {study.seed}"
    for key in ("timeout", "regret"):
        if study[key] is not None and not 0 < study[key] < math.inf:
            yield f"study.{key} must be a positive number, or null; got {study[key]}"
    yield from _check_regret(question)
    yield from _check_winner(question)
    pruner = f"pruner={question.composer.choices.get('pruner')}"
    if question.steps not in ("epochs", "jobs"):
        yield f"pruner.{STEPS} must be epochs or jobs; got {question.steps!r}"
    with contextlib.suppress(Exception):  # that it can be built is checked later, with all else
        yield from getattr(question.pruner(), "check", lambda _: ())(question)
    if question.in_turn and objective.folds == objective.seeds == 1:
        yield (
            f"{pruner} compares trials fold by fold and seed by seed, and a trial has only one of "
            "each; set objective.folds=5, or choose another pruner, such as pruner=median"
        )
    if study.epochs is not None and question.in_turn:
        yield (
            f"study.epochs counts epochs, and with {pruner} trials report whole folds and seeds; "
            "choose pruner=median, or bound the search by study.trials or study.timeout"
        )
    loop, epochs = isinstance(question, FunctionQuestion), config.train.epochs
    if study.epochs is not None and not loop and 1 <= study.epochs < epochs:
        yield (
            f"study.epochs must be at least train.epochs={epochs}, the epochs of one trial; "
            f"got {study.epochs}"
        )


def _check_goals(question: Question) -> Iterator[str]:
    """Yields the mistakes in the metric, the limits and the rule."""
    goals: tuple[Goal, ...] = ()
    try:
        goals = question.goals
    except ConfigError as error:
        yield from error.mistakes
    except Exception as error:  # of a class of the user's own
        yield f"objective.metric: {describe_error(error)}"
    try:
        _ = question.limits
        # With a wrong objective, a rule may name what is not known for that reason.
        rule = question.rule if goals else None
    except ConfigError as error:
        yield from error.mistakes
        rule = None
    study, winner = question.config.study, question.config.winner
    if rule is not None and rule.goal.name != goals[0].name:
        chooses = f"winner.rule chooses by {rule.goal.name}, and not by {goals[0].name}"
        if study.stop:
            yield f"study.stop={study.stop}: {chooses}; set study.stop=null, or another rule"
        if winner.enabled and winner.race:
            yield f"winner.race: {chooses}; set winner.race=false, or another rule"
    if len(goals) > 1:
        yield from _check_several(question)


def _check_several(question: Question) -> Iterator[str]:
    """Yields why the pruner or the sampler cannot be used with several objectives.

    Optuna has no pruner that can, since it cannot tell which of two trials is behind before both
    values are there. Ours that pauses trials knows what they cost by then.
    """
    goals, choices = question.goals, question.composer.choices
    names = f"objective.metric names {' and '.join(goal.name for goal in goals)}"
    single = f"a single objective, objective.metric={goals[0].name}"
    with contextlib.suppress(Exception):  # that it can be built is checked later
        pruner = question.pruner()
        if not isinstance(pruner, NopPruner) and not getattr(pruner, "pauses", False):
            yield (
                f"pruner={choices.get('pruner')} compares trials by a single value, and {names}; "
                f"set pruner=promotion or none, or {single}"
            )
    study = optuna.create_study(directions=[goal.direction for goal in goals])
    try:
        question.sampler(0).sample_relative(study, create_trial(state=TrialState.RUNNING), {})
    except Exception as error:
        if isinstance(error, ValueError) and "multi-objective" in str(error):
            yield (
                f"sampler={choices.get('sampler')} works for a single objective, and {names}; set "
                f"sampler=tpe, nsga2, random, grid, qmc or gp, or {single}"
            )


def _check_regret(question: Question) -> Iterator[str]:
    """Yields the mistakes in what ends the search once it is good enough."""
    study, metric = question.config.study, question.config.objective.metric
    if study.stop not in (None, *STOPS):
        near = nearest(study.stop, STOPS)
        yield f"study.stop must be {' or '.join(STOPS)}, or null; got {study.stop}{near}"
    elif (study.stop is None) != (study.regret is None):
        yield (
            "study.stop=regret and study.regret, such as 0.005, the gain that further trials are "
            "not worth in units of the metric, go together; set both or none"
        )
    if study.stop is None:
        return
    ways_out = "set study.stop=null, and bound the search by study.trials or study.epochs"
    if isinstance(metric, ListConfig) and len(metric) > 1:
        yield (
            "study.stop=regret asks what further trials gain in one value, and objective.metric "
            f"names {len(metric)}; {ways_out}"
        )
    if str(question.config.sampler.get("_target_")).endswith(".GridSampler"):
        yield (
            "study.stop=regret asks what further trials gain, and sampler=grid tries each point "
            f"of a list; {ways_out}, or choose another sampler, such as sampler=random"
        )


def _check_winner(question: Question) -> Iterator[str]:
    """Yields the mistakes of a race, and why no committee can be judged beside the winner."""
    config, winner = question.config, question.config.winner
    if winner.enabled and winner.race and winner.seeds == 1:
        yield (
            "winner.race: nobody can leave a race of winner.seeds=1; set winner.seeds to 2 or "
            "more, or winner.race=false"
        )
    if not winner.committee:
        return
    if not winner.enabled:
        yield _no_committee("is tested with the winner, and winner.enabled is false")
    if isinstance(question, FunctionQuestion):
        target = config.objective["_target_"]
        yield _no_committee(f"averages networks that studyloom trains, and {target} is your loop")
    elif isinstance(config.objective.metric, ListConfig):
        yield _no_committee("is for a single objective, such as objective.metric=accuracy")
    elif config.train.evaluate is not None:
        yield _no_committee("averages outputs of networks, and train.evaluate returns others")


def _no_committee(why: str) -> str:
    return f"winner.committee=true {why}; set winner.committee=false"


def check_ranks(question: Question, ranks: int) -> Iterator[str]:
    """Yields the mistake that a batch has too few examples to be divided among the ranks."""
    if ranks == 1 or isinstance(question, FunctionQuestion):
        return
    smallest = min(
        value_at(with_values(branch.config, probe), "train.batch_size")
        for branch in question.branches
        for probe in probes(branch.nodes)
    )
    if smallest < ranks:
        yield (
            f"train.batch_size must be at least {ranks}, an example for each of "
            f"launcher.ranks={ranks}; got {smallest}"
        )


# The space


def _check_groups(question: Question) -> Iterator[str]:
    """Yields groups that cannot be searched, and choices of the baseline outside the space."""
    for group in question.space.groups():
        yield from _not_searched(group)
        name = group_of(group.key)
        option = question.composer.choices.get(name)
        inside = group.name == group.key or _baseline_opens(question, group.name)
        if question.config.study.baseline and inside and option not in group.options:
            options = ", ".join(group.options)
            yield (
                f"{name}: the configuration as composed has {name}={option}, and the space holds "
                f"{options}; choose one of these, add {option} to space.{group.name}, or set "
                "study.baseline=false"
            )


def _baseline_opens(question: Question, name: str) -> bool:
    """Whether the baseline's choices lead to the group with that name in the space."""
    for outer in question.space.groups():
        if name.startswith(f"{outer.name}."):
            option = name[len(outer.name) + 1 :].partition(".")[0]
            chosen = question.composer.choices.get(group_of(outer.key))
            if option in outer.options and chosen != option:
                return False
    return True


def _check_leaves(question: Question, branch: Branch) -> Iterator[str]:
    """Yields unknown keys of a branch, and defaults that are not among its values."""
    chosen = "".join(f" with {group}={option}" for group, option in branch.choices.items())
    ways_out = f"; change the default{chosen}, the space, or set study.baseline=false"
    for node in branch.nodes:
        if mistakes := [*_not_searched(node)]:
            yield from mistakes
        elif not has_key(branch.config, node.key):
            yield f"space.{node.name}: {_explain_key(node.key, branch.config)}"
        elif question.config.study.baseline:
            default = value_at(branch.config, node.key)
            where = f"space.{node.name}: the default {node.key}={as_yaml(default)}"
            for problem in _problems(node, default, branch):
                yield f"{where} {problem}{ways_out}"


def _explain_key(key: str, config: DictConfig) -> str:
    """Says which part of a key is not in a config, with the keys and options that are."""
    parts = key.split(".")
    keys = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    depth = next(depth for depth, each in enumerate(keys) if not has_key(config, each))
    above = keys[depth - 1] if depth else ""
    section = OmegaConf.select(config, above) if above else config
    names = [*map(str, section)] if isinstance(section, DictConfig) else []
    options = group_options(group_of(above)) if above else []
    return no_such_key(keys[depth], [name for name in names if name[:1] != "_"] + options)


def _not_searched(node: Node) -> Iterator[str]:
    """Yields why a key cannot be searched."""
    section = node.key.partition(".")[0]
    if section in Config.__dataclass_fields__ and section not in SEARCHED:
        yield (
            f"space.{node.name}: {section} is the same for all trials; what can be searched is "
            f"{', '.join(SEARCHED)}"
        )


def _problems(node: Node, default: Any, branch: Branch) -> Iterator[str]:
    """Yields why a default is not among the values of its node, each beginning with a verb."""
    if isinstance(node, Leaf):
        yield from filter(None, [why_not(node.distribution, default)])
        return
    assert isinstance(node, ListLeaf)
    items = default if isinstance(default, list) else [default]
    yield from dict.fromkeys(filter(None, (why_not(node.item, item) for item in items)))
    if isinstance(node.length, IntDistribution):
        if not isinstance(default, list):
            yield "is not a list"
        elif problem := why_not(node.length, len(default)):
            yield f"is a list whose length {len(default)} {problem}"
    elif isinstance(default, list) and len(default) != len(value_at(branch.config, node.length)):
        yield f"is not as long as {node.length}"


def probes(nodes: Sequence[Node]) -> Iterator[dict[str, Any]]:
    """Yields the values to try a branch at, by key; what is not named keeps its default.

    They are the defaults, the low and the high corner of the space, and each choice alone.
    """
    yield {}
    leaves = [node for node in nodes if isinstance(node, Leaf | ListLeaf)]
    if not leaves:
        return
    low, high = ({node.key: _corner(node, end, leaves) for node in leaves} for end in (0, -1))
    yield from (low, high)
    for node in leaves:
        if isinstance(node, Leaf) and isinstance(node.distribution, CategoricalDistribution):
            yield from ({node.key: choice} for choice in node.distribution.choices)
        elif isinstance(node, ListLeaf) and isinstance(node.item, CategoricalDistribution):
            for choice in node.item.choices:
                yield low | {node.key: [choice] * len(low[node.key])}


def _corner(node: Leaf | ListLeaf, end: int, leaves: Sequence[Leaf | ListLeaf]) -> Any:
    """Returns the value of a node at the low end (0) or the high end (-1)."""
    if isinstance(node, Leaf):
        return end_of(node.distribution, end)
    length = node.length
    if isinstance(length, str):  # that of another list
        length = next(n.length for n in leaves if isinstance(n, ListLeaf) and n.key == node.length)
    assert isinstance(length, IntDistribution)
    return [end_of(node.item, end)] * int(end_of(length, end))


# Functions of the user's own


def _check_functions(question: FunctionQuestion, data: TrainingData) -> Iterator[str]:
    """Yields the mistakes in the functions: they do not exist, or take other arguments."""
    objective = question.config.objective
    try:
        if problem := why_not_callable(question.adapter, 2):
            target = objective["_target_"]
            yield f"objective._target_={target}: {problem}; it is called as (config, run) -> value"
        elif hasattr(question.adapter, "check"):
            yield from question.adapter.check(question.config, question.space)
    except ConfigError as error:
        yield from error.mistakes
    if objective.test is not None:
        try:
            if problem := why_not_callable(build_test(objective.test), 3):
                signature = "(config, run, part) -> values"
                yield f"objective.test: {problem}; it is called as {signature}"
            elif data.split is not None and not callable(getattr(data.source, "test", None)):
                yield (
                    "objective.test is given the test part of the data, and "
                    f"{type(data.source).__name__} has no method test; add one, or leave "
                    "objective.test out"
                )
        except ConfigError as error:
            yield from error.mistakes
    if data.split is None and objective.folds > 1:
        yield (
            f"objective.folds={objective.folds}: the data are the function's own; divide them "
            "there, or name them in the section data, whose folds run.train and run.valid are"
        )


# Networks


def _try_networks(question: Question, data: TrainingData) -> Iterator[str]:
    """Builds the jobs of each branch at each of its probes, and tries them and the metric.

    Examples that are loaded one by one become whole batches first, the last and smaller one too.

    Yields:
        A line for each mistake. One that an outer branch has made already is not repeated.
    """
    assert data.split is not None
    reported: list[tuple[Mapping[str, str], str]] = []
    split = data.split.for_preflight()
    for branch in question.branches:
        for probe in probes(branch.nodes):
            try:
                jobs = build_jobs(with_values(branch.config, probe), data.folds, seed=0)
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
    if not reported and question.config.train.evaluate is None:  # which gives its own targets
        yield from _try_metric(question.metric, data)


def try_out(job: Job, split: Part, last_batches: Collection[int] = ()) -> None:
    """Builds a job's network, optimizer and loss, and runs two examples through them.

    A large network that can go to the meta device is tried there, without memory or arithmetic. All
    others are tried on the CPU, since the meta device imports PyTorch's compiler, which takes a
    second. A step of the user's own is tried on the CPU, with whole batches of real examples, and
    so is a network whose examples are loaded.

    Args:
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
    device = "cpu"
    # What fails here is tried on the CPU, which shows whether only the meta device is the reason.
    # There, whole numbers are refused by a linear layer too.
    with contextlib.suppress(Exception), torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = job.model(shape=split.shape, outputs=split.outputs)
        takes_any = split.inputs.is_floating_point() or split.inputs.dtype == torch.uint8
        if takes_any and sum(weight.numel() for weight in model.parameters()) > LARGE:
            device = "meta"
    with torch.device(device), torch.random.fork_rng(devices=[]), on_threads(1):
        model = _build(job, split, device)
        try:
            _compute(job, model, split, last_batches)
        except Exception as error:
            raise ValueError(or_train_it_yourself(describe_error(error))) from error


def _build(job: Job, split: Part, device: str) -> nn.Module:
    """Builds the network of a job on a device, and tries its optimizer and schedule."""
    model = job.model(shape=split.shape, outputs=split.outputs).to(device)
    optimizer = make_optimizer(job.optimizer, model, job.groups)
    check_schedule(job.schedule)
    Rates(job.schedule, optimizer, job.epochs, 1, job.metric)
    return model


def _compute(job: Job, model: nn.Module, split: Split, last_batches: Collection[int]) -> None:
    """Computes the loss of two examples of zeros, on the device of the context."""
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
                raise _of_step("step", job.step, size, error) from error
        indices = job.valid[: max(sizes)]
        try:
            model.eval()
            with torch.inference_mode():
                batch, count = next(iter(batches.part(indices)))
                judged = steps.evaluate(model, batch, count)[1:]
        except DataError:
            raise
        except Exception as error:
            raise _of_step("evaluate", job.evaluate, len(indices), error) from error
    if job.evaluate is None:
        _check_kind(job.metric, classifies=not judged[1].is_floating_point())
    try:
        job.metric(*judged)
    except UndefinedMetric:
        pass  # there are so few examples
    except Exception as error:
        shapes = " and ".join(str(tuple(part.shape)) for part in judged)
        raise ValueError(
            f"objective.metric={job.metric.name}: {describe_error(error)}; the outputs and targets "
            f"of the evaluation are {shapes}"
        ) from error


def _single_example(job: Job, error: Exception) -> ValueError:
    return ValueError(
        "the last batch of an epoch has a single example, on which the network cannot be trained "
        f"({describe_error(error)}); set train.drop_last=true, or another train.batch_size than "
        f"{job.batch_size}"
    )


def _of_step(name: str, own: object, size: int, error: Exception) -> ValueError:
    """Says what a step raised; the errors of ours about it stay as they are."""
    words = describe_error(error)
    if f"train.{name}" in words:
        return ValueError(words)
    if own is not None:
        return ValueError(f"train.{name}: {words}, for {size} examples")
    return ValueError(
        f"network and loss, on a batch of {size}: {words}; a batch is (inputs, …, targets), and a "
        "step of your own says what else is computed of it: train.step, and train.evaluate, "
        f"{TRAIN_IT_YOURSELF}"
    )


def _try_metric(metric: Metric, data: TrainingData) -> Iterator[str]:
    """Computes a metric of random outputs for the validation part of each fold."""
    folds, split = data.folds, data.split
    assert split is not None
    try:
        _check_kind(metric, classifies=split.classifies)
    except ValueError as error:
        yield str(error)
        return
    highest = max(int(valid.max()) for _, valid in folds)
    if split.targets is None or split.outputs is None or len(split) <= highest:
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


def _check_kind(metric: Metric, *, classifies: bool) -> None:
    """Raises ValueError if a metric is not for the targets of the data."""
    kind = "classes" if classifies else "numbers"
    if metric.targets not in (None, kind):
        options = ", ".join(other.name for other in METRICS.values() if other.targets == kind)
        raise ValueError(
            f"objective.metric={metric.name}: is for {metric.targets}, and the targets of the data "
            f"are {kind}; choose one of {options}"
        )


# The sampler and the pruner


def _check_search(question: Question) -> Iterator[str]:
    """Makes and tries the sampler and the pruner; yields their mistakes."""
    for name, attempt in (("sampler", _try_sampler), ("pruner", _try_pruner)):
        chosen = f"{name}={question.composer.choices.get(name)}"
        try:
            attempt(question)
        except ConfigError as error:
            yield from error.mistakes
        except ImportError as error:
            extra = "pip install 'studyloom[samplers]'"
            yield f"{chosen} needs a library that is missing ({extra}): {describe_error(error)}"
        except Exception as error:
            yield f"{chosen}: {describe_error(error)}"


def _try_pruner(question: Question) -> None:
    """Has a pruner compare two made-up trials, since some import what they need only then."""
    pruner = question.pruner()
    study = optuna.create_study(direction=question.metric.direction, pruner=pruner)
    reports = dict.fromkeys(range(1, 6), 0.5)
    study.add_trial(create_trial(value=0.5, intermediate_values=reports))
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values=reports))
    pruner.prune(study, study.trials[1])


def _try_sampler(question: Question) -> None:
    """Warns of a sampler of the user's own that remembers what the next trial does not see."""
    sampler = question.sampler(0)
    ours = type(sampler).__module__.partition(".")[0] in ("optuna", "studyloom")
    if ours or "sampler" in question.keeps_state:
        return
    if names := _remembered(sampler, question.space):
        log.warning(
            "sampler=%s: changes its %s from trial to trial, and is made anew for each trial; have "
            "it derive that from the trials of the study, or set +sampler.keeps_state=true",
            question.composer.choices.get("sampler"),
            ", ".join(names),
        )


def _remembered(sampler: BaseSampler, space: Space) -> list[str]:
    """Returns the attributes, of plain values, that a sampler changes during two made-up trials."""

    def values() -> dict[str, str]:
        plain = {name: each for name, each in vars(sampler).items() if type(each) in REMEMBERED}
        return {name: repr(each) for name, each in plain.items()}

    before = values()
    study: Any = optuna.create_study(sampler=sampler)
    try:
        for _ in range(2):
            trial = study.ask()
            space.suggest(trial)
            study.tell(trial, 0.5)
    except Exception:  # such as one that asks for trials of its own; it is not to be judged here
        return []
    after = values()
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
