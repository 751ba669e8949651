"""The database that workers share: SQLite on one host, PostgreSQL anywhere. Every call waits out an outage.

Optuna's own SQLite engine hands one queued trial to two workers and takes twice the time for a report; the hooks below
cure both (328 reports/s with 8 writers, against 196 with BEGIN IMMEDIATE everywhere).
"""

import contextlib
import functools
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from studyloom.errors import StorageError, StorageLost
from studyloom.storage import sql
from studyloom.storage.connections import (
    BUSY_SECONDS,
    POSTGRES,
    existing_file,
    explained,
    libpq_arguments,
    plain_engine,
)
from studyloom.storage.retry import Retry, call_state, diagnose, file_gone, file_identity
from studyloom.storage.urls import parse_url, without_password

DEADLINE = 300.0  # seconds that a call waits for a database that is away
T = TypeVar("T")


class RetryingStorage(RDBStorage):
    """Optuna's storage with patience. Its failures are StorageLost, from the connections that it hands out as well."""

    def __init__(self, url: str, address: URL, deadline: float, **kwargs: Any) -> None:
        try:
            super().__init__(url, **kwargs)
        except BaseException:
            if hasattr(
                self, "engine"
            ):  # or its connections stay until somebody collects the garbage
                self.engine.dispose()
            raise
        self.retry = Retry(address, deadline)
        self.known = -1  # a trial that whoever reads many knows better than the database does
        event.listen(self.engine, "handle_error", self._explain)
        event.listen(self.engine, "commit", self._note_commit)

    @property
    def deadline(self) -> float:
        """Seconds that a call waits for a database that is away; may be set while calls wait."""
        return self.retry.deadline

    @deadline.setter
    def deadline(self, seconds: float) -> None:
        self.retry.deadline = seconds

    def wait_less(self, stopping: Callable[[], bool]) -> None:
        """Once `stopping` says so, no call waits longer than FAREWELL seconds."""
        self.retry.stopping = stopping

    def is_away(self) -> bool:
        """Whether calls wait for the database just now."""
        return self.retry.away

    def _explain(self, context: sqlalchemy.engine.ExceptionContext) -> None:
        """Takes the place of what SQLAlchemy would raise, on which Optuna tries five times to make a trial."""
        error = context.sqlalchemy_exception
        if (
            isinstance(error, DBAPIError)
            and not isinstance(error, IntegrityError)
            and not context.is_pre_ping
        ):
            raise diagnose(error, self.retry.address)

    @staticmethod
    def _note_commit(_: Connection) -> None:
        call_state.committing = True

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

        return self.retry.run(attempt)

    # Three writes show when they are done a second time, after a COMMIT whose answer was lost. A worker makes its trial
    # together with its claim, which bears that.

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        def work() -> int:
            try:
                return RDBStorage.create_new_study(self, directions, study_name)
            except DuplicatedStudyError:
                if not call_state.uncertain or study_name is None:
                    raise
                return self.get_study_id_from_name(study_name)

        return self.persist(work, writes=True)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        def work() -> bool:
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                if not call_state.uncertain:
                    raise
                trial = self.get_trial(trial_id)
                if trial.state != state or (values is not None and trial.values != [*values]):
                    raise
                return True

        return self.persist(work, writes=True)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Any
    ) -> Any:
        if call_state.uncertain or call_state.committing:
            raise StorageLost(
                f"storage.url: {without_password(self.retry.address)} was lost while a trial was made, and it is unknown "
                "whether it was; the same command goes on from here"
            )
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    # Two reads that take Optuna the longest.

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trials = read(self, lambda connection: sql.read(connection, sql.ONE, id=trial_id))
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
        wanted, asked = sql.ALL, dict[str, Any](study=study_id)
        if trial_id_greater_than >= 0:
            ids, wanted = sorted(included_trial_ids), sql.FEW
            asked |= {"ids": ids, "after": trial_id_greater_than, "but": self.known}
        trials = read(self, lambda connection: sql.read(connection, wanted, **asked))
        if not trials and trial_id_greater_than < 0:
            self.get_study_name_from_id(study_id)  # raises KeyError where there is none
        return [trial for trial in trials if states is None or trial.state in states]


def _retrying(name: str, writes: bool) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def persistent(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        return self.persist(lambda: method(self, *args, **kwargs), writes=writes)

    return persistent


READING = (
    *(
        "get_study_id_from_name",
        "get_study_name_from_id",
        "get_study_directions",
        "get_study_user_attrs",
    ),
    *(
        "get_study_system_attrs",
        "get_trial_user_attrs",
        "get_trial_system_attrs",
        "get_all_studies",
        "get_trial_param",
    ),
    *("get_trial_id_from_study_id_trial_number", "_get_best_trial_id"),
)
WRITING = (
    *(
        "delete_study",
        "set_study_user_attr",
        "set_study_system_attr",
        "_create_new_trial",
        "_set_trial_param",
    ),
    *("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr"),
)
for _name in (*READING, *WRITING):
    setattr(RetryingStorage, _name, _retrying(_name, _name in WRITING))


@contextmanager
def _writing(writes: bool) -> Iterator[None]:
    outer, call_state.writes = call_state.writes, writes
    try:
        yield
    finally:
        call_state.writes = outer


class SQLiteStorage(RetryingStorage):
    """Optuna's storage on a SQLite file in WAL mode, whose writing transactions take the write lock when they begin.

    A transaction that reads first and asks for the lock later acts on what it read before others wrote.
    """

    def __init__(self, url: str, address: URL, deadline: float, **kwargs: Any) -> None:
        engine_kwargs = {"connect_args": {"timeout": min(BUSY_SECONDS, deadline)}}
        address = address.set(database=str(Path(str(address.database)).absolute()))
        super().__init__(url, address, deadline, engine_kwargs=engine_kwargs, **kwargs)

        @event.listens_for(self.engine, "connect")
        def connect(connection: Any, stored: Any) -> None:
            connection.isolation_level = None  # or sqlite3 begins transactions of its own
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "PRAGMA synchronous=NORMAL"
            )  # a power cut may lose the last commits, never the file
            stored.info["file"] = file_identity(address)

        @event.listens_for(self.engine, "begin")
        def begin(connection: Connection) -> None:
            if connection.info["file"] != file_identity(
                address
            ):  # or all would be written to a file without a name
                raise file_gone(address)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if call_state.writes else "BEGIN")

        self.engine.dispose()  # what was opened above knows no hooks

    def _explain(self, context: sqlalchemy.engine.ExceptionContext) -> None:
        if context.sqlalchemy_exception is not None and file_identity(self.retry.address) is None:
            raise file_gone(self.retry.address)
        super()._explain(context)


def execute(storage: RetryingStorage, work: Callable[[Connection], T]) -> T:
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


def read(storage: RetryingStorage, work: Callable[[Connection], T]) -> T:
    """What `work` returns from one reading transaction; as `execute`."""

    def transact() -> T:
        with storage.engine.connect() as connection:
            return work(connection)

    return storage.persist(transact, writes=False)


def connect(url: str, *, create: bool = False, deadline: float = DEADLINE) -> RetryingStorage:
    """Opens a storage; makes its tables only if asked to, which one process at a time may do (see `exclusive`).

    Args:
        deadline: seconds that this and every later call on the storage waits for a database that is away.

    Raises:
        StorageError: unknown kind of database, not there, no database, no permission, no space, and, without a
            deadline, unreachable.
        StorageLost: unreachable until the deadline.
    """
    address = parse_url(url)
    make = _sqlite if address.get_backend_name() == "sqlite" else _postgres

    def attempt() -> RetryingStorage:
        if not create:
            _check_made(address)
        return make(address, create, deadline)

    with explained(address):
        return Retry(address, deadline).run(attempt)


def _check_made(address: URL) -> None:
    """Leaves a database alone that another process is just making: Optuna writes its versions where it finds none.

    The maker's own, written last, would then be there twice, which ended it.
    """
    if address.get_backend_name() == "sqlite" and file_identity(address) is None:
        path = Path(str(address.database)).absolute()
        raise StorageError(
            f"storage.url: there is no database {path}; the first run of a study makes it"
        )
    with contextlib.closing(plain_engine(address).connect()) as connection:
        if connection.exec_driver_sql("SELECT version_num FROM alembic_version").first() is None:
            raise StorageError(
                f"storage.url: {without_password(address)} is being made just now; once more in a second"
            )


def _sqlite(address: URL, create: bool, deadline: float) -> RetryingStorage:
    path = Path(str(address.database)).absolute()
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The check is made when it is opened, below; each reads all of Alembic's revisions, which takes 0.05 s.
        url = f"sqlite:///{path}".replace("{", "{{").replace("}", "}}")
        RDBStorage(url, skip_compatibility_check=True).engine.dispose()
    return SQLiteStorage(
        existing_file(address).render_as_string(), address, deadline, skip_table_creation=True
    )


def _postgres(address: URL, create: bool, deadline: float) -> RetryingStorage:
    engine_kwargs = {
        "pool_pre_ping": True,
        "pool_size": 2,
        "max_overflow": 0,
        "pool_recycle": 1800,
        "connect_args": libpq_arguments(address, POSTGRES),
    }
    full = address.render_as_string(hide_password=False)
    return RetryingStorage(
        full, address, deadline, engine_kwargs=engine_kwargs, skip_table_creation=not create
    )
