"""Studies that an earlier commit made go on, are shown and give their winner: tests/archives."""

import json
import re
import sqlite3
import tarfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy
import yaml
from commands import ROOT, study, studyloom

from studyloom.storage.ledger import TEST_SLOT

ARCHIVES = Path(__file__).parent / "archives"
PAGES = {"digits": "mnist", "promoted": "sunspots"}
# All that is stored of trials, and the slots.
TABLES = (
    *("trials", "trial_params", "trial_values", "trial_intermediate_values"),
    *("trial_user_attributes", "trial_system_attributes"),
    f"studyloom_slots WHERE slot < {TEST_SLOT}",  # of trials, without the lease to test
)

pytestmark = pytest.mark.chaos


@dataclass(frozen=True)
class Restored:
    """A study from its archive: where its commands run, and their environment."""

    name: str
    folder: Path
    url: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / self.name

    def run(self, *more: str) -> str:
        """Runs the command that made it again, with more overrides; its standard output."""
        given = yaml.safe_load((self.run_dir / ".hydra" / "overrides.yaml").read_text())
        page = PAGES.get(self.name, self.name)
        return self._ended(study(*given, *more, page=page, cwd=self.folder, **self.environment))

    def ask(self, verb: str, *arguments: object) -> str:
        """Runs `studyloom VERB RUN_DIR ARGUMENTS`; its standard output."""
        where = {"cwd": self.folder, **self.environment}
        return self._ended(studyloom(verb, f"runs/{self.name}", *arguments, **where))

    @staticmethod
    def _ended(done) -> str:
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def query(self, statement: str) -> list[tuple]:
        engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(statement)]

    def stored(self) -> dict[str, set[tuple]]:
        """The rows of all tables about trials, those of later stages too."""
        return {table: {*self.query(f"SELECT * FROM {table}")} for table in TABLES}

    def states(self) -> list[str]:
        """The states of the trials of the search, by number."""
        rows = self.query(
            "SELECT state FROM trials JOIN studies ON trials.study_id = studies.study_id "
            f"WHERE study_name = '{self.name}' ORDER BY number"
        )
        return [state for (state,) in rows]

    def rungs(self) -> list[list[int]]:
        """The rungs to which trials have come."""
        found = "SELECT value_json FROM trial_user_attributes WHERE key = 'rungs'"
        return [json.loads(value) for (value,) in self.query(found)]

    def result(self) -> dict:
        return json.loads((self.run_dir / "winner.json").read_text())


@pytest.fixture
def restore(tmp_path, request):
    """Restores a study from its archive, by NAME.KIND."""

    def restore(title):
        name, _, kind = title.partition(".")
        with tarfile.open(ARCHIVES / f"1-{title}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        run_dir, environment = tmp_path / "runs" / name, {}
        for path in (run_dir / ".hydra").iterdir():
            text = path.read_text().replace("/CHECKOUT", str(ROOT))
            text = text.replace("storage=embedded_postgres", "storage=postgres")
            path.write_text(text.replace("/tmp/studyloom-archive", str(tmp_path)))
        dump = (tmp_path / "study.sql").read_text()
        if kind == "sqlite":
            url = f"sqlite:///{run_dir}/study.db"
            with closing(sqlite3.connect(run_dir / "study.db")) as connection:
                connection.executescript(dump)
        else:
            url = request.getfixturevalue("postgres_url")
            environment["STUDYLOOM_STORAGE"] = url
            execute(url, dump)
        if (tmp_path / "studies").exists():
            environment["PYTHONPATH"] = str(tmp_path)
        return Restored(name, tmp_path, url, environment)

    return restore


def execute(url, script):
    """Has a PostgreSQL database execute many statements."""
    import psycopg

    address = sqlalchemy.make_url(url).set(drivername="postgresql")
    with psycopg.connect(address.render_as_string(hide_password=False)) as connection:
        connection.execute(script)


@pytest.mark.parametrize("title", ["digits.sqlite", "looped.sqlite"])
def test_an_archive_grows_by_trials_and_the_same_command_changes_nothing(restore, title):
    old = restore(title)
    before, result = old.stored(), (old.run_dir / "winner.json").read_bytes()
    assert "the budget of 6 trials is spent" in old.run()
    assert old.stored() == before
    assert (old.run_dir / "winner.json").read_bytes() == result

    search = ("winner.enabled=false",)
    assert "resumes: 2 trials to do" in old.run("study.trials=8", *search)
    after = old.stored()
    assert [table for table in TABLES if not before[table] <= after[table]] == []
    assert len(old.states()) == 8
    assert {*old.states()} <= {"COMPLETE", "PRUNED"}
    began_with_rungs = title == "digits.sqlite"  # a loop began with the median
    assert bool(old.rungs()) == began_with_rungs, "it is pruned as it began"


def test_an_archive_is_shown_and_replayed_and_predicts_the_same(restore):
    old = restore("digits.sqlite")
    status = json.loads(old.ask("status", "--json"))
    assert (status["study"], status["budget"], status["done"]) == ("digits", 6, 6)
    old.ask("report")
    assert "All trials" in (old.run_dir / "report.html").read_text()
    again = old.ask("replay", "--trial", status["best"]["trial"])
    assert "equal bit for bit" in again or "equal within tolerance" in again
    then = (old.folder / "answered.txt").read_text().splitlines()
    for now, line in zip(old.ask("predict", "asked.npy").splitlines(), then, strict=True):
        (*words, sure), (*were, was) = now.split("\t")[:3], line.split("\t")[:3]
        assert words == were
        assert float(sure) == pytest.approx(float(was), rel=0.02, abs=0.01)


def test_an_archived_loop_has_the_same_winner_when_it_is_re_evaluated(restore):
    old = restore("looped.sqlite")
    before = old.result()
    (old.run_dir / "winner.json").unlink()
    old.ask("winner", "--trust-config")  # from an archive, and so from elsewhere
    after = old.result()
    assert (after["winner"]["trial"], after["seeds"]) == (
        before["winner"]["trial"],
        before["seeds"],
    )
    was, now = (found["test"]["winner"]["mean"] for found in (before, after))
    assert now == pytest.approx(was, rel=0.05)


def test_an_archived_search_resumes_and_keeps_its_reports(restore):
    old = restore("promoted.postgresql")
    assert "RUNNING" in old.states() or "WAITING" in old.states()
    before = old.stored()
    old.run()
    assert len(old.states()) == 6
    assert {*old.states()} <= {"COMPLETE", "PRUNED"}
    assert {rungs[0] for rungs in old.rungs()} == {2}, "where its rungs began"
    after = old.stored()
    for table in ("trial_params", "trial_intermediate_values"):
        assert before[table] <= after[table]


def test_no_archive_names_the_machine_that_made_it():
    for path in ARCHIVES.glob("*.tar.gz"):
        with tarfile.open(path) as archive:
            for member in archive:
                assert (member.uid, member.gid, member.uname, member.mtime) == (0, 0, "", 0)
                if member.name.endswith((".sql", ".yaml", ".json", ".md", ".txt")):
                    text = archive.extractfile(member).read().decode()
                    assert {*re.findall(r"[\w.-]+-[0-9a-f]{4}:\d+", text)} <= {"host-0000:1"}
