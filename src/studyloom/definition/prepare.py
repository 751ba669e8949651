"""Makes the definition of a study and its data from a config, and checks them before trial 0.

The checks are the *preflight*: whatever the config names is built and tried, and all errors are
reported at once.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any, Protocol

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
from studyloom.user_code.source_code import digest_source

log = logging.getLogger(__name__)


def find_definition_class(cfg: StudyConfig) -> type[Definition]:
    """Returns the class of the definition that a config describes."""
    if cfg.objective._target_ is None:
        return NetworkDefinition
    return LoopDefinition


def define(cfg: StudyConfig) -> Definition:
    """Makes the definition of a full config; raises ConfigError for all its errors."""
    return find_definition_class(cfg).from_config(cfg, Composer.from_hydra())


def load_data(cfg: StudyConfig, *, shared: bool = False) -> TrainingData:
    """Loads the training set of a config, and divides it into folds.

    Args:
        shared: whether the workers that this process starts share the training set.

    Returns:
        The data; empty if the trials call a custom loop that loads its data itself.

    Raises:
        DataError: the winner is to be tested, and the data has no test set.
    """
    definition_class = find_definition_class(cfg)
    if not definition_class.trains_networks and not names_data(cfg):
        return TrainingData()
    source = build_source(cfg["data"])
    if cfg.winner.enabled and definition_class.is_tested(cfg) and not source.has_test:
        raise DataError(NO_TEST)
    # Processes of this host share the data that they load from equal sections.
    section = json.dumps(plain_sections(cfg, "data"), default=str)
    sharing_key = digest_source(section.encode())
    split = load_shared(source.train, sharing_key)
    split.check()
    study_seed = max(0, cfg.study.seed)  # `validate` reports a negative one
    seed_of_folds = derive(study_seed)
    folds = split.folds(cfg.objective.folds, source.validation, seed_of_folds)
    data = TrainingData(source, split, folds)
    if shared:
        return data.share(sharing_key)
    return data


def build_source(section: Mapping[str, Any]) -> DataSource:
    """Builds the source of a section `data`; ConfigError if that is not a `DataSource`."""
    source = build(section, "data")
    if not isinstance(source, DataSource):
        raise ConfigError(
            f"data._target_={section['_target_']}: must be a subclass of studyloom.data.DataSource"
        )
    return source


def names_data(cfg: StudyConfig) -> bool:
    """Returns whether the section `data` names a source, which a loop may do without."""
    section = value_at(cfg, "data")  # None if it is missing, as in a provenance
    return isinstance(section, dict) and "_target_" in section


class CountsWorkers(Protocol):
    """A launcher, as far as the preflight needs it."""

    def count_workers(self, slots: int, /) -> int:
        """Returns how many workers it starts for a number of trials."""


def preflight(
    collector: ErrorCollector,
    definition: Definition,
    strategy: CheckedStrategy,
    data: TrainingData | None,
    launcher: CountsWorkers | None,
) -> None:
    """Builds and tries what a definition names, before trial 0, and collects the errors.

    Args:
        collector: calls a function, and keeps the errors that the function raises.
        data: the data of the study; None if they could not be loaded. Networks are not tried then.
        launcher: starts the workers, which must be able to share the sampler and the pruner; None
            if it could not be built.
    """
    if data is None:
        # `check_sections` yields errors, and may raise others: the collector keeps both.
        def check_without_data() -> None:
            collector.errors += check_sections(definition, strategy)

        collector(check_without_data)
    else:
        collector(lambda: validate(definition, data, strategy))
        random_dataset_key = collector(lambda: find_random_validation(data.split))
        if random_dataset_key:
            _warn_of_random_validation(random_dataset_key)
    if launcher is not None and not collector.errors:
        worker_count = launcher.count_workers(strategy.trials)
        collector.errors += strategy.check_workers(worker_count)


def _warn_of_random_validation(key: str) -> None:
    """Warns that a Dataset on which trials are validated changes its examples at random.

    Args:
        key: the key that names the Dataset.
    """
    fixed_key = key  # names the same examples without random changes
    if key == "data.train":  # for training, its examples are to stay random
        fixed_key = "data.evaluate"
    log.warning(
        "%s returns another first item each time, as augmentation does, and trials are "
        "validated on it; name the same examples without random changes as %s",
        key,
        fixed_key,
    )
