"""MLflow: a parent run for a study, a nested run for each trial, the result as artifacts."""

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping
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
    TrackedResult,
    TrackedStudy,
    TrackedTrial,
    Tracker,
    require,
)
from studyloom.text import one_line, shorten

if TYPE_CHECKING:
    from mlflow import MlflowClient

# The tags of a run: the study's uuid, the trial's number, whether the run is of a study or a trial,
# the trial's state, the digest of a result, and the winner's number.
STUDY = "studyloom.study"
TRIAL = "studyloom.trial"
KIND = "studyloom.kind"
STATE = "studyloom.state"
RESULT = "studyloom.result"
WINNER = "studyloom.winner"
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
MOST_BYTES = 100 * 2**20  # of a response; a listing of a thousand runs has some MB
LONGEST = 250  # characters of a name
LONGEST_TEXT = 5000  # characters of a parameter or tag; some databases of MLflow take no more
MOST_METRICS = 1000  # in a request; the server accepts no more
MOST_PARAMS = 100  # likewise
PAGE = 1000  # runs in one response to a search
LOADER = "studyloom.extras.trackers.mlflow_model"
# The client tries 7 times for 2 minutes each by default, so that the thread would hang long after a
# server is back; the next trial tries again anyway. Variables that the user has set stay.
CLIENT = {
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

    def write_trial(self, trial: TrackedTrial) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client = self._connect(trial.study).client
        parent = self._run(trial.study, trial.study.name, {KIND: "study"}, time.time())
        tags = {"mlflow.parentRunId": parent, KIND: "trial", TRIAL: str(trial.number)}
        run = self._run(trial.study, f"trial-{trial.number}", tags, trial.started)
        # The times are those of the trial, also when it is written again: the server takes a metric
        # of the same time, step and value for the same one.
        metrics = []
        for point in trial.points:
            moment = int(point.time * 1000)
            metrics.append(Metric(key_of(point.name), point.value, moment, point.epoch))
        ended = int(trial.ended * 1000)
        for name, value in trial.values.items():
            metrics.append(Metric(key_of(f"final/{name}"), value, ended, 0))
        for start in range(0, len(metrics), MOST_METRICS):
            client.log_batch(run, metrics[start : start + MOST_METRICS])
        params = [Param(key_of(name), _text(value)) for name, value in trial.params.items()]
        for start in range(0, len(params), MOST_PARAMS):
            client.log_batch(run, params=params[start : start + MOST_PARAMS])
        run_tags = [RunTag(STATE, _text(trial.state))]
        for name, fact in trial.facts.items():
            run_tags.append(RunTag(f"studyloom.{name}", _text(fact)))
        client.log_batch(run, tags=run_tags)
        client.set_terminated(run, STATUS[trial.state], ended)

    def write_result(self, result: TrackedResult) -> None:
        from mlflow.entities import Metric, RunTag

        client = self._connect(result.study).client
        parent = self._run(result.study, result.study.name, {KIND: "study"}, time.time())
        self._check_artifacts(result.study, client.get_run(parent).info.artifact_uri)
        now = int(time.time() * 1000)
        metrics = [Metric(key_of(name), value, now, 0) for name, value in result.values.items()]
        winner = "none"
        if result.trial is not None:
            winner = str(result.trial)
        tags = [RunTag(WINNER, winner)]
        for name, direction in result.study.objectives.items():
            tags.append(RunTag(f"studyloom.direction.{key_of(name)}", direction))
        client.log_batch(parent, metrics, tags=tags)
        for path in result.files.values():
            client.log_artifact(parent, str(path))
        if self.register and "winner.json" in result.files:
            self._register(self.register, parent, result)
        client.set_terminated(parent, "FINISHED", now)

    def written(self, study: TrackedStudy) -> set[int]:
        numbers = set()
        for run in self._search(study, {KIND: "trial"}):
            is_whole = run.info.end_time and STATE in run.data.tags  # they are written last
            if is_whole:
                numbers.add(int(run.data.tags[TRIAL]))
        return numbers

    def _connect(self, study: TrackedStudy) -> "_Connection":
        """Connects to the server or database; makes the experiment if it is missing."""
        if self._connection is None:
            for name, value in CLIENT.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException

            limit_responses()
            client = MlflowClient(tracking_uri=self.uri)
            # Without a server the client writes artifacts itself, by default where it was started.
            folder = None
            if re.match(r"sqlite:|postgresql|mysql", self.uri):
                folder = (study.run_dir / "mlflow-artifacts").as_uri()
            experiment = client.get_experiment_by_name(self.experiment)
            if experiment is None:
                with contextlib.suppress(MlflowException):  # another worker has made it
                    client.create_experiment(self.experiment, folder)
                experiment = client.get_experiment_by_name(self.experiment)
            self._connection = _Connection(client, experiment.experiment_id)
        return self._connection

    def _search(self, study: TrackedStudy, tags: Mapping[str, str]) -> list[Any]:
        """Returns the runs of a study that have these tags, the first one made first."""
        connection = self._connect(study)
        conditions = []
        for name, text in {STUDY: study.uuid, **tags}.items():
            conditions.append(f"tags.`{name}` = '{text}'")
        query = " and ".join(conditions)
        runs: list[Any] = []
        token = None
        while True:
            page = connection.client.search_runs(
                [connection.experiment], query, max_results=PAGE, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                break
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def _run(self, study: TrackedStudy, name: str, tags: Mapping[str, str], start: float) -> str:
        """Returns the id of the run with these tags, which is made if it is missing.

        Two workers may make it at once. Both then see two runs, and agree that the first one stays.
        """
        connection = self._connect(study)
        searched_tags = {}  # without those of MLflow
        for tag, text in tags.items():
            if tag.startswith("studyloom."):
                searched_tags[tag] = text
        runs = self._search(study, searched_tags)
        if runs:
            return str(runs[0].info.run_id)
        run = connection.client.create_run(
            connection.experiment, int(start * 1000), {STUDY: study.uuid, **tags}, run_name=name
        )
        first = self._search(study, searched_tags)[0]
        if first.info.run_id != run.info.run_id:
            connection.client.delete_run(run.info.run_id)
        return str(first.info.run_id)

    def _check_artifacts(self, study: TrackedStudy, location: str) -> None:
        """Checks that a database in the run directory does not write files outside of it.

        Args:
            location: where the artifacts of a run are written, as the database says.
        """
        match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", self.uri)
        run_dir = study.run_dir.resolve()
        if match and Path(match[1]).resolve().is_relative_to(run_dir):
            folder = Path(url2pathname(urlsplit(location).path)).resolve()
            if not folder.is_relative_to(run_dir):
                raise FileError(
                    f"{match[1]}: has artifacts at {shorten(one_line(location), 100)!r}, outside "
                    "of this run directory. Move the database away: the same command makes a new "
                    "one, with all that the study has"
                )

    def _register(self, name: str, parent: str, result: TrackedResult) -> None:
        """Registers the winner for `mlflow.pyfunc.load_model`, once for each result."""
        from mlflow.exceptions import MlflowException

        client = self._connect(result.study).client
        digest = hashlib.sha256(result.files["winner.json"].read_bytes()).hexdigest()
        with contextlib.suppress(MlflowException):  # it exists, or the next call fails likewise
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}'")
        if any(version.tags.get(RESULT) == digest for version in versions):
            return
        folder = f"model-{digest[:8]}"
        with TemporaryDirectory() as model_folder:
            data = Path(model_folder) / "data"
            data.mkdir()
            for file in ("winner.json", "winner.yaml", "winner.pt", "model_card.md"):
                if file in result.files:
                    shutil.copyfile(result.files[file], data / file)
            flavor = {"loader_module": LOADER, "data": "data"}
            model = {"run_id": parent, "flavors": {"python_function": flavor}}
            (Path(model_folder) / "MLmodel").write_text(yaml.safe_dump(model))
            client.log_artifacts(parent, model_folder, folder)
        source = f"{client.get_run(parent).info.artifact_uri}/{folder}"
        tags = {STUDY: result.study.uuid, WINNER: str(result.trial), RESULT: digest}
        client.create_model_version(name, source, parent, tags)


@dataclass(frozen=True)
class _Connection:
    """A client of MLflow, and the id of the experiment."""

    client: "MlflowClient"
    experiment: str


@cache
def limit_responses() -> None:
    """Makes MLflow's client in this process refuse responses of more than MOST_BYTES.

    The client reads a response as a whole, and takes several times its size to parse it, so that
    a hostile server could fill the memory. MLflow has no setting for this: its function that makes
    sessions of `requests` is replaced by one that adds a hook to each session. `requests` calls the
    hook with every response before it reads the body, also with one that redirects.
    """
    from mlflow.utils import request_utils

    make_session = request_utils._cached_get_request_session

    def read_body(response: Any, stream: bool = False, **_: object) -> None:
        """Reads the body of a response up to the limit; `requests` then finds it read."""
        if stream:  # a download by the user's code, which is not read as a whole
            return
        body = bytearray()
        for part in response.iter_content(2**16):
            body += part
            if len(body) > MOST_BYTES:
                response.close()
                url = response.url.partition("?")[0]
                raise OSError(f"{url} sent a response of more than {MOST_BYTES // 2**20} MiB")
        response._content = bytes(body)

    def make_limited_session(*arguments: object, **keywords: object) -> Any:
        session = make_session(*arguments, **keywords)
        session.hooks["response"] = [read_body]
        return session

    request_utils._cached_get_request_session = make_limited_session


def key_of(name: str) -> str:
    """Returns the name of a metric or parameter as MLflow allows it.

    A changed name ends with a digest, so that all names stay different.
    """
    has_valid_characters = re.fullmatch(r"[\w.\- :/]+", name) is not None
    has_valid_parts = not {"", ".", ".."}.intersection(name.split("/"))
    if has_valid_characters and has_valid_parts and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
    cleaned = re.sub(r"[^\w.-]+", "_", name).lstrip(".")
    return f"{cleaned[: LONGEST - 9]}-{digest}"


def _text(value: object) -> str:
    return shorten(one_line(str(value)), LONGEST_TEXT)
