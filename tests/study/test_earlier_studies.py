"""Earlier studies that are found: whose, how many, and what of a stranger's is never touched."""

import contextlib
import os
import shutil
import signal
import sqlite3
import threading
import time

import pytest
from commands import CANARY
from earlier import finished, finished_run, run_of, seeded
from toy_worker import RANDOM, fresh
from toys import ask

from studyloom.errors import ConfigError, Interrupted
from studyloom.storage.attributes import ENQUEUED
from studyloom.storage.ledger import Ledger
from studyloom.study import earlier_studies
from studyloom.study.earlier_studies import find_earlier
from studyloom.study.opening import open_study
from studyloom.study.stopping import Stop
from studyloom.study.warm_start import enqueue, find_warm_starts, sources_of

pytestmark = pytest.mark.chaos  # which are taken of those that are found: test_portfolio.py

AUTO = (*RANDOM, "study.warm_start=auto")


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def found(runs, url=None, definition=None):
    definition = ask(*AUTO) if definition is None else definition
    url = f"sqlite:///{runs}/new/study.db" if url is None else url
    return find_earlier(url, "new", runs / "new", definition.identity("toy"))


def labels(earlier):
    return {each.label for each in earlier.studies}


def starts_of(definition, earlier, already=None):
    return find_warm_starts(definition, already, lambda: earlier)


# Which are found


def test_finished_studies_of_the_database_and_beside_the_folder_are_found_once(url, runs):
    finished(url, seeded(1), name="one")
    finished(url, seeded(2), name="two", done=2)
    a = finished_run(runs / "a", seed=3)
    finished_run(runs / "b", seed=4, done=1)
    shutil.copytree(a, runs / "copy")
    (runs / "notes").mkdir()  # no run directory, and not worth a word
    earlier = found(runs, url)
    (of_folder,) = labels(earlier) - {"study 'one' of this database"}
    assert of_folder in (str(a), str(runs / "copy"))
    assert earlier.notes == []


def test_what_asks_the_same_question_is_never_taken(url, runs):
    """Under another name, in a copied folder or as this very study: that would be resuming."""
    asked = ask(*AUTO)
    for name in ("new", "again"):
        finished(url, asked, name=name)
    assert found(runs, url, asked).studies == []
    assert labels(found(runs, url, ask(*AUTO, "study.seed=5"))) == {
        "study 'again' of this database"
    }


# What is a stranger's


def test_what_cannot_be_read_is_noted_and_the_rest_is_taken(runs):
    good = finished_run(runs / "good")
    (run_of(runs / "broken") / "study.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    (run_of(runs / "empty") / "study.db").write_bytes(b"")
    run_of(runs / "without")
    (runs / "badyaml" / ".hydra").mkdir(parents=True)
    (runs / "badyaml" / ".hydra" / "config.yaml").write_text("study: [")
    (runs / "fifo" / ".hydra").mkdir(parents=True)
    os.mkfifo(runs / "fifo" / ".hydra" / "config.yaml")
    earlier = found(runs)
    assert labels(earlier) == {str(good)}
    assert len(earlier.notes) == 5
    for name in ("broken", "empty", "without", "badyaml", "fifo"):
        assert any(f"{runs / name} cannot be read: " in note for note in earlier.notes), name


VIEWS = {
    "endless": "DROP TABLE alembic_version; CREATE VIEW alembic_version AS WITH RECURSIVE c(x) AS "
    "(SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) AS version_num FROM c",
    "virtual": "CREATE VIRTUAL TABLE mine USING fts5(text)",
    "computed": "CREATE TABLE mine (x, y GENERATED ALWAYS AS (hex(zeroblob(400000000))))",
    "triggered": "CREATE TRIGGER mine AFTER INSERT ON trials BEGIN SELECT 1; END",
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_database_of_a_stranger_that_computes_is_left_out_at_once(runs, kind):
    folder, good = finished_run(runs / kind), finished_run(runs / "good", seed=2)
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as connection:
        connection.executescript(VIEWS[kind])
    began = time.monotonic()
    earlier = found(runs)
    assert time.monotonic() - began < 2
    assert labels(earlier) == {str(good)}
    (note,) = earlier.notes
    assert "is not a plain table" in note


def test_trials_are_counted_before_they_are_read(runs, monkeypatch):
    finished_run(runs / "a")
    good = finished_run(runs / "good", seed=2, trials=2)
    monkeypatch.setattr(earlier_studies, "MOST_TRIALS", 3)
    earlier = found(runs)
    assert labels(earlier) == {str(good)}
    assert "it has 4 trials, and at most 3 are read" in earlier.notes[0]
    with pytest.raises(ConfigError, match="has 4 trials, and at most 3"):
        find_warm_starts(ask(*RANDOM, f"study.warm_start={runs / 'a'}"), ())


def test_a_folder_that_cannot_be_looked_into_hides_no_other(runs):
    good = finished_run(runs / "good")
    (runs / "closed").mkdir()
    (runs / "closed" / ".hydra").symlink_to(".hydra")  # an error even for root
    earlier = found(runs)
    assert (labels(earlier), earlier.notes) == ({str(good)}, [])


def test_reading_that_takes_long_says_so_and_a_signal_ends_it(runs, monkeypatch, caplog):
    finished_run(runs / "a")
    reading = threading.Event()
    monkeypatch.setattr(earlier_studies, "PATIENCE", 0.01)
    monkeypatch.setattr(earlier_studies, "read_run", lambda _: reading.wait(60))
    with Stop() as stop:
        stop.signal = signal.SIGINT  # the first one
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(Interrupted):
            found(runs)
    reading.set()
    assert "study.warm_start=auto: reads earlier studies, for at most 10 s" in caplog.text


def test_no_server_of_a_strangers_folder_is_started(runs):
    folder = run_of(runs / "server", url="embedded_postgres:///x")
    data = folder / "postgres" / "data"
    data.mkdir(parents=True)
    for name in ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"):
        (data / name).write_text("archive_command = 'touch /tmp/owned'\n")
    assert (found(runs).studies, found(runs).notes) == ([], [])
    assert not (folder / "postgres" / "keeper.lock").exists()


# What is taken of them


def test_where_nothing_fits_or_the_study_has_begun_it_goes_on_without_a_word(runs):
    finished_run(runs / "a")
    other = ask(*AUTO[:4], "study.warm_start=auto", "space=none", "+space.train.l1.float=[0,1]")
    for definition, begun in ((other, None), (ask(*AUTO), [])):
        starts = starts_of(definition, found(runs), begun)
        assert [*starts.points, *starts.sources, *starts.notes] == []
    assert len(starts_of(ask(*AUTO, "study.trials=20"), found(runs)).points) == 4


def test_at_most_a_quarter_of_the_trials_begins_at_points_that_nobody_has_named(runs):
    finished_run(runs / "a")
    for trials, points in {4: 0, 5: 1, 13: 3, 40: 4}.items():
        starts = starts_of(ask(*AUTO, f"study.trials={trials}"), found(runs))
        assert len(starts.points) == points, trials


@pytest.mark.parametrize("database", ["sqlite_url", "postgres_url"])
def test_a_study_that_began_while_a_command_looked_takes_no_point(database, request, runs):
    url, definition = request.getfixturevalue(database), ask(*AUTO, "study.trials=20")
    finished_run(runs / "a")
    looked = starts_of(definition, found(runs, url, definition))
    assert looked.points
    stored = finished(url, definition, trials=20, name="new", done=1)
    enqueue(stored, looked, 20, baseline=definition.baseline)
    assert (len(stored.trials()), sources_of(stored)) == (1, [])


def die(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("database", ["sqlite_url", "postgres_url"])
def test_points_of_earlier_studies_are_queued_together_or_not_at_all_and_no_others(
    database, request, runs, monkeypatch
):
    """Although the earlier studies have gone on, and auto would choose others now."""
    url, definition = (
        request.getfixturevalue(database),
        ask(*AUTO, "study.warm_start_top=4", "study.trials=20"),
    )
    one, a = finished(url, seeded(1), name="one"), finished_run(runs / "a", seed=2)
    other = open_study(f"sqlite:///{a}/study.db", "earlier")
    tried = [trial.params for trial in (*one.trials(), *other.trials())]
    chosen = starts_of(definition, found(runs, url, definition))
    points = [start.point.params for start in chosen.points]
    assert len(points) == 4
    assert all(point in tried for point in points)
    stored = fresh(url, definition, 6, "new")
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "enter", die)
        with pytest.raises(KeyboardInterrupt):
            enqueue(stored, chosen, 6, baseline=definition.baseline)
    assert stored.trials() == []
    enqueue(stored, chosen, 6, baseline=definition.baseline)
    auto, *studies = sources_of(stored)
    assert auto == "auto"
    for study in studies:
        assert any(note.startswith(f"{study}: begins with its trial") for note in chosen.notes)
    finished_run(runs / "b", seed=9, trials=6)
    now = starts_of(definition, found(runs, url, definition))
    assert [s.source for s in now.points] != [s.source for s in chosen.points]
    again = starts_of(definition, found(runs, url, definition), sources_of(stored))
    assert [*again.points] == []
    for starts in (now, again):  # also of a command that had looked before
        enqueue(stored, starts, 6, baseline=definition.baseline)
    baseline, *queued = stored.trials()
    assert baseline.user_attrs[ENQUEUED] == "the default configuration"
    assert [trial.params for trial in queued] == points
    sources = [trial.user_attrs[ENQUEUED] for trial in queued]
    assert sources == [start.source for start in chosen.points]
    assert {source.rpartition(", trial")[0] for source in sources} == {*studies}


# A list


def test_a_list_of_sources_gives_a_portfolio_and_each_is_read_once(postgres_url, runs):
    finished(postgres_url, seeded(1), name="one")
    a, database = finished_run(runs / "a", seed=2), f"'{postgres_url}#one'"
    listed = ask(
        *RANDOM, f"study.warm_start=[{database},{a},{a}/,{database}]", "study.warm_start_top=4"
    )
    starts = find_warm_starts(listed, ())
    assert len(starts.points) == 4
    assert len(starts.sources) == 2
    assert CANARY not in repr((starts.sources, starts.notes, starts.points))
    half = find_warm_starts(listed, starts.sources[:1])
    assert {start.source.rpartition(",")[0] for start in half.points} == {str(a)}


def test_all_wrong_sources_of_a_list_are_named_at_once(runs):
    listed = f"study.warm_start=[nowhere,7,auto,'mysql://host/x',{finished_run(runs / 'a')}]"
    definition = ask(*RANDOM, listed)
    with pytest.raises(ConfigError) as caught:
        find_warm_starts(definition, ())
    text = "\n".join(caught.value.errors)
    for words in (
        "study.warm_start: nowhere: no study has run there",
        "study.warm_start: must be run directories or URLs of databases, or only auto",
        "which looks for earlier studies itself; got 7",
        "which looks for earlier studies itself; got 'auto'",
        "study.warm_start: storage.url",
    ):
        assert words in text, (words, text)
