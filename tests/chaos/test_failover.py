"""A server with a standby: one URL names both, and a run goes on with whichever takes writes."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import CANARY, environment, studyloom
from runs import TRIALS, Run, kill, nap
from servers import Pair

from studyloom.storage.database import connect
from studyloom.storage.retry import log

pytestmark = pytest.mark.nightly


@pytest.fixture
def pair():
    # Not below pytest's folder, which the servers' own user may not enter.
    with tempfile.TemporaryDirectory(prefix="studyloom-pg") as folder:
        pair = Pair(Path(folder))
        yield pair
        pair.close()


# The forms of a URL, and whether libpq looks for the host that takes writes. If not, the standby is
# found first where it stands first, and it refuses to write until it is promoted.
URLS = {
    "ports, read-write": lambda pair: pair.url("target_session_attrs=read-write"),
    "ports, any": lambda pair: pair.url(),
}


@pytest.mark.parametrize("form", URLS)
def test_a_run_goes_on_with_the_standby_once_it_is_promoted(pair, form, tmp_path, undisturbed):
    run = Run(tmp_path / "run", URLS[form](pair))
    process = run.at_work(meanwhile=pair.first.stop)
    nap(4)
    pair.second.control("promote")
    run.end(process, 0)
    assert "is back after" in run.logs()
    run.check(undisturbed)
    kill(run.processes())


def test_a_server_that_becomes_a_reader_and_the_other_that_takes_over_are_told_apart(pair):
    """As with a proxy in front of the servers: no connection breaks, and the writes are refused."""
    opened = connect(pair.url("target_session_attrs=read-write"), create=True, deadline=30)
    study_id = opened.create_new_study([1], "s")
    lines = []
    log.addFilter(keep := lambda record: lines.append(record.getMessage()) or True)
    try:
        pair.first.ask("ALTER SYSTEM SET synchronous_standby_names = ''")
        pair.first.ask("ALTER SYSTEM SET default_transaction_read_only = on")
        pair.first.ask("SELECT pg_reload_conf()")
        pair.second.control("promote")
        opened.set_study_user_attr(study_id, "k", 1)
    finally:
        log.removeFilter(keep)
    assert "in a read-only transaction" in lines[0]
    assert "is back after" in lines[-1]
    assert pair.first.ask("SELECT count(*) FROM study_user_attributes") == [0]
    assert pair.second.ask("SELECT count(*) FROM study_user_attributes") == [1]


def test_what_looks_at_a_run_does_so_before_and_after_a_failover(pair, tmp_path, undisturbed):
    url = pair.url("target_session_attrs=read-write")
    run = Run(tmp_path / "run", url)
    run.finish(undisturbed)
    look(run, pair)
    pair.fail_over()
    look(run, pair)


def look(run, pair):
    """Checks what the commands say that look at a run, and that none shows the password."""
    status = studyloom("status", run.folder, STUDYLOOM_STORAGE=run.url)
    assert status.returncode == 0, status.stderr
    assert f"{TRIALS} of {TRIALS} trials" in status.stdout
    doctor = studyloom("doctor", run.folder, STUDYLOOM_STORAGE=run.url)
    found = "".join(doctor.stdout.split())
    assert "postgres:***@/postgres?host=127.0.0.1" in found, found
    assert "cannotuse" not in found
    dashboard = first_lines_of_dashboard(run)
    assert "http://127.0.0.1:" in dashboard
    for text in (status.stdout, status.stderr, doctor.stdout, doctor.stderr, dashboard):
        assert CANARY not in text


def first_lines_of_dashboard(run):
    command = [sys.executable, "-m", "studyloom", "dashboard", str(run.folder), "--port", "0"]
    process = subprocess.Popen(
        command,
        env=environment(STUDYLOOM_STORAGE=run.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        return process.stdout.readline() + process.stdout.readline()
    finally:
        process.terminate()
        process.communicate(timeout=30)
