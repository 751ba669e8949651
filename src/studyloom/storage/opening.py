"""Opens a study of a database, or creates it.

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
from studyloom.storage.creation_lock import hold_creation_lock
from studyloom.storage.database import RetryingStorage, connect
from studyloom.storage.ledger import Ledger, NoLedger, add_study
from studyloom.storage.slot_table import check_table
from studyloom.storage.stored_study import StoredStudy, open_in_same_database, owner_of
from studyloom.storage.trial_buffer import TrialBuffer
from studyloom.storage.urls import parse_url
from studyloom.user_code.digests import (
    CODE,
    contains_data_digest,
    describe_source,
    find_captured_variable,
    select_code_digests,
)
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
    """Checks that the stored definition of a study equals that of the present command.

    Args:
        name: The name of the study.
        stored: The definition that is stored; None if another program has made the study.
        present: The definition of the command.
        accept_code_change: Whether the user's code may have changed.

    Returns:
        The definition to store: the stored one, with the digests of an accepted change of code.

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
        # The digests of the user's code become those of the command; all else stays as stored.
        for key in select_code_digests(stored):
            del accepted[key]
        accepted.update(select_code_digests(present))
    changes = list_differences(accepted, present)
    if changes:
        raise _make_definition_error(name, changes)
    return accepted


def list_differences(stored: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Returns `key: STORED → PRESENT` for each key whose value differs, by key.

    A `_target_`, the path of a class, counts as equal if the class has only moved since.
    """
    stored_values = _replace_moved_paths(stored)
    present_values = _replace_moved_paths(present)
    changes = []
    for key in sorted({*stored_values, *present_values}):
        stored_value = stored_values.get(key, ABSENT)
        present_value = present_values.get(key, ABSENT)
        if stored_value != present_value:
            changes.append(f"{key}: {stored_value} → {present_value}")
    return changes


def _replace_moved_paths(value: Any, key: str = "") -> Any:
    """Returns a part of a study definition with the present path of each class that has moved.

    A path is the text of a key that ends with `_target_`, here or anywhere below.

    Args:
        value: The part.
        key: The key of the part; "" for the whole definition and for an item of a list.
    """
    if isinstance(value, Mapping):
        return {name: _replace_moved_paths(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_moved_paths(item) for item in value]
    if key.endswith("_target_") and isinstance(value, str):
        return _present_path(value)
    return value


def _present_path(class_path: str) -> str:
    """Returns the present path of a class, which may have moved alone or with its module.

    MOVED has the present path of each class and module that has moved, by its former path.
    """
    if class_path in MOVED:
        return MOVED[class_path]
    module, dot, class_name = class_path.rpartition(".")
    if module in MOVED:
        return f"{MOVED[module]}{dot}{class_name}"
    return class_path


def _make_definition_error(name: str, changes: Sequence[str]) -> DefinitionError:
    """Makes the error that shows how the definition of a study differs from the present one.

    Args:
        name: The name of the study.
        changes: The lines of `list_differences`.
    """
    config_changes = [change for change in changes if not change.startswith(CODE)]
    code_changes = [change for change in changes if change.startswith(CODE)]
    if not config_changes:
        return _make_code_error(name, code_changes)
    # A module that is new or gone needs no line: a `_target_` among the other changes names it.
    listed_code_changes = [change for change in code_changes if ABSENT not in change]
    advice = _advise_on_values(listed_code_changes)
    lines = list(config_changes)
    for change in listed_code_changes:
        lines.append(f"{name_of_change(change)} has changed")
    listed = "".join(f"  {line}\n" for line in lines)
    return DefinitionError(
        f"study.name: the study {name!r} already exists with a different definition, so its "
        f"trials are not comparable:\n{listed}restore these values to resume it, or start a new "
        f"study with study.name=…{advice}"
    )


def _make_code_error(name: str, changes: Sequence[str]) -> DefinitionError:
    """Makes the error for a study whose definition differs only in the user's code.

    Args:
        name: The name of the study.
        changes: The lines of `list_differences`.
    """
    advice = _advise_on_values(changes)
    sources = [name_of_change(change) for change in changes]
    if len(sources) == 1:
        verb = "has"
    else:
        verb = "have"
    return DefinitionError(
        f"study.name: {', '.join(sources)} {verb} changed since the study {name!r} began, so "
        "its trials are not comparable; restore the code to resume the study, continue with "
        "the new code by study.accept_code_change=true, or start a new study with "
        f"study.name=…{advice}"
    )


def _advise_on_values(changes: Sequence[str]) -> str:
    """Returns the advice on data that the user's code draws, or on a variable that it changes."""
    for change in changes:
        key, _, _ = change.partition(": ")
        variable = find_captured_variable(key)
        if variable is not None:
            return f"; if calls of the function change {variable}, make it again before each search"
    if any(contains_data_digest(change) for change in changes):
        return "; seed what draws the data, as numpy.random.seed(0) does, and they stay the same"
    return ""


def name_of_change(change: str) -> str:
    """Returns the source or data, such as `split`, that a line of `list_differences` is about."""
    key, _, values = change.partition(": ")
    if contains_data_digest(values):
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
    # The ledger is the budget of the study. studyloom stores a definition with each study that it
    # makes; one without a definition is another program's, and has no budget.
    if DEFINITION in study.user_attrs:
        ledger = Ledger.of(backend, study._study_id, study.user_attrs)
    else:
        ledger = NoLedger.of(backend, study._study_id, study.user_attrs)
    return StoredStudy(name, storage, study, ledger)


def _check_format(name: str, attributes: Mapping[str, Any]) -> None:
    """Raises StorageError if another version of studyloom has stored a study in another format.

    Args:
        attributes: The user attributes of the study; other programs store no format.
    """
    if DEFINITION in attributes and attributes.get(FORMAT) != FORMAT_NUMBER:
        if attributes.get(VERSION):
            program = f"studyloom {attributes[VERSION]}"
        else:
            program = "a studyloom from before the first release"
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
    if name:
        return open_study(url, name, deadline)
    names = study_names(url, deadline)
    if not names:
        raise StorageError(f"{message}; the database holds no study")
    if len(names) > 1:
        listed = ", ".join(names)
        raise StorageError(f"{message}; the database holds {len(names)} studies: {listed}")
    return open_study(url, names[0], deadline)


def open_ledgers(url: str, deadline: float) -> dict[str, Ledger]:
    """Opens the ledgers (the budgets) of all studies that studyloom has made in a database.

    Returns:
        The ledgers by the name of the study; none for a server's database that is still empty.

    Raises:
        StorageError: The database cannot be used, or has a study of another format.
    """
    try:
        backend = connect(url, deadline=deadline)
    except StorageError:
        is_empty_server = not is_sqlite(parse_url(url)) and has_no_tables(url)
        if is_empty_server:
            return {}
        raise
    check_table(backend)
    ledgers = {}
    for study in backend.get_all_studies():
        if DEFINITION in study.user_attrs:
            _check_format(study.study_name, study.user_attrs)
            ledger = Ledger.of(backend, study._study_id, study.user_attrs)
            ledgers[study.study_name] = ledger
    return ledgers


def create_study(
    url: str,
    name: str,
    definition: Mapping[str, Any],
    trials: int,
    deadline: float = 300.0,
    *,
    objectives: Sequence[ObjectiveValue] = (ACCURACY,),
    lowest_rung: int | None = 0,
    accept_code_change: bool = False,
) -> StoredStudy:
    """Opens a study, and creates the database, the tables and the study if they are missing.

    Args:
        definition: The study definition; a stored study must have the same.
        trials: The budget; the budget of a stored study is extended to it.
        deadline: Seconds that this and later calls wait for a database that is away.
        lowest_rung: The epoch at which a new study first compares its trials, to pause the worse
            ones; 0 if its pruner pauses none; None if a trial will decide it.
        accept_code_change: Whether the user's code may have changed since the study began.

    Raises:
        DefinitionError: The study of that name has another definition.
    """
    lock = hold_creation_lock(url)
    with lock, closed_on_error(connect(url, create=True, deadline=deadline)) as backend:
        existing_names = {study.study_name for study in backend.get_all_studies()}
        if name not in existing_names:
            _add_study(backend, name, definition, objectives, lowest_rung)
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
    with hold_creation_lock(backend.retry.address, deadline=backend.retry.deadline):
        opened = open_in_same_database(stored, name)
        if opened is None:
            # 0: the trials of this study, such as those of a re-evaluation, are never paused.
            _add_study(backend, name, definition, objectives, lowest_rung=0)
            opened = open_in_same_database(stored, name)
        assert opened is not None
        _prepare(opened, definition, trials, objectives)
    return opened


def _add_study(
    backend: RetryingStorage,
    name: str,
    definition: Mapping[str, Any],
    objectives: Sequence[ObjectiveValue],
    lowest_rung: int | None,
) -> None:
    """Stores a new study with its definition.

    Args:
        lowest_rung: The epoch at which it first compares its trials, to pause the worse ones; 0 if
            it pauses none; None if a trial will decide it.
    """
    attributes = {
        DEFINITION: dict(definition),
        UUID: uuid.uuid4().hex,
        FORMAT: FORMAT_NUMBER,
        VERSION: __version__,
        RUNG: lowest_rung,
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
    accepted_definition = check_definition(
        stored.name, stored_definition, definition, accept_code_change=accept_code_change
    )
    if stored.optuna.metric_names is None:  # optuna-dashboard shows them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            stored.optuna.set_metric_names([objective.name for objective in objectives])
    stored.reconcile(trials)
    if accepted_definition != stored_definition:
        _store_code_change(stored, stored_definition or {}, accepted_definition)
    forget_halt(stored)


def _store_code_change(
    stored: StoredStudy, previous: Mapping[str, Any], accepted: Mapping[str, Any]
) -> None:
    """Stores a definition with changed code, which sources changed, and from which trial on.

    Args:
        previous: The definition that is stored now.
        accepted: The definition to store, which differs only in digests of code.
    """
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
