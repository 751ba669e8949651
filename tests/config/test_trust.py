import os
import subprocess
import sys
import textwrap
from itertools import product
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from toys import compose

from studies import CONF
from studyloom.config.trust import check_targets, load_foreign
from studyloom.config.values import plain_sections, write_yaml
from studyloom.errors import ConfigError
from studyloom.question.question import SECTIONS

GROUPS = ("model", "optimizer", "scheduler", "loss", "data", "sampler", "pruner")
LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in Path(CONF, group).glob("*.yaml"))


def mistakes_of(config, *trusted) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_targets(config, trusted)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    return caught.value.mistakes


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A user's package, with what it defines and imports.

    Beside it lie a package whose name has the same beginning, and one that cannot be imported.
    """
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").write_text(
        textwrap.dedent("""
        import os, pickle
        from subprocess import Popen
        from mypackage._net import Net
        import mypackage.net
        class net: Net = Net  # hides the module of that name from Hydra, but not from an import
        def make(width): return Net()
        VALUE = 3
        """)
    )
    (tmp_path / "mypackage" / "_net.py").write_text("class Net:\n    def method(self): pass\n")
    (tmp_path / "mypackage" / "net.py").write_text("class Net: pass\n")
    (tmp_path / "mypackage2.py").write_text("class Net: pass\n")
    (tmp_path / "broken.py").write_text("raise OSError('no such device')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "mypackage"
    for name in ("mypackage", "mypackage._net", "mypackage.net", "mypackage2", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in GROUPS for option in options(group)]
)
def test_every_option_of_ours_is_trusted(group, option):
    cfg, _ = compose(f"{group}={option}", "space=none")
    check_targets(plain_sections(cfg, group))


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_a_whole_config_as_a_winner_has_it_is_trusted(name):
    cfg, _ = compose(name=name)
    check_targets(plain_sections(cfg, *(section for section in SECTIONS if section != "space")))


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Sequential",
        "torch.nn.modules.linear.Linear",
        "torch.nn.functional.cross_entropy",
        "torch.nn.init.xavier_uniform_",
        "torch.optim.lr_scheduler.StepLR",
        "torch.optim.adam.Adam",
        "optuna.samplers.NSGAIISampler",
    ],
)
def test_other_parts_of_torch_and_optuna_are_trusted(target):
    check_targets({"model": {"_target_": target, "_partial_": True}})


STRANGE = [
    "os.system",
    "posix.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "builtins.getattr",
    "importlib.import_module",
    "pathlib.Path.write_text",
    "torch.load",
    "torch.hub.load",
    "torch.nnx.Linear",
    "torch.nn",
    "torch.nn.modules",
    "torch.nn.modules.module",
    "torch.nn.modules.module.torch.load",
    "torch.nn.modules.module.OrderedDict",
    "torch.nn.modules.module.weakref.ref",
    "torch.nn.functional.importlib.import_module",
    "torch.nn.functional.handle_torch_function",
    "torch.nn.modules.module.register_module_forward_hook",
    # Python's import finds a module of that name, Hydra a function.
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.attention.register_flash_attention_impl",
    "torch.nn.attention._fa4.register_flash_attention_fa4",  # imports the module that it is given
    "torch.nn.Module.__class__",
    "torch.nn.Module.__init__.__globals__",
    "torch.nn.Module.apply",
    "torch.nn.Linear.forward",
    "torch.optim.optimizer.register_optimizer_step_pre_hook",
    "torch.optim.Optimizer.load_state_dict",
    "optuna.samplers._cmaes.pickle.loads",
    "optuna.load_study",
    "optuna.samplers.TPESampler.hyperopt_parameters",
    "studyloom.data.torch.load",
    "studyloom.data.os.system",
    "studyloom.data.Path",
    "studyloom.config.main.os.system",
    "studyloom.config.values.write_yaml",
    "studyloom.config.build.instantiate",
    "studyloom.training.checkpoint.Checkpoint",
    "studyloom.storage.connect",
    "studyloom.models.math.prod",
    "torch.nn:modules.module.torch.load",
    "torch.nn..Linear",
    ".torch.nn.Linear",
    "torch.nn.Linear\n",
    " torch.nn.Linear",
    "torch.nn.Lin ear",
    "torch.nn.NoSuchLayer",
    "torch.nn.no_such_module.Linear",
    "torch",
    "eval",
    "",
    "???",
]


@pytest.mark.parametrize("target", STRANGE)
def test_nothing_else_is(target):
    (mistake,) = mistakes_of({"model": {"_target_": target}})
    assert mistake.startswith(f"model._target_: {target} ")


@pytest.mark.parametrize("target", [None, 3, True, 0.5, b"os.system"])
def test_a_target_is_a_name(target):
    (mistake,) = mistakes_of({"model": {"_target_": target}})
    assert "is not the dotted name of a class or function" in mistake


@pytest.mark.parametrize("target", [["os.system"], {"_target_": "os.system"}])
def test_a_target_is_not_made_of_parts(target):
    assert "is not the dotted name" in mistakes_of({"model": {"_target_": target}})[0]


def poison(folder: Path) -> dict:
    return {"_target_": "os.system", "command": f"touch {folder / 'canary'}"}


PLACES = {
    "model": lambda bad: {"model": bad},
    "the top": lambda bad: bad,
    "model._args_[0]": lambda bad: {"model": LINEAR | {"_args_": [bad]}},
    "model.hidden[0][1]": lambda bad: {"model": LINEAR | {"hidden": [[1, bad]]}},
    "model.layers[0][0][0].act": lambda bad: {"model": LINEAR | {"layers": [[[{"act": bad}]]]}},
    "model.activation": lambda bad: {"model": LINEAR | {"_recursive_": False, "activation": bad}},
    "optimizer": lambda bad: {"optimizer": bad | {"_partial_": True}},
    "model._convert_": lambda bad: {"model": LINEAR | {"_convert_": bad}},
    "model._partial_": lambda bad: {"model": LINEAR | {"_partial_": bad}},
    "data.1": lambda bad: {"data": {1: bad}},
    "train.loss.a b.c": lambda bad: {"train": {"loss": {"a b": {"c": bad}}}},
}


@pytest.mark.parametrize(
    ("place", "wrap"), [*product(PLACES, ["plain", "nodes", "nodes in plain"])]
)
def test_a_target_is_found_wherever_it_is(place, wrap, tmp_path):
    config = PLACES[place](poison(tmp_path))
    if wrap == "nodes":
        config = OmegaConf.create(config)
    elif wrap == "nodes in plain":
        config = {"all": [OmegaConf.create(config)]}
    distrusted = [
        mistake
        for mistake in mistakes_of(config)
        if "os.system" in mistake and "trust=[os]" in mistake
    ]
    assert len(distrusted) == 1
    key = "_target_" if place == "the top" else f"{place}._target_"
    assert distrusted[0].startswith(f"all[0].{key}: " if wrap == "nodes in plain" else f"{key}: ")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("key", ["_Target_", "_TARGET_", " _target_", "_target_ "])
def test_a_target_in_another_spelling_is_a_mistake_too(key):
    (mistake,) = mistakes_of({"model": {key: "os.system"}})
    assert mistake == f"model.{key}: no such key; write _target_"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model": {"_target_": "${oc.env:HOME}"}}, "model._target_"),
        ({"model": {"_target_": "torch.nn.${layer}"}, "layer": "Linear"}, "model._target_"),
        ({"data": {"root": "${oc.env:HOME}"}}, "data.root"),
        ({"model": LINEAR | {"hidden": [1, ["${x}"]]}}, "model.hidden[1][0]"),
        ({"model": "${optimizer}", "optimizer": {"lr": 1}}, "model"),
        ({"model": {"${oc.env:HOME}": 1}}, "model.${oc.env:HOME}"),
        ({"train": {"epochs": r"\${x}"}}, "train.epochs"),
    ],
)
@pytest.mark.parametrize("make", [dict, OmegaConf.create])
def test_an_interpolation_is_a_mistake_and_never_resolved(config, key, make, monkeypatch):
    monkeypatch.setenv("HOME", "canary")
    (mistake,) = mistakes_of(make(config))
    assert mistake.startswith(f"{key}: ")
    assert "an interpolation" in mistake
    assert "canary" not in mistake


def test_a_resolver_is_not_called():
    called = []
    OmegaConf.register_new_resolver("test_trust", lambda: called.append(1), replace=True)
    try:
        mistakes_of(OmegaConf.create({"a": "${test_trust:}", "b": {"_target_": "${test_trust:}"}}))
    finally:
        OmegaConf.clear_resolver("test_trust")
    assert not called


@pytest.mark.parametrize("value", ["yes", 1, None, [True]])
def test_partial_is_true_or_false(value):
    (mistake,) = mistakes_of({"model": LINEAR | {"_partial_": value}})
    assert mistake.startswith("model._partial_ must be true or false; got ")
    check_targets({"model": LINEAR | {"_partial_": False}})


def test_all_mistakes_come_at_once_with_key_target_and_way_out():
    config = {
        "model": {"_target_": "torch.load", "f": "x.pt", "weights_only": False},
        "optimizer": {"_target_": "mine.Optimizer", "lr": "${lr}"},
    }
    assert mistakes_of(config) == [
        "model._target_: torch.load is not among the code that a configuration from elsewhere may "
        "name; if you trust its package with your machine, add 'trust=[torch]' to a study's "
        "command, or --trust torch to a studyloom command",
        "optimizer._target_: mine.Optimizer is not among the code that a configuration from "
        "elsewhere may name; if you trust its package with your machine, add 'trust=[mine]' to a "
        "study's command, or --trust mine to a studyloom command",
        "optimizer.lr: ${lr} is an interpolation; write the value itself",
    ]


def test_a_package_that_the_user_trusts_may_be_named(package):
    config = {"model": {"_target_": "mypackage.Net"}, "loss": {"_target_": "mypackage.make"}}
    assert len(mistakes_of(config)) == 2
    check_targets(config, [package])
    check_targets({"_target_": "mypackage.make"}, ["mypackage.make"])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("mypackage2.Net", "trust=[mypackage2]"),
        ("mypackage.os.system", "cannot be imported"),
        ("mypackage.pickle.loads", "cannot be imported"),
        ("mypackage.Popen", "is subprocess.Popen, which is not among the code"),
        ("mypackage.VALUE", "is not a class or function of a module"),
        ("mypackage.net.Net", "is not a class or function of a module"),
        ("mypackage.os", "is not a class or function of a module"),
        ("mypackage._net.Net", "is not a public name"),
        ("mypackage.Net.method", "cannot be imported"),
        ("mypackage.Nett", "has no attribute 'Nett'"),
        ("mypackage", "is not the dotted name"),
    ],
)
def test_a_trusted_package_is_not_a_way_to_what_it_imports(package, target, words):
    (mistake,) = mistakes_of({"model": {"_target_": target}}, package)
    assert words in mistake


def test_what_is_not_trusted_is_not_imported(package):
    mistakes_of({"model": {"_target_": "broken.Net"}})
    assert "broken" not in sys.modules
    (mistake,) = mistakes_of({"model": {"_target_": "broken.Net"}}, "broken")
    assert mistake == "model._target_: broken.Net cannot be imported: OSError: no such device"


@pytest.mark.parametrize("prefix", ["", ".", "mypack", "mypackage.", "*"])
def test_a_part_of_a_name_is_no_package(package, prefix):
    mistakes_of({"model": {"_target_": "mypackage.Net"}}, prefix)


def test_a_config_within_itself_is_refused():
    config: dict = {"model": {}}
    config["model"]["model"] = config
    assert mistakes_of(config) == ["the configuration is nested too deeply, or in itself"]


def test_a_good_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "winner.yaml"
    sections = {
        "model": {"_target_": "studyloom.models.MLP", "hidden": [16, 8]},
        "train": {"epochs": 3},
    }
    write_yaml(path, sections, "# mnist, trial 4\n")
    assert load_foreign(path) == sections


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "a configuration must be a mapping of sections"),
        ("3", "a configuration must be a mapping of sections"),
        ("a: [1", "cannot be read as YAML"),
        ("a: 1\na: 2", "cannot be read as YAML"),
        ("a: \xff", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.system ['touch canary']", "cannot be read as YAML"),
        ("a: !!python/name:os.system", "cannot be read as YAML"),
        ("a: &a [*a]", "has a YAML alias"),
        ("a: &a {b: 1}\nc: {<<: *a}", "has a YAML alias"),
        ("[" * 1000, "cannot be read as YAML"),
        (
            "model: {_target_: os.system, command: touch canary}",
            "model._target_: os.system is not among",
        ),
        (
            "model: {_target_: torch.load, f: x, weights_only: false}",
            "model._target_: torch.load is not among",
        ),
    ],
)
def test_a_bad_file_is_refused(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "winner.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=words):
        load_foreign(path)
    assert os.listdir() == ["winner.yaml"]


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_foreign(tmp_path / "winner.yaml")


def test_checking_needs_no_hydra():
    command = "import sys, studyloom.config.trust; sys.exit('hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
