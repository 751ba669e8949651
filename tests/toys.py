"""Toy parts: a composed question without the command line, and images that a tiny network learns in milliseconds."""

import functools
from contextlib import contextmanager, nullcontext
from pathlib import Path

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, open_dict
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from studies import CONF
from studyloom.config.compose import Composer
from studyloom.config.registration import register
from studyloom.data.folds import make_folds
from studyloom.data.split import Split
from studyloom.errors import Stopped
from studyloom.metrics import ACCURACY, Goal
from studyloom.question.question import Question
from studyloom.space.tree import Space
from studyloom.storage.attributes import BASELINE
from studyloom.study.stored_study import StoredStudy, create_study

# Two epochs of 64 images on a network of sixteen units: some milliseconds a trial.
TINY = (
    "model.hidden=[16]",
    "train.epochs=2",
    "train.samples_per_epoch=64",
    "train.batch_size=32",
    "space.train.batch_size.choice=[16,32,64]",
)


@functools.cache
def _composed(name: str, overrides: tuple[str, ...]) -> tuple[DictConfig, Composer]:
    return _compose(name, overrides)


@functools.cache
def _space(name: str, overrides: tuple[str, ...]) -> Space:
    return Question.ask(*compose(*overrides, name=name)).space


def _compose(name: str, overrides: tuple[str, ...]) -> tuple[DictConfig, Composer]:
    cfg = hydra.compose(name, list(overrides), return_hydra_config=True)
    choices = {str(group): str(option) for group, option in cfg.hydra.runtime.choices.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, Composer(name, overrides, choices)


def compose(
    *overrides: str, name: str = "mnist", folder: str | Path = CONF
) -> tuple[DictConfig, Composer]:
    """A config as `python -m studies.NAME OVERRIDES` composes it, and its composer.

    Of the configs that are ours: a copy of what was composed before, which would take 70 ms for it and each branch.
    """
    register()
    GlobalHydra.instance().clear()
    hydra.initialize_config_dir(str(folder), version_base=None)
    if folder != CONF:
        return _compose(name, overrides)
    cfg, composer = _composed(name, overrides)
    return cfg.copy(), composer


def ask(*overrides: str, name: str = "mnist", folder: str | Path = CONF) -> Question:
    """The question of such a config; its space was read before, which would take 50 ms."""
    cfg, composer = compose(*overrides, name=name, folder=folder)
    if folder != CONF:
        return Question.ask(cfg, composer)
    space = _space(name, overrides)
    composer.keep(cfg)
    return Question(cfg, composer, space)


def toy_split(count: int = 200, classes: int = 10) -> Split:
    """Images of 1 × 4 × 4 pixels whose class is written into them, with noise on top."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    patterns = torch.randn(classes, 1, 4, 4, generator=generator)
    images = patterns[labels] + 0.1 * torch.randn(count, 1, 4, 4, generator=generator)
    return Split(inputs=images, targets=labels, outputs=classes, digest="toy")


def toy_folds(split: Split, count: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return make_folds(split.targets, count, len(split.targets) // 5, 0, ordered=split.ordered)


# As TINY, for accuracy and few parameters, of one hidden layer of 4 to 64 units.
TWO = (
    *TINY[:-1],
    "pruner=none",
    "space=none",
    "sampler=random",
    "objective.metric=[accuracy,parameters]",
    "+space.model.hidden.list.int=[4,64]",
    "+space.model.hidden.length=1",
)


def two_sided(url: str, *trials: tuple[float, float] | None, **attributes: object) -> StoredStudy:
    """A study of accuracy and parameters: complete trials of these values, the first the baseline; None has failed."""
    goals = (ACCURACY, Goal("parameters", "minimize"))
    stored = create_study(url, "two", {"asks": "nothing"}, max(1, len(trials)), goals=goals)
    for number, values in enumerate(trials):
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        own = {BASELINE: True} if number == 0 else {}
        params = {"width": 1 + number % 7}
        distributions = {"width": IntDistribution(1, 7)}
        stored.optuna.add_trial(
            create_trial(
                state=state,
                values=values,
                params=params,
                distributions=distributions,
                user_attrs=own | attributes,
            )
        )
    return stored


class Never:
    """A stop that nobody asks for."""

    def __call__(self) -> bool:
        return False

    def interruptible(self):
        return nullcontext()


class Signal:
    """A signal that comes in the midst of an epoch, counted over all trials."""

    def __init__(self, epoch: int) -> None:
        self.left = epoch

    def __call__(self) -> bool:
        return self.left <= 0

    @contextmanager
    def interruptible(self):
        self.left -= 1
        if self.left == 0:
            raise Stopped
        yield
