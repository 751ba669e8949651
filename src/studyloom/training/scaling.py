"""The maximal update parametrization: a training of a small network carried to a wider one.

The form is that of table 3 of Yang et al. 2022 (arXiv:2203.03466), relative to a base size:
learning rates, weight decay and initial weights change where sides grow, and no forward pass does.
The decay keeps its product with the learning rate, as in the package `mup`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn, optim
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

WAY_OUT = "or set scale.rule=none"
# Each divides a gradient by its own size. RAdam does not in its first steps.
ADAPTIVE = (optim.Adam, optim.AdamW, optim.NAdam, optim.Adamax, optim.RMSprop, optim.Adagrad)
VECTORS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
ROWS_ARE_OUTPUTS = (nn.Linear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class Growth:
    """How many times the sides of a parameter are those at the base size: fan-in and fan-out."""

    inputs: float = 1.0
    outputs: float = 1.0


@dataclass(frozen=True)
class Scaling:
    """The rule by which a job's network, made at some size, is trained as at its base size.

    Args:
        base: called with shape= and outputs=, as the model of a job; returns the network at the
            base size.

    Each method raises a ConfigError of all that the rule does not cover, by name.
    """

    base: Callable[..., nn.Module]

    def growths(self, network: nn.Module, shape: Sequence[int], outputs: int) -> dict[str, Growth]:
        """Compares each parameter of a network with that of the base network."""
        return {}

    def check(self, network: nn.Module, shape: Sequence[int], outputs: int) -> None:
        """Raises ConfigError also if nothing of the network grows."""

    def rescale(self, network: nn.Module, shape: Sequence[int], outputs: int) -> dict[str, Growth]:
        """Scales the initial weights of a network in place; returns the growths."""
        return {}


def scale_rates(optimizer: Optimizer, network: nn.Module, growths: Mapping[str, Growth]) -> None:
    """Splits the groups of a new optimizer by the factors of their parameters' learning rates."""
