"""A study definition is validated as a whole before trial 0: each error has a fix."""

import shutil
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from optuna.samplers import RandomSampler
from torch import nn
from toys import LOOP, TINY, TWO, ask, compose, toy_folds, toy_split, validate_search

from studies import CONF
from studyloom.config.scaffold import write_study
from studyloom.config.values import flatten
from studyloom.data.split import Split
from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.definition.custom_loop import LoopDefinition
from studyloom.definition.definition import Definition
from studyloom.definition.prepare import find_definition_class
from studyloom.definition.validation import check_sections
from studyloom.errors import ConfigError
from studyloom.installation import pip_install

pytestmark = pytest.mark.usefixtures("composing")
IMAGES = Split(torch.zeros(500, 1, 8, 8), torch.arange(500) % 10, 10, "images")
NONE = ("space=none",)  # and then what a test searches, with +space.…


class Own(nn.Sequential):
    """A network of a user's own."""

    def __init__(self, shape, classes, width=8, ends=None):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, ends or classes))


class Blocks(Own):
    """A network of which one part is a config group of its own."""

    def __init__(self, shape, classes, block):
        assert block["kind"] in ("plain", "residual")
        super().__init__(shape, classes, width=block.get("depth", 1))


class Needy(RandomSampler):
    """A sampler whose library is missing; it says so as Optuna's CmaEsSampler does."""

    def __init__(self, seed=None):
        raise ImportError("Tried to import 'nowhere' but failed.")


def find_errors(definition: Definition, folds, split: Split | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate_search(definition, TrainingData(None, IMAGES if split is None else split, folds))
    assert all("\n" not in line for line in caught.value.errors)
    return caught.value.errors


def find_only_error(definition: Definition, folds) -> str:
    (line,) = find_errors(definition, folds)
    return line


# Keys that cannot be searched, and defaults that the space cannot give
SEARCHES = {
    "train.epoch.int=[1,2]": "train.epoch: no such key; train has epochs, batch_size",
    "modle.hidden.int=[1,2]": "modle: no such key; there are run_dir, study, objective",
    "model.hiden.int=[1,2]": "did you mean hidden?",
    "model.mlpp.hidden.int=[1,2]": "did you mean mlp?",
    "model.hidden.deep.int=[1,2]": "model.hidden.deep: no such key",
    "data.validation.int=[100,800]": "data is the same for all trials; what can be searched",
    "sampler={auto: null, random: null}": "sampler is the same for all trials",
    "optimizer.lr.float=[0.1, 1]": "optimizer.lr=0.001 is outside its range [0.1, 1]",
    "train.batch_size.choice=[32, 65]": "[32, 65]; did you mean 65?",
    "train.clip_norm.float=[0.1, 1]": "train.clip_norm=null is null",
    "model.hidden.int=[1, 200]": "model.hidden=[128] is a list",
    "model.dropout={list: {float: [0, 1]}, length: 2}": "model.dropout=0.0 is not a list",
    "model.hidden={list: {int: [1, 64]}, length: 1}": "[128] is outside its range [1, 64]",
    "model.hidden={list: {int: [1, 200]}, length: 2}": "is a list whose length 1 is outside",
}


def test_a_space_that_does_not_fit_the_config_is_refused_with_a_fix(define_with, folds):
    for search, words in SEARCHES.items():
        line = find_only_error(define_with(search), folds)
        assert line.startswith("space.")
        assert words in line
        if ": the default " in line:
            assert "; change the default, the space, or set study.baseline=false" in line


class Sized(Own):
    """A network with defaults."""

    def __init__(self, shape, classes, width=32, rate=None, hidden=(8, 300), kind=nn.ReLU):
        super().__init__(shape, classes, width)


def rated(run, *, rate=5e-5, count=64, momentum=None, epochs=3):
    """A loop with defaults."""


DEFAULTS_OUTSIDE = {
    ("~model", "+model={_target_:test_validation.Sized}", "optimizer=adamw"): {
        "model.width.int=[64,256]": "width=32 is outside its range [64, 256]",
        "model.rate.float=[0,1]": "rate=null is null",
        "model.hidden={list:{int:[4,256]},length:2}": "hidden=[8, 300] is outside",
        "model.kind.choice=[relu,tanh]": "is not among [relu, tanh]",
        "optimizer.eps.float=[1e-6,1e-4]": "eps=1e-08 is outside",
    },
    ("objective._target_=test_validation.rated", "objective.direction=maximize"): {
        "params.rate.float=[1e-4,1e-2]": "rate=5e-05 is outside",
        "params.count.int=[66,66]": "count=64 is outside",
        "params.momentum.float=[0,1]": "momentum=null is null",
    },
}


def read(*overrides: str) -> Definition:
    """Returns a definition that is completed with the defaults of what its config names."""
    cfg, composer = compose(*NONE, *overrides)
    return find_definition_class(cfg).from_config(cfg, composer)


@pytest.mark.parametrize("subject", DEFAULTS_OUTSIDE)
def test_declared_defaults_outside_their_ranges_are_refused_together(subject, folds):
    searches = DEFAULTS_OUTSIDE[subject]
    spaces = [f"+space.{search}" for search in searches]
    lines = find_errors(read(*subject, *spaces), folds)
    assert len(lines) == len(searches)
    for line, (search, words) in zip(lines, searches.items(), strict=True):
        assert line.startswith(f"space.{search.partition('.')[0]}.")
        assert words in line
        assert "; change the default, the space, or set study.baseline=false; " in line
    assert "test_validation.Sized declares it" in lines[0] or "rated declares it" in lines[0]
    assert "a default of the range, such as" in lines[0]


def test_a_default_of_the_range_replaces_a_declared_default(folds):
    subject = next(iter(DEFAULTS_OUTSIDE))
    width = "+space.model.width={int:[64,256],default:100}"
    definition = read(*subject, width)
    validate_search(definition, TrainingData(None, IMAGES, folds))
    assert definition.baseline.params == {"model.width": 100}
    without = read(*subject, "+space.model.width.int=[64,256]", "study.baseline=false")
    validate_search(without, TrainingData(None, IMAGES, folds))


def test_a_default_option_that_the_space_lacks_is_refused(folds):
    search = (*NONE, "+space.optimizer={adamw:null,sgd:{momentum:{float:[0,0.95]}}}")
    line = find_only_error(ask(*search, "optimizer=adam"), folds)
    assert "optimizer=adam, and the space holds adamw, sgd" in line
    assert "add adam to space.optimizer, or set study.baseline=false" in line
    validate_search(
        ask(*search, "optimizer=adam", "study.baseline=false"), TrainingData(None, IMAGES, folds)
    )


def test_a_value_that_the_network_or_optimizer_refuses_is_named(define_with, folds):
    for search, words in {
        "model.activation.choice=[relu, tahn]": "model.activation=tahn: ",
        "model.hidden={list: {int: [0, 128]}, length: 1}": "model.hidden=[0]: ",
        "train.batch_size.choice=[64, 0]": "train.batch_size=0: ",
        "optimizer.lr.float=[-1, 1]": "optimizer.lr=-1.0: ",
        "scheduler.warmup.float=[0, 2]": "scheduler.warmup=2.0: ",
        "loss.label_smoothing.float=[0, 2]": "loss.label_smoothing=2.0: ",
    }.items():
        assert any(line.startswith(words) for line in find_errors(define_with(search), folds))


def test_an_error_of_several_branches_is_reported_once(folds):
    line = find_only_error(ask("train.samples_per_epoch=5000"), folds)
    assert line.startswith("train.samples_per_epoch must be from 1 to 400, ")


def test_a_custom_network_is_accepted_and_its_arguments_searched(folds):
    own = ("~model", "+model={_target_:test_validation.Own,width:16}")
    width = "+space.model.width.int=[1,32]"
    validate_search(ask(*NONE, *own, width), TrainingData(None, IMAGES, folds))
    line = find_only_error(ask(*NONE, *own, width, "+space.model.depth.int=[1,2]"), folds)
    assert "space.model.depth: model.depth: no such key; model has _target_, width" in line
    line = find_only_error(ask(*NONE, *own, "++model.ends=3"), folds)
    assert line == (
        "the outputs of the network must be (2, 10) for 2 examples; got (2, 3); change the "
        "network, or train it yourself: studyloom new NAME --kind loop"
    )


def test_a_key_that_a_config_file_lacks_is_named_with_the_line_to_add(folds, tmp_path):
    write_study("mine", tmp_path)
    write_study("spun", tmp_path, kind="loop")
    folder = tmp_path / "conf"
    for path in folder.iterdir():
        text = path.read_text().replace("studies.mine.Net", "test_validation.Own")
        path.write_text(text.replace("studies.spun.train", "toys.train"))
    to_add = f"to have it, add `depth: 1` to params in {folder}/spun.yaml, with the value to"
    for name, search, fix in (
        ("mine", "model.dropout.float=[0,0.5]", "; test_validation.Own has no such parameter"),
        ("spun", "params.depth.int=[1,4]", f"; {to_add} start from"),
        ("mine", "optimizer.beta.float=[0,1]", "fused"),  # a file of studyloom
    ):
        line = find_only_error(ask(f"+space.{search}", name=name, folder=folder), folds)
        assert line.endswith(fix), line


def test_groups_within_groups_are_composed_checked_and_searched(folds, tmp_path):
    folder = tmp_path / "conf"
    shutil.copytree(CONF, folder)
    (folder / "model" / "block").mkdir()
    own = "defaults: [block: plain]\n_target_: test_validation.Blocks\n"
    (folder / "model" / "own.yaml").write_text(own)
    (folder / "model" / "block" / "plain.yaml").write_text("kind: plain\n")
    (folder / "model" / "block" / "residual.yaml").write_text("kind: residual\ndepth: 2\n")
    search = "+space.model={mlp:null,own:{block:{plain:null,residual:{depth:{int:[1,3]}}}}}"
    definition = ask(*NONE, search, folder=folder)
    validate_search(definition, TrainingData(None, IMAGES, folds))
    chosen = {"model": "own", "model.own.block": "residual", "model.own.block.residual.depth": 3}
    cfg = definition.compose_config(definition.space.walk(lambda parameter: chosen[parameter.name]))
    assert cfg["model"]["block"] == {"kind": "residual", "depth": 3}
    assert definition.identity("x")["model/block=residual.depth"] == 2
    outside = ask(*NONE, search.replace("[1,3]", "[3,4]"), folder=folder)
    assert "model.block.depth=2 is outside its range [3, 4]" in find_only_error(outside, folds)


def test_a_section_that_cannot_be_built_is_named(folds):
    for override, words in {
        "model._target_=no_such_package.Net": "No module named 'no_such_package'",
        "~model._target_": "model must have a _target_",
        "+model.hiden=3": "unexpected keyword argument 'hiden'",
        "train.loss=mse": "train.loss: 'mse' cannot be set here; choose it with loss=mse",
        "+sampler.seeed=3": "sampler=auto: TypeError",
        "+pruner.n_startup_trials=-1": "pruner=auto: TypeError",
    }.items():
        assert words in find_only_error(ask(*NONE, override), folds)
    needy = ask(*NONE, "sampler=random", "sampler._target_=test_validation.Needy")
    assert f"is missing ({pip_install('samplers')})" in find_only_error(needy, folds)


def test_errors_of_all_sections_are_reported_together(folds):
    wrong = {
        "study.trials=0": "study.trials must be at least 1; got 0",
        "study.timeout=0": "study.timeout must be a positive number",
        "+space.train.epoch.int=[1,2]": "space.train.epoch",
        "+space.optimizer.lr.float=[0,1]": "optimizer.lr=5",
        "optimizer.lr=5": "optimizer.lr=5",
        "+space.model.mlp.hiden.int=[1,2]": "space.model.mlp.hiden",
    }
    lines = find_errors(ask(*NONE, *wrong), folds)
    for words in wrong.values():
        assert any(words in line for line in lines), words


def test_invalid_objectives_and_parts_for_one_are_refused_with_a_fix():
    split = toy_split()
    for overrides, found in {
        ("objective.metric=[accuracy,parameter]",): ["did you mean parameters?"],
        ("pruner=median", "winner.rule='max acuracy'"): ["did you mean accuracy?", "pruner=median"],
        ("sampler=cmaes",): ["sampler=cmaes"],
    }.items():
        errors = find_errors(ask(*TWO, *overrides), toy_folds(split), split)
        assert len(errors) == len(found)
        assert all(words in error for words, error in zip(found, errors, strict=True))


# Relations and repeats

HEADS = (
    *("~model", "+model={_target_:test_validation.Heads,width:6,heads:2}", "space=none"),
    "+space.model={width:{int:[2,14],step:2},heads:{choice:[1,2,4]}}",
)


class Heads(Own):
    """A network whose width its heads divide."""

    def __init__(self, shape, classes, width, heads):
        assert width % heads == 0, f"{width} % {heads}"
        super().__init__(shape, classes, width)


def test_configurations_that_break_a_relation_are_not_built(folds):
    high, four = find_errors(ask(*HEADS), folds)
    assert "14 % 4" in high
    assert four.startswith("model.heads=4: ")
    related = ask(*HEADS, "+space.where=['model.width % model.heads == 0']")
    validate_search(related, TrainingData(None, IMAGES, folds))
    assert related.space.size() == 7 + 7 + 3
    assert related.identity("x") != ask(*HEADS).identity("x")


def test_impossible_relations_are_refused_before_trial_0_with_a_fix(folds):
    with pytest.raises(ConfigError) as caught:
        ask(*HEADS, "+space.where=['model.widht > 2', 'model.width >', 3]")
    assert len(caught.value.errors) == 3
    assert "did you mean model.width?" in caught.value.errors[0]
    for relation, words in {
        "model.width > 8": "baseline breaks space.where 'model.width > 8' with model.width=6; chan",
        "model.width > 16": "study.baseline: the baseline breaks",
    }.items():
        relations = f"+space.where=['{relation} and model.width % model.heads == 0']"
        assert words in find_only_error(ask(*HEADS, relations), folds)
    never = ask(*HEADS, relations, "study.baseline=false")
    assert "no configurations satisfy model.width > 16 and" in find_only_error(never, folds)
    seed, words = find_errors(ask(*HEADS, relations, "study.seed=-1"), folds)
    assert seed.startswith("study.seed")
    assert words.startswith("study.baseline")
    wide = ("space=none", "+space.optimizer.lr.float=[0.0001,1]", "study.baseline=false")
    never = ask(*wide, "+space.where=['optimizer.lr > 1']")
    assert "none of 10,000 random configurations satisfy" in find_only_error(never, folds)
    endless = ask(*wide, "study.allow_repeats=false")
    assert "space of finitely many configurations; give its floats" in find_only_error(
        endless, folds
    )


def test_a_hyperparameter_may_be_called_where():
    own = ("space=none", "+params.where=3", "objective._target_=toys.train")
    definition = ask(*own, "+space.params.where.int=[1,4]", "+space.where='params.where < 4'")
    assert [configuration.params for configuration in definition.space.configurations()] == [
        {"params.where": n} for n in (1, 2, 3)
    ]


# What ends a search early

STOP = ("study.stop=improvement", "study.min_improvement=0.005")
BY_COST = (
    "objective.constraints={parameters: '<= 100_000'}",
    "winner.rule='min parameters where accuracy > 0.9'",
)
BOUNDS = {
    ("study.min_improvement=0.005",): "set both or neither",
    ("study.stop=regrets",): "study.stop must be improvement, or null; got regrets",
    (
        STOP[0],
        "study.min_improvement=0",
    ): "study.min_improvement must be a positive number, or null; got 0.0",
    (*STOP, "sampler=grid"): "sampler=grid tries each configuration of a list; set study.stop=null",
    (*TWO, *STOP): "in one value, and objective.metric names more than one; set study.stop=null",
    (*STOP, *BY_COST): "winner.rule chooses by parameters, and not by accuracy; set study.stop=nu",
    (*TWO, "study.target=0.9"): "study.target=0.9 is a value of one metric, and objective.metric",
    ("study.target=0.9", *BY_COST): "winner.rule chooses by parameters, and not by accuracy; set",
    ("study.target=.inf",): "study.target must be a finite number, or null; got inf",
    ("objective.network=toys.make_network",): "objective.network is for a custom loop",
    ("cost.limit=5",): "cost.limit is spent by the hour; set cost.per_hour too, or cost.limit=null",
    ("study.max_attempts=0",): "study.max_attempts must be at least 1; got 0",
    ("study.max_failures=0",): "study.max_failures must be at least 1; got 0",
    ("study.lease=0",): "study.lease must be at least 1; got 0",
    ("study.trial_timeout=-1",): "study.trial_timeout must be a positive number, or null; got -1",
    ("storage.deadline=-1",): "storage.deadline must be at least 0; got -1",
    ("cost.per_hour=-1",): "cost.per_hour must be at least 0, or null; got -1",
    ("cost.limit=-1", "cost.per_hour=1"): "cost.limit must be a positive number, or null; got -1.0",
}
BOUNDED = (
    STOP,
    ("study.epochs=40", "sampler=grid"),
    ("cost.limit=5", "cost.per_hour=0.5"),
    ("study.target=-0.5", "sampler=grid"),
)


def find_section_errors(overrides):
    """Those of a config; plain keys are set on a copy, since composing takes 0.1 s."""
    sections = ("study.", "storage.", "train.", "checkpoints.", "pruner.")
    plain = [override for override in overrides if override.startswith(sections)]
    definition = ask(*(override for override in overrides if override not in plain))
    changes = OmegaConf.to_container(OmegaConf.from_dotlist(plain))
    config = definition.config.with_values(dict(flatten(changes) if changes else ()))
    definition = replace(definition, config=config)
    return [*check_sections(definition, Strategy(definition))]


def test_only_impossible_settings_of_an_early_end_are_refused():
    for overrides, words in BOUNDS.items():
        (error,) = find_section_errors(overrides)
        assert words in error
    for overrides in BOUNDED:
        assert find_section_errors(overrides) == []


# What depends on time, where the trials may not

TIMED = {
    ("study.timeout=60",): "study.timeout=60.0 depends on when trials run; set study.timeout=null",
    ("study.trial_timeout=60",): "study.trial_timeout=60.0 depends on when trials run",
    ("study.epochs=40",): "study.epochs=40 depends on when trials run",
    ("study.target=0.9",): "study.target=0.9 depends on when trials run",
    ("cost.limit=5", "cost.per_hour=0.5"): "cost.limit=5.0 depends on when trials run",
    ("pruner=median",): "pruner=median compares by MedianPruner with what has been reported until",
    ("pruner=auto", *LOOP): "pruner=auto compares by MedianPruner",
    ("+sampler.keeps_state=true",): "the sampler keeps its state in one process, which may die",
}
DETERMINISTIC = "study.deterministic=true"


def test_a_deterministic_search_refuses_all_that_depends_on_time():
    for overrides, words in TIMED.items():
        (error,) = find_section_errors((DETERMINISTIC, *overrides))
        assert error.startswith(f"{DETERMINISTIC}: ")
        assert words in error
    together = ("study.epochs=40", "cost.limit=5", "cost.per_hour=1", "pruner=median", *STOP)
    assert len(find_section_errors((DETERMINISTIC, *together))) == 5
    (error,) = find_section_errors((DETERMINISTIC, "study.round_size=0"))
    assert "study.round_size must be at least 1" in error
    suggests = ("pruner=none", "~space", "objective._target_=suggesting.objective")
    definition = LoopDefinition.from_config(*compose(DETERMINISTIC, *suggests, *LOOP[2:]))
    (error,) = Strategy(definition).check()
    assert "an Optuna objective(trial) suggests while it runs; write a loop" in error
    for overrides in ((), ("pruner=none", *LOOP), ("objective.metric=[accuracy,flops]",)):
        assert find_section_errors((DETERMINISTIC, *overrides)) == []


# Trials that are paused


COMMAND = (
    "objective._target_=studyloom.extras.integrations.command.Command",
    "+objective.run=python",
    "+objective.value=x",
)


def test_only_trials_that_cannot_be_paused_are_refused_with_asha():
    promotion = (*TINY, "pruner=asha", "train.epochs=3")
    for overrides, words in {
        ("checkpoints.dir=null",): "checkpoints.dir=null",
        ("train.epochs=2",): "train.epochs must be at least 3",
        ("pruner.brackets=2",): "pruner.brackets=2; got 3",
        (*LOOP, "objective.folds=2"): "objective.folds or objective.seeds",
        (*COMMAND, "objective.direction=maximize"): "which this objective lacks",
    }.items():
        (error,) = find_section_errors((*promotion, *overrides))
        assert words in error
    for overrides in ((), LOOP, ("objective.folds=3",)):
        assert find_section_errors((*promotion, *overrides)) == []
    # By default, where trials cannot be paused, none is pruned by several values.
    assert find_section_errors((*TWO, "pruner=auto", "train.epochs=2")) == []
