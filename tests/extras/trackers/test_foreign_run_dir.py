"""A run directory from elsewhere has trackers write and read nothing outside of it."""

import logging
import os
import shutil
import sqlite3

import pytest
from tracked import needs

from studyloom.errors import FileError, StorageError
from studyloom.extras.trackers import (
    Answer,
    Feed,
    MLflow,
    Point,
    TensorBoard,
    TrackedStudy,
    TrackedTrial,
    WandB,
    feed,
)
from studyloom.extras.trackers.journal import Journal
from studyloom.extras.trackers.mlflow_local import check_store, find_folder, keep
from studyloom.storage.attributes import UUID
from studyloom.study.opening import create_study
from studyloom.study.tracking import tracked_study
from studyloom.winner.telling.trackers import find_answer

MINE = "mine, and nobody else's"


@pytest.fixture
def outside(tmp_path):
    """A folder of the user's own, with a file of each name that a tracker has."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("secret", "ended", "study", "mlflow.db", "events.out.tfevents.1"):
        (folder / name).write_text(MINE)
    before = {path: path.stat() for path in folder.iterdir()}
    yield folder
    assert {*folder.iterdir()} == {*before}
    for path, stat in before.items():
        assert path.read_text() == MINE
        assert path.stat().st_mtime_ns == stat.st_mtime_ns


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def study(run_dir):
    return TrackedStudy("s", "ab" * 16, {"accuracy": "maximize"}, run_dir)


def trial(run_dir):
    return TrackedTrial(study(run_dir), 0, {"lr": 0.5}, {}, 1000.0, 1010.0)


def answer(run_dir, **files):
    return Answer(study(run_dir), 0, {"lr": 0.5}, {"test.mean": 0.9}, files, "d1")


class Quiet:
    """A tracker of the user's own."""

    def begin(self, trial): ...
    def report(self, trial, epoch, values): ...
    def end(self, trial, state, values): ...
    def study_end(self, answer): ...


def tell_all(tracker, run_dir):
    """Has a tracker called with everything, whatever it refuses; returns what it refused."""
    one, refused = trial(run_dir), []
    calls = [
        lambda: tracker.known(one),
        lambda: tracker.begin(one),
        lambda: tracker.report_all(one, [Point(1, "accuracy", 0.5, 1001.0)]),
        lambda: tracker.end(one, "complete", {"accuracy": 0.5}),
        lambda: tracker.ended(study(run_dir)),
        lambda: tracker.answered(study(run_dir)),
        lambda: tracker.study_end(answer(run_dir)),
    ]
    for call in calls:
        try:
            call()
        except FileError as error:
            refused.append(str(error))
    return refused


@pytest.mark.parametrize("link", ["tensorboard", "tensorboard/s", "tensorboard/s/trial-0"])
@needs("tensorboard")
def test_event_files_are_not_written_through_a_link_in_the_run_directory(run_dir, outside, link):
    (run_dir / link).parent.mkdir(parents=True, exist_ok=True)
    (run_dir / link).symlink_to(outside)
    refused = tell_all(TensorBoard(str(run_dir / "tensorboard")), run_dir)
    assert refused
    assert all("symbolic link" in words for words in refused)


@needs("tensorboard")
def test_files_in_the_place_of_a_tracker_s_own_that_are_links_or_pipes_are_not_used(
    run_dir, outside
):
    folder = run_dir / "tensorboard" / "s" / "trial-0"
    folder.mkdir(parents=True)
    (folder / "ended").symlink_to(outside / "ended")
    (folder / "events.out.tfevents.1").symlink_to(outside / "events.out.tfevents.1")
    os.mkfifo(folder / "events.out.tfevents.2")
    (folder.parent / "study").symlink_to(outside / "study")
    refused = tell_all(TensorBoard(str(run_dir / "tensorboard")), run_dir)
    assert all("symbolic link" in words for words in refused)
    (folder.parent / "study").unlink()
    assert tell_all(TensorBoard(str(run_dir / "tensorboard")), run_dir) == []


@needs("tensorboard")
def test_a_folder_that_the_user_typed_may_be_a_link(run_dir, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "tb").symlink_to(tmp_path / "disk")
    assert tell_all(TensorBoard(str(tmp_path / "tb")), run_dir) == []
    assert (tmp_path / "disk" / "s" / "trial-0" / "ended").is_file()


@needs("tensorboard")
def test_the_run_directory_itself_may_be_reached_by_a_link(run_dir, tmp_path, outside):
    (tmp_path / "way").symlink_to(run_dir)
    assert tell_all(TensorBoard(str(tmp_path / "way" / "tensorboard")), run_dir) == []
    (run_dir / "linked").symlink_to(outside)
    assert tell_all(TensorBoard(str(tmp_path / "way" / "linked")), run_dir)


@pytest.mark.parametrize("link", ["wandb", "wandb-told", ".wandb"])
@needs("wandb")
def test_runs_of_wandb_are_not_written_through_a_link_in_the_run_directory(run_dir, outside, link):
    (run_dir / link).symlink_to(outside)
    assert len(tell_all(WandB(str(run_dir), "p", "disabled"), run_dir)) >= 4


@needs("wandb")
def test_a_run_or_mark_of_wandb_that_is_a_link_is_not_read(run_dir, outside):
    name = f"{'ab' * 16}-0"
    (run_dir / "wandb" / f"offline-run-1-{name}").mkdir(parents=True)
    path = run_dir / "wandb" / f"offline-run-1-{name}" / f"run-{name}.wandb"
    path.symlink_to(outside / "secret")
    (run_dir / "wandb" / f"offline-run-2-{name}").symlink_to(outside)
    (run_dir / "wandb-told").mkdir()
    (run_dir / "wandb-told" / f"{'ab' * 16}-study").symlink_to(outside / "secret")
    tracker = WandB(str(run_dir), "p")
    assert tracker._paths(name) == []
    with pytest.raises(FileError, match="symbolic link"):
        tracker.answered(study(run_dir))


def test_a_journal_is_not_written_through_a_link(run_dir, outside):
    (run_dir / "track").symlink_to(outside)
    assert len(tell_all(Journal(Quiet(), "own"), run_dir)) >= 4


def test_a_journal_that_is_a_pipe_is_not_waited_for(run_dir):
    (run_dir / "track").mkdir()
    os.mkfifo(run_dir / "track" / "own.jsonl")
    with pytest.raises(OSError, match="own"):
        Journal(Quiet(), "own").begin(trial(run_dir))


@pytest.mark.parametrize("alone", [False, True])
def test_locks_are_not_made_through_a_link_and_the_log_says_so(
    run_dir, outside, caplog, monkeypatch, alone
):
    monkeypatch.setattr(feed, "LINGER", 0.01)
    (run_dir / "track").symlink_to(outside)
    caplog.set_level(logging.WARNING)
    own = Feed("own", Journal(Quiet(), "own"), run_dir, alone=alone)
    own.answer(answer(run_dir))
    assert own.close() == 1
    assert "symbolic link" in caplog.text
    assert "the study goes on" in caplog.text


@pytest.mark.parametrize("name", ["report.html", "best.yaml"])
def test_no_link_is_among_the_files_that_trackers_are_told(
    sqlite_url, run_dir, outside, caplog, name
):
    stored = create_study(sqlite_url, "s", {"q": 1}, 1)
    for file in ("report.html", "best.yaml"):
        (run_dir / file).write_text("a: 1\n")
    (run_dir / name).unlink()
    (run_dir / name).symlink_to(outside / "secret")
    found = find_answer(stored, tracked_study(stored, run_dir))
    assert {*found.files} == {"report.html", "best.yaml"} - {name}
    assert f"{name} is left out" in caplog.text


@pytest.mark.parametrize(
    "uuid", ["/../../x", "ab' or '1' = '1", "", "*", "AB" * 16, "ab" * 16 + "\n", "ab" * 17, 7]
)
def test_a_uuid_that_studyloom_never_gives_is_refused(sqlite_url, run_dir, uuid):
    stored = create_study(sqlite_url, "s", {"q": 1}, 1)
    assert len(tracked_study(stored, run_dir).uuid) == 32
    stored.optuna.set_user_attr(UUID, uuid)
    with pytest.raises(StorageError, match="must be 32 hexadecimal digits") as caught:
        tracked_study(stored, run_dir)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["", "-journal", "-wal", "-shm"])
@needs("mlflow")
def test_a_database_of_mlflow_that_is_a_link_is_not_opened(run_dir, outside, tmp_path, suffix):
    uri = f"sqlite:///{run_dir}/mlflow.db"
    check_store(uri, run_dir)
    (run_dir / f"mlflow.db{suffix}").symlink_to(outside / "mlflow.db")
    with pytest.raises(FileError, match="symbolic link"):
        check_store(uri, run_dir)
    with pytest.raises(FileError, match="symbolic link"):
        MLflow(uri, "s").known(trial(run_dir))
    with pytest.raises(FileError, match="symbolic link"):
        check_store(f"sqlite:///file:{run_dir}/mlflow.db?uri=true", run_dir)
    (tmp_path / "all.db").symlink_to(outside / "mlflow.db")  # typed by the user
    check_store(f"sqlite:///{tmp_path}/all.db", run_dir)


def test_a_store_of_files_in_the_run_directory_has_no_link(run_dir, outside):
    (run_dir / "mlruns" / "0").mkdir(parents=True)
    check_store(f"{run_dir}/mlruns", run_dir)
    (run_dir / "mlruns" / "0" / "meta.yaml").symlink_to(outside / "secret")
    for uri in (f"{run_dir}/mlruns", f"file://{run_dir}/mlruns"):
        with pytest.raises(FileError, match="symbolic link"):
            check_store(uri, run_dir)


@pytest.mark.parametrize(
    "location",
    [
        "file:///srv/victim/mlflow-artifacts/r/artifacts",
        "file://host{run_dir}/mlflow-artifacts/r",
        "file://{run_dir}/mlflow-artifacts/../../x",
        "file://{run_dir}/mlflow-artifacts/%2e%2e/%2e%2e/x",
        "file://{run_dir}/.hydra",
        "file://{run_dir}",
        "{run_dir}/mlflow-artifacts-of-another",
        "s3://bucket/x",
        "https://host{run_dir}/mlflow-artifacts/r",
        "mlflow-artifacts:/1",
        "",
    ],
)
def test_a_database_in_the_run_directory_sends_no_artifact_elsewhere(run_dir, tmp_path, location):
    location = location.format(run_dir=run_dir)
    with pytest.raises(FileError, match="Remove it, or move it away"):
        find_folder(f"sqlite:///{run_dir}/mlflow.db", run_dir, location)


@pytest.mark.parametrize(
    "uri", ["sqlite:////srv/me/all.db", "postgresql://host/x", "http://host", "sqlite:///:memory:"]
)
def test_a_store_that_the_user_named_decides_itself(run_dir, uri):
    assert find_folder(uri, run_dir, "file:///srv/me/artifacts") is None


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_artifacts_go_to_the_run_s_folder_and_through_no_link(run_dir, tmp_path, outside, scheme):
    file = tmp_path / "winner.yaml"
    file.write_text("a: 1\n")
    location = f"{scheme}{run_dir}/mlflow-artifacts/r/artifacts"
    folder = find_folder(f"sqlite:///{run_dir}/mlflow.db", run_dir, location)
    assert folder is not None
    keep(run_dir, folder, file)
    kept = run_dir / "mlflow-artifacts" / "r" / "artifacts" / "winner.yaml"
    assert kept.read_text() == "a: 1\n"
    kept.unlink()
    kept.symlink_to(outside / "secret")
    keep(run_dir, folder, file)
    assert not kept.is_symlink()
    (run_dir / "mlflow-artifacts").rename(run_dir / "aside")
    (run_dir / "mlflow-artifacts").symlink_to(outside)
    with pytest.raises(FileError, match="symbolic link"):
        keep(run_dir, folder, file)


@pytest.mark.chaos
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("table", ["experiments", "runs", "trigger"])
@needs("mlflow")
def test_a_foreign_database_of_mlflow_gets_no_artifact_written_elsewhere(
    run_dir, outside, monkeypatch, table
):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(run_dir)
    uri, file = f"sqlite:///{run_dir}/mlflow.db", run_dir / "winner.json"
    file.write_text("{}")
    first = MLflow(uri, "s", register="m")
    if table == "experiments":
        first._connected(study(run_dir))
    else:
        first.begin(trial(run_dir))
    elsewhere = outside.as_uri()
    with sqlite3.connect(run_dir / "mlflow.db") as database:
        if table == "experiments":
            database.execute("UPDATE experiments SET artifact_location = ?", [elsewhere])
        elif table == "runs":
            database.execute("UPDATE runs SET artifact_uri = ?", [elsewhere])
        else:  # it changes its mind once it is told something
            database.execute(
                "CREATE TRIGGER evil AFTER INSERT ON metrics BEGIN "
                f"UPDATE runs SET artifact_uri = '{elsewhere}'; END"
            )
    database.close()
    told = answer(run_dir, **{"winner.json": file})
    second = MLflow(uri, "s", register="m")
    if table == "trigger":
        second.study_end(told)
        assert len([*run_dir.glob("mlflow-artifacts/*/artifacts/winner.json")]) == 1
        return
    second.begin(trial(run_dir))
    second.end(trial(run_dir), "complete", {"accuracy": 0.5})
    assert second.ended(study(run_dir)) == {0}
    with pytest.raises(FileError, match="Remove it, or move it away"):
        second.study_end(told)
    assert second.answered(study(run_dir)) is None


@pytest.mark.chaos
@pytest.mark.filterwarnings("ignore")
@needs("mlflow")
def test_artifacts_of_a_moved_run_directory_never_go_to_where_it_was(
    run_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(run_dir)
    (run_dir / "winner.json").write_text("{}")

    def tell(folder):
        tracker = MLflow(f"sqlite:///{folder}/mlflow.db", "s", register="m")
        tracker.study_end(answer(folder, **{"winner.json": folder / "winner.json"}))
        assert tracker.answered(study(folder)) == "d1"

    tell(run_dir)
    (kept,) = run_dir.glob("mlflow-artifacts/*/artifacts/winner.json")
    assert (kept.parent / "model-44136fa3" / "data" / "winner.json").read_text() == "{}"
    assert (kept.parent / "model-44136fa3" / "MLmodel").is_file()
    moved, anew = tmp_path / "moved", tmp_path / "anew"
    shutil.copytree(run_dir, moved)
    shutil.copytree(run_dir, anew, ignore=lambda _, names: {"mlflow.db"} & {*names})
    shutil.rmtree(run_dir / "mlflow-artifacts")
    with pytest.raises(FileError, match="Remove it, or move it away"):
        tell(moved)
    tell(anew)
    assert len([*anew.glob("mlflow-artifacts/*/artifacts/winner.json")]) == 2
    assert not (run_dir / "mlflow-artifacts").exists()
