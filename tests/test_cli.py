import pytest
from commands import CANARY, QUICK, study, studyloom

from studyloom import __version__
from studyloom.cli import main


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
