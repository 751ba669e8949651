"""Samplers and pruners that a call gives as objects, such as `TPESampler(n_startup_trials=5)`.

The calling process keeps the object, and each worker gets a copy of it. A sampler of Optuna derives
its decisions from the stored trials, and keeps nothing else than its random numbers. So each trial
gets a copy whose random numbers begin at a seed of that trial: then it does not matter which worker
runs the trial, nor how often it was resumed. A sampler of another class may keep any state. One
copy of it serves all trials of the only worker, unless its class sets `keeps_state = False`.
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
LARGEST_OWN_SEED = 2**32 - 1  # that a sampler of Optuna accepts
# Samplers that end the study themselves, by `Study.stop`, which stops only one worker here.
SAMPLERS_THAT_STOP = (optuna.samplers.GridSampler, optuna.samplers.BruteForceSampler)


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
    copied = copy_given(sampler)
    for position, random_state in enumerate(_find_random_states(copied)):
        was_seeded = random_state._rng is not None
        own_seed = 0
        if was_seeded:
            own_seed = int(random_state.rng.randint(LARGEST_SEED))
        random_state.rng.seed(derive(seed, position, own_seed))
    return copied


def copy_given(sampler: BaseSampler) -> BaseSampler:
    """Copies a sampler; the CMA-ES in the copy reads no pickles from the database."""
    copied = copy.deepcopy(sampler)
    for part in _find_samplers(copied):
        is_optunas = isinstance(part, optuna.samplers.CmaEsSampler)
        if is_optunas and not isinstance(part, CmaEsSampler):
            part.__class__ = _derive_cmaes(type(part))
    return copied


def _derive_cmaes(sampler_class: type[BaseSampler]) -> type[BaseSampler]:
    """Returns Optuna's CMA-ES, or a class derived from it, with the methods of ours below it."""
    if sampler_class is optuna.samplers.CmaEsSampler:
        return CmaEsSampler
    return type(sampler_class.__name__, (sampler_class, CmaEsSampler), {})


def seed_sequences(sampler: BaseSampler, seed: int) -> None:
    """Gives a seed to each quasi-random sequence that was made without one.

    Optuna draws the seed of such a sequence at random, from 64 bits.

    Args:
        sampler: The sampler, which is changed, and the samplers that it holds.
        seed: The seed of the study: all trials have their places in one sequence.
    """
    for part in _find_samplers(sampler):
        if isinstance(part, optuna.samplers.QMCSampler) and part._seed > LARGEST_OWN_SEED:
            part._seed = seed


def check_stops(sampler: BaseSampler) -> Iterator[str]:
    """Yields an error for each sampler that would end the study itself."""
    for part in _find_samplers(sampler):
        if isinstance(part, SAMPLERS_THAT_STOP):
            yield (
                f"sampler: {type(part).__name__} of Optuna ends a study by study.stop(); "
                "set sampler=grid, which tries each configuration of the space once"
            )


def _find_samplers(sampler: BaseSampler) -> list[BaseSampler]:
    """Returns a sampler, and the samplers that it holds, each of them once."""
    samplers = [sampler]
    for part in samplers:  # the list grows meanwhile
        for value in vars(part).values():
            is_known = any(value is other for other in samplers)
            if isinstance(value, BaseSampler) and not is_known:
                samplers.append(value)
    return samplers


def _find_random_states(sampler: BaseSampler) -> Iterator[LazyRandomState]:
    """Yields the random numbers of a sampler, and of the samplers that it holds."""
    for part in _find_samplers(sampler):
        for value in vars(part).values():
            if isinstance(value, LazyRandomState):
                yield value
