"""Makes the definition of a study and its data from a config, and checks them before trial 0."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from studyloom.config.build import ErrorCollector, build
from studyloom.config.compose import Composer
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import plain_sections, value_at
from studyloom.data.data_source import DataSource
from studyloom.data.datasets import NO_TEST, find_random_validation
from studyloom.data.training_data import TrainingData, load_shared
from studyloom.definition.custom_loop import LoopDefinition
from studyloom.definition.definition import Definition
from studyloom.definition.network import NetworkDefinition
from studyloom.definition.validation import CheckedStrategy, check_sections, validate
from studyloom.errors import ConfigError, DataError
from studyloom.seeds import derive
from studyloom.user_code.digests import digest_source

log = logging.getLogger(__name__)


def kind_of(cfg: StudyConfig) -> type[Definition]:
    """Returns the class of the definition that a config describes."""
    return NetworkDefinition if cfg.objective._target_ is None else LoopDefinition


def define(cfg: StudyConfig) -> Definition:
    """Makes the definition of a full config; raises ConfigError for all its errors."""
    return kind_of(cfg).from_config(cfg, Composer.from_hydra())


def load_data(cfg: StudyConfig, *, shared: bool = False) -> TrainingData:
    """Loads the training set of a config, and divides it into folds.

    Args:
        shared: whether it is for several processes.

    Returns:
        The data; empty if a loop loads its own.
    """
    kind = kind_of(cfg)
    if not (kind.trains_networks or names_data(cfg)):
        return TrainingData()
    source = build_source(cfg["data"])
    if cfg.winner.enabled and kind.is_tested(cfg) and not source.has_test:
        raise DataError(NO_TEST)
    # The training set follows from its section.
    key = digest_source(json.dumps(plain_sections(cfg, "data"), default=str).encode())
    split = load_shared(source.train, key)
    split.check()
    seed = derive(max(0, cfg.study.seed))  # `validate` reports a negative seed
    folds = split.folds(cfg.objective.folds, source.validation, seed)
    data = TrainingData(source, split, folds)
    return data.share(key) if shared else data


def build_source(section: Mapping[str, Any]) -> DataSource:
    """Builds the source of a section `data`. Raises ConfigError if it is not a `DataSource`."""
    source = build(section, "data")
    if not isinstance(source, DataSource):
        raise ConfigError(
            f"data._target_={section['_target_']}: must be a subclass of studyloom.data.DataSource"
        )
    return source


def names_data(cfg: StudyConfig) -> bool:
    """Whether the section `data` names a source, and is no section of the loop's own."""
    section = value_at(cfg, "data")  # None if it is missing, as in a provenance
    return isinstance(section, dict) and "_target_" in section


def preflight(
    attempt: ErrorCollector,
    definition: Definition,
    strategy: CheckedStrategy,
    data: TrainingData | None,
    launcher: Any,
) -> None:
    """Tries out what a definition names; without data, networks are not tried.

    Args:
        launcher: whose workers share what the definition makes; None if it could not be built.
    """
    if data is None:
        attempt(lambda: attempt.errors.extend(check_sections(definition, strategy)))
    else:
        attempt(lambda: validate(definition, data, strategy))
        if key := attempt(lambda: find_random_validation(data.split)):
            log.warning(
                "%s returns another first item each time, as augmentation does, and trials are "
                "validated on it; name the same examples without random changes as %s",
                key,
                "data.evaluate" if key == "data.train" else key,
            )
    if launcher is not None and not attempt.errors:
        attempt.errors += strategy.check_workers(launcher.count(strategy.trials))
