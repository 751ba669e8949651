"""A study in its database: made, opened, and known by what it asks."""

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

from studyloom.errors import ConfigError, Halted, QuestionError, StorageError, UndefinedObjective
from studyloom.metrics import ACCURACY, COSTS, Direction, Goal
from studyloom.question.rule import Condition, Rule, parse_rule
from studyloom.storage import sql
from studyloom.storage.attributes import BASELINE, FAILURE, HALTED, QUESTION, REASON, RULE
from studyloom.storage.connections import exclusive
from studyloom.storage.database import RetryingStorage, connect, read
from studyloom.storage.ledger import Ledger
from studyloom.storage.trial_buffer import TrialBuffer
from studyloom.study.failures import UNDEFINED


@dataclass(frozen=True)
class StoredStudy:
    """A study as it is stored: Optuna's tables and the ledger beside them."""

    name: str
    storage: TrialBuffer
    optuna: Study
    ledger: Ledger

    def close(self) -> None:
        """Closes its connections; the last to a SQLite file removes the file's two side files."""
        self.storage.close()

    def is_away(self) -> bool:
        """Whether calls wait for the database just now."""
        return self.storage.is_away()

    def wait_less(self, stopping: Callable[[], bool]) -> None:
        """Lets no call wait longer than a few seconds once `stopping` says so."""
        self.storage.wait_less(stopping)

    @property
    def stopping(self) -> Callable[[], bool]:
        """What says that calls shall wait less."""
        return self.storage.stopping

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; not to be changed."""
        return self.optuna.get_trials(deepcopy=False)

    def halted(self) -> str | None:
        """Why nobody is to go on with it, if so."""
        reason: str | None = read(
            self.ledger.storage, lambda c: sql.study_attr(c, self.ledger.study_id, HALTED)
        )
        return reason

    def check_halted(self, prefix: str = "") -> None:
        """Stops whoever works on a study that has stopped itself.

        Raises:
            Halted: the study has stopped; UndefinedObjective if its objective is not a number.
        """
        if (reason := self.halted()) is None:
            return
        ended = [trial.user_attrs for trial in self.trials()]
        undefined = any(of.get(FAILURE) == UNDEFINED and of.get(REASON) == reason for of in ended)
        raise (UndefinedObjective if undefined else Halted)(f"{prefix}{reason}")

    @cached_property
    def goals(self) -> tuple[Goal, ...]:
        """What a trial's values are: the metric, and beside it perhaps what the network costs."""
        names = self.optuna.metric_names or [
            f"value {n}" if n else "value" for n, _ in enumerate(self.optuna.directions)
        ]
        ways: list[Direction] = [
            "maximize" if way == StudyDirection.MAXIMIZE else "minimize"
            for way in self.optuna.directions
        ]
        return tuple(Goal(str(name), way) for name, way in zip(names, ways, strict=True))

    @property
    def metric(self) -> str:
        """What a trial's value is called, the first if it has several."""
        return self.goals[0].name

    @property
    def sign(self) -> int:
        """1 or -1: of values times this, more is better."""
        return self.goals[0].sign

    def feasible(self) -> list[FrozenTrial]:
        """The complete trials that break no constraint, by number."""
        whole = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        return [
            trial
            for trial in whole
            if all(value <= 0 for value in (trial.constraints or {}).values())
        ]

    def costs(self, trial: FrozenTrial) -> tuple[float, ...]:
        """The values of a complete trial, turned so that of each less is better."""
        return tuple(
            -goal.sign * value for goal, value in zip(self.goals, trial.values, strict=True)
        )

    def front(self) -> list[FrozenTrial]:
        """The Pareto front: the feasible trials that none beats, the best by the first value first.

        One is beaten by another that is as good in all values and better in one; of trials alike in all each is kept.
        """
        kept: list[FrozenTrial] = []
        # In this order none is beaten by a later one, and what is beaten at all is beaten by one that is kept.
        for trial in sorted(self.feasible(), key=lambda trial: (self.costs(trial), trial.number)):
            mine = self.costs(trial)
            beaten = (
                theirs != mine
                and all(one <= other for one, other in zip(theirs, mine, strict=True))
                for theirs in map(self.costs, kept)
            )
            if not any(beaten):
                kept.append(trial)
        return kept

    def known(self, trial: FrozenTrial) -> dict[str, float]:
        """What is known of a complete trial, by name: its values, and what else its network costs."""
        costs = {name: trial.user_attrs.get(name) for name in COSTS}
        numbers = {
            name: float(cost) for name, cost in costs.items() if isinstance(cost, int | float)
        }
        return numbers | {
            goal.name: value for goal, value in zip(self.goals, trial.values, strict=True)
        }

    def default_rule(self) -> Rule:
        """What is best where no rule is stated: most of the first aim, at no more of the others than the baseline has.

        The baseline keeps to it, so that there is a best from trial 0 on, and it says what the search has bought at no
        further cost. Without a baseline the first aim decides.
        """
        baseline = next((trial for trial in self.feasible() if BASELINE in trial.user_attrs), None)
        others = [] if baseline is None else zip(self.goals[1:], baseline.values[1:], strict=True)
        return Rule(
            self.goals[0],
            tuple(Condition(a.name, "<=" if a.sign < 0 else ">=", value) for a, value in others),
        )

    def state(self, rule: Rule | None) -> None:
        """Writes down how the best is to be chosen from now on, for whoever looks at the study; None: as by default."""
        stated = None if rule is None else str(rule)
        if self._stated() != stated:
            self.optuna.set_user_attr(RULE, stated)

    def _stated(self) -> Any:
        return read(self.ledger.storage, lambda c: sql.study_attr(c, self.ledger.study_id, RULE))

    def rule(self) -> Rule:
        """How the best is chosen: as was stated when the study was last run, or as it is where nothing was."""
        if isinstance(stated := self._stated(), str):
            # A database may be from elsewhere; what was stated here has been read before.
            with suppress(ConfigError):
                return parse_rule(
                    stated, [*self.goals, *(Goal(name, "minimize") for name in COSTS)]
                )
        return self.default_rule()

    def ranked(self, rule: Rule | None = None) -> list[FrozenTrial]:
        """The feasible trials that keep to a rule, the best first, and of several alike the earliest.

        rule: that of the study, if none is given. Of trials alike in what it wants most, the better in the others.
        """
        rule = self.rule() if rule is None else rule
        known = [(trial, self.known(trial)) for trial in self.feasible()]
        keeping = [
            (rule.rank(of), self.costs(trial), trial.number, trial)
            for trial, of in known
            if rule.holds(of)
        ]
        return [trial for *_, trial in sorted(keeping)]


def value_of(trial: FrozenTrial | None, goal: int = 0) -> float | None:
    """A value of a trial, the metric's if it has several; None where it has none."""
    return None if trial is None or trial.values is None else float(trial.values[goal])


def open_study(url: str, name: str, deadline: float = 300.0) -> StoredStudy:
    """A study that exists.

    Raises:
        StorageError: no such database, or no study of that name in it.
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
            f"study.name: the database holds no study {name!r}; it holds {names}"
        ) from None
    study = optuna.load_study(study_name=name, storage=storage)
    return StoredStudy(name, storage, study, Ledger(backend, study_id))


def is_stage_name(name: str) -> bool:
    """Whether a study is a re-evaluation or retraining of what another has found; no name of a user's has a slash."""
    return "/" in name


def study_names(url: str, deadline: float) -> list[str]:
    """The studies of a database, without those that are parts of them.

    Raises:
        StorageError: there is no such database.
    """
    backend = connect(url, deadline=deadline)
    names = [study.study_name for study in TrialBuffer(backend).get_all_studies()]
    backend.engine.dispose()
    return [name for name in names if not is_stage_name(name)]


def create_study(
    url: str,
    name: str,
    question: Mapping[str, Any],
    trials: int,
    deadline: float = 300.0,
    *,
    goals: Sequence[Goal] = (ACCURACY,),
    wait: bool = False,
) -> StoredStudy:
    """Opens the study, making database, tables and study where they are missing, with a budget of at least `trials`.

    Args:
        aims: what the values of its trials are.
        wait: for a database that is away from the first, as in the midst of a run; else a person hears of a mistyped
            host at once.

    Raises:
        QuestionError: the study exists and asks something else.
        StorageError: the database cannot be used.
    """
    with exclusive(url, deadline=deadline if wait else 0.0):
        backend = connect(url, create=True, deadline=deadline)
        storage = TrialBuffer(backend)
        if name not in {study.study_name for study in storage.get_all_studies()}:
            ways = [goal.direction for goal in goals]
            study = optuna.create_study(study_name=name, storage=storage, directions=ways)
            Ledger(backend, storage.get_study_id_from_name(name)).create()
            _name_values(study, goals)
            study.set_user_attr(QUESTION, dict(question))
        stored = _load(backend, name)
        asked = stored.optuna.user_attrs.get(QUESTION)
        if asked is None:  # its maker died between the two commits above
            stored.ledger.create()
            _name_values(stored.optuna, goals)
            stored.optuna.set_user_attr(QUESTION, dict(question))
        elif changes := differences(asked, question):
            raise QuestionError(
                f"study.name: the study {name!r} asks another question, so its trials cannot be compared:\n"
                + "".join(f"  {change}\n" for change in changes)
                + "go back to that question, or give this one another name: study.name=…"
            )
        stored.ledger.extend(trials)
        if stored.halted() is not None:  # whoever starts it again has mended the reason
            stored.optuna.set_user_attr(HALTED, None)
    return stored


def _name_values(study: Study, goals: Sequence[Goal]) -> None:
    with (
        warnings.catch_warnings()
    ):  # it is called experimental, and is how the dashboard knows the name
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([goal.name for goal in goals])


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: was → is` for each key whose value differs."""
    return [
        f"{key}: {was.get(key, '(absent)')} → {now.get(key, '(absent)')}"
        for key in sorted({*was, *now})
        if was.get(key, "(absent)") != now.get(key, "(absent)")
    ]
