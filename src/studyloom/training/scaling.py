"""The maximal update parametrization: a training of a small network transferred to a wider one.

The form is that of table 3 of Yang et al. 2022 (arXiv:2203.03466), relative to a base size:
learning rates, weight decay and initial weights change where sides grow, and no forward pass does.
The decay keeps its product with the learning rate, as in the package `mup`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log, prod

import torch
from torch import Tensor, nn, optim
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from studyloom.errors import ConfigError, refuse
from studyloom.training.randomness import seeded

# Those that divide each gradient by its own size; RAdam does not in its first steps.
ADAPTIVE = (optim.Adam, optim.AdamW, optim.NAdam, optim.Adamax, optim.RMSprop, optim.Adagrad)
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
ROWS_ARE_OUTPUTS = (nn.Linear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
OTHERWISE = "or set scale.rule=none"

Shape = Sequence[int] | None  # of an input in memory


@dataclass(frozen=True)
class Growth:
    """How many times as large as at the base size the fan-in and the fan-out of a parameter are."""

    inputs: float = 1.0
    outputs: float = 1.0


@dataclass(frozen=True)
class Scaling:
    """The rule that trains a job's network of any width with the rates of its base size.

    It reads modules and shapes. It cannot see how a forward pass uses weights: an embedding that is
    also the last layer, or a hand-written attention whose heads grow. `check_coordinates` may.

    Args:
        base: called with shape= and outputs=; returns the network at the base size.
    """

    base: Callable[..., nn.Module]

    def growths(self, network: nn.Module, shape: Shape, outputs: int | None) -> dict[str, Growth]:
        """Compares each parameter with that of the base network.

        Raises:
            ConfigError: all that the rule does not cover, by name.
        """
        return _compare(self._base(shape, outputs), network)

    def check(self, network: nn.Module, shape: Shape, outputs: int | None) -> None:
        """Raises ConfigError as `growths`, and if nothing grows."""
        if set(self.growths(network, shape, outputs).values()) <= {Growth()}:
            raise ConfigError(
                "scale: no parameter of the network is larger at the second size than at the "
                f"first; name a key that sets a width, {OTHERWISE}"
            )

    @torch.no_grad()
    def rescale(self, network: nn.Module, shape: Shape, outputs: int | None) -> dict[str, Growth]:
        """Scales the initial weights in-place, draws nothing, and returns the growths."""
        base = self._base(shape, outputs)
        growths = _compare(base, network)
        small = dict(base.named_parameters())
        for name, weight in network.named_parameters():
            if weight.ndim > 1 and (factor := _initial(growths[name], small[name], weight)) != 1:
                weight.mul_(factor)
        return growths

    def _base(self, shape: Shape, outputs: int | None) -> nn.Module:
        with seeded(0):
            return self.base(shape=shape, outputs=outputs)


def _initial(growth: Growth, small: Tensor, large: Tensor) -> float:
    """Returns the factor on initial weights; 1 if they are all equal, such as zeros.

    The target is a deviation that falls as 1/√(fan-in), and as 1/fan-in in an output layer. The
    initialization itself falls by a power of the growth, estimated from the samples, or, as in
    Glorot's init of the first layer, by another ratio, which is used as measured.
    """
    power = growth.inputs if growth.inputs > 1 else growth.outputs
    if power == 1:
        return 1.0
    before, after = (float(weight.float().std(correction=0)) for weight in (small, large))
    if not before or not after:
        return 1.0
    wanted: float = growth.inputs ** (-0.5 if growth.outputs > 1 else -1.0)
    exponent = min(0.0, -0.5, -1.0, key=lambda e: abs(log(after / before) - e * log(power)))
    noise = 0.05 + 2 / small.numel() ** 0.5
    close = abs(log(after / before) - exponent * log(power)) < noise
    drawn: float = power**exponent if close else after / before
    return wanted / drawn


def _compare(base: nn.Module, network: nn.Module) -> dict[str, Growth]:
    small = dict(base.named_parameters(remove_duplicate=False))
    large = dict(network.named_parameters(remove_duplicate=False))
    if other := sorted(small.keys() ^ large.keys()):
        raise ConfigError(
            "scale.rule=mup scales only width, and the two sizes of the network do not have the "
            f"same parameters ({', '.join(other[:3])}): for another number of layers set "
            "scale.rule=none"
        )
    before, after = (dict(each.named_modules(remove_duplicate=False)) for each in (base, network))
    errors = []
    for name, module in after.items():
        if isinstance(module, nn.MultiheadAttention):
            was = getattr(before.get(name), "head_dim", None)
            if was != module.head_dim:
                errors.append(
                    f"scale.rule=mup: a head of {name} is {was} wide at one size and "
                    f"{module.head_dim} at the other, and its scores would grow; let the number of "
                    f"heads grow with the width, {OTHERWISE}"
                )
    growths: dict[int, tuple[str, Growth]] = {}
    for name, parameter in large.items():
        path = name.rpartition(".")[0]
        try:
            growth = _growth(before[path], small[name], after[path], parameter)
        except ValueError as error:
            errors.append(f"scale.rule=mup: the parameter {name} {error}, {OTHERWISE}")
            continue
        first, known = growths.setdefault(id(parameter), (name, growth))
        if known != growth:
            errors.append(
                f"scale.rule=mup: {first} and {name} are one tied weight, whose two layers need "
                f"different rates; give each its own, {OTHERWISE}"
            )
    refuse(errors)
    return dict(growths.values())


def _growth(before: nn.Module, small: Tensor, after: nn.Module, large: Tensor) -> Growth:
    """Compares a parameter of a module; the ValueError continues "the parameter NAME"."""
    if is_lazy(small) or is_lazy(large):
        raise ValueError("has no shape before the first batch; give its layer all sizes")
    if small.ndim != large.ndim:
        raise ValueError(
            f"has {small.ndim} dimensions at one size and {large.ndim} at the other; "
            "build both alike"
        )
    if small.shape == large.shape:
        return Growth()
    last = small.shape[:-1] == large.shape[:-1]
    sides = [*zip(_sides(before, small, last), _sides(after, large, last), strict=True)]
    for side, (was, now) in zip(("fan-in", "fan-out"), sides, strict=True):
        if now % was:
            raise ValueError(
                f"has a {side} of {was} at one size and {now} at the other, which is no multiple; "
                "choose sizes that make it one"
            )
    return Growth(*(now / was for was, now in sides))


def _sides(owner: nn.Module, weight: Tensor, last: bool) -> tuple[int, int]:
    """Returns fan-in and fan-out; for weights that multiply no growing inputs the fan-in is 1.

    `last` says that only the last dimension grows.
    """
    shape = weight.shape
    if weight.ndim == 1 or isinstance(owner, NORMS):
        return 1, weight.numel()
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return 1, shape[1]
    if isinstance(owner, _ConvTransposeNd):  # (inputs, outputs of a group, …)
        return shape[0] // owner.groups * prod(shape[2:]), shape[1] * owner.groups
    if isinstance(owner, nn.MultiheadAttention) and weight.ndim == 3:  # bias_k and bias_v
        return 1, shape[2]
    if isinstance(owner, ROWS_ARE_OUTPUTS):
        return prod(shape[1:]), shape[0]
    plain = isinstance(owner, nn.ParameterList | nn.ParameterDict)
    if last and (plain or not type(owner).__module__.startswith("torch.nn.")):
        return 1, shape[-1]  # as learned positions
    raise ValueError(
        f"of {type(owner).__name__}, {tuple(shape)} at the first size, grows, and no rule says "
        "which of its sides are inputs; hold it in a layer such as nn.Linear"
    )


def scale_rates(optimizer: Optimizer, network: nn.Module, growths: Mapping[str, Growth]) -> None:
    """Splits the groups of a new optimizer by the factors of their parameters' learning rates."""
    sgd = type(optimizer) is optim.SGD
    if not sgd and type(optimizer) not in ADAPTIVE:
        raise ConfigError(
            f"scale.rule=mup has no learning rates for {type(optimizer).__name__}; choose SGD, "
            f"{', '.join(kind.__name__ for kind in ADAPTIVE)}, {OTHERWISE}"
        )
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise ConfigError("scale.rule=mup: a scheduler must be made after the rates are scaled")
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        parts: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            growth = growths.get(names.get(id(parameter), ""), Growth())  # it may be of a loss
            factor = (growth.outputs if sgd else 1.0) / growth.inputs
            parts.setdefault(factor, []).append(parameter)
        for factor, part in parts.items():
            scaled = {"lr": group["lr"] * factor, "weight_decay": group["weight_decay"] / factor}
            groups.append({**group, **(scaled if factor != 1 else {}), "params": part})
    optimizer.param_groups[:] = groups
