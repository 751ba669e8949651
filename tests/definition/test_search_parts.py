"""The sampler and the pruner of a study: seeds, state in one process, errors."""

import pytest
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from toys import TINY, ask

from studyloom.decisions.asha import AshaPruner
from studyloom.decisions.samplers import SamplerContext
from studyloom.decisions.strategy import Strategy
from studyloom.errors import ConfigError

pytestmark = pytest.mark.usefixtures("composing")


class Counting(RandomSampler):
    """A sampler that says nothing of state."""


class Declared(Counting):
    keeps_state = True


def own(kind, *overrides):
    target = f"sampler._target_=test_search_parts.{kind.__name__}"
    return ask(*TINY, "sampler=random", "pruner=none", target, *overrides)


def test_trials_with_a_fixed_seed_differ_and_are_reproducible():
    definition = ask(*TINY, "sampler=random", "pruner=none", "+sampler.seed=0")
    draws = [
        Strategy(definition).sampler(number)._rng.rng.uniform() for number in (0, 1, 2, 0, 1, 2)
    ]
    assert len({*draws}) == 3
    assert draws[:3] == draws[3:]


def test_samplers_of_one_sequence_have_the_same_seed_in_each_trial():
    definition = ask(*TINY, "sampler=qmc", "study.seed=5")
    assert [Strategy(definition).sampler(number)._seed for number in (0, 1)] == [5, 5]


def test_a_sampler_that_keeps_state_is_refused_with_several_workers():
    declared, counting = own(Declared), own(Counting, "+sampler.keeps_state=true")
    for definition in (declared, counting):
        assert Strategy(definition).keeps_state == ("sampler",)
        (error,) = Strategy(definition).check_workers(2)
        assert "sampler: keeps its state in one process (keeps_state)" in error
        assert "set launcher.workers=1" in error
        assert [*Strategy(definition).check_workers(1)] == []
    assert isinstance(Strategy(counting).sampler(0), Counting)
    for definition in (own(Declared, "+sampler.keeps_state=false"), own(Counting)):
        assert Strategy(definition).keeps_state == ()
        assert [*Strategy(definition).check_workers(2)] == []


class InContext(RandomSampler):
    """A sampler that says what it needs of its study."""

    def __init__(self, context, seed=None, scale=1.0):
        super().__init__(seed)
        self.context, self.scale = context, scale


def test_a_sampler_gets_the_arguments_that_its_parameters_name():
    definition = own(InContext, "study.deterministic=true", "+sampler.scale=2.0")
    sampler = Strategy(definition).sampler(3, redraws=True)
    assert sampler.context == SamplerContext(
        definition.space, definition.baseline, redraws=True, deterministic=True
    )
    assert sampler.scale == 2.0


class Raising(NopPruner):
    def __init__(self):
        raise RuntimeError("cannot be built")


def test_errors_of_a_pruner_hide_no_later_check(monkeypatch):
    timed = ("study.deterministic=true", "study.epochs=40", "train.epochs=9")
    definition = ask(*TINY, "pruner=asha", *timed)
    (message,) = Strategy(definition).check()
    assert "study.epochs=40 depends on when trials run" in message

    def refuse(pruner, definition):
        raise ConfigError("objective: wrong")

    monkeypatch.setattr(AshaPruner, "check", refuse)
    assert [*Strategy(definition).check()] == [message]
    broken = "pruner._target_=test_search_parts.Raising"
    assert [*Strategy(ask(*TINY, "pruner=none", broken, *timed)).check()] == []
