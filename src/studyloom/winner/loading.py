"""Networks for the weights of a file, which may be another person's, and no larger than it allows.

A `winner.yaml` of 200 bytes can ask for a layer of 160 GB. So what it asks for is built without
memory first, on PyTorch's meta device, where tensors have a size and no content. Only if the sizes
that this takes are near to that of the weights' file, and the weights fit, is it built for real.

The sizes are those of all tensors that are made, and not only of those that the network has in the
end: `torch.nn.Identity` forgets a layer that is given to it, once its memory has been taken.
"""

import warnings
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from studyloom.config.build import build
from studyloom.config.trust import packages_to_trust
from studyloom.config.values import describe_error
from studyloom.errors import PredictError, UserError
from studyloom.question.jobs import build_network

# Building takes up to twice what the network has: nn.TransformerEncoder copies the layer that it is
# given. And the file may hold in 16 bits what the network has in 32.
TIMES = 6  # of the file
SPARE = 64 * 2**20  # bytes, for what is not saved, such as masks
EACH = 1024  # bytes of a tensor, beside its content: 100 million layers of one weight are large too


def load_into(
    sections: Sequence[DictConfig],
    states: Sequence[Any],
    known: tuple[Sequence[int] | None, int | None],
    origin: str,
    path: Path,
) -> list[nn.Module]:
    """Builds networks, and gives them their weights.

    Args:
        sections: of the networks, whose code is trusted.
        states: the state dict of each, as the file has it.
        known: the shape of an input and the number of outputs; see `build_network`.
        origin: where the sections are, for errors.
        path: of the file that the weights are from.

    Raises:
        PredictError: the networks are larger than the file allows, cannot be built, or are not
            those that the weights are of.
        ConfigError: a section cannot be built.
        OSError: the file is gone.
    """

    def build_all(states: Sequence[Any]) -> list[nn.Module]:
        networks = [build_network(section, *known) for section in sections]
        for network, state in zip(networks, states, strict=True):
            _fill(network, state, path)
        return networks

    if not packages_to_trust([OmegaConf.to_container(section) for section in sections]):
        size = path.stat().st_size
        check_memory(
            lambda: build_all([_without_content(state) for state in states]),
            TIMES * size + SPARE,
            origin,
            f"{path.name} has {size} bytes; if the study is your own, run its command again, which "
            "writes both",
        )
    return build_all(states)


def build_light(section: DictConfig, origin: str) -> Any:
    """Builds what has no weights, such as a transform.

    Args:
        section: of it, whose code is trusted.
        origin: where the section is, for errors.

    Raises:
        PredictError: it takes more than 64 MiB of memory, or cannot be built.
        ConfigError: the section cannot be built.
    """
    if not packages_to_trust(OmegaConf.to_container(section)):
        way_out = "nothing that studyloom stores there takes so much; get the folder anew"
        check_memory(lambda: build(section), SPARE, origin, way_out)
    return build(section)


def _fill(network: nn.Module, state: Any, path: Path) -> None:
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise PredictError(f"{path}: {' '.join(str(error).split())[:300]}") from None


def _without_content(state: Any) -> Any:
    """Returns a state dict with its sizes alone; what is none as it is."""
    if not isinstance(state, dict):
        return state
    sizes = copy(state)  # with the versions of modules, which torch keeps in an attribute
    for name, value in state.items():
        if isinstance(value, Tensor):
            sizes[name] = value.to("meta")
    return sizes


def check_memory(make: Callable[[], object], most: int, origin: str, holds: str) -> None:
    """Checks that what builds something takes no more memory than it may; takes none itself.

    It is for code of PyTorch and studyloom alone, which can be built without content. A class of
    the user's own may look at the numbers in its tensors, which are not there, or do more than to
    build; and what it takes is up to the user, who has trusted it.

    Args:
        make: builds it.
        most: the bytes that it may take.
        origin: of what is built, for errors.
        holds: what bounds it, and the way out, for errors.

    Raises:
        PredictError: it takes more, or cannot be built.
        ConfigError: as `make` raises it.
    """
    sizes = _Sizes(most)
    try:
        with warnings.catch_warnings(), torch.device("meta"), sizes:
            warnings.simplefilter("ignore")  # they come again when it is built for real
            make()
    except Exception as error:
        if sizes.total > most:  # whatever Hydra or torch has made of our exception
            raise PredictError(
                f"{origin} takes more than {most >> 20} MiB of memory; {holds}"
            ) from None
        if isinstance(error, UserError):
            raise
        raise PredictError(f"{origin} cannot be built: {describe_error(error)}") from error


class _TooLarge(Exception):
    """Ends the building of what is too large, which may have very many parts."""


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Has all tensors made on the meta device, even if another one is asked for; adds their sizes.

    Args:
        most: the bytes with which it ends.
    """

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most, self.total = most, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, lambda each: each.to("meta"), (args, kwargs or {}))
        if any(argument.name == "device" for argument in func._schema.arguments):
            kwargs["device"] = torch.device("meta")
        given = {storage._cdata for storage in _storages((args, kwargs))}
        made = func(*args, **kwargs)
        for storage in _storages(made):
            if storage._cdata not in given:
                self.total += storage.nbytes() + EACH
        if self.total > self.most:
            raise _TooLarge
        return made


def _storages(values: Any) -> list[torch.UntypedStorage]:
    with torch._C.DisableTorchFunctionSubclass():  # a parameter of a lazy layer would refuse
        return [each.untyped_storage() for each in tree_leaves(values) if isinstance(each, Tensor)]
