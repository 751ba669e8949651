import functools
import math

import pytest
import torch
from torch import nn

from studyloom.models import (
    CELLS,
    CNN,
    INITS,
    MLP,
    Recurrent,
    Restore,
    Standardize,
    Transformer,
    as_steps,
)


def images(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("model", [MLP, CNN])
def test_initial_weights_have_the_spread_of_their_source(model, init):
    torch.manual_seed(0)
    network = model(shape=(1, 28, 28), outputs=10, init=init)
    for layer in network:
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        inputs, outputs = nn.init._calculate_fan_in_and_fan_out(layer.weight)
        spread = {
            "default": math.sqrt(1 / (3 * inputs)),
            "xavier": math.sqrt(2 / (inputs + outputs)),
            "kaiming": math.sqrt(2 / inputs),
        }
        assert layer.weight.std().item() == pytest.approx(spread[init], rel=0.15)
        assert (layer.bias == 0).all().item() is (init != "default")


def test_an_error_names_the_key_and_the_allowed_values():
    for model, options, message in (
        (MLP, {"activation": "rellu"}, "got 'rellu'; did you mean relu?"),
        (MLP, {"hidden": [8, -3]}, "model.hidden[1] must be an integer of at least 1; got -3"),
        (MLP, {"dropout": 1.0}, "model.dropout must be a number from 0 up to, but not including, "),
        (MLP, {"dropout": [0.1, 0.2]}, "for each of the 1 layers of model.hidden; got 2 numbers"),
        (CNN, {"blocks": 5}, "model.blocks must be at most 4, since each halves the image of 28 "),
        (Recurrent, {"cell": "grru"}, "model.cell must be one of rnn, lstm, gru; got 'grru'"),
        (Transformer, {"width": 6}, "model.width must be a multiple of model.heads, which is 4"),
        (Transformer, {"shape": (1, 2, 3, 4)}, "must be (steps, features) or an image; got 1 × 2"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared
            model(**{"shape": (1, 28, 28), "outputs": 10} | options)
        assert message in str(caught.value)


# Steps


@pytest.mark.parametrize("shape", [(6,), (2, 6, 3)])
def test_a_recurrent_network_standardizes_the_features_of_its_steps(shape):
    network = Recurrent(shape, 2, hidden=4, standardize=True)
    inputs = 5 + 2 * torch.randn(50, *shape, generator=torch.Generator().manual_seed(0))
    network.before.adapt(inputs, torch.zeros(50))
    steps = as_steps(inputs)
    once = network.before(steps)
    assert once.shape == steps.shape
    assert once.mean((0, 1)).abs().max() < 1e-5
    assert (once.std((0, 1), correction=0) - 1).abs().max() < 1e-4
    assert network(inputs).shape == (50, 2)


SEQUENCES = [
    *(functools.partial(Recurrent, cell=cell, hidden=5) for cell in CELLS),
    functools.partial(Transformer, width=8),
]
STEPS = [(6, 3), (1, 6, 3), (2, 6, 4), (6,)]


def test_any_shape_and_number_of_outputs_fit():
    shapes_of_images = [(1, 28, 28), (3, 32, 20), (2, 7, 5)]
    for models, shapes in (((MLP, CNN), shapes_of_images), (SEQUENCES, STEPS)):
        for model in models:
            for shape in shapes:
                assert model(shape=shape, outputs=7)(images(4, shape)).shape == (4, 7)


@pytest.mark.parametrize("model", SEQUENCES)
def test_an_image_is_read_row_by_row(model):
    torch.manual_seed(0)
    network, inputs = model(shape=(1, 6, 3), outputs=2).eval(), images(4, (1, 6, 3))
    torch.testing.assert_close(network(inputs), network(inputs[:, 0]))


def test_inputs_are_standardized_and_a_constant_feature_stays_finite():
    layer, inputs = Standardize(3), images(50, (3,)) * torch.tensor([2.0, 0.0, 9.0]) + 5
    layer.adapt(inputs, torch.zeros(50))
    scaled = layer(inputs)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        scaled.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]), atol=1e-5, rtol=0
    )


def test_predicted_numbers_have_the_units_of_the_targets():
    layer, numbers = Restore(1), torch.tensor([[10.0], [30.0]])
    layer.adapt(torch.zeros(2, 1), numbers)
    assert layer(torch.tensor([[0.0], [1.0]])).flatten().tolist() == [20.0, 30.0]
    layer = Restore(1)
    layer.adapt(torch.zeros(2, 1), torch.tensor([0, 1]))
    assert layer(torch.tensor([[4.0]])).item() == 4.0
