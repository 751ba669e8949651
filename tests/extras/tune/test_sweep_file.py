"""W&B sweep files: what each key becomes, and which keys have no counterpart."""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import environment
from live_processes import linux, until
from scripts_to_tune import CONVERTED_SWEEPS, copy_scripts

from studyloom.cli import main
from studyloom.errors import ConfigError
from studyloom.extras.adopt.wandb_folder import HistoryRow
from studyloom.extras.tune import sweep_run
from studyloom.extras.tune.sweep_file import parse_sweep
from studyloom.extras.tune.sweep_parameters import ParameterReader
from studyloom.extras.tune.sweep_run import LoggedValues, collect_parameters
from studyloom.processes import is_alive


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    folder = copy_scripts(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def convert(name):
    return parse_sweep(Path("sweeps", f"{name}.yaml")).search


def write(**changes):
    sweep = {
        "program": "typed.py",
        "method": "random",
        "metric": {"name": "val_acc", "goal": "maximize"},
        "parameters": {"lr": {"min": 0.1, "max": 0.5}},
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep | changes, sort_keys=False))
    return Path("sweep.yaml")


def errors_of(**changes):
    with pytest.raises(ConfigError) as raised:
        parse_sweep(write(**changes))
    return str(raised.value)


def space_of(**spec):
    reader = ParameterReader()
    reader.read({"x": spec})
    assert not reader.errors
    (parameter,) = reader.parameters
    if parameter.values is None:
        return parameter.items
    return parameter.values.to_space()


@pytest.mark.parametrize(
    ("spec", "space"),
    [
        ({"min": 1, "max": 9}, {"int": [1, 9]}),
        ({"min": 1, "max": 9.0}, {"float": [1.0, 9.0]}),
        ({"distribution": "uniform", "min": 0, "max": 1}, {"float": [0.0, 1.0]}),
        ({"distribution": "int_uniform", "min": 0, "max": 4}, {"int": [0, 4]}),
        (
            {"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": 0.1},
            {"float": [0.1, 0.5], "step": 0.1},
        ),
        ({"distribution": "q_uniform", "min": 15, "max": 64, "q": 8}, {"int": [16, 64], "step": 8}),
        (
            {"distribution": "log_uniform_values", "min": "1e-4", "max": 0.1},
            {"float": [1e-4, 0.1], "log": True},
        ),
        (
            {"distribution": "log_uniform", "min": math.log(0.25), "max": math.log(4)},
            {"float": [0.25, 4.0], "log": True},
        ),
        (
            {"distribution": "inv_log_uniform", "min": math.log(0.25), "max": math.log(4)},
            {"float": [0.25, 4.0], "log": True},
        ),
        (
            {"distribution": "inv_log_uniform_values", "min": 0.1, "max": 10},
            {"float": [0.1, 10.0], "log": True},
        ),
        (
            {"distribution": "q_log_uniform_values", "min": 4, "max": 64},
            {"int": [4, 64], "log": True},
        ),
        ({"values": [16, 64]}, {"choice": [16, 64]}),
        ({"distribution": "categorical", "values": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, {"choice": [1, 2]}),
        ({"values": [None, 0.1, [1, 2]]}, {"choice": ["None", "0.1", "[1, 2]"]}),
        ({"value": 3}, (3,)),
        ({"distribution": "constant", "value": None}, (None,)),
        ({"values": ["a"]}, ("a",)),
        ({"min": 3, "max": 3}, (3,)),
    ],
)
def test_a_distribution_is_a_range_a_list_or_a_constant(spec, space):
    assert space_of(**spec) == space


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            {"distribution": "normal", "mu": 2, "sigma": 3},
            "{distribution: uniform, min: -4, max: 8",
        ),
        ({"distribution": "q_normal"}, "uniform, min: -2, max: 2"),
        ({"distribution": "log_normal"}, "{distribution: log_uniform, min: -2, max: 2}"),
        ({"distribution": "beta", "a": 1, "b": 2}, "beta has no counterpart"),
        (
            {"distribution": "q_log_uniform_values", "min": 1, "max": 64, "q": 8},
            "x.q: 8 has no counterpart",
        ),
        ({"values": [1, 2], "probabilities": [0.1, 0.9]}, "x.probabilities has no counterpart"),
        ({"distribution": "unifrom", "min": 1, "max": 2}, "did you mean uniform?"),
        ({"min": 1}, "x must have value, values, or min and max"),
        ({"min": 2, "max": 1}, "min must be below max"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min must be above 0"),
        ({"min": "a", "max": 1}, "x.min must be a number; got 'a'"),
        ({"distribution": "log_uniform", "min": 1, "max": 1000}, "e to the power 1000 is out"),
        ({"valeus": [1, 2]}, "x.valeus: no such key of a parameter; did you mean value"),
        ({"values": []}, "x.values must be a list of values"),
        ({"values": ["1", 1]}, "x.values has values that a command cannot tell apart"),
    ],
)
def test_a_parameter_without_a_counterpart_is_named_with_the_nearest_thing(spec, reason):
    assert reason in errors_of(parameters={"x": spec, "y": {"values": [1, 2]}})


COMMANDS = {
    "grid": "python typed.py --lr={lr} --width={width} --epochs=3 --seed={seed}",
    "random": "python typed.py --lr={lr} --width={width} --seed={seed}",
    "bayes": "python switched.py --momentum={momentum} {nesterov}",
    "hydra": "python hydrated.py optimizer.lr={optimizer.lr} model.width={model.width} seed={seed}",
    "hyperband": "python typed.py --lr={lr} --epochs=27 --seed={seed}",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_gets_the_arguments_in_the_form_that_the_file_names(name):
    assert convert(name).to_config()["objective"]["run"] == COMMANDS[name]


def test_every_form_of_arguments_is_written_as_wandb_writes_it():
    parameters = {
        "lr": {"min": 0.1, "max": 0.5},
        "amp": {"values": [True, False]},
        "bias": {"value": False},
        "optimizer": {"parameters": {"name": {"values": ["a", "b"]}, "on": {"value": True}}},
    }
    words = {
        "args": ["--lr={lr}", "{amp}", "--bias=False"],
        "args_no_equals": ["--lr", "{lr}", "--amp", "{amp}", "--bias", "False"],
        "args_no_hyphens": ["lr={lr}", "{amp}", "bias=False"],
        "args_no_boolean_flags": ["--lr={lr}", "{amp}"],
        "args_append_hydra": ["+lr={lr}", "{amp}", "+bias=False"],
        "args_override_hydra": ["++lr={lr}", "{amp}", "++bias=False"],
    }
    flags = {
        "args": ("--amp=True", "--amp=False"),
        "args_no_equals": ("True", "False"),
        "args_no_hyphens": ("amp=True", "amp=False"),
        "args_no_boolean_flags": ("--amp",),
        "args_append_hydra": ("+amp=True", "+amp=False"),
        "args_override_hydra": ("++amp=True", "++amp=False"),
    }
    for form, expected in words.items():
        command = ["${env}", "python", "x{y}", f"${{{form}}}"]
        search = parse_sweep(write(parameters=parameters, command=command)).search
        assert search.command[:2] == ["python", "x{{y}}"]
        assert search.command[2 : 2 + len(expected)] == expected
        assert "{'name': '{optimizer.name}', 'on': True}" in search.command[-2]
        assert search.hyperparameters[1].flag == flags[form]


def test_a_method_and_its_budget_are_a_sampler_and_a_number_of_trials():
    grid = convert("grid")
    assert (grid.trials, grid.settings["sampler"]["_target_"].split(".")[-1]) == (6, "GridSampler")
    random = convert("random")
    assert random.name == "Random_search_of_typed.py"
    assert random.trials == 6
    assert random.settings["sampler"] == {"_target_": "optuna.samplers.RandomSampler"}
    bayes = convert("bayes")
    assert (bayes.trials, bayes.direction) == (None, "minimize")
    assert "sampler" not in bayes.settings
    assert "parameters.lr: method grid needs a list" in errors_of(method="grid")


def test_a_target_ends_the_search():
    assert convert("target").to_config()["study"]["target"] == 0.9
    metric = {"name": "val_loss", "goal": "minimize", "target": "1e-3"}  # which YAML reads as text
    assert parse_sweep(write(metric=metric)).search.target == 0.001
    assert "target" not in convert("random").to_config()["study"]


def test_a_parameter_may_have_the_name_of_a_kind_of_range():
    options = {"values": ["a", "b"]}
    sweep = write(
        parameters={"choice": options, "1st": options, "model": {"parameters": {"list": options}}}
    )
    names = [hyperparameter.name for hyperparameter in parse_sweep(sweep).search.hyperparameters]
    assert names == ["choice_", "_1st", "model.list_"]


def test_hyperband_ends_trials_at_the_same_iterations():
    assert convert("hyperband").settings["pruner"] == {
        "_target_": "optuna.pruners.SuccessiveHalvingPruner",
        "min_resource": 3,
        "reduction_factor": 3,
    }
    search = parse_sweep(write(early_terminate={"type": "hyperband", "min_iter": 4})).search
    assert search.settings["pruner"]["min_resource"] == 4
    assert convert("random").settings["pruner"] == {"_target_": "optuna.pruners.NopPruner"}


def test_all_keys_without_a_counterpart_are_named_at_once():
    for name, keys in {
        "normal": ("lr.distribution", "width.distribution", "epochs.probabilities"),
        "controller": ("metric.target must be a number", "early_terminate.type", "controller"),
    }.items():
        with pytest.raises(ConfigError) as raised:
            convert(name)
        for key in keys:
            assert key in str(raised.value)
    error = errors_of(command=["${program}", "${argz}"], method="bayse", run_cap=0)
    assert "${argz} has no counterpart" in error
    assert "did you mean bayes?" in error
    assert "run_cap must be an integer from 1" in error
    assert "the seed is no hyperparameter" in errors_of(parameters={"seed": {"values": [1, 2]}})
    assert "nothing to search" in errors_of(parameters={"lr": {"value": 1}})
    assert "parameters must be a mapping" in errors_of(parameters=None)
    assert "there is no such file" in errors_of(program="none.py")


def test_a_sweep_file_is_data(tmp_path):
    for text in ("!!python/object/apply:os.system ['exit']", "- a", "a: [", "\0"):
        Path("sweep.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"sweep\.yaml"):
            parse_sweep(Path("sweep.yaml"))
    with pytest.raises(ConfigError, match="--sweep needs a W&B sweep file"):
        parse_sweep(tmp_path / "none.yaml")


def test_the_parameters_of_a_trial_have_the_types_of_the_file():
    sweep = yaml.safe_load(Path("sweeps/json.yaml").read_text())
    words = ["lr=1e-05", "dropout=None", "hidden=[64, 64]", "loader.shuffle=true"]
    assert collect_parameters(sweep, words) == {
        "lr": 1e-05,
        "dropout": None,
        "hidden": [64, 64],
        "loader": {"shuffle": True, "workers": 2},
    }


def test_a_script_that_uses_wandb_is_read_by_what_it_logs():
    search = convert("logged")
    wrapper = "-m studyloom.extras.tune.sweep_run --logged val_loss sweeps/logged.yaml lr={lr}"
    assert wrapper in " ".join(search.command)
    line = "W&B step 3 val_loss=0.25"
    assert re.search(search.value, line)["value"] == "0.25"
    assert re.search(search.step, line)["step"] == "3"
    assert not re.search(search.value, "W&B step 3 train_val_loss=0.25")


@pytest.mark.parametrize(
    ("numbers", "step"), [({"epoch": 2.0}, 2), ({"epoch": 0.5}, 7), ({}, 7), ({"epoch": -1.0}, 7)]
)
def test_the_step_of_a_logged_value_is_its_epoch_or_that_of_wandb(
    numbers, step, capsys, monkeypatch
):
    rows = [HistoryRow(7, numbers | {"loss": 0.1})]
    monkeypatch.setattr(sweep_run, "read_history", lambda path: rows)
    file = Path("wandb", "run-1", "run-1.wandb")
    file.parent.mkdir(parents=True)
    file.touch()
    values = LoggedValues("loss", Path())
    values.print_new()
    values.print_new()
    values.end()
    assert capsys.readouterr().out == f"W&B step {step} loss=0.1\n"
    values.name = "acc"
    values.end()
    assert "wandb.log has logged no acc; it has logged" in capsys.readouterr().out


@linux
def test_a_script_that_uses_wandb_ends_with_its_killed_wrapper():
    script = "import os, pathlib, time; pathlib.Path('pid').write_text(f'{os.getpid()} '); "
    wrapper = "-m studyloom.extras.tune.sweep_run --logged loss sweeps/random.yaml lr=0.1 width=16"
    command = [sys.executable, *wrapper.split(), "--", sys.executable, "-c"]
    with subprocess.Popen([*command, f"{script} time.sleep(300)"], env=environment()) as process:
        until(lambda: Path("pid").exists() and Path("pid").read_text().endswith(" "))
        pid = int(Path("pid").read_text())
        process.kill()
        process.wait()
        try:
            until(lambda: not is_alive(pid), 20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("name", CONVERTED_SWEEPS)
def test_a_sweep_converts(name):
    search = convert(name)
    for hyperparameter in search.hyperparameters:
        assert hyperparameter.values.default is not None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--fixed", "lr"], "has the program and its arguments"),
        (["train.py"], "has the program and its arguments"),
        (["--value", r"acc (\S+)"], "has a name"),
        (["--step", r"round (\d+)"], "has a name"),
    ],
)
def test_a_sweep_file_refuses_an_option_that_it_has_itself(words, reason, capsys):
    write()
    assert main(["tune", "--sweep", "sweep.yaml", *words]) == 2
    assert reason in capsys.readouterr().err
