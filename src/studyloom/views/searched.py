"""The space of a study in one line: hyperparameters with their options and ranges."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from studyloom.errors import ConfigError
from studyloom.space.rule import read_space
from studyloom.space.tree import Group, ListNode, Node, Space, is_ordered
from studyloom.storage.attributes import SPACE
from studyloom.storage.stored_study import StoredStudy
from studyloom.text import format_parameter, one_line, shorten, write_minus
from studyloom.views.plain_names import WORDS, name_plainly

MOST_ENTRIES = 12  # hyperparameters that the line names
MOST_LETTERS = 240  # of these: two lines of a wide page
LEARNING_RATE = "learning rate"  # the end of the plain names of those that are looked for first
MOST_CHOICES = 5  # that are listed one by one
LONGEST_CHOICE = 24  # letters of a choice


@dataclass(frozen=True)
class SearchedEntry:
    """A hyperparameter, or a list of them, and its values in words such as "1e-4 to 1e-2".

    Args:
        is_group: whether it is a group at the root of the space, which opens others.
    """

    name: str
    values: str
    is_group: bool = False


def describe_searched(stored: StoredStudy) -> str:
    """Says which hyperparameters a study searches, such as "model MLP or CNN; dropout 0 to 0.5".

    The options of groups come first, then learning rates, then what is always searched, then what
    an option opens. Of many hyperparameters the first are named, and the others are counted.

    Returns:
        Empty if it is not known yet: an Optuna objective suggests its hyperparameters itself.
    """
    space = _read_stored_space(stored)
    if space is None:
        entries = [*_list_suggested(stored.trials())]
    else:
        entries = [*_list_nodes(space)]
    plain_names = name_plainly(entry.name for entry in entries)
    entries.sort(key=lambda entry: _rank(entry, plain_names[entry.name]))
    texts: list[str] = []
    length = 0
    for entry in entries:
        text = f"{plain_names[entry.name]} {entry.values}"
        length += len(text)
        if texts and (len(texts) == MOST_ENTRIES or length > MOST_LETTERS):
            texts.append(f"and {len(entries) - len(texts)} more")
            break
        texts.append(text)
    return "; ".join(texts)


def _rank(entry: SearchedEntry, plain_name: str) -> int:
    """Returns the rank of an entry in the line; entries of one rank keep their order."""
    if entry.is_group:
        return 0
    if plain_name.endswith(LEARNING_RATE):
        return 1
    return 2


def _read_stored_space(stored: StoredStudy) -> Space | None:
    """Returns the space that a study has stored; None for an Optuna objective, and for a grid."""
    (attribute,) = stored.attributes(SPACE)
    if not isinstance(attribute, Mapping):
        return None
    tree = attribute.get("tree")
    options = attribute.get("options")
    if not isinstance(tree, Mapping) or not isinstance(options, Mapping):
        return None
    try:
        return read_space(tree, lambda group: options.get(group, []))
    except (ConfigError, TypeError):  # another program has written it
        return None


def _list_suggested(trials: Iterable[FrozenTrial]) -> Iterator[SearchedEntry]:
    """Yields the hyperparameters of trials, each with the range that it had first."""
    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        distributions = {**trial.distributions, **distributions}
    first_names = list(distributions)
    for name in sorted(distributions, key=lambda name: (name.count("."), first_names.index(name))):
        if not distributions[name].single():
            yield SearchedEntry(name, describe_values(distributions[name]))


def _list_nodes(space: Space, *, is_root: bool = True) -> Iterator[SearchedEntry]:
    """Yields the hyperparameters of a space: groups, what is always searched, then the rest.

    Args:
        is_root: whether it is the whole space, and not what an option opens.
    """
    groups = [node for node in space.nodes if isinstance(node, Group)]
    values = [node for node in space.nodes if not isinstance(node, Group)]
    for group in groups:
        if len(group.options) > 1:  # else it is fixed
            yield SearchedEntry(group.name, _join_choices(group.options), is_root)
    for node in values:
        yield from _list_values(node)
    for group in groups:
        for nodes in group.options.values():
            yield from _list_nodes(Space(nodes), is_root=False)


def _list_values(node: Node) -> Iterator[SearchedEntry]:
    """Yields a hyperparameter, or the items of a list with their number."""
    if isinstance(node, ListNode):
        items = describe_values(node.item)
        is_single = isinstance(node.length, IntDistribution) and node.length.high == 1
        if isinstance(node.length, IntDistribution) and not is_single:
            items += f", {describe_values(node.length)} of them"
        yield SearchedEntry(node.name, items)
    elif not node.distribution.single():
        yield SearchedEntry(node.name, describe_values(node.distribution))


def describe_values(distribution: BaseDistribution) -> str:
    """Describes the values of a hyperparameter: "1e-4 to 1e-2", or "relu, tanh or sigmoid"."""
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if len(choices) > MOST_CHOICES and is_ordered(distribution):
            first = _format_choice(choices[0])
            last = _format_choice(choices[-1])
            return f"{first} to {last} ({len(choices)} values)"
        return _join_choices(choices)
    if isinstance(distribution, IntDistribution | FloatDistribution):
        low = _format_end(distribution.low)
        if distribution.single():
            return low
        return f"{low} to {_format_end(distribution.high)}"
    return "other values"


def _join_choices(choices: Iterable[object]) -> str:
    """Joins choices: "a, b or c"; of many, the first and the number of the others."""
    texts = [_format_choice(choice) for choice in choices]
    if len(texts) > MOST_CHOICES:
        return f"{', '.join(texts[: MOST_CHOICES - 1])} or {len(texts) - MOST_CHOICES + 1} others"
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} or {texts[-1]}"


def _format_choice(choice: object) -> str:
    """Formats a choice for people: CNN for the network cnn, and a real minus sign of a number."""
    text = format_parameter(choice)
    if isinstance(choice, str):
        text = WORDS.get(choice, text)
    elif isinstance(choice, int | float):
        text = write_minus(text)
    return one_line(shorten(text, LONGEST_CHOICE))


def _format_end(value: float) -> str:
    """Formats an end of a range for people: −5, with a real minus sign, or 1e-4."""
    if value < 0:
        return write_minus("-") + format_number_briefly(-value)
    return format_number_briefly(value)


def format_number_briefly(value: float) -> str:
    """Formats an end of a range as people write it, and Python reads it: 1e-4, 0.5, 512.

    Examples:
        >>> format_number_briefly(0.0001), format_number_briefly(0.99), format_number_briefly(512)
        ('1e-4', '0.99', '512')
    """
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if value == 0 or 0.05 <= abs(value) < 1e5:
        return f"{value:.6g}"
    mantissa, _, exponent = f"{value:.5e}".partition("e")
    digits = mantissa.rstrip("0").rstrip(".")
    return f"{digits}e{int(exponent)}"
