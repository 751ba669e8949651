"""The costs of networks and their limits, from the config to trials that are not trained."""

import pytest
import torch
from optuna.trial import TrialState
from toys import TINY, Never, ask, toy_folds, toy_split

from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.definition.network import MEASURES, measure_network
from studyloom.errors import ConfigError
from studyloom.space.rule import Condition, parse_limits
from studyloom.storage.attributes import EPOCHS, FAILURE, REASON
from studyloom.storage.opening import create_study
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker

SPLIT = toy_split()
FOLDS = toy_folds(SPLIT)
WIDTHS = (
    *TINY[:-1],
    "pruner=none",
    "space=none",
    "+space.model.hidden.list.int=[4,64]",
    "+space.model.hidden.length=1",
)


def test_a_limit_gives_the_excess_of_a_value():
    limits = parse_limits({"parameters": "<= 100_000", "flops": ">=0.5"})
    assert limits == [Condition("parameters", "<=", 100_000), Condition("flops", ">=", 0.5)]
    assert [limits[0].excess(value) for value in (50_000, 100_000, 150_000)] == [-0.5, 0.0, 0.5]
    assert [limits[1].excess(value) for value in (1.0, 0.25)] == [-1.0, 0.5]
    assert parse_limits(None) == []


def test_errors_in_limits_are_reported_together():
    section = {
        "parameter": "<= 3",
        "flops": "__import__('os')",
        "latency_ms": 2,
        "parameters": "< 5",
    }
    with pytest.raises(ConfigError) as caught:
        parse_limits(section, MEASURES)
    unknown = "unknown quantity; there are parameters, flops"
    limit = "must be a limit such as '<= 100_000' or '>= 1'"
    assert caught.value.errors == [
        f"objective.constraints.parameter: {unknown}; did you mean parameters?",
        f"objective.constraints.flops {limit}; got \"__import__('os')\"",
        f"objective.constraints.latency_ms: {unknown}",
        f"objective.constraints.parameters {limit}; got '< 5'",
    ]
    with pytest.raises(ConfigError, match=r"flops must be a limit such as .* got 2"):
        parse_limits({"flops": 2}, MEASURES)
    with pytest.raises(ConfigError, match="constraints must be a mapping of quantities to limits"):
        parse_limits("<= 3", MEASURES)


def test_the_costs_of_a_network_are_those_of_its_layers():
    definition = ask(*WIDTHS)
    before = torch.random.get_rng_state()
    job = definition.build_jobs(definition.baseline, FOLDS, 0)[0]
    limit = Condition("parameters", "<=", 1.0)
    costs = measure_network([*MEASURES], [limit], job, SPLIT)
    values = {cost.quantity: cost.value for cost in costs}
    limits = {cost.quantity: cost.limit for cost in costs}
    assert limits == {"parameters": limit, "flops": None}
    assert values["parameters"] == 16 * 16 + 16 + 16 * 10 + 10
    assert values["flops"] == 2 * (16 * 16 + 16 * 10)
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_infeasible_trial_is_marked_and_not_trained_and_never_wins(sqlite_url, tmp_path):
    limit = 17 * 30 + 30 * 10 + 10  # parameters of a network of 30 units
    definition = ask(*WIDTHS, "sampler=random", f"+objective.constraints.parameters='<= {limit}'")
    stored = create_study(sqlite_url, "s", definition.identity("toy"), 6)
    stage = Stage("search", stored, definition, Strategy(definition), 6)
    Worker(stage, TrainingData(None, SPLIT, FOLDS), Never(), tmp_path).run()
    infeasible = [trial for trial in stored.trials() if trial.user_attrs["parameters"] > limit]
    assert 0 < len(infeasible) < 6
    for trial in infeasible:
        assert (trial.state, trial.user_attrs[FAILURE]) == (TrialState.PRUNED, "infeasible")
        assert f"objective.constraints has parameters <= {limit}" in trial.user_attrs[REASON]
        assert trial.constraints["parameters"] > 0
        assert EPOCHS not in trial.user_attrs
        assert not trial.intermediate_values
    assert {trial.number for trial in stored.ranked()} == {*range(6)} - {
        trial.number for trial in infeasible
    }
    assert all(trial.constraints["parameters"] <= 0 for trial in stored.ranked())
