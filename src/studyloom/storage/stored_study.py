"""A study in its database: its definition, its trials, and which of them are best."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, overload

import msgspec
import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studyloom.errors import ConfigError, Halted, UndefinedObjective
from studyloom.metrics import COSTS, Direction, ObjectiveValue
from studyloom.space.rule import Condition, Rule
from studyloom.storage import sql
from studyloom.storage.attributes import (
    CODE_CHANGES,
    COLUMNS,
    DEFINITION,
    FORMER_SLOT,
    HALTED,
    RULE,
    TEST_USES,
)
from studyloom.storage.database import Connection
from studyloom.storage.failures import UNDEFINED
from studyloom.storage.ledger import Ledger, Store
from studyloom.storage.retry import Retry
from studyloom.storage.trial_buffer import TrialBuffer
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import html_table, mask_passwords, one_line, without_formula
from studyloom.user_code.digests import code_of

CONSTRAINTS = "objective.constraints."  # the keys of limits of costs begin so
SEARCH, REEVALUATION, FINAL_TRAINING = "search", "re-evaluation", "final-training"
ABLATION = "ablation"
CURVES = ("value", "train_loss", "valid_loss")  # the columns of a learning curve after its epoch
SHOWN = 100  # rows in a notebook
STAGE_NAME = re.compile(
    r"(?P<study>[^/]*)/(?P<title>[\w-]+) "
    r"(?P<trials>\d+)-(?P<top>\d+)-(?P<seeds>\d+)(?: (?P<details>.*))?"
)


@dataclass(frozen=True)
class StageName:
    """Names the study of a later stage by all that its trainings depend on.

    It is STUDY/TITLE TRIALS-TOP-SEEDS, followed by what else changes the trainings, such as a rule:
    `mnist/re-evaluation 40-5-3 max accuracy where parameters <= 10000`.

    Args:
        study: the name of the search.
        trials: the budget of the search.
        top: how many trials of the search are candidates, in addition to the baseline.
        seeds: how many seeds each candidate is trained with.
        details: what else changes the trainings; "" for nothing.
    """

    study: str
    title: str
    trials: int
    top: int
    seeds: int
    details: str = ""

    def __str__(self) -> str:
        numbers = f"{self.trials}-{self.top}-{self.seeds}"
        return f"{self.study}/{self.title} {numbers} {self.details}".rstrip()

    def with_detail(self, detail: str) -> "StageName":
        return replace(self, details=f"{self.details} {detail}".strip())

    @classmethod
    def parse(cls, name: str) -> "StageName | None":
        """Reads the name of a study; None if it is not that of a later stage."""
        match = STAGE_NAME.fullmatch(name)
        return None if match is None else msgspec.convert(match.groupdict(""), cls, strict=False)


def owner_of(name: str) -> str | None:
    """Returns the study whose later stage has this name; None if it is the name of a search.

    No name that a user gives has a slash.
    """
    owner, slash, _ = name.partition("/")
    return owner if slash else None


@dataclass(frozen=True)
class StoredStudy:
    """A stored study: Optuna's tables, and the ledger of its budget."""

    name: str
    storage: TrialBuffer
    optuna: Study
    ledger: Ledger

    def close(self) -> None:
        """Closes the connections; the last to a SQLite file removes the file's two side files."""
        self.storage.close()

    @property
    def retry(self) -> Retry:
        """What repeats calls while the database is away; `stopping` lets them wait for less."""
        return self.storage.retry

    def trials(self, whole: bool = False) -> list[FrozenTrial]:
        """Returns the trials that fill slots, by number; they must not be changed.

        Of an Optuna study these are all trials, without attributes that look like studyloom's.

        Args:
            whole: whether each has all its attributes, also while this worker has a trial.
        """
        if whole:
            trials = self.storage.read_complete(self.ledger.study_id)
        else:
            trials = self.optuna.get_trials(deepcopy=False)
        return (
            [*filter(self._counts, trials)] if self.ours else [*map(sql.without_reserved, trials)]
        )

    def lock_trials(self, connection: Connection) -> list[FrozenTrial]:
        """Reads the trials that fill slots; until the commit no process makes another."""
        ledger = self.ledger
        sql.lock_study(connection, ledger.study_id, ledger.uuid)
        trials = sql.read_all_light(connection, ledger.study_id)
        return [trial for trial in trials if sql.fills_slot(trial)]

    def reconcile(self, trials: int) -> bool:
        """Repairs and extends the ledger, see `ledger.reconcile`; returns whether it had to."""
        return self.ledger.reconcile(self.name, trials)

    def _counts(self, trial: FrozenTrial) -> bool:
        return not self.ours or sql.fills_slot(trial)

    def uncounted(self) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Returns the other trials, which are kept, but neither counted nor compared.

        Returns:
            Those of other programs; and those that were set aside for another one in their slot.
        """
        others = [t for t in self.optuna.get_trials(deepcopy=False) if not self._counts(t)]
        aside = [trial for trial in others if FORMER_SLOT in trial.user_attrs]
        return [trial for trial in others if FORMER_SLOT not in trial.user_attrs], aside

    def worked_on(self) -> list[FrozenTrial]:
        """Returns the trials that took the time of workers: also those that were set aside."""
        _, aside = self.uncounted()
        return [*self.trials(), *aside]

    @cached_property
    def ours(self) -> bool:
        """Whether studyloom has created the study."""
        return self.definition() is not None

    @property
    def is_stage(self) -> bool:
        """Whether it is the study of a later stage, and no search."""
        return owner_of(self.name) is not None

    def halted(self) -> str | None:
        """Returns why the study has stopped itself, without passwords; None if it has not."""
        (reason,) = self.attributes(HALTED)
        return reason and mask_passwords(reason)

    def check_halted(self, prefix: str = "") -> None:
        """Raises Halted if the study has stopped itself; as UndefinedObjective, by its metric."""
        reason = self.halted()
        if reason is not None:
            known = ((record.failure, record.reason) for record in map(TrialRecord, self.trials()))
            error = UndefinedObjective if (UNDEFINED, reason) in known else Halted
            raise error(f"{prefix}{reason}")

    @cached_property
    def objectives(self) -> tuple[ObjectiveValue, ...]:
        """The objective for each value of a trial: the metric, then costs."""
        return read_objectives(self.optuna.metric_names, self.optuna.directions)

    @property
    def metric(self) -> str:
        """The name of a trial's value; of the first if it has several."""
        return self.objectives[0].name

    @property
    def sign(self) -> int:
        """1 if more of the metric is better, else -1."""
        return self.objectives[0].sign

    def feasible(self) -> list[FrozenTrial]:
        """Returns the complete trials that break no constraint, by number."""
        return [
            trial
            for trial in self.trials()
            if trial.state == TrialState.COMPLETE
            and all(value <= 0 for value in (trial.constraints or {}).values())
        ]

    def costs(self, trial: FrozenTrial) -> tuple[float, ...]:
        """Returns the values of a complete trial, with signs such that less of each is better."""
        return tuple(
            -objective.sign * value
            for objective, value in zip(self.objectives, trial.values, strict=True)
        )

    def front(self) -> list[FrozenTrial]:
        """Returns the Pareto front, the best by the first value first.

        A feasible trial is on it unless another one is as good in all values and better in one. Of
        trials with equal values, all are on it.
        """
        front: list[FrozenTrial] = []
        # In this order no trial is beaten by a later one, and one that is beaten is beaten by a
        # trial of the front.
        for trial in sorted(self.feasible(), key=lambda trial: (self.costs(trial), trial.number)):
            costs = self.costs(trial)
            beaten = (
                better != costs and all(a <= b for a, b in zip(better, costs, strict=True))
                for better in map(self.costs, front)
            )
            if not any(beaten):
                front.append(trial)
        return front

    @cached_property
    def cost_names(self) -> tuple[str, ...]:
        """The names of the costs that a trial may have: those of a network, and those of a loop."""
        keys = [key for key in self.definition() or {} if key.startswith(CONSTRAINTS)]
        return (*COSTS, *(key.removeprefix(CONSTRAINTS) for key in keys))

    def values_by_name(self, trial: FrozenTrial) -> dict[str, float]:
        """Returns the values of a complete trial and its other costs, by name."""
        attributes = {name: trial.user_attrs.get(name) for name in self.cost_names}
        costs = {
            name: float(cost) for name, cost in attributes.items() if isinstance(cost, int | float)
        }
        return costs | {
            objective.name: value
            for objective, value in zip(self.objectives, trial.values, strict=True)
        }

    def default_rule(self) -> Rule:
        """Returns the rule for the best trial if winner.rule states none.

        It takes the best by the first objective among trials that are no worse than the baseline in
        the others. The baseline satisfies it, so that there is a best trial from trial 0 on, which
        shows what the search gained at no further cost. Without a baseline the first objective
        decides.
        """
        baselines = (each for each in self.feasible() if TrialRecord(each).is_baseline)
        baseline = next(baselines, None)
        others = (
            [] if baseline is None else zip(self.objectives[1:], baseline.values[1:], strict=True)
        )
        conditions = (
            Condition(objective.name, "<=" if objective.sign < 0 else ">=", value)
            for objective, value in others
        )
        return Rule(self.objectives[0], tuple(conditions))

    def later_stages(self) -> Iterator[tuple[Any, StageName | None]]:
        """Yields Optuna's record of each later stage, and its name; None for another program's."""
        for study in self.storage.get_all_studies():
            if owner_of(study.study_name) == self.name:
                yield study, StageName.parse(study.study_name)

    def test_uses(self) -> int:
        """Returns how often the test set was used."""
        return int(self.attributes(TEST_USES)[0] or 0)

    def count_test_use(self, store: Store) -> None:
        """Counts a use of the test set before it is used, as only the holder of the lease may."""
        store(self.ledger.study_id, TEST_USES, self.test_uses() + 1)

    def code(self) -> dict[str, Any]:
        """Returns the digests of the user's code with which the study now runs."""
        return code_of(self.definition() or {})

    def definition(self) -> dict[str, Any] | None:
        """Returns the study definition, by config key; None for a study of another program."""
        return self.attributes(DEFINITION)[0]  # type: ignore[no-any-return]

    def code_changes(self) -> list[dict[str, Any]]:
        """Returns the accepted changes of code: what is `changed`, `from` which trial on."""
        return list(self.optuna.user_attrs.get(CODE_CHANGES, []))

    def store_rule(self, rule: Rule | None) -> None:
        """Stores how the best trial is chosen from now on; None for the default rule."""
        words = None if rule is None else str(rule)
        if self.attributes(RULE) != [words]:
            self.optuna.set_user_attr(RULE, words)

    def attributes(self, *names: str) -> list[Any]:
        """Reads the current attributes of the study; None for each that it lacks."""
        return self.ledger.storage.read(lambda c: sql.study_attrs(c, self.ledger.study_id, *names))

    def rule(self) -> Rule:
        """Returns how the best trial is chosen: by the stored rule, or else the default rule."""
        (stated,) = self.attributes(RULE)
        if stated is not None:
            # What this program stores can be parsed; the database may be untrusted.
            with suppress(ConfigError):
                costs = (ObjectiveValue(name, "minimize") for name in self.cost_names)
                return Rule.parse(stated, [*self.objectives, *costs])
        return self.default_rule()

    def ranked(self, rule: Rule | None = None) -> list[FrozenTrial]:
        """Returns the feasible trials that satisfy a rule, the best first.

        Of trials that the rule ranks alike, the one that is better in the other values comes
        first, then the earlier one. Without a rule that of the study counts.
        """
        rule = self.rule() if rule is None else rule
        satisfying = [
            (rule.rank(values), self.costs(trial), trial.number, trial)
            for trial, values in ((trial, self.values_by_name(trial)) for trial in self.feasible())
            if rule.holds(values)
        ]
        return [trial for *_, trial in sorted(satisfying)]


def read_objectives(
    names: Sequence[str] | None, directions: Sequence[StudyDirection]
) -> tuple[ObjectiveValue, ...]:
    """Returns the objectives of a study of any program.

    Args:
        names: as stored; without one for each direction they are called value, value 1, ….
    """
    if names is None or len(names) != len(directions):
        names = [f"value {n}" if n else "value" for n in range(len(directions))]
    objectives = []
    for name, direction in zip(names, directions, strict=True):
        way: Direction = "maximize" if direction == StudyDirection.MAXIMIZE else "minimize"
        objectives.append(
            ObjectiveValue(one_line(name), way)
        )  # another program may store line breaks
    return tuple(objectives)


def value_of(trial: FrozenTrial | None, objective: int = 0) -> float | None:
    """Returns the value of a trial for an objective; None without a trial, or without a value."""
    return None if trial is None or trial.values is None else float(trial.values[objective])


def open_beside(stored: StoredStudy, name: str) -> StoredStudy | None:
    """Opens another study of the same database, on its connections; None if it is missing."""
    try:
        study = optuna.load_study(study_name=name, storage=stored.storage)
    except KeyError:
        return None
    ledger = Ledger.of(stored.ledger.storage, study._study_id, study.user_attrs)
    return StoredStudy(name, stored.storage, study, ledger)


@dataclass(frozen=True)
class Rows(Sequence[Mapping[str, Any]]):
    """Rows of equal columns: what studyloom returns instead of a DataFrame without pandas.

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
        """The rows as a table in a notebook; cells are shown as text, never as HTML."""
        more = len(self.cells) - SHOWN
        note = f"<p>and {more} more</p>" if more > 0 else ""
        return html_table(self.columns, self.cells[:SHOWN]) + note


def trial_rows(stored: StoredStudy) -> Rows:
    """Returns a row for each trial of a study, by number.

    The columns are number, state (complete, pruned, failed, paused, running or waiting), value,
    hyperparameters as params.NAME, standard_error (of the value, over several jobs), started,
    seconds, epochs, worker, baseline, proposed_by, failure and reason. If trials have several
    values, a column values.NAME for each replaces value.
    """
    trials, objectives = stored.trials(), stored.objectives
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    values = (
        ["value"]
        if len(objectives) == 1
        else [f"values.{objective.name}" for objective in objectives]
    )
    columns = ("number", "state", *values, *map(column_of, names))
    columns += ("standard_error", "started", "seconds", "epochs", "worker", "baseline")
    columns += ("proposed_by", "failure", "reason")
    cells = (
        (
            record.trial.number,
            record.outcome,
            *(record.trial.values or [None] * len(objectives)),
            *(record.trial.params.get(name) for name in names),
            record.standard_error,
            record.trial.datetime_start,
            record.seconds,
            record.epoch_count,
            record.worker,
            record.is_baseline,
            record.proposer(),
            record.failure,
            record.reason,
        )
        for record in map(TrialRecord, trials)
    )
    return Rows(columns, tuple(cells))


def column_of(name: str) -> str:
    """Returns the column of a hyperparameter, params.NAME; that of a loop is named so already."""
    return f"params.{name.removeprefix('params.')}"


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
        for epoch in TrialRecord(trial).epochs()
    )
    return Rows(("trial", "epoch", *names), tuple(rows))


def quantities(trials: Iterable[FrozenTrial]) -> list[str]:
    """Returns the quantities of each epoch without the value, in the order of the first."""
    names = (name for trial in trials for name in TrialRecord(trial).curve)
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
