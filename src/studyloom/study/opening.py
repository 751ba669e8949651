"""Creates a study in its database, and opens one that is there.

A study is identified by its question: the same name with another question is refused.
"""

import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study, StudyDirection
from sqlalchemy import Connection

from studyloom.errors import StorageError
from studyloom.metrics import ACCURACY, Goal
from studyloom.question.sources import code_of
from studyloom.storage.attributes import CODE_CHANGES, HALTED, QUESTION, UUID
from studyloom.storage.database import RetryingStorage, closed_on_error, connect, exclusive, execute
from studyloom.storage.ledger import Ledger, NoLedger, clear, reconcile
from studyloom.storage.slots import check_table, create_table
from studyloom.storage.sql import add_study
from studyloom.storage.trial_buffer import TrialBuffer
from studyloom.study.identity import check_question
from studyloom.study.stored_study import StoredStudy


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
            "that runs the study makes it again"
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
        reconcile(stored.ledger, name, trials)
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
