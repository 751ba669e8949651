"""The re-evaluation: candidates with their values on new seeds, and the winner among them.

The choice is a pure function of the stored trials, so that each process comes to the same one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from studyloom.averages import mean
from studyloom.space.rule import Rule
from studyloom.storage.stored_study import StoredStudy
from studyloom.winner.candidates import CandidateId, Candidates
from studyloom.winner.margin import CandidateValues, estimate_margin
from studyloom.winner.result import Comparison
from studyloom.winner.statistics import difference


@dataclass(frozen=True)
class Reevaluated:
    """The candidates of a search with their values on new seeds, and the winner among them.

    Args:
        values: the candidates without a failed training, each with a value for each seed; None
            without a re-evaluation, which a single candidate that will be tested does not need.
        partial_values: the other candidates, each with the values that it has, by the number of
            the seed.
        searched_values: the values in the search of all trials that may win but the baseline.
        margin: the gain that a candidate needs to win over the baseline; None to estimate which
            gain chance may explain.
    """

    search: StoredStudy
    rule: Rule
    candidates: Candidates
    values: Mapping[CandidateId, Sequence[float]] | None
    partial_values: Mapping[CandidateId, Mapping[int, float]] = field(default_factory=dict)
    searched_values: Sequence[float] = ()
    margin: float | None = None

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

    @property
    def winner(self) -> CandidateId:
        """The best candidate, or the baseline if the gain of the best is within the margin."""
        baseline = self.baseline
        comparison = self.comparison
        if baseline is None or comparison is None or comparison.is_won:
            return self.best
        return baseline

    @property
    def winner_was_selected(self) -> bool:
        """Returns whether the winner was chosen for its values on new seeds.

        Its networks of these seeds are better than those of other seeds then, on average.
        """
        is_only_candidate = len(self.candidates) == 1
        return not is_only_candidate and self.winner != self.baseline

    @cached_property
    def best(self) -> CandidateId:
        """The eligible candidate that is best on new seeds; the lower number wins a tie.

        Candidates that satisfy the rule come first.
        """
        satisfying = [candidate for candidate in self.eligible if self._satisfies_rule(candidate)]
        if satisfying:
            return min(satisfying, key=self._rank_by_rule)
        return min(self.eligible, key=self._rank_by_metric)

    def _rank_by_rule(self, candidate_id: CandidateId) -> tuple[float, float, int]:
        """Returns the key by which candidates are sorted, the best by the rule first."""
        values = self.values_by_name(candidate_id)
        return self.rule.rank(values), *self._rank_by_metric(candidate_id)

    def _rank_by_metric(self, candidate_id: CandidateId) -> tuple[float, int]:
        """Returns the key by which candidates are sorted, the best by the metric first."""
        values = self.values_by_name(candidate_id)
        less_is_better = -self.search.sign * values[self.search.metric]
        return less_is_better, candidate_id.trial

    @cached_property
    def comparison(self) -> Comparison | None:
        """The best candidate compared with the baseline on new seeds; None if they are not."""
        baseline = self.baseline
        if baseline is None or not self._is_compared_with(baseline):
            return None
        # A baseline with failed trainings has values for some of the seeds.
        seeds = list(self.values_by_seed(baseline))
        best_values = self._select_values(self.best, seeds)
        baseline_values = self._select_values(baseline, seeds)
        values_of_others = []
        for candidate_id in self.values or ():
            if candidate_id not in (self.best, baseline):
                values_of_others.append(self._select_values(candidate_id, seeds))
        searched_values = [self.search.sign * value for value in self.searched_values]
        estimate = estimate_margin(best_values, baseline_values, values_of_others, searched_values)
        margin = estimate.margin
        if self.margin is not None:
            margin = self.margin
        return Comparison(
            trial=self.best.trial,
            gain=difference(mean(best_values.new), mean(baseline_values.new)),
            error=estimate.error,
            margin=margin,
            margin_is_set=self.margin is not None,
            seeds=len(seeds),
        )

    def _is_compared_with(self, baseline: CandidateId) -> bool:
        """Returns whether chance may have made the best candidate better than the baseline.

        It has not if the baseline is the best candidate itself, has no values on new seeds, may not
        win, or is alone in breaking the rule. A rule that ranks by a cost, such as the number of
        parameters, leaves nothing to chance either. Neither does a baseline that has failed with
        all seeds but one, whose value says nothing about the noise.
        """
        ranks_by_metric = self.rule.objective.name == self.search.metric
        values_by_seed = self.values_by_seed(baseline)
        has_failed = baseline not in self.eligible  # with some of the seeds, if not with all
        has_new_values = len(values_by_seed) > int(has_failed)
        may_win = self.candidates[baseline].may_win
        if not (ranks_by_metric and has_new_values and may_win) or self.best == baseline:
            return False
        return self._satisfies_rule(baseline) or not self._satisfies_rule(self.best)

    def _select_values(self, candidate_id: CandidateId, seeds: Sequence[int]) -> CandidateValues:
        """Selects the values of a candidate on some new seeds, with a sign so that more is better.

        Args:
            seeds: the numbers of the seeds, for each of which the candidate has a value.
        """
        sign = self.search.sign
        values_by_seed = self.values_by_seed(candidate_id)
        new_values = [sign * values_by_seed[seed] for seed in seeds]
        return CandidateValues(new_values, sign * self.candidates[candidate_id].final_value)

    def _satisfies_rule(self, candidate_id: CandidateId) -> bool:
        """Returns whether a candidate satisfies the rule on new seeds."""
        return self.rule.holds(self.values_by_name(candidate_id))

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
        return self._satisfies_rule(self.winner)
