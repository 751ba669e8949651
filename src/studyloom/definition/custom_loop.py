"""The definition of a study whose trials call a custom training loop, or an Optuna objective."""

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from studyloom.config.compose import Composer
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import flatten, value_at, written_values
from studyloom.data.split import Fold
from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import FIRST, OF_NETWORKS, Definition
from studyloom.errors import ConfigError, refuse
from studyloom.objectives.loop import Loop, LoopObjective
from studyloom.objectives.loop_run import loop_jobs
from studyloom.objectives.objective import Attempt
from studyloom.objectives.user_functions import (
    PARAMS,
    Adapter,
    ConfiguredAdapter,
    UserFunction,
    build_function,
    build_loop_network,
    build_named,
    compose_adapter,
    loop_limits,
    loop_objectives,
    sources_of,
)
from studyloom.space.tree import Point, SuggestedSpace
from studyloom.text import format_scalar, is_scalar, nearest
from studyloom.training.device import training_device
from studyloom.training.job import Job

READS_TRAIN = re.compile(r"""\btrain\.\w|["']train["']""")  # in the source of a loop
HANDED_ON = re.compile(r"\brun\b(?![.(])")  # the run of a loop, as in its signature
OPTUNAS_TIMEOUT = re.compile(r"\.optimize\([^()]*\b(timeout=[\d._e]+)")
UNUSED_TEST = (
    "data: the test set is not used; name a function (config, run, part) -> values that measures "
    "the winner on it, such as objective.test=mine.test"
)


@dataclass(frozen=True)
class LoopDefinition(Definition):
    """The definition of a study whose trials call a custom training loop; see `Definition`.

    A loop `(run, *, width=32, …)` gets the values of `params` by name; its default arguments are
    part of them. An Optuna objective `(trial)` has a `SuggestedSpace`: there, `params` holds
    fixed values. See `UserFunction`.

    The loop loads its data itself, or gets those of the section `data`. The section `objective` may
    build an object that is called like a loop; see `Adapter`.
    """

    trains_networks = False
    read_objectives, read_limits = staticmethod(loop_objectives), staticmethod(loop_limits)

    def job(self, point: Point, fold: Fold, seed: int) -> Job:
        """Builds the job that evaluates a loop's network in a fold; the job cannot train it."""
        model = functools.partial(build_loop_network, self.at(point))
        parts: dict[str, Any] = {"optimizer": None, "schedule": None, "loss": functional.mse_loss}
        train, valid = fold
        size = min(64, len(train))
        return Job(model, **parts, train=train, valid=valid, epochs=1, batch_size=size, seed=seed)

    @classmethod
    def from_config(cls, cfg: StudyConfig, composer: Composer) -> Definition:
        """Reads the definition from a full config; see `Definition.from_config`."""
        if (composed := compose_adapter(cfg)) is None:
            return cls._from_function(cfg, composer)
        cfg, space = composed
        composer.keep(cfg)
        return cls(cfg, composer, space)

    @classmethod
    def _from_function(cls, cfg: StudyConfig, composer: Composer) -> Definition:
        """Reads the definition of a function, with the parameters that its signature names."""
        who, function = f"objective._target_={cfg.objective._target_}", None
        with suppress(ConfigError):  # `validate` reports it
            function = UserFunction(build_function(cfg["objective"]))
        if function is None or function.takes_config:
            return super().from_config(cfg, composer)
        if function.takes_trial:
            if value_at(cfg, "space"):
                raise ConfigError(f"space: {who} suggests its own values; leave space out")
            composer.keep(cfg := cfg.with_values({"study.baseline": False}))
            return cls(cfg, composer, SuggestedSpace())
        named, takes_any = function.params()
        defaults = {name: value for name, value in named.items() if _is_plain(value)}
        definition = super().from_config(cfg, composer)  # with the start of what is searched
        params = {**defaults, **(value_at(definition.config, PARAMS) or {})}
        definition = replace(definition, config=definition.config.with_values({PARAMS: params}))
        definition.composer.keep(definition.config)
        leaves = (node.key for _, nodes in definition.space.branches() for node in nodes)
        searched = [*leaves, *(group.key for group in definition.space.groups())]
        errors = [
            f"params.{name} must be given: {who} has no default for it"
            for name, default in named.items()
            if default is inspect.Parameter.empty and name not in params
        ]
        given = value_at(cfg, PARAMS) or {}
        for key in (*(f"{PARAMS}.{name}" for name in given), *(f"space.{s}" for s in searched)):
            section, name, *_ = f"{key.removeprefix('space.')}.".split(".")
            if section != PARAMS:
                errors.append(f"{key}: {who} gets only the values of params")
            elif name not in named and not takes_any:
                errors.append(
                    f"{key}: {who} has no parameter {name}; it has "
                    f"{', '.join(named) or 'none'}{nearest(name, [*named])}"
                )
        refuse(errors)
        return definition

    def notes(self, data: TrainingData) -> list[str]:
        """Returns notes that are printed before the first trial."""
        unused = data.has_test and self.config.winner.enabled and not self.tested
        notes = [*self._resumption_notes(), *self._time_notes()]
        if unused:
            notes.append(UNUSED_TEST)
        return [*notes, *self.adapter.notes(self.config)]

    def _resumption_notes(self) -> Iterator[str]:
        """Yields a line if a trial whose worker dies cannot resume."""
        name = self.config.objective._target_
        if self.suggests:
            yield (
                f"{name}(trial) is an Optuna objective: a trial whose worker dies starts again, "
                "and the winner is not tested; a custom training loop can resume (run.keep) and be "
                "tested (objective.test)"
            )
            return
        source, _ = sources_of(self.config["objective"])
        here = "run.keep(" in source and len(HANDED_ON.findall(source)) == 1
        if here and "run.epochs(" not in source:
            yield (
                f"{name} calls run.keep and not run.epochs: a trial whose worker dies starts "
                "again from the beginning; loop over run.epochs(count), and report there"
            )

    def _time_notes(self) -> Iterator[str]:
        """Yields a line if the module of an Optuna objective gives `optimize` a time limit."""
        if not self.suggests or self.config.study.timeout is not None:
            return
        name = self.config.objective._target_
        if match := OPTUNAS_TIMEOUT.search(sources_of(self.config["objective"])[1]):
            yield (
                f"the module of {name} has {match[1]} for Optuna's optimize, which is not called; "
                f"study.{match[1]} limits the search"
            )

    def at(self, point: Point) -> StudyConfig:
        if not self.suggests:
            return super().at(point)
        if "${" in str([*point.params.values()]):  # of others, who write to the database
            raise ConfigError(f"hyperparameters must not hold '${{'; got {point.params!r}")
        if not point.params:  # copies would take most of a fast trial's time
            return self.config
        params = {**(value_at(self.config, PARAMS) or {}), **point.params}
        return self.config.with_values({PARAMS: params})

    @functools.cached_property
    def _sections(self) -> dict[str, Any]:
        return super().provenance_sections(Point())

    def provenance_sections(self, point: Point) -> dict[str, Any]:
        if not self.suggests:
            return super().provenance_sections(point)
        return {**self._sections, PARAMS: {**self._sections.get(PARAMS, {}), **point.params}}

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        """The objective, built from the default configuration."""
        return build_function(self.config["objective"])

    @property
    def adapter(self) -> Adapter:
        """What the objective says of itself; of a function, what holds for each loop."""
        return self.function if isinstance(self.function, Adapter) else Adapter()

    @property
    def untested(self) -> str | None:
        return self.adapter.untested

    @property
    def epochs(self) -> int | None:
        epochs = (self.config["params"] or {}).get("epochs")
        return epochs if isinstance(epochs, int) else None

    @property
    def resumes(self) -> bool:
        return not self.suggests and self.adapter.resumes

    @functools.cached_property
    def reads_train(self) -> bool:
        """Whether the loop may read `config.train`: its module sets it, or its source names it."""
        if not UserFunction(self.function).takes_config:
            return False
        if READS_TRAIN.search(sources_of(self.config["objective"])[1]):
            return True
        changed = any(is_other and not typed for *_, is_other, typed in self._train_settings())
        return changed or "model" in self.composer.choices

    def _train_settings(self) -> Iterator[tuple[str, Any, bool, bool]]:
        """Yields each key of `train`: name, value, whether it is not the default, and was typed."""
        train = self.config.written["train"]
        default = asdict(type(self.config.train)())
        keys = {override.key for override in self.composer.overrides}
        for name, value in train.items():
            yield name, value, value != default.get(name), f"train.{name}" in keys

    @functools.cached_property
    def code(self) -> dict[str, str]:
        """The digests of the user's code, with those that the adapter returns."""
        return {**super().code, **self.adapter.code()}

    def identity(self, digest: str) -> dict[str, Any]:
        """Returns all values that identify the definition; see `Definition.identity`."""
        undecisive = [f"objective.{name}" for name in self.adapter.undecisive]
        values = super().identity(digest)
        values = {key: value for key, value in values.items() if key not in undecisive}
        if not isinstance(self.function, ConfiguredAdapter):
            return values
        # Unresolved: ${now:…} is another at each start. What YAML does not know becomes text.
        plain = written_values(self.function.composed())
        own = flatten(json.loads(json.dumps(plain, default=str)), "objective.config")
        return values | dict(own)

    def trains_on(self, data: TrainingData) -> torch.device:
        """Returns the loop's device; its data are on the CPU, for the workers of a DataLoader."""
        return training_device()

    def make_objective(
        self,
        point: Point,
        number: int,
        data: TrainingData,
        attempt: Attempt = FIRST,
        seed: int | None = None,
        fold: Fold | None = None,
    ) -> LoopObjective:
        single = None if seed is None else (seed, fold)
        return LoopObjective(
            loop=replace(self.loop(point), resumes=attempt.pauses),
            jobs=loop_jobs(self.config, data, self.trial_seed(number), single),
            trial=number,
            attempt=attempt,
            suggesting=point.trial,
        )

    def try_out(self, data: TrainingData) -> Iterator[str]:
        """Yields errors in the functions: missing ones, and wrong arguments."""
        objective = self.config.objective
        key = f"objective._target_={objective._target_}"
        try:
            function = UserFunction(self.function)
            if function.takes_config and (problem := function.problem(2)):
                yield (
                    f"{key}: {problem}; it is called as (config, run) -> value, or with the values "
                    "of params if run is its first parameter, or as Optuna's objective(trial)"
                )
            yield from self._unread()
            yield from self.adapter.check(self.config, self.space)
            tests = UserFunction(build_named(objective.test)) if objective.test else None
            if tests is not None and (problem := tests.problem(3)):
                yield f"objective.test: {problem}; it is called as (config, run, part) -> values"
            if objective.network is not None:
                with torch.random.fork_rng(devices=[]):
                    build_loop_network(self.config, **data.network_kwargs)
        except ConfigError as error:
            yield from error.errors
        if self.suggests:
            yield from self._check_suggesting(data)
        if data.split is None and objective.folds > 1:
            yield (
                f"objective.folds={objective.folds}: the function loads its data itself; divide "
                "it there, or name it in the section data: then run.train and run.valid are a fold"
            )

    def _unread(self) -> Iterator[str]:
        """Yields settings of the sections of networks that a loop does not read."""
        if self.reads_train:
            return
        unread = [
            f"train.{name}={format_scalar(each)}"
            for name, each, is_other, typed in self._train_settings()
            if is_other or typed
        ]
        if not UserFunction(self.function).takes_config:  # else it may read these from its config
            unread += [name for name in OF_NETWORKS if value_at(self.config, name) is not None]
        names = ", ".join(self.config["params"] or {}) or "empty"
        for each in unread:
            yield (
                f"{each}: the loop reads nothing of the section {each.partition('.')[0]}; its "
                f"settings are in params: {names}"
            )
        if "${train.epochs}" in self.config.written["pruner"].values():
            yield (
                f"pruner={self.composer.choices.get('pruner')}: needs pruner.max_resource, how "
                "many epochs the loop has, such as pruner.max_resource=10"
            )

    def _check_suggesting(self, data: TrainingData) -> Iterator[str]:
        """Yields settings that an Optuna objective cannot have, since it gets only the trial."""
        objective, way_out = self.config.objective, "leave it out, or write a loop (config, run)"
        for key, asked, why in (
            ("objective.test", self.tested, "it is given what run.keep keeps"),
            ("objective.network", objective.network, "its weights are what run.keep keeps"),
            ("data", data.split is not None, "run.train and run.valid are their Datasets"),
            (
                "study.warm_start",
                self.config.study.warm_start,
                "its trials are placed in the space",
            ),
        ):
            if asked:
                yield f"{key}: {why}; objective(trial) has no run; {way_out}"

    def loop(self, point: Point) -> Loop:
        """Returns the loop that is called with a configuration."""
        config = self.at(point)
        function = build_function(config["objective"])
        return Loop(function, config, self.objectives, self.limits, self.tested)

    def test(self, point: Point, seed: int, states: dict[str, Any], part: Any) -> dict[str, float]:
        """Calls `objective.test` for a trained loop; see `Loop.test`."""
        function = build_named(self.config.objective.test)
        return self.loop(point).test(function, seed, states, part)


def _is_plain(value: Any) -> bool:
    """Whether a value survives YAML unchanged: a scalar, or lists and mappings of scalars."""
    if isinstance(value, list | dict):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return is_scalar(value) and str(value) != "nan" and "${" not in str(value)
