"""Validates a study definition before trial 0: lists all errors at once, each with its fix.

The sections of studyloom and the search space are checked here, and `Definition.try_out` tries what
is trained. A *default* is the value of a hyperparameter in the default configuration, the baseline;
it must be among the values that the space has for the hyperparameter.
"""

import inspect
import math
from collections.abc import Iterable, Iterator
from typing import Protocol

from studyloom.config.build import find_parameter, find_section
from studyloom.config.overrides import explain_key
from studyloom.config.schema import Config, check_name, find_out_of_range
from studyloom.config.values import describe_error, value_at
from studyloom.data.training_data import TrainingData
from studyloom.definition.defaults import find_shared_length
from studyloom.definition.definition import NETWORK_SECTIONS, Branch, Definition
from studyloom.errors import ConfigError, raise_if_any
from studyloom.metrics import ObjectiveValue
from studyloom.space.drawing_configurations import DRAWS, draw_configuration
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
    """Checks a definition as a whole before the first trial.

    Every branch of the space is composed, and what it names is built: with its defaults, with the
    least and with the greatest value of each hyperparameter, and with each choice. Nothing is built
    if keys or ranges are wrong, since that would only repeat the errors.

    Raises:
        ConfigError: all errors.
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
    raise_if_any(errors)


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
    """Yields values of studyloom's sections that exclude each other, with a fix."""
    config = definition.config
    study = config.study
    sets_stop = study.stop is not None
    sets_improvement = study.min_improvement is not None
    if study.stop not in (None, "improvement"):
        yield f"study.stop must be improvement, or null; got {study.stop}"
    elif sets_stop != sets_improvement:
        yield (
            "study.stop=improvement ends the search when further trials would gain less than "
            "study.min_improvement, such as 0.005 in units of the metric; set both or neither"
        )
    if config.objective.network is not None and definition.trains_networks:
        yield "objective.network is for a custom loop; name the network in the section model"
    if config.cost.limit is not None and not config.cost.per_hour:
        yield "cost.limit is spent by the hour; set cost.per_hour too, or cost.limit=null"
    metric = config.objective.metric
    has_several_metrics = isinstance(metric, list) and len(metric) > 1
    if study.target is not None and has_several_metrics:
        yield (
            f"study.target={study.target} is a value of one metric, and objective.metric names "
            "more than one; set study.target=null, and bound the search by study.trials"
        )
    if study.stop is not None:
        estimate = "study.stop=improvement estimates what further trials gain in one value"
        fix = "set study.stop=null, and bound the search by study.trials or study.epochs"
        if has_several_metrics:
            yield f"{estimate}, and objective.metric names more than one; {fix}"
        if str(config["sampler"].get("_target_")).endswith(".GridSampler"):
            yield f"{estimate}, and sampler=grid tries each configuration of a list; {fix}"


def _check_objectives(definition: Definition) -> Iterator[str]:
    """Yields errors in the metric, the constraints and the winner's rule.

    Each property of the definition raises its errors when it is first read.
    """
    objectives: tuple[ObjectiveValue, ...] = ()
    rule = None
    try:
        objectives = definition.objectives
    except ConfigError as error:
        yield from error.errors
    except Exception as error:  # of a custom class
        yield f"objective.metric: {describe_error(error)}"
    try:
        _ = definition.limits  # raises the errors in the constraints
        if objectives:  # a rule names objectives, and without them would only repeat their errors
            rule = definition.rule
    except ConfigError as error:
        yield from error.errors
    if rule is None or rule.objective.name == objectives[0].name:
        return
    study = definition.config.study
    # The bounds on values of the first objective.
    for key, bound in (("study.stop", study.stop), ("study.target", study.target)):
        if bound is not None:
            yield (
                f"{key}={bound}: winner.rule chooses by {rule.objective.name}, and not by "
                f"{objectives[0].name}; set {key}=null, or another rule"
            )


# The search space


def _check_groups(definition: Definition) -> Iterator[str]:
    """Yields groups that cannot be searched, and choices of the baseline outside the space.

    A group has three names. For a block of the model `cnn`, `name` is its path in the space,
    `model.cnn.block`; `key` is its key in the config, `model.block`; and `config_group` is its name
    in Hydra, `model/block`. A group that is nested in an option which the baseline does not choose
    is not part of the baseline.
    """
    has_baseline = definition.config.study.baseline
    default_choices = definition.composer.choices
    groups = [*definition.space.groups()]
    unchosen_options = []  # their names in the space, such as `model.cnn`
    for group in groups:
        for option in group.options:
            if option != default_choices.get(group.config_group):
                unchosen_options.append(f"{group.name}.{option}")
    for group in groups:
        yield from _check_section(group.name, group.key)
        is_nested_in_unchosen = any(
            group.name.startswith(f"{option}.") for option in unchosen_options
        )
        if not has_baseline or is_nested_in_unchosen:
            continue
        hydra_name = group.config_group
        default = default_choices.get(hydra_name)
        if default not in group.options:
            options = ", ".join(group.options)
            yield (
                f"{hydra_name}: the default configuration has {hydra_name}={default}, and the "
                f"space holds {options}; choose one of these, add {default} to "
                f"space.{group.name}, or set study.baseline=false"
            )


def _check_nodes(definition: Definition, branch: Branch) -> Iterator[str]:
    """Yields keys that a branch's config lacks, and defaults that are not among their values.

    If a key is in a section that cannot be searched, that is its only error.
    """
    for node in branch.nodes:
        section_errors = [*_check_section(node.name, node.key)]
        if section_errors:
            yield from section_errors
            continue
        error = explain_key(node.key, branch.config)
        if error is not None:
            fix = _suggest_fix(definition, branch, node, error)
            yield f"space.{node.name}: {error}{fix}"
        elif definition.config.study.baseline:
            yield from _check_default(branch, node)


def _check_section(name: str, key: str) -> Iterator[str]:
    """Yields an error if a key is in a section that cannot be searched.

    Args:
        name: the name of the hyperparameter or group in the space.
        key: its config key.
    """
    section = key.partition(".")[0]
    if section in Config.__dataclass_fields__ and section not in SEARCHABLE_SECTIONS:
        yield (
            f"space.{name}: {section} is the same for all trials; what can be searched is "
            f"{', '.join(SEARCHABLE_SECTIONS)}"
        )


def _suggest_fix(
    definition: Definition, branch: Branch, node: ValueNode | ListNode, error: str
) -> str:
    """Suggests how to fix a key of the space that the config lacks; "" without a suggestion.

    The key may be a misspelled option of the section's group: `optimizer.adamv` for
    `optimizer.adamw`. Otherwise a line can be added to a file of the user.

    Args:
        error: the message so far, which may suggest another key already.
    """
    section, _, key_in_section = node.key.partition(".")
    possible_option = key_in_section.partition(".")[0]
    options = definition.composer.options(section)
    option_suggestion = nearest(possible_option, options)
    if not option_suggestion:
        return _suggest_new_key(definition, branch, node)
    has_suggestion = "did you mean" in error
    if has_suggestion:
        return ""
    return option_suggestion


def _suggest_new_key(definition: Definition, branch: Branch, node: ValueNode | ListNode) -> str:
    """Suggests the line that adds a key of the space to a file of the user.

    Returns:
        The end of an error message: the suggestion, or "" if the user has no file for the section.
        A section that is not a group may have a `_target_` in the primary config. Then the text
        says that this class or function has no such parameter.
    """
    section, _, name = node.key.partition(".")
    is_group = section in definition.composer.choices
    target = value_at(branch.config, f"{section}._target_")
    if target is not None and not is_group:
        return f"; {target} has no such parameter"
    file = definition.composer.file_of(section, branch.choices)
    is_nested = "." in name  # more than one line would have to be added
    if file is None or is_nested:
        return ""
    example_value = "[…]"
    if isinstance(node, ValueNode):
        example_value = format_scalar(find_end(node.distribution, "low"))
    if section == "params":
        return suggest_line(name, example_value, file, "params")
    if is_group:
        return suggest_line(name, example_value, file, "")
    return ""


def _check_default(branch: Branch, node: ValueNode | ListNode) -> Iterator[str]:
    """Yields why the default of a hyperparameter is not among its values, with a fix."""
    default = value_at(branch.config, node.key)
    choices = "".join(f" with {group}={option}" for group, option in branch.choices.items())
    fix = f"change the default{choices}, the space, or set study.baseline=false"
    # A signature such as `def __init__(self, width=4)` may declare the default.
    declaring_target = _find_declaring_target(branch, node, default)
    if declaring_target:
        middle = _format_middle(branch, node)
        fix += (
            f"; {declaring_target} declares it: a default of the range, such as {middle}, replaces "
            "it"
        )
    for problem in _explain_misfit(node, default, branch):
        value = format_scalar(default)
        yield f"space.{node.name}: the default {node.key}={value} {problem}; {fix}"


def _find_declaring_target(branch: Branch, node: ValueNode | ListNode, default: object) -> str:
    """Returns the name of the class or function whose signature declares a default.

    Returns:
        "" if the space or the config gives the default.
    """
    section = find_section(branch.config, node.key)
    parameter = find_parameter(branch.config, node.key)
    if node.default is not None or section is None or parameter is None:
        return ""
    if parameter.default is inspect.Parameter.empty:
        return ""
    # Compares the values as a config has them: a tuple in the signature is a list there.
    if default != find_default(node, parameter.default):
        return ""
    return str(section["_target_"])


def _format_middle(branch: Branch, node: ValueNode | ListNode) -> str:
    """Returns the value in the middle of the range of a node without a default."""
    shared_length = find_shared_length(node, branch.config, values={})
    return format_scalar(find_default(node, inspect.Parameter.empty, shared_length))


def _explain_misfit(node: ValueNode | ListNode, default: object, branch: Branch) -> Iterator[str]:
    """Yields why a default is not among the values of its node, such as "is outside its range …".

    Args:
        branch: the branch of the node, whose config has the default.
    """
    if isinstance(node, ValueNode):
        problem = find_misfit(node.distribution, default)
        if problem:
            yield problem
        return
    items = [default]  # a scalar stands for each item
    if isinstance(default, list):
        items = default
    item_problems = []  # each once
    for item in items:
        problem = find_misfit(node.item, item)
        if problem and problem not in item_problems:
            item_problems.append(problem)
    yield from item_problems
    yield from _explain_length_misfit(node, default, branch)


def _explain_length_misfit(node: ListNode, default: object, branch: Branch) -> Iterator[str]:
    """Yields the problem with the length of a default, such as "is not a list"; none if it fits.

    The length of a node is either a range, such as 1 to 3, or the key of another list, such as
    `model.widths`, to which the list is equal in length. In this case the default may be a scalar,
    which stands for each item.

    Yields:
        The end of a message that begins "the default model.hidden=[16, 16, 16, 16] ".
    """
    if isinstance(node.length, str):
        if not isinstance(default, list):
            return
        other_list = value_at(branch.config, node.length)
        if len(default) != len(other_list):
            yield f"is not as long as {node.length}"
    elif not isinstance(default, list):
        yield "is not a list"
    else:
        problem = find_misfit(node.length, len(default))
        if problem:
            yield f"is a list whose length {len(default)} {problem}"


def _check_relations(definition: Definition) -> Iterator[str]:
    """Yields an error if the baseline or every configuration breaks a relation of the space.

    It also yields an error if `study.allow_repeats=false` is set for a space of infinitely many
    configurations.
    """
    space = definition.space
    baseline = definition.baseline
    breach = None
    if baseline is not None:
        breach = space.find_breach(baseline.params)
    seed = max(0, definition.seed)  # a negative one is another error
    if breach is not None:
        yield f"study.baseline: the baseline {breach}; change it, or set study.baseline=false"
    elif space.relations and draw_configuration(space, seed) is None:
        tried = f"none of {DRAWS:,} random"
        if space.size() <= LARGEST_GRID:  # such a space is tried completely
            tried = "no"
        relations = " and ".join(map(str, space.relations))
        yield f"space.where: {tried} configurations satisfy {relations}; loosen it"
    if not definition.config.study.allow_repeats and math.isinf(space.size()):
        yield (
            "study.allow_repeats=false is for a space of finitely many configurations; give its "
            "floats a step or a choice, or set study.allow_repeats=true"
        )
