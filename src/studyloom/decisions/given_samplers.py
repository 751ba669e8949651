"""Samplers and pruners that a call gives as objects, such as `TPESampler(n_startup_trials=5)`.

The calling process keeps the object, and each worker gets a copy of it. A sampler of Optuna derives
its decisions from the stored trials, and keeps nothing else than its random numbers. So each trial
gets a copy whose random numbers begin at a seed of that trial: then it does not matter which worker
runs the trial, nor how often it was resumed. A sampler of another class may keep any state. One
object of it serves all trials of the only worker, unless its class sets `keeps_state = False`.
"""

import copy
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from studyloom.decisions.samplers import CmaEsSampler
from studyloom.seeds import derive
from studyloom.storage.optuna_internals import LazyRandomState

KEEPS_STATE = "keeps_state"  # a class attribute, and a key of the sections sampler and pruner
LARGEST_SEED = 2**31 - 1


def may_keep_state(part: BaseSampler | BasePruner) -> bool:
    """Returns whether an object may learn from the trials that it has served.

    The class of the object says so by its attribute `keeps_state`. Optuna's own classes do not.
    """
    part_class: Any = type(part)
    if hasattr(part_class, KEEPS_STATE):
        return bool(part_class.keeps_state)
    module: str = part_class.__module__
    return module.partition(".")[0] != "optuna"


def copy_for_trial(sampler: BaseSampler, seed: int) -> BaseSampler:
    """Copies a sampler, and seeds the random numbers of the copy.

    A sampler that was made with a seed, such as `TPESampler(seed=1)`, draws other numbers than one
    with another seed: its next random number is mixed into the seed of the trial.

    Args:
        sampler: The object that the call was given, which is not changed.
        seed: The seed of the trial.
    """
    copied = copy.deepcopy(sampler)
    if type(copied) is optuna.samplers.CmaEsSampler:
        copied.__class__ = CmaEsSampler  # which reads no pickles from the database
    for position, random_state in enumerate(_find_random_states(copied)):
        was_seeded = random_state._rng is not None
        own_seed = 0
        if was_seeded:
            own_seed = int(random_state.rng.randint(LARGEST_SEED))
        random_state.rng.seed(derive(seed, position, own_seed))
    return copied


def _find_random_states(sampler: BaseSampler) -> Iterator[LazyRandomState]:
    """Yields the random numbers of a sampler, and of the samplers that it holds."""
    for value in vars(sampler).values():
        if isinstance(value, LazyRandomState):
            yield value
        elif isinstance(value, BaseSampler):
            yield from _find_random_states(value)
