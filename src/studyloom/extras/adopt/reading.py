"""Reads the trials of a study that Optuna, W&B or MLflow has stored; nothing is written.

Of a database of Optuna all is read: a SQLite file read-only, so that it does not change. W&B's and
MLflow's exported CSV hold a row for each run, with its hyperparameters and last values.
"""

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from studyloom.errors import StorageError
from studyloom.storage import sql
from studyloom.storage.database import read_only, untrusted
from studyloom.storage.urls import parse_url, without_password
from studyloom.text import name_error, nearest, one_line, shorten

MOST_SECONDS = 120.0  # for reading a database
MOST_ROWS = 200_000  # of a CSV file
# Columns of an exported CSV that describe a run: W&B's and MLflow's.
ABOUT = {
    *("name", "state", "notes", "user", "tags", "created", "runtime", "sweep"),
    *("start time", "duration", "run id", "source type", "source name", "status"),
}
Domain = tuple[BaseDistribution, Callable[[str], Any]]  # of a column, and what reads a cell
BEGUN = ("running", "pending", "scheduled")  # states of a run that has not ended


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
        """The complete trials with finite values, the best first."""
        known = [
            trial
            for trial in self.trials
            if trial.state == TrialState.COMPLETE and trial.values and _is_finite(trial.values[0])
        ]
        return sorted(known, key=lambda trial: (-self.sign * trial.values[0], trial.number))


def read_database(source: str, name: str | None) -> AdoptedStudy:
    """Reads a study from a database, which is a URL or a SQLite file.

    Raises:
        StorageError: it cannot be read, or `name` must name one of several studies.
    """
    url = source if "://" in source else f"sqlite:///{Path(source).absolute()}"
    try:
        with untrusted(MOST_SECONDS):
            if url.startswith(("sqlite", "postgres")):
                with closing(read_only(url)) as storage:
                    return _read(storage, name, without_password(parse_url(url)))
            return _read(RDBStorage(url, skip_table_creation=True), name, None)
    except StorageError:
        raise
    except Exception as error:  # of a driver, or of a cell that Optuna has not written
        words = shorten(one_line(name_error(error)), 300)
        raise StorageError(f"adopt: the database cannot be read: {words}") from None


def _read(storage: BaseStorage, name: str | None, label: str | None) -> AdoptedStudy:
    studies = {study.study_name: study for study in storage.get_all_studies()}
    name = name or next(iter(studies), None) if len(studies) < 2 else name
    if name is None or name not in studies:
        held = shorten(", ".join(map(one_line, studies)) or "none", 300)
        raise StorageError(f"adopt: name the study with --study; the database holds: {held}")
    study = studies[name]
    names = study.system_attrs.get("study:metric_names") or ["value"]
    sign = 1 if study.directions[0] == StudyDirection.MAXIMIZE else -1
    trials = storage.get_all_trials(study._study_id, deepcopy=False)
    own = [*map(sql.without_reserved, trials)]
    return AdoptedStudy(name, one_line(str(names[0])), sign, own, label and f"{label}#{name}")


def read_csv(path: Path, metric: str, sign: int, names: Sequence[str] = ()) -> AdoptedStudy:
    """Reads the runs of an exported CSV file.

    Args:
        metric: the column of the value.
        names: the columns of hyperparameters; none for those that MLflow calls params.NAME, or
            else those before the metric, where W&B and MLflow list them.

    Raises:
        ValueError: it is no such file, or lacks a column.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = [row for row, _ in zip(csv.DictReader(file), range(MOST_ROWS), strict=False)]
        except csv.Error as error:
            raise ValueError(f"{path}: cannot be read as CSV: {error}") from None
    columns = [column for column in rows[0] if column] if rows else []
    value = next((each for each in (metric, f"metrics.{metric}") if each in columns), None)
    if value is None or (missing := [name for name in names if name not in columns]):
        wrong = metric if value is None else missing[0]
        listed = shorten(one_line(", ".join(columns)) or "none", 300)
        raise ValueError(
            f"{path}: there is no column {wrong}{nearest(wrong, columns)}; it has {listed}"
        )
    marked = [column for column in columns if column.startswith("params.")]
    before = columns[: columns.index(value)]
    plain = [c for c in before if c.lower() not in ABOUT and not c.startswith(("_", "tags."))]
    chosen = [*names] or marked or plain
    domains = {c: _domain([row[c] for row in rows if row[c]]) for c in chosen}
    trials = [_trial(row, number, value, domains) for number, row in enumerate(rows)]
    return AdoptedStudy(path.stem, metric, sign, trials)


def _trial(
    row: Mapping[str, Any], number: int, value: str, domains: Mapping[str, Domain]
) -> FrozenTrial:
    words = next((row[c] for c in row if c and c.lower() in ("state", "status") and row[c]), "")
    found = _number(row[value])
    ended = words.lower() in ("finished", "") and found is not None and not math.isnan(found)
    state = TrialState.COMPLETE if ended else TrialState.FAIL
    state = TrialState.RUNNING if words.lower() in BEGUN else state
    known = {name.removeprefix("params."): name for name in domains if row[name]}
    trial = create_trial(
        state=state,
        value=found if state == TrialState.COMPLETE else None,
        params={name: domains[column][1](row[column]) for name, column in known.items()},
        distributions={name: domains[column][0] for name, column in known.items()},
        system_attrs={"fail_reason": words} if state == TrialState.FAIL and words else {},
    )
    trial.number, trial.datetime_start, trial.datetime_complete = number, None, None
    return trial


def _domain(cells: Sequence[str]) -> Domain:
    """Returns the distribution of a column, and what reads a cell."""
    if cells and {cell.lower() for cell in cells} <= {"true", "false"}:
        return CategoricalDistribution([False, True]), lambda cell: cell.lower() == "true"
    numbers = [each for each in map(_number, cells) if each is not None and _is_finite(each)]
    if not cells or len(numbers) < len(cells):
        return CategoricalDistribution([*dict.fromkeys(cells)] or [""]), str
    if all(re.fullmatch(r"-?\d+", cell) for cell in cells):
        whole = [*map(int, cells)]
        return IntDistribution(min(whole), max(whole)), int
    return FloatDistribution(min(numbers), max(numbers)), float


def _number(cell: str | None) -> float | None:
    try:
        return float(cell or "")
    except ValueError:
        return None


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
