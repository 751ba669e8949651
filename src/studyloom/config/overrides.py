"""Finds every mistake in a command line's overrides; Hydra itself stops at the first."""

import argparse
import difflib
import functools
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml  # type: ignore[import-untyped]
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, RangeSweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from studyloom.config.schema import unknown_keys
from studyloom.text import nearest, no_such_key, printable

WIDEST = 80  # columns of a help
GROUPS_SHOWN = (
    *("data", "model", "optimizer", "scheduler", "loss", "space"),
    *("sampler", "pruner", "storage", "launcher"),
)
PAGE_OPTIONS = """
options:
  --dry-run       show what is searched, and end
  --events FILE   write a line of JSON for each thing that happens
  --json          print one JSON object at the end, and all else on standard error
  notify=URL      of apprise, or a command: told at the end, at a halt, at a new best
  --help          this help, with the keys as the other overrides compose them
  --version       the version of studyloom
  --hydra-help    the options of Hydra, such as --config-dir

completion by Hydra, for bash, zsh or fish, of a page that is run as a file:
  eval "$(python studies/NAME.py -sc install=bash)"
  python studies/NAME.py model=<TAB>
"""


def parse_command_line(
    config_path: str, config_name: str, argv: Sequence[str]
) -> argparse.Namespace:
    """Parses Hydra's options for the primary config, and the overrides.

    Args:
        config_path: the default of `--config-path` and `--config-dir`.
        config_name: the default of `--config-name`.
        argv: the arguments of the command, without its name.

    Returns:
        config_name, config_path, config_dir, and the list overrides.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-name", "-cn", default=config_name)
    parser.add_argument("--config-path", "-cp", default=config_path)
    parser.add_argument("--config-dir", "-cd", default=config_path)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_known_intermixed_args(list(argv))[0]


def find_override_mistakes(config_path: str, config_name: str, argv: Sequence[str]) -> list[str]:
    """Explains every override of a command line that cannot be composed.

    Args:
        config_path: the folder of the study's configs.
        config_name: the name of its primary config.
        argv: the arguments of the command, without its name.

    Returns:
        One line a mistake; none if the mistake is in the config itself.
    """
    options = parse_command_line(config_path, config_name, argv)
    folders = [str(Path(folder).absolute()) for folder in (options.config_dir, options.config_path)]
    # The primary config must lie in the first folder.
    folders.sort(key=lambda folder: not (Path(folder) / f"{options.config_name}.yaml").exists())
    mistakes: list[str] = []
    accepted = [f"hydra.searchpath=[file://{folders[1]}]"]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(folders[0], version_base=None):
        compose = functools.partial(hydra.compose, options.config_name)
        try:
            compose(accepted)
        except Exception:
            return []  # the mistake is in the config itself
        # Group choices before values: a key is checked in the option that was chosen for it.
        for override in sorted(
            options.overrides, key=lambda override: "." in override.partition("=")[0]
        ):
            try:
                if unknown := unknown_keys(compose([*accepted, override])):
                    mistakes += unknown
                else:
                    accepted.append(override)
            except Exception as error:  # of Hydra, of OmegaConf, and what they failed to wrap
                mistakes.append(
                    explain_override(override, error, functools.partial(compose, accepted))
                )
    return mistakes


def explain_override(override: str, error: Exception, compose: Callable[[], DictConfig]) -> str:
    """Explains on one line why an override failed, with the way out.

    Args:
        override: the override as typed.
        error: what composing with it raised.
        compose: composes the config without it.
    """
    key, _, value = override.partition("=")
    path = key.lstrip("+~").split("@")[0].replace("/", ".")
    if isinstance(error, OverrideParseException) or not path:
        return (
            f"{override}: cannot be parsed; write key=value, and quote a value that contains a "
            "bracket, a comma or a space"
        )
    if options := group_options(path.replace(".", "/")):
        if value not in options:
            return (
                f"{key}={value}: no such option; {path} has "
                f"{', '.join(options)}{nearest(value, options)}"
            )
    elif unknown := explain_key(path, compose()):
        return unknown
    return f"{override}: {describe_compose_error(error.__cause__ or error)}"


def explain_key(path: str, config: DictConfig) -> str | None:
    """Explains where a path leaves a config, with the nearest key; None if it exists."""
    node: Any = config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        above = ".".join(parts[:depth])
        if not isinstance(node, DictConfig):
            if node is None:
                below = ".".join(parts[depth:])
                return (
                    f"{path}: no such key, since {above} is null; if it takes keys, write "
                    f"+{path}=…, or {above}={{{below}: …}}"
                )
            return f"{path}: no such key; {above} is {node} and has no keys"
        if part not in node:
            known = [str(name) for name in node if str(name) != "hydra"]
            missing = no_such_key(".".join(parts[: depth + 1]), known)
            if depth == 0 and (other := meant(parts[-1], config)):
                return missing.partition("; did you mean")[0] + other
            return missing
        node = node[part]
    return None


def meant(name: str, config: DictConfig) -> str:
    """Suggests the whole key of a name that was typed without its section: `trials`, or `lr`.

    Returns:
        "; did you mean study.trials?", to end an error message, or "" if no key ends nearly so.
    """
    found: dict[str, str] = {}
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        above, node = pending.pop(0)
        for key in node if isinstance(node, DictConfig) else ():
            path = f"{above}.{key!s}" if above else str(key)
            if path != "hydra":
                found.setdefault(str(key), path)
                child = node._get_node(str(key))
                if isinstance(child, DictConfig) and not child._is_missing():
                    pending.append((path, child))
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
    return f"{message} ({', '.join(keys)})" if keys else message or type(error).__name__


def describe_sweep(sweep: str, argv: Sequence[str]) -> str:
    """Says what to do in place of a sweep of Hydra's, with the space that searches the same.

    Args:
        sweep: what asked for it, such as -m.
        argv: the arguments of the command.
    """
    tree: dict[str, Any] = {}
    swept = []
    parser = OverridesParser.create()
    for argument in argv:
        try:
            override = parser.parse_override(argument)
        except HydraException:
            continue
        if override.is_sweep_override() and override.key_or_group:
            swept.append(argument)
            _add_leaf(tree, override)
    lines = [f"{sweep}: a study is a search already; write what it searches into a space"]
    if not tree:
        return f"{lines[0]}, such as conf/space/mine.yaml, and choose that with space=mine"
    rest = [argument for argument in argv if argument not in (*swept, sweep)]
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=78)
    lines[0] += ", such as conf/space/swept.yaml:"
    lines += [f"  {line}" for line in text.splitlines()]
    grid = [] if any("interval" in argument for argument in swept) else ["sampler=grid"]
    lines.append(f"  and choose it with: {shlex.join(['space=swept', *grid, *rest])}")
    return "\n".join(lines)


def _add_leaf(tree: dict[str, Any], override: Any) -> None:
    """Adds what a sweep goes through to the tree of a space: options of a group, or values."""
    path = override.key_or_group.replace("/", ".").split(".")
    value = override.value()
    if isinstance(value, IntervalSweep):
        leaf: Any = {"float": [value.start, value.end]}
        if "log" in value.tags:
            leaf["log"] = True
    elif isinstance(value, RangeSweep):
        leaf = {"choice": list(value.range())}
    else:
        words = [getattr(item, "text", item) for item in value.list]
        is_group = "." not in override.key_or_group
        leaf = {str(word): {} for word in words} if is_group else {"choice": words}
    for part in path[:-1]:
        below = tree.setdefault(part, {})
        tree = below if isinstance(below, dict) else {}
    tree[path[-1]] = leaf


def page_help(about: str, config_path: str, config_name: str, argv: Sequence[str]) -> str:
    """Writes the help of a page: what it is, its options, its groups, and its keys as composed.

    Args:
        about: the docstring of the page.
        config_path: the folder of the study's configs.
        config_name: the name of its primary config.
        argv: the overrides with which the keys are composed; those that cannot be are left out.
    """
    GlobalHydra.instance().clear()
    options = parse_command_line(config_path, config_name, argv)
    with hydra.initialize_config_dir(str(Path(config_path).absolute()), version_base=None):
        try:
            config = hydra.compose(config_name, options.overrides)
        except Exception:  # of Hydra, of OmegaConf, and what they failed to wrap
            config = hydra.compose(config_name)
        groups = [group for group in dict.fromkeys(GROUPS_SHOWN) if group_options(group)]
        named = [f"  {group}={', '.join(group_options(group))}" for group in groups]
    text = OmegaConf.to_yaml(config)
    kept = [line for line in text.splitlines() if not line.endswith((": null", "???"))]
    keys = [f"  {line}" for line in kept]
    parts = [
        about.strip(),
        PAGE_OPTIONS.strip("\n"),
        "groups, of which an override chooses another option:",
        *named,
        "",
        "keys, which an override such as study.trials=50 sets; those that are null are left out:",
        *keys,
    ]
    parts[2:2] = [""]
    parts[1:1] = [""]
    return printable("\n".join(line for part in parts for line in _wrapped(part)))


def _wrapped(text: str) -> Iterator[str]:
    """Yields the lines of a text, none longer than a terminal has columns."""
    for line in text.splitlines() or [""]:
        if len(line) > WIDEST and (beside := re.fullmatch(r"(\s*)(.*?\S)\s+(# .*)", line)):
            yield f"{beside[1]}{beside[3]}"  # a remark beside a command, above it
            line = f"{beside[1]}{beside[2]}"
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        wrapped = textwrap.wrap(line, WIDEST, subsequent_indent=indent, break_on_hyphens=False)
        yield from wrapped or [""]


def group_options(group: str) -> list[str]:
    """Returns the options of a Hydra group; none if there is no such group."""
    return list(GlobalHydra.instance().config_loader().get_group_options(group))
