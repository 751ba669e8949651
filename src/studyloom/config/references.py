"""Interpolations of a config, such as `${train.epochs}`, and the keys whose values they follow."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

Path = tuple[str | int, ...]  # the keys, and the places in lists, that lead to a value

# Resolvers whose result follows no key of the config but those among their arguments.
WITHOUT_KEYS = ("oc.env", "oc.decode", "now", "hydra", "studyloom.run_dir")
# The key in `${train.epochs}`, in `${.epochs}` or in `${oc.select:loss,null}`.
REFERENCED_KEY = re.compile(r"\$\{\s*(?:oc\.select:\s*)?([.\w]+)\s*[,}]")
# The resolver in `${oc.env:HOME}`.
RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:")
# A whole text such as `${train.epochs}` or `${oc.select:loss,null}`.
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
    def section(self) -> str:
        """The section that has the value."""
        return str(self.path[0])

    @property
    def key(self) -> str:
        """The key of the value; if it is within a list, the key of the list."""
        names = []
        for part in self.path:
            if not isinstance(part, str):  # a position in a list
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
    references = []
    for path, text in _find_interpolations(config, ()):
        references.append(_make_reference(path, text))
    return connect(references)


def connect(references: Sequence[Reference]) -> list[Reference]:
    """Adds to each reference the keys that it follows through other references.

    If a follows b, and b follows c, then a follows c too. Each pass over the references adds one
    more step of such a chain, and the last pass adds nothing.
    """
    connected = list(references)
    has_changed = True
    while has_changed:
        has_changed = False
        for position, reference in enumerate(connected):
            follows = _follow_once(reference, connected)
            if follows != reference.follows:
                connected[position] = replace(reference, follows=follows)
                has_changed = True
    return connected


def _follow_once(reference: Reference, references: Sequence[Reference]) -> frozenset[str] | None:
    """Returns the keys that a reference follows, and the keys that their values follow in turn.

    If a value follows `b`, and the value of `b` is a reference to `c`, these are `b` and `c`. This
    is one step of a chain; `connect` repeats it.

    Returns:
        None if the reference, or one that it follows, may follow any key.
    """
    if reference.follows is None:
        return None
    keys = set(reference.follows)
    for other in references:
        is_followed = any(overlap(key, other.key) for key in reference.follows)
        if not is_followed:
            continue
        if other.follows is None:
            return None
        keys |= other.follows
    return frozenset(keys)


def _find_interpolations(value: object, path: Path) -> Iterator[tuple[Path, str]]:
    """Yields the path and the text of each interpolation within a value.

    Args:
        path: the path of the value, with which all paths begin.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _find_interpolations(inner, (*path, name))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _find_interpolations(item, (*path, position))
    elif isinstance(value, str) and "${" in value:
        yield path, value


def _make_reference(path: Path, text: str) -> Reference:
    """Makes the reference of an interpolation, which follows the keys in its text.

    If a part of the text is not understood, or a resolver is not known, it may follow any key.
    """
    keys = REFERENCED_KEY.findall(text)  # also those of `${oc.select:loss,null}`
    resolvers = [name for name in RESOLVER.findall(text) if name != "oc.select"]
    interpolation_count = text.count("${")
    is_understood = len(keys) + len(resolvers) == interpolation_count
    if not is_understood or not set(resolvers).issubset(WITHOUT_KEYS):
        return Reference(path, text, follows=None)
    absolute_keys = frozenset(_make_absolute(key, path) for key in keys)
    return Reference(path, text, absolute_keys)


def _make_absolute(key: str, path: Path) -> str:
    """Returns the whole key that a relative one stands for.

    In the reference with the path (model, block, width), `.depth` is `model.block.depth`, and
    `..depth` is `model.depth`.
    """
    name = key.lstrip(".")
    dots = len(key) - len(name)
    if dots == 0:
        return name
    sections = [str(part) for part in path[:-dots]]
    return ".".join([*sections, name])
