import time

import optuna
import pytest
from optuna.trial import create_trial

from studyloom.errors import ConfigError
from studyloom.space.language import parse_space
from studyloom.space.samplers import LARGEST_GRID, GridSampler
from studyloom.space.tree import Space

GROUPS = {"model": ["mlp", "cnn"]}
CONDITIONAL = {
    "model": {
        "mlp": {"hidden": {"list": {"choice": [8, 16]}, "length": {"int": [1, 2]}}},
        "cnn": {"channels": {"choice": [8, 16, 32]}},
    },
    "optimizer": {"momentum": {"float": [0.0, 0.3], "step": 0.1}},
}


def space_of(tree: dict) -> Space:
    return parse_space(tree, lambda group: GROUPS.get(group, []))


@pytest.fixture
def space():
    return space_of(CONDITIONAL)


@pytest.fixture
def baseline(space):
    config = {"model.hidden": [16, 8], "optimizer.momentum": 0.3}
    return space.default({"model": "mlp"}, config.__getitem__)


def run(sampler: GridSampler, space: Space, trials: int) -> list[dict]:
    """Runs a study with the sampler, and returns the parameters of its trials."""
    study = optuna.create_study(sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        point = space.suggest(trial)
        assert trial.params == point.params
        study.tell(trial, 0.0)
    return [trial.params for trial in study.trials]


def test_each_trial_of_a_conditional_space_gets_another_point_and_together_they_get_all(space):
    visited = run(GridSampler(space, seed=3), space, trials=(6 + 3) * 4)
    assert len(visited) == space.size()
    for point in space.points():
        assert visited.count(point.params) == 1


def test_the_baseline_comes_first_and_only_once(space, baseline):
    sampler = GridSampler(space, seed=3, baseline=baseline)
    assert sampler.points[0] == baseline
    assert len(sampler.points) == space.size()
    assert [point.params for point in sampler.points].count(baseline.params) == 1


def test_samplers_in_several_processes_share_the_points_out_by_the_trials_numbers(space, baseline):
    workers = [GridSampler(space_of(CONDITIONAL), seed=5, baseline=baseline) for _ in range(4)]
    study = optuna.create_study()
    drawn = []
    for number in range(int(space.size())):
        trial = create_trial(state=optuna.trial.TrialState.RUNNING)
        trial.number = number
        worker = workers[number % 4]
        drawn.append(
            worker.sample_relative(study, trial, worker.infer_relative_search_space(study, trial))
        )
    assert all(drawn.count(point.params) == 1 for point in space.points())


def test_every_continuous_range_is_refused_by_name_in_whichever_option_it_is():
    space = space_of(
        {
            "model": {"mlp": None, "cnn": {"dropout": {"float": [0.0, 0.5]}}},
            "optimizer": {
                "lr": {"float": [0.1, 1.0], "log": True},
                "momentum": {"float": [0.0, 0.9], "step": 0.1},
            },
            "train": {"weights": {"list": {"float": [0.0, 1.0]}, "length": 2}},
        }
    )
    with pytest.raises(ConfigError) as caught:
        GridSampler(space)
    mistakes = caught.value.mistakes
    assert [line.partition(":")[0] for line in mistakes] == [
        "space.optimizer.lr",
        "space.train.weights",
        "space.model.cnn.dropout",
    ]
    assert all("give it a step, or a choice" in line for line in mistakes)


def test_a_space_of_too_many_points_is_refused_without_going_through_them():
    space = space_of({"a": {"list": {"int": [1, 10**6]}, "length": 60}})
    started = time.perf_counter()
    with pytest.raises(ConfigError, match=f"points; at most {LARGEST_GRID}"):
        GridSampler(space)
    assert time.perf_counter() - started < 0.1
