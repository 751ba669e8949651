"""The language of `winner.rule`, which chooses the winner among trials with several values.

    rule       = ("max" | "min") NAME [ "where" condition { "and" condition } ]
    condition  = NAME ("<" | "<=" | ">" | ">=") NUMBER

An example is `max accuracy where parameters < 50_000`. A name is that of a value of each trial: the
metric, or a cost. No part of a rule is ever executed as code.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from studyloom.errors import ConfigError
from studyloom.metrics import Goal
from studyloom.text import nearest

# Characters; a rule is a part of the name of the study that evaluates its candidates again.
LONGEST = 200
TOKEN = re.compile(
    r"(?P<name>[A-Za-z_][\w.]*)"
    r"|(?P<number>[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?(?![\w.]))"
    r"|(?P<sign>[<>]=?)"
    r"|\S",
    re.ASCII,
)
WHERE_COSTS = (
    "; what a network costs is known where objective.metric or objective.constraints names it"
)
WORDS = {"max": "maximize", "min": "minimize"}
SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """A bound on a value of a trial.

    Args:
        name: of the value.
        sign: how it compares with the bound: one of SIGNS.
        bound: a finite number.
    """

    name: str
    sign: str
    bound: float

    def holds(self, known: Mapping[str, float]) -> bool:
        """Whether a trial satisfies the condition; one without the value does not.

        Args:
            known: the values that are known of the trial, by name.
        """
        return self.name in known and SIGNS[self.sign](known[self.name], self.bound)

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.bound:_.15g}"


@dataclass(frozen=True)
class Rule:
    """How to choose the winner: by a goal, among the trials that satisfy all conditions.

    Args:
        goal: the value that decides, and its direction.
        conditions: what a trial must satisfy to be considered.
    """

    goal: Goal
    conditions: tuple[Condition, ...] = ()

    def holds(self, known: Mapping[str, float]) -> bool:
        """Whether a trial may win.

        Args:
            known: the values that are known of the trial, by name.
        """
        return self.goal.name in known and all(
            condition.holds(known) for condition in self.conditions
        )

    def rank(self, known: Mapping[str, float]) -> float:
        """Returns a number that is the smaller, the better the trial is.

        Args:
            known: the values of a trial that may win, by name.
        """
        return -self.goal.sign * known[self.goal.name]

    def __str__(self) -> str:
        word = "max" if self.goal.sign > 0 else "min"
        where = f" where {' and '.join(map(str, self.conditions))}" if self.conditions else ""
        return f"{word} {self.goal.name}{where}"


def parse_rule(
    text: str, known: Sequence[Goal], key: str = "winner.rule", hint: str = WHERE_COSTS
) -> Rule:
    """Parses a rule.

    Args:
        text: as `winner.rule` has it.
        known: the values that are known of each trial, the metric first.
        key: that has the rule, for messages.
        hint: how one comes to values that are not known.

    Raises:
        ConfigError: the first mistake of grammar; or every unknown name, and a wrong direction.
    """
    if len(text) > LONGEST:
        raise ConfigError(
            [
                f"{key} must have at most {LONGEST} characters; "
                f"got {len(text)}, which begin with {text[:20]!r}"
            ]
        )
    direction, name, conditions = _Parser(text, _example(known), key).parse()
    goals = {goal.name: goal for goal in known}
    mistakes = [
        f"{key}: {text!r}: {unknown} is not known of a trial; there are {', '.join(goals)}"
        f"{nearest(unknown, [*goals])}{hint}"
        for unknown in dict.fromkeys([name, *(condition.name for condition in conditions)])
        if unknown not in goals
    ]
    if name in goals and goals[name].direction != direction:
        better, word = ("more", "max") if goals[name].sign > 0 else ("less", "min")
        mistakes.append(f"{key}: {text!r}: {better} {name} is better; write {word} {name}")
    if mistakes:
        raise ConfigError(mistakes)
    return Rule(goals[name], conditions)


class _Parser:
    """Reads a rule from left to right, by the grammar above."""

    def __init__(self, text: str, example: str, key: str) -> None:
        self.text, self.example, self.key = text, example, key
        self.tokens = [*TOKEN.finditer(text)]
        self.place = 0  # of the next token

    def parse(self) -> tuple[str, str, tuple[Condition, ...]]:
        """Returns the direction, the name of the goal, and the conditions."""
        word = self.take_word(*WORDS, expected=" or ".join(WORDS))
        direction, name = WORDS[word], self.take_name()
        conditions: list[Condition] = []
        while self.place < len(self.tokens):
            word = "and" if conditions else "where"
            self.take_word(word, expected=f"the word `{word}` or the end")
            conditions.append(self.take_condition())
        return direction, name, tuple(conditions)

    def take_condition(self) -> Condition:
        name, sign = self.take_name(), self.take("<, <=, > or >=", lambda token: token["sign"])
        return Condition(name, sign, float(self.take("a number", _is_number)))

    def take_name(self) -> str:
        return self.take("a name", lambda token: token["name"])

    def take_word(self, *words: str, expected: str) -> str:
        return self.take(expected, lambda token: token[0] in words)

    def take(self, expected: str, fits: Callable[[re.Match[str]], object]) -> str:
        """Takes the next token if it fits; raises ConfigError, which says what was expected."""
        token = self.tokens[self.place] if self.place < len(self.tokens) else None
        if token is None or not fits(token):
            where = "the end" if token is None else repr(token[0])
            raise ConfigError(
                [f"{self.key}: {self.text!r}: expected {expected} at {where}; {self.example}"]
            )
        self.place += 1
        return token[0]


def _is_number(token: re.Match[str]) -> bool:
    try:
        return bool(token["number"]) and math.isfinite(float(token[0]))
    except ValueError:  # such as 1__0
        return False


def _example(known: Sequence[Goal]) -> str:
    """How a rule over what is known may be written."""
    first, *others = known
    bound = f" where {others[0].name} < 50_000" if others else ""
    return f"write '{'max' if first.sign > 0 else 'min'} {first.name}{bound}'"
