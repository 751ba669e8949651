"""What a study asks, where it begins, and what makes another question."""

import shutil

import pytest
from optuna.samplers import BaseSampler, RandomSampler
from toys import ask

from studies import CONF
from studyloom.errors import ConfigError
from studyloom.space.samplers import GridSampler

pytestmark = pytest.mark.usefixtures("composing")
NONE = ("space=none",)  # and then what a test searches, with +space.…


class Seeded(RandomSampler):
    def __init__(self, seed=None):
        super().__init__(seed)
        self.seed = seed


class Seedless(BaseSampler):
    infer_relative_search_space = sample_relative = sample_independent = None


# What it asks, and what makes another question


@pytest.fixture
def asked(asking):
    return asking().identity("digest")


@pytest.mark.parametrize(
    "change",
    [
        {"model.hidden": [64]},
        {"optimizer.weight_decay": 0.5},
        {"loss.label_smoothing": 0.1},
        {"train.epochs": 3},
        {"train.batch_size": 32},
        {"train.l1": 0.1},
        {"train.samples_per_epoch": 64},
        {"objective.folds": 2},
        {"objective.seeds": 2},
        {"study.seed": 1},
        {"data.validation": 100},
    ],
    ids=str,
)
def test_another_value_makes_another_question(asking, asked, change):
    assert asking(**change).identity("digest") != asked


@pytest.mark.parametrize(
    "change", ["model=cnn", "optimizer=sgd", "scheduler=constant", "loss=mse", "space=lr"]
)
def test_another_option_makes_another_question(asked, change):
    assert ask(*NONE, change).identity("digest") != asked


def test_another_range_makes_another_question(asking):
    ranges = [
        asking(f"train.l1.float={ends}").identity("digest")
        for ends in ("[0, 1]", "[0, 2]", "[0, 1]")
    ]
    assert ranges[0] == ranges[2]
    assert ranges[0] != ranges[1]


def test_other_data_is_another_question(asking, asked):
    assert asking().identity("other") != asked


def test_how_an_answer_is_found_and_where_things_lie_is_no_part_of_the_question(asked):
    ways = (
        "sampler=random",
        "pruner=hyperband",
        "launcher=join",
        "storage=postgres",
        "study.trials=7",
        "study.timeout=9",
        "study.name=other",
        "run_dir=elsewhere",
    )
    assert ask(*NONE, *ways).identity("digest") == asked
    folder = ask(*NONE, "data=mnist", "data.root=/a").identity("digest")
    assert folder == ask(*NONE, "data=mnist", "data.root=/b").identity("digest")


def test_what_predict_is_told_of_the_data_is_no_part_of_the_question(asked):
    for change in ("data.transform.fit=pad", "~data.transform", "data.transform=null"):
        question = ask(*NONE, change)
        assert question.identity("digest") == asked  # as studies of before it was told
        assert "transform" not in question.provenance_sections(question.baseline)["data"]


def test_what_a_source_of_one_s_own_calls_transform_is_part_of_the_question():
    own = (*NONE, "data._target_=mine.Source")
    cropped, padded = (ask(*own, f"data.transform={name}") for name in ("crop", "pad"))
    assert cropped.identity("digest") != padded.identity("digest")


def test_the_identity_says_what_was_asked_key_by_key(main):
    asked = main.identity("digest")
    assert asked["space.train.batch_size.choice"] == [32, 64, 128, 256]
    assert asked["train.epochs"] == 6
    assert asked["model.hidden"] == [128]
    assert asked["data.digest"] == "digest"
    assert asked["study.direction"] == "maximize"


def test_a_default_of_a_network_that_only_the_space_chooses_is_part_of_the_question(tmp_path, main):
    """The trials of a study whose CNN has another number of blocks cannot be compared either."""
    folder = tmp_path / "conf"
    shutil.copytree(CONF, folder)
    cnn = folder / "model" / "cnn.yaml"
    asked = main.identity("digest")
    cnn.write_text(cnn.read_text().replace("blocks: 2", "blocks: 3"))
    changed = ask(folder=folder).identity("digest")
    assert {key for key in asked if asked[key] != changed[key]} == {"model=cnn.blocks"}


# Where it begins, and how far it goes


def test_the_baseline_is_the_configuration_as_composed(main):
    assert main.baseline.choices == {"model": "mlp", "optimizer": "adamw"}
    assert main.baseline.values == {
        "model.hidden": [128],
        "model.activation": "relu",
        "model.dropout": 0.0,
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 1e-2,
        "train.batch_size": 64,
    }
    assert ask("study.baseline=false", *NONE).baseline is None


def test_a_point_is_composed_with_its_choices_and_values_and_the_question_left_as_it_is(main):
    point = main.space.walk(
        lambda parameter: {"model": "cnn", "optimizer": "sgd", "model.cnn.channels": 32}.get(
            parameter.name, getattr(parameter.distribution, "high", 256)
        )
    )
    cfg = main.at(point)
    assert cfg.model._target_ == "studyloom.models.CNN"
    assert (cfg.model.channels, cfg.optimizer.lr, cfg.optimizer.momentum, cfg.train.batch_size) == (
        32,
        1.0,
        0.99,
        256,
    )
    assert main.config.train.batch_size == 64
    assert main.at(main.baseline).model == main.config.model


def test_a_trial_is_trained_with_seeds_of_its_own(main, folds):
    seeds = [[job.seed for job in main.jobs(main.baseline, folds, number)] for number in (0, 1, 0)]
    assert seeds[0] == seeds[2]
    assert seeds[0] != seeds[1]


def test_the_sampler_of_a_trial_is_seeded_for_it():
    question = ask(*NONE, "sampler=random", "sampler._target_=test_question.Seeded")
    seeds = [question.sampler(number).seed for number in (0, 1, 2, 0)]
    assert len(set(seeds)) == 3
    assert seeds[0] == seeds[3]
    other = ask(*NONE, "sampler=random", "sampler._target_=test_question.Seeded", "study.seed=1")
    assert other.sampler(0).seed != seeds[0]


def test_a_sampler_without_a_seed_is_a_sampler():
    assert isinstance(
        ask(*NONE, "sampler=random", "sampler._target_=test_question.Seedless").sampler(0), Seedless
    )


@pytest.mark.parametrize(
    ("overrides", "trials"),
    [
        (["study.trials=7", "space=none"], 1),
        (["study.trials=7", "space=none", "study.baseline=false"], 1),
        (["study.trials=7", "space=none", "+space.model.mlp={}"], 1),
        (["study.trials=7", "space=none", "+space.train.batch_size.choice=[32,64,128]"], 7),
        (
            [
                "study.trials=7",
                "space=none",
                "+space.train.batch_size.choice=[32,64,128]",
                "sampler=grid",
            ],
            3,
        ),
        (
            [
                "study.trials=2",
                "space=none",
                "+space.train.batch_size.choice=[32,64,128]",
                "sampler=grid",
            ],
            2,
        ),
    ],
)
def test_the_budget_is_as_asked_unless_there_are_fewer_points(overrides, trials):
    assert ask(*overrides).trials() == trials


def test_the_grid_begins_at_the_baseline():
    question = ask(*NONE, "+space.train.batch_size.choice=[32,64,128]", "sampler=grid")
    assert isinstance(question.sampler(5), GridSampler)
    assert question.sampler(5).points[0].values == {"train.batch_size": 64}
    assert question.sampler(5).points == question.sampler(6).points


def test_mistakes_in_the_space_itself_are_told_when_it_is_asked():
    with pytest.raises(ConfigError, match=r"space\.train\.l1\.float: the low end 1"):
        ask(*NONE, "+space.train.l1.float=[1,0]")
