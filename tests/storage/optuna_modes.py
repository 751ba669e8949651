"""A pytest plugin that puts our storage in the place of Optuna's in Optuna's own tests.

They take each storage from a StorageSupplier, by its mode. Ours are `SQLite` and `PostgreSQL`, each
as the database alone and with the trial buffer that workers have before it. A database is opened
once, in 0.2 s, and emptied after each test. That of PostgreSQL is named in $OPTUNA_TESTS_DATABASE.
"""

import atexit
import functools
import os
import shutil
import sys
import tempfile
import types

# optuna.testing.storages imports it, for a storage that is not ours.
sys.modules.setdefault("fakeredis", types.ModuleType("fakeredis"))

from optuna.testing import storages  # noqa: E402

from studyloom.storage.database import connect  # noqa: E402
from studyloom.storage.trial_buffer import TrialBuffer  # noqa: E402

MODES = [f"{kind}{buffer}" for kind in ("SQLite", "PostgreSQL") for buffer in ("", " buffered")]
MEMORY = "/dev/shm"  # a disk that is busy may take 0.1 s for each commit


@functools.cache
def opened(kind):
    if kind == "SQLite":
        folder = tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
        atexit.register(shutil.rmtree, folder)
        return connect(f"sqlite:///{folder}/study.db", create=True)
    return connect(os.environ["OPTUNA_TESTS_DATABASE"], create=True)


class StorageSupplier:
    """In the place of Optuna's, which has the same arguments."""

    def __init__(self, storage_specifier, **kwargs):
        assert not kwargs
        # Some tests name one of Optuna's modes for whatever is a database.
        mode = {"sqlite": "SQLite"}.get(storage_specifier, storage_specifier)
        self.kind, _, self.buffer = mode.partition(" ")

    def __enter__(self):
        backend = opened(self.kind)
        return TrialBuffer(backend) if self.buffer else backend

    def __exit__(self, *_):
        backend = opened(self.kind)
        backend.remove_session()
        for study in backend.get_all_studies():
            backend.delete_study(study._study_id)
        backend.remove_session()
        backend.engine.dispose()


storages.STORAGE_MODES[:] = MODES
storages.StorageSupplier = StorageSupplier
