"""Reads the runs of an experiment from MLflow's SQLite file, which stays unchanged.

SQLite asks an allow list before each access: a query can read the tables below and nothing else, so
that no code of the file, such as a view, is executed.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from studyloom.errors import DataError, StudyloomError
from studyloom.extras.adopt.csv_file import choose_domain
from studyloom.extras.adopt.tracked_runs import Run, check_metric, check_settings, choose_study
from studyloom.text import name_error, one_line, shorten

MAX_SECONDS = 120.0  # for reading a database
MAX_ROWS = 2_000_000  # of a query
MAX_CELL_BYTES = 1_000_000
MAX_REASON_LENGTH = 300  # characters of an error of SQLite
INSTRUCTIONS_PER_LOOK = 10_000  # that SQLite executes between looks at the time
TABLES = ("experiments", "runs", "params", "metrics")
ALLOWED_TABLES = ("sqlite_master", *TABLES)
IS_PLAIN_TABLE = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
ACTIVE = "active"  # the stage of a run that is not deleted
TEXT_TYPES = (str, int, float)  # of a cell that holds a name or a setting


@dataclass(frozen=True)
class MlflowDatabase:
    """A SQLite file of MLflow."""

    path: Path

    def error(self, problem: str) -> DataError:
        """Returns the error of the file."""
        return DataError(f"{one_line(str(self.path))}: {problem}")

    def is_present(self) -> bool:
        """Returns whether the path is a SQLite file with the tables of MLflow."""
        if not self.path.is_file():
            return False
        try:
            with self._connect() as connection:
                names = {name for (name,) in connection.execute(IS_PLAIN_TABLE)}
        except sqlite3.Error:
            return False
        return names.issuperset(TABLES)

    def choose_runs(
        self, experiment: str | None, metric: str | None, names: Sequence[str]
    ) -> tuple[str, str, list[Run]]:
        """Returns the experiment and the metric that are read, and the runs in their order.

        Args:
            experiment: the name of the experiment; None for the only one that has runs.
            names: the settings that the user names as hyperparameters.

        Raises:
            ConfigError: no metric is named.
            DataError: there is no such experiment, metric or setting, or the file cannot be read.
        """
        try:
            with self._connect() as connection:
                experiments = _read_experiments(connection)
                chosen_name = choose_study(self, experiment, experiments, "experiment")
                rows = _read_rows(connection, experiments[chosen_name])
                ids = {row.run_id for row in rows}
                metrics = _read_metrics(connection, ids)
                chosen_metric = check_metric(self, metric, metrics)
                values = _read_values(connection, chosen_metric)
                settings = _read_settings(connection, ids)
        except StudyloomError:
            raise
        except (sqlite3.Error, TypeError, ValueError) as error:
            reason = shorten(one_line(name_error(error)), MAX_REASON_LENGTH)
            raise self.error(f"cannot be read: {reason}") from None
        runs = []
        for row in rows:
            run_id = row.run_id
            run_values = values.get(run_id, [])
            run_settings = settings.get(run_id, {})
            run = Run(row.name, row.status, run_settings, run_values, row.start, row.end)
            runs.append(run)
        check_settings(self, names, runs)
        return chosen_name, chosen_metric, runs

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """Opens the file read-only, with limits of time and size, and with the allow list."""
        url = f"file:{quote(str(self.path.absolute()))}?mode=ro"
        with closing(sqlite3.connect(url, uri=True)) as connection:
            end = time.monotonic() + MAX_SECONDS

            def is_over() -> bool:
                return time.monotonic() > end

            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL_BYTES)
            connection.set_progress_handler(is_over, INSTRUCTIONS_PER_LOOK)
            _check_columns(connection)
            connection.set_authorizer(_authorize)
            yield connection


def _check_columns(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError if a table computes a column, which is code of the file."""
    for table in TABLES:
        query = f"SELECT name FROM pragma_table_xinfo('{table}') WHERE hidden"
        for (name,) in connection.execute(query):
            raise sqlite3.DatabaseError(f"{table}.{name} is computed")


def _authorize(action: int, table: str | None, _column: object, _base: object, view: object) -> int:
    """Allows SQLite to read a cell of an allowed table outside of a view; denies all else."""
    reads_allowed_table = action == sqlite3.SQLITE_READ and table in ALLOWED_TABLES
    if view is None and (action == sqlite3.SQLITE_SELECT or reads_allowed_table):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


@dataclass(frozen=True)
class RunRow:
    """A row of the table of runs."""

    run_id: str
    name: str
    status: str
    start: datetime | None
    end: datetime | None


def _query(connection: sqlite3.Connection, columns: str, table: str) -> Iterator[Sequence[object]]:
    """Yields the rows of a table; raises ValueError if it has too many."""
    for count, row in enumerate(connection.execute(f"SELECT {columns} FROM {table}")):
        if count >= MAX_ROWS:
            raise ValueError(f"{table} has more than {MAX_ROWS:,} rows")
        yield row


def _read_experiments(connection: sqlite3.Connection) -> dict[str, set[object]]:
    """Returns the ids of the experiments that have runs, by name; workspaces may share a name."""
    used_ids = {row[0] for row in _query(connection, "experiment_id", "runs")}
    ids_by_name: dict[str, set[object]] = {}
    for experiment_id, name in _query(connection, "experiment_id, name", "experiments"):
        if experiment_id in used_ids:
            ids_by_name.setdefault(str(name), set()).add(experiment_id)
    return ids_by_name


def _read_rows(connection: sqlite3.Connection, experiments: set[object]) -> list[RunRow]:
    """Returns the rows of runs that are not deleted, in the order in which they began.

    Args:
        experiments: the ids of the experiments whose runs are read.
    """
    columns = "run_uuid, name, status, start_time, end_time, experiment_id, lifecycle_stage"
    timed_rows = []
    for run_id, name, status, start, end, experiment, stage in _query(connection, columns, "runs"):
        if stage == ACTIVE and experiment in experiments:
            row = RunRow(
                run_id=str(run_id),
                name=str(name or run_id),
                status=str(status).lower(),
                start=_local_time(start),
                end=_local_time(end),
            )
            timed_rows.append((_to_integer(start), row.run_id, row))
    timed_rows.sort(key=lambda timed_row: timed_row[:2])
    return [row for _, _, row in timed_rows]


def _read_metrics(connection: sqlite3.Connection, run_ids: set[str]) -> set[str]:
    """Returns the names of the metrics of runs."""
    metrics = set()
    for name, run_id in _query(connection, "key, run_uuid", "metrics"):
        if run_id in run_ids:
            metrics.add(str(name))
    return metrics


def _read_values(connection: sqlite3.Connection, metric: str) -> dict[str, list[float]]:
    """Returns the values of a metric in the order of their steps, by the id of the run."""
    points_by_run: dict[str, list[tuple[int, int, float]]] = {}
    columns = "key, run_uuid, step, timestamp, value, is_nan"
    for name, run_id, step, timestamp, value, is_nan in _query(connection, columns, "metrics"):
        if name == metric:
            number = float("nan")
            if not is_nan:
                number = _to_float(value)
            point = (_to_integer(step), _to_integer(timestamp), number)
            points_by_run.setdefault(str(run_id), []).append(point)
    values = {}
    for run_id, points in points_by_run.items():
        points.sort(key=lambda point: point[:2])
        values[run_id] = [number for _, _, number in points]
    return values


def _read_settings(
    connection: sqlite3.Connection, run_ids: set[str]
) -> dict[str, dict[str, object]]:
    """Returns the parameters of each run by name, as truth values, numbers or text.

    MLflow stores text. It is read as a number if all runs have numbers there.
    """
    cells_by_name: dict[str, dict[str, str]] = {}  # by the name, then the id of the run
    for name, value, run_id in _query(connection, "key, value, run_uuid", "params"):
        if run_id in run_ids and isinstance(value, TEXT_TYPES):
            cells_by_name.setdefault(str(name), {})[str(run_id)] = str(value)
    settings: dict[str, dict[str, object]] = {}
    for name, cells in cells_by_name.items():
        read = choose_domain([*cells.values()]).read
        for run_id, cell in cells.items():
            settings.setdefault(run_id, {})[name] = read(cell)
    return settings


def _to_integer(cell: object) -> int:
    """Returns the integer in a cell, which any program may have written; 0 without one."""
    if isinstance(cell, int):
        return cell
    return 0


def _to_float(cell: object) -> float:
    """Returns the number in a cell; raises TypeError for something else."""
    if not isinstance(cell, int | float):
        raise TypeError(f"metrics: value must be a number; got {shorten(repr(cell), 80)}")
    return float(cell)


def _local_time(milliseconds: object) -> datetime | None:
    """Returns a time in local time, as Optuna stores it; None without one."""
    if not isinstance(milliseconds, int):
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000)
    except (OverflowError, ValueError, OSError):
        return None
