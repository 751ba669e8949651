"""A question whose trials call a loop of the user's own: `(config, run) -> value`."""

import functools
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from studyloom.config.build import build, find_target
from studyloom.config.compose import Composer, own_world
from studyloom.config.overrides import explain_key
from studyloom.config.values import describe_error, flatten, keys_explained, value_at, with_values
from studyloom.data.split import Fold
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError, NoWinner, UndefinedMetric
from studyloom.metrics import DIRECTIONS, Goal, Metric
from studyloom.question.costs import Cost, Limit, parse_limits
from studyloom.question.jobs import build_function
from studyloom.question.loop import Loop, LoopJob, LoopObjective, why_not_callable
from studyloom.question.objective import Attempt
from studyloom.question.question import FIRST, Question, given
from studyloom.question.reports import Place, finite
from studyloom.question.run import TEST, Run
from studyloom.question.sources import is_users_code
from studyloom.seeds import derive
from studyloom.space.language import parse_space
from studyloom.space.tree import Point
from studyloom.storage.attributes import OF_TRIALS
from studyloom.training.randomness import seeded
from studyloom.training.ranks import ALONE, Ranks, Recipe

PARAMS = "params"


class AdaptedQuestion(Question):
    """A question whose objective may be an adapter: one that says more of itself than a function.

    A section `objective` may build an object. It is called as a loop is, and may have methods:

    * `check(config, space)` returns a line for each mistake that can be seen before trial 0;
    * `code()` returns digests of source files that decide a value, by `code.NAME`;
    * `composed()` returns a configuration of its own. The names of the space are the keys of that
      one, and the section `params` holds what is set in it: the values of a trial, and the user's.
    """

    @classmethod
    def ask(cls, cfg: DictConfig, composer: Composer) -> Question:
        """Returns the question that a composed config asks; see `Question.ask`.

        Raises:
            ConfigError: every mistake in the section `space` itself; if the objective has a
                configuration of its own, also each name that is no key of that.
        """
        config = _composed(cfg.objective)
        if config is None:
            return super().ask(cfg, composer)
        space = parse_space(value_at(cfg, "space") or {}, lambda group: [], PARAMS)
        params: Any = value_at(cfg, PARAMS) or {}
        leaves = [leaf for _, nodes in space.branches() for leaf in nodes]
        set_keys = {key: PARAMS for key, _ in flatten(params)} if params else {}
        named = {leaf.name: "space" for leaf in leaves}
        mistakes = [
            f"{section}.{name}: {problem}"
            for name, section in (set_keys | named).items()
            if (problem := explain_key(name, config))
        ]
        if mistakes:
            raise ConfigError(mistakes)
        config.merge_with(params)
        values = OmegaConf.create(params)
        for leaf in leaves:
            OmegaConf.update(values, leaf.name, value_at(config, leaf.name), merge=False)
        cfg = with_values(cfg, {PARAMS: OmegaConf.to_container(values)})
        composer.keep(cfg)
        return cls(cfg, composer, space)

    @functools.cached_property
    def adapter(self) -> Any:
        """The objective as it is built at the config as composed; None if it cannot be."""
        try:
            return build_function(self.config.objective)
        except ConfigError:  # `preflight` reports it
            return None

    @functools.cached_property
    def code(self) -> dict[str, str]:
        """The digests of the user's own code, with those that the adapter knows."""
        own: dict[str, str] = _call(self.adapter, "code", dict)
        return {**super().code, **own}

    def identity(self, digest: str) -> dict[str, Any]:
        """Returns all values that identify the question; see `Question.identity`."""
        config = _call(self.adapter, "composed", lambda: None)
        if config is None:
            return super().identity(digest)
        # Unresolved: ${now:…} is another at each start. What YAML does not know becomes text.
        plain = OmegaConf.to_container(config, resolve=False)
        own = flatten(json.loads(json.dumps(plain, default=str)), "objective.config")
        return super().identity(digest) | dict(own)

    def check_adapter(self) -> list[str]:
        """Returns the mistakes that the adapter finds in what it was given."""
        mistakes: list[str] = _call(self.adapter, "check", lambda *_: [], self.config, self.space)
        return mistakes


@dataclass(frozen=True)
class FunctionQuestion(AdaptedQuestion):
    """A question whose trials call a loop; see `Question` for its parameters and methods.

    Its data are the loop's own affair, or those of the section `data`.
    """

    @staticmethod
    def is_tested(cfg: DictConfig) -> bool:
        """Whether `objective.test` names a function that tests the winner."""
        return cfg.objective.test is not None

    @classmethod
    def gather(cls, cfg: DictConfig) -> TrainingData:
        """Loads the data of the section `data`, if it names a source."""
        return super().gather(cfg) if names_data(cfg) else TrainingData()

    @functools.cached_property
    def metric(self) -> Metric:
        """The value that the loop returns, under the name that `objective.metric` gives it.

        Raises:
            ConfigError: objective.direction is missing or unknown, or the metric is not a name.
        """
        (name, direction), *_ = named_goals(self.config.objective)
        return Metric(name, direction, _no_score)

    @functools.cached_property
    def goals(self) -> tuple[Goal, ...]:
        _, *further = named_goals(self.config.objective)
        check_costs("objective.metric", [name for name, _ in further])
        return (self.metric, *(Goal(name, direction) for name, direction in further))

    @functools.cached_property
    def limits(self) -> list[Limit]:
        """What the loop may tell by `run.cost`, from `objective.constraints`.

        Raises:
            ConfigError: a value is not a limit, or a name is one of ours.
        """
        limits = parse_limits(value_at(self.config, "objective.constraints"), None)
        check_costs("objective.constraints", [limit.quantity for limit in limits])
        return limits

    def trains_on(self, data: TrainingData) -> torch.device:
        """Returns the loop's device; its data are on the CPU, for the workers of a DataLoader."""
        return device()

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        """Returns nothing: what a loop costs it tells itself."""
        return []

    def preflight(self, data: TrainingData) -> list[str]:
        """Returns the mistakes in the functions: they do not exist, or take other arguments."""
        objective, mistakes = self.config.objective, []
        try:
            if problem := why_not_callable(build_function(objective)):
                mistakes.append(f"objective._target_={objective['_target_']}: {problem}")
            else:
                mistakes += self.check_adapter()
        except ConfigError as error:
            mistakes += error.mistakes
        if objective.test is not None:
            mistakes += self._check_test(data)
        if data.split is None and objective.folds > 1:
            mistakes.append(
                f"objective.folds={objective.folds}: the data are the function's own; divide them "
                "there, or name them in the section data, whose folds run.train and run.valid are"
            )
        return mistakes

    def _check_test(self, data: TrainingData) -> list[str]:
        """Returns the mistakes in `objective.test`."""
        try:
            function = self.test_function()
            problem = why_not_callable(function, 3, "(config, run, part) -> values")
        except ConfigError as error:
            return error.mistakes
        if problem:
            return [f"objective.test: {problem}"]
        if data.split is not None and not callable(getattr(data.source, "test", None)):
            return [
                "objective.test is given the test part of the data, and "
                f"{type(data.source).__name__} has no method test; add one, or leave "
                "objective.test out"
            ]
        return []

    def test_function(self) -> Callable[..., Any]:
        """Returns the function of `objective.test`.

        Raises:
            ConfigError: there is no such function.
        """
        test = self.config.objective.test
        section = dict(test) if isinstance(test, DictConfig) else {"_target_": test}
        whole = OmegaConf.create({"objective": {"test": section | {"_partial_": True}}})
        function: Callable[..., Any] = build(whole.objective.test)
        return function

    def make_objective(
        self, point: Point, number: int, data: TrainingData, attempt: Attempt = FIRST
    ) -> LoopObjective:
        config = self.at(point)
        jobs = loop_jobs(config, data, derive(self.seed, number))
        recipe = functools.partial(
            FunctionQuestion.make_objective, point=point, number=number, attempt=attempt
        )
        return self._objective(point, jobs, number, attempt, recipe)

    def make_single_objective(
        self,
        point: Point,
        seed: int,
        data: TrainingData,
        fold: Callable[[], Fold],
        number: int = 0,
        attempt: Attempt = FIRST,
    ) -> LoopObjective:
        indices = None if data.split is None else fold()
        recipe = functools.partial(
            FunctionQuestion.make_single_objective,
            point=point,
            seed=seed,
            fold=functools.partial(given, indices),
            number=number,
            attempt=attempt,
        )
        jobs = [_job(data, indices, 0, seed)]
        return self._objective(point, jobs, number, attempt, recipe)

    def _objective(
        self,
        point: Point,
        jobs: Sequence[LoopJob],
        number: int,
        attempt: Attempt,
        recipe: Recipe,
    ) -> LoopObjective:
        return LoopObjective(
            *(self.loop(point), jobs, device(self.ranks), number, attempt), self.ranks, recipe
        )

    def loop(self, point: Point) -> Loop:
        """Returns what is called at a point."""
        resumes = getattr(self.pruner(), "pauses", False)
        return build_loop(
            self.at(point), self.goals, self.limits, keeps=self.tested, resumes=resumes
        )

    def test(self, point: Point, seed: int, states: dict[str, Any], part: Any) -> dict[str, float]:
        """Calls `objective.test` for a trained loop.

        Args:
            point: of the space.
            seed: of the training.
            states: that the training has kept; `run.keep` restores them.
            part: the examples of the test part; None without `data`.

        Returns:
            the values by name, the metric first.

        Raises:
            NoWinner: it raises an exception, or returns something else.
        """
        loop, function = self.loop(point), self.test_function()
        place = Place(0, 1, TEST, 0, seed, device())
        run = Run(place, loop.metric, lambda *_: None, saved={"kept": states})
        try:
            with seeded(seed), own_world(), keys_explained():
                return _tested(function(loop.config_of(seed), run, part), loop.metric)
        except (Exception, SystemExit) as error:
            raise NoWinner(
                f"objective.test={loop.config.objective.test}: {describe_error(error)}"
                f"{place_of(error)}; mend it, and repeat the command with "
                "study.accept_code_change=true, which keeps the search"
            ) from error
        finally:
            run.close()


def place_of(error: BaseException) -> str:
    """Returns file and line of the user's own code that an exception came through last, or ""."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename[:1] == "/" and is_users_code(Path(f.filename))]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _tested(returned: Any, metric: str) -> dict[str, float]:
    """Takes the values out of what `objective.test` has returned, the metric first."""
    values = dict(returned) if isinstance(returned, Mapping) else {metric: returned}
    checked = {str(k): finite(v, f"returned {v!r} from objective.test") for k, v in values.items()}
    if metric not in checked:
        raise UndefinedMetric(
            f"must return a number, or a dict with {metric}; got {', '.join(checked) or 'nothing'}"
        )
    return {metric: checked.pop(metric), **checked}


def names_data(cfg: DictConfig) -> bool:
    """Whether the section `data` names a source, and is no section of the loop's own."""
    section = None if OmegaConf.is_missing(cfg, "data") else cfg.data
    return isinstance(section, DictConfig) and "_target_" in section


def named_goals(objective: DictConfig) -> list[tuple[str, Any]]:
    """Returns the names and directions of what a loop returns, the metric first.

    Args:
        objective: the section.

    Raises:
        ConfigError: a name is none, or a direction is missing or unknown.
    """
    names, directions = (
        [*value] if isinstance(value, ListConfig) else [value]
        for value in (objective.metric, objective.direction)
    )
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            [
                "objective.metric must be a name for the value, or a list of names, since the "
                f"function returns the values themselves; got {objective.metric}"
            ]
        )
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError([f"objective.metric: {name} is there twice" for name in twice])
    if len(directions) == 1 < len(names) and directions[0] in DIRECTIONS:
        raise ConfigError(
            [
                "objective.direction must be a list with a direction for each of "
                f"{', '.join(names)}; got {directions[0]}"
            ]
        )
    if len(directions) != len(names) or any(value not in DIRECTIONS for value in directions):
        got = directions if len(directions) > 1 else directions[0]
        raise ConfigError(
            [
                f"objective.direction must be {' or '.join(DIRECTIONS)}, since a function does "
                f"not say which is better; got {'null' if got is None else got}"
            ]
        )
    return [*zip(names, directions, strict=True)]


def check_costs(key: str, names: Sequence[str]) -> None:
    """Raises ConfigError if a cost has the name of something else that is stored with a trial.

    Args:
        key: of the config that has the names.
        names: of costs.
    """
    if taken := [name for name in names if name in OF_TRIALS]:
        raise ConfigError([f"{key}: {name} is a name of ours; choose another" for name in taken])


def build_loop(
    config: DictConfig,
    goals: Sequence[Goal],
    limits: Sequence[Limit],
    *,
    keeps: bool = False,
    resumes: bool = False,
) -> Loop:
    """Returns the loop that a config names.

    Args:
        config: of the trial.
        goals: what it returns, the metric first.
        limits: of what it may cost.
        keeps: whether it must keep something.
        resumes: whether it must be able to go on from each epoch.

    Raises:
        ConfigError: there is no such function.
    """
    # Hyperband compares trials by the number of epochs that it was told.
    most = config.pruner.get("max_resource") if "pruner" in config else None
    most_epochs = most if isinstance(most, int) else None
    return Loop(
        build_function(config.objective), config, goals, limits, most_epochs, keeps, resumes
    )


def loop_jobs(config: DictConfig, data: TrainingData, seed: int) -> list[LoopJob]:
    """Returns the jobs of a trial: one for each fold and seed.

    Args:
        config: of the trial.
        data: of the study; empty if they are the loop's own.
        seed: of the trial, which is that of a single job; those of several descend from it.
    """
    folds: Sequence[Fold | None] = data.folds or [None]
    seeds = config.objective.seeds
    single = len(folds) == seeds == 1
    return [
        _job(data, fold, position, seed if single else derive(seed, position, repeat))
        for position, fold in enumerate(folds)
        for repeat in range(seeds)
    ]


def device(ranks: Ranks = ALONE) -> torch.device:
    """Returns the GPU of this rank, the first if it is alone; or else the CPU."""
    return torch.device("cuda", ranks.rank) if torch.cuda.is_available() else torch.device("cpu")


def _job(data: TrainingData, fold: Fold | None, position: int, seed: int) -> LoopJob:
    if fold is None or data.split is None:
        return LoopJob(position, seed)
    split, (training, validation) = data.split, fold
    return LoopJob(
        position, seed, lambda: (split.part(training, to_train=True), split.part(validation))
    )


def _no_score(outputs: object, targets: object) -> None:
    raise AssertionError("a function of the user's own returns the value itself")


def _composed(objective: DictConfig) -> DictConfig | None:
    """Returns the configuration of its own that an objective has; None if it has none."""
    try:
        target = find_target(objective)
    except ConfigError:  # `preflight` reports it
        return None
    if not hasattr(target, "composed"):
        return None
    config: DictConfig | None = _call(build_function(objective), "composed", lambda: None)
    return config


def _call(adapter: Any, method: str, otherwise: Callable[..., Any], *arguments: Any) -> Any:
    return getattr(adapter, method, otherwise)(*arguments)
