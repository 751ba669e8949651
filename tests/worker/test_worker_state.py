"""A sampler over the trials of a worker: seeded for each, or one that keeps its state."""

import logging

import pytest
from optuna.samplers import RandomSampler
from toy_worker import RANDOM, fresh, work
from toys import ask

from studyloom.errors import LaunchError
from studyloom.storage.opening import open_study

MADE = []


class Kept(RandomSampler):
    """Remembers all that it drew, which Optuna's database does not hold."""

    keeps_state = True

    def __init__(self, seed=None):
        super().__init__(seed)
        self.drawn = []
        MADE.append(self)

    def sample_independent(self, study, trial, *arguments):
        self.drawn.append(trial.number)
        return super().sample_independent(study, trial, *arguments)


@pytest.fixture
def keeping():
    MADE.clear()
    return ask(*RANDOM, "sampler._target_=test_worker_state.Kept")


def test_a_sampler_with_state_lasts_one_process_and_its_loss_is_logged(url, keeping, caplog):
    with caplog.at_level(logging.WARNING):
        work(keeping, fresh(url, keeping, 3), 3)
    (sampler,) = [each for each in MADE if each.drawn]
    assert {*sampler.drawn} == {1, 2}  # the baseline is not sampled
    assert "is gone" not in caplog.text
    stored = fresh(url, keeping, 6)
    with caplog.at_level(logging.WARNING):
        work(keeping, stored, 6)
    assert "sampler: keeps its state in one process" in caplog.text
    assert "it starts again with trial 3" in caplog.text
    assert len({tuple(sorted(trial.params.items())) for trial in stored.trials()}) == 6


def test_a_second_process_is_refused_and_the_first_continues(url, keeping):
    stored = fresh(url, keeping, 3)
    other = stored.ledger.claim("elsewhere:7", 3, 60.0)
    with pytest.raises(LaunchError, match="elsewhere:7 works on the study already; end that one"):
        work(keeping, open_study(url, "s"), 3)
    assert stored.ledger.counts() == {"free": 2, "held": 1, "done": 0}
    stored.ledger.release(other)
    work(keeping, stored, 3)
    assert len(stored.trials()) == 3
