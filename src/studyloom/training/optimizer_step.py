"""An optimizer's step without the wrappers for PyTorch's compiler and profiler, unused here."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as module

# The kernels of fused optimizers, with the settings that they take and the state that they change.
ADAM = ("lr", "weight_decay", "eps", "maximize", "amsgrad"), ("exp_avg", "exp_avg_sq", "step")
SGD = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize"), ("momentum_buffer",)
KERNELS = {
    torch.optim.Adam: ("_fused_adam_", *ADAM),
    torch.optim.AdamW: ("_fused_adamw_", *ADAM),
    torch.optim.SGD: ("_fused_sgd_", *SGD),
}


def avoid_compiler_import() -> None:
    """Keeps PyTorch from importing its compiler: 1.0 s in each process that makes an optimizer.

    The first call of an optimizer imports it only to mark these methods as not to be compiled, and
    so do its steps. Does nothing if the compiler is imported already, or if a release of PyTorch
    keeps its mark elsewhere.
    """
    if "torch._dynamo" not in sys.modules:
        for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
            if (method := getattr(getattr(Optimizer, name), "__wrapped__", None)) is not None:
                method.__dynamo_disable = method


def fast_step(optimizer: Optimizer) -> Callable[[], object]:
    """Returns the fastest function that makes one step of an optimizer.

    For PyTorch's own optimizers it is the step without its wrapper: the same arithmetic in 0.02 ms
    less (of 0.09 ms for Adam), and no need of the compiler. For its fused ones it is their kernel
    alone: 0.02 ms less once more. With hooks, and for other classes, it is `optimizer.step`.
    """
    hooks = [
        *(
            getattr(optimizer, name, True)
            for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
        ),
        *(
            getattr(module, name, True)
            for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
        ),
    ]
    kind = type(optimizer)
    if (
        not kind.__module__.startswith("torch.optim.")
        or optimizer.defaults.get("differentiable")
        or any(hooks)
    ):
        return optimizer.step
    unwrapped = inspect.unwrap(kind.step)

    def step() -> None:
        with torch.no_grad():
            unwrapped(optimizer)

    works = kind in KERNELS and _kernel_works(kind)  # type: ignore[arg-type]
    return FusedStep(optimizer, step) if works else step


@functools.cache
def _kernel_works(kind: type[Optimizer]) -> bool:
    """Whether the kernel of this release of PyTorch takes these settings, and does the same."""

    def weight_after_steps(*, by_kernel: bool) -> Tensor:
        weight = torch.nn.Parameter(torch.ones(2))
        momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind([weight], **{"lr": 0.1, "fused": True} | momentum)  # type: ignore[arg-type]
        unwrapped: Any = inspect.unwrap(kind.step)

        def own() -> None:
            with torch.no_grad():
                unwrapped(optimizer)

        step = FusedStep(optimizer, own) if by_kernel else own
        for gradient in (1.0, 0.5, 0.25):
            weight.grad = torch.full((2,), gradient)
            step()
        return weight.detach()

    try:
        return torch.equal(
            *(weight_after_steps(by_kernel=by_kernel) for by_kernel in (False, True))
        )
    except (AttributeError, TypeError, RuntimeError):
        return False


class FusedStep:
    """The step of a fused optimizer, whose lists of tensors are made once and not in each step.

    The first step is the optimizer's own, which makes its state. So is each one that needs more
    than the kernel: a parameter has no gradient, or its group has an odd setting.

    Args:
        optimizer: Adam, AdamW or SGD of PyTorch.
        own: the optimizer's own step.
    """

    def __init__(self, optimizer: Optimizer, own: Callable[[], None]) -> None:
        self._optimizer, self._own = optimizer, own
        name, self._settings, self._kept = KERNELS[type(optimizer)]
        self._kernel: Any = getattr(torch, name)
        self._state: object = None  # that the lists are of; restoring the optimizer makes a new one
        self._lists: list[list[list[Tensor]]] = []  # of each group: weights, and what is kept

    def __call__(self) -> None:
        if self._state is not self._optimizer.state:
            self._own()
            self._make_lists()
            return
        work = []
        for group, (weights, *kept) in zip(self._optimizer.param_groups, self._lists, strict=False):
            gradients = [weight.grad for weight in weights]
            missing = any(gradient is None for gradient in gradients)
            if missing or (group.get("momentum") == 0) is not (not kept):
                break
            work.append((group, weights, gradients, kept))
        if len(work) < len(self._optimizer.param_groups):
            self._own()
            return
        with torch.no_grad():
            for group, weights, gradients, kept in work:
                settings = {name: group[name] for name in self._settings}
                if "betas" in group:
                    averages, squares, steps = kept
                    settings["beta1"], settings["beta2"] = group["betas"]
                    torch._foreach_add_(steps, 1)
                    kept = [averages, squares, [], steps]
                else:
                    settings["is_first_step"] = False
                    kept = kept or [[]]
                self._kernel(weights, gradients, *kept, **settings, grad_scale=None, found_inf=None)

    def _make_lists(self) -> None:
        """Makes the lists; none if a step is more than a call of the kernel for each group."""
        self._state, self._lists = self._optimizer.state, []
        decoupled = type(self._optimizer) is torch.optim.AdamW  # as the kernel has it
        for group in self._optimizer.param_groups:
            weights, first = group["params"], group["params"][0]
            kept = () if group.get("momentum") == 0 else self._kept
            states = [self._optimizer.state.get(weight, {}) for weight in weights]
            numbers = (group["lr"], *group.get("betas", ()))
            if (
                not group["fused"]
                or group.get("amsgrad")
                or group.get("decoupled_weight_decay", decoupled) is not decoupled
                or any(isinstance(number, Tensor) for number in numbers)
                or any((w.device, w.dtype) != (first.device, first.dtype) for w in weights)
                or any(state.get(name) is None for state in states for name in kept)
            ):
                self._lists = []
                return
            self._lists.append([weights, *([state[name] for state in states] for name in kept)])


class ScaledSteps:
    """An optimizer as a gradient scaler sees it, whose step is the fast one.

    The scaler leaves a step out if a gradient is not finite.

    Args:
        optimizer: whose gradients are scaled.
        scaler: of one training.
    """

    def __init__(self, optimizer: Optimizer, scaler: torch.amp.GradScaler) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        self.step = fast_step(optimizer)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def unscale(self) -> None:
        """Divides the gradients by the scale, before anybody looks at them."""
        self._scaler.unscale_(self)  # type: ignore[arg-type]

    def make_step(self) -> None:
        """Makes the step, if all gradients are finite, and adapts the scale."""
        self._scaler.step(self)  # type: ignore[arg-type]
        self._scaler.update()
