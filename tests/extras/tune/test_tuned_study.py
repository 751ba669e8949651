"""The study that a command line of `studyloom tune` writes, and its name."""

from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState, create_trial
from scripts_to_tune import copy_scripts

from studyloom.config.runs import read_run
from studyloom.config.values import as_yaml
from studyloom.extras.tune.tune import write_study, write_study_of_sweep
from studyloom.files import mark_trusted
from studyloom.storage.attributes import HALTED
from studyloom.storage.opening import create_study, open_study


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


@pytest.mark.parametrize(
    ("name", "overrides", "line"),
    [
        ("random", [], "trials    6 (run_cap: 6)"),
        ("random", ["study.trials=3"], "trials    3 (in place of run_cap: 6)"),
        ("random", ["study.trials=9"], "trials    9 (in place of run_cap: 6)"),
        ("grid", [], "trials    6 (all 6 combinations of the grid)"),
        ("grid", ["study.trials=2"], "trials    2 (in place of all 6 combinations of the grid)"),
        ("bayes", [], "trials    40 (the file has no run_cap)"),
    ],
)
def test_a_line_says_how_many_trials_a_sweep_has_and_why(name, overrides, line, capsys):
    write_study_of_sweep(f"sweeps/{name}.yaml", overrides=overrides)
    assert capsys.readouterr().out.splitlines()[1] == line


def test_a_sweep_whose_budget_or_target_is_edited_is_the_same_study():
    file = Path("sweeps/target.yaml")
    content = file.read_text()
    study = write_study_of_sweep(str(file))
    has_run(study.config.parent)
    file.write_text(content.replace("run_cap: 40", "run_cap: 60").replace("0.9}", "0.95}"))
    assert write_study_of_sweep(str(file)) == study
    written = yaml.safe_load(study.config.read_text())
    assert (written["study"]["trials"], written["study"]["target"]) == (60, 0.95)
    file.write_text(content.replace("0.1}", "0.2}"))
    assert write_study_of_sweep(str(file)).config != study.config


@pytest.mark.parametrize("settings", [{"name": "mine"}, {"overrides": ["study.name=mine"]}])
def test_a_given_name_is_kept_and_its_config_is_not_replaced(settings):
    assert write(**settings).config == Path("runs/mine/tune.yaml")
    has_run("runs/mine")
    other = write("0.1:0.6", **settings)
    assert ".hydra" in other.config.parts
    assert "0.5" in Path("runs/mine/tune.yaml").read_text()


def test_a_given_run_directory_has_the_config():
    assert write(overrides=["run_dir=out/a"]).config == Path("out/a/tune.yaml")


def end_with(run_dir, *values, reason=None):
    """Makes a run directory that of a study whose trials have these values, None for failed ones.

    Args:
        reason: why the study has stopped itself.
    """
    has_run(run_dir)
    mark_trusted(Path(run_dir))
    config = {"study": {"name": "typed"}, "storage": {"url": f"sqlite:///{run_dir}/study.db"}}
    Path(run_dir, ".hydra/config.yaml").write_text(as_yaml(config))
    stored = create_study(f"sqlite:///{run_dir}/study.db", "typed", {}, trials=2)
    for value in values:
        state = TrialState.COMPLETE
        if value is None:
            state = TrialState.FAIL
        stored.optuna.add_trial(create_trial(state=state, value=value))
    stored.optuna.set_user_attr(HALTED, reason)
    stored.close()


@pytest.mark.parametrize("settings", [{}, {"name": "typed"}])
def test_a_corrected_command_takes_the_name_of_a_study_without_any_value(capsys, settings):
    config = write().config
    end_with("runs/typed", None, reason="the script printed no value")
    assert write("0.1:0.6", **settings).config == config
    note = "runs/typed had another search, which stopped itself before any trial had a value"
    assert f"{note}; it is now runs/typed-failed" in capsys.readouterr().out
    url, name = read_run(Path("runs/typed-failed"))
    stored = open_study(url, name)
    assert len(stored.optuna.trials) == 1
    stored.close()
    end_with("runs/typed", None, reason="the script printed no value")
    write("0.1:0.7")
    assert Path("runs/typed-failed-2/study.db").exists()


@pytest.mark.parametrize(
    ("values", "reason"), [([0.5, None], "no value"), ([None, None], None), ([], None)]
)
def test_a_study_with_a_value_or_that_may_run_keeps_its_name(values, reason):
    write()
    end_with("runs/typed", *values, reason=reason)
    assert write("0.1:0.6").config == Path("runs/typed-2/tune.yaml")
    assert not Path("runs/typed-failed").exists()
