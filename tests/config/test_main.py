import json
import os
import subprocess
import sys

import pytest
from commands import ROOT
from hydra.errors import HydraException

from studies import CONF
from studyloom.config.arguments import rewrite_arguments
from studyloom.config.main import hydra_main

SECRET = "postgresql://user:hunter2@host/name"


def test_all_errors_of_a_command_line_are_printed_with_exit_code_2(command, capsys, tmp_path):
    overrides = ("model=mpl", "study.trails=3", "study.trials=many", "train.l1=[1")
    assert command(*overrides) == 2
    out, err = capsys.readouterr()
    assert out == "mnist: starting\n"
    for override, line in zip(overrides, err.splitlines(), strict=True):
        assert line.startswith(f"error: {override.partition('=')[0]}")
    assert list(tmp_path.iterdir()) == []


def test_a_command_prints_that_it_starts_unless_a_program_reads_it(command, capsys, monkeypatch):
    monkeypatch.setenv("STUDYLOOM_JSON", "")
    for more, shown in (((), "mnist: starting\n"), (("--dry-run",), ""), (("--json",), "{")):
        assert command("model=mpl", *more) == 2
        assert capsys.readouterr().out[: len(shown) or None] == shown


def test_json_reports_an_error_in_another_option(command, capsys, monkeypatch):
    for argv in (("--events", "--json"), ("notify=[", "--json"), (f"storage={SECRET}", "--json")):
        monkeypatch.setenv("STUDYLOOM_JSON", "")
        assert command(*argv) == 2
        assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_a_command_prints_that_it_starts_before_torch_is_imported():
    """It takes seconds."""
    code = (
        "import atexit, sys; from studyloom.cli import main;"
        "atexit.register(lambda: print('torch' in sys.modules));"
        "sys.exit(main(['run', 'mnist', 'model=mpl']))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert shown == "mnist: starting\nFalse\n"


@pytest.mark.parametrize("options", [["--help"], ["--version"], ["--cfg", "job"], ["model=mpl"]])
def test_a_command_whose_output_pipe_is_closed_does_not_fail(options):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        study = [sys.executable, "-m", "studies.mnist", *options]
        done = subprocess.run(study, stdout=closed, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    mistaken = options == ["model=mpl"]  # told on standard error, after the line that is lost
    assert (done.returncode, done.stderr.startswith("error: model=mpl")) == (2 * mistaken, mistaken)
    assert mistaken or not done.stderr


def test_a_multirun_is_refused(command, capsys, tmp_path):
    for flag in ("-m", "hydra.mode=MULTIRUN"):
        assert command(flag, "train.epochs=1,2") == 2
        assert capsys.readouterr().err.startswith(f"error: {flag}: ")
    assert list(tmp_path.iterdir()) == []


def test_an_early_interrupt_prints_one_line_and_exits_with_130(command, capfd):
    def interrupted(cfg):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match=r"^130$"):
        hydra_main(config_path=CONF, config_name="mnist")(interrupted)()
    assert capfd.readouterr().err == "stopped before the first trial\n"


def test_hydra_full_error_shows_the_traceback(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(HydraException):
        command("model=mpl")


def test_an_error_in_a_config_file_is_explained(command, capsys, tmp_path):
    for text, parts in {
        "defaults: [mnist, _self_]\ntrain: {epoch: 3}\n": ["train", "epoch"],
        "defaults: [mnist, _self_]\ntrain: {epochs: many}\n": ["many", "Integer", "epochs"],
        "defaults:\n  - mnist\n  - override model: mpl\n": ["model/mpl", "mlp"],
        "train: [\n": ["mine.yaml", "line"],
        "just words\n": ["mine.yaml: just words: no such key"],
        "train: {epochs: 3}\n": ["defaults", "begins with `studyloom`"],
        "defaults: [nowhere]\n": ["nowhere"],
    }.items():
        (tmp_path / "mine.yaml").write_text(text)
        assert command("--config-dir", str(tmp_path), "--config-name", "mine") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert all(part in error for part in parts), error
        assert "Traceback" not in error


def test_a_password_on_a_command_line_is_refused_with_a_fix(command, capsys, tmp_path):
    for typed in (
        f"storage.url={SECRET}",
        f"++storage.url='{SECRET}'",
        f"storage={{url: '{SECRET}'}}",
        f"storage={SECRET}",
        f"study.warm_start={SECRET}#mine",
        "storage.url=postgresql://user@host/name?password=hunter2",
        f"storage.url=${{oc.env:NO_SUCH_VARIABLE,'{SECRET}'}}",
    ):
        assert command(typed, "run_dir=run") == 2
        printed = capsys.readouterr()
        assert "the environment variable STUDYLOOM_STORAGE" in printed.err
        assert "hunter2" not in printed.out + printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_url_without_a_password_is_accepted():
    for typed in (
        "storage.url=sqlite:///study.db",
        "storage.url=postgresql://user@host/name",
        "storage.url=postgresql://user:${oc.env:PART}@host/name",
        "storage.url=${oc.env:X}",
        "params.password=3",
    ):
        assert rewrite_arguments([typed]) == [typed]


def test_a_dry_run_writes_nothing(command, tmp_path):
    values = ("TRUE", "y", "'true'", "1")
    for flag in (
        "--dry-run",
        *(f"study.dry_run={value}" for value in values),
        "++study.dry_run=on",
    ):
        cfg, _ = command(flag)
        assert cfg.study.dry_run is True
        assert list(tmp_path.iterdir()) == [], flag
    (tmp_path / "mine.yaml").write_text("defaults: [mnist, _self_]\nstudy: {dry_run: true}\n")
    command("--config-dir", str(tmp_path), "--config-name", "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_command_writes_nothing_before_its_task_runs(command, tmp_path):
    cfg, composer = command("study.name=x")
    assert cfg.study.dry_run is False
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert [override.text for override in composer.overrides] == ["study.name=x"]
    assert composer.config_name == "mnist"
    assert composer.choices["model"] == "mlp"


def test_settings_that_move_files_out_of_the_run_directory_are_refused(command, capsys):
    for typed, words in (
        ("hydra.job.chdir=true", "hydra.job.chdir=true: leave it out"),
        ("run_dir='runs/a?mode=memory'", "must not have ? or %"),
        ("run_dir='runs/a%41'", "must not have ? or %"),
        ("run_dir='runs/a\0b'", "run_dir=runs/a␀b: must not have ? or %, nor a zero byte"),
    ):
        assert command(typed) == 2
        assert words in capsys.readouterr().err


def test_an_error_names_a_run_directory_that_cannot_be_created(command, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert command("run_dir=file/run") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run_dir: Not a directory: ")
    assert "name another with run_dir=" in error
