"""The question of a study: a configuration, and the space around it. Checked as a whole before work starts."""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from torch import Tensor

from studyloom import config, data, parts
from studyloom.config import Composer
from studyloom.constraints import Limit, Measured, measure, parse_limits
from studyloom.data import Split
from studyloom.grammar import parse
from studyloom.metrics import Aim, Metric
from studyloom.objective import Effort, Trained
from studyloom.rehearsal import Folds, ask_once, end, probes, try_aims, try_metric, try_out
from studyloom.rule import Rule, parse_rule
from studyloom.schema import Config, ConfigError, check_name
from studyloom.seeds import derive
from studyloom.space import (
    Leaf,
    Many,
    Node,
    Parameter,
    Point,
    Space,
    SpaceError,
    complaint,
    group_of,
    nearest,
    written,
)
from studyloom.train import Job, Training

# What a study asks. The sampler, the pruner and the launcher are ways to an answer, and may change between runs.
SECTIONS = ("data", "model", "optimizer", "scheduler", "loss", "space", "objective", "params", "train")
LARGEST_SEED = 2**32 - 1  # that numpy's older generators take, which samplers use
STEPS = "steps"  # a key of the pruner's that is ours: what it is shown of a trial
SEARCHED = ("model", "optimizer", "scheduler", "loss", "train", "params")  # what is made anew for each trial


@dataclass(frozen=True)
class Branch:
    """A part of the space: the choices that lead there, what is asked there, and a config that stands there."""

    choices: Mapping[str, str]
    nodes: tuple[Node, ...]
    config: DictConfig

    def __str__(self) -> str:
        return ", ".join(f"{group}={option}" for group, option in self.choices.items())


@dataclass(frozen=True)
class Material:
    """What networks are trained on and judged by; a function of one's own has none of ours."""

    source: Any = None
    split: Split | None = None
    folds: Folds = ()

    @property
    def digest(self) -> str:
        return "" if self.split is None else self.split.digest

    def test(self) -> Split:
        """Opens the test part."""
        split: Split = self.source.test()
        return split

    def to(self, device: torch.device) -> "Material":
        return self if self.split is None else replace(self, split=self.split.to(device))


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
        return cls(cfg, composer, parse(config.get(cfg, "space") or {}, config.group_options))

    @staticmethod
    def gather(cfg: DictConfig) -> Material:
        """Loads the training part, and divides it.

        Raises:
            ValueError: it cannot be.
        """
        source = config.build(cfg.data)
        split: Split = source.train()
        data.check(split)
        count, seed = cfg.objective.folds, derive(max(0, cfg.study.seed))  # what is below 0 is told by `check`
        return Material(source, split, data.folds(split.targets, count, source.validation, seed, ordered=split.ordered))

    def at(self, point: Point) -> DictConfig:
        """The config of one point."""
        return config.with_values(self.composer.compose(point.choices), point.values)

    def made_of(self, point: Point) -> dict[str, Any]:
        """The sections that decide what a trial gives, resolved; without where the data lies on this machine."""
        sections = config.plain(self.at(point), *(name for name in SECTIONS if name not in ("space", "loss")))
        sections.get("data", {}).pop("root", None)
        return sections

    @functools.cached_property
    def baseline(self) -> Point | None:
        """Where the configuration as composed stands in the space; None if the study is not to begin there."""
        if not self.config.study.baseline:
            return None
        return self.space.default(self.composer.choices, lambda key: config.get(self.config, key))

    @property
    def seed(self) -> int:
        return int(self.config.study.seed)

    @functools.cached_property
    def metric(self) -> Metric:
        return parts.build_metric(self.config.objective)

    def jobs(self, point: Point, folds: Folds, number: int) -> list[Job]:
        """The trainings of trial `number`."""
        return parts.build_jobs(self.at(point), folds, derive(self.seed, number))

    @functools.cached_property
    def limits(self) -> list[Limit]:
        """What its networks may cost.

        Raises:
            ConfigError: a limit is none, or of a quantity that does not exist.
        """
        return parse_limits(config.get(self.config, "objective.constraints"))

    @functools.cached_property
    def aims(self) -> tuple[Aim, ...]:
        """What the values of a trial are, the metric first."""
        return parts.build_aims(self.metric, self.config.objective)

    @functools.cached_property
    def rule(self) -> Rule | None:
        """How the winner is chosen, if that is stated. Raises ConfigError if it is no rule."""
        limited = (Aim(limit.quantity, "minimize") for limit in self.limits)
        known = dict.fromkeys([*self.aims, *limited])  # of each trial
        stated = self.config.winner.rule
        return None if stated is None else parse_rule(stated, [*known])

    def measure(self, point: Point, split: Split | None, folds: Folds) -> list[Measured]:
        """What the network of a point costs, where that is limited or an objective."""
        costs = [aim.name for aim in self.aims[1:]]
        if not self.limits and not costs:
            return []
        assert split is not None
        return measure(costs, self.limits, self.jobs(point, folds, 0)[0], split)

    def effort(self, point: Point, number: int, split: Split | None, folds: Folds) -> Effort:
        """What trial `number` does."""
        assert split is not None
        return Trained(Training(self.jobs(point, folds, number), split, in_turn=self.in_turn))

    def once(self, point: Point, seed: int, split: Split | None, part: Callable[[], tuple[Tensor, Tensor]]) -> Effort:
        """What is done at a point with one seed, and with one part to train on and be judged by."""
        assert split is not None
        return Trained(Training(parts.build_jobs(self.at(point), [part()], seed)[:1], split))

    def sampler(self, number: int) -> BaseSampler:
        """The sampler of trial `number`, seeded for it unless the config names a seed for all.

        One seed for all workers made them draw 4 distinct points of 16.
        """
        given = {"seed": derive(self.seed, number, 1), "space": self.space, "baseline": self.baseline}
        with warnings.catch_warnings():  # group=True is called experimental, and is what branches need
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler: BaseSampler = config.build(self.config.sampler, **given)
        return sampler

    def pruner(self) -> BasePruner:
        with warnings.catch_warnings():  # optuna.pruners.WilcoxonPruner is called experimental
            warnings.simplefilter("ignore", ExperimentalWarning)
            pruner: BasePruner = config.build(config.without(self.config.pruner, STEPS))
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
        flat = dict(_flatten(config.plain(self.config, *SECTIONS)))
        for branch in self.branches:  # the defaults of options that the configuration as composed does not choose
            for group, option in branch.choices.items():
                if option != self.composer.choices.get(group):
                    section = config.get(branch.config, group.replace("/", "."))
                    flat |= _flatten(section, f"{group}={option}")
        flat |= {"data.digest": digest, "study.seed": self.config.study.seed, "study.direction": self.metric.direction}
        flat |= {f"pruner.{STEPS}": self.steps}  # no pruner can compare trials that were reported otherwise
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
            point = self.space.walk(functools.partial(self.stand, {**self.composer.choices, **choices}))
            try:
                branch = self.composer.compose(point.choices)
            except ConfigError as error:
                mistakes += error.mistakes
                continue
            if not self.config.study.baseline:
                elsewhere = {key: value for key, value in point.values.items() if config.has_key(branch, key)}
                branch = config.with_values(branch, elsewhere)
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
        return end(distribution, 0)

    def check(self, folds: Folds, split: Split | None) -> None:
        """Composes every branch of the space and builds what it names, at its defaults, corners and choices.

        Raises:
            ConfigError: every mistake found. Keys and ranges first: networks built from wrong ones only repeat them.
        """
        mistakes = [*self.check_sections(), *self._check_groups()]
        try:
            for branch in self.branches:
                mistakes += self._check_leaves(branch)
        except ConfigError as error:
            mistakes += error.mistakes
        if not mistakes:
            mistakes += self.rehearse(folds, split)
        if not mistakes:
            mistakes += self._check_search()
        if mistakes:
            raise ConfigError(list(dict.fromkeys(mistakes)))

    def rehearse(self, folds: Folds, split: Split | None) -> list[str]:
        """What is wrong with what the config names, found by trying it."""
        assert split is not None
        return [*self._check_builds(folds, split)] or [*try_metric(self.metric, folds, split)]

    def check_sections(self) -> Iterator[str]:
        """What is wrong in studyloom's own sections, whatever the data and the space are."""
        study, objective = self.config.study, self.config.objective
        yield from filter(None, [check_name(study.name)])
        aims: tuple[Aim, ...] = ()
        try:
            aims = self.aims
        except ConfigError as error:
            yield from error.mistakes
        except Exception as error:  # of a class of the user's own
            yield f"objective.metric: {config.words(error)}"
        try:
            _ = self.limits
            if aims:  # a name that only a wrong objective would know is no mistake of the rule
                _ = self.rule
        except ConfigError as error:
            yield from error.mistakes
        if len(aims) > 1:
            yield from try_aims(aims, lambda: self.sampler(0), self.pruner, self.composer.choices)
        wanted = (
            ("study.trials", study.trials, 1),
            ("study.seed", study.seed, 0),
            ("objective.folds", objective.folds, 1),
            ("objective.seeds", objective.seeds, 1),
            ("winner.top", self.config.winner.top, 1),
            ("winner.seeds", self.config.winner.seeds, 1),
        )
        yield from (f"{key}: {value} is below {low}" for key, value, low in wanted if value < low)
        if study.seed > LARGEST_SEED:
            yield f"study.seed: {study.seed} is above {LARGEST_SEED}"
        if study.timeout is not None and study.timeout <= 0:
            yield f"study.timeout: {study.timeout} is no number of seconds above 0; null means no limit"
        if self.steps not in ("epochs", "jobs"):
            yield f"pruner.{STEPS}: {self.steps!r} is neither epochs nor jobs"
        if self.in_turn and objective.folds == objective.seeds == 1:
            yield (
                f"pruner={self.composer.choices.get('pruner')}: compares trials fold by fold and seed by seed, and "
                "a trial has but one of each; set objective.folds=5, or choose another pruner, such as pruner=median"
            )

    def _check_groups(self) -> Iterator[str]:
        """The groups themselves, and the baseline's choices against the options that the space lists."""
        for group in self.space.groups():
            if problem := _not_searched(group.key):
                yield f"space.{group.name}: {problem}"
            if not self.config.study.baseline:
                continue
            name, option = group_of(group.key), self.composer.choices.get(group_of(group.key))
            inside = group.name == group.key or self._baseline_opens(group.name)
            if inside and option not in group.options:
                options = ", ".join(group.options)
                yield (
                    f"{name}: the configuration as composed has {name}={option}, and the space holds {options}; "
                    f"choose one of these, add {option} to space.{group.name}, or set study.baseline=false"
                )

    def _baseline_opens(self, name: str) -> bool:
        """Whether the baseline's choices lead to the group of that name."""
        for outer in self.space.groups():
            if name.startswith(f"{outer.name}."):
                option = name[len(outer.name) + 1 :].partition(".")[0]
                if option in outer.options and self.composer.choices.get(group_of(outer.key)) != option:
                    return False
        return True

    def _check_leaves(self, branch: Branch) -> Iterator[str]:
        chosen = "".join(f" with {group}={option}" for group, option in branch.choices.items())
        ways_out = f"; change the default{chosen}, the space, or set study.baseline=false"
        for node in branch.nodes:
            assert isinstance(node, Leaf | Many)
            if problem := _not_searched(node.key):
                yield f"space.{node.name}: {problem}"
            elif not config.has_key(branch.config, node.key):
                yield self._explain_key(node, branch.config)
            elif self.config.study.baseline:
                default = config.get(branch.config, node.key)
                where = f"space.{node.name}: the default {node.key}={written(default)}"
                yield from (f"{where} {problem}{ways_out}" for problem in self._problems(node, default, branch.config))

    @staticmethod
    def _problems(node: Node, default: Any, branch: DictConfig) -> Iterator[str]:
        if isinstance(node, Leaf):
            yield from filter(None, [complaint(node.distribution, default)])
            return
        assert isinstance(node, Many)
        items = default if isinstance(default, list) else [default]
        yield from dict.fromkeys(filter(None, (complaint(node.item, item) for item in items)))
        if isinstance(node.length, IntDistribution):
            if not isinstance(default, list):
                yield "is no list"
            elif problem := complaint(node.length, len(default)):
                yield f"is a list whose length {len(default)} {problem}"
        elif isinstance(default, list) and len(default) != len(config.get(branch, node.length) or []):
            yield f"is not as long as {node.length}"

    @staticmethod
    def _explain_key(node: Leaf | Many, branch: DictConfig) -> str:
        parts = node.key.split(".")
        depth = next(i for i in range(len(parts)) if not config.has_key(branch, ".".join(parts[: i + 1])))
        above = ".".join(parts[:depth])
        names = config.keys(branch, above)
        options = config.group_options(group_of(above)) if above else []
        known = [name for name in names if not name.startswith("_")] + options
        holder = f"{above} has" if above else "there are"
        return f"space.{node.name}: {node.key} is no key; {holder} {', '.join(known)}{nearest(parts[depth], known)}"

    def _check_builds(self, folds: Folds, split: Split) -> Iterator[str]:
        """What each branch makes of its probes; what fails there as it did in an outer branch is told only there."""
        told: list[tuple[Mapping[str, str], str]] = []
        for branch in self.branches:
            for probe in probes(branch.nodes):
                try:
                    jobs = parts.build_jobs(config.with_values(branch.config, probe), folds, seed=0)
                    try_out(jobs[0], split)
                except Exception as error:  # whatever a user's class raises, it is raised now and not in trial 17
                    words = config.words(error)
                    if any(words == known and outer.items() <= branch.choices.items() for outer, known in told):
                        continue
                    told.append((branch.choices, words))
                    where = ", ".join(filter(None, [str(branch), *(f"{k}={written(v)}" for k, v in probe.items())]))
                    yield f"{where}: {words}" if where else words

    def _check_search(self) -> Iterator[str]:
        for name, make in (
            ("sampler", lambda: self.sampler(0)),
            ("pruner", lambda: ask_once(self.pruner(), self.metric.direction)),
        ):
            chosen = f"{name}={self.composer.choices.get(name)}"
            try:
                make()
            except (SpaceError, ConfigError) as error:
                yield from error.mistakes
            except ImportError as error:
                extra = "pip install 'studyloom[samplers]'"
                yield f"{chosen}: needs a library that is not here ({extra}): {config.words(error)}"
            except Exception as error:
                yield f"{chosen}: {config.words(error)}"


def _not_searched(key: str) -> str | None:
    """Why a key cannot be searched, or None; a trial would change nothing there."""
    section = key.partition(".")[0]
    if section in SEARCHED or section not in Config.__dataclass_fields__:
        return None
    return f"{section} is the same for all trials; what can be searched is {', '.join(SEARCHED)}"


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
