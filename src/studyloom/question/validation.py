"""Validates a question as a whole before trial 0: every mistake at once, each with the way out."""

import logging
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, ListConfig
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler

from studyloom.config.overrides import group_options
from studyloom.config.schema import STOPS, Config, check_name
from studyloom.config.values import describe_error, has_key, keys_at, value_at, with_values
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError
from studyloom.metrics import Goal
from studyloom.question.function import FunctionQuestion
from studyloom.question.preflight import Branch, probes, try_goals, try_pruner
from studyloom.question.question import STEPS, Question
from studyloom.question.search_parts import KEEPS_STATE, forgotten
from studyloom.space.distributions import why_not
from studyloom.space.tree import Leaf, ListLeaf, Node, group_of
from studyloom.text import as_yaml, nearest, no_such_key

log = logging.getLogger(__name__)
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
    yield from _check_committee(question)
    yield from _check_regret(question)
    yield from _check_epochs(question)
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
    yield from _check_race(question)
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


def _check_regret(question: Question) -> Iterator[str]:
    """Yields the mistakes in what ends the search once it is good enough."""
    study, metric = question.config.study, question.config.objective.metric
    if study.stop is None:
        if study.regret is not None:
            yield (
                f"study.regret={study.regret:g} has no effect without study.stop=regret; add that, "
                "or leave study.regret out"
            )
        return
    if study.stop not in STOPS:
        yield (
            f"study.stop must be {' or '.join(STOPS)}, or null; got {study.stop}"
            f"{nearest(study.stop, STOPS)}"
        )
        return
    if study.regret is None:
        yield (
            "study.stop=regret needs study.regret, the gain that further trials are not worth, in "
            "units of the metric, such as study.regret=0.005"
        )
    elif not 0 < study.regret < math.inf:
        yield (
            "study.regret must be a positive number, in units of the metric, such as 0.005; "
            f"got {study.regret}"
        )
    ways_out = "set study.stop=null, and bound the search by study.trials or study.epochs"
    names = [] if isinstance(metric, str) else metric
    if isinstance(names, ListConfig) and len(names) > 1:
        yield (
            f"study.stop=regret asks what further trials gain in one value, and there are "
            f"{len(names)}, objective.metric=[{', '.join(map(str, names))}]; {ways_out}"
        )
    if str(question.config.sampler.get("_target_")).endswith(".GridSampler"):
        yield (
            "study.stop=regret asks what further trials gain by what the earlier ones did, and "
            f"sampler=grid tries each point of a list; {ways_out}, or choose another sampler, such "
            "as sampler=random"
        )


def _check_epochs(question: Question) -> Iterator[str]:
    """Yields the mistakes in the bound of the epochs of all trials."""
    epochs, config = question.config.study.epochs, question.config
    if epochs is None:
        return
    if epochs < 1:
        yield (
            "study.epochs must be a positive number of epochs of all trials, or null for no limit; "
            f"got {epochs}"
        )
    elif not isinstance(question, FunctionQuestion) and epochs < config.train.epochs:
        yield (
            f"study.epochs must be at least train.epochs={config.train.epochs}, the epochs of one "
            f"trial; got {epochs}"
        )
    if question.in_turn:
        yield (
            f"study.epochs counts epochs, and with pruner={question.composer.choices.get('pruner')}"
            " trials report whole folds and seeds; choose another pruner, such as pruner=median, "
            "or bound the search by study.trials or study.timeout"
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


def _check_committee(question: Question) -> Iterator[str]:
    """Yields why the outputs of several networks cannot be averaged beside the winner."""
    config = question.config
    if not config.winner.committee:
        return
    leave_out = "set winner.committee=false"
    if not config.winner.enabled:
        yield (
            "winner.committee=true is tested together with the winner, and winner.enabled is "
            f"false; set winner.enabled=true, or {leave_out}"
        )
    if isinstance(question, FunctionQuestion):
        yield (
            "winner.committee=true averages networks that studyloom trains, and objective._target_="
            f"{config.objective['_target_']} is a loop of your own; {leave_out}, and average in "
            "the loop's own code"
        )
    elif isinstance(config.objective.metric, ListConfig):
        yield (
            "winner.committee=true is for one objective, since several networks cost as much as "
            f"all of them; {leave_out}, or name the metric alone: objective.metric=accuracy"
        )
    elif config.train.evaluate is not None:
        yield (
            "winner.committee=true averages what the networks return, and what train.evaluate "
            f"returns may be something else; {leave_out}, or train.evaluate=null"
        )


def _check_race(question: Question) -> Iterator[str]:
    """Yields the mistakes of a race, which compares candidates by the metric, seed by seed."""
    winner = question.config.winner
    if not (winner.enabled and winner.race):
        return
    if winner.seeds == 1:
        yield (
            "winner.race: nobody can leave a race of winner.seeds=1; set winner.seeds to 2 or "
            "more, or winner.race=false"
        )
    with suppress(Exception):  # _check_goals reports what is wrong with them
        if question.rule is not None and question.rule.goal.name != question.metric.name:
            yield (
                f"winner.race: a race is run by {question.metric.name}, and winner.rule="
                f"{question.config.winner.rule!r} chooses by {question.rule.goal.name}; set "
                f"winner.race=false, or a rule that chooses by {question.metric.name}"
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
        if goals:  # with a wrong objective, a rule may name what is not known for that reason
            rule = question.rule
            if rule is not None and rule.goal.name != goals[0].name and question.config.study.stop:
                yield (
                    f"study.stop=regret asks what further trials gain in {goals[0].name}, and "
                    f"winner.rule chooses by {rule.goal.name}; set study.stop=null, or have "
                    f"winner.rule choose by {goals[0].name}"
                )
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
            made = make()
            if made is not None and name not in question.keeps_state:
                _warn_of_state(question, chosen, made)
        except ConfigError as error:
            yield from error.mistakes
        except ImportError as error:
            extra = "pip install 'studyloom[samplers]'"
            yield f"{chosen} needs a library that is missing ({extra}): {describe_error(error)}"
        except Exception as error:
            yield f"{chosen}: {describe_error(error)}"


def _warn_of_state(question: Question, chosen: str, sampler: BaseSampler) -> None:
    """Warns of a sampler of the user's own that remembers what the next trial does not see."""
    module = type(sampler).__module__.partition(".")[0]
    if module not in ("optuna", "studyloom") and (names := [*forgotten(sampler, question.space)]):
        log.warning(
            "%s: changes its %s from trial to trial, and is made anew for each trial; have it "
            "derive that from the trials of the study, or set +sampler.%s=true",
            *(chosen, ", ".join(names), KEEPS_STATE),
        )


def _not_searched(key: str) -> str | None:
    """Why a key cannot be searched, or None if it can."""
    section = key.partition(".")[0]
    if section in SEARCHED or section not in Config.__dataclass_fields__:
        return None
    return f"{section} is the same for all trials; what can be searched is {', '.join(SEARCHED)}"
