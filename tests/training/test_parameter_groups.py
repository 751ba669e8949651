"""Parameters with settings of their own: who gets them, and what is refused."""

from functools import partial

import pytest
import torch
from test_trainer import SPLIT, toy_job

from studyloom.errors import ConfigError
from studyloom.models import MLP
from studyloom.training.parameter_groups import ParameterGroup, freeze, make_optimizer
from studyloom.training.trainer import Training

ADAM = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


def network():
    return MLP((1, 4, 4), 3, hidden=(8,))  # 1.weight, 1.bias, and the last layer


def last_layer():
    return [name for name, _ in network().named_parameters()][-1].rpartition(".")[0]


def test_settings_go_to_what_a_pattern_matches_and_all_others_have_those_of_the_optimizer():
    net = network()
    optimizer = make_optimizer(
        ADAM,
        net,
        [
            ParameterGroup("biases", ("*.bias",), settings={"weight_decay": 0.0}),
            ParameterGroup("head", (f"{last_layer()}.weight",), settings={"lr": 1.0}),
        ],
    )
    named = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = {
        tuple(sorted(named[id(p)] for p in group["params"])): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    }
    head = last_layer()
    assert groups == {
        ("1.weight",): (0.01, 0.1),
        tuple(sorted(("1.bias", f"{head}.bias"))): (0.01, 0.0),
        (f"{head}.weight",): (1.0, 0.1),
    }


def test_frozen_parameters_keep_their_values_and_have_no_gradient():
    job = toy_job(groups=(ParameterGroup("first", ("1",), frozen=True),))
    training = Training([job], SPLIT)
    before = {name: tensor.clone() for name, tensor in training.weights()[0].items()}
    list(training)
    moved = {n for n, tensor in training.weights()[0].items() if not torch.equal(tensor, before[n])}
    assert moved == {f"{last_layer()}.weight", f"{last_layer()}.bias"} or moved == {
        name for name in before if not name.startswith("1.")
    }
    (run,) = training._runs
    assert all(parameter.grad is None for parameter in run.model[1].parameters())


def test_a_module_stands_for_its_parameters():
    net = network()
    freeze(net, [ParameterGroup("first", ("1",), frozen=True)])
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([ParameterGroup("a", ("haed.*",))], ["groups.a.match: 'haed.*' matches no", "1.weight"]),
        (
            [ParameterGroup("a", ("1",)), ParameterGroup("b", ("*.bias",))],
            ["the parameter 1.bias is in a and in b; narrow"],
        ),
        (
            [ParameterGroup("a", ("1",), settings={"weigth_decay": 0.0})],
            ["groups.a.weigth_decay: AdamW has no such", "did you mean weight_decay?"],
        ),
        ([ParameterGroup("all", ("*",), frozen=True)], ["freezes all parameters"]),
        (
            [ParameterGroup("a", ("x",)), ParameterGroup("b", ("1",)), ParameterGroup("c", ("1",))],
            ["'x' matches no", "1.weight is in b and in c", "1.bias is in b and in c"],
        ),
    ],
)
def test_every_mistake_in_groups_is_named(groups, words):
    with pytest.raises(ConfigError) as caught:
        make_optimizer(ADAM, network(), groups)
    text = "\n".join(caught.value.mistakes)
    assert all(word in text for word in words), text
