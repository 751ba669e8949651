"""The best trial and the last ones, in a table that fits a terminal of any width."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.decisions.early_end import ended_at
from studyloom.storage.stored_study import SEARCH
from studyloom.storage.trial_record import TrialRecord, shown_state
from studyloom.text import format_value, one_line
from studyloom.views.progress import Progress
from studyloom.views.snapshot import format_trial_values, join_lists

LAST = 5  # trials of the current stage, next to the best
LEAST = 7  # columns of a hyperparameter, such as 0.00082: fewer would change from look to look


def last_trials(progress: Progress, width: int, *, with_best: bool = True) -> list[Sequence[str]]:
    """Returns the header of the table, the best trial, and the last of the current stage by number.

    The last are those that run, then those that ended or paused last. A training of a later stage
    is shown as the trial that it repeats. Columns that do not fit are left out, first those of
    unimportant hyperparameters, or of those that few trials have.

    Args:
        with_best: whether the best trial has a row, and the rows a column that marks it.
    """
    search, best = progress.trials.get(SEARCH, ()), progress.search.best
    own, repeated = progress.trials.get(progress.title, search), dict[Any, FrozenTrial]()
    begun = [trial for trial in own if trial.datetime_start is not None]
    if own is not search:
        repeated = {trial.number: trial for trial in search}
    elif best is not None:
        begun = [trial for trial in begun if trial.number != best.number]
    begun.sort(key=lambda trial: (TrialRecord(trial).outcome == "running", ended_at(trial)))
    shown = sorted(begun[-LAST:], key=lambda trial: trial.number)
    if with_best and best is not None:
        shown.insert(0, best)
    rows, params = [], []
    for trial in shown:
        source = repeated.get(trial.params.get("candidate"), trial)
        seed = {} if source is trial else {"seed": trial.params.get("seed")}
        rows.append(("best" if trial is best else "", str(source.number), *_cells(trial, progress)))
        params.append(join_lists(seed | source.params))
    heads = ("", "trial", "state", "epochs", progress.search.metric)
    columns, room = list[Sequence[str]](), width + 2  # two spaces stand between columns
    counts = Counter(name for trial in search for name in trial.params)
    frequent = [name for name, _ in counts.most_common()]
    order = join_lists(dict.fromkeys(["seed", *progress.importances, *frequent]))
    own_columns = [*zip(heads, *rows, strict=True)]
    if not with_best:
        del own_columns[0]
    for column in [*own_columns, *_columns(params, order)]:
        if (size := max(map(len, column)) + 2) <= room:
            columns.append(column)
            room -= size
    return [*zip(*columns, strict=True)]


def _cells(trial: FrozenTrial, progress: Progress) -> tuple[str, ...]:
    """Formats state, epochs and value; of a trial without a value, the last that it reported."""
    record, step = TrialRecord(trial), trial.last_step
    of = "" if record.steps_planned is None else f"/{record.steps_planned}"
    value = "" if step is None else format_value(trial.intermediate_values[step])
    value = format_trial_values(trial) if trial.values else value
    state = shown_state(trial, progress.current.alive)
    return state, f"{record.steps_done}{of}", value


def _columns(rows: Sequence[Mapping[str, str]], order: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yields a column for each hyperparameter.

    It has the last part of the name, and so serves several optimizers; if a trial has two such
    hyperparameters, they have their whole names.

    Args:
        order: names of hyperparameters, which come first.
    """
    last = {key: one_line(key).rpartition(".")[2] for keys in (order, *rows) for key in keys}
    twice = {name for row in rows for name, n in Counter(last[key] for key in row).items() if n > 1}
    short = {key: one_line(key) if name in twice else name for key, name in last.items()}
    named = [{short[key]: value for key, value in row.items()} for row in rows]
    for name in dict.fromkeys(short.values()):
        if any(name in row for row in named):
            yield f"{name:{LEAST}}", *(row.get(name, "") for row in named)
