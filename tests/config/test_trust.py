"""Configs from elsewhere are data: which code they may name, and what they may reach."""

import os
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from toys import compose

from studies import CONF
from studyloom.config import trust
from studyloom.config.build import build, find_target
from studyloom.config.compose import Composer
from studyloom.config.schema import SCHEMA
from studyloom.config.study_config import StudyConfig
from studyloom.config.trust import (
    check_targets,
    find_content_errors,
    packages_to_trust,
    read_yaml,
)
from studyloom.config.values import plain_sections
from studyloom.definition.definition import SECTIONS
from studyloom.errors import ConfigError
from studyloom.files import mark_trusted

GROUPS = ("model", "optimizer", "scheduler", "loss", "data", "sampler", "pruner")
LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1}


def errors_of(config, *trusted) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_targets(config, trusted)
    return caught.value.errors


# Which code a config may name


def test_the_targets_of_built_in_configs_are_trusted():
    for group in GROUPS:
        for path in sorted(Path(CONF, group).glob("*.yaml")):
            option = OmegaConf.to_container(OmegaConf.load(path))
            assert packages_to_trust({group: option}) == []
    cfg, _ = compose(name="mnist")
    check_targets(plain_sections(cfg, *(section for section in SECTIONS if section != "space")))


TRUSTED = [
    "torch.nn.Sequential",
    "torch.nn.modules.linear.Linear",
    "torch.nn.functional.cross_entropy",
    "torch.nn.init.xavier_uniform_",
    "torch.optim.lr_scheduler.StepLR",
    "torch.optim.adam.Adam",
    "optuna.samplers.NSGAIISampler",
]
STRANGE = [
    *("os.system", "pathlib.Path.write_text", "torch.load", "torch.nnx.Linear", "torch.nn", ""),
    "torch.nn.modules.module.torch.load",
    "torch.nn.functional.importlib.import_module",
    "torch.nn.modules.module.register_module_forward_hook",
    "torch.nn.Module.__init__.__globals__",
    "torch.nn.Module.apply",
    "optuna.samplers._cmaes.pickle.loads",
    "studyloom.data.os.system",
    "studyloom.data.Path",
    "studyloom.config.values.as_yaml",
    "studyloom.extras.slurm.Slurm",
    *("torch.nn:modules.module.torch.load", "torch.nn..Linear", " torch.nn.Linear"),
    *("torch.nn.NoSuchLayer", None, 3, ["os.system"], {"_target_": "os.system"}),
]


def test_only_listed_parts_of_torch_and_optuna_are_trusted():
    for target in TRUSTED:
        check_targets({"model": {"_target_": target, "_partial_": True}})
    for target in STRANGE:
        errors = errors_of({"model": {"_target_": target}})
        assert errors[0].startswith(f"model._target_: {target} "), target


def test_a_target_is_found_at_any_depth(tmp_path):
    bad = {"_target_": "os.system", "command": f"touch {tmp_path / 'canary'}"}
    places = {
        "model": {"model": bad},
        "model._args_[0]": {"model": LINEAR | {"_args_": [bad]}},
        "model.layers[0][0].act": {"model": LINEAR | {"layers": [[{"act": bad}]]}},
        "model.activation": {"model": LINEAR | {"_recursive_": False, "activation": bad}},
        "data.1": {"data": {1: bad}},
        "train.loss.a b.c": {"train": {"loss": {"a b": {"c": bad}}}},
    }
    for place, config in places.items():
        for wrapped in (config, OmegaConf.create(config)):
            (mistake,) = errors_of(wrapped)
            assert mistake.startswith(f"{place}._target_: os.system is not among")
            assert "trust=[os]" in mistake
    (mistake,) = errors_of({"all": [OmegaConf.create(bad)]})
    assert mistake.startswith("all[0]._target_: ")
    assert list(tmp_path.iterdir()) == []


def test_an_interpolation_is_an_error_and_is_not_resolved(monkeypatch):
    called = []
    OmegaConf.register_new_resolver("test_trust", lambda: called.append(1), replace=True)
    cases = {
        "model._target_": {"model": {"_target_": "torch.nn.${layer}"}, "layer": "Linear"},
        "data.root": {"data": {"root": "${test_trust:}"}},
        "model.hidden[1][0]": {"model": LINEAR | {"hidden": [1, ["${x}"]]}},
        "model.${test_trust:}": {"model": {"${test_trust:}": 1}},
    }
    try:
        for key, config in cases.items():
            for made in (config, OmegaConf.create(config)):
                (mistake,) = errors_of(made)
                assert mistake.startswith(f"{key}: ")
                assert "an interpolation" in mistake
    finally:
        OmegaConf.clear_resolver("test_trust")
    assert not called


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A user's package, one whose name has the same beginning, and one that raises."""
    (tmp_path / "mypackage.py").write_text(
        "import os, pickle\nfrom subprocess import Popen\n"
        "class Net: pass\ndef make(): pass\nV = 3\n"
    )
    (tmp_path / "mypackage2.py").write_text("class Net: pass\n")
    (tmp_path / "broken.py").write_text("raise OSError('no such device')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "mypackage"
    for name in ("mypackage", "mypackage2", "broken"):
        sys.modules.pop(name, None)


def test_trust_in_a_package_does_not_extend_to_what_it_imports(package):
    config = {"model": {"_target_": "mypackage.Net"}, "loss": {"_target_": "mypackage.make"}}
    assert len(errors_of(config)) == 2
    assert packages_to_trust(config) == ["mypackage"]
    check_targets(config, [package])
    check_targets({"_target_": "mypackage.make"}, ["mypackage.make"])
    for target, words in {
        "mypackage2.Net": "trust=[mypackage2]",
        "mypackage.os.system": "is posix.system, which",
        "mypackage.pickle.loads": "is _pickle.loads, which",
        "mypackage.Popen": "is subprocess.Popen, which is not among the code",
        "mypackage.V": "is not a class or function of a module",
        "mypackage.Nett": "has no attribute 'Nett'",
    }.items():
        (mistake,) = errors_of({"model": {"_target_": target}}, package)
        assert words in mistake
    for prefix in ("", ".", "mypack", "mypackage."):
        errors_of({"model": {"_target_": "mypackage.Net"}}, prefix)


def test_an_untrusted_target_is_not_imported(package):
    errors_of({"model": {"_target_": "broken.Net"}})
    assert "broken" not in sys.modules
    (mistake,) = errors_of({"model": {"_target_": "broken.Net"}}, "broken")
    assert mistake == "model._target_: broken.Net cannot be imported: OSError: no such device"


def test_yaml_of_a_file_is_read_as_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "winner.yaml"
    path.write_text("model: {_target_: studyloom.models.MLP, hidden: [16, 8]}\n")
    assert read_yaml(path).model.hidden == [16, 8]
    for text, words in {
        "[1, 2]": "a configuration must be a mapping of sections",
        "a: [1": "cannot be read as YAML",
        "a: \xff": "cannot be read as YAML",
        "a: !!python/object/apply:os.mkdir [canary]": "cannot be read as YAML",
        "model: {_target_: os.mkdir, path: canary}": "model._target_: os.mkdir is not among",
    }.items():
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=words):
            check_targets(read_yaml(path))
    assert os.listdir() == ["winner.yaml"]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in pairwise("abcdefghij")),
        "a: [" + "1, " * 30_000 + "]",
        "a: " + "x" * 256_000,
    ],
    ids=["aliases", "values", "bytes"],
)
def test_only_a_trusted_file_may_be_large(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"an alias, or more than|at most 256 KB"):
        read_yaml(path)
    if "[" not in text:  # of values and aliases OmegaConf itself has limits, from 2.4 on
        assert read_yaml(path, trusted=True).a


def test_an_untrusted_file_must_be_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("fifo", "device"):
        with pytest.raises(ConfigError, match=f"{name}: .* not a regular file"):
            read_yaml(tmp_path / name)


# Folders of configs that attack whoever composes them


SECRET = "canary-of-the-environment"
# What each attack would leave behind: files below the folder OUT, or SECRET in what is written.
TOUCH = (
    "{version: 1, handlers: {h: {'()': os.mkdir, path: 'OUT/made'}}, "
    "root: {level: INFO, handlers: [h]}}"
)
PRIMARY = "defaults: [mnist, _self_]\n"

# name: the files of the folder; `evil` is the primary config.
ATTACKS = {
    "job_logging with a factory": {"evil": f"{PRIMARY}hydra: {{job_logging: {TOUCH}}}"},
    "the folder of Hydra's files": {"evil": f"{PRIMARY}hydra: {{output_subdir: OUT/sub}}"},
    "a callback from a second file": {
        "evil": "defaults: [mnist, more, _self_]\n",
        "more": "hydra: {callbacks: {c: {_target_: os.mkdir, path: OUT/made}}}\n",
    },
    "a group of Hydra from a second file": {
        "evil": "defaults: [mnist, _self_, override hydra/job_logging: bad]\n",
        "hydra/job_logging/bad": TOUCH,
    },
    "Hydra's own config, replaced": {
        "evil": PRIMARY,
        "hydra/config": "run: {dir: OUT/run}\noutput_subdir: x\nmode: RUN\n",
    },
    "a header that says where it goes": {
        "evil": "defaults: [mnist, model/bad, _self_]\n",
        "model/bad": f"# @package hydra.job_logging\n{TOUCH}",
    },
    "a package in the defaults list": {
        "evil": "defaults: [mnist, model/bad@hydra.job_logging, _self_]\n",
        "model/bad": TOUCH,
    },
    "the environment in a second file": {
        "evil": "defaults: [mnist, more, _self_]\n",
        "more": "params: {leak: '${oc.env:SECRET}'}\n",
    },
    "the environment in a name of the defaults": {
        "evil": "defaults: [mnist, _self_, {model: '${oc.env:SECRET}'}]\n"
    },
    "the storage in a name": {"evil": f"{PRIMARY}params: {{leak: '${{storage.url}}'}}"},
    "an absolute path": {"evil": "defaults: [mnist, OUT/x, _self_]\n"},
    "a parent path": {"evil": "defaults: [mnist, ../up, _self_]\n", "../up": "params: {a: 1}\n"},
    "a tag": {"evil": f"{PRIMARY}params: !!python/object/apply:os.mkdir [OUT/made]\n"},
    "trust in itself": {"evil": f"{PRIMARY}trust: [os]\n"},
    "code in a second file": {
        "evil": "defaults: [mnist, more, _self_]\n",
        "more": "scheduler: {_target_: os.mkdir, path: OUT/made}\n",
    },
    "a space over a path": {
        "evil": f"{PRIMARY}space: {{data: {{root: {{choice: [OUT, OUT/b]}}}}}}"
    },
    "a section of another section": {
        "evil": f"{PRIMARY}params: {{from: OUT/study, name: x}}\nstudy: ${{params}}\n"
    },
}


@pytest.fixture
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture
def foreign(tmp_path_factory, out):
    """Writes a folder of somebody else's."""

    def write(files):
        folder = tmp_path_factory.mktemp("theirs") / "conf"
        for name, text in files.items():
            path = folder / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).replace("OUT", str(out)))
        return folder

    return write


def test_an_attack_is_refused_before_a_config_is_composed(
    command, capsys, tmp_path, foreign, out, monkeypatch
):
    monkeypatch.setenv("SECRET", SECRET)
    for attack, files in ATTACKS.items():
        named = ("--config-dir", str(foreign(files)), "--config-name", "evil")
        assert command(*named) == 2, attack
        printed = capsys.readouterr()
        assert "error: " in printed.err, attack
        assert SECRET not in printed.err + printed.out, attack
        assert [*out.iterdir(), *tmp_path.iterdir()] == [], attack


def composed(command, folder, *overrides):
    ended = command("--config-dir", str(folder), "--config-name", "theirs", *overrides)
    assert not isinstance(ended, int), ended
    return ended[0]


ALLOWED = {
    "as winner.yaml is": {
        "theirs": """
            defaults: [mnist, override /model: cnn, override /storage: sqlite,
                       override /launcher: local, override /space: none, _self_]
            study: {name: mnist-winner, seed: 0, trials: 1, baseline: true}
            data: {_target_: studyloom.data.Embedded, validation: 800}
            model: {_target_: studyloom.models.CNN, channels: 32}
            train: {epochs: 6, batch_size: 64}
            objective: {folds: 1, metric: accuracy, direction: null, constraints: null}
            winner: {rule: null}
        """
    },
    "a second file and options of its own": {
        "theirs": "defaults: [mnist, more, _self_, override model: wide]\n",
        "more": "train: {epochs: 2}\n",
        "model/wide": "defaults: [mlp, _self_]\nhidden: [512]\n",
    },
    "values of itself": {
        "theirs": "defaults: [mnist, _self_]\nparams: {n: '${train.epochs}', at: '${run_dir}/x'}\n"
    },
    "data that comes with the package": {
        "theirs": "defaults: [mnist, override data: breast_cancer, _self_]\n"
        "data: {path: 'studyloom:breast_cancer.csv', test_size: 100, root: null}\n"
    },
    "a global header": {
        "theirs": "defaults: [mnist, model/set, _self_]\n",
        "model/set": "# @package _global_\ntrain: {epochs: 2}\n",
    },
    "a space over what it may set": {
        "theirs": "defaults: [mnist, _self_]\nspace: {model: {mlp: {dropout: {float: [0, 0.5]}}}, "
        "train: {batch_size: {choice: [32, 64]}}, where: [train.batch_size > 32]}\n"
    },
}


def test_an_untrusted_config_that_stays_within_the_study_is_composed(command, foreign):
    for files in ALLOWED.values():
        OmegaConf.to_container(composed(command, foreign(files), "run_dir=run"), resolve=True)


REFUSED = {
    "storage": ("storage.url", "sqlite:///OUT/x.db"),
    "study.warm_start": ("study.warm_start", "OUT/study"),
    "data.root": ("data.root", "OUT"),
    "launcher": ("launcher.lines", ["module load x"]),
}


def test_settings_outside_the_study_need_a_trusted_folder(command, foreign, capsys, out):
    text = "defaults: [mnist, override launcher: slurm, override data: mnist, _self_]\n"
    for name, (key, value) in REFUSED.items():
        section = OmegaConf.create()
        OmegaConf.update(section, key, value)
        folder = foreign({"theirs": text + OmegaConf.to_yaml(section)})
        for trusted in ("", name, key, "studyloom"):
            named = ("--config-dir", str(folder), "--config-name", "theirs", f"trust=[{trusted}]")
            assert command(*named) == 2
            words = capsys.readouterr().err
            assert words.startswith(
                f"error: {folder}/theirs.yaml: {name} reaches outside the study"
            )
            assert "copy it next to your own configs" in words
            assert "--trust-config" in words
        mark_trusted(folder)  # as --trust-config does
        cfg = composed(command, folder)
        assert str(OmegaConf.select(cfg, key)).replace(str(out), "OUT") == str(value)


def test_an_untrusted_objective_that_runs_a_command_is_refused(command, foreign, capsys):
    target = "studyloom.extras.integrations.Command"
    text = f"objective: {{_target_: {target}, run: touch OUT/x, value: (.)}}"
    folder = foreign({"theirs": f"defaults: [mnist, _self_]\n{text}"})
    named = (
        *("--config-dir", str(folder), "--config-name", "theirs"),
        "objective.direction=minimize",
    )
    for trusted in ("", "studyloom.extras.integrations", "studyloom", "objective", "objective.run"):
        assert command(*named, f"trust=[{trusted}]") == 2
        told = capsys.readouterr().err
        assert "theirs.yaml: objective.run reaches outside the study" in told
    mark_trusted(folder)
    cfg, _ = command(*named, task=lambda cfg: find_target(cfg.objective, "objective"))
    assert cfg.objective["_target_"] == target


def test_an_integration_is_trusted_by_the_package_of_all():
    config = {"objective": {"_target_": "studyloom.extras.integrations.Command"}}
    packages = packages_to_trust(config)
    assert packages == ["studyloom.extras.integrations"]
    check_targets(config, packages)


def test_all_errors_of_an_untrusted_file_come_at_once(command, foreign, capsys):
    text = (
        "defaults: [mnist, hydra/x, _self_]\nhydra: {run: {dir: x}}\nrun_dir: x\nmodle: {a: 1}\n"
        "model: {_target_: os.system, command: '${oc.env:HOME}'}\n"
    )
    folder = foreign({"theirs": text})
    named = ("--config-dir", str(folder), "--config-name", "theirs")
    for agreed in ("[os]", "[hydra,trust]"):
        assert command(*named, f"trust={agreed}") == 2
        lines = capsys.readouterr().err.replace(f"error: {folder}/theirs.yaml: ", "").splitlines()
        assert (
            "defaults: hydra/x must neither set options of Hydra nor move an option with @" in lines
        )
        assert "hydra: must not be set by an untrusted config" in lines
        assert any(line.startswith("run_dir reaches out") for line in lines)
        assert any(line.endswith("did you mean model?") for line in lines)
        assert any(line.startswith("model.command: ${oc.env:HOME} must not") for line in lines)


def test_an_option_that_only_a_trial_chooses_is_checked_too(command, foreign):
    folder = foreign(
        {
            "theirs": "defaults: [mnist, _self_]\nspace: {model: {mlp: {}, bad: {}}}\n",
            "model/bad": "_target_: os.mkdir\npath: OUT/made\n",
        }
    )

    def choose(cfg):
        with pytest.raises(ConfigError, match=r"model\._target_: os\.mkdir is not among the code"):
            Composer.from_hydra().compose({"model": "bad"})

    command("--config-dir", str(folder), "--config-name", "theirs", task=choose)


def test_a_folder_on_the_command_line_is_untrusted_however_it_is_named(command, foreign, capsys):
    folder = str(foreign({"storage/theirs": "url: sqlite:///OUT/x.db\n"}))
    for way in (f"--config-dir={folder}", f"hydra.searchpath=[file://{folder}]"):
        assert command(way, "storage=theirs") == 2
        assert "storage reaches outside the study" in capsys.readouterr().err
    primary = Path(CONF, "mnist.yaml").read_text()
    folder = foreign({"mnist": primary, "model/mlp": "_target_: os.mkdir\npath: OUT/x\n"})
    assert command("--config-path", str(folder)) == 2
    assert "model/mlp.yaml: model._target_: os.mkdir" in capsys.readouterr().err


def test_an_untrusted_config_cannot_add_a_target_to_trusted_code(command, foreign):
    folder = foreign({"theirs": "defaults: [mnist, _self_]\nparams: {a: 1}\n"})

    def build_own(cfg):
        config = StudyConfig.of(cfg).with_values({"scheduler": {"_target_": "os.getpid"}})
        with pytest.raises(ConfigError, match=r"os\.getpid is not among the code"):
            build(config["scheduler"], "scheduler")

    command("--config-dir", str(folder), "--config-name", "theirs", task=build_own)
    assert trust.active() is None


REACHES_OUT = {
    *("storage", "checkpoints", "launcher", "track", "run_dir", "hydra", "trust"),
    *("study.warm_start", "study.accept_code_change"),
}


def test_a_new_section_is_refused_until_it_is_listed_as_open():
    """Whoever adds a key to the schema: look at what it does, and then at trust.FORBIDDEN_KEYS."""
    assert {*map(str, SCHEMA)} - {*trust.ALLOWED_SECTIONS} == {
        key for key in REACHES_OUT if "." not in key
    }
    for key in REACHES_OUT:
        config = OmegaConf.create()
        OmegaConf.update(config, key, "x")
        assert [*find_content_errors(OmegaConf.to_container(config), ["hydra"])], key


def test_paths_of_untrusted_data_are_refused_for_every_package():
    photos = {"_target_": "torchvision.datasets.ImageFolder", "root": "OUT"}
    table = {"_target_": "studyloom.data.Table"}
    own = {"_target_": "studyloom.data.Datasets"}
    cases = {
        "data.train.root": own | {"train": photos},
        "data.test.annFile": own | {"test": photos | {"root": None, "annFile": "../a.json"}},
        "data.train._args_": own | {"train": photos | {"root": None, "_args_": ["OUT"]}},
        "data.valid.inner.root": own
        | {"valid": {"_target_": "torch.utils.data.ConcatDataset", "inner": photos}},
        "data.path": table | {"path": "x.csv"},
        "data._args_": table | {"_args_": ["x.csv", "y", 1, 1]},
        "data.load.path": {"load": table | {"path": "x.csv"}},
    }
    for key, section in cases.items():
        (words,) = find_content_errors({"data": section}, ["torchvision", "torch", key])
        assert words.startswith(f"{key} reaches outside the study")
