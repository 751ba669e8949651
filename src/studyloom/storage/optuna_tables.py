"""Makes Optuna's tables in an empty database, and compares their version with the installed one.

Optuna gets the version of its tables from Alembic, whose import loads all its dialects and runs
every migration's file: 0.2 s for each database that is opened, and more for one that is made. So
the chain of migrations is read as text, and new tables need no Alembic.
"""

import functools
import re

import optuna
import sqlalchemy

from studyloom.storage.optuna_internals import (
    ALEMBIC,
    MIGRATIONS,
    SCHEMA_VERSION,
    TABLES,
    BaseModel,
    VersionInfoModel,
)


@functools.cache
def newest_version() -> str | None:
    """Returns the version of the installed Optuna's tables; None if it cannot be determined.

    It is read from the files of Optuna's migrations, each of which names its own version
    (`revision`) and the one before it (`down_revision`): the newest is before no other.
    """
    versions: set[str] = set()
    earlier_versions: set[str] = set()
    for path in MIGRATIONS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        versions.update(re.findall(r'^revision = "(.+)"$', text, re.MULTILINE))
        earlier_versions.update(re.findall(r'^down_revision = "(.+)"$', text, re.MULTILINE))
    newest = versions - earlier_versions
    if len(newest) != 1:
        return None
    return newest.pop()


def stored_version(connection: sqlalchemy.Connection) -> str | None:
    """Returns the version of the tables of a database; None before they exist."""
    return connection.execute(sqlalchemy.select(ALEMBIC.c.version_num)).scalar()


def make_tables(connection: sqlalchemy.Connection) -> str | None:
    """Makes Optuna's tables in an empty database, in one transaction.

    Tables that exist stay unchanged.

    Args:
        connection: A connection in autocommit mode.

    Returns:
        The version of the tables; None if none was made, since only Optuna's constructor can make
        what is missing.
    """
    existing_tables = set(sqlalchemy.inspect(connection).get_table_names())
    if ALEMBIC.name in existing_tables:
        return stored_version(connection)
    if not existing_tables.isdisjoint(TABLES):  # some of the tables, and no version
        return None
    if newest_version() is None:  # the version that the new tables would have is unknown
        return None
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # which takes the write lock
    else:
        connection.exec_driver_sql("BEGIN")
    try:
        BaseModel.metadata.create_all(connection, checkfirst=False)
        ALEMBIC.create(connection, checkfirst=False)
        info = {"schema_version": SCHEMA_VERSION, "library_version": optuna.__version__}
        connection.execute(sqlalchemy.insert(VersionInfoModel), info)
        connection.execute(sqlalchemy.insert(ALEMBIC), {"version_num": newest_version()})
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
    return newest_version()
