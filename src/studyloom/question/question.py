"""The question of a study: a configuration, and the space around it. Checked as a whole before work starts."""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from studyloom.config.build import build
from studyloom.config.compose import Composer
from studyloom.config.overrides import group_options
from studyloom.config.values import (
    has_key,
    plain_sections,
    value_at,
    with_values,
    without_key,
)
from studyloom.data.folds import Fold, Folds, make_folds
from studyloom.data.split import Split, check_split
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError
from studyloom.metrics import Goal, Metric
from studyloom.question.costs import Cost, Limit, measure_costs, parse_limits
from studyloom.question.jobs import build_goals, build_jobs, build_metric
from studyloom.question.objective import NetworkObjective, Objective
from studyloom.question.preflight import Branch, end_of, try_branches, try_metric
from studyloom.question.rule import Rule, parse_rule
from studyloom.seeds import derive
from studyloom.space.language import parse_space
from studyloom.space.tree import Parameter, Point, Space, group_of
from studyloom.training.job import Job
from studyloom.training.trainer import Training

# What a study asks. The sampler, the pruner and the launcher are ways to an answer, and may change between runs.
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
STEPS = "steps"  # a key of the pruner's that is ours: what it is shown of a trial


@dataclass(frozen=True)
class Question:
    """tested: whether what wins is a network, to be trained on all data and tested."""

    tested: ClassVar[bool] = True
    config: DictConfig
    composer: Composer
    space: Space

    @classmethod
    def ask(cls, cfg: DictConfig, composer: Composer) -> "Question":
        """The question that a composed config asks.

        Raises:
            SpaceError: what is wrong in `space` itself.
        """
        composer.keep(cfg)
        return cls(cfg, composer, parse_space(value_at(cfg, "space") or {}, group_options))

    @staticmethod
    def gather(cfg: DictConfig) -> TrainingData:
        """Loads the training part, and divides it.

        Raises:
            ValueError: it cannot be.
        """
        source = build(cfg.data)
        split: Split = source.train()
        check_split(split)
        count, seed = (
            cfg.objective.folds,
            derive(max(0, cfg.study.seed)),
        )  # what is below 0 is told by `check`
        return TrainingData(
            source,
            split,
            make_folds(split.targets, count, source.validation, seed, ordered=split.ordered),
        )

    def at(self, point: Point) -> DictConfig:
        """The config of one point."""
        return with_values(self.composer.compose(point.choices), point.values)

    def provenance_sections(self, point: Point) -> dict[str, Any]:
        """The sections that decide what a trial gives, resolved; without where the data lies on this machine."""
        sections = plain_sections(
            self.at(point), *(name for name in SECTIONS if name not in ("space", "loss"))
        )
        sections.get("data", {}).pop("root", None)
        return sections

    @functools.cached_property
    def baseline(self) -> Point | None:
        """Where the configuration as composed stands in the space; None if the study is not to begin there."""
        if not self.config.study.baseline:
            return None
        return self.space.default(self.composer.choices, lambda key: value_at(self.config, key))

    @property
    def seed(self) -> int:
        return int(self.config.study.seed)

    @functools.cached_property
    def metric(self) -> Metric:
        return build_metric(self.config.objective)

    def jobs(self, point: Point, folds: Folds, number: int) -> list[Job]:
        """The trainings of trial `number`."""
        return build_jobs(self.at(point), folds, derive(self.seed, number))

    @functools.cached_property
    def limits(self) -> list[Limit]:
        """What its networks may cost.

        Raises:
            ConfigError: a limit is none, or of a quantity that does not exist.
        """
        return parse_limits(value_at(self.config, "objective.constraints"))

    @functools.cached_property
    def goals(self) -> tuple[Goal, ...]:
        """What the values of a trial are, the metric first."""
        return build_goals(self.metric, self.config.objective)

    @functools.cached_property
    def rule(self) -> Rule | None:
        """How the winner is chosen, if that is stated. Raises ConfigError if it is no rule."""
        limited = (Goal(limit.quantity, "minimize") for limit in self.limits)
        known = dict.fromkeys([*self.goals, *limited])  # of each trial
        stated = self.config.winner.rule
        return None if stated is None else parse_rule(stated, [*known])

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        """What the network of a point costs, where that is limited or an objective."""
        costs = [goal.name for goal in self.goals[1:]]
        if not self.limits and not costs:
            return []
        assert data.split is not None
        return measure_costs(costs, self.limits, self.jobs(point, data.folds, 0)[0], data.split)

    def make_objective(self, point: Point, number: int, data: TrainingData) -> Objective:
        """The objective of trial `number` at a point."""
        assert data.split is not None
        jobs = self.jobs(point, data.folds, number)
        return NetworkObjective(Training(jobs, data.split, in_turn=self.in_turn))

    def make_single_objective(
        self, point: Point, seed: int, data: TrainingData, fold: Callable[[], Fold]
    ) -> Objective:
        """An objective at a point with one seed and one fold, as a candidate is judged."""
        assert data.split is not None
        return NetworkObjective(
            Training(build_jobs(self.at(point), [fold()], seed)[:1], data.split)
        )

    def sampler(self, number: int) -> BaseSampler:
        """The sampler of trial `number`, seeded for it unless the config names a seed for all.

        One seed for all workers made them draw 4 distinct points of 16.
        """
        given = {
            "seed": derive(self.seed, number, 1),
            "space": self.space,
            "baseline": self.baseline,
        }
        with (
            warnings.catch_warnings()
        ):  # group=True is called experimental, and is what branches need
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler: BaseSampler = build(self.config.sampler, **given)
        return sampler

    def pruner(self) -> BasePruner:
        with warnings.catch_warnings():  # optuna.pruners.WilcoxonPruner is called experimental
            warnings.simplefilter("ignore", ExperimentalWarning)
            pruner: BasePruner = build(without_key(self.config.pruner, STEPS))
        return pruner

    @property
    def steps(self) -> str:
        """What the pruner is shown of a trial: the mean of its jobs at each of its `epochs`, or its `jobs` in turn."""
        return str(self.config.pruner.get(STEPS, "epochs"))

    @property
    def in_turn(self) -> bool:
        """Whether the jobs of a trial are trained one after the other."""
        return self.steps == "jobs"

    def trials(self) -> int:
        """The budget: `study.trials`, or fewer where the space holds fewer points for the sampler to give."""
        trials = int(self.config.study.trials)
        if self.space.size() == 1:
            return min(1, trials)
        points = getattr(self.sampler(0), "points", None)
        return trials if points is None else min(trials, len(points))

    def identity(self, digest: str) -> dict[str, Any]:
        """What makes this question another one, by key; where the data lies does not."""
        flat = dict(_flatten(plain_sections(self.config, *SECTIONS)))
        for branch in (
            self.branches
        ):  # the defaults of options that the configuration as composed does not choose
            for group, option in branch.choices.items():
                if option != self.composer.choices.get(group):
                    section = value_at(branch.config, group.replace("/", "."))
                    flat |= _flatten(section, f"{group}={option}")
        flat |= {
            "data.digest": digest,
            "study.seed": self.config.study.seed,
            "study.direction": self.metric.direction,
        }
        flat |= {
            f"pruner.{STEPS}": self.steps
        }  # no pruner can compare trials that were reported otherwise
        return {
            key: value
            for key, value in sorted(flat.items())
            if key not in ("data.root", "objective.direction") and not key.startswith("train.loss")
        }

    @functools.cached_property
    def branches(self) -> list[Branch]:
        """Every part of the space. Groups that do not lead there stand at the option composed, or else at their first.

        Where the configuration as composed is no trial, what is searched elsewhere stands at its low end.

        Raises:
            ConfigError: an option that cannot be composed.
        """
        found: list[Branch] = []
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
            found.append(Branch(choices, nodes, branch))
        if mistakes:
            raise ConfigError(list(dict.fromkeys(mistakes)))
        return found

    @staticmethod
    def stand(choices: Mapping[str, str], parameter: Parameter) -> Any:
        """An option that is chosen where the space has it; all else at its low end."""
        distribution = parameter.distribution
        if parameter.role == "option" and isinstance(distribution, CategoricalDistribution):
            option = choices.get(group_of(parameter.key))
            if option in distribution.choices:
                return option
        return end_of(distribution, 0)

    def preflight(self, data: TrainingData) -> list[str]:
        """The mistakes in what the config names, found by building and trying it."""
        assert data.split is not None
        tried = [*try_branches(self.branches, data.folds, data.split)]
        return tried or [*try_metric(self.metric, data.folds, data.split)]


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
