"""The best trial and the last ones, in a table that fits a terminal of any width."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from optuna.trial import FrozenTrial

from studyloom.decisions.early_end import find_end_time
from studyloom.storage.stored_study import SEARCH
from studyloom.storage.trial_record import TrialRecord, shown_state
from studyloom.text import format_value, one_line
from studyloom.views.progress import Progress
from studyloom.views.words import format_trial_values, join_lists

LAST = 5  # trials of the current stage, next to the best
LEAST = 7  # columns of a hyperparameter, such as 0.00082: fewer would change from look to look
GAP = 2  # spaces between two columns


@dataclass(frozen=True)
class _Row:
    """A row of the table.

    Args:
        cells: the mark of the best trial, its number, state, epochs and value.
        settings: the hyperparameters, formatted, by name.
    """

    cells: tuple[str, ...]
    settings: Mapping[str, str]


def last_trials(progress: Progress, width: int, *, with_best: bool = True) -> list[Sequence[str]]:
    """Returns the header of the table, the best trial, and the last of the current stage by number.

    The last are those that run, then those that ended or paused last. A training of a later stage
    is shown as the trial that it repeats. Columns that do not fit are left out, first those of
    unimportant hyperparameters, or of those that few trials have.

    Args:
        with_best: whether the best trial has a row, and the rows a column that marks it.
    """
    trials = _select_last(progress)
    best = progress.search.best
    if with_best and best is not None:
        trials.insert(0, best)
    rows = [_make_row(trial, progress) for trial in trials]
    heads = ("", "trial", "state", "epochs", progress.search.metric)
    cells_of_rows = [row.cells for row in rows]
    columns: list[Sequence[str]] = list(zip(heads, *cells_of_rows, strict=True))
    if not with_best:
        del columns[0]
    columns += _setting_columns([row.settings for row in rows], _order_settings(progress))
    fitting = _select_fitting(columns, width)
    return list(zip(*fitting, strict=True))


def _select_fitting(columns: Sequence[Sequence[str]], width: int) -> list[Sequence[str]]:
    """Returns the columns that fit; after one that is too wide, a narrower one may fit."""
    fitting = []
    room = width + GAP  # no gap follows the last column
    for column in columns:
        size = max(map(len, column)) + GAP
        if size <= room:
            fitting.append(column)
            room -= size
    return fitting


def _select_last(progress: Progress) -> list[FrozenTrial]:
    """Returns the last trainings of the current stage, by number, except the best trial."""
    search = progress.trials.get(SEARCH, ())
    trials = progress.trials.get(progress.title, search)
    best = progress.search.best
    started = []
    for trial in trials:
        is_best = trials is search and best is not None and trial.number == best.number
        if trial.datetime_start is not None and not is_best:
            started.append(trial)

    def running_last(trial: FrozenTrial) -> tuple[bool, datetime]:
        return TrialRecord(trial).outcome == "running", find_end_time(trial)

    last = sorted(started, key=running_last)[-LAST:]
    return sorted(last, key=lambda trial: trial.number)


def _make_row(trial: FrozenTrial, progress: Progress) -> _Row:
    """Makes the row of a trial; a training of a later stage shows its seed and its candidate.

    A candidate is the trial of the search whose configuration the training repeats.
    """
    candidate = trial
    settings = trial.params
    if progress.title != SEARCH and progress.title in progress.trials:
        for searched in progress.trials.get(SEARCH, ()):
            if searched.number == trial.params.get("trial"):
                candidate = searched
                settings = {"seed": trial.params.get("seed"), **searched.params}
    mark = ""
    if trial is progress.search.best:
        mark = "best"
    record = TrialRecord(trial)
    epochs = str(record.steps_done)
    if record.steps_planned is not None:
        epochs = f"{record.steps_done}/{record.steps_planned}"
    state = shown_state(trial, progress.current.live_trials)
    cells = (mark, str(candidate.number), state, epochs, _format_value(trial))
    return _Row(cells, join_lists(settings))


def _format_value(trial: FrozenTrial) -> str:
    """Formats the value of a trial; without one, the last that it reported, or nothing."""
    if trial.values:
        return format_trial_values(trial)
    step = trial.last_step
    if step is None:
        return ""
    return format_value(trial.intermediate_values[step])


def _order_settings(progress: Progress) -> Iterable[str]:
    """Returns the names of columns: the seed, important hyperparameters, then frequent ones."""
    counts = Counter[str]()
    for trial in progress.trials.get(SEARCH, ()):
        for name in trial.params:
            counts[name] += 1
    frequent = [name for name, _ in counts.most_common()]
    return join_lists(dict.fromkeys(["seed", *progress.importances, *frequent]))


def _setting_columns(
    rows: Sequence[Mapping[str, str]], order: Iterable[str]
) -> Iterator[tuple[str, ...]]:
    """Yields a column for each hyperparameter.

    Its title is the last part of the name, so that one column `lr` serves several optimizers; if a
    trial has two such hyperparameters, each has a column with its whole name.

    Args:
        rows: the hyperparameters of each trial, by name.
        order: names of hyperparameters, whose columns come first.
    """
    titles = _title_settings(rows, order)
    rows_by_title = []
    for row in rows:
        rows_by_title.append({titles[name]: value for name, value in row.items()})
    for title in dict.fromkeys(titles.values()):
        cells = [row.get(title, "") for row in rows_by_title]
        if any(title in row for row in rows_by_title):
            yield f"{title:{LEAST}}", *cells


def _title_settings(rows: Sequence[Mapping[str, str]], order: Iterable[str]) -> dict[str, str]:
    """Returns the title of the column of each hyperparameter, by name."""
    last_parts = {}
    for names in (order, *rows):
        for name in names:
            last_parts[name] = one_line(name).rpartition(".")[2]
    ambiguous = set[str]()
    for row in rows:
        counts = Counter(last_parts[name] for name in row)
        ambiguous.update(part for part, count in counts.items() if count > 1)
    titles = {}
    for name, part in last_parts.items():
        titles[name] = part
        if part in ambiguous:
            titles[name] = one_line(name)
    return titles
