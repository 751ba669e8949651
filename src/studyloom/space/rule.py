"""Limits of costs, the rule that chooses the winner, and relations between hyperparameters.

`objective.constraints` has a limit for each cost, such as `parameters: "<= 100_000"`. A cost is
known before training, so that a trial beyond a limit is not trained. `winner.rule` chooses among
trials with several values. `space.where` has the relations that each configuration must satisfy:

    rule       = ("max" | "min") NAME [ "where" condition { "and" condition } ]
    relation   = condition { "and" condition }
    condition  = sum ("<" | "<=" | ">" | ">=" | "==") sum

A *sum* is made of names and numbers, with + - * / % and parentheses. In a rule a condition compares
the name of a value of each trial, the metric or a cost, with a number, and has no `==`, such as
`max accuracy where parameters < 50_000`. In a relation names are those of hyperparameters, such as
`model.width * model.depth <= 4096`.
"""

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution

from studyloom.errors import ConfigError, refuse
from studyloom.metrics import COSTS, ObjectiveValue
from studyloom.space.language import parse_space
from studyloom.space.tree import Space, is_numeric
from studyloom.text import nearest, shorten_end

# Characters; a rule is a part of the name of the study that evaluates its candidates again.
LONGEST = 200
WHERE = "where"  # the key of the relations in the section `space`
NUMBER = r"[-+]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][-+]?\d+)?"
LIMIT = re.compile(rf"\s*(<=|>=)\s*({NUMBER})\s*", re.ASCII)
NAME = r"[A-Za-z_][\w.]*"
TOKEN = re.compile(rf"\s*({NUMBER.removeprefix('[-+]?')}|{NAME}|[<>]=?|==|[-+*/%()])\s*", re.ASCII)
RULE = re.compile(
    rf"\s*(?P<direction>max|min)\s+(?P<name>{NAME})(?:\s+where\s+(?P<conditions>.*))?\s*",
    re.ASCII | re.DOTALL,
)
WHERE_COSTS = "; a cost is known where objective.metric or objective.constraints names it"
SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# The signs between two parts of a condition, by how tightly they bind, the loosest first.
OPERATIONS: Sequence[Mapping[str, Callable[[Any, Any], Any]]] = (
    SIGNS | {"==": operator.eq},
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": operator.truediv, "%": operator.mod},
)
CLOSE = Fraction(1, 10**12)  # values whose difference is at most this share of them are equal


@dataclass(frozen=True)
class Condition:
    """A bound on a value of a trial: `name sign bound`, with one of SIGNS."""

    name: str
    sign: str
    bound: float

    def holds(self, values: Mapping[str, float]) -> bool:
        """Returns whether the values of a trial, by name, satisfy it; a missing value does not."""
        return self.name in values and SIGNS[self.sign](values[self.name], self.bound)

    def excess(self, value: float) -> float:
        """Returns how far a value is beyond the bound, as a share of the bound.

        It is at most 0 for a value that satisfies the limit, which is how Optuna reads constraints.
        """
        excess = self.bound - value
        if self.sign.startswith("<"):
            excess = value - self.bound
        if self.bound == 0:
            return excess
        return excess / abs(self.bound)

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.bound:_.15g}"


@dataclass(frozen=True)
class Relation:
    """A condition between hyperparameters, such as `model.width * model.depth <= 4096`."""

    text: str
    tokens: tuple[str, ...]
    names: frozenset[str]

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Returns whether a configuration satisfies it.

        One that lacks a hyperparameter of the relation, since its branch has none, does.
        """
        if not params.keys() >= self.names:
            return True
        return _compare(self.tokens, params)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Cost:
    """The cost of one network or loop: one of COSTS, or a name that a loop has for it."""

    quantity: str
    value: float
    limit: Condition | None = None

    @property
    def excess(self) -> float:
        """The distance of the value beyond the limit, as a share of it; -1 without a limit."""
        if self.limit is None:
            return -1.0
        return self.limit.excess(self.value)

    def __str__(self) -> str:
        return f"{self.quantity} is {self.value:,.6g}, and objective.constraints has {self.limit}"


@dataclass(frozen=True)
class Rule:
    """How to choose the winner: by an objective, among the trials that satisfy all conditions."""

    objective: ObjectiveValue
    conditions: tuple[Condition, ...] = ()

    @classmethod
    def parse(
        cls,
        text: str,
        objectives: Sequence[ObjectiveValue],
        key: str = "winner.rule",
        hint: str = WHERE_COSTS,
    ) -> "Rule":
        """Parses the text of a rule.

        Args:
            objectives: the values that each trial has, the metric first.
            key: of the rule in the config, for messages.
            hint: how to get further values, for messages.

        Raises:
            ConfigError: it is not a rule; or lists unknown names and a wrong direction.
        """
        parts = _split_rule(text)
        if parts is None:
            example = cls(objectives[0])
            if len(objectives) > 1:
                example = cls(objectives[0], (Condition(objectives[1].name, "<", 50_000),))
            raise ConfigError(
                f"{key}: {shorten_end(text, 80)!r} is not a rule of at most {LONGEST} characters; "
                f"write such as '{example}': each condition has one of {', '.join(SIGNS)} and a "
                "number, and `and` stands between two"
            )
        objective_by_name = {objective.name: objective for objective in objectives}
        names = dict.fromkeys([parts.name, *(condition.name for condition in parts.conditions)])
        names_text = ", ".join(objective_by_name)
        errors = [
            f"{key}: {text!r}: {unknown} is not known of a trial; there are {names_text}"
            f"{nearest(unknown, [*objective_by_name])}{hint}"
            for unknown in names
            if unknown not in objective_by_name
        ]
        objective = objective_by_name.get(parts.name)
        if objective is not None and parts.direction != _direction(objective):
            better = "less"
            if objective.sign > 0:
                better = "more"
            expected = f"{_direction(objective)} {objective.name}"
            errors.append(f"{key}: {text!r}: {better} {objective.name} is better; write {expected}")
        refuse(errors)
        assert objective is not None
        # A metric has more than its name and direction. Without it equal rules are equal.
        stripped = ObjectiveValue(objective.name, objective.direction)
        return cls(stripped, parts.conditions)

    def holds(self, values: Mapping[str, float]) -> bool:
        """Returns whether a trial with these values, by name, may win."""
        if self.objective.name not in values:
            return False
        return all(condition.holds(values) for condition in self.conditions)

    def rank(self, values: Mapping[str, float]) -> float:
        """Returns the rank of a trial that may win: less is better."""
        return -self.objective.sign * values[self.objective.name]

    def __str__(self) -> str:
        text = f"{_direction(self.objective)} {self.objective.name}"
        if self.conditions:
            text += f" where {' and '.join(map(str, self.conditions))}"
        return text


class _RuleParts(NamedTuple):
    """The parts of a rule's text.

    Args:
        direction: "max" or "min".
        name: of the objective.
    """

    direction: str
    name: str
    conditions: tuple[Condition, ...]


def _split_rule(text: str) -> _RuleParts | None:
    """Returns the parts of a rule's text; None if it is too long, or not a rule."""
    if len(text) > LONGEST:
        return None
    match = RULE.fullmatch(text)
    if match is None:
        return None
    conditions: list[Condition] | None = []
    conditions_text = match["conditions"]
    if conditions_text is not None:
        conditions = _parse_bounds(conditions_text)
    if conditions is None:
        return None
    return _RuleParts(match["direction"], match["name"], tuple(conditions))


def _direction(objective: ObjectiveValue) -> str:
    """Returns the word of a rule for the direction of an objective."""
    if objective.sign > 0:
        return "max"
    return "min"


def _parse_bounds(text: str) -> list[Condition] | None:
    """Parses the conditions of a rule; None if one is more than a name, a sign and a number."""
    conditions = []
    try:
        for relation in _parse_conditions(text):
            name, sign, *bound_tokens = relation.tokens
            bound: Any = _compute(bound_tokens[::-1], {})  # without values: a name has none
            conditions.append(Condition(name, sign, float(bound)))
    except (ValueError, LookupError, TypeError, OverflowError):
        return None
    # In `accuracy + 1 < 3` the second token is another sign.
    if any(condition.sign not in SIGNS for condition in conditions):
        return None
    return conditions


def parse_limits(section: Any, quantities: Sequence[str] | None = COSTS) -> list[Condition]:
    """Parses `objective.constraints`, such as {parameters: "<= 100_000", flops: "<= 1e9"}.

    Args:
        quantities: those that can have a limit; None for any.

    Raises:
        ConfigError: every value that is not a limit, and every unknown quantity.
    """
    if not isinstance(section, Mapping | None):
        raise ConfigError(
            "objective.constraints must be a mapping of quantities to limits, such as "
            f"{{parameters: '<= 100_000'}}; got {section!r}"
        )
    errors = []
    limits = []
    for quantity, expression in (section or {}).items():
        where = f"objective.constraints.{quantity}"
        if quantities is not None and quantity not in quantities:
            suggestion = nearest(quantity, quantities)
            errors.append(
                f"{where}: unknown quantity; there are {', '.join(quantities)}{suggestion}"
            )
            continue
        match = LIMIT.fullmatch(str(expression))
        if match is None:
            errors.append(
                f"{where} must be a limit such as '<= 100_000' or '>= 1'; got {expression!r}"
            )
            continue
        limits.append(Condition(str(quantity), match[1], float(match[2])))
    refuse(errors)
    return limits


def read_space(
    section: Any, options: Callable[[str], Sequence[str]], parent_key: str = ""
) -> Space:
    """Parses the section `space`: the tree, and its key `where`, which has the relations.

    A mapping at the key `where` is not relations, but a hyperparameter of that name.

    Args:
        options: as for `parse_space`.
        parent_key: as for `parse_space`.
    """
    tree = dict(section or {})
    relations: Any = None
    if not isinstance(tree.get(WHERE), Mapping):
        relations = tree.pop(WHERE, None)
    space = parse_space(tree, options, parent_key)
    if not relations:
        return space
    distributions: dict[str, BaseDistribution] = {}
    for branch in space.branches():
        # The high ends of lengths open all items of lists.
        distributions |= space.make_placeholder(branch.choices, end=-1).distributions
    numeric_names = [name for name in distributions if is_numeric(distributions[name])]
    return replace(space, relations=parse_relations(relations, numeric_names))


def parse_relations(section: Any, names: Sequence[str]) -> tuple[Relation, ...]:
    """Parses `space.where`, such as ["model.width % model.heads == 0"].

    Args:
        names: the numeric hyperparameters of the space.

    Raises:
        ConfigError: every invalid relation, and every unknown name.
    """
    errors = []
    relations: list[Relation] = []
    texts = [section]
    if isinstance(section, list):
        texts = section
    for text in map(str, texts):
        where = f"space.where: {text[:LONGEST]!r}"
        try:
            conditions = _parse_conditions(text)
        except (ValueError, LookupError):
            errors.append(
                f"{where} is not a relation of at most {LONGEST} characters; write names, numbers, "
                f"+ - * / % ( ), and between two {', '.join(OPERATIONS[0])}, as in 'p.a * p.b < 9'"
            )
            continue
        relations += conditions
        used_names = frozenset[str]().union(*(condition.names for condition in conditions))
        for name in sorted(used_names.difference(names)):
            hint = nearest(name, names) or f"; there are {', '.join(names) or 'none'}"
            errors.append(f"{where}: {name} is not a numeric hyperparameter{hint}")
    refuse(errors)
    return tuple(relations)


def _parse_conditions(text: str) -> list[Relation]:
    """Parses conditions joined by `and`; raises ValueError or LookupError for anything else."""
    if len(text) > LONGEST:
        raise ValueError
    relations = []
    for condition in re.split(r"\sand\s", text):
        tokens = tuple(match[1] for match in TOKEN.finditer(condition))
        text_without_spaces = "".join(condition.split())
        if "".join(tokens) != text_without_spaces:  # something is not a token
            raise ValueError
        names = frozenset(token for token in tokens if re.match(NAME, token))
        # Whether its tokens are in a right order shows when it is computed, with any values.
        _compare(tokens, dict.fromkeys(names, 1.0))
        relations.append(Relation(condition.strip(), tokens, names))
    return relations


def _compare(tokens: Sequence[str], values: Mapping[str, Any]) -> bool:
    """Returns whether a condition holds; raises ValueError or LookupError if it is none.

    Args:
        values: by name.
    """
    remaining = [*reversed(tokens)]  # in reverse, so that `pop` removes the next token
    left_side = _compute(remaining, values)
    sign = remaining.pop()
    right_side = _compute(remaining, values)
    if remaining:
        raise ValueError
    compare = OPERATIONS[0][sign]
    if left_side is None or right_side is None:
        return False
    difference = abs(left_side - right_side)
    if difference <= CLOSE * max(abs(left_side), abs(right_side)):
        return bool(compare(left_side, left_side))  # as two equal values
    return bool(compare(left_side, right_side))


def _compute(remaining: list[str], values: Mapping[str, Any], level: int = 1) -> Fraction | None:
    """Computes the sum that the next tokens are, or at a higher level a product or an operand.

    It computes with the numbers as written, not in binary: 1 - 0.9 - 0.1 is 0. The result is None
    where it divides by 0, or a value is not finite.

    Args:
        remaining: the tokens that are not yet computed, in reverse. Those that are computed here
            are removed from its end.
        values: by name.
        level: the position in OPERATIONS of the signs that are computed here: 1 for a sum. They
            stand between operands, each of which is computed at the next level. After the last
            level an operand is a number, a name, or a sum in parentheses.
    """
    if level == len(OPERATIONS):
        return _compute_operand(remaining, values)
    result = _compute(remaining, values, level + 1)
    while remaining and remaining[-1] in OPERATIONS[level]:
        sign = remaining.pop()
        operand = _compute(remaining, values, level + 1)
        divides_by_zero = sign in "/%" and not operand
        if result is None or operand is None or divides_by_zero:
            result = None
        else:
            result = OPERATIONS[level][sign](result, operand)
    return result


def _compute_operand(remaining: list[str], values: Mapping[str, Any]) -> Fraction | None:
    """Computes a number, a name, a sum in parentheses, or one of these after a sign."""
    token = remaining.pop()
    if token in OPERATIONS[1]:  # + or - before an operand
        operand = _compute_operand(remaining, values)
        if operand is not None and token == "-":
            return -operand
        return operand
    if token == "(":
        result = _compute(remaining, values)
        if remaining.pop() != ")":
            raise ValueError
        return result
    if re.match(NAME, token):
        return _to_fraction(values[token])
    return _to_fraction(token)


@functools.lru_cache(4096, typed=True)  # a space that is counted has 100,000 configurations
def _to_fraction(value: float | str) -> Fraction | None:
    """Returns a value, or a number that is typed, as the decimal number that is written.

    It is None for a value that is not finite, and raises ValueError for a typed one.
    """
    if isinstance(value, str):
        return Fraction(str(float(value)))
    if not math.isfinite(value):
        return None
    if isinstance(value, int):
        return Fraction(value)
    return Fraction(f"{value:.15g}")
