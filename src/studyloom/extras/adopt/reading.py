"""Reads the trials of a study that Optuna, W&B or MLflow has stored; nothing is written.

Of a database of Optuna all is read: a SQLite file read-only, so that it does not change. W&B's and
MLflow's exported CSV hold a row for each run, with its hyperparameters and last values.
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
# Columns of an exported CSV that describe a run: W&B's and MLflow's.
ABOUT = {
    *("name", "state", "notes", "user", "tags", "created", "runtime", "sweep"),
    *("start time", "duration", "run id", "source type", "source name", "status"),
}
PARAMS = "params."  # begins MLflow's columns of hyperparameters
STATES = ("state", "status")  # the columns of a run's state
BEGUN = ("running", "pending", "scheduled")  # states of a run that has not ended
ENDED = ("finished", "")


@dataclass(frozen=True)
class AdoptedStudy:
    """Holds a study of another program.

    Args:
        metric: the name of the first value of a trial, of which `sign` times it is to be large.
        trials: all of them, by number.
        source: what `study.warm_start` takes for it, without a password; None if it takes nothing.
    """

    name: str
    metric: str
    sign: int
    trials: Sequence[FrozenTrial]
    source: str | None = None

    @cached_property
    def complete(self) -> list[FrozenTrial]:
        """The complete trials with finite values, by number."""
        return [
            trial
            for trial in self.trials
            if trial.state == TrialState.COMPLETE and trial.values and _is_finite(trial.values[0])
        ]

    @cached_property
    def ranked(self) -> list[FrozenTrial]:
        """Those of them that break no constraint, the best first."""
        feasible = [trial for trial in self.complete if is_feasible(trial)]
        return sorted(feasible, key=lambda trial: (-self.sign * trial.values[0], trial.number))


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial breaks no constraint."""
    return all(value <= 0 for value in trial.constraints.values())


def read_database(source: str, name: str | None) -> AdoptedStudy:
    """Reads a study from a database, which is a URL or a SQLite file.

    Raises:
        StorageError: it cannot be read, or `name` must name one of several studies.
    """
    is_url = "://" in source
    address = None if is_url else sqlite_url(Path(source))
    try:
        if is_url and source.startswith(("sqlite", "postgres")):
            address = parse_url(source)
        with untrusted(MOST_SECONDS):
            if address is not None:
                with closing(read_only(address)) as storage:
                    return _read(storage, name, without_password(address))
            return _read(RDBStorage(source, skip_table_creation=True), name, None)
    except StorageError:
        raise
    except Exception as error:  # of a driver, or of a cell that Optuna has not written
        reason = shorten(one_line(name_error(error)), 300)
        raise StorageError(f"adopt: the database cannot be read: {reason}") from None


def _read(storage: BaseStorage, name: str | None, label: str | None) -> AdoptedStudy:
    studies = {study.study_name: study for study in storage.get_all_studies()}
    if name is None and len(studies) == 1:
        name = next(iter(studies))
    if name is None or name not in studies:
        held = shorten(", ".join(map(one_line, studies)) or "none", 300)
        raise StorageError(f"adopt: name the study with --study; the database holds: {held}")
    study = studies[name]
    cells.check_directions(study.directions)
    objective = read_objectives(study.system_attrs.get(METRIC_NAMES), study.directions)[0]
    stored = storage.get_all_trials(study._study_id, deepcopy=False)
    trials = [sql.without_reserved(trial) for trial in stored]
    source = None if label is None else f"{label}#{name}"
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
    marked = f"metrics.{metric}"
    if metric not in file.columns and marked in file.columns:
        values = file.numbers(marked)
        value = marked
    else:
        values = file.numbers(metric)
        value = metric
    columns = _by_parameter(file, names or _parameter_columns(file, value), value)
    domains = {name: file.domain(column) for name, column in columns.items()}
    places = {name: file.place(column) for name, column in columns.items()}
    state_places = [at for at, name in enumerate(file.columns) if name.lower() in STATES]
    trials = []
    for number, row in enumerate(file.rows):
        states = [row.cells[place] for place in state_places if row.cells[place]]
        trial = _trial(number, states[0] if states else "", values[number], metric)
        _set_params(trial, row, places, domains)
        trials.append(trial)
    return AdoptedStudy(path.stem, metric, sign, trials)


def _parameter_columns(file: CsvFile, value: str) -> list[str]:
    """Returns the columns of hyperparameters where --params does not name them."""
    marked = [column for column in file.columns if column.startswith(PARAMS)]
    if marked:
        return marked
    before = file.columns[: file.place(value)]
    return [
        column
        for column in before
        if column and column.lower() not in ABOUT and not column.startswith(("_", "tags."))
    ]


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
            problem = f"another column is called {shorten(one_line(name), 80)} too; list the "
            problem += "columns of hyperparameters with --params"
            raise file.error(problem, 1, column)
    return by_name


def _trial(number: int, state: str, value: float | None, metric: str) -> FrozenTrial:
    """Returns the trial of a run, without its hyperparameters and times."""
    kind = TrialState.FAIL
    reason = state
    if state.lower() in BEGUN:
        kind = TrialState.RUNNING
    elif state.lower() in ENDED:
        if value is None:
            reason = f"no {metric} is stored"
        elif math.isnan(value):
            reason = f"{metric} is NaN"
        else:
            kind = TrialState.COMPLETE
    return FrozenTrial(
        number=number,
        state=kind,
        value=value if kind == TrialState.COMPLETE else None,
        datetime_start=None,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={"fail_reason": reason} if kind == TrialState.FAIL else {},
        intermediate_values={},
        trial_id=number,
    )


def _set_params(
    trial: FrozenTrial, row: Row, places: Mapping[str, int], domains: Mapping[str, Domain]
) -> None:
    for name, place in places.items():
        cell = row.cells[place]
        if cell:
            trial.params[name] = domains[name].read(cell)
            trial.distributions[name] = domains[name].distribution


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
