"""Validates a study definition before trial 0: lists all errors at once, each with its fix.

The sections of studyloom and the search space are checked here, and `Definition.try_out` tries what
is trained. A *default* is the value of a hyperparameter in the default configuration, the baseline;
it must be among the values that the space has for the hyperparameter.
"""

import inspect
import math
from collections.abc import Iterable, Iterator
from typing import Protocol

from optuna.distributions import IntDistribution

from studyloom.config.build import find_parameter, find_section
from studyloom.config.overrides import explain_key
from studyloom.config.schema import Config, check_name, find_out_of_range
from studyloom.config.values import describe_error, value_at
from studyloom.data.training_data import TrainingData
from studyloom.definition.defaults import find_shared_length
from studyloom.definition.definition import NETWORK_SECTIONS, Branch, Definition
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

SEARCHABLE_SECTIONS = (*NETWORK_SECTIONS, "train", "params")


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
    space_errors = [*_check_groups(definition)]
    try:
        for branch in definition.branches:
            space_errors += _check_nodes(definition, branch)
    except ConfigError as error:
        space_errors += error.errors
    if not space_errors:
        space_errors += _check_relations(definition)
    errors = [*check_sections(definition, strategy), *space_errors]
    if not errors:
        errors += definition.try_out(data)
    if not errors:
        errors += strategy.try_out()
    refuse(errors)


# The values of studyloom's sections


def check_sections(definition: Definition, strategy: CheckedStrategy) -> Iterator[str]:
    """Yields errors in studyloom's sections, which need neither the data nor the space."""
    name_error = check_name(definition.config.study.name)
    if name_error:
        yield name_error
    yield from find_out_of_range(definition.config)
    yield from _find_contradictions(definition)
    yield from _check_objectives(definition)
    yield from strategy.check()


def _find_contradictions(definition: Definition) -> Iterator[str]:
    """Yields values that exclude each other, with a fix."""
    config = definition.config
    study = config.study
    if study.stop not in (None, "improvement"):
        yield f"study.stop must be improvement, or null; got {study.stop}"
    elif (study.stop is None) != (study.min_improvement is None):
        yield (
            "study.stop=improvement ends the search when further trials would gain less than "
            "study.min_improvement, such as 0.005 in units of the metric; set both or neither"
        )
    if config.objective.network is not None and definition.trains_networks:
        yield "objective.network is for a custom loop; name the network in the section model"
    if config.cost.limit is not None and not config.cost.per_hour:
        yield "cost.limit is spent by the hour; set cost.per_hour too, or cost.limit=null"
    if study.stop is not None:
        estimate = "study.stop=improvement estimates what further trials gain in one value"
        fix = "set study.stop=null, and bound the search by study.trials or study.epochs"
        metric = config.objective.metric
        if isinstance(metric, list) and len(metric) > 1:
            yield f"{estimate}, and objective.metric names more than one; {fix}"
        if str(config["sampler"].get("_target_")).endswith(".GridSampler"):
            yield f"{estimate}, and sampler=grid tries each configuration of a list; {fix}"


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
        _ = definition.limits  # reads them, and raises their errors
        # A rule names objectives. If these are wrong, its errors would only follow from theirs.
        if objectives:
            rule = definition.rule
    except ConfigError as error:
        yield from error.errors
    stop = definition.config.study.stop
    if stop and rule is not None and rule.objective.name != objectives[0].name:
        yield (
            f"study.stop={stop}: winner.rule chooses by {rule.objective.name}, and not by "
            f"{objectives[0].name}; set study.stop=null, or another rule"
        )


# The search space


def _check_groups(definition: Definition) -> Iterator[str]:
    """Yields groups that cannot be searched, and choices of the baseline outside the space."""
    choices = definition.composer.choices
    groups = [*definition.space.groups()]
    other_options = []  # the options that the baseline does not choose, as beginnings of names
    for group in groups:
        for option in group.options:
            if option != choices.get(group.config_group):
                other_options.append(f"{group.name}.{option}.")
    for group in groups:
        yield from _check_section(group.name, group.key)
        name = group.config_group
        default = choices.get(name)
        is_in_baseline = not group.name.startswith(tuple(other_options))
        if not definition.config.study.baseline or not is_in_baseline:
            continue
        if default not in group.options:
            options = ", ".join(group.options)
            yield (
                f"{name}: the default configuration has {name}={default}, and the space holds "
                f"{options}; choose one of these, add {default} to space.{group.name}, or set "
                "study.baseline=false"
            )


def _check_nodes(definition: Definition, branch: Branch) -> Iterator[str]:
    """Yields unknown keys of a branch, and defaults that are not among its values."""
    for node in branch.nodes:
        section_errors = [*_check_section(node.name, node.key)]
        if section_errors:
            yield from section_errors
            continue
        unknown_key = explain_key(node.key, branch.config)
        if unknown_key is not None:
            fix = _suggest_fix(definition, branch, node, unknown_key)
            yield f"space.{node.name}: {unknown_key}{fix}"
        elif definition.config.study.baseline:
            yield from _check_default(branch, node)


def _check_section(name: str, key: str) -> Iterator[str]:
    """Yields an error if a key is in a section that is not searched.

    Args:
        name: of the hyperparameter or group, in the space.
        key: of the config.
    """
    section = key.partition(".")[0]
    if section in Config.__dataclass_fields__ and section not in SEARCHABLE_SECTIONS:
        yield (
            f"space.{name}: {section} is the same for all trials; what can be searched is "
            f"{', '.join(SEARCHABLE_SECTIONS)}"
        )


def _suggest_fix(
    definition: Definition, branch: Branch, node: ValueNode | ListNode, unknown_key: str
) -> str:
    """Suggests an option of the section's group that is spelled like an unknown key.

    If there is none, suggests a line to add to a file of the user; see `_suggest_new_key`.

    Args:
        unknown_key: the error, which may suggest another key already.
    """
    section, _, name = node.key.partition(".")
    option = nearest(name.partition(".")[0], definition.composer.options(section))
    if not option:
        return _suggest_new_key(definition, branch, node)
    if "did you mean" in unknown_key:
        return ""
    return option


def _suggest_new_key(definition: Definition, branch: Branch, node: ValueNode | ListNode) -> str:
    """Suggests the line that adds an unknown key to a file of the user; "" if there is none."""
    section, _, name = node.key.partition(".")
    is_group = section in definition.composer.choices
    target = value_at(branch.config, f"{section}._target_")
    if target is not None and not is_group:
        return f"; {target} has no such parameter"
    file = definition.composer.file_of(section, branch.choices)
    if file is None or "." in name:
        return ""
    value = "[…]"
    if isinstance(node, ValueNode):
        value = format_scalar(find_end(node.distribution, "low"))
    if section == "params":
        return suggest_line(name, value, file, "params")
    if is_group:
        return suggest_line(name, value, file, "")
    return ""


def _check_default(branch: Branch, node: ValueNode | ListNode) -> Iterator[str]:
    """Yields why the default of a hyperparameter is not among its values."""
    default = value_at(branch.config, node.key)
    choices = "".join(f" with {group}={option}" for group, option in branch.choices.items())
    fix = f"change the default{choices}, the space, or set study.baseline=false"
    owner = _find_owner_of_default(branch, node, default)
    if owner:
        middle = _format_middle(branch, node)
        fix += f"; {owner} declares it: a default of the range, such as {middle}, comes first"
    for problem in _explain_misfit(node, default, branch):
        value = format_scalar(default)
        yield f"space.{node.name}: the default {node.key}={value} {problem}; {fix}"


def _find_owner_of_default(branch: Branch, node: ValueNode | ListNode, default: object) -> str:
    """Returns the name of the class or function that declares a default; "" if none does."""
    section = find_section(branch.config, node.key)
    parameter = find_parameter(branch.config, node.key)
    if node.default is not None or section is None or parameter is None:
        return ""
    if parameter.default is inspect.Parameter.empty:
        return ""
    if default != find_default(node, parameter.default):
        return ""
    return str(section["_target_"])


def _format_middle(branch: Branch, node: ValueNode | ListNode) -> str:
    """Returns the value in the middle of the range of a node without a default."""
    shared_length = find_shared_length(node, branch.config, values={})
    return format_scalar(find_default(node, inspect.Parameter.empty, shared_length))


def _explain_misfit(node: ValueNode | ListNode, default: object, branch: Branch) -> Iterator[str]:
    """Yields why a default is not among the values of its node, each beginning with a verb."""
    if isinstance(node, ValueNode):
        value_problem = find_misfit(node.distribution, default)
        if value_problem:
            yield value_problem
        return
    is_list = isinstance(default, list)
    items = [default]
    if isinstance(default, list):
        items = default
    problems = []
    for item in items:
        problem = find_misfit(node.item, item)
        if problem and problem not in problems:
            problems.append(problem)
    yield from problems
    if isinstance(node.length, IntDistribution):
        if not is_list:
            yield "is not a list"
            return
        length_problem = find_misfit(node.length, len(items))
        if length_problem:
            yield f"is a list whose length {len(items)} {length_problem}"
    elif is_list and len(items) != len(value_at(branch.config, node.length)):
        yield f"is not as long as {node.length}"


def _check_relations(definition: Definition) -> Iterator[str]:
    """Yields relations that the baseline or every configuration breaks, and endless repeats."""
    space = definition.space
    baseline = definition.baseline
    breach = None
    if baseline is not None:
        breach = space.find_breach(baseline.params)
    if breach is not None:
        yield f"study.baseline: the baseline {breach}; change it, or set study.baseline=false"
    # `validate` reports a negative seed.
    elif space.relations and draw_point(space, max(0, definition.seed)) is None:
        tried = f"none of {DRAWS:,} random"
        if space.size() <= LARGEST_GRID:
            tried = "no"
        relations = " and ".join(map(str, space.relations))
        yield f"space.where: {tried} configurations satisfy {relations}; loosen it"
    if not definition.config.study.allow_repeats and math.isinf(space.size()):
        yield (
            "study.allow_repeats=false is for a space of finitely many configurations; give its "
            "floats a step or a choice, or set study.allow_repeats=true"
        )
