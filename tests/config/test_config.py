import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from toys import compose, toy_folds, toy_split

from studies import CONF
from studyloom.config.build import build
from studyloom.config.compose import Composer
from studyloom.config.main import arguments, hydra_main
from studyloom.config.overrides import find_override_mistakes, group_options
from studyloom.config.registration import GROUPS
from studyloom.config.runs import read_run, storage_url
from studyloom.config.schema import check_name
from studyloom.config.values import (
    describe_error,
    has_key,
    keys_at,
    value_at,
    with_values,
    write_yaml,
)
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError
from studyloom.question.jobs import build_jobs, build_network
from studyloom.question.question import Question
from studyloom.question.validation import validate
from studyloom.training.trainer import Training

ROOT = Path(CONF).parent
SECRET = "postgresql://user:hunter2@host/name"


class Part:
    """Notes what it is built with."""

    def __init__(self, width, depth=1, seed=None, **others):
        self.given = {"width": width, "depth": depth, "seed": seed, **others}


class Broken:
    def __init__(self):
        try:
            {}["inner"]
        except KeyError as error:
            raise ValueError("model.width is 3: expected 4") from error


def section(**values):
    return OmegaConf.create({"part": {"_target_": "test_config.Part", **values}}).part


@pytest.fixture
def composing():
    GlobalHydra.instance().clear()
    hydra.initialize_config_dir(CONF, version_base=None)


@pytest.fixture
def quiet():
    """Takes away what Hydra adds to the root logger for configs that do not ask it to leave that alone."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    for handler in [handler for handler in logging.root.handlers if handler not in handlers]:
        logging.root.removeHandler(handler)
        handler.close()
    logging.root.setLevel(level)


@pytest.fixture
def command(monkeypatch, tmp_path, quiet):
    """Runs a study's command in this process, in a folder of its own; what its task is given, or the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    given = []

    def run(*argv, task=lambda cfg: None):
        monkeypatch.setattr(sys, "argv", ["study.py", *argv])

        @hydra_main(config_path=CONF, config_name="mnist")
        def main(cfg):
            given.append((cfg, Composer.from_hydra()))
            task(cfg)

        GlobalHydra.instance().clear()
        try:
            main()
        except SystemExit as end:
            assert given == []
            return end.code
        return given.pop()

    return run


# The schema


@pytest.mark.parametrize(
    "override",
    [
        "study.trails=3",
        "wrong=3",
        "train.epochs=many",
        "train.epochs=1.5",
        "study.baseline=perhaps",
        "study.trials=null",
        "study.timeout=soon",
        "study.name=[a]",
        "train.l1=none",
    ],
)
def test_the_schema_refuses_unknown_keys_and_wrong_types(composing, override):
    with pytest.raises((HydraException, OmegaConfBaseException)):
        hydra.compose("mnist", [override])


@pytest.mark.parametrize("override", ["+study.trails=3", "++train.epoch=3"])
def test_a_key_that_is_added_to_a_section_of_the_schema_is_refused_too(command, capsys, override):
    assert command(override) == 2
    assert (
        f"error: {override.lstrip('+').partition('=')[0]}: no such key" in capsys.readouterr().err
    )


def test_the_schema_has_a_value_for_every_setting_of_its_own(composing):
    cfg = hydra.compose("mnist")
    assert (cfg.study.seed, cfg.study.baseline, cfg.study.timeout, cfg.study.dry_run) == (
        0,
        True,
        None,
        False,
    )
    assert (cfg.objective.folds, cfg.objective.seeds) == (1, 1)
    assert (cfg.train.l1, cfg.train.clip, cfg.train.precision, cfg.train.samples_per_epoch) == (
        0.0,
        None,
        "fp32",
        None,
    )
    assert cfg.run_dir == "runs/mnist"
    assert cfg.storage.url == "sqlite:///runs/mnist/study.db"
    assert cfg.train.loss == cfg.loss


# Mistakes on the command line


WRONG = {
    "model=mpl": [
        "model=mpl: no such option; model has cnn, gru, lstm, mlp, rnn, transformer; did you mean mlp?"
    ],
    "sampler=tpee": ["sampler=tpee: no such option", "did you mean tpe?"],
    "modle=mlp": ["modle: no such key; there are", "did you mean model?"],
    "modle.hidden=[3]": ["modle: no such key", "did you mean model?"],
    "study.trails=3": ["study.trails: no such key; study has name, trials", "did you mean trials?"],
    "+study.trails=3": ["study.trails: no such key", "did you mean trials?"],
    "++train.epoch=3": ["train.epoch: no such key", "did you mean epochs?"],
    "optimizer.lrr=1": ["optimizer.lrr: no such key; optimizer has", "lr, ", "did you mean lr?"],
    "model.hidden.deep=1": ["model.hidden.deep"],
    "~train.epoch": ["train.epoch", "did you mean epochs?"],
    "study.trials=many": ["study.trials=many", "'many'", "could not be converted to Integer"],
    "train.l1=[1]": ["train.l1=[1]"],
    "model.hidden=[16": ["model.hidden=[16"],
    "model=[": ["model=["],
    "=3": ["=3"],
    "train.epochs": ["train.epochs"],
    "model=mlp,cnn": ["model=mlp,cnn"],
}


def test_all_overrides_that_do_not_compose_are_told_at_once_each_on_a_line_with_its_neighbour():
    told = find_override_mistakes(CONF, "mnist", [*WRONG, "train.epochs=3", "model=mlp"])
    assert len(told) == len(WRONG)
    for parts in WRONG.values():
        assert any(all(part in line for part in parts) for line in told), parts
    assert not [
        line for line in told if "\n" in line or "hydra" in line.lower() or "struct" in line
    ]


def test_right_overrides_are_no_mistakes():
    right = [
        "model=cnn",
        "train.epochs=3",
        "model.blocks=1",
        "+model.activation=relu",
        "~space.model",
        "hydra.verbose=true",
    ]
    assert find_override_mistakes(CONF, "mnist", right[:3] + right[4:]) == []


def test_a_key_is_judged_in_the_option_that_was_chosen_wherever_it_was_written():
    assert find_override_mistakes(CONF, "mnist", ["model.blocks=1", "model=cnn"]) == []
    (line,) = find_override_mistakes(CONF, "mnist", ["model.hidden=[3]", "model=cnn"])
    assert line.startswith("model.hidden: no such key; model has")
    assert "channels" in line


@pytest.mark.parametrize(
    ("place", "flags"),
    [(0, ["--config-dir=FOLDER"]), (1, ["--config-dir", "FOLDER"]), (2, ["-cd", "FOLDER"])],
)
def test_options_in_a_folder_of_ones_own_are_known_wherever_it_is_named(tmp_path, place, flags):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.yaml").write_text("train:\n  batch_size: {choice: [32, 64]}\n")
    overrides = ["space=mine", "study.trails=3"]
    argv = [
        *overrides[:place],
        *(flag.replace("FOLDER", str(tmp_path)) for flag in flags),
        *overrides[place:],
    ]
    (line,) = find_override_mistakes(CONF, "mnist", argv)
    assert line.startswith("study.trails: no such key")


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


def test_mistakes_end_the_command_with_2_before_its_task(command, tmp_path, capsys):
    assert command("model=mpl", "study.trails=3") == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 2
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_sweep_of_studies_is_refused(command, capsys, tmp_path, flag):
    assert command(flag, "train.epochs=1,2") == 2
    assert capsys.readouterr().err.startswith(f"error: {flag}: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argument", ["model=mpl", "study.name=a/b"])
def test_hydra_full_error_shows_the_traceback_instead(command, monkeypatch, argument):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises((HydraException, OmegaConfBaseException)):
        command(argument)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("defaults:\n  - mnist\n  - _self_\ntrain:\n  epoch: 3\n", ["train", "epoch"]),
        (
            "defaults:\n  - mnist\n  - _self_\ntrain:\n  epochs: many\n",
            ["many", "Integer", "epochs"],
        ),
        ("defaults:\n  - mnist\n  - override model: mpl\n", ["model/mpl", "mlp"]),
        ("defaults:\n  - mnist\n  - modle: mlp\n", ["modle/mlp"]),
        ("train: [\n", ["mine.yaml", "line"]),
        ("just words\n", ["defaults", "begins with `studyloom`"]),
        ("train: {epochs: 3}\n", ["defaults", "begins with `studyloom`"]),
        ("defaults: [nowhere]\n", ["nowhere"]),
        ("defaults: {a: b}\n", ["mine"]),
    ],
)
def test_a_mistake_in_a_config_file_is_told_with_what_is_wrong_in_it(
    command, capsys, tmp_path, text, parts
):
    (tmp_path / "mine.yaml").write_text(text)
    assert command("--config-dir", str(tmp_path), "--config-name", "mine") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert all(part in error for part in parts), error
    assert "Traceback" not in error


# Study names


@pytest.mark.parametrize("name", ["a/b", ""])
def test_a_name_that_is_no_folder_name_ends_the_command_with_2_before_a_folder_is_made(
    command, capsys, tmp_path, name
):
    assert command(f"study.name='{name}'") == 2
    error = capsys.readouterr().err
    assert error == f"error: {check_name(name)}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../up", "/", r"a\b", "a..b", "a\0b", "x" * 201]
)
def test_a_name_that_is_no_folder_name_is_refused_with_what_is_wrong(name):
    assert check_name(name).startswith(f"study.name: {name[:20]!r}")


def test_a_name_with_nul_in_a_file_is_refused_too(command, capsys, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine.yaml").write_text('defaults:\n  - mnist\n  - _self_\nstudy:\n  name: "a\\0b"\n')
    assert command("--config-dir", str(folder), "--config-name", "mine") == 2
    assert r"study.name: 'a\x00b'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "name", ["mnist", "a b", "ä" * 100, "x" * 200, ".hidden", "a.b", "[red]", "-x", "{x}"]
)
def test_other_names_are_accepted(name):
    assert check_name(name) is None


def test_a_name_is_measured_in_bytes_as_file_systems_do():
    assert "202 bytes" in check_name("ä" * 101)


# The command line


@pytest.fixture
def storage_variable(monkeypatch):
    monkeypatch.setenv("STUDYLOOM_STORAGE", "before")


@pytest.mark.parametrize("written", [SECRET, f"'{SECRET}'", f'"{SECRET}"'])
@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_password_moves_to_the_environment(storage_variable, prefix, written):
    moved = arguments(["model=cnn", f"{prefix}storage.url={written}", "study.trials=3"])
    assert "hunter2" not in " ".join(moved)
    assert moved == [
        "model=cnn",
        f"{prefix}storage.url=${{oc.env:STUDYLOOM_STORAGE}}",
        "study.trials=3",
    ]
    assert os.environ["STUDYLOOM_STORAGE"] == SECRET


@pytest.mark.parametrize(
    "url", ["sqlite:///study.db", "postgresql://user@host/name", "null", "${oc.env:X}", "no url"]
)
def test_a_url_without_a_password_stays(storage_variable, url):
    assert arguments([f"storage.url={url}"]) == [f"storage.url={url}"]
    assert os.environ["STUDYLOOM_STORAGE"] == "before"


def test_a_password_is_in_no_file_that_hydra_writes(storage_variable, command, tmp_path):
    cfg, composer = command(f"storage.url={SECRET}", "run_dir=run")
    assert cfg.storage.url == SECRET
    assert "hunter2" not in str(composer)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "oc.env:STUDYLOOM_STORAGE" in written
    assert "hunter2" not in written


@pytest.mark.parametrize("flag", ["--dry-run", "study.dry_run=true", "study.dry_run=True"])
def test_a_dry_run_leaves_nothing_behind(command, tmp_path, flag):
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


# Composing again


def test_composing_again_carries_the_users_own_overrides(composing):
    _, composer = compose("optimizer.lr=0.5", "train.epochs=3", "model.dropout=0.25")
    cfg = composer.compose({"model": "cnn", "optimizer": "sgd"})
    assert cfg.model._target_ == "studyloom.models.CNN"
    assert (cfg.optimizer.lr, cfg.train.epochs, cfg.model.dropout) == (0.5, 3, 0.25)


def test_composing_again_drops_what_the_other_branch_does_not_have():
    _, composer = compose("model.hidden=[64]", "optimizer.lr=0.5")
    assert "hidden" not in composer.compose({"model": "cnn"}).model
    assert composer.compose({"model": "mlp"}).model.hidden == [64]
    assert composer.compose({"model": "cnn"}).optimizer.lr == 0.5


def test_what_was_added_to_ones_own_choice_is_not_added_to_another():
    _, composer = compose("+model.bias=3", "++model.gain=4", "~model.hidden", "~model.dropout")
    other = composer.compose({"model": "cnn"}).model
    assert {"bias", "gain", "dropout", "hidden"} & {*other} == set()
    assert "blocks" in other
    own = composer.compose({"model": "mlp"}).model
    assert (own.bias, own.gain) == (3, 4)
    assert "hidden" not in own


def test_composing_again_goes_on_from_the_users_own_choices():
    _, composer = compose("model=cnn", "optimizer=sgd", "model.blocks=1")
    cfg = composer.compose({"optimizer": "adam"})
    assert cfg.model.blocks == 1
    assert cfg.optimizer._target_ == "torch.optim.Adam"
    assert "hidden" in composer.compose({"model": "mlp"}).model


def test_a_config_is_composed_once(monkeypatch):
    _, composer = compose("model.hidden=[64]")
    first = composer.compose({"model": "cnn", "optimizer": "sgd"})
    monkeypatch.setattr(hydra, "compose", None)
    assert composer.compose({"optimizer": "sgd", "model": "cnn"}) is first


def test_composing_without_choices_gives_the_users_own_config():
    cfg, composer = compose("model.hidden=[64]", "train.epochs=3")
    assert composer.compose({}) == cfg


def test_composing_again_finds_what_was_found_the_first_time(command, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: studyloom.models.MLP\n")
    composed = []
    for way in (f"--config-dir={tmp_path}", f"hydra.searchpath=[file://{tmp_path}]"):
        command(
            way,
            "model=mine",
            task=lambda cfg: composed.append(Composer.from_hydra().compose({"model": "cnn"})),
        )
    assert [cfg.model.blocks for cfg in composed] == [2, 2]


def test_an_option_that_does_not_compose_is_named():
    _, composer = compose("train.epochs=3")
    with pytest.raises(ConfigError, match=r"model=ran: .*Could not find 'model/ran'"):
        composer.compose({"model": "ran"})


def test_values_are_set_on_a_copy():
    cfg, composer = compose()
    base = composer.compose({})
    changed = with_values(
        base, {"optimizer.lr": 0.5, "model.hidden": [1, 2], "train.batch_size": 8}
    )
    assert (changed.optimizer.lr, changed.model.hidden, changed.train.batch_size) == (
        0.5,
        [1, 2],
        8,
    )
    assert base == cfg
    assert composer.compose({}) is base
    again = with_values(base, {"model.dropout": [0.1, 0.2]})
    assert again.model.hidden == [128]
    again.model.hidden.append(3)
    assert base.model.hidden == [128]


def test_a_value_of_the_wrong_type_is_not_set():
    cfg, _ = compose()
    with pytest.raises(OmegaConfBaseException):
        with_values(cfg, {"train.epochs": "many"})


def test_a_key_is_there_or_not_be_it_null_or_below_a_list():
    cfg, _ = compose()
    for key in ("train", "train.clip", "model.hidden"):
        assert has_key(cfg, key)
    for key in (
        "train.epoch",
        "nowhere.at.all",
        "model.hidden.0",
        "model.hidden.deep.down",
        "train.epochs.x",
    ):
        assert not has_key(cfg, key)
        assert keys_at(cfg, key) == []
    for key in (
        "train.clip",
        "train.epoch",
        "nowhere.at.all",
        "model.hidden.deep",
        "model.hidden.deep.down",
    ):
        assert value_at(cfg, key) is None
    assert value_at(cfg, "model.hidden") == [128]
    assert keys_at(cfg, "objective") == [
        "folds",
        "seeds",
        "_target_",
        "metric",
        "constraints",
        "direction",
    ]
    assert "train" in keys_at(cfg, "")


# From a config to objects


def test_a_part_is_built_with_what_it_accepts_and_has_no_value_for():
    assert build(section(width=3), seed=7, shape=(1, 2), depth=2).given == {
        "width": 3,
        "depth": 2,
        "seed": 7,
    }
    assert build(section(width=3, seed=1, depth=5), seed=7, depth=2).given == {
        "width": 3,
        "depth": 5,
        "seed": 1,
    }
    assert build(section(width=3, seed=None), seed=7).given["seed"] is None
    assert build(section(width=[1, {"a": 2}], extra=4)).given == {
        "width": [1, {"a": 2}],
        "depth": 1,
        "seed": None,
        "extra": 4,
    }


def test_a_part_gets_plain_lists_and_mappings():
    given = build(section(width=[1, [2]], extra={"a": [1]})).given
    assert type(given["width"]) is list
    assert type(given["extra"]) is dict


def test_a_partial_part_waits_for_its_arguments():
    make = build(section(_partial_=True, depth=2), seed=7)
    assert make(width=3).given == {"width": 3, "depth": 2, "seed": 7}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (None, "part: no _target_ says which class or function this is for"),
        ("studyloom.models.MPL", r"part\._target_=studyloom\.models\.MPL: .*did you mean MLP\?"),
        (
            "no_such_package.Net",
            r"part\._target_=no_such_package\.Net: .*No module named 'no_such_package'",
        ),
        ("", r"part\._target_=: "),
        ("..x", r"part\._target_=\.\.x: "),
    ],
)
def test_a_target_that_is_not_there_is_named(target, words):
    cfg = section()
    if target is None:
        del cfg["_target_"]
    else:
        cfg["_target_"] = target
    with pytest.raises(ConfigError, match=words):
        build(cfg)


def test_the_words_of_a_constructor_are_those_of_the_user():
    cfg = OmegaConf.create({"part": {"_target_": "test_config.Broken"}})
    with pytest.raises(ValueError, match="expected 4") as caught:
        build(cfg.part)
    assert describe_error(caught.value) == "model.width is 3: expected 4"
    nested = section(width={"_target_": "test_config.Broken"})
    with pytest.raises(HydraException) as wrapped:
        build(nested)
    assert describe_error(wrapped.value) == "model.width is 3: expected 4"
    assert describe_error(KeyError("x")) == "KeyError: 'x'"
    assert describe_error(ValueError("a\n  b")) == "a b"
    assert describe_error(ValueError()) == "ValueError"


def test_a_trial_has_a_job_for_each_fold_and_seed_with_seeds_of_their_own():
    cfg, _ = compose(
        "objective.folds=3", "objective.seeds=2", "train.l1=0.5", "train.clip=2", "train.epochs=4"
    )
    folds = [(torch.arange(200) + k, torch.arange(5) + k) for k in range(3)]
    jobs = build_jobs(cfg, folds, seed=9)
    assert [int(job.train[0]) for job in jobs] == [0, 0, 1, 1, 2, 2]
    assert [int(job.valid[0]) for job in jobs] == [0, 0, 1, 1, 2, 2]
    assert len({job.seed for job in jobs}) == 6
    assert [job.seed for job in jobs] == [job.seed for job in build_jobs(cfg, folds, seed=9)]
    assert not {job.seed for job in jobs} & {job.seed for job in build_jobs(cfg, folds, seed=10)}
    assert {(job.l1, job.clip, job.epochs, job.batch_size) for job in jobs} == {(0.5, 2.0, 4, 64)}
    assert jobs[0].model(shape=(1, 4, 4), outputs=3)(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


@pytest.mark.parametrize("network", ["Net", "Regressor", "Fixed"])
def test_a_network_is_given_the_shape_and_the_outputs_by_the_names_it_has_for_them(network):
    section = OmegaConf.create({"model": {"_target_": f"{__name__}.{network}", "width": 5}}).model
    made = build_network(section, [2, 3], 4)
    assert made == {"Net": ((2, 3), 4, 5), "Regressor": ((2, 3), 4, 5), "Fixed": 5}[network]


def Net(shape, classes, width):
    return shape, classes, width


def Regressor(shape, outputs, width):
    return shape, outputs, width


def Fixed(width):
    return width


def test_a_loss_is_chosen_as_a_group():
    cfg, _ = compose("train.loss=mse")
    with pytest.raises(
        ConfigError, match=r"train\.loss: 'mse' is not set here; choose it with loss=mse"
    ):
        build_jobs(cfg, [(torch.arange(200), torch.arange(5))], seed=0)


# Files


def test_yaml_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "best.yaml"
    write_yaml(path, {"train": {"epochs": 3}, "name": "ä"}, "# trial 7\n")
    assert path.read_text() == "# trial 7\ntrain:\n  epochs: 3\nname: ä\n"
    assert OmegaConf.load(path) == {"train": {"epochs": 3}, "name": "ä"}

    def torn(self, mode):
        with open(self, mode) as file:
            file.write(b"# tr")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "open", torn)
    with pytest.raises(OSError, match="disk full"):
        write_yaml(path, {"train": {"epochs": 4}}, "# trial 8\n")
    monkeypatch.undo()
    assert path.read_text().startswith("# trial 7\ntrain:")


def test_two_writers_of_one_yaml_do_not_meet(tmp_path):
    path = tmp_path / "best.yaml"
    write_yaml(path, {"a": 1}, "")
    write_yaml(path, {"a": 2}, "")
    assert [p.name for p in tmp_path.iterdir()] == ["best.yaml"]


@pytest.fixture
def finished(command, tmp_path):
    command("study.name=x", "run_dir=run")
    return tmp_path / "run"


def test_a_run_says_where_its_study_is(finished, tmp_path):
    assert read_run(finished) == ("sqlite:///run/study.db", "x")
    (finished / "study.db").write_text("")
    assert read_run(finished) == (f"sqlite:///{finished}/study.db", "x")
    finished.rename(tmp_path / "moved")
    assert read_run(tmp_path / "moved") == (f"sqlite:///{tmp_path}/moved/study.db", "x")


def test_a_run_whose_url_is_in_the_environment_asks_for_it(command, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDYLOOM_STORAGE", SECRET)
    command("storage=postgres", "run_dir=run")
    assert read_run(tmp_path / "run") == (SECRET, "mnist")
    monkeypatch.delenv("STUDYLOOM_STORAGE")
    with pytest.raises(ConfigError, match="put the URL into STUDYLOOM_STORAGE"):
        read_run(tmp_path / "run")
    command(f"storage.url={SECRET}", "run_dir=other")
    monkeypatch.delenv("STUDYLOOM_STORAGE")
    with pytest.raises(ConfigError, match="put the URL into STUDYLOOM_STORAGE"):
        read_run(tmp_path / "other")


def test_a_run_with_a_server_of_its_own_has_it_below_its_folder_wherever_that_is(command, tmp_path):
    command("storage=embedded_postgres", "run_dir=run")
    (tmp_path / "run" / "study.db").touch()  # of a run before
    (tmp_path / "run").rename(tmp_path / "moved")
    assert read_run(tmp_path / "moved") == (
        f"embedded_postgres:///{tmp_path}/moved/postgres",
        "mnist",
    )


def test_a_url_is_read_from_a_file_that_its_owner_alone_may_read(command, tmp_path):
    file = tmp_path / "url"
    for content, mode, expected in (
        (SECRET, 0o644, "others may read .*url .mode 0644., and so its password; chmod 600 it"),
        (SECRET, 0o640, "mode 0640"),
        ("\n", 0o600, "url is empty"),
        (None, 0o600, "cannot be read: No such file"),
    ):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
            file.chmod(mode)
        cfg, _ = command("storage=postgres", f"storage.file={file}", "run_dir=run")
        with pytest.raises(ConfigError, match=f"storage.file: .*{expected}") as caught:
            storage_url(cfg)
        assert "hunter2" not in str(caught.value)
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    assert storage_url(cfg) == SECRET
    assert read_run(tmp_path / "run") == (SECRET, "mnist")
    assert "hunter2" not in "".join(
        path.read_text() for path in (tmp_path / "run" / ".hydra").iterdir()
    )


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_in_which_nothing_ran_is_named(tmp_path, there):
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    with pytest.raises(ConfigError, match=f"{folder}: no study has run there"):
        read_run(folder)


def test_the_options_of_a_group_are_its_files(composing):
    assert group_options("model") == ["cnn", "gru", "lstm", "mlp", "rnn", "transformer"]
    assert group_options("modle") == []


def test_any_config_takes_options_of_studyloom_and_its_own_come_first(tmp_path):
    assert Path(CONF) == GROUPS
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "cnn.yaml").write_text("_target_: mine.CNN\n")
    (tmp_path / "own.yaml").write_text(
        "defaults: [studyloom, model: mlp, optimizer: sgd, sampler: tpe, _self_]\n"
    )
    cfg, _ = compose(name="own", folder=tmp_path)
    assert cfg.optimizer["_target_"] == "torch.optim.SGD"
    assert cfg.model["_target_"] == "studyloom.models.MLP"
    assert group_options("model") == ["cnn", "gru", "lstm", "mlp", "rnn", "transformer"]
    assert compose("model=cnn", name="own", folder=tmp_path)[0].model["_target_"] == "mine.CNN"


def test_a_plain_network_of_another_package_is_searched_by_its_own_arguments(tmp_path):
    """As a user of Hugging Face or Lightning has one: it knows nothing of shape and outputs."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "foreign.yaml").write_text(
        "_target_: torchvision.models.VisionTransformer\nimage_size: 8\npatch_size: 4\nnum_layers: 1\nnum_heads: 2\n"
        "hidden_dim: 16\nmlp_dim: 8\nnum_classes: 10\n"
    )
    (tmp_path / "own.yaml").write_text(
        "defaults: [mnist, override /model: foreign, override /space: none, _self_]\n"
        "space: {model: {hidden_dim: {int: [8, 32], step: 8}, dropout: {float: [0, 0.5]}}}\nmodel: {dropout: 0.0}\n"
    )
    question = Question.ask(*compose(name="own", folder=tmp_path))
    split = toy_split()
    split = replace(split, inputs=split.inputs.repeat(1, 3, 2, 2))
    folds = toy_folds(split)
    validate(question, TrainingData(None, split, folds))
    point = question.space.walk(
        lambda parameter: {"model.hidden_dim": 8, "model.dropout": 0.25}[parameter.name]
    )
    (epoch,) = next(iter(Training(question.jobs(point, folds, 0), split)))
    assert math.isfinite(epoch.train_loss)
