"""The functions that a user's config names: how each is built, and how it is called."""

import contextlib
import functools
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from studyloom.config.build import build, find_target, plain
from studyloom.config.compose import values_of_application
from studyloom.config.overrides import explain_key
from studyloom.config.schema import SCHEMA
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import describe_error, flatten, value_at, with_values
from studyloom.errors import ConfigError, PredictError, refuse
from studyloom.metrics import ANYTHING, DIRECTIONS, METRICS, Metric, ObjectiveValue
from studyloom.space.rule import Condition, parse_limits, read_space
from studyloom.space.tree import Space
from studyloom.storage.attributes import OF_TRIALS
from studyloom.text import format_scalar

NETWORK, PARAMS = "objective.network", "params"


class Adapter:
    """An object that is called like a custom training loop, and runs another program.

    A custom adapter is a subclass with a method `__call__(config, run)`. Its arguments are keys of
    the section `objective`. The other methods of this base class say what holds for a loop.

    Attributes:
        undecisive: the keys of the section that change no value, and so are not part of the
            definition.
        resumes: whether a trial may resume from what `run.keep` has saved.
        untested: why the winner is not tested; None if the user decides it by `objective.test`.
    """

    undecisive: ClassVar[Sequence[str]] = ()
    resumes: ClassVar[bool] = True
    untested: ClassVar[str | None] = None

    def __call__(self, config: StudyConfig, run: Any) -> Any:
        """Runs the program for a trial, and returns its value; see `objectives.loop_run.Run`."""
        raise NotImplementedError

    @property
    def resumes_from_files(self) -> bool:
        """Whether a call may resume from files that an earlier one has left."""
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

    Names in the space are keys of that config, and the section `params` holds what a trial or the
    user sets in it.
    """

    @abstractmethod
    def composed(self) -> Mapping[str, Any]:
        """Returns the config of the program, without the values of a trial."""


@dataclass(frozen=True)
class UserFunction:
    """A function of the user, and how its signature says that it is called.

    With `run` as its first parameter, it is a loop that gets the values of `params` by name. With
    `trial`, or a single parameter, it is an Optuna objective. Any other is a loop that gets the
    configuration.
    """

    function: Callable[..., Any]

    @functools.cached_property
    def takes_params(self) -> bool:
        """Whether it is called as `(run, **params)`."""
        return self._first == "run"

    @functools.cached_property
    def takes_trial(self) -> bool:
        """Whether it is called as `(trial)`."""
        alone = self.problem(2) and not self.problem(1)
        lacks_run = self._first in ("run", "config", "cfg")  # a loop, perhaps in error
        return self._first == "trial" or bool(alone and not lacks_run)

    @property
    def takes_config(self) -> bool:
        """Whether it is called as `(config, run)`."""
        return not (self.takes_params or self.takes_trial)

    @property
    def _first(self) -> str:
        return next(iter(inspect.signature(self.function).parameters), "")

    def problem(self, arguments: int) -> str:
        """Says why the function cannot be called with so many arguments; "" if it can."""
        try:
            inspect.signature(self.function).bind(*[None] * arguments)
        except TypeError as error:
            return str(error)
        return ""

    def call(self, config: Any, run: Any, make_trial: Callable[[Any], Any]) -> Any:
        """Calls the function, and returns what it returns.

        Args:
            config: of the trial; one of OmegaConf if the function takes it.
            make_trial: makes the trial of an Optuna objective from the values of `params`.
        """
        if self.takes_config:
            return self.function(config, run)
        params = value_at(config, PARAMS) or {}
        if self.takes_params:
            return self.function(run, **params)
        return self.function(make_trial(params))

    def params(self) -> tuple[dict[str, Any], bool]:
        """Returns what a loop `(run, *, width=32, …)` takes from `params`.

        Returns:
            The default of each name, `inspect.Parameter.empty` without one; and whether the loop
            takes any other name.
        """
        given = getattr(self.function, "keywords", {})  # in the section `objective`
        _, *parameters = inspect.signature(self.function).parameters.values()
        named = {
            each.name: each.default
            for each in parameters
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
            and each.name not in given
        }
        return named, any(each.kind == each.VAR_KEYWORD for each in parameters)


def build_function(objective: Mapping[str, Any]) -> Callable[..., Any]:
    """Resolves the function that an objective names by `_target_`; does not call it.

    The section's keys that are not ours are arguments: a class is built with them, and a function
    gets them by name.
    """
    ours = [name for name in SCHEMA.objective if name != "_target_"]
    section = {
        name: value for name, value in plain(objective, "objective").items() if name not in ours
    }
    target = find_target(section, "objective")
    try:
        if inspect.isclass(target):
            made: Callable[..., Any] = build(section, "objective")
            return made
        partial: functools.partial[Any] = build(section | {"_partial_": True}, "objective")
        inspect.signature(target).bind_partial(*partial.args, **partial.keywords)
    except ConfigError:
        raise
    except Exception as error:
        words = f"objective._target_={section['_target_']}: {describe_error(error)}"
        raise ConfigError(words) from error
    return partial if partial.args or partial.keywords else partial.func


def sources_of(objective: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the source of the function that an objective names, and of its module; "" if none."""
    target, found = find_target(objective, "objective"), ["", ""]
    for place, part in enumerate((target, sys.modules.get(getattr(target, "__module__", "")))):
        with contextlib.suppress(OSError, TypeError):
            found[place] = inspect.getsource(part)
    return found[0], found[1]


def build_named(named: Any, key: str = "objective.test") -> Callable[..., Any]:
    """Returns the function that a key names, by a dotted name or as a section."""
    named = named[kept] if key == NETWORK and (kept := kept_name(named)) else named
    section = plain(named, key) if isinstance(named, Mapping) else {"_target_": named}
    function: Callable[..., Any] = build(section | {"_partial_": True}, key)
    return function


def kept_name(named: Any) -> str | None:
    """Returns the name in `run.keep` of the network that `objective.network` makes.

    Args:
        named: what makes it; or {name: what makes it}, where a loop keeps several networks.

    Returns:
        None for the only network that the loop keeps.
    """
    single = isinstance(named, Mapping) and len(named) == 1 and "_target_" not in named
    return next(iter(named)) if single else None


def network_of(make: Any, config: Any, **known: Any) -> nn.Module:
    """Returns the network of a loop at a config.

    Args:
        make: the network, or what makes it of those of `params`, `known` and `config` that its
            signature names.
        config: one of OmegaConf, as the user's functions get it.

    Raises:
        ConfigError: it makes no network of these.
    """
    try:
        if not isinstance(make, nn.Module):
            offered = {"config": config} | known | (value_at(config, "params") or {})
            names = inspect.signature(make).parameters
            make = make(**{name: offered[name] for name in names if name in offered})
        if not isinstance(make, nn.Module):
            raise TypeError(f"it must give a torch.nn.Module; got {type(make).__name__}")
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{NETWORK}: {describe_error(error)}") from error
    return make


def build_loop_network(config: StudyConfig, **known: Any) -> nn.Module:
    """Builds the network of `objective.network` at a config; see `network_of`."""
    return network_of(build_named(config.objective.network, NETWORK), config.for_user(), **known)


def weights_of(states: Mapping[str, Any], name: str | None) -> dict[str, Tensor]:
    """Returns the weights of a network among the states that a loop has kept.

    Args:
        name: by which the loop keeps it; None for the only one.

    Raises:
        PredictError: it has kept no network, or none of that name, or several.
    """
    networks: dict[str, Any] = {
        kept: state
        for kept, state in states.items()
        if isinstance(state, Mapping) and state and all(map(torch.is_tensor, state.values()))
    }
    if not networks:
        kept = f": it kept only {', '.join(states)}" if states else ""
        raise PredictError(
            f"the winner was saved without its network{kept}; winner.yaml has its configuration. "
            "A training loop keeps its network by run.keep(net=net); a command, a Hydra app and an "
            "Optuna objective save and load theirs themselves"
        )
    if name is None and len(networks) == 1:
        (name,) = networks
    if name not in networks:
        raise PredictError(
            f"{NETWORK} must say which network of run.keep predicts, {' or '.join(networks)}: add "
            f"--network NAME=mine.Net, set {NETWORK}={{NAME: mine.Net}} before the search, or call "
            "load_winner(RUN_DIR, network={'NAME': Net})"
        )
    weights: dict[str, Tensor] = networks[name]
    return weights


def compose_adapter(cfg: StudyConfig) -> tuple[StudyConfig, Space] | None:
    """Returns the config and the space of a `ConfiguredAdapter`.

    Returns:
        None for any other objective.

    Raises:
        ConfigError: every key of `params` and of the space that it lacks.
    """
    target = None
    with contextlib.suppress(ConfigError):  # `validate` reports it
        target = find_target(cfg["objective"], "objective")
    if not (isinstance(target, type) and issubclass(target, ConfiguredAdapter)):
        return None
    adapter = build_function(cfg["objective"])
    assert isinstance(adapter, ConfiguredAdapter)
    own = adapter.composed()
    space = read_space(value_at(cfg, "space"), lambda group: [], PARAMS)
    params: Any = value_at(cfg, PARAMS) or {}
    searched = [leaf.name for _, nodes in space.branches() for leaf in nodes]
    named = [(PARAMS, key) for key, _ in flatten(params)] if params else []
    errors = [
        f"{section}.{name}: {problem}"
        for section, name in named + [("space", name) for name in searched]
        if (problem := explain_key(name, own))
    ]
    refuse(errors)
    starts = with_values(params, values_of_application(own, params, searched))
    return cfg.with_values({PARAMS: starts}), space


# The values that a loop returns


def loop_objectives(cfg: StudyConfig) -> tuple[Metric, *tuple[ObjectiveValue, ...]]:
    """Returns the values that a loop returns, under the names that `objective.metric` gives."""
    (name, direction), *further = _named_objectives(cfg["objective"])
    bounds = METRICS[name].bounds if name in METRICS else ANYTHING
    metric = Metric(name, direction, _no_score, bounds=bounds)
    return metric, *(ObjectiveValue(name, direction) for name, direction in further)


def loop_limits(cfg: StudyConfig) -> list[Condition]:
    """Returns the limits of what a loop may report by `run.cost`, from `objective.constraints`."""
    limits = parse_limits(value_at(cfg, "objective.constraints"), None)
    _check_names("objective.constraints", [limit.name for limit in limits])
    return limits


def _named_objectives(objective: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns the names and directions of what a loop returns, the metric first."""
    objective = plain(objective, "objective")
    names, directions = (
        value if isinstance(value, list) else [value]
        for value in (objective["metric"], objective["direction"])
    )
    if not names or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise ConfigError(
            "objective.metric must be a name for the value, or a list of different names, since "
            f"the function returns the values themselves; got {objective['metric']}"
        )
    if len(directions) != len(names) or any(value not in DIRECTIONS for value in directions):
        each = f", for each of {', '.join(names)}" if len(names) > 1 else ""
        raise ConfigError(
            f"objective.direction must be {' or '.join(DIRECTIONS)}{each}, since a function "
            f"does not say which is better; got {format_scalar(objective['direction'])}"
        )
    _check_names("objective.metric", names[1:])
    return [*zip(names, directions, strict=True)]


def _check_names(key: str, names: Sequence[str]) -> None:
    """Raises ConfigError if a cost's name is taken by something stored with a trial."""
    taken = [name for name in names if name in OF_TRIALS]
    refuse([f"{key}: {name} is reserved; choose another name" for name in taken])


def _no_score(outputs: object, targets: object) -> None:
    raise AssertionError("a custom loop returns the value itself")
