"""Validates a question as a whole before trial 0: every mistake at once, each with the way out."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig
from optuna.distributions import IntDistribution

from studyloom.config.overrides import group_options
from studyloom.config.schema import Config, check_name
from studyloom.config.values import describe_error, has_key, keys_at, value_at, with_values
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError
from studyloom.metrics import Goal
from studyloom.question.loops.function import FunctionQuestion
from studyloom.question.preflight import Branch, probes, try_goals, try_pruner
from studyloom.question.question import STEPS, Question
from studyloom.space.distributions import why_not
from studyloom.space.tree import Leaf, ListLeaf, Node, group_of
from studyloom.text import as_yaml, no_such_key

LARGEST_SEED = 2**32 - 1  # of numpy's older generators, which samplers use
# The sections whose objects are made anew for each trial.
SEARCHED = ("model", "optimizer", "scheduler", "loss", "train", "params")


def validate(question: Question, data: TrainingData) -> None:
    """Composes every branch of the space and builds what it names: defaults, corners and choices.

    Args:
        question: of the study.
        data: of which networks are tried on two examples.

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
        mistakes += question.preflight(data)
    if not mistakes:
        mistakes += _check_search(question)
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))


def check_sections(question: Question) -> Iterator[str]:
    """Yields the mistakes in studyloom's own sections; they need neither the data nor the space."""
    study, objective = question.config.study, question.config.objective
    yield from filter(None, [check_name(study.name)])
    yield from _check_goals(question)
    at_least = (
        ("study.trials", study.trials, 1),
        ("study.seed", study.seed, 0),
        ("objective.folds", objective.folds, 1),
        ("objective.seeds", objective.seeds, 1),
        ("winner.top", question.config.winner.top, 1),
        ("winner.seeds", question.config.winner.seeds, 1),
    )
    for key, value, low in at_least:
        if value < low:
            yield f"{key} must be at least {low}; got {value}"
    if study.seed > LARGEST_SEED:
        yield f"study.seed must be at most {LARGEST_SEED}; got {study.seed}"
    if study.timeout is not None and study.timeout <= 0:
        yield (
            f"study.timeout must be a positive number of seconds, or null for no limit; "
            f"got {study.timeout}"
        )
    if question.steps not in ("epochs", "jobs"):
        yield f"pruner.{STEPS} must be epochs or jobs; got {question.steps!r}"
    with suppress(Exception):  # that it can be built is checked later, with all else
        yield from getattr(question.pruner(), "check", lambda _: ())(question)
    if question.in_turn and objective.folds == objective.seeds == 1:
        yield (
            f"pruner={question.composer.choices.get('pruner')} compares trials fold by fold and "
            "seed by seed, and a trial has only one of each; set objective.folds=5, or choose "
            "another pruner, such as pruner=median"
        )


def check_ranks(question: Question, ranks: int) -> Iterator[str]:
    """Yields the mistake that a batch has too few examples to be divided among the ranks.

    Args:
        question: whose space has no mistakes.
        ranks: the processes that train each trial.
    """
    if ranks == 1 or isinstance(question, FunctionQuestion):
        return
    for branch in question.branches:
        for probe in probes(branch.nodes):
            size = value_at(with_values(branch.config, probe), "train.batch_size")
            if size < ranks:
                yield (
                    f"train.batch_size must be at least {ranks}, an example for each of "
                    f"launcher.ranks={ranks}; got {size}"
                )
                return


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
        if goals:  # with a wrong objective, a rule may name what is not known for that reason
            _ = question.rule
    except ConfigError as error:
        yield from error.mistakes
    if len(goals) > 1:
        choices = question.composer.choices
        yield from try_goals(goals, lambda: question.sampler(0), question.pruner, choices)


def _check_groups(question: Question) -> Iterator[str]:
    """Yields groups that cannot be searched, and choices of the baseline outside the space."""
    for group in question.space.groups():
        if problem := _not_searched(group.key):
            yield f"space.{group.name}: {problem}"
        if not question.config.study.baseline:
            continue
        name = group_of(group.key)
        option = question.composer.choices.get(name)
        inside = group.name == group.key or _baseline_opens(question, group.name)
        if inside and option not in group.options:
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
        assert isinstance(node, Leaf | ListLeaf)
        if problem := _not_searched(node.key):
            yield f"space.{node.name}: {problem}"
        elif not has_key(branch.config, node.key):
            yield _explain_key(node, branch.config)
        elif question.config.study.baseline:
            default = value_at(branch.config, node.key)
            where = f"space.{node.name}: the default {node.key}={as_yaml(default)}"
            for problem in _problems(node, default, branch.config):
                yield f"{where} {problem}{ways_out}"


def _problems(node: Node, default: Any, branch: DictConfig) -> Iterator[str]:
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
    elif isinstance(default, list) and len(default) != len(value_at(branch, node.length) or []):
        yield f"is not as long as {node.length}"


def _explain_key(node: Leaf | ListLeaf, branch: DictConfig) -> str:
    """The mistake of a node whose key is not in the config, with the keys that are."""
    parts = node.key.split(".")
    keys = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    depth = next(depth for depth, key in enumerate(keys) if not has_key(branch, key))
    above = ".".join(parts[:depth])
    options = group_options(group_of(above)) if above else []
    known = [name for name in keys_at(branch, above) if not name.startswith("_")] + options
    return f"space.{node.name}: {no_such_key(keys[depth], known)}"


def _check_search(question: Question) -> Iterator[str]:
    """Makes and tries the sampler and the pruner; yields their mistakes."""
    for name, make in (
        ("sampler", lambda: question.sampler(0)),
        ("pruner", lambda: try_pruner(question.pruner(), question.metric.direction)),
    ):
        chosen = f"{name}={question.composer.choices.get(name)}"
        try:
            make()
        except ConfigError as error:
            yield from error.mistakes
        except ImportError as error:
            extra = "pip install 'studyloom[samplers]'"
            yield f"{chosen} needs a library that is missing ({extra}): {describe_error(error)}"
        except Exception as error:
            yield f"{chosen}: {describe_error(error)}"


def _not_searched(key: str) -> str | None:
    """Why a key cannot be searched, or None if it can."""
    section = key.partition(".")[0]
    if section in SEARCHED or section not in Config.__dataclass_fields__:
        return None
    return f"{section} is the same for all trials; what can be searched is {', '.join(SEARCHED)}"
