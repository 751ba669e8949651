"""A study in its database: creates and opens it, reads its trials, and ranks them.

A study is identified by its question: the same name with another question is refused.
"""

import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from studyloom.errors import ConfigError, Halted, StorageError, UndefinedObjective
from studyloom.metrics import ACCURACY, COSTS, Direction, Goal
from studyloom.question.rule import Condition, Rule, parse_rule
from studyloom.question.sources import code_of
from studyloom.storage import sql
from studyloom.storage.attributes import (
    BASELINE,
    CODE_CHANGES,
    FAILURE,
    FORMER_SLOT,
    HALTED,
    QUESTION,
    REASON,
    RULE,
    SLOT,
    TEST_OPENINGS,
    UUID,
)
from studyloom.storage.connections import closed_on_error, exclusive
from studyloom.storage.database import RetryingStorage, connect, execute, read
from studyloom.storage.ledger import Ledger, NoLedger
from studyloom.storage.records.heads import is_slot, without_ours
from studyloom.storage.records.reconcile import reconcile_unasked
from studyloom.storage.records.slots import check_table, clear, create_table
from studyloom.storage.records.studies import add_study
from studyloom.storage.trial_buffer import TrialBuffer
from studyloom.study.identity import check_question
from studyloom.study.trials.failures import UNDEFINED
from studyloom.text import mask_passwords


@dataclass(frozen=True)
class StoredStudy:
    """A study as it is stored: Optuna's tables, and the ledger beside them.

    Args:
        name: of the study.
        storage: Optuna's tables, with a buffer for the trial under way.
        optuna: the study as Optuna sees it.
        ledger: the slots and who holds them.
    """

    name: str
    storage: TrialBuffer
    optuna: Study
    ledger: Ledger

    def close(self) -> None:
        """Closes the connections; the last to a SQLite file removes the file's two side files."""
        self.storage.close()

    def is_away(self) -> bool:
        """Whether calls wait for the database at this moment."""
        return self.storage.is_away()

    def wait_less(self, stopping: Callable[[], bool]) -> None:
        """Lets no call wait for longer than a few seconds once `stopping` returns True."""
        self.storage.wait_less(stopping)

    @property
    def stopping(self) -> Callable[[], bool]:
        """Returns True once calls are to wait for a few seconds only."""
        return self.storage.stopping

    def trials(self) -> list[FrozenTrial]:
        """Returns the trials that fill slots, by number; they must not be changed.

        Of a study of plain Optuna these are all trials, without attributes that look like ours.
        """
        trials = self.optuna.get_trials(deepcopy=False)
        return [*filter(self._counts, trials)] if self.ours else [*map(without_ours, trials)]

    def _counts(self, trial: FrozenTrial) -> bool:
        return not self.ours or is_slot(trial.user_attrs.get(SLOT))

    def uncounted(self) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Returns the other trials, which are kept, but neither counted nor compared.

        Returns:
            Those of other programs; and those that were set aside for another one in their slot.
        """
        others = [t for t in self.optuna.get_trials(deepcopy=False) if not self._counts(t)]
        aside = [trial for trial in others if FORMER_SLOT in trial.user_attrs]
        return [trial for trial in others if FORMER_SLOT not in trial.user_attrs], aside

    @cached_property
    def ours(self) -> bool:
        """Whether studyloom has created the study."""
        return QUESTION in self.optuna.user_attrs

    def halted(self) -> str | None:
        """Returns why the study has stopped itself, without passwords; None if it has not."""
        reason: str | None = self._attribute(HALTED)
        return reason and mask_passwords(reason)

    def check_halted(self, prefix: str = "") -> None:
        """Raises an error if the study has stopped itself.

        Args:
            prefix: what the message begins with, before the reason.

        Raises:
            UndefinedObjective: it has, because its objective is not a finite number.
            Halted: it has, for another reason.
        """
        if (reason := self._attribute(HALTED)) is None:
            return
        undefined = any(
            attributes.get(FAILURE) == UNDEFINED and attributes.get(REASON) == reason
            for attributes in (trial.user_attrs for trial in self.trials())
        )
        raise (UndefinedObjective if undefined else Halted)(f"{prefix}{mask_passwords(reason)}")

    @cached_property
    def goals(self) -> tuple[Goal, ...]:
        """The goal for each value of a trial: the metric, then the costs that are objectives."""
        names = self.optuna.metric_names or [
            f"value {n}" if n else "value" for n, _ in enumerate(self.optuna.directions)
        ]
        directions: list[Direction] = [
            "maximize" if direction == StudyDirection.MAXIMIZE else "minimize"
            for direction in self.optuna.directions
        ]
        return tuple(Goal(str(name), way) for name, way in zip(names, directions, strict=True))

    @property
    def metric(self) -> str:
        """The name of a trial's value; of the first if it has several."""
        return self.goals[0].name

    @property
    def sign(self) -> int:
        """1 if more of the metric is better, else -1."""
        return self.goals[0].sign

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
            -goal.sign * value for goal, value in zip(self.goals, trial.values, strict=True)
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

    def known(self, trial: FrozenTrial) -> dict[str, float]:
        """Returns the values of a complete trial and the other costs of its network, by name."""
        attributes = {name: trial.user_attrs.get(name) for name in COSTS}
        costs = {
            name: float(cost) for name, cost in attributes.items() if isinstance(cost, int | float)
        }
        return costs | {
            goal.name: value for goal, value in zip(self.goals, trial.values, strict=True)
        }

    def default_rule(self) -> Rule:
        """Returns the rule for the best trial if winner.rule states none.

        The most of the first goal, at no more of the others than the baseline has. The baseline
        satisfies it, so that there is a best trial from trial 0 on, and it shows what the search
        gained at no further cost. Without a baseline the first goal decides.
        """
        baseline = next((trial for trial in self.feasible() if BASELINE in trial.user_attrs), None)
        others = [] if baseline is None else zip(self.goals[1:], baseline.values[1:], strict=True)
        conditions = (
            Condition(goal.name, "<=" if goal.sign < 0 else ">=", value) for goal, value in others
        )
        return Rule(self.goals[0], tuple(conditions))

    def test_openings(self) -> int:
        """Returns how often the test part was opened; 0 if an earlier version opened it."""
        return int(self.optuna.user_attrs.get(TEST_OPENINGS, 0))

    def count_test_opening(self) -> int:
        """Counts one more opening of the test part, before it is opened.

        Returns:
            how many there are with this one.
        """
        openings = self.test_openings() + 1
        self.optuna.set_user_attr(TEST_OPENINGS, openings)
        return openings

    def code(self) -> dict[str, Any]:
        """Returns the digests of the user's own code with which the study goes on now."""
        return code_of(self.question() or {})

    def question(self) -> dict[str, Any] | None:
        """Returns what the study asks, by config key; None for a study of another program."""
        return self.optuna.user_attrs.get(QUESTION)

    def code_changes(self) -> list[dict[str, Any]]:
        """Returns the accepted changes of code: what is `changed`, `from` which trial on."""
        return list(self.optuna.user_attrs.get(CODE_CHANGES, []))

    def state(self, rule: Rule | None) -> None:
        """Stores how the best trial is chosen from now on.

        Args:
            rule: how; None for the default rule.
        """
        stated = None if rule is None else str(rule)
        if self._attribute(RULE) != stated:
            self.optuna.set_user_attr(RULE, stated)

    def _attribute(self, name: str) -> Any:
        return read(self.ledger.storage, lambda c: sql.study_attr(c, self.ledger.study_id, name))

    def rule(self) -> Rule:
        """Returns how the best trial is chosen: by the stored rule, or else the default rule."""
        if isinstance(stated := self._attribute(RULE), str):
            # What this program stores can be parsed; the database may come from elsewhere.
            with suppress(ConfigError):
                costs = (Goal(name, "minimize") for name in COSTS)
                return parse_rule(stated, [*self.goals, *costs])
        return self.default_rule()

    def ranked(self, rule: Rule | None = None) -> list[FrozenTrial]:
        """Returns the feasible trials that satisfy a rule, the best first.

        Of trials that the rule ranks alike, the one that is better in the other values comes
        first, then the earlier one.

        Args:
            rule: None for the rule of the study.
        """
        rule = self.rule() if rule is None else rule
        satisfying = [
            (rule.rank(values), self.costs(trial), trial.number, trial)
            for trial, values in ((trial, self.known(trial)) for trial in self.feasible())
            if rule.holds(values)
        ]
        return [trial for *_, trial in sorted(satisfying)]


def value_of(trial: FrozenTrial | None, goal: int = 0) -> float | None:
    """Returns a value of a trial; None if there is no trial, or it has no value.

    Args:
        trial: the trial, if any.
        goal: the index of the value; 0 is the metric.
    """
    return None if trial is None or trial.values is None else float(trial.values[goal])


def open_study(url: str, name: str, deadline: float = 300.0) -> StoredStudy:
    """Opens a study that exists.

    Args:
        url: of the database.
        name: of the study.
        deadline: seconds for which a call waits for a database that is away.

    Raises:
        StorageError: there is no such database, or no study of that name in it.
    """
    return _load(connect(url, deadline=deadline), name)


def _load(backend: RetryingStorage, name: str) -> StoredStudy:
    storage = TrialBuffer(backend)
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        names = ", ".join(study.study_name for study in storage.get_all_studies()) or "none"
        backend.engine.dispose()
        raise StorageError(
            f"study.name must name a study that exists; the database holds no study {name!r}; "
            f"it holds {names}"
        ) from None
    study = optuna.load_study(study_name=name, storage=storage)
    attributes = study.user_attrs
    if QUESTION in attributes and not check_table(backend):
        backend.engine.dispose()
        raise StorageError(
            f"study.name: the ledger of {name!r}, the table studyloom_slots, is gone; the command "
            "that runs the study, or `studyloom doctor --repair RUN_DIR`, makes it again"
        )
    ledger = Ledger if QUESTION in attributes else NoLedger
    return StoredStudy(name, storage, study, ledger(backend, study_id, attributes.get(UUID)))


def is_stage_name(name: str) -> bool:
    """Whether a study re-evaluates or retrains the results of another study.

    Its name has a slash then, and no name that a user gives has one.
    """
    return "/" in name


def study_names(url: str, deadline: float) -> list[str]:
    """Returns the names of the studies of a database, without the later stages of studies.

    Args:
        url: of the database.
        deadline: seconds for which a call waits for a database that is away.

    Raises:
        StorageError: there is no such database.
    """
    backend = connect(url, deadline=deadline)
    names = [study.study_name for study in TrialBuffer(backend).get_all_studies()]
    backend.engine.dispose()
    return [name for name in names if not is_stage_name(name)]


def open_ledgers(url: str, deadline: float) -> dict[str, Ledger]:
    """Returns the ledgers of all studies that studyloom has made in a database, by study.

    Args:
        url: of the database.
        deadline: seconds for which a call waits for a database that is away.

    Raises:
        StorageError: there is no such database, or its table of the ledger is another program's.
    """
    backend = connect(url, deadline=deadline)
    check_table(backend)
    return {
        study.study_name: Ledger(backend, study._study_id, study.user_attrs.get(UUID))
        for study in backend.get_all_studies()
        if QUESTION in study.user_attrs
    }


def create_study(
    url: str,
    name: str,
    question: Mapping[str, Any],
    trials: int,
    deadline: float = 300.0,
    *,
    goals: Sequence[Goal] = (ACCURACY,),
    wait: bool = False,
    accept_code_change: bool = False,
) -> StoredStudy:
    """Opens a study, and creates the database, the tables and the study if they are missing.

    Args:
        url: of the database.
        name: of the study.
        question: what the study asks, by config key.
        trials: the least budget that the study has afterwards.
        deadline: seconds for which a call waits for a database that is away.
        goals: a goal for each value of a trial.
        wait: whether to wait even if the database is away at the first call, as in the midst of a
            run. By default a mistyped host is reported at once.
        accept_code_change: whether the study goes on if only the user's own code has changed.

    Raises:
        QuestionError: the study exists and asks another question, or another program made it.
        StorageError: the database cannot be used, or its records contradict each other.
    """
    lock = exclusive(url, deadline=deadline if wait else 0.0)
    with lock, closed_on_error(connect(url, create=True, deadline=deadline)) as backend:
        check_table(backend)
        attributes = {QUESTION: dict(question), UUID: uuid.uuid4().hex}
        if name not in {study.study_name for study in TrialBuffer(backend).get_all_studies()}:
            create_table(backend)
            _make_study(backend, name, goals, attributes)
        study = optuna.load_study(study_name=name, storage=TrialBuffer(backend))
        known = study.user_attrs
        accepted = check_question(
            name, known.get(QUESTION), question, accept_code_change=accept_code_change
        )
        if UUID not in known:  # an earlier version has made it
            study.set_user_attr(UUID, attributes[UUID])
        if study.metric_names != [goal.name for goal in goals]:  # an earlier version had others
            _name_values(study, goals)
        create_table(backend)
        stored = _load(backend, name)
        reconcile_unasked(stored.ledger, name, trials)
        _accept(stored, known[QUESTION], accepted)
        if stored.halted() is not None:  # a person who starts it again has removed the reason
            stored.optuna.set_user_attr(HALTED, None)
    return stored


def _make_study(
    backend: RetryingStorage, name: str, goals: Sequence[Goal], attributes: Mapping[str, Any]
) -> None:
    """Creates a study in one transaction: without QUESTION it is one of another program."""
    ways = {"maximize": StudyDirection.MAXIMIZE, "minimize": StudyDirection.MINIMIZE}

    def make(connection: Connection) -> None:
        directions = [ways[goal.direction] for goal in goals]
        clear(connection, add_study(connection, name, directions, attributes))

    execute(backend, make)


def _accept(stored: StoredStudy, was: Mapping[str, Any], accepted: Mapping[str, Any]) -> None:
    """Stores the digests of the user's own code that a study goes on with, if they are others."""
    if accepted == was:
        return
    changed = {key for key, _ in code_of(was).items() ^ code_of(accepted).items()}
    if code_of(was) and changed:  # else an earlier version has stored none
        change = {"from": len(stored.trials()), "changed": sorted(changed)}
        stored.optuna.set_user_attr(CODE_CHANGES, [*stored.code_changes(), change])
    stored.optuna.set_user_attr(QUESTION, dict(accepted))


def _name_values(study: Study, goals: Sequence[Goal]) -> None:
    """Stores the names of the values, which optuna-dashboard shows."""
    with warnings.catch_warnings():  # Optuna calls this experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([goal.name for goal in goals])
