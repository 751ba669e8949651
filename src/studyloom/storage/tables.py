"""Optuna's tables: made as Optuna makes them, and told from those of another version of it.

Optuna asks Alembic for the version of the tables. That imports Alembic with all its dialects and
runs every migration's file: 0.2 s for each database that is opened. Here the chain of migrations is
read as text, and tables of the newest version need no migration.
"""

import functools
import re

import optuna
import sqlalchemy
from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table

from studyloom.storage.optuna_internals import (
    MIGRATIONS,
    SCHEMA_VERSION,
    TABLES,
    BaseModel,
    VersionInfoModel,
)

# As Alembic makes it.
ALEMBIC = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


@functools.cache
def newest_version() -> str | None:
    """Returns the version of the tables that the installed Optuna makes.

    Returns:
        The migration that no other follows; None if the files do not say which one that is.
    """
    versions: set[str] = set()
    followed: set[str] = set()
    for path in MIGRATIONS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for name, version in re.findall(r'^(revision|down_revision) = "(.+)"$', text, re.MULTILINE):
            (versions if name == "revision" else followed).add(version)
    newest = versions - followed
    return newest.pop() if len(newest) == 1 else None


def make_tables(connection: Connection) -> bool:
    """Makes Optuna's tables in an empty database, all in one transaction.

    Args:
        connection: without a transaction, to a database in which no other process makes tables.

    Returns:
        Whether the tables are those of the installed Optuna. If not, some are there already.
    """
    existing = {*sqlalchemy.inspect(connection).get_table_names()}
    if ALEMBIC.name in existing:
        return version_of(connection) == newest_version()
    if existing & {*TABLES} or (version := newest_version()) is None:
        return False
    sqlite = connection.dialect.name == "sqlite"
    connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "BEGIN")
    try:
        BaseModel.metadata.create_all(connection, checkfirst=False)
        ALEMBIC.create(connection, checkfirst=False)
        stamp(connection, version)
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
    return True


def version_of(connection: Connection) -> str | None:
    """Returns the version of the tables of a database; None as long as it has none."""
    return connection.execute(sqlalchemy.select(ALEMBIC.c.version_num)).scalar()


def stamp(connection: Connection, version: str) -> None:
    """Writes the version of the tables, and of the Optuna that made them."""
    info = {"schema_version": SCHEMA_VERSION, "library_version": optuna.__version__}
    connection.execute(sqlalchemy.insert(VersionInfoModel), info)
    connection.execute(sqlalchemy.insert(ALEMBIC), {"version_num": version})
