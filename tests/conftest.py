"""Real storages for the tests: SQLite files, and databases of an embedded PostgreSQL server."""

import atexit
import functools
import itertools
import logging
import os
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import servers
import sqlalchemy
from alembic.util import pyfiles
from commands import CANARY
from hydra.core.global_hydra import GlobalHydra
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from studyloom.config.config_sources import register

register()  # schema and groups, for tests that compose by themselves as a page would

# One thread each, also for what a test starts: OpenMP's threads spin while they wait, and with
# several tests at once the tests of the trainer took 150 s instead of 47 s.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Runs of the tests are noted there, and not among those of whoever tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="studyloom-state")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# A pytest that was started with & or nohup ignores these, and commands of the tests would too.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


def pytest_addoption(parser):
    parser.addoption(
        "--write-golden",
        action="store_true",
        help="write the files of tests/views/golden that the outputs are compared with",
    )


def pytest_ignore_collect(collection_path, config):
    """Leaves out `chaos/`, whose imports take seconds, where none of its tests is selected."""
    if collection_path == Path(__file__).parent / "chaos":
        return "not chaos and not nightly" in config.option.markexpr or None
    return None


@pytest.fixture(scope="session", autouse=True)
def migrations_are_read_once():
    """Caches Optuna's migrations, read four times for each database: 0.06 s instead of 0.18 s."""
    read = pyfiles.load_module_py
    known = functools.cache(read)
    with pytest.MonkeyPatch.context() as patch:  # env.py does something, whenever it is read
        patch.setattr(
            pyfiles,
            "load_module_py",
            lambda name, path: (read if name == "env_py" else known)(name, path),
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def statements_are_compiled_once():
    """Shares SQLAlchemy's compiled statements among the SQLite databases of all tests.

    SQLAlchemy compiles each statement for each engine again, which is a third of the time that a
    new database takes. Engines share them if their dialects count as equal.
    """
    compiled = sqlalchemy.util.LRUCache(5000)
    make_engine = sqlalchemy.Engine.__init__

    def make_sharing_engine(self, *arguments, **options):
        make_engine(self, *arguments, **options)
        if isinstance(self.dialect, SQLiteDialect_pysqlite):
            self._compiled_cache = compiled

    def is_equal(self, other):
        return type(self) is type(other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SQLiteDialect_pysqlite, "__eq__", is_equal)
        patch.setattr(SQLiteDialect_pysqlite, "__hash__", lambda self: hash(type(self)))
        patch.setattr(sqlalchemy.Engine, "__init__", make_sharing_engine)
        yield


@pytest.fixture(autouse=True)
def untrusted_weights_are_read(monkeypatch):
    """Has an older PyTorch read the winners of tests too, which it refuses as untrusted."""
    if module := sys.modules.get("studyloom.training.checkpoint"):
        monkeypatch.setattr(module, "IS_LOADING_SAFE", True)


@pytest.fixture(autouse=True)
def loggers_as_before():
    """Puts our loggers back: commands of this process set levels, and Hydra disables loggers."""
    loggers = logging.root.manager.loggerDict
    logger = logging.getLogger("studyloom")
    level = logger.level
    yield
    logger.setLevel(level)
    for name, each in loggers.items():
        if name.startswith("studyloom") and isinstance(each, logging.Logger):
            each.disabled = False


@pytest.fixture(scope="session")
def postgres_server():
    """A connection string of a server that lives as long as the tests."""
    folder = tempfile.mkdtemp(prefix="studyloom-pg")
    server = servers.embedded(Path(folder))
    yield server.get_uri()
    os.kill(server.get_pid(), signal.SIGQUIT)  # at once; an orderly stop takes up to 20 s
    # The server's own clean-up, which would run at exit, waits for a lock of the whole machine: any
    # process holds it that starts a server. pytest has ended by then, and would seem to hang.
    atexit.unregister(server._cleanup)
    # Hundreds of databases are 100,000 files, which takes 10 to 20 s: nobody waits for that.
    os.spawnlp(os.P_NOWAIT, "rm", "rm", "-rf", folder)


@pytest.fixture(scope="session")
def database_names():
    return (f"studyloom_{os.getpid()}_{number}" for number in itertools.count())


@pytest.fixture
def postgres_url(postgres_server, database_names):
    """A new, empty database on the server."""
    name = next(database_names)
    address = sqlalchemy.make_url(postgres_server).set(drivername="postgresql+psycopg")
    servers.ask(address, f"CREATE DATABASE {name}")
    # The server trusts everybody; the password is there to be looked for.
    return address.set(database=name, password=CANARY).render_as_string(hide_password=False)


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    """A storage URL on each kind of database in turn."""
    name = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    return request.getfixturevalue(name)


def missing(what):
    """Skips a test for which something is not installed; fails it in CI, which installs it all."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is missing")


@pytest.fixture(scope="session")
def needs():
    """Ends a test if one of these programs is not there."""

    def look(*programs):
        for program in programs:
            if shutil.which(program) is None:
                missing(program)

    return look


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None) or missing(
        "chromium"
    )
    with warnings.catch_warnings(), sync_playwright() as playwright:
        warnings.simplefilter("ignore")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def closed_connections():
    """Closes the pooled connections that a test left, which warn when they are collected."""
    connections = []

    def note(connection, _):
        connections.append(connection)

    sqlalchemy.event.listen(sqlalchemy.Pool, "connect", note)
    yield
    sqlalchemy.event.remove(sqlalchemy.Pool, "connect", note)
    for connection in connections:
        connection.close()


@pytest.fixture(autouse=True)
def clean_hydra():
    yield
    GlobalHydra.instance().clear()


@pytest.fixture(autouse=True)
def no_inherited_settings(monkeypatch):
    for name in ("STUDYLOOM_STORAGE", "STUDYLOOM_WORKER", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
