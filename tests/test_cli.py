import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import CANARY, QUICK, study_here
from results import document_of

from studyloom import cli
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


def test_an_invalid_command_shows_its_usage(capsys):
    for arguments in ([], ["replay", "runs/x"], ["doctor"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "usage: studyloom" in capsys.readouterr().err


def test_no_option_is_silently_ignored(capsys):
    for words, said in (
        (
            ["compare", "runs/x", "--json", "--page", "x"],
            "--page: not allowed with argument --json",
        ),
        (["doctor", "--gpu", "--repair"], "--gpu and --repair cannot be combined"),
        (["doctor", "runs/x", "--yes"], "--yes needs --repair"),
    ):
        try:
            code = main(words)
        except SystemExit as end:  # of argparse
            code = end.code
        assert (code, said in capsys.readouterr().err) == (2, True), words


def test_settings_may_precede_or_follow_an_option():
    words = ["compress", "runs/x", "margin=0.01", "--json", "ratios=[0.5]"]
    found = make_parser().parse_args(words)
    assert (found.run_dir, found.json) == (Path("runs/x"), True)
    assert found.settings == ["margin=0.01", "ratios=[0.5]"]


def test_a_misspelt_argument_is_an_error_with_a_suggestion(capsys):
    for words, said in (
        (["statsu"], "did you mean status?"),
        (["\x1b[2Jstatus"], "\\x1b[2Jstatus: no such command"),
        (["trials", "runs/x", "--trial", "39"], "--trial 39; --trial is an option of stop, replay"),
        (["trials", "runs/x", "--trail"], "unrecognized arguments: --trail\n"),
        (["compress", "runs/x", "--jsn", "margin=1"], "arguments: --jsn; did you mean --json"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err


def test_a_folder_without_a_study_is_named(tmp_path, capsys):
    (tmp_path / "mnist" / ".hydra").mkdir(parents=True)
    for command in (["status"], ["report"], ["doctor"], ["dashboard"], ["replay", "--trial", "0"]):
        assert main([*command, str(tmp_path / "mnsit")]) == 2
        err = capsys.readouterr().err
        assert "mnsit: no study has run there" in err
        assert f"did you mean {tmp_path / 'mnist'}?" in err


def test_doctor_and_report_read_a_run_directory(tmp_path, capsys):
    done = study_here(*QUICK, "study.trials=1", "launcher.workers=1", f"run_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert main(["doctor", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert f"ok       run_dir     {tmp_path} can be written" in out
    assert err == ""
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert "Learning curves" in (tmp_path / "report.html").read_text()
    former = {"trial": 1, "gain": 0.1, "error": 0.0, "margin": 0.0, "chosen": False, "seeds": 2}
    (tmp_path / "winner.json").write_text(json.dumps(document_of(comparison=former)))
    for command in ("report", "status"):
        assert main([command, str(tmp_path)]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert "winner.json: cannot be used" in line
        assert line.endswith(f"to write it again: studyloom winner {tmp_path}")
    assert main(["dashboard", str(tmp_path), "--study", "other"]) == 2
    assert "no study 'other'" in capsys.readouterr().err
    (tmp_path / "study.db").unlink()
    assert main(["doctor", str(tmp_path)]) == 2
    assert "to do    database" in capsys.readouterr().out


@pytest.mark.chaos
def test_doctor_shows_no_password(postgres_url, capsys):
    assert main(["doctor", "--storage", postgres_url]) == 0
    out, err = capsys.readouterr()
    assert "***" in out
    assert CANARY not in out + err
    assert main(["doctor", "--storage", f"mysql://user:{CANARY}@host/db"]) == 2
    err = capsys.readouterr().err
    assert "must name a SQLite or PostgreSQL database" in err
    assert CANARY not in err


def test_an_error_of_studyloom_is_a_line_and_an_exit_code(monkeypatch, capsys):
    def act(arguments):
        raise error

    parsed = SimpleNamespace(act=act, json=True)
    monkeypatch.setattr(cli, "make_parser", lambda: SimpleNamespace(parse_args=lambda _: parsed))
    for error, code in (
        *((NoWinner("no"), 1), (LaunchError("no"), 1), (Halted("no"), 1)),
        *((Diverged(0, 1, 2, "train", math.inf), 1), (UndefinedObjective("no"), 2)),
        *((StorageLost("no"), 2), (ConfigError(["no"]), 2), (OSError("no"), 2)),
    ):
        assert main([]) == code
        out, err = capsys.readouterr()
        assert err == f"error: {error}\n"
        assert json.loads(out) == {"errors": [str(error)], "exit_code": code}
