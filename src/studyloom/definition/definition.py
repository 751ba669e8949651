"""The study definition: a config, and the search space around it.

The trials of a `NetworkDefinition` train networks; those of a `LoopDefinition` call a custom
training loop, or an Optuna objective.
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
from studyloom.errors import ConfigError, refuse
from studyloom.metrics import Metric, ObjectiveValue
from studyloom.objectives.objective import Attempt, Objective
from studyloom.seeds import derive
from studyloom.space.rule import Condition, Cost, Rule, parse_limits, read_space
from studyloom.space.tree import ListNode, Point, Space, SuggestedSpace, ValueNode
from studyloom.training.job import Job
from studyloom.user_code.digests import compute_code_digests, read_main_sources

# The sections whose objects are made for each trial.
OF_NETWORKS = ("model", "optimizer", "scheduler", "loss")
# The sections that are part of a study definition. The sampler, the pruner and the launcher are
# ways to a result, and may change between runs.
SECTIONS = ("data", *OF_NETWORKS, "space", "objective", "params", "train")
FIRST = Attempt()


@dataclass(frozen=True)
class Branch:
    """A part of the space: its nodes are searched if groups have certain options.

    The config has those options, by the name of their group, and defaults for all else.

    Attributes:
        opened: the options of all groups of the space that are searched then.
    """

    choices: Mapping[str, str]
    nodes: tuple[ValueNode | ListNode, ...]
    config: StudyConfig
    opened: Mapping[str, str]

    def __str__(self) -> str:
        return ", ".join(f"{group}={option}" for group, option in self.choices.items())

    def probes(self) -> Iterator[dict[str, Any]]:
        """Yields values, by key, at which the branch is tried; other keys keep their defaults.

        They are the defaults, the low and the high corner of the space, and each choice by itself.
        """
        yield {}
        if not self.nodes:
            return

        low, high = (Space(self.nodes).make_placeholder({}, end).values for end in (0, -1))
        yield from (low, high)
        for node in self.nodes:
            if isinstance(node, ValueNode) and isinstance(
                node.distribution, CategoricalDistribution
            ):
                yield from ({node.key: choice} for choice in node.distribution.choices)
            elif not isinstance(node, ValueNode) and isinstance(node.item, CategoricalDistribution):
                for choice in node.item.choices:
                    yield low | {node.key: [choice] * len(low[node.key])}


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
    trains_networks: ClassVar[bool]  # ourselves; False where a custom loop does

    @classmethod
    def from_config(cls, cfg: StudyConfig, composer: Composer) -> "Definition":
        """Reads the definition from a full config without the section `hydra`."""
        space = read_space(value_at(cfg, "space"), composer.options)
        typed = {override.key for override in composer.overrides}
        complete = functools.partial(with_defaults, space, typed)
        composer = replace(composer, base=cfg, complete=complete)
        config = complete(cfg, composer.choices)
        composer.keep(config)
        return cls(config, composer, space)

    # What each kind has its own of

    @staticmethod
    def read_objectives(cfg: StudyConfig) -> tuple[Metric, *tuple[ObjectiveValue, ...]]:
        """Returns the objectives of a config, the metric first."""
        raise NotImplementedError

    @staticmethod
    def read_limits(cfg: StudyConfig) -> list[Condition]:
        """Returns the limits of what a config's trials may cost, from `objective.constraints`."""
        return parse_limits(value_at(cfg, "objective.constraints"))

    def build_job(self, point: Point, fold: Fold, seed: int) -> Job:
        """Builds the job of a single training; that of a loop can evaluate its network only."""
        raise NotImplementedError

    def make_objective(
        self,
        point: Point,
        number: int,
        data: TrainingData,
        attempt: Attempt = FIRST,
        seed: int | None = None,
        fold: Fold | None = None,
    ) -> Objective:
        """Makes the objective of a trial: with all seeds and folds, or with a single one of each.

        Args:
            number: of the trial in its stage, which decides the seeds if there is no `seed`.
            seed: of a single training, as candidates for the winner have.
            fold: of that; None where there are no data.
        """
        raise NotImplementedError

    def with_recorded_values(self, point: Point, values: Sequence[float]) -> Point:
        """Has ReduceLROnPlateau step on recorded validation values, one for each epoch."""
        return point

    def test(self, point: Point, seed: int, states: dict[str, Any], part: Any) -> dict[str, float]:
        """Calls `objective.test`, which only loops have."""
        raise NotImplementedError

    def try_out(self, data: TrainingData) -> Iterable[str]:
        """Builds and tries what a trial trains or calls, and returns the errors."""
        raise NotImplementedError

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
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
        """How many epochs a training has, if that is known before it runs."""
        return int(self.config.train.epochs)

    @property
    def resumes(self) -> bool:
        """Whether a trial can resume from an epoch, as far as that is known before it runs."""
        return True

    @property
    def untested(self) -> str | None:
        """Why the winner is not tested; None if the config decides it."""
        return None

    @property
    def reads_train(self) -> bool:
        """Whether a training reads the section `train`."""
        return True

    # What the kinds share

    @property
    def suggests(self) -> bool:
        """Whether trials suggest their hyperparameters themselves, as Optuna objectives do."""
        return isinstance(self.space, SuggestedSpace)

    @property
    def tested(self) -> bool:
        """Whether the winner is trained on the full training set and tested."""
        return self.is_tested(self.config)

    @classmethod
    def is_tested(cls, cfg: StudyConfig) -> bool:
        """Whether the winner of a config's study is tested: a loop's by `objective.test`."""
        return cls.trains_networks or cfg.objective.test is not None

    def compose_config(self, point: Point) -> StudyConfig:
        """Returns the config of one configuration."""
        return self.composer.compose(point.choices).with_values(point.values)

    def sections(self, point: Point) -> dict[str, Any]:
        """Returns the resolved sections of a configuration's config, without the search space."""
        return plain_sections(
            self.compose_config(point), *(name for name in SECTIONS if name != "space")
        )

    def provenance_sections(self, point: Point) -> dict[str, Any]:
        """Returns the resolved sections that decide the value of a trial."""
        return _deciding_sections(self.compose_config(point), "space", "loss")

    @functools.cached_property
    def baseline(self) -> Point | None:
        """The default configuration, or None if `study.baseline` is false."""
        if not self.config.study.baseline:
            return None
        return self.space.read_default(
            self.composer.choices, lambda key: value_at(self.config, key)
        )

    @functools.cached_property
    def seed(self) -> int:
        """The seed of the study, from which all others descend."""
        return int(self.config.study.seed)

    def trial_seed(self, number: int) -> int:
        """Derives the seed of a trial, from which those of its jobs descend."""
        return derive(self.seed, number)

    def new_fold(self, data: TrainingData, seed: int) -> Fold | None:
        """Returns a training and validation split of the re-evaluation, unused by the search.

        It is as large as those of the search, but for the size of a group. In time order the
        validation set is always the last part: only there is all training data earlier.

        Args:
            seed: the number of the seed in the re-evaluation.
        """
        if data.split is None:
            return None
        assert data.source is not None
        count, seed_of_split = self.config.objective.folds, derive(self.seed, seed, 0, 1)
        return data.split.folds(count, data.source.validation, seed_of_split)[-1]

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
        """The rule that chooses the winner, or None without a `winner.rule`."""
        rule = self.config.winner.rule
        known = [
            *self.objectives,
            *(ObjectiveValue(limit.name, "minimize") for limit in self.limits),
        ]
        return None if rule is None else Rule.parse(rule, [*dict.fromkeys(known)])

    def identity(self, digest: str) -> dict[str, Any]:
        """Returns all values that identify the definition, by key.

        They include digests of the user's code and of the data, but not the folder of the data.
        """
        flat = dict(flatten(_deciding_sections(self.config)))
        # The defaults of options that the default configuration does not choose.
        for branch in self.branches:
            for group, option in branch.choices.items():
                if option != self.composer.choices.get(group):
                    section = value_at(branch.config, group.replace("/", "."))
                    flat |= flatten(section, f"{group}={option}")
        flat |= self.code | {
            "data.digest": digest,
            "study.seed": self.config.study.seed,
            "study.direction": self.metric.direction,
        }
        if (study := self.config.study).deterministic:
            flat |= {"study.deterministic": True, "study.round": study.round}
        return {
            key: value
            for key, value in sorted(flat.items())
            if key not in ("data.root", "objective.direction") and not key.startswith("train.loss")
        }

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
        """Every branch of the space, the root first.

        Groups that do not lead to a branch keep their default option, or have their first one if
        the space lacks the default. Without a baseline, each hyperparameter outside the branch is
        at its low end, since its default may be out of range.
        """
        branches: list[Branch] = []
        errors: list[str] = []
        for choices, nodes in self.space.branches():
            chosen = {**self.composer.choices, **choices}
            point = self.space.make_placeholder(chosen)
            try:
                branch = self.composer.compose(point.choices)
            except ConfigError as error:
                errors += error.errors
                continue
            if not self.config.study.baseline:
                values = {key: each for key, each in point.values.items() if has_key(branch, key)}
                branch = branch.with_values(values)
            branches.append(Branch(choices, nodes, branch, point.choices))
        refuse(errors)
        return branches


def _deciding_sections(config: StudyConfig, *left_out: str) -> dict[str, Any]:
    """Returns the resolved sections of a config that decide the result of a trial.

    The folder of the data is left out, since it differs between machines, and so is how they are
    loaded.
    """
    names = (name for name in SECTIONS if name not in left_out)
    sections = without_transform(plain_sections(config, *names))
    data: Any = sections.get("data")
    for path in find_location_keys(data) if isinstance(data, dict) else ():
        inner = data
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
    return sections
