"""The definition of a study whose trials call a custom training loop, or an Optuna objective.

studyloom does not see into a loop. Its signature says which values it takes, and its source, read
as text, whether it can resume and whether it reads the section `train`.
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

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
from studyloom.errors import ConfigError, raise_if_any
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
from studyloom.space.tree import Configuration, Space, SuggestedSpace
from studyloom.text import format_scalar, is_scalar, nearest
from studyloom.training.device import describe_unused_accelerator, training_device
from studyloom.training.job import Job

# Patterns of a loop's source, or of its module's
READS_TRAIN = re.compile(r"""\btrain\.\w|["']train["']""")  # `config.train.epochs`, or "train"
PASSED_RUN = re.compile(r"\brun\b(?![.(])")  # `run` as a parameter or an argument
OPTUNA_TIMEOUT = re.compile(r"\.optimize\([^()]*\b(timeout=[\d._e]+)")  # and its value, as written
UNUSED_TEST = (
    "data: the test set is not used; name a function (config, run, dataset) -> values that "
    "measures the winner on it, such as objective.test=mine.test"
)


@dataclass(frozen=True)
class TrainSetting:
    """A key of the section `train`, with its value in the config of a loop.

    Args:
        is_changed: whether the value is not the default.
        is_set_on_command_line: whether the user has typed the key there.
    """

    name: str
    value: object
    is_changed: bool
    is_set_on_command_line: bool


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
        """Reads the definition from the config of a command.

        There are four kinds of objectives: an adapter of a program that has a config, and functions
        that take the config, an Optuna trial, or the values of `params` by name. An objective that
        cannot be built is reported later, with all other errors.

        Args:
            cfg: all sections, except `hydra`.
            composer: composes the command again with other options of groups.
        """
        composed = compose_adapter(cfg)
        if composed is not None:  # an adapter of a program that has a config
            composer.cache_own_config(composed.config)
            return cls(composed.config, composer, composed.space)
        function = None
        with suppress(ConfigError):
            function = UserFunction(build_function(cfg["objective"]))
        if function is None or function.takes_config:  # a loop (config, run)
            return super().from_config(cfg, composer)
        if function.takes_trial:  # Optuna's objective(trial)
            return cls._from_optuna_objective(cfg, composer)
        # A loop (run, **params)
        return cls._from_parameters(cfg, composer, function.read_parameters())

    @classmethod
    def _from_optuna_objective(cls, cfg: StudyConfig, composer: Composer) -> Definition:
        """Reads the definition of an Optuna objective, whose trials suggest their values.

        It has a baseline if the user has stated one, as the first configuration of `study.enqueue`.
        """
        if value_at(cfg, "space"):
            raise ConfigError(
                f"space: objective._target_={cfg.objective._target_} suggests its own values; "
                "leave space out"
            )
        states_baseline = cfg.study.baseline and read_first_enqueued(cfg) is not None
        config = cfg.with_values({"study.baseline": states_baseline})
        composer.cache_own_config(config)  # of every trial, since none chooses options of groups
        return cls(config, composer, SuggestedSpace())

    @classmethod
    def _from_parameters(
        cls, cfg: StudyConfig, composer: Composer, parameters: LoopParameters
    ) -> Definition:
        """Reads the definition of a loop that gets the values of `params` by name.

        The section `params` of its config also has the defaults of the search space and of the
        loop's parameters.

        Raises:
            ConfigError: every parameter without a value, and every key that the loop does not take.
        """
        # First, the config: the values of `params`, and the defaults of the loop's parameters where
        # it has none. A default that YAML cannot hold is left out: Python itself passes it.
        definition = super().from_config(cfg, composer)  # adds the defaults of the search space
        params = {}
        for name, default in parameters.defaults.items():
            if _survives_yaml(default):
                params[name] = default
        params.update(value_at(definition.config, PARAMS) or {})
        definition = replace(definition, config=definition.config.with_values({PARAMS: params}))
        # Trials compose their configs from this one, and not from the one without the defaults.
        definition.composer.cache_own_config(definition.config)

        # Second, the errors.
        function_name = f"objective._target_={cfg.objective._target_}"
        errors = []
        for name, default in parameters.defaults.items():
            if default is inspect.Parameter.empty and name not in params:
                errors.append(f"params.{name} must be given: {function_name} has no default for it")
        names_set_by_user = value_at(cfg, PARAMS) or {}  # in files, or on the command line
        errors += _find_unknown_params(function_name, parameters, names_set_by_user)
        errors += _find_unknown_searched_keys(function_name, parameters, definition.space)
        raise_if_any(errors)
        return definition

    # The function that trials call

    @functools.cached_property
    def function(self) -> Callable[..., object]:
        """The loop or Optuna objective, built from the default configuration."""
        return build_function(self.config["objective"])

    @property
    def adapter(self) -> Adapter:
        """The adapter of a program; for a plain function, an `Adapter` with all its defaults."""
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
        return not self.has_optuna_objective and self.adapter.resumes

    @property
    def epochs(self) -> int | None:
        """Number of epochs of a training: `params.epochs`; None if the loop has no such value."""
        params = self.config[PARAMS] or {}
        epochs = params.get("epochs")
        if isinstance(epochs, int):
            return epochs
        return None

    @functools.cached_property
    def reads_train(self) -> bool:
        """True if the loop may read `config.train`, as far as that can be known.

        A loop may read the section if the loop's module names it; if the study has a model, which
        the loop then trains as studyloom would; or if the config files set a key of the section. A
        key that only the command line sets shows nothing: the user may not know that no loop reads
        it.
        """
        if not UserFunction(self.function).takes_config:
            return False
        if READS_TRAIN.search(self.source.module):
            return True
        if "model" in self.composer.choices:
            return True
        for setting in self._read_train_settings():
            if setting.is_changed and not setting.is_set_on_command_line:
                return True
        return False

    def _read_train_settings(self) -> list[TrainSetting]:
        """Returns the keys of the section `train`, each with where its value comes from."""
        section_class = type(self.config.train)
        defaults = asdict(section_class())
        typed_keys = {override.key for override in self.composer.overrides}
        settings = []
        for name, value in self.config.written["train"].items():
            is_changed = value != defaults.get(name)
            is_set_on_command_line = f"train.{name}" in typed_keys
            settings.append(TrainSetting(name, value, is_changed, is_set_on_command_line))
        return settings

    # The configuration of a trial

    @functools.cached_property
    def baseline(self) -> Configuration | None:
        """The default configuration, or None if `study.baseline` is false.

        That of an Optuna objective, which has no defaults, is the first one of `study.enqueue`.
        """
        if not self.has_optuna_objective or not self.config.study.baseline:
            return super().baseline
        return self.space.make_configuration(read_first_enqueued(self.config) or {})

    def compose_config(self, configuration: Configuration) -> StudyConfig:
        """Composes the config of a trial: the study's, with options and values.

        For an Optuna objective the hyperparameters become values of `params`.

        Raises:
            ConfigError: a hyperparameter of an Optuna objective has an interpolation as its value,
                as another program may have written into the database.
        """
        if not self.has_optuna_objective:
            return super().compose_config(configuration)
        if "${" in str([*configuration.params.values()]):
            raise ConfigError(f"hyperparameters must not hold '${{'; got {configuration.params!r}")
        if not configuration.params:  # copies would take most of a fast trial's time
            return self.config
        fixed_params = value_at(self.config, PARAMS) or {}
        return self.config.with_values({PARAMS: {**fixed_params, **configuration.params}})

    @functools.cached_property
    def _default_provenance(self) -> Sections:
        return super().provenance_sections(Configuration())

    def provenance_sections(self, configuration: Configuration) -> Sections:
        """Returns the resolved sections that decide the value of a trial.

        In the trials of an Optuna objective only the section `params` differs, so that the other
        sections are made once for all trials.
        """
        if not self.has_optuna_objective:
            return super().provenance_sections(configuration)
        sections = dict(self._default_provenance)
        sections[PARAMS] = {**sections.get(PARAMS, {}), **configuration.params}
        return sections

    def identity(self, digest: str) -> dict[str, object]:
        """Returns all values that identify the definition, by key.

        They are those of every definition. If the objective is an adapter, an object that runs
        another program, the values in the config of that program are added, and keys of the adapter
        that change no result are left out.

        Args:
            digest: the digest of the data.
        """
        values = super().identity(digest)
        for name in self.adapter.keys_without_effect:
            values.pop(f"objective.{name}", None)
        if isinstance(self.function, ConfiguredAdapter):
            # Interpolations stay as written: the value of ${now:…} differs at each start.
            program_config = written_values(self.function.compose_config())
            storable_config = json.loads(json.dumps(program_config, default=str))
            values.update(flatten(storable_config, "objective.config"))
        return values

    # The objective of a trial, and the test of the winner

    def build_loop(self, configuration: Configuration) -> Loop:
        """Builds the loop that is called with a configuration."""
        config = self.compose_config(configuration)
        function = build_function(config["objective"])
        return Loop(
            function, config, self.objectives, self.limits, must_keep=self.tests_kept_states
        )

    def make_objective(
        self,
        configuration: Configuration,
        number: int,
        data: TrainingData,
        attempt: Attempt = FIRST_ATTEMPT,
        seed: int | None = None,
        fold: Fold | None = None,
    ) -> LoopObjective:
        """Makes the objective of a trial: with all seeds and folds, or with a single one of each.

        Args:
            number: the number of the trial in its stage; without a `seed`, the seeds are derived
                from it.
            attempt: the attempt of a worker at the trial, with its folder for files. If the pruner
                pauses trials, the loop must be able to resume.
            seed: the seed of a single training, as in the re-evaluation; None for all seeds.
            fold: the fold of a single training; None without data.
        """
        single_job = None
        if seed is not None:
            single_job = SingleJob(seed, fold)
        return LoopObjective(
            loop=replace(self.build_loop(configuration), must_resume=attempt.must_resume),
            jobs=make_loop_jobs(self.config, data, self.trial_seed(number), single_job),
            trial=number,
            attempt=attempt,
            stored_trial=configuration.trial,
        )

    def build_job(self, configuration: Configuration, fold: Fold, seed: int) -> Job:
        """Builds the job that evaluates a loop's network in a fold; the job cannot train it."""
        training_set, validation_set = fold
        # Only a training calls these parts, which a job requires.
        unused_parts: dict[str, Any] = {"optimizer": None, "schedule": None, "loss": None}
        return Job(
            functools.partial(build_loop_network, self.compose_config(configuration)),
            **unused_parts,
            train=training_set,
            valid=validation_set,
            epochs=1,
            batch_size=64,
            seed=seed,
        )

    def test(
        self, configuration: Configuration, seed: int, states: dict[str, Any], examples: object
    ) -> dict[str, float]:
        """Calls `objective.test` for a configuration, and returns the metrics on the test set.

        The function of a loop measures what a training has kept. That of an Optuna objective gets
        the hyperparameters and a seed, and trains by itself.

        Args:
            states: the states of the objects that the training kept with `run.keep`, by name.
            examples: the Dataset of the test set; None without `data`.
        """
        function = build_named_function(self.config.objective.test)
        loop = self.build_loop(configuration)
        if self.has_optuna_objective:
            fixed_params = value_at(self.config, PARAMS) or {}
            params = {**fixed_params, **configuration.params}
            return loop.test_params(function, params, self.find_test_seed(seed))
        return loop.test(function, seed, states, examples)

    def trains_on(self, data: TrainingData) -> torch.device:
        """Returns the loop's device; its data are on the CPU, for the workers of a DataLoader."""
        return training_device()

    # Notes and errors before trial 0

    def notes(self, data: TrainingData) -> list[str]:
        """Returns notes that are printed before the first trial."""
        notes = [*self._note_resumption(), *self._note_timeout()]
        unused_accelerator = describe_unused_accelerator()
        if unused_accelerator is not None:
            notes.append(unused_accelerator)
        if data.has_test and self.config.winner.enabled and not self.tested:
            notes.append(UNUSED_TEST)
        notes += self.adapter.notes(self.config)
        return notes

    def _note_resumption(self) -> Iterator[str]:
        """Yields a line if a trial cannot resume after its worker has died.

        An Optuna objective cannot, and neither can a loop that saves its state with `run.keep`, but
        does not iterate over `run.epochs`, as far as its source shows.
        """
        name = self.config.objective._target_
        if self.has_optuna_objective:
            missing_part = ""
            if not self.tested:
                missing_part = (
                    ", and the winner is not tested (a function test(params, seed) tests it)"
                )
            elif self.baseline is None:
                missing_part = (
                    ", and the winner is compared with no baseline (the first configuration of "
                    "study.enqueue is one)"
                )
            yield (
                f"{name}(trial) is an Optuna objective: a trial whose worker dies starts again"
                f"{missing_part}; a custom training loop can resume (run.keep)"
            )
            return
        source = self.source.function
        calls_keep = "run.keep(" in source
        calls_epochs = "run.epochs(" in source
        # A loop that passes `run` to another function, as in `train(run, width)`, may iterate over
        # `run.epochs` there. PASSED_RUN finds that `run`, not the one of `run.keep(…)`; and always
        # the one in the loop's own signature.
        passes_run = len(PASSED_RUN.findall(source)) != 1
        if calls_keep and not calls_epochs and not passes_run:
            yield (
                f"{name} calls run.keep and not run.epochs: a trial whose worker dies starts "
                "again from the beginning; loop over run.epochs(count), and report there"
            )

    def _note_timeout(self) -> Iterator[str]:
        """Yields a line if the module of an Optuna objective sets a time limit without effect.

        Such a module calls `study.optimize(objective, timeout=600)` of Optuna. As part of a study
        of studyloom, only its objective is called.
        """
        if not self.has_optuna_objective or self.config.study.timeout is not None:
            return
        match = OPTUNA_TIMEOUT.search(self.source.module)
        if match is not None:
            yield (
                f"the module of {self.config.objective._target_} has {match[1]} for Optuna's "
                f"optimize, which is not called; study.{match[1]} limits the search"
            )

    def try_out(self, data: TrainingData) -> Iterator[str]:
        """Yields errors in the functions of the config and in their settings, before trial 0.

        The loop itself is not called. An Optuna objective, which suggests its hyperparameters
        itself, has further checks.
        """
        try:
            yield from self._check_function()
            yield from self._check_unread_settings()
            yield from self.adapter.check(self.config, self.space)
            yield from self._check_test_and_network(data)
        except ConfigError as error:
            yield from error.errors
        if self.has_optuna_objective:
            yield from self._check_optuna_objective(data)
        folds = self.config.objective.folds
        loads_own_data = data.split is None  # the section `data` names none
        if loads_own_data and folds > 1:
            yield (
                f"objective.folds={folds}: the function loads its data itself; divide "
                "it there, or name it in the section data: then run.train and run.valid are a fold"
            )

    def _check_function(self) -> Iterator[str]:
        """Yields an error if the function cannot be called in any of the three ways.

        It is called with the values of `params`, with an Optuna trial, or with `(config, run)`.
        """
        function = UserFunction(self.function)
        if not function.takes_config:  # its signature fits one of the first two ways
            return
        error = function.explain_call_error(2)  # two arguments: config, run
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
            test = UserFunction(build_named_function(objective.test))
            arguments = ["config", "run", "dataset"]
            if self.has_optuna_objective:
                arguments = ["params", "seed"]
            error = test.explain_call_error(len(arguments))
            if error:
                signature = ", ".join(arguments)
                yield f"objective.test: {error}; it is called as ({signature}) -> values"
        if objective.network is not None:
            # Raises ConfigError if the network cannot be made. Its weights are drawn without a
            # change to the random state that the study goes on with.
            with torch.random.fork_rng(devices=[]):
                build_loop_network(self.config, **data.network_kwargs)

    def _check_unread_settings(self) -> Iterator[str]:
        """Yields an error for each setting of a network's training that a loop does not read.

        These are keys of the section `train`; and sections such as `optimizer`, unless the loop
        takes the config, in which it may read them.
        """
        if self.reads_train:
            return
        params = ", ".join(self.config[PARAMS] or {}) or "empty"
        for setting in self._read_train_settings():
            if setting.is_changed or setting.is_set_on_command_line:
                yield (
                    f"train.{setting.name}={format_scalar(setting.value)}: the loop reads nothing "
                    f"of the section train; its settings are in params: {params}"
                )
        if not UserFunction(self.function).takes_config:
            for section in NETWORK_SECTIONS:
                if value_at(self.config, section) is not None:
                    yield (
                        f"{section}: the loop reads nothing of the section {section}; its "
                        f"settings are in params: {params}"
                    )
        # A loop does not read the section `train`, so that this is not the number of its epochs.
        if "${train.epochs}" in self.config.written["pruner"].values():
            yield (
                f"pruner={self.composer.choices.get('pruner')}: needs pruner.max_resource, how "
                "many epochs the loop has, such as pruner.max_resource=10"
            )

    def _check_optuna_objective(self, data: TrainingData) -> Iterator[str]:
        """Yields an error for each setting that an Optuna objective `(trial)` cannot have.

        Most of them belong to a loop `(config, run)`, which uses the methods of `run`. The
        configurations of a warm start must be found in a space that is known before.
        """
        reasons: dict[str, str] = {}  # what the setting needs, by key
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


def read_first_enqueued(cfg: StudyConfig) -> dict[str, Any] | None:
    """Returns the first configuration of `study.enqueue`; None if the key lists none."""
    configurations = value_at(cfg, "study.enqueue")
    if not isinstance(configurations, list) or not configurations:
        return None
    first = configurations[0]
    if not isinstance(first, Mapping):
        return None
    return {**first}


def _find_unknown_params(
    function_name: str, parameters: LoopParameters, names: Iterable[str]
) -> Iterator[str]:
    """Yields an error for each name in the section `params` that a loop has no parameter for."""
    for name in names:
        error = _explain_unknown_parameter(f"{PARAMS}.{name}", function_name, parameters)
        if error:
            yield error


def _find_unknown_searched_keys(
    function_name: str, parameters: LoopParameters, space: Space
) -> Iterator[str]:
    """Yields an error for each key of a search space that a loop does not get."""
    keys = []
    for branch in space.branches():
        keys += [node.key for node in branch.nodes]
    keys += [group.key for group in space.groups()]
    for key in keys:
        if key.partition(".")[0] != PARAMS:
            yield f"space.{key}: {function_name} gets only the values of params"
            continue
        error_from_key = _explain_unknown_parameter(key, function_name, parameters)
        if error_from_key:  # such as "params.width: …"
            yield f"space.{error_from_key}"


def _explain_unknown_parameter(
    key: str, function_name: str, parameters: LoopParameters
) -> str | None:
    """Explains that a loop has no parameter for a key such as `params.width`; None if it has one.

    A key within a parameter, such as `params.model.width`, needs the parameter `model`.
    """
    path = key.removeprefix(f"{PARAMS}.")
    name = path.partition(".")[0]
    if name in parameters.defaults or parameters.takes_any:
        return None
    names = ", ".join(parameters.defaults) or "none"
    suggestion = nearest(name, [*parameters.defaults])
    return f"{key}: {function_name} has no parameter {name}; it has {names}{suggestion}"


def _survives_yaml(value: object) -> bool:
    """Returns whether a value is the same after YAML: a scalar, or lists and mappings of them."""
    if isinstance(value, list):
        return all(map(_survives_yaml, value))
    if isinstance(value, dict):
        return all(map(_survives_yaml, value.values()))
    return is_scalar(value) and str(value) != "nan" and "${" not in str(value)
