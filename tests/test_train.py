import itertools
import math
import os
import pickle
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from studyloom.data import SOURCES, Embedded, Idx, Split, folds
from studyloom.losses import MSE
from studyloom.models import CNN, MLP
from studyloom.schedules import constant, cosine, one_cycle
from studyloom.train import Diverged, Epoch, Job, epochs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


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


def said(epoch: Epoch) -> tuple[float, ...]:
    """All but the times."""
    return astuple(epoch)[:4]


def curve(job: Job, split: Split = SPLIT) -> list[tuple[float, ...]]:
    return [said(epoch) for (epoch,) in epochs([job], split)]


# What training computes


def plain_loop(job: Job, split: Split) -> list[tuple[float, ...]]:
    """The same training as one would write it by hand, slowly and with autograd for everything."""
    curve = []
    with torch.random.fork_rng():
        torch.manual_seed(job.seed)
        model = job.model(shape=split.shape, classes=split.classes)
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
                loss = job.loss(model(split.images[batch]), split.labels[batch])
                losses += [loss.item()] * len(batch)
                penalty = sum(parameter.abs().sum() for parameter in model.parameters() if parameter.ndim > 1)
                optimizer.zero_grad()
                (loss + job.l1 * penalty).backward()
                if job.clip is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), job.clip)
                optimizer.step()
                step += 1
            model.eval()
            with torch.no_grad():
                outputs = model(split.images[job.valid])
            valid_loss = job.loss(outputs, split.labels[job.valid]).item()
            accuracy = (outputs.argmax(1) == split.labels[job.valid]).float().mean().item()
            curve.append((number, sum(losses) / samples, valid_loss, accuracy))
    return curve


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 7, "samples_per_epoch": 20},
        {"l1": 0.01},
        {"clip": 0.1, "schedule": one_cycle},
        {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01), "schedule": cosine},
        {"optimizer": partial(torch.optim.AdamW, lr=0.01, fused=True), "loss": MSE(label_smoothing=0.1)},
        {"model": partial(CNN, channels=4, norm="batch", dropout=0.3), "l1": 0.001, "clip": 1.0, "schedule": cosine},
    ],
)
def test_training_equals_a_plain_loop(changes):
    job = toy_job(**changes)
    for ours, theirs in zip(curve(job), plain_loop(job, SPLIT), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_large_evaluation_batches_give_the_mean_over_images():
    split = Embedded().test()
    job = toy_job(train=torch.arange(300), valid=torch.arange(300, 1000), batch_size=50, epochs=1)
    assert curve(job, split)[0] == pytest.approx(plain_loop(job, split)[0], rel=1e-5)


class Recorder(nn.CrossEntropyLoss):
    """Notes the labels of every training batch. Here each image has a label of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []

    def forward(self, outputs, labels):
        if outputs.requires_grad:
            self.batches.append(labels.tolist())
        return super().forward(outputs, labels)


def test_an_epoch_is_a_fresh_permutation_whose_last_batch_may_be_smaller():
    seen = Recorder()
    split = Split(torch.randn(12, 1, 2, 2), torch.arange(12), 12, "toy")
    for _ in epochs([toy_job(loss=seen, train=torch.arange(10), valid=torch.arange(10, 12), batch_size=4)], split):
        pass
    assert [len(batch) for batch in seen.batches] == [4, 4, 2] * 3
    orders = [[*itertools.chain(*seen.batches[at : at + 3])] for at in (0, 3, 6)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_samples_per_epoch_are_drawn_anew_without_replacement():
    seen = Recorder()
    split = Split(torch.randn(12, 1, 2, 2), torch.arange(12), 12, "toy")
    job = toy_job(loss=seen, train=torch.arange(10), valid=torch.arange(10, 12), batch_size=5, samples_per_epoch=5)
    for _ in epochs([replace(job, epochs=20)], split):
        pass
    assert all(len(set(batch)) == 5 for batch in seen.batches)
    assert set(itertools.chain(*seen.batches)) == set(range(10))


def test_every_step_has_the_rate_of_its_progress():
    progress = []

    def schedule(share: float) -> float:
        progress.append(share)
        return 1 - share

    optimizers = []

    def optimizer(parameters):
        optimizers.append(torch.optim.SGD(parameters, lr=0.5))
        return optimizers[0]

    for (epoch,) in epochs([toy_job(schedule=schedule, optimizer=optimizer)], SPLIT):
        assert optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5 * (1 - (5 * epoch.number - 1) / 15))
    assert progress == [step / 15 for step in range(15)]


def test_parameter_groups_keep_their_own_base_rate():
    optimizers = []

    def optimizer(parameters):
        weight, *others = parameters
        optimizers.append(torch.optim.SGD([{"params": [weight], "lr": 0.1}, {"params": others}], lr=0.01))
        return optimizers[0]

    curve(toy_job(optimizer=optimizer, schedule=lambda progress: 0.5))
    assert [group["lr"] for group in optimizers[0].param_groups] == pytest.approx([0.05, 0.005])


def test_bf16_follows_fp32_closely():
    job = toy_job(model=partial(MLP, hidden=(8,)))
    fp32, bf16 = curve(job), curve(replace(job, precision="bf16"))
    assert bf16 != fp32
    for exact, rough in zip(fp32, bf16, strict=True):
        assert rough[1:3] == pytest.approx(exact[1:3], rel=0.03)


def test_times_are_of_training_and_validation():
    for (epoch,) in epochs([toy_job()], SPLIT):
        assert epoch.seconds > 0
        assert epoch.samples_per_second >= 45 / epoch.seconds


# Randomness


def test_the_same_seed_gives_the_same_curve_bit_for_bit():
    assert curve(toy_job()) == curve(toy_job())


def test_another_seed_gives_another_curve():
    assert curve(toy_job()) != curve(toy_job(seed=2))


def test_a_job_alone_is_a_job_among_three():
    jobs = [
        toy_job(seed=2, model=partial(CNN, channels=4, dropout=0.3)),
        toy_job(),
        toy_job(seed=3, train=torch.arange(15, 60), valid=torch.arange(15)),
    ]
    together = list(epochs(jobs, SPLIT))
    for place, job in enumerate(jobs):
        assert [said(epochs_[place]) for epochs_ in together] == curve(job)


def test_twins_in_lockstep_are_alike():
    for one, other in epochs([toy_job(), toy_job()], SPLIT):
        assert said(one) == said(other)


@pytest.mark.parametrize("device", DEVICES)
def test_the_callers_random_state_neither_changes_nor_matters(device):
    split = SPLIT.to(device)

    def draw():
        return torch.rand(4), torch.rand(4, device=device)

    torch.manual_seed(5)
    undisturbed = [draw() for _ in range(3)]
    torch.manual_seed(5)
    disturbed, ours = [], []
    for (epoch,) in epochs([toy_job()], split):
        disturbed.append(draw())
        ours.append(said(epoch))
    for before, after in zip(undisturbed, disturbed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert ours == curve(toy_job(), split)


def test_the_callers_random_state_survives_a_crash():
    def crash(outputs, labels):
        raise RuntimeError("a bug")

    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="a bug"):
        curve(toy_job(loss=crash))
    assert torch.equal(torch.get_rng_state(), before)


# Mistakes and failures


@pytest.mark.parametrize("lr", [1e30, math.inf])
def test_a_loss_that_is_not_finite_ends_the_jobs_by_name(lr):
    lost = toy_job(optimizer=partial(torch.optim.SGD, lr=lr), epochs=10)
    with pytest.raises(Diverged) as caught:
        list(epochs([toy_job(epochs=10), lost], SPLIT))
    error = caught.value
    assert (error.job, error.epoch, error.epochs, error.part) == (1, 1, 10, "train")
    assert not math.isfinite(error.loss)
    assert str(error).startswith(f"train loss is {error.loss} at epoch 1 of 10; ")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_validation_loss_that_is_not_finite_counts_too():
    class Fragile(MLP):
        def forward(self, pixels):
            return super().forward(pixels) * (1 if self.training else math.nan)

    with pytest.raises(Diverged, match="valid loss is nan at epoch 1 of 3"):
        curve(toy_job(model=Fragile))


def test_epochs_before_the_loss_is_lost_are_still_told():
    job = toy_job(
        optimizer=partial(torch.optim.SGD, lr=1.0), schedule=lambda progress: 0.01 if progress < 0.5 else 1e30
    )
    told = epochs([job], SPLIT)
    assert next(told)[0].number == 1
    with pytest.raises(Diverged, match="at epoch 2 of 3"):
        next(told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 46}, r"train\.batch_size is 46: expected 1 to 45, the images of an epoch"),
        ({"batch_size": 0}, r"train\.batch_size is 0: expected 1 to 45"),
        ({"batch_size": 10, "samples_per_epoch": 9}, r"train\.batch_size is 10: expected 1 to 9"),
        ({"samples_per_epoch": 46}, r"train\.samples_per_epoch is 46: expected 1 to 45, the size of the training part"),
        ({"samples_per_epoch": 0}, r"train\.samples_per_epoch is 0: expected 1 to 45"),
        ({"epochs": 0}, r"train\.epochs is 0: expected 1 or more"),
        ({"precision": "fp16"}, r"train\.precision is 'fp16': expected fp32 or bf16"),
        ({"l1": -1.0}, r"train\.l1 is -1\.0: expected 0 \(off\) or more"),
        ({"l1": math.nan}, r"train\.l1 is nan: expected 0"),
        ({"clip": 0.0}, r"train\.clip is 0\.0: expected more than 0, and finite, or null \(off\)"),
        ({"valid": torch.arange(0)}, r"data\.validation leaves no image to validate on"),
    ],
)
def test_a_job_that_cannot_be_trained_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        toy_job(**changes)


# Real images


def real_job(labels: torch.Tensor, validation: int, **changes) -> Job:
    ((train, valid),) = folds(labels, 1, validation, seed=0)
    optimizer = partial(torch.optim.AdamW, lr=2e-3, fused=True)
    job = toy_job(model=MLP, optimizer=optimizer, train=train, valid=valid, batch_size=64, schedule=cosine)
    return replace(job, **changes)


def test_an_mlp_reads_the_embedded_digits():
    split = Embedded().train()
    assert curve(real_job(split.labels, 800, epochs=4), split)[-1][3] >= 0.90


def test_a_small_cnn_reads_them_better():
    split = Embedded().train()
    assert curve(real_job(split.labels, 800, model=CNN, epochs=8), split)[-1][3] >= 0.96


SHARED = os.environ.get("STUDYLOOM_DATA", "")


@pytest.mark.skipif(not SHARED, reason="STUDYLOOM_DATA is unset: no full MNIST and Fashion-MNIST to test on")
@pytest.mark.parametrize(("dataset", "accuracy"), [("mnist", 0.965), ("fashion_mnist", 0.86)])
def test_a_plain_network_reads_the_full_data_sets(dataset, accuracy):
    if not (Path(SHARED) / SOURCES[dataset].folder).is_dir():
        pytest.skip(f"STUDYLOOM_DATA has no {SOURCES[dataset].folder}/")
    split = Idx(dataset, 6000).train()
    assert curve(real_job(split.labels, 6000, batch_size=100, epochs=3), split)[-1][3] >= accuracy
