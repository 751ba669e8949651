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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from studyloom.config.schema import SCHEMA
from studyloom.config.values import written_values
from studyloom.errors import ConfigError
from studyloom.files import is_trusted, read_text
from studyloom.moved import MOVED
from studyloom.text import describe_unknown_key, name_error, nearest
from studyloom.user_code.importing import (
    IS_DEFINED_ELSEWHERE,
    find_member,
    script_as_main,
    seeding_imports,
)
from studyloom.user_code.pickled import MAIN

TRUSTED_CLASSES = (
    "studyloom.models",
    "studyloom.losses",
    "studyloom.data",
    "studyloom.decisions.samplers",
    "studyloom.decisions.auto_sampler",
    "studyloom.decisions.gaussian_process_sampler",
    "studyloom.decisions.asha",
    "studyloom.optimizers",
    # Only these two launchers: others run commands from the config, or code on other machines.
    "studyloom.worker.Join",
    "studyloom.worker.local.Join",
    "studyloom.worker.Local",
    "studyloom.worker.local.Local",
    "torch.nn",
    "torch.optim",
    "optuna.samplers",
    "optuna.pruners",
)
# Not all of torch: some functions change the whole process, as register_module_forward_hook does.
TRUSTED_FUNCTIONS = (
    "studyloom.schedules",
    "studyloom.decisions.auto_pruner.default_pruner",
    "torch.nn.functional",
    "torch.nn.init",
)
# To be trusted as a package, since its classes are defined in modules of it.
INTEGRATIONS = "studyloom.extras.integrations"

SECTIONS = tuple(str(key) for key in SCHEMA)
# The sections that a space may search.
SEARCHABLE_SECTIONS = (
    "params",
    "model",
    "optimizer",
    "scheduler",
    "loss",
    "sampler",
    "pruner",
    "train",
)
ALLOWED_SECTIONS = (*SEARCHABLE_SECTIONS, "study", "objective", "winner", "cost", "data", "space")
FORBIDDEN_SECTIONS = ("hydra", "trust", "defaults")
# Keys of allowed sections that access something outside of the study.
FORBIDDEN_KEYS = ("study.warm_start", "study.accept_code_change")
PATH_ARGUMENTS = ("root", "path", "_args_")  # arguments of data sources that name files
# Each primary config of studyloom ends with these, which switch Hydra's logging off, such as
# `override hydra/job_logging: none`.
LOGGING_OFF = re.compile(r"override /?hydra/(job|hydra)_logging: (none|disabled)")
OWN_FILE = re.compile(r"studyloom:[\w.-]+")  # a file in the package, such as studyloom:digits.csv
REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)(?:\.\w+)*\}")  # such as ${train.epochs}, with `train`
PATH_MARK = re.compile(r"[/\\]|^~")  # what shows that a text is a path
# An entry of a defaults list that sets an option of Hydra, such as `override /hydra/launcher: x`.
HYDRA_ENTRY = re.compile(r"(^|[\s/])hydra/")
MOST_EVENTS = 20_000  # of the parser, in an untrusted file: a run writes some hundreds
if hasattr(yaml, "CSafeLoader"):
    YAML_LOADER = yaml.CSafeLoader
else:
    YAML_LOADER = yaml.SafeLoader
REACHES_OUT = (
    "reaches outside the study, which an untrusted config must not; remove it, or review the file "
    "and copy it next to your own configs (in a run directory, `studyloom status RUN_DIR "
    "--trust-config` is enough)"
)


@dataclass(frozen=True)
class Violation:
    """A part of an untrusted config that is not allowed.

    Attributes:
        reason: why it is not allowed.
        package: the package that `trust=[…]` must name to allow it; None if nothing helps.
    """

    reason: str
    package: str | None = None


@dataclass
class TrustRules:
    """The trust rules in force while a command composes its config.

    Args:
        own_folders: folders whose files are the user's own, and are not checked.
        trusted: packages on the command line's `trust=[…]`.
        read_untrusted: whether an untrusted config was read.
    """

    own_folders: tuple[Path, ...]
    trusted: tuple[str, ...] = ()
    read_untrusted: bool = False

    def trusts_folder(self, folder: Path) -> bool:
        """Returns whether a folder of configs is the user's own, or studyloom's."""
        resolved = folder.resolve()
        for own_folder in self.own_folders:
            if resolved.is_relative_to(own_folder.resolve()):
                return True
        return is_trusted(folder)

    def check(self, folder: Path, name: str, config: object, package: str | None) -> None:
        """Checks a config of an untrusted folder, before Hydra composes it.

        Args:
            name: the config's path in the folder, such as model/mlp.
            package: the section into which the header of the file puts the config. `_global_`, of
                `# @package _global_`, is the top level. `_group_`, or None without a header, is the
                section of the config's group: `model` for model/mlp. Any other is refused: it would
                move the config to a section whose rules were not checked.

        Raises:
            ConfigError: all errors in it.
        """
        self.read_untrusted = True
        path = folder / f"{name.removesuffix('.yaml')}.yaml"
        sections = written_values(config)
        if not isinstance(sections, dict):
            raise ConfigError(f"{path}: must be a mapping of sections")
        errors = [*_find_defaults_errors(sections.pop("defaults", []))]
        if package not in (None, "_global_", "_group_"):
            errors.append("the header must be `# @package _global_`, or none")
        if package != "_global_":
            groups = name.split("/")[:-1]
            for group in reversed(groups):
                sections = {group: sections}
        errors += find_content_errors(sections, self.trusted)
        if errors:
            raise ConfigError([f"{path}: {error}" for error in errors])


_rules_in_force: list[TrustRules | None] = []  # of nested bodies of `in_force`, the innermost last


def active() -> TrustRules | None:
    """Returns the rules of the running command; None outside of one, or in the user's code."""
    if not _rules_in_force:
        return None
    return _rules_in_force[-1]


def in_own_code() -> bool:
    """Returns whether the user's own code is composing configs: `in_force(None)` is in effect."""
    return bool(_rules_in_force) and _rules_in_force[-1] is None


@contextmanager
def in_force(rules: TrustRules | None) -> Iterator[None]:
    """Applies trust rules while the body runs: Hydra reads files of untrusted folders as data.

    Args:
        rules: None where the user's code composes configs, which may lie anywhere.
    """
    _rules_in_force.append(rules)
    try:
        yield
    finally:
        _rules_in_force.pop()


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
        if not trusted:
            _check_size(text)
        config = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML: {reason}") from None
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path}: a configuration must be a mapping of sections")
    return config


def _check_size(text: str) -> None:
    """Raises ValueError if YAML has aliases, or more values than a run writes.

    An alias such as `*other` repeats a value; nested ones can expand a small file without bound.
    """
    for count, event in enumerate(yaml.parse(text, YAML_LOADER)):
        if count > MOST_EVENTS or isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias, or more than {MOST_EVENTS} values")


def find_trusted_packages(run_dir: Path, trusted: Sequence[str]) -> Sequence[str] | None:
    """Returns the packages that the files of a run directory may name.

    Args:
        trusted: the packages that the user trusts in any case.

    Returns:
        None for all packages, if the directory itself is trusted.
    """
    if is_trusted(run_dir):
        return None
    return trusted


def check_targets(config: object, trusted: Sequence[str] | None = ()) -> None:
    """Checks every `_target_` of a config, at any depth, before anything is built from it.

    Args:
        config: OmegaConf nodes, or plain values. Interpolations are errors, and are not resolved.
        trusted: further packages, modules, classes or functions that it may name; None for all.

    Raises:
        ConfigError: every target that is not trusted, and all other errors.
    """
    if trusted is None:
        return
    violations = _find_violations(config, "", trusted, allows_references=False)
    errors = [violation.reason for violation in violations]
    if errors:
        raise ConfigError(errors)


def check_section(key: str, section: object) -> None:
    """Checks a section before it is built, if the command has read an untrusted config.

    The untrusted config may set arguments of the user's code, so the whole section is checked.
    """
    rules = active()
    if rules is not None and rules.read_untrusted:
        check_targets({key: section}, rules.trusted)


def packages_to_trust(config: object) -> list[str]:
    """Returns the packages to trust for the targets in the plain config of the user's study."""
    packages = set()
    for violation in _find_violations(config, "", (), allows_references=True):
        if violation.package is not None:
            packages.add(violation.package)
    return sorted(packages)


def find_content_errors(config: Mapping[str, object], trusted: Sequence[str]) -> Iterator[str]:
    """Yields an error for each setting that an untrusted config must not have.

    Args:
        config: its sections, as plain values.
        trusted: packages, modules, classes or functions that it may name.
    """
    for section, content in config.items():
        if section in FORBIDDEN_SECTIONS:
            yield f"{section}: must not be set by an untrusted config"
        elif section not in SECTIONS:
            allowed_sections = [name for name in SECTIONS if name not in FORBIDDEN_SECTIONS]
            yield describe_unknown_key(str(section), allowed_sections)
        elif section not in ALLOWED_SECTIONS and content is not None:
            # Such as `storage`, which names a database, or `launcher`, which may run commands.
            yield f"{section} {REACHES_OUT}"
        elif isinstance(content, Mapping):
            yield from _find_section_errors(section, content, trusted)
    for violation in _find_violations(config, "", trusted, allows_references=True):
        yield violation.reason


def _find_section_errors(
    section: str, content: Mapping[str, object], trusted: Sequence[str]
) -> Iterator[str]:
    """Yields an error for each key of a section that accesses resources outside the study.

    These are:
    - in `data`, the paths of files;
    - in `objective`, the arguments of the user's function;
    - in `space`, the sections that cannot be searched, such as `storage`;
    - the keys in FORBIDDEN_KEYS.

    A user who trusts the package of a data source or objective also trusts it with its arguments,
    such as the path of a file.

    Args:
        content: the keys of the section, with their values.
        trusted: packages that the user trusts.
    """
    target = str(content.get("_target_"))
    trusts_target = is_below(target, trusted) and not is_below(target, ("studyloom",))
    objective_keys = [str(key) for key in SCHEMA.objective]
    for name, value in content.items():
        key = f"{section}.{name}"
        if value is None or key == "space.where":
            continue
        # A mapping may be a section within the data source, with a target of its own.
        if section == "data" and (not trusts_target or isinstance(value, Mapping)):
            yield from _find_path_errors(value, key)
        elif section == "objective" and name not in objective_keys and not trusts_target:
            yield f"{key} {REACHES_OUT}{nearest(name, objective_keys)}"
        elif section == "space":  # `space.model` has ranges of the section `model`
            searched_section = str(name).partition(".")[0]
            if searched_section not in SEARCHABLE_SECTIONS:
                yield f"{key} {REACHES_OUT}"
        elif key in FORBIDDEN_KEYS:
            yield f"{key} {REACHES_OUT}"


def _find_path_errors(value: object, key: str) -> Iterator[str]:
    """Yields an error for each setting within a data source that names a file or folder.

    A file of studyloom's own package may be named.
    """
    name = key.rpartition(".")[2]
    if name == "_target_" or value in (None, []):
        return
    if isinstance(value, str):
        is_path = name in PATH_ARGUMENTS or PATH_MARK.search(value) is not None
        if is_path and OWN_FILE.fullmatch(value) is None:
            yield f"{key} {REACHES_OUT}"
    elif name in PATH_ARGUMENTS:
        yield f"{key} {REACHES_OUT}"
    elif isinstance(value, Mapping):
        for inner_name, inner in value.items():
            yield from _find_path_errors(inner, f"{key}.{inner_name}")
    elif isinstance(value, list):
        for item in value:
            yield from _find_path_errors(item, key)


def _find_defaults_errors(defaults: object) -> Iterator[str]:
    """Yields an error for each entry of a defaults list that an untrusted config must not have.

    Entries must not set options of Hydra, which may run code, except those that switch Hydra's
    logging off. Nor must they move an option to another section with @. The files that entries
    name need no check here: each is checked when it is read.
    """
    for violation in _find_violations(defaults, "defaults", (), allows_references=False):
        yield violation.reason
    if not isinstance(defaults, list):
        defaults = [defaults]
    for item in defaults:
        entry = str(item).strip("{}").replace("'", "")  # `{'model': 'mlp'}` as in YAML
        switches_logging_off = LOGGING_OFF.fullmatch(entry) is not None
        sets_hydra = HYDRA_ENTRY.search(entry) is not None and not switches_logging_off
        if sets_hydra or "@" in entry:
            yield f"defaults: {entry} must neither set options of Hydra nor move an option with @"


def _find_violations(
    node: object, key: str, trusted: Sequence[str], *, allows_references: bool
) -> Iterator[Violation]:
    """Yields what is not allowed in a config: targets that are not trusted, and interpolations.

    An interpolation could name a target, or read an environment variable.

    Args:
        node: the config, or a part of it at any depth.
        key: the key of the node; empty for a whole config.
        trusted: packages, modules, classes or functions that it may name.
        allows_references: whether values may be `${section.key}`; never those of targets.
    """
    if OmegaConf.is_config(node):
        node = written_values(node)
    if isinstance(node, Mapping):
        for name, value in node.items():
            inner_key = f"{key}.{name}".removeprefix(".")
            # Hydra builds only `_target_`. Other spellings are checked too, to be on the safe side.
            is_target = str(name).strip().casefold() == "_target_"
            if is_target and "${" not in str(value):
                violation = _check_target(value, trusted)
                if violation is not None:
                    yield replace(violation, reason=f"{inner_key}: {value} {violation.reason}")
            if "${" in str(name):
                yield Violation(f"{inner_key}: the key must not have an interpolation")
            yield from _find_violations(
                value, inner_key, trusted, allows_references=allows_references and not is_target
            )
    elif isinstance(node, str):
        violation = _check_interpolations(node, key, allows_references=allows_references)
        if violation is not None:
            yield violation
    elif isinstance(node, Sequence):
        for position, item in enumerate(node):
            yield from _find_violations(
                item, f"{key}[{position}]", trusted, allows_references=allows_references
            )


def _check_interpolations(text: str, key: str, *, allows_references: bool) -> Violation | None:
    """Explains which interpolation a text must not have; None if it has none of these.

    Args:
        key: the key of the text.
        allows_references: whether it may have `${section.key}` of sections that a study may set.
    """
    if "${" not in text:
        return None
    if not allows_references:
        reason = "must not be an interpolation; write the value itself"
        return Violation(f"{key}: {text} {reason}")
    has_only_references = "${" not in REFERENCE.sub("", text)
    sections = set(REFERENCE.findall(text))
    if has_only_references and sections.issubset((*ALLOWED_SECTIONS, "run_dir")):
        return None
    reason = "must not be an interpolation; only ${section.key} is possible"
    return Violation(f"{key}: {text} {reason}")


def _check_target(target: object, trusted: Sequence[str]) -> Violation | None:
    """Explains why a target must not be called; None if it may be called.

    The name is checked before the import, which runs code. The place where the class or function is
    defined is checked afterwards: `torch.nn.modules.module.torch.load` begins like the name of a
    layer of torch.nn, but it is torch.load, which opens files.

    Args:
        target: the value of a `_target_`.
        trusted: further packages, modules, classes or functions that may be named.
    """
    if not isinstance(target, str) or "." not in target:
        return Violation("is not the dotted name of a class or function")
    # First, the name.
    if not is_below(target, (*TRUSTED_CLASSES, *TRUSTED_FUNCTIONS, *trusted)):
        package = _find_package_to_trust(target)
        is_in_script = target.startswith(MAIN)  # "__main__.": a script or notebook defines it
        if is_in_script:
            return Violation(IS_DEFINED_ELSEWHERE, package)
        return Violation(_explain_trust(package), package)

    # Second, what the name leads to.
    module, _, name = target.rpartition(".")
    # An earlier version of studyloom, whose module has moved since, may have written the config.
    current_module = MOVED.get(module, module)
    try:
        member = find_member(f"{current_module}.{name}")
    except Exception as error:  # whatever a user's module raises when it is imported
        return Violation(f"cannot be imported: {name_error(error)}")
    trusted_parts: Sequence[str]
    if inspect.isclass(member):
        trusted_parts = TRUSTED_CLASSES
    elif inspect.isroutine(member):
        trusted_parts = TRUSTED_FUNCTIONS
    else:
        return Violation("is not a class or function of a module")
    definition = f"{member.__module__}.{member.__qualname__}"
    if is_below(definition, (*trusted_parts, *trusted)):
        return None
    package = str(member.__module__).split(".")[0]
    return Violation(f"is {definition}, which {_explain_trust(package)}", package)


def _find_package_to_trust(target: str) -> str:
    """Returns the package to trust for a target; in large packages, the target itself."""
    if is_below(target, (INTEGRATIONS,)):
        return INTEGRATIONS
    package = target.split(".")[0]
    if package in ("studyloom", "torch", "optuna"):
        return target
    return package


def is_below(name: str, prefixes: Sequence[str]) -> bool:
    """Returns whether a dotted name is one of the prefixes, or lies below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _explain_trust(package: str) -> str:
    """Returns the end of an error, which says how to trust a package."""
    return (
        "is not among the code that an untrusted configuration may name; if you trust it with "
        f"your machine, add 'trust=[{package}]' to a study's command, or --trust {package} to a "
        "studyloom command"
    )


@contextmanager
def seeding_as(run_dir: Path) -> Iterator[None]:
    """Seeds the imports of the user's modules in the body as the study of a run directory does.

    A module that draws random numbers when it is imported then draws the same.
    """
    seed = _read_recorded(run_dir, "config.yaml", "study.seed")
    if isinstance(seed, int):
        with seeding_imports(seed):
            yield
    else:
        yield


@contextmanager
def code_of_study(
    run_dir: Path, folder: Path | None, *, trusts_working_folder: bool = True
) -> Iterator[None]:
    """Lets the body import a study's modules, if the user consents.

    The folder of the modules is added to the end of the module path, where it hides no other
    package. The script that searched is imported only in the user's own run directory.

    Args:
        run_dir: a run directory, which may be untrusted. It records in which folder the study was
            run. The user consents to that folder by having run the study, or by working there.
        folder: the folder that the user names with `--code`; None without this option.
        trusts_working_folder: whether working in the recorded folder counts as consent.

    Raises:
        ConfigError: the error of the body; if a module is missing, with the folder to consent to.
    """
    recorded_folder = None
    recorded_path = _read_recorded(run_dir, "hydra.yaml", "hydra.runtime.cwd")
    if recorded_path is not None:
        recorded_folder = Path(str(recorded_path))
    consents_by_working_there = trusts_working_folder and recorded_folder == Path.cwd()
    module_folder = folder
    if module_folder is None and (is_trusted(run_dir) or consents_by_working_there):
        module_folder = recorded_folder
    if module_folder is not None:
        sys.path.append(str(module_folder.absolute()))
    try:
        # `script_as_main` imports no script if the run directory is not trusted.
        with seeding_as(run_dir), script_as_main(run_dir, folder):
            yield
    except ConfigError as error:
        lacks_module = any("No module named" in line for line in error.errors)
        if not lacks_module or module_folder is not None or recorded_folder is None:
            raise
        option = f"--code {quote(str(recorded_folder))}"
        hint = (
            f"{run_dir}: the study was run in {recorded_folder}; if you trust the code there, go "
            f"there, or add {option}"
        )
        raise ConfigError([*error.errors, hint]) from None
    finally:
        if module_folder is not None:
            sys.path.remove(str(module_folder.absolute()))


def _read_recorded(run_dir: Path, name: str, key: str) -> object:
    """Returns a value that Hydra wrote into a run directory; None if it cannot be read.

    Args:
        name: the file in `.hydra/`, such as config.yaml.
    """
    with suppress(OSError, ConfigError, OmegaConfBaseException):
        config = read_yaml(run_dir / ".hydra" / name, trusted=is_trusted(run_dir))
        value: object = OmegaConf.select(config, key)
        return value
    return None
