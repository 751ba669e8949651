"""Finds every error in a command line's overrides; Hydra itself stops at the first."""

import argparse
import difflib
import functools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from studyloom.config.schema import SCHEMA, unknown_keys
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import flatten, written_values
from studyloom.environment import variables_help
from studyloom.errors import ConfigError
from studyloom.text import describe_unknown_key, format_scalar, nearest, printable, suggest_line

# Hydra 1.3 warns without this argument, and 1.4 with it.
VERSION_BASE: dict[str, Any] = {"version_base": None} if hydra.__version__ < "1.4" else {}

# The groups of a study.
STUDY_GROUPS = (
    *("data", "model", "optimizer", "scheduler", "loss", "space"),
    *("sampler", "pruner", "storage", "launcher"),
)
OPTIONS = """
options:
  --dry-run       show the search space, and exit
  --events FILE   write a line of JSON for each event
  --json          print one JSON object at the end, all else to standard error
  notify=URL      apprise URL or command to notify when the study ends, aborts
                  or finds a new best trial
  --help          this help, with the keys as the other overrides set them
  --version       the version of studyloom
  --hydra-help    the options of Hydra, such as --config-dir

shell completion of overrides (bash, zsh, fish), for a module run as a file:
  eval "$(python studies/NAME.py -sc install=bash)"
  python studies/NAME.py model=<TAB>
"""


@dataclass(frozen=True)
class Override:
    """An override of a command line.

    Attributes:
        prefix: `+` adds a key, `++` adds or changes it, `~` deletes it; empty: changes it.
        key: with dots, such as model.hidden; also that of a group, such as model/block.
        value: as typed; None without a value.
        text: all of it as typed.
    """

    prefix: str
    key: str
    value: str | None
    text: str

    @classmethod
    def parse(cls, text: str) -> "Override":
        """Parses an argument, also one that Hydra would refuse."""
        typed, equals, value = text.partition("=")
        key = typed.lstrip("+~")
        prefix = typed.removesuffix(key)
        return cls(prefix, key.strip().replace("/", "."), value if equals else None, text)

    @property
    def deletes(self) -> bool:
        """Whether it deletes its key."""
        return self.prefix == "~"

    def is_within(self, *keys: str) -> bool:
        """Whether it is of one of some keys, or of one below them."""
        return any(f"{self.key}.".startswith(f"{key}.") for key in keys)


def parse_command_line(
    config_path: str, config_name: str, argv: Sequence[str]
) -> argparse.Namespace:
    """Parses Hydra's options into config_name, config_path and config_dir, and the overrides."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-name", "-cn", default=config_name)
    parser.add_argument("--config-path", "-cp", default=config_path)
    parser.add_argument("--config-dir", "-cd", default=config_path)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_known_intermixed_args(list(argv))[0]


def find_override_errors(config_path: str, config_name: str, argv: Sequence[str]) -> list[str]:
    """Explains every override of a command line that cannot be applied, on a line each.

    The list is empty if the error is in the config itself.
    """
    options = parse_command_line(config_path, config_name, argv)
    folders = [str(Path(folder).absolute()) for folder in (options.config_dir, options.config_path)]
    # The primary config must lie in the first folder.
    folders.sort(key=lambda folder: not (Path(folder) / f"{options.config_name}.yaml").exists())
    errors: list[str] = []
    accepted = [f"hydra.searchpath=[file://{folders[1]}]"]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(folders[0], **VERSION_BASE):
        compose = functools.partial(hydra.compose, options.config_name)
        try:
            compose(accepted)
        except Exception:
            return []  # the error is in the config itself
        # Group choices before values: a key is checked in the option that was chosen for it.
        overrides = [Override.parse(text) for text in options.overrides]
        for override in sorted(overrides, key=lambda each: "." in each.text.partition("=")[0]):
            try:
                if unknown := unknown_keys(compose([*accepted, override.text])):
                    errors += unknown
                else:
                    accepted.append(override.text)
            except Exception as error:  # of Hydra, of OmegaConf, and what they failed to wrap
                message = explain_override(override, error, functools.partial(compose, accepted))
                section, _, name = override.key.partition(".")
                if section == "params" and "no such key" in message and "." not in name:
                    file = Path(folders[0]) / f"{options.config_name}.yaml"
                    message += suggest_line(name, override.value or "", file, section)
                errors.append(message)
    return errors


def explain_override(
    override: Override, error: Exception, compose: Callable[[], DictConfig]
) -> str:
    """Explains on one line why an override failed, and how to fix it.

    Args:
        compose: composes the config without it.
    """
    path, value = override.key.split("@")[0], override.value
    if isinstance(error, OverrideParseException) or not path:
        return (
            f"{override.text}: cannot be parsed; write key=value, and quote a value that contains "
            "a bracket, a comma or a space"
        )
    if options := group_options(path.replace(".", "/")):
        if value not in options:
            return (
                f"{override.text}: no such option; {path} has "
                f"{', '.join(options)}{nearest(value, options)}"
            )
    elif unknown := explain_key(path, compose()):
        return unknown
    return f"{override.text}: {describe_compose_error(error.__cause__ or error)}"


def explain_key(path: str, config: Mapping[str, Any]) -> str | None:
    """Explains where a path leaves a config, with the nearest key; None if it exists."""
    node: Any = config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, Mapping):
            return (
                f"{path}: no such key; {'.'.join(parts[:depth])} is {format_scalar(node)} and has "
                f"no keys; if it takes some, write +{path}=…"
            )
        if part not in node:
            known = [str(name) for name in node if str(name) != "hydra"]
            missing = describe_unknown_key(".".join(parts[: depth + 1]), known)
            if depth == 0 and (other := meant(parts[-1], config)):
                return missing.partition("; did you mean")[0] + other
            return missing
        node = node[part]
    return None


def meant(name: str, config: Mapping[str, Any]) -> str:
    """Suggests the whole key of a name that was typed without its section, such as `trials`."""
    if isinstance(config, StudyConfig):
        written: Any = config.written
    else:
        written = written_values(config)
    paths = [path for path, _ in flatten(written)]
    # The first key of a name is meant, and of epochs those of a training.
    paths.sort(key=lambda path: not path.startswith("train."))
    found = {path.rpartition(".")[2]: path for path in reversed(paths)}
    close = difflib.get_close_matches(name, found, n=1, cutoff=0.8)
    return f"; did you mean {found[close[0]]}?" if close else ""


def describe_compose_error(error: BaseException) -> str:
    """Puts an error of Hydra or OmegaConf on one line, without its search path and its types."""
    lines = [line.strip() for line in str(error).partition("Config search path:")[0].splitlines()]
    message = " ".join(
        line
        for line in lines
        if line and not re.match(r"(full_key|object_type|reference_type)[:=]", line)
    )
    if ours := re.search(r"ConfigError raised while resolving interpolation: (.*)", message):
        return ours[1]
    keys = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    if keys and re.search(r"Key '\w+' not in '\w+'", message):
        section = OmegaConf.select(SCHEMA, keys[0].rpartition(".")[0]) if "." in keys[0] else SCHEMA
        return describe_unknown_key(keys[0], [str(name) for name in section])
    return f"{message} ({', '.join(keys)})" if keys else message or type(error).__name__


def merge_setting(sections: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Returns the sections of a config with a value at a key, into which mappings are merged.

    Raises:
        ConfigError: no config can have it there.
    """
    config = OmegaConf.create(sections)
    try:
        OmegaConf.update(config, key, value)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {describe_compose_error(error)}") from error
    merged: dict[str, Any] = written_values(config)
    return merged


def study_help(about: str, config_path: str, config_name: str, argv: Sequence[str]) -> str:
    """Writes the help of a study module: docstring, options, groups, and every key with its value.

    Args:
        about: the docstring of the study module.
        argv: overrides; the help shows the values that they give, if the config composes.
    """
    GlobalHydra.instance().clear()
    options = parse_command_line(config_path, config_name, argv)
    with hydra.initialize_config_dir(str(Path(config_path).absolute()), **VERSION_BASE):
        try:
            config = hydra.compose(config_name, options.overrides)
        except Exception:  # of Hydra, of OmegaConf, and what they failed to wrap
            config = hydra.compose(config_name)
        wrapper = textwrap.TextWrapper(80, initial_indent="  ", subsequent_indent="    ")
        groups = {group: ", ".join(group_options(group)) for group in STUDY_GROUPS}
        named = [wrapper.fill(f"{group}={each}") for group, each in groups.items() if each]
    lines = OmegaConf.to_yaml(config).splitlines()
    parts = [
        about.strip(),
        OPTIONS,
        f"{variables_help()}\n",
        "groups and their options, which an override such as sampler=random chooses:",
        *named,
        "\nkeys and their values, which an override such as study.trials=50 sets:",
        *(f"  {line}" for line in lines),
    ]
    return printable("\n".join(parts))


def group_options(group: str) -> list[str]:
    """Returns the options of a Hydra group; none if there is no such group."""
    return list(GlobalHydra.instance().config_loader().get_group_options(group))
