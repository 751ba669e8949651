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
from studyloom.views.plain_names import join_lists
from studyloom.views.progress import Progress
from studyloom.views.words import format_trial_values

LAST = 5  # trials of the current stage, next to the best
LEAST_WIDTH = 7  # of a hyperparameter, such as 0.00082: a smaller one would change between looks
GAP = 2  # spaces between two columns


@dataclass(frozen=True)
class _Row:
    """A row of the table.

    Args:
        cells: a mark of the best trial, then the trial's number, state, epochs and value.
        settings: the hyperparameters, formatted, by name.
    """

    cells: tuple[str, ...]
    settings: Mapping[str, str]


def last_trials(progress: Progress, width: int, *, with_best: bool = True) -> list[Sequence[str]]:
    """Returns a table as rows: a header, the best trial, and the last trials of the current stage.

    The last trials are the running ones, and then the trials that ended or paused last; the rows
    are in the order of their numbers. A training of a later stage is shown as the trial that it
    repeats. Columns that do not fit are left out, first those of hyperparameters that are
    unimportant, or that few trials have.

    Args:
        width: the columns of the terminal that a row may take.
        with_best: whether the best trial has a row, and the rows a column that marks it.
    """
    trials = _select_last(progress)
    best = progress.search.best
    if with_best and best is not None:
        trials.insert(0, best)
    rows = [_make_row(trial, progress) for trial in trials]

    # The columns, each with its title first. Those of the settings come last.
    titles = ("", "trial", "state", "epochs", progress.search.metric)
    cells_of_rows = [row.cells for row in rows]
    columns: list[Sequence[str]] = list(zip(titles, *cells_of_rows, strict=True))
    if not with_best:
        del columns[0]  # it marks the best trial
    settings_of_rows = [row.settings for row in rows]
    columns += _make_setting_columns(settings_of_rows, _order_settings(progress))

    fitting_columns = _select_fitting(columns, width)
    return list(zip(*fitting_columns, strict=True))  # as rows again


def _select_fitting(columns: Sequence[Sequence[str]], width: int) -> list[Sequence[str]]:
    """Returns the columns that fit into a width; after one that is too wide, another may fit."""
    fitting = []
    free_width = width + GAP  # no gap follows the last column
    for column in columns:
        column_width = max(map(len, column)) + GAP
        if column_width <= free_width:
            fitting.append(column)
            free_width -= column_width
    return fitting


def _select_last(progress: Progress) -> list[FrozenTrial]:
    """Returns the last LAST trials of the current stage, by number.

    Before a stage has begun, and after the last one, these are trials of the search. The search's
    best trial is not among them, since it is in the first row.
    """
    search_trials = progress.trials.get(SEARCH, ())
    trials = progress.trials.get(progress.title, search_trials)  # the title is that of a stage
    best_number = None  # of a trial that is left out
    if trials is search_trials and progress.search.best is not None:
        best_number = progress.search.best.number
    started = []
    for trial in trials:
        if trial.datetime_start is not None and trial.number != best_number:
            started.append(trial)

    def sort_key(trial: FrozenTrial) -> tuple[bool, datetime]:
        """Sorts trials by their end, and the running ones after them."""
        is_running = TrialRecord(trial).outcome == "running"
        return is_running, find_end_time(trial)

    last = sorted(started, key=sort_key)[-LAST:]
    return sorted(last, key=lambda trial: trial.number)


def _make_row(trial: FrozenTrial, progress: Progress) -> _Row:
    """Makes the row of a trial.

    A training of a later stage repeats a trial of the search with a new seed. Its row has the
    number and the hyperparameters of that trial, and the seed.
    """
    number = trial.number
    settings = trial.params
    is_of_later_stage = progress.title != SEARCH and progress.title in progress.trials
    if is_of_later_stage:
        # Its own hyperparameters are "trial", the number of the trial that it repeats, and "seed".
        for search_trial in progress.trials.get(SEARCH, ()):
            if search_trial.number == trial.params.get("trial"):
                number = search_trial.number
                settings = {"seed": trial.params.get("seed"), **search_trial.params}
    mark = ""
    if trial is progress.search.best:
        mark = "best"
    record = TrialRecord(trial)
    epochs = str(record.steps_done)
    if record.steps_planned is not None:
        epochs = f"{record.steps_done}/{record.steps_planned}"
    state = shown_state(trial, progress.current.live_trials)
    cells = (mark, str(number), state, epochs, _format_value(trial))
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
    """Returns the order of columns: the seed, important hyperparameters, then frequent ones."""
    counts = Counter[str]()
    for trial in progress.trials.get(SEARCH, ()):
        counts.update(trial.params.keys())
    frequent = [name for name, _ in counts.most_common()]
    names = dict.fromkeys(["seed", *progress.importances, *frequent])  # each name once
    return join_lists(names)


def _make_setting_columns(
    rows: Sequence[Mapping[str, str]], order: Iterable[str]
) -> Iterator[tuple[str, ...]]:
    """Yields a column for each title of a hyperparameter that a row has: the title and the cells.

    Hyperparameters that no trial has together may share a title, as `adamw.lr` and `sgd.lr` do.

    Args:
        rows: the hyperparameters of each trial, by name.
        order: names of hyperparameters, whose columns come first.
    """
    titles = _title_settings(rows, order)
    rows_by_title = []
    for row in rows:
        rows_by_title.append({titles[name]: value for name, value in row.items()})
    for title in dict.fromkeys(titles.values()):  # each title once
        if any(title in row for row in rows_by_title):
            cells = [row.get(title, "") for row in rows_by_title]
            yield title.ljust(LEAST_WIDTH), *cells


def _title_settings(rows: Sequence[Mapping[str, str]], order: Iterable[str]) -> dict[str, str]:
    """Returns the title of the column of each hyperparameter, by name.

    It is the last part of the name, so that `adamw.lr` and `sgd.lr` share a column `lr`. If a trial
    has two hyperparameters with the same last part, each has a column with its whole name.
    """
    last_parts = {}
    for names in (order, *rows):
        for name in names:
            _, _, last_part = one_line(name).rpartition(".")
            last_parts[name] = last_part
    ambiguous = set[str]()
    for row in rows:
        counts = Counter(last_parts[name] for name in row)
        for last_part, count in counts.items():
            if count > 1:
                ambiguous.add(last_part)
    titles = {}
    for name, last_part in last_parts.items():
        if last_part in ambiguous:
            titles[name] = one_line(name)
        else:
            titles[name] = last_part
    return titles
