"""Validates a study definition before trial 0: lists all errors at once, each with its fix.

Its own sections and its space are checked here. `Definition.try_out` tries what is trained.
"""

import inspect
import math
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from optuna.distributions import IntDistribution

from studyloom.config.build import find_parameter, find_section
from studyloom.config.overrides import explain_key
from studyloom.config.schema import Config, check_name, find_out_of_range
from studyloom.config.values import describe_error, value_at
from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import OF_NETWORKS, Branch, Definition
from studyloom.errors import ConfigError, refuse
from studyloom.metrics import ObjectiveValue
from studyloom.space.drawing_points import DRAWS, draw_point
from studyloom.space.tree import (
    LARGEST_GRID,
    ListNode,
    ValueNode,
    find_default,
    find_end,
    find_misfit,
)
from studyloom.text import format_scalar, nearest, suggest_line

SEARCHED = (*OF_NETWORKS, "train", "params")


class CheckedStrategy(Protocol):
    """A strategy of the search that can be checked: its sampler and its pruner."""

    @property
    def trials(self) -> int:
        """The budget of the search."""

    def check_workers(self, workers: int) -> Iterable[str]:
        """Returns errors if so many workers cannot share the sampler and the pruner."""

    def check(self) -> Iterable[str]:
        """Returns errors if the pruner does not suit the definition; tries nothing."""

    def try_out(self) -> Iterable[str]:
        """Makes the sampler and the pruner, tries both, and returns their errors."""


def validate(definition: Definition, data: TrainingData, strategy: CheckedStrategy) -> None:
    """Composes every branch of the space and builds what it names: defaults, corners and choices.

    Raises:
        ConfigError: all errors. Nothing is built if keys or ranges are wrong, since that would
            only repeat the errors.
    """
    errors = [*_check_groups(definition)]
    try:
        for branch in definition.branches:
            errors += _check_leaves(definition, branch)
    except ConfigError as error:
        errors += error.errors
    if not errors:
        errors += _check_relations(definition)
    errors = [*check_sections(definition, strategy), *errors]
    if not errors:
        errors += definition.try_out(data)
    if not errors:
        errors += strategy.try_out()
    refuse(errors)


# The values of studyloom's sections


def check_sections(definition: Definition, strategy: CheckedStrategy) -> Iterator[str]:
    """Yields errors in studyloom's sections, which need neither the data nor the space."""
    yield from filter(None, [check_name(definition.config.study.name)])
    yield from find_out_of_range(definition.config)
    yield from _rules(definition)
    yield from _check_objectives(definition)
    yield from strategy.check()


def _rules(definition: Definition) -> Iterator[str]:
    """Yields values that exclude each other, with a fix."""
    config = definition.config
    study = config.study
    objective = config.objective
    several = isinstance(objective.metric, list) and len(objective.metric) > 1
    if study.stop not in (None, "improvement"):
        yield f"study.stop must be improvement, or null; got {study.stop}"
    elif (study.stop is None) != (study.min_improvement is None):
        yield (
            "study.stop=improvement ends the search when further trials would gain less than "
            "study.min_improvement, such as 0.005 in units of the metric; set both or neither"
        )
    if objective.network is not None and definition.trains_networks:
        yield "objective.network is for a custom loop; name the network in the section model"
    if config.cost.limit is not None and not config.cost.per_hour:
        yield "cost.limit is spent by the hour; set cost.per_hour too, or cost.limit=null"
    if study.stop is None:
        return
    estimates = "study.stop=improvement estimates what further trials gain in one value, and"
    way_out = "set study.stop=null, and bound the search by study.trials or study.epochs"
    if several:
        yield f"{estimates} objective.metric names more than one; {way_out}"
    if str(config["sampler"].get("_target_")).endswith(".GridSampler"):
        yield f"{estimates} sampler=grid tries each configuration of a list; {way_out}"


def _check_objectives(definition: Definition) -> Iterator[str]:
    """Yields errors in the metric, the constraints and the rule."""
    objectives: tuple[ObjectiveValue, ...] = ()
    rule = None
    try:
        objectives = definition.objectives
    except ConfigError as error:
        yield from error.errors
    except Exception as error:  # of a custom class
        yield f"objective.metric: {describe_error(error)}"
    try:
        _ = definition.limits
        # With a wrong objective, a rule may name what is not known for that reason.
        rule = definition.rule if objectives else None
    except ConfigError as error:
        yield from error.errors
    stop = definition.config.study.stop
    if stop and rule is not None and rule.objective.name != objectives[0].name:
        chooses = f"winner.rule chooses by {rule.objective.name}, and not by {objectives[0].name}"
        yield f"study.stop={stop}: {chooses}; set study.stop=null, or another rule"


def _check_groups(definition: Definition) -> Iterator[str]:
    """Yields groups that cannot be searched, and choices of the baseline outside the space."""
    chosen, groups = definition.composer.choices, [*definition.space.groups()]
    shut = [
        f"{group.name}.{option}."
        for group in groups
        for option in group.options
        if option != chosen.get(group.config_group)
    ]
    for group in groups:
        yield from _not_searched(group.name, group.key)
        name = group.config_group
        option = chosen.get(name)
        inside = not group.name.startswith(tuple(shut))
        if definition.config.study.baseline and inside and option not in group.options:
            options = ", ".join(group.options)
            yield (
                f"{name}: the default configuration has {name}={option}, and the space holds "
                f"{options}; choose one of these, add {option} to space.{group.name}, or set "
                "study.baseline=false"
            )


def _check_leaves(definition: Definition, branch: Branch) -> Iterator[str]:
    """Yields unknown keys of a branch, and defaults that are not among its values."""
    for node in branch.nodes:
        if errors := [*_not_searched(node.name, node.key)]:
            yield from errors
        elif unknown := explain_key(node.key, branch.config):
            section, _, below = node.key.partition(".")
            option = nearest(below.partition(".")[0], definition.composer.options(section))
            if "did you mean" not in unknown:
                unknown += option
            way = "" if option else _to_add(definition, branch, node)
            yield f"space.{node.name}: {unknown}{way}"
        elif definition.config.study.baseline:
            yield from _check_default(branch, node)


def _check_default(branch: Branch, node: ValueNode | ListNode) -> Iterator[str]:
    """Yields why the default of a hyperparameter is not among its values."""
    default = value_at(branch.config, node.key)
    chosen = "".join(f" with {group}={option}" for group, option in branch.choices.items())
    way_out = f"change the default{chosen}, the space, or set study.baseline=false"
    if owner := _declaring(branch, node, default):
        middle = _middle(branch, node)
        way_out += f"; {owner} declares it: a default of the range, such as {middle}, comes first"
    for problem in _problems(node, default, branch):
        value = format_scalar(default)
        yield f"space.{node.name}: the default {node.key}={value} {problem}; {way_out}"


def _declaring(branch: Branch, node: ValueNode | ListNode, default: Any) -> str:
    """Returns the name of the class or function that declares a default, or ""."""
    section = find_section(branch.config, node.key)
    declared = find_parameter(branch.config, node.key)
    if node.default is not None or section is None or declared is None:
        return ""
    if declared.default is inspect.Parameter.empty:
        return ""
    is_same = default == find_default(node, declared.default, len)
    return str(section["_target_"]) if is_same else ""


def _middle(branch: Branch, node: ValueNode | ListNode) -> str:
    """Returns the value in the middle of the range of a node without a default."""

    def length_of(key: str) -> int:
        other = value_at(branch.config, key)
        return len(other) if isinstance(other, list) else 1

    return format_scalar(find_default(node, inspect.Parameter.empty, length_of))


def _check_relations(definition: Definition) -> Iterator[str]:
    """Yields relations that the baseline or every configuration breaks, and endless repeats."""
    space, baseline = definition.space, definition.baseline
    if baseline is not None and (words := space.find_breach(baseline.params)) is not None:
        yield f"study.baseline: the baseline {words}; change it, or set study.baseline=false"
    elif space.relations and draw_point(space, max(0, definition.seed)) is None:
        tried = "no" if space.size() <= LARGEST_GRID else f"none of {DRAWS:,} random"
        together = " and ".join(map(str, space.relations))
        yield f"space.where: {tried} configurations satisfy {together}; loosen it"
    if not definition.config.study.repeats and math.isinf(space.size()):
        way_out = "give its floats a step or a choice, or set study.repeats=true"
        yield f"study.repeats=false is for a space of finitely many configurations; {way_out}"


def _to_add(definition: Definition, branch: Branch, node: ValueNode | ListNode) -> str:
    """Says which line to add to which of the user's files for a key, or returns ""."""
    section, _, name = node.key.partition(".")
    of_params = section == "params"
    target = value_at(branch.config, f"{section}._target_")
    if target is not None and section not in definition.composer.choices:
        return f"; {target} has no such parameter"
    file = definition.composer.file_of(section, branch.choices)
    if file is None or "." in name or not (of_params or section in definition.composer.choices):
        return ""
    value = format_scalar(find_end(node.distribution, 0)) if isinstance(node, ValueNode) else "[…]"
    return suggest_line(name, value, file, "params" if of_params else "")


def _not_searched(name: str, key: str) -> Iterator[str]:
    """Yields why a key cannot be searched."""
    section = key.partition(".")[0]
    if section in Config.__dataclass_fields__ and section not in SEARCHED:
        yield (
            f"space.{name}: {section} is the same for all trials; what can be searched is "
            f"{', '.join(SEARCHED)}"
        )


def _problems(node: ValueNode | ListNode, default: Any, branch: Branch) -> Iterator[str]:
    """Yields why a default is not among the values of its node, each beginning with a verb."""
    if isinstance(node, ValueNode):
        yield from filter(None, [find_misfit(node.distribution, default)])
        return
    items = default if isinstance(default, list) else [default]
    yield from dict.fromkeys(filter(None, (find_misfit(node.item, item) for item in items)))
    if isinstance(node.length, IntDistribution):
        if not isinstance(default, list):
            yield "is not a list"
        elif problem := find_misfit(node.length, len(default)):
            yield f"is a list whose length {len(default)} {problem}"
    elif isinstance(default, list) and len(default) != len(value_at(branch.config, node.length)):
        yield f"is not as long as {node.length}"
