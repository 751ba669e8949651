import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import CANARY, QUICK, study, studyloom

from studyloom import __version__, cli
from studyloom.cli import main
from studyloom.commands.parser import make_parser
from studyloom.errors import (
    ConfigError,
    Diverged,
    Halted,
    LaunchError,
    NoWinner,
    StorageLost,
    UndefinedObjective,
)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["replay", "runs/x"],
        ["doctor"],
        ["doctor", "runs/x", "--storage", "sqlite:///x.db"],
    ],
)
def test_a_command_that_is_wrong_shows_how_it_is_used(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: studyloom" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "compress --json runs/x margin=0.01 ratios=[0.5]",
        "compress runs/x --json margin=0.01 ratios=[0.5]",
        "compress runs/x margin=0.01 --json ratios=[0.5]",
        "compress runs/x margin=0.01 ratios=[0.5] --json",
    ],
)
def test_settings_may_stand_before_and_behind_an_option(words):
    found = make_parser().parse_args(words.split())
    assert (found.run_dir, found.json) == (Path("runs/x"), True)
    assert found.settings == ["margin=0.01", "ratios=[0.5]"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("compress runs/x --jsn margin=0.01", "unrecognized arguments: --jsn; did you mean --json"),
        ("status runs/x --json margin=0.01", "unrecognized arguments: margin=0.01"),
    ],
)
def test_what_is_left_over_of_a_command_is_a_mistake(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_help_names_the_commands_and_version_the_version(capsys):
    for flag in ("--help", "--version"):
        with pytest.raises(SystemExit) as caught:
            main([flag])
        assert caught.value.code == 0
    shown = capsys.readouterr().out
    for words in ("status", "report", "replay", "doctor", "dashboard", f"studyloom {__version__}"):
        assert words in shown


@pytest.mark.parametrize("command", ["status", "report", "doctor", "dashboard"])
def test_a_folder_in_which_no_study_ran_is_named(command, tmp_path, capsys):
    assert main([command, str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no study has run there" in capsys.readouterr().err


def test_a_replay_of_a_folder_in_which_no_study_ran_names_it(tmp_path, capsys):
    assert main(["replay", str(tmp_path / "nowhere"), "--trial", "0"]) == 2
    assert "nowhere: no study has run there" in capsys.readouterr().err


def test_doctor_status_and_report_look_at_a_run(tmp_path):
    done = study(*QUICK, "study.trials=1", "launcher.workers=1", f"run_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    seen = studyloom("doctor", str(tmp_path))
    assert seen.returncode == 0, seen.stdout + seen.stderr
    assert f"ok       run_dir     {tmp_path} can be written" in seen.stdout
    assert "ok       tables      Optuna's and studyloom_slots" in seen.stdout
    assert seen.stderr == ""
    seen = studyloom("status", str(tmp_path))
    assert seen.returncode == 0, seen.stderr
    seen = studyloom("report", str(tmp_path))
    assert (seen.returncode, seen.stdout, seen.stderr) == (0, f"{tmp_path / 'report.html'}\n", "")
    assert "Learning curves" in (tmp_path / "report.html").read_text()
    (tmp_path / "study.db").unlink()
    seen = studyloom("doctor", str(tmp_path))
    assert seen.returncode == 2
    assert "to do    database" in seen.stdout


def test_doctor_shows_no_password(postgres_url):
    seen = studyloom("doctor", "--storage", postgres_url)
    assert seen.returncode == 0, seen.stdout + seen.stderr
    assert "***" in seen.stdout
    assert CANARY not in seen.stdout + seen.stderr
    seen = studyloom("doctor", "--storage", f"mysql://user:{CANARY}@host/db")
    assert seen.returncode == 2
    assert "must name a SQLite or PostgreSQL database" in seen.stderr
    assert CANARY not in seen.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        *((NoWinner("no"), 1), (LaunchError("no"), 1), (Halted("no"), 1)),
        *((Diverged(0, 1, 2, "train", math.inf), 1), (UndefinedObjective("no"), 2)),
        *((StorageLost("no"), 2), (ConfigError(["no"]), 2), (OSError("no"), 2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_ours_is_a_sentence_and_its_exit_code(error, code, monkeypatch, capsys):
    def act(arguments):
        raise error

    parsed = SimpleNamespace(act=act, json=True)
    monkeypatch.setattr(cli, "make_parser", lambda: SimpleNamespace(parse_args=lambda _: parsed))
    assert main([]) == code
    out, err = capsys.readouterr()
    assert err == f"error: {error}\n"
    assert json.loads(out) == {"errors": [str(error)], "exit_code": code}
