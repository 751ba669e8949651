"""A study in its database: made, opened, and known by what it asks."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studyloom import rows
from studyloom.constraints import QUANTITIES
from studyloom.desk import Desk
from studyloom.ledger import Ledger
from studyloom.metrics import ACCURACY, Aim, Direction
from studyloom.rule import Condition, Rule, parse_rule
from studyloom.schema import ConfigError
from studyloom.storage import Persistent, StorageError, connect, exclusive, read

QUESTION = "question"  # user attributes of a study: what it asks, by key
HALTED = "halted"  # why nobody is to go on, or null
RULE = "rule"  # how the winner is chosen, where it was stated, or null
BASELINE = "baseline"  # of a trial: it is the configuration as composed


class QuestionError(ValueError):
    """The study of that name asks something else; says what."""


@dataclass(frozen=True)
class Record:
    """A study as it is stored: Optuna's tables and the ledger beside them."""

    name: str
    storage: Desk
    study: optuna.Study
    ledger: Ledger

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def halted(self) -> str | None:
        """Why nobody is to go on with it, if so."""
        reason: str | None = read(self.ledger.storage, lambda c: rows.study_attr(c, self.ledger.study_id, HALTED))
        return reason

    @cached_property
    def aims(self) -> tuple[Aim, ...]:
        """What a trial's values are: the metric, and beside it perhaps what the network costs."""
        names = self.study.metric_names or [f"value {n}" if n else "value" for n, _ in enumerate(self.study.directions)]
        ways: list[Direction] = [
            "maximize" if way == StudyDirection.MAXIMIZE else "minimize" for way in self.study.directions
        ]
        return tuple(Aim(str(name), way) for name, way in zip(names, ways, strict=True))

    @property
    def metric(self) -> str:
        """What a trial's value is called, the first if it has several."""
        return self.aims[0].name

    @property
    def sign(self) -> int:
        """1 or -1: of values times this, more is better."""
        return self.aims[0].sign

    def feasible(self) -> list[FrozenTrial]:
        """The complete trials that break no constraint, by number."""
        whole = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        return [trial for trial in whole if all(value <= 0 for value in (trial.constraints or {}).values())]

    def costs(self, trial: FrozenTrial) -> tuple[float, ...]:
        """The values of a complete trial, turned so that of each less is better."""
        return tuple(-aim.sign * value for aim, value in zip(self.aims, trial.values, strict=True))

    def front(self) -> list[FrozenTrial]:
        """The Pareto front: the feasible trials that none beats, the best by the first value first.

        One is beaten by another that is as good in all values and better in one; of trials alike in all each is kept.
        """
        kept: list[FrozenTrial] = []
        # In this order none is beaten by a later one, and what is beaten at all is beaten by one that is kept.
        for trial in sorted(self.feasible(), key=lambda trial: (self.costs(trial), trial.number)):
            mine = self.costs(trial)
            beaten = (
                theirs != mine and all(one <= other for one, other in zip(theirs, mine, strict=True))
                for theirs in map(self.costs, kept)
            )
            if not any(beaten):
                kept.append(trial)
        return kept

    def known(self, trial: FrozenTrial) -> dict[str, float]:
        """What is known of a complete trial, by name: its values, and what else its network costs."""
        costs = {name: trial.user_attrs.get(name) for name in QUANTITIES}
        numbers = {name: float(cost) for name, cost in costs.items() if isinstance(cost, int | float)}
        return numbers | {aim.name: value for aim, value in zip(self.aims, trial.values, strict=True)}

    def default_rule(self) -> Rule:
        """What is best where no rule is stated: most of the first aim, at no more of the others than the baseline has.

        The baseline keeps to it, so that there is a best from trial 0 on, and it says what the search has bought at no
        further cost. Without a baseline the first aim decides.
        """
        baseline = next((trial for trial in self.feasible() if BASELINE in trial.user_attrs), None)
        others = [] if baseline is None else zip(self.aims[1:], baseline.values[1:], strict=True)
        return Rule(self.aims[0], tuple(Condition(a.name, "<=" if a.sign < 0 else ">=", value) for a, value in others))

    def state(self, rule: Rule | None) -> None:
        """Writes down how the best is to be chosen from now on, for whoever looks at the study; None: as by default."""
        stated = None if rule is None else str(rule)
        if self._stated() != stated:
            self.study.set_user_attr(RULE, stated)

    def _stated(self) -> Any:
        return read(self.ledger.storage, lambda c: rows.study_attr(c, self.ledger.study_id, RULE))

    def rule(self) -> Rule:
        """How the best is chosen: as was stated when the study was last run, or as it is where nothing was."""
        if isinstance(stated := self._stated(), str):
            # A database may be from elsewhere; what was stated here has been read before.
            with suppress(ConfigError):
                return parse_rule(stated, [*self.aims, *(Aim(name, "minimize") for name in QUANTITIES)])
        return self.default_rule()

    def ranked(self, rule: Rule | None = None) -> list[FrozenTrial]:
        """The feasible trials that keep to a rule, the best first, and of several alike the earliest.

        rule: that of the study, if none is given. Of trials alike in what it wants most, the better in the others.
        """
        rule = self.rule() if rule is None else rule
        known = [(trial, self.known(trial)) for trial in self.feasible()]
        keeping = [(rule.rank(of), self.costs(trial), trial.number, trial) for trial, of in known if rule.holds(of)]
        return [trial for *_, trial in sorted(keeping)]


def value_of(trial: FrozenTrial | None, aim: int = 0) -> float | None:
    """A value of a trial, the metric's if it has several; None where it has none."""
    return None if trial is None or trial.values is None else float(trial.values[aim])


def open_record(url: str, name: str, deadline: float = 300.0) -> Record:
    """A study that exists.

    Raises:
        StorageError: no such database, or no study of that name in it.
    """
    return _open(connect(url, deadline=deadline), name)


def _open(backend: Persistent, name: str) -> Record:
    storage = Desk(backend)
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        names = ", ".join(study.study_name for study in storage.get_all_studies()) or "none"
        backend.engine.dispose()
        raise StorageError(f"study.name: the database holds no study {name!r}; it holds {names}") from None
    study = optuna.load_study(study_name=name, storage=storage)
    return Record(name, storage, study, Ledger(backend, study_id))


def is_part(name: str) -> bool:
    """Whether a study is a re-evaluation or retraining of what another has found; no name of a user's has a slash."""
    return "/" in name


def study_names(url: str, deadline: float) -> list[str]:
    """The studies of a database, without those that are parts of them.

    Raises:
        StorageError: there is no such database.
    """
    backend = connect(url, deadline=deadline)
    names = [study.study_name for study in Desk(backend).get_all_studies()]
    backend.engine.dispose()
    return [name for name in names if not is_part(name)]


def create_record(
    url: str,
    name: str,
    question: Mapping[str, Any],
    trials: int,
    deadline: float = 300.0,
    *,
    aims: Sequence[Aim] = (ACCURACY,),
    wait: bool = False,
) -> Record:
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
        storage = Desk(backend)
        if name not in {study.study_name for study in storage.get_all_studies()}:
            ways = [aim.direction for aim in aims]
            study = optuna.create_study(study_name=name, storage=storage, directions=ways)
            Ledger(backend, storage.get_study_id_from_name(name)).create()
            _name_values(study, aims)
            study.set_user_attr(QUESTION, dict(question))
        record = _open(backend, name)
        asked = record.study.user_attrs.get(QUESTION)
        if asked is None:  # its maker died between the two commits above
            record.ledger.create()
            _name_values(record.study, aims)
            record.study.set_user_attr(QUESTION, dict(question))
        elif changes := differences(asked, question):
            raise QuestionError(
                f"study.name: the study {name!r} asks another question, so its trials cannot be compared:\n"
                + "".join(f"  {change}\n" for change in changes)
                + "go back to that question, or give this one another name: study.name=…"
            )
        record.ledger.extend(trials)
        if record.halted() is not None:  # whoever starts it again has mended the reason
            record.study.set_user_attr(HALTED, None)
    return record


def _name_values(study: optuna.Study, aims: Sequence[Aim]) -> None:
    with warnings.catch_warnings():  # it is called experimental, and is how the dashboard knows the name
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([aim.name for aim in aims])


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: was → is` for each key whose value differs."""
    return [
        f"{key}: {was.get(key, '(absent)')} → {now.get(key, '(absent)')}"
        for key in sorted({*was, *now})
        if was.get(key, "(absent)") != now.get(key, "(absent)")
    ]
