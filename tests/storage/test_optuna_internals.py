"""The private parts of Optuna that studyloom relies on are all listed, and are there."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

import studyloom
from studyloom.storage import optuna_internals as internals
from studyloom.storage.database import connect

PACKAGE = Path(studyloom.__file__).parent
ROOM = PACKAGE / "storage"
TREES = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}

# Methods of Optuna's storages, by class, with the parameters that follow `self`.
PRIVATE_METHODS = {
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
ATTRIBUTES = {
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
COLUMNS = {
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

CLASSES = {
    "RDBStorage": RDBStorage,
    "_CachedStorage": internals.CachedStorage,
    "_VersionManager": internals.VersionManager,
    "TrialValueModel": internals.TrialValueModel,
    "TrialIntermediateValueModel": internals.TrialIntermediateValueModel,
}
METHODS = [
    (name, method, parameters)
    for name, methods in PRIVATE_METHODS.items()
    for method, parameters in methods.items()
]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A database as Optuna alone makes it, with a study and a trial."""
    storage = RDBStorage(f"sqlite:///{tmp_path_factory.mktemp('shipped')}/study.db")
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    storage.create_new_trial(study_id)
    yield storage
    storage.remove_session()
    storage.engine.dispose()


@pytest.fixture(scope="module")
def objects(shipped):
    """An object of each class whose attributes are relied on."""
    cached = internals.CachedStorage(shipped)
    (trial,) = cached.get_all_trials(1)
    (study,) = cached._studies.values()
    return {
        "RDBStorage": shipped,
        "_CachedStorage": cached,
        "_StudyInfo": study,
        "FrozenTrial": trial,
    }


@pytest.mark.parametrize(("name", "method", "parameters"), METHODS)
def test_a_method_is_there_with_the_parameters_that_are_listed(name, method, parameters):
    signature = inspect.signature(getattr(CLASSES[name], method)).parameters
    assert tuple(parameter for parameter in signature if parameter != "self") == parameters


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_object_has_the_attributes_that_are_listed(objects, name):
    assert {
        attribute for attribute in ATTRIBUTES[name] if not hasattr(objects[name], attribute)
    } == set()


def test_a_storage_of_ours_has_what_optunas_own_constructor_sets(shipped):
    ours = connect(f"sqlite:///{shipped.engine.url.database}")
    unmade = {"_version_manager"}  # made when it is asked for
    assert {*vars(shipped)} - {*vars(ours)} == unmade
    assert ours.get_current_version() == shipped.get_current_version()
    ours.remove_session()
    ours.engine.dispose()


@pytest.mark.parametrize("table", COLUMNS)
def test_a_table_has_the_columns_that_are_listed(shipped, table):
    columns = sqlalchemy.inspect(shipped.engine).get_columns(table)
    assert {*COLUMNS[table]} - {column["name"] for column in columns} == set()


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("trial_params", "param_name"),
        ("trial_values", "objective"),
        ("trial_intermediate_values", "step"),
        ("trial_user_attributes", "key"),
        ("trial_system_attributes", "key"),
    ],
)
def test_a_trial_has_one_row_for_each_key_so_that_it_may_be_written_twice(shipped, table, key):
    unique = sqlalchemy.inspect(shipped.engine).get_unique_constraints(table)
    assert ["trial_id", key] in [constraint["column_names"] for constraint in unique]


def test_a_read_of_the_buffer_asks_the_backend_for_what_is_new_in_one_call(shipped, monkeypatch):
    calls = []
    monkeypatch.setattr(shipped, "_get_trials", lambda *args, **kwargs: calls.append(kwargs) or [])
    internals.CachedStorage(shipped)._read_trials_from_remote_storage(1)
    assert calls == [{"states": None, "included_trial_ids": set(), "trial_id_greater_than": -1}]


def test_private_modules_of_optuna_are_imported_by_this_module_alone():
    private = re.compile(r"^optuna(\.\w+)*\._")
    importing = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            if any(private.match(name) for name in names):
                importing.add(str(path.relative_to(PACKAGE)))
    assert importing == {"storage/optuna_internals.py"}
