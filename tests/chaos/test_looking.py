"""Looking at somebody else's run directory and database: nothing runs, nothing outside is touched,
and no text of theirs controls a terminal. All with real commands."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from commands import QUICK, ROOT, environment, study, studyloom
from optuna.trial import TrialState

from studyloom.storage.attributes import FAILURE, HALTED, REASON, TRACEBACK, WORKER
from studyloom.storage.opening import create_study
from studyloom.text import printable

pytestmark = pytest.mark.chaos

SMALL = (*QUICK, "study.trials=1", "launcher.workers=1")
# What a terminal obeys: clear, title, clipboard, link; C1, direction of writing, half a surrogate
# pair, NUL; and lines that pretend to be ours.
NASTY = (
    "a\x1b[2J\x1b]0;t\x07\x1b]52;c;aGk=\x07\x1b]8;;http://evil\x07l\x9b31m\u202egpj\ud800\x00\x7f\r"
    "error: fake\nerror: fake\n2 of 2 trials"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run directory with a study in SQLite."""
    run_dir = tmp_path_factory.mktemp("made") / "run"
    done = study(*SMALL, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir


def test_a_recorded_configuration_is_composed_only_if_it_is_trusted(made, tmp_path):
    run_dir, canary, conf = tmp_path / "run", tmp_path / "canary", tmp_path / "evil"
    shutil.copytree(made, run_dir)
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
    done = studyloom("winner", run_dir)
    assert not canary.exists()
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*no record here.*--trust-config\n", done.stderr)
    done = studyloom("winner", run_dir, "--trust-config", XDG_STATE_HOME=str(tmp_path / "state"))
    assert canary.exists(), done.stderr


# Text


@pytest.fixture
def nasty(made, tmp_path):
    """A run directory whose database has hostile text wherever text can be."""
    run_dir = tmp_path / "run"
    shutil.copytree(made / ".hydra", run_dir / ".hydra")
    url = f"sqlite:///{run_dir}/study.db"
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
    return run_dir


def test_no_text_of_a_database_controls_the_terminal_or_adds_a_line(nasty):
    for verb, *options in (("status",), ("trials",), ("report",), ("status", "--json")):
        done = studyloom(verb, nasty, *options)
        assert done.returncode == 0, (verb, done.stderr)
        for text in (done.stdout, done.stderr):
            assert text == printable(text), verb
            assert not re.search("^(error: fake|2 of 2)", text, re.MULTILINE), verb
    page = (nasty / "report.html").read_text()
    body = page.partition("<body>")[2].partition("<script>")[0]
    assert "fake" in body
    assert body == printable(body)


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


def test_a_closed_output_pipe_is_no_error(made):
    done = command(f"studyloom trials --json {made} | head -c 1")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_utf_8_shows_replacements(tmp_path):
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = command(f"study run_dir={tmp_path}/run", **plain)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 trials ? 1 complete" in done.stdout
    done = command(f"studyloom status {tmp_path}/run", **plain)
    assert (done.returncode, done.stderr) == (0, "")
