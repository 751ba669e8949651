"""The database that workers share: SQLite on one host, PostgreSQL anywhere. Every call waits out an outage.

Optuna's own SQLite engine hands one queued trial to two workers and takes twice the time for a report; the hooks below
cure both (328 reports/s with 8 writers, against 196 with BEGIN IMMEDIATE everywhere).
"""

import contextlib
import functools
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy
from filelock import FileLock
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from studyloom import rows
from studyloom.outage import Patience, call, diagnose, gone, identity
from studyloom.outage import StorageError as StorageError
from studyloom.outage import StorageLost as StorageLost
from studyloom.outage import hidden as hidden
from studyloom.outage import reason as reason

LOCK_KEY = 0x5374756479  # PostgreSQL advisory lock of whoever makes tables and studies
DEADLINE = 300.0  # seconds that a call waits for a database that is away
BUSY_SECONDS = 5  # a single try waits so long for another's lock; SQLite does so deaf to Ctrl-C

POSTGRES = {
    "connect_timeout": 10,
    "keepalives_idle": 20,  # a server that vanished is noticed in 40 s, and not in two hours
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 40_000,
    # A worker that is stopped within a transaction (SIGSTOP, a laptop's lid) keeps no other from its rows for ever.
    "options": f"-c timezone=UTC -c lock_timeout={BUSY_SECONDS}s -c idle_in_transaction_session_timeout=60s",
}
T = TypeVar("T")


class Persistent(RDBStorage):
    """Optuna's storage with patience. Its failures are StorageLost, from the connections that it hands out as well."""

    def __init__(self, url: str, address: URL, deadline: float, **kwargs: Any) -> None:
        try:
            super().__init__(url, **kwargs)
        except BaseException:
            if hasattr(self, "engine"):  # or its connections stay until somebody collects the garbage
                self.engine.dispose()
            raise
        self.patience = Patience(address, deadline)
        self.known = -1  # a trial that whoever reads many knows better than the database does
        event.listen(self.engine, "handle_error", self._explain)
        event.listen(self.engine, "commit", self._note_commit)

    @property
    def deadline(self) -> float:
        """Seconds that a call waits for a database that is away; may be set while calls wait."""
        return self.patience.deadline

    @deadline.setter
    def deadline(self, seconds: float) -> None:
        self.patience.deadline = seconds

    def hurry(self, stopping: Callable[[], bool]) -> None:
        """Once `stopping` says so, no call waits longer than FAREWELL seconds."""
        self.patience.stopping = stopping

    def is_away(self) -> bool:
        """Whether calls wait for the database just now."""
        return self.patience.away

    def _explain(self, context: sqlalchemy.engine.ExceptionContext) -> None:
        """Takes the place of what SQLAlchemy would raise, on which Optuna tries five times to make a trial."""
        error = context.sqlalchemy_exception
        if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError) and not context.is_pre_ping:
            raise diagnose(error, self.patience.address)

    @staticmethod
    def _note_commit(_: Connection) -> None:
        call.committing = True

    def persist(self, work: Callable[[], T], *, writes: bool) -> T:
        """What `work` returns, which is done again after a failure that passes.

        Raises:
            StorageLost: the cause does not pass, or has not passed by the deadline.
        """

        def attempt() -> T:
            try:
                with _writing(writes):
                    return work()
            except (StorageLost, SQLAlchemyError, StorageInternalError):
                with contextlib.suppress(StorageLost, SQLAlchemyError):
                    self.scoped_session.remove()
                self.scoped_session.registry.clear()
                raise

        return self.patience.run(attempt)

    # Three writes show when they are done a second time, after a COMMIT whose answer was lost. A worker makes its trial
    # together with its claim, which bears that.

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        def work() -> int:
            try:
                return RDBStorage.create_new_study(self, directions, study_name)
            except DuplicatedStudyError:
                if not call.uncertain or study_name is None:
                    raise
                return self.get_study_id_from_name(study_name)

        return self.persist(work, writes=True)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        def work() -> bool:
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                if not call.uncertain:
                    raise
                trial = self.get_trial(trial_id)
                if trial.state != state or (values is not None and trial.values != [*values]):
                    raise
                return True

        return self.persist(work, writes=True)

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Any) -> Any:
        if call.uncertain or call.committing:
            raise StorageLost(
                f"storage.url: {hidden(self.patience.address)} was lost while a trial was made, and it is unknown "
                "whether it was; the same command goes on from here"
            )
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    # Two reads that take Optuna the longest.

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trials = read(self, lambda connection: rows.read(connection, rows.ONE, id=trial_id))
        if not trials:
            raise KeyError(f"trial {trial_id} is not there")
        return trials[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        wanted, asked = rows.ALL, dict[str, Any](study=study_id)
        if trial_id_greater_than >= 0:
            ids, wanted = sorted(included_trial_ids), rows.FEW
            asked |= {"ids": ids, "after": trial_id_greater_than, "but": self.known}
        trials = read(self, lambda connection: rows.read(connection, wanted, **asked))
        if not trials and trial_id_greater_than < 0:
            self.get_study_name_from_id(study_id)  # raises KeyError where there is none
        return [trial for trial in trials if states is None or trial.state in states]


def _persistent(name: str, writes: bool) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def persistent(self: Persistent, *args: Any, **kwargs: Any) -> Any:
        return self.persist(lambda: method(self, *args, **kwargs), writes=writes)

    return persistent


READING = (
    *("get_study_id_from_name", "get_study_name_from_id", "get_study_directions", "get_study_user_attrs"),
    *("get_study_system_attrs", "get_trial_user_attrs", "get_trial_system_attrs", "get_all_studies", "get_trial_param"),
    *("get_trial_id_from_study_id_trial_number", "_get_best_trial_id"),
)
WRITING = (
    *("delete_study", "set_study_user_attr", "set_study_system_attr", "_create_new_trial", "_set_trial_param"),
    *("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr"),
)
for _name in (*READING, *WRITING):
    setattr(Persistent, _name, _persistent(_name, _name in WRITING))


@contextmanager
def _writing(writes: bool) -> Iterator[None]:
    outer, call.writes = call.writes, writes
    try:
        yield
    finally:
        call.writes = outer


class SQLiteStorage(Persistent):
    """Optuna's storage on a SQLite file in WAL mode, whose writing transactions take the write lock when they begin.

    A transaction that reads first and asks for the lock later acts on what it read before others wrote.
    """

    def __init__(self, url: str, address: URL, deadline: float, **kwargs: Any) -> None:
        engine_kwargs = {"connect_args": {"timeout": min(BUSY_SECONDS, deadline)}}
        address = address.set(database=str(Path(str(address.database)).absolute()))
        super().__init__(url, address, deadline, engine_kwargs=engine_kwargs, **kwargs)

        @event.listens_for(self.engine, "connect")
        def connect(connection: Any, record: Any) -> None:
            connection.isolation_level = None  # or sqlite3 begins transactions of its own
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last commits, never the file
            record.info["file"] = identity(address)

        @event.listens_for(self.engine, "begin")
        def begin(connection: Connection) -> None:
            if connection.info["file"] != identity(address):  # or all would be written to a file without a name
                raise gone(address)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if call.writes else "BEGIN")

        self.engine.dispose()  # what was opened above knows no hooks

    def _explain(self, context: sqlalchemy.engine.ExceptionContext) -> None:
        if context.sqlalchemy_exception is not None and identity(self.patience.address) is None:
            raise gone(self.patience.address)
        super()._explain(context)


def execute(storage: Persistent, work: Callable[[Connection], T]) -> T:
    """What `work` returns from one writing transaction of our own beside Optuna's.

    It is done again after a failure that passes, also after a commit whose answer was lost: what it writes is to bear
    being written twice.

    Raises:
        StorageLost: the cause does not pass, or has not passed by the deadline.
    """

    def transact() -> T:
        with storage.engine.begin() as connection:
            return work(connection)

    return storage.persist(transact, writes=True)


def read(storage: Persistent, work: Callable[[Connection], T]) -> T:
    """What `work` returns from one reading transaction; as `execute`."""

    def transact() -> T:
        with storage.engine.connect() as connection:
            return work(connection)

    return storage.persist(transact, writes=False)


def connect(url: str, *, create: bool = False, deadline: float = DEADLINE) -> Persistent:
    """Opens a storage; makes its tables only if asked to, which one process at a time may do (see `exclusive`).

    Args:
        deadline: seconds that this and every later call on the storage waits for a database that is away.

    Raises:
        StorageError: unknown kind of database, not there, no database, no permission, no space, and, without a
            deadline, unreachable.
        StorageLost: unreachable until the deadline.
    """
    address = parse(url)
    make = _sqlite if address.get_backend_name() == "sqlite" else _postgres

    def attempt() -> Persistent:
        if not create:
            _check_made(address)
        return make(address, create, deadline)

    with explained(address):
        return Patience(address, deadline).run(attempt)


def _check_made(address: URL) -> None:
    """Leaves a database alone that another process is just making: Optuna writes its versions where it finds none.

    The maker's own, written last, would then be there twice, which ended it.
    """
    if address.get_backend_name() == "sqlite" and identity(address) is None:
        path = Path(str(address.database)).absolute()
        raise StorageError(f"storage.url: there is no database {path}; the first run of a study makes it")
    with contextlib.closing(plain(address).connect()) as connection:
        if connection.exec_driver_sql("SELECT version_num FROM alembic_version").first() is None:
            raise StorageError(f"storage.url: {hidden(address)} is being made just now; once more in a second")


def _sqlite(address: URL, create: bool, deadline: float) -> Persistent:
    path = Path(str(address.database)).absolute()
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The check is made when it is opened, below; each reads all of Alembic's revisions, which takes 0.05 s.
        url = f"sqlite:///{path}".replace("{", "{{").replace("}", "}}")
        RDBStorage(url, skip_compatibility_check=True).engine.dispose()
    return SQLiteStorage(_existing(address).render_as_string(), address, deadline, skip_table_creation=True)


def _existing(address: URL) -> URL:
    """A SQLite file that is not made by opening it: one that is deleted is an error, and no empty one its heir."""
    path = quote(str(Path(str(address.database)).absolute()))
    return URL.create("sqlite", database=f"file:{path}", query={"mode": "rw", "uri": "true"})


def _postgres(address: URL, create: bool, deadline: float) -> Persistent:
    engine_kwargs = {
        "pool_pre_ping": True,
        "pool_size": 2,
        "max_overflow": 0,
        "pool_recycle": 1800,
        "connect_args": _arguments(address, POSTGRES),
    }
    full = address.render_as_string(hide_password=False)
    return Persistent(full, address, deadline, engine_kwargs=engine_kwargs, skip_table_creation=not create)


def _arguments(address: URL, ours: Mapping[str, Any]) -> dict[str, Any]:
    """What we ask of libpq beside what a URL asks of it (TLS, a schema, …), which goes before ours."""
    arguments = {name: value for name, value in ours.items() if name not in address.query}
    return arguments | {"options": " ".join([ours["options"], *address.normalized_query.get("options", ())])}


def connections_left(url: str) -> tuple[float, str]:
    """How many connections a server would give this user now, beside those that are open, and by which limit.

    Raises:
        StorageError: it cannot be reached.
    """
    address = parse(url)
    if address.get_backend_name() == "sqlite":
        return math.inf, "none"
    statement = """
        SELECT current_setting('max_connections')::int - (SELECT sum(numbackends) FROM pg_stat_database)
               - CASE WHEN rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true), '0')::int END,
            CASE WHEN rolsuper OR rolconnlimit < 0 THEN NULL ELSE rolconnlimit
               - (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user) END,
            CASE WHEN rolsuper OR datconnlimit < 0 THEN NULL ELSE datconnlimit
               - (SELECT numbackends FROM pg_stat_database s WHERE s.datname = d.datname) END
        FROM pg_roles, pg_database d WHERE rolname = current_user AND d.datname = current_database()"""

    def ask() -> sqlalchemy.Row[Any]:
        with plain(address).connect() as connection:
            return connection.exec_driver_sql(statement).one()

    with explained(address):
        left = Patience(address, 0.0).run(ask)
    limits = ("max_connections of the server", "CONNECTION LIMIT of the role", "CONNECTION LIMIT of the database")
    # The one that asks is closed by now.
    return min((1.0 + float(number), limit) for number, limit in zip(left, limits, strict=True) if number is not None)


def plain(address: URL) -> sqlalchemy.Engine:
    """An engine without hooks, pool or transactions, for whoever only looks at a database or takes a lock there."""
    sqlite = address.get_backend_name() == "sqlite"
    return sqlalchemy.create_engine(
        _existing(address) if sqlite else address,
        poolclass=sqlalchemy.pool.NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"timeout": 2 * BUSY_SECONDS}
        if sqlite
        else _arguments(address, POSTGRES | {"options": "-c timezone=UTC"}),
    )


def parse(url: str) -> URL:
    """A storage URL with the driver that we use; relative SQLite paths stay relative to the working directory."""
    try:
        address = make_url(url)
    except ArgumentError:
        raise StorageError(
            "storage.url: this is no database URL; write sqlite:///folder/study.db or postgresql://user@host/name"
        ) from None
    match address.get_backend_name():
        case "postgresql" | "postgres":
            if isinstance(password := address.query.get("password"), str):  # libpq's other place for it
                address = address.difference_update_query(["password"]).set(password=password)
            return address.set(drivername="postgresql+psycopg")
        case "sqlite" if address.database and address.database != ":memory:":
            return address
        case "sqlite":
            raise StorageError(f"storage.url: {url} is a database in memory, which workers cannot share; name a file")
    raise StorageError(
        f"storage.url: {hidden(address)} is neither SQLite nor PostgreSQL, the databases that studyloom is tested on"
    )


@contextmanager
def exclusive(url: str, *, deadline: float = 0.0) -> Iterator[None]:
    """Held by the one process that makes tables and study: 12 that tried together crashed up to 11.

    Args:
        deadline: seconds to wait for a database that is away; by default a person hears of a mistyped host at once.
    """
    address = parse(url)
    if address.get_backend_name() == "sqlite":
        path = Path(str(address.database)).absolute()
        with explained(address):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"))
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
        return

    def acquire() -> Connection:
        connection = plain(address).connect()
        connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(LOCK_KEY)))
        return connection

    with explained(address):
        connection = Patience(address, deadline).run(acquire)
    try:
        yield
    finally:
        with contextlib.suppress(SQLAlchemyError):  # the lock goes with the connection, also where that went first
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_unlock(LOCK_KEY)))
        with contextlib.suppress(SQLAlchemyError):
            connection.close()


@contextmanager
def explained(address: URL) -> Iterator[None]:
    """Turns what opening a database raises into a StorageError without the password."""
    try:
        yield
    except StorageLost as lost:
        if lost.waited:
            raise
        raise StorageError(str(lost)) from None
    except StorageError:
        raise
    except ImportError as error:
        raise StorageError(
            f"storage.url: {hidden(address)} needs a driver: pip install 'studyloom[postgres]' ({error})"
        ) from None
    except (OSError, RuntimeError) as error:
        raise StorageError(f"storage.url: cannot use {hidden(address)}: {reason(error, address)}") from None
