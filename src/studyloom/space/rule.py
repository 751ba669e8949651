"""Limits of costs, the rule that chooses the winner, and relations between hyperparameters.

`objective.constraints` has a limit for each cost, such as `parameters: "<= 100_000"`. A cost is
known before training, so that a trial beyond a limit is not trained. `winner.rule` chooses among
trials with several values. `space.where` has the relations that each configuration must satisfy:

    rule       = ("max" | "min") NAME [ "where" condition { "and" condition } ]
    relation   = condition { "and" condition }
    condition  = sum ("<" | "<=" | ">" | ">=" | "==") sum

Sums are of names and numbers, with + - * / % and parentheses. In a rule a condition compares the
name of a value of each trial, the metric or a cost, with a number, and has no `==`, such as
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
from typing import Any

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
RULE = re.compile(rf"\s*(max|min)\s+({NAME})(?:\s+where\s+(.*))?\s*", re.ASCII | re.DOTALL)
WHERE_COSTS = "; a cost is known where objective.metric or objective.constraints names it"
SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# The signs between two parts of a condition, the loosest first.
OPERATIONS: Sequence[Mapping[str, Callable[[Any, Any], Any]]] = (
    SIGNS | {"==": operator.eq},
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": operator.truediv, "%": operator.mod},
)
CLOSE = Fraction(1, 10**12)  # values whose difference is such a share are equal


@dataclass(frozen=True)
class Condition:
    """A bound on a value of a trial: `name sign bound`, with one of SIGNS."""

    name: str
    sign: str
    bound: float

    def holds(self, known: Mapping[str, float]) -> bool:
        """Whether values, by name, satisfy the condition; without the value they do not."""
        return self.name in known and SIGNS[self.sign](known[self.name], self.bound)

    def excess(self, value: float) -> float:
        """Returns how far a value is beyond the bound, as a share of the bound.

        It is at most 0 for a value that satisfies the limit, which is how Optuna reads constraints.
        """
        beyond = value - self.bound if self.sign.startswith("<") else self.bound - value
        return beyond / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.bound:_.15g}"


@dataclass(frozen=True)
class Relation:
    """A condition between hyperparameters, such as `model.width * model.depth <= 4096`."""

    text: str
    tokens: tuple[str, ...]
    names: frozenset[str]

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Whether a configuration satisfies it, as one does that lacks a hyperparameter of it."""
        return not params.keys() >= self.names or _compare(self.tokens, params)

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
        """How far the value is beyond the limit, as a share of it; -1 without a limit."""
        return -1.0 if self.limit is None else self.limit.excess(self.value)

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
        known: Sequence[ObjectiveValue],
        key: str = "winner.rule",
        hint: str = WHERE_COSTS,
    ) -> "Rule":
        """Parses the text of a rule.

        Args:
            known: the values that are known of each trial, the metric first.
            hint: how to get values that are not known, for messages.

        Raises:
            ConfigError: it is not a rule; or lists unknown names and a wrong direction.
        """
        example = cls(
            known[0], tuple(Condition(objective.name, "<", 50_000) for objective in known[1:2])
        )
        rule = RULE.fullmatch(text) if len(text) <= LONGEST else None
        conditions: list[Condition] = []
        try:
            for each in _parse_conditions(rule[3]) if rule and rule[3] is not None else ():
                name, sign, *bound = each.tokens
                limit: Any = _compute(bound[::-1], {})
                conditions.append(Condition(name, sign, float(limit)))
        except (ValueError, LookupError, TypeError, OverflowError):
            rule = None
        if rule is None or not all(each.sign in SIGNS for each in conditions):
            raise ConfigError(
                f"{key}: {shorten_end(text, 80)!r} is not a rule of at most {LONGEST} characters; "
                f"write such as '{example}': each condition has one of {', '.join(SIGNS)} and a "
                "number, and `and` stands between two"
            )
        # Without what a metric has beyond its name and direction: equal rules are equal.
        objectives, name = (
            {
                objective.name: ObjectiveValue(objective.name, objective.direction)
                for objective in known
            },
            rule[2],
        )
        errors = [
            f"{key}: {text!r}: {unknown} is not known of a trial; there are {', '.join(objectives)}"
            f"{nearest(unknown, [*objectives])}{hint}"
            for unknown in dict.fromkeys([name, *(condition.name for condition in conditions)])
            if unknown not in objectives
        ]
        if (
            name in objectives
            and (word := "max" if objectives[name].sign > 0 else "min") != rule[1]
        ):
            better = "more" if word == "max" else "less"
            errors.append(f"{key}: {text!r}: {better} {name} is better; write {word} {name}")
        refuse(errors)
        return cls(objectives[name], tuple(conditions))

    def holds(self, known: Mapping[str, float]) -> bool:
        """Whether a trial with these values, by name, may win."""
        return self.objective.name in known and all(each.holds(known) for each in self.conditions)

    def rank(self, known: Mapping[str, float]) -> float:
        """Returns the rank of a trial that may win: less is better."""
        return -self.objective.sign * known[self.objective.name]

    def __str__(self) -> str:
        word = "max" if self.objective.sign > 0 else "min"
        where = f" where {' and '.join(map(str, self.conditions))}" if self.conditions else ""
        return f"{word} {self.objective.name}{where}"


def parse_limits(section: Any, known: Sequence[str] | None = COSTS) -> list[Condition]:
    """Parses `objective.constraints`, such as {parameters: "<= 100_000", flops: "<= 1e9"}.

    Args:
        known: the quantities that can have a limit; None for any.

    Raises:
        ConfigError: every value that is not a limit, and every unknown quantity.
    """
    if not isinstance(section, Mapping | None):
        raise ConfigError(
            "objective.constraints must be a mapping of quantities to limits, such as "
            f"{{parameters: '<= 100_000'}}; got {section!r}"
        )
    errors, limits = [], []
    for quantity, expression in (section or {}).items():
        where = f"objective.constraints.{quantity}"
        if known is not None and quantity not in known:
            near = nearest(quantity, known)
            errors.append(f"{where}: unknown quantity; there are {', '.join(known)}{near}")
            continue
        if match := LIMIT.fullmatch(str(expression)):
            limits.append(Condition(str(quantity), match[1], float(match[2])))
        else:
            errors.append(
                f"{where} must be a limit such as '<= 100_000' or '>= 1'; got {expression!r}"
            )
    refuse(errors)
    return limits


def read_space(section: Any, options: Callable[[str], Sequence[str]], above: str = "") -> Space:
    """Parses the section `space`: the tree, and its `where` unless that is a range; see there."""
    tree = dict(section or {})
    where = [] if isinstance(tree.get(WHERE), Mapping) else tree.pop(WHERE, None) or []
    space = parse_space(tree, options, above)
    known: dict[str, Any] = {}
    for choices, _ in space.branches() if where else ():
        known |= space.make_placeholder(choices, end=-1).distributions
    numbers = [name for name in known if is_numeric(known[name])]
    return replace(space, relations=parse_relations(where, numbers))


def parse_relations(section: Any, known: Sequence[str]) -> tuple[Relation, ...]:
    """Parses `space.where`, such as ["model.width % model.heads == 0"].

    Args:
        known: the numeric hyperparameters of the space.

    Raises:
        ConfigError: every invalid relation, and every unknown name.
    """
    errors, relations = [], list[Relation]()
    for text in map(str, section if isinstance(section, list) else [section]):
        where = f"space.where: {text[:LONGEST]!r}"
        try:
            found = _parse_conditions(text)
        except (ValueError, LookupError):
            errors.append(
                f"{where} is not a relation of at most {LONGEST} characters; write names, numbers, "
                f"+ - * / % ( ), and between two {', '.join(OPERATIONS[0])}, as in 'p.a * p.b < 9'"
            )
            continue
        relations += found
        for name in sorted({name for each in found for name in each.names}.difference(known)):
            near = nearest(name, known) or f"; there are {', '.join(known) or 'none'}"
            errors.append(f"{where}: {name} is not a numeric hyperparameter{near}")
    refuse(errors)
    return tuple(relations)


def _parse_conditions(text: str) -> list[Relation]:
    """Parses conditions joined by `and`; raises ValueError or LookupError for anything else."""
    relations = []
    for part in re.split(r"\sand\s", text[: LONGEST + 1]):
        tokens = tuple(match[1] for match in TOKEN.finditer(part))
        names = frozenset(filter(re.compile(NAME).match, tokens))
        if len(text) > LONGEST or "".join(tokens) != "".join(part.split()):
            raise ValueError
        _compare(tokens, dict.fromkeys(names, 1.0))
        relations.append(Relation(part.strip(), tokens, names))
    return relations


def _compare(tokens: Sequence[str], known: Mapping[str, Any]) -> bool:
    left_over = [*tokens[::-1]]
    left, sign, right = _compute(left_over, known), left_over.pop(), _compute(left_over, known)
    if left_over:
        raise ValueError
    compare = OPERATIONS[0][sign]
    if left is None or right is None:
        return False
    alike = abs(left - right) <= CLOSE * max(abs(left), abs(right))
    return bool(compare(left, left if alike else right))


def _compute(tokens: list[str], known: Mapping[str, Any], level: int = 1) -> Fraction | None:
    """Computes one side of a condition, whose tokens it takes from the end of a list.

    It computes with the numbers as written, not in binary: 1 - 0.9 - 0.1 is 0.
    The result is None where it divides by 0, or a value is not finite.
    """
    if level < len(OPERATIONS):
        value = _compute(tokens, known, level + 1)
        while tokens and tokens[-1] in OPERATIONS[level]:
            sign, right = tokens.pop(), _compute(tokens, known, level + 1)
            if value is None or right is None or (sign in "/%" and not right):
                value = None
            else:
                value = OPERATIONS[level][sign](value, right)
        return value
    token = tokens.pop()
    if token in OPERATIONS[1]:  # a sign
        value = _compute(tokens, known, level)
        return -value if value is not None and token == "-" else value
    if token == "(":
        value = _compute(tokens, known)
        if tokens.pop() != ")":
            raise ValueError
        return value
    return _read(known[token] if re.match(NAME, token) else token)


@functools.lru_cache(4096, typed=True)  # a space that is counted has 100,000 points
def _read(value: float | str) -> Fraction | None:
    """Reads a value, or a number that is typed; ValueError if that is beyond all floats."""
    if isinstance(value, str):
        return Fraction(str(float(value)))
    if not math.isfinite(value):
        return None
    return Fraction(value if isinstance(value, int) else f"{value:.15g}")
