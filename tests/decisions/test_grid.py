import math
import time
from dataclasses import replace

import optuna
import pytest
from optuna.trial import create_trial

from studyloom.decisions.samplers import LARGEST_GRID, GridSampler, SamplerContext
from studyloom.errors import ConfigError
from studyloom.space.drawing_configurations import draw_configuration, identify
from studyloom.space.language import parse_space
from studyloom.space.outline import outline
from studyloom.space.rule import parse_relations
from studyloom.space.tree import Space

GROUPS = {"model": ["mlp", "cnn"]}
NUMBERS = ("model.cnn.channels", "optimizer.momentum")
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
    return space.read_default({"model": "mlp"}, config.__getitem__)


def run(sampler: GridSampler, space: Space, trials: int) -> list[dict]:
    """Runs a study with the sampler, and returns the parameters of its trials."""
    study = optuna.create_study(sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        configuration = space.suggest(trial)
        assert trial.params == configuration.params
        study.tell(trial, 0.0)
    return [trial.params for trial in study.trials]


def test_the_trials_of_a_grid_have_each_configuration_once(space):
    visited = run(GridSampler(SamplerContext(space), seed=3), space, trials=(6 + 3) * 4)
    assert len(visited) == space.size()
    for configuration in space.configurations():
        assert visited.count(configuration.params) == 1


def test_the_baseline_comes_first_and_only_once(space, baseline):
    sampler = GridSampler(SamplerContext(space, baseline), seed=3)
    assert sampler.configurations[0] == baseline
    assert len(sampler.configurations) == space.size()
    assert [configuration.params for configuration in sampler.configurations].count(
        baseline.params
    ) == 1


def test_samplers_of_several_processes_share_the_grid_by_trial_numbers(space, baseline):
    contexts = [SamplerContext(space_of(CONDITIONAL), baseline) for _ in range(4)]
    workers = [GridSampler(context, seed=5) for context in contexts]
    study = optuna.create_study()
    drawn = []
    for number in range(int(space.size())):
        trial = create_trial(state=optuna.trial.TrialState.RUNNING)
        trial.number = number
        worker = workers[number % 4]
        drawn.append(
            worker.sample_relative(study, trial, worker.infer_relative_search_space(study, trial))
        )
    assert all(drawn.count(configuration.params) == 1 for configuration in space.configurations())


def test_every_continuous_range_is_refused_by_name():
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
        GridSampler(SamplerContext(space))
    errors = caught.value.errors
    assert [line.partition(":")[0] for line in errors] == [
        "space.optimizer.lr",
        "space.train.weights",
        "space.model.cnn.dropout",
    ]
    assert all("give it a step, or a choice" in line for line in errors)


def test_a_grid_that_is_too_large_is_refused_without_enumerating_it():
    space = space_of({"a": {"list": {"int": [1, 10**6]}, "length": 60}})
    started = time.perf_counter()
    with pytest.raises(ConfigError, match=f"configurations; at most {LARGEST_GRID}"):
        GridSampler(SamplerContext(space))
    assert time.perf_counter() - started < 0.1


def test_configurations_that_break_a_relation_are_not_in_the_grid(space):
    relation = parse_relations(["model.cnn.channels <= 100 * optimizer.momentum"], NUMBERS)
    related = replace(space, relations=relation)
    kept = [
        configuration.params
        for configuration in space.configurations()
        if relation[0].holds(configuration.params)
    ]
    assert [configuration.params for configuration in related.configurations()] == kept
    assert related.size() == len(kept) == 24 + 5
    configurations = GridSampler(SamplerContext(related), seed=3).configurations
    assert sorted(map(kept.index, (configuration.params for configuration in configurations))) == [
        *range(29)
    ]
    assert "where model.cnn.channels <= 100 * optimizer.momentum" in str(
        outline(related).children[-1].label
    )


def test_a_drawn_configuration_breaks_no_relation_and_is_not_taken(space):
    related = replace(space, relations=parse_relations(["optimizer.momentum > .15"], NUMBERS))
    taken = set()
    while (configuration := draw_configuration(related, len(taken), taken)) is not None:
        assert related.find_breach(configuration.params) is None
        taken.add(identify(configuration))
    assert len(taken) == related.size() == 18
    wide = space_of({"optimizer": {"lr": {"float": [0, 1]}, "width": {"int": [1, 9]}}})
    for text, found in (("optimizer.lr * optimizer.width < .5", True), ("optimizer.lr > 1", False)):
        tight = replace(
            wide, relations=parse_relations([text], ["optimizer.lr", "optimizer.width"])
        )
        assert tight.size() == math.inf
        configuration = draw_configuration(tight, 3)
        assert (configuration is not None) == found
        assert not found or configuration == draw_configuration(tight, 3)


def test_equal_steps_have_one_key_however_they_were_computed(space):
    one, other = (
        space.make_configuration(
            {"model": "cnn", "model.cnn.channels": 8, "optimizer.momentum": momentum}
        )
        for momentum in (0.3, 0.1 + 0.2)
    )
    assert one != other
    assert identify(one) == identify(other)
