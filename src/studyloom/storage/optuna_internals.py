"""The one module that imports Optuna's private parts, with a list of all that studyloom relies on.

Nothing here is promised by Optuna's documentation. `METHODS`, `ATTRIBUTES` and `COLUMNS` list what
the other modules of this room override, call, read or write;
`tests/storage/test_optuna_internals.py` names whatever a release of Optuna has changed.
"""

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
from optuna.storages._rdb.storage import _VersionManager as VersionManager
from sqlalchemy import Column, MetaData, PrimaryKeyConstraint, String, Table

__all__ = [
    "ALEMBIC",
    "ATTRIBUTES",
    "COLUMNS",
    "METHODS",
    "MIGRATIONS",
    "SCHEMA_VERSION",
    "TABLES",
    "BaseModel",
    "CachedStorage",
    "TrialIntermediateValueModel",
    "TrialValueModel",
    "VersionInfoModel",
    "VersionManager",
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
# Methods of Optuna's storages, by class, with the parameters that follow `self`.
METHODS: dict[str, dict[str, tuple[str, ...]]] = {
    "RDBStorage": {
        # Overridden: each runs again after a failure that passes, and two read faster.
        "_create_new_trial": ("study_id", "template_trial"),
        "_get_best_trial_id": ("study_id", "direction"),
        "_get_trials": ("study_id", "states", "included_trial_ids", "trial_id_greater_than"),
        "_set_trial_param": (
            *("trial_id", "param_name", "param_value_internal", "distribution"),
            "previous_distribution",
        ),
    },
    "_VersionManager": {
        # Made for tables that are not those of the installed Optuna, which it completes or refuses.
        "__init__": ("url", "engine", "scoped_session"),
        "check_table_schema_compatibility": (),
    },
    "_CachedStorage": {
        # Called, and its answer kept until the worker asks for the other trials again.
        "_read_trials_from_remote_storage": ("study_id",),
    },
    # Called: how infinities and NaN are stored.
    "TrialValueModel": {
        "value_to_stored_repr": ("value",),
        "stored_repr_to_value": ("value", "float_type"),
    },
    "TrialIntermediateValueModel": {
        "intermediate_value_to_stored_repr": ("value",),
        "stored_repr_to_intermediate_value": ("value", "float_type"),
    },
}
# Attributes of their objects.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "RDBStorage": (
        *("url", "engine_kwargs", "skip_compatibility_check", "engine", "scoped_session"),
        *("heartbeat_interval", "grace_period", "heartbeat_stale_trial_callback"),
        *("failed_trial_callback", "_version_manager"),
    ),
    "_CachedStorage": ("_backend", "_lock", "_studies", "_trial_id_to_study_id_and_number"),
    "_StudyInfo": ("trials",),  # by number: the values of `_CachedStorage._studies`
    "FrozenTrial": ("_trial_id",),
}
# Columns that `sql` reads and writes, by table. Those that a row is found by are unique together.
COLUMNS: dict[str, tuple[str, ...]] = {
    "studies": ("study_id",),
    "study_user_attributes": ("study_id", "key", "value_json"),
    "trials": (
        *("trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"),
    ),
    "trial_params": ("trial_id", "param_name", "param_value", "distribution_json"),
    "trial_values": ("trial_id", "objective", "value", "value_type"),
    "trial_intermediate_values": (
        *("trial_id", "step", "intermediate_value", "intermediate_value_type"),
    ),
    "trial_user_attributes": ("trial_id", "key", "value_json"),
    "trial_system_attributes": ("trial_id", "key", "value_json"),
    "version_info": ("version_info_id", "schema_version", "library_version"),
    "alembic_version": ("version_num",),
}
