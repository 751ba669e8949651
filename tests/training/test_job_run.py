"""What may be added to plain training: each way equals the loop that one would write by hand."""

import math
import random
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from test_randomness import draw
from test_trainer import SPLIT, curve, mixed, toy_job
from torch import nn
from torch.optim import lr_scheduler

from studyloom.definition import preflight
from studyloom.definition.preflight import try_out
from studyloom.metrics import METRICS
from studyloom.models import MLP
from studyloom.training.optimizer import TorchSchedule
from studyloom.training.randomness import seeded
from studyloom.training.states import plain_state
from studyloom.training.steps import check_gradient_scaler
from studyloom.training.trainer import JobRun, Training, evaluate_network
from studyloom.winner.predictions import compute_outputs

PLAIN = {"model": partial(MLP, hidden=(8,)), "optimizer": partial(torch.optim.SGD, lr=0.1)}


def weights_of(job):
    training = Training([job], SPLIT)
    list(training)
    return training.weights()[0]


def close(one, other, **tolerance):
    return all(torch.allclose(one[name], other[name], **tolerance) for name in one)


def plain(network, batch, loss):
    """The built-in step."""
    inputs, targets = batch
    outputs = network(inputs)
    return loss(outputs, targets), outputs, targets


def test_a_custom_step_like_the_built_in_one_changes_no_bit():
    expected = curve(toy_job())
    assert curve(toy_job(step=plain, evaluate=plain)) == expected
    assert curve(toy_job(step=mixed)) != expected

    def own(network, batch):  # with a loss of its own
        return nn.functional.cross_entropy(network(batch[0]), batch[1])

    assert curve(toy_job(step=own)) == expected


def test_the_metric_measures_what_a_custom_evaluation_returns():
    def flipped(network, batch, loss):
        value, outputs, targets = plain(network, batch, loss)
        return value, -outputs, targets

    (*_, value) = curve(toy_job(epochs=30, **PLAIN))[-1]
    (*_, other) = curve(toy_job(epochs=30, evaluate=flipped, **PLAIN))[-1]
    assert value > 0.8 > 0.2 > other
    job = toy_job(evaluate=flipped)
    model = job.model(shape=SPLIT.shape, outputs=SPLIT.outputs)
    outputs, targets = evaluate_network(job, model, SPLIT)
    with torch.no_grad():
        assert torch.allclose(outputs, -model.eval()(SPLIT.inputs), atol=1e-6)
    assert torch.equal(targets, SPLIT.targets)


def test_an_evaluation_leaves_the_callers_random_state_and_repeats():
    def noisy(network, batch, loss):
        value, outputs, targets = plain(network, batch, loss)
        noise = random.random() + np.random.rand() + torch.rand(outputs.shape)
        return value, outputs + noise, targets

    job = toy_job(evaluate=noisy)
    weights = plain_state(job.model(shape=SPLIT.shape, outputs=SPLIT.outputs))
    with seeded(3):
        expected = draw()
    with seeded(3):
        outputs = compute_outputs(job, weights, SPLIT).outputs
        assert draw() == expected
    assert torch.equal(compute_outputs(job, weights, SPLIT).outputs, outputs)


def test_a_network_can_train_with_what_it_kept_in_an_evaluation():
    """Such as the tables of rotary embeddings, which a network computes once and keeps."""
    kept = {}

    class Keeping(MLP):
        def forward(self, inputs):
            if not self.training:
                kept["cos"] = torch.cos(torch.arange(3))
            return super().forward(inputs) * kept["cos"]

    job = toy_job(model=Keeping)
    try_out(job, SPLIT)  # it evaluates before it trains
    run = JobRun(job, SPLIT)
    run.run_epoch()
    run.run_epoch()
    evaluate_network(job, run.model, SPLIT)
    run.run_epoch()


def test_a_custom_step_is_tried_on_one_batch_of_few_examples():
    tried_sizes = []

    def step(network, batch):
        inputs, targets = batch
        tried_sizes.append(len(targets))
        return nn.functional.cross_entropy(network(inputs), targets)

    job = toy_job(step=step, batch_size=64)
    try_out(job, SPLIT, [job.last_batch_size])
    assert tried_sizes == [45]


def test_an_error_names_a_custom_step_that_returns_something_else():
    def few(network, batch):
        outputs = network(batch[0])
        return outputs.mean(), outputs[:3], batch[1]

    shape = r"outputs of each example; .* returned a tensor of the shape \(3, 3\) for 15 examples"
    for name, function, words in (
        ("step", lambda *_: None, "train.step must return a loss, or .* returned None"),
        ("step", lambda net, batch: net(batch[0]).mean(1), "must be a scalar, .*return loss.mean"),
        ("step", lambda net, batch: net(batch[0]).mean().detach(), "has no gradient: it was det"),
        ("evaluate", lambda net, batch: net(batch[0]).mean(), "evaluate must return .loss, outp"),
        ("evaluate", few, shape),
    ):
        with pytest.raises(ValueError, match=words):
            curve(toy_job(**{name: function}))


# Accumulation, precision, the average of the weights


def test_accumulated_batches_equal_one_large_batch():
    make = partial(toy_job, clip_norm=0.05, schedule=lambda progress: 1 - progress, **PLAIN)
    job, whole = make(batch_size=20), make(batch_size=21)
    parts = make(batch_size=7, accumulate=3)
    assert close(weights_of(parts), weights_of(whole), atol=1e-6)
    assert not close(weights_of(parts), weights_of(job), atol=1e-4)
    for ours, theirs in zip(curve(parts), curve(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


class ScalerOfPyTorch26(torch.amp.GradScaler):
    """Raises the error that PyTorch 2.6 and 2.7 raise on a Mac's GPU."""

    def unscale_(self, optimizer):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


class ZeroingScaler(torch.amp.GradScaler):
    """Sets gradients to zero, as PyTorch did for those of 16 bits on a Mac's GPU."""

    def unscale_(self, optimizer):
        optimizer.param_groups[0]["params"][0].grad.zero_()


@pytest.mark.parametrize(
    ("scaler", "reason"),
    [
        (ScalerOfPyTorch26, "TypeError: Cannot convert a MPS Tensor to float64 dtype"),
        (ZeroingScaler, "a gradient of 1 became 0"),
    ],
)
def test_fp16_is_refused_where_gradients_cannot_be_scaled(monkeypatch, scaler, reason):
    cpu = torch.device("cpu")
    check_gradient_scaler(cpu)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    with pytest.raises(ValueError, match=r"train\.precision=fp16: .* on cpu .*" + reason):
        check_gradient_scaler(cpu)


def test_fp16_on_a_mac_is_tried_before_trial_0(monkeypatch):
    checked = []
    monkeypatch.setattr(preflight, "training_device", lambda: torch.device("mps"))
    monkeypatch.setattr(preflight, "check_gradient_scaler", checked.append)
    try_out(toy_job(), SPLIT)
    assert checked == []
    try_out(toy_job(precision="fp16"), SPLIT)
    assert checked == [torch.device("mps")]


def test_fp16_follows_fp32_closely_and_skips_steps_that_overflow():
    job = toy_job(epochs=5, model=partial(MLP, hidden=(8,)))
    exact, rough = curve(job), curve(toy_job(epochs=5, precision="fp16", model=job.model))
    assert exact != rough
    for one, other in zip(exact, rough, strict=True):
        assert other[1:3] == pytest.approx(one[1:3], rel=0.05)

    def overflowing(network, batch, loss):  # with the first scale, 65536, and not with 4096
        return 1e34 * network(batch[0]).float().square().mean()

    training = Training([toy_job(precision="fp16", step=overflowing)], SPLIT)
    before = deepcopy(training.weights()[0])
    next(iter(training))
    (run,) = training._runs
    assert run.scaler.get_scale() == 65536 / 2**5
    assert close(training.weights()[0], before, atol=0)


def test_the_average_of_weights_is_evaluated_and_returned():
    raw, averaged = toy_job(**PLAIN), toy_job(ema=0.6, **PLAIN)
    training = Training([averaged], SPLIT)
    (run,) = training._runs
    average = {name: weight.clone() for name, weight in run.model.state_dict().items()}

    def follow(step):
        decay = min(0.6, (1 + step) / (10 + step))
        for name, weight in run.model.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * weight

    real = run.average.update
    run.average.update = lambda step: (follow(step), real(step))
    history = [epoch for (epoch,) in training]
    assert close(training.weights()[0], average, atol=1e-6)
    assert not close(training.weights()[0], run.model.state_dict(), atol=1e-4)
    assert close(run.model.state_dict(), weights_of(raw), atol=0), "the average trains nothing"
    network = averaged.model(shape=SPLIT.shape, outputs=SPLIT.outputs)
    network.load_state_dict(training.weights()[0])
    with torch.no_grad():
        loss = raw.loss(network.eval()(SPLIT.inputs[45:]), SPLIT.targets[45:])
    assert history[-1].valid_loss == pytest.approx(loss.item(), rel=1e-6)


# PyTorch's schedulers


def rates_by_hand(make, each_step):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    optimizer._opt_called = True  # its steps would do nothing, but import PyTorch's compiler
    scheduler, rates = make(optimizer), []
    for _ in range(3):
        for _ in range(5):
            rates.append(optimizer.param_groups[0]["lr"])
            if each_step:
                scheduler.step()
        if not each_step:
            scheduler.step()
    return rates


SCHEDULERS = {
    "CosineAnnealingLR": ({}, None, {"T_max": 3}),
    "PolynomialLR": ({"total_iters": 3}, "epoch", {}),
    "LinearLR": ({"total_iters": 6}, "step", {}),
    "OneCycleLR": ({"max_lr": 1.0}, None, {"total_steps": 15}),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_pytorch_steps_as_its_documentation_says(name):
    kind = getattr(lr_scheduler, name)
    settings, interval, filled = SCHEDULERS[name]
    schedule = TorchSchedule(kind, settings, interval)
    made, seen = [], []

    def optimizer(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
        return made[-1]

    def step(network, batch, loss):
        seen.append(made[-1].param_groups[0]["lr"])
        return plain(network, batch, loss)

    curve(toy_job(schedule=schedule, optimizer=optimizer, step=step))
    make = partial(kind, **settings, **filled)
    each_step = interval == "step" or name == "OneCycleLR"
    assert seen == rates_by_hand(make, each_step)


@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("cross_entropy", "min")])
def test_a_plateau_steps_on_the_metric_in_its_direction(metric, mode):
    kind, sign = lr_scheduler.ReduceLROnPlateau, 1 if mode == "max" else -1
    schedule = TorchSchedule(kind, {"patience": 0, "threshold": 0.0, "factor": 0.5})
    training = Training([toy_job(schedule=schedule, epochs=20, metric=METRICS[metric])], SPLIT)
    (run,) = training._runs
    best, expected = -math.inf, 0.01
    for (epoch,) in training:
        if sign * epoch.value <= best:
            expected *= 0.5
        best = max(best, sign * epoch.value)
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    assert expected < 0.01, "it never reached a plateau"
    wrong = TorchSchedule(kind, {"mode": "min" if mode == "max" else "max"})
    with pytest.raises(ValueError, match=f"scheduler.mode must be {mode}, since .* {metric}"):
        curve(toy_job(schedule=wrong, metric=METRICS[metric]))


def test_a_plateau_steps_on_recorded_values_also_when_resumed():
    settings = {"patience": 0, "threshold": 0.0, "factor": 0.5}
    recorded = (0.3, 0.5, 0.4, 0.6, 0.6)
    job = toy_job(
        schedule=TorchSchedule(lr_scheduler.ReduceLROnPlateau, settings, recorded=recorded),
        epochs=5,
        metric=scripted(*[0.9] * 5),
    )
    training = Training([job], SPLIT)
    rates = []
    for _ in training:
        (run,) = training._runs
        rates.append(run.optimizer.param_groups[0]["lr"])
        state = training.state()
        training.restore(state)
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025])


# Patience, and the best epoch


def scripted(*values):
    """A metric with a given value at each evaluation."""
    values = iter(values)
    return METRICS["accuracy"].__class__(
        "script", "maximize", lambda outputs, targets: next(values)
    )


def test_patience_ends_a_training_and_best_selects_weights_and_value():
    for weights, number, value in (("best", 2, 0.5), ("last", 4, 0.4)):
        metric = scripted(0.3, 0.5, 0.5, 0.4, 0.9)
        training = Training([toy_job(epochs=5, metric=metric, patience=2, weights=weights)], SPLIT)
        snapshots = [deepcopy(training._runs[0].model.state_dict()) for _ in training]
        assert [epoch.value for (epoch,) in training.history] == [0.3, 0.5, 0.5, 0.4]
        assert (training.epochs, training.has_ended, len(training.history)) == (4, True, 4)
        assert [(epoch.number, epoch.value) for epoch in training.select_epochs()] == [
            (number, value)
        ]
        assert close(training.weights()[0], snapshots[number - 1], atol=0)


def two_jobs():
    """The first ends after 3 of 6 epochs, and the second after 5."""
    one = scripted(0.5, 0.4, 0.3, *[9.0] * 9)
    other = scripted(0.1, 0.2, 0.8, 0.2, 0.1, *[9.0] * 9)
    return [
        toy_job(epochs=6, patience=2, weights="best", seed=1, metric=one),
        toy_job(epochs=6, patience=2, weights="best", seed=2, metric=other),
    ]


def test_a_job_that_patience_ends_counts_until_the_other_jobs_end():
    training = Training(two_jobs(), SPLIT)
    values, states = [], [training.state()]
    for epochs in training:
        values.append([epoch.value for epoch in epochs])
        states.append(training.state())
    assert values == [[0.5, 0.1], [0.4, 0.2], [0.3, 0.8], [0.5, 0.2], [0.5, 0.1]]
    assert training.epochs == 5
    assert [epoch.value for epoch in training.select_epochs()] == [0.5, 0.8]
    for stop, state in enumerate(states):
        resumed = Training(two_jobs(), SPLIT)
        resumed.restore(state)
        assert (len(resumed.history), resumed.has_ended) == (stop, stop == len(values))
    assert list(resumed) == []


def test_until_ends_a_training_on_the_schedule_of_all_epochs():
    def schedule(progress):
        return 1 - progress

    whole = curve(toy_job(epochs=6, schedule=schedule))
    assert curve(toy_job(epochs=6, until=2, schedule=schedule)) == whole[:2]
    assert Training([toy_job(epochs=6, until=2)], SPLIT).epochs == 2
