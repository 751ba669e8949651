"""Which code a config from somebody else may name: a `_target_` can be any function that Python can import.

A target is trusted for where it is defined, and not for how its name begins: `torch.nn.modules.module.torch.load` is
no layer. What is not trusted by its name is not even imported.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from studyloom import MOVED
from studyloom.errors import ConfigError

CLASSES = (
    *("studyloom.models", "studyloom.losses", "studyloom.data", "studyloom.space.grid"),
    *("studyloom.grid", "studyloom.tables"),  # where these modules were before
    # Other launchers run commands that a config may hold, or code on other machines.
    *("studyloom.launch.Join", "studyloom.launch.local.Join"),
    *("studyloom.launch.Local", "studyloom.launch.local.Local"),
    *("torch.nn", "torch.optim", "optuna.samplers", "optuna.pruners"),
)
# Of torch's other functions some change the whole process, such as register_module_forward_hook.
FUNCTIONS = ("studyloom.schedules", "torch.nn.functional", "torch.nn.init")


def load_foreign(path: Path, trusted: Sequence[str] = ()) -> DictConfig:
    """Reads a config and checks it; nothing that it names is called.

    Args:
        trusted: names of further packages, modules, classes or functions that it may name.

    Raises:
        ConfigError: all that is wrong with it.
        OSError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
            raise ConfigError(
                [f"{path}: has a YAML alias (*name), of which a few fill the memory; write it out"]
            )
        config = OmegaConf.load(StringIO(text))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            [f"{path}: cannot be read as YAML: {' '.join(str(error).split())}"]
        ) from None
    except OSError as error:
        if error.errno is not None:
            raise
        config = None  # OmegaConf's word for a file that holds one value
    if not isinstance(config, DictConfig):
        raise ConfigError(
            [
                f"{path}: is no configuration, which is a mapping of sections such as model and optimizer"
            ]
        )
    check_targets(config, trusted)
    return config


def check_targets(config: Any, trusted: Sequence[str] = ()) -> None:
    """Checks every `_target_` of a config, at any depth, before anything is made of it.

    Args:
        config: as OmegaConf's nodes or as plain dicts and lists; interpolations are mistakes, and never resolved.
        trusted: names of further packages, modules, classes or functions that it may name.

    Raises:
        ConfigError: all that is not trusted.
    """
    try:
        mistakes = list(_mistakes(config, "", trusted))
    except RecursionError:
        mistakes = ["the configuration is nested too deeply, or in itself"]
    if mistakes:
        raise ConfigError(mistakes)


def _mistakes(node: Any, key: str, trusted: Sequence[str]) -> Iterator[str]:
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, Mapping):
        for name, value in node.items():
            below = f"{key}.{name}" if key else str(name)
            if "${" in str(name):
                yield f"{below}: an interpolation; write the value itself"
            match str(name).strip().casefold():
                case "_target_" if name != "_target_":
                    yield f"{below}: no such key; write _target_"
                case "_target_" if not (isinstance(value, str) and "${" in value):
                    if why := _distrust(value, trusted):
                        yield f"{below}: {value} {why}"
                case "_partial_" if not isinstance(value, bool):
                    yield f"{below}: {value!r} is neither true nor false"
            yield from _mistakes(value, below, trusted)
    elif isinstance(node, str):
        if "${" in node:
            yield f"{key}: {node} is an interpolation; write the value itself"
    elif isinstance(node, Sequence):
        for position, value in enumerate(node):
            yield from _mistakes(value, f"{key}[{position}]", trusted)


def _distrust(target: Any, trusted: Sequence[str]) -> str | None:
    """Why a target must not be called, and the way out; None if it may be."""
    if not isinstance(target, str) or "." not in target:
        return "is not the dotted name of a class or function"
    first, *rest = target.split(".")
    if not all(part.isidentifier() and not part.startswith("_") for part in (first, *rest)):
        return "is not a public name; write package.module.Class"
    if not _is_below(target, (*CLASSES, *FUNCTIONS, *trusted)):
        return _way_out(first)
    try:
        # By import alone, not by way of what another module has imported.
        parent = ".".join((first, *rest[:-1]))
        module = import_module(MOVED.get(parent, parent))
        found: Any = getattr(module, rest[-1])
        strays = _locate(first, rest) is not found
    except Exception as error:  # whatever a user's module raises when it is imported
        return f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
    if strays or not (inspect.isclass(found) or inspect.isroutine(found)):
        return "is no class or function of a module"
    defined = f"{found.__module__}.{found.__qualname__}"
    if not _is_below(defined, (*(CLASSES if inspect.isclass(found) else FUNCTIONS), *trusted)):
        return f"is {defined}, which {_way_out(str(found.__module__).split('.')[0])}"
    return None


def _locate(first: str, rest: Sequence[str]) -> Any:
    """What Hydra finds under a name: it takes an attribute where it can, a submodule else."""
    found: Any = import_module(first)
    for depth, part in enumerate(rest, 1):
        found = (
            getattr(found, part)
            if hasattr(found, part)
            else import_module(".".join((first, *rest[:depth])))
        )
    return found


def _is_below(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _way_out(package: str) -> str:
    return (
        "is none of the parts that a configuration from elsewhere may name; "
        f"if you trust its package with your machine, add it: 'trust=[{package}]' on a study's command, "
        f"--trust {package} with studyloom"
    )
