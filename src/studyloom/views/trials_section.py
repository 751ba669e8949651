"""The section of a report with the table of all trials."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.storage import trial_tables
from studyloom.storage.stored_study import StoredStudy, rank_by_value
from studyloom.storage.trial_record import TrialRecord, shown_state
from studyloom.text import (
    format_duration,
    format_parameter,
    format_value,
    shorten,
    shorten_names,
    write_minus,
)
from studyloom.views import page
from studyloom.views.snapshot import Snapshot
from studyloom.views.trial_details import collect_details, read_logs

MOST_COLUMNS = 100  # of the table of trials; 2,000 hyperparameters took 200 MB
# The titles of columns of `trial_tables`, where they differ from the name of the column.
COLUMN_TITLES = {
    "standard_error": "± error",
    "proposed_by": "proposed by",
    "seconds": "time",
    "reason": "why",
}
LONGEST = 60  # characters of a cell


def render_trials(
    stored: StoredStudy,
    snapshot: Snapshot,
    winner_number: int | None,
    shares: Mapping[str, float],
    run_dir: Path | None,
) -> page.Section:
    """Renders the table of all trials, without empty columns; `studyloom trials --csv` has all.

    The most important hyperparameters come first, then those that most trials have; of very many,
    only the first are shown.

    Args:
        winner_number: the trial of the winner; None without one.
        shares: the importances; empty if there are none.
        run_dir: where the trials' logs are, if known.
    """
    table = trial_tables.trial_rows(stored)
    if not table:
        return page.make_section("trials", [page.Absent("No trial has begun yet.")])
    columns: dict[str, list[Any]] = {}  # the cells of each column, by its name
    for position, name in enumerate(table.columns):
        columns[name] = [row[position] for row in table.cells]
    ranked = _rank_parameter_columns(columns, shares)
    parameters = ranked[:MOST_COLUMNS]
    objectives = [name for name in columns if name.partition(".")[0] in ("value", "values")]
    shown_columns = {}
    for name in (
        *objectives,
        "standard_error",
        "epochs",
        *parameters,
        "proposed_by",
        "seconds",
        "reason",
    ):
        if any(cell is not None for cell in columns[name]):
            shown_columns[name] = columns[name]

    titles = _title_columns(objectives, ranked, snapshot.metric)
    head = []
    for name, cells in shown_columns.items():
        full_name = ""
        if name in ranked:
            full_name = name.removeprefix("params.")
        has_text = any(isinstance(cell, str | bool | list) for cell in cells)
        order = ""
        if name == objectives[0]:
            order = "ascending"
            if stored.sign > 0:
                order = "descending"
        column = page.Column(titles.get(name, name), has_text, parameter=full_name, order=order)
        head.append(column)
    trials_by_number = {trial.number: trial for trial in stored.trials()}
    trials = [trials_by_number[number] for number in columns["number"]]
    rows = _make_trial_rows(trials, shown_columns, snapshot, winner_number, run_dir)
    ranked_trials = rank_by_value(trials, stored.sign)
    ranks = {trial.number: rank for rank, trial in enumerate(ranked_trials)}
    rows.sort(key=lambda row: ranks[row.number])
    section = page.make_section("trials", [page.Trials(head, rows)])
    if len(parameters) < len(ranked):
        note = (
            f"Of {len(ranked)} hyperparameters the {len(parameters)} most important are shown; "
            "studyloom trials --csv has all."
        )
        section = replace(section, caption=f"{section.caption} {note}")
    return section


def _make_trial_rows(
    trials: Sequence[FrozenTrial],
    columns: Mapping[str, Sequence[Any]],
    snapshot: Snapshot,
    winner_number: int | None,
    run_dir: Path | None,
) -> list[page.Row]:
    """Returns a row for each trial, with its cells and the details that a click shows.

    Args:
        columns: the cells of each column, in the order of the trials.
        winner_number: the trial of the winner; None without one.
        run_dir: where the trials' logs are, if known.
    """
    logs: Mapping[int, str] = {}
    if run_dir is not None:
        logs = read_logs(run_dir, trials)
    rows = []
    for position, trial in enumerate(trials):
        marks = []
        if trial.number == winner_number:
            marks.append("winner")
        if snapshot.best is not None and trial.number == snapshot.best.number:
            marks.append("best")
        if TrialRecord(trial).is_baseline:
            marks.append("baseline")
        row = page.Row(
            number=trial.number,
            state=shown_state(trial, snapshot.live_trials),
            cells=[_make_cell(name, cells[position]) for name, cells in columns.items()],
            mark=", ".join(marks),
            more=collect_details(trial, logs.get(trial.number, ""), snapshot.live_trials),
        )
        rows.append(row)
    return rows


def _rank_parameter_columns(
    columns: Mapping[str, Sequence[object]], shares: Mapping[str, float]
) -> list[str]:
    """Returns the columns of hyperparameters: the most important, then the fullest first."""
    share_by_column = {trial_tables.column_of(name): share for name, share in shares.items()}

    def sort_key(name: str) -> tuple[float, int]:
        share = share_by_column.get(name, 0.0)
        empty_cells = columns[name].count(None)
        return -share, empty_cells

    names = [name for name in columns if name.startswith("params.")]
    return sorted(names, key=sort_key)


def _title_columns(values: Iterable[str], parameters: Iterable[str], metric: str) -> dict[str, str]:
    """Returns the titles of columns by name; the names of hyperparameters are shortened.

    Args:
        values: the columns of the objectives.
        parameters: the columns of all hyperparameters, also of those that are not shown: a short
            name must not fit one of these either.
    """
    titles = {**COLUMN_TITLES}
    for name in values:
        titles[name] = name.removeprefix("values.")
    titles["value"] = metric
    full_names = {name: name.removeprefix("params.") for name in parameters}
    other_titles = ["trial", "state", "epochs", *titles.values()]
    short_names = shorten_names(full_names.values(), other_titles)
    for name, full_name in full_names.items():
        titles[name] = short_names[full_name]
    return titles


def _make_cell(name: str, value: Any) -> page.Cell:
    """Makes a cell of a column: its text, and the value by which the table is sorted."""
    if value is None:
        return page.Cell("")
    if name == "seconds" and value < 10:
        text = f"{value:.1f} s"
    elif name == "seconds":
        text = format_duration(value)
    elif isinstance(value, float) and not name.startswith("params."):
        text = format_value(value)
    else:
        text = shorten(format_parameter(value), LONGEST)
        if isinstance(value, int | float):
            text = write_minus(text)
    return page.Cell(text, value)
