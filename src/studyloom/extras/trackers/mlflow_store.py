"""The runs of MLflow: at a server by its REST API, elsewhere by MLflow's own client.

Importing MLflow takes two seconds of a processor, in each worker and beside its training, so that a
server is asked without it. The API is <https://mlflow.org/docs/latest/rest-api.html>.
"""

import base64
import json
import logging
import math
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

TIMEOUT = 30.0  # seconds of a request
MOST_METRICS, MOST_PARAMS = 1000, 100  # in a request, as the server has it
PAGE = 1000  # runs or numbers in an answer
LARGEST = 64 * 2**20  # bytes of an answer
API, ARTIFACTS = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts/"
ORDER = "attributes.start_time ASC"
# Of ways to log in that MLflow's client alone has.
OWN_LOGIN = (
    *("MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_CLIENT_CERT_PATH"),
    *("MLFLOW_WORKSPACE",),
)
# What the client does by default, 7 tries of 2 minutes each, would have our thread hang long after
# a server is back; it tries again by itself. What the user has set stays.
CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{TIMEOUT:.0f}",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for each trial
}


class TrackingServerError(RuntimeError):
    """A server has refused a request, for the reason that it gave."""


class Number(NamedTuple):
    """A number of a curve: its time is in milliseconds since the epoch."""

    key: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class StoredRun:
    """A run as it is stored.

    Attributes:
        run_id: of the run.
        status: RUNNING, FINISHED, FAILED or KILLED.
        tags: by name.
        metrics: the names of its curves.
        artifacts: the URI of its artifacts.
    """

    run_id: str
    status: str
    tags: Mapping[str, str]
    metrics: Sequence[str]
    artifacts: str


class Store(Protocol):
    """Where runs are stored."""

    def experiment(self, name: str, artifacts: str | None) -> str:
        """Returns the id of an experiment, which is made if it is missing."""
        ...

    def create(self, experiment: str, name: str, start: int, tags: Mapping[str, str]) -> str:
        """Makes a run, and returns its id; `start` is in milliseconds since the epoch."""
        ...

    def search(self, experiment: str, condition: str) -> list[StoredRun]:
        """Returns the runs of an experiment that a filter finds, the earliest first."""
        ...

    def run(self, run_id: str) -> StoredRun: ...
    def steps(self, run_id: str, key: str) -> Iterator[int]:
        """Yields the step of each number of a curve."""
        ...

    def update(self, run_id: str, status: str, end: int | None = None) -> None: ...
    def log(
        self,
        run_id: str,
        numbers: Sequence[Number] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None: ...
    def upload(self, run_id: str, path: Path) -> None:
        """Makes a file an artifact of a run."""
        ...


def open_store(uri: str) -> Store:
    """Returns the store of a tracking URI."""
    if re.match("https?://", uri) and not any(os.environ.get(name) for name in OWN_LOGIN):
        return ServerStore(uri)
    return ClientStore(uri)


class ServerStore:
    """A server, which is asked over HTTP.

    Args:
        uri: of the server; a user and password in it, or else MLFLOW_TRACKING_USERNAME and
            MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN, are sent with each request.
    """

    def __init__(self, uri: str) -> None:
        parts = urllib.parse.urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]
        self._uri = uri
        self._base = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        self._headers = {"User-Agent": "studyloom", **_login(parts)}

    def experiment(self, name: str, artifacts: str | None) -> str:
        for _ in range(2):
            try:
                found = self._get("experiments/get-by-name", experiment_name=name)["experiment"]
                return str(found["experiment_id"])
            except TrackingServerError as error:
                if "RESOURCE_DOES_NOT_EXIST" not in str(error):
                    raise
            try:
                return str(self._post("experiments/create", name=name)["experiment_id"])
            except TrackingServerError as error:  # another worker was quicker
                if "RESOURCE_ALREADY_EXISTS" not in str(error):
                    raise
        raise TrackingServerError(f"the experiment {name!r} is there, and cannot be read")

    def create(self, experiment: str, name: str, start: int, tags: Mapping[str, str]) -> str:
        made = self._post(
            "runs/create",
            experiment_id=experiment,
            run_name=name,
            start_time=start,
            tags=_pairs(tags),
        )
        return _run(made["run"]).run_id

    def search(self, experiment: str, condition: str) -> list[StoredRun]:
        asked = {
            "experiment_ids": [experiment],
            "filter": condition,
            "order_by": [ORDER],
            "max_results": PAGE,
        }
        runs: list[StoredRun] = []
        while True:
            answer = self._post("runs/search", **asked)
            runs += map(_run, answer.get("runs", ()))
            if not (token := answer.get("next_page_token")):
                return runs
            asked["page_token"] = token

    def run(self, run_id: str) -> StoredRun:
        return _run(self._get("runs/get", run_id=run_id)["run"])

    def steps(self, run_id: str, key: str) -> Iterator[int]:
        asked = {"run_id": run_id, "metric_key": key, "max_results": str(PAGE)}
        while True:
            answer = self._get("metrics/get-history", **asked)
            yield from (int(number.get("step", 0)) for number in answer.get("metrics", ()))
            if not (token := answer.get("next_page_token")):
                return
            asked["page_token"] = token

    def update(self, run_id: str, status: str, end: int | None = None) -> None:
        ended = {} if end is None else {"end_time": end}
        self._post("runs/update", run_id=run_id, status=status, **ended)

    def log(
        self,
        run_id: str,
        numbers: Sequence[Number] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        metrics = [
            {"key": key, "value": _double(value), "timestamp": time, "step": step}
            for key, value, time, step in numbers
        ]
        for part in _parts(metrics, MOST_METRICS):
            self._post("runs/log-batch", run_id=run_id, metrics=part)
        for part in _parts(_pairs(params or {}), MOST_PARAMS):
            self._post("runs/log-batch", run_id=run_id, params=part)
        if tags:
            self._post("runs/log-batch", run_id=run_id, tags=_pairs(tags))

    def upload(self, run_id: str, path: Path) -> None:
        place = urllib.parse.urlsplit(self.run(run_id).artifacts)
        if place.scheme != "mlflow-artifacts":  # a bucket, which MLflow's client knows
            ClientStore(self._uri).upload(run_id, path)
            return
        name = urllib.parse.quote(f"{place.path.strip('/')}/{path.name}")
        self._ask(
            urllib.request.Request(
                f"{self._base}{ARTIFACTS}{name}", path.read_bytes(), method="PUT"
            )
        )

    def _get(self, what: str, **asked: str) -> Any:
        query = urllib.parse.urlencode(asked)
        return self._ask(urllib.request.Request(f"{self._base}{API}{what}?{query}"))

    def _post(self, what: str, **fields: Any) -> Any:
        content = json.dumps(fields, allow_nan=False).encode()
        request = urllib.request.Request(f"{self._base}{API}{what}", content)
        request.add_header("Content-Type", "application/json")
        return self._ask(request)

    def _ask(self, request: urllib.request.Request) -> Any:
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT, context=_tls()) as answer:
                content = answer.read(LARGEST + 1)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(LARGEST).decode(errors="replace")
            raise TrackingServerError(f"HTTP {error.code}: {_reason(said)}") from None
        if len(content) > LARGEST:
            raise TrackingServerError(f"an answer of more than {LARGEST} bytes")
        return json.loads(content or b"{}")


class ClientStore:
    """What MLflow's own client opens: a database, Databricks, a server with a login of its own.

    Args:
        uri: as the client takes it.
    """

    def __init__(self, uri: str) -> None:
        for name, value in CLIENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=uri)

    def experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifacts))
            except MlflowException:  # another worker was quicker
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def create(self, experiment: str, name: str, start: int, tags: Mapping[str, str]) -> str:
        made = self._client.create_run(experiment, start, dict(tags), name)
        return str(made.info.run_id)

    def search(self, experiment: str, condition: str) -> list[StoredRun]:
        runs: list[StoredRun] = []
        token = None
        while True:
            page = self._client.search_runs(
                [experiment], condition, 1, PAGE, order_by=[ORDER], page_token=token
            )
            runs += map(_own_run, page)
            if not (token := page.token):
                return runs

    def run(self, run_id: str) -> StoredRun:
        return _own_run(self._client.get_run(run_id))

    def steps(self, run_id: str, key: str) -> Iterator[int]:
        for number in self._client.get_metric_history(run_id, key):
            yield int(number.step)

    def update(self, run_id: str, status: str, end: int | None = None) -> None:
        if end is None:
            self._client.update_run(run_id, status)
        else:
            self._client.set_terminated(run_id, status, end)

    def log(
        self,
        run_id: str,
        numbers: Sequence[Number] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        log = self._client.log_batch
        for part in _parts([Metric(*number) for number in numbers], MOST_METRICS):
            log(run_id, metrics=part)
        for part in _parts([Param(*pair) for pair in (params or {}).items()], MOST_PARAMS):
            log(run_id, params=part)
        if tags:
            log(run_id, tags=[RunTag(*pair) for pair in tags.items()])

    def upload(self, run_id: str, path: Path) -> None:
        self._client.log_artifact(run_id, str(path))


def _login(parts: urllib.parse.SplitResult) -> dict[str, str]:
    """Returns the header that logs in, if there is a user or a token."""
    user, password = parts.username, parts.password
    if user is None:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD")
    else:
        user, password = urllib.parse.unquote(user), urllib.parse.unquote(password or "")
    if user is not None:
        pair = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _reason(said: str) -> str:
    """Returns what an answer gives as the reason of a refusal."""
    try:
        fields = json.loads(said)
        return f"{fields.get('error_code', '')} {fields.get('message', '')}".strip()
    except (ValueError, AttributeError):
        return said[:200]


def _run(run: Any) -> StoredRun:
    info, data = run["info"], run.get("data", {})
    tags = {tag["key"]: tag.get("value", "") for tag in data.get("tags", ())}
    metrics = [metric["key"] for metric in data.get("metrics", ())]
    return StoredRun(
        info["run_id"], info.get("status", ""), tags, metrics, info.get("artifact_uri", "")
    )


def _own_run(run: Any) -> StoredRun:
    info, data = run.info, run.data
    return StoredRun(info.run_id, info.status, data.tags, [*data.metrics], info.artifact_uri)


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": name, "value": value} for name, value in values.items()]


def _parts(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), most):
        yield items[first : first + most]


def _double(value: float) -> float | str:
    """Returns a number as JSON of Protocol Buffers has it."""
    if math.isnan(value):
        return "NaN"
    return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"
