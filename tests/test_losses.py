import math

import pytest
import torch
from torch import nn

from studyloom.losses import MSE, CrossEntropy

OUTPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 3, 0])


def test_mse_equals_the_mean_of_squares():
    for smoothing in (0.0, 0.3, 1.0):
        targets = nn.functional.one_hot(LABELS, 4) * (1 - smoothing) + smoothing / 4
        expected = ((OUTPUTS - targets) ** 2).mean()
        torch.testing.assert_close(MSE(smoothing)(OUTPUTS, LABELS), expected)


def test_a_label_smoothing_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"loss\.label_smoothing must be .* 0 to 1; got nan"):
        MSE(float("nan"))


def test_cross_entropy_without_weights_equals_pytorch():
    expected = nn.CrossEntropyLoss(label_smoothing=0.1)(OUTPUTS, LABELS)
    assert torch.equal(CrossEntropy(label_smoothing=0.1)(OUTPUTS, LABELS), expected)


def test_balanced_classes_have_equal_shares_in_the_training_loss():
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    loss = CrossEntropy("balanced")
    loss.adapt(torch.zeros(100, 1), labels)
    outputs = torch.zeros(100, 3)
    shares = [
        loss(outputs[labels == c], labels[labels == c]) * (labels == c).sum() / 100
        for c in range(3)
    ]
    torch.testing.assert_close(torch.stack(shares), torch.full((3,), math.log(3) / 3))


def test_a_weighted_loss_is_a_mean_over_examples_for_any_batches():
    loss = CrossEntropy([1.0, 2.0, 3.0, 4.0]).double()
    each = torch.stack([loss(OUTPUTS[i : i + 1], LABELS[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(loss(OUTPUTS, LABELS), each.mean())
    outputs, masks = OUTPUTS[:, :, None, None].expand(-1, -1, 2, 5), LABELS[:, None, None]
    torch.testing.assert_close(loss(outputs, masks.expand(-1, 2, 5)), each.mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_weighted_loss_leaves_out_ignored_labels_as_pytorch(smoothing):
    labels = torch.tensor([0, -100, 2, 3, -100, 0])
    kept = labels != -100
    ones = CrossEntropy([1.0] * 4, smoothing).double()
    expected = nn.functional.cross_entropy(OUTPUTS, labels, label_smoothing=smoothing)
    torch.testing.assert_close(ones(OUTPUTS, labels), expected)
    weighted = CrossEntropy([1.0, 2.0, 3.0, 4.0], smoothing).double()
    torch.testing.assert_close(weighted(OUTPUTS, labels), weighted(OUTPUTS[kept], labels[kept]))
    weights = weighted.weight
    mean = nn.functional.cross_entropy(OUTPUTS, labels, weights, label_smoothing=smoothing)
    total = mean * weights[labels[kept]].sum()  # PyTorch divides by the weights
    torch.testing.assert_close(weighted(OUTPUTS, labels), total / kept.sum())


def test_ignored_labels_do_not_count_in_balanced_weights():
    labels = torch.tensor([0] * 90 + [1] * 9 + [2] + [-100] * 50)
    balanced, expected = CrossEntropy("balanced"), CrossEntropy("balanced")
    balanced.adapt(torch.zeros(150, 1), labels)
    expected.adapt(torch.zeros(100, 1), labels[:100])
    assert torch.equal(balanced.weight, expected.weight)


def test_invalid_weights_are_refused():
    for weights in ("equal", [], [1.0, 0.0]):
        with pytest.raises(ValueError, match=r"^loss\.weights must be "):
            CrossEntropy(weights)
    with pytest.raises(ValueError, match=r"a number for each of 4 classes; got 2"):
        CrossEntropy([1.0, 2.0]).double()(OUTPUTS, LABELS)
