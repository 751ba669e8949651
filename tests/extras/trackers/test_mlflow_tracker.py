"""What MLflow is told, in a database of its own; with a real server in chaos/test_trackers.py."""

import base64
import json
import math
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tracked import in_mlflow, needs

from studyloom.extras.trackers import MLflow, Point, TrackedStudy, TrackedTrial
from studyloom.extras.trackers.mlflow import LONGEST, key_of
from studyloom.extras.trackers.mlflow_store import TrackingServerError, _double, open_store

NAME = "<img src=x onerror=alert(1)>\x1b[31m\nnext"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=300), unique=True, max_size=8))
def test_every_name_becomes_one_that_mlflow_allows_and_no_two_become_the_same(names):
    keys = [key_of(name) for name in names]
    assert len({*keys}) == len(names)
    assert all(len(key) <= LONGEST and key == key.strip("/") for key in keys)
    for key in keys:
        assert not {*key} - {*"/_.- :"} or any(letter.isalnum() for letter in key)


def test_names_that_mlflow_allows_stay(tmp_path):
    for name in ("optimizer.lr", "train_loss", "val/acc", "a b", "a:b"):
        assert key_of(name) == name
    for name in ("a/../b", "/a", "a//b", "a%", "a" * 300, "a\n", "."):
        assert key_of(name) != name


class Refusing(BaseHTTPRequestHandler):
    """A server that wants to know who asks."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        content = json.dumps({"error_code": "PERMISSION_DENIED", "message": NAME}).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_): ...


@pytest.fixture
def refusing():
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("way", ["uri", "user", "token", "nobody"])
def test_a_server_gets_the_login_and_its_refusal_is_told_without_the_password(
    refusing, monkeypatch, way
):
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    login = "me:canary%40@" if way == "uri" else ""
    if way == "user":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary@")
    if way == "token":
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary@")
    store = open_store(f"http://{login}127.0.0.1:{refusing.server_port}/")
    with pytest.raises(TrackingServerError, match="HTTP 403: PERMISSION_DENIED") as caught:
        store.experiment("a&b", None)
    ((path, sent),) = refusing.asked
    assert path == "/api/2.0/mlflow/experiments/get-by-name?experiment_name=a%26b"
    basic = "Basic " + base64.b64encode(b"me:canary@").decode()
    assert sent == {"uri": basic, "user": basic, "token": "Bearer canary@", "nobody": None}[way]
    assert "canary" not in str(caught.value)


def test_numbers_that_are_not_finite_are_json():
    sent = [_double(value) for value in (0.5, math.nan, math.inf, -math.inf)]
    assert json.loads(json.dumps(sent, allow_nan=False)) == [0.5, "NaN", "Infinity", "-Infinity"]


@pytest.mark.chaos
@pytest.mark.filterwarnings("ignore")
@needs("mlflow")
def test_two_trackers_of_a_database_go_on_with_one_another_s_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    study = TrackedStudy("s", "ab" * 16, {"accuracy": "maximize"}, tmp_path)
    one = TrackedTrial(study, 0, {"optimizer.lr": 0.5, NAME: NAME}, {"reason": NAME}, 1e9, 1e9 + 9)
    first, second = MLflow(uri, "s"), MLflow(uri, "s")
    points = [Point(epoch, name, epoch / 8, 1e9) for epoch in (1, 2) for name in ("accuracy", NAME)]
    assert not first.known(one).begun
    first.begin(one)
    first.report_all(one, points[:3])
    second.known(one)
    second.report_all(one, points)  # as after a call of which nobody knows whether it arrived
    second.end(one, "failed", {"accuracy": 0.25})
    second.end(one, "failed", {"accuracy": 0.25})
    assert first.ended(study) == second.ended(study) == {0}
    assert first.known(one).ended
    seen = in_mlflow(uri, "s")[0]
    assert seen.curves == Counter((key_of(name), epoch, value) for epoch, name, value, _ in points)
    assert seen.state == "failed"
    assert seen.finals == {"accuracy": 0.25}
    assert {*seen.params} == {"optimizer.lr", key_of(NAME)}
    assert not any("\x1b" in value for value in seen.params.values())
