"""Earlier studies that are found: whose, how many, and what of a stranger's is never touched."""

import math
import shutil

import optuna
import pytest
import yaml
from commands import CANARY
from optuna.trial import create_trial
from toy_worker import RANDOM, work
from toys import ask, fill

from studyloom.errors import ConfigError
from studyloom.storage.attributes import SLOT
from studyloom.study import warm_start
from studyloom.study.earlier_studies import find_earlier
from studyloom.study.opening import create_study, open_study
from studyloom.study.warm_start import enqueue, find_warm_starts, sources_of

pytestmark = pytest.mark.chaos  # real workers; what decides is tested by itself in tests/search

AUTO = (*RANDOM, "study.from=auto")


def finished(url, trials=3, seed=1, name="earlier", done=None):
    """A study of the toy space, with all of its trials done unless `done` says fewer.

    Nothing is trained: a trial's value is drawn.
    """
    question = ask(*RANDOM, f"study.seed={seed}")
    stored = create_study(url, name, question.identity("toy"), trials, goals=question.goals)
    done = trials if done is None else done
    points = [space_of(question, seed, number) for number in range(done)]
    fill(stored, *(
        create_trial(value=0.5 + 0.1 * math.sin(7 * seed + number), params=point.params,
                     distributions=point.distributions, user_attrs={SLOT: number})
        for number, point in enumerate(points)
    ))  # fmt: skip
    for _ in range(done):
        stored.ledger.finish(stored.ledger.claim("toy", trials, 60.0))
    return stored


def space_of(question, seed, number):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(100 * seed + number))
    return question.space.suggest(study.ask())


def run_of(folder, name="earlier", **storage):
    """The files by which Hydra makes a folder a run directory."""
    (folder / ".hydra").mkdir(parents=True)
    config = {"study": {"name": name}, "storage": {"url": "sqlite:///study.db"} | storage}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def sibling(runs, name, **options):
    folder = run_of(runs / name)
    finished(f"sqlite:///{folder}/study.db", **options).close()
    return folder


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def found(runs, url=None, question=None):
    question = ask(*AUTO) if question is None else question
    url = f"sqlite:///{runs}/new/study.db" if url is None else url
    return find_earlier(url, "new", runs / "new", question.identity("toy"))


def labels(remembered):
    return {each.label for each in remembered.studies}


def starts_of(question, remembered, already=()):
    return find_warm_starts(question, already, lambda: remembered)


# Which are found


def test_finished_studies_of_the_database_and_beside_the_folder_are_found(url, runs):
    finished(url, name="one", seed=1)
    finished(url, name="two", seed=2, trials=4, done=2)
    a, b = sibling(runs, "a", seed=3), sibling(runs, "b", seed=4, trials=2, done=1)
    (runs / "notes").mkdir()  # no run directory, and not worth a word
    remembered = found(runs, url)
    assert labels(remembered) == {"study 'one' of this database", str(a)}
    assert remembered.notes == [
        "study.from=auto: study 'two' of this database is not finished; left out",
        f"study.from=auto: {b} is not finished; left out",
    ]


def test_what_asks_the_same_question_is_never_taken(url, runs):
    """Under another name, in a copied folder or as this very study: that would be resuming."""
    asked = ask(*AUTO)
    for name in ("new", "again"):
        stored = create_study(url, name, asked.identity("toy"), 1, goals=asked.goals)
        work(asked, stored, 1)
    assert found(runs, url, asked).studies == []
    assert labels(found(runs, url, ask(*AUTO, "study.seed=5"))) == {
        "study 'again' of this database"
    }


def test_a_study_met_in_two_folders_counts_once(runs):
    a = sibling(runs, "a")
    shutil.copytree(a, runs / "copy")
    assert len(found(runs).studies) == 1


# What is a stranger's


def test_what_cannot_be_read_is_noted_and_the_rest_is_taken(runs):
    good = sibling(runs, "good")
    (run_of(runs / "broken") / "study.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    (run_of(runs / "empty") / "study.db").write_bytes(b"")
    run_of(runs / "without")
    (runs / "badyaml" / ".hydra").mkdir(parents=True)
    (runs / "badyaml" / ".hydra" / "config.yaml").write_text("study: [")
    remembered = found(runs)
    assert labels(remembered) == {str(good)}
    assert len(remembered.notes) == 4
    for name in ("broken", "empty", "without", "badyaml"):
        assert any(f"{runs / name} cannot be read: " in note for note in remembered.notes), name


def test_no_server_of_a_strangers_folder_is_started(runs):
    folder = run_of(runs / "server", url="embedded_postgres:///x")
    data = folder / "postgres" / "data"
    data.mkdir(parents=True)
    for name in ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"):
        (data / name).write_text("archive_command = 'touch /tmp/owned'\n")
    (note,) = found(runs).notes
    assert "is not started" in note
    assert not (folder / "postgres" / "keeper.lock").exists()


# What is taken of them


def test_points_of_several_studies_come_after_the_baseline_and_say_from_where(url, runs):
    finished(url, name="one", seed=1, trials=4)
    a = sibling(runs, "a", seed=2, trials=4)
    question = ask(*AUTO, "study.top=4")
    starts = starts_of(question, found(runs, url, question))
    assert len(starts.points) == 4
    stored = create_study(url, "new", question.identity("toy"), 6)
    assert enqueue(stored, starts, 6, baseline=question.baseline) == 0
    sources = [trial.user_attrs.get("enqueued") for trial in stored.trials()]
    assert sources[0] == "the configuration as composed"
    assert sources[1:] == [start.source for start in starts.points]
    tried = [trial.params for trial in (*_trials(a), *open_study(url, "one").trials())]
    assert all(start.point.params in tried for start in starts.points)
    assert sources_of(stored)[0] == "auto"
    assert {*sources_of(stored)[1:]} == {each.rpartition(", trial")[0] for each in sources[1:]}
    assert all(any(note.startswith(f"{s}: begins with its trials") for note in starts.notes)
               for s in sources_of(stored)[1:])  # fmt: skip


def _trials(folder):
    return open_study(f"sqlite:///{folder}/study.db", "earlier").trials()


def test_nothing_that_fits_is_a_note_and_the_study_goes_on(runs):
    sibling(runs, "a")
    other = ask(*AUTO[:4], "study.from=auto", "space=none", "+space.train.l1.float=[0,1]")
    starts = starts_of(other, found(runs))
    assert starts.points == []
    assert starts.notes == [
        "study.from=auto: no earlier study has a point of this space; it goes on"
    ]
    assert starts.sources == ["auto"]
    assert starts_of(other, found(runs / "a")).notes == starts.notes


def test_points_of_earlier_studies_are_queued_together_or_not_at_all_and_no_others(
    url, runs, monkeypatch
):
    """Although the earlier studies have gone on, and auto would choose others now."""
    question = ask(*AUTO, "study.top=3")
    sibling(runs, "a", seed=1, trials=4)
    chosen = starts_of(question, found(runs, question=question))
    stored = create_study(url, "new", question.identity("toy"), 6)
    with monkeypatch.context() as patch:
        patch.setattr(warm_start, "enter", die)
        with pytest.raises(KeyboardInterrupt):
            enqueue(stored, chosen, 6, baseline=question.baseline)
    assert stored.trials() == []
    enqueue(stored, chosen, 6, baseline=question.baseline)
    sibling(runs, "b", seed=9, trials=6)
    now = starts_of(question, found(runs, question=question))
    assert [s.source for s in now.points] != [s.source for s in chosen.points]
    again = starts_of(question, found(runs, question=question), sources_of(stored))
    assert again.points == []
    for starts in (now, again):  # also of a command that had looked before
        enqueue(stored, starts, 6, baseline=question.baseline)
    params = [trial.params for trial in stored.trials()[1:]]
    assert params == [start.point.params for start in chosen.points]


def die(*_):
    raise KeyboardInterrupt


# A list


def test_a_list_of_sources_gives_a_portfolio_and_each_is_read_once(url, runs):
    finished(url, name="one", seed=1, trials=4)
    a = sibling(runs, "a", seed=2, trials=4)
    listed = ask(*RANDOM, f"study.from=['{url}#one',{a},{a}/,'{url}#one']", "study.top=4")
    starts = find_warm_starts(listed, ())
    assert len(starts.points) == 4
    assert len(starts.sources) == 2
    assert CANARY not in repr((starts.sources, starts.notes))
    half = find_warm_starts(listed, starts.sources[:1])
    assert {start.source.rpartition(",")[0] for start in half.points} == {str(a)}


def test_all_wrong_sources_of_a_list_are_named_at_once(runs):
    listed = f"study.from=[nowhere,7,auto,'mysql://host/x',{sibling(runs, 'a')}]"
    question = ask(*RANDOM, listed, "study.top=0")
    with pytest.raises(ConfigError) as caught:
        find_warm_starts(question, ())
    text = "\n".join(caught.value.mistakes)
    for words in (
        "study.from: nowhere: no study has run there",
        "study.from must be a run directory or the URL of a database; got 7",
        "study.from: auto looks for earlier studies itself",
        "study.from: storage.url",
        "study.top must be at least 1; got 0",
    ):
        assert words in text, (words, text)
