"""Retries on PostgreSQL, with real failures: a server that stops, connections cut at a COMMIT."""

import contextlib
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest
from failures import WRITES, check_shown, contents, in_background, ledger_of, make_study
from reevaluated import SPACE, stages_of, test_part, work
from servers import Server
from toys import ask

from studyloom.commands.write_result import make_result
from studyloom.errors import StorageError, StorageLost
from studyloom.storage import connections, creation_lock, ledger
from studyloom.storage.connections import POSTGRES, libpq_arguments
from studyloom.storage.creation_lock import hold_creation_lock
from studyloom.storage.database import connect
from studyloom.storage.opening import open_study
from studyloom.storage.urls import parse_url
from studyloom.winner.result import Result


@pytest.fixture(scope="module")
def server():
    with tempfile.TemporaryDirectory(prefix="studyloom-pg") as folder:
        server = Server(Path(folder))
        yield server
        server.stop(signal.SIGQUIT)
        server.server.cleanup_mode = None  # or it takes seconds to stop what is gone
        server.server.cleanup()


@pytest.fixture
def served(server):
    """A storage on the server, with a study and a running trial and nothing else."""
    server.start()
    if server.spoilt:
        server.ask("DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public")
    opened = connect(server.url, create=server.spoilt, deadline=20)
    server.ask("TRUNCATE studies CASCADE")
    server.spoilt = False
    yield opened, *make_study(opened)
    server.start()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_a_server_that_is_away_is_waited_for(server, served, lines, end):
    opened, _, trial_id = served
    server.stop(end)

    def start():
        assert lines.away.wait(60)
        server.start()

    with in_background(start):
        opened.set_trial_intermediate_value(trial_id, 1, 0.5)
    assert opened.get_trial(trial_id).intermediate_values == {1: 0.5}
    first, last = lines.lines
    assert "postgres:***@/postgres" in first
    assert "trying again for up to 20 s" in first
    assert "is back after" in last


def test_a_call_that_a_time_limit_of_the_server_ends_is_repeated(
    server, served, lines, monkeypatch
):
    """Also that of an idle transaction, as of a worker that was stopped for a while."""
    _, study_id, _ = served
    for limit, words in (
        ("lock_timeout=100ms", "(another program keeps its rows locked; end that program)"),
        ("statement_timeout=100ms", "(raise statement_timeout of the role or database)"),
    ):
        monkeypatch.setitem(POSTGRES, "options", f"-c {limit}")
        lines.away.clear()
        brisk = connect(server.url, deadline=20)
        with server.connection() as stranger:
            stranger.exec_driver_sql("BEGIN")
            stranger.exec_driver_sql("SELECT * FROM studies FOR UPDATE")

            def let_go(stranger=stranger):
                assert lines.away.wait(60)
                stranger.exec_driver_sql("ROLLBACK")

            with in_background(let_go):
                brisk.create_new_trial(study_id)
        assert words in lines.lines[-2]
    monkeypatch.setitem(POSTGRES, "options", "-c idle_in_transaction_session_timeout=200ms")
    naps = iter([1.0, 0.0])

    def work(connection):
        connection.exec_driver_sql("SELECT * FROM studies FOR UPDATE")
        time.sleep(next(naps))
        return connection.exec_driver_sql("UPDATE studies SET study_name = 'u'").rowcount

    assert connect(server.url, deadline=20).execute(work) == 1
    assert len(lines.lines) == 6


def test_connections_that_ended_between_calls_are_replaced_silently(server, served, lines):
    opened, _, trial_id = served
    for step in range(3):
        assert all(server.end_connections())
        opened.set_trial_intermediate_value(trial_id, step, 0.5)
        assert len(opened.get_trial(trial_id).intermediate_values) == step + 1
    assert lines.lines == []


def test_a_server_that_stays_away_is_named_with_the_time_waited(server, served, lines):
    opened, study_id, trial_id = served
    opened.retry.deadline = 0.2
    server.stop(signal.SIGQUIT)
    for what in ("a trial", "a report", "a row of ours"):
        with pytest.raises(StorageLost) as caught:
            WRITES[what](opened, study_id, trial_id)
        check_shown(
            caught.value,
            "postgres:***@/postgres",
            "Is the server running",
            "did not recover in",
            "the same command resumes the study",
        )
    with pytest.raises(StorageLost) as caught:
        connect(server.url, deadline=0.2)
    check_shown(caught.value, "did not recover in")
    with pytest.raises(StorageError) as caught:
        connect(server.url, deadline=0)
    check_shown(caught.value, "Is the server running")
    assert not isinstance(caught.value, StorageLost)
    with pytest.raises(StorageError) as caught, hold_creation_lock(server.url):
        pass
    check_shown(caught.value, "Is the server running")


@pytest.mark.chaos
@pytest.mark.parametrize("hosts", [1, 2])
def test_a_network_that_is_silent_takes_no_longer_than_the_deadline(hosts):
    deadline = 4 * hosts  # libpq gives each host 2 s or more
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and forwards nothing
        hosts = ",".join([f"127.0.0.1:{silent.getsockname()[1]}"] * hosts)
        began = time.monotonic()
        with pytest.raises(StorageLost, match=rf"did not recover in {deadline} s \(storage\."):
            connect(f"postgresql://user@{hosts}/name", deadline=deadline)
        assert deadline - 1 < time.monotonic() - began < deadline + 2.5


def test_a_silent_connection_is_lost_with_half_of_the_deadline_left():
    for deadline, seconds in ((16, 8), (300, 40), (0, 40)):
        arguments = libpq_arguments(parse_url("postgresql://host/name"), POSTGRES, deadline)
        assert arguments["tcp_user_timeout"] == 1000 * seconds
        names = ("idle", "interval", "count")
        idle, interval, count = (arguments[f"keepalives_{name}"] for name in names)
        assert idle + interval * count <= seconds


def test_opening_waits_for_a_server_that_starts(server, served, lines):
    server.stop(signal.SIGQUIT)

    def start():
        assert lines.away.wait(60)
        server.start()

    with in_background(start), hold_creation_lock(server.url, deadline=20):
        assert len(connect(server.url, deadline=20).get_all_studies()) == 1


def test_a_wrong_address_is_reported_at_once(server, served, lines):
    server.ask("DROP ROLE IF EXISTS sleeper, guarded")
    server.ask("CREATE ROLE sleeper NOLOGIN")
    server.ask("CREATE ROLE guarded LOGIN PASSWORD 'another'")
    access = server.sockets / "pg_hba.conf"
    if "guarded" not in access.read_text():
        access.write_text(f"local all guarded scram-sha-256\n{access.read_text()}")
        server.ask("SELECT pg_reload_conf()")
    for change, words in (
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"username": "nobody"}, 'role "nobody" does not exist'),
        ({"username": "sleeper"}, "not permitted to log in"),
        ({"username": "guarded"}, "password authentication failed"),
    ):
        with pytest.raises(StorageError, match=words) as caught:
            connect(server.address.set(**change).render_as_string(hide_password=False), deadline=5)
        check_shown(caught.value)
    assert lines.lines == []


def test_a_read_only_server_is_waited_for_over_a_new_connection(server, served, lines):
    """A failover ends so: the standby reads at once and writes once it has been promoted."""
    opened, _, trial_id = served
    server.ask("ALTER DATABASE postgres SET default_transaction_read_only = on")
    server.end_connections()

    def promote():
        assert lines.away.wait(60)
        server.ask("ALTER DATABASE postgres RESET ALL", database="template1")  # of new sessions

    try:
        with in_background(promote):
            opened.set_trial_intermediate_value(trial_id, 1, 0.5)
    finally:
        server.ask("ALTER DATABASE postgres RESET ALL", database="template1")
    assert opened.get_trial(trial_id).intermediate_values == {1: 0.5}
    first, last = lines.lines
    assert "in a read-only transaction (the server does not take writes" in first
    assert "trying again for up to 20 s" in first
    assert "is back after" in last


ONCE = ("a trial", "a study", "an end")  # which workers do otherwise


class Proxy:
    """Stands between us and the server, and cuts one connection before or after a COMMIT."""

    def __init__(self, server, folder):
        self.target = str(server.sockets / ".s.PGSQL.5432")
        self.url = server.address.set(query={"host": str(folder)}).render_as_string(
            hide_password=False
        )
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / ".s.PGSQL.5432"))
        self.listener.listen()
        self.cut = None  # "before" or "after": what to do at the next COMMIT
        self.cuts = 0
        self.threads = []
        self.sockets = [self.listener]
        self.start(self.accept)

    def start(self, act, *arguments):
        self.threads.append(threading.Thread(target=act, args=arguments))
        self.threads[-1].start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                upstream = socket.socket(socket.AF_UNIX)
                upstream.connect(self.target)
                self.sockets += [client, upstream]
                silent = threading.Event()
                self.start(self.ask, client, upstream, silent)
                self.start(self.answer, upstream, client, silent)

    def ask(self, client, upstream, silent):
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if b"COMMIT\0" in data and self.cut:
                    self.cut, cut = None, self.cut
                    self.cuts += 1
                    if cut == "before":
                        break
                    silent.set()
                upstream.sendall(data)
        with contextlib.suppress(OSError):
            upstream.shutdown(socket.SHUT_RDWR)

    def answer(self, upstream, client, silent):
        with contextlib.suppress(OSError):
            while (data := upstream.recv(65536)) and not silent.is_set():
                client.sendall(data)
        for end in (client, upstream):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        for end in self.sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(120)
        for end in self.sockets:
            end.close()


@pytest.fixture
def proxied(server, served):
    with tempfile.TemporaryDirectory(prefix="studyloom-proxy") as folder:
        proxy = Proxy(server, Path(folder))
        opened = connect(proxy.url, deadline=20)
        yield proxy, opened
        opened.remove_session()
        opened.engine.dispose()
        proxy.close()


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("what", [what for what in WRITES if what not in ONCE])
def test_a_commit_whose_answer_was_lost_is_done_once(served, proxied, what, cut, lines):
    _, study_id, trial_id = served
    proxy, opened = proxied
    before = contents(opened)
    proxy.cut = cut
    result = WRITES[what](opened, study_id, trial_id)
    assert proxy.cuts == 1
    after = contents(opened)
    if what == "a claim with its trial":
        assert opened.get_trial(result.trial_id).user_attrs == {"slot": result.slot}
        assert result.token == {"before": 1, "after": 2}[cut]
        assert ledger_of(opened, study_id).counts()["held"] == 1
        assert after == before | {
            "trials": 2,
            "trial_user_attributes": 2,
            "numbers": [0, 1],
            "states": ["RUNNING"] * 2,
        }
    else:
        assert [key for key in after if after[key] != before[key]] == [
            {
                "an attribute of the study": "study_user_attributes",
                "a parameter": "trial_params",
                "a report": "trial_intermediate_values",
                "an attribute": "trial_user_attributes",
                "a row of ours": "names",
            }[what]
        ]
    assert len(lines.lines) == 2


@pytest.mark.parametrize("what", ONCE)
def test_a_call_that_is_not_idempotent_is_not_repeated_after_a_lost_commit(served, proxied, what):
    _, study_id, trial_id = served
    proxy, opened = proxied
    proxy.cut = "after"
    with pytest.raises(StorageLost) as caught:
        WRITES[what](opened, study_id, trial_id)
    check_shown(caught.value, "it is unknown whether")


@pytest.mark.chaos
def test_the_test_set_is_used_once_although_the_server_restarts_meanwhile(
    server, served, monkeypatch, tmp_path
):
    """A lock of the server goes to the command that waits; a lease does not."""
    opened, study_id, _ = served
    opened.delete_study(study_id)
    monkeypatch.setattr(connections, "BUSY_SECONDS", 1)
    monkeypatch.setattr(ledger, "worker_id", lambda _: f"w:{threading.get_ident()}", raising=False)
    waits, tests, goes_on, again = (threading.Event() for _ in range(4))
    monkeypatch.setattr(creation_lock.log, "warning", lambda *_: waits.set())
    monkeypatch.setattr(ledger.log, "warning", lambda *_: waits.set())
    definition = ask(*SPACE, "storage.deadline=30")

    def first_test():
        tests.set()
        assert goes_on.wait(60)
        return test_part()

    def second_test():
        again.set()
        return test_part()

    def stages_with(test):
        stages = stages_of(definition, server.url, tmp_path, 1, top=1, seeds=1)
        stages.data.source.test = test
        return stages

    def finish(stages):
        with contextlib.closing(stages):
            make_result(stages, ["python", "x"])

    twice = [stages_with(test) for test in (first_test, second_test)]
    work(twice[0])
    with in_background(lambda: finish(twice[0])):
        assert tests.wait(60)
        with in_background(lambda: finish(twice[1])):
            assert waits.wait(60)
            server.stop(signal.SIGQUIT)
            server.start()
            assert not again.wait(3)
            goes_on.set()
    stored = open_study(server.url, "s")
    assert stored.test_uses() == Result.read(tmp_path).test.test_set_uses == 1
    stored.close()
