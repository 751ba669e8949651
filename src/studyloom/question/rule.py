"""Limits of costs, and the rule that chooses the winner by its values.

`objective.constraints` has a limit for each cost, such as `parameters: "<= 100_000"`. A cost is
known before training, so that a trial beyond a limit is not trained. `winner.rule` chooses among
trials with several values:

    rule       = ("max" | "min") NAME [ "where" condition { "and" condition } ]
    condition  = NAME ("<" | "<=" | ">" | ">=") NUMBER

An example is `max accuracy where parameters < 50_000`. A name is that of a value of each trial: the
metric, or a cost.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studyloom.errors import ConfigError
from studyloom.metrics import COSTS, Goal
from studyloom.text import nearest

# Characters; a rule is a part of the name of the study that evaluates its candidates again.
LONGEST = 200
NUMBER = r"[-+]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][-+]?\d+)?"
LIMIT = re.compile(rf"\s*(<=|>=)\s*({NUMBER})\s*", re.ASCII)
NAME = r"[A-Za-z_][\w.]*"
CONDITION = re.compile(rf"\s*({NAME})\s*([<>]=?)\s*({NUMBER})\s*", re.ASCII)
RULE = re.compile(rf"\s*(max|min)\s+({NAME})(?:\s+where\s+(.*))?\s*", re.ASCII | re.DOTALL)
WHERE_COSTS = (
    "; what a network costs is known where objective.metric or objective.constraints names it"
)
SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


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
    """How to choose the winner: by a goal, among the trials that satisfy all conditions."""

    goal: Goal
    conditions: tuple[Condition, ...] = ()

    def holds(self, known: Mapping[str, float]) -> bool:
        """Whether a trial with these values, by name, may win."""
        return self.goal.name in known and all(each.holds(known) for each in self.conditions)

    def rank(self, known: Mapping[str, float]) -> float:
        """Returns a number that is the smaller, the better a trial that may win is."""
        return -self.goal.sign * known[self.goal.name]

    def __str__(self) -> str:
        word = "max" if self.goal.sign > 0 else "min"
        where = f" where {' and '.join(map(str, self.conditions))}" if self.conditions else ""
        return f"{word} {self.goal.name}{where}"


def parse_limits(section: Any, known: Sequence[str] | None = COSTS) -> list[Condition]:
    """Parses `objective.constraints`, such as {parameters: "<= 100_000", latency_ms: "<= 2"}.

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
    mistakes, limits = [], []
    for quantity, expression in (section or {}).items():
        where = f"objective.constraints.{quantity}"
        if known is not None and quantity not in known:
            near = nearest(quantity, known)
            mistakes.append(f"{where}: unknown quantity; there are {', '.join(known)}{near}")
            continue
        if match := LIMIT.fullmatch(str(expression)):
            limits.append(Condition(str(quantity), match[1], float(match[2])))
        else:
            mistakes.append(
                f"{where} must be a limit such as '<= 100_000' or '>= 1'; got {expression!r}"
            )
    if mistakes:
        raise ConfigError(mistakes)
    return limits


def parse_rule(
    text: str, known: Sequence[Goal], key: str = "winner.rule", hint: str = WHERE_COSTS
) -> Rule:
    """Parses a rule.

    Args:
        known: the values that are known of each trial, the metric first.
        hint: how one comes to values that are not known, for messages.

    Raises:
        ConfigError: it is no rule; or every unknown name, and a wrong direction.
    """
    if len(text) > LONGEST:
        raise ConfigError(
            f"{key} must have at most {LONGEST} characters; "
            f"got {len(text)}, which begin with {text[:20]!r}"
        )
    example = f"{'max' if known[0].sign > 0 else 'min'} {known[0].name}"
    if len(known) > 1:
        example += f" where {known[1].name} < 50_000"
    rule = RULE.fullmatch(text)
    bounds = re.split(r"\sand\s", rule[3]) if rule and rule[3] is not None else []
    found = filter(None, map(CONDITION.fullmatch, bounds))
    conditions = tuple(Condition(each[1], each[2], float(each[3])) for each in found)
    if rule is None or len(conditions) < len(bounds):
        raise ConfigError(
            f"{key}: {text!r} is no rule; write such as '{example}': each condition has one of "
            f"{', '.join(SIGNS)} and a number, and `and` stands between two"
        )
    goals, name = {goal.name: goal for goal in known}, rule[2]
    mistakes = [
        f"{key}: {text!r}: {unknown} is not known of a trial; there are {', '.join(goals)}"
        f"{nearest(unknown, [*goals])}{hint}"
        for unknown in dict.fromkeys([name, *(condition.name for condition in conditions)])
        if unknown not in goals
    ]
    if name in goals and (word := "max" if goals[name].sign > 0 else "min") != rule[1]:
        better = "more" if word == "max" else "less"
        mistakes.append(f"{key}: {text!r}: {better} {name} is better; write {word} {name}")
    if mistakes:
        raise ConfigError(mistakes)
    return Rule(goals[name], conditions)
