"""Each tracker has of a trial what the database has, however often it is written."""

import os
import signal
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from serving import served
from toys import ask, compose
from tracked import Seen, first_line, in_mlflow, in_tensorboard, in_wandb, needs

from studyloom.errors import ConfigError, FileError
from studyloom.extras.trackers import MLflow, TensorBoard, WandB, mlflow
from studyloom.extras.trackers.projection import (
    CurvePoint,
    TrackedResult,
    TrackedStudy,
    TrackedTrial,
    Tracker,
    build_trackers,
    describe_study,
    write_missing,
)
from studyloom.extras.trackers.wandb import SERVICE
from studyloom.installation import pip_install
from studyloom.storage.opening import create_study

UUID = "ab" * 16
pytestmark = [
    needs("mlflow", "tensorboard", "wandb"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.nightly,
]


@pytest.fixture
def study(tmp_path):
    return TrackedStudy("s", UUID, {"accuracy": "maximize"}, tmp_path)


MAKERS = {
    "tensorboard": lambda folder: TensorBoard(str(folder / "events")),
    "mlflow": lambda folder: MLflow(f"sqlite:///{folder}/mlflow.db", "e", "model"),
    "wandb": lambda folder: WandB(str(folder), "p"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_result_is_written_again_after_a_larger_budget_changed_it(name, study, tmp_path):
    tracker = MAKERS[name](tmp_path)
    points = [CurvePoint(1, "accuracy", 0.5, 1e9)]
    values, params = {"accuracy": 0.5}, {"model": "mlp"}
    trial = TrackedTrial(study, 0, "complete", params, values, {}, points, 1e9, 1e9 + 9)
    for _ in range(2):
        tracker.write_trial(trial)
    for value in (0.5, 0.9):
        (tmp_path / "winner.json").write_text(str(value))
        files = {"winner.json": tmp_path / "winner.json"}
        tracker.write_result(TrackedResult(study, 0, {"a": 1}, {"test.mean": value}, files))
    assert tracker.written(study) == {0}
    if name == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient(tracker.uri)
        (parent,) = client.search_runs(["1"], "tags.`studyloom.kind` = 'study'")
        assert parent.data.metrics == {"test.mean": 0.9}
        artifacts = {each.path for each in client.list_artifacts(parent.info.run_id)}
        assert "winner.json" in artifacts
        assert len(client.search_model_versions("name = 'model'")) == 2


@pytest.mark.parametrize("name", MAKERS)
def test_points_of_a_trial_that_runs_are_there_once_after_kills(name, study, tmp_path):
    """The time of a point differs between a trial that runs and one that has ended."""
    points = [CurvePoint(epoch, "accuracy", epoch / 8, 1e9 + epoch) for epoch in (1, 2, 3)]
    tracker = MAKERS[name](tmp_path)
    for count in (1, 2, 2, 3):
        if count == 2:
            if name == "wandb":
                import wandb

                wandb.teardown()  # its service ends with the process that was killed
            tracker = MAKERS[name](tmp_path)  # of another process
        now = [point._replace(time=1e9 + 50 + count) for point in points[:count]]
        trial = TrackedTrial(study, 0, "running", {"model": "mlp"}, {}, {}, now, 1e9, 0.0)
        tracker.write_running(trial)
        assert tracker.written(study) == set()
    curve = Counter(("accuracy", epoch, epoch / 8) for epoch in (1, 2, 3))
    if name == "mlflow":
        assert in_mlflow(tracker.uri, "e")[0] == Seen({"model": "mlp"}, curve, "running", {})
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "events" / "s-abababab" / "running-0"))
        events.Reload()
        assert [each.step for each in events.Scalars("accuracy")] == [1, 2, 3]

    losses = [CurvePoint(epoch, "loss", 1.0, 1e9 + epoch) for epoch in (1, 2, 3)]
    all_points = sorted([*points, *losses], key=lambda point: point.epoch)
    values = {"accuracy": 0.375}
    params = {"model": "mlp"}
    trial = TrackedTrial(study, 0, "complete", params, values, {}, all_points, 1e9, 1e9 + 9)
    for _ in range(2):
        tracker.write_trial(trial)
    curve.update(("loss", epoch, 1.0) for epoch in (1, 2, 3))
    seen = {
        "mlflow": lambda: in_mlflow(tracker.uri, "e"),
        "tensorboard": lambda: in_tensorboard(tmp_path / "events" / "s-abababab"),
        "wandb": lambda: in_wandb(tmp_path),
    }[name]()
    assert seen == {0: Seen(params, curve, "complete", values)}
    assert tracker.written(study) == {0}
    assert [*tmp_path.rglob("running-0")] == []
    assert [*tmp_path.glob("wandb-running/*")] == []


class ServerRun:
    """A run of W&B online: whoever resumes it gets the step and the summary of the server."""

    def __init__(self, server):
        self.server, self.summary, self.config = server, dict(server.summary), server.config
        self.step = len(server.rows)

    def define_metric(self, *arguments, **settings): ...

    def log(self, row, step, commit):
        assert commit
        assert step is None or step >= self.step, "W&B ignores an earlier step"
        self.step = self.step + 1 if step is None else step + 1
        self.server.rows.append(row)
        self.summary.update(row)
        self.server.summary.update(row)

    def finish(self, exit_code=0):
        self.server.summary.update(self.summary)


class Online(WandB):
    """W&B online, with a server of one run in memory."""

    def __init__(self, folder, server):
        super().__init__(str(folder), "p", mode="online")
        self.server = server

    def _start_run(self, run_settings, folder):
        return ServerRun(self.server)

    def _move_run(self, run_settings, unfinished): ...


def test_a_run_of_a_wandb_server_goes_on_after_the_last_epoch_that_it_has(study, tmp_path):
    server = SimpleNamespace(rows=[], summary={}, config={})
    points = [CurvePoint(epoch, "accuracy", epoch / 8, 1e9) for epoch in (1, 2, 3)]
    for count in (2, 3):
        now = TrackedTrial(study, 0, "running", {}, {}, {}, points[:count], 1e9, 0.0)
        Online(tmp_path, server).write_running(now)
    losses = [CurvePoint(epoch, "loss", 1.0, 1e9) for epoch in (1, 2, 3)]
    all_points = sorted([*points, *losses], key=lambda point: point.epoch)
    ended = TrackedTrial(study, 0, "complete", {}, {}, {}, all_points, 1e9, 1e9 + 9)
    for _ in range(2):
        Online(tmp_path, server).write_trial(ended)
    curve = [{"epoch": epoch, "accuracy": epoch / 8} for epoch in (1, 2, 3)]
    later = [{"epoch": epoch, "loss": 1.0} for epoch in (1, 2, 3)]
    assert server.rows == [*curve, *later]


# Its files may have 20 kB, as on a disk that is full then.
FULL = """
import resource, sys
from pathlib import Path

from studyloom.extras.trackers import TensorBoard
from studyloom.extras.trackers.projection import Feed, CurvePoint, TrackedStudy, TrackedTrial

folder, (_, most) = Path(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)
points = [CurvePoint(step, "accuracy", 0.5, 1e9) for step in range(5000)]
study = TrackedStudy("s", "ab" * 16, {}, folder)
trial = TrackedTrial(study, 0, "complete", {"m": 1}, {}, {}, points, 1e9, 1e9 + 9)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
for tracker in (TensorBoard(str(folder / "events")), TensorBoard(str(folder / "events"))):
    feed = Feed("track.tensorboard")
    feed.put(lambda: tracker.write_trial(trial))
    assert feed.close(60)
print(tracker.written(study), [*folder.rglob("*event*.*")])
"""


def test_tensorboard_reports_a_full_disk_in_a_line_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", FULL, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    why = f"track.tensorboard: [Errno 27] File too large: '{tmp_path}/events'; the study continues"
    assert (done.returncode, done.stdout) == (0, "set() []\n"), done.stderr
    assert done.stderr.splitlines() == [why] * 2


# Writes three runs; the service of W&B is killed around the second: in a process of its own, since
# W&B keeps one service for all runs of a process.
DEATH = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path

import psutil

from studyloom.extras.trackers import WandB
from studyloom.extras.trackers.projection import CurvePoint, TrackedStudy, TrackedTrial

folder, moment, opened = Path(sys.argv[1]), sys.argv[2], WandB._run

def end_service():
    if moment == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    WandB._run = opened
    (service,) = [each for each in psutil.Process().children() if "wandb" in each.name()]
    service.kill()
    service.wait()

@contextmanager
def run(self, *arguments):
    with opened(self, *arguments) as own:
        if moment == "opened":
            end_service()
        yield own
        if moment in ("written", "killed"):
            end_service()

tracker, study = WandB(str(folder), "p"), TrackedStudy("s", "ab" * 16, {}, folder)
points = [CurvePoint(1, "accuracy", 0.5, 1e9)]
for number in range(3):
    if number == 1 and moment != "never":
        end_service() if moment == "before" else setattr(WandB, "_run", run)
    tracker.write_trial(TrackedTrial(study, number, "complete", {}, {}, {}, points, 1e9, 1e9 + 9))
"""


def write_three(folder, moment):
    command = [sys.executable, "-W", "ignore", "-c", DEATH, folder, moment]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("moment", ["before", "opened", "written"])
def test_a_wandb_service_that_dies_costs_no_run(study, tmp_path, moment):
    """Else all later ones of its process would fail: all that a command writes at its end."""
    done = write_three(tmp_path, moment)
    assert done.returncode == 0, done.stderr
    assert {*in_wandb(tmp_path)} == WandB(str(tmp_path), "p").written(study) == {0, 1, 2}


def test_the_run_of_a_killed_worker_is_written_while_wandb_is_in_use(study, tmp_path):
    """A process that has used W&B hands its service on, which has the run as one in use."""
    WandB(str(tmp_path / "theirs"), "p").write_trial(
        TrackedTrial(study, 0, "complete", {}, {}, {}, [], 1e9, 1e9 + 9)
    )
    assert os.environ[SERVICE]
    assert write_three(tmp_path, "killed").returncode == -signal.SIGKILL
    assert {*in_wandb(tmp_path)} == {0}
    done = write_three(tmp_path, "never")
    assert done.returncode == 0, done.stderr
    assert {*in_wandb(tmp_path)} == {0, 1, 2}


def test_a_run_of_mlflow_is_finished_with_its_files_also_on_a_slow_server(
    tmp_path, monkeypatch, caplog
):
    from mlflow import MlflowClient

    definition, url = ask(), f"sqlite:///{tmp_path}/study.db"
    stored = create_study(url, "s", definition.identity("toy"), 1, objectives=definition.objectives)
    (tmp_path / "winner.json").write_text("{}")
    files = {"winner.json": tmp_path / "winner.json"}
    result = TrackedResult(describe_study(stored, tmp_path), 0, {}, {}, files)
    tracker = MLflow(f"sqlite:///{tmp_path}/mlflow.db", "e")

    def log(client, run, path, log=MlflowClient.log_artifact):
        assert line.wait(90)
        log(client, run, path)

    with first_line() as line:
        monkeypatch.setattr(MlflowClient, "log_artifact", log)
        write_missing(stored, {"mlflow": tracker}, tmp_path, result)
    most = "waiting 300 s at most (track.mlflow.patience)"
    told = [message for message in caplog.messages if message.startswith("track")]
    assert told == [f"track.mlflow: {most}, since it may lack the result"]
    client = MlflowClient(tracker.uri)
    (parent,) = client.search_runs(["1"], "tags.`studyloom.kind` = 'study'")
    assert parent.info.status == "FINISHED"
    assert [each.path for each in client.list_artifacts(parent.info.run_id)] == ["winner.json"]
    stored.close()


def test_a_reply_of_mlflow_is_read_only_up_to_its_limit(study, monkeypatch):
    """Also if it is another address that answers, to which the first one leads."""
    taken = []

    def endless(environ, start_response):
        if environ["PATH_INFO"].startswith("/api"):
            start_response("307 Temporary Redirect", [("Location", "/elsewhere")])
            return
        start_response("200 OK", [("Content-Type", "application/json")])
        while len(taken) < 3000:
            taken.append("a MB")
            yield bytes(2**20)

    monkeypatch.setattr(mlflow, "MAX_RESPONSE_BYTES", 5 * 2**20)
    with served(endless) as server:
        tracker = MLflow(f"http://127.0.0.1:{server.server_port}", "e")
        with pytest.raises(Exception, match="/elsewhere sent a response of more than 5 MiB"):
            tracker.written(study)
    assert 5 <= len(taken) < 50


def test_an_untrusted_mlflow_database_writes_only_in_the_run_directory(tmp_path):
    from mlflow import MlflowClient

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    uri = f"sqlite:///{run_dir}/mlflow.db"
    MlflowClient(uri).create_experiment("e", (tmp_path / "elsewhere").as_uri())
    result = TrackedResult(TrackedStudy("s", UUID, {}, run_dir), None, {}, {}, {})
    with pytest.raises(FileError, match="outside of this run directory"):
        MLflow(uri, "e").write_result(result)
    assert not (tmp_path / "elsewhere").exists()


def test_a_command_line_chooses_trackers_by_name():
    assert compose()[0]["track"] is None
    cfg, _ = compose("track=[tensorboard,mlflow,wandb]", "study.name=x")
    track = cfg["track"]
    assert track["mlflow"]["experiment"] == track["wandb"]["project"] == "x"
    assert track["tensorboard"]["dir"] == "runs/x/tensorboard"
    assert track["wandb"]["mode"] == "offline"
    built = build_trackers(track)
    assert [type(each) for each in built.values()] == [TensorBoard, MLflow, WandB]


class Other:
    """It is no tracker."""


class Half(Tracker):
    """It lacks a method."""

    def write_trial(self, trial): ...


class Hasty(Half):
    """It waits for nobody."""

    def __init__(self, patience):
        self.patience = patience

    def write_result(self, result): ...


def test_all_errors_are_reported_together_with_a_fix(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    section = {
        "board": {"_target_": "studyloom.extras.trackers.TensorBoard", "dir": "x"},
        "a": 3,
        "other": {"_target_": f"{__name__}.Other"},
        "half": {"_target_": f"{__name__}.Half"},
        "hasty": {"_target_": f"{__name__}.Hasty", "patience": 0},
    }
    with pytest.raises(ConfigError) as caught:
        build_trackers(section)
    told = "\n".join(caught.value.errors)
    for words in (
        pip_install("tensorboard"),
        "track.a must be a section with a _target_, not 3",
        "track.other: a tracker is a subclass of studyloom.extras.trackers.Tracker; Other is not",
        "write_result",
        "track.hasty.patience must be a positive number of seconds, not 0",
    ):
        assert words in told
    with pytest.raises(ConfigError, match=r"track=\[tensorboard,mlflow\]"):
        build_trackers(["mlflow"])
