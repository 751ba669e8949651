"""The language of `winner.rule`: what it means, and what is refused."""

import math

import pytest

from studyloom.errors import ConfigError
from studyloom.metrics import ACCURACY, ObjectiveValue
from studyloom.space.rule import LONGEST, Condition, Rule, parse_relations, read_space

PARAMETERS = ObjectiveValue("parameters", "minimize")
KNOWN = (ACCURACY, PARAMETERS, ObjectiveValue("flops", "minimize"))


def errors_of(text, known=KNOWN):
    with pytest.raises(ConfigError) as caught:
        Rule.parse(text, known)
    return caught.value.errors


def test_a_rule_is_the_same_after_it_is_written_and_parsed():
    bounds = (Condition("accuracy", ">=", 0.95), Condition("flops", "<=", -25))
    for text, rule in {
        "max accuracy": Rule(ObjectiveValue("accuracy", "maximize")),
        "  min parameters where accuracy>=.95 and flops <= -2.5E+1": Rule(PARAMETERS, bounds),
    }.items():
        assert Rule.parse(text, KNOWN) == rule
        assert Rule.parse(str(rule), KNOWN) == rule


def test_a_trial_satisfies_a_rule_if_each_bound_holds():
    rule = Rule.parse("max accuracy where parameters < 50_000 and flops <= 2", KNOWN)
    known = {"accuracy": 0.9, "parameters": 49_999.0, "flops": 2.0}
    assert rule.holds(known)
    assert not rule.holds(known | {"parameters": 50_000.0})
    assert not rule.holds(known | {"flops": math.nan})
    assert not rule.holds({name: known[name] for name in ("accuracy", "parameters")})
    for value in (0.1 + 0.2, 0.9722222222222222, 1 / 3):
        copied = Rule.parse(f"max accuracy where accuracy >= {value}", KNOWN)
        assert copied.holds({"accuracy": value})
    assert rule.rank({"accuracy": 0.9}) < rule.rank({"accuracy": 0.8})
    assert Rule.parse("min parameters", KNOWN).rank({"parameters": 1.0}) < 2


def test_unknown_names_and_a_wrong_direction_are_listed_at_once():
    errors = errors_of("min accuracy where parameter < 5 and size > 1 and parameter > 3")
    assert len(errors) == 3
    assert "there are accuracy, parameters, flops; did you mean parameters?" in errors[0]
    assert "objective.metric or objective.constraints names it" in errors[0]
    assert "size is not known" in errors[1]
    assert errors[2].endswith("more accuracy is better; write max accuracy")


def test_an_invalid_rule_is_refused_with_an_example():
    for text in (
        *("", "max 5", "max accuracy where ", "max accuracy; import os"),
        *("max accuracy where parameters = 5", "max accuracy where parameters < nan"),
        "max accuracy where parameters < 5 or accuracy > 9",
        *("max accuracy where parameters < 5 / 0", "max accuracy where parameters < 1e999"),
        "max accuracy where parameters < 1e200 * 1e200",
    ):
        (error,) = errors_of(text)
        example = "write such as 'max accuracy where parameters < 50_000'"
        no_rule = f"winner.rule: {text!r} is not a rule of at most {LONGEST} characters"
        assert error.startswith(f"{no_rule}; {example}")


def test_a_rule_of_a_million_tokens_is_refused_and_not_quoted():
    (error,) = errors_of("max accuracy where " + " and ".join(["parameters < 5"] * 1_000_000))
    assert f"is not a rule of at most {LONGEST} characters" in error
    assert len(error) < 300


RELATED = ("model.width", "model.depth", "model.hidden.1", "a", "b")


def test_a_relation_holds_where_one_of_its_hyperparameters_is_missing():
    for text, kept, broken in (
        ("model.width * model.depth <= 4_096", {"model.width": 64}, {"model.width": 65}),
        ("4096/model.depth >= model.width", {"model.width": 64}, {"model.width": 65}),
        ("model.width % 8 == 0 and model.width > 8", {"model.width": 16}, {"model.width": 8}),
        ("-(a - 2 - 1) * +b < a % b", {"a": 8, "b": 5}, {"a": 2, "b": 5}),
        ("a + b == .3", {"a": 0.1, "b": 0.2}, {"a": 0.1, "b": 0.2001}),
        ("a / b < 1e9", {"a": 1, "b": 2}, {"a": 1, "b": 0}),
    ):
        relations = parse_relations([text], RELATED)
        others = {"model.depth": 64, "model.act": "relu"}
        assert all(relation.holds(others | kept) for relation in relations), text
        assert not all(relation.holds(others | broken) for relation in relations), text
        assert all(relation.holds({"model.act": "relu"}) for relation in relations)
        assert parse_relations([*map(str, relations)], RELATED) == relations


def test_relations_are_computed_with_numbers_as_written():
    """In binary 1 - 0.9 - 0.1 is -2.8e-17, and 0.6 % 0.2 is 0.19999999999999996."""
    tenths = {"float": [0, 1], "step": 0.1}
    for text, size in {
        "p.a + p.b == 1": 11,
        "1 - p.a - p.b == 0": 11,
        "p.a % 0.2 == 0 and p.b == p.a": 6,
        "p.a / 3 * 3 - p.b >= 0": 66,
        "p.a / (p.b - p.b) < 1": 0,
        "-(p.a % 0) == p.b": 0,
        "p.a * 1e308 * 1e308 * 1e308 + 1e-320 > 0": 121,
        "1e308 * 1e308 / p.a > 1e308": 110,
    }.items():
        tree = {"p": {"a": tenths, "b": tenths}, "where": text}
        assert read_space(tree, lambda _: []).size() == size, text
    (odd,) = parse_relations("a % 2 == 1", RELATED)
    assert odd.holds({"a": 2**60 + 1})
    assert not any(odd.holds({"a": value}) for value in (2**60, math.nan, math.inf))


def test_all_errors_of_relations_are_listed_and_nothing_is_executed():
    wrong = [
        *(
            "a",
            "a <",
            "a < b < 3",
            "a ** b < 2",
            "(a < 2",
            "a) < 2",
            "__import__('os') < 1",
            "a = b",
        ),
        *("a < 1e999", "a / (b - a) < 1 2"),
        *("a < 2x", "a < 1 or b < 2", "a[0] < 1", "a < 1;b < 2", "a < 5 and", "a < \x1b", 5),
        "a" + "+ 1" * 100 + "< 5",
    ]
    with pytest.raises(ConfigError) as caught:
        parse_relations([*wrong, "model.widht < 3 and c < b", "model.act < 3"], RELATED)
    *syntax, width, c, act = caught.value.errors
    assert len(syntax) == len(wrong)
    assert all("is not a relation of at most 200 characters; write" in line for line in syntax)
    assert "\x1b" not in "".join(syntax)
    assert "c is not a numeric hyperparameter; there are model.width" in width
    assert c.endswith("model.widht is not a numeric hyperparameter; did you mean model.width?")
    assert "model.act is not a numeric hyperparameter" in act
