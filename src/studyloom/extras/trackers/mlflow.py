"""MLflow: a parent run for a study, a nested run for each trial, the result as artifacts."""

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping
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

STUDY, TRIAL, KIND, STATE, RESULT, WINNER = (
    f"studyloom.{name}" for name in ("study", "trial", "kind", "state", "result", "winner")
)
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
MOST_BYTES = 100 * 2**20  # of a response; a listing of a thousand runs has some MB
LONGEST = 250  # characters of a name
LONGEST_TEXT = 5000  # of a parameter or tag; some databases of MLflow take no more
MOST_METRICS, MOST_PARAMS = 1000, 100  # in a request, as the server has it
PAGE = 1000  # runs of a search
LOADER = "studyloom.extras.trackers.mlflow_model"
# The client's own 7 tries of 2 minutes each would have our thread hang long after a server is
# back; the next trial tries again. What the user has set stays.
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
        uri: of the tracking server or database.
        experiment: the name of the experiment, which is made if it is missing.
        register: the name under which the winner is registered as a model; None not to.
        patience: seconds that a command waits for the server at its end.
    """

    def __init__(
        self, uri: str, experiment: str, register: str | None = None, patience: float = PATIENCE
    ) -> None:
        require("mlflow")
        self.patience = patience
        self.uri, self.experiment, self.register = str(uri), str(experiment), register
        self._connected: tuple[MlflowClient, str] | None = None

    def write_trial(self, trial: TrackedTrial) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client, _ = self._connect(trial.study)
        parent = self._run(trial.study, trial.study.name, {KIND: "study"}, time.time())
        tags = {"mlflow.parentRunId": parent, KIND: "trial", TRIAL: str(trial.number)}
        run = self._run(trial.study, f"trial-{trial.number}", tags, trial.started)
        # The server takes a metric of the same time, step and value for the same one.
        at = int(trial.ended * 1000)
        metrics = [
            Metric(key_of(p.name), p.value, int(p.time * 1000), p.epoch) for p in trial.points
        ]
        metrics += [Metric(key_of(f"final/{n}"), v, at, 0) for n, v in trial.values.items()]
        for first in range(0, len(metrics), MOST_METRICS):
            client.log_batch(run, metrics[first : first + MOST_METRICS])
        params = [Param(key_of(name), _text(value)) for name, value in trial.params.items()]
        for first in range(0, len(params), MOST_PARAMS):
            client.log_batch(run, params=params[first : first + MOST_PARAMS])
        facts = {STATE: trial.state} | {f"studyloom.{n}": t for n, t in trial.facts.items()}
        client.log_batch(run, tags=[RunTag(name, _text(text)) for name, text in facts.items()])
        client.set_terminated(run, STATUS[trial.state], at)

    def write_result(self, result: TrackedResult) -> None:
        from mlflow.entities import Metric, RunTag

        client, _ = self._connect(result.study)
        parent = self._run(result.study, result.study.name, {KIND: "study"}, time.time())
        self._check_artifacts(result.study, client.get_run(parent).info.artifact_uri)
        now = int(time.time() * 1000)
        metrics = [Metric(key_of(name), value, now, 0) for name, value in result.values.items()]
        winner = "none" if result.trial is None else str(result.trial)
        directions = {
            f"studyloom.direction.{key_of(n)}": way for n, way in result.study.objectives.items()
        }
        tags = [RunTag(name, text) for name, text in {WINNER: winner, **directions}.items()]
        client.log_batch(parent, metrics, tags=tags)
        for path in result.files.values():
            client.log_artifact(parent, str(path))
        if self.register and "winner.json" in result.files:
            self._register(self.register, parent, result)
        client.set_terminated(parent, "FINISHED", now)

    def written(self, study: TrackedStudy) -> set[int]:
        tags = [run.data.tags for run in self._search(study, {KIND: "trial"}) if run.info.end_time]
        return {int(each[TRIAL]) for each in tags if STATE in each}

    def _connect(self, study: TrackedStudy) -> "tuple[MlflowClient, str]":
        """Returns the client and the id of the experiment, which is made if it is missing."""
        if self._connected is None:
            for name, value in CLIENT.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException

            limit_responses()
            client = MlflowClient(tracking_uri=self.uri)
            # Without a server the client writes artifacts itself, by default where it was started.
            local = re.match(r"sqlite:|postgresql|mysql", self.uri)
            folder = (study.run_dir / "mlflow-artifacts").as_uri() if local else None
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                with contextlib.suppress(MlflowException):  # another worker has made it
                    client.create_experiment(self.experiment, folder)
                found = client.get_experiment_by_name(self.experiment)
            self._connected = client, found.experiment_id
        return self._connected

    def _search(self, study: TrackedStudy, tags: Mapping[str, str]) -> list[Any]:
        """Returns the runs with such tags, the first one made first."""
        client, experiment = self._connect(study)
        wanted = {STUDY: study.uuid, **tags}
        query = " and ".join(f"tags.`{name}` = '{text}'" for name, text in wanted.items())
        runs: list[Any] = []
        page: Any = None
        while page is None or page.token:
            token = page and page.token
            page = client.search_runs([experiment], query, max_results=PAGE, page_token=token)
            runs += page
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def _run(self, study: TrackedStudy, name: str, tags: Mapping[str, str], start: float) -> str:
        """Returns the id of the run with such tags; of two made at once the first one stays."""
        client, experiment = self._connect(study)
        own = {each: text for each, text in tags.items() if each.startswith("studyloom.")}
        if runs := self._search(study, own):
            return str(runs[0].info.run_id)
        made = client.create_run(
            experiment, int(start * 1000), {STUDY: study.uuid, **tags}, run_name=name
        )
        first = self._search(study, own)[0]
        if first.info.run_id != made.info.run_id:
            client.delete_run(made.info.run_id)
        return str(first.info.run_id)

    def _check_artifacts(self, study: TrackedStudy, location: str) -> None:
        """Raises an error if a database in the run directory would write files outside of it."""
        place = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", self.uri)
        run_dir = study.run_dir.resolve()
        if place and Path(place[1]).resolve().is_relative_to(run_dir):
            folder = Path(url2pathname(urlsplit(location).path)).resolve()
            if not folder.is_relative_to(run_dir):
                raise FileError(
                    f"{place[1]}: has artifacts at {shorten(one_line(location), 100)!r}, outside "
                    "of this run directory. Move the database away: the same command makes a new "
                    "one, with all that the study has"
                )

    def _register(self, name: str, parent: str, result: TrackedResult) -> None:
        """Registers the winner for `mlflow.pyfunc.load_model`, once for each result."""
        from mlflow.exceptions import MlflowException

        client, _ = self._connect(result.study)
        digest = hashlib.sha256(result.files["winner.json"].read_bytes()).hexdigest()
        with contextlib.suppress(MlflowException):  # it is there, or the next call says why not
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}'")
        if any(version.tags.get(RESULT) == digest for version in versions):
            return
        folder = f"model-{digest[:8]}"
        with TemporaryDirectory() as made:
            data = Path(made) / "data"
            data.mkdir()
            for file in ("winner.json", "winner.yaml", "winner.pt", "model_card.md"):
                if file in result.files:
                    shutil.copyfile(result.files[file], data / file)
            flavor = {"loader_module": LOADER, "data": "data"}
            model = {"run_id": parent, "flavors": {"python_function": flavor}}
            (Path(made) / "MLmodel").write_text(yaml.safe_dump(model))
            client.log_artifacts(parent, made, folder)
        source = f"{client.get_run(parent).info.artifact_uri}/{folder}"
        tags = {STUDY: result.study.uuid, WINNER: str(result.trial), RESULT: digest}
        client.create_model_version(name, source, parent, tags)


@cache
def limit_responses() -> None:
    """Makes MLflow's client in this process refuse responses of more than MOST_BYTES.

    It reads a response as a whole, and takes several times its size to parse it.
    """
    from mlflow.utils import request_utils

    make = request_utils._cached_get_request_session

    def read(response: Any, stream: bool = False, **_: Any) -> None:
        """Reads the body of a response, also of one that redirects, before `requests` would."""
        if stream:  # a download by the user's code
            return
        body = bytearray()
        for part in response.iter_content(2**16):
            body += part
            if len(body) > MOST_BYTES:
                response.close()
                where = response.url.partition("?")[0]
                raise OSError(f"{where} sent a response of more than {MOST_BYTES // 2**20} MiB")
        response._content = bytes(body)

    def make_bounded(*arguments: Any, **named: Any) -> Any:
        session = make(*arguments, **named)
        session.hooks["response"] = [read]
        return session

    request_utils._cached_get_request_session = make_bounded


def key_of(name: str) -> str:
    """Returns the name of a metric or parameter as MLflow allows it.

    A changed name ends with a digest, so that all names stay different.
    """
    parts = name.split("/")
    plain = re.fullmatch(r"[\w.\- :/]+", name) and not {"", ".", ".."} & {*parts}
    if plain and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
    cleaned = re.sub(r"[^\w.-]+", "_", name).lstrip(".")
    return f"{cleaned[: LONGEST - 9]}-{digest}"


def _text(value: object) -> str:
    return shorten(one_line(str(value)), LONGEST_TEXT)
