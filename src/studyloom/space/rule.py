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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution

from studyloom.errors import ConfigError, raise_if_any
from studyloom.metrics import COSTS, ObjectiveValue
from studyloom.space.language import parse_space
from studyloom.space.tree import Space, is_numeric
from studyloom.text import nearest, shorten_end

# Characters; a rule is a part of the name of the study that evaluates its candidates again.
LONGEST = 200
WHERE = "where"  # the key of the relations in the section `space`
UNSIGNED_NUMBER = r"(\d+(_\d+)*\.?\d*|\.\d+)([eE][-+]?\d+)?"  # such as 100_000, .5 or 1e-9
NUMBER = rf"[-+]?{UNSIGNED_NUMBER}"
NAME = r"[A-Za-z_][\w.]*"  # such as model.width
# A limit of a cost, such as "<= 100_000".
LIMIT = re.compile(rf"\s*(?P<sign><=|>=)\s*(?P<bound>{NUMBER})\s*", re.ASCII)
# A token of a condition, such as `model.width`, `<=`, `*` or `4096`; the spaces around it are
# ignored.
TOKEN = re.compile(
    rf"\s*(?P<token>{UNSIGNED_NUMBER}|{NAME}|[<>]=?|==|[-+*/%()])\s*",
    re.ASCII,
)
# A rule, such as "max accuracy where parameters < 50_000".
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
Operations = Mapping[str, Callable[[Any, Any], Any]]
COMPARISONS: Operations = SIGNS | {"==": operator.eq}  # between the two sums of a condition
SUM_OPERATIONS: Operations = {"+": operator.add, "-": operator.sub}
PRODUCT_OPERATIONS: Operations = {"*": operator.mul, "/": operator.truediv, "%": operator.mod}
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
        is_upper_bound = self.sign.startswith("<")
        if is_upper_bound:
            excess = value - self.bound
        else:
            excess = self.bound - value
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
        """Returns whether a configuration satisfies the relation.

        A configuration that lacks one of its hyperparameters satisfies it: the relation is between
        hyperparameters of another branch.

        Args:
            params: the value by hyperparameter name.
        """
        has_all = params.keys() >= self.names
        if not has_all:
            return True
        return _Calculator(self.tokens, params).compare()

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
        """Parses the text of a rule, such as "max accuracy where parameters < 50_000".

        Args:
            objectives: the values that each trial has, the metric first.
            key: the key of the rule in the config, for messages.
            hint: how to get further values, for messages.

        Raises:
            ConfigError: it is not a rule, or it has unknown names or a wrong direction; all of them
                are listed.
        """
        parts = _split_rule(text)
        if parts is None:
            example = _make_example_rule(objectives)
            raise ConfigError(
                f"{key}: {shorten_end(text, 80)!r} is not a rule of at most {LONGEST} characters; "
                f"write such as '{example}': each condition has one of {', '.join(SIGNS)} and a "
                "number, and `and` stands between two"
            )
        objectives_by_name = {objective.name: objective for objective in objectives}
        errors = []
        for name in parts.names():
            if name not in objectives_by_name:
                suggestion = nearest(name, [*objectives_by_name])
                errors.append(
                    f"{key}: {text!r}: {name} is not known of a trial; there are "
                    f"{', '.join(objectives_by_name)}{suggestion}{hint}"
                )
        objective = objectives_by_name.get(parts.name)
        if objective is not None and parts.direction != _direction(objective):
            better = "less"
            if objective.sign > 0:
                better = "more"
            expected = f"{_direction(objective)} {objective.name}"
            errors.append(f"{key}: {text!r}: {better} {objective.name} is better; write {expected}")
        raise_if_any(errors)
        assert objective is not None
        # A metric has more fields than these two, which would make rules of one text unequal.
        compared_objective = ObjectiveValue(objective.name, objective.direction)
        return cls(compared_objective, parts.conditions)

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
        name: the name of the objective.
    """

    direction: str
    name: str
    conditions: tuple[Condition, ...]

    def names(self) -> list[str]:
        """Returns each name in the rule once: that of the objective, and those of conditions."""
        names = [self.name]
        for condition in self.conditions:
            if condition.name not in names:
                names.append(condition.name)
        return names


def _make_example_rule(objectives: Sequence[ObjectiveValue]) -> Rule:
    """Makes a rule of the values that trials have, for the message about an invalid one."""
    if len(objectives) == 1:
        return Rule(objectives[0])
    return Rule(objectives[0], (Condition(objectives[1].name, "<", 50_000),))


def _split_rule(text: str) -> _RuleParts | None:
    """Returns the parts of a rule's text; None if it is too long, or not a rule."""
    if len(text) > LONGEST:
        return None
    match = RULE.fullmatch(text)
    if match is None:
        return None
    conditions_text = match["conditions"]
    if conditions_text is None:
        return _RuleParts(match["direction"], match["name"], ())
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
    """Parses the conditions of a rule, such as "parameters < 50_000 and flops <= 1e9".

    Returns:
        None if they are no conditions, or if one is more than a name, a sign and a number.
    """
    conditions = []
    try:
        for relation in _parse_joined_relations(text):
            name, sign, *bound_tokens = relation.tokens
            if sign not in SIGNS:  # as in `accuracy + 1 < 3`
                return None
            bound = _Calculator(bound_tokens, values={}).compute_sum()
            if bound is None:  # as in `accuracy < 1 / 0`
                return None
            conditions.append(Condition(name, sign, float(bound)))
    except (ValueError, LookupError):  # no conditions; or the bound has a name
        return None
    except OverflowError:  # the bound is too large for a float
        return None
    return conditions


def parse_limits(section: Any, quantities: Sequence[str] | None = COSTS) -> list[Condition]:
    """Parses `objective.constraints`, such as {parameters: "<= 100_000", flops: "<= 1e9"}.

    Args:
        quantities: the names that can have a limit; None if any name can.

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
        key = f"objective.constraints.{quantity}"
        match = LIMIT.fullmatch(str(expression))
        if quantities is not None and quantity not in quantities:
            suggestion = nearest(quantity, quantities)
            errors.append(f"{key}: unknown quantity; there are {', '.join(quantities)}{suggestion}")
        elif match is None:
            errors.append(
                f"{key} must be a limit such as '<= 100_000' or '>= 1'; got {expression!r}"
            )
        else:
            limits.append(Condition(str(quantity), match["sign"], float(match["bound"])))
    raise_if_any(errors)
    return limits


def read_space(
    section: Any, options: Callable[[str], Sequence[str]], parent_key: str = ""
) -> Space:
    """Parses the section `space`: the tree, and the relations at its key `where`.

    A mapping at the key `where` is not relations, but a hyperparameter of that name.

    Args:
        options: returns the options of a Hydra group such as `model/block`; none for no group.
        parent_key: the config key below which the keys of the tree lie; empty for the root.
    """
    tree = dict(section or {})
    relations: Any = None
    if not isinstance(tree.get(WHERE), Mapping):
        relations = tree.pop(WHERE, None)
    space = parse_space(tree, options, parent_key)
    if not relations:
        return space
    return replace(space, relations=parse_relations(relations, _list_numeric_names(space)))


def _list_numeric_names(space: Space) -> list[str]:
    """Returns the names of a space's hyperparameters whose values are numbers, in all branches."""
    distributions: dict[str, BaseDistribution] = {}
    for branch in space.branches():
        # The high end of its length gives a list all the items that it may have.
        longest = space.make_placeholder(branch.choices, end="high")
        distributions.update(longest.distributions)
    return [name for name in distributions if is_numeric(distributions[name])]


def parse_relations(section: Any, names: Sequence[str]) -> tuple[Relation, ...]:
    """Parses `space.where`, such as ["model.width % model.heads == 0"].

    Args:
        names: the numeric hyperparameters of the space.

    Raises:
        ConfigError: every invalid relation, and every unknown name.
    """
    errors: list[str] = []
    relations: list[Relation] = []
    texts = [section]
    if isinstance(section, list):
        texts = section
    for text in map(str, texts):
        subject = f"space.where: {text[:LONGEST]!r}"  # of the messages about it
        try:
            relations_of_text = _parse_joined_relations(text)
        except (ValueError, LookupError):
            errors.append(
                f"{subject} is not a relation of at most {LONGEST} characters; write names, "
                f"numbers, + - * / % ( ), and between two {', '.join(COMPARISONS)}, as in "
                "'p.a * p.b < 9'"
            )
            continue
        relations += relations_of_text
        unknown_names: set[str] = set()
        for relation in relations_of_text:
            unknown_names |= relation.names.difference(names)
        for name in sorted(unknown_names):
            hint = nearest(name, names)
            if not hint:
                hint = f"; there are {', '.join(names) or 'none'}"
            errors.append(f"{subject}: {name} is not a numeric hyperparameter{hint}")
    raise_if_any(errors)
    return tuple(relations)


def _parse_joined_relations(text: str) -> list[Relation]:
    """Parses relations joined by `and`, such as "model.width <= 64 and model.depth < 4".

    Raises:
        ValueError, LookupError: the text is anything else, or too long.
    """
    if len(text) > LONGEST:
        raise ValueError
    relations = []
    for relation_text in re.split(r"\sand\s", text):
        tokens = tuple(match["token"] for match in TOKEN.finditer(relation_text))
        text_without_spaces = "".join(relation_text.split())
        if "".join(tokens) != text_without_spaces:  # some part is not a token
            raise ValueError
        names = frozenset(token for token in tokens if re.match(NAME, token))
        # Computing the relation, with any values, raises an error if its tokens are in a wrong
        # order.
        any_values = dict.fromkeys(names, 1.0)
        _Calculator(tokens, any_values).compare()
        relations.append(Relation(relation_text.strip(), tokens, names))
    return relations


class _Calculator:
    """Computes a condition or a sum from its tokens, from left to right.

    It computes with the numbers as written, not in binary: 1 - 0.9 - 0.1 is 0. A result is None if
    it is not a finite number: a part of it divides by 0, or a value is not finite. Each method
    takes the tokens that it computes, and raises ValueError or LookupError if the next ones are not
    what it expects.

    Args:
        values: the values of names.
    """

    def __init__(self, tokens: Sequence[str], values: Mapping[str, Any]) -> None:
        self._remaining = deque(tokens)
        self._values = values

    def compare(self) -> bool:
        """Returns whether the tokens are a condition that holds: a sum, a sign, and a sum."""
        left_side = self.compute_sum()
        sign = self._remaining.popleft()
        right_side = self.compute_sum()
        if self._remaining:
            raise ValueError
        compare = COMPARISONS[sign]
        if left_side is None or right_side is None:
            return False
        difference = abs(left_side - right_side)
        are_equal = difference <= CLOSE * max(abs(left_side), abs(right_side))
        if are_equal:
            return bool(compare(left_side, left_side))  # True for <=, >= and ==
        return bool(compare(left_side, right_side))

    def compute_sum(self) -> Fraction | None:
        """Computes a sum: products with + or - between them; a single product is a sum too.

        Returns:
            None if the sum is not a finite number.
        """
        result = self._compute_product()
        while self._next_is_in(SUM_OPERATIONS):
            symbol = self._remaining.popleft()
            operand = self._compute_product()
            if result is None or operand is None:
                result = None
            else:
                result = SUM_OPERATIONS[symbol](result, operand)
        return result

    def _compute_product(self) -> Fraction | None:
        """Computes a product: operands with *, / or % between them, or a single operand.

        Returns:
            None if the product is not a finite number.
        """
        result = self._compute_operand()
        while self._next_is_in(PRODUCT_OPERATIONS):
            symbol = self._remaining.popleft()
            operand = self._compute_operand()
            divides_by_zero = symbol in ("/", "%") and operand == 0
            if result is None or operand is None or divides_by_zero:
                result = None
            else:
                result = PRODUCT_OPERATIONS[symbol](result, operand)
        return result

    def _compute_operand(self) -> Fraction | None:
        """Computes a number, a name, a sum in parentheses, or one of these after + or -.

        Returns:
            None if the operand is not a finite number.
        """
        token = self._remaining.popleft()
        if token == "+":
            return self._compute_operand()
        if token == "-":
            operand = self._compute_operand()
            if operand is None:
                return None
            return -operand
        if token == "(":
            result = self.compute_sum()
            if self._remaining.popleft() != ")":
                raise ValueError
            return result
        if re.match(NAME, token):
            return _to_fraction(self._values[token])
        return _to_fraction(token)

    def _next_is_in(self, operations: Operations) -> bool:
        """Returns whether the next token is the symbol of one of some operations."""
        return bool(self._remaining) and self._remaining[0] in operations


@functools.lru_cache(4096, typed=True)  # a space that is counted has 100,000 configurations
def _to_fraction(value: float | str) -> Fraction | None:
    """Returns the number that is written: 1/10 for 0.1, whose binary value is a bit larger.

    Args:
        value: the value of a hyperparameter, or the text of a number, such as "50_000".

    Returns:
        None for a value that is not finite.

    Raises:
        ValueError: the number of a text is not finite.
    """
    if isinstance(value, str):
        return Fraction(str(float(value)))  # str gives back the digits that were written
    if not math.isfinite(value):
        return None
    if isinstance(value, int):
        return Fraction(value)
    # A computed value, such as 0.1 + 0.2, differs from the written one in the 17th digit. Floats
    # keep 15 digits.
    return Fraction(f"{value:.15g}")
