"""The parts that a config names: losses, schedules, steps and groups; mistakes before trial 0."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler
from toys import ask, toy_folds, toy_split

from studyloom.data.split import make_folds
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError
from studyloom.metrics import METRICS
from studyloom.question.validation import validate
from studyloom.space.tree import Point
from studyloom.training.optimizer import Rates, TorchSchedule
from studyloom.training.trainer import Training

pytestmark = pytest.mark.usefixtures("composing")
SPLIT = toy_split()
TOY = ("space=none", "model.hidden=[16]", "train.epochs=2", "train.batch_size=40")


def question_of(*overrides):
    return ask(*TOY, *overrides)


def check(*overrides, split=SPLIT, folds=None):
    validate(question_of(*overrides), TrainingData(None, split, folds or toy_folds(split)))


def mistakes_of(*overrides, **data):
    with pytest.raises(ConfigError) as caught:
        check(*overrides, **data)
    return caught.value.mistakes


def job_of(*overrides):
    (job,) = question_of(*overrides).jobs(Point(), toy_folds(SPLIT), 0)
    return job


def curve(*overrides):
    training = Training([job_of(*overrides)], SPLIT)
    return [(epoch.train_loss, epoch.valid_loss, epoch.value) for (epoch,) in training]


# Losses of PyTorch


OUTPUTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2])
ONE_HOT = functional.one_hot(CLASSES, 3).float()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (
            ["loss._target_=torch.nn.BCEWithLogitsLoss"],
            functional.binary_cross_entropy_with_logits(OUTPUTS, ONE_HOT),
        ),
        (
            ["loss._target_=torch.nn.BCEWithLogitsLoss", "+loss.pos_weight=[1,2,3]"],
            functional.binary_cross_entropy_with_logits(
                OUTPUTS, ONE_HOT, pos_weight=torch.tensor([1.0, 2.0, 3.0])
            ),
        ),
        (
            [
                "loss._target_=torch.nn.CrossEntropyLoss",
                "loss.label_smoothing=0.1",
                "+loss.weight=[1,2,3]",
            ],
            functional.cross_entropy(
                OUTPUTS, CLASSES, weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1
            ),
        ),
        (["loss._target_=torch.nn.MSELoss"], functional.mse_loss(OUTPUTS, ONE_HOT)),
        (
            ["loss._target_=torch.nn.MultiMarginLoss"],
            functional.multi_margin_loss(OUTPUTS, CLASSES),
        ),
    ],
)
def test_a_loss_of_pytorch_is_taken_as_it_is_and_classes_are_made_to_fit(loss, expected):
    assert job_of(*loss).loss(OUTPUTS, CLASSES) == pytest.approx(expected.item())


def test_a_loss_of_pytorch_trains_and_its_weights_go_to_the_device():
    check("loss._target_=torch.nn.BCEWithLogitsLoss")
    bce = curve("loss._target_=torch.nn.BCEWithLogitsLoss", "train.epochs=15")
    assert bce[-1][2] > bce[0][2]
    loss = job_of("loss._target_=torch.nn.CrossEntropyLoss", "+loss.weight=[1,2,3]").loss
    assert loss.to("meta").weight.device.type == "meta"


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            ["loss._target_=torch.nn.BCEWithLogitsLoss", "loss.label_smoothing=0.1"],
            ["loss.label_smoothing=0.1: torch.nn.BCEWithLogitsLoss has no parameter", "'~loss.lab"],
        ),
        (
            ["loss._target_=torch.nn.CrossEntropyLoss", "+loss.reduction=sum"],
            ["loss.reduction must be mean", "got sum"],
        ),
        (["loss._target_=torch.nn.CTCLoss"], ["CTCLoss", "train.step"]),
    ],
)
def test_a_loss_that_does_not_fit_is_named_with_the_way_out(loss, words):
    (line,) = mistakes_of(*loss)
    assert all(word in line for word in words), line


# Schedules


PYTORCH = "scheduler={_target_: torch.optim.lr_scheduler.%s%s}"


def scheduler(name, settings=""):
    return ("~scheduler", "+" + PYTORCH % (name, settings))


def test_a_scheduler_of_pytorch_needs_no_partial_and_knows_the_length_of_the_training():
    job = job_of(*scheduler("OneCycleLR", ", max_lr: 0.1"))
    assert job.schedule == TorchSchedule(lr_scheduler.OneCycleLR, {"max_lr": 0.1})
    steps = job_of(*scheduler("StepLR", ", step_size: 1, _partial_: true, interval: step"))
    assert steps.schedule == TorchSchedule(lr_scheduler.StepLR, {"step_size": 1}, "step")
    assert curve(*scheduler("OneCycleLR", ", max_lr: 0.1")) != curve()
    warm = (
        ", milestones: [1], schedulers: [{_target_: torch.optim.lr_scheduler.LinearLR}, "
        "{_target_: torch.optim.lr_scheduler.CosineAnnealingLR}]"
    )
    check(*scheduler("SequentialLR", warm))
    assert curve(*scheduler("SequentialLR", warm)) != curve()


COSINE = TorchSchedule(lr_scheduler.CosineAnnealingLR, {})
WARM = TorchSchedule(lr_scheduler.LinearLR, {})


def rates_of(schedule, epochs, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    rates = Rates(schedule, optimizer, epochs, steps, METRICS["accuracy"])
    found = []
    for epoch in range(epochs):
        for step in range(steps):
            rates.before_step((epoch * steps + step) / (epochs * steps))
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            rates.after_step()
        rates.after_epoch(0.5)
    return found


def test_schedulers_of_an_outer_one_have_the_length_in_which_it_steps_them():
    """A cosine within one that steps with the optimizer does not begin anew in each epoch."""
    settings = {"milestones": [4], "schedulers": [WARM, COSINE]}
    rates = rates_of(TorchSchedule(lr_scheduler.SequentialLR, settings, "step"), 4, 5)
    top = rates.index(max(rates))
    assert rates[top:] == sorted(rates[top:], reverse=True)
    cycle = TorchSchedule(lr_scheduler.OneCycleLR, {"max_lr": 1.0})
    first = TorchSchedule(lr_scheduler.ConstantLR, {"factor": 1.0, "total_iters": 1})
    settings = {"milestones": [1], "schedulers": [first, cycle]}
    rates = rates_of(TorchSchedule(lr_scheduler.SequentialLR, settings), 10, 5)
    assert rates[-1] < 0.5 * max(rates), "the cycle comes down"


def test_an_interval_of_an_inner_scheduler_that_contradicts_the_outer_one_is_refused():
    inner = TorchSchedule(lr_scheduler.CosineAnnealingLR, {}, "step")
    outer = TorchSchedule(lr_scheduler.ChainedScheduler, {"schedulers": [inner]})
    with pytest.raises(ValueError, match=r"interval must be epoch, as that of the .*; got step"):
        rates_of(outer, 2, 2)


def no_schedule(epoch):
    return "fast"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (scheduler("StepLR", ", step_sise: 1"), ["scheduler.step_sise", "no parameter", "step_si"]),
        (scheduler("StepLR"), ["step_size"]),
        (
            scheduler("StepLR", ", step_size: 1, interval: day"),
            ["scheduler.interval must be epoch"],
        ),
        (scheduler("ReduceLROnPlateau", ", mode: min"), ["scheduler.mode must be max", "accuracy"]),
        (
            (
                "~scheduler",
                "+scheduler={_target_: torch.nn.Linear, in_features: 1, out_features: 1}",
            ),
            ["scheduler", "or a class of torch.optim.lr_scheduler"],
        ),
        (
            ("~scheduler", "+scheduler={_target_: test_parts.no_schedule, _partial_: true}"),
            ["scheduler: got 'fast' for progress 0", "or a class of torch.optim.lr_scheduler"],
        ),
        (
            ("~scheduler", "+scheduler={_target_: test_parts.no_schedule, epoch: 1}"),
            ["test_parts.no_schedule returned 'fast'", "_partial_: true"],
        ),
    ],
)
def test_what_is_no_schedule_is_named_with_what_is_one(overrides, words):
    (line,) = mistakes_of(*overrides)
    assert all(word in line for word in words), line


# Steps of one's own


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


def nothing(network, batch):
    return None


def scalar(network, batch):
    return network(batch[0]).mean()


def own(name, key="step", more=""):
    return f"train.{key}={{_target_: test_parts.{name}, _partial_: true{more}}}"


def test_a_step_of_ones_own_trains_as_ours_and_its_arguments_are_searched():
    assert curve(own("step"), own("evaluate", "evaluate")) == curve()
    searched = (own("step", more=", share: 1.0"), "+space.train.step.share.float=[0.5,1]")
    check(*searched)
    question = question_of(*searched)
    assert curve(own("step", more=", share: 0.5")) != curve()
    assert question.identity("d")["train.step._target_"] == "test_parts.step"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (own("broken"), ["train.step: TypeError: tuple", "for 40 examples"]),
        (own("broken", "evaluate"), ["train.evaluate: TypeError", "examples"]),
        (own("nothing"), ["train.step must return a loss, or", "nothing returned None"]),
        (own("scalar", "evaluate"), ["train.evaluate must return (loss, outputs, targets)"]),
        (own("of_forty"), ["train.step: RuntimeError: shape '[40, 1, 4, 4]'", "for 10 examples"]),
        (own("stepp"), ["train.step._target_=test_parts.stepp", "did you mean step?"]),
        ("train.step=test_parts.step", ["must be {_target_: module.function, _partial_: true}"]),
        ("train.step={_target_: test_parts.step}", ["is a function, and needs _partial_: true"]),
        (own("no_schedule"), ["test_parts.no_schedule", "it is called as (network, batch)"]),
        ("train.step={_target_: torch.nn.ReLU}", []),
    ],
)
def test_a_step_that_cannot_be_used_is_named_before_trial_0(override, words):
    lines = mistakes_of(override, split=toy_split(250), folds=toy_folds(toy_split(250)))
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines


# Groups of parameters


GROUPS = (
    "+optimizer.groups={first: {match: '1', lr: 0.001}, rest: {match: ['*.bias'], frozen: true}}"
)


def test_groups_are_searched_by_their_names_and_part_of_the_question():
    groups = "+optimizer.groups={first: {match: '1.*', lr: 0.1}}"
    question = question_of(
        groups, "+space.optimizer.groups.first.lr={float: [0.0001, 0.1], log: true}"
    )
    validate(question, TrainingData(None, SPLIT, toy_folds(SPLIT)))
    point = question.space.walk(lambda parameter: 0.05)
    (job,) = question.jobs(point, toy_folds(SPLIT), 0)
    assert [(group.match, dict(group.settings)) for group in job.groups] == [
        (("1.*",), {"lr": 0.05})
    ]
    assert question.identity("d")["optimizer.groups.first.lr"] == 0.1
    assert curve(groups) != curve()


def test_every_mistake_in_groups_is_named_before_trial_0():
    lines = mistakes_of(
        "+optimizer.groups={a: {lr: 1}, b: {match: 3}, c: {match: x, frozen: 1}, "
        "d: {match: x, frozen: true, lr: 1}, e: {match: x, lr: -1}}"
    )
    assert [line.partition(":")[0].partition(" must")[0] for line in lines] == [
        "optimizer.groups.a",
        "optimizer.groups.b.match",
        "optimizer.groups.c.frozen",
        "optimizer.groups.d",
        "optimizer.groups.e.lr",
    ]
    lines = mistakes_of(GROUPS)
    assert lines == [
        "optimizer.groups: the parameter 1.bias is in first and in rest; narrow the pattern of one "
        "of them"
    ]


# The last batch, and what old studies asked


class Normed(nn.Sequential):
    def __init__(self, shape, outputs):
        super().__init__(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, outputs))


@pytest.mark.parametrize("steps", [(), (own("step"),)])
def test_a_last_batch_of_one_with_batch_norm_is_named_and_drop_last_leaves_it_out(steps):
    split = toy_split(201)  # all of which the winner is trained on: five batches, and one example
    network = ("~model", "+model._target_=test_parts.Normed")
    overrides = (*TOY[:1], *TOY[2:], *network, *steps)
    data = TrainingData(None, split, make_folds(split.targets, 1, 41, 0))
    with pytest.raises(ConfigError, match=r"single example.*set train.drop_last=true, or another"):
        validate(ask(*overrides), data)
    validate(ask(*overrides, "train.drop_last=true"), data)
    validate(ask(*overrides, "train.batch_size=38"), data)


def test_what_may_be_added_is_searched_with_the_usual_checks():
    check(
        "train.ema=0.95",
        "train.patience=2",
        "train.accumulate=2",
        "+space.train.ema.float=[0.9,0.999]",
        "+space.train.patience.int=[1,5]",
        "+space.train.accumulate.choice=[1,2,4]",
    )
    (line,) = mistakes_of("+space.train.ema.float=[0.9,0.999]")
    assert "the default train.ema=null is null" in line
    assert "train.ema" in mistakes_of("train.ema=1", "+space.train.ema.float=[0.5,1]")[0]
    (line,) = mistakes_of("train.accumulate=0")
    assert line == "train.accumulate must be at least 1 (off); got 0"
