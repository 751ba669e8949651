"""A config from elsewhere is data: what it may set, and what it may not reach."""

import dataclasses
import inspect
import os
import textwrap
from pathlib import Path

import pytest
from attacks import ATTACKS, SECRET, write
from hydra.conf import HydraConf
from omegaconf import OmegaConf

from studies import CONF
from studyloom.config import foreign as foreign_module
from studyloom.config import trust
from studyloom.config.build import build, find_target
from studyloom.config.compose import Composer
from studyloom.config.schema import SCHEMA
from studyloom.data import Datasets, Embedded, Idx, Loaded
from studyloom.data.sources import Series, Table
from studyloom.errors import ConfigError


@pytest.fixture
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.delenv("LD_PRELOAD", raising=False)


@pytest.fixture
def foreign(tmp_path_factory, out):
    """Writes a folder of somebody else's."""
    return lambda files: write(tmp_path_factory.mktemp("theirs") / "conf", files, out)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_before_anything_is_composed(
    command, capsys, tmp_path, foreign, out, attack
):
    seen = []
    ended = command(
        *("--config-dir", str(foreign(ATTACKS[attack])), "--config-name", "evil"),
        task=lambda cfg: seen.append((dict(os.environ), cfg.params)),
    )
    printed = capsys.readouterr()
    print(
        "RED",
        attack,
        "|",
        ended if isinstance(ended, int) else "composed",
        [str(p.relative_to(out)) for p in out.rglob("*")],
        "LD" if seen and "LD_PRELOAD" in seen[0][0] else "",
        SECRET in "".join(p.read_text() for p in tmp_path.rglob("*.yaml")),
        printed.err[:150],
    )
    assert ended == 2
    assert "error: " in printed.err
    assert SECRET not in printed.err + printed.out
    assert list(out.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


# What a config from elsewhere may do


def composed(command, folder, *overrides):
    ended = command("--config-dir", str(folder), "--config-name", "theirs", *overrides)
    assert not isinstance(ended, int), ended
    return ended[0]


ALLOWED = {
    "a primary config as ours are": {"theirs": Path(CONF, "mnist.yaml").read_text()},
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
        "data: {path: 'studyloom:breast_cancer.csv', sealed: 100, root: null}\n"
    },
    "a global header": {
        "theirs": "defaults: [mnist, model/set, _self_]\n",
        "model/set": "# @package _global_\ntrain: {epochs: 2}\n",
    },
    "a space over what it may set": {
        "theirs": "defaults: [mnist, _self_]\nspace: {model: {mlp: {dropout: {float: [0, 0.5]}}}, "
        "train: {batch_size: {choice: [32, 64]}}}\n"
    },
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_stays_within_the_study_is_composed(command, foreign, what):
    files = {name: textwrap.dedent(text) for name, text in ALLOWED[what].items()}
    cfg = composed(command, foreign(files), "run_dir=run")
    OmegaConf.to_container(cfg, resolve=True)


CONSENTS = {
    "storage": ("storage.url", "sqlite:///OUT/x.db"),
    "run_dir": ("run_dir", "OUT/run"),
    "checkpoints": ("checkpoints.dir", "OUT/c"),
    "study.from": ("study.from", "OUT/study"),
    "data.root": ("data.root", "OUT"),
    "launcher": ("launcher.lines", ["module load x"]),
}


@pytest.mark.parametrize("name", CONSENTS)
def test_what_reaches_out_needs_consent_by_the_name_that_the_refusal_says(
    command, foreign, capsys, name, out
):
    key, value = CONSENTS[name]
    section = OmegaConf.create()
    OmegaConf.update(section, key, value)
    text = "defaults: [mnist, override launcher: slurm, override data: mnist, _self_]\n"
    folder = foreign({"theirs": text + OmegaConf.to_yaml(section)})
    assert command("--config-dir", str(folder), "--config-name", "theirs") == 2
    words = capsys.readouterr().err
    assert words.startswith(f"error: {folder}/theirs.yaml: {name}")
    assert f"'trust=[{name}]'" in words
    cfg = composed(command, folder, f"trust=[{name}]")
    assert str(OmegaConf.select(cfg, key)).replace(str(out), "OUT") == str(value)


ADAPTERS = {
    "studyloom.extras.integrations.Command": {"run": "touch OUT/x", "value": "(.)"},
    "studyloom.extras.integrations.Hydra": {"config": "OUT/a.yaml", "call": "os.system"},
}


@pytest.mark.parametrize("target", ADAPTERS)
def test_an_objective_that_runs_what_the_config_names_needs_consent(
    command, foreign, capsys, target
):
    """By the key, or argument by argument beside the adapters' package."""
    objective = {"_target_": target} | ADAPTERS[target]
    text = OmegaConf.to_yaml(OmegaConf.create({"objective": objective}))
    named = (
        *("--config-dir", str(foreign({"theirs": f"defaults: [mnist, _self_]\n{text}"}))),
        *("--config-name", "theirs", "objective.direction=minimize"),
    )
    assert command(*named) == 2
    told = capsys.readouterr().err
    assert "'trust=[studyloom.extras.integrations]'" in told
    for name in ADAPTERS[target]:
        assert f"theirs.yaml: objective.{name} reaches out of the study" in told
        assert "'trust=[objective]'" in told
    for agreed in ("studyloom.extras.integrations", "studyloom", "storage"):
        assert command(*named, f"trust=[{agreed}]") == 2
    keys = ",".join(f"objective.{name}" for name in ADAPTERS[target])
    for agreed in ("objective", f"studyloom.extras.integrations,{keys}"):
        cfg = command(
            *named,
            f"trust=[{agreed}]",
            task=lambda cfg: find_target(cfg.objective),
        )[0]
        assert cfg.objective["_target_"] == target


def test_arguments_of_ones_own_objective_are_not_theirs_to_set(command, foreign, capsys):
    folder = foreign({"theirs": "defaults: [mnist, _self_]\nobjective: {run: rm, fold: 3}\n"})
    assert command("--config-dir", str(folder), "--config-name", "theirs") == 2
    told = capsys.readouterr().err
    assert "objective.run reaches out of the study" in told
    assert "did you mean folds?" in told


@pytest.mark.parametrize("agreed", ["[os]", "[storage]", "[hydra]", "[trust,hydra.run]"])
def test_no_consent_allows_hydra_or_what_was_not_named(command, foreign, capsys, agreed):
    text = "defaults: [mnist, _self_]\nhydra: {run: {dir: OUT/x}}\nrun_dir: OUT/y\n"
    named = ("--config-dir", str(foreign({"theirs": text})), "--config-name", "theirs")
    assert command(*named, f"trust={agreed}") == 2
    words = capsys.readouterr().err
    assert "hydra: must not be set by a config from elsewhere" in words
    assert "'trust=[run_dir]'" in words


def test_all_mistakes_of_all_files_come_at_once_with_file_and_key(command, foreign, capsys):
    folder = foreign(
        {
            "theirs": "defaults: [mnist, more, override model: bad, hydra/x, _self_]\nrun_dir: x\n",
            "more": "storage: {url: 'sqlite:///x.db'}\nmodle: {a: 1}\n",
            "model/bad": "_target_: os.system\ncommand: '${oc.env:HOME}'\n",
        }
    )
    assert command("--config-dir", str(folder), "--config-name", "theirs") == 2
    lines = capsys.readouterr().err.replace(f"error: {folder}/", "").splitlines()
    assert [line.split(" ")[:2] for line in lines] == [
        ["theirs.yaml:", "defaults[3]:"],
        ["theirs.yaml:", "run_dir"],
        ["more.yaml:", "storage"],
        ["more.yaml:", "modle:"],
        ["model/bad.yaml:", "model._target_:"],
        ["model/bad.yaml:", "model.command:"],
    ]
    assert "did you mean model?" in lines[3]


def test_an_option_that_only_a_trial_chooses_is_read_as_data_too(command, foreign, out):
    folder = foreign(
        {
            "theirs": "defaults: [mnist, _self_]\nspace: {model: {mlp: {}, bad: {}}}\n",
            "model/bad": "_target_: os.mkdir\npath: OUT/made\n",
        }
    )
    raised = []

    def choose(cfg):
        with pytest.raises(ConfigError) as caught:
            Composer.from_hydra().compose({"model": "bad"})
        raised.append(str(caught.value))

    command("--config-dir", str(folder), "--config-name", "theirs", task=choose)
    assert "model._target_: os.mkdir is not among the code" in raised[0]


@pytest.mark.parametrize("way", ["--config-dir=FOLDER", "hydra.searchpath=[file://FOLDER]"])
def test_an_option_from_a_folder_that_the_command_line_names_is_data(command, foreign, way, capsys):
    folder = str(foreign({"storage/theirs": "url: sqlite:///OUT/x.db\n"}))
    assert command(way.replace("FOLDER", folder), "storage=theirs") == 2
    assert "'trust=[storage]'" in capsys.readouterr().err
    agreed = command(way.replace("FOLDER", folder), "storage=theirs", "trust=[storage]")
    assert agreed[0].storage.url.endswith("/x.db")


def test_a_folder_in_place_of_ones_own_is_data_whatever_it_shadows(command, foreign, capsys):
    primary = Path(CONF, "mnist.yaml").read_text()
    folder = foreign({"mnist": primary, "model/mlp": "_target_: os.mkdir\npath: OUT/x\n"})
    assert command("--config-path", str(folder)) == 2
    assert "model/mlp.yaml: model._target_: os.mkdir" in capsys.readouterr().err


def test_arguments_of_ones_own_code_are_not_theirs_to_change(command, foreign):
    folder = foreign({"theirs": "defaults: [mnist, _self_]\nparams: {a: 1}\n"})

    def build_own(cfg):
        OmegaConf.update(cfg, "scheduler", {"_target_": "os.getpid"}, merge=False)
        with pytest.raises(ConfigError, match=r"os\.getpid is not among the code"):
            build(cfg.scheduler)

    command("--config-dir", str(folder), "--config-name", "theirs", task=build_own)
    assert foreign_module.active() is None


# Files that are none, and those that would fill the memory


def test_a_link_out_of_the_folder_and_a_pipe_are_not_read(command, foreign, tmp_path, capsys):
    folder = foreign({"theirs": "defaults: [mnist, more, _self_]\n"})
    (outside := folder.parent / "outside.yaml").write_text("params: {word: private}\n")
    (folder / "more.yaml").symlink_to(outside)
    assert command("--config-dir", str(folder), "--config-name", "theirs") == 2
    assert "more.yaml: is a link to" in capsys.readouterr().err
    os.mkfifo(folder / "pipe.yaml")
    with pytest.raises(ConfigError, match="is not a file"):
        trust.read_text(folder / "pipe.yaml", folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("params: {x: '" + "x" * 300_000 + "'}\n", "is larger than 256 KiB"),
        (
            "params: {x: ['${params.y}'" + ", '${params.y}'" * 16 + "]}\n",
            "17 interpolations are too",
        ),
        ("params: " + "[" * 250_000, "more than 64 levels"),
        ("params: {x: " + "9" * 5000 + "}\n", "cannot be read as YAML"),
        ("params: !!str x\n", "has a tag"),
        ("params: {a: &a [1], b: *a}\n", "has a YAML alias"),
        ("\xff\xfe", "cannot be read as YAML"),
        ("# @package hydra\nparams: {a: 1}\n", "the header must be"),
    ],
)
def test_a_file_that_fills_the_memory_or_is_no_plain_yaml_is_refused(tmp_path, text, words):
    (tmp_path / "theirs.yaml").write_bytes(text.encode("latin-1"))
    with foreign_module.guarded([], []) as guard, pytest.raises(ConfigError, match=words):
        guard.read(tmp_path, "theirs")


def test_values_that_name_themselves_end_with_an_error(command, foreign, capsys):
    text = "defaults: [mnist, _self_]\nparams: {a: '${params}'}\nstudy: {name: '${params.a}'}\n"
    assert command("--config-dir", str(foreign({"theirs": text})), "--config-name", "theirs") == 2
    assert "Traceback" not in capsys.readouterr().err


# Whatever is new in Hydra, in the schema or in the data sources is refused until somebody looks


KNOWN_TO_HYDRA = {
    *("defaults", "mode", "searchpath", "run", "sweep", "hydra_logging", "job_logging", "sweeper"),
    *("launcher", "callbacks", "help", "hydra_help", "output_subdir", "overrides", "job"),
    *("runtime", "verbose"),
}
HYDRA_GROUPS = {
    *("output", "launcher", "sweeper", "help", "hydra_help", "hydra_logging", "job_logging"),
    *("callbacks", "env"),
}


def test_every_section_and_group_of_hydra_is_refused():
    """A new one changes these sets: look at what it does, and at the search path, then add it."""
    assert {entry.name for entry in dataclasses.fields(HydraConf)} == KNOWN_TO_HYDRA
    groups = {key for item in HydraConf().defaults for key in item}
    assert groups == HYDRA_GROUPS
    for name in KNOWN_TO_HYDRA:
        content = {"hydra": {name: "x"}}
        assert [*foreign_module.content_mistakes(content, ["hydra", f"hydra.{name}", name])]
    for group in groups:
        for item in ({f"hydra/{group}": "x"}, {f"override hydra/{group}": "x"}, f"hydra/{group}/x"):
            assert [*foreign_module.default_mistakes([item], "theirs", None, ["hydra"])], item
        assert [*foreign_module.default_mistakes([], f"hydra/{group}/x", None, ["hydra"])]
    assert [*foreign_module.default_mistakes([], "hydra/config", None, [])]


PLAIN_KEYS = {
    *(f"study.{key}" for key in foreign_module.PLAIN["study"]),
    *(f"objective.{key}" for key in foreign_module.PLAIN["objective"]),
    *(f"train.{key}" for key in foreign_module.PLAIN["train"]),
    *(f"winner.{key}" for key in foreign_module.PLAIN["winner"]),
    *(f"cost.{key}" for key in foreign_module.PLAIN["cost"]),
    *(*foreign_module.FREE, "data", "space", "compress"),
}
REACHES_OUT = {
    *("study.accept_code_change", "study.redo_baseline"),
    *("run_dir", "storage.url", "storage.file", "storage.deadline", "checkpoints.dir", "trust"),
    *("launcher", "hydra.run", "study.from", "track"),
}


def test_every_key_of_the_schema_is_plain_or_needs_consent():
    """A new key reaches out until somebody has looked at it, and added it to PLAIN."""
    keys = set()
    for section in SCHEMA:
        node = SCHEMA._get_node(section)
        keyed = OmegaConf.is_dict(node) and not node._is_missing() and not node._is_none()
        keys |= {f"{section}.{name}" for name in node} if keyed else {str(section)}
    assert keys == PLAIN_KEYS | REACHES_OUT
    for key in REACHES_OUT:
        config = OmegaConf.create()
        OmegaConf.update(config, key, "x")
        assert [*foreign_module.content_mistakes(OmegaConf.to_container(config), [])], key


def test_every_argument_of_a_data_source_is_plain_or_names_a_file():
    arguments = {
        name
        for source in (Datasets, Embedded, Idx, Loaded, Table, Series)
        for name in inspect.signature(source).parameters
    }
    assert arguments - {*foreign_module.PLAIN["data"]} == {*foreign_module.PATHS} - {"_args_"}


PHOTOS = {"_target_": "torchvision.datasets.ImageFolder", "root": "OUT"}
FOLDERS = {
    "root": PHOTOS,
    "annotations": {"_target_": "torchvision.datasets.CocoDetection", "annFile": "../a.json"},
    "_args_": {"_target_": "torchvision.datasets.ImageFolder", "_args_": ["OUT"]},
    "inner.root": {"_target_": "torch.utils.data.ConcatDataset", "inner": PHOTOS},
}


@pytest.mark.parametrize("part", ["train", "valid", "test", "evaluate"])
@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_a_dataset_reads_needs_consent_whatever_package_reads_it(part, what):
    config = {"data": {"_target_": "studyloom.data.Datasets", part: FOLDERS[what]}}
    name = {"annotations": "annFile"}.get(what, what)
    words = " ".join(foreign_module.content_mistakes(config, ["torchvision", "torch"]))
    assert f"'trust=[data.{part}.{name}]'" in words
    agreed = ["torchvision", "torch.utils", f"data.{part}.{name}"]
    assert [*foreign_module.content_mistakes(config, agreed)] == []
    assert f"data.{part}.{name}" in foreign_module.needed_trust(config)


def test_a_config_of_ones_own_says_what_its_command_has_to_trust():
    config = {
        "defaults": ["own", {"override /storage": "mine"}, {"override /loss": "mine"}, "_self_"],
        "data": {"_target_": "studyloom.data.Table", "path": "rows.csv"},
        "model": {"_target_": "mynets.Net", "layers": [{"_target_": "torch.nn.ReLU"}]},
    }
    assert foreign_module.needed_trust(config) == ["data.path", "mynets", "storage"]
    assert foreign_module.needed_trust({"defaults": ["own"], "train": {"epochs": 3}}) == []


def test_a_path_is_found_in_whatever_way_it_is_passed():
    table = {"_target_": "studyloom.data.Table"}
    for way in ({"path": "x.csv"}, {"_args_": ["x.csv", "y", 1, 1]}, {"_args_": "x.csv"}):
        for config in ({"data": table | way}, {"data": {"load": table | way}}):
            assert "reaches out" in " ".join(foreign_module.content_mistakes(config, []))
