"""The only module that imports Optuna's private parts, which may change with any release."""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import optuna
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.storages import _CachedStorage as CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.models import (
    SCHEMA_VERSION,
    BaseModel,
    TrialIntermediateValueModel,
    TrialValueModel,
    VersionInfoModel,
)
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY as CONSTRAINT
from optuna.study._frozen import FrozenStudy
from optuna.study.study import _SYSTEM_ATTR_METRIC_NAMES as METRIC_NAMES
from sqlalchemy import Column, MetaData, PrimaryKeyConstraint, String, Table

if TYPE_CHECKING:
    from optuna.importance import PedAnovaImportanceEvaluator

__all__ = [
    "ALEMBIC",
    "CONSTRAINT",
    "METRIC_NAMES",
    "MIGRATIONS",
    "SCHEMA_VERSION",
    "TABLES",
    "BaseModel",
    "CachedStorage",
    "FrozenStudy",
    "LazyRandomState",
    "TrialIntermediateValueModel",
    "TrialValueModel",
    "VersionInfoModel",
    "ped_anova",
]

MIGRATIONS = Path(models.__file__).parent / "alembic" / "versions"

TABLES: Mapping[str, Table] = BaseModel.metadata.tables  # by name
# The table in which Alembic keeps the version of the others, as Alembic makes it.
ALEMBIC = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


@cache
def ped_anova() -> "PedAnovaImportanceEvaluator":
    """Returns Optuna's default evaluator of importances, without importing its whole package.

    The package `optuna.importance` imports scikit-learn for other evaluators, which takes a second
    and 120 MB. Python imports a package before its modules, unless `sys.modules` has one of that
    name. So an empty package stands there while the module is imported. It is removed again, since
    a later `import optuna.importance` would otherwise find it instead of the real one.
    """
    name = "optuna.importance"
    is_loaded = name in sys.modules
    if not is_loaded:
        empty_package = ModuleType(name)
        empty_package.__path__ = [str(Path(optuna.__file__).parent / "importance")]
        sys.modules[name] = empty_package
    try:
        from optuna.importance._ped_anova import PedAnovaImportanceEvaluator
    finally:
        if not is_loaded:
            del sys.modules[name]
    return PedAnovaImportanceEvaluator()
