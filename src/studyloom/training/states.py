"""States of networks under plain names, whatever wraps their modules.

`torch.compile` and DistributedDataParallel hold the network that they wrap as `_orig_mod` and
`module`, so that the names in its state begin with these. A state is saved without them, and is
loaded into a network with or without a wrapper.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

COMPILED = "_orig_mod"  # the child of a compiled module; to name its class imports the compiler
PARALLEL = "module"  # the child of these
PARALLEL_CLASSES = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def plain_state(part: Any) -> Any:
    """Returns the state dict of an object; if it is a network, without the names of wrappers."""
    state = part.state_dict()
    if not isinstance(part, nn.Module):
        return state
    wrappers = _wrappers(part)
    if not wrappers:
        return state
    return _renamed(state, lambda name: _plain_name(name, wrappers))


def load_state(part: Any, state: Mapping[str, Any], **options: Any) -> None:
    """Loads a state dict of `plain_state`, or one that holds the names of wrappers.

    Args:
        options: further arguments of `load_state_dict`.
    """
    if isinstance(part, nn.Module):
        state = _named_as_in(part, state)
    part.load_state_dict(state, **options)


def _named_as_in(network: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a state with the names that a network has in its own."""
    names = network.state_dict().keys()
    if state.keys() == names:
        return state
    wrappers = _wrappers(network)
    own_names = {_plain_name(name, wrappers): name for name in names}
    plain = _renamed(state, lambda name: name.replace(f"{COMPILED}.", ""))
    if plain.keys().isdisjoint(own_names):
        plain = _renamed(plain, lambda name: name.removeprefix(f"{PARALLEL}."))
    named = OrderedDict((own_names.get(name, name), value) for name, value in plain.items())
    versions: Mapping[str, Any] = getattr(plain, "_metadata", {})
    metadata = OrderedDict[str, Any]()
    for path, _ in network.named_modules(remove_duplicate=False):
        plain_path = _plain_name(f"{path}.", wrappers)[:-1]
        if plain_path in versions:
            metadata[path] = versions[plain_path]
    named._metadata = metadata  # type: ignore[attr-defined]
    return named


def _wrappers(network: nn.Module) -> list[tuple[str, str]]:
    """Returns where a network has wrappers: what names begin with, and without the wrapper.

    The innermost come first.
    """
    wrappers = []
    for path, module in network.named_modules(remove_duplicate=False):
        outer = f"{path}." if path else ""
        if COMPILED in module._modules:
            wrappers.append((f"{outer}{COMPILED}.", outer))
        elif isinstance(module, PARALLEL_CLASSES):
            wrappers.append((f"{outer}{PARALLEL}.", outer))
    return wrappers[::-1]


def _plain_name(name: str, wrappers: list[tuple[str, str]]) -> str:
    for inner, outer in wrappers:
        if name.startswith(inner):
            name = outer + name.removeprefix(inner)
    return name


def _renamed(state: Mapping[str, Any], rename: Callable[[str], str]) -> OrderedDict[str, Any]:
    """Renames the tensors of a state, and the modules whose versions it holds."""
    renamed = OrderedDict((rename(name), value) for name, value in state.items())
    versions: Mapping[str, Any] = getattr(state, "_metadata", {})
    metadata = OrderedDict((rename(f"{path}.")[:-1], version) for path, version in versions.items())
    renamed._metadata = metadata  # type: ignore[attr-defined]
    return renamed
