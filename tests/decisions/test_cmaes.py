"""CMA-ES without pickles proposes what Optuna's own does, and executes nothing of the database."""

import inspect
import os
import pickle
import re
import warnings
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from toys import ask

from studyloom.decisions.samplers import CmaEsSampler
from studyloom.decisions.strategy import Strategy
from studyloom.metrics import ObjectiveValue
from studyloom.storage.attributes import PICKLE_PREFIXES
from studyloom.storage.opening import create_study

pytest.importorskip("cmaes", reason="the extra samplers is missing")
LOSS = (ObjectiveValue("loss", "minimize"),)


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def configurations(sampler, study, count, **options):
    """The configurations of a study that one worker works on, with a new sampler for each trial."""
    for number in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study.sampler = sampler(seed=number, **options)
        trial = study.ask()
        x, n = trial.suggest_float("x", -3, 3), trial.suggest_int("n", 1, 40, log=True)
        study.tell(trial, (x - 1) ** 2 + abs(n - 7) * (1 if number % 5 else 1.5))
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize(
    ("direction", "options"),
    [
        ("maximize", {"popsize": 4, "lr_adapt": True}),
        ("minimize", {"use_separable_cma": True}),
        ("maximize", {"with_margin": True}),
    ],
)
def test_cmaes_proposes_the_configurations_of_optunas_cmaes(direction, options):
    both = [
        configurations(sampler, optuna.create_study(direction=direction), 40, **options)
        for sampler in (CmaEsSampler, optuna.samplers.CmaEsSampler)
    ]
    # Optuna's has lost the last bit of a matrix in its pickle.
    assert [pytest.approx(configuration, rel=1e-6) for configuration in both[0]] == both[1]
    assert len({configuration["x"] for configuration in both[0]}) > 30


def test_cmaes_learns_from_a_shared_database_and_stores_no_pickle(sqlite_url):
    study = create_study(sqlite_url, "toy", {"asks": "nothing"}, 40, objectives=LOSS).optuna
    assert configurations(CmaEsSampler, study, 25) == configurations(
        CmaEsSampler, optuna.create_study(), 25
    )
    assert not any(key.startswith(PICKLE_PREFIXES) for t in study.trials for key in t.system_attrs)


@pytest.mark.parametrize(
    ("key", "options"),
    [*zip(PICKLE_PREFIXES, ((), ("use_separable_cma",), ("with_margin",)), strict=True)],
)
def test_a_pickle_in_the_database_is_not_executed(sqlite_url, tmp_path, key, options):
    canary = tmp_path / "canary"
    study = create_study(sqlite_url, "toy", {"asks": "nothing"}, 40, objectives=LOSS).optuna
    overrides = ["sampler=cmaes", "sampler._target_=optuna.samplers.CmaEsSampler"]
    overrides += [f"+sampler.{option}=true" for option in options]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.sampler = Strategy(ask(*overrides)).sampler(7)
    space = {"x": FloatDistribution(-3, 3), "y": FloatDistribution(0, 1)}
    for x in (0.5, 0.6):
        attributes = {f"{key}:0": pickle.dumps(Canary(canary)).hex(), "cma:generation": 0}
        study.add_trial(
            create_trial(
                value=x, params={"x": x, "y": x}, distributions=space, system_attrs=attributes
            )
        )
    trial = study.ask()
    trial.suggest_float("x", -3, 3)
    trial.suggest_float("y", 0, 1)
    assert not canary.exists()


def test_cmaes_ignores_trials_of_another_program():
    space = {"x": FloatDistribution(-3, 3), "n": FloatDistribution(0, 1)}
    for generation, options in ((-1, {}), (10**9, {"with_margin": True}), ("0", {}), ([0], {})):
        study = optuna.create_study()
        given = {"x_for_tell": ["a"], "cma:generation": generation, "cmawm:generation": generation}
        for n in range(20):
            value, params = float("inf") if n % 3 else -1.0, {"x": 0.1 * n, "n": 0.5}
            told = {"value": value, "params": params, "system_attrs": given}
            study.add_trial(create_trial(**told, distributions=space))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study.sampler = CmaEsSampler(seed=1, **options)
        trial = study.ask()
        assert -3 <= trial.suggest_float("x", -3, 3) <= 3


def test_no_other_part_of_optuna_unpickles_what_a_database_holds():
    folder = Path(inspect.getfile(optuna)).parent
    loads = re.compile(r"pickle\.loads?\(|\beval\(|\bexec\(|yaml\.(unsafe_)?load\(|marshal")
    unpickling = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if "testing" not in path.parts and loads.search(path.read_text())
    }
    # The journal is no storage that studyloom offers.
    assert unpickling == {
        "samplers/_cmaes.py",
        "storages/journal/_storage.py",
        "storages/journal/_redis.py",
    }
