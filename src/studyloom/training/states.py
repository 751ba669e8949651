"""States of networks under plain names, whatever wraps their modules.

`torch.compile` and DistributedDataParallel put a network into a *wrapper*: a module that holds the
network as its child `_orig_mod` or `module`. In the wrapper's state dict each name begins with the
child's, such as `_orig_mod.layer.weight`. A *plain* name is the name without wrappers:
`layer.weight`. States are saved under plain names, so that they can be loaded into the network with
or without a wrapper.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

COMPILED = "_orig_mod"  # the child of a compiled module; to name its class imports the compiler
PARALLEL = "module"  # the child of the classes below
PARALLEL_CLASSES = (nn.parallel.DistributedDataParallel, nn.DataParallel)

StateDict = Mapping[str, Any]  # mostly tensors, by name


@dataclass(frozen=True)
class Wrapper:
    """A wrapper within a network, by the beginning of the names of what it wraps.

    Attributes:
        prefix: with the wrapper: "encoder._orig_mod.".
        plain_prefix: without it: "encoder.".
    """

    prefix: str
    plain_prefix: str


def plain_state(part: Any) -> Any:
    """Returns the state dict of an object; that of a network has plain names.

    Args:
        part: a network, an optimizer, or anything else with a method `state_dict`.
    """
    state = part.state_dict()
    if not isinstance(part, nn.Module):
        return state
    wrappers = _find_wrappers(part)
    if not wrappers:
        return state
    return _rename_state(state, lambda name: _make_plain_name(name, wrappers))


def load_state(part: Any, state: StateDict, **options: Any) -> None:
    """Loads a state dict into an object; into a network also one with the names of wrappers.

    Args:
        part: a network, an optimizer, or anything else with a method `load_state_dict`.
        options: further arguments of `load_state_dict`.
    """
    if isinstance(part, nn.Module):
        state = _match_names(state, part)
    part.load_state_dict(state, **options)


def _match_names(state: StateDict, network: nn.Module) -> StateDict:
    """Returns a state under the names that the network's own state has, wrappers included.

    A wrapper, such as that of `torch.compile`, puts its child's name into the names of a network's
    state: `_orig_mod.layer.weight` in place of the plain name `layer.weight`. A name that the
    network lacks stays, so that PyTorch can refuse it.
    """
    network_names = network.state_dict().keys()
    if state.keys() == network_names:
        return state
    wrappers = _find_wrappers(network)
    network_names_by_plain_name = {}
    for network_name in network_names:
        network_names_by_plain_name[_make_plain_name(network_name, wrappers)] = network_name
    plain_names = network_names_by_plain_name.keys()
    plain_state = _remove_wrappers(state, plain_names)

    matched_state = OrderedDict[str, Any]()
    for plain_name, value in plain_state.items():
        name = network_names_by_plain_name.get(plain_name, plain_name)
        matched_state[name] = value

    plain_versions = _read_module_versions(plain_state)
    versions = _match_versions(plain_versions, network, wrappers)
    matched_state._metadata = versions  # type: ignore[attr-defined]
    return matched_state


def _match_versions(
    plain_versions: Mapping[str, object], network: nn.Module, wrappers: list[Wrapper]
) -> OrderedDict[str, Any]:
    """Returns versions of modules under the paths that the network has, wrappers included.

    PyTorch attaches them to a state, each by the path of its module: the version of the plain path
    `layer` gets the path `_orig_mod.layer` in a compiled network.
    """
    versions = OrderedDict[str, Any]()
    for path, _ in network.named_modules(remove_duplicate=False):
        # The prefix of a wrapper ends with a dot, such as `_orig_mod.`, so the path gets one too.
        plain_path = _make_plain_name(f"{path}.", wrappers).removesuffix(".")
        if plain_path in plain_versions:
            versions[path] = plain_versions[plain_path]
    return versions


def _remove_wrappers(state: StateDict, plain_names: Collection[str]) -> OrderedDict[str, Any]:
    """Returns a state without the names of the wrappers that its network had when it was saved.

    `_orig_mod.` (of torch.compile) is removed wherever it occurs. `module.` (of
    DistributedDataParallel) may also be a part that users call so: it is removed from the start of
    each name, and only if no name fits the network otherwise.

    Args:
        plain_names: the names that the network has without its own wrappers.
    """
    plain = _rename_state(state, lambda name: name.replace(f"{COMPILED}.", ""))
    if plain.keys().isdisjoint(plain_names):
        plain = _rename_state(plain, lambda name: name.removeprefix(f"{PARALLEL}."))
    return plain


def _find_wrappers(network: nn.Module) -> list[Wrapper]:
    """Returns the wrappers within a network, the innermost first.

    A wrapper is a module of torch.compile or DistributedDataParallel that holds the wrapped module
    as its child `_orig_mod` or `module`.
    """
    wrappers = []
    for path, module in network.named_modules(remove_duplicate=False):
        plain_prefix = ""
        if path:
            plain_prefix = f"{path}."
        if COMPILED in module._modules:
            wrappers.append(Wrapper(f"{plain_prefix}{COMPILED}.", plain_prefix))
        elif isinstance(module, PARALLEL_CLASSES):
            wrappers.append(Wrapper(f"{plain_prefix}{PARALLEL}.", plain_prefix))
    wrappers.reverse()
    return wrappers


def _make_plain_name(name: str, wrappers: list[Wrapper]) -> str:
    """Returns a name without wrappers: `layer.weight` for `_orig_mod.layer.weight`.

    Args:
        wrappers: the innermost first, since its prefix holds the names of those around it.
    """
    for wrapper in wrappers:
        if name.startswith(wrapper.prefix):
            name = wrapper.plain_prefix + name.removeprefix(wrapper.prefix)
    return name


def _rename_state(state: StateDict, rename: Callable[[str], str]) -> OrderedDict[str, Any]:
    """Returns a state under new names.

    The paths in the versions of modules, which PyTorch attaches as `_metadata`, are renamed too.
    """
    renamed = OrderedDict[str, Any]()
    for name, value in state.items():
        renamed[rename(name)] = value
    versions = OrderedDict[str, Any]()
    for path, version in _read_module_versions(state).items():
        # `rename` knows paths with the dot that follows them in the name of a tensor.
        renamed_path = rename(f"{path}.").removesuffix(".")
        versions[renamed_path] = version
    renamed._metadata = versions  # type: ignore[attr-defined]
    return renamed


def _read_module_versions(state: StateDict) -> Mapping[str, object]:
    """Returns the version of each module's state by the module's path.

    PyTorch attaches them to the state dict of a network, and reads them when it loads an old state.
    A dict of another origin has none.
    """
    if not hasattr(state, "_metadata"):
        return {}
    versions: Mapping[str, object] = state._metadata
    return versions
