"""The private parts of Optuna that studyloom relies on are all listed, and are there."""

import ast
import inspect
import re
from pathlib import Path

import pytest
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
        "failed_trial_callback",
    ),
    "_CachedStorage": ("_backend", "_lock", "_studies", "_trial_id_to_study_id_and_number"),
    "_StudyInfo": ("trials",),  # by number: the values of `_CachedStorage._studies`
    "FrozenTrial": ("_trial_id",),
}
# Columns that `sql` reads and writes, by table. Those that a row is found by are unique together.

CLASSES = {
    "RDBStorage": RDBStorage,
    "_CachedStorage": internals.CachedStorage,
    "TrialValueModel": internals.TrialValueModel,
    "TrialIntermediateValueModel": internals.TrialIntermediateValueModel,
}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A database as Optuna alone makes it, with a study and a trial."""
    storage = RDBStorage(f"sqlite:///{tmp_path_factory.mktemp('shipped')}/study.db")
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    storage.create_new_trial(study_id)
    yield storage
    storage.remove_session()
    storage.engine.dispose()


def test_methods_have_the_parameters_and_objects_the_attributes_that_are_listed(shipped):
    for name, methods in PRIVATE_METHODS.items():
        for method, parameters in methods.items():
            signature = inspect.signature(getattr(CLASSES[name], method)).parameters
            assert tuple(each for each in signature if each != "self") == parameters, method
    cached = internals.CachedStorage(shipped)
    (trial,) = cached.get_all_trials(1)
    (study,) = cached._studies.values()
    for object in (shipped, cached, study, trial):
        for attribute in ATTRIBUTES[type(object).__name__]:
            assert hasattr(object, attribute), attribute


def test_a_storage_of_ours_has_what_optunas_own_constructor_sets(shipped):
    ours = connect(f"sqlite:///{shipped.engine.url.database}")
    assert {*vars(shipped)} - {*vars(ours)} == {"_version_manager"}  # which takes 0.2 s
    ours.remove_session()
    ours.engine.dispose()


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
