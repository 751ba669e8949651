"""What is wrong with a command line: each override that cannot be composed, where Hydra stops at the first."""

import argparse
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import OverrideParseException
from omegaconf import DictConfig

from studyloom.config.schema import unknown_keys
from studyloom.text import nearest


def parse_command_line(
    config_path: str, config_name: str, argv: Sequence[str]
) -> argparse.Namespace:
    """What a command line says of the primary config, as Hydra reads it, and its overrides."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-name", "-cn", default=config_name)
    parser.add_argument("--config-path", "-cp", default=config_path)
    parser.add_argument("--config-dir", "-cd", default=config_path)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_known_intermixed_args(list(argv))[0]


def find_override_mistakes(config_path: str, config_name: str, argv: Sequence[str]) -> list[str]:
    """Every override of a command line that cannot be composed, in words; Hydra itself stops at the first."""
    given = parse_command_line(config_path, config_name, argv)
    folders = [str(Path(folder).absolute()) for folder in (given.config_dir, given.config_path)]
    # The primary config must lie in the first folder.
    folders.sort(key=lambda folder: not (Path(folder) / f"{given.config_name}.yaml").exists())
    mistakes: list[str] = []
    accepted = [f"hydra.searchpath=[file://{folders[1]}]"]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(folders[0], version_base=None):
        compose = functools.partial(hydra.compose, given.config_name)
        try:
            compose(accepted)
        except Exception:
            return []  # the mistake is in the config itself
        # Group choices before values: a key is judged in the option that was chosen for it.
        for override in sorted(
            given.overrides, key=lambda override: "." in override.partition("=")[0]
        ):
            try:
                if unknown := unknown_keys(compose([*accepted, override])):
                    mistakes += unknown
                else:
                    accepted.append(override)
            except Exception as error:  # Hydra's, OmegaConf's, and what they forgot to wrap
                mistakes.append(
                    explain_override(override, error, functools.partial(compose, accepted))
                )
    return mistakes


def explain_override(override: str, error: Exception, compose: Callable[[], DictConfig]) -> str:
    """One line for an override that failed: what was written, what is wrong, and the way out."""
    key, _, value = override.partition("=")
    path = key.lstrip("+~").split("@")[0].replace("/", ".")
    if isinstance(error, OverrideParseException) or not path:
        return f"{override}: cannot be read; write key=value, and in quotes what holds a bracket, a comma or a space"
    if options := group_options(path.replace(".", "/")):
        if value not in options:
            return f"{key}={value}: no such option; {path} has {', '.join(options)}{nearest(value, options)}"
    elif unknown := no_such_key(path, compose()):
        return unknown
    return f"{override}: {describe_compose_error(error.__cause__ or error)}"


def no_such_key(path: str, config: DictConfig) -> str | None:
    """Where a path leaves a config, with the nearest of the keys that are there; None if it does not."""
    node: Any = config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        above = ".".join(parts[:depth])
        if not isinstance(node, DictConfig):
            return f"{path}: no such key; {above} is {node} and has none below it"
        if part not in node:
            known = [str(name) for name in node if str(name) != "hydra"]
            holder = f"{above} has" if above else "there are"
            return f"{'.'.join(parts[: depth + 1])}: no such key; {holder} {', '.join(known)}{nearest(part, known)}"
        node = node[part]
    return None


def describe_compose_error(error: BaseException) -> str:
    """What Hydra or OmegaConf says of a config, on one line, without its search path and its types."""
    lines = [line.strip() for line in str(error).partition("Config search path:")[0].splitlines()]
    said = " ".join(
        line
        for line in lines
        if line and not re.match(r"(full_key|object_type|reference_type)[:=]", line)
    )
    if ours := re.search(r"ConfigError raised while resolving interpolation: (.*)", said):
        return ours[1]
    keys = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    return f"{said} ({', '.join(keys)})" if keys else said or type(error).__name__


def group_options(group: str) -> list[str]:
    """The options of a Hydra group, empty where there is none of that name."""
    return list(GlobalHydra.instance().config_loader().get_group_options(group))
