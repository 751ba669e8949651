"""Interpolations of a config, such as `${train.epochs}`, and the keys whose values they follow."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Path = tuple[str | int, ...]  # the keys, and the places in lists, that lead to a value

# Resolvers whose result follows no key of the config but those among their arguments.
WITHOUT_KEYS = ("oc.env", "oc.decode", "now", "hydra", "studyloom.run_dir")
KEY = re.compile(r"\$\{\s*(?:oc\.select:\s*)?([.\w]+)\s*[,}]")
RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:")
OF_ONE_KEY = re.compile(r"\$\{(?:oc\.select:)?(\w[.\w]*)(?:,null)?\}")


@dataclass(frozen=True)
class Reference:
    """A value that is written as an interpolation.

    Attributes:
        path: its place in the config.
        text: of the interpolation.
        follows: the keys whose values it follows, directly or through other references; None if any
            key may be one, as for a resolver of the user.
    """

    path: Path
    text: str
    follows: frozenset[str] | None

    @property
    def key(self) -> str:
        """The key of the value, or of the list that has it."""
        names = []
        for part in self.path:
            if not isinstance(part, str):
                break
            names.append(part)
        return ".".join(names)

    @property
    def source(self) -> str | None:
        """The one key whose value it takes unchanged; None if it is another expression."""
        whole = OF_ONE_KEY.fullmatch(self.text)
        return None if whole is None else whole[1]

    def is_changed_by(self, keys: Iterable[str]) -> bool:
        """Whether its value may be another once the values of some keys are others."""
        if self.follows is None:
            return True
        return any(overlap(key, followed) for key in keys for followed in self.follows)


def overlap(first: str, second: str) -> bool:
    """Whether two keys are the same, or one is within the other."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def find_references(config: Mapping[str, Any]) -> list[Reference]:
    """Returns the references of a config whose interpolations are not resolved."""
    return connect([_reference(path, text) for path, text in _interpolations(config, ())])


def connect(references: Sequence[Reference]) -> list[Reference]:
    """Adds to each reference the keys that it follows through others."""
    connected = list(references)
    changed = True
    while changed:
        changed = False
        for place, reference in enumerate(connected):
            follows = _with_indirect(reference, connected)
            if follows != reference.follows:
                connected[place] = replace(reference, follows=follows)
                changed = True
    return connected


def _with_indirect(reference: Reference, references: Sequence[Reference]) -> frozenset[str] | None:
    follows = reference.follows
    if follows is None:
        return None
    for other in references:
        if any(overlap(key, other.key) for key in follows):
            if other.follows is None:
                return None
            follows |= other.follows
    return follows


def _interpolations(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Yields the path and the text of each interpolation within a value."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _interpolations(inner, (*path, name))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _interpolations(inner, (*path, place))
    elif isinstance(value, str) and "${" in value:
        yield path, value


def _reference(path: Path, text: str) -> Reference:
    keys = KEY.findall(text)
    resolvers = [name for name in RESOLVER.findall(text) if name != "oc.select"]
    understood = len(keys) + len(resolvers) == text.count("${")
    if not understood or any(name not in WITHOUT_KEYS for name in resolvers):
        return Reference(path, text, None)
    return Reference(path, text, frozenset(_absolute(key, path) for key in keys))


def _absolute(key: str, path: Path) -> str:
    """Returns a key without leading dots: one dot stands for the section of the reference."""
    name = key.lstrip(".")
    levels = len(key) - len(name)
    if levels == 0:
        return name
    section = ".".join(str(part) for part in path[:-levels])
    return f"{section}.{name}" if section else name
