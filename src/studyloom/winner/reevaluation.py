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
    """Holds the candidates of a search with their values on new seeds, and chooses the winner.

    Args:
        values: a value for each seed, of each candidate without a failed training; None without a
            re-evaluation, which a single candidate that will be tested does not need.
        partial: of each other candidate the values that it has, by the number of their seed.
    """

    search: StoredStudy
    rule: Rule
    candidates: Candidates
    values: Mapping[Origin, Sequence[float]] | None
    partial: Mapping[Origin, Mapping[int, float]] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """The number of new seeds, as of each candidate without a failed training."""
        return max((len(values) for values in (self.values or {}).values()), default=0)

    def values_by_seed(self, origin: Origin) -> Mapping[int, float]:
        """Returns the values of a candidate on new seeds; those of failed trainings are missing."""
        if self.values is None:
            return {}
        if origin in self.values:
            return dict(enumerate(self.values[origin]))
        return self.partial.get(origin, {})

    @property
    def eligible(self) -> list[Origin]:
        """The candidates that may win; after a re-evaluation only those that have values in it."""
        contenders = [o for o, candidate in self.candidates.items() if candidate.contends]
        if self.values is None:
            return contenders
        return [origin for origin in contenders if origin in self.values]

    @property
    def baseline(self) -> Origin | None:
        for origin, candidate in self.candidates.items():
            if candidate.is_baseline:
                return origin
        return None

    @cached_property
    def winner(self) -> Origin:
        """The eligible candidate that is best on new seeds; the lower number wins a tie.

        If no candidate satisfies the rule on new seeds, the one with the best mean wins. The
        baseline wins if that one is not better than it by more than `MARGIN`, on the seeds for
        which the baseline has values.
        """
        known = {origin: self.known(origin) for origin in self.eligible}
        satisfying = [origin for origin in known if self.rule.holds(known[origin])]
        metric, sign = self.search.metric, self.search.sign

        def rank(origin: Origin) -> tuple[float, ...]:
            values = known[origin]
            by_rule = self.rule.rank(values) if satisfying else 0.0
            return by_rule, -sign * values[metric], origin.trial

        chosen = min(satisfying or known, key=rank)
        baseline = self.baseline
        if baseline is not None and self._is_no_better(chosen, baseline):
            return baseline
        return chosen

    def _is_no_better(self, origin: Origin, baseline: Origin) -> bool:
        """Whether chance explains that a candidate is better than the baseline, as far as known."""
        if self.values is None or self.rule != Rule(self.search.objectives[0]):
            return False
        if origin == baseline or not self.candidates[baseline].contends:
            return False
        compared = self.values_by_seed(baseline)
        if not compared:
            return False
        other = [*compared.values()]
        one = [self.values[origin][seed] for seed in compared]
        gain = self.search.sign * difference(mean(one), mean(other))
        if len(one) < 2:
            return gain < 0
        error = math.hypot(standard_deviation(one), standard_deviation(other))
        return gain <= MARGIN * error / math.sqrt(len(one))

    def known(self, origin: Origin) -> dict[str, float]:
        """Returns the values of a candidate by name, for the rule.

        The mean on new seeds, if there is one, replaces the value in the search.
        """
        values = self.search.values_by_name(self.candidates[origin].trial)
        new_values = self.values_by_seed(origin)
        if new_values:
            values = values | {self.search.metric: mean([*new_values.values()])}
        return values

    @property
    def keeps_to_rule(self) -> bool:
        """Whether the winner satisfies the rule on new seeds."""
        return self.rule.holds(self.known(self.winner))
