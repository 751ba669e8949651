"""The question as a whole is checked before trial 0: each mistake is named, with the way out."""

import os
import re
import shutil
import subprocess
import sys

import hydra
import pytest
import torch
from commands import ROOT
from optuna._imports import _LazyImport
from optuna.samplers import RandomSampler
from torch import nn
from toys import TWO, ask, toy_folds, toy_split

from studies import CONF
from studyloom.data.split import Split
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError
from studyloom.question.question import Question
from studyloom.question.validation import check_ranks, probes, try_out, validate

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


class OnCPU(nn.Module):
    """A network that computes with plain Python numbers, which the meta device does not have."""

    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Linear(64, classes)

    def forward(self, images):
        return self.layer(images.flatten(1)) * (1.0 + float(images.abs().sum()))


class Witness(Own):
    """A network that records the devices on which it is built."""

    devices: list[str] = []  # noqa: RUF012

    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.devices.append(self[1].weight.device.type)


class Needy(RandomSampler):
    """A sampler whose library is missing; it says so as Optuna's CmaEsSampler does."""

    def __init__(self, seed=None):
        raise ImportError("Tried to import 'nowhere' but failed.")


def mistakes_of(question: Question, folds, split: Split | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(question, TrainingData(None, IMAGES if split is None else split, folds))
    assert all("\n" not in line for line in caught.value.mistakes)
    return caught.value.mistakes


def only_mistake(question: Question, folds, **images) -> str:
    (line,) = mistakes_of(question, folds, **images)
    return line


def test_a_question_without_mistakes_passes(main, folds):
    validate(main, TrainingData(None, IMAGES, folds))


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (
            "train.epoch.int=[1,2]",
            ["space.train.epoch: train.epoch: no such key", "train has", "did you mean epochs?"],
        ),
        (
            "modle.hidden.int=[1,2]",
            ["space.modle.hidden: modle: no such key", "did you mean model?"],
        ),
        ("model.hiden.int=[1,2]", ["space.model.hiden", "hidden", "did you mean hidden?"]),
        ("model.mlpp.hidden.int=[1,2]", ["space.model.mlpp.hidden", "did you mean mlp?"]),
        (
            "model.cnn.hidden.int=[1,2]",
            ["space.model.cnn.hidden: model.hidden: no such key", "channels"],
        ),
        (
            "optimizer.adam.momentum.float=[0,1]",
            ["space.optimizer.adam.momentum: optimizer.momentum: no such key"],
        ),
        (
            "model.hidden.deep.int=[1,2]",
            ["space.model.hidden.deep: model.hidden.deep: no such key"],
        ),
    ],
)
def test_a_key_that_the_config_does_not_have_is_named_with_its_neighbour(
    asking, folds, search, words
):
    baseline = "cnn" not in search and "adam" not in search
    line = only_mistake(asking(search, study__baseline=baseline), folds)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (
            "data.validation.int=[100,800]",
            ["space.data.validation: data is the same for all trials", "model, optim"],
        ),
        ("objective.seeds.int=[1,2]", ["space.objective.seeds: objective is the same"]),
        ("sampler={tpe: null, random: null}", ["space.sampler: sampler is the same"]),
        ("study.trials.int=[1,100]", ["space.study.trials: study is the same"]),
    ],
)
def test_what_no_trial_changes_cannot_be_searched(asking, folds, search, words):
    line = only_mistake(asking(search), folds)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (
            "optimizer.lr.float=[0.1, 1]",
            ["space.optimizer.lr: the default optimizer.lr=0.001 is outside its"],
        ),
        ("train.epochs.int=[1, 5]", ["space.train.epochs", "train.epochs=6", "[1, 5]"]),
        (
            "train.batch_size.choice=[32, 65]",
            ["train.batch_size=64", "[32, 65]", "did you mean 65?"],
        ),
        (
            "model.activation.choice=[tanh, gelu]",
            ["model.activation=relu", "not among [tanh, gelu]"],
        ),
        ("model.init.int=[1, 2]", ["model.init=default", "a string", "a whole number"]),
        ("train.clip.float=[0.1, 1]", ["train.clip=null", "is null"]),
        ("model.hidden.int=[1, 200]", ["model.hidden=[128]", "a list"]),
        (
            "model.dropout={list: {float: [0, 1]}, length: 2}",
            ["model.dropout=0.0", "is not a list"],
        ),
        (
            "model.hidden={list: {int: [1, 64]}, length: 1}",
            ["model.hidden=[128]", "outside its range [1, 64]"],
        ),
        (
            "model.hidden={list: {int: [1, 200]}, length: 2}",
            ["model.hidden=[128]", "length 1", "outside"],
        ),
    ],
)
def test_a_default_that_the_space_cannot_give_is_named_with_the_ways_out(
    asking, folds, search, words
):
    line = only_mistake(asking(search), folds)
    assert all(word in line for word in words), line
    assert "change the default" in line
    assert "study.baseline=false" in line


def test_a_default_list_that_is_not_as_long_as_its_partner_is_named(asking, folds):
    hidden = "model.hidden={list: {int: [1, 200]}, length: {int: [1, 3]}}"
    dropout = "model.dropout={list: {float: [0, 1]}, length: hidden}"
    line = only_mistake(asking(hidden, dropout, model__dropout=[0.1, 0.1]), folds)
    assert (
        "space.model.dropout: the default model.dropout=[0.1, 0.1] is not as long as model.hidden"
        in line
    )


def test_defaults_are_checked_in_options_that_the_baseline_does_not_choose(folds):
    line = only_mistake(ask(*NONE, "+space.optimizer={adamw:null,sgd:{lr:{float:[0.2,1]}}}"), folds)
    assert (
        "space.optimizer.sgd.lr: the default optimizer.lr=0.1 is outside its range [0.2, 1]" in line
    )
    assert "with optimizer=sgd" in line


def test_an_option_of_the_baseline_that_the_space_does_not_hold_is_named(folds):
    search = (*NONE, "+space.optimizer={adamw:null,sgd:{momentum:{float:[0,0.95]}}}")
    line = only_mistake(ask(*search, "optimizer=adam"), folds)
    assert "optimizer=adam, and the space holds adamw, sgd" in line
    assert "add adam to space.optimizer, or set study.baseline=false" in line
    validate(
        ask(*search, "optimizer=adam", "study.baseline=false"), TrainingData(None, IMAGES, folds)
    )


def test_an_option_that_the_baseline_does_not_open_holds_it_to_nothing(folds):
    """Only the options on the baseline's own way must be its own."""
    space = "+space.optimizer={adamw:{weight_decay:{float:[0,1]}},sgd:{momentum:{float:[0,0.95]}}}"
    validate(ask(*NONE, space), TrainingData(None, IMAGES, folds))


def test_without_a_baseline_defaults_may_lie_anywhere(folds):
    search = (
        "+space.optimizer.lr.float=[0.1,1]",
        "+space.train.batch_size.choice=[16]",
        "study.baseline=false",
    )
    validate(ask(*NONE, *search), TrainingData(None, IMAGES, folds))


def test_without_a_baseline_a_default_that_no_point_has_need_not_build(folds):
    """400 images make no batch of 1000, and 2 is not a probability; but both are searched."""
    wrong = ("train.batch_size=1000", "model.dropout=2.0", "study.baseline=false")
    search = (
        "+space.train.batch_size.choice=[16,32]",
        "+space.model={mlp:null,cnn:{channels:{choice:[8]}},dropout:{float:[0,0.5]}}",
    )
    validate(ask(*NONE, *wrong, *search), TrainingData(None, IMAGES, folds))


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ("model.activation.choice=[relu, tahn]", ["model.activation=tahn", "did you mean tanh?"]),
        ("model.dropout.float=[0, 1.5]", ["model.dropout=1.5", "must be a number from 0"]),
        ("model.hidden={list: {int: [0, 128]}, length: 1}", ["model.hidden=[0]", "at least 1"]),
        ("train.batch_size.choice=[64, 1000]", ["train.batch_size=1000", "must be from 1 to 400"]),
        (
            "train.precision.choice=[fp32, fp8]",
            ["train.precision=fp8", "must be fp32, bf16 or fp16"],
        ),
        ("train.l1.float=[-1, 1]", ["train.l1=-1.0", "at least 0 (off)"]),
        ("optimizer.lr.float=[-1, 1]", ["optimizer.lr=-1.0", "Invalid learning rate"]),
        ("scheduler.warmup.float=[0, 2]", ["scheduler.warmup=2.0", "from 0 to 1"]),
        ("loss.label_smoothing.float=[0, 2]", ["loss.label_smoothing=2.0"]),
    ],
)
def test_a_value_of_the_space_that_its_part_refuses_is_named(asking, folds, search, words):
    lines = mistakes_of(asking(search), folds)
    assert any(all(word in line for word in words) for line in lines), lines


def test_a_corner_that_a_network_refuses_is_named_with_its_branch(folds):
    search = "+space.model={mlp:null,cnn:{blocks:{int:[1,5]},channels:{choice:[8]}}}"
    line = only_mistake(ask(*NONE, search, "study.baseline=false"), folds)
    assert line.startswith(
        "model=cnn, model.blocks=5, model.channels=8: model.blocks must be at most 3"
    )


def test_one_mistake_is_told_once_however_many_branches_meet_it(folds):
    line = only_mistake(ask("train.samples_per_epoch=5000"), folds)
    assert line.startswith("train.samples_per_epoch must be from 1 to 400, ")
    assert line.endswith("; got 5000")


def test_a_mistake_that_two_options_make_is_told_of_each(folds):
    search = (
        "+space.model={mlp:{activation:{choice:[relu,tahn]}},cnn:{activation:{choice:[relu,tahn]}}}"
    )
    lines = mistakes_of(ask(*NONE, search), folds)
    assert [line.partition(":")[0] for line in lines] == [
        "model=mlp, model.activation=tahn",
        "model=cnn, model.activation=tahn",
    ]


def test_a_network_with_outputs_of_the_wrong_shape_is_refused(folds):
    own = ("~model", "+model._target_=test_validation.Own", "++model.ends=3")
    line = only_mistake(ask(*NONE, *own), folds)
    assert line == (
        "the outputs of the network must be (2, 10) for 2 examples; got (2, 3); change the "
        "network, or train it yourself: studyloom new NAME --kind loop"
    )


def test_a_network_of_ones_own_is_accepted_and_its_arguments_searched(folds):
    own = (
        "~model",
        "+model={_target_:test_validation.Own,width:16}",
        "+space.model.width.int=[1,32]",
    )
    validate(ask(*NONE, *own), TrainingData(None, IMAGES, folds))
    line = only_mistake(ask(*NONE, *own, "+space.model.depth.int=[1,2]"), folds)
    assert "space.model.depth: model.depth: no such key; model has width" in line


def test_a_network_that_cannot_live_without_memory_is_tried_on_the_cpu(folds):
    question = ask(*NONE, "~model", "+model._target_=test_validation.OnCPU")
    validate(question, TrainingData(None, IMAGES, folds))
    with pytest.raises(RuntimeError, match="meta"), torch.device("meta"):
        OnCPU(IMAGES.shape, 10)(torch.zeros(2, 1, 8, 8))


def test_a_large_network_takes_no_memory(folds, monkeypatch):
    monkeypatch.setattr("studyloom.question.validation.LARGE", 100)
    Witness.devices.clear()
    validate(
        ask(*NONE, "~model", "+model._target_=test_validation.Witness"),
        TrainingData(None, IMAGES, folds),
    )
    assert {*Witness.devices} == {"meta"}


@pytest.mark.parametrize("base", ["own", "mlp"])
def test_groups_within_groups_are_composed_checked_and_searched(folds, tmp_path, base):
    folder = tmp_path / "conf"
    shutil.copytree(CONF, folder)
    (folder / "model" / "block").mkdir()
    (folder / "model" / "own.yaml").write_text(
        "defaults: [block: plain]\n_target_: test_validation.Blocks\n"
    )
    (folder / "model" / "block" / "plain.yaml").write_text("kind: plain\n")
    (folder / "model" / "block" / "residual.yaml").write_text("kind: residual\ndepth: 2\n")
    search = "+space.model={mlp:null,own:{block:{plain:null,residual:{depth:{int:[1,3]}}}}}"
    question = ask(*NONE, f"model={base}", search, folder=folder)
    validate(question, TrainingData(None, IMAGES, folds))
    chosen = {"model": "own", "model.own.block": "residual", "model.own.block.residual.depth": 3}
    cfg = question.at(question.space.walk(lambda parameter: chosen[parameter.name]))
    assert cfg.model == {
        "_target_": "test_validation.Blocks",
        "block": {"kind": "residual", "depth": 3},
    }
    assert question.identity("x")["model/block=residual.depth"] == 2
    wrong = ask(
        *NONE,
        f"model={base}",
        search.replace("depth:{int:[1,3]}", "dept:{int:[1,3]}"),
        folder=folder,
    )
    assert (
        "space.model.own.block.residual.dept: model.block.dept: no such key; "
        "model.block has kind, depth"
    ) in only_mistake(wrong, folds)
    outside = ask(*NONE, f"model={base}", search.replace("[1,3]", "[3,4]"), folder=folder)
    assert "the default model.block.depth=2 is outside its range [3, 4]" in only_mistake(
        outside, folds
    )


def test_trying_out_leaves_the_random_numbers_of_the_caller_alone(main, folds):
    (job,) = main.jobs(main.baseline, folds, 0)
    before = torch.random.get_rng_state()
    try_out(job, IMAGES)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model._target_=studyloom.models.MPL"], ["studyloom.models.MPL", "MPL"]),
        (["model._target_=no_such_package.Net"], ["no_such_package"]),
        (["~model._target_"], ["model must have a _target_"]),
        (["+model.hiden=3"], ["hiden"]),
        (["optimizer._target_=torch.optim.Adma"], ["torch.optim.Adma"]),
        (["loss._target_=torch.nn.CrossEntropy"], ["torch.nn.CrossEntropy"]),
        (["train.loss=mse"], ["train.loss: 'mse' cannot be set here; choose it with loss=mse"]),
        (["sampler._target_=optuna.samplers.TPE"], ["sampler", "optuna.samplers.TPE"]),
        (["+sampler.seeed=3"], ["sampler=tpe", "seeed"]),
        (["pruner._target_=optuna.pruners.Median"], ["pruner", "optuna.pruners.Median"]),
        (["pruner.n_startup_trials=-1"], ["pruner=median", "-1"]),
        (["pruner=percentile", "pruner.percentile=300"], ["pruner=percentile", "300"]),
    ],
)
def test_what_cannot_be_built_is_named(folds, overrides, words):
    line = only_mistake(ask(*NONE, *overrides), folds)
    assert all(word in line for word in words), line
    assert "pip install" not in line


def test_the_library_that_a_sampler_lacks_is_named_with_the_way_to_get_it(folds):
    line = only_mistake(
        ask(*NONE, "sampler=random", "sampler._target_=test_validation.Needy"), folds
    )
    assert line.startswith(
        "sampler=random needs a library that is missing (pip install 'studyloom[samplers]')"
    )
    assert "nowhere" in line


def test_a_pruner_that_compares_jobs_is_refused_where_a_trial_has_one(folds):
    line = only_mistake(ask(*NONE, "pruner=wilcoxon"), folds)
    assert line.startswith("pruner=wilcoxon compares")
    assert "objective.folds=5" in line
    assert "pruner=median" in line


@pytest.mark.parametrize("jobs", ["objective.folds=2", "objective.seeds=2"])
def test_a_pruner_that_compares_jobs_takes_folds_and_seeds(folds, jobs):
    question = ask(*NONE, "pruner=wilcoxon", jobs)
    validate(question, TrainingData(None, IMAGES, folds))
    assert question.in_turn
    assert type(question.pruner()).__name__ == "WilcoxonPruner"


def test_jobs_are_in_lockstep_for_all_other_pruners_and_another_word_is_refused(folds):
    assert not ask(*NONE).in_turn
    assert ask(*NONE, "+pruner.steps=jobs").in_turn
    line = only_mistake(ask(*NONE, "+pruner.steps=folds"), folds)
    assert line == "pruner.steps must be epochs or jobs; got 'folds'"


def test_a_pruner_whose_library_is_missing_says_so_before_the_first_trial(folds, monkeypatch):
    """Optuna's WilcoxonPruner imports SciPy when it is first asked."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setattr("optuna.pruners._wilcoxon.ss", _LazyImport("scipy.stats"))
    line = only_mistake(ask(*NONE, "pruner=wilcoxon", "objective.folds=2"), folds)
    assert line.startswith(
        "pruner=wilcoxon needs a library that is missing (pip install 'studyloom[samplers]')"
    )
    assert "scipy" in line


def test_trials_that_are_reported_otherwise_belong_to_another_question():
    asked, other = (
        ask(*NONE, f"pruner={name}", "objective.folds=2").identity("x")
        for name in ("none", "wilcoxon")
    )
    assert {key: (asked[key], other[key]) for key in asked if asked[key] != other[key]} == {
        "pruner.steps": ("epochs", "jobs")
    }


def test_every_continuous_range_is_told_to_whoever_wants_a_grid(folds):
    lines = mistakes_of(ask("sampler=grid"), folds)
    assert (
        "space.optimizer.sgd.lr: a grid cannot enumerate a continuous range; "
        "give it a step, or a choice"
    ) in lines
    assert len(lines) == 5


def test_mistakes_of_all_sections_are_told_at_once(folds):
    wrong = (
        "study.trials=0",
        "study.seed=-1",
        "study.timeout=0",
        "objective.folds=0",
        "objective.seeds=0",
        "+space.train.epoch.int=[1,2]",
        "+space.optimizer.lr.float=[0,1]",
        "optimizer.lr=5",
        "+space.model.mlp.hiden.int=[1,2]",
    )
    lines = mistakes_of(ask(*NONE, *wrong), folds)
    for words in (
        "study.trials must be at least 1; got 0",
        "study.seed must be at least 0; got -1",
        "study.timeout must be a positive number",
        "objective.folds must be at least 1; got 0",
        "objective.seeds must be at least 1; got 0",
        "space.train.epoch",
        "optimizer.lr=5",
        "space.model.mlp.hiden",
    ):
        assert any(words in line for line in lines), words


def test_a_seed_that_numpy_does_not_take_is_told(folds):
    assert (
        only_mistake(ask(*NONE, "study.seed=4294967296"), folds)
        == "study.seed must be at most 4294967295; got 4294967296"
    )


def test_a_name_that_is_no_folder_is_told_with_the_other_mistakes(folds):
    """Hydra refuses it earlier, unless it makes no folder, as in a dry run."""
    assert "study.name must be a folder name, not 'a/b'" in only_mistake(
        ask(*NONE, "study.name=a/b"), folds
    )


def test_a_branch_is_tried_at_its_default_its_corners_and_each_choice(main):
    mlp = next(nodes for choices, nodes in main.space.branches() if choices == {"model": "mlp"})
    assert list(probes(mlp)) == [
        {},
        {"model.hidden": [16], "model.activation": "relu", "model.dropout": 0.0},
        {"model.hidden": [512, 512, 512], "model.activation": "sigmoid", "model.dropout": 0.5},
        {"model.activation": "relu"},
        {"model.activation": "tanh"},
        {"model.activation": "sigmoid"},
    ]
    assert list(probes(())) == [{}]


def test_a_check_composes_no_config_that_it_composed_before(main, folds, monkeypatch):
    validate(main, TrainingData(None, IMAGES, folds))
    monkeypatch.setattr(hydra, "compose", None)
    validate(main, TrainingData(None, IMAGES, folds))


def test_only_what_differs_from_the_config_as_composed_is_composed_again(main, folds):
    validate(main, TrainingData(None, IMAGES, folds))
    assert {*main.composer._cache} >= {
        frozenset(),
        frozenset({("model", "cnn")}),
        frozenset({("optimizer", "sgd")}),
    }
    assert main.at(main.baseline) == main.config
    assert main.composer.compose({"model": "mlp", "optimizer": "adamw"}) is main.config


def test_a_check_does_not_import_the_compiler():
    """Importing it takes a second."""
    script = (
        "import sys; from toys import *; from studyloom.question.validation import validate\n"
        "from studyloom.data.training_data import TrainingData\n"
        "split = toy_split(); validate(ask(*TINY), TrainingData(None, split, toy_folds(split)))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": paths}, capture_output=True
    )
    assert done.returncode == 0, done.stderr


# Two objectives


def mistakes_of_two(*overrides):
    """The mistakes of a question of two objectives."""
    split = toy_split()
    return mistakes_of(ask(*TWO, *overrides), toy_folds(split), split)


def test_two_objectives_are_the_metric_and_a_cost_and_part_of_the_question():
    question = ask(*TWO)
    validate(question, TrainingData(None, toy_split(), toy_folds(toy_split())))
    assert [(goal.name, goal.direction) for goal in question.goals] == [
        ("accuracy", "maximize"),
        ("parameters", "minimize"),
    ]
    assert question.metric.name == "accuracy"
    one, two = (
        ask(*TWO, f"objective.metric={metric}").identity("")
        for metric in ("accuracy", "[accuracy,flops]")
    )
    assert one != two != question.identity("")


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        *(
            (metric, "for two objectives a metric and then a cost of the network, parameters,")
            for metric in (
                "[accuracy]",
                "[accuracy,parameters,flops]",
                "[parameters,accuracy]",
                "[accuracy,f1_macro]",
            )
        ),
        ("[accuracy,parameter]", "did you mean parameters?"),
        ("[acuracy,parameters]", "objective.metric=acuracy: unknown metric"),
    ],
)
def test_what_are_no_two_objectives_is_told_with_the_way_out(metric, problem):
    (mistake,) = mistakes_of_two(f"objective.metric={metric}")
    assert problem in mistake


def test_a_direction_against_the_metric_is_refused_with_two_objectives_too():
    (mistake,) = mistakes_of_two("objective.direction=minimize")
    assert "must be maximize, since more accuracy is better" in mistake


def test_pruning_a_wrong_sampler_a_wrong_rule_and_other_mistakes_are_told_at_once():
    mistakes = mistakes_of_two(
        "pruner=median", "sampler=cmaes", "winner.rule='max acuracy'", "winner.top=0"
    )
    assert [re.match(r"[\w.=]+", line)[0] for line in mistakes] == [
        "winner.rule",
        "pruner=median",
        "sampler=cmaes",
        "winner.top",
    ]
    assert mistakes[1].endswith(
        " compares trials by a single value, and objective.metric names accuracy and parameters; "
        "set pruner=promotion or none, or a single objective, objective.metric=accuracy"
    )
    assert "sampler=tpe, nsga2, random" in mistakes[2]
    assert "a single objective, objective.metric=accuracy" in mistakes[2]


def test_promotion_is_let_through_with_two_objectives():
    data = TrainingData(None, toy_split(), toy_folds(toy_split()))
    validate(ask(*TWO, "pruner=promotion", "train.epochs=3"), data)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsga2"])
def test_samplers_for_two_objectives_are_let_through(sampler):
    validate(
        ask(*TWO, f"sampler={sampler}"), TrainingData(None, toy_split(), toy_folds(toy_split()))
    )


def test_a_rule_may_name_what_has_a_limit_and_nothing_else_with_one_objective():
    limited = "+objective.constraints={flops:'<= 1_000_000'}"
    one = "objective.metric=accuracy"
    assert str(ask(*TWO, one, limited, "winner.rule='max accuracy where flops < 9'").rule).endswith(
        "flops < 9"
    )
    (mistake,) = mistakes_of_two(one, limited, "winner.rule='max accuracy where parameters < 9'")
    assert "parameters is not known of a trial; there are accuracy, flops" in mistake
    assert ask(*TWO).rule is None


def test_the_rule_is_no_part_of_the_question():
    assert ask(*TWO, "winner.rule='min parameters'").identity("") == ask(*TWO).identity("")


def test_a_batch_that_cannot_be_divided_among_the_ranks_is_named():
    question = ask("space=lr", "+space.train.batch_size.choice=[2,32]", "train.batch_size=32")
    assert [*check_ranks(question, 2)] == []
    assert [*check_ranks(question, 4)] == [
        "train.batch_size must be at least 4, an example for each of launcher.ranks=4; got 2"
    ]
