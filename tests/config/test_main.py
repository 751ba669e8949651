import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException

from studies import CONF
from studyloom.config.main import arguments

ROOT = Path(CONF).parent
SECRET = "postgresql://user:hunter2@host/name"


# Presses Ctrl-C in the midst of the import of hydra_main.
INTERRUPTED_IMPORT = """
import importlib.abc, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "hydra.core.utils":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
try:
    from studyloom.config import hydra_main
except KeyboardInterrupt:
    print("studyloom.config.main" in sys.modules)
"""


def test_a_ctrl_c_does_not_cut_the_import_of_hydra_main_in_two():
    """Where it does, it comes out of OmegaConf or Python's import as an error of theirs."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_the_real_command_tells_all_mistakes_without_a_traceback_and_ends_with_2(tmp_path):
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STUDYLOOM", "HYDRA"))
    }
    overrides = [
        "model=mpl",
        "modle=mlp",
        "study.trails=3",
        "optimizer.lrr=1",
        "study.trials=many",
        "train.l1=[1",
    ]
    command = [sys.executable, "-m", "studies.mnist", *overrides]
    env |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == len(overrides)
    for override, line in zip(sorted(overrides, key=lambda o: "." in o), lines, strict=True):
        assert line.startswith(f"error: {override.partition('=')[0]}"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_of_studies_is_refused(command, capsys, tmp_path):
    for flag in ("-m", "hydra.mode=MULTIRUN"):
        assert command(flag, "train.epochs=1,2") == 2
        assert capsys.readouterr().err.startswith(f"error: {flag}: ")
    assert list(tmp_path.iterdir()) == []


def test_hydra_full_error_shows_the_traceback_instead(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(HydraException):
        command("model=mpl")


def test_a_mistake_in_a_config_file_is_told_with_what_is_wrong_in_it(command, capsys, tmp_path):
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


def test_a_password_on_the_command_line_is_refused_with_the_way_out(command, capsys, tmp_path):
    for typed in (
        f"storage.url={SECRET}",
        f"++storage.url='{SECRET}'",
        f"storage={{url: '{SECRET}'}}",
        f"storage={SECRET}",
        f"study.from={SECRET}#mine",
        "storage.url=postgresql://user@host/name?password=hunter2",
        f"storage.url=${{oc.env:NO_SUCH_VARIABLE,'{SECRET}'}}",
    ):
        assert command(typed, "run_dir=run") == 2
        printed = capsys.readouterr()
        assert "STUDYLOOM_STORAGE, in the environment" in printed.err
        assert "hunter2" not in printed.out + printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_url_without_a_password_stays():
    for typed in (
        "storage.url=sqlite:///study.db",
        "storage.url=postgresql://user@host/name",
        "storage.url=postgresql://user:${oc.env:PART}@host/name",
        "storage.url=${oc.env:X}",
        "params.password=3",
    ):
        assert arguments([typed]) == [typed]


def test_a_dry_run_leaves_nothing_behind(command, tmp_path):
    for flag in ("--dry-run", "study.dry_run=True"):
        cfg, _ = command(flag)
        assert cfg.study.dry_run is True
        assert list(tmp_path.iterdir()) == []


def test_other_runs_write_what_hydra_writes_below_their_run_directory(command, tmp_path):
    cfg, composer = command("study.name=x")
    assert cfg.study.dry_run is False
    assert sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    ) == [
        "runs/x/.hydra/config.yaml",
        "runs/x/.hydra/hydra.yaml",
        "runs/x/.hydra/overrides.yaml",
    ]
    assert composer.overrides == ("study.name=x",)
    assert composer.config_name == "mnist"
    assert composer.choices["model"] == "mlp"


def test_a_run_directory_that_cannot_be_made_is_named(command, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert command("run_dir=file/run") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run_dir: Not a directory: ")
    assert "name another with run_dir=" in error
