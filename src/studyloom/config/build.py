"""Builds the object that a section of the config names in its `_target_`."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from studyloom.config.references import is_within
from studyloom.config.trust import check_section
from studyloom.config.values import copy_value, describe_error, node_at
from studyloom.error_display import wants_tracebacks
from studyloom.errors import ConfigError, Interrupted, list_messages, raise_if_any
from studyloom.text import nearest
from studyloom.user_code.importing import IS_DEFINED_ELSEWHERE, find_member
from studyloom.user_code.pickled import MAIN

Target = Callable[..., Any]  # a class or function that a section names
SETTINGS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")  # as Hydra has them


def plain(section: object, key: str) -> dict[str, Any]:
    """Returns a copy of a section as plain Python.

    Raises:
        ConfigError: the section, or a value in it, is missing or cannot be resolved.
    """
    _check_for_missing(section, key)
    if not isinstance(section, Mapping):
        raise ConfigError(f"{key} must be a section; got {section}")
    return dict(copy_value(dict(section), key))


def _check_for_missing(value: object, key: str) -> None:
    """Raises ConfigError if a value, or one within it, is `???`."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_for_missing(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _check_for_missing(item, f"{key}[{position}]")
    elif isinstance(value, str) and value == MISSING:
        raise ConfigError(f"Missing mandatory value: {key}")


def find_target(section: object, key: str) -> Any:
    """Imports the class or function that a section names by `_target_`.

    Args:
        key: the section's own key, for errors.

    Raises:
        ConfigError: there is no such class or function, or an untrusted config has named it.
    """
    _check_for_missing(section, key)
    check_section(key, section)
    if not isinstance(section, Mapping) or "_target_" not in section:
        raise ConfigError(f"{key} must have a _target_, the dotted name of a class or function")
    name = section["_target_"]
    try:
        target: Target = find_member(name)
        if not callable(target):
            raise TypeError(f"it is a {type(target).__name__}, which cannot be called")
    except ConfigError:  # of a module that ends its process, or runs a study, when it is imported
        raise
    except AttributeError as error:
        if name.startswith(MAIN):
            raise ConfigError(f"{key}._target_: {name} {IS_DEFINED_ELSEWHERE}") from error
        suggestion = nearest(error.name, dir(error.obj))
        raise ConfigError(f"{key}._target_={name}: {describe_error(error)}{suggestion}") from error
    except Exception as error:  # whatever a user's module raises when it is imported
        raise ConfigError(f"{key}._target_={name}: {describe_error(error)}") from error
    return target


def build(section: object, key: str, **offered: object) -> Any:
    """Calls a section's `_target_` with the section's other keys as arguments.

    Sections within the section are built first, as Hydra's `instantiate` would, which takes 3 ms
    for each. But a section that the target's attribute `DEFERRED` names is passed as a function
    without arguments, which builds the section when it is called. With `_partial_: true` the result
    is a function that takes the missing arguments.

    Args:
        key: the section's own key, for errors.
        offered: further arguments. Each is passed on if the target has a parameter of its name, and
            the section has no value for it.

    Raises:
        ConfigError: there is no such `_target_`, it is not trusted, or it raised an OSError.
    """
    return call_target(find_target(section, key), section, key, **offered)


def call_target(target: Target, section: object, key: str, **offered: object) -> Any:
    """Calls a class or function with the other keys of a section as arguments; see `build`.

    Args:
        target: the class or function that the section names by `_target_`, or another one to call
            instead.
        key: the section's own key, for errors.
        offered: further arguments. Each is passed on if the target has a parameter of its name, and
            the section has no value for it.
    """
    values = plain(section, key)
    arguments = _select_accepted(offered, target, values)
    # The names of the sections that the target builds itself, once it needs them. A target may be
    # any class or function; only `data.Datasets` has this attribute.
    deferred_names = getattr(target, "DEFERRED", ())
    builds_inner_sections = values.get("_recursive_", True)  # as in Hydra
    for name, value in values.items():
        if name in SETTINGS:
            continue
        inner_key = f"{key}.{name}"
        if name in deferred_names and _is_section(value) and not value.get("_partial_"):
            arguments[name] = functools.partial(build, value, inner_key)
        elif builds_inner_sections:
            arguments[name] = _build_within(value, inner_key)
        else:
            arguments[name] = value
    positional = []
    for value in values.get("_args_", ()):
        positional.append(_build_within(value, f"{key}._args_"))
    if values.get("_partial_"):
        return functools.partial(target, *positional, **arguments)
    try:
        return target(*positional, **arguments)
    except OSError as error:  # such as a missing file that the section names
        raise ConfigError(f"{key}: {describe_error(error)}") from error


def _select_accepted(
    offered: Mapping[str, object], target: Target, values: Mapping[str, object]
) -> dict[str, object]:
    """Returns the offered arguments that a target has parameters for.

    Args:
        values: the section of the target, whose values come first.
    """
    arguments: dict[str, object] = {}
    if not offered:
        return arguments
    parameters = inspect.signature(target).parameters
    for name, value in offered.items():
        if name in parameters and name not in values:
            arguments[name] = value
    return arguments


ANY = inspect.Parameter("any", inspect.Parameter.VAR_KEYWORD)  # takes each name, as `**any` does


def find_section(config: Mapping[str, object], key: str) -> Mapping[str, object] | None:
    """Returns the section to whose `_target_` a key is an argument: `model` for `model.width`.

    Keys of `params` are arguments of the custom training loop, which is the `_target_` of the
    section `objective`.

    Returns:
        None if the section of the key has no `_target_`.
    """
    section_key = key.rpartition(".")[0]
    if is_within(section_key, "params"):
        section_key = f"objective{section_key.removeprefix('params')}"
    section = node_at(config, section_key)
    if not isinstance(section, Mapping) or section.get("_target_") is None:
        return None
    return section


def find_parameter(config: Mapping[str, object], key: str) -> inspect.Parameter | None:
    """Returns the parameter that a key would set: `width` of the network for `model.width`.

    Returns:
        The parameter; if the target has none of this name, its `**kwargs`. None if the target has
        neither, or if the section has no target. ANY if the target cannot be imported: that error
        is reported when the section is built.
    """
    section = find_section(config, key)
    if section is None:
        return None
    try:
        parameters = inspect.signature(find_target(section, key)).parameters
    except Exception:  # a user's module may raise anything
        return ANY
    name = key.rpartition(".")[2]
    if name in parameters:
        return parameters[name]
    for parameter in parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            return parameter
    return None


def _is_section(value: object) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _build_within(value: object, key: str) -> object:
    """Copies a value of a section, and builds the sections in it."""
    if _is_section(value):
        return build(value, key)
    if isinstance(value, Mapping):
        return {name: _build_within(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [_build_within(item, f"{key}[{position}]") for position, item in enumerate(value)]
    return value


@dataclass
class ErrorCollector:
    """Collects the errors of several steps, to report them together."""

    errors: list[str] = field(default_factory=list)

    def __call__(self, make: Callable[[], object]) -> Any:
        """Calls a function and returns its result; if it fails, collects its errors.

        Returns:
            None if it fails.

        Raises:
            Exception: as `make` raised it, if it is not a ValueError and the user wants to see
                tracebacks.
        """
        try:
            return make()
        except Interrupted:
            raise
        except BaseException as error:  # SystemExit too: the user's code may end its process
            if wants_tracebacks() and not isinstance(error, ValueError):
                raise
            self.errors += list_messages(error, describe_error(error))

    def check(self) -> None:
        """Raises ConfigError with the errors collected so far, each once."""
        raise_if_any(self.errors)
