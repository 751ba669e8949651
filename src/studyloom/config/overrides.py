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

IS_HYDRA_1_3 = hydra.__version__ < "1.4"
# Hydra 1.3 warns without this argument, and 1.4 with it.
VERSION_BASE: dict[str, Any] = {}
if IS_HYDRA_1_3:
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
        """Parses an argument such as `++model.hidden=[8]`, also one that Hydra would refuse."""
        typed_key, equals_sign, typed_value = text.partition("=")
        key = typed_key.lstrip("+~")
        prefix = typed_key.removesuffix(key)
        value = None
        if equals_sign:
            value = typed_value
        return cls(prefix, key.strip().replace("/", "."), value, text)

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
    primary_file_name = f"{options.config_name}.yaml"
    # The primary config is in the folder of `--config-dir`, or else in the study's own. Hydra looks
    # for the options of groups there first, and then in the other folder.
    folder = Path(options.config_dir).absolute()
    other_folder = Path(options.config_path).absolute()
    if not (folder / primary_file_name).exists():
        folder, other_folder = other_folder, folder
    errors: list[str] = []
    accepted = [f"hydra.searchpath=[file://{other_folder}]"]  # the arguments that cause no error
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(folder), **VERSION_BASE):
        compose = functools.partial(hydra.compose, options.config_name)
        try:
            compose(accepted)
        except Exception:
            return []  # the error is in the config itself
        # Each override is tried together with those that were accepted before it.
        for override in _parse_choices_first(options.overrides):
            try:
                unknown_keys = find_unknown_keys(compose([*accepted, override.text]))
            except Exception as error:  # of Hydra, of OmegaConf, and what they failed to wrap
                compose_without = functools.partial(compose, accepted)
                explanation = explain_override(override, error, compose_without)
                suggestion = _suggest_param(override, explanation, folder / primary_file_name)
                errors.append(explanation + suggestion)
                continue
            if unknown_keys:
                errors += unknown_keys
            else:
                accepted.append(override.text)
    return errors


def _suggest_param(override: Override, explanation: str, file: Path) -> str:
    """Suggests the line that adds a key to the section `params` of a file.

    Args:
        override: an override that failed.
        explanation: why it failed; without "no such key" nothing is suggested.
    """
    section, _, name = override.key.partition(".")
    is_missing_param = section == "params" and "." not in name and "no such key" in explanation
    if not is_missing_param:
        return ""
    return suggest_line(name, override.value or "", file, section)


def _parse_choices_first(arguments: Sequence[str]) -> list[Override]:
    """Parses overrides, and puts group choices such as `model=cnn` before values.

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
        error: the exception that Hydra raised for the override.
        compose: composes the config without the override.
    """
    key = override.key.split("@")[0]  # `model` of `model@package=mlp`
    if isinstance(error, OverrideParseException) or not key:
        return (
            f"{override.text}: cannot be parsed; write key=value, and quote a value that contains "
            "a bracket, a comma or a space"
        )
    options = group_options(key.replace(".", "/"))
    if options and override.value not in options:
        return (
            f"{override.text}: no such option; {key} has "
            f"{', '.join(options)}{nearest(override.value, options)}"
        )
    if not options:
        explanation = explain_key(key, compose())
        if explanation is not None:
            return explanation
    return f"{override.text}: {describe_compose_error(error.__cause__ or error)}"


def explain_key(key: str, config: Mapping[str, object]) -> str | None:
    """Explains the first part of a key that a config lacks, with the nearest key.

    Returns:
        None if the config has the key.
    """
    node: object = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, Mapping):
            parent_key = ".".join(parts[:depth])
            return (
                f"{key}: no such key; {parent_key} is {format_scalar(node)} and has "
                f"no keys; if it takes some, write +{key}=…"
            )
        if part not in node:
            names = [str(name) for name in node if str(name) != "hydra"]
            unknown_key = ".".join(parts[: depth + 1])
            suggestion = ""
            if depth == 0:  # the key may lack its section: `trials` for `study.trials`
                suggestion = suggest_key(parts[-1], config)
            return describe_unknown_key(unknown_key, names, suggestion)
        node = node[part]
    return None


def suggest_key(name: str, config: Mapping[str, object]) -> str:
    """Suggests the whole key of a name that was typed without its section.

    It returns "; did you mean study.trials?" for `trials`, and "" if no name is similar. If several
    sections have the name, the key of the section `train` is suggested, or else the first one.
    """
    if isinstance(config, StudyConfig):
        sections = config.written
    else:
        sections = written_values(config)
    keys = [key for key, _value in flatten(sections)]
    train_keys = [key for key in keys if key.startswith("train.")]
    keys_by_name: dict[str, str] = {}
    for key in [*train_keys, *keys]:
        name_of_key = key.rpartition(".")[2]
        keys_by_name.setdefault(name_of_key, key)
    similar_names = difflib.get_close_matches(name, keys_by_name, n=1, cutoff=0.8)
    if not similar_names:
        return ""
    return f"; did you mean {keys_by_name[similar_names[0]]}?"


# A line of OmegaConf's messages on its own types, such as `object_type=StudySection`.
TYPE_LINE = re.compile(r"(full_key|object_type|reference_type)[:=]")
# A key that a typed section lacks, as in "Key 'trails' not in 'StudySection'".
UNKNOWN_KEY = re.compile(r"Key '\w+' not in '\w+'")
# An error that a resolver of studyloom has raised, at the end of OmegaConf's message about it.
RESOLVER_ERROR = re.compile(r"ConfigError raised while resolving interpolation: (.*)")


def describe_compose_error(error: BaseException) -> str:
    """Puts an error of Hydra or OmegaConf on one line, without its search path and its types.

    OmegaConf puts the key that an error is about on a line such as `full_key: study.trials`.
    """
    keys = []
    message_lines = []
    for raw_line in str(error).partition("Config search path:")[0].splitlines():
        line = raw_line.strip()
        if line.startswith("full_key: "):
            keys.append(line.removeprefix("full_key: "))
        elif line and not TYPE_LINE.match(line):
            message_lines.append(line)
    message = " ".join(message_lines)
    resolver_error = RESOLVER_ERROR.search(message)
    if resolver_error is not None:
        return resolver_error[1]
    if keys and UNKNOWN_KEY.search(message):
        section = SCHEMA
        section_key = keys[0].rpartition(".")[0]
        if section_key:
            section = OmegaConf.select(SCHEMA, section_key)
        return describe_unknown_key(keys[0], [str(name) for name in section])
    if keys:
        return f"{message} ({', '.join(keys)})"
    return message or type(error).__name__


def merge_setting(sections: Mapping[str, object], key: str, value: object) -> dict[str, Any]:
    """Returns the sections of a config with a value at a key.

    A mapping is merged into the one that the config has there.

    Raises:
        ConfigError: no config can have the value there.
    """
    config = OmegaConf.create(dict(sections))
    try:
        OmegaConf.update(config, key, value)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {describe_compose_error(error)}") from error
    return dict(written_values(config))


def study_help(about: str, config_path: str, config_name: str, argv: Sequence[str]) -> str:
    """Returns the help of a study module: docstring, options, groups, every key with its value.

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
        group_paragraphs = _describe_groups()
    key_lines = OmegaConf.to_yaml(config).splitlines()
    parts = [
        about.strip(),
        OPTIONS,
        f"{variables_help()}\n",
        "groups and their options, which an override such as sampler=random chooses:",
        *group_paragraphs,
        "\nkeys and their values, which an override such as study.trials=50 sets:",
        *(f"  {line}" for line in key_lines),
    ]
    return printable("\n".join(parts))


def _describe_groups() -> list[str]:
    """Returns a paragraph for each group of a study that has options."""
    wrapper = textwrap.TextWrapper(width=80, initial_indent="  ", subsequent_indent="    ")
    paragraphs = []
    for group in STUDY_GROUPS:
        options = ", ".join(group_options(group))
        if options:
            paragraphs.append(wrapper.fill(f"{group}={options}"))
    return paragraphs


def group_options(group: str) -> list[str]:
    """Returns the options of a Hydra group; none if there is no such group."""
    return list(GlobalHydra.instance().config_loader().get_group_options(group))
