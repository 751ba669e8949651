"""TODO config.compose."""

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

    Overrides of the user's that name a key which the other choice does not have (`model.hidden` when the trial chose a
    CNN) spoke of the user's own choice and are left out.
    """

    config_name: str
    overrides: tuple[str, ...]
    choices: Mapping[str, str]
    _cache: dict[frozenset[tuple[str, str]], DictConfig] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def from_hydra(cls) -> "Composer":
        """The composer of the command that is running, inside `hydra_main`."""
        config = HydraConfig.get()
        choices = {str(group): str(option) for group, option in config.runtime.choices.items()}
        # As typed: ${oc.env:…} in an override is neither resolved here nor shown.
        overrides: Any = OmegaConf.to_container(config.overrides.task, resolve=False)
        return cls(str(config.job.config_name), tuple(overrides), choices)

    def keep(self, config: DictConfig) -> None:
        """Takes the user's own config as it was composed, which need not be composed again."""
        self._cache[frozenset()] = config

    def compose(self, choices: Mapping[str, str]) -> DictConfig:
        """The config under other choices; composed once (about 70 ms) and shared, so copy it before setting values.

        Raises:
            ConfigError: an option that does not compose.
        """
        other = {
            group: option for group, option in choices.items() if self.choices.get(group) != option
        }
        wanted = frozenset(other.items())
        if wanted not in self._cache:
            groups = [f"{group}={option}" for group, option in other.items()]
            own = [override for override in self.overrides if override_key(override) not in other]
            inside = [
                override
                for override in own
                if override_key(override).startswith(tuple(f"{group}/" for group in other))
            ]
            try:
                config = hydra.compose(
                    self.config_name, [o for o in own if o not in inside] + groups
                )
                lost = [
                    o
                    for o in inside
                    if re.match(r"\+\w", o)
                    or not has_key(config, override_key(o).replace("/", "."))
                ]
                if len(lost) < len(inside):
                    config = hydra.compose(
                        self.config_name, [o for o in own if o not in lost] + groups
                    )
            except Exception as error:
                raise ConfigError(
                    [f"{', '.join(groups)}: {describe_compose_error(error)}"]
                ) from error
            self._cache[wanted] = config
        return self._cache[wanted]


def override_key(override: str) -> str:
    """What an override sets, as a path: `model/hidden` for `++model.hidden=[8]`."""
    return override.partition("=")[0].lstrip("+~").replace(".", "/")
