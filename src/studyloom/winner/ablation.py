"""The ablation: each hyperparameter of the winner is put back to its default, and trained again.

The trainings have the seeds and validation splits of the re-evaluation, so that each configuration
is compared with the winner seed by seed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.averages import mean
from studyloom.config.values import has_key, value_at
from studyloom.definition.definition import Definition
from studyloom.space.tree import Hyperparameter, Point, config_group, find_middle, find_misfit
from studyloom.winner.candidates import Origin
from studyloom.winner.result import Ablation, AblationRow
from studyloom.winner.statistics import difference, errors_of_differences

Names = tuple[str, ...]  # of the hyperparameters that are put back


@dataclass(frozen=True)
class Defaults:
    """Puts hyperparameters of a configuration back to their defaults.

    A default is the value in the config of the chosen options, or the middle of the range if that
    lies outside. An Optuna objective has no config: its defaults are the middles of the ranges.

    Args:
        point: the configuration of the winner.
        trials: of the search.
    """

    definition: Definition
    point: Point
    trials: Sequence[FrozenTrial]

    def put_back(self, names: Names) -> Point:
        """Returns the configuration with these hyperparameters at their defaults.

        The hyperparameters that an option opens are then at their defaults too.
        """
        kept = {name: value for name, value in self.point.params.items() if name not in names}
        if self.definition.suggests:
            ranges: Any = [item for trial in self.trials for item in trial.distributions.items()]
            return Point(params={name: find_middle(each) for name, each in ranges} | kept)
        space, composer = self.definition.space, self.definition.composer

        def walk(choices: Mapping[str, str]) -> Point:
            config = composer.compose(choices)

            def decide(parameter: Hyperparameter) -> Any:
                if parameter.name in kept:
                    return kept[parameter.name]
                if parameter.role == "option":
                    value: Any = composer.choices.get(config_group(parameter.key))
                else:
                    value = parameter.read_default(choices, lambda key: value_at(config, key))
                fits = find_misfit(parameter.distribution, value) is None
                return value if fits else find_middle(parameter.distribution)

            return space.walk(decide)

        found = walk(walk(composer.choices).choices)  # each option has other defaults
        own, config = (
            space.make_point(self.point.params).values,
            self.definition.compose_config(found),
        )
        # Epochs, sizes and a learning rate that the winner has besides its hyperparameters.
        others = {
            key: value
            for key, value in self.point.values.items()
            if value != own.get(key) == found.values.get(key) and has_key(config, key)
        }
        return replace(found, values=found.values | others)

    @cached_property
    def changed(self) -> Sequence[Names]:
        """The hyperparameters that are not at their defaults, and may be put back one by one."""
        params = self.point.params
        back = {name: self.put_back((name,)).params[name] for name in params}
        changed = [(name,) for name in params if back[name] != params[name]]
        return [*filter(self.is_possible, changed)]

    def is_possible(self, names: Names) -> bool:
        """Whether the space has the configuration with these hyperparameters put back."""
        return self.definition.space.find_breach(self.put_back(names).params) is None


@dataclass(frozen=True)
class Losses:
    """Compares configurations with some hyperparameters put back with the winner, seed by seed.

    Args:
        winner: its values on new seeds.
        values: those of the configurations; one of which a training failed has none.
        sign: 1 if more of the metric is better, else -1.
        margin: the loss that the simple configuration may have; None for the standard error.
    """

    winner: Sequence[float]
    values: Mapping[Names, Sequence[float]]
    sign: int
    margin: float | None = None

    def with_values(self, values: Mapping[Origin, Sequence[float]]) -> "Losses":
        """Returns the losses with the values of further configurations."""
        further = {origin.defaults: series for origin, series in values.items()}
        return replace(self, values={**self.values, **further})

    def loss(self, *names: str) -> float | None:
        """Returns how much worse the mean is than the winner's; None without values."""
        if names not in self.values:
            return None
        pairs = zip(self.winner, self.values[names], strict=True)
        return mean([self.sign * difference(*pair) for pair in pairs])

    @cached_property
    def errors(self) -> tuple[float, float] | None:
        """The standard error of a loss, and half of its interval; None for a single seed."""
        single = [values for names, values in self.values.items() if len(names) == 1]
        return errors_of_differences([self.winner, *single]) if single else None

    def is_needed(self, name: str) -> bool:
        """Whether the loss without the change is shown: its interval lies above zero."""
        loss = self.loss(name)
        return loss is None or self.errors is None or loss > self.errors[1]

    def is_within_margin(self, names: Names) -> bool:
        """Whether the simple configuration may put this back."""
        loss, error = self.loss(*names), self.errors[0] if self.errors else 0.0
        return loss is not None and loss <= (error if self.margin is None else self.margin)

    def attempts(self) -> Iterator[Names]:
        """Yields the changes that are not needed, together: all of them, then the next fewer."""
        single = [names for names in self.values if len(names) == 1]
        free = sorted(
            (self.loss(*each) or 0.0, *each) for each in single if not self.is_needed(*each)
        )
        for count in range(len(free), 0, -1):
            yield tuple(sorted(name for _, name in free[:count]))

    def describe(self, defaults: Defaults, simple: Names | None) -> Ablation:
        """Describes a finished ablation, the most needed change first.

        Args:
            simple: what the simple configuration puts back; None without one.
        """
        rows = [
            AblationRow(
                name=name,
                value=defaults.point.params[name],
                default=defaults.put_back((name,)).params[name],
                values=tuple(self.values.get((name,), ())),
                loss=self.loss(name),
                needed=self.is_needed(name),
            )
            for (name,) in defaults.changed
        ]
        rows.sort(key=lambda row: -(math.inf if row.loss is None else row.loss))
        return Ablation(
            rows=tuple(rows),
            error=None if self.errors is None else self.errors[1],
            simple=simple,
            simple_loss=self.loss(*simple or ()) or 0.0,
        )
