"""Smaller networks, pruned or built narrower, and the loss by which they learn from another."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn
from torch.nn import functional

from studyloom.errors import CompressError

TEMPERATURE = 4.0  # of the softened outputs
SHARE = 0.5  # of the teacher's outputs in the loss; the rest is that of the targets
LEAST = 8  # an argument from here on may be a width; smaller ones are mostly depths and heads


def prune(network: nn.Module, inputs: Tensor, ratio: float) -> nn.Module:
    """Returns a network without a share of its channels and units, those with the smallest norm.

    Whole channels go, in every layer the same share, and with them what reads them: zeros among the
    weights would leave file and latency as they are. Source: Li et al. 2017 (arXiv:1608.08710), by
    the dependencies of Fang et al. 2023 (arXiv:2301.12900), which `torch-pruning` finds.

    Args:
        network: on the CPU; it stays as it is.
        inputs: some examples, in the type that it takes.
        ratio: the share, above 0 and below 1.

    Raises:
        CompressError: no layer can be pruned, or the library does not know a layer.
    """
    import torch_pruning

    pruned = deepcopy(network).eval()
    layers = [m for m in pruned.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    if not layers:
        raise CompressError("it has no layer whose channels can be pruned")
    before = count_parameters(pruned)
    try:
        torch_pruning.pruner.MagnitudePruner(
            pruned,
            inputs,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=layers[-1:],  # whose channels are the outputs
        ).step()
        pruned(inputs)
    except Exception as error:  # what the library raises of a layer that it does not know
        raise CompressError(f"it cannot be pruned: {type(error).__name__}: {error}") from error
    if count_parameters(pruned) == before:
        raise CompressError(f"nothing of it can be pruned at a ratio of {ratio:g}")
    return pruned


def narrow(
    section: DictConfig, width: float, build: Callable[[DictConfig], nn.Module]
) -> tuple[DictConfig, list[str]]:
    """Returns the section of a narrower network, and which of its arguments are smaller.

    An argument is a width if it is a whole number of at least 8, or a list of such, and half of it
    gives a network with fewer parameters.

    Args:
        section: of the config, with a `_target_`.
        width: the share of each width that is left.
        build: builds the network of a section.

    Raises:
        CompressError: no argument is a width.
    """
    whole = count_parameters(build(section))
    narrower, changed = section.copy(), []
    for key, value in _widths(section):
        trial = section.copy()
        trial[key] = _scaled(value, 0.5)
        try:
            is_width = count_parameters(build(trial)) < whole
        except Exception:  # half of it is refused, so that it is none
            is_width = False
        if is_width:
            narrower[key] = _scaled(value, width)
            changed.append(f"{key}={narrower[key]}")
    if not changed:
        raise CompressError("no argument of model is a width, so that there is no narrower student")
    return narrower, changed


def _widths(section: DictConfig) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        values = list(value) if isinstance(value, ListConfig) else [value]
        if values and all(type(each) is int and each >= LEAST for each in values):
            yield str(key), value


def _scaled(value: Any, share: float) -> Any:
    if isinstance(value, int):
        return max(1, round(value * share))
    return [max(1, round(each * share)) for each in value]


def distillation(teacher: nn.Module, dtype: torch.dtype, meaning: str) -> Callable[..., Any]:
    """Returns a step that learns from the targets and from what a network says of the inputs.

    Source: Hinton et al. 2015 (arXiv:1503.02531), whose softened outputs of classes these are.
    Labels, as probabilities, and numbers are learnt by the loss of the study.

    Args:
        teacher: the original, or the committee; a copy of it goes to the device of the inputs.
        dtype: in which the networks take the inputs.
        meaning: of the outputs: softmax for classes, sigmoid for labels, mean for numbers.
    """
    teacher = deepcopy(teacher).eval().requires_grad_(False)

    def step(network: nn.Module, batch: Any, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        inputs, targets = batch
        inputs = inputs.to(dtype)
        with torch.no_grad():
            taught = teacher.to(inputs.device)(inputs).float()
        outputs = network(inputs).float()
        if meaning == "softmax":
            soft, hard = (o.div(TEMPERATURE).log_softmax(1) for o in (taught, outputs))
            distance = functional.kl_div(hard, soft, log_target=True, reduction="batchmean")
            learnt = distance * TEMPERATURE**2
        else:
            learnt = loss(outputs, taught.sigmoid() if meaning == "sigmoid" else taught)
        return SHARE * learnt + (1 - SHARE) * loss(outputs, targets)

    return step


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
