"""Optuna's tables: their version, and making them in an empty database.

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
    """Returns the version of the installed Optuna's tables, which no other follows, if known."""
    versions: set[str] = set()
    followed: set[str] = set()
    for path in MIGRATIONS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        versions.update(re.findall(r'^revision = "(.+)"$', text, re.MULTILINE))
        followed.update(re.findall(r'^down_revision = "(.+)"$', text, re.MULTILINE))
    newest = versions - followed
    if len(newest) != 1:
        return None
    return newest.pop()


def stored_version(connection: sqlalchemy.Connection) -> str | None:
    """Returns the version of the tables of a database; None before they exist."""
    return connection.execute(sqlalchemy.select(ALEMBIC.c.version_num)).scalar()


def make_tables(connection: sqlalchemy.Connection) -> str | None:
    """Makes Optuna's tables in an empty database, in one transaction; returns their version.

    Tables that exist stay unchanged. Returns None, and makes none, if only Optuna's
    constructor can make what is missing.

    Args:
        connection: A connection in autocommit mode.
    """
    existing = set(sqlalchemy.inspect(connection).get_table_names())
    if ALEMBIC.name in existing:
        return stored_version(connection)
    if not existing.isdisjoint(TABLES) or newest_version() is None:
        return None
    begin = "BEGIN"
    if connection.dialect.name == "sqlite":
        begin = "BEGIN IMMEDIATE"
    connection.exec_driver_sql(begin)
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
