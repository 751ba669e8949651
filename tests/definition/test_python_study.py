"""The definition of a call in Python: that of its YAML, with every error before trial 0."""

import inspect
import math
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
import yaml
from optuna.distributions import FloatDistribution
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import studyloom as sl
from studyloom.data.training_data import TrainingData
from studyloom.definition.python_study import read_call
from studyloom.space.language import parse_space
from studyloom.user_code.pickled import passing_objects, registered_object


class Net(nn.Sequential):
    def __init__(self, shape, outputs, width=8, dropout=0.0):
        layers = nn.Linear(math.prod(shape), width), nn.Dropout(dropout)
        super().__init__(nn.Flatten(), *layers, nn.Linear(width, outputs))


def loop(config, run):
    return config.params.lr


def objective(trial):
    return trial.suggest_float("x", 0, 1)


class Points(Dataset):
    def __init__(self, count):
        self.targets = [n % 2 for n in range(count)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.tensor([float(index), 1.0]), self.targets[index]


class Numbers(IterableDataset):
    """A stream of a known length."""

    def __len__(self):
        return 8

    def __iter__(self):
        return iter(torch.arange(8.0))


def pair(count, dtype=torch.long):
    inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(count))
    return inputs, (inputs.sum(1) > 0).to(dtype)


SPACE = {
    "model": {"width": sl.Int(4, 64, log=True, default=16)},
    "optimizer": {"lr": sl.Float(1e-3, 0.1, log=True)},
}
FLOAT = FloatDistribution(0, 1)
DEFAULT_LIST = sl.List(sl.Int(1, 3), 2, default=5)
SPARSE = torch.eye(9).to_sparse()
SMALL = {"trials": 2, "quiet": True, "workers": 1, "sampler": "random"}
SMALL |= {"train": {"epochs": 1, "batch_size": 8}}


def test_ranges_are_mappings_as_in_yaml():
    assert sl.Int(1, 9, step=2) == yaml.safe_load("{int: [1, 9], step: 2}")
    assert sl.Float(0.1, 1, log=True, default=0.5) == yaml.safe_load(
        "{float: [0.1, 1], log: true, default: 0.5}"
    )
    assert sl.Choice([16, 32]) == sl.Choice(16, 32) == yaml.safe_load("{choice: [16, 32]}")
    assert sl.Choice("relu", 3, True) == yaml.safe_load("{choice: [relu, 3, true]}")
    layers = sl.List(sl.Int(16, 512), length=sl.Int(1, 3))
    assert layers == yaml.safe_load("{list: {int: [16, 512]}, length: {int: [1, 3]}}")
    with pytest.raises(sl.ConfigError, match=r"space\.lr\.float"):
        parse_space({"lr": sl.Float(1, 0)}, lambda group: [])


@pytest.mark.parametrize("name", ["search", "run", "open_study", "load_winner", "Int", "List"])
def test_public_functions_have_typed_parameters(name):
    signature = inspect.signature(getattr(sl, name))
    assert all(each.annotation is not each.empty for each in signature.parameters.values())
    assert getattr(sl, name).__doc__


def test_python_and_its_yaml_have_one_definition_and_the_same_trials(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = {**SMALL, "winner": {"enabled": False}}
    with sl.search(Net, space=SPACE, data=(pair(60), pair(20)), name="mine", **few) as study:
        written = study.to_yaml("conf")
        identity = study._stored.definition()
        with sl.run(written, ["run_dir=again"], quiet=True) as again:
            assert again._stored.definition() == identity
            columns = ("number", "value", "params.model.width", "params.optimizer.lr")
            rows = (
                [[row[name] for name in columns] for row in s.to_dicts()] for s in (study, again)
            )
            first, second = rows
            assert first == second
            assert first[0][2] == 16, "the start is trial 0"
            monkeypatch.chdir("/")
            assert again.best.number in (0, 1), "from any folder"


def test_a_single_data_set_is_divided_by_the_seed_with_a_note(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = read_call(Net, SPACE, pair(100), {"study.seed": 3})
    assert study.notes == [
        "data: 20 of 100 examples, drawn by study.seed=3, are the test set",
        "data: 16 training examples are the validation set (data.validation)",
    ]
    sizes = {path.name: len(array) for path, array in study.arrays.items()}
    assert (sizes["train_inputs.npy"], sizes["test_targets.npy"]) == (80, 20)
    same, other = (read_call(Net, SPACE, pair(100), {"study.seed": seed}) for seed in (3, 4))
    assert [*same.arrays] == [*study.arrays] != [*other.arrays]
    assert (
        read_call(Net, SPACE, TensorDataset(*pair(100)), {"study.seed": 3}).sections
        == study.sections
    )


def test_targets_that_are_numbers_choose_the_loss_mse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sections = read_call(Net, {}, (pair(60, torch.float), pair(20, torch.float)), {}).sections
    assert {"loss": "mse"} in sections["defaults"]
    assert sections["objective"]["metric"] == "rmse"
    few = {**SMALL, "winner": {"top": 1, "seeds": 1}}
    with sl.search(Net, space=SPACE, data=(Points(40), Points(20)), name="sets", **few) as study:
        predicted = study.winner.predict(np.zeros((3, 2), np.float32))
        assert predicted.classes.shape == (3,)
        with pytest.raises(
            sl.ConfigError, match=r"cannot hold the Datasets, .* data\.train\._target_"
        ):
            study.to_yaml("conf")


class Halved(TensorDataset):
    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        return inputs / 2, target


def test_a_dataset_that_changes_its_tensors_is_read_by_item(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    halved = Halved(*pair(60))
    for data in ((halved, Halved(*pair(20))), halved):
        section = read_call(Net, {}, data, {}).sections["data"]
        assert section["_target_"] == "studyloom.data.Datasets"
        inputs, _ = registered_object(section["train"]["name"])[0]
        assert inputs.tolist() in (pair(60)[0] / 2).tolist()


def test_tensors_with_a_validation_set_hold_out_no_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = (pair(count, torch.float) for count in (60, 20, 9))
    *parts, valid = ((inputs, targets[:, None]) for inputs, targets in pairs)
    study = read_call(Net, {}, parts, {"data.valid": valid})
    data = study.sections["data"]
    assert data.keys() == {"_target_", "train", "valid", "test"}
    assert (data["_target_"], study.notes) == ("studyloom.data.Datasets", [])
    assert {"loss": "mse"} in study.sections["defaults"]
    data = read_call(Net, {}, parts, {"data.num_workers": 1, "data.validation": 7}).sections["data"]
    assert (data["_target_"], data["validation"]) == ("studyloom.data.Datasets", 7)
    few = {**SMALL, "winner": {"enabled": False}, "data.valid": valid}
    with sl.search(Net, space=SPACE, data=parts, name="own", **few) as study:
        assert len(study.to_dicts()) == 2


def test_the_first_option_of_the_space_replaces_a_default_it_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for names, options in ((("sgd", "adam"), [{"optimizer": "sgd"}]), (("sgd", "adamw"), [])):
        space = {"optimizer": {name: {"lr": sl.Float(0.1, 1)} for name in names}}
        listed = read_call(Net, space, "mnist5k", {}).sections["defaults"]
        assert listed == ["studyloom", {"data": "mnist5k"}, *options]


def of_classes(classes, width=8):
    return nn.Linear(2, classes)


def of_own_sizes(n_in, n_out, width=8):
    return nn.Linear(n_in, n_out)


def with_model(config, run, model=None):
    return 0


def test_a_function_is_a_network_by_its_parameters_or_a_section_model():
    width = {"model": {"width": sl.Int(4, 8)}}
    for subject, settings in ((of_classes, {}), (of_own_sizes, {"model": {"n_in": 2, "n_out": 2}})):
        sections = read_call(subject, width, pair(60), settings).sections
        assert sections["model"]["_target_"] == f"test_python_study.{subject.__name__}"
        assert "objective" not in sections
    for subject in (loop, with_model, objective):
        choice = {"model": sl.Choice("mlp", "cnn")}
        sections = read_call(subject, choice, None, {"objective.direction": "minimize"}).sections
        assert "model" not in sections
        assert sections["space"]["params"] == choice
    with pytest.raises(sl.ConfigError, match=r"returns a network takes shape, outputs or"):
        read_call(of_own_sizes, {"width": sl.Int(4, 8)}, pair(60), {})


def test_an_optuna_objective_is_minimized_unless_it_names_a_direction():
    section = read_call(objective, {}, None, {}).sections["objective"]
    assert (section["metric"], section["direction"]) == ("value", "minimize")
    with pytest.raises(sl.ConfigError, match="maximize or minimize must name"):
        read_call(loop, {}, None, {})


def test_a_run_directory_with_a_zero_byte_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sl.ConfigError, match=r"a␀b: must not .* a zero byte; name another"):
        sl.search(loop, minimize="loss", run_dir="a\0b")
    assert list(tmp_path.iterdir()) == []


def test_all_errors_of_a_call_are_reported_together_and_leave_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Inner(Net):
        pass

    generator = (pair(3) for _ in range(2))
    for call, words in {
        lambda: sl.search(Inner, data=pair(9)): ["Inner: worker processes cannot import it"],
        lambda: sl.search(3, minimize="x"): ["got int"],
        lambda: sl.search(loop, minimize="x", name="../elsewhere"): ["must be a folder name"],
        lambda: sl.search(Net, data=generator, trails=3): [
            r"trails: no such keyword.*did you mean trials\?",
            "data must be a pair.*got generator",
        ],
        lambda: sl.search(Net, data=pair(9), space={"width": sl.Int(4, 8)}): [
            r"space: width: .*did you mean space=\{'model': \{'width': …\}\}\?"
        ],
        lambda: sl.search(Net, data=None): ["data must be a pair"],
        lambda: sl.search(Net, data=(pair(9)[0], pair(8)[1])): ["9 inputs have 8 targets"],
        lambda: sl.search(Net, data=(pair(9), 3)): ["data must be a pair .*got tuple"],
        lambda: sl.search(Net, data=(Numbers(), Numbers())): [
            r"must be map-style .*got an IterableDataset, Numbers; .*studyloom\.Stream\("
        ],
        lambda: sl.search(Net, data=DataLoader(Numbers())): ["got an IterableDataset, Numbers"],
        lambda: sl.search(Net, data=DataLoader(Points(9))): ["got a DataLoader; .*loader.dataset"],
    }.items():
        with pytest.raises(sl.ConfigError) as caught:
            call()
        for pattern in words:
            assert re.search(pattern, str(caught.value)), caught.value
    with pytest.raises(sl.ConfigError, match=r"storage\.url: must not have a password"):
        sl.search(loop, minimize="loss", storage="postgresql://anna:secret@host/studies")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(sl.ConfigError, match=r"space\.params\.lr\.float"):
        sl.search(loop, minimize="loss", space={"lr": sl.Float(1, 0)})
    with pytest.raises(sl.ConfigError, match=r"study\.trails: no such key.*did you mean trials"):
        sl.search(loop, minimize="loss", **{"study.trails": 3})


def cases(*listed):
    return [pytest.param(*case, id=name) for name, *case in listed]


@pytest.mark.parametrize(
    ("subject", "wrong", "words"),
    cases(
        ("a list as space", loop, {"space": ["lr"]}, r"space must be a mapping.*got \['lr'\]"),
        ("a string as space", loop, {"space": "lr"}, "space must be a mapping of ranges"),
        ("a function as space", loop, {"space": objective}, "space must be a mapping of ranges"),
        ("None as key", loop, {"space": {None: sl.Int(1, 2)}}, "space: .*key type 'NoneType'"),
        ("a distribution", loop, {"space": {"lr": FLOAT}}, r"space\.params\.lr: .* Float, Choice"),
        ("a set as range", loop, {"space": {"lr": {1, 2}}}, r"space\.params\.lr: .* type set"),
        (
            "Choice(object())",
            loop,
            {"space": {"lr": sl.Choice(object())}},
            r"choice\[0\]: a config",
        ),
        ("a choice of classes", loop, {"space": {"lr": sl.Choice(Net)}}, r"choice\[0\]: a config"),
        ("a number as default", loop, {"space": {"lr": DEFAULT_LIST}}, "is not a list"),
        ("no text", loop, {"space": {"lr": sl.Float("0", 1)}}, "must be finite numbers; got '0'"),
        (
            "a file as run_dir",
            loop,
            {"run_dir": __file__},
            "run_dir: Not a directory: .*_python_study.py",
        ),
        ("a number to maximize", loop, {"maximize": 3}, "objective.metric must be .*got 3"),
        (
            "a function to maximize",
            loop,
            {"maximize": objective},
            "objective.metric must be a name",
        ),
        ("a pruner as sampler", loop, {"sampler": NopPruner()}, "sampler: .* type NopPruner; give"),
        ("another object", loop, {"pruner": object()}, "pruner: .*, or its class and arguments"),
        ("a path as storage", loop, {"storage": Path("x")}, "storage must be an option such as"),
        ("an object as storage", loop, {"storage": object()}, "storage must be an option such as"),
        (
            "text as winner",
            loop,
            {"winner": "no"},
            "winner must be a mapping of its keys; got 'no'",
        ),
        ("a number as section", loop, {"train": 3}, "train must be a mapping of its keys; got 3"),
        ("a list as section", loop, {"study": [1]}, "study must be a mapping of its keys"),
        ("None as section", loop, {"study": None}, "study must be a mapping of its keys; got None"),
        ("a set in a section", loop, {"params": {"x": {1}}}, r"params\.x: a config cannot hold"),
        ("half a reference", loop, {"params": {"x": "${y"}}, "params: no viable alternative"),
        ("a lambda", Net, {"loss": lambda *_: 0}, "loss: .*worker processes cannot import it"),
        ("a loss", Net, {"loss": nn.MSELoss()}, "loss: .* object of type MSELoss; give"),
        ("a tensor", Net, {"loss.weight": torch.ones(2)}, r"loss\.weight: .* of type Tensor"),
        ("no example", Net, {"data": pair(0)}, "data has too few examples, 0; give at least 3"),
        ("one example", Net, {"data": pair(1)}, "data has too few examples, 1; give at least 3"),
        ("an empty Dataset", Net, {"data": Points(0)}, "data has too few examples, 0"),
        (
            "one to train on",
            Net,
            {"data": (pair(1), pair(9))},
            "data.train has too few examples, 1",
        ),
        ("none to test by", Net, {"data": (pair(9), pair(0))}, "data.test has too few examples, 0"),
        ("sparse inputs", Net, {"data": (SPARSE, torch.ones(9))}, "must be dense.*sparse"),
        ("a Dataset of them", Net, {"data": TensorDataset(SPARSE, torch.ones(9))}, "must be dense"),
        ("0-d tensors", Net, {"data": (torch.ones(()),) * 2}, r"a row for each; got .* shape \(\)"),
        ("0-d targets", Net, {"data": (torch.ones(9, 2), torch.ones(()))}, "a row for each"),
        ("complex inputs", Net, {"data": (torch.ones(9, 2) * 1j, torch.ones(9))}, "complex"),
    ),
)
def test_an_argument_of_a_wrong_type_is_one_error(subject, wrong, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objective = {} if "maximize" in wrong else {"minimize": "loss"}
    others = {"data": pair(9)} if subject is Net else objective
    with pytest.raises(sl.ConfigError) as caught:
        sl.search(subject, **others | wrong)
    assert re.search(words, str(caught.value)), caught.value


def test_all_arguments_of_wrong_types_are_reported_together():
    with pytest.raises(sl.ConfigError) as caught:
        sl.search(Net, data=pair(1), loss=nn.MSELoss(), train=3, space=["lr"], epochs=3)
    starts = ("loss: ", "train must", "space must", "epochs: no such keyword", "data has too few")
    assert len(caught.value.errors) == len(starts)
    assert all(any(m.startswith(s) for m in caught.value.errors) for s in starts)
    assert "did you mean train={'epochs': …}?" in str(caught.value)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"width": sl.Int(4, 8)}, "space: width: .* did you mean space={'model': {'width': …}}?"),
        (
            {"widht": sl.Int(4, 8), "dropout": sl.Float(0, 0.5), "lr": sl.Float(1e-4, 0.1)},
            "space={'model': {'width': …, 'dropout': …}, 'optimizer': {'lr': …}}?",
        ),
        (
            {"batch_size": sl.Choice(8, 16), "optimizer": {"lr": sl.Float(1e-4, 0.1)}},
            "space: batch_size: .* did you mean space={'train': {'batch_size': …}}?",
        ),
        ({"depth": sl.Int(1, 3)}, "did you mean space={'model': {'depth': …}}?"),
    ],
    ids=["model", "several", "train", "unknown"],
)
def test_a_flat_space_of_a_network_is_refused_with_the_nested_one(space, words):
    with pytest.raises(sl.ConfigError) as caught:
        sl.search(Net, data=pair(9), space=space)
    assert len(caught.value.errors) == 1
    assert all(each in str(caught.value) for each in words.split(".*")), caught.value


def measured(config, run, part):
    return {"loss": 0.0}


def error(outputs, targets):
    return float((outputs.argmax(1) != targets).float().mean())


def test_a_config_holds_classes_by_name_and_plain_numbers():
    def sections(subject=Net, **settings):
        return read_call(subject, {}, "mnist5k", settings).sections

    waiting = {"_partial_": True}
    named = sections(optimizer=torch.optim.SGD)
    assert named["optimizer"] == {"_target_": "torch.optim.sgd.SGD"} | waiting
    assert {"optimizer": None} in named["defaults"], "nothing of AdamW"
    assert sections(loss=nn.L1Loss)["loss"] == {"_target_": "torch.nn.modules.loss.L1Loss"}
    of_name = sections(loss={"_target_": error, "k": 1})["loss"]
    assert of_name == {"_target_": "test_python_study.error", "k": 1} | waiting
    test = {"_target_": "test_python_study.measured"} | waiting
    for setting in ({"objective": {"test": measured}}, {"objective.test": measured}):
        objective = {"objective.direction": "minimize"}
        assert sections(loop, **setting, **objective)["objective"]["test"] == test
    numbers = sections(train={"l1": np.float64(1)})
    assert numbers["train"] == {"l1": 1.0}
    assert type(numbers["train"]["l1"]) is float


def test_a_network_trains_with_classes_functions_and_datasets_of_a_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = {"optimizer": torch.optim.SGD, "loss": nn.functional.cross_entropy}
    parts |= {"data.evaluate": TensorDataset(*pair(40)), "sampler": RandomSampler}
    parts |= {"objective": {"metric": error, "direction": "minimize"}, "winner": False}
    space = {"model": {"width": sl.Choice([np.int64(4), np.int64(8)], default=8)}}
    with sl.search(Net, space=space, data=(pair(40), pair(9)), **SMALL | parts) as study:
        config = study.best.config
        assert config["optimizer"]["_target_"] == "torch.optim.sgd.SGD"
        assert config["objective"]["metric"]["_target_"] == "test_python_study.error"
        assert study.winner is None
        assert study.baseline.params == {"model.width": 8}


def test_objects_that_no_worker_could_import_are_refused_before_trial_0(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    locked = Points(40)
    locked.lock = threading.Lock()
    with pytest.raises(sl.ConfigError, match=r"data\.train: cannot be given to worker processes"):
        sl.search(Net, data=(locked, Points(20)), name="sets", **SMALL | {"workers": 2})
    assert not (tmp_path / "runs" / "sets" / "study.db").exists()
    read_call(Net, {}, (pair(40), pair(9)), {})
    with passing_objects(["studyloom.user_code.pickled.registered_object"], {}, ()):
        pass  # the next search passes its own objects on, and not that lock


def test_a_primary_config_holds_only_what_differs_from_the_defaults(tmp_path):
    """A baseline is a start, a default of the target, or the middle."""
    (tmp_path / "mine.yaml").write_text(
        """\
defaults: [studyloom, data: mnist5k]
study: {name: mine}
model: {_target_: test_python_study.Net}
space:
  model: {width: {int: [4, 64], default: 5}, dropout: {float: [0.0, 0.5]}}
  optimizer: {eps: {float: [1.0e-9, 1.0e-4], log: true}}
"""
    )
    start = {"model.width": 5, "model.dropout": 0.0, "optimizer.eps": 1e-8}
    assert toys.ask(name="mine", folder=tmp_path).baseline.params == start
    typed = toys.ask("+model.width=7", name="mine", folder=tmp_path).baseline.params
    assert typed == start | {"model.width": 7}
    (tmp_path / "loop.yaml").write_text(
        """\
defaults: [studyloom]
study: {name: mine}
objective: {_target_: test_python_study.loop, metric: loss, direction: minimize}
params: {lr: 0.5}
space: {params: {lr: {float: [0, 1]}, rl: {float: [0, 1]}, depth: {int: [1, 3], default: 2}}}
"""
    )
    definition = toys.ask(name="loop", folder=tmp_path)
    with pytest.raises(sl.ConfigError, match=r"params\.rl: no such key") as caught:
        toys.validate_search(definition, TrainingData())
    assert len(caught.value.errors) == 1
    assert "loss" not in definition.composer.choices, "a loop has no groups of networks"
