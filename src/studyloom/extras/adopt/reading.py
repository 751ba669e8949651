"""Reads the trials of a study that Optuna, W&B or MLflow has stored; nothing is written.

A database of Optuna is read completely, a SQLite file read-only, so that it does not change. CSV
files exported by W&B and MLflow hold a row for each run, with its hyperparameters and last values.
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
from studyloom.storage import cells, sql
from studyloom.storage.connections import untrusted
from studyloom.storage.database import read_only
from studyloom.storage.optuna_internals import METRIC_NAMES
from studyloom.storage.stored_study import read_objectives
from studyloom.storage.urls import parse_url, sqlite_url, without_password
from studyloom.text import name_error, one_line, shorten

MOST_SECONDS = 120.0  # for reading a database
# Columns of an exported CSV that describe a run, in lower case: W&B's and MLflow's.
ABOUT = {
    *("name", "state", "notes", "user", "tags", "created", "runtime", "sweep"),
    *("start time", "duration", "run id", "source type", "source name", "status"),
}
PARAMS = "params."  # begins MLflow's columns of hyperparameters
STATES = ("state", "status")  # the columns of a run's state
UNFINISHED = ("running", "pending", "scheduled")  # states of a run that has not ended
FINISHED = ("finished", "")


@dataclass(frozen=True)
class AdoptedStudy:
    """Holds a study of another program.

    Args:
        metric: the name of the first value of a trial.
        sign: 1 if the value is maximized, -1 if it is minimized.
        trials: all trials, by number.
        source: the study as `study.warm_start` takes it, without a password; None if that cannot
            read it.
    """

    name: str
    metric: str
    sign: int
    trials: Sequence[FrozenTrial]
    source: str | None = None

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
    address = None  # of a database that studyloom can use; others only Optuna can read
    try:
        if "://" not in source:
            address = sqlite_url(Path(source))
        elif source.startswith(("sqlite", "postgres")):
            address = parse_url(source)
        with untrusted(MOST_SECONDS):
            if address is not None:
                with closing(read_only(address)) as storage:
                    return _read(storage, name, without_password(address))
            return _read(RDBStorage(source, skip_table_creation=True), name, None)
    except StorageError:
        raise
    except Exception as error:  # from a driver, or for a cell that Optuna has not written
        reason = shorten(one_line(name_error(error)), 300)
        raise StorageError(f"adopt: the database cannot be read: {reason}") from None


def _read(storage: BaseStorage, name: str | None, url: str | None) -> AdoptedStudy:
    """Reads a study of a storage.

    Args:
        url: the URL of the database, if `study.warm_start` takes it.
    """
    studies = {study.study_name: study for study in storage.get_all_studies()}
    if name is None and len(studies) == 1:
        name = next(iter(studies))
    if name is None or name not in studies:
        names = shorten(", ".join(map(one_line, studies)) or "none", 300)
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


def read_csv(path: Path, metric: str, sign: int, names: Sequence[str] = ()) -> AdoptedStudy:
    """Reads the runs of an exported CSV file.

    Args:
        metric: the column of the value.
        names: the columns of hyperparameters; none for those that MLflow calls params.NAME, or
            else those before the metric, where W&B and MLflow list them.

    Raises:
        DataError: it is no such file, or lacks a column.
    """
    file = read_csv_file(path)
    value_column = metric
    if metric not in file.columns and f"metrics.{metric}" in file.columns:
        value_column = f"metrics.{metric}"  # as MLflow calls it
    values = file.numbers(value_column)
    columns = _by_parameter(file, names or _parameter_columns(file, value_column), value_column)
    domains = {name: file.domain(column) for name, column in columns.items()}
    positions = {name: file.place(column) for name, column in columns.items()}
    trials = []
    for number, row in enumerate(file.rows):
        trial = _trial(number, _read_state(file, row), values[number], metric)
        _set_params(trial, row, positions, domains)
        trials.append(trial)
    return AdoptedStudy(path.stem, metric, sign, trials)


def _read_state(file: CsvFile, row: Row) -> str:
    """Returns the state of a run; empty if its row has none."""
    for column, cell in zip(file.columns, row.cells, strict=True):
        if column.lower() in STATES and cell:
            return cell
    return ""


def _parameter_columns(file: CsvFile, value: str) -> list[str]:
    """Returns the columns of hyperparameters where --params does not name them."""
    columns_of_mlflow = [column for column in file.columns if column.startswith(PARAMS)]
    if columns_of_mlflow:
        return columns_of_mlflow
    names = []
    for column in file.columns[: file.place(value)]:
        describes_run = column.lower() in ABOUT or column.startswith(("_", "tags."))
        if column and not describes_run:
            names.append(column)
    return names


def _by_parameter(file: CsvFile, columns: Sequence[str], value: str) -> dict[str, str]:
    """Returns the column of each hyperparameter, by the name of the hyperparameter.

    Raises:
        DataError: a column is missing, is the metric, or has the name of another.
    """
    by_name: dict[str, str] = {}
    for column in columns:
        file.place(column)
        name = column.removeprefix(PARAMS)
        if column == value:
            raise file.error("the metric is no hyperparameter; leave it out of --params", 1, column)
        if by_name.setdefault(name, column) != column:
            problem = f"another column is called {shorten(one_line(name), 80)} too"
            fix = "list the columns of hyperparameters with --params"
            raise file.error(f"{problem}; {fix}", 1, column)
    return by_name


def _trial(number: int, state: str, value: float | None, metric: str) -> FrozenTrial:
    """Returns the trial of a run, without its hyperparameters and times.

    Args:
        state: the state of the run in the file; empty if the file does not say it.
        value: the value of the metric; None if the file has none.
    """
    trial_state = TrialState.FAIL
    reason = state
    if state.lower() in UNFINISHED:
        trial_state = TrialState.RUNNING
    elif state.lower() in FINISHED:
        if value is None:
            reason = f"no {metric} is stored"
        elif math.isnan(value):
            reason = f"{metric} is NaN"
        else:
            trial_state = TrialState.COMPLETE
    if trial_state != TrialState.COMPLETE:
        value = None
    attributes = {}
    if trial_state == TrialState.FAIL:
        attributes["fail_reason"] = reason
    return FrozenTrial(
        number=number,
        state=trial_state,
        value=value,
        datetime_start=None,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs=attributes,
        intermediate_values={},
        trial_id=number,
    )


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
