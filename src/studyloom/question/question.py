"""The question of a study: a configuration, and the space of configurations around it."""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from studyloom.config.build import build
from studyloom.config.compose import Composer
from studyloom.config.overrides import group_options
from studyloom.config.values import (
    flatten,
    has_key,
    plain_sections,
    value_at,
    with_values,
    without_key,
    without_transform,
)
from studyloom.data.datasets import NO_TEST, places
from studyloom.data.split import Fold, Folds
from studyloom.data.training_data import Part, TrainingData, load_shared
from studyloom.errors import ConfigError, DataError
from studyloom.metrics import Goal, Metric
from studyloom.question.costs import Cost, Limit, measure_costs, parse_limits
from studyloom.question.jobs import build_goals, build_jobs, build_metric
from studyloom.question.objective import Attempt, NetworkObjective, Objective
from studyloom.question.preflight import Branch, end_of, try_branches, try_metric
from studyloom.question.rule import Rule, parse_rule
from studyloom.question.search_parts import build_pruner, build_sampler, keeps_state
from studyloom.question.sources import code_digests, digest_of_source
from studyloom.seeds import derive
from studyloom.space.language import parse_space
from studyloom.space.tree import Parameter, Point, Space, group_of
from studyloom.training.job import Job
from studyloom.training.ranks import ALONE, Ranks, Recipe
from studyloom.training.trainer import Training

# The sections that are part of what a study asks. The sampler, the pruner and the launcher are ways
# to an answer, and may change between runs.
SECTIONS = (
    "data",
    "model",
    "optimizer",
    "scheduler",
    "loss",
    "space",
    "objective",
    "params",
    "train",
)
FIRST = Attempt()
STEPS = "steps"  # our own key in the section of the pruner: what it is shown of a trial


@dataclass(frozen=True)
class Question:
    """What a study asks, and how its trials are made: of networks that we train.

    `validate` checks a question as a whole before the first trial; until then, most properties may
    raise ConfigError.

    Args:
        config: as composed for the command; never changed.
        composer: composes the config with other choices of groups.
        space: what is searched.
        ranks: the processes that train each trial together.
    """

    config: DictConfig
    composer: Composer
    space: Space
    ranks: Ranks = ALONE

    @staticmethod
    def is_tested(cfg: DictConfig) -> bool:
        """Whether the winner of a config's study is trained on all data and tested."""
        return True

    @property
    def tested(self) -> bool:
        """Whether the winner is trained on all data and tested."""
        return self.is_tested(self.config)

    @classmethod
    def ask(cls, cfg: DictConfig, composer: Composer) -> "Question":
        """Returns the question that a composed config asks.

        Args:
            cfg: as composed for the command, without the section `hydra`.
            composer: of the same command.

        Raises:
            ConfigError: every mistake in the section `space` itself.
        """
        composer.keep(cfg)
        return cls(cfg, composer, parse_space(value_at(cfg, "space") or {}, group_options))

    @classmethod
    def gather(cls, cfg: DictConfig) -> TrainingData:
        """Loads the training part of the data, and divides it into folds.

        Args:
            cfg: as composed for the command.

        Raises:
            ValueError: the data cannot be loaded or divided so.
        """
        source = build(cfg.data)
        if cfg.winner.enabled and cls.is_tested(cfg) and not getattr(source, "has_test", True):
            raise DataError(NO_TEST)
        split: Part = load_shared(source.train, data_key(cfg))
        split.check()
        seed = derive(max(0, cfg.study.seed))  # `validate` reports a negative seed
        return TrainingData(
            source, split, split.folds(cfg.objective.folds, source.validation, seed)
        )

    def at(self, point: Point) -> DictConfig:
        """Returns the config of a point of the space."""
        return with_values(self.composer.compose(point.choices), point.values)

    def provenance_sections(self, point: Point) -> dict[str, Any]:
        """Returns the resolved sections that decide the result of a trial at a point.

        The folder of the data is left out, since it differs between machines, and so is how they
        are loaded.
        """
        sections = plain_sections(
            self.at(point), *(name for name in SECTIONS if name not in ("space", "loss"))
        )
        return without_places(without_transform(sections))

    @functools.cached_property
    def baseline(self) -> Point | None:
        """The point of the config as composed, or None if `study.baseline` is false."""
        if not self.config.study.baseline:
            return None
        return self.space.default(self.composer.choices, lambda key: value_at(self.config, key))

    @property
    def seed(self) -> int:
        """The seed of the study, from which all others descend."""
        return int(self.config.study.seed)

    @functools.cached_property
    def metric(self) -> Metric:
        """The metric of `objective.metric`.

        Raises:
            ConfigError: the metric or its direction is unknown.
        """
        return build_metric(self.config.objective)

    def jobs(self, point: Point, folds: Folds, number: int) -> list[Job]:
        """Returns the jobs of a trial.

        Args:
            point: of the space.
            folds: of the data.
            number: of the trial; with the seed of the study it decides the seeds of the jobs.
        """
        return build_jobs(self.at(point), folds, derive(self.seed, number))

    @functools.cached_property
    def limits(self) -> list[Limit]:
        """What networks may cost, from `objective.constraints`.

        Raises:
            ConfigError: a value is not a limit, or a quantity is unknown.
        """
        return parse_limits(value_at(self.config, "objective.constraints"))

    @functools.cached_property
    def goals(self) -> tuple[Goal, ...]:
        """What the values of a trial are, the metric first."""
        return build_goals(self.metric, self.config.objective)

    @functools.cached_property
    def rule(self) -> Rule | None:
        """How the winner is chosen, or None without a `winner.rule`.

        Raises:
            ConfigError: the rule does not parse, or names something unknown.
        """
        limited = (Goal(limit.quantity, "minimize") for limit in self.limits)
        known = dict.fromkeys([*self.goals, *limited])  # of each trial
        rule = self.config.winner.rule
        return None if rule is None else parse_rule(rule, [*known])

    def trains_on(self, data: TrainingData) -> torch.device:
        """Returns the device on which trials are trained."""
        return data.device

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        """Measures what the network of a point costs, before it is trained.

        Returns:
            A cost for each quantity that has a limit or is an objective.
        """
        costs = [goal.name for goal in self.goals[1:]]
        if not self.limits and not costs:
            return []
        assert data.split is not None
        return measure_costs(costs, self.limits, self.jobs(point, data.folds, 0)[0], data.split)

    def make_objective(
        self, point: Point, number: int, data: TrainingData, attempt: Attempt = FIRST
    ) -> Objective:
        """Returns the objective of a trial.

        Args:
            point: of the space.
            number: of the trial, which decides its seed.
            data: on the device of the worker.
            attempt: at the trial.
        """
        assert data.split is not None
        jobs = self.jobs(point, data.folds, number)
        training = Training(jobs, data.split, in_turn=self.in_turn, ranks=self.ranks)
        recipe = partial(Question.make_objective, point=point, number=number)
        return NetworkObjective(training, recipe)

    def make_single_objective(
        self,
        point: Point,
        seed: int,
        data: TrainingData,
        fold: Callable[[], Fold],
        number: int = 0,
        attempt: Attempt = FIRST,
    ) -> Objective:
        """Returns an objective with one seed and one fold, as candidates for the winner have.

        Args:
            point: of the space.
            seed: of the training.
            data: on the device of the worker.
            fold: makes the training and validation indices; only called where there are data.
            number: of the trial in its stage.
            attempt: at the trial.
        """
        assert data.split is not None
        indices = fold()
        jobs = build_jobs(self.at(point), [indices], seed)[:1]
        training = Training(jobs, data.split, ranks=self.ranks)
        recipe = partial(
            Question.make_single_objective, point=point, seed=seed, fold=partial(given, indices)
        )
        return NetworkObjective(training, recipe)

    def take_part(self, call: tuple[Recipe, dict[str, Any] | None], data: TrainingData) -> None:
        """Trains a trial as another rank, which leads the training.

        Args:
            call: of the leading rank: what makes its objective of this question and data, and the
                state from which it resumes, if it does.
            data: on the device of this rank.
        """
        recipe, state = call
        made: list[Any] = []

        def prepare() -> None:
            made.append(recipe(self, data=data))
            if state is not None:
                made[0].restore(state)

        self.ranks.together(prepare)
        made[0].follow()

    def sampler(self, number: int) -> BaseSampler:
        """Returns the sampler of a trial, seeded for it.

        Args:
            number: of the trial.
        """
        section = self.config.sampler
        return build_sampler(section, number, self.seed, self.space, self.baseline)

    def pruner(self) -> BasePruner:
        """Returns a new pruner of the section `pruner`."""
        return build_pruner(without_key(self.config.pruner, STEPS))

    @functools.cached_property
    def keeps_state(self) -> tuple[str, ...]:
        """Which of `sampler` and `pruner` is one object for all trials, and so in one process.

        Raises:
            ConfigError: a section does not say so rightly.
        """
        sections = {"sampler": self.config.sampler, "pruner": self.config.pruner}
        return tuple(name for name, section in sections.items() if keeps_state(section))

    @property
    def steps(self) -> str:
        """What the pruner is shown of a trial.

        It is `epochs` for the mean over jobs at each epoch, or `jobs` for the end of each job if
        they are trained in turn.
        """
        return str(self.config.pruner.get(STEPS, "epochs"))

    @property
    def in_turn(self) -> bool:
        """Whether the jobs of a trial are trained one after the other."""
        return self.steps == "jobs"

    def trials(self) -> int:
        """Returns the budget: `study.trials`, or fewer if the sampler has fewer points to give."""
        trials = int(self.config.study.trials)
        if self.space.size() == 1:
            return min(1, trials)
        points = getattr(self.sampler(0), "points", None)
        return trials if points is None else min(trials, len(points))

    def identity(self, digest: str) -> dict[str, Any]:
        """Returns all values that identify the question, by key; two equal ones ask the same.

        The sources of the user's own code are part of it, and the folder of the data is not.

        Args:
            digest: of the data.
        """
        sections = without_transform(plain_sections(self.config, *SECTIONS))
        flat = dict(flatten(without_places(sections)))
        # The defaults of options that the config as composed does not choose.
        for branch in self.branches:
            for group, option in branch.choices.items():
                if option != self.composer.choices.get(group):
                    section = value_at(branch.config, group.replace("/", "."))
                    flat |= flatten(section, f"{group}={option}")
        flat |= self.code | {
            "data.digest": digest,
            "study.seed": self.config.study.seed,
            "study.direction": self.metric.direction,
            # A pruner cannot compare trials whose reports mean different things.
            f"pruner.{STEPS}": self.steps,
        }
        return {
            key: value
            for key, value in sorted(flat.items())
            if key not in ("data.root", "objective.direction") and not key.startswith("train.loss")
        }

    @functools.cached_property
    def code(self) -> dict[str, str]:
        """The digest of each module of the user's own code that the question names."""
        configs = [self.config, *(branch.config for branch in self.branches)]
        return code_digests([plain_sections(config, *SECTIONS) for config in configs])

    @functools.cached_property
    def branches(self) -> list[Branch]:
        """Every branch of the space, the root first.

        In the config of a branch, groups that do not lead there have the option of the config as
        composed, or their first if the space lacks it. Without a baseline, whatever is searched
        outside the branch is at its low end, since its default may be out of range.

        Raises:
            ConfigError: every option that cannot be composed.
        """
        branches: list[Branch] = []
        mistakes: list[str] = []
        for choices, nodes in self.space.branches():
            point = self.space.walk(
                functools.partial(self.stand, {**self.composer.choices, **choices})
            )
            try:
                branch = self.composer.compose(point.choices)
            except ConfigError as error:
                mistakes += error.mistakes
                continue
            if not self.config.study.baseline:
                elsewhere = {
                    key: value for key, value in point.values.items() if has_key(branch, key)
                }
                branch = with_values(branch, elsewhere)
            branches.append(Branch(choices, nodes, branch))
        if mistakes:
            raise ConfigError(list(dict.fromkeys(mistakes)))
        return branches

    @staticmethod
    def stand(choices: Mapping[str, str], parameter: Parameter) -> Any:
        """Returns the value of a parameter that is given only the choices of groups.

        Args:
            choices: the option of each group.
            parameter: an option, which is as chosen if the space has it, or any other parameter,
                which is at its low end.
        """
        distribution = parameter.distribution
        if parameter.role == "option" and isinstance(distribution, CategoricalDistribution):
            option = choices.get(group_of(parameter.key))
            if option in distribution.choices:
                return option
        return end_of(distribution, 0)

    def preflight(self, data: TrainingData) -> list[str]:
        """Builds and tries all that the config names; returns a line for each mistake."""
        assert data.split is not None
        mistakes = [*try_branches(self.branches, data.folds, data.split)]
        if mistakes or self.config.train.evaluate is not None:  # which gives its own targets
            return mistakes
        return [*try_metric(self.metric, data.folds, data.split)]


def data_key(cfg: DictConfig) -> str:
    """Returns the digest of the section `data`, from which the training part follows."""
    return digest_of_source(json.dumps(plain_sections(cfg, "data"), default=str).encode())


def without_places(sections: dict[str, Any]) -> dict[str, Any]:
    """Leaves out where the data lie and how they are loaded, which change no result."""
    data = sections.get("data")
    if isinstance(data, dict):
        for path in places(data):
            inner = data
            for name in path[:-1]:
                inner = inner[name]
            del inner[path[-1]]
    return sections


def given(fold: Any) -> Any:
    """Returns a fold: as a function that can be sent to another process."""
    return fold
