"""The language of `winner.rule`: what it means, and what is refused."""

import math

import pytest

from studyloom.errors import ConfigError
from studyloom.metrics import ACCURACY, Goal
from studyloom.question.rule import LONGEST, Condition, Rule, parse_rule

PARAMETERS = Goal("parameters", "minimize")
KNOWN = (ACCURACY, PARAMETERS, Goal("latency_ms", "minimize"))


def mistakes_of(text, known=KNOWN):
    with pytest.raises(ConfigError) as caught:
        parse_rule(text, known)
    return caught.value.mistakes


def test_a_rule_is_read_and_written_so_that_it_is_read_the_same():
    bounds = (Condition("accuracy", ">=", 0.95), Condition("latency_ms", "<=", -25))
    for text, rule in {
        "max accuracy": Rule(ACCURACY),
        "  min parameters where accuracy>=.95 and latency_ms <= -2.5E+1": Rule(PARAMETERS, bounds),
    }.items():
        assert parse_rule(text, KNOWN) == rule
        assert parse_rule(str(rule), KNOWN) == rule


def test_a_trial_keeps_to_a_rule_where_each_bound_holds_and_all_is_known():
    rule = parse_rule("max accuracy where parameters < 50_000 and latency_ms <= 2", KNOWN)
    known = {"accuracy": 0.9, "parameters": 49_999.0, "latency_ms": 2.0}
    assert rule.holds(known)
    assert not rule.holds(known | {"parameters": 50_000.0})
    assert not rule.holds(known | {"latency_ms": math.nan})
    assert not rule.holds({name: known[name] for name in ("accuracy", "parameters")})
    assert rule.rank({"accuracy": 0.9}) < rule.rank({"accuracy": 0.8})
    assert parse_rule("min parameters", KNOWN).rank({"parameters": 1.0}) < 2


def test_names_that_are_not_known_and_a_wrong_direction_are_told_together():
    mistakes = mistakes_of("min accuracy where parameter < 5 and size > 1 and parameter > 3")
    assert len(mistakes) == 3
    assert "there are accuracy, parameters, latency_ms; did you mean parameters?" in mistakes[0]
    assert "objective.metric or objective.constraints names it" in mistakes[0]
    assert "size is not known" in mistakes[1]
    assert mistakes[2].endswith("more accuracy is better; write max accuracy")


def test_what_is_no_rule_is_told_with_an_example():
    for text in (
        *("", "max 5", "max accuracy where ", "max accuracy; import os"),
        *("max accuracy where parameters = 5", "max accuracy where parameters < nan"),
        "max accuracy where parameters < 5 or accuracy > 9",
    ):
        (mistake,) = mistakes_of(text)
        example = "write such as 'max accuracy where parameters < 50_000'"
        assert mistake.startswith(f"winner.rule: {text!r} is no rule; {example}")


def test_a_rule_of_a_million_words_is_refused_at_once_and_not_repeated():
    (mistake,) = mistakes_of("max accuracy where " + " and ".join(["parameters < 5"] * 1_000_000))
    assert f"must have at most {LONGEST} characters" in mistake
    assert len(mistake) < 200
