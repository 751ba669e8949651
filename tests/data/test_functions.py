"""Data that a function loads: what it may return, and what is refused."""

import hashlib

import numpy as np
import pytest
import torch

from studyloom.data.functions import Loaded
from studyloom.errors import TRAIN_IT_YOURSELF, DataError


def loads(train, test=None):
    return Loaded(lambda part: {"train": train, "test": test}[part], 2)


def test_a_function_loads_classes_or_numbers_as_tensors_or_arrays():
    inputs = np.arange(12.0).reshape(6, 2)
    split = loads((inputs, np.array([0, 1, 2, 0, 1, 2]))).train()
    assert (split.inputs.dtype, split.targets.dtype, split.outputs) == (
        torch.float32,
        torch.int64,
        3,
    )
    assert split.shape == (2,)
    assert loads((inputs, torch.rand(6))).train().outputs == 1
    several = loads((inputs, torch.rand(6, 4))).train()
    assert (several.targets.dtype, several.outputs) == (torch.float32, 4)


def test_what_a_function_loads_is_known_by_its_content():
    inputs, targets = torch.rand(6, 2), torch.arange(6) % 2
    digest = loads((inputs, targets)).train().digest
    assert digest == loads((inputs.clone(), targets)).train().digest
    assert digest != loads((inputs + 1, targets)).train().digest
    assert digest != loads((inputs, 1 - targets)).train().digest


def test_the_test_part_has_as_many_outputs_as_the_training_part():
    inputs = torch.rand(4, 2)
    assert loads((inputs, torch.arange(4)), (inputs[:2], torch.tensor([0, 1]))).test().outputs == 4


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (torch.rand(3), "must return a pair of inputs and targets; got Tensor"),
        (
            (torch.rand(3, 2), torch.arange(4)),
            "as many targets as inputs, and at least one; got inputs (3, 2) and targets (4)",
        ),
        ((torch.rand(0, 2), torch.arange(0)), "at least one"),
        ((torch.rand(3, 2), torch.rand(3, 2, 2)), "must return targets (n,) or (n, outputs)"),
        (
            (torch.rand(3, 2), torch.tensor([-1, 0, 1])),
            "must return classes (n,), whole numbers from 0 on, or floats to predict numbers; "
            "got whole targets (3) from -1 on",
        ),
        ((torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.int64)), "must return classes (n,)"),
        (
            (torch.tensor([[1.0], [float("nan")]]), torch.arange(2)),
            "its inputs must be finite real numbers; they hold NaN",
        ),
        (("text", torch.arange(2)), "its inputs must be a tensor or an array"),
    ],
)
def test_what_a_function_may_not_load_is_named_with_its_sizes(train, words):
    with pytest.raises(DataError) as caught:
        loads(train).train()
    assert words in str(caught.value)
    assert "data.load('train')" in str(caught.value)
    fits = "NaN" in words
    assert str(caught.value).endswith(TRAIN_IT_YOURSELF) != fits


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (
            (torch.rand(2, 3), torch.arange(2)),
            "of the training part, inputs (n, 2) and targets (n)",
        ),
        (
            (torch.rand(2, 2), torch.tensor([0, 9])),
            "classes of the training part, 0 to 3; got class 9",
        ),
    ],
)
def test_a_test_part_that_does_not_fit_the_training_part_is_named(test, words):
    with pytest.raises(DataError) as caught:
        loads((torch.rand(4, 2), torch.arange(4)), test).test()
    assert words in str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_inputs_that_are_whole_numbers_keep_their_type_and_the_digest_of_floats(dtype, monkeypatch):
    inputs = np.arange(100, dtype=dtype).reshape(10, 2, 5)
    targets = torch.arange(10) % 2
    floats = loads((inputs.astype(np.float32), targets)).train()
    assert floats.digest == digest_in_one(torch.from_numpy(inputs).float(), targets)
    monkeypatch.setattr("studyloom.data.split.PART", 30)  # three examples at once
    for given in (inputs, torch.from_numpy(inputs)):
        split = loads((given, targets)).train()
        assert split.inputs.dtype == getattr(torch, dtype)
        assert split.inputs.data_ptr() == torch.as_tensor(given).data_ptr()  # no copy
        assert split.digest == floats.digest


def digest_in_one(inputs, targets):
    """The digest as studies of before have it."""
    head = f"{tuple(inputs.shape)} {tuple(targets.shape)} {targets.dtype}".encode()
    return hashlib.sha256(head + inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()


def test_booleans_are_bytes_and_what_pytorch_can_hardly_use_is_wider_or_float():
    targets = torch.arange(4) % 2
    for given, stored in (
        (np.array([[True], [False]] * 2), torch.uint8),
        (np.full((4, 1), 40_000, np.uint16), torch.int32),
        (np.full((4, 1), 2**31, np.uint32), torch.int64),
        (np.full((4, 1), 2**63, np.uint64), torch.float32),
        (np.full((4, 1), 0.5, np.float16), torch.float32),
    ):
        split = loads((given, targets)).train()
        assert split.inputs.dtype == stored
        assert split.inputs[0].tolist() == given[0].astype(float).tolist()


def test_the_test_part_does_not_load_the_training_part_again():
    parts = []

    def load(part):
        parts.append(part)
        return torch.rand(4, 2), torch.arange(4)

    source = Loaded(load, 2)
    source.train()
    source.test()
    assert parts == ["train", "test"]
    Loaded(load, 2).test()
    assert parts[2:] == ["train", "test"]
