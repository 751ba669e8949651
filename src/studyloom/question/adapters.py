"""Adapters: objectives that know more of themselves than how they are called.

A section `objective` may build an object. It is called as a function of the user's own is, and may
have these methods, each of which a plain function does without:

* `check(config, space)` returns a line for each mistake that can be seen before trial 0;
* `code()` returns digests of source files that decide a value, by `code.NAME`;
* `composed()` returns a configuration of its own. The names of the space are the keys of that one,
  and the section `params` holds what is set in it: the values of a trial, and the user's own.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from studyloom.config.build import find_target
from studyloom.config.compose import Composer
from studyloom.config.overrides import explain_key
from studyloom.config.values import value_at, with_values
from studyloom.errors import ConfigError
from studyloom.question.jobs import build_function
from studyloom.question.question import Question, flatten
from studyloom.space.language import parse_space

PARAMS = "params"


class AdaptedQuestion(Question):
    """A question whose objective may be an adapter; see `Question` for its parameters."""

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
        given = {key: PARAMS for key, _ in flatten(params)} if params else {}
        named = {leaf.name: "space" for leaf in leaves}
        mistakes = [
            f"{section}.{name}: {problem}"
            for name, section in (given | named).items()
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
