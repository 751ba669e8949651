"""The sampler and the pruner of a question, as its config names them.

Both are made of their sections, and may be classes of the user's own. A sampler is made anew for
each trial, and seeded for it; one that has to remember what it gave says `keeps_state`.
"""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import optuna
from omegaconf import DictConfig, open_dict
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from studyloom.config.build import build, find_target
from studyloom.config.values import has_key, without_key
from studyloom.errors import ConfigError
from studyloom.seeds import derive
from studyloom.space.grid import GridSampler
from studyloom.space.tree import Point, Space

KEEPS_STATE = "keeps_state"  # our key in both sections, and the attribute of a class, for the same
# Each of their trials has a place in one sequence, which one seed makes for all of them.
ONE_SEQUENCE = (GridSampler, optuna.samplers.GridSampler, optuna.samplers.QMCSampler)
REMEMBERED = (bool, int, float, str, bytes, tuple, list, dict, set)  # no generators of numbers


def keeps_state(section: DictConfig) -> bool:
    """Whether what a section builds has to be one object for all trials of a process.

    Args:
        section: of the sampler or the pruner; its key `keeps_state` says so, or the attribute of
            that name that its class has.

    Raises:
        ConfigError: the value is neither true nor false, or the target cannot be found.
    """
    if not has_key(section, KEEPS_STATE):
        return bool(getattr(find_target(section), KEEPS_STATE, False))
    value = section[KEEPS_STATE]
    if not isinstance(value, bool):
        key = section._get_full_key(KEEPS_STATE)
        raise ConfigError([f"{key} must be true or false; got {value!r}"])
    return value


def build_sampler(
    section: DictConfig, number: int, seed: int, space: Space, baseline: Point | None
) -> BaseSampler:
    """Builds the sampler of a trial.

    Args:
        section: of the config. A `seed` there takes the place of the study's.
        number: of the trial, which the seed is combined with. With one seed for all trials, each
            would draw what the first drew, and workers drew only 4 distinct points of 16.
        seed: of the study.
        space: what is searched, for samplers that ask for it.
        baseline: the point of trial 0, likewise.

    Raises:
        ConfigError: the section cannot be built, or its seed is no whole number from 0 on.
    """
    target, given = find_target(section), section.get("seed")
    section = without_key(section, KEEPS_STATE)
    if given is not None:
        if type(given) is not int or given < 0:
            raise ConfigError([f"sampler.seed must be a whole number from 0 on; got {given!r}"])
        seed = given
    if not (isinstance(target, type) and issubclass(target, ONE_SEQUENCE)):
        seed = derive(seed, number, 1)
    if has_key(section, "seed"):
        with open_dict(section):
            section["seed"] = seed
    if re.fullmatch(r"optuna\..*CmaEsSampler", str(section.get("_target_"))):
        # In its place, ours, which reads no pickles from the database.
        with open_dict(section):
            section["_target_"] = "studyloom.space.cmaes.CmaEsSampler"
    with warnings.catch_warnings():  # group=True, which branches need, is called experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler: BaseSampler = build(section, seed=seed, space=space, baseline=baseline)
    return sampler


def build_pruner(section: DictConfig) -> BasePruner:
    """Builds the pruner of a process; for the key of its own that a question has, see there."""
    with warnings.catch_warnings():  # optuna.pruners.WilcoxonPruner is called experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        pruner: BasePruner = build(without_key(section, KEEPS_STATE))
    return pruner


def forgotten(sampler: BaseSampler, space: Space) -> Iterator[str]:
    """Tries a sampler on two made-up trials, and finds what it remembers from one to the other.

    Args:
        sampler: of the user's own, which is made anew for each trial.
        space: what is searched.

    Yields:
        The names of the attributes that have changed: plain values, and not a generator of random
        numbers, which has a seed for each trial. A sampler that fails here yields none.
    """

    def remembered() -> dict[str, str]:
        values = getattr(sampler, "__dict__", {})
        return {name: repr(value) for name, value in values.items() if type(value) in REMEMBERED}

    before = remembered()
    study: Any = optuna.create_study(sampler=sampler)
    try:
        for _ in range(2):
            trial = study.ask()
            space.suggest(trial)
            study.tell(trial, 0.5)
    except Exception:  # such as one that asks for trials of its own; it is not to be judged here
        return
    after = remembered()
    yield from (name for name in sorted({*before, *after}) if before.get(name) != after.get(name))
