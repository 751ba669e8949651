"""A study in its database: its definition, its trials, and which of them are best.

A study is a search or a *later stage* of one, such as the re-evaluation: a further study in the
same database, whose name begins with that of the search.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

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
    DEFINITION,
    FORMER_SLOT,
    HALTED,
    RULE,
    TEST_USES,
)
from studyloom.storage.database import Connection
from studyloom.storage.failures import UNDEFINED
from studyloom.storage.ledger import Ledger, Store
from studyloom.storage.optuna_internals import FrozenStudy
from studyloom.storage.retry import Retry
from studyloom.storage.trial_buffer import TrialBuffer
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import mask_passwords, one_line
from studyloom.user_code.digests import select_code_digests

CONSTRAINTS = "objective.constraints."  # how the keys of constraints begin in a study definition
# The titles of the stages
SEARCH = "search"
REEVALUATION = "re-evaluation"
FINAL_TRAINING = "final-training"
ABLATION = "ablation"
# Matches "mnist/re-evaluation 40-5-3 max accuracy where parameters <= 10000".
STAGE_NAME = re.compile(
    r"(?P<study>[^/]*)/(?P<title>[\w-]+) "
    r"(?P<trials>\d+)-(?P<top>\d+)-(?P<seeds>\d+)(?: (?P<details>.*))?"
)


@dataclass(frozen=True)
class StageName:
    """Names the study of a later stage by all that its trainings depend on.

    It is STUDY/TITLE TRIALS-TOP-SEEDS, followed by what else changes the trainings, such as a rule:
    `mnist/re-evaluation 40-5-3 max accuracy where parameters <= 10000`.

    Attributes:
        study: The name of the search.
        title: The title of the stage.
        trials: The budget of the search.
        top: How many trials of the search are candidates, in addition to the baseline.
        seeds: How many seeds each candidate is trained with.
        details: Everything else that changes the trainings; "" for nothing.
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
        if match is None:
            return None
        return msgspec.convert(match.groupdict(default=""), cls, strict=False)


def owner_of(name: str) -> str | None:
    """Returns the search to which a later stage of this name belongs; None for a search's name.

    No name that a user gives has a slash.
    """
    owner, slash, _ = name.partition("/")
    if not slash:
        return None
    return owner


@dataclass(frozen=True)
class LaterStage:
    """A later stage of a study, as the database lists it.

    Attributes:
        study: Optuna's record of its study.
        name: Its name; None if another program has made it.
    """

    study: FrozenStudy
    name: StageName | None


@dataclass(frozen=True)
class StoredStudy:
    """A stored study: Optuna's tables, and the ledger of its budget.

    Attributes:
        name: The name of the study.
        storage: The trial buffer, which is Optuna's storage of the study.
        optuna: Optuna's study.
        ledger: The budget of the study.
    """

    name: str
    storage: TrialBuffer
    optuna: Study
    ledger: Ledger

    def close(self) -> None:
        """Closes the connections; the last to a SQLite file removes the file's two side files."""
        self.storage.close()

    @property
    def retry(self) -> Retry:
        """The object that repeats calls while the database is away."""
        return self.storage.retry

    # Which trials count

    def trials(self, *, all_attributes: bool = False) -> list[FrozenTrial]:
        """Returns the trials that fill slots of the budget, by number; they must not be changed.

        A study of another program has no slots. Its trials are all returned, without attributes
        that have the names of studyloom's.

        Args:
            all_attributes: Whether each has all its attributes. Otherwise, while this worker has a
                trial, the others come from a cache without attributes that only people look at.
        """
        if all_attributes:
            trials = self.storage.read_complete(self.ledger.study_id)
        else:
            trials = self.optuna.get_trials(deepcopy=False)
        if self.is_studylooms:
            return [trial for trial in trials if sql.fills_slot(trial)]
        return [sql.without_reserved(trial) for trial in trials]

    def lock_trials(self, connection: Connection) -> list[FrozenTrial]:
        """Reads the trials that fill slots; until the commit no process makes another."""
        ledger = self.ledger
        sql.lock_study(connection, ledger.study_id, ledger.uuid)
        trials = sql.read_all_light(connection, ledger.study_id)
        return [trial for trial in trials if sql.fills_slot(trial)]

    def reconcile(self, trials: int) -> bool:
        """Repairs and extends the ledger, see `ledger.reconcile`; returns whether it had to."""
        return self.ledger.reconcile(self.name, trials)

    def external_trials(self) -> list[FrozenTrial]:
        """Returns the trials of other programs, which are neither counted nor compared."""
        return [trial for trial in self._uncounted() if FORMER_SLOT not in trial.user_attrs]

    def set_aside_trials(self) -> list[FrozenTrial]:
        """Returns the trials that were set aside for another one in their slot, which are kept."""
        return [trial for trial in self._uncounted() if FORMER_SLOT in trial.user_attrs]

    def _uncounted(self) -> list[FrozenTrial]:
        """Returns the trials that fill no slot."""
        if not self.is_studylooms:
            return []
        trials = self.optuna.get_trials(deepcopy=False)
        return [trial for trial in trials if not sql.fills_slot(trial)]

    def trials_of_workers(self) -> list[FrozenTrial]:
        """Returns the trials that took the time of workers: also those that were set aside."""
        return [*self.trials(), *self.set_aside_trials()]

    @cached_property
    def is_studylooms(self) -> bool:
        """Returns whether studyloom has created the study."""
        return self.definition() is not None

    @property
    def is_stage(self) -> bool:
        """Returns whether it is the study of a later stage, and no search."""
        return owner_of(self.name) is not None

    def halted(self) -> str | None:
        """Returns why the study has stopped itself, without passwords; None if it has not."""
        (reason,) = self.attributes(HALTED)
        if reason is None:
            return None
        return mask_passwords(reason)

    def check_halted(self, prefix: str = "", suffix: str = "") -> None:
        """Raises an error if the study has stopped itself.

        Args:
            prefix: How the error message begins, before the stored reason.
            suffix: How it ends, after the stored reason.

        Raises:
            UndefinedObjective: It stopped since the metric of trials was not a finite number.
            Halted: It stopped for another reason.
        """
        reason = self.halted()
        if reason is None:
            return
        for trial in self.trials():
            record = TrialRecord(trial)
            if record.failure == UNDEFINED and record.reason == reason:
                raise UndefinedObjective(f"{prefix}{reason}{suffix}")
        raise Halted(f"{prefix}{reason}{suffix}")

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
        trials = []
        for trial in self.trials():
            if trial.state == TrialState.COMPLETE and keeps_constraints(trial):
                trials.append(trial)
        return trials

    def costs(self, trial: FrozenTrial) -> tuple[float, ...]:
        """Returns the values of a complete trial, with signs such that less of each is better."""
        costs = []
        for objective, value in zip(self.objectives, trial.values, strict=True):
            costs.append(-objective.sign * value)
        return tuple(costs)

    def front(self) -> list[FrozenTrial]:
        """Returns the Pareto front, the best by the first value first.

        A feasible trial is on it unless another one is as good in all values and better in one. Of
        trials with equal values, all are on it.
        """
        # In this order, trials that dominate a trial come before it. If there are any, one of them
        # is on the front. So each trial is compared only with the front so far.
        best_first = sorted(self.feasible(), key=lambda trial: (self.costs(trial), trial.number))
        front: list[FrozenTrial] = []
        for trial in best_first:
            costs = self.costs(trial)
            is_dominated = any(_dominates(self.costs(other), costs) for other in front)
            if not is_dominated:
                front.append(trial)
        return front

    @cached_property
    def cost_names(self) -> tuple[str, ...]:
        """The names of the costs that a trial may have: a network's, and those with constraints."""
        names = list(COSTS)
        for key in self.definition() or {}:
            if key.startswith(CONSTRAINTS):
                names.append(key.removeprefix(CONSTRAINTS))
        return tuple(names)

    def values_by_name(self, trial: FrozenTrial) -> dict[str, float]:
        """Returns the values of a complete trial and its other costs, by name."""
        values = {}
        for name in self.cost_names:
            cost = trial.user_attrs.get(name)
            if isinstance(cost, int | float):
                values[name] = float(cost)
        for objective, value in zip(self.objectives, trial.values, strict=True):
            values[objective.name] = value
        return values

    def default_rule(self) -> Rule:
        """Returns the rule for the best trial if winner.rule states none.

        The best trial is then the best by the first objective among those that are no worse than
        the baseline in the other objectives. So it shows what the search has gained at no further
        cost, and there is one from trial 0 on, since the baseline satisfies the rule. Without a
        baseline the first objective decides.
        """
        first_objective, *other_objectives = self.objectives
        baseline = self._feasible_baseline()
        if baseline is None:
            return Rule(first_objective)
        conditions = []
        for objective, baseline_value in zip(other_objectives, baseline.values[1:], strict=True):
            if objective.sign > 0:  # more is better
                comparison = ">="
            else:
                comparison = "<="
            conditions.append(Condition(objective.name, comparison, baseline_value))
        return Rule(first_objective, tuple(conditions))

    def _feasible_baseline(self) -> FrozenTrial | None:
        for trial in self.feasible():
            if TrialRecord(trial).is_baseline:
                return trial
        return None

    def later_stages(self) -> Iterator[LaterStage]:
        """Yields each later stage of the study that the database has."""
        for study in self.storage.get_all_studies():
            if owner_of(study.study_name) == self.name:
                yield LaterStage(study, StageName.parse(study.study_name))

    def test_uses(self) -> int:
        """Returns how often the test set was used."""
        return int(self.attributes(TEST_USES)[0] or 0)

    def count_test_use(self, store: Store) -> None:
        """Counts a use of the test set, before it is used.

        Args:
            store: Stores an attribute, but only while this command holds the lease to test the
                winner; see `Ledger.testing`.
        """
        store(self.ledger.study_id, TEST_USES, self.test_uses() + 1)

    def code(self) -> dict[str, Any]:
        """Returns the digests of the user's code with which the study now runs."""
        return select_code_digests(self.definition() or {})

    def definition(self) -> dict[str, Any] | None:
        """Returns the study definition, by config key; None for a study of another program."""
        return self.attributes(DEFINITION)[0]  # type: ignore[no-any-return]

    def code_changes(self) -> list[dict[str, Any]]:
        """Returns the accepted changes of code: what is `changed`, `from` which trial on."""
        return list(self.optuna.user_attrs.get(CODE_CHANGES, []))

    def store_rule(self, rule: Rule | None) -> None:
        """Stores how the best trial is chosen from now on; None for the default rule."""
        text = None
        if rule is not None:
            text = str(rule)
        (stored_text,) = self.attributes(RULE)
        if text != stored_text:
            self.optuna.set_user_attr(RULE, text)

    def attributes(self, *names: str) -> list[Any]:
        """Reads the current attributes of the study; None for each that it lacks."""
        return self.ledger.storage.read(
            lambda connection: sql.study_attrs(connection, self.ledger.study_id, *names)
        )

    def set_once(self, name: str, value: object) -> None:
        """Stores an attribute of the study, unless it has a value other than None."""
        ledger = self.ledger

        def store(connection: Connection) -> None:
            """Reads and stores the attribute in one transaction, which has locked the study."""
            sql.lock_study(connection, ledger.study_id, ledger.uuid)
            (stored_value,) = sql.study_attrs(connection, ledger.study_id, name)
            if stored_value is None:
                sql.set_study_attr(connection, ledger.study_id, name, value)

        ledger.storage.execute(store)

    def rule(self) -> Rule:
        """Returns how the best trial is chosen: by the stored rule, or else the default rule."""
        (text,) = self.attributes(RULE)
        if text is None:
            return self.default_rule()
        costs = [ObjectiveValue(name, "minimize") for name in self.cost_names]
        try:
            return Rule.parse(text, [*self.objectives, *costs])
        except ConfigError:  # another program has stored a text that is no rule
            return self.default_rule()

    def ranked(
        self, rule: Rule | None = None, trials: Sequence[FrozenTrial] | None = None
    ) -> list[FrozenTrial]:
        """Returns the feasible trials that satisfy a rule, the best first.

        Among trials that the rule ranks alike, the one that is better in the other values comes
        first, then the earlier one.

        Args:
            rule: The rule; None for the rule of the study.
            trials: The trials to rank, all complete; None for the feasible ones.
        """
        if rule is None:
            rule = self.rule()
        if trials is None:
            trials = self.feasible()
        satisfying_trials = []
        sort_keys = {}  # by the number of the trial
        for trial in trials:
            values = self.values_by_name(trial)
            if rule.holds(values):
                satisfying_trials.append(trial)
                sort_keys[trial.number] = (rule.rank(values), self.costs(trial), trial.number)
        return sorted(satisfying_trials, key=lambda trial: sort_keys[trial.number])


def keeps_constraints(trial: FrozenTrial) -> bool:
    """Returns whether a trial breaks no constraint."""
    constraints = trial.constraints or {}
    return all(value <= 0 for value in constraints.values())  # a broken one is above 0


def _dominates(costs: Sequence[float], other_costs: Sequence[float]) -> bool:
    """Returns whether costs are no higher than others, and one of them is lower."""
    are_no_higher = all(cost <= other for cost, other in zip(costs, other_costs, strict=True))
    return are_no_higher and costs != other_costs


def read_objectives(
    names: Sequence[str] | None, directions: Sequence[StudyDirection]
) -> tuple[ObjectiveValue, ...]:
    """Returns the objectives of a study, which any program may have made.

    Args:
        names: The names as stored. Unless there is one for each direction, the objectives are
            called value, value 1, ….
    """
    if names is not None and len(names) == len(directions):
        objective_names = list(names)
    else:
        objective_names = ["value"]
        for number in range(1, len(directions)):
            objective_names.append(f"value {number}")
    objectives = []
    for name, stored_direction in zip(objective_names, directions, strict=True):
        direction: Direction
        if stored_direction == StudyDirection.MAXIMIZE:
            direction = "maximize"
        else:
            direction = "minimize"
        # Another program may store line breaks.
        objectives.append(ObjectiveValue(one_line(name), direction))
    return tuple(objectives)


def value_of(trial: FrozenTrial | None, objective: int = 0) -> float | None:
    """Returns the value of a trial for an objective; None without a trial, or without a value."""
    if trial is None or trial.values is None:
        return None
    return float(trial.values[objective])


def rank_by_value(trials: Iterable[FrozenTrial], sign: int) -> list[FrozenTrial]:
    """Returns trials by their first value, the best first, then those without one by number.

    Args:
        sign: 1 if more is better, else -1.
    """

    def sort_key(trial: FrozenTrial) -> tuple[bool, float, int]:
        value = value_of(trial)
        if value is None or math.isnan(value):
            return True, 0.0, trial.number
        return False, -sign * value, trial.number

    return sorted(trials, key=sort_key)


def open_in_same_database(stored: StoredStudy, name: str) -> StoredStudy | None:
    """Opens another study of the same database, on its connections; None if it is missing."""
    try:
        study = optuna.load_study(study_name=name, storage=stored.storage)
    except KeyError:
        return None
    ledger = Ledger.of(stored.ledger.storage, study._study_id, study.user_attrs)
    return StoredStudy(name, stored.storage, study, ledger)
