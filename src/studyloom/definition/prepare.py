"""Makes the definition of a study and its data from a config, and checks them before trial 0."""

import logging

from omegaconf import DictConfig

from studyloom.config.build import MistakeCollector
from studyloom.config.compose import Composer
from studyloom.config.values import plain_sections
from studyloom.data.datasets import drawn_anew
from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import SECTIONS, Definition, data_key, kind_of
from studyloom.definition.sources import sources_of_main
from studyloom.definition.validation import breach_of_rule, check_sections, validate
from studyloom.plugins import load_plugin

log = logging.getLogger(__name__)


def define(cfg: DictConfig) -> Definition:
    """Makes the definition of a composed config; raises ConfigError for all its mistakes."""
    return kind_of(cfg).ask(cfg, Composer.from_hydra())


def load_data(cfg: DictConfig, *, shared: bool) -> TrainingData:
    """Loads the training set of a config, for several processes if it is `shared`."""
    data = kind_of(cfg).gather(cfg)
    return data.shared(data_key(cfg)) if shared else data


def preflight(attempt: MistakeCollector, definition: Definition, data: TrainingData | None) -> None:
    """Tries out what a definition asks for; without data there is nothing to try networks on."""
    if data is None:
        attempt(lambda: attempt.mistakes.extend(check_sections(definition)))
    else:
        attempt(lambda: validate(definition, data))
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


def compresses(definition: Definition) -> bool:
    """Returns whether the config says that the winner is compressed."""
    return definition.config.get("compress") not in (None, False)


def script_sources(definition: Definition) -> dict[str, str]:
    """Returns the source text of what a notebook or script defines, by the name in the config."""
    return sources_of_main(plain_sections(definition.config, *SECTIONS))
