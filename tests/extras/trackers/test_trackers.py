"""Each tracker has of a trial what the database has, however often it is written."""

from collections import Counter

import pytest
from omegaconf import OmegaConf
from toys import compose
from tracked import in_mlflow, in_tensorboard, in_wandb, needs

from studyloom.errors import ConfigError, FileError
from studyloom.extras.trackers import MLflow, TensorBoard, WandB
from studyloom.study.tracking import (
    Point,
    TrackedAnswer,
    TrackedStudy,
    TrackedTrial,
    build_trackers,
)

UUID = "ab" * 16
pytestmark = [
    needs("mlflow", "tensorboard", "wandb"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.nightly,
]


@pytest.fixture
def study(tmp_path):
    return TrackedStudy("s", UUID, {"accuracy": "maximize"}, tmp_path)


def trial_of(study, number, epochs, state="complete"):
    points = [Point(epoch, "accuracy", epoch / 8, 1e9 + epoch) for epoch in epochs]
    params = {"optimizer.lr": 0.5, "model": "mlp"}
    values = {"accuracy": epochs[-1] / 8}
    facts = {"worker": "w-1", "reason": "![](http://host/x.png)"}
    return TrackedTrial(study, number, state, params, values, facts, points, 1e9, 1e9 + 9)


MAKERS = {
    "tensorboard": (
        lambda folder: TensorBoard(str(folder / "events")),
        lambda folder: in_tensorboard(folder / "events" / f"s-{UUID[:8]}"),
    ),
    "mlflow": (
        lambda folder: MLflow(f"sqlite:///{folder}/mlflow.db", "e", "model"),
        lambda folder: in_mlflow(f"sqlite:///{folder}/mlflow.db", "e"),
    ),
    "wandb": (lambda folder: WandB(str(folder), "p"), in_wandb),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_trial_written_twice_by_two_workers_is_one_run_with_each_number_once(
    name, study, tmp_path
):
    make, read = MAKERS[name]
    trials = [trial_of(study, 0, (1, 2, 3)), trial_of(study, 1, (1,), "pruned")]
    for _ in range(2):
        for trial in trials:
            make(tmp_path).write_trial(trial)
    assert make(tmp_path).written(study) == {0, 1}
    found = read(tmp_path)
    assert {*found} == {0, 1}
    for trial in trials:
        seen = found[trial.number]
        assert seen.params == {"optimizer.lr": "0.5", "model": "mlp"}
        assert seen.curves == Counter(("accuracy", p.epoch, p.value) for p in trial.points)
        assert (seen.state, seen.finals) == (trial.state, trial.values)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_the_answer_is_written_again_once_a_larger_budget_has_found_another(name, study, tmp_path):
    tracker = MAKERS[name][0](tmp_path)
    tracker.write_trial(trial_of(study, 0, (1,)))
    for value in (0.5, 0.9):
        (tmp_path / "winner.json").write_text(str(value))
        files = {"winner.json": tmp_path / "winner.json"}
        tracker.write_answer(TrackedAnswer(study, 0, {"a": 1}, {"test.mean": value}, files))
    assert tracker.written(study) == {0}
    if name == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient(tracker.uri)
        (parent,) = client.search_runs(["1"], "tags.`studyloom.kind` = 'study'")
        assert parent.data.metrics == {"test.mean": 0.9}
        artifacts = {each.path for each in client.list_artifacts(parent.info.run_id)}
        assert "winner.json" in artifacts
        assert len(client.search_model_versions("name = 'model'")) == 2


def test_a_foreign_database_of_mlflow_has_nothing_written_outside_the_run_directory(tmp_path):
    from mlflow import MlflowClient

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    uri = f"sqlite:///{run_dir}/mlflow.db"
    MlflowClient(uri).create_experiment("e", (tmp_path / "elsewhere").as_uri())
    answer = TrackedAnswer(TrackedStudy("s", UUID, {}, run_dir), None, {}, {}, {})
    with pytest.raises(FileError, match="outside of this run directory"):
        MLflow(uri, "e").write_answer(answer)
    assert not (tmp_path / "elsewhere").exists()


def test_a_command_line_chooses_trackers_by_name():
    assert compose()[0].track is None
    cfg, _ = compose("track=[tensorboard,mlflow,wandb]", "study.name=x")
    assert cfg.track.mlflow.experiment == cfg.track.wandb.project == "x"
    assert cfg.track.tensorboard.dir == "runs/x/tensorboard"
    assert cfg.track.wandb.mode == "offline"
    built = build_trackers(cfg.track)
    assert [type(each) for each in built.values()] == [TensorBoard, MLflow, WandB]


class Half:
    """It lacks a method."""

    def write_trial(self, trial): ...


def test_mistakes_are_told_all_at_once_with_the_way_out(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    section = {
        "board": {"_target_": "studyloom.extras.trackers.TensorBoard", "dir": "x"},
        "a": 3,
        "half": {"_target_": f"{__name__}.Half"},
    }
    with pytest.raises(ConfigError) as caught:
        build_trackers(OmegaConf.create(section))
    told = "\n".join(caught.value.mistakes)
    for words in (
        "pip install 'studyloom[tensorboard]'",
        "track.a must be a section with a _target_, not 3",
        "write_answer(answer); Half has not",
    ):
        assert words in told
    with pytest.raises(ConfigError, match=r"track=\[tensorboard,mlflow\]"):
        build_trackers(OmegaConf.create(["mlflow"]))
