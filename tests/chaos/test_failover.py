"""Servers that change under a run: a standby takes over, a pool goes away, a network is cut."""

import contextlib
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from runs import Run, nap
from servers import OwnServer, Pair

from scripts.database.pooling import pooled
from studyloom.storage.connections import LEAST_TRY
from studyloom.worker.stopping import POLL

pytestmark = pytest.mark.nightly


@pytest.fixture
def pair():
    # Not below pytest's folder, which the servers' own user may not enter.
    with tempfile.TemporaryDirectory(prefix="studyloom-pg") as folder:
        pair = Pair(Path(folder))
        yield pair
        pair.close()


# Whether libpq looks for the host that takes writes. If not, the standby is found first where it
# stands first, and it refuses to write until it is promoted.
@pytest.mark.parametrize("query", [["target_session_attrs=read-write"], []], ids=str)
def test_a_study_continues_with_the_standby_server_once_it_is_promoted(
    pair, query, tmp_path, undisturbed
):
    run = Run(tmp_path / "run", pair.url(*query))
    process = run.at_work(meanwhile=pair.first.stop)
    nap(4)
    pair.second.control("promote")
    run.end(process, 0)
    assert "is back after" in run.logs()
    run.check(undisturbed)


# pgbouncer in transaction mode, which keeps nothing for a connection


@pytest.fixture
def server(needs):
    needs("pgbouncer")
    with tempfile.TemporaryDirectory() as folder:  # which a user who is not root may enter
        server = OwnServer(Path(folder) / "data")
        server.start()
        yield server
        server.stop()


def test_a_study_outlives_a_connection_pool_that_goes_away(server, tmp_path, undisturbed):
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.ExitStack() as first:
            entry = first.enter_context(pooled(server.url, folder, size=2))
            run = Run(tmp_path / "run", entry)
            process = run.at_work(meanwhile=first.close)
        # Nobody answers now: the workers wait, and their trials go on.
        with pooled(server.url, folder, size=2, entry=entry):
            assert "is back" in run.end(process, 0) + run.logs()
            run.check(undisturbed)
            run.stored().close()


# A network whose packets no longer arrive: neither side is told


class Network:
    """A network namespace for the commands, which reach this one's `host` until it is cut."""

    host, name = "10.213.7.1", "studyloom"
    within = ("ip", "netns", "exec", name)

    def __init__(self):
        self.ip("netns", "add", self.name)
        self.ip(*f"link add {self.name} type veth peer name inner netns {self.name}".split())
        self.ip(*f"link set {self.name} up".split())
        self.restore()
        for words in ("addr add 10.213.7.2/24 dev inner", "link set inner up", "link set lo up"):
            self.ip("-n", self.name, *words.split())

    def cut(self):
        self.ip(*f"addr del {self.host}/24 dev {self.name}".split())

    def restore(self):
        self.ip(*f"addr add {self.host}/24 dev {self.name}".split())

    def close(self):
        self.ip("netns", "del", self.name)

    @staticmethod
    def ip(*words):
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"ip {' '.join(words)}: {done.stderr or 'not permitted'}")


@pytest.fixture
def network(needs):
    needs("ip")
    with contextlib.closing(Network()) as network:
        yield network


def test_a_cut_network_ends_the_command_by_its_deadline_until_it_resumes(
    network, tmp_path, undisturbed
):
    deadline = 16
    # The command calls the database within POLL, and each of its threads tries by the deadline for
    # the last time. A try may wait for the connection of another one. Then threads have a second
    # to end, and the process has one.
    longest = deadline + POLL + 2 * LEAST_TRY + 2
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        server = OwnServer(Path(folder) / "data", host=network.host)
        server.start()
        running.callback(server.stop)
        run = Run(tmp_path / "run", server.url)
        process = run.at_work(
            f"storage.deadline={deadline}",
            starter=lambda *given, **named: run.start(*given, within=network.within, **named),
            meanwhile=network.cut,
        )
        began = time.monotonic()
        printed = run.end(process, 1, 10 * deadline)
        waited = time.monotonic() - began
        network.restore()
        assert waited < longest, (waited, printed, run.logs())
        assert f"it did not recover in {deadline} s (storage.deadline)" in printed
        run.finish(undisturbed)
