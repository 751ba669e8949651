"""Which of the good trials is the best: the language of `winner.rule`, as in `max accuracy where parameters < 50_000`.

    rule       = ("max" | "min") NAME [ "where" condition { "and" condition } ]
    condition  = NAME ("<" | "<=" | ">" | ">=") NUMBER

A name is one of what is known of each trial. Nothing of a rule is ever executed.
"""

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from studyloom.errors import ConfigError
from studyloom.metrics import Goal
from studyloom.text import nearest

LONGEST = (
    200  # characters; a rule is a part of the name under which its candidates are judged again
)
TOKEN = re.compile(
    r"(?P<name>[A-Za-z_][\w.]*)|(?P<number>[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?(?![\w.]))|(?P<sign>[<>]=?)|\S",
    re.ASCII,
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
    """A bound on something that is known of a trial. sign: one of SIGNS."""

    name: str
    sign: str
    bound: float

    def holds(self, known: Mapping[str, float]) -> bool:
        """Whether what is known of a trial keeps to it; what is not known does not."""
        return self.name in known and SIGNS[self.sign](known[self.name], self.bound)

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.bound:_.15g}"


@dataclass(frozen=True)
class Rule:
    """What is wanted most, among the trials that keep to all conditions."""

    goal: Goal
    conditions: tuple[Condition, ...] = ()

    def holds(self, known: Mapping[str, float]) -> bool:
        """Whether a trial, of which this is known, may win."""
        return self.goal.name in known and all(
            condition.holds(known) for condition in self.conditions
        )

    def rank(self, known: Mapping[str, float]) -> float:
        """The less, the better a trial that may win."""
        return -self.goal.sign * known[self.goal.name]

    def __str__(self) -> str:
        word = "max" if self.goal.sign > 0 else "min"
        where = f" where {' and '.join(map(str, self.conditions))}" if self.conditions else ""
        return f"{word} {self.goal.name}{where}"


def parse_rule(text: str, known: Sequence[Goal]) -> Rule:
    """The rule that a text says.

    Args:
        known: all that is known of each trial, the metric first.

    Raises:
        ConfigError: the first mistake of grammar, or all names that are not known and the direction that is wrong.
    """
    where = f"winner.rule: {text!r}"
    first, *others = known
    bound = f" where {others[0].name} < 50_000" if others else ""
    example = f"write '{'max' if first.sign > 0 else 'min'} {first.name}{bound}'"
    if len(text) > LONGEST:
        raise ConfigError(
            [
                f"winner.rule: {text[:20]!r}… has {len(text)} characters; at most {LONGEST} are possible"
            ]
        )
    tokens = iter([*TOKEN.finditer(text), None])

    def take(what: str, wanted: Callable[[re.Match[str]], object]) -> str:
        token = next(tokens, None)
        if token is None or not wanted(token):
            at = "ends, where" if token is None else f"at {token[0]!r}"
            raise ConfigError([f"{where}: {at} {what} is expected; {example}"])
        return token[0]

    def word(*words: str) -> str:
        return take(" or ".join(words), lambda token: token[0] in words)

    def name() -> str:
        return take("a name", lambda token: token["name"])

    def conditions() -> Iterator[Condition]:
        following = next(tokens)
        for joint in ("where", *("and",) * len(text)):
            if following is None:
                return
            if following[0] != joint:
                raise ConfigError(
                    [
                        f"{where}: at {following[0]!r} the word `{joint}` or the end is expected; {example}"
                    ]
                )
            what, sign = name(), take("<, <=, > or >=", lambda token: token["sign"])
            yield Condition(what, sign, float(take("a number", _is_number)))
            following = next(tokens, None)

    direction, goal = WORDS[word(*WORDS)], name()
    found = tuple(conditions())
    goals = {goal.name: goal for goal in known}
    mistakes = [
        f"{where}: {unknown} is not known of a trial; there are {', '.join(goals)}{nearest(unknown, [*goals])}; what a "
        "network costs is known where objective.metric or objective.constraints names it"
        for unknown in dict.fromkeys([goal, *(condition.name for condition in found)])
        if unknown not in goals
    ]
    if goal in goals and goals[goal].direction != direction:
        better, right = ("more", "max") if goals[goal].sign > 0 else ("less", "min")
        mistakes.append(f"{where}: of {goal} {better} is better; write {right} {goal}")
    if mistakes:
        raise ConfigError(mistakes)
    return Rule(goals[goal], found)


def _is_number(token: re.Match[str]) -> bool:
    try:
        return bool(token["number"]) and math.isfinite(float(token[0]))
    except ValueError:  # as 1__0
        return False
