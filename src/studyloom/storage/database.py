"""Optuna's storage on a shared SQLite or PostgreSQL database, whose calls wait through outages.

A call is repeated after a transient failure, see `retry`; a permanent one is explained in plain
words, see `database_errors`.

Optuna's own SQLite engine gives one queued trial to two workers and takes twice the time for a
report; the hooks below fix both (328 reports/s with 8 writers, against 196 with BEGIN IMMEDIATE
everywhere).
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Container
from json import JSONDecodeError
from typing import Any, NoReturn, TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import scoped_session, sessionmaker

from studyloom.errors import StorageError, StorageLost, StudyloomError
from studyloom.storage import cells, connections, database_errors, optuna_tables, sql
from studyloom.storage.call_state import call_state
from studyloom.storage.optuna_internals import FrozenStudy
from studyloom.storage.retry import Retry
from studyloom.storage.urls import parse_url, without_password

DEADLINE = 300.0  # seconds that a call waits for a database that is away
T = TypeVar("T")
Connection = sqlalchemy.engine.Connection  # the other layers import it only from here


class DropIgnoredErrors(logging.Filter):
    """Drops psycopg's line about an error that it ignores since another one is on its way.

    We report the other error; the line would stand in a worker's log among those of the outage.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("error ignored")


logging.getLogger("psycopg").addFilter(DropIgnoredErrors())


class CheckedStorage(RDBStorage):
    """Optuna's storage that checks the cells of studies, whose types SQLite leaves open.

    The cells of trials are checked where `sql` reads them.
    """

    def get_all_studies(self) -> list[FrozenStudy]:
        """Reads all studies; raises StorageError if another program has stored a wrong type."""
        try:
            studies = super().get_all_studies()
            for study in studies:
                cells.check_text(study.study_name, "study_name")
        except StudyloomError:
            raise
        except (TypeError, ValueError) as error:
            raise cells.unknown_cell(error, "studies") from None
        for study in studies:
            study.system_attrs = cells.fitting_system_attrs(study.system_attrs)
        return studies

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Reads a study's attributes, without metric names of a wrong type.

        Raises:
            StorageError: A cell of the attributes cannot be read.
        """
        try:
            attributes = super().get_study_system_attrs(study_id)
        except StudyloomError:
            raise
        except (TypeError, ValueError) as error:
            raise cells.unknown_cell(error, "study_system_attributes") from None
        return cells.fitting_system_attrs(attributes)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        directions = super().get_study_directions(study_id)
        cells.check_directions(directions)
        return directions


class RetryingStorage(CheckedStorage):
    """Optuna's storage whose calls are repeated after transient failures.

    It raises StorageLost, also from connections that it hands out.

    Attributes:
        retry: Repeats failed calls, and knows whether one is waiting.
        single: The engine for reads. On a server each of its statements is a transaction: without a
            BEGIN and a ROLLBACK, two round trips less. There even a transaction would let each
            statement see what was committed before it. SQLite needs the transaction, which keeps
            what several statements read consistent.
        snapshots: The engine for reads that see the database as of one moment.
    """

    def __init__(
        self, url: str, address: URL, deadline: float, engine_kwargs: dict[str, Any]
    ) -> None:
        # Optuna's constructor is not called, since it makes a version manager, which takes 0.2 s.
        # These are the attributes that it would set.
        self.url = url
        self.engine_kwargs = engine_kwargs
        self.skip_compatibility_check = True
        self.heartbeat_interval = None
        self.grace_period = None
        self.heartbeat_stale_trial_callback = None
        self.failed_trial_callback = None
        self.engine = sqlalchemy.create_engine(url, **engine_kwargs)
        self.scoped_session = scoped_session(sessionmaker(bind=self.engine))

        self.retry = Retry(address, deadline)
        if connections.is_sqlite(address):
            self.single = self.engine
            self.snapshots = self.engine
        else:
            self.single = self.engine.execution_options(isolation_level="AUTOCOMMIT")
            self.snapshots = self.engine.execution_options(isolation_level="REPEATABLE READ")
        event.listen(self.engine, "do_connect", connections.limit_connect_time)
        event.listen(self.engine, "handle_error", self._explain)
        event.listen(self.engine, "commit", self._record_commit)

    def __getstate__(self) -> NoReturn:
        raise TypeError("a storage cannot be pickled; each process opens its own")

    def close(self) -> None:
        """Closes the connections; a later call opens them again."""
        self.engine.dispose()

    def _explain(self, context: sqlalchemy.engine.ExceptionContext) -> None:
        """Raises an error of ours instead of SQLAlchemy's, with a fix and without a password.

        It listens to SQLAlchemy's event `handle_error`. It is needed because Optuna catches
        SQLAlchemy's errors: `RDBStorage.create_new_trial` would repeat the transaction five times.
        """
        address = self.retry.address
        error = context.sqlalchemy_exception
        if isinstance(error, DataError):  # an error of the caller, not of the database
            message = database_errors.driver_message(error, address)
            raise StorageError(
                f"storage.url: {without_password(address)} cannot hold this: {message}"
            )
        if not isinstance(error, DBAPIError):
            return
        if isinstance(error, IntegrityError):  # Optuna handles it, as when a name is taken
            return
        if database_errors.sqlstate(error) == database_errors.READ_ONLY:
            # The next try gets a new connection, and with it the host that takes writes by then.
            context.is_disconnect = True
        raise database_errors.diagnose(error, address)

    @staticmethod
    def _record_commit(_: Connection) -> None:
        call_state.reached_commit = True

    def call(self, work: Callable[[], T], *, writes: bool) -> T:
        """Calls a function that uses this storage, again after each transient failure.

        Args:
            writes: Whether its transactions write; SQLite then takes the write lock at their
                beginning.
        """

        def attempt() -> T:
            """Calls the function once, and makes this thread ready for another try if it fails."""
            outer_writes = call_state.writes
            call_state.writes = writes  # `SQLiteStorage` reads it when a transaction begins
            try:
                return work()
            except (StorageError, SQLAlchemyError, StorageInternalError):
                self._drop_session()
                raise
            except (LookupError, RecursionError, JSONDecodeError) as error:
                # Optuna raises these for a cell that it cannot read, but also for a wrong call, as
                # with the id of a trial that does not exist. The caller then gets the error.
                if _is_of_caller(error):
                    raise
                raise cells.unknown_cell(error) from None
            finally:
                call_state.writes = outer_writes

        # The engine keeps a pool of connections, which may have been lost since the previous call.
        return self.retry.run(attempt, pooled=True)

    def _drop_session(self) -> None:
        """Drops this thread's session after a failure, so that the next try begins a new one."""
        with contextlib.suppress(StorageLost, SQLAlchemyError):
            self.scoped_session.remove()
        self.scoped_session.registry.clear()

    def execute(self, work: Callable[[Connection], T]) -> T:
        """Runs a writing transaction, independent of Optuna's; returns the result of `work`.

        It runs again after a transient failure, also after a commit whose reply was lost, so `work`
        must be idempotent.
        """

        def transact() -> T:
            with self.engine.begin() as connection:
                return work(connection)

        return self.call(transact, writes=True)

    def read(self, work: Callable[[Connection], T], *, snapshot: bool = False) -> T:
        """Runs a reading transaction; returns the result of `work`, which may run again.

        Args:
            snapshot: Whether all that `work` reads is of one moment, which takes PostgreSQL longer.

        Raises:
            StorageError: Another program has stored a cell that `work` cannot read.
        """
        if snapshot:
            engine = self.snapshots
        else:
            engine = self.single

        def transact() -> T:
            """Runs the transaction once."""
            try:
                with engine.connect() as connection:
                    return work(connection)
            except StudyloomError:
                raise
            except (ArithmeticError, AssertionError, IndexError, TypeError, ValueError) as error:
                # `work` only reads cells and converts them. Such an error comes from a cell with a
                # value that neither Optuna nor studyloom stores.
                raise cells.unknown_cell(error) from None

        return self.call(transact, writes=False)

    # The reads that take Optuna the longest.

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        attributes = self.read(lambda connection: sql.all_study_attrs(connection, study_id))
        if not attributes:
            self.get_study_name_from_id(study_id)  # raises KeyError if there is no such study
        return attributes

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trials = self.read(lambda connection: sql.read_by_ids(connection, [trial_id]))
        if not trials:
            raise KeyError(f"there is no trial {trial_id}")
        return trials[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Reads trials of a study, as Optuna's method of this name does, with fewer statements.

        Args:
            states: The states of the trials; None for all.
            included_trial_ids: Trials that are read whatever their id.
            trial_id_greater_than: Other trials are read only if their id is larger; -1 for all.
        """
        reads_all = trial_id_greater_than < 0

        def read_trials(connection: Connection) -> list[FrozenTrial]:
            if reads_all:
                return sql.read_all(connection, study_id)
            return sql.read_some(
                connection, study_id, after=trial_id_greater_than, ids=included_trial_ids
            )

        trials = self.read(read_trials)
        if reads_all and not trials:
            self.get_study_name_from_id(study_id)  # raises KeyError if there is no such study
        return [trial for trial in trials if states is None or trial.state in states]


def _is_of_caller(error: Exception) -> bool:
    """Returns whether an error is the caller's, and not due to a cell of the database."""
    if isinstance(error, KeyError | IndexError):  # the study or trial does not exist
        return True
    return "encoding" in str(error)  # the value to write is nested too deep for JSON


# Methods of Optuna that are called unchanged, and again after a transient failure.
READING = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_system_attrs",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "get_all_studies",
    "get_trial_param",
    "get_trial_id_from_study_id_trial_number",
    "_get_best_trial_id",
)
WRITING = (
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "_set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
)
# A retry would do these twice, or fail, after a commit whose reply was lost. Workers do not call
# them: in one transaction a worker writes a trial and its claim, and in another the ends of both.
WRITING_ONCE = ("create_new_study", "_create_new_trial", "set_trial_state_values")


def _retrying(name: str) -> Callable[..., Any]:
    """Makes a method that calls Optuna's method of this name, again after transient failures.

    One of the methods in WRITING_ONCE is not called again if the COMMIT of an earlier try may have
    been done: it would do its work twice, or fail.
    """
    optuna_method = getattr(CheckedStorage, name)
    writes = name not in READING
    writes_once = name in WRITING_ONCE

    @functools.wraps(optuna_method)
    def retrying(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        def attempt() -> Any:
            """Calls Optuna's method once, unless an earlier try may have done its work."""
            # `call_state` is this thread's state of the call, kept through all of its tries. A
            # method in WRITING_ONCE must not write again what may have been written.
            if writes_once and call_state.may_be_committed:
                raise StorageLost(
                    f"storage.url: the connection to {without_password(self.retry.address)} was "
                    "lost during a commit, and it is unknown whether it was done; the same command "
                    "resumes the study"
                )
            return optuna_method(self, *args, **kwargs)

        return self.call(attempt, writes=writes)

    return retrying


for _name in (*READING, *WRITING, *WRITING_ONCE):
    setattr(RetryingStorage, _name, _retrying(_name))


class SQLiteStorage(RetryingStorage):
    """Optuna's storage on a SQLite file in WAL mode.

    Transactions that write take the write lock when they begin: one that reads first and takes
    the lock later acts on what it read before others wrote.
    """

    def __init__(self, url: str, address: URL, deadline: float) -> None:
        engine_kwargs = {"connect_args": {"timeout": min(connections.BUSY_SECONDS, deadline)}}
        # The path is made absolute, so that the database stays the same if the process changes its
        # working directory.
        address = address.set(database=str(connections.sqlite_path(address)))
        super().__init__(url, address, deadline, engine_kwargs)

        event.listen(self.engine, "connect", connections.limit_untrusted)

        @event.listens_for(self.engine, "connect")
        def set_up(connection: Any, connection_record: Any) -> None:
            """Sets up a new connection of sqlite3, and records which file it has opened."""
            connection.isolation_level = None  # otherwise sqlite3 begins transactions itself
            if not connections.on_read_only_disk(address):
                connection.execute("PRAGMA journal_mode=WAL")
            # A power cut may lose the last commits, but never the file.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection_record.info["file"] = connections.file_identity(address)

        @event.listens_for(self.engine, "begin")
        def begin(connection: Connection) -> None:
            """Begins a transaction, with the write lock if the call of this thread writes."""
            # If the file was replaced, this connection would still write to the deleted file.
            if connection.info["file"] != connections.file_identity(address):
                raise database_errors.file_gone(address)
            if call_state.writes:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql("BEGIN")

    def _explain(self, context: sqlalchemy.engine.ExceptionContext) -> None:
        """Explains a driver's error, or raises an error which says that the file is gone."""
        address = self.retry.address
        is_of_database = context.sqlalchemy_exception is not None
        if is_of_database and connections.file_identity(address) is None:
            raise database_errors.file_gone(address)
        super()._explain(context)


# Opening a database


def connect(url: str | URL, *, create: bool = False, deadline: float = DEADLINE) -> RetryingStorage:
    """Opens a storage.

    Args:
        create: Whether to create its tables, which one process at a time may do; see
            `creation_lock`.
        deadline: Seconds that this and every later call on the storage waits for a database that
            is away.
    """
    address = parse_url(url)
    with database_errors.explain_errors(address):
        return Retry(address, deadline).run(lambda: _connect_once(address, create, deadline))


def _connect_once(address: URL, create: bool, deadline: float) -> RetryingStorage:
    """Tries once to open a storage.

    Args:
        create: Whether to make the tables that are missing. If not, missing tables are an error,
            and so are tables that another process has not completed.
        deadline: Seconds that later calls wait for a database that is away.

    Raises:
        StorageError: There are no tables, or the tables are of another version of Optuna.
    """
    if connections.is_sqlite(address):
        _prepare_file(address, create=create)
    engine = connections.plain_engine(address, deadline, create=create)
    with contextlib.closing(engine.connect()) as connection:
        if create:
            version = optuna_tables.make_tables(connection)
        else:
            version = optuna_tables.stored_version(connection)
    if version is None and not create:
        # The process that creates the tables writes their version last. The constructor of Optuna's
        # RDBStorage would write the version now, and that process would fail.
        raise StorageError(
            f"storage.url: another process is creating {without_password(address)}; try again "
            "in a second"
        )
    storage = _open(address, deadline)
    is_current = version is not None and version == optuna_tables.newest_version()
    if not is_current:
        # Optuna's own constructor makes what is missing, or refuses tables of another version.
        optuna_storage = RDBStorage(
            storage.url, storage.engine_kwargs, skip_table_creation=not create
        )
        optuna_storage.engine.dispose()
    return storage


def _prepare_file(address: URL, *, create: bool) -> None:
    """Creates the folder of a SQLite file that may be created; otherwise checks that it exists."""
    path = connections.sqlite_path(address)
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif connections.file_identity(address) is None:
        raise StorageError(
            f"storage.url: there is no database {path}; the first run of a study creates it"
        )


def read_only(url: str | URL) -> RetryingStorage:
    """Opens a database of any program that uses Optuna to read it; a SQLite file stays unchanged.

    Raises:
        StorageError: There is no such file.
    """
    address = parse_url(url)
    if not connections.is_sqlite(address):
        # On a server there is no file to protect, so the database is opened as usual. With this
        # deadline no call waits for a server that is away.
        return _open(address, deadline=0.0)
    if not connections.sqlite_path(address).is_file():
        raise StorageError(f"there is no database {connections.sqlite_path(address)}")
    read_only_url = connections.without_creation(address).update_query_dict({"mode": "ro"})
    storage = RetryingStorage(
        read_only_url.render_as_string(), address, deadline=0.0, engine_kwargs={}
    )
    event.listen(storage.engine, "connect", connections.limit_untrusted)
    return storage


def _open(address: URL, deadline: float) -> RetryingStorage:
    """Makes the storage of an existing database; it connects when it is first used.

    Args:
        deadline: Seconds that a call waits for a database that is away; 0 for none.
    """
    if connections.is_sqlite(address):
        url_of_existing = connections.without_creation(address)
        return SQLiteStorage(url_of_existing.render_as_string(), address, deadline)
    engine_kwargs = {
        "pool_size": connections.CONNECTIONS_OF_WORKER,
        # The second connection is for a thread that calls while another one uses the first.
        "pool_use_lifo": True,  # the one used last is taken first, so the second is mostly idle
        "max_overflow": 0,
        "pool_recycle": 1800,  # seconds after which a connection is replaced
        # A thread that finds both in use waits for as long as a silent server may keep them.
        "pool_timeout": connections.longest_silence(deadline),
        "connect_args": connections.libpq_arguments(address, connections.POSTGRES, deadline),
    }
    url = address.render_as_string(hide_password=False)
    return RetryingStorage(url, address, deadline, engine_kwargs)


def import_lazy_modules() -> None:
    """Imports what SQLAlchemy imports when the first database is opened, once for all forks."""
    import sqlalchemy.dialects.sqlite  # noqa: F401
