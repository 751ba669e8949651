"""Interpolations of a config, such as `${train.epochs}`, and the keys whose values they follow."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

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
        text: the interpolation.
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
        match = OF_ONE_KEY.fullmatch(self.text)
        if match is None:
            return None
        return match[1]

    @property
    def is_in_list(self) -> bool:
        """True if the value is an item of a list, or lies within one."""
        return any(isinstance(part, int) for part in self.path)

    def is_changed_by(self, keys: Iterable[str]) -> bool:
        """Returns whether its value may change once the values of some keys do."""
        if self.follows is None:
            return True
        return any(overlap(key, followed) for key in keys for followed in self.follows)


def is_within(key: str, section: str) -> bool:
    """Returns whether a key is a section, or lies in it."""
    return f"{key}.".startswith(f"{section}.")


def overlap(first: str, second: str) -> bool:
    """Returns whether two keys are the same, or one lies in the other."""
    return is_within(first, second) or is_within(second, first)


def find_references(config: Mapping[str, object]) -> list[Reference]:
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
    """Returns the keys of a reference, and those of the references that it follows."""
    follows = reference.follows
    if follows is None:
        return None
    for other in references:
        if any(overlap(key, other.key) for key in follows):
            if other.follows is None:
                return None
            follows |= other.follows
    return follows


def _interpolations(value: object, path: Path) -> Iterator[tuple[Path, str]]:
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
    """Returns the reference of an interpolation, with the keys that stand in its text."""
    keys = KEY.findall(text)
    resolvers = [name for name in RESOLVER.findall(text) if name != "oc.select"]
    is_understood = len(keys) + len(resolvers) == text.count("${")
    if not is_understood or not set(resolvers).issubset(WITHOUT_KEYS):
        return Reference(path, text, None)
    return Reference(path, text, frozenset(_absolute(key, path) for key in keys))


def _absolute(key: str, path: Path) -> str:
    """Returns a key without leading dots: one dot stands for the section of the reference."""
    name = key.lstrip(".")
    levels = len(key) - len(name)
    if levels == 0:
        return name
    sections = [str(part) for part in path[:-levels]]
    return ".".join([*sections, name])
