"""Laws of smaller networks: pruning removes channels, widths shrink, a student learns."""

import pytest
import torch
from torch import nn

from studyloom.extras.export.export_errors import CompressError
from studyloom.extras.export.exported_network import (
    count_parameters,
    make_distillation_step,
    narrow,
    prune,
)
from studyloom.models import CNN, MLP, Transformer

CALLED = "studyloom.models."


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_pruning_removes_channels_but_no_outputs_and_not_the_original(norm):
    pytest.importorskip("torch_pruning")
    network, inputs = CNN((1, 8, 8), 3, 16, norm=norm).eval(), torch.randn(2, 1, 8, 8)
    before, count = network(inputs), count_parameters(network)
    smaller = prune(network, inputs, 0.5)
    assert smaller(inputs).shape == (2, 3)
    assert smaller[0].out_channels == 8
    assert count_parameters(smaller) < 0.5 * count
    assert torch.equal(network(inputs), before)


def test_a_network_without_channels_is_not_pruned():
    pytest.importorskip("torch_pruning")
    with pytest.raises(CompressError, match="no layer whose channels"):
        prune(nn.Flatten(), torch.zeros(2, 3), 0.5)


def widths(section, make):
    return narrow(
        section, 0.25, lambda part: make(**{k: v for k, v in part.items() if k[0] != "_"})
    )


def test_a_width_is_an_argument_whose_half_gives_fewer_parameters():
    mlp = {"_target_": f"{CALLED}MLP", "hidden": [64, 32], "dropout": 0.0}
    narrower = widths(mlp, lambda **arguments: MLP((5,), 2, **arguments))
    assert narrower == {**mlp, "hidden": [16, 8]}
    # Four heads are possible too, but have as many parameters: heads are not a width.
    wide = {"_target_": f"{CALLED}Transformer", "width": 64, "heads": 8, "layers": 1}
    narrower = widths(wide, lambda **arguments: Transformer((4, 4), 2, **arguments))
    assert (narrower["width"], narrower["heads"], narrower["layers"]) == (16, 8, 1)
    with pytest.raises(CompressError, match="no argument of model is a width"):
        widths(
            {"_target_": f"{CALLED}MLP", "hidden": []},
            lambda **arguments: MLP((5,), 2, **arguments),
        )


@pytest.mark.parametrize(
    ("meaning", "loss", "targets"),
    [
        ("classes", nn.functional.cross_entropy, torch.arange(16) % 3),
        ("labels", nn.functional.binary_cross_entropy_with_logits, torch.eye(16)[:, :3]),
        ("numbers", nn.functional.mse_loss, torch.ones(16, 3)),
    ],
)
def test_a_student_equal_to_its_teacher_learns_only_from_the_targets(meaning, loss, targets):
    teacher, inputs = MLP((5,), 3, (8,)), torch.randn(16, 5)
    step = make_distillation_step(teacher, torch.float32, meaning)
    weights = [*teacher.parameters()]
    both = torch.autograd.grad(step(teacher, (inputs, targets), loss), weights)
    half = torch.autograd.grad(0.5 * loss(teacher(inputs), targets), weights)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(both, half, strict=True))
    other = MLP((5,), 3, (8,))
    step(other, (inputs, targets), loss).backward()
    assert all(weight.grad is None for weight in teacher.parameters())
