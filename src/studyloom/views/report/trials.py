"""The table of all trials: state, values, parameters, time, and why one failed."""

from typing import Any

from studyloom.storage.attributes import BASELINE
from studyloom.study.rows import Rows, trial_rows
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_duration, format_parameter, format_value, shorten
from studyloom.views.report.blocks import Absent, Block, Cell, Row, Section, Trials
from studyloom.views.snapshot import Snapshot

CAPTION = (
    "All trials, with their parameters. A click on a title sorts by it; the field above shows only "
    "the rows that hold all of its words, such as “cnn complete”."
)
SHOWN = {"standard_error": "± error", "seconds": "time", "reason": "why"}  # by its column
# Of a table for people; all columns are in the output of `studyloom trials --csv`.
LEFT_OUT = ("started", "worker", "baseline", "failure", "state", "number")
NOTHING = "No trial has begun yet."
LONGEST = 60  # characters of a cell


def trials_section(stored: StoredStudy, snapshot: Snapshot, won: Any) -> Section:
    """Renders the table of all trials.

    Args:
        stored: the study.
        snapshot: the same at this moment.
        won: the number of the winner's trial, if there is one.
    """
    rows = trial_rows(stored)
    block: Block = trial_table(rows, snapshot, won) if rows.cells else Absent(NOTHING)
    return Section("trials", "All trials", [block], CAPTION)


def trial_table(rows: Rows, snapshot: Snapshot, won: Any) -> Trials:
    """Returns the rows as a table for people; columns of which all cells are empty are left out.

    Args:
        rows: as `trial_rows` makes them.
        snapshot: the study at this moment.
        won: the number of the winner's trial, if there is one.
    """
    columns = [
        position
        for position, name in enumerate(rows.columns)
        if name not in LEFT_OUT and any(cells[position] is not None for cells in rows.cells)
    ]
    names = [rows.columns[position] for position in columns]
    at = {name: rows.columns.index(name) for name in ("number", "state", BASELINE)}
    table = []
    for cells in rows.cells:
        number = cells[at["number"]]
        marks = [
            name
            for name, is_so in (
                ("winner", number == won),
                ("best", snapshot.best is not None and snapshot.best.number == number),
                ("baseline", bool(cells[at[BASELINE]])),
            )
            if is_so
        ]
        shown = [
            _cell(name, cells[position]) for name, position in zip(names, columns, strict=True)
        ]
        table.append(Row(number, cells[at["state"]], shown, ", ".join(marks)))
    words = [
        place
        for place, position in enumerate(columns)
        if any(isinstance(cells[position], str | bool | list) for cells in rows.cells)
    ]
    return Trials([_title(name, snapshot) for name in names], words, table)


def _title(name: str, snapshot: Snapshot) -> str:
    if name == "value":
        return snapshot.metric
    return SHOWN.get(name, name.removeprefix("params.").removeprefix("values."))


def _cell(name: str, value: Any) -> Cell:
    if value is None:
        return Cell("")
    if name == "seconds":
        return Cell(format_duration(value) if value >= 10 else f"{value:.1f} s", value)
    if isinstance(value, float) and not name.startswith("params."):
        return Cell(format_value(value), value)
    return Cell(shorten(format_parameter(value), LONGEST), value)
