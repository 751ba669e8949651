"""The parts that a config names: losses, schedules, steps and groups; errors before trial 0."""

import pytest
import torch
from torch.nn import functional
from torch.optim import lr_scheduler
from toys import ask, toy_folds, toy_split, validate_search

from studyloom.data.training_data import TrainingData
from studyloom.definition.prepare import build_source
from studyloom.errors import ConfigError
from studyloom.space.tree import Configuration
from studyloom.training.optimizer import TorchSchedule
from studyloom.training.trainer import Training

pytestmark = pytest.mark.usefixtures("composing")
SPLIT = toy_split()
TOY = ("space=none", "model.hidden=[16]", "train.epochs=2", "train.batch_size=40")


def make_definition(*overrides):
    return ask(*TOY, *overrides)


def check(*overrides, split=SPLIT, folds=None):
    validate_search(
        make_definition(*overrides), TrainingData(None, split, folds or toy_folds(split))
    )


def find_errors(*overrides, **data):
    with pytest.raises(ConfigError) as caught:
        check(*overrides, **data)
    return caught.value.errors


def build_job(*overrides):
    (job,) = make_definition(*overrides).build_jobs(Configuration(), toy_folds(SPLIT), 0)
    return job


def curve(*overrides):
    training = Training([build_job(*overrides)], SPLIT)
    return [(epoch.train_loss, epoch.valid_loss, epoch.value) for (epoch,) in training]


# Losses of PyTorch


OUTPUTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2])
ONE_HOT = functional.one_hot(CLASSES, 3).float()


def test_a_loss_of_pytorch_takes_classes_even_if_it_is_of_numbers():
    weights, binary = torch.tensor([1.0, 2.0, 3.0]), "loss._target_=torch.nn.BCEWithLogitsLoss"
    smooth = ("loss.label_smoothing=0.1", "+loss.weight=[1,2,3]")
    for loss, expected in (
        ([binary], functional.binary_cross_entropy_with_logits(OUTPUTS, ONE_HOT)),
        (
            [binary, "+loss.pos_weight=[1,2,3]"],
            functional.binary_cross_entropy_with_logits(OUTPUTS, ONE_HOT, pos_weight=weights),
        ),
        (
            ["loss._target_=torch.nn.CrossEntropyLoss", *smooth],
            functional.cross_entropy(OUTPUTS, CLASSES, weight=weights, label_smoothing=0.1),
        ),
    ):
        assert build_job(*loss).loss(OUTPUTS, CLASSES) == pytest.approx(expected.item())


def test_a_loss_that_does_not_fit_is_refused_with_a_fix():
    for loss, words in {
        ("BCEWithLogitsLoss", "loss.label_smoothing=0.1"): "'~loss.label_smoothing'",
        ("CrossEntropyLoss", "+loss.reduction=sum"): "loss.reduction must be mean",
        ("CTCLoss",): "train.step",
    }.items():
        (line,) = find_errors(f"loss._target_=torch.nn.{loss[0]}", *loss[1:])
        assert words in line


# Schedules


PYTORCH = "scheduler={_target_: torch.optim.lr_scheduler.%s%s}"


def scheduler(name, settings=""):
    return ("~scheduler", "+" + PYTORCH % (name, settings))


def test_a_scheduler_of_pytorch_gets_the_length_of_the_training():
    job = build_job(*scheduler("OneCycleLR", ", max_lr: 0.1"))
    assert job.schedule == TorchSchedule(lr_scheduler.OneCycleLR, {"max_lr": 0.1})
    steps = build_job(*scheduler("StepLR", ", step_size: 1, _partial_: true, interval: step"))
    assert steps.schedule == TorchSchedule(lr_scheduler.StepLR, {"step_size": 1}, "step")
    assert curve(*scheduler("OneCycleLR", ", max_lr: 0.1")) != curve()
    warm = (
        ", milestones: [1], schedulers: [{_target_: torch.optim.lr_scheduler.LinearLR}, "
        "{_target_: torch.optim.lr_scheduler.CosineAnnealingLR}]"
    )
    check(*scheduler("SequentialLR", warm))
    assert curve(*scheduler("SequentialLR", warm)) != curve()


def no_schedule(epoch):
    return "fast"


OWN = ("~scheduler", "+scheduler={_target_: test_parts.no_schedule%s}")


def test_an_invalid_schedule_is_refused_with_what_a_schedule_is():
    for overrides, words in (
        (scheduler("StepLR", ", step_sise: 1"), "got an unexpected keyword argument 'step_sise'"),
        (scheduler("ReduceLROnPlateau", ", mode: min"), "scheduler.mode must be max"),
        ((OWN[0], OWN[1] % ", _partial_: true"), "scheduler: got 'fast' for progress 0"),
        ((OWN[0], OWN[1] % ", epoch: 1"), "or a class of torch.optim.lr_scheduler"),
    ):
        (line,) = find_errors(*overrides)
        assert words in line


# Optimizers


def optimizer(name, settings="lr: 0.1"):
    target = f"_target_: torch.optim.{name}, _partial_: true, {settings}"
    return ("~optimizer", f"+optimizer={{{target}}}")


def sparse(shape, outputs, **settings):
    """A network in which all gradients are sparse."""
    return Sparse(outputs)


class Sparse(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.rows = torch.nn.Embedding(2, outputs, sparse=True)

    def forward(self, inputs):
        return self.rows((inputs.flatten(1).sum(1) > 0).long())


def test_an_optimizer_that_cannot_train_is_refused_before_trial_0():
    of_rows = ("model._target_=test_parts.sparse",)
    for overrides, words in (
        (optimizer("LBFGS"), "optimizer: LBFGS computes the loss several times in a step"),
        (optimizer("SparseAdam"), "SparseAdam cannot train the network: RuntimeError: SparseAdam"),
        ((*of_rows, *optimizer("Adam")), "Adam cannot train the network: RuntimeError: Adam does"),
    ):
        (line,) = find_errors(*overrides)
        assert words in line
        assert "such as torch.optim.AdamW, or train it yourself" in line
    check(*of_rows, *optimizer("SparseAdam"))


def test_an_unknown_setting_of_an_optimizer_is_refused_with_a_fix():
    lines = find_errors("optimizer._target_=torch.optim.SparseAdam")
    for name, line in zip(("weight_decay", "fused"), lines, strict=True):
        assert line.startswith(f"optimizer.{name}: torch.optim.SparseAdam has no parameter {name}")
        assert line.endswith(f"leave it out with '~optimizer.{name}'")


# Custom steps


def step(network, batch, loss, share=1.0):
    inputs, targets = batch
    return share * loss(network(inputs), targets)


def evaluate(network, batch, loss):
    inputs, targets = batch
    outputs = network(inputs)
    return loss(outputs, targets), outputs, targets


def of_forty(network, batch, loss):
    return loss(network(batch[0]), batch[1]) + batch[0].view(40, 1, 4, 4).mean()


def broken(network, batch):
    return network(batch["images"]).mean()


class Distilled(torch.nn.Module):
    """A step that is a network itself, such as one with a teacher."""

    def __init__(self, teacher=None):
        super().__init__()

    def forward(self, network, batch, loss):
        return step(network, batch, loss)


def own(name, key="step", more=""):
    return f"train.{key}={{_target_: test_parts.{name}, _partial_: true{more}}}"


def test_a_custom_step_trains_alike_and_its_arguments_are_searched():
    assert curve(own("step"), own("evaluate", "evaluate")) == curve()
    assert curve("train.step={_target_: test_parts.Distilled}") == curve()
    searched = (own("step", more=", share: 1.0"), "+space.train.step.share.float=[0.5,1]")
    check(*searched)
    definition = make_definition(*searched)
    assert curve(own("step", more=", share: 0.5")) != curve()
    assert definition.identity("d")["train.step._target_"] == "test_parts.step"


def test_a_custom_step_that_fails_is_refused_before_trial_0():
    for override, words in {
        own("broken"): "train.step: TypeError: tuple",
        own("broken", "evaluate"): "train.evaluate: TypeError",
        own("of_forty"): "shape '[40, 1, 4, 4]' is invalid for input of size 160, for 10 exam",
        "train.step=test_parts.step": "train.step must have a _target_",
        own("no_schedule"): "takes 1 positional argument but 2 were given",
        "train.step={_target_: test_parts.Distilled, teacher: {_target_: torch.load, f: t.pt}}": (
            "train.step.teacher: FileNotFoundError: [Errno 2] No such file or directory: 't.pt'"
        ),
    }.items():
        (line,) = find_errors(override, split=toy_split(250), folds=toy_folds(toy_split(250)))
        assert words in line


# Groups of parameters


def test_parameter_groups_are_searched_and_part_of_the_definition():
    groups = "+optimizer.groups={first: {match: '1.*', lr: 0.1}}"
    definition = make_definition(
        groups, "+space.optimizer.groups.first.lr={float: [0.0001, 0.1], log: true}"
    )
    validate_search(definition, TrainingData(None, SPLIT, toy_folds(SPLIT)))
    configuration = definition.space.walk(lambda parameter: 0.05)
    (job,) = definition.build_jobs(configuration, toy_folds(SPLIT), 0)
    assert [(group.match, dict(group.settings)) for group in job.groups] == [
        (("1.*",), {"lr": 0.05})
    ]
    assert definition.identity("d")["optimizer.groups.first.lr"] == 0.1
    assert curve(groups) != curve()


def test_every_error_in_parameter_groups_is_reported_before_trial_0():
    lines = find_errors("+optimizer.groups={a: {lr: 1}, b: {match: 3}, c: {match: '*'}}")
    assert [line.partition(":")[0] for line in lines] == [f"optimizer.groups.{n}" for n in "ab"]


class NoSource:
    """A class that is named as a source of data, and is none."""


def test_a_target_that_is_no_data_source_is_refused():
    config = make_definition("~data", "+data={_target_: test_parts.NoSource}").config
    with pytest.raises(ConfigError, match="must be a subclass of studyloom"):
        build_source(config["data"])
