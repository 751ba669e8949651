"""The functions that a user's config names: how each is built, and how it is called.

`objective._target_` names a *custom training loop*, an *Optuna objective*, or a class whose objects
are called like a loop: an *adapter*, which runs another program for each trial.
"""

import contextlib
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from studyloom.config.build import build, find_target, plain
from studyloom.config.compose import values_of_application
from studyloom.config.overrides import explain_key
from studyloom.config.schema import SCHEMA
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import describe_error, flatten, value_at, with_values
from studyloom.errors import ConfigError, PredictError, raise_if_any
from studyloom.metrics import ANYTHING, DIRECTIONS, METRICS, Direction, Metric, ObjectiveValue
from studyloom.objectives.loop_run import Run
from studyloom.space.rule import Condition, parse_limits, read_space
from studyloom.space.tree import Space
from studyloom.storage.attributes import TRIAL_KEYS
from studyloom.text import format_scalar
from studyloom.user_code.importing import unwrap_callable

NETWORK = "objective.network"  # the key that names the network of a loop
PARAMS = "params"  # the section that holds the arguments of a loop


class Adapter:
    """An object that is called like a custom training loop, and runs another program.

    A custom adapter is a subclass with a method `__call__(config, run)`. Its arguments are keys of
    the section `objective`. The other methods of this base class say what holds for a loop.

    Attributes:
        keys_without_effect: the keys of the section that change no value, and so are not part of
            the study definition.
        resumes: whether a trial may resume from what `run.keep` has saved.
    """

    keys_without_effect: ClassVar[Sequence[str]] = ()
    resumes: ClassVar[bool] = True

    def __call__(self, config: StudyConfig, run: Run) -> object:
        """Runs the program for a trial, and returns its value."""
        raise NotImplementedError

    @property
    def untested(self) -> str | None:
        """The reason why the winner is not tested; None if `objective.test` decides it."""
        return None

    @property
    def resumes_from_files(self) -> bool:
        """True if a call may resume from files that an earlier call has left."""
        return False

    def check(self, config: StudyConfig, space: Space) -> Iterable[str]:
        """Returns a line for each error that can be found before trial 0."""
        return ()

    def notes(self, config: StudyConfig) -> Iterable[str]:
        """Returns lines that are printed before trial 0."""
        return ()

    def code(self) -> Mapping[str, str]:
        """Returns digests of source files that decide a value, by `code.NAME`."""
        return {}


class ConfiguredAdapter(Adapter, ABC):
    """An adapter of a program that has a config.

    Names in the search space are keys of that config, and the section `params` holds the values
    that a trial or the user sets in it.
    """

    @abstractmethod
    def compose_config(self) -> Mapping[str, Any]:
        """Returns the config of the program, without the values of a trial."""


@dataclass(frozen=True)
class LoopParameters:
    """The parameters of a loop `(run, *, width=32, …)` that the section `params` fills.

    Args:
        defaults: the default by parameter name; `inspect.Parameter.empty` without one.
        takes_any: whether the loop has a parameter `**kwargs`, and so takes other names too.
    """

    defaults: dict[str, object]
    takes_any: bool


@dataclass(frozen=True)
class UserFunction:
    """A function of the user, and how its signature says that it is called.

    A function whose first parameter is `run` is a loop that gets the values of `params` by name. If
    its first parameter is `trial`, or if it has only one, the function is an Optuna objective. Any
    other function is a loop that gets the config.
    """

    function: Callable[..., object]

    @functools.cached_property
    def takes_params(self) -> bool:
        """True if the function is called as `(run, **params)`."""
        return self._first_parameter == "run"

    @functools.cached_property
    def takes_trial(self) -> bool:
        """True if the function is called as `(trial)`."""
        if self._first_parameter == "trial":
            return True
        if self._first_parameter in ("run", "config", "cfg"):
            return False  # it is a loop, even if its second parameter is missing
        takes_one_argument = not self.explain_call_error(1)
        takes_two_arguments = not self.explain_call_error(2)
        return takes_one_argument and not takes_two_arguments

    @property
    def takes_config(self) -> bool:
        """True if the function is called as `(config, run)`."""
        return not (self.takes_params or self.takes_trial)

    @property
    def _first_parameter(self) -> str:
        """Name of the first parameter; "" if there is none."""
        parameters = inspect.signature(self.function).parameters
        return next(iter(parameters), "")

    def explain_call_error(self, argument_count: int) -> str:
        """Explains why the function cannot be called with so many arguments; "" if it can."""
        arguments = [None] * argument_count
        try:
            inspect.signature(self.function).bind(*arguments)
        except TypeError as error:
            return str(error)
        return ""

    def call(
        self, config: StudyConfig, run: Run, make_trial: Callable[[Mapping[str, Any]], object]
    ) -> object:
        """Calls the function as its signature asks, and returns the result.

        Args:
            config: the config of the trial; an OmegaConf config if the function takes it.
            make_trial: makes the trial of an Optuna objective from the values of `params`.
        """
        if self.takes_config:
            return self.function(config, run)
        params = value_at(config, PARAMS) or {}
        if self.takes_params:
            return self.function(run, **params)
        return self.function(make_trial(params))

    def read_parameters(self) -> LoopParameters:
        """Reads the parameters of a loop `(run, *, width=32, …)` that `params` fills."""
        bound_arguments: Mapping[str, object] = {}  # those that the section `objective` sets
        if isinstance(self.function, functools.partial):
            bound_arguments = self.function.keywords
        defaults: dict[str, object] = {}
        takes_any = False
        _run, *parameters = inspect.signature(self.function).parameters.values()
        for parameter in parameters:
            if parameter.kind == parameter.VAR_KEYWORD:  # **kwargs
                takes_any = True
            is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if is_named and parameter.name not in bound_arguments:
                defaults[parameter.name] = parameter.default
        return LoopParameters(defaults, takes_any)


# The functions, built from the config


def build_function(objective: Mapping[str, object]) -> Callable[..., object]:
    """Resolves the function that an objective names by `_target_`; does not call it.

    The section has keys of studyloom, such as `metric`. Its other keys are arguments: a class is
    built with them, and a function gets them by name.
    """
    section = {}
    studyloom_keys = [*SCHEMA.objective]  # such as metric and direction
    for name, value in plain(objective, "objective").items():
        if name == "_target_" or name not in studyloom_keys:
            section[name] = value
    target = find_target(section, "objective")
    try:
        if inspect.isclass(target):
            adapter: Callable[..., object] = build(section, "objective")
            return adapter
        # With `_partial_`, a key of Hydra, `build` does not call the function: it returns a
        # functools.partial of it.
        function: functools.partial[object] = build(section | {"_partial_": True}, "objective")
        # Raises TypeError for an argument that the function does not have.
        inspect.signature(target).bind_partial(*function.args, **function.keywords)
    except ConfigError:
        raise
    except Exception as error:  # of the user's code
        message = f"objective._target_={section['_target_']}: {describe_error(error)}"
        raise ConfigError(message) from error
    if function.args or function.keywords:
        return function
    return function.func


@dataclass(frozen=True)
class FunctionSource:
    """The source of a function and that of its module; "" where it cannot be read."""

    function: str
    module: str


def read_source(objective: Mapping[str, object]) -> FunctionSource:
    """Reads the source of the function that an objective names, and of the function's module."""
    function = unwrap_callable(find_target(objective, "objective"))
    module = inspect.getmodule(function)
    function_source = ""
    module_source = ""
    with contextlib.suppress(OSError, TypeError):
        function_source = inspect.getsource(function)
    if module is not None:
        with contextlib.suppress(OSError, TypeError):
            module_source = inspect.getsource(module)
    return FunctionSource(function_source, module_source)


def build_named_function(
    setting: str | Mapping[str, object], key: str = "objective.test"
) -> Callable[..., Any]:
    """Returns the function that a key of the config names.

    Args:
        setting: the value of the key, in one of three forms: a dotted name, such as
            `mymodule.make_net`; a section, such as `{_target_: mymodule.make_net, width: 8}`, whose
            other keys are arguments; or, for `objective.network` only, one of these under the name
            that the network has in `run.keep`, such as `{generator: mymodule.make_net}`.
    """
    named_function: object = setting
    if key == NETWORK and isinstance(setting, Mapping):
        network_name = find_network_name(setting)
        if network_name is not None:
            named_function = setting[network_name]
    if isinstance(named_function, Mapping):
        section = plain(named_function, key)
    else:
        section = {"_target_": named_function}
    section = section | {"_partial_": True}  # the function is returned, not called
    function: Callable[..., Any] = build(section, key)
    return function


# The network of a loop, which `run.keep` saves and `objective.network` makes


def find_network_name(setting: object) -> str | None:
    """Returns the name in `run.keep` of the network that `objective.network` makes.

    Args:
        setting: the value of `objective.network`: the function that makes the network; or, where a
            loop keeps several networks, a mapping of one of their names to its function.

    Returns:
        None for the only network that the loop keeps.
    """
    if not isinstance(setting, Mapping) or "_target_" in setting or len(setting) != 1:
        return None
    names: list[str] = [*setting]
    return names[0]


def make_loop_network(
    make: nn.Module | Callable[..., nn.Module], config: Any, **data_facts: object
) -> nn.Module:
    """Makes the network of a loop for a config.

    Args:
        make: the network; or a function that makes it from the values that its signature names, of
            `params`, `data_facts` and `config`.
        config: an OmegaConf config, as the user's functions get it.
        data_facts: what is known of the data, such as `shape` and `outputs`.

    Raises:
        ConfigError: the function makes no network of these.
    """
    try:
        network: object = make
        if not isinstance(make, nn.Module):
            values: dict[str, object] = {"config": config}
            values.update(data_facts)
            values.update(value_at(config, PARAMS) or {})
            parameters = inspect.signature(make).parameters
            arguments = {name: values[name] for name in parameters if name in values}
            network = make(**arguments)
        if not isinstance(network, nn.Module):
            raise TypeError(f"it must give a torch.nn.Module; got {type(network).__name__}")
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{NETWORK}: {describe_error(error)}") from error
    return network


def build_loop_network(config: StudyConfig, **data_facts: object) -> nn.Module:
    """Builds the network of `objective.network` for a config; see `make_loop_network`."""
    make = build_named_function(config.objective.network, NETWORK)
    return make_loop_network(make, config.for_user(), **data_facts)


def select_weights(states: Mapping[str, object], name: str | None) -> dict[str, Tensor]:
    """Returns the weights of a network among the states that a loop has kept.

    Args:
        states: the state of each kept object, by its name in `run.keep`.
        name: the name of the network; None for the only one.

    Raises:
        PredictError: it has kept no network, or none of that name, or several.
    """
    networks: dict[str, Any] = {}
    for state_name, state in states.items():
        if not isinstance(state, Mapping) or not state:
            continue
        if all(isinstance(value, Tensor) for value in state.values()):
            networks[state_name] = state
    if not networks:
        other_objects = ""
        if states:
            other_objects = f": it kept only {', '.join(states)}"
        raise PredictError(
            f"the winner was saved without its network{other_objects}; winner.yaml has its "
            "configuration. A training loop keeps its network by run.keep(net=net); a command, a "
            "Hydra app and an Optuna objective save and load theirs themselves"
        )
    if name is None and len(networks) == 1:
        (name,) = networks
    if name is None or name not in networks:
        raise PredictError(
            f"{NETWORK} must say which network of run.keep predicts, {' or '.join(networks)}: add "
            f"--network NAME=mine.Net, set {NETWORK}={{NAME: mine.Net}} before the search, or call "
            "load_winner(RUN_DIR, network={'NAME': Net})"
        )
    weights: dict[str, Tensor] = networks[name]
    return weights


# Programs that have a config


@dataclass(frozen=True)
class ComposedAdapter:
    """The study's config with the defaults of an adapter's program in `params`, and its space."""

    config: StudyConfig
    space: Space


def compose_adapter(cfg: StudyConfig) -> ComposedAdapter | None:
    """Composes the config and the search space of a study whose program has a config.

    Returns:
        None if the objective is no `ConfiguredAdapter`.

    Raises:
        ConfigError: every key of `params` and of the space that the program's config lacks.
    """
    target: object = None
    with contextlib.suppress(ConfigError):  # `validate` reports the error
        target = find_target(cfg["objective"], "objective")
    if not (isinstance(target, type) and issubclass(target, ConfiguredAdapter)):
        return None
    adapter = build_function(cfg["objective"])
    assert isinstance(adapter, ConfiguredAdapter)
    program_config = adapter.compose_config()
    space = read_space(value_at(cfg, "space"), _list_no_options, PARAMS)
    # A hyperparameter is named as the key of the program's config that it sets. A branch of the
    # space has those that are searched together with some choice of options.
    searched_keys: list[str] = []
    for branch in space.branches():
        searched_keys += [node.name for node in branch.nodes]
    params = value_at(cfg, PARAMS) or {}  # values that the user sets in the program's config
    set_keys: list[str] = []
    if params:
        set_keys = [key for key, _value in flatten(params)]
    errors = [*_explain_keys(PARAMS, set_keys, program_config)]
    errors += _explain_keys("space", searched_keys, program_config)
    raise_if_any(errors)
    # The default of a hyperparameter is its value in the program's config, where `params` are set.
    program_defaults = values_of_application(program_config, params, searched_keys)
    config = cfg.with_values({PARAMS: with_values(params, program_defaults)})
    return ComposedAdapter(config, space)


def _explain_keys(
    section: str, keys: Iterable[str], program_config: Mapping[str, Any]
) -> Iterator[str]:
    """Yields an error for each key of a section that the config of a program lacks."""
    for key in keys:
        error = explain_key(key, program_config)
        if error is not None:
            yield f"{section}.{key}: {error}"


def _list_no_options(group: str) -> list[str]:
    """Returns no options for a config group: another program has none of studyloom's groups."""
    return []


# The values that a loop returns


def read_loop_objectives(cfg: StudyConfig) -> tuple[Metric, *tuple[ObjectiveValue, ...]]:
    """Returns the values that a loop returns, under the names that `objective.metric` gives."""
    first, *further = _read_objective_values(cfg["objective"])
    bounds = ANYTHING
    if first.name in METRICS:
        bounds = METRICS[first.name].bounds
    metric = Metric(first.name, first.direction, _compute_no_score, bounds=bounds)
    return metric, *further


def read_loop_limits(cfg: StudyConfig) -> list[Condition]:
    """Returns the limits of what a loop may report by `run.cost`, from `objective.constraints`."""
    limits = parse_limits(value_at(cfg, "objective.constraints"), None)
    _refuse_reserved_names("objective.constraints", [limit.name for limit in limits])
    return limits


def _read_objective_values(objective: Mapping[str, object]) -> list[ObjectiveValue]:
    """Reads the names and directions of the values that a loop returns, the metric first."""
    objective = plain(objective, "objective")

    names = _as_list(objective["metric"])
    are_names = all(isinstance(name, str) for name in names)
    if not names or not are_names or len(set(names)) < len(names):
        raise ConfigError(
            "objective.metric must be a name for the value, or a list of different names, since "
            f"the function returns the values themselves; got {objective['metric']}"
        )

    directions: list[Direction] = _as_list(objective["direction"])
    are_directions = all(direction in DIRECTIONS for direction in directions)
    if len(directions) != len(names) or not are_directions:
        of_each_name = ""
        if len(names) > 1:
            of_each_name = f", for each of {', '.join(names)}"
        raise ConfigError(
            f"objective.direction must be {' or '.join(DIRECTIONS)}{of_each_name}, since a "
            f"function does not say which is better; got {format_scalar(objective['direction'])}"
        )

    _refuse_reserved_names("objective.metric", names[1:])
    objective_values = []
    for name, direction in zip(names, directions, strict=True):
        objective_values.append(ObjectiveValue(name, direction))
    return objective_values


def _as_list(value: Any) -> list[Any]:
    """Returns a list unchanged, and any other value as a list of one."""
    if isinstance(value, list):
        return value
    return [value]


def _refuse_reserved_names(key: str, names: Sequence[str]) -> None:
    """Raises ConfigError for names under which studyloom stores something with each trial."""
    errors = []
    for name in names:
        if name in TRIAL_KEYS:
            errors.append(f"{key}: {name} is reserved; choose another name")
    raise_if_any(errors)


def _compute_no_score(outputs: object, targets: object) -> None:
    """Stands in for the function of a metric: a loop computes its value itself."""
    raise AssertionError("a custom loop returns the value itself")
