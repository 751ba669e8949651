"""Laws of the choice among variants, and of the one opening of the test part."""

from types import SimpleNamespace

import pytest
import torch
from toys import two_sided

from studyloom.errors import CompressError, ConfigError
from studyloom.extras.export import compression
from studyloom.extras.export.compression import check_answer, choose, test_both
from studyloom.extras.export.settings import Settings, parse_own_rule
from studyloom.extras.export.variants import Recipe, Variant
from studyloom.metrics import ACCURACY

test_both.__test__ = False
PLAN = SimpleNamespace(
    question=SimpleNamespace(metric=ACCURACY), data=SimpleNamespace(split=None), run_dir="runs/x"
)


def variant(name, **known):
    return Variant(Recipe(name, lambda original: original.network), "int8", known, {"name": name})


def rule(text):
    return parse_own_rule(ACCURACY, Settings(rule=text))


def test_the_rule_chooses_and_of_equal_ones_the_smaller():
    variants = [
        variant("large", bytes=9, accuracy=0.9, latency_ms=1.0),
        variant("small", bytes=5, accuracy=0.9, latency_ms=2.0),
        variant("bad", bytes=1, accuracy=0.5, latency_ms=3.0),
    ]
    assert choose(rule("max accuracy"), variants).row["name"] == "small"
    assert choose(rule("min bytes where accuracy > 0.8"), variants).row["name"] == "small"
    assert choose(rule("min latency_ms"), variants).row["name"] == "large"
    with pytest.raises(ConfigError, match=r"no variant satisfies .* bad: bytes 1, accuracy 0\.5"):
        choose(rule("min bytes where accuracy > 0.95"), variants)


def test_a_loop_is_refused_with_what_gives_its_states():
    with pytest.raises(CompressError, match=r"runs/x: .* a loop of your own.*load_winner"):
        check_answer(PLAN, {"note": "not tested", "data": None}, Settings())


def test_an_opening_is_counted_before_it_and_a_known_file_is_not_tested_again(url, monkeypatch):
    stored, openings = two_sided(url), []
    targets = torch.arange(10) % 2
    ours = torch.nn.functional.one_hot(targets, 2).float()
    monkeypatch.setattr(compression, "OnnxNetwork", lambda content: content)
    monkeypatch.setattr(
        compression,
        "evaluate",
        lambda original, network, part: (ours if network is None else ours.flip(1), targets),
    )
    search = SimpleNamespace(stored=stored)
    plan = SimpleNamespace(search=search, question=SimpleNamespace(metric=ACCURACY))
    winner = SimpleNamespace(network=None, job=SimpleNamespace(evaluate=None), seed=0)

    def test():
        openings.append(stored.test_openings())
        return range(10)

    first = test_both(plan, winner, b"file", test, 0.005)
    assert (first["original"], first["value"], first["within"]) == (1.0, 0.0, False)
    assert test_both(plan, winner, b"file", test, 0.005) == first | {"earlier": True}
    assert openings == [1]
    assert test_both(plan, winner, b"another file", test, 2.0)["within"]
    assert openings == [1, 2]
