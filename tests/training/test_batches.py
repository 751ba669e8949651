"""Inputs that are integers: what a network gets, and what is never copied as a whole."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from test_trainer import SPLIT, curve, toy_job
from torch import nn

from studyloom.definition.network import measure_network
from studyloom.definition.preflight import try_out
from studyloom.models import MLP
from studyloom.training.batches import Batch, OptimizerStep
from studyloom.training.trainer import JobRun, evaluate_network


class Words(nn.Module):
    """A network that takes integers below 256."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.embedding = nn.EmbeddingBag(256, 8)
        self.linear = nn.Linear(8, outputs)

    def forward(self, inputs):
        return self.linear(self.embedding(inputs.flatten(1)))


def stored_as(dtype, scale=50):
    """A split of integers, and the same as float32."""
    whole = (SPLIT.inputs.abs() * scale).clamp(max=100).to(dtype)
    return replace(SPLIT, inputs=whole), replace(SPLIT, inputs=whole.float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integer_inputs_train_a_network_of_floats_like_float_inputs(dtype):
    whole, floats = stored_as(dtype)
    job = toy_job(model=partial(MLP, hidden=(8,), standardize=True))
    assert curve(job, whole) == curve(job, floats)
    network = job.model(shape=SPLIT.shape, outputs=SPLIT.outputs)
    outputs = evaluate_network(job, network, whole)[0]
    assert torch.equal(outputs, evaluate_network(job, network, floats)[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_a_network_that_begins_with_an_embedding_gets_integers(dtype):
    whole, _ = stored_as(dtype)
    job = toy_job(model=Words)
    assert len(curve(job, whole)) == job.epochs
    kept = torch.int32 if dtype == torch.int32 else torch.int64
    assert JobRun(job, whole).batches.load_batch(torch.arange(3))[0].dtype == kept
    assert measure_network(["parameters"], [], job, whole)[0].value > 0
    try_out(job, whole, {1})


def test_trying_input_types_neither_runs_nor_changes_the_trained_network():
    whole, floats = stored_as(torch.int64)

    class Counting(nn.Module):
        """Takes both, draws random numbers and counts its calls."""

        def __init__(self, shape, outputs):
            super().__init__()
            self.linear = nn.Linear(16, outputs)
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, inputs):
            self.calls += 1
            return self.linear(inputs.flatten(1) + torch.rand(1))

    job = toy_job(model=Counting, epochs=1)
    runs = [JobRun(job, split) for split in (whole, floats)]
    assert [int(run.model.calls) for run in runs] == [0, 0]
    assert torch.equal(*(run.random[0] for run in runs))


def test_a_custom_step_gets_integers_unchanged_and_bytes_as_floats():
    seen = []

    def step(network, batch, loss):
        seen.append(batch[0].dtype)
        return loss(network(batch[0].float()), batch[1])

    for dtype, expected in ((torch.uint8, torch.float32), (torch.int16, torch.int16)):
        run = JobRun(toy_job(step=step), stored_as(dtype)[0])
        batch = Batch(run.batches.load_batch(torch.arange(4)), 4)
        run.train_step(OptimizerStep(4, [batch]))
        assert seen.pop() == expected


def test_an_error_says_why_a_network_takes_neither_integers_nor_floats():
    class Neither(nn.Module):
        def __init__(self, shape, outputs):
            super().__init__()
            self.linear = nn.Linear(1, outputs)

        def forward(self, inputs):
            raise RuntimeError(f"no {inputs.dtype}")

    with pytest.raises(ValueError, match="the network takes them neither") as caught:
        try_out(toy_job(model=Neither), stored_as(torch.int64)[0])
    words = str(caught.value)
    assert "as int64: RuntimeError: no torch.int64 nor as float32: RuntimeError" in words
    assert "return floats from load, or begin the network with an nn.Embedding" in words


@pytest.mark.parametrize(("number", "own"), [(256, False), (-1, True)])
def test_a_number_outside_an_embedding_is_an_error_before_the_first_trial(number, own):
    """Wherever it is: here in an example that no first batch has."""
    whole, _ = stored_as(torch.int64)
    whole.inputs[37].view(-1)[3] = number
    step = {"step": lambda network, batch, loss: loss(network(batch[0]), batch[1])} if own else {}
    with pytest.raises(ValueError, match=r"(?i)index") as caught:
        try_out(toy_job(model=Words, **step), whole, {1})
    words = str(caught.value)
    if not own:
        assert f"int64 from {min(number, 0)} to {max(number, 100)}, and the network takes" in words
        assert "begin the network with an nn.Embedding that has a place for each" in words
