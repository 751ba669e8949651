from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from studyloom.schedules import constant, cosine, one_cycle

STEPS = 101
PROGRESS = [step / (STEPS - 1) for step in range(STEPS)]
SCHEDULES = [
    constant,
    cosine,
    partial(cosine, warmup=0.2, final=0.1),
    partial(cosine, warmup=1.0),
    one_cycle,
    partial(one_cycle, peak=0.9, start=0.0, final=1.0),
]


def torch_rates(make, lr: float) -> list[float]:
    """The rates of a torch scheduler, step by step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < STEPS:
            scheduler.step()
    return rates


def test_factors_are_continuous_from_0_to_1_and_reach_1():
    rise = [cosine(progress, warmup=0.5) for progress in PROGRESS[:51]]
    assert rise == pytest.approx([step / 50 for step in range(51)])
    for schedule in SCHEDULES:
        factors = [schedule(progress) for progress in PROGRESS]
        assert all(0 <= factor <= 1 for factor in factors)
        assert max(factors) == pytest.approx(1)
        assert all(abs(after - before) < 0.16 for before, after in pairwise(factors))


def test_cosine_equals_pytorch():
    expected = torch_rates(partial(CosineAnnealingLR, T_max=STEPS - 1, eta_min=0.1), lr=1.0)
    assert [cosine(progress, final=0.1) for progress in PROGRESS] == pytest.approx(expected)


def test_one_cycle_equals_pytorch():
    make = partial(
        OneCycleLR,
        max_lr=1.0,
        total_steps=STEPS,
        pct_start=31 / STEPS,
        div_factor=25,
        final_div_factor=400,
    )
    expected = torch_rates(partial(make, cycle_momentum=False), lr=1.0)
    assert [one_cycle(progress) for progress in PROGRESS] == pytest.approx(expected)


def test_an_argument_out_of_range_is_refused():
    for schedule, arguments, message in (
        (cosine, {"progress": 0, "warmup": 2}, "warmup must be a number from 0 to 1; got 2"),
        (one_cycle, {"progress": 0, "peak": 1.0}, "peak must be more than 0 and less than 1"),
    ):
        with pytest.raises(ValueError, match=f"scheduler.{message}"):
            schedule(**arguments)
