"""Studies that the code of commit 7e971e2 made go on, report, replay and give their winner.

tests/old/make.py has made them, and says what an archive holds.
"""

import json
import pkgutil
import re
import sqlite3
import tarfile
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import sqlalchemy
import torch
import yaml
from commands import ROOT, study, studyloom

ARCHIVES = Path(__file__).parent / "old"
PAGES = {"digits": "mnist", "tumours": "breast_cancer", "unfinished": "sunspots"}
FINISHED = (
    *("digits.sqlite", "mine.sqlite", "tumours.sqlite", "rows.sqlite"),
    "sunspots.postgresql",
)
# All that is stored of trials, and the slots.
TABLES = (
    *("trials", "trial_params", "trial_values", "trial_intermediate_values"),
    *("trial_user_attributes", "trial_system_attributes", "studyloom_slots"),
)
# What conf/ named by `_target_` at that commit, what the files of `studyloom new` named, and the
# README. Configs of users, and all that is stored of their trials, name these.
TARGETS = (
    *("studyloom.models.MLP", "studyloom.models.CNN", "studyloom.models.Recurrent"),
    *("studyloom.models.Transformer", "studyloom.models.Standardise"),
    *("studyloom.losses.CrossEntropy", "studyloom.losses.MSE"),
    *("studyloom.schedules.constant", "studyloom.schedules.cosine"),
    "studyloom.schedules.one_cycle",
    *("studyloom.data.Embedded", "studyloom.data.Idx", "studyloom.data.Loaded"),
    *("studyloom.tables.Table", "studyloom.tables.Series"),
    *("studyloom.launch.Join", "studyloom.launch.Local"),
    *("studyloom.launch.Ray", "studyloom.launch.Slurm"),
    "studyloom.grid.GridSampler",
    *("torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW", "torch.optim.RMSprop"),
    *("torch.nn.L1Loss", "torch.nn.HuberLoss"),
    *("optuna.pruners.NopPruner", "optuna.pruners.MedianPruner", "optuna.pruners.PercentilePruner"),
    *("optuna.pruners.HyperbandPruner", "optuna.pruners.SuccessiveHalvingPruner"),
    "optuna.pruners.WilcoxonPruner",
    *("optuna.samplers.TPESampler", "optuna.samplers.NSGAIISampler"),
    *("optuna.samplers.RandomSampler", "optuna.samplers.QMCSampler"),
    *("optuna.samplers.GPSampler", "optuna.samplers.CmaEsSampler"),
    "studies.reinforce.train",
    *("studyloom.config.hydra_main", "studyloom.run.run"),  # which pages of users' import
)


@dataclass(frozen=True)
class Old:
    """An old study, restored: where its commands are called, and what they are given."""

    name: str
    folder: Path
    url: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / self.name

    @cached_property
    def overrides(self) -> dict[str, str]:
        """Those of the command that made it, by key."""
        written = yaml.safe_load((self.run_dir / ".hydra" / "overrides.yaml").read_text())
        return dict(override.split("=", 1) for override in written)

    @property
    def budget(self) -> int:
        return int(self.overrides["study.trials"])

    def run(self, **changes: str) -> CompletedProcess[str]:
        """Calls that command again, with some overrides changed; `__` in a name is a dot."""
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        given = [f"{key}={value}" for key, value in (self.overrides | changed).items()]
        return self._ended(study(*given, page=PAGES.get(self.name, self.name), **self._where))

    def ask(self, verb: str, *arguments: object) -> CompletedProcess[str]:
        """Calls `studyloom VERB RUN_DIR ARGUMENTS`."""
        return self._ended(studyloom(verb, f"runs/{self.name}", *arguments, **self._where))

    @property
    def _where(self) -> dict:
        return {"cwd": self.folder, **self.environment}

    @staticmethod
    def _ended(done: CompletedProcess[str]) -> CompletedProcess[str]:
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done

    def stored(self) -> dict[str, set[tuple]]:
        """The rows of all tables that tell of trials, those of re-evaluations too."""
        return {table: {*self.query(f"SELECT * FROM {table}")} for table in TABLES}

    def query(self, statement: str) -> list[tuple]:
        engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(statement)]

    def states(self) -> list[tuple[int, str]]:
        """Number and state of the trials of the study itself, by number."""
        return self.query(
            "SELECT number, state FROM trials JOIN studies ON trials.study_id = studies.study_id "
            f"WHERE study_name = '{self.name}' ORDER BY number"
        )

    def slots(self) -> list[tuple[str, int]]:
        """State and deaths of the slots of the study itself, in their order."""
        return self.query(
            "SELECT state, deaths FROM studyloom_slots JOIN studies "
            "ON studyloom_slots.study_id = studies.study_id "
            f"WHERE study_name = '{self.name}' ORDER BY slot"
        )


@pytest.fixture
def restore(tmp_path, request):
    """Restores a study from its archive, NAME.KIND."""

    def restore(title):
        name, _, kind = title.partition(".")
        with tarfile.open(ARCHIVES / f"{title}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        dump, run_dir = (tmp_path / "study.sql").read_text(), tmp_path / "runs" / name
        environment = {}
        if kind == "sqlite":
            url = f"sqlite:///{run_dir}/study.db"
            with closing(sqlite3.connect(run_dir / "study.db")) as connection:
                connection.executescript(dump)
        else:
            url = request.getfixturevalue("postgres_url")
            environment["STUDYLOOM_STORAGE"] = url
            execute(url, dump)
        own = (tmp_path / "studies").exists()
        if own:
            environment["PYTHONPATH"] = str(tmp_path)
        for path in (run_dir / ".hydra").iterdir():
            text = path.read_text().replace("/CHECKOUT", str(ROOT))
            text = text.replace("/PROJECT", str(tmp_path if own else ROOT))
            # Its server was one below run_dir; this one is the tests'.
            text = text.replace(
                "embedded_postgres:///${run_dir}/postgres", "${oc.env:STUDYLOOM_STORAGE,null}"
            )
            path.write_text(text.replace("embedded_postgres", "postgres"))
        return Old(name, tmp_path, url, environment)

    return restore


def execute(url, script):
    """Has a PostgreSQL database execute many statements."""
    address = sqlalchemy.make_url(url).set(drivername="postgresql")
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(address.render_as_string(hide_password=False)) as connection:
        connection.execute(script)


@pytest.mark.runs
@pytest.mark.parametrize("title", ["digits.sqlite", "mine.sqlite", "sunspots.postgresql"])
def test_the_same_command_says_that_the_budget_is_spent_and_changes_no_row(restore, title):
    old = restore(title)
    before, answer = old.stored(), (old.run_dir / "best.yaml").read_bytes()
    assert f"the budget of {old.budget} trials is spent" in old.run().stdout
    assert old.stored() == before
    assert (old.run_dir / "best.yaml").read_bytes() == answer


@pytest.mark.runs
@pytest.mark.parametrize("title", FINISHED)
def test_two_more_trials_are_made_and_what_was_stored_stays(restore, title):
    old = restore(title)
    before = old.stored()
    judged = old.name == "sunspots"  # the others end with the search, which is quicker
    more = {} if judged else {"winner__enabled": "false"}
    done = old.run(study__trials=str(old.budget + 2), **more)
    assert "goes on: 2 trials to do" in done.stdout
    after = old.stored()
    assert [table for table in TABLES if not before[table] <= after[table]] == []
    states = old.states()
    assert [number for number, _ in states] == [*range(old.budget + 2)]
    assert {state for _, state in states} <= {"COMPLETE", "PRUNED"}
    assert old.slots() == [("done", 0)] * (old.budget + 2)
    if judged:
        assert json.loads((old.run_dir / "winner.json").read_text())["trials"] == old.budget + 2


@pytest.mark.runs
@pytest.mark.parametrize("title", ["rows.sqlite", "sunspots.postgresql"])
def test_status_and_report_tell_what_was_found(restore, title):
    old = restore(title)
    status = json.loads(old.ask("status", "--json").stdout)
    assert (status["study"], status["budget"], status["done"]) == (old.name, old.budget, old.budget)
    assert status["baseline"]["trial"] == 0
    assert f"trial {status['best']['trial']}" in (old.run_dir / "best.yaml").read_text()
    old.ask("report")
    report = (old.run_dir / "report.html").read_text()
    assert old.name in report
    assert "All trials" in report
    assert len(report) > 20_000


@pytest.mark.runs
@pytest.mark.parametrize(
    ("title", "number"),
    [
        *[("digits.sqlite", 3), ("digits.sqlite", 4), ("mine.sqlite", 5), ("tumours.sqlite", 5)],
        *[("rows.sqlite", 1), ("rows.sqlite", 2)],
        *[("sunspots.postgresql", 1), ("sunspots.postgresql", 3)],
    ],
)
def test_a_trial_trained_again_is_the_same(restore, title, number):
    """Bit for bit where the processor is that of then, else within tolerance."""
    old = restore(title)
    trust = ["--trust", "studies"] if old.name == "mine" else []
    done = old.ask("replay", "--trial", number, *trust)
    assert "equal bit for bit" in done.stdout or "equal within tolerance" in done.stdout


@pytest.mark.runs
@pytest.mark.parametrize("title", ["mine.sqlite", "sunspots.postgresql"])
def test_the_winner_is_the_same_again(restore, title):
    """From the networks in winner/; where that is missing, they are trained again."""
    old = restore(title)
    path = old.run_dir / "winner.json"
    before = json.loads(path.read_text())
    path.unlink()
    old.ask("winner", "--trust-config")  # from an archive, and so from elsewhere
    after = json.loads(path.read_text())
    assert after["winner"]["trial"] == before["winner"]["trial"]
    assert after["seeds"] == before["seeds"]
    was, now = (found["test"]["winner"]["mean"] for found in (before, after))
    assert now == pytest.approx(was, rel=0.05)


@pytest.mark.runs
@pytest.mark.parametrize("title", FINISHED)
def test_the_winner_says_of_inputs_what_it_said_then(restore, title):
    old = restore(title)
    trust = ["--trust", "studies"] if old.name == "mine" else []
    said = old.ask("predict", "asked.npy", *trust).stdout
    for now, then in zip(
        said.splitlines(), (old.folder / "answered.txt").read_text().splitlines(), strict=True
    ):
        # What is said beside an answer is new.
        *words, sure = now.split("\t")[: then.count("\t") + 1]
        assert words == then.split("\t")[:-1]
        assert float(sure) == pytest.approx(float(then.split("\t")[-1]), rel=0.02, abs=0.01)


@pytest.mark.runs
def test_the_configuration_of_the_winner_gives_its_weights_again(restore):
    old = restore("digits.sqlite")
    given = ["--config-dir", "runs/digits", "--config-name", "winner"]
    given += ["winner.top=1", "winner.seeds=2", "launcher.workers=1"]
    done = study(*given, cwd=old.folder)
    assert done.returncode == 0, done.stderr
    then, now = (
        torch.load(old.folder / "runs" / name / "winner.pt", weights_only=True)
        for name in ("digits", "digits-winner")
    )
    assert {*now} == {*then}
    for name, tensor in then.items():
        assert torch.allclose(tensor, now[name], rtol=0.02, atol=0.002)


@pytest.mark.runs
def test_a_new_study_begins_with_the_best_points(restore):
    old = restore("digits.sqlite")
    best = {"study__from": "runs/digits", "study__top": "2", "winner__enabled": "false"}
    done = old.run(study__name="next", study__trials="3", **best)
    assert "next: 3 of 3 trials" in done.stdout
    url = f"sqlite:///{old.folder}/runs/next/study.db"
    newer = Old("next", old.folder, url)
    params = "SELECT param_name, param_value FROM trial_params JOIN trials USING (trial_id) "
    number = re.search(r"trial (\d+)", (old.run_dir / "best.yaml").read_text())[1]
    then = old.query(params + f"WHERE study_id = 1 AND number = {number}")
    assert then
    assert {*then} <= {*newer.query(params + "WHERE number = 1")}


@pytest.mark.runs
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_killed_command_is_gone_on_with_from_its_checkpoint(restore, kind):
    old = restore(f"unfinished.{kind}")
    assert old.states() == [(0, "COMPLETE"), (1, "RUNNING")]
    assert old.slots() == [("done", 0), ("held", 0), ("free", 0)]
    before = old.stored()
    done = old.run()  # says nothing of a checkpoint that is missing or foreign, nor of a start anew
    assert "goes on: 2 trials to do" in done.stdout
    assert old.states() == [(number, "COMPLETE") for number in range(3)]
    assert old.slots() == [("done", 0), ("done", 1), ("done", 0)]
    after = old.stored()
    for table in ("trial_params", "trial_values", "trial_intermediate_values"):
        assert before[table] <= after[table]
    made = old.query(
        "SELECT value_json FROM trial_user_attributes JOIN trials USING (trial_id) "
        "WHERE number = 1 AND key = 'made'"
    )
    assert json.loads(made[0][0])["claims"] == 2
    assert [*(old.run_dir / "checkpoints").iterdir()] == []


@pytest.mark.parametrize("name", TARGETS)
def test_what_configs_named_is_still_there(name):
    if name.startswith("studies.reinforce"):
        pytest.importorskip("gymnasium")
    assert callable(pkgutil.resolve_name(name))


def test_no_archive_names_the_machine_that_made_it():
    for path in ARCHIVES.glob("*.tar.gz"):
        with tarfile.open(path) as archive:
            for member in archive:
                assert (member.uid, member.gid, member.uname, member.mtime) == (0, 0, "", 0)
                if not member.name.endswith((".pt", ".previous", ".npy")):
                    text = archive.extractfile(member).read().decode()
                    assert "/tmp/" not in text, (path, member.name)
                    assert {*re.findall(r"[\w.-]+-[0-9a-f]{4}:\d+", text)} <= {"host-0000:1"}
