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

    The user's overrides are kept, unless they set a key of a group that now has another option, and
    this option lacks the key: `model.hidden=[8]` is left out if a trial chooses a CNN.

    Args:
        choices: the user's own option of each group.
        base: the user's own config, as Hydra returned it.
        complete: completes a config that Hydra returned, given the option of each group.
    """

    config_name: str
    overrides: tuple[Override, ...]
    choices: Mapping[str, str]
    base: StudyConfig | None = None
    complete: Callable[[StudyConfig, Mapping[str, str]], StudyConfig] = lambda config, _: config
    # Caches of configs by the choices that differ from the user's own: as `complete` returned them,
    # and as Hydra composed them.
    _completed: dict[Choices, StudyConfig] = field(default_factory=dict, repr=False, compare=False)
    _composed: dict[Choices, StudyConfig] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_hydra(cls) -> "Composer":
        """Returns the composer of the running command; call it inside `hydra_main`."""
        hydra_config = HydraConfig.get()
        choices = {}
        for group, option in hydra_config.runtime.choices.items():
            choices[str(group)] = str(option)
        # As typed: ${oc.env:…} in an override is neither resolved here nor shown.
        arguments = written_values(hydra_config.overrides.task)
        overrides = tuple(Override.parse(argument) for argument in arguments)
        return cls(str(hydra_config.job.config_name), overrides, choices)

    def options(self, group: str) -> list[str]:
        """Returns the options of a config group; none if there is no such group."""
        return group_options(group)

    def cache_own_config(self, config: StudyConfig) -> None:
        """Makes `compose` return a config for the user's own choices, without calling Hydra."""
        self._completed[frozenset()] = config

    def compose(self, choices: Mapping[str, str]) -> StudyConfig:
        """Returns the config under other choices, with the defaults of the search space.

        Each combination of choices is composed once, and then cached.

        Args:
            choices: an option by group; other groups keep the user's own option.

        Raises:
            ConfigError: it cannot be composed.
        """
        new_choices = {}  # those that differ from the user's own
        for group, option in choices.items():
            if self.choices.get(group) != option:
                new_choices[group] = option
        cache_key = frozenset(new_choices.items())
        if cache_key not in self._completed:
            all_choices = {**self.choices, **new_choices}
            try:
                config = self._merge_options(new_choices)
                self._completed[cache_key] = self.complete(config, all_choices)
            except Exception as error:
                assignments = ", ".join(_format_overrides(new_choices))
                raise ConfigError(f"{assignments}: {describe_compose_error(error)}") from error
        return self._completed[cache_key]

    def _merge_options(self, new_choices: Mapping[str, str]) -> StudyConfig:
        """Returns the config under some choices, merged from configs with one changed section each.

        Hydra takes about 70 ms to compose a config. With merging, m models and n optimizers take
        m + n compositions, and not m × n. An option may change other sections too, as Hydra allows:
        then the config is composed under all choices at once.
        """
        choices_by_section: dict[str, dict[str, str]] = {}
        for group, option in new_choices.items():
            section = group.partition("/")[0]  # the group model/block is in the section model
            choices_by_section.setdefault(section, {})[group] = option
        if self.base is None or len(choices_by_section) < 2:
            return self._compose_once(new_choices)
        configs_by_section: dict[str, StudyConfig] = {}
        for section, section_choices in choices_by_section.items():
            config = self._compose_once(section_choices)
            if not config.differs_only_in(section, self.base):
                return self._compose_once(new_choices)
            configs_by_section[section] = config
        return self.base.with_sections(configs_by_section)

    def _compose_once(self, new_choices: Mapping[str, str]) -> StudyConfig:
        """Composes the config under some choices, or returns it if it was composed before."""
        cache_key = frozenset(new_choices.items())
        if cache_key not in self._composed:
            self._composed[cache_key] = StudyConfig.of(self._compose(new_choices))
        return self._composed[cache_key]

    def file_of(self, section: str, choices: Mapping[str, str]) -> Path | None:
        """Returns the file of the study's config folder that defines a section.

        Args:
            choices: the option by group; groups that are missing here have the user's own.

        Returns:
            The file of the section's option, or the primary config if the section is not a group.
            None if the study has no such file.
        """
        option = choices.get(section, self.choices.get(section))
        name = self.config_name
        if option is not None:
            name = f"{section}/{option}"
        file = main_folder() / f"{name}.yaml"
        if not file.is_file():
            return None
        return file

    def _compose(self, new_choices: Mapping[str, str]) -> DictConfig:
        """Composes the config under some choices, with the user's overrides that fit them.

        An override such as `model.hidden=[8]` fits only if the new model has this key, which only a
        composed config shows. So the config is composed without such overrides first, and then with
        those that turn out to fit.
        """
        group_keys = [group.replace("/", ".") for group in new_choices]
        # A new choice replaces the user's own choice of the group, such as `model=mlp`.
        overrides = [override for override in self.overrides if override.key not in group_keys]
        uncertain = []
        for override in overrides:
            if _may_not_fit(override, group_keys):
                uncertain.append(override)
        config = self._compose_with(_without(overrides, uncertain), new_choices)
        unfit = []
        for override in uncertain:
            # `+model.key=1` adds a key to the user's own model, and not to another one.
            adds_key = override.prefix == "+"
            if adds_key or not has_key(config, override.key):
                unfit.append(override)
        if len(unfit) == len(uncertain):
            return config
        return self._compose_with(_without(overrides, unfit), new_choices)

    def _compose_with(
        self, overrides: Sequence[Override], choices: Mapping[str, str]
    ) -> DictConfig:
        arguments = [override.text for override in overrides]
        arguments += _format_overrides(choices)
        return hydra.compose(self.config_name, arguments)


def _format_overrides(choices: Mapping[str, str]) -> list[str]:
    """Returns group choices as overrides, such as model=cnn."""
    return [f"{group}={option}" for group, option in choices.items()]


def _may_not_fit(override: Override, group_keys: Sequence[str]) -> bool:
    """Returns whether an override sets a key that another option of its group may not have.

    Args:
        group_keys: the keys of the groups that get another option, such as `model.block`.
    """
    adds_parameter_groups = "+" in override.prefix and override.is_within(OPTIMIZER_GROUPS)
    if adds_parameter_groups:  # every optimizer takes them
        return False
    return override.is_within(*group_keys)


def _without(overrides: Sequence[Override], removed: Sequence[Override]) -> list[Override]:
    """Returns overrides without some of them."""
    return [override for override in overrides if override not in removed]


# The state of Hydra


@contextmanager
def isolated_hydra() -> Iterator[None]:
    """Lets the user's code in the body use Hydra and argparse as if it ran as its own program.

    Hydra is not initialized there, and knows no groups of studyloom; the command line is empty.
    Afterwards all is as before.
    """
    argv = sys.argv
    arguments = list(argv)
    hydra_config = HydraConfig.instance()
    config_before = hydra_config.cfg
    try:
        # None: Hydra checks no file as untrusted, and adds no groups of studyloom.
        with restored_hydra(), trust.in_force(None):
            sys.argv = arguments[:1]  # the name of the program
            yield
    finally:
        sys.argv = argv
        argv[:] = arguments  # the body may have changed the list itself
        hydra_config.cfg = config_before


@contextmanager
def restored_hydra() -> Iterator[None]:
    """Clears Hydra's state for the body, and restores it afterwards.

    The state is three objects of the process: the initialized Hydra, Hydra's notes on the running
    command, and the version of Hydra whose defaults are in use.
    """
    global_hydra = GlobalHydra.instance()
    hydra_before = global_hydra.hydra
    runtime = JobRuntime.instance()
    runtime_before = runtime.conf.copy()
    version = VersionBase.instance()
    version_before = version.version_base
    global_hydra.clear()
    try:
        yield
    finally:
        GlobalHydra.set_instance(global_hydra)  # `hydra.initialize` leaves a copy instead
        global_hydra.hydra = hydra_before
        runtime.conf = runtime_before
        version.version_base = version_before


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
    """Composes the config of the user's Hydra application, as its own command does.

    The body runs in an `isolated_hydra`, in which interpolations such as `${hydra:job.name}` have
    the values that they have in the application.

    Args:
        config: the file of the application's primary config.
        values: nested mappings that are set in it.
        output: the folder of `hydra.runtime.output_dir`; None to leave it unset.
    """
    with isolated_hydra(), hydra.initialize_config_dir(str(config.parent), **VERSION_BASE):
        try:
            composed = hydra.compose(config.stem, return_hydra_config=True)
            with open_dict(composed):
                if output is not None:
                    composed.hydra.runtime.output_dir = str(output)
                HydraConfig.instance().set_config(composed)  # copies it, with the section `hydra`
                del composed["hydra"]
            composed.merge_with(values)
        except Exception as error:
            raise ConfigError(f"{config}: {describe_compose_error(error)}") from error
        GlobalHydra.instance().clear()  # the application may initialize Hydra itself
        yield composed


def values_of_application(
    config: Any, values: Mapping[str, object], keys: Iterable[str]
) -> dict[str, object]:
    """Returns the values at some keys of an application's config, in which other values are set.

    Args:
        config: the config, as `application` yields it.
        values: nested mappings that are set in it.
    """
    merged = OmegaConf.merge(config, values)
    assert isinstance(merged, DictConfig)
    return {key: value_at(merged, key) for key in keys}


# Commands of run directories


def note_run(run_dir: Path, config: StudyConfig) -> None:
    """Writes the running command into its run directory, and marks the directory as trusted.

    Hydra itself would write these files at the start. They are written once the study definition
    is accepted, since later commands use what they find there.
    """
    folder = run_dir / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", as_yaml(config.written))
    write_whole(folder / "hydra.yaml", OmegaConf.to_yaml(HydraConfig.instance().cfg))
    write_whole(folder / "overrides.yaml", OmegaConf.to_yaml(HydraConfig.get().overrides.task))
    mark_trusted(run_dir)


@contextmanager
def initialized_as_run(run_dir: Path) -> Iterator[None]:
    """Initializes Hydra in the body as the command of a run directory did, if that is trusted.

    Some objectives need this: the adapter of a Hydra application names a config relative to the
    folder of the study's own configs, which only an initialized Hydra knows.
    """
    if not is_trusted(run_dir):
        yield
        return
    hydra_config = read_written(run_dir, "hydra.yaml").get("hydra")
    with initialized_as(hydra_config):
        yield


@contextmanager
def initialized_as(hydra_config: DictConfig) -> Iterator[dict[str, str]]:
    """Initializes Hydra as a former command did, and yields that command's config folders.

    Args:
        hydra_config: the section `hydra` of the command's config.
    """
    folders = config_folders(hydra_config)  # "main": that of the study's own configs
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(folders["main"], **VERSION_BASE):
        yield folders


@contextmanager
def recompose(run_dir: Path, *overrides: str, trusted: bool = False) -> Iterator[StudyConfig]:
    """Composes the config of a run directory's command again, from today's config files.

    Hydra is set up for the config in the body.

    Args:
        overrides: replace the command's own overrides of the same keys.
        trusted: whether the user says that the directory is theirs. That is noted in the directory
            for later commands.

    Raises:
        ConfigError: the directory is not trusted, or its config no longer composes.
    """
    hydra_config = read_written(run_dir, "hydra.yaml").get("hydra")
    if trusted:
        mark_trusted(run_dir)
    elif not is_trusted(run_dir):
        raise untrusted_run(run_dir, "says which command is run again, from which configuration")
    replaced_keys = [Override.parse(argument).key for argument in overrides]
    arguments = []
    for argument in written_values(hydra_config.overrides.task):
        if not Override.parse(argument).is_within(*replaced_keys):
            arguments.append(argument)
    # The directory may have been moved since. Hydra reads \' within quotes as a quote.
    escaped_run_dir = str(run_dir).replace("'", r"\'")
    arguments.append(f"run_dir='{escaped_run_dir}'")
    arguments += overrides
    register()
    try:
        with initialized_as(hydra_config) as folders:
            # The folder of `--config-dir`, an option that `hydra.compose` does not have.
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
