"""Decides which code a config from somebody else may name, since a `_target_` can be any function.

A target is trusted for where it is defined, and not for how its name begins:
`torch.nn.modules.module.torch.load` is not a layer. A target whose name is not trusted is not even
imported.
"""

import inspect
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import StringIO
from pathlib import Path
from shlex import quote
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from studyloom.errors import ConfigError
from studyloom.moved import MOVED

CLASSES = (
    *("studyloom.models", "studyloom.losses", "studyloom.data", "studyloom.space.grid"),
    *("studyloom.space.cmaes", "studyloom.study.promotion"),
    # Only these two launchers: others run commands from the config, or code on other machines.
    *("studyloom.launch.Join", "studyloom.launch.local.Join"),
    *("studyloom.launch.Local", "studyloom.launch.local.Local"),
    *("torch.nn", "torch.optim", "optuna.samplers", "optuna.pruners"),
)
# Not all of torch: some functions change the whole process, as register_module_forward_hook does.
FUNCTIONS = ("studyloom.schedules", "torch.nn.functional", "torch.nn.init")

ADAPTERS = "studyloom.extras.integrations"  # they run commands and code that the config names

LARGEST = 256 * 1024  # bytes of a file, which PyYAML reads in a second; a winner.yaml has 2 KiB

DEEPEST = 64  # levels of a file
OPENING = (
    *(yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken),
    *(yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken),
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def load_foreign(path: Path, trusted: Sequence[str] = ()) -> DictConfig:
    """Reads a config from elsewhere and checks its targets; calls nothing that it names.

    Args:
        path: a YAML file.
        trusted: further packages, modules, classes or functions that it may name.

    Raises:
        ConfigError: every mistake in it, and every target that is not trusted.
        OSError: the file cannot be read.
    """
    config = parse(read_text(path, path.parent), path)
    check_targets(config, trusted)
    return config


def read_text(path: Path, folder: Path) -> str:
    """Reads a file, unless it is a link out of its folder, no file, or too large.

    Raises:
        ConfigError: it is one of these, or is not UTF-8.
        OSError: it cannot be read.
    """
    real = path.resolve(strict=True)
    if not real.is_relative_to(folder.resolve()):
        raise ConfigError([f"{path}: is a link to {real}, outside of {folder}"])
    # Not blocking, since opening a FIFO would wait for its writer.
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError([f"{path}: is not a file"])
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ConfigError([f"{path}: is larger than {LARGEST // 1024} KiB"])
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: cannot be read as YAML: it is not UTF-8"]) from None


def parse(text: str, path: Path) -> DictConfig:
    """Parses YAML without aliases and tags.

    Args:
        text: the YAML.
        path: names the file in errors.

    Raises:
        ConfigError: it is no YAML, no mapping, or has an alias or a tag.
    """
    try:
        depth = 0
        for token in yaml.scan(text, yaml.SafeLoader):
            depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
            if depth > DEEPEST:  # PyYAML's time grows with the square of it
                raise ConfigError(
                    [f"{path}: cannot be read as YAML: it has more than {DEEPEST} levels"]
                )
            if isinstance(token, yaml.AliasToken):
                raise ConfigError(
                    [
                        f"{path}: has a YAML alias (*name), and a few of these can fill the "
                        "memory; write the value out"
                    ]
                )
            if isinstance(token, yaml.TagToken):
                raise ConfigError(
                    [f"{path}: cannot be read as YAML: it has a tag (!); write the value itself"]
                )
        config = OmegaConf.load(StringIO(text))
    except ConfigError:
        raise
    except OSError:
        config = None  # what OmegaConf raises for a file with a single value
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise ConfigError([f"{path}: cannot be read as YAML: {words}"]) from None
    if not isinstance(config, DictConfig):
        raise ConfigError(
            [f"{path}: a configuration must be a mapping of sections, such as model and optimizer"]
        )
    return config


def _no_interpolation(text: str) -> str:
    return f"{text} is an interpolation; write the value itself"


def check_targets(config: Any, trusted: Sequence[str] = ()) -> None:
    """Checks every `_target_` of a config, at any depth, before anything is built from it.

    Args:
        config: OmegaConf nodes, or plain dicts and lists. Interpolations are mistakes, and are
            never resolved.
        trusted: further packages, modules, classes or functions that it may name.

    Raises:
        ConfigError: every target that is not trusted, and every mistake.
    """
    try:
        mistakes = list(find_mistakes(config, trusted))
    except RecursionError:
        mistakes = ["the configuration is nested too deeply, or in itself"]
    if mistakes:
        raise ConfigError(mistakes)


def find_mistakes(
    config: Any, trusted: Sequence[str], explain: Callable[[str], str | None] = _no_interpolation
) -> Iterator[str]:
    """Finds every target of a config that is not trusted, and every other mistake.

    Args:
        config: OmegaConf nodes, or plain dicts and lists.
        trusted: further packages, modules, classes or functions that it may name.
        explain: says of a text with an interpolation why it is a mistake; None if it is not.

    Raises:
        RecursionError: the config is nested too deeply, or in itself.
    """
    yield from _mistakes(config, "", trusted, explain)


def _mistakes(
    node: Any, key: str, trusted: Sequence[str], explain: Callable[[str], str | None]
) -> Iterator[str]:
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, Mapping):
        for name, value in node.items():
            below = f"{key}.{name}" if key else str(name)
            if "${" in str(name):
                yield f"{below}: the key has an interpolation; write the key itself"
            match str(name).strip().casefold():
                case "_target_" if name != "_target_":
                    yield f"{below}: no such key; write _target_"
                case "_target_" if not (isinstance(value, str) and "${" in value):
                    if why := _distrust(value, trusted):
                        yield f"{below}: {value} {why}"
                case "_partial_" if not isinstance(value, bool):
                    yield f"{below} must be true or false; got {value!r}"
            name_only = _no_interpolation if name == "_target_" else explain
            yield from _mistakes(value, below, trusted, name_only)
    elif isinstance(node, str):
        if "${" in node and (why := explain(node)):
            yield f"{key}: {why}"
    elif isinstance(node, Sequence):
        for position, value in enumerate(node):
            yield from _mistakes(value, f"{key}[{position}]", trusted, explain)


def _distrust(target: Any, trusted: Sequence[str]) -> str | None:
    """Explains why a target must not be called, with the way out; None if it may be called."""
    if not isinstance(target, str) or "." not in target:
        return "is not the dotted name of a class or function"
    first, *rest = target.split(".")
    if not all(part.isidentifier() and not part.startswith("_") for part in (first, *rest)):
        return "is not a public name; write package.module.Class"
    if not is_below(target, (*CLASSES, *FUNCTIONS, *trusted)):
        return _way_out(ADAPTERS if is_below(target, (ADAPTERS,)) else first)
    try:
        # By import alone, and not through a module that has imported another one.
        parent = ".".join((first, *rest[:-1]))
        module = import_module(MOVED.get(parent, parent))
        member: Any = getattr(module, rest[-1])
        strays = _locate(first, rest) is not member
    except Exception as error:  # whatever a user's module raises when it is imported
        return f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
    if strays or not (inspect.isclass(member) or inspect.isroutine(member)):
        return "is not a class or function of a module"
    defined = f"{member.__module__}.{member.__qualname__}"
    ours = CLASSES if inspect.isclass(member) else FUNCTIONS
    if not is_below(defined, (*ours, *trusted)):
        return f"is {defined}, which {_way_out(str(member.__module__).split('.')[0])}"
    return None


def _locate(first: str, rest: Sequence[str]) -> Any:
    """Returns what Hydra finds under a name: an attribute if there is one, else a submodule."""
    member: Any = import_module(first)
    for depth, part in enumerate(rest, 1):
        if hasattr(member, part):
            member = getattr(member, part)
        else:
            member = import_module(".".join((first, *rest[:depth])))
    return member


def is_below(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted name is one of the prefixes, or below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _way_out(package: str) -> str:
    return (
        "is not among the code that a configuration from elsewhere may name; if you trust its "
        f"package with your machine, add 'trust=[{package}]' to a study's command, or "
        f"--trust {package} to a studyloom command"
    )


def packages_to_trust(config: Any) -> list[str]:
    """Returns what a command must trust for a config of its own study.

    Args:
        config: plain values, or a list of such.

    Returns:
        the packages of the targets that are not trusted anyway; of one in studyloom, PyTorch or
        Optuna the target itself.
    """
    found = {
        target if target.split(".")[0] in ("studyloom", "torch", "optuna") else target.split(".")[0]
        for target in _targets(config)
        if not is_below(target, (*CLASSES, *FUNCTIONS))
    }
    return sorted(found)


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list | tuple):
        for value in node:
            yield from _targets(value)


@contextmanager
def code_of_study(run_dir: Path, folder: Path | None, *, wanted: bool = True) -> Iterator[None]:
    """Has a study's own modules found while the body runs, if the user consents.

    They are where the study was run, and its run directory, which may be another person's, says
    where that is. The user consents by being in that folder, or by naming it with `--code`. It
    comes last on the module path, so that it hides no other package.

    Args:
        run_dir: of the study.
        folder: that the user named; None for none.
        wanted: whether being in the folder is consent.

    Raises:
        ConfigError: as the body raised it; if a module was not found, with the way out.
    """
    recorded = _folder_of_run(run_dir)
    if folder is None and wanted and recorded is not None and recorded == Path.cwd():
        folder = recorded
    if folder is not None:
        sys.path.append(str(folder.absolute()))
    try:
        yield
    except ConfigError as error:
        missing = any("No module named" in mistake for mistake in error.mistakes)
        if not missing or folder is not None or recorded is None:
            raise
        way_out = f"if you trust the code there, go there, or add --code {quote(str(recorded))}"
        hint = f"{run_dir}: the study was run in {recorded}; {way_out}"
        raise ConfigError([*error.mistakes, hint]) from None
    finally:
        if folder is not None:
            sys.path.remove(str(folder.absolute()))


def _folder_of_run(run_dir: Path) -> Path | None:
    """Returns the working directory of the command that last ran in a run directory, if known."""
    try:
        text = (run_dir / ".hydra" / "hydra.yaml").read_text()
        return Path(str(yaml.safe_load(text)["hydra"]["runtime"]["cwd"]))
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, RecursionError):
        return None
