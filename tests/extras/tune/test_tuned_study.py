"""The study that a command line of `studyloom tune` writes, and its name."""

from pathlib import Path

import pytest
from scripts_to_tune import copy_scripts

from studyloom.extras.tune.tune import write_study


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    folder = copy_scripts(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def write(lr="0.1:0.5", **settings):
    program = ["typed.py", "--lr", lr]
    return write_study(program, metric="val_acc", direction="maximize", **settings)


def has_run(run_dir):
    """Marks a run directory as that of a study that has begun."""
    Path(run_dir, ".hydra").mkdir()
    Path(run_dir, ".hydra/config.yaml").touch()


def test_the_command_that_is_the_same_is_printed(capsys):
    study = write(overrides=["study.trials=5", "track=[wandb]"])
    assert study.config == Path("runs/typed/tune.yaml")
    assert capsys.readouterr().out.splitlines() == [
        "baseline  lr=0.1 (the nearest to the default 0.001, which is outside)",
        "the same as: studyloom run runs/typed/tune.yaml study.trials=5 'track=[wandb]'",
    ]


def test_the_same_command_finds_its_study_among_those_of_other_searches(capsys):
    first = write()
    has_run("runs/typed")
    second = write("0.1:0.6")
    has_run("runs/typed-2")
    assert second.config == Path("runs/typed-2/tune.yaml")
    assert (
        "runs/typed has a study of another search; this one is typed-2" in capsys.readouterr().out
    )
    assert write() == first
    assert write("0.1:0.6") == second
    assert write("0.1:0.7").config == Path("runs/typed-3/tune.yaml")


@pytest.mark.parametrize("settings", [{"name": "mine"}, {"overrides": ["study.name=mine"]}])
def test_a_given_name_is_kept_and_its_config_is_not_replaced(settings):
    assert write(**settings).config == Path("runs/mine/tune.yaml")
    has_run("runs/mine")
    other = write("0.1:0.6", **settings)
    assert ".hydra" in other.config.parts
    assert "0.5" in Path("runs/mine/tune.yaml").read_text()


def test_a_given_run_directory_has_the_config():
    assert write(overrides=["run_dir=out/a"]).config == Path("out/a/tune.yaml")
