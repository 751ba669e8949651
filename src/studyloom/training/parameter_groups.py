"""Parameters with settings of their own, chosen by name: rates, weight decay, or frozen."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from studyloom.errors import ConfigError
from studyloom.text import nearest, shorten


@dataclass(frozen=True)
class ParameterGroup:
    """Some parameters of a network, and how they are trained.

    Args:
        name: of the group, for messages.
        match: patterns of names with *, ? and [abc]: of parameters, or of modules, which stand for
            all parameters in them.
        frozen: whether they keep their initial values: they get no gradient, and the optimizer does
            not see them. Buffers in these modules, such as the means of a BatchNorm, still move.
        settings: of the optimizer, such as lr and weight_decay; what is missing is as for all
            others.
    """

    name: str
    match: tuple[str, ...]
    frozen: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, parameter: str) -> bool:
        """Whether the parameter with that name belongs to the group."""
        return any(
            fnmatchcase(parameter, pattern) or fnmatchcase(parameter, f"{pattern}.*")
            for pattern in self.match
        )


def freeze(network: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Takes the gradients off the parameters of groups that are frozen."""
    for name, parameter in network.named_parameters() if groups else ():
        if any(group.frozen and group.matches(name) for group in groups):
            parameter.requires_grad_(False)


def make_optimizer(
    make: Callable[[Iterable[Any]], Optimizer], network: nn.Module, groups: Sequence[ParameterGroup]
) -> Optimizer:
    """Freezes what groups freeze, and makes the optimizer of the other parameters.

    Args:
        make: called with parameters, or with dictionaries of them and their settings.
        network: whose parameters they are.
        groups: parameters with settings of their own.

    Raises:
        ConfigError: every mistake: a pattern that matches nothing, a parameter in two groups, a
            setting that the optimizer does not have, or nothing left to train.
    """
    if not groups:
        return make(network.parameters())
    freeze(network, groups)
    names = [name for name, _ in network.named_parameters()]
    mistakes = [*_wrong_patterns(names, groups)]
    others = [
        parameter
        for name, parameter in network.named_parameters()
        if not any(group.matches(name) for group in groups)
    ]
    sections = [
        {
            "params": [p for name, p in network.named_parameters() if group.matches(name)],
            **group.settings,
        }
        for group in groups
        if not group.frozen
    ]
    if not mistakes and not others and not sections:
        mistakes.append("optimizer.groups freezes all parameters of the network: nothing is left")
    if mistakes:
        raise ConfigError(mistakes)
    # PyTorch refuses an empty list of parameters, and takes unknown settings without a word.
    optimizer = make([*([{"params": others}] if others else []), *sections])
    mistakes = [
        f"optimizer.groups.{group.name}.{setting}: {type(optimizer).__name__} has no such setting; "
        f"it has {', '.join(optimizer.defaults)}{nearest(setting, [*optimizer.defaults])}"
        for group in groups
        for setting in group.settings
        if setting not in optimizer.defaults
    ]
    if mistakes:
        raise ConfigError(mistakes)
    return optimizer


def _wrong_patterns(names: Sequence[str], groups: Sequence[ParameterGroup]) -> Iterable[str]:
    """Yields patterns that match no parameter, and parameters that several groups match."""
    listed = shorten(", ".join(names), 300)
    for group in groups:
        for pattern in group.match:
            if not any(ParameterGroup("", (pattern,)).matches(name) for name in names):
                yield (
                    f"optimizer.groups.{group.name}.match: {pattern!r} matches no parameter of the "
                    f"network, which has {listed}{nearest(pattern, names)}"
                )
    for name in names:
        owners = [group.name for group in groups if group.matches(name)]
        if len(owners) > 1:
            yield (
                f"optimizer.groups: the parameter {name} is in {' and in '.join(owners)}; "
                "narrow the pattern of one of them"
            )
