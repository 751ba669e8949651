"""Clocks that are set while a run goes on: SQLite's is the host's, PostgreSQL's is the server's."""

import tempfile
from pathlib import Path

import pytest
import sqlalchemy
from runs import TRIALS, Run, kill
from servers import OwnServer

from studyloom.storage.database import execute, read
from studyloom.storage.ledger import SLOTS

pytestmark = pytest.mark.chaos
LIBRARY = "libfaketimeMT.so.1"
HOURS = 5


class Clock:
    """A clock that processes take for the host's, and that can be set while they run."""

    def __init__(self, folder):
        self.file = folder / "clock"
        library = next(Path("/usr/lib").glob(f"**/{LIBRARY}"))
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, hours):
        """Moves the clock so far ahead of the true time, at once."""
        (new := self.file.with_suffix(".new")).write_text(f"{hours:+d}h\n")
        new.chmod(0o644)
        new.replace(self.file)


@pytest.fixture(params=["sqlite", "postgresql"])
def clocked(request, needs, tmp_path):
    """A run, the clock of its database, and the environment that its commands need for that."""
    needs("faketime")
    if request.param == "sqlite":
        clock = Clock(tmp_path)
        folder = tmp_path / "run"
        run = Run(folder, f"sqlite:///{folder}/study.db")
        yield run, clock, clock.environment
    else:
        # Not below pytest's folder, which the server's own user may not enter.
        with tempfile.TemporaryDirectory(prefix="studyloom-pg") as folder:
            server = OwnServer(Path(folder) / "data")
            clock = Clock(Path(folder))
            server.start(**clock.environment)
            run = Run(tmp_path / "run", server.url)
            yield run, clock, {}
            run.stored().close()
            server.stop()
    kill(run.processes())  # where a test has failed


def test_a_lease_from_before_the_clock_went_back_is_taken_over_when_its_time_is_over(
    clocked, undisturbed
):
    run, clock, environment = clocked
    clock.set(HOURS)
    process = run.at_work(meanwhile=lambda: kill(run.processes()), **environment)
    process.communicate()
    elsewhere = sqlalchemy.update(SLOTS).values(owner="another-host:1")  # so nobody sees it dead
    execute(
        run.stored().ledger.storage,
        lambda connection: connection.execute(elsewhere.where(SLOTS.c.state == "held")),
    )
    clock.set(0)
    run.end(run.start(**environment), 0)
    run.check(undisturbed)
    assert deaths(run) == 2


def test_a_clock_that_leaps_ahead_and_back_buries_nobody(clocked, undisturbed):
    run, clock, environment = clocked
    process = run.start("study.trial_timeout=600", **environment)
    for done in range(1, TRIALS):
        run.until_done(done)
        clock.set(HOURS if done % 2 else -HOURS)
    run.end(process, 0)
    run.check(undisturbed)
    assert deaths(run) == 0
    assert "the lease ended" not in run.logs()


def deaths(run):
    """The number of claims that ended with their worker."""
    query = sqlalchemy.select(sqlalchemy.func.sum(SLOTS.c.deaths))
    return read(run.stored().ledger.storage, lambda connection: connection.execute(query).scalar())
