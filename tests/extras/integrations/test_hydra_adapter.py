"""An existing Hydra application as the objective: its config, its keys and its function."""

import functools
import sys

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from projects import APPLICATION, write_project
from toys import define_own_loop, validate_search

from studyloom.config.compose import isolated_hydra
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError, UndefinedMetric
from studyloom.extras.integrations.hydra import pick_value
from studyloom.objectives.user_functions import build_function

STUDY = """
defaults:
  [studyloom, sampler: random, pruner: none, storage: sqlite, launcher: local, space: none, _self_]
study: {name: own}
objective:
  _target_: studyloom.extras.integrations.Hydra
  config: ../configs/train.yaml
  call: src.train.train
  value: val/acc
  metric: acc
  direction: maximize
space:
  optimizer.lr: {float: [0.01, 1.0]}
  model: {width: {int: [4, 32]}}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = write_project(tmp_path / "project", APPLICATION | {"conf/own.yaml": STUDY})
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "src"]:
        del sys.modules[name]


@pytest.fixture
def ask(project):
    return functools.partial(define_own_loop, project / "conf")


def errors_of(ask, *overrides):
    try:
        definition = ask(*overrides)
        validate_search(definition, TrainingData())
    except ConfigError as error:
        return error.errors
    return []


def call(definition, run, **values):
    configuration = definition.space.walk(lambda parameter: values[parameter.name])
    config = definition.compose_config(configuration)
    return build_function(config["objective"])(config.for_user(), run)


def test_names_in_the_space_are_keys_of_the_applications_config(ask, make_run):
    """Dotted or nested; interpolations of that config follow, and its groups are its own."""
    definition = ask()
    assert [*definition.space.groups()] == []
    assert definition.baseline.params == {"optimizer.lr": 0.1, "model.width": 8}
    configuration = {"optimizer.lr": 0.5, "model.width": 16}
    assert call(definition, make_run(), **configuration) == 1.0
    assert call(definition, make_run(), **(configuration | {"model.width": 32})) == 0.0
    assert definition.compose_config(definition.baseline)["params"] == {
        "optimizer": {"lr": 0.1},
        "model": {"width": 8},
    }


def test_a_function_decorated_by_hydra_gets_config_and_trial_folder(ask, make_run):
    definition, run = ask("objective.call=src.train.main", "objective.value=null"), make_run()
    assert errors_of(lambda: definition) == []
    configuration = {"optimizer.lr": 0.5, "model.width": 16}
    assert call(definition, run, **configuration) == 1.0
    assert (run.dir / "result.txt").read_text() == str(run.dir)


def test_a_key_of_the_application_gets_the_seed_of_the_trial(ask, project, make_run):
    (project / "src/other.py").write_text("def seeded(cfg): return cfg.seed\n")
    (project / "configs/train.yaml").write_text("seed: 12345\nmodel: {width: 8}\n")
    (project / "conf/own.yaml").write_text(STUDY.partition("space:\n")[0])
    given = ("objective.call=src.other.seeded", "objective.value=null")
    assert call(ask(*given), make_run()) == 12345
    run = make_run()
    assert call(ask(*given, "objective.seed=seed"), run) == run.seed
    (mistake,) = errors_of(ask, *given, "objective.seed=sed")
    assert mistake.startswith("objective.seed=sed: sed: no such key")


def test_the_value_is_picked_from_the_returned_result():
    assert pick_value((0.5, 1), None, "f") == 0.5
    assert pick_value(({"val/acc": 0.5}, 1), "val/acc", "f") == 0.5
    for returned, key, words in (
        ({"val/acc": 0.5}, "val_acc", "value=val_acc: not there; f .* did you mean val/acc"),
        ({"val/acc": 0.5}, None, "value is not set; f returned a mapping with val/acc"),
        (None, "val/acc", "objective.value=val/acc: not there; f returned None"),
    ):
        with pytest.raises(UndefinedMetric, match=words):
            pick_value(returned, key, "f")


def test_only_a_parameter_called_run_gets_the_run(ask, project, make_run):
    text = "def one(cfg, run): run(cfg.optimizer.lr, 1); return 1.0\n"
    (project / "src/other.py").write_text(text + "def two(cfg, callbacks=None): return 2.0\n")
    configuration, run = {"optimizer.lr": 0.5, "model.width": 16}, make_run()
    for number, name in enumerate(("one", "two"), 1):
        definition = ask(f"objective.call=src.other.{name}", "objective.value=null")
        assert errors_of(lambda definition=definition: definition) == []
        assert call(definition, run, **configuration) == number
    assert run.reports == [(1, 0.5)]


def test_the_applications_config_and_function_are_part_of_the_definition(ask, project):
    identity = ask().identity("")
    assert identity["objective.config.model.activation"] == "relu"
    assert identity["objective.config.decoder.width"] == "${model.width}"
    assert "code.src.train" in identity
    assert ask().identity("") == identity
    (project / "configs/model/small.yaml").write_text("{width: 8, activation: tanh}")
    assert ask().identity("")["objective.config.model.activation"] == "tanh"


WRONG = {
    ("+space.optimizer.lrr.float=[0,1]", "+space.modle.width.int=[1,2]", "params={epoch: 3}"): (
        "params.epoch: epoch: no such key; there ",
        "space.optimizer.lrr: optimizer.lrr: no such key; optimizer has name, lr; did you",
        "space.modle.width: modle: no such key; ",
        "did you mean model.width?",
    ),
    ("objective.config=../configs/tain.yaml",): ("objective.config=../configs/tain.yaml: there",),
    ("objective.call=src.train.tran",): ("objective.call=src.train.tran: ", "did you mean train?"),
    ("+space.epochs.int=[10,20]",): ("the default params.epochs=5 is outside its range",),
    ("+objective.valu=x",): ("got an unexpected keyword argument 'valu'",),
}


def test_an_error_is_reported_before_trial_0(ask, project):
    for overrides, words in WRONG.items():
        told = "\n".join(errors_of(ask, *overrides))
        assert [word for word in words if word not in told] == [], told
    (project / "configs/train.yaml").write_text("defaults: [model: large]\n")
    (mistake,) = errors_of(ask)  # it does not compose
    assert mistake.startswith(f"{project}/configs/train.yaml: ")
    assert "model/large" in mistake


def test_isolated_code_uses_hydra_and_the_state_is_restored(ask, project, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["page.py", "study.trials=3"])
    ask()
    ours, argv = GlobalHydra.instance().hydra, sys.argv
    with isolated_hydra():
        assert sys.argv == ["page.py"]
        assert not GlobalHydra.instance().is_initialized()
        with hydra.initialize_config_dir(str(project / "configs"), version_base=None):
            assert hydra.compose("train").model.width == 8
            with pytest.raises(Exception, match="Could not find 'optimizer/adam'"):
                hydra.compose("train", ["+optimizer=adam"])  # one of our groups
        sys.argv = ["other", "words"]
    assert GlobalHydra.instance().hydra is ours
    assert sys.argv is argv
    assert argv == ["page.py", "study.trials=3"]
