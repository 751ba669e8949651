"""MLflow: a parent run for a study, a nested run for each trial, the result as artifacts."""

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import yaml  # type: ignore[import-untyped]

from studyloom.errors import FileError
from studyloom.extras.trackers.projection import (
    PATIENCE,
    CurvePoint,
    TrackedResult,
    TrackedStudy,
    TrackedTrial,
    Tracker,
    require,
)
from studyloom.text import one_line, shorten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# The tags of a run: the study's uuid, the trial's number, whether the run is of a study or a trial,
# the trial's state, the digest of a result, and the winner's number.
STUDY = "studyloom.study"
TRIAL = "studyloom.trial"
KIND = "studyloom.kind"
STATE = "studyloom.state"
RESULT = "studyloom.result"
WINNER = "studyloom.winner"
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
MAX_RESPONSE_BYTES = 100 * 2**20  # a listing of a thousand runs has some MB
CHUNK_BYTES = 2**16  # of a response, which are read at a time
MAX_NAME_LENGTH = 250  # characters
DIGEST_LENGTH = 8  # hexadecimal digits
MAX_TEXT_LENGTH = 5000  # characters of a parameter or tag; some databases of MLflow take no more
MAX_METRICS = 1000  # in a request; the server accepts no more
MAX_PARAMS = 100  # in a request; the server accepts no more
RUNS_PER_PAGE = 1000  # in one response to a search
LOADER = "studyloom.extras.trackers.mlflow_model"
# The client tries 7 times for 2 minutes each by default, so that the thread would hang long after a
# server is back; the next trial tries again anyway. Variables that the user has set stay.
CLIENT_VARIABLES = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MLflow(Tracker):
    """Logs to a server of MLflow, or to a database of MLflow's below the run directory.

    A trial that was pruned has the status KILLED, since MLflow has no status for it; the tag
    `studyloom.state` says pruned.

    Args:
        uri: the URI of the tracking server or database.
        experiment: the name of the experiment, which is made if it is missing.
        register: the name under which the winner is registered as a model; None not to.
        patience: seconds that a command waits for the server at its end.
    """

    def __init__(
        self, uri: str, experiment: str, register: str | None = None, patience: float = PATIENCE
    ) -> None:
        require("mlflow")
        self.patience = patience
        self.uri = str(uri)
        self.experiment = str(experiment)
        self.register = register
        self._connection: _Connection | None = None
        self._running: _RunningTrial | None = None  # the trial that this process runs

    def write_trial(self, trial: TrackedTrial) -> None:
        """Writes a trial as a run that is nested in the study's; a second call changes nothing."""
        from mlflow.entities import RunTag

        client = self._connect(trial.study).client
        run_id = self._find_or_create_trial_run(trial)
        self._running = None
        self._log_numbers(client, run_id, trial)
        # The state is written after all else: a run without it is not complete.
        final_tags = [RunTag(STATE, _text(trial.state))]
        for fact_name, fact in trial.facts.items():
            final_tags.append(RunTag(f"studyloom.{fact_name}", _text(fact)))
        client.log_batch(run_id, tags=final_tags)
        client.set_terminated(run_id, STATUS[trial.state], _milliseconds(trial.ended))

    def write_running(self, trial: TrackedTrial) -> None:
        """Adds the new points of a trial that runs to its run, which has the status RUNNING."""
        client = self._connect(trial.study).client
        running = self._running
        if running is None or running.number != trial.number:
            run_id = self._find_or_create_trial_run(trial)
            running = _RunningTrial(trial.number, run_id, _read_metrics(client, run_id))
            self._log_params(client, run_id, trial)
        self._running = None  # after an error, what the server has is read again
        _log_metrics(client, running.run_id, _make_metrics(trial.points), running.sent)
        self._running = running

    def _find_or_create_trial_run(self, trial: TrackedTrial) -> str:
        """Returns the id of the run of a trial, which is nested in the study's."""
        parent_id = self._find_or_create_study_run(trial.study)
        tags = {"mlflow.parentRunId": parent_id, KIND: "trial", TRIAL: str(trial.number)}
        name = f"trial-{trial.number}"
        return self._find_or_create_run(trial.study, name, tags, trial.started)

    def _log_numbers(self, client: "MlflowClient", run_id: str, trial: TrackedTrial) -> None:
        """Logs the curves, values and hyperparameters of a trial that the server lacks.

        The server has those that were logged while the trial ran, or by a process that was killed.
        """
        from mlflow.entities import Metric

        metrics = _make_metrics(trial.points)
        ended = _milliseconds(trial.ended)
        for name, value in trial.values.items():
            metrics.append(Metric(valid_key(f"final/{name}"), value, ended, step=0))
        _log_metrics(client, run_id, metrics, _read_metrics(client, run_id))
        self._log_params(client, run_id, trial)

    def _log_params(self, client: "MlflowClient", run_id: str, trial: TrackedTrial) -> None:
        """Logs the hyperparameters of a trial, in requests of the allowed size."""
        from mlflow.entities import Param

        params = [Param(valid_key(name), _text(value)) for name, value in trial.params.items()]
        for start in range(0, len(params), MAX_PARAMS):
            client.log_batch(run_id, params=params[start : start + MAX_PARAMS])

    def write_result(self, result: TrackedResult) -> None:
        """Writes the values and files of a result into the study's run; may register the winner."""
        from mlflow.entities import Metric, RunTag

        client = self._connect(result.study).client
        run_id = self._find_or_create_study_run(result.study)
        self._check_artifacts(result.study, client.get_run(run_id).info.artifact_uri)

        now = _milliseconds(time.time())
        metrics = []
        for name, value in result.values.items():
            metrics.append(Metric(valid_key(name), value, now, step=0))
        winner = "none"
        if result.trial is not None:
            winner = str(result.trial)
        tags = [RunTag(WINNER, winner)]
        for name, direction in result.study.objectives.items():
            tags.append(RunTag(f"studyloom.direction.{valid_key(name)}", direction))
        client.log_batch(run_id, metrics=metrics, tags=tags)

        for path in result.files.values():
            client.log_artifact(run_id, str(path))
        if self.register and "winner.json" in result.files:
            self._register(self.register, run_id, result)
        client.set_terminated(run_id, "FINISHED", now)

    def written(self, study: TrackedStudy) -> set[int]:
        """Returns the numbers of the trials that the server has in full."""
        numbers = set()
        for run in self._search_runs(study, {KIND: "trial"}):
            # The state and the end of a run are written after all else.
            is_complete = STATE in run.data.tags and run.info.end_time
            if is_complete:
                numbers.add(int(run.data.tags[TRIAL]))
        return numbers

    def _connect(self, study: TrackedStudy) -> "_Connection":
        """Connects to the server or database, once; makes the experiment if it is missing."""
        if self._connection is not None:
            return self._connection
        for name, value in CLIENT_VARIABLES.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # after its variables are set
        from mlflow.exceptions import MlflowException

        limit_responses()
        client = MlflowClient(tracking_uri=self.uri)
        # Without a server the client writes artifacts itself, by default where it was started.
        artifact_location = None
        if re.match(r"sqlite:|postgresql|mysql", self.uri):
            artifact_location = (study.run_dir / "mlflow-artifacts").as_uri()
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            with contextlib.suppress(MlflowException):  # another worker has made it
                client.create_experiment(self.experiment, artifact_location)
            experiment = client.get_experiment_by_name(self.experiment)
        self._connection = _Connection(client, experiment.experiment_id)
        return self._connection

    def _search_runs(self, study: TrackedStudy, tags: Mapping[str, str]) -> list[Any]:
        """Returns the runs of a study that have these tags, the oldest first."""
        connection = self._connect(study)
        conditions = [f"tags.`{STUDY}` = '{study.uuid}'"]
        for name, text in tags.items():
            conditions.append(f"tags.`{name}` = '{text}'")
        query = " and ".join(conditions)
        runs: list[Any] = []
        page_token = None
        while True:
            page = connection.client.search_runs(
                [connection.experiment_id], query, max_results=RUNS_PER_PAGE, page_token=page_token
            )
            runs += page
            page_token = page.token
            if not page_token:  # there are no further runs
                break
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def _find_or_create_study_run(self, study: TrackedStudy) -> str:
        """Returns the id of the run of a study, which is the parent of its trials' runs."""
        return self._find_or_create_run(study, study.name, {KIND: "study"}, time.time())

    def _find_or_create_run(
        self, study: TrackedStudy, name: str, tags: Mapping[str, str], start: float
    ) -> str:
        """Returns the id of the run with these tags, which is created if it is missing.

        Two workers may create it at once. Both then see two runs, and agree that the oldest stays.

        Args:
            start: when a new run began, in seconds since the epoch.
        """
        connection = self._connect(study)
        searched_tags = {}  # without those of MLflow, such as mlflow.parentRunId
        for tag, text in tags.items():
            if tag.startswith("studyloom."):
                searched_tags[tag] = text
        runs = self._search_runs(study, searched_tags)
        if runs:
            return str(runs[0].info.run_id)
        new_run = connection.client.create_run(
            connection.experiment_id,
            start_time=_milliseconds(start),
            tags={STUDY: study.uuid, **tags},
            run_name=name,
        )
        oldest_run = self._search_runs(study, searched_tags)[0]
        if oldest_run.info.run_id != new_run.info.run_id:
            connection.client.delete_run(new_run.info.run_id)
        return str(oldest_run.info.run_id)

    def _check_artifacts(self, study: TrackedStudy, location: str) -> None:
        """Checks that a database in the run directory does not write files outside of it.

        An untrusted database could have the artifacts of a run overwrite any file of the user.

        Args:
            location: where the artifacts of a run are written, as the database says.

        Raises:
            FileError: that is outside of the run directory.
        """
        # Such as sqlite:////data/runs/mine/mlflow.db, whose group is the path of the file.
        match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", self.uri)
        if match is None:
            return
        database = match[1]
        run_dir = study.run_dir.resolve()
        if not Path(database).resolve().is_relative_to(run_dir):
            return
        folder = Path(url2pathname(urlsplit(location).path)).resolve()
        if not folder.is_relative_to(run_dir):
            raise FileError(
                f"{database}: has artifacts at {shorten(one_line(location), 100)!r}, outside "
                "of this run directory. Move the database away: the same command makes a new "
                "one, with all that the study has"
            )

    def _register(self, name: str, run_id: str, result: TrackedResult) -> None:
        """Registers the winner for `mlflow.pyfunc.load_model`, once for each result.

        Args:
            name: the name of the registered model, which gets a new version.
            run_id: the id of the study's run, which gets the files of the model.
        """
        from mlflow.exceptions import MlflowException

        client = self._connect(result.study).client
        digest = hashlib.sha256(result.files["winner.json"].read_bytes()).hexdigest()
        with contextlib.suppress(MlflowException):  # the name exists; other errors come again below
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}'")
        if any(version.tags.get(RESULT) == digest for version in versions):
            return

        # Write the folder of the model: its data, and a file MLmodel that names the module which
        # loads them.
        artifact_path = f"model-{digest[:DIGEST_LENGTH]}"
        with TemporaryDirectory() as model_folder:
            data = Path(model_folder) / "data"
            data.mkdir()
            for file in ("winner.json", "winner.yaml", "winner.pt", "model_card.md"):
                if file in result.files:
                    shutil.copyfile(result.files[file], data / file)
            flavor = {"loader_module": LOADER, "data": "data"}
            model = {"run_id": run_id, "flavors": {"python_function": flavor}}
            (Path(model_folder) / "MLmodel").write_text(yaml.safe_dump(model))
            client.log_artifacts(run_id, model_folder, artifact_path)

        source = f"{client.get_run(run_id).info.artifact_uri}/{artifact_path}"
        tags = {STUDY: result.study.uuid, WINNER: str(result.trial), RESULT: digest}
        client.create_model_version(name, source, run_id, tags)


@dataclass(frozen=True)
class _Connection:
    """A client of MLflow, and the id of the experiment."""

    client: "MlflowClient"
    experiment_id: str


@dataclass(frozen=True)
class _RunningTrial:
    """A trial that this process runs, with what the server has of it.

    Attributes:
        run_id: the id of its run.
        sent: the metrics of the run, as `_identify` names them.
    """

    number: int
    run_id: str
    sent: set[str]


def _identify(metric: "Metric") -> str:
    """Names a metric by its key, step and value: the server takes it twice if the times differ."""
    return f"{metric.key} {metric.step} {metric.value}"


def _make_metrics(points: Sequence[CurvePoint]) -> "list[Metric]":
    """Makes a metric of each point of the curves of a trial."""
    from mlflow.entities import Metric

    metrics = []
    for point in points:
        time_of_point = _milliseconds(point.time)
        metrics.append(Metric(valid_key(point.name), point.value, time_of_point, point.epoch))
    return metrics


def _read_metrics(client: "MlflowClient", run_id: str) -> set[str]:
    """Returns the metrics of a run, as `_identify` names them."""
    names = set()
    for key in client.get_run(run_id).data.metrics:
        for metric in client.get_metric_history(run_id, key):
            names.add(_identify(metric))
    return names


def _log_metrics(
    client: "MlflowClient", run_id: str, metrics: "Sequence[Metric]", sent: set[str]
) -> None:
    """Logs the metrics that the server lacks, in requests of the allowed size.

    Args:
        sent: those that it has, as `_identify` names them; the new ones are added.
    """
    unsent = [metric for metric in metrics if _identify(metric) not in sent]
    for start in range(0, len(unsent), MAX_METRICS):
        client.log_batch(run_id, metrics=unsent[start : start + MAX_METRICS])
    sent.update(_identify(metric) for metric in unsent)


@cache
def limit_responses() -> None:
    """Makes MLflow's client in this process refuse responses of more than MAX_RESPONSE_BYTES.

    The client reads a response as a whole, and takes several times its size to parse it, so that a
    hostile server could fill the memory. MLflow has no setting for this. So its function that
    makes sessions of `requests` is replaced by another, which adds a hook to each session.
    """
    from mlflow.utils import request_utils

    make_session = request_utils._cached_get_request_session

    def make_limited_session(*arguments: object, **keywords: object) -> Any:
        session = make_session(*arguments, **keywords)
        session.hooks["response"] = [_read_limited_body]
        return session

    request_utils._cached_get_request_session = make_limited_session


def _read_limited_body(response: Any, stream: bool = False, **_: object) -> None:
    """Reads the body of a response up to MAX_RESPONSE_BYTES; raises OSError if it is longer.

    `requests` calls this hook with every response, also one that redirects, before it would read
    the body itself; afterwards it finds the body read.

    Args:
        stream: True for a download by the user's code, which is not read as a whole.
    """
    if stream:
        return
    body = bytearray()
    for chunk in response.iter_content(CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            response.close()
            url = response.url.partition("?")[0]  # without the query, which may hold secrets
            raise OSError(f"{url} sent a response of more than {MAX_RESPONSE_BYTES // 2**20} MiB")
    response._content = bytes(body)


def valid_key(name: str) -> str:
    """Returns the name of a metric or parameter as MLflow allows it.

    A changed name ends with a digest of the original, so that all names stay different.
    """
    has_valid_characters = re.fullmatch(r"[\w.\- :/]+", name) is not None
    has_valid_parts = {"", ".", ".."}.isdisjoint(name.split("/"))
    if has_valid_characters and has_valid_parts and len(name) <= MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:DIGEST_LENGTH]
    cleaned = re.sub(r"[^\w.-]+", "_", name).lstrip(".")
    ending = f"-{digest}"
    return cleaned[: MAX_NAME_LENGTH - len(ending)] + ending


def _text(value: object) -> str:
    return shorten(one_line(str(value)), MAX_TEXT_LENGTH)


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
