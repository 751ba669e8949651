"""The re-evaluation: candidates with their values on new seeds, and the winner among them.

The choice is a pure function of the stored trials, so that each process comes to the same one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from studyloom.averages import mean, standard_deviation
from studyloom.space.rule import Rule
from studyloom.storage.stored_study import StoredStudy
from studyloom.winner.candidates import Candidates, Origin
from studyloom.winner.statistics import difference

# Standard errors of the difference. Without a margin 15% of winners are truly worse than the
# baseline, with it 2%, and a fiftieth of the gain is lost (`bench.py honesty`).
MARGIN = 1.5


@dataclass(frozen=True)
class Reevaluated:
    """The candidates of a search with their values on new seeds, and the winner among them.

    Args:
        values: the candidates without a failed training, each with a value for each seed; None
            without a re-evaluation, which a single candidate that will be tested does not need.
        partial_values: the other candidates, each with the values that it has, by the number of
            the seed.
    """

    search: StoredStudy
    rule: Rule
    candidates: Candidates
    values: Mapping[Origin, Sequence[float]] | None
    partial_values: Mapping[Origin, Mapping[int, float]] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """The number of new seeds; 0 if no candidate was trained with all of them."""
        if self.values is None:
            return 0
        return max((len(values) for values in self.values.values()), default=0)

    def values_by_seed(self, origin: Origin) -> Mapping[int, float]:
        """Returns the values of a candidate on new seeds; those of failed trainings are missing."""
        if self.values is None:
            return {}
        if origin in self.values:
            return dict(enumerate(self.values[origin]))
        return self.partial_values.get(origin, {})

    @property
    def eligible(self) -> list[Origin]:
        """The candidates that may win.

        After a re-evaluation, these are only candidates without failed trainings.
        """
        eligible = []
        for origin, candidate in self.candidates.items():
            has_all_values = self.values is None or origin in self.values
            if candidate.may_win and has_all_values:
                eligible.append(origin)
        return eligible

    @property
    def baseline(self) -> Origin | None:
        """The default configuration, if it is among the candidates."""
        for origin, candidate in self.candidates.items():
            if candidate.is_baseline:
                return origin
        return None

    @cached_property
    def winner(self) -> Origin:
        """The eligible candidate that is best on new seeds; the lower number wins a tie.

        If no candidate satisfies the rule on new seeds, the one with the best mean wins. The
        baseline wins instead if that candidate is not better by more than `MARGIN`, on the seeds
        for which the baseline has values.
        """
        values_of = {origin: self.values_by_name(origin) for origin in self.eligible}
        satisfying = [origin for origin, values in values_of.items() if self.rule.holds(values)]
        metric = self.search.metric
        sign = self.search.sign

        def rank(origin: Origin) -> tuple[float, float, int]:
            values = values_of[origin]
            rank_by_rule = 0.0
            if satisfying:
                rank_by_rule = self.rule.rank(values)
            return rank_by_rule, -sign * values[metric], origin.trial

        best = min(satisfying or values_of, key=rank)
        baseline = self.baseline
        if baseline is not None and self._is_no_better(best, baseline):
            return baseline
        return best

    def _is_no_better(self, origin: Origin, baseline: Origin) -> bool:
        """Returns whether chance may explain that a candidate is better than the baseline.

        False where it is not compared: without a re-evaluation, with a rule, or if the baseline
        may not win or has no values on new seeds.
        """
        if self.values is None or self.rule != Rule(self.search.objectives[0]):
            return False
        if origin == baseline or not self.candidates[baseline].may_win:
            return False
        baseline_by_seed = self.values_by_seed(baseline)
        if not baseline_by_seed:
            return False
        baseline_values = [*baseline_by_seed.values()]
        values = [self.values[origin][seed] for seed in baseline_by_seed]
        gain = self.search.sign * difference(mean(values), mean(baseline_values))
        if len(values) < 2:
            return gain < 0
        error = math.hypot(standard_deviation(values), standard_deviation(baseline_values))
        return gain <= MARGIN * error / math.sqrt(len(values))

    def values_by_name(self, origin: Origin) -> dict[str, float]:
        """Returns the values of a candidate by name, for the rule.

        The mean on new seeds, if there is one, replaces the value in the search.
        """
        values = self.search.values_by_name(self.candidates[origin].trial)
        new_values = self.values_by_seed(origin)
        if new_values:
            values = values | {self.search.metric: mean([*new_values.values()])}
        return values

    @property
    def satisfies_rule(self) -> bool:
        """Returns whether the winner satisfies the rule on new seeds."""
        return self.rule.holds(self.values_by_name(self.winner))
