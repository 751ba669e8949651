"""The rule of widths: its table by hand, what it refuses, and nothing at the base size."""

from functools import partial

import pytest
import torch
from test_trainer import RESUMABLE, SPLIT, check_resuming, equal, states_of, toy_job
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import lr_scheduler

from studyloom.errors import ConfigError
from studyloom.models import CNN, MLP, Recurrent, Transformer
from studyloom.training.coordinates import THRESHOLD, check_coordinates, measure_slopes
from studyloom.training.optimizer import ParameterGroup, TorchSchedule, make_optimizer
from studyloom.training.scaling import Scaling, scale_rates
from studyloom.training.trainer import Training

SHAPE = (1, 8, 8)


def mlp(width):
    return MLP(SHAPE, 10, hidden=(width, width))


class Attending(nn.Module):
    """A block of a language model, whose heads grow in number."""

    def __init__(self, width, heads):
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.places = nn.Parameter(torch.randn(20, width))
        self.attention = nn.MultiheadAttention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 50, bias=False)


def attending(width):
    return Attending(width, width // 16)


def convolving(width):
    return nn.ModuleDict(
        {
            "first": nn.Conv2d(3, width, 3, bias=False),
            "norm": nn.BatchNorm2d(width),
            "hidden": nn.Conv2d(width, 2 * width, 3, groups=2, bias=False),
            "each": nn.Conv2d(2 * width, 2 * width, 5, groups=2 * width, bias=False),
            "back": nn.ConvTranspose2d(2 * width, width, 3, bias=False),
            "last": nn.ConvTranspose2d(width, 3, 5, bias=False),
        }
    )


def gated(width):
    return nn.ModuleDict({"cells": nn.GRU(28, width, 2), "last": nn.Linear(width, 10)})


# By table 3 of arXiv:2203.03466, at four times the width: the factors on the rates of Adam and of
# SGD, and on the initial deviation; vectors have no factor there.
HIDDEN, FIRST, LAST = (1 / 4, 1, 1 / 2), (1, 4, 1), (1 / 4, 1 / 4, 1 / 4)
VECTOR, FIXED = (1, 4, None), (1, 1, None)
TABLE = {
    mlp: {
        "1.weight": FIRST,
        "4.weight": HIDDEN,
        "7.weight": LAST,
        "1.bias": VECTOR,
        "4.bias": VECTOR,
        "7.bias": FIXED,
    },
    attending: {
        "places": FIRST,
        "embed.weight": FIRST,
        "attention.in_proj_weight": HIDDEN,
        "attention.in_proj_bias": VECTOR,
        "attention.out_proj.weight": HIDDEN,
        "attention.out_proj.bias": VECTOR,
        "norm.weight": VECTOR,
        "norm.bias": VECTOR,
        "last.weight": LAST,
    },
    convolving: {
        "first.weight": FIRST,
        "norm.weight": VECTOR,
        "norm.bias": VECTOR,
        "hidden.weight": HIDDEN,
        "each.weight": FIRST,
        "back.weight": HIDDEN,
        "last.weight": LAST,
    },
    gated: {
        "cells.weight_ih_l0": FIRST,
        **{f"cells.weight_{name}": HIDDEN for name in ("hh_l0", "ih_l1", "hh_l1")},
        **{f"cells.bias_{name}": VECTOR for name in ("ih_l0", "hh_l0", "ih_l1", "hh_l1")},
        "last.weight": LAST,
        "last.bias": FIXED,
    },
}


def built(make, *sizes, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(*sizes)


def rule(make, *sizes):
    return Scaling(lambda shape, outputs: make(*sizes))


def deviation(weight):
    return float(weight.detach().std())


@pytest.mark.parametrize("make", TABLE)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_rates_and_decay_are_those_of_the_table(make, kind):
    network = built(make, 128)
    optimizer = make_optimizer(
        partial(kind, lr=0.5, weight_decay=0.1), network, (), rule(make, 32).growths(network, (), 1)
    )
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    factors = {name: row[kind is torch.optim.SGD] for name, row in TABLE[make].items()}
    assert found == {name: (0.5 * f, 0.1 / f) for name, f in factors.items()}


@pytest.mark.parametrize("make", TABLE)
def test_initial_deviations_are_those_of_the_table_and_vectors_stay_as_drawn(make):
    base, network, drawn = built(make, 32, seed=1), built(make, 128), built(make, 128)
    rule(make, 32).rescale(network, (), 1)
    for name, parameter in network.named_parameters():
        factor = TABLE[make][name][2]
        if factor is None:
            assert torch.equal(parameter, drawn.get_parameter(name))
        else:
            assert deviation(parameter) == pytest.approx(
                factor * deviation(base.get_parameter(name)), rel=0.07
            ), name


def zero(weight):
    return nn.init.zeros_(weight)


@pytest.mark.parametrize(
    ("init", "drawn"),
    [
        *((partial(nn.init.normal_, std=0.02), 0.02), (nn.init.xavier_normal_, None), (zero, 0)),
        *((nn.init.kaiming_uniform_, None), (nn.init.orthogonal_, None)),
    ],
)
def test_any_init_is_carried_to_the_deviations_of_the_table(init, drawn):
    def make(width):
        network = mlp(width)
        for layer in (network[1], network[4], network[7]):
            init(layer.weight)
        return network

    base, network = built(make, 64, seed=1), built(make, 1024)
    rule(make, 64).rescale(network, SHAPE, 10)
    for layer, factor in ((1, 1), (4, 1 / 4), (7, 1 / 16)):
        before, after = (deviation(each[layer].weight) for each in (base, network))
        assert after == pytest.approx(factor * before, rel=0.1)
        assert drawn is None or after == pytest.approx(factor * drawn, rel=0.1)


BASE_SIZES = ("sgd with momentum", "rmsprop", "batch norm and dropout", "everything at once")


@pytest.mark.parametrize("name", BASE_SIZES)
def test_at_the_base_size_a_training_is_bit_for_bit_what_it_is_without(name):
    job = toy_job(**RESUMABLE[name])
    scaled = toy_job(**RESUMABLE[name], scaling=Scaling(job.model))
    assert equal(*(states_of(Training([each], SPLIT)) for each in (scaled, job)))


@pytest.mark.parametrize(
    "name", ["adamw fused", "everything at once", "two schedulers in sequence"]
)
def test_a_scaled_training_that_resumes_equals_one_undisturbed(name):
    wide = {"model": partial(MLP, hidden=(16, 16)), "scaling": Scaling(partial(MLP, hidden=(8, 8)))}
    before = torch.get_rng_state()
    check_resuming(toy_job(**RESUMABLE[name], **wide), SPLIT)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_of_groups_are_scaled_as_those_of_the_optimizer():
    network = built(mlp, 128)
    groups = [
        ParameterGroup("hidden", ("4",), settings={"lr": 4.0, "weight_decay": 1.0}),
        ParameterGroup("first", ("1",), frozen=True),
    ]
    make = partial(torch.optim.Adam, lr=1.0)
    optimizer = make_optimizer(make, network, groups, rule(mlp, 32).growths(network, (), 1))
    found = [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    assert found == [(0.25, 0, 1), (1, 0, 1), (1, 4, 1), (4, 1, 1)]


def test_an_optimizer_may_have_parameters_beside_the_network_and_no_scheduler_yet():
    network, beside = built(mlp, 128), nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([*network.parameters(), beside], lr=1.0)
    growths = rule(mlp, 32).growths(network, (), 1)
    scale_rates(optimizer, network, growths)
    (group,) = (g for g in optimizer.param_groups if any(p is beside for p in g["params"]))
    assert group["lr"] == 1
    lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5)
    with pytest.raises(ConfigError, match="a scheduler must be made after"):
        scale_rates(optimizer, network, growths)


# Refusals


class Tied(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed, self.last = nn.Embedding(50, width), nn.Linear(width, 50, bias=False)
        self.last.weight = self.embed.weight


class Bare(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*shape))


class Joined(nn.Module):
    """Several errors."""

    def __init__(self, width):
        super().__init__()
        self.pair, self.own = nn.Bilinear(4, width, 1), Bare(width, width)
        self.attention, self.beside = nn.MultiheadAttention(width, 2), nn.Linear(width + 3, 5)


def layers(count, width):
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(count)))


def normed(width):
    return weight_norm(nn.Linear(4, width))


REFUSED = {
    "tied": (Tied, (8,), (16,), ["embed.weight and last.weight are one tied weight"]),
    "depth": (layers, (2, 8), (3, 8), ["scales only width", "2.bias, 2.weight", "scale.rule=none"]),
    "bare": (Bare, (4, 4), (8, 8), ["weight of Bare, (4, 4) at", "nn.Linear"]),
    "dimensions": (Bare, (4,), (4, 2), ["has 1 dimensions at one size and 2 at the other"]),
    "smaller": (mlp, (16,), (8,), ["1.weight has a fan-out of 16 at one size and 8 at"]),
    "parametrized": (normed, (4,), (8,), ["parametrizations.weight.original1 of Parametriz"]),
    "lazy": (lambda width: nn.LazyLinear(width), (4,), (8,), ["weight has no shape before"]),
    "all at once": (
        Joined,
        (8,),
        (16,),
        [
            "a head of attention is 4 wide at one size and 8 at the other",
            "pair.weight of Bilinear",
            "own.weight of Bare",
            "beside.weight has a fan-in of 11 at one size and 19 at the other",
        ],
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_what_the_rule_does_not_cover_is_refused_by_name(name):
    make, base, target, words = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        rule(make, *base).growths(make(*target), SHAPE, 10)
    assert all(any(word in mistake for mistake in caught.value.errors) for word in words)
    assert all("scale.rule=none" in mistake for mistake in caught.value.errors)


def test_a_network_that_does_not_grow_and_optimizers_and_schedules_without_a_rule_are_refused():
    with pytest.raises(ConfigError, match="no parameter of the network is larger"):
        rule(mlp, 8).check(mlp(8), SHAPE, 10)
    rule(mlp, 8).check(mlp(16), SHAPE, 10)
    scaling = Scaling(partial(MLP, hidden=(8,)))
    with pytest.raises(ConfigError, match="no learning rates for RAdam; choose SGD, Adam, AdamW"):
        Training([toy_job(optimizer=partial(torch.optim.RAdam, lr=0.1), scaling=scaling)], SPLIT)
    cycle = TorchSchedule(lr_scheduler.OneCycleLR, {"max_lr": 0.1})
    floor = TorchSchedule(lr_scheduler.CosineAnnealingLR, {"eta_min": 0.1})
    both = TorchSchedule(lr_scheduler.SequentialLR, {"schedulers": [floor], "milestones": []})
    for schedule, key in ((cycle, "max_lr"), (floor, "eta_min"), (both, "eta_min")):
        with pytest.raises(ValueError, match=rf"scheduler\.{key} is one rate for all"):
            toy_job(schedule=schedule, scaling=scaling)


# The check

SHIPPED = {
    "mlp": lambda k: partial(MLP, hidden=(32 * k,) * 3, standardize=True),
    "xavier": lambda k: partial(MLP, hidden=(32 * k,) * 3, init="xavier", dropout=0.2),
    "cnn": lambda k: partial(CNN, channels=8 * k, norm="group"),
    "gru": lambda k: partial(Recurrent, hidden=16 * k, layers=2),
    "transformer": lambda k: partial(Transformer, width=16 * k, heads=2 * k),
}


def coordinates(make, scaled=True, optimizer=None):
    scaling = Scaling(make(1)) if scaled else None
    optimizer = optimizer or partial(torch.optim.Adam, lr=2**-7)
    changes = {"optimizer": optimizer, "scaling": scaling}
    return [(32 * k, toy_job(model=make(k), **changes)) for k in (1, 2, 4, 8)]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_the_check_passes_the_rule(name, kind):
    slopes = measure_slopes(coordinates(SHIPPED[name], optimizer=partial(kind, lr=2**-7)), SPLIT)
    assert max(slopes.values()) <= THRESHOLD
    assert len(slopes) > 2


def test_the_check_names_the_layers_that_the_standard_parametrization_breaks():
    broken = check_coordinates(coordinates(SHIPPED["mlp"], scaled=False), SPLIT)
    assert broken == ["5", "8", "11", "outputs"]


def test_the_check_finds_a_layer_that_the_rule_cannot_see():
    class Hidden(nn.Module):
        """Its last layer is used as one, and looks like positions."""

        def __init__(self, shape, outputs, width):
            super().__init__()
            self.first = nn.Linear(16, width)
            self.last = nn.Parameter(torch.randn(outputs, width) / width**0.5)

        def forward(self, inputs):
            return self.first(inputs.flatten(1)).relu() @ self.last.T

    broken = check_coordinates(coordinates(lambda k: partial(Hidden, width=32 * k)), SPLIT)
    assert broken == ["outputs"]
