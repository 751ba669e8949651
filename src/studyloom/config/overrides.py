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

from studyloom.config.references import is_within
from studyloom.config.schema import SCHEMA, find_unknown_keys
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import flatten, written_values
from studyloom.environment import variables_help
from studyloom.errors import ConfigError
from studyloom.text import describe_unknown_key, format_scalar, nearest, printable, suggest_line

# Hydra 1.3 warns without this argument, and 1.4 with it.
VERSION_BASE: dict[str, Any] = {}
if hydra.__version__ < "1.4":
    VERSION_BASE["version_base"] = None

# The groups of a study.
STUDY_GROUPS = (
    "data",
    "model",
    "optimizer",
    "scheduler",
    "loss",
    "space",
    "sampler",
    "pruner",
    "storage",
    "launcher",
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
        key: with dots, such as model.hidden; a group such as model/block is model.block.
        value: as typed; None without a value.
        text: the whole override as typed.
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
        return cls(
            prefix=typed.removesuffix(key),
            key=key.strip().replace("/", "."),
            value=value if equals else None,
            text=text,
        )

    @property
    def deletes(self) -> bool:
        """True if it deletes its key."""
        return self.prefix == "~"

    def is_within(self, *keys: str) -> bool:
        """Returns whether it sets one of some keys, or a key within one of them."""
        return any(is_within(self.key, key) for key in keys)


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
    folder = Path(options.config_dir).absolute()
    other_folder = Path(options.config_path).absolute()
    if not (folder / f"{options.config_name}.yaml").exists():  # it must have the primary config
        folder, other_folder = other_folder, folder
    errors: list[str] = []
    accepted = [f"hydra.searchpath=[file://{other_folder}]"]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(folder), **VERSION_BASE):
        compose = functools.partial(hydra.compose, options.config_name)
        try:
            compose(accepted)
        except Exception:
            return []  # the error is in the config itself
        for override in _choices_first(options.overrides):
            try:
                unknown = find_unknown_keys(compose([*accepted, override.text]))
            except Exception as error:  # of Hydra, of OmegaConf, and what they failed to wrap
                explanation = explain_override(
                    override, error, functools.partial(compose, accepted)
                )
                section, _, name = override.key.partition(".")
                if section == "params" and "no such key" in explanation and "." not in name:
                    file = folder / f"{options.config_name}.yaml"
                    explanation += suggest_line(name, override.value or "", file, section)
                errors.append(explanation)
                continue
            if unknown:
                errors += unknown
            else:
                accepted.append(override.text)
    return errors


def _choices_first(arguments: Sequence[str]) -> list[Override]:
    """Parses overrides, and puts group choices before values.

    A key is checked in the option that was chosen for its group.
    """
    choices = []
    values = []
    for argument in arguments:
        override = Override.parse(argument)
        if "." in argument.partition("=")[0]:
            values.append(override)
        else:
            choices.append(override)
    return [*choices, *values]


def explain_override(
    override: Override, error: Exception, compose: Callable[[], DictConfig]
) -> str:
    """Explains on one line why an override failed, and how to fix it.

    Args:
        compose: composes the config without it.
    """
    key = override.key.split("@")[0]
    if isinstance(error, OverrideParseException) or not key:
        return (
            f"{override.text}: cannot be parsed; write key=value, and quote a value that contains "
            "a bracket, a comma or a space"
        )
    options = group_options(key.replace(".", "/"))
    if not options:
        unknown = explain_key(key, compose())
        if unknown is not None:
            return unknown
    elif override.value not in options:
        return (
            f"{override.text}: no such option; {key} has "
            f"{', '.join(options)}{nearest(override.value, options)}"
        )
    return f"{override.text}: {describe_compose_error(error.__cause__ or error)}"


def explain_key(key: str, config: Mapping[str, object]) -> str | None:
    """Explains where a key leaves a config, with the nearest key; None if it exists."""
    node: object = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, Mapping):
            return (
                f"{key}: no such key; {'.'.join(parts[:depth])} is {format_scalar(node)} and has "
                f"no keys; if it takes some, write +{key}=…"
            )
        if part not in node:
            names = [str(name) for name in node if str(name) != "hydra"]
            explanation = describe_unknown_key(".".join(parts[: depth + 1]), names)
            if depth == 0:
                suggestion = suggest_key(parts[-1], config)
                if suggestion:
                    return explanation.partition("; did you mean")[0] + suggestion
            return explanation
        node = node[part]
    return None


def suggest_key(name: str, config: Mapping[str, object]) -> str:
    """Suggests the whole key of a name that was typed without its section, such as `trials`."""
    if isinstance(config, StudyConfig):
        sections = config.written
    else:
        sections = written_values(config)
    keys = [key for key, _ in flatten(sections)]
    # The first key of a name is meant, and for epochs the one of a training.
    keys.sort(key=lambda key: not key.startswith("train."))
    keys_by_name: dict[str, str] = {}
    for key in keys:
        keys_by_name.setdefault(key.rpartition(".")[2], key)
    matches = difflib.get_close_matches(name, keys_by_name, n=1, cutoff=0.8)
    if not matches:
        return ""
    return f"; did you mean {keys_by_name[matches[0]]}?"


def describe_compose_error(error: BaseException) -> str:
    """Puts an error of Hydra or OmegaConf on one line, without its search path and its types."""
    keys = []
    parts = []
    for raw_line in str(error).partition("Config search path:")[0].splitlines():
        line = raw_line.strip()
        if line.startswith("full_key: "):
            keys.append(line.removeprefix("full_key: "))
        elif line and not re.match(r"(full_key|object_type|reference_type)[:=]", line):
            parts.append(line)
    message = " ".join(parts)
    match = re.search(r"ConfigError raised while resolving interpolation: (.*)", message)
    if match is not None:
        return match[1]
    if keys and re.search(r"Key '\w+' not in '\w+'", message):
        section = SCHEMA
        if "." in keys[0]:
            section = OmegaConf.select(SCHEMA, keys[0].rpartition(".")[0])
        return describe_unknown_key(keys[0], [str(name) for name in section])
    if keys:
        return f"{message} ({', '.join(keys)})"
    return message or type(error).__name__


def merge_setting(sections: Mapping[str, object], key: str, value: object) -> dict[str, Any]:
    """Returns the sections of a config with a value at a key, into which mappings are merged.

    Raises:
        ConfigError: no config can have it there.
    """
    config = OmegaConf.create(dict(sections))
    try:
        OmegaConf.update(config, key, value)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {describe_compose_error(error)}") from error
    return dict(written_values(config))


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
        groups = _describe_groups()
    keys = textwrap.indent(OmegaConf.to_yaml(config).removesuffix("\n"), "  ", lambda line: True)
    parts = [
        about.strip(),
        OPTIONS,
        f"{variables_help()}\n",
        "groups and their options, which an override such as sampler=random chooses:",
        *groups,
        "\nkeys and their values, which an override such as study.trials=50 sets:",
        keys,
    ]
    return printable("\n".join(parts))


def _describe_groups() -> list[str]:
    """Returns a paragraph for each group of a study that has options."""
    wrapper = textwrap.TextWrapper(80, initial_indent="  ", subsequent_indent="    ")
    paragraphs = []
    for group in STUDY_GROUPS:
        options = ", ".join(group_options(group))
        if options:
            paragraphs.append(wrapper.fill(f"{group}={options}"))
    return paragraphs


def group_options(group: str) -> list[str]:
    """Returns the options of a Hydra group; none if there is no such group."""
    return list(GlobalHydra.instance().config_loader().get_group_options(group))
