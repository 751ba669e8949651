"""Fixtures for workers that run in the process of the tests."""

import threading

import pytest
from toy_worker import FOLDER, RANDOM
from toys import EACH_KIND, KINDS, ask

from studyloom.storage import connections
from studyloom.worker import worker


@pytest.fixture(scope="module", params=EACH_KIND)
def kind(request):
    """Overrides of a kind of training: a network of studyloom, or a custom loop."""
    return KINDS[request.param]


@pytest.fixture(scope="module", params=EACH_KIND)
def definition(request):
    return ask(*RANDOM, *KINDS[request.param])


@pytest.fixture
def url(sqlite_url):
    """The tests of storage hold on PostgreSQL what these assume of a database."""
    return sqlite_url


@pytest.fixture(autouse=True)
def checkpoints(tmp_path, monkeypatch):
    """The folder where the worker saves checkpoints."""
    folder = tmp_path / "worker-checkpoints"
    folder.mkdir()
    monkeypatch.setitem(FOLDER, "checkpoints", folder)
    return folder


@pytest.fixture
def threads_are_workers(monkeypatch):
    """Gives each thread a worker id of its own, as if it were a process."""
    monkeypatch.setattr(worker, "worker_id", lambda pid: f"elsewhere:{threading.get_ident()}")


@pytest.fixture
def impatient(monkeypatch):
    """Makes SQLite report a lock at once, so that the waiting is ours."""
    monkeypatch.setattr(connections, "BUSY_SECONDS", 0.02)
