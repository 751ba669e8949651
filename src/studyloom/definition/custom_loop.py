"""The definition of a study whose trials call a custom training loop, or an Optuna objective.

studyloom does not see into a loop. Its signature says which values it takes, and its source, read
as text, whether it can resume and whether it reads the section `train`.
"""

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
from studyloom.definition.definition import (
    FIRST_ATTEMPT,
    NETWORK_SECTIONS,
    Definition,
    Sections,
)
from studyloom.errors import ConfigError, refuse
from studyloom.objectives.loop import Loop, LoopObjective
from studyloom.objectives.loop_run import SingleJob, make_loop_jobs
from studyloom.objectives.objective import Attempt
from studyloom.objectives.user_functions import (
    PARAMS,
    Adapter,
    ConfiguredAdapter,
    FunctionSource,
    LoopParameters,
    UserFunction,
    build_function,
    build_loop_network,
    build_named_function,
    compose_adapter,
    read_loop_limits,
    read_loop_objectives,
    read_source,
)
from studyloom.space.tree import Point, SuggestedSpace
from studyloom.text import format_scalar, is_scalar, nearest
from studyloom.training.device import training_device
from studyloom.training.job import Job

# Patterns of a loop's source, or of its module's
READS_TRAIN = re.compile(r"""\btrain\.\w|["']train["']""")  # a key of the section `train`
PASSED_RUN = re.compile(r"\brun\b(?![.(])")  # `run` as a parameter or an argument
OPTUNA_TIMEOUT = re.compile(r"\.optimize\([^()]*\b(timeout=[\d._e]+)")
UNUSED_TEST = (
    "data: the test set is not used; name a function (config, run, part) -> values that measures "
    "the winner on it, such as objective.test=mine.test"
)


@dataclass(frozen=True)
class TrainSetting:
    """A key of the section `train`, with its value in the config of a loop.

    Args:
        is_changed: whether the value is not the default.
        is_typed: whether the command line sets the key.
    """

    name: str
    value: object
    is_changed: bool
    is_typed: bool


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
    read_objectives = staticmethod(read_loop_objectives)
    read_limits = staticmethod(read_loop_limits)

    @classmethod
    def from_config(cls, cfg: StudyConfig, composer: Composer) -> Definition:
        """Reads the definition from a full config; see `Definition.from_config`."""
        composed = compose_adapter(cfg)
        if composed is not None:
            composer.keep(composed.config)
            return cls(composed.config, composer, composed.space)
        function = None
        with suppress(ConfigError):  # `validate` reports it
            function = UserFunction(build_function(cfg["objective"]))
        if function is None or function.takes_config:
            return super().from_config(cfg, composer)
        if function.takes_trial:
            return cls._from_optuna_objective(cfg, composer)
        return cls._from_parameters(cfg, composer, function.read_parameters())

    @classmethod
    def _from_optuna_objective(cls, cfg: StudyConfig, composer: Composer) -> Definition:
        """Reads the definition of an Optuna objective, whose trials suggest their values."""
        if value_at(cfg, "space"):
            raise ConfigError(
                f"space: objective._target_={cfg.objective._target_} suggests its own values; "
                "leave space out"
            )
        config = cfg.with_values({"study.baseline": False})
        composer.keep(config)
        return cls(config, composer, SuggestedSpace())

    @classmethod
    def _from_parameters(
        cls, cfg: StudyConfig, composer: Composer, parameters: LoopParameters
    ) -> Definition:
        """Reads the definition of a loop that gets the values of `params` by name.

        Raises:
            ConfigError: every parameter without a value, and every key that the loop does not take.
        """
        definition = super().from_config(cfg, composer)  # adds the defaults of the search space
        params = {}
        for name, default in parameters.defaults.items():
            if _survives_yaml(default):
                params[name] = default
        params.update(value_at(definition.config, PARAMS) or {})
        definition = replace(definition, config=definition.config.with_values({PARAMS: params}))
        definition.composer.keep(definition.config)

        errors = []
        function = f"objective._target_={cfg.objective._target_}"
        for name, default in parameters.defaults.items():
            if default is inspect.Parameter.empty and name not in params:
                errors.append(f"params.{name} must be given: {function} has no default for it")

        def check_name(key: str, name: str) -> None:
            """Adds an error if the loop has no parameter of the name that a key sets."""
            if name in parameters.defaults or parameters.takes_any:
                return
            names = ", ".join(parameters.defaults) or "none"
            errors.append(
                f"{key}: {function} has no parameter {name}; it has "
                f"{names}{nearest(name, [*parameters.defaults])}"
            )

        for name in value_at(cfg, PARAMS) or {}:
            check_name(f"{PARAMS}.{name}", name.partition(".")[0])
        searched_keys = [
            node.key for branch in definition.space.branches() for node in branch.nodes
        ]
        searched_keys += [group.key for group in definition.space.groups()]
        for key in searched_keys:
            section, _, name = key.partition(".")
            if section == PARAMS:
                check_name(f"space.{key}", name.partition(".")[0])
            else:
                errors.append(f"space.{key}: {function} gets only the values of params")
        refuse(errors)
        return definition

    # The function that trials call

    @functools.cached_property
    def function(self) -> Callable[..., object]:
        """The loop or Optuna objective, built from the default configuration."""
        return build_function(self.config["objective"])

    @property
    def adapter(self) -> Adapter:
        """The adapter of a program; for a function, one that says what holds for each loop."""
        if isinstance(self.function, Adapter):
            return self.function
        return Adapter()

    @functools.cached_property
    def source(self) -> FunctionSource:
        """The source of the function and of its module."""
        return read_source(self.config["objective"])

    @functools.cached_property
    def code(self) -> dict[str, str]:
        """The digests of the user's code, with those that the adapter returns."""
        return {**super().code, **self.adapter.code()}

    @property
    def untested(self) -> str | None:
        return self.adapter.untested

    @property
    def resumes(self) -> bool:
        return not self.suggests and self.adapter.resumes

    @property
    def epochs(self) -> int | None:
        params = self.config[PARAMS] or {}
        epochs = params.get("epochs")
        if isinstance(epochs, int):
            return epochs
        return None

    @functools.cached_property
    def reads_train(self) -> bool:
        """True if the loop may read `config.train`: its module names it, or the config sets it."""
        if not UserFunction(self.function).takes_config:
            return False
        if READS_TRAIN.search(self.source.module):
            return True
        if "model" in self.composer.choices:
            return True
        # The config of a study sets a value of `train` for a loop that reads it. The command line
        # may set one that no loop reads, and so shows nothing.
        return any(
            setting.is_changed and not setting.is_typed for setting in self._read_train_settings()
        )

    def _read_train_settings(self) -> list[TrainSetting]:
        """Reads the keys of the section `train`."""
        defaults = asdict(type(self.config.train)())
        typed_keys = {override.key for override in self.composer.overrides}
        settings = []
        for name, value in self.config.written["train"].items():
            is_changed = value != defaults.get(name)
            is_typed = f"train.{name}" in typed_keys
            settings.append(TrainSetting(name, value, is_changed, is_typed))
        return settings

    # The configuration of a trial

    def compose_config(self, point: Point) -> StudyConfig:
        if not self.suggests:
            return super().compose_config(point)
        # The database may hold trials that another program has written.
        if "${" in str([*point.params.values()]):
            raise ConfigError(f"hyperparameters must not hold '${{'; got {point.params!r}")
        if not point.params:  # copies would take most of a fast trial's time
            return self.config
        params = {**(value_at(self.config, PARAMS) or {}), **point.params}
        return self.config.with_values({PARAMS: params})

    @functools.cached_property
    def _default_provenance(self) -> Sections:
        return super().provenance_sections(Point())

    def provenance_sections(self, point: Point) -> Sections:
        if not self.suggests:
            return super().provenance_sections(point)
        sections = dict(self._default_provenance)
        sections[PARAMS] = {**sections.get(PARAMS, {}), **point.params}
        return sections

    def identity(self, digest: str) -> dict[str, object]:
        """Returns all values that identify the definition; see `Definition.identity`."""
        values = super().identity(digest)
        for name in self.adapter.keys_without_effect:
            values.pop(f"objective.{name}", None)
        if isinstance(self.function, ConfiguredAdapter):
            # Interpolations stay as written: the value of ${now:…} differs at each start.
            config = written_values(self.function.compose_config())
            plain_config = json.loads(json.dumps(config, default=str))
            values.update(flatten(plain_config, "objective.config"))
        return values

    # The objective of a trial, and the test of the winner

    def build_loop(self, point: Point) -> Loop:
        """Builds the loop that is called with a configuration."""
        config = self.compose_config(point)
        function = build_function(config["objective"])
        return Loop(function, config, self.objectives, self.limits, must_keep=self.tested)

    def make_objective(
        self,
        point: Point,
        number: int,
        data: TrainingData,
        attempt: Attempt = FIRST_ATTEMPT,
        seed: int | None = None,
        fold: Fold | None = None,
    ) -> LoopObjective:
        single_job = None
        if seed is not None:
            single_job = SingleJob(seed, fold)
        return LoopObjective(
            loop=replace(self.build_loop(point), must_resume=attempt.pauses),
            jobs=make_loop_jobs(self.config, data, self.trial_seed(number), single_job),
            trial=number,
            attempt=attempt,
            suggesting=point.trial,
        )

    def build_job(self, point: Point, fold: Fold, seed: int) -> Job:
        """Builds the job that evaluates a loop's network in a fold; the job cannot train it."""
        training_set, validation_set = fold
        for_training: dict[str, Any] = {
            "optimizer": None,
            "schedule": None,
            "loss": functional.mse_loss,
        }
        return Job(
            functools.partial(build_loop_network, self.compose_config(point)),
            **for_training,
            train=training_set,
            valid=validation_set,
            epochs=1,
            batch_size=min(64, len(training_set)),
            seed=seed,
        )

    def test(
        self, point: Point, seed: int, states: dict[str, Any], examples: object
    ) -> dict[str, float]:
        """Calls `objective.test` for a trained loop; see `Loop.test`."""
        function = build_named_function(self.config.objective.test)
        return self.build_loop(point).test(function, seed, states, examples)

    def trains_on(self, data: TrainingData) -> torch.device:
        """Returns the loop's device; its data are on the CPU, for the workers of a DataLoader."""
        return training_device()

    # Notes and errors before trial 0

    def notes(self, data: TrainingData) -> list[str]:
        """Returns notes that are printed before the first trial."""
        notes = [*self._note_resumption(), *self._note_timeout()]
        if data.has_test and self.config.winner.enabled and not self.tested:
            notes.append(UNUSED_TEST)
        notes += self.adapter.notes(self.config)
        return notes

    def _note_resumption(self) -> Iterator[str]:
        """Yields a line if a trial whose worker dies cannot resume."""
        name = self.config.objective._target_
        if self.suggests:
            yield (
                f"{name}(trial) is an Optuna objective: a trial whose worker dies starts again, "
                "and the winner is not tested; a custom training loop can resume (run.keep) and be "
                "tested (objective.test)"
            )
            return
        source = self.source.function
        # A loop that passes `run` to another function may call `run.epochs` there. If it does not,
        # only its signature has a `run` that neither a dot nor a parenthesis follows.
        is_only_in_signature = len(PASSED_RUN.findall(source)) == 1
        calls_keep = "run.keep(" in source
        calls_epochs = "run.epochs(" in source
        if calls_keep and not calls_epochs and is_only_in_signature:
            yield (
                f"{name} calls run.keep and not run.epochs: a trial whose worker dies starts "
                "again from the beginning; loop over run.epochs(count), and report there"
            )

    def _note_timeout(self) -> Iterator[str]:
        """Yields a line if the module of an Optuna objective gives `optimize` a time limit."""
        if not self.suggests or self.config.study.timeout is not None:
            return
        match = OPTUNA_TIMEOUT.search(self.source.module)
        if match is not None:
            yield (
                f"the module of {self.config.objective._target_} has {match[1]} for Optuna's "
                f"optimize, which is not called; study.{match[1]} limits the search"
            )

    def try_out(self, data: TrainingData) -> Iterator[str]:
        """Yields errors in the functions: missing ones, and wrong arguments."""
        try:
            yield from self._check_function()
            yield from self._check_unread_settings()
            yield from self.adapter.check(self.config, self.space)
            yield from self._check_test_and_network(data)
        except ConfigError as error:
            yield from error.errors
        if self.suggests:
            yield from self._check_optuna_objective(data)
        folds = self.config.objective.folds
        if data.split is None and folds > 1:
            yield (
                f"objective.folds={folds}: the function loads its data itself; divide "
                "it there, or name it in the section data: then run.train and run.valid are a fold"
            )

    def _check_function(self) -> Iterator[str]:
        """Yields an error if the function cannot be called in any of the three ways."""
        function = UserFunction(self.function)
        if not function.takes_config:
            return
        error = function.explain_call_error(2)
        if error:
            yield (
                f"objective._target_={self.config.objective._target_}: {error}; it is called as "
                "(config, run) -> value, or with the values of params if run is its first "
                "parameter, or as Optuna's objective(trial)"
            )

    def _check_test_and_network(self, data: TrainingData) -> Iterator[str]:
        """Yields an error if `objective.test` cannot be called; makes `objective.network`."""
        objective = self.config.objective
        if objective.test:
            error = UserFunction(build_named_function(objective.test)).explain_call_error(3)
            if error:
                yield f"objective.test: {error}; it is called as (config, run, part) -> values"
        if objective.network is not None:
            with torch.random.fork_rng(devices=[]):
                build_loop_network(self.config, **data.network_kwargs)

    def _check_unread_settings(self) -> Iterator[str]:
        """Yields settings of the sections of networks that a loop does not read."""
        if self.reads_train:
            return
        unread = []
        for setting in self._read_train_settings():
            if setting.is_changed or setting.is_typed:
                unread.append(f"train.{setting.name}={format_scalar(setting.value)}")
        if not UserFunction(self.function).takes_config:  # else it may read these from its config
            for section in NETWORK_SECTIONS:
                if value_at(self.config, section) is not None:
                    unread.append(section)
        params = ", ".join(self.config[PARAMS] or {}) or "empty"
        for setting_text in unread:
            section = setting_text.partition(".")[0]
            yield (
                f"{setting_text}: the loop reads nothing of the section {section}; its "
                f"settings are in params: {params}"
            )
        if "${train.epochs}" in self.config.written["pruner"].values():
            yield (
                f"pruner={self.composer.choices.get('pruner')}: needs pruner.max_resource, how "
                "many epochs the loop has, such as pruner.max_resource=10"
            )

    def _check_optuna_objective(self, data: TrainingData) -> Iterator[str]:
        """Yields settings that an Optuna objective cannot have, since it gets only the trial."""
        reasons: dict[str, str] = {}  # by key
        if self.tested:
            reasons["objective.test"] = "it is given what run.keep keeps"
        if self.config.objective.network:
            reasons["objective.network"] = "its weights are what run.keep keeps"
        if data.split is not None:
            reasons["data"] = "run.train and run.valid are their Datasets"
        if self.config.study.warm_start:
            reasons["study.warm_start"] = "its trials are placed in the space"
        for key, reason in reasons.items():
            yield (
                f"{key}: {reason}; objective(trial) has no run; leave it out, or write a loop "
                "(config, run)"
            )


def _survives_yaml(value: object) -> bool:
    """True if a value is the same after YAML: a scalar, or lists and mappings of scalars."""
    if isinstance(value, list):
        return all(map(_survives_yaml, value))
    if isinstance(value, dict):
        return all(map(_survives_yaml, value.values()))
    return is_scalar(value) and str(value) != "nan" and "${" not in str(value)
