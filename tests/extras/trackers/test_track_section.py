"""The section `track`: what is built, and what is refused before trial 0."""

import importlib.util

import pytest
from omegaconf import OmegaConf
from toys import compose
from tracked import needs

from studyloom.errors import ConfigError
from studyloom.extras.trackers import TensorBoard, build_trackers
from studyloom.extras.trackers.journal import Journal


class Mine:
    """A tracker of the user's own."""

    def begin(self, trial): ...
    def report(self, trial, epoch, values): ...
    def end(self, trial, state, values): ...
    def study_end(self, answer): ...


class Half:
    """It lacks two methods."""

    def begin(self, trial): ...
    def end(self, trial, state, values): ...


def mistakes(section):
    with pytest.raises(ConfigError) as caught:
        build_trackers(OmegaConf.create({"track": section}).track)
    return "\n".join(caught.value.mistakes)


def test_a_command_line_chooses_trackers_by_name_without_a_line_in_the_primary_config():
    assert compose()[0].track is None
    cfg, _ = compose("track=[tensorboard,mlflow,wandb]", "track.mlflow.uri=http://127.0.0.1:1")
    assert [*cfg.track] == ["tensorboard", "mlflow", "wandb"]
    assert cfg.track.mlflow.uri == "http://127.0.0.1:1"
    mine, _ = compose("track=tensorboard", "+track.mine._target_=test_track_section.Mine")
    assert [*mine.track] == ["tensorboard", "mine"]


def test_an_experiment_and_a_project_are_called_as_the_study_and_files_lie_below_its_folder():
    cfg, _ = compose("track=[tensorboard,mlflow,wandb]", "study.name=x")
    assert cfg.track.mlflow.experiment == cfg.track.wandb.project == "x"
    assert cfg.track.tensorboard.dir == "runs/x/tensorboard"
    assert cfg.track.wandb.mode == "offline"


@needs("tensorboard")
def test_trackers_are_built_and_a_plain_one_gets_a_journal():
    target = f"{__name__}.Mine"
    section = {
        "tensorboard": {"_target_": "studyloom.extras.trackers.TensorBoard", "dir": "x"},
        "mine": {"_target_": target},
        "other": {"_target_": target},
    }
    built = build_trackers(OmegaConf.create(section))
    assert [type(each) for each in built.values()] == [TensorBoard, Journal, Journal]
    assert build_trackers(OmegaConf.create({})) == {}


def test_what_is_missing_names_its_extra(monkeypatch):
    find = importlib.util.find_spec
    gone = {"tensorboard", "mlflow", "wandb"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in gone else find(name)
    )
    cfg, _ = compose("track=[tensorboard,mlflow,wandb]")
    with pytest.raises(ConfigError) as caught:
        build_trackers(cfg.track)
    for name, told in zip(cfg.track, caught.value.mistakes, strict=True):
        assert name in gone
        assert f"pip install 'studyloom[{name}]'" in told


@needs("tensorboard")
def test_two_trackers_of_one_place_are_refused():
    one = {"_target_": "studyloom.extras.trackers.TensorBoard", "dir": "x"}
    told = mistakes({"a": one, "b": {**one, "dir": "./x"}, "c": {**one, "dir": "y"}})
    assert "track.b and track.a write to the same place" in told
    assert "track.c" not in told


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (["mlflow"], "track=[tensorboard,mlflow]"),
        ({"a": 3}, "track.a must be a section"),
        ({"a": {"dir": "x"}}, "track.a must have a _target_"),
        ({"a": {"_target_": f"{__name__}.Half"}}, "has no report, study_end"),
        ({"../a": {"_target_": f"{__name__}.Mine"}}, "must be of letters"),
        ({"<img onerror=x>": {"_target_": f"{__name__}.Mine"}}, "must be of letters"),
    ],
)
def test_mistakes_say_the_way_out(section, words):
    assert words in mistakes(section)
