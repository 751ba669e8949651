"""A pytest plugin that puts our storage in the place of Optuna's in Optuna's own tests.

They take each storage from a StorageSupplier, by its mode. Ours are `SQLite` and `PostgreSQL`, each
as the database alone and with the trial buffer that workers have before it. A new database is a
copy of one with empty tables. The address of a PostgreSQL server is in $OPTUNA_TESTS_SERVER.
"""

import itertools
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

import sqlalchemy

# optuna.testing.storages imports it, for a storage that is not ours.
sys.modules.setdefault("fakeredis", types.ModuleType("fakeredis"))

from optuna.testing import storages  # noqa: E402

from studyloom.storage.database import connect  # noqa: E402
from studyloom.storage.trial_buffer import TrialBuffer  # noqa: E402

MODES = [f"{kind}{buffer}" for kind in ("SQLite", "PostgreSQL") for buffer in ("", " buffered")]
names = itertools.count()
made = {}  # by kind: what copies are made of


def copy_of_sqlite(folder):
    if "SQLite" not in made:
        made["SQLite"] = Path(tempfile.mkdtemp()) / "study.db"
        connect(f"sqlite:///{made['SQLite']}", create=True).engine.dispose()
    shutil.copy(made["SQLite"], folder / "study.db")
    return f"sqlite:///{folder}/study.db"


def copy_of_postgresql():
    server = sqlalchemy.make_url(os.environ["OPTUNA_TESTS_SERVER"])
    server = server.set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(
        server, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
    )
    with engine.connect() as connection:
        template = f"optuna_{os.getpid()}"
        if "PostgreSQL" not in made:
            connection.exec_driver_sql(f"CREATE DATABASE {template}")
            made["PostgreSQL"] = server.set(database=template)
            url = made["PostgreSQL"].render_as_string(hide_password=False)
            connect(url, create=True).engine.dispose()
        name = f"{template}_{next(names)}"
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
    return server.set(database=name).render_as_string(hide_password=False)


class StorageSupplier:
    """In the place of Optuna's, which has the same arguments."""

    def __init__(self, storage_specifier, **kwargs):
        assert not kwargs
        # Some tests name one of Optuna's modes for whatever is a database.
        kind, _, buffer = {"sqlite": "SQLite", "cached_sqlite": "SQLite buffered"}.get(
            storage_specifier, storage_specifier
        ).partition(" ")
        self.kind, self.buffered = kind, bool(buffer)

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        url = (
            copy_of_sqlite(Path(self.folder.name))
            if self.kind == "SQLite"
            else copy_of_postgresql()
        )
        self.backend = connect(url)
        return TrialBuffer(self.backend) if self.buffered else self.backend

    def __exit__(self, *_):
        self.backend.remove_session()
        self.backend.engine.dispose()
        self.folder.cleanup()


storages.STORAGE_MODES[:] = MODES
storages.StorageSupplier = StorageSupplier
