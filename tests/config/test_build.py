import math
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from toys import compose, toy_folds, toy_split

from studyloom.config.build import build
from studyloom.config.values import (
    describe_error,
)
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError
from studyloom.question.jobs import build_jobs, build_network
from studyloom.question.question import Question
from studyloom.question.validation import validate
from studyloom.training.trainer import Training


class Part:
    """Keeps the arguments that it is built with."""

    def __init__(self, width, depth=1, seed=None, **others):
        self.given = {"width": width, "depth": depth, "seed": seed, **others}


class Broken:
    def __init__(self):
        try:
            {}["inner"]
        except KeyError as error:
            raise ValueError("model.width is 3: expected 4") from error


def section(**values):
    return OmegaConf.create({"part": {"_target_": "test_build.Part", **values}}).part


def test_a_part_is_built_with_what_it_accepts_and_has_no_value_for():
    assert build(section(width=3), seed=7, shape=(1, 2), depth=2).given == {
        "width": 3,
        "depth": 2,
        "seed": 7,
    }
    assert build(section(width=3, seed=1, depth=5), seed=7, depth=2).given == {
        "width": 3,
        "depth": 5,
        "seed": 1,
    }
    assert build(section(width=3, seed=None), seed=7).given["seed"] is None
    assert build(section(width=[1, {"a": 2}], extra=4)).given == {
        "width": [1, {"a": 2}],
        "depth": 1,
        "seed": None,
        "extra": 4,
    }


def test_a_part_gets_plain_lists_and_mappings():
    given = build(section(width=[1, [2]], extra={"a": [1]})).given
    assert type(given["width"]) is list
    assert type(given["extra"]) is dict


def test_a_partial_part_waits_for_its_arguments():
    make = build(section(_partial_=True, depth=2), seed=7)
    assert make(width=3).given == {"width": 3, "depth": 2, "seed": 7}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (None, "part must have a _target_, the dotted name of a class or function"),
        ("studyloom.models.MPL", r"part\._target_=studyloom\.models\.MPL: .*did you mean MLP\?"),
        (
            "no_such_package.Net",
            r"part\._target_=no_such_package\.Net: .*No module named 'no_such_package'",
        ),
        ("", r"part\._target_=: "),
        ("..x", r"part\._target_=\.\.x: "),
    ],
)
def test_a_target_that_is_not_there_is_named(target, words):
    cfg = section()
    if target is None:
        del cfg["_target_"]
    else:
        cfg["_target_"] = target
    with pytest.raises(ConfigError, match=words):
        build(cfg)


def test_a_module_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    (tmp_path / "guests").mkdir()
    (tmp_path / "guests" / "__init__.py").touch()
    (tmp_path / "guests" / "pole.py").write_text("import a_package_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="No module named 'a_package_that_is_not_installed'"):
        build(section(_target_="guests.pole.train"))
    with pytest.raises(ConfigError, match="module 'guests' has no attribute 'pile'"):
        build(section(_target_="guests.pile.train"))


def test_the_words_of_a_constructor_are_those_of_the_user():
    cfg = OmegaConf.create({"part": {"_target_": "test_build.Broken"}})
    with pytest.raises(ValueError, match="expected 4") as caught:
        build(cfg.part)
    assert describe_error(caught.value) == "model.width is 3: expected 4"
    nested = section(width={"_target_": "test_build.Broken"})
    with pytest.raises(ValueError, match=r"model\.width is 3: expected 4"):
        build(nested)
    assert describe_error(KeyError("x")) == "KeyError: 'x'"
    assert describe_error(ValueError("a\n  b")) == "a b"
    assert describe_error(ValueError()) == "ValueError"


def test_a_trial_has_a_job_for_each_fold_and_seed_with_seeds_of_their_own():
    cfg, _ = compose(
        "objective.folds=3", "objective.seeds=2", "train.l1=0.5", "train.clip=2", "train.epochs=4"
    )
    folds = [(torch.arange(200) + k, torch.arange(5) + k) for k in range(3)]
    jobs = build_jobs(cfg, folds, seed=9)
    assert [int(job.train[0]) for job in jobs] == [0, 0, 1, 1, 2, 2]
    assert [int(job.valid[0]) for job in jobs] == [0, 0, 1, 1, 2, 2]
    assert len({job.seed for job in jobs}) == 6
    assert [job.seed for job in jobs] == [job.seed for job in build_jobs(cfg, folds, seed=9)]
    assert not {job.seed for job in jobs} & {job.seed for job in build_jobs(cfg, folds, seed=10)}
    assert {(job.l1, job.clip, job.epochs, job.batch_size) for job in jobs} == {(0.5, 2.0, 4, 64)}
    assert jobs[0].model(shape=(1, 4, 4), outputs=3)(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


@pytest.mark.parametrize("network", ["Net", "Regressor", "Fixed"])
def test_a_network_is_given_the_shape_and_the_outputs_by_the_names_it_has_for_them(network):
    section = OmegaConf.create({"model": {"_target_": f"{__name__}.{network}", "width": 5}}).model
    made = build_network(section, [2, 3], 4)
    assert made == {"Net": ((2, 3), 4, 5), "Regressor": ((2, 3), 4, 5), "Fixed": 5}[network]


def Net(shape, classes, width):
    return shape, classes, width


def Regressor(shape, outputs, width):
    return shape, outputs, width


def Fixed(width):
    return width


def test_a_loss_is_chosen_as_a_group():
    cfg, _ = compose("train.loss=mse")
    with pytest.raises(
        ConfigError, match=r"train\.loss: 'mse' cannot be set here; choose it with loss=mse"
    ):
        build_jobs(cfg, [(torch.arange(200), torch.arange(5))], seed=0)


def test_a_plain_network_of_another_package_is_searched_by_its_own_arguments(tmp_path):
    """Like a network from Hugging Face or Lightning: it has no arguments shape and outputs."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "foreign.yaml").write_text(
        "_target_: torchvision.models.VisionTransformer\nimage_size: 8\npatch_size: 4\n"
        "num_layers: 1\nnum_heads: 2\nhidden_dim: 16\nmlp_dim: 8\nnum_classes: 10\n"
    )
    (tmp_path / "own.yaml").write_text(
        "defaults: [mnist, override /model: foreign, override /space: none, _self_]\n"
        "space: {model: {hidden_dim: {int: [8, 32], step: 8}, dropout: {float: [0, 0.5]}}}\n"
        "model: {dropout: 0.0}\n"
    )
    question = Question.ask(*compose(name="own", folder=tmp_path))
    split = toy_split()
    split = replace(split, inputs=split.inputs.repeat(1, 3, 2, 2))
    folds = toy_folds(split)
    validate(question, TrainingData(None, split, folds))
    point = question.space.walk(
        lambda parameter: {"model.hidden_dim": 8, "model.dropout": 0.25}[parameter.name]
    )
    (epoch,) = next(iter(Training(question.jobs(point, folds, 0), split)))
    assert math.isfinite(epoch.train_loss)


class Keeper:
    """Keeps and changes the list that it is given."""

    def __init__(self, values):
        self.values = values
        values.append(4)


def test_each_object_has_lists_of_its_own_although_its_section_was_built_before():
    section = OmegaConf.create({"_target_": f"{__name__}.Keeper", "values": [1, 2, 3]})
    first, second = build(section), build(section)
    assert first.values == second.values == [1, 2, 3, 4]
    assert first.values is not second.values
    section._partial_ = True
    assert [build(section)().values for _ in range(2)] == [[1, 2, 3, 4]] * 2


def test_a_class_that_was_loaded_again_is_built_as_it_is_now(monkeypatch):
    section = OmegaConf.create({"_target_": f"{__name__}.Keeper", "values": [1]})
    before = type(build(section))
    monkeypatch.setitem(globals(), "Keeper", type("Keeper", (before,), {}))
    assert type(build(section)) is not before


def test_whole_numbers_and_others_that_are_equal_are_different_arguments():
    sections = [
        OmegaConf.create({"_target_": f"{__name__}.Kept", "value": v}) for v in (1, 1.0, True)
    ]
    assert [type(build(section).value) for section in sections] == [int, float, bool]


class Kept:
    def __init__(self, value):
        self.value = value
