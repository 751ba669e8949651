"""One trial on a terminal, as `studyloom trials RUN_DIR NUMBER` shows it."""

from collections.abc import Iterator, Sequence
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console

from studyloom.errors import ConfigError
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import (
    format_duration,
    format_parameter,
    format_ranges,
    format_value,
    indented,
    one_line,
)
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.views.terminal import describe_proposer
from studyloom.views.terminal_lines import align_rows, say
from studyloom.views.trial_details import describe_end
from studyloom.views.words import format_each_value

MOST_EPOCHS = 10  # last values of a learning curve that are printed


def print_trial(stored: StoredStudy, number: int, console: Console) -> None:
    """Prints a trial: how it ended, its values, and its hyperparameters next to the baseline's.

    Raises:
        ConfigError: the study has no trial of this number.
    """
    snapshot = take_snapshot(stored)
    numbers = [trial.number for trial in snapshot.trials]
    for trial in snapshot.trials:
        if trial.number == number:
            say(console, "\n".join(_describe_trial(trial, snapshot)))
            return
    existing = "it has no trials yet"
    if numbers:
        existing = f"it has {format_ranges(numbers)}"
    raise ConfigError(f"study {one_line(stored.name)} has no trial {number}; {existing}")


def _describe_trial(trial: FrozenTrial, snapshot: Snapshot) -> Iterator[str]:
    """Yields the lines about a trial."""
    roles = []
    for role, notable in (("best", snapshot.best), ("baseline", snapshot.baseline)):
        if notable is not None and notable.number == trial.number:
            roles.append(f", {role}")
    yield f"trial {trial.number}{''.join(roles)}{describe_proposer(trial)}"
    yield one_line(describe_end(trial, snapshot.live_trials))
    if trial.values:
        names = (snapshot.metric, *snapshot.costs)
        named_values = zip(names, format_each_value(trial), strict=False)
        yield ", ".join(f"{name} {value}" for name, value in named_values)
    record = TrialRecord(trial)
    facts = []
    if trial.datetime_start is not None:
        facts.append(f"began {trial.datetime_start:%Y-%m-%d %H:%M:%S}")
    if record.seconds is not None:
        facts.append(f"took {format_duration(record.seconds)}")
    if record.worker:
        facts.append(f"worker {one_line(str(record.worker))}")
    if facts:
        yield ", ".join(facts)
    yield ""
    yield from align_rows(_compare_parameters(trial, snapshot), text_columns=None)
    last_values = record.curve.get("value", [])[-MOST_EPOCHS:]
    if last_values:
        yield ""
        yield f"after each epoch, the last {len(last_values)}: {_format_curve(last_values)}"
    if record.traceback is not None:
        yield ""
        yield indented(str(record.traceback))


def _compare_parameters(trial: FrozenTrial, snapshot: Snapshot) -> list[Sequence[str]]:
    """Returns a row for each hyperparameter of a trial, with the value of the baseline."""
    rows: list[Sequence[str]] = [("hyperparameter", "this trial", "baseline")]
    baseline_params: dict[str, Any] = {}
    if snapshot.baseline is not None:
        baseline_params = snapshot.baseline.params
    for name in {**trial.params, **baseline_params}:
        cells = [one_line(name)]
        for params in (trial.params, baseline_params):
            cell = "–"
            if name in params:
                cell = format_parameter(params[name])
            cells.append(cell)
        rows.append(cells)
    if len(rows) == 1:
        rows.append(("default configuration", "", ""))
    return rows


def _format_curve(values: Sequence[object]) -> str:
    """Formats the values of a learning curve in one line; a dash for what is no number."""
    texts = []
    for value in values:
        text = "–"
        if isinstance(value, int | float):
            text = format_value(value)
        texts.append(text)
    return " ".join(texts)
