"""MLflow: a parent run for a study, a nested run for each trial, the answer as artifacts."""

import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory

from studyloom.extras.trackers.locks import locked
from studyloom.extras.trackers.mlflow_local import FOLDER, check_store, find_folder, keep
from studyloom.extras.trackers.mlflow_store import Number, Store, StoredRun, open_store
from studyloom.extras.trackers.sections import require
from studyloom.extras.trackers.tracker import Answer, Known, Point, TrackedStudy, TrackedTrial
from studyloom.text import one_line, shorten

# Tags of ours.
STUDY, TRIAL, KIND, STATE, BEGUN, ANSWER, WINNER = (
    f"studyloom.{name}" for name in ("study", "trial", "kind", "state", "begun", "answer", "winner")
)
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
LONGEST = 250  # characters of a name
LONGEST_TEXT = 5000  # of a parameter or tag; some databases of MLflow take no more
LOADER = "studyloom.extras.integrations.mlflow_model"


class MLflow:
    """Logs to a server of MLflow, or to a database of MLflow's below the run directory.

    A trial that was pruned has the status KILLED, since MLflow has none for it; the tag
    `studyloom.state` says pruned.

    Args:
        uri: of the tracking server or database.
        experiment: the name of the experiment, which is made if it is missing.
        register: the name under which the winner is registered as a model; None not to.
    """

    def __init__(self, uri: str, experiment: str, register: str | None = None) -> None:
        require("mlflow", "mlflow")
        self.uri, self.experiment, self.register = str(uri), str(experiment), register
        self._store: Store | None = None
        self._experiment_id = ""
        self._parents: dict[str, str] = {}  # run ids, by the uuid of the study
        self._runs: dict[tuple[str, int], str] = {}  # by study and trial
        self._known: dict[str, set[tuple[int, str]]] = {}  # steps and keys, by run

    @property
    def place(self) -> str:
        return f"{self.uri.rpartition('@')[2]}, experiment {self.experiment}"

    def begin(self, trial: TrackedTrial) -> None:
        study = trial.study
        with locked(study.run_dir, "begin.lock"):
            parent = self._parent(study)
            key = study.uuid, trial.number
            run_id = self._runs.get(key) or self._find(study, trial.number)
            if run_id is None:
                tags = {
                    "mlflow.parentRunId": parent,
                    STUDY: study.uuid,
                    TRIAL: str(trial.number),
                    KIND: "trial",
                }
                name = f"trial-{trial.number}"
                start, store = int(trial.started * 1000), self._connected(study)
                run_id = store.create(self._experiment_id, name, start, tags)
            self._runs[key] = run_id
        params = {key_of(name): _text(value) for name, value in trial.params.items()}
        self._connected(study).log(run_id, params=params, tags={BEGUN: "true", **_facts(trial)})

    def report(self, trial: TrackedTrial, epoch: int, values: Mapping[str, float]) -> None:
        now = time.time()
        self.report_all(trial, [Point(epoch, name, values[name], now) for name in values])

    def report_all(self, trial: TrackedTrial, points: Sequence[Point]) -> None:
        run_id = self._run_of(trial)
        known = self._known.get(run_id, set())
        new = [point for point in points if (point.epoch, key_of(point.name)) not in known]
        self._connected(trial.study).log(run_id, _numbers(new))

    def end(self, trial: TrackedTrial, state: str, values: Mapping[str, float]) -> None:
        run_id, at = self._run_of(trial), trial.ended or time.time()
        # The server takes a metric of the same time, step and value for the same one.
        finals = [Point(0, f"final/{name}", value, at) for name, value in values.items()]
        store = self._connected(trial.study)
        store.log(run_id, _numbers(finals), tags={STATE: state, **_facts(trial)})
        store.update(run_id, STATUS.get(state, "FAILED"), int(at * 1000))
        self._known.pop(run_id, None)
        self._runs.pop((trial.study.uuid, trial.number), None)

    def study_end(self, answer: Answer) -> None:
        store = self._connected(answer.study)
        with locked(answer.study.run_dir, "begin.lock"):
            parent = self._parent(answer.study)
        # Before anything is told: what a store says later is not asked for again.
        folder = find_folder(self.uri, answer.study.run_dir, store.run(parent).artifacts)
        now = time.time()
        points = [Point(0, name, value, now) for name, value in answer.values.items()]
        winner = "none" if answer.trial is None else str(answer.trial)
        store.log(parent, _numbers(points), tags={WINNER: winner})
        for path in answer.files.values():
            if folder is None:
                store.upload(parent, path)
            else:
                keep(answer.study.run_dir, folder, path)
        if self.register and "winner.json" in answer.files:
            self._register(self.register, parent, answer, folder)
        store.update(parent, "FINISHED", int(now * 1000))
        store.log(parent, tags={ANSWER: answer.digest})

    def known(self, trial: TrackedTrial) -> Known:
        study, number = trial.study, trial.number
        run_id = self._runs.get((study.uuid, number)) or self._find(study, number)
        if run_id is None:
            return Known()
        store = self._connected(study)
        run = store.run(run_id)
        self._runs[study.uuid, number] = run_id
        ended = STATE in run.tags and run.status != "RUNNING"
        if run.status != "RUNNING" and not ended:  # a person has ended it
            store.update(run_id, "RUNNING")
        points = {(step, name) for name in run.metrics for step in store.steps(run_id, name)}
        self._known[run_id] = points
        return Known(frozenset(points), BEGUN in run.tags, ended)

    def ended(self, study: TrackedStudy) -> set[int]:
        tags = [
            run.tags
            for run in self._search(study, f"tags.`{KIND}` = 'trial'")
            if run.status != "RUNNING" and STATE in run.tags
        ]
        return {int(each[TRIAL]) for each in tags if each.get(TRIAL, "").isdecimal()}

    def answered(self, study: TrackedStudy) -> str | None:
        parents = self._search(study, f"tags.`{KIND}` = 'study'")
        answers = [run.tags[ANSWER] for run in parents if ANSWER in run.tags]
        return answers[0] if answers else None

    def _connected(self, study: TrackedStudy) -> Store:
        """Returns the store, once the experiment is there."""
        if self._store is None:
            check_store(self.uri, study.run_dir)
            store = open_store(self.uri)
            # Without a server the client writes artifacts itself, by default where it was started.
            folder = (study.run_dir / FOLDER).absolute().as_uri()
            local = re.match(r"sqlite:|postgresql|mysql", self.uri)
            self._experiment_id = store.experiment(self.experiment, folder if local else None)
            self._store = store
        return self._store

    def _search(self, study: TrackedStudy, condition: str) -> list[StoredRun]:
        store = self._connected(study)
        return store.search(self._experiment_id, f"tags.`{STUDY}` = '{study.uuid}' and {condition}")

    def _parent(self, study: TrackedStudy) -> str:
        """Returns the run of a study, which is made if it is missing; the caller has the lock."""
        if (known := self._parents.get(study.uuid)) is not None:
            return known
        runs = self._search(study, f"tags.`{KIND}` = 'study'")
        if runs:
            run_id = runs[0].run_id
            if runs[0].status != "RUNNING":  # a larger budget
                self._connected(study).update(run_id, "RUNNING")
        else:
            tags = {STUDY: study.uuid, KIND: "study"}
            tags |= {f"studyloom.goal.{key_of(name)}": way for name, way in study.goals.items()}
            start, store = int(time.time() * 1000), self._connected(study)
            run_id = store.create(self._experiment_id, study.name, start, tags)
        self._parents[study.uuid] = run_id
        return run_id

    def _find(self, study: TrackedStudy, number: int) -> str | None:
        runs = self._search(study, f"tags.`{KIND}` = 'trial' and tags.`{TRIAL}` = '{number}'")
        return runs[0].run_id if runs else None

    def _run_of(self, trial: TrackedTrial) -> str:
        key = trial.study.uuid, trial.number
        if key not in self._runs:
            self.begin(trial)
        return self._runs[key]

    def _register(self, name: str, parent: str, answer: Answer, folder: PurePath | None) -> None:
        """Registers the winner as a model that `mlflow.pyfunc.load_model` loads."""
        import mlflow
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from mlflow.models import Model

        client = MlflowClient(tracking_uri=self.uri)
        # Versions are of answers: a larger budget that finds the same one registers nothing.
        digest = hashlib.sha256(answer.files["winner.json"].read_bytes()).hexdigest()
        folder_name = f"model-{digest[:8]}"
        with TemporaryDirectory() as made:
            data = Path(made) / "data"
            data.mkdir()
            for file in ("winner.json", "winner.yaml", "winner.pt", "model_card.md"):
                if file in answer.files:
                    shutil.copyfile(answer.files[file], data / file)
            model = Model(artifact_path=folder_name, run_id=parent)
            mlflow.pyfunc.add_to_model(model, LOADER, data="data")
            model.save(str(Path(made) / "MLmodel"))
            if folder is None:
                client.log_artifacts(parent, made, folder_name)
            else:
                for path in filter(Path.is_file, Path(made).rglob("*")):
                    inner = folder / folder_name / path.parent.relative_to(made)
                    keep(answer.study.run_dir, inner, path)
        with contextlib.suppress(MlflowException):  # it is there, or the next call says why not
            client.create_registered_model(name)
        source = f"{client.get_run(parent).info.artifact_uri}/{folder_name}"
        trial = "" if answer.trial is None else str(answer.trial)
        tags = {STUDY: answer.study.uuid, WINNER: trial}
        versions = client.search_model_versions(f"name = '{name}'")
        if not any(version.tags.get(ANSWER) == digest for version in versions):
            client.create_model_version(name, source, parent, {**tags, ANSWER: digest})


def key_of(name: str) -> str:
    """Returns the name of a metric or parameter as MLflow allows it.

    One that is changed for that ends with a digest, so that no two become the same.
    """
    parts = name.split("/")
    plain = re.fullmatch(r"[\w.\- :/]+", name) and not {"", ".", ".."} & {*parts}
    if plain and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
    cleaned = re.sub(r"[^\w.-]+", "_", name).lstrip(".")
    return f"{cleaned[: LONGEST - 9]}-{digest}"


def _numbers(points: Sequence[Point]) -> list[Number]:
    return [Number(key_of(name), value, int(at * 1000), epoch) for epoch, name, value, at in points]


def _facts(trial: TrackedTrial) -> dict[str, str]:
    return {f"studyloom.{name}": _text(text) for name, text in trial.facts.items()}


def _text(value: object) -> str:
    return shorten(one_line(str(value)), LONGEST_TEXT)
