"""Reads configs from elsewhere as data: what somebody else wrote may set, and what it may not.

This is an allow list. A key that is not in `PLAIN` reaches out of the study (it names a file, a
database, a launcher), so the user has to agree to it by its name: `trust=[storage]`. Hydra's own
sections and groups are refused always, since they write files, set variables and call code.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from studyloom.config import trust
from studyloom.config.schema import SCHEMA
from studyloom.errors import ConfigError
from studyloom.text import nearest, no_such_key

# Of all files together. Interpolations that name one another grow text: 16 by 350 times at most.
MOST_INTERPOLATIONS = 16
MOST_FILES = 64

FREE = ("params", "model", "optimizer", "scheduler", "loss", "sampler", "pruner")
# What may be set without asking, by section; None: everything, since targets are checked apart.
PLAIN: dict[str, tuple[str, ...] | None] = {
    **dict.fromkeys(FREE),
    "study": (
        *("name", "trials", "timeout", "seed", "baseline", "trial_timeout", "max_attempts"),
        *("max_failures", "lease", "enqueue", "top", "dry_run", "epochs", "stop", "regret"),
    ),
    "objective": ("folds", "seeds", "_target_", "test", "metric", "constraints", "direction"),
    "train": (
        *("epochs", "batch_size", "loss", "l1", "clip", "precision", "samples_per_epoch"),
        *("step", "evaluate", "accumulate", "drop_last", "ema", "patience", "keep", "until"),
    ),
    "winner": ("enabled", "top", "seeds", "race", "committee", "rule"),
    "cost": ("per_hour",),
    "compress": None,
    "data": (
        *("_target_", "_partial_", "_convert_", "_recursive_", "validation", "dataset", "load"),
        *("transform", "ordered", "target", "sealed", "numbers", "column", "window"),
        *("train", "valid", "test", "evaluate", "collate", "weights", "groups", "outputs"),
        *("shape", "targets", "digest", "num_workers", "pin_memory", "persistent_workers"),
    ),
    "space": None,
}
SEARCHED = (*FREE, "train")  # the sections that a space may search
NEVER = ("hydra", "trust", "defaults")  # no consent helps
GROUPS = tuple(PLAIN)  # in which a defaults list may choose; each option lies in its section
# Options of studyloom's own that a defaults list may choose in groups which need consent.
# What `storage` names there is the user's own; Ray and SLURM are refused for their `_target_`.
OPTIONS = {
    "storage": ("sqlite", "postgres", "embedded_postgres"),
    "launcher": ("local", "join", "ray", "slurm"),
    # Each primary config of studyloom ends with these. They are Hydra's own files, since Hydra
    # searches its package first, and only switch its logging off.
    "hydra/job_logging": ("none", "disabled"),
    "hydra/hydra_logging": ("none", "disabled"),
}
SECTIONS = tuple(str(key) for key in SCHEMA)
PATHS = ("root", "path", "_args_")  # arguments of studyloom's own data sources that name files
OWN_FILE = re.compile(r"studyloom:[\w.-]+")
DATA = ("studyloom.data",)
DATASETS = ("train", "valid", "test", "evaluate")  # arguments whose own arguments name folders
# What of studyloom a key stands for on `trust=[…]`: both run commands that the config names.
OURS = {"launcher": "studyloom.launch", "objective": trust.ADAPTERS}
NAME = r"[A-Za-z0-9_][\w.-]*"
INTERPOLATION = re.compile(r"\$\{([A-Za-z_]\w*)((?:\.\w+)*)\}")


@dataclass
class Guard:
    """What holds while a command composes configs of somebody else.

    Args:
        own: folders whose files are the user's own, and are not checked.
        agreed: names on the command line's `trust=[…]`: keys, or packages.

    Attributes:
        met: the foreign files that were read.
        mistakes: if a list, mistakes are added to it, and only what is allowed is composed;
            otherwise the first file with a mistake is an error.
    """

    own: tuple[Path, ...]
    agreed: tuple[str, ...] = ()
    met: set[Path] = field(default_factory=set)
    mistakes: list[str] | None = None
    interpolations: dict[Path, int] = field(default_factory=dict)

    def owns(self, folder: Path) -> bool:
        """Whether a folder of configs is the user's own, or studyloom's."""
        return any(folder.resolve().is_relative_to(own.resolve()) for own in self.own)

    def read(self, folder: Path, name: str) -> tuple[DictConfig, str | None]:
        """Reads a config of a foreign folder.

        Args:
            folder: where Hydra looks for configs.
            name: the config's path there, such as model/mlp.

        Returns:
            The config, and where its header `# @package` puts it.

        Raises:
            ConfigError: every mistake in it.
        """
        path = folder / f"{name.removesuffix('.yaml')}.yaml"
        try:
            text = trust.read_text(path, folder)
            config, package = trust.parse(text, path), package_of(text, path)
            found = list(self._mistakes(config, name.removesuffix(".yaml"), package, path))
        except ConfigError as error:
            config, package, found = OmegaConf.create(), None, list(error.mistakes)
        if not found:
            return config, package
        if self.mistakes is None:
            raise ConfigError(found)
        self.mistakes += found
        return OmegaConf.create({"defaults": allowed_defaults(config, name, self.agreed)}), None

    def _mistakes(
        self, config: DictConfig, name: str, package: str | None, path: Path
    ) -> Iterator[str]:
        self.met.add(path)
        if len(self.met) > MOST_FILES:
            yield f"{path}: more than {MOST_FILES} files of a config from elsewhere"
        plain: Any = OmegaConf.to_container(config, resolve=False)
        self.interpolations[path] = str(plain).count("${")
        if (many := sum(self.interpolations.values())) > MOST_INTERPOLATIONS:
            yield (
                f"{path}: {many} interpolations are too many; write the values themselves "
                f"(at most {MOST_INTERPOLATIONS}, since a few can fill the memory)"
            )
        defaults = plain.pop("defaults", [])
        yield from (
            f"{path}: {mistake}"
            for mistake in (
                *default_mistakes(defaults, name, package, self.agreed),
                *content_mistakes(place(plain, name, package), self.agreed),
            )
        )


_active: list[Guard | None] = []


def active() -> Guard | None:
    """Returns the guard of the running command, if its command line named a foreign folder."""
    return _active[-1] if _active else None


def in_own_code() -> bool:
    """Whether the user's own code composes configs, within `unguarded`."""
    return None in _active


@contextmanager
def unguarded() -> Iterator[None]:
    """Lets the body compose the configs of the user's own code, which may lie anywhere."""
    _active.append(None)
    try:
        yield
    finally:
        _active.pop()


@contextmanager
def guarded(own: Sequence[Path], agreed: Sequence[str]) -> Iterator[Guard]:
    """Has Hydra read the files of all folders but one's own as data, while the body runs.

    Args:
        own: folders whose files are the user's own, with studyloom's.
        agreed: names on the command line's `trust=[…]`: keys such as storage, or packages.

    Raises:
        ConfigError: from whatever composes a config, with every mistake of a foreign file.
    """
    guard = Guard(tuple(own), tuple(agreed))
    _active.append(guard)
    try:
        yield guard
    finally:
        _active.remove(guard)


def packages_of(agreed: Sequence[str]) -> list[str]:
    """Returns the code that names on `trust=[…]` allow; those of keys are left out."""
    own = [target for key, target in OURS.items() if key in agreed]
    return own + [name for name in agreed if name.split(".")[0] not in SECTIONS]


def needed_trust(config: Mapping[str, Any]) -> list[str]:
    """Returns what `trust=[…]` has to name if a config is to be composed as one from elsewhere.

    Args:
        config: a primary config as plain Python.
    """
    content = {name: value for name, value in config.items() if name != "defaults"}
    refusals = [
        *content_mistakes(content, ()),
        *default_mistakes(config.get("defaults", []), "primary", None, ()),
    ]
    return sorted({name for words in refusals for name in re.findall(r"trust=\[(.+?)\]", words)})


def package_of(text: str, path: Path) -> str | None:
    """Returns what the header `# @package` of a file says.

    Raises:
        ConfigError: it is neither `_global_` nor `_group_`, or there is another header.
    """
    package = None
    # As Hydra reads it: of the first 512 characters, the lines before any other.
    for line in map(str.strip, text[:512].splitlines()):
        if line and not (header := re.match(r"#\s*@\s*(.*)", line)):
            break
        if line and header:
            if header[1].split() not in (["package", "_global_"], ["package", "_group_"]):
                raise ConfigError(
                    [f"{path}: the header must be `# @package _global_`, or none; got {line!r}"]
                )
            package = header[1].split()[1]
    return None if package == "_group_" else package


def place(content: Any, name: str, package: str | None) -> Any:
    """Returns the content of a config as it lies in the composed config."""
    if package is None:
        for group in reversed(name.split("/")[:-1]):
            content = {group: content}
    return content


def default_mistakes(
    defaults: Any, name: str, package: str | None, agreed: Sequence[str]
) -> Iterator[str]:
    """Finds what a defaults list must not have.

    Args:
        defaults: the list, as plain Python.
        name: the path of the config, such as model/mine.
        package: of its header.
        agreed: names on the command line's `trust=[…]`.
    """
    if not isinstance(defaults, list):
        yield "defaults: must be a list"
        return
    if name.split("/")[0] == "hydra" or name == "studyloom":
        yield f"{name}: a config from elsewhere must not replace a part of Hydra or studyloom"
    if package is not None and any(item != "_self_" for item in defaults):
        yield "defaults: must be left out where the header is `# @package _global_`"
    for position, item in enumerate(defaults):
        if why := _why_not(item, name, agreed):
            shown = (
                ", ".join(f"{key}: {value}" for key, value in item.items())
                if isinstance(item, dict)
                else item
            )
            yield f"defaults[{position}]: {shown} {why}"


def allowed_defaults(config: DictConfig, name: str, agreed: Sequence[str]) -> list[Any]:
    """Returns the entries of a defaults list that may be followed."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    defaults = plain.get("defaults", [])
    defaults = defaults if isinstance(defaults, list) else []
    return [item for item in defaults if _why_not(item, name, agreed) is None]


def _why_not(item: Any, name: str, agreed: Sequence[str]) -> str | None:
    """Explains why an entry of a defaults list is not allowed; None if it is."""
    if isinstance(item, str):
        plain = re.fullmatch(rf"{NAME}(/{NAME})*", item) and ".." not in item
        group = [*name.split("/")[:-1], *item.split("/")[:-1]][:1]
        allowed = not group or group[0] in GROUPS or (group[0] in agreed and group[0] not in NEVER)
        if item == "_self_" or (plain and allowed):
            return None
        return "must be the plain name of a config beside this one, or in a group of studyloom"
    if not isinstance(item, dict) or len(item) != 1:
        return "must be the name of a config, or GROUP: OPTION"
    (key, option), keywords = next(iter(item.items())), ""
    if match := re.fullmatch(r"((?:override |optional )*)(/?)(.*)", str(key)):
        keywords, root, key = match.groups()
        if root and "/" in name and "override" not in keywords:
            return "must be the group as seen from this file, without / before"
    options = option if isinstance(option, list) else [option]
    if not all(
        each is None or (re.fullmatch(rf"{NAME}(/{NAME})*", str(each)) and ".." not in str(each))
        for each in options
    ):
        return "must choose an option by its plain name"
    folder = [] if match and match[2] else name.split("/")[:-1]
    if not re.fullmatch(r"[a-z_]\w*(/[a-z_]\w*)*", str(key)):
        return "must choose in a group by its plain name"
    section = [*folder, *str(key).split("/")][0]
    if section in GROUPS or (section in agreed and section not in NEVER):
        return None
    if key in OPTIONS and all(each in OPTIONS[key] for each in options):
        return None
    if section in NEVER:
        return "must not choose for Hydra"
    return f"{_refusal(section)}{nearest(key, (*GROUPS, *OPTIONS))}"


def content_mistakes(config: Any, agreed: Sequence[str]) -> Iterator[str]:
    """Finds what sections of a config from elsewhere must not set.

    Args:
        config: sections as plain Python, as they lie in the composed config.
        agreed: names on the command line's `trust=[…]`: keys, or packages.
    """
    packages = packages_of(agreed)
    for section, content in config.items():
        if section in NEVER or section not in SECTIONS:
            known = [key for key in SECTIONS if key not in NEVER]
            yield (
                f"{section}: must not be set by a config from elsewhere"
                if section in NEVER
                else no_such_key(str(section), known)
            )
            continue
        yield from _section_mistakes(str(section), content, agreed, packages)
    try:
        yield from trust.find_mistakes(config, packages, _explain_text)
    except RecursionError:
        yield "the configuration is nested too deeply"


def _section_mistakes(
    section: str, content: Any, agreed: Sequence[str], packages: Sequence[str]
) -> Iterator[str]:
    if section in agreed or content is None:
        return
    if section not in PLAIN:
        yield f"{section} {_refusal(section)}"
        return
    allowed = PLAIN[section]
    if allowed is not None and not isinstance(content, dict):
        yield f"{section}: must be a mapping of keys"
        return
    if section == "space" and isinstance(content, dict):
        yield from _space_mistakes(content, agreed)
    if allowed is not None:
        # Who trusts the package of a data source, or of an objective, trusts it with its arguments.
        target = str(content.get("_target_"))
        ours = (*DATA, trust.ADAPTERS)
        theirs = trust.is_below(target, packages) and not trust.is_below(target, ours)
        for name, value in content.items():
            key = f"{section}.{name}"
            if name in allowed or value is None or key in agreed or theirs:
                continue
            if section == "data" and name in PATHS and _is_own_file(value):
                continue
            known = [] if section == "data" else [str(known) for known in SCHEMA[section]]
            if section == "objective" and name not in known:  # an argument of its target
                yield f"{key} {_refusal(section)}{nearest(name, known)}"
            elif known and name not in known:
                yield no_such_key(key, known)
            else:
                yield f"{key} {_refusal(key)}"
    if section == "data":
        for name in DATASETS:
            if f"data.{name}" not in agreed:
                yield from _folder_mistakes(content.get(name), f"data.{name}", agreed)
    yield from _path_mistakes(content, section, agreed, top=section == "data")


def _folder_mistakes(node: Any, key: str, agreed: Sequence[str]) -> Iterator[str]:
    """Finds what names a file or folder below the section of a Dataset, of whatever package.

    Who trusts a package such as torchvision has not yet agreed to what is read with it.
    """
    for name, value in node.items() if isinstance(node, dict) else ():
        below = f"{key}.{name}"
        if below in agreed or name == "_target_" or value is None:
            continue
        named = isinstance(value, str) and (name in PATHS or "/" in value or "\\" in value)
        if (named or (name == "_args_" and value)) and not _is_own_file(value):
            yield f"{below} {_refusal(below)}"
        else:
            yield from _folder_mistakes(value, below, agreed)


def _space_mistakes(space: Mapping[Any, Any], agreed: Sequence[str]) -> Iterator[str]:
    for name in space:
        if str(name).split(".")[0] not in SEARCHED and f"space.{name}" not in agreed:
            yield f"space.{name} {_refusal(f'space.{name}')}"


def _path_mistakes(node: Any, key: str, agreed: Sequence[str], *, top: bool) -> Iterator[str]:
    """Finds data sources of studyloom's below a section that name a file."""
    if isinstance(node, dict):
        target = str(node.get("_target_"))
        for name, value in node.items():
            below = f"{key}.{name}"
            reads = not top and name in PATHS and trust.is_below(target, DATA)
            if reads and value is not None and below not in agreed and not _is_own_file(value):
                yield f"{below} {_refusal(below)}"
            yield from _path_mistakes(value, below, agreed, top=False)
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _path_mistakes(value, f"{key}[{position}]", agreed, top=False)


def _is_own_file(value: Any) -> bool:
    return isinstance(value, str) and OWN_FILE.fullmatch(value) is not None


def _refusal(key: str) -> str:
    return (
        "reaches out of the study, and this config is from elsewhere; if you want that, add "
        f"'trust=[{key}]' to the command, or take it out"
    )


def _explain_text(text: str) -> str | None:
    """Explains why a text with ${…} is not allowed; None if it only names a plain value."""
    rest = INTERPOLATION.sub("", text)
    if "$" in rest or "\\" in text or "}" in rest:
        return f"{text} must not be an interpolation; only ${{section.key}} is possible"
    for section, path in INTERPOLATION.findall(text):
        allowed = PLAIN.get(section, ())
        if section == "run_dir" and not path:
            continue
        if section not in PLAIN or (
            allowed is not None and (path[1:].split(".")[0] not in allowed)
        ):
            return f"{text} must not be an interpolation of {section}{path}; write the value itself"
    return None
