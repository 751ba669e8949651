"""Opening a study of a database, and creating one.

A study is identified by its definition: the same name with another definition is refused.
"""

import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection

from studyloom._version import __version__
from studyloom.errors import DefinitionError, StorageError
from studyloom.metrics import ACCURACY, ObjectiveValue
from studyloom.moved import MOVED
from studyloom.storage.attributes import (
    CODE_CHANGES,
    DEFINITION,
    FORMAT,
    HALTED,
    RUNG,
    UUID,
    VERSION,
)
from studyloom.storage.connections import closed_on_error, has_no_tables, is_sqlite
from studyloom.storage.creation_lock import exclusive
from studyloom.storage.database import RetryingStorage, connect
from studyloom.storage.ledger import Ledger, NoLedger, add_study
from studyloom.storage.slot_table import check_table
from studyloom.storage.stored_study import StoredStudy, open_in_same_database, owner_of
from studyloom.storage.trial_buffer import TrialBuffer
from studyloom.storage.urls import parse_url
from studyloom.user_code.digests import CODE, DATA, describe_source, select_code_digests
from studyloom.user_code.pickled import MAIN

FORMAT_NUMBER = 1  # of what a study stores; another one is not read
ABSENT = "(absent)"  # stands for the value of a key that a definition lacks


def check_definition(
    name: str,
    stored: Mapping[str, Any] | None,
    present: Mapping[str, Any],
    *,
    accept_code_change: bool = False,
) -> Mapping[str, Any]:
    """Checks that a study has a definition, and returns what to store of it.

    Args:
        name: The name of the study.
        stored: The definition that is stored; None if another program has made the study.
        present: The definition of the command.
        accept_code_change: Whether the user's code may have changed; then its new digests are
            among what to store.

    Raises:
        DefinitionError: The study has another definition, or another program has made it.
    """
    if stored is None:
        raise DefinitionError(
            f"study.name: the study {name!r} was not made by studyloom, but by another program "
            "that uses Optuna; it stays unchanged; give this one another name: study.name=…"
        )
    accepted = dict(stored)
    if accept_code_change:
        stored_code = select_code_digests(stored)
        accepted = {key: value for key, value in stored.items() if key not in stored_code}
        accepted |= select_code_digests(present)
    changes = differences(accepted, present)
    if changes:
        raise _another_definition(name, changes)
    return accepted


def differences(stored: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Returns `key: STORED → PRESENT` for each key whose value differs, by key.

    A `_target_` that has moved since counts as equal; see `studyloom.moved`.
    """
    stored = _as_moved(stored)
    present = _as_moved(present)
    changes = []
    for key in sorted({*stored, *present}):
        stored_value = stored.get(key, ABSENT)
        present_value = present.get(key, ABSENT)
        if stored_value != present_value:
            changes.append(f"{key}: {stored_value} → {present_value}")
    return changes


def _as_moved(value: Any, key: str = "") -> Any:
    """Returns a part of a definition with each `_target_` at its present path."""
    if isinstance(value, Mapping):
        return {name: _as_moved(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_moved(item) for item in value]
    if key.endswith("_target_") and isinstance(value, str):
        if value in MOVED:
            return MOVED[value]
        module, dot, name = value.rpartition(".")
        present_module = MOVED.get(module, module)
        return f"{present_module}{dot}{name}"
    return value


def _another_definition(name: str, changes: Sequence[str]) -> DefinitionError:
    """Makes the error that shows how the definition of a study differs from the present one.

    Args:
        changes: The lines of `differences`.
    """
    config_changes = [change for change in changes if not change.startswith(CODE)]
    code_changes = [change for change in changes if change.startswith(CODE)]
    if not config_changes:
        return _another_code(name, code_changes)
    # A module that is new or gone needs no line: a `_target_` among the other changes names it.
    code_changes = [change for change in code_changes if ABSENT not in change]
    advice = _advise_on_data(code_changes)
    lines = [*config_changes]
    lines += [f"{name_of_change(change)} has changed" for change in code_changes]
    return DefinitionError(
        f"study.name: the study {name!r} already exists with a different definition, so its "
        "trials are not comparable:\n" + "".join(f"  {line}\n" for line in lines) + "restore "
        f"these values to resume it, or start a new study with study.name=…{advice}"
    )


def _another_code(name: str, changes: Sequence[str]) -> DefinitionError:
    """Makes the error of a study of which only the user's code has changed."""
    advice = _advise_on_data(changes)
    changed = [name_of_change(change) for change in changes]
    verb = "have"
    if len(changed) == 1:
        verb = "has"
    return DefinitionError(
        f"study.name: {', '.join(changed)} {verb} changed since the study {name!r} began, so "
        "its trials are not comparable; restore the code to resume the study, continue with "
        "the new code by study.accept_code_change=true, or start a new study with "
        f"study.name=…{advice}"
    )


def _advise_on_data(changes: Sequence[str]) -> str:
    """Returns how to keep data the same that the code draws; "" if none has changed."""
    if any(DATA in change for change in changes):
        return "; seed what draws the data, as numpy.random.seed(0) does, and they stay the same"
    return ""


def name_of_change(change: str) -> str:
    """Returns the source or data, such as `split`, that a line of `differences` is about."""
    key, _, values = change.partition(": ")
    is_of_data = DATA in values  # the digest of a source has no such beginning
    if is_of_data:
        name = key.removeprefix(CODE).removeprefix(MAIN)
        return f"the data {name}"
    return describe_source(key)


def open_study(url: str, name: str, deadline: float = 300.0) -> StoredStudy:
    """Opens an existing study; raises StorageError if it is missing."""
    with closed_on_error(connect(url, deadline=deadline)) as backend:
        stored = _load(backend, name)
        if stored.is_studylooms and not check_table(backend):
            raise StorageError(
                f"study.name: the table studyloom_slots, the budget of {name!r}, is gone; the "
                "command that runs the study makes it again"
            )
    return stored


def _load(backend: RetryingStorage, name: str) -> StoredStudy:
    """Loads a study; raises StorageError if it is missing, or is stored in another format."""
    storage = TrialBuffer(backend)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        names = ", ".join(study.study_name for study in storage.get_all_studies()) or "none"
        raise StorageError(
            f"study.name must name a study that exists; the database holds no study {name!r}; "
            f"it holds {names}"
        ) from None
    _check_format(name, study.user_attrs)
    ledger_class: type[Ledger] = NoLedger
    if DEFINITION in study.user_attrs:
        ledger_class = Ledger
    ledger = ledger_class.of(backend, study._study_id, study.user_attrs)
    return StoredStudy(name, storage, study, ledger)


def _check_format(name: str, attributes: Mapping[str, Any]) -> None:
    """Raises StorageError if another version of studyloom has stored a study in another format."""
    if DEFINITION in attributes and attributes.get(FORMAT) != FORMAT_NUMBER:
        program = "a studyloom from before the first release"
        if attributes.get(VERSION):
            program = f"studyloom {attributes[VERSION]}"
        raise StorageError(
            f"study.name: the study {name!r} is stored in another format, by {program}; this "
            f"version, {__version__}, reads format {FORMAT_NUMBER} only; install that one, or give "
            "this study another name: study.name=…"
        )


def study_names(url: str, deadline: float) -> list[str]:
    """Returns the names of the studies of a database, without the later stages of studies."""
    with closing(connect(url, deadline=deadline)) as backend:
        names = [study.study_name for study in backend.get_all_studies()]
    return [name for name in names if owner_of(name) is None]


def open_only_study(url: str, name: str | None, deadline: float, message: str) -> StoredStudy:
    """Opens the study of a name, or without one the only study of a database.

    Args:
        message: The error message if there is no study, or several.
    """
    if not name:
        names = study_names(url, deadline)
        if not names:
            raise StorageError(f"{message}; the database holds no study")
        if len(names) > 1:
            listed = ", ".join(names)
            raise StorageError(f"{message}; the database holds {len(names)} studies: {listed}")
        name = names[0]
    return open_study(url, name, deadline)


def open_ledgers(url: str, deadline: float) -> dict[str, Ledger]:
    """Returns the ledgers of all studies that studyloom has made in a database, by study.

    An empty database of a server is allowed.

    Raises:
        StorageError: The database cannot be used, or has a study of another format.
    """
    try:
        backend = connect(url, deadline=deadline)
    except StorageError:
        if is_sqlite(parse_url(url)) or not has_no_tables(url):
            raise
        return {}
    check_table(backend)
    studies = [study for study in backend.get_all_studies() if DEFINITION in study.user_attrs]
    for study in studies:
        _check_format(study.study_name, study.user_attrs)
    return {
        study.study_name: Ledger.of(backend, study._study_id, study.user_attrs) for study in studies
    }


def create_study(
    url: str,
    name: str,
    definition: Mapping[str, Any],
    trials: int,
    deadline: float = 300.0,
    *,
    objectives: Sequence[ObjectiveValue] = (ACCURACY,),
    rung: int = 0,
    accept_code_change: bool = False,
) -> StoredStudy:
    """Opens a study, and creates the database, the tables and the study if they are missing.

    Args:
        rung: The epoch of the lowest rung of a new study; 0 without rungs.
    """
    lock = exclusive(url)
    with lock, closed_on_error(connect(url, create=True, deadline=deadline)) as backend:
        if name not in {study.study_name for study in backend.get_all_studies()}:
            _add_study(backend, name, definition, objectives, rung)
        stored = _load(backend, name)
        _prepare(stored, definition, trials, objectives, accept_code_change=accept_code_change)
    return stored


def create_in_same_database(
    stored: StoredStudy,
    name: str,
    definition: Mapping[str, Any],
    trials: int,
    objectives: Sequence[ObjectiveValue],
) -> StoredStudy:
    """Opens another study of the same database, on its connections; creates it if it is missing.

    Waits if the database is away.

    Raises:
        DefinitionError: The study of that name has another definition.
    """
    backend = stored.ledger.storage
    with exclusive(backend.retry.address, deadline=backend.retry.deadline):
        opened = open_in_same_database(stored, name)
        if opened is None:
            _add_study(backend, name, definition, objectives, rung=0)
            opened = open_in_same_database(stored, name)
        assert opened is not None
        _prepare(opened, definition, trials, objectives)
    return opened


def _add_study(
    backend: RetryingStorage,
    name: str,
    definition: Mapping[str, Any],
    objectives: Sequence[ObjectiveValue],
    rung: int,
) -> None:
    attributes = {
        DEFINITION: dict(definition),
        UUID: uuid.uuid4().hex,
        FORMAT: FORMAT_NUMBER,
        VERSION: __version__,
        RUNG: rung,
    }
    directions = [StudyDirection[objective.direction.upper()] for objective in objectives]
    add_study(backend, name, directions, attributes)


def _prepare(
    stored: StoredStudy,
    definition: Mapping[str, Any],
    trials: int,
    objectives: Sequence[ObjectiveValue],
    *,
    accept_code_change: bool = False,
) -> None:
    """Prepares a stored study for workers: checks its definition, and repairs its ledger.

    It also extends the budget to `trials`, stores an accepted change of code, and forgets that the
    study has halted.
    """
    stored_definition = stored.definition()
    accepted = check_definition(
        stored.name, stored_definition, definition, accept_code_change=accept_code_change
    )
    if stored.optuna.metric_names is None:  # optuna-dashboard shows them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            stored.optuna.set_metric_names([objective.name for objective in objectives])
    stored.reconcile(trials)
    if accepted != stored_definition:
        _store_code_change(stored, stored_definition or {}, accepted)
    forget_halt(stored)


def _store_code_change(
    stored: StoredStudy, previous: Mapping[str, Any], accepted: Mapping[str, Any]
) -> None:
    """Stores a definition with another code, and from which trial on it counts."""
    previous_digests = select_code_digests(previous)
    digests = select_code_digests(accepted)
    changed_keys = []
    for key in sorted({*previous_digests, *digests}):
        if previous_digests.get(key) != digests.get(key):
            changed_keys.append(key)
    change = {"from": len(stored.trials()), "changed": changed_keys}
    stored.optuna.set_user_attr(CODE_CHANGES, [*stored.code_changes(), change])
    stored.optuna.set_user_attr(DEFINITION, dict(accepted))


def forget_halt(stored: StoredStudy) -> None:
    """Lets a study that has halted run again: the person who starts it has removed the reason."""
    if stored.halted() is not None:
        stored.optuna.set_user_attr(HALTED, None)
