"""Optimizers that PyTorch does not have as one class; configs name them by `_target_`."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

# Layers whose two-dimensional weights map one hidden state to the next.
HIDDEN = (nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


class Muon(Optimizer):
    """Trains the matrices of hidden layers by `torch.optim.Muon`, and all else by AdamW.

    All else is embeddings, the last linear layer, convolutions, biases, norms, and weights that are
    in no layer. Sources: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); steps are scaled
    as in Liu et al. 2025 (arXiv:2502.16982), so that learning rates of AdamW suit the matrices.

    Args:
        params: parameters, or groups of them with their own settings.
        network: where the parameters are from; studyloom gives it. None: each two-dimensional
            parameter counts as a matrix of a hidden layer.
        lr: the learning rate of the matrices.
        adamw_lr: the learning rate of all else; of a group without it, the group's own `lr`.
        weight_decay: decoupled, as in AdamW.
        momentum: of the matrices.
        fused: whether AdamW is fused.

    Raises:
        ValueError: PyTorch is older than 2.9, or a setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        network: nn.Module | None = None,
        lr: float = 1e-3,
        adamw_lr: float = 1e-3,
        weight_decay: float = 1e-2,
        momentum: float = 0.95,
        fused: bool = False,
    ) -> None:
        kind: Any = getattr(torch.optim, "Muon", None)
        if kind is None:
            raise ValueError(
                f"optimizer=muon needs PyTorch 2.9 or later, and this is {torch.__version__}; "
                "install it, or choose optimizer=adamw"
            )
        params = [
            {"adamw_lr": each["lr"], **each} if isinstance(each, dict) and "lr" in each else each
            for each in params
        ]
        rates = {"lr": lr, "adamw_lr": adamw_lr}
        super().__init__(params, rates | {"weight_decay": weight_decay, "momentum": momentum})
        hidden = None if network is None else _hidden_matrices(network)
        matrices, others = list[dict[str, Any]](), list[dict[str, Any]]()
        for group in self.param_groups:
            split: tuple[list[Any], list[Any]] = [], []
            for weight in group["params"]:
                split[weight.ndim == 2 and (hidden is None or id(weight) in hidden)].append(weight)
            rest, own = split
            matrices += [{**group, "params": own, "muon": True}] if own else []
            other = {**group, "params": rest, "muon": False, "lr": group["adamw_lr"]}
            others += [other] if rest else []
        self._parts: dict[bool, Optimizer] = {}
        if matrices:
            self._parts[True] = kind(matrices, adjust_lr_fn="match_rms_adamw")
        if others:
            self._parts[False] = AdamW(others, fused=fused)
        # The parts fill the same groups with their own settings.
        self.param_groups = [*matrices, *others]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step of both.

        Args:
            closure: evaluates the model again, and returns the loss; called before the step.

        Returns:
            The loss that `closure` returns, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for muon, part in self._parts.items():
            # `load_state_dict` replaces both.
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["muon"] is muon]
            # The wrapper of PyTorch's own step would import its compiler.
            inspect.unwrap(type(part).step)(part)
        return loss


def _hidden_matrices(network: nn.Module) -> set[int]:
    """Returns the ids of the weights that belong to layers between an embedding and the output."""
    layers = [*network.modules()]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    outside = {id(linear[-1].weight)} if linear else set()
    outside |= {id(each.weight) for each in layers if isinstance(each, nn.Embedding)}
    inside = [layer for layer in layers if isinstance(layer, HIDDEN)]
    return {id(w) for layer in inside for w in layer.parameters(recurse=False)} - outside
