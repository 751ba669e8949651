"""An existing Hydra application as the objective of a study, with its own configuration."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studyloom.config.compose import application, find_config, isolated_hydra
from studyloom.config.overrides import explain_key
from studyloom.config.values import describe_error, value_at, with_values
from studyloom.errors import UndefinedMetric
from studyloom.objectives.loop_run import Run
from studyloom.objectives.user_functions import ConfiguredAdapter
from studyloom.space.tree import Space
from studyloom.text import nearest
from studyloom.user_code.digests import compute_code_digests
from studyloom.user_code.importing import find_member


@dataclass
class Hydra(ConfiguredAdapter):
    """Calls a function of an application with the application's config, in which values are set.

    Args:
        config: its primary config, as seen from the folder of the study's config.
        call: the function, such as `src.train.train`, which may be decorated with `hydra.main`. A
            parameter that is called `run` gets the run of the trial.
        value: the key of the value in the mapping that the function returns; None if it returns the
            value itself. If it returns a tuple, the first item counts.
        seed: the key of its config that gets the seed of the trial; None for none.
    """

    config: str
    call: str
    value: str | None = None
    seed: str | None = None
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = find_config("objective.config", self.config)

    def check(self, config: Mapping[str, object], space: Space) -> list[str]:
        """Returns the error in `call` or `seed`, if there is one.

        The function may not exist, or not take the config as its only argument besides `run`.
        """
        try:
            function = self._import_function()
            # Binding looks only at the number and names of arguments, not at their values.
            run_argument = _run_argument(function, run=None)
            inspect.signature(function).bind(None, **run_argument)
        except Exception as error:  # whatever the application raises when it is imported
            hint = ""
            if isinstance(error, AttributeError):
                hint = nearest(error.name, dir(error.obj))
            return [f"objective.call={self.call}: {describe_error(error)}{hint}"]
        if self.seed is not None:
            problem = explain_key(self.seed, self.compose_config())
            if problem:
                return [f"objective.seed={self.seed}: {problem}"]
        return []

    def code(self) -> dict[str, str]:
        """Returns the digest of the module of the function."""
        return compute_code_digests([{"_target_": self.call}])

    def compose_config(self) -> Mapping[str, Any]:
        """Returns the config of the application, whose keys the space names."""
        with contextlib.suppress(Exception):  # `check` reports it
            self._import_function()  # its module may register resolvers
        with application(self.path, {}) as config:
            return config

    def __call__(self, config: Mapping[str, object], run: Run) -> Any:
        """Calls the function with the config of a trial, and returns the trial's value.

        Raises:
            UndefinedMetric: the function did not return the value.
        """
        function = self._import_function()
        values = value_at(config, "params") or {}
        if self.seed is not None:
            values = with_values(values, {self.seed: run.seed})
        with application(self.path, values, run.dir) as application_config:
            run_argument = _run_argument(function, run)
            result = function(application_config, **run_argument)
        return pick_value(result, self.value, self.call)

    def _import_function(self) -> Callable[..., Any]:
        """Imports the function of the application, without the decorator `hydra.main`.

        The decorated function would read a command line, and return nothing.
        """
        with isolated_hydra():
            function: Any = find_member(self.call)
        # The decorator makes a new function, whose global variables are those of Hydra's module.
        module = getattr(function, "__globals__", {}).get("__name__")
        if module == "hydra.main":
            function = function.__wrapped__
        return function  # type: ignore[no-any-return]


def _run_argument(function: Callable[..., Any], run: Run | None) -> dict[str, Run | None]:
    """Returns the run as a keyword argument; none if the function has no parameter `run`."""
    if "run" in inspect.signature(function).parameters:
        return {"run": run}
    return {}


def pick_value(result: Any, key: str | None, call: str) -> Any:
    """Returns the value in the result of a function: the result itself, or an item of a mapping.

    Args:
        result: what the function returned; only the first item of a tuple counts.
        key: the key of the value in the mapping; None if the result is the value itself.
        call: the name of the function.

    Raises:
        UndefinedMetric: there is a key, and the result is not a mapping with that key; or there is
            no key, and the result is a mapping.
    """
    if isinstance(result, tuple) and result:
        result = result[0]
    if not isinstance(result, Mapping):
        if key is None:
            return result
        raise UndefinedMetric(f"objective.value={key}: not there; {call} returned {result!r}")
    if key in result:
        return result[key]
    keys = [str(name) for name in result]
    problem = f"objective.value={key}: not there"
    if key is None:
        problem = "objective.value is not set"
    returned = repr(result)
    if keys:
        returned = f"a mapping with {', '.join(keys)}"
    raise UndefinedMetric(f"{problem}; {call} returned {returned}{nearest(key, keys)}")
