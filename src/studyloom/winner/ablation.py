"""The ablation: each hyperparameter of the winner is put back to its default, and trained again.

A *change* is a hyperparameter whose value in the winner differs from its default. A *change set*
is one or several changes that are put back together, by the names of the hyperparameters. The
ablation trains the winner without each single change, on the seeds and validation splits of the
re-evaluation, so that each configuration is compared with the winner seed by seed. The *loss* of a
change set is how much worse the metric gets without it.

The *simple configuration* is the winner without as many changes as possible, while it remains about
as good. It is found by putting back all changes that are not needed, and then fewer and fewer.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.averages import mean
from studyloom.config.values import has_key, value_at
from studyloom.definition.definition import Definition
from studyloom.space.tree import (
    Configuration,
    Hyperparameter,
    Params,
    config_group,
    find_middle,
    find_misfit,
)
from studyloom.winner.candidates import CandidateId
from studyloom.winner.result import Ablation, AblationRow
from studyloom.winner.statistics import DifferenceError, difference, estimate_difference_error

ChangeSet = tuple[str, ...]  # the names of the hyperparameters; see the module


@dataclass(frozen=True)
class Defaults:
    """Puts hyperparameters of the winner back to their defaults.

    A default is the value in the config of the chosen options, or the middle of the range if that
    value lies outside. An Optuna objective has no config: its defaults are the middles of the
    ranges.

    Args:
        configuration: that of the winner.
        trials: the trials of the search.
    """

    definition: Definition
    configuration: Configuration
    trials: Sequence[FrozenTrial]

    def put_back(self, change_set: ChangeSet) -> Configuration:
        """Returns the winner's configuration with some hyperparameters at their defaults.

        If the optimizer is put back, for example, the hyperparameters of the default optimizer are
        added, at their defaults too.
        """
        kept_params = {}
        for name, value in self.configuration.params.items():
            if name not in change_set:
                kept_params[name] = value
        if self.definition.has_optuna_objective:  # without a config
            return Configuration(params=self._find_middles() | kept_params)
        # The first walk finds which options the configuration has. Defaults depend on options, so
        # only the second walk, which composes the config with them, reads the right defaults.
        options = self._fill_with_defaults(kept_params, self.definition.composer.choices).choices
        configuration = self._fill_with_defaults(kept_params, options)
        return replace(
            configuration, values=configuration.values | self._find_pinned_values(configuration)
        )

    def _find_middles(self) -> dict[str, object]:
        """Returns the middle of each range that an Optuna objective has suggested from."""
        middles = {}
        for trial in self.trials:
            distributions: Mapping[str, Any] = trial.distributions  # narrower than Optuna's type
            for name, distribution in distributions.items():
                middles[name] = find_middle(distribution)
        return middles

    def _fill_with_defaults(self, params: Params, options: Mapping[str, str]) -> Configuration:
        """Returns a configuration with some values, and defaults for all other hyperparameters.

        Args:
            params: the values by hyperparameter name.
            options: the chosen options by Hydra group; the config composed with them has the
                defaults.
        """
        choose_value = partial(self._choose_value, params=params, options=options)
        return self.definition.space.walk(choose_value)

    def _choose_value(
        self, hyperparameter: Hyperparameter, params: Params, options: Mapping[str, str]
    ) -> Any:
        """Returns the given value of a hyperparameter, or else its default.

        The default is the middle of the range if the value in the config lies outside.

        Args:
            hyperparameter: the hyperparameter that a walk through the space comes to.
            params: the given values by hyperparameter name.
            options: the chosen options by Hydra group; the config composed with them has the
                defaults.
        """
        if hyperparameter.name in params:
            return params[hyperparameter.name]
        composer = self.definition.composer
        default: Any
        if hyperparameter.role == "option":
            # The option of the study's config; `options` has that of the winner.
            default = composer.choices.get(config_group(hyperparameter.key))
        else:
            read_value = partial(value_at, composer.compose(options))  # of a config key
            default = hyperparameter.read_default(options, read_value)
        is_in_range = find_misfit(hyperparameter.distribution, default) is None
        if is_in_range:
            return default
        return find_middle(hyperparameter.distribution)

    def _find_pinned_values(self, configuration: Configuration) -> dict[str, object]:
        """Returns the values of the winner that do not come from its hyperparameters.

        Such a value is the number of epochs that early stopping chose. It is kept when
        hyperparameters are put back, unless that changes the value or removes its key.

        Args:
            configuration: the winner's, with hyperparameters put back to their defaults.
        """
        searched_values = self.definition.space.make_configuration(self.configuration.params).values
        config = self.definition.compose_config(configuration)
        pinned_values = {}
        for key, value in self.configuration.values.items():
            searched_value = searched_values.get(key)
            is_pinned = value != searched_value
            is_put_back = searched_value != configuration.values.get(key)
            if is_pinned and not is_put_back and has_key(config, key):
                pinned_values[key] = value
        return pinned_values

    @cached_property
    def single_changes(self) -> Sequence[ChangeSet]:
        """A change set of one name for each change that may be put back alone."""
        single_changes = []
        for name, value in self.configuration.params.items():
            change_set = (name,)
            default = self.put_back(change_set).params[name]
            if value != default and self.is_possible(change_set):
                single_changes.append(change_set)
        return single_changes

    def is_possible(self, change_set: ChangeSet) -> bool:
        """Returns whether the winner without these changes satisfies the space's relations."""
        params = self.put_back(change_set).params
        broken_relation = self.definition.space.find_breach(params)
        return broken_relation is None


@dataclass(frozen=True)
class Losses:
    """Compares the winner with configurations that lack some of its changes, seed by seed.

    Args:
        winner: the winner's value for each new seed.
        values: the values in the same order without each change set; one is missing if a training
            has failed.
        sign: 1 if more of the metric is better, else -1.
        margin: the loss that the simple configuration may have; None for the standard error.
    """

    winner: Sequence[float]
    values: Mapping[ChangeSet, Sequence[float]]
    sign: int
    margin: float | None = None

    def with_values(self, values: Mapping[CandidateId, Sequence[float]]) -> "Losses":
        """Returns the losses with the values of further configurations."""
        values_by_change_set = dict(self.values)
        for candidate_id, values_by_seed in values.items():
            change_set = candidate_id.defaults
            values_by_change_set[change_set] = values_by_seed
        return replace(self, values=values_by_change_set)

    def loss(self, *names: str) -> float | None:
        """Returns how much worse the metric is, on average over seeds, without some changes.

        Returns None if a training without them has failed.
        """
        if names not in self.values:
            return None
        losses = []
        for value_of_winner, value in zip(self.winner, self.values[names], strict=True):
            losses.append(self.sign * difference(value_of_winner, value))
        return mean(losses)

    @property
    def single_changes(self) -> list[ChangeSet]:
        """The change sets of one name that have values."""
        return [change_set for change_set in self.values if len(change_set) == 1]

    @cached_property
    def error(self) -> DifferenceError | None:
        """The error of each loss; None for a single seed."""
        if not self.single_changes:
            return None
        values_without_change = [self.values[change_set] for change_set in self.single_changes]
        return estimate_difference_error([self.winner, *values_without_change])

    def is_needed(self, name: str) -> bool:
        """Returns whether a change makes the winner better, by more than chance explains.

        This is so if the interval of the change's loss lies above zero. A change whose loss or
        error is unknown counts as needed.
        """
        loss = self.loss(name)
        if loss is None or self.error is None:
            return True
        return loss > self.error.half_interval

    def is_within_margin(self, change_set: ChangeSet) -> bool:
        """Returns whether a configuration without these changes is about as good as the winner.

        Its metric may be worse than the winner's by `margin`; without a margin by the standard
        error of a loss; with neither, as for a single seed, not at all.
        """
        loss_to_winner = self.loss(*change_set)
        if loss_to_winner is None:  # a training has failed
            return False
        if self.margin is not None:
            allowed_loss = self.margin
        elif self.error is not None:
            allowed_loss = self.error.standard_error
        else:
            allowed_loss = 0.0
        return loss_to_winner <= allowed_loss

    def propose_simplifications(self) -> Iterator[ChangeSet]:
        """Yields the change sets that may be dispensable: all that is not needed, then ever fewer.

        If a, b and c are not needed, and c has the largest loss, then a the next, it yields
        (a, b, c), (a, b) and (b,).
        """
        dispensable_names = []
        for (name,) in self.single_changes:
            if not self.is_needed(name):
                dispensable_names.append(name)
        dispensable_names.sort(key=lambda name: (self.loss(name) or 0.0, name))
        for count in range(len(dispensable_names), 0, -1):
            yield tuple(sorted(dispensable_names[:count]))

    def describe(self, defaults: Defaults, simple: ChangeSet | None) -> Ablation:
        """Describes a finished ablation for the result, the change with the largest loss first.

        Args:
            defaults: puts hyperparameters of the winner back to their defaults.
            simple: the change set that the simple configuration lacks; None without one.
        """
        rows = []
        for (name,) in defaults.single_changes:
            row = AblationRow(
                name=name,
                value=defaults.configuration.params[name],
                default=defaults.put_back((name,)).params[name],
                values=tuple(self.values.get((name,), ())),
                worse_by=self.loss(name),
                needed=self.is_needed(name),
            )
            rows.append(row)
        rows.sort(key=_rank_by_loss)
        half_interval = None
        if self.error is not None:
            half_interval = self.error.half_interval
        simple_loss = None
        if simple is not None:
            simple_loss = self.loss(*simple)
        return Ablation(
            rows=tuple(rows),
            half_interval=half_interval,
            simple_defaults=simple,
            simple_worse_by=simple_loss or 0.0,
        )


def _rank_by_loss(row: AblationRow) -> float:
    """Ranks the largest loss first; a change whose training failed comes before all others."""
    if row.worse_by is None:
        return -math.inf
    return -row.worse_by
