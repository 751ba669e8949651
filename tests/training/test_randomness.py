"""The random state of Python, NumPy and PyTorch."""

import random

import numpy as np
import pytest
import torch

from studyloom.training.checkpoint import Checkpoint
from studyloom.training.randomness import get_random_state, seeded, set_random_state


def draw():
    return (
        [random.random(), random.gauss(0, 1)],
        [float(np.random.rand()), float(np.random.randn())],
        torch.randn(3).tolist(),
    )


def test_a_random_state_resumes_from_a_checkpoint(tmp_path):
    with seeded(3):
        draw()  # one of two normal numbers is left over in each generator
        file = Checkpoint(tmp_path / "c.pt", "it")
        file.save(get_random_state())
        expected = [draw(), draw()]
    with seeded(4):
        set_random_state(file.load())
        assert [draw(), draw()] == expected


def test_code_that_sets_a_seed_does_not_change_the_callers_state():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draw()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    first = []

    def fail():
        with seeded(5):
            first.append(draw())
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        fail()
    assert draw() == expected
    with seeded(5):
        assert [draw()] == first
