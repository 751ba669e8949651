"""Untrusted configs and run directories are data: what they may set, and which code they name.

A `_target_` can be any function, so it is trusted by where it is defined, not by the beginning of
its name: `torch.nn.modules.module.torch.load` is not a layer. An untrusted target is not even
imported; `trust=[mypackage]` on the command line trusts a package. Settings that access resources
outside the study (a file, a database, a launcher) are refused.
"""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from studyloom.config.schema import SCHEMA
from studyloom.errors import ConfigError
from studyloom.files import is_trusted, read_text
from studyloom.moved import MOVED
from studyloom.text import describe_unknown_key, name_error, nearest
from studyloom.user_code.importing import ELSEWHERE, find_member, script_as_main, seeding_imports
from studyloom.user_code.pickled import MAIN

CLASSES = (
    *("studyloom.models", "studyloom.losses", "studyloom.data", "studyloom.decisions.samplers"),
    *("studyloom.decisions.gaussian_process", "studyloom.decisions.asha", "studyloom.optimizers"),
    # Only these two launchers: others run commands from the config, or code on other machines.
    *("studyloom.worker.Join", "studyloom.worker.local.Join"),
    *("studyloom.worker.Local", "studyloom.worker.local.Local"),
    *("torch.nn", "torch.optim", "optuna.samplers", "optuna.pruners"),
)
# Not all of torch: some functions change the whole process, as register_module_forward_hook does.
FUNCTIONS = (
    *("studyloom.schedules", "studyloom.decisions.asha.default_pruner"),
    *("torch.nn.functional", "torch.nn.init"),
)
# To be trusted as a package, since its classes are defined in modules of it.
INTEGRATIONS = "studyloom.extras.integrations"

SECTIONS = tuple(str(key) for key in SCHEMA)
# The sections that a space may search.
SEARCHED = ("params", "model", "optimizer", "scheduler", "loss", "sampler", "pruner", "train")
OPEN = (*SEARCHED, "study", "objective", "winner", "cost", "data", "space")
NEVER = ("hydra", "trust", "defaults")
CLOSED = ("study.warm_start", "study.accept_code_change")  # keys of open sections that reach out
PATHS = ("root", "path", "_args_")  # arguments of data sources that name files
# Each primary config of studyloom ends with these, which switch Hydra's logging off.
SILENT = re.compile(r"override /?hydra/(job|hydra)_logging: (none|disabled)")
OWN_FILE = re.compile(r"studyloom:[\w.-]+")
REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)(?:\.\w+)*\}")
MOST_EVENTS = 20_000  # of the parser, in an untrusted file: a run writes some hundreds
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
REACHES_OUT = (
    "reaches outside the study, which an untrusted config must not; remove it, or review the file "
    "and copy it next to your own configs (in a run directory, `studyloom status RUN_DIR "
    "--trust-config` is enough)"
)
# An error in words, and the package that `trust=[…]` must name to allow it; None if nothing helps.
Mistake = tuple[str, str | None]


@dataclass
class TrustRules:
    """The trust rules in force while a command composes its config.

    Args:
        own: folders whose files are the user's own, and are not checked.
        trusted: packages on the command line's `trust=[…]`.
        read_untrusted: whether an untrusted config was read.
    """

    own: tuple[Path, ...]
    trusted: tuple[str, ...] = ()
    read_untrusted: bool = False

    def owns(self, folder: Path) -> bool:
        """Whether a folder of configs is the user's own, or studyloom's."""
        within = any(folder.resolve().is_relative_to(own.resolve()) for own in self.own)
        return within or is_trusted(folder)

    def check(self, folder: Path, name: str, config: Any, package: str | None) -> None:
        """Checks a config of an untrusted folder, such as model/mlp, and its header's package.

        Raises:
            ConfigError: all errors in it.
        """
        self.read_untrusted, name = True, name.removesuffix(".yaml")
        plain: Any = OmegaConf.to_container(config, resolve=False)
        if not isinstance(plain, dict):
            raise ConfigError(f"{folder / name}.yaml: must be a mapping of sections")
        found = [*_default_errors(plain.pop("defaults", []))]
        if package not in (None, "_global_", "_group_"):
            found.append("the header must be `# @package _global_`, or none")
        if package != "_global_":
            for group in reversed(name.split("/")[:-1]):
                plain = {group: plain}
        found += content_errors(plain, self.trusted)
        if found:
            raise ConfigError([f"{folder / name}.yaml: {words}" for words in found])


_active: list[TrustRules | None] = []


def active() -> TrustRules | None:
    """Returns the rules of the running command; None outside of one, or in the user's code."""
    return _active[-1] if _active else None


def in_own_code() -> bool:
    """Whether the user's own code composes configs, see `in_force`."""
    return bool(_active) and _active[-1] is None


@contextmanager
def in_force(rules: TrustRules | None) -> Iterator[None]:
    """Applies trust rules while the body runs: Hydra reads files of untrusted folders as data.

    Args:
        rules: None where the user's code composes configs, which may lie anywhere.
    """
    _active.append(rules)
    try:
        yield
    finally:
        _active.pop()


def read_yaml(path: Path, *, trusted: bool = False) -> DictConfig:
    """Reads a YAML file as data.

    Args:
        trusted: whether its folder is trusted. If not, it must be as small as the files
            of a run, and have no aliases, which could expand without bound.

    Raises:
        ConfigError: it is not YAML, not a mapping, or exceeds these limits.
    """
    try:
        text = read_text(path, trusted=trusted)
        for count, event in enumerate([] if trusted else yaml.parse(text, LOADER)):
            if count > MOST_EVENTS or isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it has an alias, or more than {MOST_EVENTS} values")
        config = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML: {words}") from None
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path}: a configuration must be a mapping of sections")
    return config


def consent(run_dir: Path, trusted: Sequence[str]) -> Sequence[str] | None:
    """Returns the packages that files of a run directory may name; None for all, if it is own."""
    return None if is_trusted(run_dir) else trusted


def check_targets(config: Any, trusted: Sequence[str] | None = ()) -> None:
    """Checks every `_target_` of a config, at any depth, before anything is built from it.

    Args:
        config: OmegaConf nodes, or plain values. Interpolations are errors, and are not resolved.
        trusted: further packages, modules, classes or functions that it may name; None for all.

    Raises:
        ConfigError: every target that is not trusted, and all other errors.
    """
    if trusted is None:
        return
    if errors := [words for words, _ in _find(config, "", trusted, references=False)]:
        raise ConfigError(errors)


def check_section(key: str, section: Any) -> None:
    """Checks a section before it is built, if the command has read an untrusted config.

    The untrusted config may set arguments of the user's code, so the whole section is checked.
    """
    rules = active()
    if rules is not None and rules.read_untrusted:
        check_targets({key: section}, rules.trusted)


def packages_to_trust(config: Any) -> list[str]:
    """Returns the packages to trust for the targets in the plain config of the user's study."""
    found = _find(config, "", (), references=True)
    return sorted({need for _, need in found if need is not None})


def content_errors(config: Any, trusted: Sequence[str]) -> Iterator[str]:
    """Finds forbidden settings in sections of an untrusted config, as plain values."""
    for section, content in config.items():
        if section in NEVER:
            yield f"{section}: must not be set by an untrusted config"
        elif section not in SECTIONS:
            yield describe_unknown_key(str(section), [key for key in SECTIONS if key not in NEVER])
        elif section not in OPEN and content is not None:
            yield f"{section} {REACHES_OUT}"
        elif isinstance(content, Mapping):
            yield from _section_errors(section, content, trusted)
    yield from (words for words, _ in _find(config, "", trusted, references=True))


def _section_errors(
    section: str, content: Mapping[str, Any], trusted: Sequence[str]
) -> Iterator[str]:
    """Finds keys of a section that access resources outside the study."""
    target = str(content.get("_target_"))
    # Who trusts the package of a data source, or of an objective, trusts it with its arguments.
    theirs = is_below(target, trusted) and not is_below(target, ("studyloom",))
    known = [str(key) for key in SCHEMA.objective]
    for name, value in content.items():
        key = f"{section}.{name}"
        if value is None or key == "space.where":
            continue
        if section == "data" and (not theirs or isinstance(value, Mapping)):
            yield from _path_errors(value, key)
        elif section == "objective" and name not in known and not theirs:
            yield f"{key} {REACHES_OUT}{nearest(name, known)}"
        elif (section == "space" and str(name).split(".")[0] not in SEARCHED) or key in CLOSED:
            yield f"{key} {REACHES_OUT}"


def _path_errors(value: Any, key: str) -> Iterator[str]:
    """Finds settings below a data source that name a file or folder."""
    name = key.rpartition(".")[2]
    if name == "_target_" or value in (None, []):
        return
    named = name in PATHS or (isinstance(value, str) and re.search(r"[/\\]|^~", value))
    if named and not (isinstance(value, str) and OWN_FILE.fullmatch(value)):
        yield f"{key} {REACHES_OUT}"
    elif isinstance(value, Mapping):
        for inner, below in value.items():
            yield from _path_errors(below, f"{key}.{inner}")
    elif isinstance(value, list):
        for below in value:
            yield from _path_errors(below, key)


def _default_errors(defaults: Any) -> Iterator[str]:
    """Finds the entries of a defaults list that override Hydra's options, or move an option.

    Files that other entries name are read as data, or are the user's own.
    """
    yield from (words for words, _ in _find(defaults, "defaults", (), references=False))
    for item in defaults if isinstance(defaults, list) else [defaults]:
        shown = str(item).strip("{}").replace("'", "")
        is_hydras = re.search(r"(^|[\s/])hydra/", shown) and not SILENT.fullmatch(shown)
        if is_hydras or "@" in shown:
            yield f"defaults: {shown} must neither set options of Hydra nor move an option with @"


def _find(node: Any, key: str, trusted: Sequence[str], *, references: bool) -> Iterator[Mistake]:
    """Finds the targets of a config that are not trusted, and its interpolations.

    Args:
        references: whether `${section.key}` is allowed.
    """
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, Mapping):
        for name, value in node.items():
            below = f"{key}.{name}" if key else str(name)
            is_target = str(name).strip().casefold() == "_target_"
            if is_target and "${" not in str(value) and (why := _distrust(value, trusted)):
                yield f"{below}: {value} {why[0]}", why[1]
            if "${" in str(name):
                yield f"{below}: the key must not have an interpolation", None
            yield from _find(value, below, trusted, references=references and not is_target)
    elif isinstance(node, str):
        sections = REFERENCE.findall(node) if references else []
        rest = REFERENCE.sub("", node) if references else node
        if "${" in rest or any(each not in (*OPEN, "run_dir") for each in sections):
            ways = "; only ${section.key} is possible" if references else "; write the value itself"
            yield f"{key}: {node} must not be an interpolation{ways}", None
    elif isinstance(node, Sequence):
        for position, value in enumerate(node):
            yield from _find(value, f"{key}[{position}]", trusted, references=references)


def _distrust(target: Any, trusted: Sequence[str]) -> Mistake | None:
    """Explains why a target must not be called, and what to trust; None if it may be called."""
    if not isinstance(target, str) or "." not in target:
        return "is not the dotted name of a class or function", None
    first = target.split(".")[0]
    need = target if first in ("studyloom", "torch", "optuna") else first
    if is_below(target, (INTEGRATIONS,)):
        need = INTEGRATIONS
    if not is_below(target, (*CLASSES, *FUNCTIONS, *trusted)):
        return ELSEWHERE if target.startswith(MAIN) else _way_out(need), need
    parent, _, name = target.rpartition(".")
    try:
        member = find_member(f"{MOVED.get(parent, parent)}.{name}")
    except Exception as error:  # whatever a user's module raises when it is imported
        return f"cannot be imported: {name_error(error)}", None
    if not (inspect.isclass(member) or inspect.isroutine(member)):
        return "is not a class or function of a module", None
    defined = f"{member.__module__}.{member.__qualname__}"
    if not is_below(defined, (*(CLASSES if inspect.isclass(member) else FUNCTIONS), *trusted)):
        need = str(member.__module__).split(".")[0]
        return f"is {defined}, which {_way_out(need)}", need
    return None


def is_below(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted name is one of the prefixes, or below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _way_out(need: str) -> str:
    return (
        "is not among the code that an untrusted configuration may name; if you trust it with "
        f"your machine, add 'trust=[{need}]' to a study's command, or --trust {need} to a "
        "studyloom command"
    )


@contextmanager
def seeding_as(run_dir: Path) -> Iterator[None]:
    """Seeds the user's modules that the body imports as the study of a run directory does."""
    seed = None
    with suppress(OSError, ConfigError, OmegaConfBaseException):
        config = read_yaml(run_dir / ".hydra" / "config.yaml", trusted=is_trusted(run_dir))
        seed = OmegaConf.select(config, "study.seed")
    with seeding_imports(seed) if isinstance(seed, int) else nullcontext():
        yield


@contextmanager
def code_of_study(run_dir: Path, folder: Path | None, *, wanted: bool = True) -> Iterator[None]:
    """Adds the folder of a study's modules to the module path in the body, if the user consents.

    They are where the study was run, as its run directory says, which may be untrusted. The user
    consents by having run the study, by working in that folder, if that is `wanted`, or by naming a
    `folder` with `--code`. It comes last on the module path, so that it hides no other package.
    The script that searched is imported only in the user's own run directory.
    """
    recorded, given = None, folder
    with suppress(OSError, ConfigError, OmegaConfBaseException):
        runtime = read_yaml(run_dir / ".hydra" / "hydra.yaml", trusted=is_trusted(run_dir))
        recorded = Path(str(OmegaConf.select(runtime, "hydra.runtime.cwd")))
    if folder is None and (is_trusted(run_dir) or (wanted and recorded == Path.cwd())):
        folder = recorded
    if folder is not None:
        sys.path.append(str(folder.absolute()))
    try:
        with seeding_as(run_dir), script_as_main(run_dir, given):
            yield
    except ConfigError as error:
        missing = any("No module named" in line for line in error.errors)
        if not missing or folder is not None or recorded is None:
            raise
        way_out = f"if you trust the code there, go there, or add --code {quote(str(recorded))}"
        hint = f"{run_dir}: the study was run in {recorded}; {way_out}"
        raise ConfigError([*error.errors, hint]) from None
    finally:
        if folder is not None:
            sys.path.remove(str(folder.absolute()))
