"""Composes the config of the running command again, and that of another Hydra application."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict

from studyloom.config import foreign
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


@contextmanager
def own_world() -> Iterator[None]:
    """Gives the body what it would have as a program of its own; ours is back afterwards.

    That is a Hydra which is not initialised and does not know our groups, and a command line
    without arguments. So code may use `hydra.main`, `hydra.initialize` and argparse itself.
    """
    arguments, hydra_config = sys.argv, HydraConfig.instance()
    config, given = hydra_config.cfg, list(arguments)
    try:
        with restored_hydra(), foreign.unguarded():
            sys.argv = given[:1]
            yield
    finally:
        sys.argv, arguments[:], hydra_config.cfg = arguments, given, config


@contextmanager
def restored_hydra() -> Iterator[None]:
    """Gives the body a Hydra that is not initialised, and the caller's own back afterwards."""
    app, runtime, version = GlobalHydra.instance(), JobRuntime.instance(), VersionBase.instance()
    before = app.hydra, runtime.conf.copy(), version.version_base
    app.clear()
    try:
        yield
    finally:
        GlobalHydra.set_instance(app)  # `hydra.initialize` leaves a copy in its place
        app.hydra, runtime.conf, version.version_base = before


def find_config(key: str, name: str) -> Path:
    """Finds a config as seen from the folder of the study's own, or else from where one is.

    Args:
        key: that names it, for the error.
        name: the path.

    Raises:
        ConfigError: there is no such file.
    """
    sources = GlobalHydra.instance().config_loader().get_search_path().get_path()
    main = next(source.path for source in sources if source.provider == "main")
    folders = (Path(str(main).removeprefix("file://")), Path.cwd())
    for folder in folders:
        for path in (folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                return path.resolve()
    raise ConfigError(
        [f"{key}={name}: there is no such file, as seen from {folders[0]} or from {folders[1]}"]
    )


@contextmanager
def application(
    config: Path, values: Mapping[str, Any], output: Path | None = None
) -> Iterator[DictConfig]:
    """Composes the primary config of a Hydra application as its own command does.

    In the body, which is in a world of its own, interpolations such as `${hydra:job.name}` have the
    values that they would have there.

    Args:
        config: the file.
        values: nested mappings, which are set in it.
        output: the folder of `hydra.runtime.output_dir`; None leaves it out.

    Raises:
        ConfigError: it does not compose.
    """
    with own_world(), hydra.initialize_config_dir(str(config.parent), version_base=None):
        try:
            composed = hydra.compose(config.stem, return_hydra_config=True)
            with open_dict(composed):
                if output is not None:
                    composed.hydra.runtime.output_dir = str(output)
                HydraConfig.instance().set_config(composed)
                del composed["hydra"]
            composed.merge_with(values)
        except Exception as error:
            raise ConfigError([f"{config}: {describe_compose_error(error)}"]) from error
        # The application may initialise Hydra itself.
        GlobalHydra.instance().clear()
        yield composed
