"""Studies in Optuna's tables: created in one transaction, and known again by an attribute."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import StudyDirection
from sqlalchemy import ColumnElement, Connection, select

from studyloom.errors import StorageLost
from studyloom.storage.attributes import UUID
from studyloom.storage.optuna_internals import TABLES

STUDIES, ATTRIBUTES = TABLES["studies"], TABLES["study_user_attributes"]
DIRECTIONS = TABLES["study_directions"]


def add_study(
    connection: Connection,
    name: str,
    directions: Sequence[StudyDirection],
    user_attrs: Mapping[str, Any],
) -> int:
    """Creates a study with its attributes, or finds the one of that name.

    Optuna commits the study and each attribute alone, so that one whose creator dies in between
    cannot be told from a study of another program.

    Returns:
        The study's id.
    """
    known = select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)
    if (study_id := connection.execute(known).scalar()) is not None:
        return int(study_id)
    insert = STUDIES.insert().returning(STUDIES.c.study_id)
    study_id = int(connection.execute(insert, {"study_name": name}).scalar_one())
    for objective, direction in enumerate(directions):
        way = {"study_id": study_id, "objective": objective, "direction": direction}
        connection.execute(DIRECTIONS.insert(), way)
    for key, value in user_attrs.items():
        stored = {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
        connection.execute(ATTRIBUTES.insert(), stored)
    return study_id


def is_study(study_id: Any, uuid: Any) -> ColumnElement[bool]:
    """Makes the condition that a study still exists and is no later one with its id.

    Args:
        study_id: The study, or a parameter for it.
        uuid: Its attribute UUID as JSON, or a parameter for it; None for a study of an earlier
            version, which has none.
    """
    if uuid is None:
        return select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id).exists()
    columns = ATTRIBUTES.c
    query = select(columns.study_id).where(
        columns.study_id == study_id, columns.key == UUID, columns.value_json == uuid
    )
    return query.exists()


def study_deleted() -> StorageLost:
    """Makes the error of a study that is gone."""
    return StorageLost(
        "the study was deleted while it ran, by optuna-dashboard or another program, and its "
        "trials with it; the same command begins it anew"
    )


def lock_study(connection: Connection, study_id: int, uuid: str | None) -> None:
    """Has all who create trials of a study wait for each other, from now until the commit.

    SQLite has one writer at a time; on PostgreSQL they wait for the row of the study.

    Args:
        connection: In a writing transaction.
        study_id: The study.
        uuid: Its attribute UUID; None for a study of an earlier version.

    Raises:
        StorageLost: The study no longer exists.
    """
    exists = is_study(study_id, None if uuid is None else json.dumps(uuid))
    row = select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id, exists)
    if connection.execute(row.with_for_update()).first() is None:
        raise study_deleted()
