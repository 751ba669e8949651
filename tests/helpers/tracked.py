"""What trackers have of a study, read by their own readers; what its database has; a server."""

import contextlib
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from studyloom.extras.trackers import projection
from studyloom.extras.trackers.projection import TrackedTrial, curve_points
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord


class Seen(NamedTuple):
    """A trial as a tracker shows it: each number of its curves counts how often it is there."""

    params: dict[str, str]
    curves: Counter[tuple[str, int, float]]
    state: str
    finals: dict[str, float]


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips a test without the extra; MLflow warns of itself when it is imported."""
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs the extra {', '.join(missing)}")


@contextlib.contextmanager
def first_line() -> Iterator[threading.Event]:
    """Yields an event, which comes with the first line that tracking logs."""
    event, handler = threading.Event(), logging.Handler()
    handler.emit = lambda _: event.set()  # type: ignore[method-assign]
    projection.log.addHandler(handler)
    try:
        yield event
    finally:
        projection.log.removeHandler(handler)


def in_database(stored: StoredStudy) -> dict[int, Seen]:
    """The trials of the database; numbers in 32 bits."""
    seen = {}
    for trial in stored.trials():
        points = curve_points(trial, stored.metric)
        curves = Counter((p.name, p.epoch, short(p.value)) for p in points)
        values = dict(
            zip(
                [objective.name for objective in stored.objectives],
                trial.values or (),
                strict=False,
            )
        )
        state = TrialRecord(trial).outcome if trial.state.is_finished() else "running"
        params = {name: str(value) for name, value in trial.params.items()}
        finals = {name: short(value) for name, value in values.items()}
        seen[trial.number] = Seen(params, curves, state, finals)
    return seen


def seen_of(trial: TrackedTrial) -> Seen:
    """A trial that a custom tracker received."""
    curves = Counter((p.name, p.epoch, short(p.value)) for p in trial.points)
    params = {name: str(value) for name, value in trial.params.items()}
    objectives = trial.study.objectives
    finals = {name: short(value) for name, value in trial.values.items() if name in objectives}
    return Seen(params, curves, trial.state, finals)


def short(value: float) -> float:
    """A number in 32 bits, as event files have it."""
    return float(np.float32(value))


def in_tensorboard(folder: Path) -> dict[int, Seen]:
    """Reads DIR/STUDY by TensorBoard's EventAccumulator."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    seen = {}
    for trial in folder.glob("trial-*"):
        events = EventAccumulator(str(trial), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        curves, finals = Counter[tuple[str, int, float]](), {}
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                if tag.startswith("final/"):
                    finals[tag[6:]] = short(event.value)
                else:
                    curves[tag, event.step, short(event.value)] += 1
        about = events.PluginTagToContent("hparams")
        start = metadata.parse_session_start_info_plugin_data(about["_hparams_/session_start_info"])
        params = {
            name: str(getattr(value, value.WhichOneof("kind")))
            for name, value in start.hparams.items()
        }
        (told,) = events.Tensors("state/text_summary")
        state = told.tensor_proto.string_val[0].decode().split("\n")[0].strip()
        seen[int(trial.name.removeprefix("trial-"))] = Seen(params, curves, state, finals)
    return seen


def in_mlflow(uri: str, experiment: str) -> dict[int, Seen]:
    """Reads the nested runs of the one parent run of an experiment by MLflow's client."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    seen: dict[int, Seen] = {}
    status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
    for run in runs:
        if run.info.run_id == parent.info.run_id:
            continue
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        curves, finals = Counter[tuple[str, int, float]](), {}
        for name in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, name):
                if name.startswith("final/"):
                    finals[name[6:]] = short(metric.value)
                else:
                    curves[name, metric.step, short(metric.value)] += 1
        state = run.data.tags.get("studyloom.state", "running")
        assert run.info.status == status.get(state, "RUNNING")
        number = int(run.data.tags["studyloom.trial"])
        assert number not in seen, "a trial has two runs"
        seen[number] = Seen(run.data.params, curves, state, finals)
    return seen


def in_wandb(folder: Path) -> dict[int, Seen]:
    """Reads the files of all offline runs of a folder."""
    seen: dict[int, Seen] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        name = path.stem.rpartition("-")[2]
        if name == "study":
            continue
        curves: Counter[tuple[str, int, float]] = Counter()
        params, end = {}, {}
        for record in read_records(path):  # what a record does not hold is empty
            params |= {key: str(value) for key, value in wandb_items(record.config.update)}
            row = dict(wandb_items(record.history.item))
            curves.update((k, row["epoch"], short(row[k])) for k in row if k != "epoch")
            end |= wandb_items(record.summary.update)
        params = {key: value for key, value in params.items() if not key.startswith("studyloom.")}
        finals = {key[6:]: short(end[key]) for key in end if key.startswith("final/")}
        if int(name) in seen:  # in two files, which may only repeat each other
            curves += seen[int(name)].curves
        seen[int(name)] = Seen(params, curves, end.get("state", "running"), finals)
    return seen


def wandb_items(items: Any) -> list[tuple[str, Any]]:
    """The keys and values of a record, but for W&B's own."""
    named = [(item.key or "/".join(item.nested_key), item.value_json) for item in items]
    return [(key, json.loads(value)) for key, value in named if not key.startswith("_")]


def read_records(path: Path) -> Iterator[Any]:
    """Yields the records of a run's file, a log of LevelDB's format with Protocol Buffers in it."""
    from wandb.proto.wandb_internal_pb2 import Record

    block = 32 * 1024  # bytes; records are cut at its end
    content, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if block - position % block < 7:  # no header fits in
            position += block - position % block
            continue
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        part = content[position + 7 : position + 7 + size]
        position += 7 + size
        record = part if kind in (1, 2) else record + part  # whole, first, middle, last
        if kind in (1, 4):
            yield Record.FromString(record)


class MLflowServer:
    """A real server with a SQLite store, on loopback, which can be away and come back.

    Args:
        folder: of its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "MLflowServer":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        # Without its job runners, which are three more processes.
        ours = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        env = os.environ | ours
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=env, start_new_session=True
            )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer,
            ):
                if answer.status == 200:
                    return
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def stop(self) -> None:
        """Ends it as a host that goes: nothing answers any more."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
