"""The memory that a training is predicted to take, against what PyTorch's allocator hands out."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from studyloom.data.split import Split
from studyloom.extras.gpu import measured_peak
from studyloom.losses import CrossEntropy
from studyloom.models import CNN, MLP, Transformer
from studyloom.training.job import Job
from studyloom.training.memory import predict_memory
from studyloom.training.trainer import Training

ADAM = partial(Adam, lr=1e-3, fused=True)
WIDE = partial(MLP, hidden=[1000])


def made(model, shape, size, **more):
    """A job of two steps an epoch, with as many examples to validate, and its data."""
    inputs = torch.randn(3 * size, *shape)
    split = Split(inputs=inputs, targets=torch.arange(3 * size) % 10, outputs=10, digest="t")
    examples = torch.arange(3 * size).split(2 * size)
    parts = {"optimizer": ADAM, "loss": nn.CrossEntropyLoss(), "schedule": lambda _: 1.0} | more
    sizes = {"epochs": 2, "batch_size": size, "seed": 0}
    return Job(model=model, train=examples[0], valid=examples[1], **parts | sizes), split


def peaks(job, split, together=1):
    """The predicted peak, and that of so many such jobs with a checkpoint after each epoch."""

    def train():
        for _ in (training := Training([job] * together, split, threads=1)):
            training.state()

    before = torch.random.get_rng_state()
    predicted = predict_memory(job, split, together)
    assert torch.equal(before, torch.random.get_rng_state())
    return predicted, measured_peak(train, torch.device("cpu"))


@pytest.mark.parametrize(
    ("model", "shape", "size", "more"),
    [
        pytest.param(WIDE, (784,), 64, {}, id="optimizer state and its checkpoint"),
        pytest.param(WIDE, (784,), 2048, {}, id="batches"),
        pytest.param(CNN, (1, 28, 28), 64, {"optimizer": partial(SGD, lr=0.1)}, id="activations"),
        pytest.param(Transformer, (32, 16), 64, {"accumulate": 2}, id="attention"),
        pytest.param(WIDE, (784,), 64, {"ema": 0.9, "weights": "best"}, id="copies"),
        pytest.param(
            WIDE, (784,), 512, {"precision": "bf16", "loss": CrossEntropy("balanced")}, id="bf16"
        ),
    ],
)
def test_the_prediction_is_within_a_twentieth_of_what_is_allocated(model, shape, size, more):
    predicted, measured = peaks(*made(model, shape, size, **more))
    assert predicted == pytest.approx(measured, rel=0.05)


def test_jobs_in_lockstep_have_weights_of_their_own():
    predicted, measured = peaks(*made(WIDE, (784,), 64), together=3)
    assert predicted == pytest.approx(measured, rel=0.05)
