"""Composes the config of the running command again, under other group choices."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from studyloom.config.overrides import describe_compose_error
from studyloom.config.values import has_key
from studyloom.errors import ConfigError


@dataclass(frozen=True)
class Composer:
    """Composes the user's own command again with other group choices.

    The user's overrides are kept, except those of a key that the other option does not have:
    `model.hidden=[8]` is left out when a trial chooses a CNN.

    Attributes:
        config_name: the name of the primary config.
        overrides: the user's overrides, as typed.
        choices: the option of each group in the user's own config.
    """

    config_name: str
    overrides: tuple[str, ...]
    choices: Mapping[str, str]
    _cache: dict[frozenset[tuple[str, str]], DictConfig] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def from_hydra(cls) -> "Composer":
        """Returns the composer of the running command; call it inside `hydra_main`."""
        config = HydraConfig.get()
        choices = {str(group): str(option) for group, option in config.runtime.choices.items()}
        # As typed: ${oc.env:…} in an override is neither resolved here nor shown.
        overrides: Any = OmegaConf.to_container(config.overrides.task, resolve=False)
        return cls(str(config.job.config_name), tuple(overrides), choices)

    def keep(self, config: DictConfig) -> None:
        """Caches the user's own config, so that it is not composed again."""
        self._cache[frozenset()] = config

    def compose(self, choices: Mapping[str, str]) -> DictConfig:
        """Composes the config under other choices.

        Each config is composed once (about 70 ms) and shared, so copy it before setting values.

        Args:
            choices: the option of each Hydra group; other groups keep the user's choice.

        Raises:
            ConfigError: an option that does not compose.
        """
        changed = {
            group: option for group, option in choices.items() if self.choices.get(group) != option
        }
        cache_key = frozenset(changed.items())
        if cache_key not in self._cache:
            try:
                self._cache[cache_key] = self._compose(changed)
            except Exception as error:
                named = ", ".join(f"{group}={option}" for group, option in changed.items())
                raise ConfigError([f"{named}: {describe_compose_error(error)}"]) from error
        return self._cache[cache_key]

    def _compose(self, changed: Mapping[str, str]) -> DictConfig:
        """Composes without the overrides inside the changed groups, then with those that fit."""
        groups = [f"{group}={option}" for group, option in changed.items()]
        below = tuple(f"{group}/" for group in changed)
        kept = [override for override in self.overrides if override_key(override) not in changed]
        inside = [override for override in kept if override_key(override).startswith(below)]
        outside = [override for override in kept if override not in inside]
        config = hydra.compose(self.config_name, [*outside, *groups])
        dropped = [
            override
            for override in inside
            if re.match(r"\+\w", override)
            or not has_key(config, override_key(override).replace("/", "."))
        ]
        if len(dropped) < len(inside):
            fitting = [override for override in kept if override not in dropped]
            config = hydra.compose(self.config_name, [*fitting, *groups])
        return config


def override_key(override: str) -> str:
    """Returns what an override sets, as a path: `model/hidden` for `++model.hidden=[8]`."""
    return override.partition("=")[0].lstrip("+~").replace(".", "/")
