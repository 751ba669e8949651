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
from studyloom.winner.candidates import CandidateId, Candidates
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
    values: Mapping[CandidateId, Sequence[float]] | None
    partial_values: Mapping[CandidateId, Mapping[int, float]] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """The number of new seeds; 0 if no candidate was trained with all of them."""
        if not self.values:
            return 0
        return max(len(values) for values in self.values.values())

    def values_by_seed(self, candidate_id: CandidateId) -> Mapping[int, float]:
        """Returns the values of a candidate on new seeds, except for failed trainings."""
        if self.values is None:
            return {}
        if candidate_id in self.values:
            return dict(enumerate(self.values[candidate_id]))
        return self.partial_values.get(candidate_id, {})

    @property
    def eligible(self) -> list[CandidateId]:
        """The candidates that may win.

        After a re-evaluation, these are only candidates without failed trainings.
        """
        eligible = []
        for candidate_id, candidate in self.candidates.items():
            has_failed_training = self.values is not None and candidate_id not in self.values
            if candidate.may_win and not has_failed_training:
                eligible.append(candidate_id)
        return eligible

    @property
    def baseline(self) -> CandidateId | None:
        """The default configuration, if it is among the candidates."""
        for candidate_id, candidate in self.candidates.items():
            if candidate.is_baseline:
                return candidate_id
        return None

    @cached_property
    def winner(self) -> CandidateId:
        """The eligible candidate that is best on new seeds; the lower number wins a tie.

        Candidates that satisfy the rule come first. The baseline wins instead of the best candidate
        if chance may explain the difference between them.
        """
        values_of_candidates = {}
        satisfying = []  # the candidates that satisfy the rule
        for candidate_id in self.eligible:
            values = self.values_by_name(candidate_id)
            values_of_candidates[candidate_id] = values
            if self.rule.holds(values):
                satisfying.append(candidate_id)
        metric = self.search.metric
        sign = self.search.sign  # 1 if more of the metric is better, else -1

        def rank(candidate_id: CandidateId) -> tuple[float, float, int]:
            values = values_of_candidates[candidate_id]
            if satisfying:
                rank_by_rule = self.rule.rank(values)
            else:
                rank_by_rule = 0.0
            return rank_by_rule, -sign * values[metric], candidate_id.trial

        best = min(satisfying or self.eligible, key=rank)
        baseline = self.baseline
        if baseline is not None and self._is_within_chance(best, baseline):
            return baseline
        return best

    def _is_within_chance(self, candidate_id: CandidateId, baseline: CandidateId) -> bool:
        """Returns whether chance may explain that a candidate is better than the baseline.

        It may if the gain is at most MARGIN standard errors, on the seeds for which the baseline
        has values. Returns False if the two are not compared: without a re-evaluation, with a rule,
        or if the baseline may not win or has no values on new seeds.
        """
        has_rule = self.rule != Rule(self.search.objectives[0])
        if self.values is None or has_rule:
            return False
        if candidate_id == baseline or not self.candidates[baseline].may_win:
            return False
        baseline_values_by_seed = self.values_by_seed(baseline)
        if not baseline_values_by_seed:
            return False
        baseline_values = list(baseline_values_by_seed.values())
        values = [self.values[candidate_id][seed] for seed in baseline_values_by_seed]
        gain = self.search.sign * difference(mean(values), mean(baseline_values))
        seeds = len(values)
        if seeds < 2:  # their spread is unknown
            return gain < 0
        spread = math.hypot(standard_deviation(values), standard_deviation(baseline_values))
        least_gain = MARGIN * spread / math.sqrt(seeds)
        return gain <= least_gain

    def values_by_name(self, candidate_id: CandidateId) -> dict[str, float]:
        """Returns the metric and the costs of a candidate by name, for the rule.

        The mean of the metric on new seeds, if there is one, replaces its value in the search.
        """
        values = self.search.values_by_name(self.candidates[candidate_id].trial)
        new_values = self.values_by_seed(candidate_id)
        if new_values:
            values = values | {self.search.metric: mean([*new_values.values()])}
        return values

    @property
    def satisfies_rule(self) -> bool:
        """Returns whether the winner satisfies the rule on new seeds."""
        return self.rule.holds(self.values_by_name(self.winner))
