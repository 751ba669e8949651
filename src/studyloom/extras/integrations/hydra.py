"""An existing Hydra application as the objective of a study, with its own configuration."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from studyloom.config.compose import application, find_config, isolated_hydra
from studyloom.config.overrides import explain_key
from studyloom.config.values import describe_error, value_at
from studyloom.errors import UndefinedMetric
from studyloom.space.tree import Space
from studyloom.text import nearest
from studyloom.user_code.digests import code_digests
from studyloom.user_code.importing import find_member


@dataclass
class Hydra:
    """Calls a function of an application with the application's config, in which values are set.

    Args:
        config: its primary config, as seen from the folder of the study's config.
        call: the function, such as `src.train.train`, which may be decorated with `hydra.main`. A
            parameter that is called `run` gets the run of the trial.
        value: the key of the value in the mapping that the function returns; None if it returns the
            value itself. Of a tuple, the first counts.
        seed: the key of its config that gets the seed of the trial; None for none.
    """

    config: str
    call: str
    value: str | None = None
    seed: str | None = None
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = find_config("objective.config", self.config)

    def check(self, config: DictConfig, space: Space) -> list[str]:
        """Returns the errors in the function: it does not exist, or takes other arguments."""
        try:
            function = self._function()
            inspect.signature(function).bind(None, **self._arguments(function, None))
        except Exception as error:  # whatever the application raises when it is imported
            near = nearest(error.name, dir(error.obj)) if isinstance(error, AttributeError) else ""
            return [f"objective.call={self.call}: {describe_error(error)}{near}"]
        problem = None if self.seed is None else explain_key(self.seed, self.composed())
        return [f"objective.seed={self.seed}: {problem}"] if problem else []

    def code(self) -> dict[str, str]:
        """Returns the digest of the module of the function."""
        return code_digests([{"_target_": self.call}])

    def composed(self) -> DictConfig:
        """Returns the config of the application, whose keys the space names."""
        with contextlib.suppress(Exception):  # `check` reports it
            self._function()  # its module may register resolvers
        with application(self.path, {}) as config:
            return config

    def __call__(self, config: DictConfig, run: Any) -> Any:
        """Calls the function.

        Raises:
            UndefinedMetric: it did not return the value.
        """
        function, values = self._function(), OmegaConf.create(value_at(config, "params") or {})
        if self.seed is not None:
            OmegaConf.update(values, self.seed, run.seed)
        with application(self.path, values, run.dir) as own:
            result = function(own, **self._arguments(function, run))
        return pick(result, self.value, self.call)

    def _function(self) -> Callable[..., Any]:
        with isolated_hydra():
            function: Any = find_member(self.call)
        # The decorator would read a command line, and return nothing.
        decorated = getattr(function, "__globals__", {}).get("__name__") == "hydra.main"
        return function.__wrapped__ if decorated else function  # type: ignore[no-any-return]

    @staticmethod
    def _arguments(function: Callable[..., Any], run: Any) -> dict[str, Any]:
        return {"run": run} if "run" in inspect.signature(function).parameters else {}


def pick(result: Any, key: str | None, call: str) -> Any:
    """Returns the value of what a function returned: that itself, or what a mapping has at a key.

    Args:
        result: of a tuple, the first is meant.
        key: None if it is the value itself.
        call: the name of the function.

    Raises:
        UndefinedMetric: it is no mapping with that key, although there is a key, or it is a mapping
            although there is no key.
    """
    first = result[0] if isinstance(result, tuple) and result else result
    if key is None and not isinstance(first, Mapping):
        return first
    keys = [*map(str, first)] if isinstance(first, Mapping) else []
    if key not in keys:
        shown = f"a mapping with {', '.join(keys)}" if keys else repr(first)
        where = "objective.value is not set" if key is None else f"objective.value={key}: not there"
        raise UndefinedMetric(f"{where}; {call} returned {shown}{nearest(key, keys)}")
    return first[key]
