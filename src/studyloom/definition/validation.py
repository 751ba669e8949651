"""Validates a question as a whole before trial 0: every mistake at once, each with the way out.

All that the config names is built and tried once, at the defaults, corners and choices of each
branch of the space. Networks are trained on two examples, a metric sees random outputs, and the
pruner sees made-up trials.
"""

import contextlib
import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import optuna
import torch
from omegaconf import ListConfig
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.pruners import NopPruner
from optuna.trial import TrialState, create_trial

from studyloom.config.overrides import explain_key, group_options
from studyloom.config.schema import Config, check_name, out_of_range
from studyloom.config.values import describe_error, value_at, with_values
from studyloom.data.split import Split
from studyloom.data.training_data import Part, TrainingData
from studyloom.definition.definition import OF_NETWORKS, STEPS, Branch, Definition
from studyloom.definition.jobs import build_jobs
from studyloom.definition.scale import present
from studyloom.errors import (
    TRAIN_IT_YOURSELF,
    ConfigError,
    DataError,
    UndefinedMetric,
    or_train_it_yourself,
    refuse,
)
from studyloom.metrics import MEMORY, METRICS, Goal, Metric
from studyloom.space.samplers import DRAWS, any_point
from studyloom.space.tree import LARGEST_GRID, Leaf, ListLeaf, Space, end_of, group_of, why_not
from studyloom.text import as_yaml, line_to_add, nearest
from studyloom.training.coordinates import check_coordinates
from studyloom.training.job import Job
from studyloom.training.memory import predict_memory
from studyloom.training.optimizer import check_schedule
from studyloom.training.steps import Steps, apply_network, on_threads
from studyloom.training.trainer import JobRun

SEARCHED = (*OF_NETWORKS, "train", "params")


def validate(definition: Definition, data: TrainingData) -> None:
    """Composes every branch of the space and builds what it names: defaults, corners and choices.

    Raises:
        ConfigError: every mistake found. Nothing is built if keys or ranges are wrong, since that
            would only repeat the mistakes.
    """
    mistakes = [*_check_groups(definition)]
    try:
        for branch in definition.branches:
            mistakes += _check_leaves(definition, branch)
    except ConfigError as error:
        mistakes += error.mistakes
    if not mistakes:
        mistakes += _check_relations(definition)
    mistakes = [*check_sections(definition), *mistakes]
    if not mistakes:
        mistakes += definition.check_functions(data)
        if definition.trains_networks:
            mistakes += _try_networks(definition, data)
    if not mistakes:
        mistakes += _check_search(definition)
    refuse(mistakes)


# The values of our own sections


def check_sections(definition: Definition) -> Iterator[str]:
    """Yields the mistakes in studyloom's own sections; they need neither the data nor the space."""
    yield from filter(None, [check_name(definition.config.study.name)])
    yield from out_of_range(definition.config)
    yield from _rules(definition)
    yield from _check_goals(definition)
    with contextlib.suppress(Exception):  # that it can be built is checked later, with all else
        yield from getattr(definition.pruner(), "check", lambda _: ())(definition)


def _rules(definition: Definition) -> Iterator[str]:
    """Yields values that exclude each other, with the way out."""
    config, choices = definition.config, definition.composer.choices
    study, objective, winner, train = config.study, config.objective, config.winner, config.train
    several = isinstance(objective.metric, ListConfig) and len(objective.metric) > 1
    scale = definition.scale
    sized = {} if scale is None else scale.target
    if study.stop not in (None, "regret"):
        yield f"study.stop must be regret, or null; got {study.stop}"
    elif (study.stop is None) != (study.regret is None):
        yield (
            "study.stop=regret and study.regret, such as 0.005, the gain that further trials are "
            "not worth in units of the metric, go together; set both or none"
        )
    if objective.network is not None and definition.trains_networks:
        yield "objective.network is of a loop; what studyloom trains is in the section model"
    if config.cost.limit is not None and not config.cost.per_hour:
        yield "cost.limit is spent by the hour; set cost.per_hour too, or cost.limit=null"
    single = objective.folds == objective.seeds == 1
    grid = str(config.sampler.get("_target_")).endswith(".GridSampler")
    for asked, needs, way_out, refusals in (
        (
            study.stop is not None,
            "study.stop=regret asks what further trials gain in one value",
            "set study.stop=null, and bound the search by study.trials or study.epochs",
            {
                "objective.metric names more than one": several,
                "sampler=grid tries each point of a list": grid,
            },
        ),
        (
            bool(sized),
            "scale judges the trials of a small search at another size, by their metric",
            "leave scale out, or the other",
            {
                "objective.metric names more than one": several,
                "objective.constraints limits what the small network costs": bool(
                    definition.limits
                ),
                "winner.enabled is false": not winner.enabled,
                "train.patience or train.keep choose the epochs of which there are more": (
                    "train.epochs" in sized and (train.patience, train.keep) != (None, "last")
                ),
            },
        ),
        (
            definition.in_turn,
            f"pruner={choices.get('pruner')} compares trials fold by fold and seed by seed",
            "choose another pruner, such as pruner=median",
            {
                "objective.folds=1 and objective.seeds=1 are one of each": single,
                "study.epochs counts epochs": study.epochs is not None,
            },
        ),
    ):
        yield from (
            f"{needs}, and {why}; {way_out}" for why, no in refusals.items() if asked and no
        )
    if definition.steps not in ("epochs", "jobs"):
        yield f"pruner.{STEPS} must be epochs or jobs; got {definition.steps!r}"


def _check_goals(definition: Definition) -> Iterator[str]:
    """Yields the mistakes in the metric, the limits and the rule."""
    goals: tuple[Goal, ...] = ()
    rule = None
    try:
        goals = definition.goals
    except ConfigError as error:
        yield from error.mistakes
    except Exception as error:  # of a class of the user's own
        yield f"objective.metric: {describe_error(error)}"
    try:
        _ = definition.limits
        # With a wrong objective, a rule may name what is not known for that reason.
        rule = definition.rule if goals else None
    except ConfigError as error:
        yield from error.mistakes
    stop = definition.config.study.stop
    if stop and rule is not None and rule.goal.name != goals[0].name:
        chooses = f"winner.rule chooses by {rule.goal.name}, and not by {goals[0].name}"
        yield f"study.stop={stop}: {chooses}; set study.stop=null, or another rule"
    if len(goals) > 1:
        with contextlib.suppress(Exception):  # that it can be built is checked later
            pruner = definition.pruner()
            if not isinstance(pruner, NopPruner) and not getattr(pruner, "pauses", False):
                yield (
                    f"pruner={definition.composer.choices.get('pruner')} compares by one value, "
                    "and objective.metric names several; set pruner=promotion or none, or name one"
                )


def check_ranks(definition: Definition, ranks: int) -> Iterator[str]:
    """Yields why the ranks cannot share a trial, as when a batch has too few examples."""
    if ranks > 1 and definition.suggests:
        yield f"launcher.ranks must be 1 for an objective(trial), which suggests; got {ranks}"
    if ranks == 1 or not definition.trains_networks:
        return
    smallest = min(
        value_at(with_values(branch.config, probe), "train.batch_size")
        for branch in definition.branches
        for probe in probes(branch.nodes)
    )
    if smallest < ranks:
        yield (
            f"train.batch_size must be at least {ranks}, an example for each of "
            f"launcher.ranks={ranks}; got {smallest}"
        )


# The space


def _check_groups(definition: Definition) -> Iterator[str]:
    """Yields groups that cannot be searched, and choices of the baseline outside the space."""
    chosen, groups = definition.composer.choices, [*definition.space.groups()]
    shut = [
        f"{group.name}.{option}."
        for group in groups
        for option in group.options
        if option != chosen.get(group_of(group.key))
    ]
    for group in groups:
        yield from _not_searched(group.name, group.key)
        name = group_of(group.key)
        option = chosen.get(name)
        inside = not group.name.startswith(tuple(shut))
        if definition.config.study.baseline and inside and option not in group.options:
            options = ", ".join(group.options)
            yield (
                f"{name}: the configuration as composed has {name}={option}, and the space holds "
                f"{options}; choose one of these, add {option} to space.{group.name}, or set "
                "study.baseline=false"
            )


def _check_leaves(definition: Definition, branch: Branch) -> Iterator[str]:
    """Yields unknown keys of a branch, and defaults that are not among its values."""
    chosen = "".join(f" with {group}={option}" for group, option in branch.choices.items())
    ways_out = f"; change the default{chosen}, the space, or set study.baseline=false"
    for node in branch.nodes:
        if mistakes := [*_not_searched(node.name, node.key)]:
            yield from mistakes
        elif unknown := explain_key(node.key, branch.config):
            section, _, below = node.key.partition(".")
            option = nearest(below.partition(".")[0], group_options(section))
            if "did you mean" not in unknown:
                unknown += option
            way = "" if option else _to_add(definition, branch, node)
            yield f"space.{node.name}: {unknown}{way}"
        elif definition.config.study.baseline:
            default = value_at(branch.config, node.key)
            where = f"space.{node.name}: the default {node.key}={as_yaml(default)}"
            for problem in _problems(node, default, branch):
                yield f"{where} {problem}{ways_out}"


def _check_relations(definition: Definition) -> Iterator[str]:
    """Yields relations that the baseline breaks, or that nothing keeps; and repeats without end."""
    space, baseline = definition.space, definition.baseline
    if baseline is not None and (words := space.breach(baseline.params)) is not None:
        yield f"study.baseline: what is composed {words}; change it, or set study.baseline=false"
    elif space.relations and any_point(space, max(0, definition.seed)) is None:
        tried = "the space" if space.size() <= LARGEST_GRID else f"{DRAWS:_} that were drawn"
        together = " and ".join(map(str, space.relations))
        yield f"space.where: no point of {tried} keeps to {together}; loosen it"
    if not definition.config.study.repeats and math.isinf(space.size()):
        way_out = "give its floats a step or a choice, or set study.repeats=true"
        yield f"study.repeats=false is for a space of finitely many points; {way_out}"


def _to_add(definition: Definition, branch: Branch, node: Leaf | ListLeaf) -> str:
    """Says which line is to be added to which file of the user's own for a key; "" if to none."""
    section, _, name = node.key.partition(".")
    of_params = section == "params"
    target = value_at(branch.config, f"{section}._target_")
    if target is not None and section not in definition.composer.choices:
        return f"; {target} has no such parameter"
    file = definition.composer.file_of(section, branch.choices)
    if file is None or "." in name or not (of_params or section in definition.composer.choices):
        return ""
    value = as_yaml(end_of(node.distribution, 0)) if isinstance(node, Leaf) else "[…]"
    return line_to_add(name, value, file, "params" if of_params else "")


def _not_searched(name: str, key: str) -> Iterator[str]:
    """Yields why a key cannot be searched."""
    section = key.partition(".")[0]
    if section in Config.__dataclass_fields__ and section not in SEARCHED:
        yield (
            f"space.{name}: {section} is the same for all trials; what can be searched is "
            f"{', '.join(SEARCHED)}"
        )


def _problems(node: Leaf | ListLeaf, default: Any, branch: Branch) -> Iterator[str]:
    """Yields why a default is not among the values of its node, each beginning with a verb."""
    if isinstance(node, Leaf):
        yield from filter(None, [why_not(node.distribution, default)])
        return
    items = default if isinstance(default, list) else [default]
    yield from dict.fromkeys(filter(None, (why_not(node.item, item) for item in items)))
    if isinstance(node.length, IntDistribution):
        if not isinstance(default, list):
            yield "is not a list"
        elif problem := why_not(node.length, len(default)):
            yield f"is a list whose length {len(default)} {problem}"
    elif isinstance(default, list) and len(default) != len(value_at(branch.config, node.length)):
        yield f"is not as long as {node.length}"


def probes(leaves: tuple[Leaf | ListLeaf, ...]) -> Iterator[dict[str, Any]]:
    """Yields the values to try a branch at, by key; what is not named keeps its default.

    They are the defaults, the low and the high corner of the space, and each choice alone.
    """
    yield {}
    if not leaves:
        return

    def corner(end: int) -> dict[str, Any]:
        return Space(leaves).walk(lambda parameter: end_of(parameter.distribution, end)).values

    low, high = corner(0), corner(-1)
    yield from (low, high)
    for node in leaves:
        if isinstance(node, Leaf) and isinstance(node.distribution, CategoricalDistribution):
            yield from ({node.key: choice} for choice in node.distribution.choices)
        elif not isinstance(node, Leaf) and isinstance(node.item, CategoricalDistribution):
            for choice in node.item.choices:
                yield low | {node.key: [choice] * len(low[node.key])}


# Networks


def _try_networks(definition: Definition, data: TrainingData) -> Iterator[str]:
    """Builds the jobs of each branch at each of its probes, and tries them and the metric.

    Yields:
        A line for each mistake. One that an outer branch has made already is not repeated.
    """
    assert data.split is not None
    reported: list[tuple[Mapping[str, str], str]] = []
    split = data.split.for_preflight()
    for branch in definition.branches:
        for probe in probes(branch.nodes):
            try:
                config = with_values(branch.config, probe)
                point = definition.space.default(branch.opened, partial(value_at, config))
                if definition.space.breach(point.params) is not None:
                    continue
                jobs = build_jobs(config, data.folds, seed=0)
                # The retraining of the winner is on all examples.
                everything = replace(jobs[0], train=torch.arange(len(split)))
                try_out(jobs[0], split, {job.last_batch for job in [*jobs, everything]})
                limited = MEMORY in [limit.name for limit in definition.limits]
                if not probe and (limited or MEMORY in [goal.name for goal in definition.goals]):
                    predict_memory(jobs[0], split)
                continue
            except Exception as error:  # of a user's class: better now than in trial 17
                mistakes = getattr(error, "mistakes", [describe_error(error)])
            values = (f"{key}={as_yaml(value)}" for key, value in probe.items())
            where = ", ".join(filter(None, [str(branch), *values]))
            for mistake in mistakes:
                if not any(
                    mistake == known and outer.items() <= branch.choices.items()
                    for outer, known in reported
                ):
                    reported.append((branch.choices, mistake))
                    yield f"{where}: {mistake}" if where else mistake
    if not reported:
        yield from _try_target(definition, data, split)
    if not reported and definition.config.train.evaluate is None:  # which gives its own targets
        yield from _try_metric(definition.metric, data)


def _try_target(definition: Definition, data: TrainingData, split: Part) -> Iterator[str]:
    """Tries the networks of each branch at the size of the winner, and the rule for them."""
    if (scale := definition.scale) is None:
        return
    for branch in definition.branches:
        sizes = present(scale.target, branch.config)
        try:
            job = build_jobs(with_values(branch.config, sizes), data.folds, seed=0)[0]
            if job.scaling is not None:
                with torch.random.fork_rng(devices=[]):
                    network = job.model(shape=split.shape, outputs=split.outputs)
                job.scaling.check(network, split.shape, split.outputs)
            try_out(job, split)
        except Exception as error:
            where = ", ".join(f"{key}={as_yaml(size)}" for key, size in sizes.items())
            for mistake in getattr(error, "mistakes", [describe_error(error)]):
                yield f"scale: at {where}{f', {branch}' if str(branch) else ''}: {mistake}"


def breach_of_rule(definition: Definition, data: TrainingData) -> str | None:
    """Names the layers whose activations grow with the size of the network, in words.

    Tried is the config as composed, at sizes from that of the search to the target, or eight times
    the small one.

    Raises:
        ConfigError: there are some, and scale.check is `end`.
    """
    scale, split = definition.scale, data.split
    if scale is None or split is None or not scale.rule_sizes or not scale.target:
        return None
    jobs = []
    for times, sizes in scale.between().items():
        config = with_values(definition.config, sizes)
        jobs.append((float(times), build_jobs(config, data.folds, seed=0)[0]))
    broken = check_coordinates(jobs, split.for_preflight()).broken
    if not broken:
        return None
    words = f"scale.rule=mup: as the network grows, so do the activations of {', '.join(broken)}"
    if scale.check == "end":
        raise ConfigError(f"{words}; set scale.check=verify, or scale.rule=none")
    return words


def try_out(job: Job, split: Part, last_batches: Collection[int] = ()) -> None:
    """Builds a job's network, optimizer and loss, and runs a few examples through them on the CPU.

    They are two, and a single one if a batch may have no more. A step of the user's own is tried
    on whole batches, and examples that are loaded one by one become whole batches first.

    Args:
        last_batches: how many examples the last batch of an epoch may have.
    """
    own = job.step is not None or job.evaluate is not None
    sizes = {job.batch_size, *last_batches}
    with torch.random.fork_rng(devices=[]), on_threads(1):
        check_schedule(job.schedule)
        run = JobRun(replace(job, precision="fp32"), split)  # this may be no device for another
        model, batches = run.model, run.batches
        steps = Steps(run.loss, run.device, "fp32", job.step, job.evaluate)
        if not own:
            for size in () if isinstance(split, Split) else sorted(sizes, reverse=True):
                batches.at(job.train[:size])
            sizes = {min(2, job.batch_size), *sizes} & {1, 2}
        with _explained("step", None, 2), torch.inference_mode():
            if isinstance(split, Split) and job.evaluate is None:
                outputs, targets = apply_network(model.eval(), batches.at(job.valid[:2]))
                if tuple(outputs.shape) != (wanted := (len(targets), split.outputs)):
                    raise ValueError(
                        f"the outputs of the network must be {wanted} for {wanted[0]} examples; "
                        f"got {tuple(outputs.shape)}; change the network, {TRAIN_IT_YOURSELF}"
                    )
        for size in sorted(sizes, reverse=True):
            single = job.batch_size if size == 1 else None
            with _explained("step", job.step, size, single):
                batch = batches.at(split.to_rehearse(job.train)[:size])
                steps.train(model.train(), batch).backward()  # type: ignore[no-untyped-call]
        with _explained("evaluate", job.evaluate, max(sizes)), torch.inference_mode():
            batch, count = next(iter(batches.part(job.valid[: max(sizes)])))
            judged = steps.evaluate(model.eval(), batch, count)[1:]
    if isinstance(split, Split) and job.evaluate is None:
        return  # the metric is tried on whole folds
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


@contextlib.contextmanager
def _explained(name: str, own: object, size: int, single: int | None = None) -> Iterator[None]:
    """Raises ValueError for what the user's `own` step, or ours, raises, with the way out.

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
            way_out = f"compute the loss in a step of your own, train.step, {TRAIN_IT_YOURSELF}"
            words = f"network and loss, on {size} examples: {words}; {way_out}"
        elif f"train.{name}" not in words:
            words = f"train.{name}: {words}, for {size} examples"
        raise ValueError(words) from error


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
            yield f"objective.metric={metric.name}: {describe_error(error)}"


def _check_kind(metric: Metric, *, classifies: bool) -> None:
    """Raises ValueError if a metric is not for the targets of the data."""
    kind = "classes" if classifies else "numbers"
    if metric.targets not in (None, kind):
        options = ", ".join(other.name for other in METRICS.values() if other.targets == kind)
        own = "" if classifies else ", or for masks a metric of your own over outputs.argmax(1)"
        raise ValueError(
            f"objective.metric={metric.name}: is for {metric.targets}, and the targets of the data "
            f"are {kind}; choose one of {options}{own}"
        )


# The sampler and the pruner


def _check_search(definition: Definition) -> Iterator[str]:
    """Makes the sampler and the pruner, and tries both; yields their mistakes."""
    for name, attempt in (("sampler", _try_sampler), ("pruner", _try_pruner)):
        chosen = f"{name}={definition.composer.choices.get(name)}"
        try:
            attempt(definition)
        except ConfigError as error:
            yield from error.mistakes
        except ImportError as error:
            extra = "pip install 'studyloom[samplers]'"
            yield f"{chosen} needs a library that is missing ({extra}): {describe_error(error)}"
        except Exception as error:
            yield f"{chosen}: {describe_error(error)}"


def _try_sampler(definition: Definition) -> None:
    """Makes the sampler of the first trial; some say only then that they take one objective."""
    sampler = definition.sampler(0)
    directions = [goal.direction for goal in definition.goals]
    if len(directions) > 1:
        study = optuna.create_study(directions=directions)
        study.add_trial(create_trial(state=TrialState.RUNNING))
        space = sampler.infer_relative_search_space(study, study.trials[0])
        sampler.sample_relative(study, study.trials[0], space)


def _try_pruner(definition: Definition) -> None:
    """Has a pruner compare two made-up trials, since some import what they need only then."""
    pruner = definition.pruner()
    study = optuna.create_study(direction=definition.metric.direction, pruner=pruner)
    reports = dict.fromkeys(range(1, 6), 0.5)
    study.add_trial(create_trial(value=0.5, intermediate_values=reports))
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values=reports))
    pruner.prune(study, study.trials[1])
