"""Memory: a study that begins with points of two others, and is killed while it takes them."""

import signal

import pytest
from commands import QUICK, start, study
from live_processes import until

from studyloom.errors import StorageError
from studyloom.storage.attributes import ENQUEUED
from studyloom.study.opening import open_study
from studyloom.study.warm_start import sources_of

pytestmark = pytest.mark.nightly
TRIALS, TOP = 8, 4


@pytest.fixture
def command(tmp_path):
    """Runs or starts a study of a name beside the others; and opens it."""

    def call(how, name, *more):
        where = (f"study.name={name}", f"run_dir={tmp_path}/runs/{name}", "launcher.workers=1")
        return how(*QUICK, *where, *more)

    return call, lambda name: open_study(
        f"sqlite:///{tmp_path}/runs/{name}/study.db", name, deadline=10.0
    )


def taken(stored):
    """The points of earlier studies that a study has, by where they come from."""
    trials = [t for t in stored.trials() if ", trial " in str(t.user_attrs.get(ENQUEUED))]
    return sorted((t.user_attrs[ENQUEUED], str(t.params)) for t in trials)


def test_a_study_that_is_killed_begins_with_the_same_points_once(command):
    call, stored_of = command
    for seed, name in enumerate(("one", "two"), 1):
        done = call(study, name, f"study.seed={seed}", "study.trials=6")
        assert done.returncode == 0, done.stderr
    memory = ("study.from=auto", f"study.top={TOP}", f"study.trials={TRIALS}")
    process = call(start, "new", *memory)

    def has_points():
        try:
            return len(stored_of("new").trials()) > 1
        except StorageError:
            return False

    until(has_points, 120)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    chosen = taken(stored_of("new"))
    assert len(chosen) == TOP
    # What auto would choose now is something else.
    assert call(study, "three", "study.seed=3", "study.trials=9").returncode == 0
    for trials in (TRIALS, TRIALS + 1):
        done = call(study, "new", *memory[:2], f"study.trials={trials}")
        assert done.returncode == 0, done.stderr
        assert taken(stored_of("new")) == chosen
    trials = stored_of("new").trials()
    assert [trial.number for trial in trials] == [*range(TRIALS + 1)]
    assert len({str(trial.params) for trial in trials}) == TRIALS + 1
    sources = sources_of(stored_of("new"))
    assert sources[0] == "auto"
    assert {*sources[1:]} == {source.rpartition(", trial ")[0] for source, _ in chosen}
    assert not any("three" in source for source in sources)
