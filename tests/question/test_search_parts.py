"""The sampler and the pruner of a study: seeds for each trial, and state that is kept or lost."""

import pytest
from optuna.samplers import RandomSampler
from toys import TINY, ask

from studyloom.commands.prepare import check_one_process
from studyloom.launch.local import Local

pytestmark = pytest.mark.usefixtures("composing")
OWN = (*TINY, "sampler=random", "pruner=none")


class Counting(RandomSampler):
    """A sampler that says nothing of state."""


class Declared(Counting):
    keeps_state = True


def own(kind, *overrides):
    return ask(*OWN, f"sampler._target_=test_search_parts.{kind.__name__}", *overrides)


def draws(question, number):
    """Two numbers that the sampler of a trial draws."""
    return [*question.sampler(number)._rng.rng.uniform(size=2)]


def test_a_fixed_seed_gives_each_trial_draws_of_its_own():
    question = ask(*OWN, "+sampler.seed=0")
    first = [draws(question, number) for number in range(5)]
    assert len({tuple(each) for each in first}) == 5
    assert first == [draws(question, number) for number in range(5)]
    assert first != [draws(ask(*OWN, "+sampler.seed=1"), number) for number in range(5)]


def test_what_draws_from_one_sequence_has_one_seed():
    question = ask(*TINY, "sampler=qmc", "study.seed=5")
    assert [question.sampler(number)._seed for number in (0, 1)] == [5, 5]


@pytest.mark.parametrize(("kind", "overrides"), [(Declared, ()), (Counting, ("keeps_state",))])
def test_a_class_or_a_section_says_that_it_keeps_state(kind, overrides):
    question = own(kind, *(f"+sampler.{key}=true" for key in overrides))
    assert question.keeps_state == ("sampler",)
    assert isinstance(question.sampler(0), kind)


def test_the_section_has_the_last_word():
    assert own(Declared, "+sampler.keeps_state=false").keeps_state == ()


def test_several_workers_are_refused_with_the_way_out():
    question = own(Declared)
    (mistake,) = check_one_process(question, Local(workers=2))
    assert "sampler: keeps its state in one process (keeps_state)" in mistake
    assert "set launcher.workers=1" in mistake
    assert [*check_one_process(question, Local(workers=1))] == []
    assert [*check_one_process(own(Counting), Local(workers=2))] == []
