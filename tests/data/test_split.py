"""A split: what it refuses, and how it moves between devices."""

import math

import pytest
import torch

from studyloom.data.idx import Embedded
from studyloom.data.split import Split, check_split
from studyloom.errors import DataError


def test_a_digest_is_the_same_on_every_device():
    split = Embedded().test()
    moved = split.to("meta")
    assert moved.inputs.is_meta
    assert moved.targets.is_meta
    assert moved.digest == split.digest


@pytest.mark.parametrize(
    ("inputs", "targets", "outputs", "words"),
    [
        (
            torch.zeros(3, 2),
            torch.zeros(4, dtype=torch.int64),
            2,
            r"inputs \(3, 2\) and targets \(4\)",
        ),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 2, "at least one"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, dtype=torch.int32),
            2,
            r"must have targets int64 \(n,\), which are classes, .* of torch\.int32",
        ),
        (torch.zeros(3, 2), torch.zeros(3), 1, r"must have targets \(n, 1\), .* and targets \(3\)"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, 2),
            1,
            r"must have targets \(n, 1\), .* and targets \(3, 2\)",
        ),
    ],
)
def test_a_split_of_mismatched_shapes_is_refused(inputs, targets, outputs, words):
    with pytest.raises(DataError, match=words):
        Split(inputs, targets, outputs, "x")


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [
        (
            torch.tensor([[0.0], [math.nan]]),
            torch.tensor([0, 1]),
            "the inputs must be finite; those of example 1 .* hold NaN or infinity",
        ),
        (
            torch.zeros(2, 1),
            torch.tensor([[math.inf], [0.0]]),
            "the targets must be finite; those of example 0 .* hold NaN or infinity",
        ),
        (torch.zeros(2, 1), torch.tensor([0, 2]), "classes must be from 0 to 1, .* got 0 to 2"),
    ],
)
def test_values_that_no_training_can_use_are_refused(inputs, targets, words):
    with pytest.raises(DataError, match=words):
        check_split(Split(inputs, targets, 2 if targets.ndim == 1 else 1, "x"))
