"""Training equals a plain loop, stops and resumes at any epoch, and changes nothing outside."""

import itertools
import math
import pickle
import random
from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from studyloom.data.split import Split, make_folds
from studyloom.errors import Diverged
from studyloom.losses import MSE, CrossEntropy
from studyloom.models import CNN, MLP
from studyloom.optimizers import Muon
from studyloom.schedules import constant, cosine, one_cycle
from studyloom.training.job import Epoch, Job
from studyloom.training.optimizer import ParameterGroup, TorchSchedule
from studyloom.training.steps import on_threads
from studyloom.training.trainer import Training

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def toy_split() -> Split:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randn(60, 1, 4, 4, generator=generator) + labels[:, None, None, None]
    return Split(images, labels, 3, "toy")


SPLIT = toy_split()


def toy_job(**changes) -> Job:
    job = Job(
        model=partial(MLP, hidden=(8,), dropout=0.2),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        schedule=constant,
        loss=nn.CrossEntropyLoss(),
        train=torch.arange(45),
        valid=torch.arange(45, 60),
        epochs=3,
        batch_size=10,
        seed=1,
    )
    return replace(job, **changes)


class Noisy(nn.Linear):
    """Draws from Python's and NumPy's generators, for its initial weights and in training."""

    def __init__(self, shape, outputs):
        super().__init__(math.prod(shape), outputs)
        self.bias.data.fill_(random.random() + np.random.rand())

    def forward(self, inputs):
        noise = random.gauss(0, 1) + np.random.randn() if self.training else 0.0
        return super().forward(inputs.flatten(1) + noise)


class NoisyLoss(nn.Module):
    """Adapts to a training set by chance: it draws the weights of the classes."""

    def adapt(self, inputs, targets):
        noise = random.random() + np.random.rand()
        self.register_buffer("weight", noise + torch.rand(3, device=targets.device))

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, self.weight)


def epochs(jobs, split):
    """Trains jobs in lockstep."""
    return iter(Training(jobs, split))


def numbers_of(epoch: Epoch) -> tuple[float, ...]:
    """The numbers of an epoch, without the times."""
    return astuple(epoch)[:4]


def curve(job: Job, split: Split = SPLIT) -> list[tuple[float, ...]]:
    return [numbers_of(epoch) for (epoch,) in epochs([job], split)]


def plain_loop(job: Job, split: Split) -> list[tuple[float, ...]]:
    """Trains as one would write it by hand, slowly and with autograd for everything."""
    curve = []
    with torch.random.fork_rng():
        torch.manual_seed(job.seed)
        model = job.model(shape=split.shape, outputs=split.outputs)
        optimizer = job.optimizer(model.parameters())
        base = optimizer.param_groups[0]["lr"]
        samples = job.samples_per_epoch or len(job.train)
        steps = job.epochs * math.ceil(samples / job.batch_size)
        step = 0
        for number in range(1, job.epochs + 1):
            model.train()
            order = job.train[torch.randperm(len(job.train))][:samples]
            losses = []
            for start in range(0, samples, job.batch_size):
                batch = order[start : start + job.batch_size]
                optimizer.param_groups[0]["lr"] = base * job.schedule(step / steps)
                loss = job.loss(model(split.inputs[batch]), split.targets[batch])
                losses += [loss.item()] * len(batch)
                penalty = sum(p.abs().sum() for p in model.parameters() if p.ndim > 1)
                optimizer.zero_grad()
                (loss + job.l1 * penalty).backward()
                if job.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), job.clip_norm)
                optimizer.step()
                step += 1
            model.eval()
            with torch.no_grad():
                outputs = model(split.inputs[job.valid])
            valid_loss = job.loss(outputs, split.targets[job.valid]).item()
            accuracy = (outputs.argmax(1) == split.targets[job.valid]).float().mean().item()
            curve.append((number, sum(losses) / samples, valid_loss, accuracy))
    return curve


PLAIN = [
    {"batch_size": 7, "samples_per_epoch": 20, "schedule": one_cycle},
    {
        "optimizer": partial(torch.optim.AdamW, lr=0.01, fused=True),
        "loss": MSE(label_smoothing=0.1),
    },
    {
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
        "model": partial(CNN, channels=4, norm="batch", dropout=0.3),
        "l1": 0.001,
        "clip_norm": 1.0,
        "schedule": cosine,
    },
]


@pytest.mark.parametrize("changes", PLAIN)
def test_training_equals_a_plain_loop(changes):
    job = toy_job(**changes)
    for ours, theirs in zip(curve(job), plain_loop(job, SPLIT), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


class Recorder(nn.CrossEntropyLoss):
    """Records the labels of every training batch; each image has a label of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []

    def forward(self, outputs, labels):
        if outputs.requires_grad:
            self.batches.append(labels.tolist())
        return super().forward(outputs, labels)


def test_each_epoch_draws_other_examples_without_replacement():
    split = Split(torch.randn(12, 1, 2, 2), torch.arange(12), 12, "toy")
    part = {"train": torch.arange(10), "valid": torch.arange(10, 12)}
    for samples, batch_size, sizes in ((None, 4, [4, 4, 2]), (5, 5, [5])):
        seen, job = Recorder(), toy_job(batch_size=batch_size, samples_per_epoch=samples, **part)
        list(epochs([replace(job, loss=seen, epochs=12)], split))
        assert [len(batch) for batch in seen.batches] == sizes * 12
        drawn = iter(seen.batches)
        orders = [(*itertools.chain(*(next(drawn) for _ in sizes)),) for _ in range(12)]
        assert all(len({*order}) == (samples or 10) for order in orders)
        assert {*itertools.chain(*orders)} == {*range(10)}
        assert len({*orders}) == 12


# Randomness


def test_a_job_trains_alike_with_and_without_other_jobs():
    jobs = [
        toy_job(seed=2, model=partial(CNN, channels=4, dropout=0.3)),
        toy_job(),
        toy_job(seed=3, train=torch.arange(15, 60), valid=torch.arange(15)),
        toy_job(model=Noisy),
    ]
    separate = [curve(job) for job in jobs]
    together = [[numbers_of(epoch) for epoch in each] for each in Training(jobs, SPLIT)]
    assert together == [[*each] for each in zip(*separate, strict=True)]


@pytest.mark.parametrize("device", DEVICES)
def test_the_callers_random_state_neither_changes_nor_matters(device):
    """Also if the training crashes."""
    split = SPLIT.to(device)

    def draw():
        drawn = torch.rand(4), torch.rand(4, device=device), np.random.randn(3)
        return [random.gauss(0, 1), *(each.tolist() for each in drawn)]

    def seed():
        torch.manual_seed(5), np.random.seed(5), random.seed(5)

    seed()
    undisturbed = [draw() for _ in range(4)]
    seed()
    disturbed, ours = [], []
    job = toy_job(model=Noisy, loss=NoisyLoss())
    for (epoch,) in epochs([job], split):
        disturbed.append(draw())
        ours.append(numbers_of(epoch))
    with pytest.raises(ZeroDivisionError):
        curve(toy_job(loss=lambda outputs, labels: 1 / 0), split)
    assert [*disturbed, draw()] == undisturbed
    assert ours == curve(job, split)


# Stopping and resuming

RESUMABLE = {
    "sgd with momentum": {
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "schedule": cosine,
    },
    "adamw fused": {"optimizer": partial(torch.optim.AdamW, lr=0.01, fused=True)},
    "rmsprop": {
        "optimizer": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
        "l1": 0.01,
        "clip_norm": 0.1,
    },
    "batch norm and dropout": {
        "model": partial(CNN, channels=4, norm="batch", dropout=0.3),
        "optimizer": partial(torch.optim.AdamW, lr=0.01, fused=True),
        "samples_per_epoch": 20,
    },
    "a schedule of numpy numbers": {"schedule": lambda progress: np.cos(np.float64(progress))},
}
LOCKSTEP = ("sgd with momentum", "adamw fused", "rmsprop", "batch norm and dropout")


def mixed(network, batch, loss):
    """A custom step that draws random numbers: mixup."""
    inputs, targets = batch
    other, share = torch.randperm(len(targets)), torch.rand(())
    outputs = network(share * inputs + (1 - share) * inputs[other])
    return share * loss(outputs, targets) + (1 - share) * loss(outputs, targets[other])


RESUMABLE |= {
    "a custom step": {"step": mixed},
    "noise of Python and NumPy": {"model": Noisy},
    "a loss that draws when it adapts": {"loss": NoisyLoss()},
    "accumulation without the last batch": {"accumulate": 2, "batch_size": 7, "drop_last": True},
    "the best epoch of an average with batch norm": {
        **RESUMABLE["batch norm and dropout"],
        "ema": 0.5,
        "weights": "best",
        "optimizer": partial(torch.optim.SGD, lr=1.0),
    },
    "fp16": {"precision": "fp16", "clip_norm": 0.5, "l1": 0.001},
    "groups": {
        "groups": (
            ParameterGroup("first", ("1",), frozen=True),
            ParameterGroup("rest", ("[2-9].*",), settings={"lr": 0.1, "weight_decay": 0.5}),
        )
    },
    "a plateau": {"schedule": TorchSchedule(lr_scheduler.ReduceLROnPlateau, {"patience": 0})},
    "a scheduler each step": {"schedule": TorchSchedule(lr_scheduler.OneCycleLR, {"max_lr": 0.1})},
    "two schedulers in sequence": {
        "schedule": TorchSchedule(
            lr_scheduler.SequentialLR,
            {
                "schedulers": [
                    TorchSchedule(lr_scheduler.LinearLR, {"total_iters": 4}, "step"),
                    TorchSchedule(lr_scheduler.CosineAnnealingLR, {}, "step"),
                ],
                "milestones": [4],
            },
            "step",
        )
    },
    "everything at once": {
        "step": mixed,
        "accumulate": 3,
        "ema": 0.8,
        "precision": "bf16",
        "weights": "best",
        "patience": 3,
        "schedule": TorchSchedule(lr_scheduler.MultiStepLR, {"milestones": [1, 2]}),
        "groups": (ParameterGroup("first", ("1.bias",), settings={"lr": 0.5}),),
    },
}
if hasattr(torch.optim, "Muon"):
    RESUMABLE["muon"] = {"optimizer": partial(Muon, lr=0.01, fused=True), "schedule": cosine}
WAYS = ("a custom step", "groups", "a plateau", "everything at once")
ALONE = [name for name in RESUMABLE if name not in LOCKSTEP + WAYS]


def lockstep(names: Sequence[str] = LOCKSTEP) -> list[Job]:
    return [toy_job(seed=seed, **RESUMABLE[name]) for seed, name in enumerate(names)]


def through_a_file(state):
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def equal(one, other) -> bool:
    """Whether two trees of values are equal bit for bit, memory formats included."""
    if isinstance(one, torch.Tensor):
        return (
            torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def timeless(state):
    """Returns a state without the times, which no two trainings have in common."""
    history = [[numbers[:4] for numbers in epochs] for epochs in state["history"]]
    return {"jobs": state["jobs"], "history": history}


def all_states(training: Training) -> list:
    """Returns the state now and after each epoch to come."""
    return [training.state(), *(training.state() for _ in training)]


def states_of(training: Training) -> list:
    return [*map(timeless, all_states(training))]


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("device", DEVICES)
def test_stop_and_resume_equals_never_stopped_after_any_epoch(name, device):
    check_resuming(toy_job(**RESUMABLE[name]), SPLIT.to(device), exactly=device == "cpu")


def check_resuming(job, data, *, exactly=True):
    """Goes on from the state after each of its epochs, out of a file."""
    states = all_states(Training([job], data))
    assert len(states) == 4
    for stop, state in enumerate(states):
        resumed = Training([job], data)
        resumed.restore(through_a_file(state))
        found = states_of(resumed)
        assert len(found) == 4 - stop
        if exactly:
            assert equal(found, [*map(timeless, states[stop:])])


@pytest.mark.parametrize("names", [LOCKSTEP, WAYS])
def test_jobs_stopped_after_every_epoch_equal_those_never_stopped(names):
    never_stopped = states_of(Training(lockstep(names), SPLIT))
    assert len(never_stopped) == 4
    state = Training(lockstep(names), SPLIT).state()
    for expected in never_stopped[1:]:
        training = Training(lockstep(names), SPLIT)
        training.restore(through_a_file(state))
        next(iter(training))
        state = training.state()
        assert equal(timeless(state), expected)
    assert list(training) == []


def test_an_error_names_the_job_and_epoch_that_diverged():
    lost = toy_job(optimizer=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(Diverged) as caught:
        list(epochs([toy_job(), lost], SPLIT))
    error = caught.value
    assert (error.job, error.epoch, error.epochs, error.part) == (1, 1, 3, "train")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_state_is_a_copy_that_training_does_not_change():
    training = Training(lockstep(("batch norm and dropout", "everything at once")), SPLIT)
    next(iter(training))
    state = training.state()
    before = through_a_file(state)
    ends = [states_of(training)]
    assert equal(state, before)
    training.restore(state)
    ends.append(states_of(training))
    assert equal(state, before)
    assert equal(*ends)


def test_a_state_of_other_jobs_is_refused_and_changes_nothing():
    training = Training([toy_job()], SPLIT)
    next(iter(training))
    before = timeless(training.state())
    for jobs, words in (
        ([toy_job(), toy_job()], "2 jobs in the state, 1 here"),
        ([toy_job(seed=2)], "seed is 2 in the state, 1 here"),
        ([toy_job(optimizer=partial(torch.optim.Adam, lr=0.02))], "rates is [0.02] in the state"),
        ([toy_job(model=partial(MLP, hidden=(9,)))], "size mismatch for 1.weight"),
        ([], "'jobs' is missing"),
    ):
        state = Training(jobs, SPLIT).state() if jobs else {}
        with pytest.raises(ValueError, match="the state does not fit these jobs: ") as refusal:
            training.restore(state)
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert equal(timeless(training.state()), before)
    assert [numbers_of(epoch) for (epoch,) in training] == curve(toy_job())[1:]


def test_a_state_of_an_earlier_version_without_host_state_is_restored():
    state, expected = all_states(Training([toy_job()], SPLIT))[1], curve(toy_job())
    del state["jobs"][0]["random"][-1]
    training = Training([toy_job()], SPLIT)
    training.restore(state)
    assert [numbers_of(epoch) for (epoch,) in training] == expected[1:]


class Interrupt(BaseException):
    """What the signal handler raises."""


def test_a_signal_during_an_epoch_leaves_no_half_of_it():
    """Its handler raises at each call of the loss in turn."""
    expected = states_of(Training([toy_job()], SPLIT))
    for moment in range(7):  # five steps and an evaluation for an epoch
        calls = itertools.count()

        def loss(outputs, targets, moment=moment, calls=calls):
            if next(calls) == moment:
                raise Interrupt
            return nn.functional.cross_entropy(outputs, targets)

        training = Training([toy_job(loss=loss)], SPLIT)
        start = training.state()
        with pytest.raises(Interrupt):
            list(training)
        with pytest.raises(RuntimeError, match="unfinished"):
            training.state()
        with pytest.raises(RuntimeError, match="unfinished"):
            next(iter(training))
        training.restore(start)
        assert equal(states_of(training), expected)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_examples_fewer_than_a_batch_are_one_batch(accumulate):
    job = toy_job(accumulate=accumulate)
    assert curve(replace(job, batch_size=64)) == curve(replace(job, batch_size=45))
    drawn = replace(job, samples_per_epoch=20)
    assert curve(replace(drawn, batch_size=64)) == curve(replace(drawn, batch_size=20))


def test_a_signal_as_an_evaluation_ends_leaves_gradients_on(monkeypatch):
    def cut_short(*_):
        raise Interrupt

    def loss(outputs, targets):
        if not torch.is_grad_enabled():
            monkeypatch.setattr(torch.no_grad, "__exit__", cut_short)
        return nn.functional.cross_entropy(outputs, targets)

    with pytest.raises(Interrupt):
        curve(toy_job(loss=loss))
    assert torch.is_grad_enabled()


def test_a_job_that_cannot_be_trained_is_refused():
    for changes, message in (
        ({"batch_size": 0}, r"batch_size must be at least 1; got 0"),
        (
            {"batch_size": 46, "drop_last": True},
            r"batch_size must be from 1 to 45 with train\.drop_last=true, which leaves out a ",
        ),
        ({"samples_per_epoch": 46}, r"samples_per_epoch must be from 1 to 45, the size of the tr"),
        ({"precision": "fp8"}, r"precision must be one of fp32, bf16, fp16; got 'fp8'"),
        ({"until": 4}, r"until must be from 1 to 3, or null \(all\); got 4"),
        ({"l1": math.nan}, r"l1 must be finite and at least 0 \(off\); got nan"),
        ({"clip_norm": 0.0}, r"clip_norm must be finite and above 0, or null \(off\); got 0\.0"),
    ):
        with pytest.raises(ValueError, match=rf"train\.{message}"):
            toy_job(**changes)
    with pytest.raises(ValueError, match=r"data\.validation must leave at least one example"):
        toy_job(valid=torch.arange(0))


@pytest.mark.parametrize(("threads", "expected"), [(None, 1), (2, 2)])
def test_a_training_sets_its_threads_and_restores_the_callers(threads, expected):
    used = []

    class Watching(nn.Linear):
        def forward(self, inputs):
            used.append(torch.get_num_threads())
            return super().forward(inputs)

    def make(shape, outputs):
        return nn.Sequential(nn.Flatten(), Watching(math.prod(shape), outputs))

    with on_threads(2):
        training = Training([toy_job(model=make)], SPLIT, threads=threads)
        used.clear()
        for _ in training:
            assert torch.get_num_threads() == 2  # between epochs
    assert {*used} == {expected}
    assert training.threads == expected


def test_a_module_adapts_to_the_training_set_of_its_fold_only():
    model, loss = partial(MLP, standardize=True), CrossEntropy("balanced")
    folds = make_folds(SPLIT.targets, 3, 0, 0)
    jobs = [toy_job(model=model, loss=loss, train=train, valid=valid) for train, valid in folds]
    for job, run in zip(jobs, Training(jobs, SPLIT)._runs, strict=True):
        expected = SPLIT.inputs[job.train].flatten(0, -2).mean(0)
        assert torch.allclose(run.model.state_dict()["0.mean"], expected, atol=1e-6)
        assert len(run.loss.weight) == 3
    assert loss.weight is None


def test_a_layer_named_adapt_is_not_called():
    class Adapting(MLP):
        def __init__(self, shape, outputs):
            super().__init__(shape, outputs)
            self.adapt = nn.Linear(outputs, outputs)

        def forward(self, inputs):
            return self.adapt(super().forward(inputs))

    assert len(curve(toy_job(model=Adapting))) == 3
