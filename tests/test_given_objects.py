"""What programs of Optuna have: objectives of any kind, objects of samplers, callbacks."""

import argparse
import functools
import logging
import math
import os
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.pruners import MedianPruner
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import TrialState

import studyloom as sl
from studyloom.cli import main
from studyloom.decisions.given_samplers import copy_for_trial, seed_sequences
from studyloom.decisions.samplers import CmaEsSampler as CmaEsWithoutPickles
from studyloom.user_code import given_objects
from studyloom.user_code.digests import compute_code_digests
from studyloom.user_code.importing import find_member
from studyloom.user_code.pickled import forget_objects, register_callable
from studyloom.worker.stopping import read_control

FEW = {"trials": 4, "winner": False, "quiet": True}


def square(trial, center=0.0):
    return (trial.suggest_float("x", -3, 3) - center) ** 2


class Square:
    def __init__(self, center):
        self.center = center

    def __call__(self, trial):
        return square(trial, self.center)


def make_square(center):
    def inner(trial):
        return square(trial, center)

    return inner


OBJECTIVES = {
    "a partial": functools.partial(square, center=1.0),
    "an object": Square(1.0),
    "a closure": make_square(1.0),
    "a lambda": lambda trial: square(trial, 1.0),
}


@pytest.mark.chaos
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_may_be_anything_that_is_called(kind, workers, tmp_path):
    few = {**FEW, "workers": workers, "run_dir": tmp_path, "sampler": "random"}
    with sl.search(OBJECTIVES[kind], **few) as study:
        first = study.to_dicts()
    with sl.search(OBJECTIVES[kind], **{**few, "trials": 6}) as study:
        rows = study.to_dicts()
        assert [row["value"] for row in rows[:4]] == [row["value"] for row in first]
        values = {row["params.x"]: row["value"] for row in rows}
        assert len(rows) == 6
        assert all(abs((x - 1.0) ** 2 - value) < 1e-9 for x, value in values.items())
        assert study.best_value == study.best_trial.value == min(values.values())
        assert study.best_params == study.best.params


SCRIPT = """
import functools, sys
import studyloom as sl

FACTOR = {factor}

class Square:
    def __init__(self, center):
        self.center = center

    def __call__(self, trial):
        return FACTOR * (trial.suggest_float("x", -3, 3) - self.center) ** 2

def plain(trial, center):
    return Square(center)(trial)

def make(center):
    def inner(trial):
        return Square(center)(trial)
    return inner

KINDS = dict(
    lambda_=lambda trial: Square({center})(trial),
    partial=functools.partial(plain, center={center}),
    instance=Square({center}),
    closure=make({center}),
)
if __name__ == "__main__":
    few = dict(trials={trials}, workers=1, winner=False, quiet=True)
    sl.search(KINDS[sys.argv[1]], name="edited", **few)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["lambda_", "partial", "instance", "closure"])
def test_an_edit_of_code_or_values_of_an_objective_is_refused(kind, tmp_path):
    def run(**values):
        values = {"factor": 1, "center": 1, "trials": 2, **values}
        script = tmp_path / "mine.py"
        script.write_text(SCRIPT.format(**values))
        command = [sys.executable, script, kind]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run().returncode == 0
    assert run(trials=3).returncode == 0, "the number of trials is no code"
    for changed in ({"center": 2}, {"factor": 2}):
        refused = run(**changed)
        assert refused.returncode != 0
        assert "has changed since the study 'edited' began" in refused.stderr, refused.stderr


def digest(value):
    register_callable("given", value)
    return compute_code_digests({"_target_": "studyloom.user_code.pickled.given"})


class Bag:
    def __init__(self, held=0, *, own=None):
        self.held = held
        self.own = own

    def method(self, trial):
        return square(trial, self.held)


@dataclass(slots=True)
class Slotted:
    center: float


class Color(Enum):
    RED = 1
    BLUE = 2


def with_default(center):
    def inner(trial, held=center):
        return square(trial, held)

    return inner


def with_keyword_default(center):
    def inner(trial, *, held=center):
        return square(trial, held)

    return inner


def make_cached(center):
    return functools.cache(make_square(center))


WAYS = {
    "a bound method": lambda center: Bag(center).method,
    "an object in a closure": lambda center: make_square(Bag(center)),
    "an object in a partial": lambda center: functools.partial(square, center=Bag(center)),
    "an object in an attribute": lambda center: Square(Bag([Bag({"a": center})])),
    "a partial in an attribute": lambda center: Square(functools.partial(square, center=center)),
    "a closure in a partial": lambda center: functools.partial(square, make_square(center)),
    "a method in a closure": lambda center: make_square(Bag(center).method),
    "a default": with_default,
    "a default of a keyword": with_keyword_default,
    "a dataclass with slots": lambda center: make_square(Slotted(center)),
    "a namespace": lambda center: make_square(argparse.Namespace(center=center)),
    "a cached function": lambda center: make_square(make_cached(center)),
    "a network's attribute": lambda center: make_square(torch.nn.Dropout(center / 10)),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_edit_of_what_an_objective_holds_changes_its_digest(way):
    first, again, other = (digest(WAYS[way](center)) for center in (1, 1, 2))
    assert first == again != other


def count_calls():
    count = 0

    def objective(trial):
        nonlocal count
        count += 1
        return square(trial)

    return objective


def record_calls(values):
    def objective(trial):
        values.append(square(trial))
        return values[-1]

    return objective


def test_a_function_may_count_its_calls_and_a_changed_variable_is_named(tmp_path):
    """A variable that a function assigns itself defines nothing; the error names another one."""
    few = {**FEW, "trials": 1, "workers": 1}
    counting = count_calls()
    for trials in (1, 2):
        sl.search(counting, **few | {"trials": trials}, run_dir=tmp_path / "counted").close()
    recording = record_calls([])
    sl.search(recording, **few, run_dir=tmp_path / "recorded").close()
    with pytest.raises(
        sl.StudyloomError, match=r"variable values of search\(objective\) has"
    ) as caught:
        sl.search(recording, **few | {"trials": 2}, run_dir=tmp_path / "recorded")
    assert "if calls of the function change values, make it again before" in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.int64(1), np.int64(2)),
        (np.float32(0.5), np.float32(0.25)),
        (Path("a"), Path("b")),
        (range(3), range(4)),
        (Color.RED, Color.BLUE),
        (torch.float32, torch.float64),
        (np.zeros(3), np.ones(3)),
        (math.sin, math.cos),
        (np.sin, np.cos),
    ],
    ids=str,
)
def test_an_edit_of_a_plain_value_changes_the_digest(one, other):
    assert digest(make_square(one)) == digest(make_square(one))
    assert digest(make_square(one)) != digest(make_square(other))


def test_an_edit_in_an_object_that_holds_itself_changes_its_digest():
    def make_cyclic(center):
        child, items, names = Bag(center), [center], {"center": center}
        child.own = Bag(child)
        items.append(items)
        names["self"] = names
        return make_square([child, items, names])

    assert digest(make_cyclic(1)) == digest(make_cyclic(1)) != digest(make_cyclic(2))


def test_objects_held_many_times_and_odd_ones_have_a_fast_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(given_objects, "MOST_ITEMS", 1000)
    nested, chain = [1], None
    for _ in range(100):
        nested = [nested, nested]
    for _ in range(5000):
        chain = Bag(chain)
    with (tmp_path / "open").open("w") as file:
        odd = [math, logging.getLogger("a"), file, threading.Lock(), str.upper, [].append, nested]
        odd += [torch.nn.Linear(3, 3), torch.ones(2, device="meta"), chain, list(range(10**6))]
        started = time.process_time()
        assert digest(make_square(odd)) == digest(make_square(odd))
        assert time.process_time() - started < 10


class CountingSquare(Square):
    calls = 0

    def __call__(self, trial):
        self.calls += 1
        return super().__call__(trial)


def test_the_same_call_resumes_with_an_object_that_its_calls_change(tmp_path):
    counting = CountingSquare(1.0)
    few = {**FEW, "workers": 1, "run_dir": tmp_path}
    sl.search(counting, **{**few, "trials": 2}).close()
    with sl.search(counting, **few) as study:
        assert len(study.to_dicts()) == 4


def test_the_digest_is_that_of_the_object_as_it_was_given():
    first = digest(CountingSquare(1.0))
    find_member("studyloom.user_code.pickled.given").calls += 1
    assert compute_code_digests({"_target_": "studyloom.user_code.pickled.given"}) == first


def test_an_object_that_cannot_be_sent_is_named(tmp_path):
    lock = threading.Lock()

    def objective(trial):
        with lock:
            return square(trial)

    with pytest.raises(sl.ConfigError, match="objective: cannot be given to worker processes"):
        sl.search(objective, **FEW, workers=2, run_dir=tmp_path)


@pytest.mark.parametrize(
    "sampler",
    [
        TPESampler(n_startup_trials=2, seed=1),
        CmaEsSampler(),
        *(
            pytest.param(sampler, marks=pytest.mark.chaos)
            for sampler in (
                TPESampler(n_startup_trials=2),
                RandomSampler(),
                GPSampler(n_startup_trials=2),
                NSGAIISampler(),
            )
        ),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_trials_of_a_sampler_object_depend_on_seed_and_number_only(sampler, tmp_path):
    def search(name, trials, seed=0):
        few = {**FEW, "trials": trials, "seed": seed, "run_dir": tmp_path / name}
        with sl.search(square, sampler=sampler, workers=1, **few) as study:
            return [row["params.x"] for row in study.to_dicts()]

    whole = search("whole", 5)
    search("resumed", 3)
    assert search("resumed", 5) == whole
    assert search("other", 5, seed=1) != whole
    assert len({*whole}) == 5


def test_the_seed_of_a_sampler_object_counts():
    states = []
    for sampler in (TPESampler(), TPESampler(seed=1), TPESampler(seed=2)):
        copies = [copy_for_trial(sampler, seed=3) for _ in range(2)]
        first, again = (copied._rng.rng.random_sample() for copied in copies)
        assert first == again
        states.append(first)
    assert len({*states}) == 3


class Counting(BaseSampler):
    """A sampler that keeps state: how often it was asked."""

    def __init__(self):
        self.count = 0

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        self.count += 1
        return self.count / 10


def test_an_object_of_another_class_needs_a_single_worker(tmp_path):
    few = {**FEW, "sampler": Counting(), "run_dir": tmp_path}
    with pytest.raises(sl.ConfigError, match=r"sampler: keeps its state in one process .*set"):
        sl.search(square, workers=2, **few)


def test_an_error_about_an_object_names_its_class(tmp_path):
    def two(trial):
        return square(trial), 0.0

    few = {**FEW, "minimize": ["loss", "cost"], "workers": 1, "run_dir": tmp_path}
    with pytest.raises(sl.ConfigError, match="sampler=CmaEsSampler: "):
        sl.search(two, sampler=CmaEsSampler(), **few)
    with pytest.raises(sl.ConfigError, match="pruner=MedianPruner compares by one value"):
        sl.search(two, pruner=MedianPruner(), **few)
    with pytest.raises(sl.ConfigError, match="pruner=MedianPruner compares by one value"):
        sl.search(two, pruner=MedianPruner, **few)


class Failing(RandomSampler):
    keeps_state = False

    def before_trial(self, study, trial):
        raise RuntimeError("mine")


@pytest.mark.chaos
def test_a_sampler_that_crashes_its_workers_fails_the_trials(tmp_path):
    """Each death counts as an attempt of the trial, so that no worker is started for ever."""
    few = {"workers": 2, "run_dir": tmp_path, "study": {"max_attempts": 1}, **FEW, "trials": 2}
    with sl.search(square, sampler=Failing(), **few) as study:
        assert {row["state"] for row in study.to_dicts()} == {"failed"}


def falling(trial):
    x = trial.suggest_float("x", -3, 3)
    for step in range(1, 5):
        trial.report(x**2, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x**2


def test_a_pruner_object_prunes(tmp_path):
    pruner = MedianPruner(n_startup_trials=2)
    few = {**FEW, "trials": 12, "workers": 1, "run_dir": tmp_path, "sampler": "random"}
    with sl.search(falling, pruner=pruner, **few) as study:
        assert {row["state"] for row in study.to_dicts()} == {"complete", "pruned"}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.chaos)])
def test_callbacks_get_each_ended_trial_once_in_this_process(workers, tmp_path):
    calls = []

    def note(study, trial):
        calls.append((trial.number, trial.value, study.study_name, os.getpid()))
        assert trial.state == TrialState.COMPLETE
        assert study.best_value <= trial.value

    few = {**FEW, "workers": workers, "run_dir": tmp_path, "callbacks": [note]}
    with sl.search(square, **few) as study:
        values = [row["value"] for row in study.to_dicts()]
    assert sorted(calls) == [(n, values[n], "square", os.getpid()) for n in range(4)]
    sl.search(square, **{**few, "trials": 5}).close()
    assert [number for number, *_ in calls[4:]] == [4]


def slow(trial):
    time.sleep(0.3)
    return square(trial)


def test_a_callback_stops_the_study_in_order(tmp_path):
    def stop(study, trial):
        study.stop()

    few = {**FEW, "trials": 40, "workers": 1, "run_dir": tmp_path}
    with sl.search(slow, callbacks=[stop], **few) as study:
        states = [row["state"] for row in study.to_dicts()]
        assert read_control(study._stored) == "stop", "other commands' workers read this, and stop"
    assert 0 < states.count("complete") < 40
    with sl.search(square, **{**few, "trials": 2, "run_dir": tmp_path / "other"}) as study:
        assert read_control(study._stored) is None
    with sl.search(slow, **{**few, "trials": len(states) + 1}) as study:
        assert len(study.to_dicts()) == len(states) + 1, "the same call resumes the study"


def test_an_exception_of_a_callback_is_raised_by_the_call(tmp_path):
    def fail(study, trial):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sl.search(square, callbacks=[fail], **FEW, workers=1, run_dir=tmp_path)
    with pytest.raises(sl.ConfigError, match=r"callbacks must be a list of functions"):
        sl.search(square, callbacks=[3], **FEW, run_dir=tmp_path)


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("n_trials", "trials=…"),
        ("n_jobs", "workers=…"),
        ("timeout", "study={'timeout': …}"),
        ("direction", "minimize='loss' or maximize='accuracy'"),
    ],
)
def test_a_keyword_of_optuna_names_ours(keyword, hint, tmp_path):
    with pytest.raises(sl.ConfigError, match=f"{keyword}: no such keyword.* here it is {hint}"):
        sl.search(square, run_dir=tmp_path, **{keyword: 3})


CALLS = []


def counted_square(trial):
    CALLS.append(trial.number)
    return square(trial, center=1.0)


def measure(params, seed):
    return {"value": (params["x"] - 1.0) ** 2, "seed": seed}


class Measure:
    def __call__(self, params, seed):
        return measure(params, seed)["value"]


@pytest.mark.parametrize(
    "test",
    [
        measure,
        pytest.param(Measure(), marks=pytest.mark.chaos),
        pytest.param(lambda params, seed: measure(params, seed), marks=pytest.mark.chaos),
    ],
)
def test_the_winner_of_an_optuna_objective_is_tested_once_with_new_seeds(test, tmp_path):
    """The test trains nothing by the objective."""
    CALLS.clear()
    few = {"trials": 3, "workers": 1, "quiet": True, "run_dir": tmp_path}
    for _ in range(2):
        with sl.search(counted_square, test=test, **few) as study:
            winner = study.winner
            assert winner.test == pytest.approx((winner.params["x"] - 1.0) ** 2)
            scores = winner.details["test"]
            assert len(winner.details["seeds"]) == len(scores["winner"]["values"]) == 3
            assert scores["test_set_uses"] == 1
            assert "final-training" not in winner.details["reused_trainings"], "it trains again"
    assert len(CALLS) == 3 + 3 * 3, "the search, and the re-evaluation of three with three seeds"


def measure_with_luck(params, seed):
    luck = np.random.default_rng([seed, round(100 * params["x"] + 300)])
    return measure(params, seed)["value"] + 0.02 * luck.normal()


def test_the_first_enqueued_configuration_of_an_objective_is_its_baseline(tmp_path):
    few = {"workers": 1, "quiet": True, "run_dir": tmp_path, "test": measure_with_luck}
    starts = [{"x": -2.0}, {"x": 1.25}, {"x": 2.0}]
    objective = functools.partial(square, center=1.0)
    with sl.search(objective, trials=3, study={"enqueue": starts}, **few) as study:
        assert (study.baseline.number, study.baseline.params) == (0, {"x": -2.0})
        assert [row["params.x"] for row in study.to_dicts()] == [-2.0, 1.25, 2.0]
        winner = study.winner
        assert winner.params == {"x": 1.25}
        assert winner.baseline_test == pytest.approx(9.0, abs=0.1)
        test = winner.details["test"]
        assert len(test["winner"]["values"]) == len(test["baseline"]["values"]) == 3
        low, high = test["difference"]["interval"]
        assert low < -8.9375 < high < 0, "a loss, of which less is better"
    for later_starts in (starts, [{"x": 0.5}, *starts], []):
        with sl.search(objective, trials=6, study={"enqueue": later_starts}, **few) as study:
            assert study.baseline.number == 0, "the baseline stays the one that was tried first"
            assert study.to_dicts()[3]["params.x"] != -2.0


def test_an_optuna_objective_may_get_its_baseline_later_or_none(tmp_path):
    few = {**FEW, "workers": 1, "run_dir": tmp_path, "sampler": "random"}
    with sl.search(square, **few) as study:
        assert study.baseline is None
    with sl.search(square, **few | {"trials": 5}, study={"enqueue": [{"x": 0.5}]}) as study:
        assert (study.baseline.number, study.baseline.params) == (4, {"x": 0.5})
    without = {"enqueue": [{"x": 0.5}], "baseline": False}
    with sl.search(square, **few | {"run_dir": tmp_path / "none"}, study=without) as study:
        assert study.baseline is None
        assert study.to_dicts()[0]["params.x"] == 0.5


def test_a_test_that_cannot_be_called_with_params_and_seed_is_named(tmp_path):
    few = {"trials": 3, "workers": 1, "quiet": True, "run_dir": tmp_path}
    with pytest.raises(sl.ConfigError, match=r"objective\.test: .*called as \(params, seed\)"):
        sl.search(square, test=lambda params: 0, **few)


def test_a_second_search_in_a_trial_changes_nothing_of_the_first(tmp_path):
    def objective(trial):
        if trial.number == 0:
            with pytest.raises(sl.LaunchError, match="runs a study already"):
                sl.search(lambda trial: 100.0, **FEW, run_dir=tmp_path / "second")
        return square(trial)

    with sl.search(objective, **FEW, workers=1, run_dir=tmp_path / "first") as study:
        assert all(row["value"] < 10 for row in study.to_dicts())


@pytest.mark.parametrize("callbacks", [3, print, [print, 3]])
def test_callbacks_that_are_no_list_of_functions_are_named(callbacks, tmp_path):
    with pytest.raises(sl.ConfigError, match="callbacks must be a list of functions"):
        sl.search(square, callbacks=callbacks, **FEW, run_dir=tmp_path)


def test_a_generator_of_callbacks_is_read_once_and_none_is_none(tmp_path):
    numbers = []
    callbacks = (call for call in [lambda study, trial: numbers.append(trial.number)])
    few = {**FEW, "workers": 1, "run_dir": tmp_path}
    sl.search(square, callbacks=callbacks, **few).close()
    assert sorted(numbers) == [0, 1, 2, 3]
    sl.search(square, callbacks=None, **few).close()


def test_a_callback_that_enqueues_a_trial_is_told_how(tmp_path):
    def enqueue(study, trial):
        study.enqueue_trial({"x": 1.0})

    with pytest.raises(NotImplementedError, match="set study="):
        sl.search(square, callbacks=[enqueue], **FEW, workers=1, run_dir=tmp_path)


def test_the_result_names_the_seeds_of_the_test_of_an_optuna_objective(tmp_path):
    seeds = []

    def note(params, seed):
        seeds.append(seed)
        return params["x"]

    few = {"trials": 3, "workers": 1, "quiet": True, "run_dir": tmp_path}
    with sl.search(square, test=note, **few) as study:
        assert list(study.winner.details["seeds"]) == seeds


def test_a_command_that_lacks_a_given_object_says_so(tmp_path, capsys):
    few = {"trials": 2, "workers": 1, "quiet": True, "run_dir": tmp_path, "winner": False}
    sl.search(lambda trial: square(trial), **few).close()
    forget_objects()
    assert main(["winner", str(tmp_path)]) == 2
    assert "was given to studyloom.search as an object" in capsys.readouterr().err


def test_a_network_given_as_an_object_names_its_class(tmp_path):
    with pytest.raises(sl.ConfigError, match="Linear is given as an object; give its class"):
        sl.search(torch.nn.Linear(2, 2), maximize="accuracy", run_dir=tmp_path)


# Samplers that end a study, hold others, or keep state


def fix_nothing(sampler):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PartialFixedSampler({}, sampler)


@pytest.mark.parametrize("make", [lambda sampler: sampler, fix_nothing])
@pytest.mark.parametrize("kind", ["grid", "brute force"])
def test_a_sampler_that_ends_the_study_itself_is_refused(kind, make, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = make(GridSampler({"x": [0, 1]}) if kind == "grid" else BruteForceSampler())
    with pytest.raises(sl.ConfigError, match=r"Sampler of Optuna ends a study .* sampler=grid"):
        sl.search(square, sampler=sampler, **FEW, workers=1, run_dir=tmp_path)


class OwnCmaEs(CmaEsSampler):
    keeps_state = False


@pytest.mark.parametrize("cmaes", [CmaEsSampler(), OwnCmaEs()])
def test_every_cmaes_in_a_sampler_is_the_one_without_pickles(cmaes):
    copied = copy_for_trial(fix_nothing(cmaes), seed=3)._base_sampler
    assert isinstance(copied, CmaEsWithoutPickles)
    assert isinstance(copied, type(cmaes))
    assert not isinstance(cmaes, CmaEsWithoutPickles)


def test_a_sequence_without_a_seed_begins_at_that_of_the_study():
    for seed in (None, 5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = QMCSampler(seed=seed)
        seed_sequences(sampler, 3)
        assert sampler._seed == (seed or 3)


def test_a_sampler_with_state_serves_all_trials_of_a_search_anew(tmp_path):
    counting = Counting()
    for name in ("first", "second"):
        few = {**FEW, "workers": 1, "run_dir": tmp_path / name}
        with sl.search(square, sampler=counting, **few) as study:
            assert [row["params.x"] for row in study.to_dicts()] == [0.1, 0.2, 0.3, 0.4]
    assert counting.count == 0


def test_a_sampler_with_state_is_refused_with_recycled_workers(tmp_path):
    few = {**FEW, "workers": 1, "run_dir": tmp_path, "launcher": {"recycle": 2}}
    with pytest.raises(sl.ConfigError, match=r"sampler: keeps its state .*launcher\.recycle=2"):
        sl.search(square, sampler=Counting(), **few)
