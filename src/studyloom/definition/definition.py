"""The question of a study: a configuration, and the space of configurations around it.

The trials of a `Definition` train networks; those of a `LoopDefinition` call a loop of the user's
own, `(config, run) -> value`, or an objective of Optuna's.
"""

import functools
import inspect
import json
import re
import sys
import traceback
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import optuna
import torch
from omegaconf import MISSING, DictConfig, OmegaConf
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from torch.nn import functional

from studyloom.config.build import argument, build, find_target, plain
from studyloom.config.compose import Composer, isolated_hydra
from studyloom.config.overrides import explain_key, group_options
from studyloom.config.schema import AUTO, SCHEMA
from studyloom.config.values import (
    describe_error,
    flatten,
    has_key,
    keys_explained,
    plain_sections,
    value_at,
    with_values,
    without_transform,
)
from studyloom.data.datasets import NO_TEST, location_keys
from studyloom.data.split import Fold, Folds
from studyloom.data.training_data import Part, TrainingData, load_shared
from studyloom.definition.jobs import (
    NETWORK,
    build_function,
    build_jobs,
    build_metric,
    build_named,
    check_names,
    is_plain,
    loop_job,
    loop_jobs,
    loop_scaling,
    measure_costs,
    named_goals,
    named_params,
    network_of,
    split_metric,
)
from studyloom.definition.loop import (
    WITH_CONFIG,
    WITH_TRIAL,
    Loop,
    LoopObjective,
    how_called,
    why_not_called,
)
from studyloom.definition.objective import Attempt, NetworkObjective, Objective
from studyloom.definition.rule import Condition, Cost, Rule, parse_limits, parse_rule, read_space
from studyloom.definition.run import TEST, Run, RunContext, finite
from studyloom.definition.scale import Scale, parse_scale
from studyloom.definition.sources import code_digests, digest_of_source, is_users_code
from studyloom.errors import ConfigError, DataError, NoWinner, UndefinedMetric, refuse
from studyloom.metrics import ANYTHING, METRICS, Goal, Metric
from studyloom.seeds import derive
from studyloom.space.samplers import GridSampler
from studyloom.space.tree import Leaf, ListLeaf, Open, Point, Space, stand_in, start_of
from studyloom.text import as_yaml, nearest
from studyloom.training.job import Job
from studyloom.training.randomness import seeded
from studyloom.training.ranks import ALONE, Ranks, Recipe
from studyloom.training.trainer import Training

# The sections whose objects are made anew for each trial.
OF_NETWORKS = ("model", "optimizer", "scheduler", "loss")
# The sections that are part of what a study asks. The sampler, the pruner and the launcher are ways
# to an answer, and may change between runs.
SECTIONS = ("data", *OF_NETWORKS, "space", "objective", "params", "train")
FIRST = Attempt()
PARAMS = "params"
READS_TRAIN = re.compile(r"""\btrain\.\w|["']train["']""")  # in the source of a loop
HANDED_ON = re.compile(r"\brun\b(?![.(])")  # the run of a loop, as in its signature
STEPS = "steps"  # our own key in the section of the pruner: what it is shown of a trial
KEEPS_STATE = "keeps_state"  # our key in both sections, and the attribute of a class, for the same
UNUSED_TEST = (
    "data: the test set is not used; name a function (config, run, part) -> values that measures "
    "the winner on it, such as objective.test=mine.test"
)
# Each of their trials has a place in one sequence, which one seed makes for all of them.
ONE_SEQUENCE = (GridSampler, optuna.samplers.GridSampler, optuna.samplers.QMCSampler)


@dataclass(frozen=True)
class Branch:
    """A part of the space: its nodes are searched after certain choices of groups.

    The config has those options, by the name of their group, and defaults otherwise.

    Attributes:
        opened: the options of all groups of the space that are searched then.
    """

    choices: Mapping[str, str]
    nodes: tuple[Leaf | ListLeaf, ...]
    config: DictConfig
    opened: Mapping[str, str]

    def __str__(self) -> str:
        return ", ".join(f"{group}={option}" for group, option in self.choices.items())


@dataclass(frozen=True)
class Definition:
    """The question of a study whose trials are networks that we train.

    Its config is never changed. `validate` checks it as a whole before the first trial; until then,
    most properties may raise ConfigError, with every mistake.

    Args:
        began: the epoch of the lowest rung as its study began, 0 without rungs; None of a new one.
    """

    config: DictConfig
    composer: Composer
    space: Space
    ranks: Ranks = ALONE
    began: int | None = None
    trains_networks: ClassVar[bool] = True  # ourselves; False where a loop of the user's own does

    @staticmethod
    def is_tested(cfg: DictConfig) -> bool:
        """Whether the winner of a config's study is trained on all data and tested."""
        return True

    @property
    def suggests(self) -> bool:
        """Whether trials suggest their parameters themselves, as an objective of Optuna's does."""
        return isinstance(self.space, Open)

    @property
    def tested(self) -> bool:
        """Whether the winner is trained on all data and tested."""
        return self.is_tested(self.config)

    @classmethod
    def ask(cls, cfg: DictConfig, composer: Composer) -> "Definition":
        """Returns the question that a composed config, without the section `hydra`, asks."""
        space = read_space(value_at(cfg, "space"), group_options)
        typed = {override.key for override in composer.overrides}
        scale = parse_scale(cfg)
        sizes = {} if scale is None else scale.searched
        refuse([*_wrong_scale(space, typed, cfg, sizes)])
        complete = functools.partial(with_starts, space, typed, sizes)
        composer, cfg = replace(composer, complete=complete), complete(cfg, composer.choices)
        composer.keep(cfg)
        return cls(cfg, composer, space)

    @classmethod
    def gather(cls, cfg: DictConfig) -> TrainingData:
        """Loads the training part of the data, and divides it into folds."""
        source = build(cfg.data)
        if cfg.winner.enabled and cls.is_tested(cfg) and not getattr(source, "has_test", True):
            raise DataError(NO_TEST)
        split: Part = load_shared(source.train, data_key(cfg))
        split.check()
        seed = derive(max(0, cfg.study.seed))  # `validate` reports a negative seed
        folds = split.folds(cfg.objective.folds, source.validation, seed)
        return TrainingData(source, split, folds)

    def at(self, point: Point) -> DictConfig:
        """Returns the config of a point of the space."""
        return with_values(self.composer.compose(point.choices), point.values)

    def sections(self, point: Point) -> dict[str, Any]:
        """Returns the resolved sections of the config of a point, without the search space."""
        return plain_sections(self.at(point), *(name for name in SECTIONS if name != "space"))

    def provenance_sections(self, point: Point) -> dict[str, Any]:
        """Returns the resolved sections that decide the result of a trial at a point.

        The folder of the data is left out, since it differs between machines, and so is how they
        are loaded.
        """
        names = (name for name in SECTIONS if name not in ("space", "loss"))
        return without_places(without_transform(plain_sections(self.at(point), *names)))

    @functools.cached_property
    def baseline(self) -> Point | None:
        """The point of the config as composed, or None if `study.baseline` is false."""
        if not self.config.study.baseline:
            return None
        return self.space.default(self.composer.choices, lambda key: value_at(self.config, key))

    @functools.cached_property
    def scale(self) -> Scale | None:
        """The sizes of the search and of its winner; None if they are the same."""
        return parse_scale(self.config)

    @property
    def seed(self) -> int:
        """The seed of the study, from which all others descend."""
        return int(self.config.study.seed)

    @functools.cached_property
    def metric(self) -> Metric:
        """The metric of `objective.metric`."""
        return build_metric(self.config.objective)

    @functools.cached_property
    def goals(self) -> tuple[Goal, ...]:
        """The goals of the values of a trial: the metric, and a cost if it is one too."""
        _, costs = split_metric(plain(self.config.objective))
        return (self.metric, *(Goal(cost, "minimize") for cost in costs))

    @functools.cached_property
    def limits(self) -> list[Condition]:
        """The limits of what trials may cost, from `objective.constraints`."""
        return parse_limits(value_at(self.config, "objective.constraints"))

    @functools.cached_property
    def rule(self) -> Rule | None:
        """The rule that chooses the winner, or None without a `winner.rule`."""
        rule = self.config.winner.rule
        known = [*self.goals, *(Goal(limit.name, "minimize") for limit in self.limits)]
        return None if rule is None else parse_rule(rule, [*dict.fromkeys(known)])

    @property
    def resumes(self) -> bool:
        """Whether a trial can go on from an epoch, as far as that is known before it runs."""
        return True

    @property
    def reads_train(self) -> bool:
        """Whether a training reads the section `train`."""
        return True

    def check_functions(self, data: TrainingData) -> Iterable[str]:
        """Returns the mistakes in the functions that a trial calls; networks have none to call."""
        return ()

    def trains_on(self, data: TrainingData) -> torch.device:
        """Returns the device on which trials are trained."""
        return data.device

    def job(self, point: Point, fold: Fold, seed: int) -> Job:
        """Builds the job of a single training."""
        return build_jobs(self.at(point), [fold], seed)[0]

    def test(self, point: Point, seed: int, states: dict[str, Any], part: Any) -> dict[str, float]:
        """Calls `objective.test`, which loops alone have."""
        raise NotImplementedError

    def jobs(self, point: Point, folds: Folds, number: int) -> list[Job]:
        """Returns the jobs of a trial, whose number and the study's seed decide their seeds."""
        return build_jobs(self.at(point), folds, derive(self.seed, number))

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        """Measures the costs of a point's network that are limited or minimized."""
        costs = [goal.name for goal in self.goals[1:]]
        if not self.limits and not costs:
            return []
        assert data.split is not None
        jobs = self.jobs(point, data.folds, 0)
        together = 1 if self.in_turn else len(jobs)
        return measure_costs(costs, self.limits, jobs[0], data.split, together)

    def make_objective(
        self,
        point: Point,
        number: int,
        data: TrainingData,
        attempt: Attempt = FIRST,
        seed: int | None = None,
        fold: Fold | None = None,
    ) -> Objective:
        """Returns the objective of a trial: with all seeds and folds, or with a single one of each.

        Args:
            number: of the trial in its stage, which decides the seeds if there is no `seed`.
            seed: of a single training, as candidates for the winner have.
            fold: of that; None where there are no data.
        """
        assert data.split is not None
        if seed is None:
            jobs = self.jobs(point, data.folds, number)
        else:
            assert fold is not None
            jobs = [self.job(point, fold, seed)]
        in_turn = self.in_turn and seed is None
        training = Training(jobs, data.split, in_turn=in_turn, ranks=self.ranks)
        return NetworkObjective(training, self._recipe(point, number, attempt, seed, fold))

    def _recipe(
        self, point: Point, number: int, attempt: Attempt, seed: int | None, fold: Fold | None
    ) -> Recipe:
        """Returns a function that makes this objective in other ranks, by their question."""
        make = functools.partial(type(self).make_objective, point=point, number=number)
        return functools.partial(make, attempt=attempt, seed=seed, fold=fold)

    def take_part(self, call: tuple[Recipe, dict[str, Any] | None], data: TrainingData) -> None:
        """Trains a trial as another rank, which leads the training.

        Args:
            call: what makes its objective of this question and data, and the state to resume from.
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
        """Returns the sampler of a trial, made anew and seeded for it.

        A `seed` in its section takes the place of the study's. Both are combined with the number:
        with one seed for all trials, each would draw what the first drew, and workers drew only 4
        distinct points of 16.
        """
        section = plain(self.config.sampler)
        section.pop(KEEPS_STATE, None)
        target, given = find_target(section, "sampler"), section.get("seed")
        seed = self.seed if given is None else given
        if not (isinstance(target, type) and issubclass(target, ONE_SEQUENCE)):
            seed = derive(seed, number, 1)
        if "seed" in section:
            section["seed"] = seed
        if re.fullmatch(r"optuna\..*CmaEsSampler", section["_target_"]):
            # In its place, ours, which reads no pickles from the database.
            section["_target_"] = "studyloom.space.samplers.CmaEsSampler"
        offered = {"seed": seed, "space": self.space, "baseline": self.baseline}
        sampler: BaseSampler = _build_part(section, "sampler", **offered)
        if self.suggests and (given := value_at(self.config, PARAMS)):
            section = {"_target_": "optuna.samplers.PartialFixedSampler", "fixed_params": given}
            sampler = _build_part(section, "sampler", base_sampler=sampler)
        return sampler

    def pruner(self) -> BasePruner:
        """Returns a new pruner of the section `pruner`."""
        section = plain(self.config.pruner)
        own = {name: each for name, each in section.items() if name not in (STEPS, KEEPS_STATE)}
        offered = {"definition": self, "epochs": self.epochs, "began": self.began}
        pruner: BasePruner = _build_part(own, "pruner", **offered)
        return pruner

    def notes(self, data: TrainingData) -> list[str]:
        """Returns what the user is told before the first trial."""
        note: str | None = getattr(self.pruner(), "note", None)
        return [] if note is None else [note]

    @property
    def epochs(self) -> int | None:
        """How many epochs a training has, if that is known before it runs."""
        return int(self.config.train.epochs)

    @functools.cached_property
    def keeps_state(self) -> tuple[str, ...]:
        """Which of `sampler` and `pruner` is one object for all trials, and so in one process.

        The key `keeps_state` of a section says so, or the attribute of that name of its class.
        """
        sections = {name: self.config[name] for name in ("sampler", "pruner")}
        return tuple(
            name
            for name, section in sections.items()
            if section.get(KEEPS_STATE, getattr(find_target(section), KEEPS_STATE, False))
        )

    @property
    def steps(self) -> str:
        """The steps of a trial that the pruner sees.

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
        trials, points = int(self.config.study.trials), getattr(self.sampler(0), "points", None)
        size = self.space.size() if points is None else len(points)
        ends = points is not None or size == 1 or not self.config.study.repeats
        return int(min(trials, size)) if ends else trials

    def identity(self, digest: str) -> dict[str, Any]:
        """Returns all values that identify the question, by key; two equal ones ask the same.

        The sources of the user's own code are part of it, and so is the digest of the data; the
        folder of the data is not.
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
        """
        branches: list[Branch] = []
        mistakes: list[str] = []
        for choices, nodes in self.space.branches():
            chosen = {**self.composer.choices, **choices}
            point = self.space.walk(functools.partial(stand_in, chosen))
            try:
                branch = self.composer.compose(point.choices)
            except ConfigError as error:
                mistakes += error.mistakes
                continue
            if not self.config.study.baseline:
                values = {key: each for key, each in point.values.items() if has_key(branch, key)}
                branch = with_values(branch, values)
            branches.append(Branch(choices, nodes, branch, point.choices))
        refuse(mistakes)
        return branches


@dataclass(frozen=True)
class LoopDefinition(Definition):
    """A question whose trials call a loop; see `Definition` for its parameters and methods.

    A loop `(run, *, width=32, …)` gets the values of `params` by name, and its defaults are part of
    them. An objective of Optuna's, `(trial)`, has an `Open` space: `params` holds parameters
    that are not searched, but given. See `loop.how_called`.

    Its data are the loop's own affair, or those of the section `data`. The section `objective` may
    build an adapter: an object that is called as a loop is, and may have methods:

    * `check(config, space)` returns a line for each mistake that can be seen before trial 0;
    * `code()` returns digests of source files that decide a value, by `code.NAME`;
    * `composed()` returns a configuration of its own. The names of the space are the keys of that
      one, and the section `params` holds what is set in it: the values of a trial, and the user's.
    """

    trains_networks: ClassVar[bool] = False

    @staticmethod
    def is_tested(cfg: DictConfig) -> bool:
        """Whether `objective.test` names a function that tests the winner."""
        return cfg.objective.test is not None

    @classmethod
    def ask(cls, cfg: DictConfig, composer: Composer) -> Definition:
        """Returns the question that a composed config asks; see `Question.ask`."""
        target = None
        with suppress(ConfigError):  # `validate` reports it
            target = find_target(cfg.objective)
        if not hasattr(target, "composed"):
            return cls._ask_function(cfg, composer)
        config: DictConfig = build_function(cfg.objective).composed()  # type: ignore[attr-defined]
        space = read_space(value_at(cfg, "space"), lambda group: [], PARAMS)
        params: Any = value_at(cfg, PARAMS) or {}
        searched = [leaf.name for _, nodes in space.branches() for leaf in nodes]
        named = [(PARAMS, key) for key, _ in flatten(params)] if params else []
        mistakes = [
            f"{section}.{name}: {problem}"
            for section, name in named + [("space", name) for name in searched]
            if (problem := explain_key(name, config))
        ]
        refuse(mistakes)
        config.merge_with(params)
        values = OmegaConf.create(params)
        for name in searched:
            OmegaConf.update(values, name, value_at(config, name), merge=False)
        cfg = with_values(cfg, {PARAMS: OmegaConf.to_container(values)})
        composer.keep(cfg)
        return cls(cfg, composer, space)

    @classmethod
    def _ask_function(cls, cfg: DictConfig, composer: Composer) -> Definition:
        """Asks for a function, with the parameters that its signature names."""
        called, who = WITH_CONFIG, f"objective._target_={cfg.objective['_target_']}"
        with suppress(ConfigError):  # `validate` reports it
            function = build_function(cfg.objective)
            called = how_called(function)
        if called == WITH_CONFIG:
            return super().ask(cfg, composer)
        if called == WITH_TRIAL:
            if value_at(cfg, "space"):
                raise ConfigError(f"space: {who} suggests its parameters itself; leave space out")
            composer.keep(cfg := with_values(cfg, {"study.baseline": False}))
            return cls(cfg, composer, Open())
        named, takes_any = named_params(function)
        defaults = {name: value for name, value in named.items() if is_plain(value)}
        definition = super().ask(cfg, composer)  # with the start of what is searched
        params = {**defaults, **(value_at(definition.config, PARAMS) or {})}
        definition = replace(definition, config=with_values(definition.config, {PARAMS: params}))
        definition.composer.keep(definition.config)
        leaves = (node.key for _, nodes in definition.space.branches() for node in nodes)
        searched = [*leaves, *(group.key for group in definition.space.groups())]
        mistakes = [
            f"params.{name} must be given: {who} has no default for it"
            for name, default in named.items()
            if default is inspect.Parameter.empty and name not in params
        ]
        given = value_at(cfg, PARAMS) or {}
        for key in (*(f"{PARAMS}.{name}" for name in given), *(f"space.{s}" for s in searched)):
            section, name, *_ = f"{key.removeprefix('space.')}.".split(".")
            if section != PARAMS:
                mistakes.append(f"{key}: {who} gets the values of params alone")
            elif name not in named and not takes_any:
                mistakes.append(
                    f"{key}: {who} has no parameter {name}; it has "
                    f"{', '.join(named) or 'none'}{nearest(name, [*named])}"
                )
        refuse(mistakes)
        return definition

    def notes(self, data: TrainingData) -> list[str]:
        """Returns what the user is told before the first trial."""
        has_test = data.split is not None and getattr(data.source, "has_test", True)
        unused = has_test and self.config.winner.enabled and not self.tested
        return [*super().notes(data), *self._resumption_notes(), *[UNUSED_TEST] * unused]

    def _resumption_notes(self) -> Iterator[str]:
        """Yields a line if a trial whose worker dies cannot resume."""
        name = self.config.objective["_target_"]
        if self.suggests:
            yield (
                f"{name}(trial) keeps no state: a trial whose worker dies starts again from the "
                "beginning, and the winner is not tested; a loop has run.keep and objective.test"
            )
            return
        with suppress(OSError, TypeError):  # there is no source
            source = inspect.getsource(find_target(self.config.objective))
            here = "run.keep(" in source and len(HANDED_ON.findall(source)) == 1
            if here and "run.epochs(" not in source:
                yield (
                    f"{name} calls run.keep and not run.epochs: a trial whose worker dies starts "
                    "again from the beginning; loop over run.epochs(count), and report there"
                )

    def at(self, point: Point) -> DictConfig:
        if not self.suggests:
            return super().at(point)
        if "${" in str([*point.params.values()]):  # of others, who write to the database
            raise ConfigError(f"a parameter of a trial would be resolved: {point.params!r}")
        params = {**(value_at(self.config, PARAMS) or {}), **point.params}
        return with_values(self.config, {PARAMS: params})

    @classmethod
    def gather(cls, cfg: DictConfig) -> TrainingData:
        """Loads the data of the section `data`, if it names a source."""
        return super().gather(cfg) if names_data(cfg) else TrainingData()

    @functools.cached_property
    def adapter(self) -> Any:
        """The objective as it is built at the config as composed."""
        return build_function(self.config.objective)

    @property
    def epochs(self) -> int | None:
        epochs = (self.config.params or {}).get("epochs")
        return epochs if isinstance(epochs, int) else None

    @property
    def resumes(self) -> bool:
        return not self.suggests and getattr(self.adapter, "resumes", True)

    @functools.cached_property
    def reads_train(self) -> bool:
        """Whether the loop may read `config.train`: its page sets it, or its source names it."""
        if how_called(self.adapter) != WITH_CONFIG:
            return False
        target = find_target(self.config.objective, "objective")
        with suppress(OSError, TypeError):  # there is no source
            module = sys.modules[getattr(target, "__module__", "")]
            if READS_TRAIN.search(inspect.getsource(module)):
                return True
        train: Any = OmegaConf.to_container(self.config.train, resolve=False)
        default: Any = OmegaConf.to_container(SCHEMA.train, resolve=False)
        typed = {override.key for override in self.composer.overrides}
        of_page = [name for name in train if f"train.{name}" not in typed]
        changed = any(train[name] != default.get(name) for name in of_page)
        return changed or "model" in self.composer.choices

    @functools.cached_property
    def code(self) -> dict[str, str]:
        """The digests of the user's own code, with those that the adapter knows."""
        own: dict[str, str] = getattr(self.adapter, "code", dict)()
        return {**super().code, **own}

    def identity(self, digest: str) -> dict[str, Any]:
        """Returns all values that identify the question; see `Question.identity`."""
        if not hasattr(self.adapter, "composed"):
            return super().identity(digest)
        # Unresolved: ${now:…} is another at each start. What YAML does not know becomes text.
        plain = OmegaConf.to_container(self.adapter.composed(), resolve=False)
        own = flatten(json.loads(json.dumps(plain, default=str)), "objective.config")
        return super().identity(digest) | dict(own)

    @functools.cached_property
    def metric(self) -> Metric:
        """The value that the loop returns, under the name that `objective.metric` gives it."""
        (name, direction), *_ = named_goals(self.config.objective)
        bounds = METRICS[name].bounds if name in METRICS else ANYTHING
        return Metric(name, direction, _no_score, bounds=bounds)

    @functools.cached_property
    def goals(self) -> tuple[Goal, ...]:
        _, *further = named_goals(self.config.objective)
        return (self.metric, *(Goal(name, direction) for name, direction in further))

    @functools.cached_property
    def limits(self) -> list[Condition]:
        """The limits of what the loop may tell by `run.cost`, from `objective.constraints`."""
        limits = parse_limits(value_at(self.config, "objective.constraints"), None)
        check_names("objective.constraints", [limit.name for limit in limits])
        return limits

    def trains_on(self, data: TrainingData) -> torch.device:
        """Returns the loop's device; its data are on the CPU, for the workers of a DataLoader."""
        return ALONE.device

    def job(self, point: Point, fold: Fold, seed: int) -> Job:
        """Returns the job that judges the network of a loop in a fold; it cannot train one."""
        make = build_named(self.config.objective.network, NETWORK)
        model = functools.partial(network_of, make, self.at(point))
        parts: dict[str, Any] = {"optimizer": None, "schedule": None, "loss": functional.mse_loss}
        train, valid = fold
        size = min(64, len(train))
        return Job(model, **parts, train=train, valid=valid, epochs=1, batch_size=size, seed=seed)

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        """Returns nothing: what a loop costs it tells itself."""
        return []

    def make_objective(
        self,
        point: Point,
        number: int,
        data: TrainingData,
        attempt: Attempt = FIRST,
        seed: int | None = None,
        fold: Fold | None = None,
    ) -> LoopObjective:
        if seed is None:
            jobs = loop_jobs(self.config, data, derive(self.seed, number))
        else:
            jobs = [loop_job(data, fold, 0, seed)]
        return LoopObjective(
            loop=replace(
                self.loop(point), scaling=loop_scaling(self.at(point), data.network_kwargs)
            ),
            jobs=jobs,
            trial=number,
            attempt=attempt,
            ranks=self.ranks,
            recipe=self._recipe(point, number, attempt, seed, fold),
            suggesting=point.trial,
        )

    def check_functions(self, data: TrainingData) -> Iterator[str]:
        """Yields the mistakes in the functions: they do not exist, or take other arguments."""
        objective = self.config.objective
        key = f"objective._target_={objective['_target_']}"
        try:
            called = how_called(self.adapter)
            if called == WITH_CONFIG and (problem := why_not_called(self.adapter, 2)):
                yield (
                    f"{key}: {problem}; it is called as (config, run) -> value, or with the values "
                    "of params if run is its first parameter, or as Optuna's objective(trial)"
                )
            yield from self._unread()
            check = getattr(self.adapter, "check", lambda *_: ())
            yield from check(self.config, self.space)
            if objective.test and (problem := why_not_called(build_named(objective.test), 3)):
                yield f"objective.test: {problem}; it is called as (config, run, part) -> values"
            if objective.network is not None:
                with torch.random.fork_rng(devices=[]):
                    network_of(
                        build_named(objective.network, NETWORK), self.config, **data.network_kwargs
                    )
        except ConfigError as error:
            yield from error.mistakes
        if self.scale and self.scale.rule_sizes and objective.network is None:
            yield (
                "scale.rule=mup compares the network of a loop with the small one: name what makes "
                "it of params as objective.network, and call run.scaled(network, optimizer), or "
                "set scale.rule=none"
            )
        if self.tested and data.split is not None and not hasattr(data.source, "test"):
            yield (
                "objective.test is given the test part of the data, and "
                f"{type(data.source).__name__} has no method test; add one, or leave "
                "objective.test out"
            )
        if self.suggests:
            yield from self._check_suggesting(data)
        if data.split is None and objective.folds > 1:
            yield (
                f"objective.folds={objective.folds}: the data are the function's own; divide them "
                "there, or name them in the section data, whose folds run.train and run.valid are"
            )

    def _unread(self) -> Iterator[str]:
        """Yields settings of the sections of networks that a loop does not read."""
        if self.reads_train:
            return
        config: Any = OmegaConf.to_container(self.config, resolve=False)
        default: Any = OmegaConf.to_container(SCHEMA.train, resolve=False)
        typed = {override.key for override in self.composer.overrides}
        unread = [
            f"train.{name}={as_yaml(each)}"
            for name, each in config["train"].items()
            if each != default.get(name) or f"train.{name}" in typed
        ]
        if how_called(self.adapter) != WITH_CONFIG:  # else it may read these from its config
            unread += [name for name in OF_NETWORKS if config.get(name) not in (None, MISSING)]
        for each in unread:
            yield (
                f"{each}: the loop reads nothing of the section {each.partition('.')[0]}; its "
                f"settings are in params: {', '.join(self.config.params or {}) or 'there are none'}"
            )
        if "${train.epochs}" in config["pruner"].values():
            yield (
                f"pruner={self.composer.choices.get('pruner')}: needs pruner.max_resource, how "
                "many epochs the loop has, such as pruner.max_resource=10"
            )

    def _check_suggesting(self, data: TrainingData) -> Iterator[str]:
        """Yields what an objective of Optuna's, which is called with a trial alone, cannot have."""
        source = self.config.study["from"]
        objective, way_out = self.config.objective, "leave it out, or write a loop (config, run)"
        for key, asked, why in (
            ("objective.test", self.tested, "it is given what run.keep keeps"),
            ("objective.network", objective.network, "its weights are what run.keep keeps"),
            ("data", data.split is not None, "run.train and run.valid are their Datasets"),
            ("study.from", source not in (None, AUTO), "its trials are placed in the space"),
        ):
            if asked:
                yield f"{key}: {why}, and objective(trial) has none; {way_out}"

    def loop(self, point: Point) -> Loop:
        """Returns the loop that is called at a point."""
        resumes = getattr(self.pruner(), "pauses", False)
        config = self.at(point)
        function = build_function(config.objective)
        return Loop(function, config, self.goals, self.limits, self.tested, resumes)

    def test(self, point: Point, seed: int, states: dict[str, Any], part: Any) -> dict[str, float]:
        """Calls `objective.test` for a trained loop, and returns its values, the metric first.

        Args:
            states: that the training has kept; `run.keep` restores them.
            part: the examples of the test part; None without `data`.

        Raises:
            NoWinner: it raises an exception, or returns something else.
        """
        loop, function = self.loop(point), build_named(self.config.objective.test)
        context = RunContext(0, 1, TEST, 0, seed, ALONE.device)
        run = Run(context, loop.metric, lambda *_: None, saved={"kept": states})
        try:
            with seeded(seed), isolated_hydra(), keys_explained():
                return _tested(function(loop.config_of(seed), run, part), loop.metric)
        except (Exception, SystemExit) as error:
            raise NoWinner(
                f"objective.test={loop.config.objective.test}: {describe_error(error)}"
                f"{place_of(error)}; mend it, and repeat the command with "
                "study.accept_code_change=true, which keeps the search"
            ) from error
        finally:
            run.close()


def kind_of(cfg: DictConfig) -> type[Definition]:
    """Returns the class of the question that a config asks."""
    return Definition if cfg.objective["_target_"] is None else LoopDefinition


def _build_part(section: dict[str, Any], key: str, **offered: Any) -> Any:
    """Builds a part of Optuna, which calls some experimental, such as group=True of TPE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return build(section, key, **offered)


def with_starts(
    space: Space,
    typed: Collection[str],
    sizes: Mapping[str, Any],
    config: DictConfig,
    choices: Mapping[str, str],
) -> DictConfig:
    """Returns a config with the values of the baseline that it lacks, or that the space gives.

    A key is added where the target of its section has such a parameter, whose default counts.

    Args:
        typed: the keys that the command line sets.
        sizes: of the search, where it is smaller than its winner.
    """
    values: dict[str, Any] = {key: size for key, size in sizes.items() if _takes(config, key)}

    def length_of(key: str) -> int:
        value = values.get(key, value_at(config, key))
        return len(value) if isinstance(value, list) else 1

    has_params = bool(value_at(config, PARAMS))
    for node in space.leaves(choices):
        key, section = node.key, node.key.partition(".")[0]
        parameter = None
        if not has_key(config, key):
            parameter = _argument(config, key)
            # A name beside other params, which nothing says more of, may be a misspelt one.
            free = section == PARAMS and (node.start is not None or not has_params)
            if parameter is None and not free:
                continue
        elif node.start is None or key in typed:
            continue
        default = getattr(parameter, "default", None)
        values[key] = start_of(node, default, length_of)
    return with_values(config, values) if values else config


def _wrong_scale(
    space: Space, typed: Collection[str], cfg: DictConfig, sizes: Mapping[str, Any]
) -> Iterator[str]:
    """Yields why sizes of the section `scale` cannot be those of the search."""
    searched = {node.key for _, nodes in space.branches() for node in nodes}
    groups = {group.key for group in space.groups()}
    for key, size in sizes.items():
        if key in searched:
            yield f"scale.{key}: the space searches {key}; leave it out of one of them"
        elif key in typed and value_at(cfg, key) != size:
            given = as_yaml(value_at(cfg, key))
            yield f"scale.{key}: the search has {as_yaml(size)}; leave {key}={given} out"
        elif key.partition(".")[0] not in groups and not _takes(cfg, key):
            yield f"scale.{explain_key(key, cfg)}"


def _takes(config: DictConfig, key: str) -> bool:
    """Whether a config has a key, or the target of its section such a parameter."""
    return has_key(config, key) or _argument(config, key) is not None


def _argument(config: DictConfig, key: str) -> inspect.Parameter | None:
    """Returns the parameter that a key sets of its section's target; for `params` of the loop."""
    section, _, name = key.partition(".")
    return argument(config, f"objective.{name}" if section == PARAMS else key)


def data_key(cfg: DictConfig) -> str:
    """Returns the digest of the section `data`, from which the training part follows."""
    return digest_of_source(json.dumps(plain_sections(cfg, "data"), default=str).encode())


def without_places(sections: dict[str, Any]) -> dict[str, Any]:
    """Leaves out where the data lie and how they are loaded, which change no result."""
    data = sections.get("data")
    if isinstance(data, dict):
        for path in location_keys(data):
            inner = data
            for name in path[:-1]:
                inner = inner[name]
            del inner[path[-1]]
    return sections


def place_of(error: BaseException) -> str:
    """Returns file and line of the user's own code that an exception came through last, or ""."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename[:1] == "/" and is_users_code(Path(f.filename))]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def names_data(cfg: DictConfig) -> bool:
    """Whether the section `data` names a source, and is no section of the loop's own."""
    section = OmegaConf.select(cfg, "data")  # None if it is missing, as in a provenance
    return isinstance(section, DictConfig) and "_target_" in section


def _tested(returned: Any, metric: str) -> dict[str, float]:
    """Takes the values out of what `objective.test` has returned, the metric first."""
    values = dict(returned) if isinstance(returned, Mapping) else {metric: returned}
    checked = {str(k): finite(v, f"returned {v!r} from objective.test") for k, v in values.items()}
    if metric not in checked:
        raise UndefinedMetric(
            f"must return a number, or a dict with {metric}; got {', '.join(checked) or 'nothing'}"
        )
    return {metric: checked.pop(metric), **checked}


def _no_score(outputs: object, targets: object) -> None:
    raise AssertionError("a function of the user's own returns the value itself")
