"""Makes the definition of a study and its data from a config, and checks them before trial 0."""

import logging
from typing import Any

from omegaconf import DictConfig

from studyloom.config.build import MistakeCollector
from studyloom.config.compose import Composer
from studyloom.config.values import plain_sections
from studyloom.data.datasets import drawn_anew
from studyloom.data.training_data import TrainingData
from studyloom.definition.custom_loop import LoopDefinition
from studyloom.definition.definition import SECTIONS, Definition
from studyloom.definition.network import NetworkDefinition
from studyloom.definition.preflight import breach_of_rule
from studyloom.definition.sections import data_key
from studyloom.definition.sources import sources_of_main
from studyloom.definition.validation import CheckedStrategy, check_ranks, check_sections, validate
from studyloom.plugins import load_plugin

log = logging.getLogger(__name__)


def kind_of(cfg: DictConfig) -> type[Definition]:
    """Returns the class of the definition that a config describes."""
    return NetworkDefinition if cfg.objective["_target_"] is None else LoopDefinition


def define(cfg: DictConfig) -> Definition:
    """Makes the definition of a composed config; raises ConfigError for all its mistakes."""
    return kind_of(cfg).from_config(cfg, Composer.from_hydra())


def load_data(cfg: DictConfig, *, shared: bool) -> TrainingData:
    """Loads the training set of a config, for several processes if it is `shared`."""
    data = kind_of(cfg).load_data(cfg)
    return data.shared(data_key(cfg)) if shared else data


def preflight(
    attempt: MistakeCollector,
    definition: Definition,
    strategy: CheckedStrategy,
    data: TrainingData | None,
    launcher: Any,
) -> None:
    """Tries out what a definition asks for; without data there is nothing to try networks on.

    Args:
        launcher: whose workers share what the definition makes; None if there is a mistake in it.
    """
    if data is None:
        attempt(lambda: attempt.mistakes.extend(check_sections(definition, strategy)))
    else:
        attempt(lambda: validate(definition, data, strategy))
        if key := attempt(lambda: drawn_anew(data.split)):
            log.warning(
                "%s draws its first item anew at each look, as augmentation does, and trials are "
                "validated on it; name the same examples without random changes as %s",
                key,
                "data.evaluate" if key == "data.train" else key,
            )
        words = None if attempt.mistakes else attempt(lambda: breach_of_rule(definition, data))
        if words:
            log.warning("%s; only the trainings at the target show what is best there", words)
    if compresses(definition):
        find = load_plugin("compress_mistakes")
        attempt(lambda: attempt.mistakes.extend(find(definition, data)))
    if launcher is not None and not attempt.mistakes:
        attempt.mistakes += check_ranks(definition, getattr(launcher, "ranks", 1))
        attempt.mistakes += strategy.check_workers(launcher.count(strategy.trials))


def compresses(definition: Definition) -> bool:
    """Returns whether the config says that the winner is compressed."""
    return definition.config.get("compress") not in (None, False)


def script_sources(definition: Definition) -> dict[str, str]:
    """Returns the source text of what a notebook or script defines, by the name in the config."""
    return sources_of_main(plain_sections(definition.config, *SECTIONS))
