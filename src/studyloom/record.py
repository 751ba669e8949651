"""A study in its database: made, opened, and known by what it asks."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studyloom import rows
from studyloom.desk import Desk
from studyloom.ledger import Ledger
from studyloom.metrics import ACCURACY, Metric
from studyloom.storage import Persistent, StorageError, connect, exclusive, read

QUESTION = "question"  # user attributes of a study: what it asks, by key
HALTED = "halted"  # why nobody is to go on, or null


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
    def metric(self) -> str:
        """What a trial's value is called."""
        names = self.study.metric_names
        return str(names[0]) if names else "value"

    @cached_property
    def sign(self) -> int:
        """1 or -1: of values times this, more is better."""
        return 1 if self.study.direction == StudyDirection.MAXIMIZE else -1

    def ranked(self) -> list[FrozenTrial]:
        """The complete trials that break no constraint, the best first, and of several alike the earliest.

        Of several directions those that none beats, by number.
        """
        whole = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        feasible = [trial for trial in whole if all(value <= 0 for value in (trial.constraints or {}).values())]
        if len(self.study.directions) > 1:
            unbeaten = {trial.number for trial in self.study.best_trials}
            return [trial for trial in feasible if trial.number in unbeaten]
        return sorted(feasible, key=lambda trial: (-self.sign * trial.values[0], trial.number))


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


def study_names(url: str, deadline: float) -> list[str]:
    """The studies of a database, without the re-evaluations and retrainings that are parts of them.

    Raises:
        StorageError: there is no such database.
    """
    backend = connect(url, deadline=deadline)
    names = [study.study_name for study in Desk(backend).get_all_studies()]
    backend.engine.dispose()
    return [name for name in names if "/" not in name]


def create_record(
    url: str,
    name: str,
    question: Mapping[str, Any],
    trials: int,
    deadline: float = 300.0,
    *,
    metric: Metric = ACCURACY,
    wait: bool = False,
) -> Record:
    """Opens the study, making database, tables and study where they are missing, with a budget of at least `trials`.

    Args:
        metric: what the values of its trials are.
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
            study = optuna.create_study(study_name=name, storage=storage, direction=metric.direction)
            Ledger(backend, storage.get_study_id_from_name(name)).create()
            _name_values(study, metric)
            study.set_user_attr(QUESTION, dict(question))
        record = _open(backend, name)
        asked = record.study.user_attrs.get(QUESTION)
        if asked is None:  # its maker died between the two commits above
            record.ledger.create()
            _name_values(record.study, metric)
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


def _name_values(study: optuna.Study, metric: Metric) -> None:
    with warnings.catch_warnings():  # it is called experimental, and is how the dashboard knows the name
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([metric.name])


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: was → is` for each key whose value differs."""
    return [
        f"{key}: {was.get(key, '(absent)')} → {now.get(key, '(absent)')}"
        for key in sorted({*was, *now})
        if was.get(key, "(absent)") != now.get(key, "(absent)")
    ]
