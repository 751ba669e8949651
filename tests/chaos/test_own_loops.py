"""Loops as people have them, with a few lines changed: what a checkpoint must hold is theirs."""

from importlib import import_module

import pytest
import torch
from test_integrations import EPOCHS, TRAINERS, killed, objective, trained

pytestmark = pytest.mark.nightly
MOST_LINES = 10  # that a user changes or adds
LOOPS = {
    "tutorial": {"net", "optimizer", "scheduler"},
    "gan": {"generator", "critic", "of_generator", "of_critic"},
}


@pytest.fixture(params=LOOPS)
def name(request, monkeypatch):
    monkeypatch.syspath_prepend(str(TRAINERS))
    return request.param


def test_a_loop_killed_after_any_epoch_goes_on_to_the_same_values_and_states(name, tmp_path):
    own = import_module(f"own_{name}")
    value, curve, states = trained(objective(own, tmp_path / "whole"))
    assert len(curve) == EPOCHS
    assert {*states} == LOOPS[name]
    for epoch in range(1, EPOCHS):
        folder, first = tmp_path / f"after-{epoch}", tmp_path / f"first-{epoch}"
        first.mkdir()
        state = killed(objective(own, first), epoch, folder)
        again = objective(own, folder)
        again.restore(state)
        assert len(again.steps()) == epoch
        other = trained(again)
        assert other[:2] == (value, curve)
        for part, kept in states.items():
            for key, tensor in kept.items():
                if isinstance(tensor, torch.Tensor):
                    assert torch.equal(other[2][part][key], tensor)


def test_a_user_changes_as_few_lines_as_promised(name):
    lines = (TRAINERS / f"own_{name}.py").read_text().splitlines()
    ours = [line for line in lines if line.endswith("# +")]
    assert len(ours) <= MOST_LINES
    assert not [line for line in lines if "run." in line and line not in ours]
