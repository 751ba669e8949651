"""A study as it is in its database: what it asks, its trials, and which of them are best."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studyloom.definition.rule import Condition, Rule, parse_rule
from studyloom.definition.sources import code_of
from studyloom.errors import ConfigError, Halted, UndefinedObjective
from studyloom.metrics import COSTS, Direction, Goal
from studyloom.storage import sql
from studyloom.storage.attributes import (
    BASELINE,
    CODE_CHANGES,
    EPOCHS,
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
from studyloom.storage.database import Connection, read
from studyloom.storage.ledger import Ledger, Store, reconcile
from studyloom.storage.sql import is_slot, without_reserved
from studyloom.storage.trial_buffer import TrialBuffer
from studyloom.study.failures import UNDEFINED
from studyloom.study.stage_name import StageName, owner_of
from studyloom.text import mask_passwords, one_line

CONSTRAINTS = "objective.constraints."  # how the keys of the limits of costs begin
SEARCH, REEVALUATION, RETRAINING = "search", "re-evaluation", "retraining"


@dataclass(frozen=True)
class StoredStudy:
    """A study as it is stored: Optuna's tables, and the ledger beside them."""

    name: str
    storage: TrialBuffer
    optuna: Study
    ledger: Ledger

    def close(self) -> None:
        """Closes the connections; the last to a SQLite file removes the file's two side files."""
        self.storage.close()

    def is_away(self) -> bool:
        """Whether calls wait for the database at this moment."""
        return self.storage.retry.away

    def wait_less(self, stopping: Callable[[], bool]) -> None:
        """Lets no call wait for longer than a few seconds once `stopping` returns True."""
        self.storage.retry.stopping = stopping

    @property
    def stopping(self) -> Callable[[], bool]:
        """Returns True once calls are to wait for a few seconds only."""
        return self.storage.retry.stopping

    def trials(self) -> list[FrozenTrial]:
        """Returns the trials that fill slots, by number; they must not be changed.

        Of a study of plain Optuna these are all trials, without attributes that look like ours.
        """
        trials = self.optuna.get_trials(deepcopy=False)
        return [*filter(self._counts, trials)] if self.ours else [*map(without_reserved, trials)]

    def lock_trials(self, connection: Connection) -> list[FrozenTrial]:
        """Reads the trials that fill slots; until the commit nobody makes another."""
        ledger = self.ledger
        sql.lock_study(connection, ledger.study_id, ledger.uuid)
        heads = connection.execute(sql.ALL_TRIALS, {"study": ledger.study_id}).all()
        trials = sql.read_light(connection, heads)
        return [trial for trial in trials if is_slot(trial.user_attrs.get(SLOT))]

    def reconcile(self, trials: int) -> bool:
        """Mends and extends the ledger, see `ledger.reconcile`; returns whether it had to."""
        return reconcile(self.ledger, self.name, trials)

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
        return self.definition() is not None

    def halted(self) -> str | None:
        """Returns why the study has stopped itself, without passwords; None if it has not."""
        (reason,) = self.attributes(HALTED)
        return reason and mask_passwords(reason)

    def check_halted(self, prefix: str = "") -> None:
        """Raises Halted if the study has stopped itself; as UndefinedObjective, by its metric."""
        (reason,) = self.attributes(HALTED)
        if reason is None:
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
        # Another program may have named them with line breaks.
        named = zip(map(one_line, map(str, names)), directions, strict=True)
        return tuple(Goal(name, way) for name, way in named)

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

    @cached_property
    def cost_names(self) -> tuple[str, ...]:
        """The names of the costs that a trial may have: those of a network, and a loop's own."""
        keys = [key for key in self.definition() or {} if key.startswith(CONSTRAINTS)]
        return (*COSTS, *(key.removeprefix(CONSTRAINTS) for key in keys))

    def known(self, trial: FrozenTrial) -> dict[str, float]:
        """Returns the values of a complete trial and its other costs, by name."""
        attributes = {name: trial.user_attrs.get(name) for name in self.cost_names}
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

    def later_stages(self) -> Iterator[tuple[Any, StageName | None]]:
        """Yields Optuna's record of each later stage, and its name; None for another program's."""
        for study in self.storage.get_all_studies():
            if owner_of(study.study_name) == self.name:
                yield study, StageName.parse(study.study_name)

    def test_openings(self) -> int:
        """Returns how often the test part was opened."""
        return int(self.attributes(TEST_OPENINGS)[0] or 0)

    def count_test_opening(self, store: Store) -> None:
        """Counts a use of the test set before it is used, as only the holder of the lease may."""
        store(self.ledger.study_id, TEST_OPENINGS, self.test_openings() + 1)

    def code(self) -> dict[str, Any]:
        """Returns the digests of the user's own code with which the study goes on now."""
        return code_of(self.definition() or {})

    def definition(self) -> dict[str, Any] | None:
        """Returns the question of the study, by config key; None for a study of another program."""
        return self.attributes(QUESTION)[0]  # type: ignore[no-any-return]

    def code_changes(self) -> list[dict[str, Any]]:
        """Returns the accepted changes of code: what is `changed`, `from` which trial on."""
        return list(self.optuna.user_attrs.get(CODE_CHANGES, []))

    def state(self, rule: Rule | None) -> None:
        """Stores how the best trial is chosen from now on; None for the default rule."""
        stated = None if rule is None else str(rule)
        if self.attributes(RULE) != [stated]:
            self.optuna.set_user_attr(RULE, stated)

    def attributes(self, *names: str) -> list[Any]:
        """Reads attributes of the study as they are now; None for each that it has not."""
        return read(self.ledger.storage, lambda c: sql.study_attrs(c, self.ledger.study_id, *names))

    def rule(self) -> Rule:
        """Returns how the best trial is chosen: by the stored rule, or else the default rule."""
        (stated,) = self.attributes(RULE)
        if stated is not None:
            # What this program stores can be parsed; the database may come from elsewhere.
            with suppress(ConfigError):
                costs = (Goal(name, "minimize") for name in self.cost_names)
                return parse_rule(stated, [*self.goals, *costs])
        return self.default_rule()

    def ranked(self, rule: Rule | None = None) -> list[FrozenTrial]:
        """Returns the feasible trials that satisfy a rule, the best first.

        Of trials that the rule ranks alike, the one that is better in the other values comes
        first, then the earlier one. Without a rule that of the study counts.
        """
        rule = self.rule() if rule is None else rule
        satisfying = [
            (rule.rank(values), self.costs(trial), trial.number, trial)
            for trial, values in ((trial, self.known(trial)) for trial in self.feasible())
            if rule.holds(values)
        ]
        return [trial for *_, trial in sorted(satisfying)]


def value_of(trial: FrozenTrial | None, goal: int = 0) -> float | None:
    """Returns the value of a trial for a goal; None if there is no trial, or it has no value."""
    return None if trial is None or trial.values is None else float(trial.values[goal])


def epochs(trial: FrozenTrial) -> Iterator[dict[str, Any]]:
    """Yields the learning curve of a trial, each epoch by its columns; else what it has reported.

    A value may be None where another epoch has one.
    """
    columns = trial.user_attrs.get(EPOCHS) or {
        "number": sorted(trial.intermediate_values),
        "value": [value for _, value in sorted(trial.intermediate_values.items())],
    }
    for epoch in zip_longest(*columns.values()):
        yield dict(zip(columns, epoch, strict=True))


def open_beside(stored: StoredStudy, name: str) -> StoredStudy | None:
    """Opens another study of the same database, on its connections; None if there is none."""
    try:
        study_id = stored.storage.get_study_id_from_name(name)
    except KeyError:
        return None
    study = optuna.load_study(study_name=name, storage=stored.storage)
    ledger = Ledger(stored.ledger.storage, study_id, study.user_attrs.get(UUID, ""))
    return StoredStudy(name, stored.storage, study, ledger)
