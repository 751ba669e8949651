"""Reads the trials of a study that Optuna, W&B or MLflow has stored; nothing is written.

A database of Optuna is read completely, a SQLite file read-only, so that it does not change. CSV
files exported by W&B and MLflow hold a row for each run, with its hyperparameters and last values.
W&B's folder and MLflow's SQLite file have the learning curves too.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from studyloom.errors import StorageError
from studyloom.extras.adopt.csv_file import CsvFile, Domain, Row, read_csv_file
from studyloom.extras.adopt.mlflow_database import MlflowDatabase
from studyloom.extras.adopt.tracked_runs import make_trial, make_trials
from studyloom.extras.adopt.wandb_folder import WandbFolder, read_wandb_folder
from studyloom.metrics import Direction
from studyloom.storage import cells, sql
from studyloom.storage.connections import untrusted
from studyloom.storage.database import read_only
from studyloom.storage.optuna_internals import METRIC_NAMES
from studyloom.storage.stored_study import read_objectives
from studyloom.storage.urls import parse_url, sqlite_url, without_password
from studyloom.text import name_error, one_line, shorten

MAX_SECONDS = 120.0  # for reading a database
MAX_REASON_LENGTH = 300  # characters of a driver's error, or of a list of names
MAX_NAME_LENGTH = 80
# Columns of an exported CSV that describe a run, in lower case: W&B's and MLflow's.
RUN_COLUMNS = {
    *("name", "state", "notes", "user", "tags", "created", "runtime", "sweep"),
    *("start time", "duration", "run id", "source type", "source name", "status"),
}
PARAMS = "params."  # begins MLflow's columns of hyperparameters
STATES = ("state", "status")  # the columns of a run's state


@dataclass(frozen=True)
class AdoptedStudy:
    """Holds a study of another program.

    Args:
        metric: the name of the first value of a trial.
        sign: 1 if the value is maximized, -1 if it is minimized.
        trials: all trials, by number.
        source: the study as `study.warm_start` takes it, without a password; None if that cannot
            read it.
        run_names: the name of each trial's run in a tracker; empty for another program.
    """

    name: str
    metric: str
    sign: int
    trials: Sequence[FrozenTrial]
    source: str | None = None
    run_names: Sequence[str] = ()

    @property
    def direction(self) -> Direction:
        """The direction of the value, as Optuna calls it."""
        if self.sign > 0:
            return "maximize"
        return "minimize"

    @cached_property
    def complete(self) -> list[FrozenTrial]:
        """The complete trials with finite values, by number."""
        complete = []
        for trial in self.trials:
            if trial.state == TrialState.COMPLETE and trial.values and _is_finite(trial.values[0]):
                complete.append(trial)
        return complete

    @cached_property
    def ranked(self) -> list[FrozenTrial]:
        """The complete trials that break no constraint, the best first."""
        feasible = [trial for trial in self.complete if is_feasible(trial)]
        return sorted(feasible, key=lambda trial: (-self.sign * trial.values[0], trial.number))


def is_feasible(trial: FrozenTrial) -> bool:
    """Returns True if a trial breaks no constraint: the value of each is at most 0."""
    return all(value <= 0 for value in trial.constraints.values())


def read_database(source: str, name: str | None) -> AdoptedStudy:
    """Reads a study from a database, which is a URL or a SQLite file.

    Raises:
        StorageError: it cannot be read, or `name` must name one of several studies.
    """
    address = None  # of a SQLite or PostgreSQL database; Optuna's own storage reads any other one
    try:
        if "://" not in source:
            address = sqlite_url(Path(source))
        elif source.startswith(("sqlite", "postgres")):
            address = parse_url(source)
        with untrusted(MAX_SECONDS):
            if address is not None:
                with closing(read_only(address)) as storage:
                    return _read_study(storage, name, without_password(address))
            return _read_study(RDBStorage(source, skip_table_creation=True), name, url=None)
    except StorageError:
        raise
    except Exception as error:  # from a driver, or for a cell that Optuna has not written
        reason = shorten(one_line(name_error(error)), MAX_REASON_LENGTH)
        raise StorageError(f"adopt: the database cannot be read: {reason}") from None


def _read_study(storage: BaseStorage, name: str | None, url: str | None) -> AdoptedStudy:
    """Reads a study of a storage.

    Args:
        name: the name of the study; None for the only one.
        url: the URL of the database; None if `study.warm_start` cannot use it.

    Raises:
        StorageError: there is no such study, or there are several.
    """
    studies = {study.study_name: study for study in storage.get_all_studies()}
    if name is None and len(studies) == 1:
        (name,) = studies
    if name is None or name not in studies:
        all_names = ", ".join(one_line(study_name) for study_name in studies) or "none"
        names = shorten(all_names, MAX_REASON_LENGTH)
        raise StorageError(f"adopt: name the study with --study; the database holds: {names}")
    study = studies[name]
    cells.check_directions(study.directions)
    objective = read_objectives(study.system_attrs.get(METRIC_NAMES), study.directions)[0]
    stored_trials = storage.get_all_trials(study._study_id, deepcopy=False)
    trials = [sql.without_reserved(trial) for trial in stored_trials]
    source = None
    if url is not None:
        source = f"{url}#{name}"
    return AdoptedStudy(name, objective.name, objective.sign, trials, source)


def read_runs(
    source: WandbFolder | MlflowDatabase,
    name: str | None,
    metric: str | None,
    sign: int,
    names: Sequence[str] = (),
) -> AdoptedStudy:
    """Reads the runs of a project of W&B, or of an experiment of MLflow.

    Args:
        name: the project or experiment; None for the only one.
        metric: the metric that is optimized; its last value is the value of a trial.
        names: the settings that are hyperparameters. If it is empty, they are those that differ
            between runs.

    Raises:
        ConfigError: no metric is named.
        DataError: there is no such project, experiment, metric or setting, or no file can be read.
    """
    chosen_name, chosen_metric, runs = source.choose_runs(name, metric, names)
    trials = make_trials(runs, chosen_metric, names)
    run_names = [run.name for run in runs]
    return AdoptedStudy(chosen_name, chosen_metric, sign, trials, run_names=run_names)


def find_runs(source: str) -> WandbFolder | MlflowDatabase | None:
    """Returns what holds the runs of a tracker: W&B's folder, or MLflow's SQLite file.

    None for the database of another program.

    Raises:
        DataError: it is a folder without runs of W&B.
    """
    path = Path(source)
    if source.startswith("sqlite:"):
        path = Path(str(parse_url(source).database))
    if path.is_dir():
        return read_wandb_folder(path)
    database = MlflowDatabase(path)
    if database.is_present():
        return database
    return None


def read_csv(path: Path, metric: str, sign: int, names: Sequence[str] = ()) -> AdoptedStudy:
    """Reads the runs of an exported CSV file.

    Args:
        metric: the column of the value.
        names: the columns of hyperparameters. If it is empty, they are those that MLflow calls
            params.NAME; if there are none of these, those before the metric, where W&B lists them.

    Raises:
        DataError: it is no such file, or lacks a column.
    """
    file = read_csv_file(path)
    value_column = metric
    if metric not in file.columns and f"metrics.{metric}" in file.columns:
        value_column = f"metrics.{metric}"  # as MLflow calls it
    values = file.numbers(value_column)
    param_columns = names or _guess_param_columns(file, value_column)
    columns = _map_columns_by_param(file, param_columns, value_column)
    positions = {name: file.position(column) for name, column in columns.items()}
    domains = {name: file.domain(column) for name, column in columns.items()}
    trials = []
    for number, row in enumerate(file.rows):
        trial = make_trial(number, _read_state(file, row), values[number], metric)
        _set_params(trial, row, positions, domains)
        trials.append(trial)
    return AdoptedStudy(path.stem, metric, sign, trials)


def _read_state(file: CsvFile, row: Row) -> str:
    """Returns the state of a run; empty if its row has none."""
    for column, cell in zip(file.columns, row.cells, strict=True):
        if column.lower() in STATES and cell:
            return cell
    return ""


def _guess_param_columns(file: CsvFile, value_column: str) -> list[str]:
    """Returns the columns of hyperparameters where --params does not name them.

    MLflow begins their names with `params.`. W&B lists them before the column of the metric,
    together with columns that describe the run.
    """
    columns_of_mlflow = [column for column in file.columns if column.startswith(PARAMS)]
    if columns_of_mlflow:
        return columns_of_mlflow
    param_columns = []
    for column in file.columns[: file.position(value_column)]:
        describes_run = column.lower() in RUN_COLUMNS or column.startswith(("_", "tags."))
        if column and not describes_run:
            param_columns.append(column)
    return param_columns


def _map_columns_by_param(
    file: CsvFile, columns: Sequence[str], value_column: str
) -> dict[str, str]:
    """Returns the column of each hyperparameter, by the name of the hyperparameter.

    Raises:
        DataError: a column is missing, is the metric, or has the name of another.
    """
    by_name: dict[str, str] = {}
    for column in columns:
        file.position(column)  # raises if it is missing
        name = column.removeprefix(PARAMS)
        if column == value_column:
            problem = "the metric is no hyperparameter; leave it out of --params"
            raise file.error(problem, line=1, column=column)
        if by_name.setdefault(name, column) != column:
            problem = f"another column is called {shorten(one_line(name), MAX_NAME_LENGTH)} too"
            fix = "list the columns of hyperparameters with --params"
            raise file.error(f"{problem}; {fix}", line=1, column=column)
    return by_name


def _set_params(
    trial: FrozenTrial, row: Row, positions: Mapping[str, int], domains: Mapping[str, Domain]
) -> None:
    """Sets the hyperparameters of a trial from the cells of its row that are not empty."""
    for name, position in positions.items():
        cell = row.cells[position]
        if cell:
            trial.params[name] = domains[name].read(cell)
            trial.distributions[name] = domains[name].distribution


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
