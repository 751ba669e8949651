"""Servers that change under a run: a standby takes over, or a pool of connections goes away."""

import contextlib
import tempfile
from pathlib import Path

import pytest
from runs import Run, nap
from servers import OwnServer, Pair

from scripts.database.pooling import pooled

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
def test_a_run_goes_on_with_the_standby_once_it_is_promoted(pair, query, tmp_path, undisturbed):
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


def test_a_pool_that_goes_away_and_comes_back(server, tmp_path, undisturbed):
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
