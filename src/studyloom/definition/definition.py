"""The study definition: a config, and the search space around it.

The trials of a `NetworkDefinition` train networks; those of a `LoopDefinition` call a custom
training loop, or an Optuna objective.

A *branch* is a part of the search space that is searched if groups of the config have certain
options, such as `optimizer=sgd`.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from optuna.distributions import CategoricalDistribution

from studyloom.config.compose import Composer
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import (
    flatten,
    has_key,
    plain_sections,
    value_at,
    without_transform,
)
from studyloom.data.datasets import find_location_keys
from studyloom.data.split import Fold
from studyloom.data.training_data import TrainingData
from studyloom.definition.defaults import with_defaults
from studyloom.errors import ConfigError, raise_if_any
from studyloom.metrics import Metric, ObjectiveValue
from studyloom.objectives.objective import Attempt, Objective
from studyloom.seeds import derive
from studyloom.space.rule import Condition, Cost, Rule, parse_limits, read_space
from studyloom.space.tree import Configuration, ListNode, Space, SuggestedSpace, ValueNode
from studyloom.training.job import Job
from studyloom.user_code.digests import compute_code_digests, read_main_sources

# The sections whose objects are made for each network.
NETWORK_SECTIONS = ("model", "optimizer", "scheduler", "loss")
# The sections that are part of a study definition. The sampler, the pruner and the launcher are
# ways to a result, and may change between runs.
SECTIONS = ("data", *NETWORK_SECTIONS, "space", "objective", "params", "train")
Sections = dict[str, Any]  # sections of a config, as plain values
FIRST_ATTEMPT = Attempt()
NEW_FOLD = 1  # the last number from which the seed of a split of the re-evaluation is derived


@dataclass(frozen=True)
class Branch:
    """A branch of the search space, with a config that has its options.

    Attributes:
        choices: the option of each group that leads to the branch.
        nodes: the hyperparameters of the branch.
        config: the default configuration with these options.
        opened_options: the options of all groups of the space that are searched in the branch.
    """

    choices: Mapping[str, str]
    nodes: tuple[ValueNode | ListNode, ...]
    config: StudyConfig
    opened_options: Mapping[str, str]

    def __str__(self) -> str:
        return ", ".join(f"{group}={option}" for group, option in self.choices.items())

    def probes(self) -> Iterator[dict[str, object]]:
        """Yields values, by key, at which the branch is tried; other keys keep their defaults.

        They are the defaults, the low corner of the space with each value at its low end, the high
        corner with each value at its high end, and each choice by itself.
        """
        yield {}  # the defaults
        if not self.nodes:
            return
        space = Space(self.nodes)
        low_corner = space.make_placeholder({}, end="low").values
        high_corner = space.make_placeholder({}, end="high").values
        yield low_corner
        yield high_corner
        for node in self.nodes:
            if isinstance(node, ValueNode):
                if isinstance(node.distribution, CategoricalDistribution):
                    for choice in node.distribution.choices:
                        yield {node.key: choice}
            elif isinstance(node.item, CategoricalDistribution):
                # Another list may have to be as long as this one. In the low corner it is, so that
                # only the items of this one are changed there.
                length = len(low_corner[node.key])
                for choice in node.item.choices:
                    yield low_corner | {node.key: [choice] * length}


@dataclass(frozen=True)
class Definition:
    """A study definition: what makes two studies comparable.

    Its config is never changed. `validate` checks it as a whole before the first trial; until then
    most properties may raise ConfigError, which lists every error. Its subclasses are
    `NetworkDefinition` and `LoopDefinition`.
    """

    config: StudyConfig
    composer: Composer
    space: Space
    trains_networks: ClassVar[bool]  # False if a custom loop does

    @classmethod
    def from_config(cls, cfg: StudyConfig, composer: Composer) -> "Definition":
        """Reads the definition from the config of a command.

        Args:
            cfg: all sections, except `hydra`.
            composer: composes the command again with other options of groups. The definition gets
                a copy that also adds the defaults of the space to each config.
        """
        space = read_space(value_at(cfg, "space"), composer.options)
        typed_keys = {override.key for override in composer.overrides}
        add_defaults = functools.partial(with_defaults, space, typed_keys)
        # It merges the sections of other options into `base`, and adds the defaults to the result.
        completing_composer = replace(composer, base=cfg, complete=add_defaults)
        config = add_defaults(cfg, composer.choices)
        completing_composer.cache_own_config(config)  # for the options of `cfg` itself
        return cls(config, completing_composer, space)

    # Methods that the subclasses override

    @staticmethod
    def read_objectives(cfg: StudyConfig) -> tuple[Metric, *tuple[ObjectiveValue, ...]]:
        """Returns the objectives of a config, the metric first."""
        raise NotImplementedError

    @staticmethod
    def read_limits(cfg: StudyConfig) -> list[Condition]:
        """Returns the limits of what a config's trials may cost, from `objective.constraints`."""
        return parse_limits(value_at(cfg, "objective.constraints"))

    def build_job(self, configuration: Configuration, fold: Fold, seed: int) -> Job:
        """Builds the job of a single training; that of a loop can evaluate its network only."""
        raise NotImplementedError

    def make_objective(
        self,
        configuration: Configuration,
        number: int,
        data: TrainingData,
        attempt: Attempt = FIRST_ATTEMPT,
        seed: int | None = None,
        fold: Fold | None = None,
    ) -> Objective:
        """Makes the objective of a trial: with all seeds and folds, or with a single one of each.

        Args:
            number: the number of the trial in its stage; without a `seed`, the seeds are derived
                from it.
            attempt: the attempt of a worker at the trial.
            seed: the seed of a single training, as in the re-evaluation; None for all seeds.
            fold: the fold of a single training; None without data.
        """
        raise NotImplementedError

    def with_recorded_values(
        self, configuration: Configuration, values: Sequence[float]
    ) -> Configuration:
        """Returns the configuration of a training whose ReduceLROnPlateau steps on recorded values.

        The final training has no validation set, and so no values to step on.

        Args:
            values: the value of each epoch of an earlier training of the configuration.
        """
        return configuration

    def test(
        self, configuration: Configuration, seed: int, states: dict[str, Any], examples: object
    ) -> dict[str, float]:
        """Calls `objective.test`, which only loops have.

        Args:
            states: the states of the objects that the training has kept, by name.
            examples: the Dataset of the test set; None without `data`.
        """
        raise NotImplementedError

    def try_out(self, data: TrainingData) -> Iterable[str]:
        """Builds and tries what a trial trains or calls, and returns the errors."""
        raise NotImplementedError

    def measure_costs(self, configuration: Configuration, data: TrainingData) -> list[Cost]:
        """Measures the costs of a configuration that are known before its training."""
        return []

    def trains_on(self, data: TrainingData) -> torch.device:
        """Returns the device on which trials are trained."""
        return data.device

    def notes(self, data: TrainingData) -> list[str]:
        """Returns notes that are printed before the first trial."""
        return []

    @property
    def epochs(self) -> int | None:
        """Number of epochs of a training; None if it is not known before the training runs."""
        return int(self.config.train.epochs)

    @property
    def resumes(self) -> bool:
        """True if a trial can resume from an epoch, as far as that is known before it runs."""
        return True

    @property
    def untested(self) -> str | None:
        """The reason why the winner is not tested; None if the config decides it."""
        return None

    @property
    def reads_train(self) -> bool:
        """True if a training reads the section `train`."""
        return True

    # Methods that the subclasses share

    @property
    def has_optuna_objective(self) -> bool:
        """True if trials call an Optuna objective, which suggests its hyperparameters itself."""
        return isinstance(self.space, SuggestedSpace)

    @property
    def tested(self) -> bool:
        """True if the winner is trained on the full training set and tested."""
        return self.is_tested(self.config)

    @property
    def tests_kept_states(self) -> bool:
        """True if the test of the winner needs what its trainings have kept.

        That of an Optuna objective trains by itself.
        """
        return self.tested and not self.has_optuna_objective

    @classmethod
    def is_tested(cls, cfg: StudyConfig) -> bool:
        """Returns whether a config's study tests its winner; a loop's needs `objective.test`."""
        return cls.trains_networks or cfg.objective.test is not None

    def compose_config(self, configuration: Configuration) -> StudyConfig:
        """Composes the config of a trial: the study's, with options and values."""
        return self.composer.compose(configuration.choices).with_values(configuration.values)

    def sections(self, configuration: Configuration) -> Sections:
        """Returns the resolved sections of a configuration's config, without the search space."""
        names = [name for name in SECTIONS if name != "space"]
        return plain_sections(self.compose_config(configuration), *names)

    def provenance_sections(self, configuration: Configuration) -> Sections:
        """Returns the resolved sections that decide the value of a trial."""
        return _deciding_sections(self.compose_config(configuration), "space", "loss")

    @functools.cached_property
    def baseline(self) -> Configuration | None:
        """The default configuration, or None if `study.baseline` is false."""
        if not self.config.study.baseline:
            return None
        lookup = functools.partial(value_at, self.config)
        return self.space.read_default(self.composer.choices, lookup)

    @functools.cached_property
    def seed(self) -> int:
        """The seed of the study, from which all others descend."""
        return int(self.config.study.seed)

    def find_test_seed(self, seed: int) -> int:
        """Returns the seed of a test that trains by itself.

        Args:
            seed: the seed of a training by which the winner was chosen. The winner is lucky with
                it, so the test gets another one.
        """
        return derive(seed, 1)

    def trial_seed(self, number: int) -> int:
        """Derives the seed of a trial, from which those of its jobs descend."""
        return derive(self.seed, number)

    def make_new_fold(self, data: TrainingData, seed: int) -> Fold | None:
        """Returns a training and validation split of the re-evaluation, unused by the search.

        It is as large as those of the search, give or take a group of examples that stay together.

        Args:
            seed: the number of the seed in the re-evaluation.

        Returns:
            None if a loop loads its own data.
        """
        if data.split is None:
            return None
        assert data.source is not None
        # No other seed of a study is derived from four numbers that end in 0 and 1.
        split_seed = derive(self.seed, seed, 0, NEW_FOLD)
        folds = data.split.folds(self.config.objective.folds, data.source.validation, split_seed)
        # In time order only the last fold is validated on what comes after all its training data.
        return folds[-1]

    @functools.cached_property
    def metric(self) -> Metric:
        """The metric of `objective.metric`."""
        return self.objectives[0]

    @functools.cached_property
    def objectives(self) -> tuple[Metric, *tuple[ObjectiveValue, ...]]:
        """The objectives, one for each value of a trial, the metric first."""
        return self.read_objectives(self.config)

    @functools.cached_property
    def limits(self) -> list[Condition]:
        """The limits of what trials may cost."""
        return self.read_limits(self.config)

    @functools.cached_property
    def rule(self) -> Rule | None:
        """The rule that chooses the winner, or None without a `winner.rule`.

        It may name the objectives of trials, and costs that have a limit.
        """
        text = self.config.winner.rule
        if text is None:
            return None
        quantities: list[ObjectiveValue] = [*self.objectives]
        for limit in self.limits:
            quantity = ObjectiveValue(limit.name, "minimize")
            if quantity not in quantities:
                quantities.append(quantity)
        return Rule.parse(text, quantities)

    def identity(self, digest: str) -> dict[str, object]:
        """Returns all values that identify the definition, by key.

        A study whose stored values differ is another one. They include digests of the user's code
        and of the data, but not the folder of the data, which differs between machines.

        Args:
            digest: the digest of the data.
        """
        values = dict(flatten(_deciding_sections(self.config)))
        values.update(self._flatten_searched_options())
        values.update(self.code)  # digests of the user's modules
        study = self.config.study
        values["data.digest"] = digest
        values["study.seed"] = study.seed
        values["study.direction"] = self.metric.direction
        if study.deterministic:
            values["study.deterministic"] = True
            values["study.round_size"] = study.round_size
        identity = {}
        for key in sorted(values):
            is_folder_of_data = key == "data.root"
            repeats_study_direction = key == "objective.direction"
            repeats_loss = key.startswith("train.loss")  # the loss is in its own section
            if not is_folder_of_data and not repeats_study_direction and not repeats_loss:
                identity[key] = values[key]
        return identity

    def _flatten_searched_options(self) -> dict[str, object]:
        """Returns the values of each option that some trials have, and the baseline has not.

        A value of `optimizer=sgd` has a key such as `optimizer=sgd.momentum`.
        """
        values: dict[str, object] = {}
        for branch in self.branches:
            for group, option in branch.choices.items():
                if option != self.composer.choices.get(group):
                    section = value_at(branch.config, group.replace("/", "."))
                    values.update(flatten(section, f"{group}={option}"))
        return values

    @functools.cached_property
    def code(self) -> dict[str, str]:
        """The digest of each of the user's modules that the definition names."""
        configs = [self.config, *(branch.config for branch in self.branches)]
        return compute_code_digests([plain_sections(config, *SECTIONS) for config in configs])

    def script_sources(self) -> dict[str, str]:
        """Returns the source of what a notebook or script defines, by the name in the config."""
        return read_main_sources(plain_sections(self.config, *SECTIONS))

    @functools.cached_property
    def branches(self) -> list[Branch]:
        """The branches of the space, each with its config, the root first.

        In the config of a branch, the groups that do not lead to the branch have their default
        option, or their first one if the space lacks the default. Without a baseline, each
        hyperparameter is at its low end, since its default may be out of range.

        Raises:
            ConfigError: the config of each branch that cannot be composed.
        """
        branches: list[Branch] = []
        errors: list[str] = []
        for choices, nodes in self.space.branches():
            # A configuration of the branch: its options are used, its values only without baseline.
            configuration = self.space.make_placeholder(
                {**self.composer.choices, **choices}, end="low"
            )
            try:
                config = self.composer.compose(configuration.choices)
            except ConfigError as error:
                errors += error.errors
                continue
            if not self.config.study.baseline:
                low_values = {}
                for key, value in configuration.values.items():
                    if has_key(config, key):
                        low_values[key] = value
                config = config.with_values(low_values)
            branches.append(Branch(choices, nodes, config, opened_options=configuration.choices))
        raise_if_any(errors)
        return branches


def _deciding_sections(config: StudyConfig, *excluded: str) -> Sections:
    """Returns the resolved sections of a config that decide the result of a trial.

    Keys that say where data lie and how they are loaded are removed: they differ between machines.

    Args:
        excluded: sections that are left out too.
    """
    names = [name for name in SECTIONS if name not in excluded]
    sections = without_transform(plain_sections(config, *names))
    data = sections.get("data")
    if isinstance(data, dict):
        for location_path in find_location_keys(data):  # such as ("train", "root")
            *section_names, key = location_path
            section = data
            for name in section_names:
                section = section[name]
            del section[key]
    return sections
