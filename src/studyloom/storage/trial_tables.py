"""Tables of a study's trials and learning curves, in memory and as CSV or JSON."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, overload

from optuna.trial import FrozenTrial

from studyloom.json_text import to_json
from studyloom.storage.attributes import COLUMNS
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import escape_formula, html_table

CURVES = ("value", "train_loss", "valid_loss")  # the columns of a learning curve after its epoch
ROWS_IN_NOTEBOOK = 100


@dataclass(frozen=True)
class Rows(Sequence[Mapping[str, Any]]):
    """Rows of equal columns: what studyloom returns instead of a DataFrame without pandas.

    Attributes:
        columns: The names of the columns.
        cells: The cells of each row, in the order of the columns; None for a missing value.
    """

    columns: tuple[str, ...]
    cells: tuple[tuple[object, ...], ...]

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

    def _row(self, cells: tuple[object, ...]) -> dict[str, Any]:
        return dict(zip(self.columns, cells, strict=True))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns a dict for each row."""
        return [self._row(cells) for cells in self.cells]

    def _repr_html_(self) -> str:
        """The rows as a table in a notebook; cells are shown as text, never as HTML."""
        html = html_table(self.columns, self.cells[:ROWS_IN_NOTEBOOK])
        hidden = len(self.cells) - ROWS_IN_NOTEBOOK
        if hidden > 0:
            html += f"<p>and {hidden} more</p>"
        return html


def trial_rows(stored: StoredStudy) -> Rows:
    """Returns a row for each trial of a study, by number.

    The columns are number, state (complete, pruned, failed, paused, running or waiting), value,
    hyperparameters as params.NAME, standard_error (of the value, over several jobs), started,
    seconds, epochs, worker, baseline, proposed_by, failure and reason. If trials have several
    values, a column values.NAME for each replaces value.
    """
    trials = stored.trials()
    objectives = stored.objectives
    param_names = _names_in_order(trial.params for trial in trials)
    if len(objectives) == 1:
        value_columns = ["value"]
    else:
        value_columns = [f"values.{objective.name}" for objective in objectives]
    columns = (
        "number",
        "state",
        *value_columns,
        *(column_of(name) for name in param_names),
        "standard_error",
        "started",
        "seconds",
        "epochs",
        "worker",
        "baseline",
        "proposed_by",
        "failure",
        "reason",
    )
    rows = []
    for trial in trials:
        record = TrialRecord(trial)
        row = (
            trial.number,
            record.outcome,
            *(trial.values or [None] * len(objectives)),
            *(trial.params.get(name) for name in param_names),
            record.standard_error,
            trial.datetime_start,
            record.seconds,
            record.epoch_count,
            record.worker,
            record.is_baseline,
            record.proposer,
            record.failure,
            record.reason,
        )
        rows.append(row)
    return Rows(columns, tuple(rows))


def _names_in_order(groups: Iterable[Iterable[str]]) -> list[str]:
    """Returns the names in all groups, each once, in the order in which they first occur."""
    names: dict[str, None] = {}  # a dict keeps the order
    for group in groups:
        names |= dict.fromkeys(group)
    return list(names)


def column_of(name: str) -> str:
    """Returns the column of a hyperparameter, params.NAME.

    The hyperparameters of a custom training loop have such names already.
    """
    return f"params.{name.removeprefix('params.')}"


def curve_rows(stored: StoredStudy) -> Rows:
    """Returns a row for each epoch of each trial: trial, epoch, value, train_loss, valid_loss.

    A custom training loop has the two losses only if it reports quantities of these names. The
    other quantities that it reports are further columns. A trial that runs has only the values that
    it reported.
    """
    trials = stored.trials()
    names = _names_in_order([CURVES, quantities(trials)])
    rows = []
    for trial in trials:
        for epoch in TrialRecord(trial).epochs():
            quantities_of_epoch = [epoch.get(name) for name in names]
            rows.append((trial.number, epoch.get("number"), *quantities_of_epoch))
    return Rows(("trial", "epoch", *names), tuple(rows))


def quantities(trials: Iterable[FrozenTrial]) -> list[str]:
    """Returns the names of what the epochs of trials have measured, such as train_loss.

    They are in the order in which they first occur. The columns that all learning curves have, such
    as the number and the value of the epoch, are left out.
    """
    names = _names_in_order(TrialRecord(trial).curve for trial in trials)
    return [name for name in names if name not in COLUMNS]


def as_csv(rows: Rows) -> str:
    """Formats rows as CSV below their columns; times in ISO 8601, missing values empty.

    Cells are escaped so that no spreadsheet takes one for a formula.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(escape_formula(column) for column in rows.columns)
    for cells in rows.cells:
        writer.writerow(escape_formula(_plain(cell)) for cell in cells)
    return text.getvalue()


def as_json(rows: Rows) -> str:
    """Formats rows as a JSON list, an object on each line; numbers that are not finite as null."""
    lines = []
    for row in rows.to_dicts():
        lines.append(to_json({column: _plain(cell) for column, cell in row.items()}))
    return "[" + ",\n".join(lines) + "]\n"


def _plain(cell: object) -> object:
    """Returns a cell with a time as text."""
    if isinstance(cell, datetime):
        return cell.isoformat()
    return cell
