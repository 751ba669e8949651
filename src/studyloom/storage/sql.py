"""Reads and writes Optuna's tables of studies and trials, many rows in a statement.

Optuna's own methods take each row through SQLAlchemy's objects and commit each. The functions
here read and write the same; the tests compare. 5,000 trials are read in a sixth of the time, and a
trial of 6 hyperparameters and 10 reports is 13 commits instead of 34.

A trial has one row in the table `trials`, and its *details* in five others: hyperparameters,
values, reports, user attributes and system attributes. Statements are built once: building one
takes longer than the database takes to run a small one.
"""

import copy
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from studyloom.errors import StorageError, StorageLost, TrialDeleted
from studyloom.space.tree import Configuration
from studyloom.storage import cells
from studyloom.storage.attributes import (
    DEFINITION,
    FORMER_SLOT,
    HEAVY_KEYS,
    LARGEST,
    PICKLE_PREFIXES,
    SLOT,
    TRIAL_KEYS,
    UUID,
    Attributes,
    has_attribute_type,
)
from studyloom.storage.optuna_internals import (
    TABLES,
    TrialIntermediateValueModel,
    TrialValueModel,
)

STUDIES = TABLES["studies"]
STUDY_ATTRIBUTES = TABLES["study_user_attributes"]
TRIALS = TABLES["trials"]
PARAMS = TABLES["trial_params"]
VALUES = TABLES["trial_values"]
REPORTS = TABLES["trial_intermediate_values"]
USER_ATTRIBUTES = TABLES["trial_user_attributes"]
SYSTEM_ATTRIBUTES = TABLES["trial_system_attributes"]
T = TypeVar("T")
Row = Mapping[str, Any]  # values by column or parameter
TrialRows = Sequence[Any]  # rows of `trials`, from TRIAL_ROWS or a part of it
Details = Mapping[sa.Table, sa.Executable]  # the statements that read the details of trials
UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
# Trials whose details are read at once: their ids are one text, which has a limit of 1 MB where a
# file is untrusted.
MOST_TRIALS_AT_ONCE = 50_000
ROWS_AT_ONCE = 10_000  # rows of hyperparameters that are Python objects at once
FIXED_PARAMS = "fixed_params"  # Optuna's system attribute with the values of a queued trial


class Write(NamedTuple):
    """A statement to execute, with the values of its parameters."""

    statement: sa.Executable
    row: Row


class among(FunctionElement[bool]):
    """Tests whether a column is one of some integers, which are bound as one JSON list.

    With an IN list the statement would differ for each length, and SQLAlchemy and PostgreSQL
    would have to prepare it again.
    """

    type = sa.Boolean()
    inherit_cache = True


@compiles(among, "sqlite")
def _among_sqlite(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, ids = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({ids}))"


@compiles(among, "postgresql")
def _among_postgresql(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, ids = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} = ANY (ARRAY(SELECT json_array_elements_text({ids}::json)::integer))"


def _upsert(
    table: str, key: str, *columns: str, owner: str = "trial_id", keep_existing: bool = False
) -> sa.TextClause:
    """Builds a statement that inserts a row, or updates the row with the same owner and key.

    Args:
        key: The column that distinguishes the rows of one trial, such as an attribute's name.
        columns: The other columns.
        owner: The column with the id of the study or trial to which the row belongs.
        keep_existing: Whether a row that exists stays unchanged.
    """
    all_columns = (owner, key, *columns)
    placeholders = ", ".join(f":{column}" for column in all_columns)
    if keep_existing:
        on_conflict = "NOTHING"
    else:
        changes = ", ".join(f"{column} = excluded.{column}" for column in columns)
        on_conflict = f"UPDATE SET {changes}"
    return sa.text(
        f"INSERT INTO {table} ({', '.join(all_columns)}) VALUES ({placeholders}) "
        f"ON CONFLICT ({owner}, {key}) DO {on_conflict}"
    )


# Studies

SET_STUDY_ATTRIBUTE = _upsert("study_user_attributes", "key", "value_json", owner="study_id")


def add_study(
    connection: sa.Connection,
    name: str,
    directions: Sequence[StudyDirection],
    user_attrs: Attributes,
) -> int:
    """Creates a study with its attributes, unless one of that name exists; returns its id.

    All is in one transaction of the caller. Optuna commits the study and each attribute separately:
    a study whose creator dies in between lacks a definition, and looks like one of another program.
    """
    has_name = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)
    existing_id = connection.execute(has_name).scalar()
    if existing_id is not None:
        return int(existing_id)
    insert_study = STUDIES.insert().returning(STUDIES.c.study_id)
    study_id = int(connection.execute(insert_study, {"study_name": name}).scalar_one())
    for objective, direction in enumerate(directions):
        row = {"study_id": study_id, "objective": objective, "direction": direction}
        connection.execute(TABLES["study_directions"].insert(), row)
    for key, value in user_attrs.items():
        set_study_attr(connection, study_id, key, value)
    return study_id


def set_study_attr(connection: sa.Connection, study_id: int, key: str, value: object) -> None:
    """Stores a user attribute of a study, whose value must be JSON."""
    row = {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
    connection.execute(SET_STUDY_ATTRIBUTE, row)


# Holds if the study still exists, and is not a later one with the same id.
IS_STUDY = (
    sa.select(STUDY_ATTRIBUTES.c.study_id)
    .where(
        STUDY_ATTRIBUTES.c.study_id == sa.bindparam("study"),
        STUDY_ATTRIBUTES.c.key == UUID,
        STUDY_ATTRIBUTES.c.value_json == sa.bindparam("uuid"),
    )
    .exists()
)
LOCK = (
    sa.select(STUDIES.c.study_id)
    .where(STUDIES.c.study_id == sa.bindparam("study"), IS_STUDY)
    .with_for_update()
)


def study_parameters(study_id: int, uuid: str) -> dict[str, Any]:
    """Returns the values of the parameters of IS_STUDY."""
    return {"study": study_id, "uuid": json.dumps(uuid)}


def study_deleted() -> StorageLost:
    """Returns the error of a study that was deleted while it ran."""
    return StorageLost(
        "the study was deleted while it ran; the same command starts it from the beginning"
    )


def lock_study(connection: sa.Connection, study_id: int, uuid: str) -> None:
    """Locks a study until the commit, so that those who create its trials wait for each other.

    SQLite has one writer at a time; on PostgreSQL they wait for the row of the study. Raises
    StorageLost if the study no longer exists.
    """
    if connection.execute(LOCK, study_parameters(study_id, uuid)).first() is None:
        raise study_deleted()


ALL_STUDY_ATTRIBUTES = sa.select(STUDY_ATTRIBUTES.c.key, STUDY_ATTRIBUTES.c.value_json).where(
    STUDY_ATTRIBUTES.c.study_id == sa.bindparam("study")
)
SOME_STUDY_ATTRIBUTES = ALL_STUDY_ATTRIBUTES.where(
    STUDY_ATTRIBUTES.c.key.in_(sa.bindparam("keys", expanding=True))
)


def all_study_attrs(connection: sa.Connection, study_id: int) -> dict[str, Any]:
    """Reads the user attributes of a study."""
    rows = connection.execute(ALL_STUDY_ATTRIBUTES, {"study": study_id})
    return {key: json.loads(value) for key, value in rows}


def study_attrs(connection: sa.Connection, study_id: int, *keys: str) -> list[Any]:
    """Reads some user attributes of a study, in one statement.

    Returns:
        The value for each key; None if it is missing, or has another type than studyloom stores.
    """
    rows = connection.execute(SOME_STUDY_ATTRIBUTES, {"study": study_id, "keys": keys})
    stored_values = {key: json.loads(value) for key, value in rows}
    values = []
    for key in keys:
        value = stored_values.get(key)
        if not has_attribute_type(key, value):
            value = None
        values.append(value)
    return values


# Trials, read

# Whether studyloom made the study of a trial.
IS_STUDYLOOMS = sa.exists().where(
    STUDY_ATTRIBUTES.c.study_id == TRIALS.c.study_id, STUDY_ATTRIBUTES.c.key == DEFINITION
)
TRIAL_ROWS = sa.select(
    TRIALS.c.trial_id,
    TRIALS.c.number,
    TRIALS.c.state,
    TRIALS.c.datetime_start,
    TRIALS.c.datetime_complete,
    IS_STUDYLOOMS,
).order_by(TRIALS.c.trial_id)
IDS = sa.bindparam("ids", type_=sa.String)  # a JSON list
HAS_ID = among(TRIALS.c.trial_id, IDS)
IN_STUDY = TRIALS.c.study_id == sa.bindparam("study")
# + 0 keeps SQLite from using the index of studies, and so from going through all trials.
IN_STUDY_BY_ID = TRIALS.c.study_id + 0 == sa.bindparam("study")
IS_LATER = TRIALS.c.trial_id > sa.bindparam("after")
HAS_ENDED = TRIALS.c.state.not_in(UNFINISHED)

COUNT = sa.select(sa.func.count()).where(IN_STUDY)
ALL_ROWS = TRIAL_ROWS.where(IN_STUDY)
ROWS_BY_ID = TRIAL_ROWS.where(HAS_ID)
SOME_ROWS = TRIAL_ROWS.where(IN_STUDY_BY_ID, sa.or_(IS_LATER, HAS_ID))
CHANGED_ROWS = TRIAL_ROWS.where(IN_STUDY_BY_ID, sa.or_(IS_LATER, sa.and_(HAS_ID, HAS_ENDED)))


def _details(table: sa.Table, *columns: str) -> sa.Select[Any]:
    """Builds the statement that reads some trials' rows of a table."""
    return (
        sa.select(table.c.trial_id, *(table.c[name] for name in columns))
        .where(among(table.c.trial_id, IDS))
        .order_by(*table.primary_key)
    )


USER_ATTRIBUTES_OF_TRIALS = _details(USER_ATTRIBUTES, "key", "value_json")
LIGHT_ATTRIBUTES_OF_TRIALS = USER_ATTRIBUTES_OF_TRIALS.where(
    USER_ATTRIBUTES.c.key.not_in(HEAVY_KEYS)
)
DETAILS: Details = {
    PARAMS: _details(PARAMS, "param_name", "param_value", "distribution_json"),
    VALUES: _details(VALUES, "objective", "value", "value_type"),
    REPORTS: _details(REPORTS, "step", "intermediate_value", "intermediate_value_type"),
    USER_ATTRIBUTES: USER_ATTRIBUTES_OF_TRIALS,
    SYSTEM_ATTRIBUTES: _details(SYSTEM_ATTRIBUTES, "key", "value_json"),
}
# The details without the attributes that no sampler and no pruner reads.
LIGHT_DETAILS: Details = {
    **DETAILS,
    USER_ATTRIBUTES: LIGHT_ATTRIBUTES_OF_TRIALS,
}


# Each function below reads trials with their details, in the order of their ids. The connection is
# in a transaction, so that the parts of a trial fit together.


def read_all(connection: sa.Connection, study_id: int) -> list[FrozenTrial]:
    """Reads all trials of a study."""
    rows = connection.execute(ALL_ROWS, {"study": study_id}).all()
    return _with_details(connection, rows, DETAILS)


def read_some(
    connection: sa.Connection, study_id: int, *, after: int, ids: Iterable[int]
) -> list[FrozenTrial]:
    """Reads the trials of a study whose id is above `after` or among `ids`."""
    parameters = {"study": study_id, "after": after, "ids": json.dumps(sorted(ids))}
    rows = connection.execute(SOME_ROWS, parameters).all()
    return _with_details(connection, rows, DETAILS)


def read_by_ids(connection: sa.Connection, ids: Sequence[int]) -> list[FrozenTrial]:
    """Reads trials of any study."""
    rows = connection.execute(ROWS_BY_ID, {"ids": json.dumps(ids)}).all()
    return _with_details(connection, rows, DETAILS)


def read_all_light(connection: sa.Connection, study_id: int) -> list[FrozenTrial]:
    """Reads all trials of a study without the attributes that no sampler or pruner uses."""
    rows = connection.execute(ALL_ROWS, {"study": study_id}).all()
    return read_light(connection, rows)


def read_light(connection: sa.Connection, rows: TrialRows) -> list[FrozenTrial]:
    """Makes trials from their rows in the table `trials`, with their details in other tables.

    The attributes that no sampler or pruner uses are left out.
    """
    return _with_details(connection, rows, LIGHT_DETAILS)


def _with_details(
    connection: sa.Connection, rows: TrialRows, details: Details
) -> list[FrozenTrial]:
    """Makes trials from their rows in the table `trials`, with their details in other tables.

    Args:
        details: The statements that read the details, DETAILS or LIGHT_DETAILS.
    """
    trials: list[FrozenTrial] = []
    for start in range(0, len(rows), MOST_TRIALS_AT_ONCE):
        block = rows[start : start + MOST_TRIALS_AT_ONCE]
        trials += _block_with_details(connection, block, details)
    return trials


def _block_with_details(
    connection: sa.Connection, rows: TrialRows, details: Details
) -> list[FrozenTrial]:
    """Makes at most MOST_TRIALS_AT_ONCE trials from their rows in the table `trials`.

    Args:
        details: The statements that read their details in the other tables.

    Another program may have stored anything. A number or key of a wrong type is an error. A trial
    of studyloom's loses attributes of a type that studyloom does not store. System attributes that
    Optuna would unpickle are left out, since a pickle may execute code.
    """
    reader = _DetailsReader(connection, details, [row.trial_id for row in rows])
    values = reader.read(VALUES, cells.read_value)
    reports = reader.read(REPORTS, cells.read_report)
    user_attrs = reader.read(USER_ATTRIBUTES, cells.read_attribute)
    system_attrs = reader.read(SYSTEM_ATTRIBUTES, cells.read_system_attribute)
    params = reader.read_params()
    trials = []
    for trial_id, number, state, start, complete, is_studylooms in rows:
        try:
            cells.check_integer(number, "number")
        except TypeError as error:
            raise _unknown_cell_of(TRIALS, trial_id, error) from None
        values_by_objective = sorted(values[trial_id], key=itemgetter(0))
        trial = FrozenTrial(
            number=number,
            state=state,
            value=None,
            values=[value for _, value in values_by_objective] or None,
            datetime_start=local_time(start),
            datetime_complete=local_time(complete),
            params=params[trial_id].values,
            distributions=params[trial_id].distributions,
            user_attrs=_fitting_user_attrs(dict(user_attrs[trial_id]), is_studylooms),
            system_attrs=_without_pickles(system_attrs[trial_id]),
            intermediate_values=dict(reports[trial_id]),
            trial_id=trial_id,
        )
        trials.append(trial)
    return trials


@dataclass(frozen=True)
class _Params:
    """The hyperparameters of a trial, by name."""

    values: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)


class _DetailsReader:
    """Reads the details of some trials: their rows in the tables other than `trials`."""

    def __init__(
        self, connection: sa.Connection, details: Details, trial_ids: Sequence[int]
    ) -> None:
        self.connection = connection
        self.details = details
        self.parameters = {"ids": json.dumps(trial_ids)}

    def read(self, table: sa.Table, read_row: Callable[..., T]) -> defaultdict[int, list[T]]:
        """Reads the trials' rows in a table, by trial.

        Args:
            read_row: Makes a value of the cells of a row, without the id of its trial.

        Raises:
            StorageError: Another program has stored a cell that `read_row` cannot read.
        """
        by_trial = defaultdict[int, list[T]](list)
        for trial_id, *row in self.connection.execute(self.details[table], self.parameters):
            try:
                by_trial[trial_id].append(read_row(*row))
            except cells.CELL_ERRORS as error:
                raise _unknown_cell_of(table, trial_id, error) from None
        return by_trial

    def read_params(self) -> defaultdict[int, _Params]:
        """Reads the hyperparameters of the trials, by the trial's id.

        Raises:
            StorageError: Another program has stored a cell that cannot be read.
        """
        by_trial = defaultdict[int, _Params](_Params)
        rows = self.connection.execute(self.details[PARAMS], self.parameters)
        for block in rows.partitions(ROWS_AT_ONCE):
            for trial_id, name, value, distribution_json in block:
                try:
                    # Trials share names and distributions: for 1,000 trials of 2,000
                    # hyperparameters, copies would take a gibibyte.
                    name = sys.intern(name)
                    distribution = parse_distribution(distribution_json)
                    params = by_trial[trial_id]
                    params.distributions[name] = distribution
                    params.values[name] = distribution.to_external_repr(float(value))
                except cells.CELL_ERRORS as error:
                    raise _unknown_cell_of(PARAMS, trial_id, error) from None
        return by_trial


def _unknown_cell_of(table: sa.Table, trial_id: object, error: Exception) -> StorageError:
    """Returns the error of a cell in a row of a trial; see `cells.unknown_cell`."""
    return cells.unknown_cell(error, f"{table.name}, trial_id {trial_id}")


def _fitting_user_attrs(attributes: Attributes, is_studylooms: bool) -> dict[str, Any]:
    """Drops the attributes of a trial that have another type than studyloom stores.

    An external trial, made by another program, keeps all: an attribute of the same name may have
    another meaning there.

    Args:
        is_studylooms: Whether studyloom made the study of the trial.
    """
    is_external = not is_studylooms or not is_slot(attributes.get(SLOT))
    if is_external:
        return dict(attributes)
    return {key: value for key, value in attributes.items() if has_attribute_type(key, value)}


def _without_pickles(attributes: Iterable[tuple[str, object]]) -> dict[str, Any]:
    """Returns system attributes without those that Optuna would unpickle."""
    return {key: value for key, value in attributes if not key.startswith(PICKLE_PREFIXES)}


@lru_cache(4096)
def parse_distribution(stored: str) -> BaseDistribution:
    """Makes a distribution from its JSON; trials of one space share it, since none is changed."""
    return json_to_distribution(stored)


def utc_now() -> datetime:
    """Returns the current time as Optuna stores it: in UTC, without a time zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def local_time(utc: datetime | None) -> datetime | None:
    """Converts a stored time to local time, both without a time zone."""
    if utc is None:
        return None
    return utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


@dataclass(frozen=True)
class TrialSummary:
    """The columns of a trial that the ledger reads.

    Attributes:
        slot: The slot that it fills; None for a trial of another program.
    """

    trial_id: int
    number: int
    state: TrialState
    slot: int | None


def read_summaries(connection: sa.Connection, study_id: int) -> list[TrialSummary]:
    """Reads number, state and slot of all trials of a study, in the order of their ids."""
    is_slot_attribute = sa.and_(
        USER_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id, USER_ATTRIBUTES.c.key == SLOT
    )
    query = (
        sa.select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state, USER_ATTRIBUTES.c.value_json)
        .select_from(TRIALS.outerjoin(USER_ATTRIBUTES, is_slot_attribute))
        .where(TRIALS.c.study_id == study_id)
        .order_by(TRIALS.c.trial_id)
    )
    summaries = []
    for trial_id, number, state, slot_json in connection.execute(query):
        summaries.append(TrialSummary(trial_id, number, state, parse_slot(slot_json)))
    return summaries


def parse_slot(slot_json: str | None) -> int | None:
    """Parses a stored attribute SLOT; None without one, or if no worker can have stored it."""
    if slot_json is None:
        return None
    slot = json.loads(slot_json)
    if not is_slot(slot):
        return None
    return int(slot)


def is_slot(value: object) -> bool:
    """Returns whether a value of the attribute SLOT is one that a worker may have stored."""
    return type(value) is int and 0 <= value <= LARGEST


def fills_slot(trial: FrozenTrial) -> bool:
    """Returns whether a trial fills a slot of the ledger; a trial of another program does not."""
    return is_slot(trial.user_attrs.get(SLOT))


def without_reserved(trial: FrozenTrial) -> FrozenTrial:
    """Copies another program's trial without the attributes that have names of studyloom's.

    Another program may use such a name for something else: its `epochs` may be a number.
    """
    if trial.user_attrs.keys().isdisjoint(TRIAL_KEYS):
        return trial
    attributes = {key: value for key, value in trial.user_attrs.items() if key not in TRIAL_KEYS}
    copied = copy.copy(trial)
    copied.user_attrs = attributes
    return copied


# Trials, written

# One above the largest number, which need not be that of the latest trial: where trials were
# deleted, Optuna gives out numbers again.
NEXT_NUMBER = sa.select(sa.func.coalesce(sa.func.max(TRIALS.c.number) + 1, 0)).where(IN_STUDY)
INSERT = (
    TRIALS.insert()
    .values(
        study_id=sa.bindparam("study"),
        number=NEXT_NUMBER.scalar_subquery(),
        state=sa.bindparam("in_state"),
        datetime_start=sa.bindparam("at"),
    )
    .returning(TRIALS.c.trial_id, TRIALS.c.number)
)
PARAM = _upsert(
    "trial_params", "param_name", "param_value", "distribution_json", keep_existing=True
)
VALUE = _upsert("trial_values", "objective", "value", "value_type")
REPORT = _upsert(
    "trial_intermediate_values", "step", "intermediate_value", "intermediate_value_type"
)
USER_ATTRIBUTE = _upsert("trial_user_attributes", "key", "value_json")
SYSTEM_ATTRIBUTE = _upsert("trial_system_attributes", "key", "value_json")
START = (
    TRIALS.update()
    .where(TRIALS.c.trial_id == sa.bindparam("id"))
    .values(state=TrialState.RUNNING, datetime_start=sa.bindparam("at"))
)
END = (
    TRIALS.update()
    .where(TRIALS.c.trial_id == sa.bindparam("id"))
    .values(state=sa.bindparam("ended"), datetime_complete=sa.bindparam("at"))
)
# Takes a trial out of its slot, but keeps all else of it.
SET_ASIDE = (
    USER_ATTRIBUTES.update()
    .where(USER_ATTRIBUTES.c.trial_id == sa.bindparam("id"), USER_ATTRIBUTES.c.key == SLOT)
    .values(key=FORMER_SLOT)
)


def insert_trial(
    connection: sa.Connection,
    study_id: int,
    user_attrs: Attributes,
    configuration: Configuration | None = None,
) -> FrozenTrial:
    """Creates a trial with the study's next number.

    Args:
        connection: In a transaction that has called `lock_study`.
        configuration: Its hyperparameters. With them the trial waits to be started; without, it
            runs.

    Returns:
        The trial without its hyperparameters.
    """
    if configuration is None:
        state = TrialState.RUNNING
        start = utc_now()
    else:
        state = TrialState.WAITING
        start = None
    row = {"study": study_id, "in_state": state, "at": start}
    trial_id, number = connection.execute(INSERT, row).one()

    writes = [user_attr_write(trial_id, key, value) for key, value in user_attrs.items()]
    if configuration is not None:
        writes += _param_writes(trial_id, configuration)
    write(connection, writes)

    trial = create_trial(state=state, user_attrs=dict(user_attrs))
    trial.number = number
    trial._trial_id = trial_id
    trial.datetime_start = local_time(start)
    return trial


def _param_writes(trial_id: int, configuration: Configuration) -> list[Write]:
    """Makes the rows of a waiting trial's hyperparameters.

    Values without a distribution are stored in a system attribute, as Optuna does for a trial that
    it queues.
    """
    writes = []
    fixed = {
        name: value
        for name, value in configuration.params.items()
        if name not in configuration.distributions
    }
    if fixed:
        writes.append(system_attr_write(trial_id, FIXED_PARAMS, fixed))
    for name, distribution in configuration.distributions.items():
        internal_value = distribution.to_internal_repr(configuration.params[name])
        writes.append(param_write(trial_id, name, internal_value, distribution))
    return writes


HAS_USER_ATTRIBUTE = sa.select(USER_ATTRIBUTES.c.key).where(
    USER_ATTRIBUTES.c.trial_id == sa.bindparam("id"), USER_ATTRIBUTES.c.key == sa.bindparam("name")
)


def has_user_attr(connection: sa.Connection, trial_id: int, key: str) -> bool:
    """Returns whether a trial has a user attribute."""
    parameters = {"id": trial_id, "name": key}
    return connection.execute(HAS_USER_ATTRIBUTE, parameters).first() is not None


def trial_deleted() -> TrialDeleted:
    """Returns the error of a trial that another program has deleted."""
    return TrialDeleted("another program has deleted its trial; a new one takes its place")


def write(connection: sa.Connection, writes: Iterable[Write]) -> None:
    """Executes writes in their order; those in a row with the same statement are executed at once.

    The same rows may be written twice, as after a commit whose reply was lost.
    """
    for statement, writes_in_a_row in groupby(writes, key=attrgetter("statement")):
        connection.execute(statement, [same_write.row for same_write in writes_in_a_row])


def param_write(
    trial_id: int, name: str, internal_value: float, distribution: BaseDistribution
) -> Write:
    """Makes the row of a hyperparameter; its value is in the distribution's internal form."""
    row = {
        "trial_id": trial_id,
        "param_name": name,
        "param_value": internal_value,
        "distribution_json": distribution_to_json(distribution),
    }
    return Write(PARAM, row)


def report_write(trial_id: int, step: int, value: float) -> Write:
    """Makes the row of an intermediate value, which may be NaN or infinite."""
    stored_value, kind = TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    row = {
        "trial_id": trial_id,
        "step": step,
        "intermediate_value": stored_value,
        "intermediate_value_type": kind.name,
    }
    return Write(REPORT, row)


def user_attr_write(trial_id: int, key: str, value: object) -> Write:
    """Makes the row of a user attribute, whose value must be JSON."""
    row = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
    return Write(USER_ATTRIBUTE, row)


def system_attr_write(trial_id: int, key: str, value: object) -> Write:
    """Makes the row of a system attribute, whose value must be JSON."""
    row = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
    return Write(SYSTEM_ATTRIBUTE, row)


def start_write(trial_id: int) -> Write:
    """Makes the change of a waiting trial that starts it now."""
    return Write(START, {"id": trial_id, "at": utc_now()})


def end_writes(trial_id: int, state: TrialState, values: Sequence[float] | None) -> list[Write]:
    """Makes the rows that end a trial, with a value for each objective or None."""
    writes = []
    for objective, value in enumerate(values or ()):
        stored_value, kind = TrialValueModel.value_to_stored_repr(value)
        row = {
            "trial_id": trial_id,
            "objective": objective,
            "value": stored_value,
            "value_type": kind.name,
        }
        writes.append(Write(VALUE, row))
    writes.append(Write(END, {"id": trial_id, "ended": state, "at": utc_now()}))
    return writes
