"""Toy parts: definitions composed without a command line, and images learned in milliseconds."""

import functools
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import hydra
import optuna
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, default_collate

from studies import CONF
from studyloom.config.compose import Composer
from studyloom.config.config_sources import register
from studyloom.config.overrides import Override
from studyloom.config.study_config import StudyConfig
from studyloom.data.split import Split, make_folds
from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.definition.custom_loop import LoopDefinition
from studyloom.definition.definition import Definition
from studyloom.definition.network import NetworkDefinition
from studyloom.definition.prepare import find_definition_class
from studyloom.definition.validation import validate
from studyloom.errors import Stopped
from studyloom.metrics import ACCURACY, ObjectiveValue
from studyloom.objectives.jobs import build_jobs, build_network, build_optimizer
from studyloom.objectives.loop_run import Run
from studyloom.space.tree import Space
from studyloom.storage.attributes import BASELINE, SLOT
from studyloom.storage.opening import create_study
from studyloom.storage.stored_study import StoredStudy
from studyloom.training.trainer import Training

# Two epochs of 64 images on a network of sixteen units: a trial takes some milliseconds.
TINY = (
    "model.hidden=[16]",
    "train.epochs=2",
    "train.samples_per_epoch=64",
    "train.batch_size=32",
    "space.train.batch_size.choice=[16,32,64]",
)


Composed = tuple[StudyConfig, Composer]


@functools.cache
def _composed(name: str, overrides: tuple[str, ...]) -> Composed:
    return _compose(name, overrides)


@functools.cache
def _space(name: str, overrides: tuple[str, ...]) -> Space:
    return NetworkDefinition.from_config(*compose(*overrides, name=name)).space


@dataclass(frozen=True)
class ComposedOptions:
    """A config with the chosen option of each group, before values of keys are set."""

    config: DictConfig
    choices: dict[str, str]


@functools.cache
def _compose_options(name: str, overrides: tuple[str, ...]) -> ComposedOptions:
    config = hydra.compose(name, list(overrides), return_hydra_config=True)
    choices = {str(group): str(option) for group, option in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    return ComposedOptions(config, choices)


def _sets_a_value(override: str) -> bool:
    """Whether an override sets the key of a section, and so chooses no option of a group."""
    key = override.partition("=")[0]
    return "." in key and not key.startswith("hydra.")


def _compose(name: str, overrides: tuple[str, ...], *, cached: bool = True) -> Composed:
    """Composes a config as Hydra does: first the options of groups, then the values of keys.

    Options take 60 of the 70 ms, and many tests choose the same.
    """
    chosen = tuple(override for override in overrides if not _sets_a_value(override))
    values = [override for override in overrides if _sets_a_value(override)]
    compose_options = _compose_options if cached else _compose_options.__wrapped__
    options = compose_options(name, chosen)
    config = deepcopy(options.config)
    parsed = OverridesParser.create().parse_overrides(values)
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    composer = Composer(name, tuple(map(Override.parse, overrides)), options.choices)
    return StudyConfig.of(config), composer


def compose(
    *overrides: str, name: str = "mnist", folder: str | Path = CONF
) -> tuple[StudyConfig, Composer]:
    """Returns a config as `python -m studies.NAME OVERRIDES` composes it, and its composer.

    A config of ours is composed once, in 10 to 70 ms for it and for each branch.

    Args:
        overrides: of the command line.
        name: of the primary config.
        folder: of the configs.
    """
    register()
    GlobalHydra.instance().clear()
    hydra.initialize_config_dir(str(folder), version_base=None)
    if folder != CONF:
        return _compose(name, overrides, cached=False)
    cfg, composer = _composed(name, overrides)
    return cfg, composer


def ask(*overrides: str, name: str = "mnist", folder: str | Path = CONF) -> Definition:
    """Returns the definition of such a config; its space is parsed once, which takes 50 ms."""
    cfg, composer = compose(*overrides, name=name, folder=folder)
    definition_class = find_definition_class(cfg)
    if folder != CONF:
        return definition_class.from_config(cfg, composer)
    space = _space(name, overrides)
    composer.cache_own_config(cfg)
    return definition_class(cfg, composer, space)


def define_own_loop(folder: Path, *overrides: str) -> LoopDefinition:
    """Returns the definition of `own.yaml` in a folder, whose objective is a loop."""
    return LoopDefinition.from_config(*compose(*overrides, name="own", folder=folder))


def validate_search(definition: Definition, data: TrainingData) -> None:
    """Validates a definition with the sampler and the pruner that its config names."""
    validate(definition, data, Strategy(definition))


# Overrides of a study of a custom training loop, over the same search space.
LOOP = (
    "objective._target_=toys.train",
    "objective.test=toys.test",
    "objective.direction=maximize",
)
KINDS = {"network": (), "loop": LOOP}  # kinds of training, for laws that hold for both
EACH_KIND = ("network", pytest.param("loop", marks=pytest.mark.chaos))  # for slow tests


def train(config: DictConfig, run: Run) -> float:
    """A custom training loop: the network of the config, trained as in a tutorial."""
    network = build(config, run.train)
    optimizer = build_optimizer(config.optimizer)(network.parameters())
    run.keep(network=network, optimizer=optimizer)
    loader = DataLoader(run.train, config.train.batch_size, shuffle=True, generator=run.generator)
    for _ in run.epochs(config.train.epochs):
        network.train()
        losses = []
        for inputs, targets in loader:
            inputs = inputs + 0.1 * torch.randn(inputs.shape)  # of the global generator
            loss = cross_entropy(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        accuracy, loss = evaluate(network, run.valid)
        run.report(train_loss=fmean(losses), accuracy=accuracy, valid_loss=loss)
    return run.value


def test(config: DictConfig, run: Run, part: Dataset[Any]) -> dict[str, float]:
    """Tests the network that `train` kept."""
    network = build(config, part)
    run.keep(network=network)
    accuracy, loss = evaluate(network, part)
    return {"accuracy": accuracy, "loss": loss}


test.__test__ = False  # type: ignore[attr-defined]


def make_network(config: DictConfig, shape: Any, outputs: int) -> Any:
    """Makes the network of `train`, as `objective.network`."""
    return build_network(config.model, shape, outputs)


def make_flat(config: DictConfig) -> Any:
    """Makes the network of `train` for the digits, without facts of the data."""
    return build_network(config.model, (1, 28, 28), 10)


def build(config: DictConfig, part: Dataset[Any]) -> Any:
    return build_network(config.model, part[0][0].shape, 10)


def evaluate(network: torch.nn.Module, part: Any) -> tuple[float, float]:
    inputs, targets = getattr(part, "tensors", None) or default_collate([*part])
    with torch.no_grad():
        outputs = network.eval()(inputs)
    right = (outputs.argmax(1) == targets).double().mean()
    return right.item(), cross_entropy(outputs, targets).item()


def toy_split(count: int = 200, classes: int = 10) -> Split:
    """Returns images of 1 × 4 × 4 pixels: the pattern of their class, with some noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    patterns = torch.randn(classes, 1, 4, 4, generator=generator)
    images = patterns[labels] + 0.1 * torch.randn(count, 1, 4, 4, generator=generator)
    return Split(inputs=images, targets=labels, outputs=classes, digest="toy")


def toy_folds(split: Split, count: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return make_folds(split.targets, count, len(split.targets) // 5, 0, ordered=split.ordered)


# As TINY, but for two objectives, accuracy and parameters, and one hidden layer of 4 to 64 units.
TWO = (
    *TINY[:-1],
    "pruner=none",
    "space=none",
    "sampler=random",
    "objective.metric=[accuracy,parameters]",
    "+space.model.hidden.list.int=[4,64]",
    "+space.model.hidden.length=1",
)


def fill(stored: StoredStudy, *trials: FrozenTrial) -> None:
    """Adds trials to the next slots of a study; without a slot they would count as external."""
    for slot, trial in enumerate(trials, len(stored.optuna.get_trials(deepcopy=False))):
        trial.user_attrs = {SLOT: slot} | trial.user_attrs
        stored.optuna.add_trial(trial)


def begin(stored: StoredStudy) -> optuna.Trial:
    """Begins a trial in the next slot of a study."""
    trial = stored.optuna.ask()
    trial.set_user_attr(SLOT, trial.number)
    return trial


def two_sided(url: str, *trials: tuple[float, float] | None, **attributes: object) -> StoredStudy:
    """Creates a study of accuracy and parameters with complete trials.

    Args:
        url: of the database.
        trials: the values of each, the first of which is the baseline; None is a failed trial.
        attributes: the user attributes of all trials.
    """
    objectives = (ACCURACY, ObjectiveValue("parameters", "minimize"))
    stored = create_study(
        url, "two", {"asks": "nothing"}, max(1, len(trials)), objectives=objectives
    )
    for number, values in enumerate(trials):
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        baseline = {BASELINE: True} if number == 0 else {}
        params = {"width": 1 + number % 7}
        distributions = {"width": IntDistribution(1, 7)}
        fill(
            stored,
            create_trial(
                state=state,
                values=values,
                params=params,
                distributions=distributions,
                user_attrs=baseline | attributes,
            ),
        )
    return stored


def value_after(definition: Definition, split: Split, folds: Any) -> float:
    """Trains a question as it is composed, and returns the value of its last epoch."""
    *_, (epoch,) = Training(build_jobs(definition.config, folds, seed=0), split)
    return epoch.value


class Never:
    """A `Stopping` that never stops."""

    lone_signal = None

    def __call__(self) -> bool:
        return False

    def interruptible(self):
        return nullcontext()


class Signal:
    """A `Stopping` whose signal comes in the midst of an epoch, counted over all trials."""

    lone_signal = None

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
