"""Trials and learning curves as rows of equal columns, for DataFrames, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any, overload

from optuna.trial import FrozenTrial

from studyloom.metrics import Goal
from studyloom.storage.attributes import (
    BASELINE,
    COLUMNS,
    EPOCHS,
    FAILURE,
    MADE,
    PROPOSED,
    REASON,
    STANDARD_ERROR,
    TIMES,
    WORKER,
)
from studyloom.study.failures import outcome, reason_of
from studyloom.study.stored_study import StoredStudy, epochs
from studyloom.text import printable, without_formula

CURVES = ("value", "train_loss", "valid_loss")  # the columns of a learning curve after its epoch
SHOWN = 100  # rows in a notebook


@dataclass(frozen=True)
class Rows(Sequence[Mapping[str, Any]]):
    """Rows of equal columns: what studyloom returns in place of a DataFrame without pandas.

    Args:
        cells: the cells of each row, in the order of the columns; None for a missing value.
    """

    columns: tuple[str, ...]
    cells: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        return len(self.cells)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._row(cells) for cells in self.cells[index]]
        return self._row(self.cells[index])

    def _row(self, cells: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.columns, cells, strict=True))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns a dict for each row."""
        return [self._row(cells) for cells in self.cells]

    def _repr_html_(self) -> str:
        """The rows as a table in a notebook; whatever is in a cell is shown as text."""
        head = "".join(f"<th>{_as_html(name)}</th>" for name in self.columns)
        lines = [
            "".join(f"<td>{_as_html(cell)}</td>" for cell in cells) for cells in self.cells[:SHOWN]
        ]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        more = len(self.cells) - SHOWN
        note = f"<p>and {more} more</p>" if more > 0 else ""
        return f"<table><tr>{head}</tr>{body}</table>{note}"


def _as_html(cell: Any) -> str:
    return "" if cell is None else escape(printable(str(cell)))


def trial_rows(stored: StoredStudy) -> Rows:
    """Returns a row for each trial of a study, by number.

    The columns are number, state (complete, pruned, failed, paused, running or waiting), value,
    parameters as params.NAME, standard_error (of the value, over several jobs), started, seconds,
    epochs, worker, baseline, proposed_by, failure and reason. If trials have several values, a
    column values.NAME for each takes the place of value.
    """
    trials, goals = stored.trials(), stored.goals
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    values = ["value"] if len(goals) == 1 else [f"values.{goal.name}" for goal in goals]
    columns = ("number", "state", *values, *map(column_of, names))
    columns += (STANDARD_ERROR, "started", "seconds", "epochs", WORKER, BASELINE)
    columns += ("proposed_by", FAILURE, REASON)
    return Rows(columns, tuple(_trial_cells(trial, goals, names) for trial in trials))


def column_of(name: str) -> str:
    """Returns the column of a hyperparameter, params.NAME; that of a loop is named so already."""
    return f"params.{name.removeprefix('params.')}"


def _trial_cells(
    trial: FrozenTrial, goals: Sequence[Goal], names: Sequence[str]
) -> tuple[Any, ...]:
    attrs = trial.user_attrs
    return (
        trial.number,
        outcome(trial),
        *(trial.values or [None] * len(goals)),
        *(trial.params.get(name) for name in names),
        attrs.get(STANDARD_ERROR),
        trial.datetime_start,
        seconds_spent(trial),
        epochs_of(trial),
        attrs.get(WORKER),
        BASELINE in attrs,
        proposer_of(trial),
        attrs.get(FAILURE),
        reason_of(trial),
    )


def proposer_of(trial: FrozenTrial, key: str = "by") -> str | None:
    """Returns by whom, or `why`, a trial was proposed; None if sampler or command chose it."""
    proposed = trial.user_attrs.get(PROPOSED)
    return str(proposed.get(key, "")) if isinstance(proposed, Mapping) else None


def config_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """Returns the configuration that a trial was made of; None if it stored none."""
    config = (trial.user_attrs.get(MADE) or {}).get("config")
    return config if isinstance(config, dict) else None


def epochs_of(trial: FrozenTrial) -> int:
    """Returns how many epochs a trial has trained; of folds and seeds in turn, all of each."""
    curve = trial.user_attrs.get(EPOCHS) or {}
    return max(len(curve.get("value", ())), len(trial.intermediate_values))


def seconds_spent(trial: FrozenTrial) -> float | None:
    """Returns the seconds that workers spent on a trial, without their start-up.

    A trial that did not store them counts from its start to its end, interruptions included.

    Returns:
        None until the trial has ended.
    """
    if not trial.state.is_finished():
        return None
    times: Mapping[str, float] = trial.user_attrs.get(TIMES) or {}
    if "training" in times:
        return round(sum(spent for kind, spent in times.items() if kind != "start-up"), 4)
    return trial.duration.total_seconds() if trial.duration is not None else None


def curve_rows(stored: StoredStudy) -> Rows:
    """Returns a row for each epoch of each trial: trial, epoch, value, train_loss, valid_loss.

    Then come the further quantities of a loop, which has these losses only if it calls them so. A
    trial that runs has only the values that it reported.
    """
    trials = stored.trials()
    names = tuple(dict.fromkeys([*CURVES, *quantities(trials)]))
    rows = (
        (trial.number, epoch.get("number"), *(epoch.get(name) for name in names))
        for trial in trials
        for epoch in epochs(trial)
    )
    return Rows(("trial", "epoch", *names), tuple(rows))


def quantities(trials: Iterable[FrozenTrial]) -> list[str]:
    """Returns the quantities of each epoch beside the value, in the order of the first."""
    names = (name for trial in trials for name in trial.user_attrs.get(EPOCHS) or ())
    return [name for name in dict.fromkeys(names) if name not in COLUMNS]


def as_csv(rows: Rows) -> str:
    """Formats rows as CSV below their columns; times in ISO 8601, missing values empty.

    No cell is a formula to a spreadsheet.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(map(without_formula, rows.columns))
    writer.writerows([without_formula(_plain(cell)) for cell in cells] for cells in rows.cells)
    return written.getvalue()


def as_json(rows: Rows) -> str:
    """Formats rows as a JSON list, an object on each line; numbers that are not finite as null."""
    objects = [{name: _json_value(cell) for name, cell in row.items()} for row in rows.to_dicts()]
    lines = ",\n".join(json.dumps(each, allow_nan=False, default=str) for each in objects)
    return f"[{lines}]\n"


def _plain(cell: Any) -> Any:
    return cell.isoformat() if isinstance(cell, datetime) else cell


def _json_value(cell: Any) -> Any:
    cell = _plain(cell)
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
