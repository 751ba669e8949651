"""An optimizer: who gets which settings, what is refused, and that a step is its own."""

from functools import partial

import pytest
import torch
from test_trainer import SPLIT, toy_job
from torch import nn

from studyloom.errors import ConfigError
from studyloom.models import MLP
from studyloom.training.optimizer import ParameterGroup, freeze, make_optimizer, step_of
from studyloom.training.trainer import Training

ADAM = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


def network():
    return MLP((1, 4, 4), 3, hidden=(8,))  # parameters of 1, and of 4, the last layer


def test_settings_go_to_what_a_pattern_matches_and_all_others_have_those_of_the_optimizer():
    net = network()
    biases = ParameterGroup("biases", ("*.bias",), settings={"weight_decay": 0.0})
    head = ParameterGroup("head", ("4.weight",), settings={"lr": 1.0})
    optimizer = make_optimizer(ADAM, net, [biases, head])
    named = {id(parameter): name for name, parameter in net.named_parameters()}
    assert {
        tuple(sorted(named[id(p)] for p in group["params"])): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    } == {("1.weight",): (0.01, 0.1), ("1.bias", "4.bias"): (0.01, 0.0), ("4.weight",): (1.0, 0.1)}


def test_frozen_parameters_keep_their_values_and_have_no_gradient():
    first = ParameterGroup("first", ("1",), frozen=True)
    net = network()
    freeze(net, [first])
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    training = Training([toy_job(groups=(first,))], SPLIT)
    before = {name: tensor.clone() for name, tensor in training.weights()[0].items()}
    list(training)
    for name, tensor in training.weights()[0].items():
        assert torch.equal(tensor, before[name]) == name.startswith("1.")
    (run,) = training._runs
    assert all(parameter.grad is None for parameter in run.model[1].parameters())


def test_every_mistake_in_groups_is_named():
    for groups, words in (
        ([ParameterGroup("a", ("haed.*",))], ["groups.a.match: 'haed.*' matches no", "1.weight"]),
        (
            [ParameterGroup("a", ("1",), settings={"weigth_decay": 0.0})],
            ["groups.a.weigth_decay: AdamW has no such", "did you mean weight_decay?"],
        ),
        ([ParameterGroup("all", ("*",), frozen=True)], ["freezes all parameters"]),
        (
            [ParameterGroup("a", ("x",)), ParameterGroup("b", ("1",)), ParameterGroup("c", ("1",))],
            ["'x' matches no", "1.weight is in b and in c", "1.bias is in b and in c"],
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            make_optimizer(ADAM, network(), groups)
        text = "\n".join(caught.value.errors)
        assert all(word in text for word in words), text


# Steps


def hooked(weights):
    optimizer = torch.optim.SGD(weights, lr=0.1)
    optimizer.register_step_post_hook(lambda own, *_: own.defaults.update(hooked=True))
    return optimizer


def test_a_step_is_that_of_the_optimizer_bit_for_bit():
    def train(make, plain):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = make(model.parameters())
        step = optimizer.step if plain else step_of(optimizer)
        for number in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().mean().backward()
            if number == 3:
                model[0].bias.grad = None
            step()
        state = str(optimizer.state_dict()), optimizer.defaults
        return [weight.tolist() for weight in model.parameters()], *state

    for make in (
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
        partial(torch.optim.Adam, lr=0.01, fused=True),
        partial(torch.optim.AdamW, lr=0.01, amsgrad=True),
        partial(torch.optim.RMSprop, lr=0.01, centered=True),
        hooked,
    ):
        assert train(make, False) == train(make, True)
