"""Composes configs with Hydra again: with other options, or as a run directory's command did."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from studyloom.config import trust
from studyloom.config.config_sources import register
from studyloom.config.overrides import (
    VERSION_BASE,
    Override,
    describe_compose_error,
    group_options,
)
from studyloom.config.runs import config_folders, read_written, untrusted_run
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import as_yaml, has_key, value_at, written_values
from studyloom.errors import ConfigError
from studyloom.files import is_trusted, mark_trusted, write_whole

Choices = frozenset[tuple[str, str]]  # groups, each with the option that is chosen for it
OPTIMIZER_GROUPS = "optimizer.groups"  # a key of every optimizer: no argument of its class


@dataclass(frozen=True)
class Composer:
    """Composes the user's own command again with other group choices.

    The user's overrides are kept, except those of a key that the other option does not have, or
    that they add: `model.hidden=[8]` is left out when a trial chooses a CNN. `optimizer.groups`,
    which every optimizer takes, is kept.

    Args:
        choices: the user's own option of each group.
        base: the user's own config, as Hydra returned it.
        complete: completes a config that Hydra returned under some choices.
    """

    config_name: str
    overrides: tuple[Override, ...]
    choices: Mapping[str, str]
    base: StudyConfig | None = None
    complete: Callable[[StudyConfig, Mapping[str, str]], StudyConfig] = lambda config, _: config
    # Configs by the choices that differ from the user's own: completed ones, and those of Hydra.
    _completed: dict[Choices, StudyConfig] = field(default_factory=dict, repr=False, compare=False)
    _composed: dict[Choices, StudyConfig] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_hydra(cls) -> "Composer":
        """Returns the composer of the running command; call it inside `hydra_main`."""
        config = HydraConfig.get()
        choices = {str(group): str(option) for group, option in config.runtime.choices.items()}
        # As typed: ${oc.env:…} in an override is neither resolved here nor shown.
        arguments = written_values(config.overrides.task)
        overrides = tuple(Override.parse(argument) for argument in arguments)
        return cls(str(config.job.config_name), overrides, choices)

    def options(self, group: str) -> list[str]:
        """Returns the options of a config group; none if there is no such group."""
        return group_options(group)

    def keep(self, config: StudyConfig) -> None:
        """Caches the user's own config, so that Hydra need not build it again."""
        self._completed[frozenset()] = config

    def compose(self, choices: Mapping[str, str]) -> StudyConfig:
        """Composes the config under other choices, by group; ConfigError if that is not possible.

        Hydra composes each option once (about 70 ms); several options are merged.
        """
        changed = {}
        for group, option in choices.items():
            if self.choices.get(group) != option:
                changed[group] = option
        cache_key = frozenset(changed.items())
        if cache_key not in self._completed:
            try:
                composed = self._merge_options(changed)
                self._completed[cache_key] = self.complete(composed, {**self.choices, **changed})
            except Exception as error:
                assignments = ", ".join(_assignments(changed))
                raise ConfigError(f"{assignments}: {describe_compose_error(error)}") from error
        return self._completed[cache_key]

    def _merge_options(self, changed: Mapping[str, str]) -> StudyConfig:
        """Merges the sections of groups, each composed with its own options.

        Hydra composes them together if an option changes more than the section of its group.
        """
        by_section: dict[str, dict[str, str]] = {}
        for group, option in changed.items():
            by_section.setdefault(group.partition("/")[0], {})[group] = option
        if self.base is None or len(by_section) < 2:
            return self._compose_once(changed)
        sections: dict[str, StudyConfig] = {}
        for section, options in by_section.items():
            config = self._compose_once(options)
            if not config.differs_only_in(section, self.base):
                return self._compose_once(changed)
            sections[section] = config
        return self.base.with_sections(sections)

    def _compose_once(self, changed: Mapping[str, str]) -> StudyConfig:
        """Composes the config under changed choices, or returns it if it was composed before."""
        cache_key = frozenset(changed.items())
        if cache_key not in self._composed:
            self._composed[cache_key] = StudyConfig.of(self._compose(changed))
        return self._composed[cache_key]

    def file_of(self, section: str, choices: Mapping[str, str]) -> Path | None:
        """Returns the file of the study's config folder that defines a section."""
        option = choices.get(section, self.choices.get(section))
        name = self.config_name
        if option is not None:
            name = f"{section}/{option}"
        file = main_folder() / f"{name}.yaml"
        if not file.is_file():
            return None
        return file

    def _compose(self, changed: Mapping[str, str]) -> DictConfig:
        """Composes without the overrides within the changed groups, then with those that fit.

        Only a composed config shows which keys the other options have.
        """
        keys = [group.replace("/", ".") for group in changed]
        overrides = [override for override in self.overrides if override.key not in keys]
        within = [override for override in overrides if _is_of_option(override, keys)]
        config = self._compose_with(_without(overrides, within), changed)
        unfit = []
        for override in within:
            if override.prefix == "+" or not has_key(config, override.key):
                unfit.append(override)
        if len(unfit) == len(within):
            return config
        return self._compose_with(_without(overrides, unfit), changed)

    def _compose_with(
        self, overrides: Sequence[Override], changed: Mapping[str, str]
    ) -> DictConfig:
        arguments = [override.text for override in overrides]
        return hydra.compose(self.config_name, arguments + _assignments(changed))


def _assignments(choices: Mapping[str, str]) -> list[str]:
    """Returns group choices as overrides."""
    return [f"{group}={option}" for group, option in choices.items()]


def _is_of_option(override: Override, keys: Sequence[str]) -> bool:
    """Returns whether an override sets a key of one option, which another one may not have.

    Args:
        keys: the keys of the groups that get another option.
    """
    adds = "+" in override.prefix
    if adds and override.is_within(OPTIMIZER_GROUPS):
        return False
    return override.is_within(*keys)


def _without(overrides: Sequence[Override], removed: Sequence[Override]) -> list[Override]:
    return [override for override in overrides if override not in removed]


# The state of Hydra


@contextmanager
def isolated_hydra() -> Iterator[None]:
    """Gives the body an uninitialized Hydra and an empty command line, and restores ours.

    That Hydra does not know our groups. So code in the body may use `hydra.main`,
    `hydra.initialize` and argparse itself.
    """
    command_line = sys.argv
    arguments = list(command_line)
    hydra_config = HydraConfig.instance()
    config = hydra_config.cfg
    try:
        with restored_hydra(), trust.in_force(None):
            sys.argv = arguments[:1]
            yield
    finally:
        sys.argv = command_line
        command_line[:] = arguments
        hydra_config.cfg = config


@contextmanager
def restored_hydra() -> Iterator[None]:
    """Clears Hydra's state for the body, and restores it afterwards."""
    app = GlobalHydra.instance()
    hydra_of_app = app.hydra
    runtime = JobRuntime.instance()
    runtime_config = runtime.conf.copy()
    version = VersionBase.instance()
    version_base = version.version_base
    app.clear()
    try:
        yield
    finally:
        GlobalHydra.set_instance(app)  # `hydra.initialize` leaves a copy instead
        app.hydra = hydra_of_app
        runtime.conf = runtime_config
        version.version_base = version_base


def main_folder() -> Path:
    """Returns the folder of the study's own configs."""
    for source in GlobalHydra.instance().config_loader().get_search_path().get_path():
        if source.provider == "main":
            return Path(str(source.path).removeprefix("file://"))
    raise LookupError("Hydra is not initialized with a folder of configs")


def find_config(key: str, name: str) -> Path:
    """Finds a config below the study's config folder, or else below the working directory.

    Raises:
        ConfigError: there is no such file.
    """
    config_folder = main_folder()
    working_folder = Path.cwd()
    for folder in (config_folder, working_folder):
        for path in (folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                return path.resolve()
    raise ConfigError(
        f"{key}={name}: there is no such file, as seen from {config_folder} "
        f"or from {working_folder}"
    )


# The user's own Hydra applications


@contextmanager
def application(
    config: Path, values: Mapping[str, object], output: Path | None = None
) -> Iterator[DictConfig]:
    """Composes the primary config of a Hydra application as its own command does.

    In the body, in an `isolated_hydra`, interpolations such as `${hydra:job.name}` have the
    values that they would have there.

    Args:
        values: nested mappings that are set in it.
        output: the folder of `hydra.runtime.output_dir`.
    """
    with isolated_hydra(), hydra.initialize_config_dir(str(config.parent), **VERSION_BASE):
        try:
            composed = hydra.compose(config.stem, return_hydra_config=True)
            with open_dict(composed):
                if output is not None:
                    composed.hydra.runtime.output_dir = str(output)
                HydraConfig.instance().set_config(composed)
                del composed["hydra"]
            composed.merge_with(values)
        except Exception as error:
            raise ConfigError(f"{config}: {describe_compose_error(error)}") from error
        # The application may initialize Hydra itself.
        GlobalHydra.instance().clear()
        yield composed


def values_of_application(
    config: Any, values: Mapping[str, object], keys: Iterable[str]
) -> dict[str, object]:
    """Returns what the config of an application has at some keys, once values are set in it.

    Args:
        config: as `application` yields it.
        values: nested mappings.
    """
    merged = OmegaConf.merge(config, values)
    assert isinstance(merged, DictConfig)
    return {key: value_at(merged, key) for key in keys}


# Commands of run directories


def note_run(run_dir: Path, config: StudyConfig) -> None:
    """Writes this command into its run directory, as Hydra does, and notes that it is the user's.

    Called once the study definition is accepted, since later commands use what they find there.
    """
    folder = run_dir / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", as_yaml(config.written))
    write_whole(folder / "hydra.yaml", OmegaConf.to_yaml(HydraConfig.instance().cfg))
    write_whole(folder / "overrides.yaml", OmegaConf.to_yaml(HydraConfig.get().overrides.task))
    mark_trusted(run_dir)


@contextmanager
def beside_configs(run_dir: Path) -> Iterator[None]:
    """Sets Hydra up as in the command of a run directory, if that is the user's.

    An adapter may name a config relative to the study's.
    """
    if not is_trusted(run_dir):
        yield
        return
    with initialized_as(read_written(run_dir, "hydra.yaml").get("hydra")):
        yield


@contextmanager
def initialized_as(hydra_config: DictConfig) -> Iterator[dict[str, str]]:
    """Initializes Hydra as a former command did, and yields that command's config folders.

    Args:
        hydra_config: the section `hydra` of the command's config.
    """
    folders = config_folders(hydra_config)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(folders["main"], **VERSION_BASE):
        yield folders


@contextmanager
def recompose(run_dir: Path, *overrides: str, trusted: bool = False) -> Iterator[StudyConfig]:
    """Composes the command of a run directory again, from today's config files.

    Hydra is set up for the config inside the `with` block.

    Args:
        overrides: replace the command's own overrides of the same keys.

    Raises:
        ConfigError: the user has run no command there, or its config no longer composes.
    """
    hydra_config = read_written(run_dir, "hydra.yaml").get("hydra")
    if trusted:
        mark_trusted(run_dir)
    elif not is_trusted(run_dir):
        raise untrusted_run(run_dir, "says which command is run again, from which configuration")
    changed = [Override.parse(argument).key for argument in overrides]
    arguments = []
    for argument in written_values(hydra_config.overrides.task):
        if not Override.parse(argument).is_within(*changed):
            arguments.append(argument)
    quoted = str(run_dir).replace("'", r"\'")
    arguments.append(f"run_dir='{quoted}'")
    arguments += overrides
    register()
    try:
        with initialized_as(hydra_config) as folders:
            if "command-line" in folders:
                arguments.append(f"hydra.searchpath=[file://{folders['command-line']}]")
            config = hydra.compose(
                str(hydra_config.job.config_name), arguments, return_hydra_config=True
            )
            HydraConfig.instance().set_config(config)
            yield StudyConfig.of(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{run_dir}: its command no longer composes: {describe_compose_error(error)}"
        ) from error
