"""Workers behind a pgbouncer in transaction mode, which keeps nothing for a connection."""

import contextlib
import random
import tempfile
from pathlib import Path

import pytest
from runs import TRIALS, Run
from servers import OwnServer

from scripts.database.pooling import pooled

pytestmark = pytest.mark.nightly


@pytest.fixture
def server(needs):
    needs("pgbouncer")
    with tempfile.TemporaryDirectory() as folder:  # which a user who is not root may enter
        server = OwnServer(Path(folder) / "data")
        server.start()
        yield server
        server.stop()


def test_a_storm_of_kills_among_workers_who_share_connections(server, tmp_path, undisturbed):
    with tempfile.TemporaryDirectory() as folder, pooled(server.url, folder, size=2) as entry:
        run = Run(tmp_path / "run", entry)
        process = run.start("study.max_attempts=99")  # the storm may meet a trial again and again
        fate = random.Random(0)
        for done in range(1, TRIALS):
            run.until_done(done)
            run.kill_a_worker(process, fate)
        run.end(process, 0)
        run.check(undisturbed)
        run.stored().close()


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
