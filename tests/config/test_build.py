import pytest
import torch
from toys import compose

from studyloom.config.build import build
from studyloom.config.values import describe_error
from studyloom.errors import ConfigError
from studyloom.objectives.jobs import build_jobs, build_network


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
    return {"_target_": "test_build.Part", **values}


def test_build_passes_an_offered_argument_that_the_section_lacks():
    offered = {"seed": 7, "shape": (1, 2), "depth": 2}
    for values, given in (
        ({"width": 3}, {"width": 3, "depth": 2, "seed": 7}),
        ({"width": 3, "seed": None, "depth": 5}, {"width": 3, "depth": 5, "seed": None}),
        ({"width": [1, {"a": 2}], "x": 4}, {"width": [1, {"a": 2}], "depth": 2, "seed": 7, "x": 4}),
    ):
        assert build(section(**values), "part", **offered).given == given
    lists = build(section(width=[1, [2]], extra={"a": [1]}), "part").given
    assert (type(lists["width"]), type(lists["extra"])) == (list, dict)


def test_a_partial_section_becomes_a_function_of_the_missing_arguments():
    make = build(section(_partial_=True, depth=2), "part", seed=7)
    assert make(width=3).given == {"width": 3, "depth": 2, "seed": 7}


def test_an_error_names_a_target_that_does_not_exist():
    for target, words in {
        "studyloom.models.MPL": r"part\._target_=studyloom\.models\.MPL: .*did you mean MLP\?",
        "no_such_package.Net": r"part\._target_=no_such_package\.Net: .*No module named 'no_such_p",
        "": r"part\._target_=: ",
        "..x": r"part\._target_=\.\.x: ",
    }.items():
        with pytest.raises(ConfigError, match=words):
            build(section(_target_=target), "part")
    with pytest.raises(ConfigError, match="part must have a _target_, the dotted name"):
        build({"width": 3}, "part")


def test_an_error_says_why_a_target_module_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "guests").mkdir()
    (tmp_path / "guests" / "__init__.py").touch()
    (tmp_path / "guests" / "pole.py").write_text("import a_package_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="No module named 'a_package_that_is_not_installed'"):
        build(section(_target_="guests.pole.train"), "part")
    with pytest.raises(ConfigError, match="module 'guests' has no attribute 'pile'"):
        build(section(_target_="guests.pile.train"), "part")


def test_the_error_of_a_constructor_is_quoted():
    with pytest.raises(ValueError, match=r"model\.width is 3: expected 4") as caught:
        build(section(width={"_target_": "test_build.Broken"}), "part")
    assert describe_error(caught.value) == "model.width is 3: expected 4"
    assert describe_error(KeyError("x")) == "KeyError: 'x'"
    assert describe_error(ValueError("a\n  b")) == "a b"


def test_an_exception_without_a_text_is_described_by_its_type():
    class Unreadable(ValueError):
        def __str__(self):
            raise SystemExit(1)

    assert describe_error(Unreadable()) == "Unreadable"


def test_a_trial_has_a_job_with_another_seed_for_each_fold_and_seed():
    cfg, _ = compose("objective.folds=3", "objective.seeds=2", "train.l1=0.5", "train.epochs=4")
    folds = [(torch.arange(200) + k, torch.arange(5) + k) for k in range(3)]
    jobs = build_jobs(cfg, folds, seed=9)
    assert [int(job.train[0]) for job in jobs] == [0, 0, 1, 1, 2, 2]
    assert [int(job.valid[0]) for job in jobs] == [0, 0, 1, 1, 2, 2]
    assert len({job.seed for job in jobs}) == 6
    assert [job.seed for job in jobs] == [job.seed for job in build_jobs(cfg, folds, seed=9)]
    assert not {job.seed for job in jobs} & {job.seed for job in build_jobs(cfg, folds, seed=10)}
    assert {(job.l1, job.epochs, job.batch_size) for job in jobs} == {(0.5, 4, 64)}
    assert jobs[0].model(shape=(1, 4, 4), outputs=3)(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


def test_a_network_gets_the_shape_and_outputs_that_its_signature_names():
    for network, made in {"classifier": ((2, 3), 4, 5), "regressor": (4, 5), "fixed": 5}.items():
        section = {"_target_": f"{__name__}.{network}", "width": 5}
        assert build_network(section, [2, 3], 4) == made


def classifier(shape, classes, width):
    return shape, classes, width


def regressor(outputs, width):
    return outputs, width


def fixed(width):
    return width


class Keeper:
    """Keeps and changes the list that it is given."""

    def __init__(self, values):
        self.values = values
        values.append(4)


def test_two_objects_built_from_one_section_share_no_list():
    section = {"_target_": f"{__name__}.Keeper", "values": [1, 2, 3]}
    first, second = build(section, "keeper"), build(section, "keeper")
    assert first.values == second.values == [1, 2, 3, 4]
    assert first.values is not second.values
