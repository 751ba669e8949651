"""Real trackers of real commands, which are killed, and of which the trackers are away."""

import json
import random
import re

import numpy as np
import pytest
from commands import QUICK
from live_processes import until
from runs import STUDY, Run, kill, nap
from tracked import MLflowServer, in_database, in_mlflow, in_tensorboard, in_wandb, needs

pytestmark = [
    pytest.mark.nightly,
    needs("mlflow", "tensorboard", "wandb"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of MLflow that is there for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        with MLflowServer(tmp_path_factory.mktemp("mlflow")) as running:
            yield running


def tracked(folder, uri, overrides=STUDY, trials=10, track="[tensorboard,mlflow,wandb]"):
    name = f"{folder.parent.name}-{folder.name}"
    mlflow = (f"track.mlflow.uri={uri}", f"track.mlflow.experiment={name}")
    asked = (*overrides, f"study.trials={trials}", f"track={track}", *mlflow)
    run = Run(folder, f"sqlite:///{folder}/study.db", asked, trials=trials)
    run.environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    return run, name


def agree(run, uri, name):
    wanted = in_database(run.stored())
    assert in_mlflow(uri, name) == wanted
    if "tensorboard" in "".join(run.overrides):
        (told,) = (run.folder / "tensorboard").glob("mnist-*")
        assert in_tensorboard(told) == wanted
        left = [*run.folder.glob("wandb/*/*"), *run.folder.glob(".wandb-*/*/*/*")]
        assert in_wandb(run.folder) == wanted, (left, run.logs())


def test_after_kills_trackers_show_the_database_and_nothing_twice(tmp_path, server):
    lives, folder = random.Random(3), tmp_path / "run"
    run, name = tracked(folder, server.uri, (*STUDY, "study.max_attempts=99"), trials=8)
    for _ in range(2):
        process = run.start()
        told = folder / "tensorboard"
        until(lambda p=process, t=told: any(t.rglob("trial-2")) or p.poll() is not None, 180)
        nap(3 * lives.random())
        kill([process.pid, *run.processes()])
        process.communicate()
    process = run.start()
    nap(4 + 2 * lives.random())
    kill(run.workers()[:1])
    printed = run.end(process, 0)
    assert "the same command writes it" not in printed, printed
    agree(run, server.uri, name)


def test_a_tracking_server_that_was_away_has_all_at_the_end(tmp_path, server):
    run, name = tracked(tmp_path / "away", server.uri, track="[mlflow]")
    server.stop()
    process = run.start()
    until(lambda: "track.mlflow: " in run.logs() or process.poll() is not None, 180)
    server.start()
    run.end(process, 0)
    assert re.search("track.mlflow: .*; the study continues", run.logs())
    run.end(run.start(), 0)  # writes what the first could not, if the server came too late
    agree(run, server.uri, name)


def test_the_result_becomes_artifacts_and_a_model_that_mlflow_loads(tmp_path, server):
    import mlflow

    ways = (way for way in QUICK if not way.startswith("winner.enabled"))
    result = ("winner.top=1", "winner.seeds=2", "launcher.workers=1")
    run, name = tracked(tmp_path / "result", server.uri, (*ways, *result), trials=3)
    run.overrides += (f"track.mlflow.register={name}",)
    for _ in range(2):
        run.end(run.start(), 0)
    client = mlflow.MlflowClient(server.uri)
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    (parent,) = [each for each in found if each.data.tags["studyloom.kind"] == "study"]
    written = json.loads((run.folder / "winner.json").read_text())
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["studyloom.winner"] == str(written["winner"]["trial"])
    assert parent.data.metrics["test.mean"] == written["test"]["winner"]["mean"]
    files = {each.path for each in client.list_artifacts(parent.info.run_id)}
    assert files >= {"winner.yaml", "winner.json", "winner.pt", "report.html", "model_card.md"}
    (version,) = client.search_model_versions(f"name = '{name}'")
    mlflow.set_tracking_uri(server.uri)
    model = mlflow.pyfunc.load_model(f"models:/{name}/{version.version}")
    inputs = np.zeros((2, 1, 28, 28), np.float32)
    import studyloom

    classes = studyloom.load_winner(run.folder).predict(inputs).classes
    assert [*model.predict(inputs)] == classes.tolist()
    agree(run, server.uri, name)
