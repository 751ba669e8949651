import pytest
import torch
from torch import nn

from studyloom.losses import MSE

OUTPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 3, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", [MSE, nn.CrossEntropyLoss])
def test_gradients_of_both_losses_agree_with_finite_differences(loss, smoothing):
    outputs = OUTPUTS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(label_smoothing=smoothing)(x, LABELS), [outputs])


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_mse_is_the_mean_of_squares_as_written(smoothing):
    targets = nn.functional.one_hot(LABELS, 4) * (1 - smoothing) + smoothing / 4
    torch.testing.assert_close(MSE(smoothing)(OUTPUTS, LABELS), ((OUTPUTS - targets) ** 2).mean())


def test_mse_of_a_batch_is_the_mean_over_its_images():
    each = torch.stack([MSE()(OUTPUTS[i : i + 1], LABELS[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(MSE()(OUTPUTS, LABELS), each.mean())


def test_certainty_costs_nothing_until_labels_are_smoothed():
    certain = nn.functional.one_hot(LABELS, 4).double()
    assert MSE()(certain, LABELS) == 0
    assert MSE(0.1)(certain, LABELS) > 0


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
def test_a_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match=rf"^loss\.label_smoothing is {smoothing}: expected a number from 0 to 1"):
        MSE(smoothing)
