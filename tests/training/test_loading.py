"""Batches of Datasets: drawn by the job's seed, whoever loads them, and loaders end with it."""

import os
import signal
import time
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial

import psutil
import pytest
import torch
from drawn import Drawn, drawn
from test_trainer import (
    RESUMABLE,
    SPLIT,
    Interrupt,
    check_resuming,
    curve,
    epochs,
    equal,
    states_of,
    through_a_file,
    toy_job,
)
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, TensorDataset

from studyloom.data import Datasets
from studyloom.data.examples import NamedDataset
from studyloom.errors import DataError, LoaderDied
from studyloom.models import MLP
from studyloom.training.batches import make_batches
from studyloom.training.trainer import Training

WORKERS = {"num_workers": 2}
PERSISTENT = {"num_workers": 2, "persistent_workers": True}


def loaders():
    """The processes below this one that load."""
    names = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            names.append(process.name())
    return [name for name in names if name == "pt_data_worker"]


@pytest.fixture(autouse=True)
def no_loader_is_left():
    yield
    deadline = time.monotonic() + 10
    while loaders() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loaders() == []


def test_stop_and_resume_equals_never_stopped_after_any_epoch():
    check_resuming(toy_job(**RESUMABLE["accumulation without the last batch"]), drawn())


@pytest.mark.parametrize(
    ("loading", "weights"),
    [(PERSISTENT, torch.arange(60)), pytest.param(WORKERS, None, marks=pytest.mark.chaos)],
)
def test_random_numbers_do_not_depend_on_the_process_that_loads(loading, weights):
    job = toy_job(**RESUMABLE["everything at once"])
    without_loaders = states_of(Training([job], drawn(weights=weights)))
    examples = drawn(**loading, weights=weights)
    assert equal(states_of(Training([job], examples)), without_loaders)
    first = Training([job], examples)
    next(iter(first))
    resumed = Training([job], examples)
    resumed.restore(through_a_file(first.state()))
    assert equal(states_of(resumed), without_loaders[1:])


def test_each_epoch_draws_new_numbers_and_each_evaluation_the_same():
    seen = []

    class Recorder(nn.CrossEntropyLoss):
        def forward(self, outputs, labels):
            seen.append((outputs.requires_grad, float(outputs.detach().sum())))
            return super().forward(outputs, labels)

    job = toy_job(loss=Recorder(), optimizer=partial(torch.optim.SGD, lr=0.0), batch_size=15)
    job = replace(job, model=partial(MLP, hidden=()))
    list(epochs([job], drawn(evaluate=None)))
    trained = [value for training, value in seen if training]
    evaluated = [value for training, value in seen if not training]
    assert len(set(trained)) == 9
    assert len(set(evaluated)) == 1


class Whose(Drawn):
    """Says which process loads an item."""

    def __getitem__(self, index):
        return torch.tensor([float(os.getpid())]), 0


@pytest.mark.parametrize(("loading", "kinds"), [(WORKERS, 4), (PERSISTENT, 2)])
def test_an_epoch_is_evaluated_by_the_processes_that_loaded_it(loading, kinds):
    batches = make_batches(toy_job(), drawn(train=Whose(), evaluate=None, **loading))
    seen = []
    for _ in range(2):
        trained = {
            float(own) for _, step in batches.draw_steps() for batch, _ in step for own in batch[0]
        }
        reevaluated = {
            float(own) for batch, _ in batches.load_batches(batches.valid) for own in batch[0]
        }
        assert reevaluated <= trained
        assert (loaders() == []) == (loading is WORKERS)
        seen += trained
    batches.close()
    assert len({*seen}) == kinds


def test_a_dataset_of_tensors_trains_like_the_tensors():
    dataset = TensorDataset(SPLIT.inputs, SPLIT.targets)
    examples = Datasets(train=dataset, validation=15).train()
    changes = {"accumulate": 2, "batch_size": 7, "drop_last": True}
    job = toy_job(model=partial(MLP, hidden=(8,)), **changes)
    # The order is drawn again where seeds are drawn too: one epoch is the same.
    (ours, *_), (theirs, *_) = curve(job, examples), curve(job, SPLIT)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_weights_decide_how_often_an_example_is_drawn():
    weights = [0.0] * 30 + [1.0] * 15 + [3.0] * 15

    class Numbered(Drawn):
        def __getitem__(self, index):
            return torch.full((1, 4, 4), float(index)), self.targets[index]

    examples = Datasets(train=Numbered(), validation=15, weights=weights).train()
    job = toy_job(train=torch.arange(60), batch_size=60, samples_per_epoch=60)
    counts = torch.zeros(60)
    batches = make_batches(job, examples)
    for _ in range(30):
        for _, group in batches.draw_steps():
            for (inputs, _), _ in group:
                counts += inputs[:, 0, 0, 0].long().bincount(minlength=60)
    assert counts[:30].sum() == 0
    assert float(counts[45:].sum() / counts[30:45].sum()) == pytest.approx(3, rel=0.2)


# What items and batches may be


class Listed(Dataset):
    """Items that a test has written down."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class Masked(nn.Module):
    """A network of token ids and a mask, which takes neither shape nor outputs."""

    def __init__(self):
        super().__init__()
        self.embedding, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, ids, mask):
        assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
        return self.last((self.embedding(ids) * mask[..., None]).sum(1))


def ragged(items):
    """Pads sequences of several lengths."""
    ids = pad_sequence([torch.as_tensor(ids) for ids, _ in items], batch_first=True)
    return ids, ids > 0, torch.tensor([target for _, target in items])


def test_a_collate_function_may_return_several_inputs():
    parts = {"train": torch.arange(15), "valid": torch.arange(15, 20), "batch_size": 4}
    job = toy_job(model=lambda **sizes: Masked(), **parts)
    items = [([1 + k % 8] * (1 + k % 4), k % 2) for k in range(20)]
    examples = Datasets(train=Listed(*items), validation=5, collate=ragged).train()
    assert (examples.outputs, examples.shape, examples.classifies) == (None, None, True)
    assert len(curve(job, examples)) == 3
    items = [{"x": torch.randn(3), "y": k % 2} for k in range(20)]
    examples = Datasets(train=Listed(*items), validation=5).train()

    def step(network, batch, loss):
        outputs = network(batch["x"])
        return loss(outputs, batch["y"]), outputs, batch["y"]

    job = replace(job, model=lambda **sizes: nn.Linear(3, 2))
    assert len(curve(replace(job, step=step, evaluate=step), examples)) == 3
    with pytest.raises(ValueError, match=r"must be \(inputs, targets\).*--kind loop"):
        curve(job, examples)


# Faults


@pytest.mark.parametrize("loading", [{}, WORKERS])
def test_an_error_names_the_item_that_raised_and_its_exception(loading):
    items = [(torch.zeros(1, 4, 4), k % 3) for k in range(60)]
    items[37] = KeyError("no such label")
    examples = Datasets(train=Listed(*items), validation=15, outputs=3, **loading).train()
    with pytest.raises(
        DataError, match=r"data\.train: item 37 raised KeyError: 'no such label'"
    ) as e:
        curve(toy_job(), examples)
    assert any("__getitem__" in note for note in e.value.__notes__)


class Fatal(Drawn):
    """Kills the process that loads item 20."""

    def __getitem__(self, index):
        if index == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.chaos
def test_an_error_explains_that_a_loading_process_died():
    examples = drawn(train=Fatal(), evaluate=None, **WORKERS)
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(LoaderDied, match=r"data.num_workers=2\) failed.*data.num_workers=0"):
        curve(toy_job(), examples)
    assert signal.getsignal(signal.SIGCHLD) is before


@pytest.mark.parametrize(
    ("loading", "moment"), [(PERSISTENT, "pruned"), (PERSISTENT, "raised"), (WORKERS, "a signal")]
)
def test_no_loading_process_outlives_its_training(loading, moment):
    """It is ended at once, and not when the exception's traceback is collected."""
    examples, raised = drawn(**loading), None
    bomb = {"left": 2}

    def step(network, batch, loss):
        bomb["left"] -= 1
        if bomb["left"] < 0 and moment == "raised":
            raise Interrupt
        if bomb["left"] < 0 and moment == "a signal":
            signal.raise_signal(signal.SIGTERM)
        return loss(network(batch[0]), batch[1])

    def handle(*_):
        raise Interrupt

    before = signal.signal(signal.SIGTERM, handle)
    training = Training([toy_job(step=step)], examples)
    try:
        with closing(training):
            next(iter(training))
    except Interrupt as error:
        raised = error  # keeps all frames alive
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (raised is None) == (moment == "pruned")
    assert loaders() == []


class Slow(Drawn):
    """Takes a minute for each item."""

    def __getitem__(self, index):
        time.sleep(60)


@pytest.mark.chaos
def test_a_signal_ends_a_training_that_waits_for_a_dataset():
    def handle(*_):
        raise Interrupt

    before, began = signal.signal(signal.SIGALRM, handle), time.monotonic()
    examples = drawn(evaluate=None, **WORKERS)
    object.__setattr__(examples.training, "parts", (NamedDataset("data.train", Slow()),))
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(Interrupt):
            curve(toy_job(), examples)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert loaders() == []
    assert time.monotonic() - began < 40  # and not the minute
