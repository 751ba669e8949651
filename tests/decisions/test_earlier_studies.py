"""Earlier studies that `study.warm_start` names: in which order, and what of an untrusted one."""

import contextlib
import os
import sqlite3

import pytest
from commands import CANARY
from earlier import finished, finished_run, run_of, seeded
from toy_worker import RANDOM, fresh
from toys import ask

from studyloom.decisions import earlier_studies
from studyloom.decisions.warm_start import enqueue, find_warm_starts, read_used_labels
from studyloom.errors import ConfigError
from studyloom.storage.attributes import ENQUEUED
from studyloom.storage.ledger import Ledger
from studyloom.storage.opening import open_study


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def naming(*sources, overrides=()):
    """A definition whose `study.warm_start` is a list of sources."""
    listed = ",".join(f"'{source}'" for source in sources)
    return ask(*RANDOM, f"study.warm_start=[{listed}]", *overrides)


def errors_of(*sources):
    with pytest.raises(ConfigError) as caught:
        find_warm_starts(naming(*sources))
    return caught.value.errors


# Several studies


def test_earlier_studies_take_turns_each_with_its_best_trial_first(runs):
    folders = [finished_run(runs / name, seed=seed) for seed, name in enumerate("abc", 1)]
    ranked = [open_study(f"sqlite:///{folder}/study.db", "earlier").ranked() for folder in folders]
    for top in (1, 5):
        starts = find_warm_starts(naming(*folders, overrides=[f"study.warm_start_top={top}"]))
        turns = [(place, study) for place in range(2) for study in range(3)][:top]
        assert [start.origin for start in starts.configurations] == [
            f"{folders[study]}, trial {ranked[study][place].number}" for place, study in turns
        ]
        assert [start.configuration.params for start in starts.configurations] == [
            ranked[study][place].params for place, study in turns
        ]


def test_a_study_named_twice_is_read_once(postgres_url, runs):
    finished(postgres_url, seeded(1), name="one")
    a = finished_run(runs / "a", seed=2)
    database = f"{postgres_url}#one"
    named = naming(database, a, f"{a}/", database, overrides=["study.warm_start_top=4"])
    starts = find_warm_starts(named)
    assert len(starts.configurations) == 4
    assert len(starts.labels) == 2
    assert CANARY not in repr((starts.labels, starts.notes, starts.configurations))
    half = find_warm_starts(named, starts.labels[:1])
    assert {start.origin.rpartition(",")[0] for start in half.configurations} == {str(a)}


def test_studies_with_the_same_trials_give_each_configuration_once(runs):
    folders = [finished_run(runs / name, seed=1) for name in "ab"]
    starts = find_warm_starts(naming(*folders, overrides=["study.warm_start_top=8"]))
    configurations = {
        tuple(sorted(start.configuration.params.items())) for start in starts.configurations
    }
    assert len(starts.configurations) == len(configurations) == 4


def test_all_wrong_sources_of_a_list_are_named_at_once(runs):
    listed = f"study.warm_start=[nowhere,7,'mysql://host/x',{finished_run(runs / 'a')}]"
    with pytest.raises(ConfigError) as caught:
        find_warm_starts(ask(*RANDOM, listed))
    text = "\n".join(caught.value.errors)
    for words in (
        "study.warm_start: nowhere: no study has run there",
        "study.warm_start: must be run directories, or studies in databases as URL#NAME, such as "
        "[runs/a, runs/b]; got 7",
        "study.warm_start: storage.url",
    ):
        assert words in text, (words, text)


# Untrusted ones


def test_a_named_study_that_cannot_be_read_is_an_error_that_names_it(runs):
    (run_of(runs / "broken") / "study.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    (run_of(runs / "empty") / "study.db").write_bytes(b"")
    run_of(runs / "without")
    for name in ("badyaml", "fifo"):
        (runs / name / ".hydra").mkdir(parents=True)
    (runs / "badyaml" / ".hydra" / "config.yaml").write_text("study: [")
    os.mkfifo(runs / "fifo" / ".hydra" / "config.yaml")
    names = ("broken", "empty", "without", "badyaml", "fifo")
    errors = errors_of(finished_run(runs / "good"), *(runs / name for name in names))
    assert all(error.startswith("study.warm_start: ") for error in errors)
    for name in names:
        assert any(str(runs / name) in error for error in errors), (name, errors)


VIEWS = {
    "endless": "DROP TABLE alembic_version; CREATE VIEW alembic_version AS WITH RECURSIVE c(x) AS "
    "(SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) AS version_num FROM c",
    "virtual": "CREATE VIRTUAL TABLE mine USING fts5(text)",
    "computed": "CREATE TABLE mine (x, y GENERATED ALWAYS AS (hex(zeroblob(400000000))))",
    "triggered": "CREATE TRIGGER mine AFTER INSERT ON trials BEGIN SELECT 1; END",
}


@pytest.mark.parametrize("kind", VIEWS)
def test_an_untrusted_database_that_computes_is_refused_unread(runs, kind):
    folder = finished_run(runs / kind)
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as connection:
        connection.executescript(VIEWS[kind])
    (error,) = errors_of(folder)
    assert "is not a plain table" in error


def test_trials_of_an_untrusted_study_are_counted_before_they_are_read(runs, monkeypatch):
    folder = finished_run(runs / "a")
    limits = earlier_studies.ReadLimits(trials=3)
    monkeypatch.setattr(earlier_studies, "UNTRUSTED_LIMITS", limits)
    (error,) = errors_of(folder)
    assert error.endswith("has 4 trials, and at most 3 are read")


def test_no_server_of_an_untrusted_folder_is_started(runs):
    folder = run_of(runs / "server", url="embedded_postgres:///x")
    data = folder / "postgres" / "data"
    data.mkdir(parents=True)
    for name in ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"):
        (data / name).write_text("archive_command = 'touch /tmp/owned'\n")
    (error,) = errors_of(folder)
    assert str(folder) in error
    assert not (folder / "postgres" / "keeper.lock").exists()


# Queuing them


def die(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("database", ["sqlite_url", "postgres_url"])
def test_earlier_configurations_are_queued_together_or_not_at_all(
    database, request, runs, monkeypatch
):
    """Although an earlier study has gone on, so that other trials are its best now."""
    url = request.getfixturevalue(database)
    folders = [finished_run(runs / name, seed=seed) for seed, name in enumerate("ab", 1)]
    definition = naming(*folders, overrides=["study.warm_start_top=4", "study.trials=20"])
    chosen = find_warm_starts(definition)
    configurations = [start.configuration.params for start in chosen.configurations]
    assert len(configurations) == 4
    stored = fresh(url, definition, 6, "new")
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "set_slots", die)
        with pytest.raises(KeyboardInterrupt):
            enqueue(stored, chosen, 6, baseline=definition.baseline)
    assert stored.trials() == []
    enqueue(stored, chosen, 6, baseline=definition.baseline)
    assert read_used_labels(stored) == [str(folder) for folder in folders]
    for folder in folders:
        (folder / "study.db").unlink()
        finished(f"sqlite:///{folder}/study.db", seeded(9), trials=6).close()
    now = find_warm_starts(definition)
    assert [start.origin for start in now.configurations] != [
        start.origin for start in chosen.configurations
    ]
    again = find_warm_starts(definition, read_used_labels(stored))
    assert [*again.configurations] == []
    for starts in (now, again):  # also of a command that had looked before
        enqueue(stored, starts, 6, baseline=definition.baseline)
    baseline, *queued = stored.trials()
    assert baseline.user_attrs[ENQUEUED] == "the default configuration"
    assert [trial.params for trial in queued] == configurations
    sources = [trial.user_attrs[ENQUEUED] for trial in queued]
    assert sources == [start.origin for start in chosen.configurations]
