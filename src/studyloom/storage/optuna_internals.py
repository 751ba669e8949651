"""The one module that imports Optuna's private parts, of which nothing is promised."""

from collections.abc import Mapping
from pathlib import Path

from optuna.storages import _CachedStorage as CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.models import (
    SCHEMA_VERSION,
    BaseModel,
    TrialIntermediateValueModel,
    TrialValueModel,
    VersionInfoModel,
)
from sqlalchemy import Column, MetaData, PrimaryKeyConstraint, String, Table

__all__ = [
    "ALEMBIC",
    "MIGRATIONS",
    "SCHEMA_VERSION",
    "TABLES",
    "BaseModel",
    "CachedStorage",
    "TrialIntermediateValueModel",
    "TrialValueModel",
    "VersionInfoModel",
]

MIGRATIONS = Path(models.__file__).parent / "alembic" / "versions"

TABLES: Mapping[str, Table] = BaseModel.metadata.tables  # by name
# As Alembic makes it.
ALEMBIC = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
