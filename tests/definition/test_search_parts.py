"""The sampler and the pruner of a study: a seed for all trials, and state that is kept or lost."""

import pytest
from optuna.samplers import RandomSampler
from toys import TINY, ask

from studyloom.decisions.strategy import Strategy

pytestmark = pytest.mark.usefixtures("composing")


class Counting(RandomSampler):
    """A sampler that says nothing of state."""


class Declared(Counting):
    keeps_state = True


def own(kind, *overrides):
    target = f"sampler._target_=test_search_parts.{kind.__name__}"
    return ask(*TINY, "sampler=random", "pruner=none", target, *overrides)


def test_trials_with_a_fixed_seed_differ_and_are_the_same_again():
    definition = ask(*TINY, "sampler=random", "pruner=none", "+sampler.seed=0")
    draws = [
        Strategy(definition).sampler(number)._rng.rng.uniform() for number in (0, 1, 2, 0, 1, 2)
    ]
    assert len({*draws}) == 3
    assert draws[:3] == draws[3:]


def test_what_draws_from_one_sequence_has_one_seed():
    definition = ask(*TINY, "sampler=qmc", "study.seed=5")
    assert [Strategy(definition).sampler(number)._seed for number in (0, 1)] == [5, 5]


def test_a_sampler_that_keeps_state_by_its_class_or_its_section_is_refused_to_several_workers():
    declared, counting = own(Declared), own(Counting, "+sampler.keeps_state=true")
    for definition in (declared, counting):
        assert Strategy(definition).keeps_state == ("sampler",)
        (mistake,) = Strategy(definition).check_workers(2)
        assert "sampler: keeps its state in one process (keeps_state)" in mistake
        assert "set launcher.workers=1" in mistake
        assert [*Strategy(definition).check_workers(1)] == []
    assert isinstance(Strategy(counting).sampler(0), Counting)
    for definition in (own(Declared, "+sampler.keeps_state=false"), own(Counting)):
        assert Strategy(definition).keeps_state == ()
        assert [*Strategy(definition).check_workers(2)] == []
