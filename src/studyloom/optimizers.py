"""Optimizers that PyTorch does not have as one class; configs name them by `_target_`."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

# Layers whose two-dimensional weights map one hidden state to the next.
HIDDEN = (nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


class Muon(Optimizer):
    """Trains the matrices of hidden layers by `torch.optim.Muon`, and all other weights by AdamW.

    The others are embeddings, the last linear layer, convolutions, biases, norms, and weights that
    are in no layer. Sources: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); steps are
    scaled as in Liu et al. 2025 (arXiv:2502.16982), so that learning rates of AdamW suit the
    matrices.

    Args:
        params: parameters, or groups of them with their own settings. A group with an `lr` and
            without an `adamw_lr` has the `lr` for both.
        network: the network whose parameters they are; studyloom passes it. None: each
            two-dimensional parameter counts as a matrix of a hidden layer.
        lr: the learning rate of the matrices.
        adamw_lr: the learning rate of the other weights.
        weight_decay: the decoupled weight decay, as in AdamW.
        momentum: the momentum of the matrices.
        fused: whether AdamW is fused.

    Raises:
        ValueError: PyTorch is older than 2.9, or a setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor | dict[str, Any]],
        network: nn.Module | None = None,
        lr: float = 1e-3,
        adamw_lr: float = 1e-3,
        weight_decay: float = 1e-2,
        momentum: float = 0.95,
        fused: bool = False,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(
                f"optimizer=muon needs PyTorch 2.9 or later, and this is {torch.__version__}; "
                "install it, or choose optimizer=adamw"
            )
        defaults = {
            "lr": lr,
            "adamw_lr": adamw_lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
        }
        groups: list[Any] = list(map(_complete_group, params))
        super().__init__(groups, defaults)  # sets `param_groups`, with the defaults

        # Divide each group into matrices of hidden layers and other weights.
        hidden_ids = None
        if network is not None:
            hidden_ids = _find_hidden_weights(network)
        muon_groups = []
        adamw_groups = []
        for group in self.param_groups:
            matrices = []
            other_weights = []
            for weight in group["params"]:
                is_hidden = hidden_ids is None or id(weight) in hidden_ids
                if weight.ndim == 2 and is_hidden:
                    matrices.append(weight)
                else:
                    other_weights.append(weight)
            if matrices:
                muon_groups.append({**group, "params": matrices, "muon": True})
            if other_weights:
                settings = {"params": other_weights, "muon": False, "lr": group["adamw_lr"]}
                adamw_groups.append({**group, **settings})

        # PyTorch's optimizer for the groups whose "muon" is True, and the one for all others. Both
        # use these very groups, and add the settings to them that only one of the two has.
        self._optimizer_by_is_muon: dict[bool, Optimizer] = {}
        if muon_groups:
            muon = torch.optim.Muon(muon_groups, adjust_lr_fn="match_rms_adamw")
            self._optimizer_by_is_muon[True] = muon
        if adamw_groups:
            self._optimizer_by_is_muon[False] = AdamW(adamw_groups, fused=fused)
        self.param_groups = [*muon_groups, *adamw_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step of Muon and one of AdamW.

        Args:
            closure: evaluates the model again, and returns the loss; called before the steps.

        Returns:
            The loss that `closure` returns, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for is_muon, optimizer in self._optimizer_by_is_muon.items():
            # Set again before each step: `load_state_dict` replaces state and groups of this
            # object, but not those of the two optimizers.
            optimizer.state = self.state
            optimizer.param_groups = [
                group for group in self.param_groups if group["muon"] is is_muon
            ]
            # Without PyTorch's wrapper of the method, which would import PyTorch's compiler.
            step = inspect.unwrap(type(optimizer).step)
            step(optimizer)
        return loss


def _complete_group(group: Tensor | dict[str, Any]) -> Tensor | dict[str, Any]:
    """Returns a group of parameters whose `lr` is its `adamw_lr` too, unless it has one.

    A parameter that is not in a group is returned unchanged.
    """
    if isinstance(group, dict) and "lr" in group:
        return {"adamw_lr": group["lr"], **group}
    return group


def _find_hidden_weights(network: nn.Module) -> set[int]:
    """Returns the ids (as `id` gives them) of the weights of a network's hidden layers.

    Embeddings and the last linear layer are not hidden, nor are their weights where a hidden layer
    shares them.
    """
    hidden_ids = set()
    embedding_ids = set()
    output_ids = set()
    for layer in network.modules():
        if isinstance(layer, HIDDEN):
            for weight in layer.parameters(recurse=False):
                hidden_ids.add(id(weight))
        if isinstance(layer, nn.Embedding):
            embedding_ids.add(id(layer.weight))
        if isinstance(layer, nn.Linear):
            output_ids = {id(layer.weight)}  # the last linear layer replaces those before it
    return hidden_ids - embedding_ids - output_ids
