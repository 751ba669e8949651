"""Builds the object that a section of the config names in its `_target_`."""

import copy
import functools
import inspect
import json
from importlib import import_module
from importlib.util import find_spec
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from studyloom.config import foreign, trust
from studyloom.config.values import describe_error, without_key
from studyloom.errors import ConfigError
from studyloom.text import nearest

MOST = 256  # sections that are remembered
BOUND: dict[str, tuple[Any, functools.partial[Any]]] = {}  # by the section as JSON


def find_target(section: DictConfig) -> Any:
    """Returns the class or function that a section names by `_target_`; does not call it.

    Raises:
        ConfigError: as for `build`.
    """
    key = section._get_full_key(None)
    if (guard := foreign.active()) is not None and guard.met:
        # The whole section, since a config from elsewhere may change arguments of one's own code.
        plain = OmegaConf.to_container(section, resolve=True)
        trust.check_targets({key: plain}, foreign.packages_of(guard.agreed))
    if "_target_" not in section:
        raise ConfigError([f"{key} must have a _target_, the dotted name of a class or function"])
    target_name = section["_target_"]
    try:
        return _resolve(target_name)
    except Exception as error:  # whatever a user's module raises when it is imported
        hint = nearest(error.name, dir(error.obj)) if isinstance(error, AttributeError) else ""
        raise ConfigError(
            [f"{key}._target_={target_name}: {describe_error(error)}{hint}"]
        ) from error


def _resolve(name: str) -> Any:
    """Imports what a dotted name says; `resolve_name` hides why a module cannot be imported."""
    try:
        return resolve_name(name)
    except AttributeError as error:
        if isinstance(error.obj, ModuleType) and hasattr(error.obj, "__path__"):
            module = f"{error.obj.__name__}.{error.name}"
            if find_spec(module) is not None:
                import_module(module)
        raise


def build(section: DictConfig, **offered: Any) -> Any:
    """Builds what a section's `_target_` makes of the section's arguments.

    Args:
        section: a `_target_` with its arguments; with `_partial_: true` the result is a callable
            that waits for the others.
        offered: further arguments, passed on if the target has a parameter of that name and the
            section has no value for it.

    What the target names in its attribute `DEFERRED` are sections that it gets as functions
    without arguments, and that are built when it calls them.

    Raises:
        ConfigError: the section has no `_target_`, or one that cannot be imported, or the primary
            config comes from elsewhere and the target is not trusted.
    """
    target = find_target(section)
    accepted = inspect.signature(target).parameters
    bound = {
        name: value for name, value in offered.items() if name in accepted and name not in section
    }
    for name in getattr(target, "DEFERRED", ()):
        inner = section.get(name)
        if isinstance(inner, DictConfig) and "_target_" in inner and not inner.get("_partial_"):
            bound[name] = functools.partial(build, inner)
            section = without_key(section, name)
    # We bind these arguments ourselves, since Hydra would turn them into config nodes.
    make, arguments = _bind(section, target)
    if section.get("_partial_"):
        # Hydra's wrapper would inspect each call, which takes 0.08 ms of every training step.
        return functools.partial(make.func, *make.args, **arguments, **bound)
    return make(**arguments, **bound)


def _bind(section: DictConfig, target: Any) -> tuple[functools.partial[Any], dict[str, Any]]:
    """Has Hydra bind a section's arguments to its target, unless it has done so before.

    Hydra takes 3 ms, and the checks before trial 0 build the same sections again and again. A
    section within which something is built, such as a list of layers, is bound anew.

    Returns:
        The target with its arguments, as Hydra makes it; and its arguments by name, of the
        caller's own.
    """
    plain = OmegaConf.to_container(section, resolve=True)
    try:
        key = json.dumps(plain)
    except TypeError:  # a value that is no plain one
        key = ""
    known, make = BOUND.get(key, (None, None))
    if make is None or known is not target:  # the module may have been loaded again
        make = instantiate(section, _convert_="all", _partial_=True)
        if key.count('"_target_"') == 1 and not make.args:
            if len(BOUND) >= MOST:
                BOUND.clear()
            BOUND[key] = target, make
    return make, copy.deepcopy(make.keywords) if key in BOUND else make.keywords
