"""An optimizer: who gets which settings, what is refused, and that a step is its own."""

from functools import partial

import pytest
import torch
from test_trainer import SPLIT, toy_job
from torch import nn

from studyloom.errors import ConfigError
from studyloom.models import CNN, MLP, Recurrent, Transformer
from studyloom.optimizers import Muon
from studyloom.training.optimizer import ParameterGroup, find_step, freeze, make_optimizer
from studyloom.training.trainer import Training

ADAM = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


def network():
    return MLP((1, 4, 4), 3, hidden=(8,))  # parameters of 1, and of 4, the last layer


def test_a_group_has_its_settings_and_other_parameters_the_optimizers():
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


def test_every_error_in_groups_is_listed():
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


def test_a_step_without_pytorchs_wrapper_changes_no_bit():
    def train(make, plain):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = make(model.parameters())
        step = optimizer.step if plain else find_step(optimizer)
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


# Muon

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="it came with torch 2.9")


class Tied(nn.Module):
    """A network whose embedding is its output layer too."""

    def __init__(self):
        super().__init__()
        self.words, self.inner = nn.Embedding(5, 4), nn.Linear(4, 4)
        self.last = nn.Linear(4, 5)
        self.last.weight = self.words.weight


@needs_muon
@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (network(), ["1.weight"]),
        (CNN((1, 8, 8), 3), []),
        (Tied(), ["inner.weight"]),
        (Recurrent((4, 2), 3), ["cells.weight_ih_l0", "cells.weight_hh_l0"]),
        (
            Transformer((4, 2), 3, width=8, layers=1),
            [
                "first.weight",
                *("encoder.layers.0.self_attn.in_proj_weight",),
                *("encoder.layers.0.self_attn.out_proj.weight",),
                *("encoder.layers.0.linear1.weight", "encoder.layers.0.linear2.weight"),
            ],
        ),
    ],
)
def test_muon_trains_matrices_of_hidden_layers_and_adamw_the_others(net, expected):
    optimizer = make_optimizer(partial(Muon, lr=0.1, adamw_lr=0.2), net, [])
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates.pop(id(parameter)) for name, parameter in net.named_parameters()}
    assert found == {name: 0.1 if name in expected else 0.2 for name in found}
    assert not rates


@needs_muon
def test_muon_steps_like_its_two_optimizers_also_when_resumed():
    def train(steps, saved=False):
        torch.manual_seed(0)
        net = network()
        named, (body, *_) = dict(net.named_parameters()), [*net.parameters()]
        rest = [parameter for name, parameter in named.items() if name != "1.weight"]
        one = [
            torch.optim.Muon([body], 0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, 0.2, weight_decay=0.01),
        ]
        if steps == 1:
            one = [make_optimizer(partial(Muon, lr=0.1, adamw_lr=0.2), net, [])]
        for _ in range(3):
            if saved:
                again = make_optimizer(partial(Muon, lr=9.0, adamw_lr=9.0), net, [])
                again.load_state_dict(one[0].state_dict())
                one = [again]
            net.zero_grad()
            net(torch.randn(8, 1, 4, 4)).square().mean().backward()
            for each in one:
                find_step(each)()
        return [weight.tolist() for weight in net.parameters()]

    assert train(1) == train(2) == train(1, saved=True)


@needs_muon
def test_groups_of_muon_have_both_learning_rates():
    group = ParameterGroup("first", ("1",), settings={"lr": 0.3, "adamw_lr": 0.4})
    optimizer = make_optimizer(Muon, network(), [group])
    assert [each["lr"] for each in optimizer.param_groups] == [0.3, 1e-3, 0.4]
    group = ParameterGroup("first", ("1",), settings={"lr": 0.3})  # which is of both then
    optimizer = make_optimizer(Muon, network(), [group])
    assert [each["lr"] for each in optimizer.param_groups] == [0.3, 1e-3, 0.3]


def test_an_error_says_how_to_get_a_pytorch_with_muon(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match=r"needs PyTorch 2\.9 or later.*choose optimizer=adamw"):
        make_optimizer(Muon, network(), [])
