"""The sentences about studies, which are made here from data, for all views.

They explain a snapshot, a result with its candidates, test and ablation, and the data that a
network takes. The sentence that sums up a study is made in `headline.py`.
"""

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.metrics import METRICS, ObjectiveValue
from studyloom.storage.attributes import SPACE
from studyloom.storage.stored_study import StoredStudy, value_of
from studyloom.storage.trial_record import INTERRUPTED, shown_state
from studyloom.text import (
    format_cost,
    format_duration,
    format_error,
    format_parameter,
    format_shape,
    format_value,
    one_line,
    plural,
    write_minus,
)
from studyloom.views.snapshot import Snapshot, WorkerStatus
from studyloom.winner.result import (
    SIMPLE,
    Ablation,
    AblationRow,
    Candidate,
    Comparison,
    DataFacts,
    InputPrediction,
    Result,
    Scores,
    Summary,
)

MOST_PRINTED = 100  # numbers of a predicted map that are printed
MOST_CLASSES = 3  # classes of a larger map that are printed
NO_INTERVAL = "no interval: it needs three seeds that differ"
SELECTED_NETWORKS = (
    "no interval: the winner was chosen by the values of these networks; winner.retrain=true tests "
    "others"
)
FOLLOW_SEED = (
    "if the training sets its seed itself, let it use the trial's: run.seed in a loop, {seed} "
    "in a command, objective.seed of a Hydra application"
)
NO_TEST = "there is no objective.test, so nothing was tested"
OWN_TEST = "your test function measured it, so there are no predictions to show"
TRAININGS = {"re-evaluation": "re-evaluations", "final-training": "final trainings"}


@dataclass(frozen=True)
class Fact:
    """A fact of a study in words.

    Attributes:
        label: the name of the value; empty for a sentence without one.
        explanation: what the value is based on; may be empty.
    """

    label: str
    value: str
    explanation: str = ""

    @property
    def text(self) -> str:
        """The value and its explanation, without the label."""
        if self.explanation:
            return f"{self.value}: {self.explanation}"
        return self.value

    def __str__(self) -> str:
        if self.label:
            return f"{self.label} {self.text}"
        return self.text


def format_number(value: object, sign: str = "") -> str:
    """Formats a number as `format_value` does; a dash for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–"
    return format_value(value, sign)


def begin_sentence(text: str) -> str:
    """Capitalizes the first letter, and leaves the others."""
    return f"{text[:1].upper()}{text[1:]}"


# Trials


def describe_objective(objective: ObjectiveValue) -> str:
    """Says which values of an objective are better."""
    if objective.sign > 0:
        return f"{objective.name}, more is better"
    return f"{objective.name}, less is better"


def format_trial_values(trial: FrozenTrial) -> str:
    """Formats the value of a trial, or all of its values, in one line."""
    return ", ".join(format_each_value(trial))


def format_each_value(trial: FrozenTrial) -> list[str]:
    """Formats each value of a trial: the metric, then the costs; a dash if it has no values."""
    if not trial.values:
        return ["–"]
    metric, *costs = trial.values
    return [format_value(metric), *map(format_cost, costs)]


def format_parameters(params: Mapping[str, Any]) -> str:
    """Formats the hyperparameters of a trial in one line."""
    return "  ".join(list_parameters(params))


def list_parameters(params: Mapping[str, Any]) -> list[str]:
    """Formats each hyperparameter of a trial, such as "lr=0.001"; or the default configuration."""
    if not params:
        return ["default configuration"]
    return [f"{one_line(name)}={format_parameter(value)}" for name, value in params.items()]


def format_costs(costs: Mapping[str, float]) -> str:
    """Formats costs by name, each after a comma; empty if the metric is the only objective."""
    return "".join(f", {name} {format_cost(cost)}" for name, cost in costs.items())


def map_costs(snapshot: Snapshot, trial: FrozenTrial) -> dict[str, float]:
    """Returns the costs of a complete trial by their names."""
    return dict(zip(snapshot.costs, trial.values[1:], strict=False))


# Values


def _is_share(metric: str, value: float) -> bool:
    """Returns whether a value is a share of 1, such as an accuracy, which is shown in percent.

    The name of the metric does not suffice: a loop may call another quantity accuracy.
    """
    definition = METRICS.get(metric)
    return definition is not None and definition.scale == "unit" and definition.can_be(value)


def _count_decimals(error: float | None) -> int:
    """Returns the decimals of a percentage, one to three, enough to show its error.

    An error of 0.0004 is 0.04%, and needs two decimals.
    """
    if not error or not math.isfinite(error):
        return 1
    exponent = math.floor(math.log10(100 * abs(error)))  # of the error's first digit, in percent
    return min(3, max(1, -exponent))


def _format_percentage(share: float, decimals: int) -> str:
    """Formats a share of 1 as a percentage, without the sign %; a half is rounded up.

    0.9725 and 0.9175 are 97.3 and 91.8. Python rounds a half to the even digit, so that of two
    such values one would be rounded down and the other up.
    """
    if not math.isfinite(share):
        return str(share)
    percentage = 100 * Decimal(repr(share))  # 97.25 and not 97.2499…, as the float is written
    digit = Decimal(1).scaleb(-decimals)  # the last one, such as 0.1
    return str(percentage.quantize(digit, ROUND_HALF_UP))


def format_metric(value: float, metric: str, error: float | None = None) -> str:
    """Formats a value of a metric, a share of 1 in percent."""
    if _is_share(metric, value):
        return f"{_format_percentage(value, _count_decimals(error))}%"
    return f"{one_line(metric)} {format_value(value)}"


def format_summary(summary: Summary, metric: str) -> str:
    """Formats mean ± standard deviation over the seeds, shares of 1 in percent."""
    mean = summary.mean
    error = summary.std
    if error is None or summary.is_same_for_all_seeds:
        return format_metric(mean, metric)
    if _is_share(metric, mean):
        percentage_error = _format_percentage(error, _count_decimals(error))
        return f"{format_metric(mean, metric, error)} ± {percentage_error}"
    return f"{format_metric(mean, metric)} ± {format_error(error, format_value(mean))}"


def format_distance(difference: Summary, winner: Summary, metric: str) -> str:
    """Formats how far the winner is from the baseline, without a sign: shares of 1 in points.

    Args:
        winner: the values of the winner, which show whether the metric is a share of 1.
    """
    distance = abs(difference.mean)
    if _is_share(metric, winner.mean):
        return f"{_format_percentage(distance, _count_decimals(difference.std))} points"
    return format_value(distance)


def format_mean(summary: Summary) -> str:
    """Formats mean ± standard deviation; for two values, the mean and both."""
    mean = format_value(summary.mean)
    if summary.is_same_for_all_seeds or len(summary.values) < 2:
        return mean
    if summary.std is None:
        return f"{mean} ({' and '.join(map(format_value, summary.values))})"
    return f"{mean} ± {format_error(summary.std, mean)}"


def explain_spread(summary: Summary) -> str:
    """Explains the `±` of a mean, or why it is missing; empty for one seed."""
    seeds = len(summary.values)
    if summary.is_same_for_all_seeds:
        return f"the same value with each of {seeds} seeds, so that no spread is known"
    if summary.std is None:
        return ""
    return f"± is the standard deviation over {seeds} seeds"


# A snapshot of the study


def explain_no_best(snapshot: Snapshot, *, is_halted: bool = False) -> str:
    """Says why a study has no best trial.

    Args:
        is_halted: whether the study has stopped itself, so that no trial follows.
    """
    if snapshot.rule is not None and snapshot.outcomes.get("complete"):
        return f"no complete trial satisfies {one_line(snapshot.rule)}"
    has_run_all = snapshot.done > 0 and snapshot.left == 0
    if is_halted or has_run_all:
        return "no trial is complete"
    return "no trial is complete yet"


def count_uncounted(snapshot: Snapshot) -> list[str]:
    """Says how many trials are paused, interrupted, of other programs, or set aside, if any."""
    interrupted = 0
    for trial in snapshot.trials:
        if shown_state(trial, snapshot.live_trials) == INTERRUPTED:
            interrupted += 1
    counts = {
        "paused": snapshot.outcomes.get("paused", 0),
        INTERRUPTED: interrupted,
        "of other programs": snapshot.external,
        "set aside": snapshot.replaced,
    }
    return [f"{count:,} {kind}" for kind, count in counts.items() if count]


def count_trials(snapshot: Snapshot) -> list[str]:
    """Says how many trials are complete, pruned, failed, running or not counted."""
    counts = []
    for outcome in ("complete", "pruned", "failed"):
        counts.append(f"{snapshot.outcomes.get(outcome, 0):,} {outcome}")
    running = sum(worker.is_alive for worker in snapshot.workers)
    if running:
        counts.append(f"{running} running")
    return [*counts, *count_uncounted(snapshot)]


def format_done(snapshot: Snapshot) -> str:
    """Says how many of the trials are done."""
    return f"{snapshot.done:,} of {snapshot.budget:,}"


def describe_counts(snapshot: Snapshot) -> str:
    """Describes the study in one line: its name and its trials."""
    counts = ", ".join(count_trials(snapshot))
    return f"{one_line(snapshot.name)}: {format_done(snapshot)} trials – {counts}"


def make_trials_fact(stored: StoredStudy, snapshot: Snapshot) -> Fact:
    """Says how many trials of how many hyperparameters were searched."""
    names: set[str] = set()
    for trial in stored.trials():
        names |= trial.params.keys()
    counts = ", ".join(count_trials(snapshot))
    hyperparameters = plural(len(names), "hyperparameter")
    return Fact("Trials", format_done(snapshot), f"{hyperparameters}; {counts}")


def make_best_fact(stored: StoredStudy, snapshot: Snapshot) -> Fact:
    """Says which trial is the best of the search, and what the baseline is and has there."""
    best = snapshot.best
    if best is None:
        explanation = explain_no_best(snapshot, is_halted=stored.halted() is not None)
    else:
        explanation = f"trial {best.number}{format_costs(map_costs(snapshot, best))}"
    baseline = snapshot.baseline
    if baseline is not None:
        value = format_number(value_of(baseline))
        costs = format_costs(map_costs(snapshot, baseline))
        configuration = "your defaults"
        (space,) = stored.attributes(SPACE)
        if space is None:  # an Optuna objective, which has no defaults
            configuration = "the first enqueued"
        name = f"the baseline (trial {baseline.number}, {configuration})"
        explanation += f"; {name} has {value}{costs}"
    return Fact("Best, search", format_number(value_of(best)), explanation)


@dataclass(frozen=True)
class WorkerTexts:
    """A worker in words; a dash where nothing is known.

    Attributes:
        trial: the number of its trial.
        epoch: the last epoch of the trial, and how many are planned.
        value: the value after this epoch.
        held: how long the worker has held its trial.
        lease: when its lease expires.
    """

    trial: str = "–"
    epoch: str = "–"
    value: str = "–"
    held: str = "–"
    lease: str = "–"


def describe_worker(worker: WorkerStatus) -> WorkerTexts:
    """Describes what a worker does."""
    texts: dict[str, str] = {}  # by the fields of WorkerTexts
    if worker.trial is not None:
        texts["trial"] = str(worker.trial)
    if worker.epoch is not None:
        texts["epoch"] = str(worker.epoch)
    if worker.epoch is not None and worker.epochs is not None:
        texts["epoch"] += f"/{worker.epochs}"
    if worker.value is not None:
        texts["value"] = format_value(worker.value)
    if worker.held_seconds is not None:
        texts["held"] = format_duration(worker.held_seconds)
    if worker.is_gone:
        texts["lease"] = "its process has ended: the next worker resumes it"
    elif not worker.is_alive:
        texts["lease"] = "expired: the next worker resumes it"
    elif worker.lease_seconds is not None:
        texts["lease"] = f"expires in {format_duration(worker.lease_seconds)}"
    return WorkerTexts(**texts)


def list_front(snapshot: Snapshot) -> list[list[str]]:
    """Formats the Pareto front as rows, with best trial and baseline even if dominated.

    Returns:
        The header, and a row for each trial, the cheapest first: its values, its number,
        and a mark if it is the best or the baseline.
    """
    trials = {trial.number: trial for trial in snapshot.front}
    marks: dict[int, list[str]] = {}
    for role, trial in (("best", snapshot.best), ("baseline", snapshot.baseline)):
        if trial is not None:
            mark = role
            if trial.number not in trials:
                mark = f"{role}, beaten"
            marks.setdefault(trial.number, []).append(mark)
            trials[trial.number] = trial

    def sort_key(trial: FrozenTrial) -> list[float]:
        _, *costs = trial.values
        return [*costs, trial.number]

    rows = [[snapshot.metric, *snapshot.costs, "trial", ""]]
    for trial in sorted(trials.values(), key=sort_key):
        mark = ", ".join(marks.get(trial.number, []))
        rows.append([*format_each_value(trial), str(trial.number), mark])
    return rows


def announce_later_stages(top: int, seeds: int, *, is_tested: bool, shortening: str) -> str:
    """Says how many trainings follow a search, what they are for, and how to have fewer.

    Args:
        top: how many of the best trials are re-evaluated.
        seeds: with how many new seeds.
        is_tested: whether final training and test of winner and baseline follow.
        shortening: the settings that leave one trial and one seed, as the user gives them; empty
            if nothing is left to shorten.
    """
    best = "the best trial"
    if top > 1:
        best = f"the best {top}"
    choosing = (top + 1) * seeds
    candidates = f"{best} and the baseline, {plural(seeds, 'new seed')} each"
    if is_tested:
        testing = 2 * seeds
        fewest = 4
        text = (
            f"then up to {choosing + testing} trainings: {choosing} to choose the winner "
            f"({candidates}), and {testing} to test it and the baseline"
        )
    else:
        fewest = 2
        text = f"then up to {choosing} trainings to choose the winner: {candidates}"
    if shortening:
        text += f"; {shortening} makes it {fewest} in all"
    return text


# A result


def name_trial(candidate: Candidate) -> str:
    """Names a candidate by its trial."""
    return f"trial {candidate.trial}"


def describe_search_value(candidate: Candidate) -> str:
    """Formats the value of a candidate in the search, with the epoch at which it was stopped."""
    value = format_number(candidate.search_value)
    if candidate.stopped_at_epoch is None:
        return value
    return f"{value} at epoch {candidate.stopped_at_epoch}"


def list_facts(result: Result, *, with_uncertainty: bool = True) -> Iterator[Fact]:
    """Yields the winner, then what it is compared with, and notes without a label.

    The winner's explanation says what its value is based on.

    Args:
        with_uncertainty: whether notes say what `±` means, and give the interval of the winner's
            mean.
    """
    if result.test is None:
        yield from _list_untested(result, with_uncertainty=with_uncertainty)
    else:
        yield from _list_tested(result, result.test, with_uncertainty=with_uncertainty)


def _list_untested(result: Result, *, with_uncertainty: bool) -> Iterator[Fact]:
    """Yields the facts of a winner that was re-evaluated and not tested.

    The selection gap is how much better its value in the search is than its mean on new seeds.
    """
    winner = result.winner
    reevaluation = winner.reevaluation
    assert reevaluation is not None  # a winner without a test was re-evaluated
    basis = plural(len(reevaluation.values), "new seed")
    yield Fact("winner", f"{result.metric.name} {format_mean(reevaluation)}", basis)
    for candidate in result.candidates:
        if candidate.baseline and candidate.reevaluation and candidate != winner:
            yield Fact("baseline", format_mean(candidate.reevaluation))
    if winner.selection_gap is not None:
        yield Fact("selection gap", format_value(winner.selection_gap, "+"))
    yield from _summarize_ablation(result)
    spread = ""
    if with_uncertainty or reevaluation.is_same_for_all_seeds:
        spread = explain_spread(reevaluation)
    if result.is_of_loop and reevaluation.is_same_for_all_seeds:
        spread += f"; {FOLLOW_SEED}"
    yield from _list_notes(spread, describe_reuse(result), explain_no_test(result))


def _list_tested(result: Result, test: Scores, *, with_uncertainty: bool) -> Iterator[Fact]:
    """Yields the facts of a tested winner; see `list_facts`."""
    winner = result.winner
    metric = result.metric.name
    basis = plural(len(result.seeds), "seed")
    if test.examples is not None:
        basis += f", {test.examples:,} examples"
    basis += format_costs(winner.costs)
    yield Fact("winner", f"{metric} {format_mean(test.winner)}", basis)
    if test.baseline is not None and test.difference is not None:
        yield Fact("baseline", format_mean(test.baseline))
        yield Fact("difference", describe_difference(test))
    for rule, value in test.references.items():
        yield Fact(rule, format_value(value))
    if winner.reevaluation is not None and winner.selection_gap is not None:
        mean = f"{format_mean(winner.reevaluation)} {describe_new_seeds(test)}"
        yield Fact("selection gap", format_value(winner.selection_gap, "+"), mean)
    yield from _summarize_ablation(result)
    if with_uncertainty:
        yield from _list_notes(*explain_uncertainty(test))
    if result.is_of_loop and test.winner.is_same_for_all_seeds:
        yield Fact("", FOLLOW_SEED)
    yield from _list_notes(describe_reuse(result))
    if test.test_set_uses > 1:
        uses = format_uses(test.test_set_uses)
        yield Fact("", f"the test set was {uses}, and each use proves less")
    satisfies_rule = result.satisfies_rule  # on new seeds
    if not satisfies_rule:
        yield Fact("", f"on new seeds no candidate satisfies {result.rule}; this is the best")


def _summarize_ablation(result: Result) -> Iterator[Fact]:
    if result.ablation is not None:
        yield Fact("ablation", summarize_ablation(result.ablation))


def _list_notes(*notes: str) -> Iterator[Fact]:
    """Yields facts without a label; none of empty notes."""
    for note in notes:
        if note:
            yield Fact("", note)


def make_winner_fact(result: Result) -> Fact:
    """Says whether the best is real: the value of the winner on the test set, or on new seeds."""
    winner = result.winner
    test = result.test
    name = f"{name_trial(winner)}{format_costs(winner.costs)}"
    if test is None:
        value = format_number(winner.search_value)
        if winner.reevaluation is not None:
            value = format_mean(winner.reevaluation)
        seeds = plural(len(winner.values), "new seed")
        if winner.reevaluation is not None:
            seeds = _describe_spread(winner.reevaluation, seeds)
        return Fact("Winner, re-evaluation", value, f"{name}; {seeds}, untested")
    if test.difference is not None:
        difference = describe_difference(test, with_cover=False)
        comparison = f"difference to the baseline {difference}"
    elif winner.baseline:
        comparison = "the baseline"
    else:
        comparison = "no baseline to compare with"
    seeds = _describe_spread(test.winner, plural(len(test.winner.values), "seed"))
    explanation = f"{name}; {seeds}; {comparison}"
    return Fact("Winner, test", format_mean(test.winner), explanation)


def _describe_spread(summary: Summary, seeds: str) -> str:
    """Says what the `±` of a mean is, or that there is no spread, before the number of seeds.

    Args:
        seeds: the number of seeds, such as "3 new seeds".
    """
    if summary.is_same_for_all_seeds:
        return f"the same with each of {seeds}"
    if summary.std is not None and len(summary.values) > 1:
        return f"± standard deviation of {seeds}"
    return seeds


def explain_decision(result: Result, budget: int, sign: int) -> Iterator[str]:
    """Yields the reasons for a result, a sentence each.

    Args:
        budget: the number of trials of the study.
        sign: 1 if more of the metric is better, else -1.
    """
    winner = result.winner
    choice = begin_sentence(f"{name_trial(winner)} was {describe_choice(result, budget)}")
    yield f"{choice}, {explain_choice(result)}."
    other_means = []
    for candidate in result.candidates:
        if candidate != winner and candidate.mean is not None:
            other_means.append(candidate.mean)
    if other_means and winner.mean is not None:
        mean = format_number(winner.mean)
        best_other = format_number(max(other_means, key=lambda value: sign * value))
        yield f"Its mean is {mean}, the best of the others {best_other}."
    if result.test is not None:
        yield f"The test set was {describe_test_use(result.test)}."


def describe_choice(result: Result, budget: int | None = None) -> str:
    """Says which trials the winner was chosen from: all of the study, or its first ones."""
    total = budget or result.study_trials or result.trials
    if result.trials < total:
        return f"chosen from the first {result.trials} of {total} trials"
    return f"chosen from {result.trials} trials"


def list_remarks(result: Result) -> Iterator[str]:
    """Yields what the values of a result do not show, each in a sentence.

    The reason for the winner is left out if it beat the baseline by more than chance explains.
    """
    comparison = result.comparison
    has_won = comparison is not None and comparison.is_won
    if not has_won or any(candidate.failed_trainings for candidate in result.candidates):
        yield f"winner: {name_trial(result.winner)}, {explain_choice(result)}"
    for fact in list_facts(result, with_uncertainty=False):
        if fact.label not in ("winner", "baseline", "difference", "selection gap"):
            yield str(fact)


def explain_choice(result: Result) -> str:
    """Says why the winner is not another candidate, and which of them failed in re-evaluations."""
    parts = [_explain_comparison(result)]
    for candidate in result.candidates:
        if candidate.failed_trainings:
            parts.append(describe_failures(candidate))
    return "; ".join(parts)


def _explain_comparison(result: Result) -> str:
    """Says why the winner was preferred to the other candidates.

    The cases, of which the first that fits is said: there is nothing to compare; the best candidate
    was compared with the baseline; only the winner has a value on each seed; the winner has the
    best mean; another rule.
    """
    winner = result.winner
    sign = result.metric.sign
    if winner.mean is None or len(result.candidates) == 1:
        return "the only candidate"
    if result.comparison is not None:
        return describe_comparison(result.comparison)
    seeds = plural(len(winner.values), "new seed")
    other_means = []  # of the other candidates that have a value on each seed
    for candidate in result.candidates:
        if candidate != winner and candidate.mean is not None and not candidate.failed_trainings:
            other_means.append(candidate.mean)
    if not other_means:
        return f"the only candidate with values on all of {seeds}"
    if all(sign * winner.mean >= sign * mean for mean in other_means):
        return f"since it had the best mean on {seeds}"
    return f"by {result.rule}, on {seeds}"


def describe_comparison(comparison: Comparison) -> str:
    """Says by how much the best candidate beat the baseline on new seeds, and if that is enough.

    Examples are "since it beat the baseline by 0.0600 (standard error 0.0040) on 3 new seeds, and
    chance explains at most 0.0061" and "the default configuration, since trial 17 beat it by only
    0.0040 …; winner.margin=0 takes trial 17".
    """
    seeds = plural(comparison.seeds, "new seed")
    trial = f"trial {comparison.trial}"
    if comparison.gain <= 0:
        return f"the default configuration, since no trial beat it on {seeds}"
    gain = f"{format_gain(comparison)} on {seeds}"
    margin = ""
    if comparison.margin_is_set:
        margin = f", and winner.margin is {format_value(comparison.margin)}"
    elif comparison.margin > 0:
        margin = f", and chance explains at most {format_value(comparison.margin)}"
    if comparison.is_won:
        return f"since it beat the baseline by {gain}{margin}"
    reason = f"the default configuration, since {trial} beat it by only {gain}{margin}"
    return f"{reason}; winner.margin=0 takes {trial}"


def format_gain(comparison: Comparison) -> str:
    """Formats the gain of the best candidate with its standard error.

    It has no `±`, which stands for the standard deviation over seeds in the rows above.
    """
    gain = format_value(comparison.gain)
    if comparison.error > 0:
        gain += f" (standard error {format_error(comparison.error, gain)})"
    return gain


def describe_failures(candidate: Candidate) -> str:
    """Says how many re-evaluations of a candidate failed; at least one has."""
    name = name_trial(candidate)
    if candidate.baseline:
        name = "the baseline"
    count = plural(candidate.failed_trainings + len(candidate.values), "re-evaluation")
    text = f"{name} failed in {candidate.failed_trainings} of {count}"
    if candidate.baseline and not candidate.values:
        text += ", so that nothing is compared with it"
    return text


def describe_reuse(result: Result) -> str:
    """Says how many trainings were reused from earlier results or stages; empty if none.

    An example is "reused, as trained before: 2 of 10 re-evaluations, 1 of 2 final trainings".
    """
    counts = []
    for stage, (reused_count, total) in result.reused_trainings.items():
        if reused_count > 0:
            trainings = TRAININGS.get(stage, stage)  # "re-evaluations" for "re-evaluation"
            counts.append(f"{reused_count} of {total} {trainings}")
    if not counts:
        return ""
    return f"reused, as trained before: {', '.join(counts)}"


def explain_no_test(result: Result) -> str:
    """Says why a winner is not tested."""
    return result.untested or NO_TEST


def explain_no_predictions(result: Result) -> str:
    """Says why a result has no predictions to show; empty if it should have some."""
    if result.test is None:
        return explain_no_test(result)
    if result.tested_by_function_only:
        return OWN_TEST
    return ""


# The test


def describe_cover(test: Scores) -> str:
    """Says what the intervals cover."""
    seeds = len(test.winner.values)
    if test.intervals_cover == "examples" and seeds > 1:  # the value of a new seed may lie outside
        return f"over examples, for the mean of these {seeds} seeds only"
    if test.intervals_cover == "seeds":
        return "over seeds only"
    return f"over {test.intervals_cover}"


def describe_difference(test: Scores, *, with_cover: bool = True) -> str:
    """Formats the difference to the baseline, and says whether its interval includes 0.

    Args:
        with_cover: whether to say what the interval covers.
    """
    difference = test.difference
    if difference is None:
        return ""
    mean = format_value(difference.mean, "+")
    if test.used_in_selection:
        return f"{mean}, {SELECTED_NETWORKS}"
    if difference.interval is None:
        if len(difference.values) > 1:
            return f"{mean}, {NO_INTERVAL}"
        return mean
    low, high = difference.interval
    interval = f"95% interval {format_value(low, '+')} to {format_value(high, '+')}"
    if with_cover:
        interval += f" {describe_cover(test)}"
    if low <= 0 <= high:
        interval += ": no difference shown"
    return f"{mean}, {interval}"


def describe_new_seeds(test: Scores) -> str:
    """Says what is new in the re-evaluation: no splits for a loop that loads its data itself."""
    if test.examples is None:
        return "on new seeds"
    return "on new seeds and validation splits"


def explain_uncertainty(test: Scores) -> list[str]:
    """Explains the `±` of the winner's mean, and gives the interval of the mean."""
    notes = []
    spread = explain_spread(test.winner)
    if spread:
        notes.append(spread)
    if test.winner.interval is not None:
        low, high = map(format_value, test.winner.interval)
        notes.append(f"95% interval of the winner's mean {low} to {high} {describe_cover(test)}")
    return notes


def describe_test_use(test: Scores) -> str:
    """Says how often the test set was used, and when."""
    if test.tested_before:
        when = "for these networks when an earlier result had the same winner"
    else:
        when = "after the winner was chosen"
    return f"{format_uses(test.test_set_uses)}, {when}"


def format_uses(uses: int) -> str:
    """Says how often the test set was used."""
    if uses == 1:
        return "used once"
    return f"used {uses} times"


# The ablation


def summarize_ablation(ablation: Ablation) -> str:
    """Says which changes to the default configuration are needed."""
    changes = f"{plural(len(ablation.rows), 'change')} to the default configuration"
    if ablation.half_interval is None:  # for a single seed, or without a change
        if ablation.rows:
            return f"{changes}; one seed does not show which are needed"
        return changes
    names = [one_line(row.name) for row in ablation.rows if row.needed]
    summary = f"{len(names)} of {changes} needed"
    if names:
        summary += f": {', '.join(names)}"
    return summary


@dataclass(frozen=True)
class AblationCells:
    """A change of an ablation in words.

    Attributes:
        name: the hyperparameter.
        value: its value in the winner.
        default: its default, with which it was trained again.
        loss: how much worse the winner is with the default, ± half of the 95% interval.
        verdict: whether the change is needed.
        in_simple: "default" if winner.simple.yaml has the default, else empty.
    """

    name: str
    value: str
    default: str
    loss: str
    verdict: str
    in_simple: str


def describe_ablation(ablation: Ablation) -> list[AblationCells]:
    """Describes each change of an ablation."""
    return [_describe_change(ablation, row) for row in ablation.rows]


def _describe_change(ablation: Ablation, row: AblationRow) -> AblationCells:
    """Describes a change; its loss has as many decimals as show two digits of the error."""
    error = ablation.half_interval or 0.0
    decimals = 4
    if error > 0:
        finite_error = min(1e9, error)  # the error may be infinite
        exponent = math.floor(math.log10(finite_error))  # of the error's first digit
        decimals = max(0, 1 - exponent)
    loss = "no value: a training failed"
    if row.worse_by is not None:
        loss = f"{write_minus(f'{row.worse_by:+.{decimals}f}')} ± {error:.{decimals}f}"
    verdict = "not needed"
    if row.needed:
        verdict = "needed"
    in_simple = ""
    if ablation.simple_defaults is not None and row.name in ablation.simple_defaults:
        in_simple = "default"
    return AblationCells(
        name=one_line(row.name),
        value=one_line(format_parameter(row.value)),
        default=one_line(format_parameter(row.default)),
        loss=loss,
        verdict=verdict,
        in_simple=in_simple,
    )


def list_ablation(result: Result) -> Iterator[str]:
    """Yields a line for each change of the ablation, and what winner.simple.yaml has.

    A change is a value of the winner that differs from the default. The winner without the change
    has the default in its place.
    """
    ablation = result.ablation
    if ablation is None:
        return
    for change in describe_ablation(ablation):
        setting = f"{change.name} {change.value} → {change.default}"
        yield f"{setting}: {change.loss}, {change.verdict}"
    if ablation.rows:
        yield "how much worse the winner is without the change, ± half of the 95% interval"
    if ablation.simple_defaults is not None:
        names = ", ".join(map(one_line, ablation.simple_defaults))
        yield f"{SIMPLE} has the defaults of {names}: {describe_simple(result)}"


def describe_simple(result: Result) -> str:
    """Says how well winner.simple.yaml does on new seeds and on the test set; empty without one.

    It is the winner with the defaults of hyperparameters whose changes are not needed.
    """
    ablation = result.ablation
    test = result.test
    if ablation is None or ablation.simple_defaults is None:
        return ""
    loss = f"worse by {format_value(ablation.simple_worse_by)} on new seeds"
    if test is None or test.simple is None:
        return f"{loss}; not tested"
    test_loss = format_value(result.metric.sign * (test.winner.mean - test.simple.mean))
    return f"{loss}, by {test_loss} on the test set: {format_mean(test.simple)}"


# The summary of a result that the database stores


def describe_stored_result(stored: Mapping[str, Any]) -> str:
    """Formats a stored summary, which may be untrusted, as one line: the test first."""
    metric = one_line(str(stored.get("metric", "value")))
    trial = one_line(f"trial {stored.get('trial')}")
    test = _format_stored_mean(stored.get("test"))
    if test:
        baseline = stored.get("baseline_test")
        compared = ""
        if isinstance(baseline, float):
            compared = f", baseline {format_value(baseline)}"
        return f"test {metric} {test}{compared}, {trial}"
    reevaluation = _format_stored_mean(stored.get("reevaluation"))
    if reevaluation:
        return f"winner {metric} {reevaluation} on new seeds, {trial}"
    return f"winner {trial}"


def _format_stored_mean(values: object) -> str:
    """Formats a mean ± its standard deviation; empty for anything else that may be stored."""
    match values:
        case {"mean": int() | float() as mean, "std": int() | float() as std}:
            return f"{format_value(mean)} ± {format_value(std)}"
        case {"mean": int() | float() as mean}:
            return format_value(mean)
    return ""


# Data and predictions


def describe_accepted_files(data: DataFacts) -> str:
    """Describes the files that `studyloom predict` takes, by the inputs of the network."""
    shape = data.shape
    transform = data.transform or {}
    if data.has_reader:
        return f"files that {transform['_target_']} reads"
    if shape is None:
        return ".npz files with an array for each input of the network, in order or by name"
    if data.loads_tokens:
        return ".npy and CSV files of token ids"
    sizes = format_shape(shape)
    arrays = f".npy files of {sizes} numbers, or of several such"
    if len(shape) == 3 and shape[0] in (1, 3):  # channels, height and width of an image
        sizes += " (channels, height, width)"
        background = transform.get("background")
        if background:
            # The transform inverts images whose background is not that of the training images.
            sizes += f", those without a {background} background inverted"
        return f"images of any size, made {sizes}, and {arrays}"
    if data.columns:
        return f"CSV files with the columns {', '.join(data.columns)}, and {arrays}"
    return f"CSV files with {math.prod(shape)} numbers in a line, and {arrays}"


def describe_data(stored: StoredStudy, result: Result | None) -> str:
    """Says what the networks of a study were trained and tested on."""
    definition = stored.definition() or {}
    data = None
    test = None
    if result is not None:
        data = result.data
        test = result.test
    parts = []
    source = definition.get("data._target_")
    if isinstance(source, str):
        parts.append(source.rpartition(".")[2])
    if data is not None and data.shape:
        parts.append(f"inputs of {format_shape(data.shape)}")
    if data is not None and data.outputs is not None:
        noun = "outputs"
        if data.classifies:
            noun = "classes"
        parts.append(f"{data.outputs} {noun}")
    validation = definition.get("data.validation")
    if isinstance(validation, int) and definition.get("objective.folds") in (None, 1):
        parts.append(f"{validation:,} examples to validate")
    if test is not None and test.examples is not None:
        parts.append(f"{test.examples:,} to test")
    if data is not None:
        digest: object = data.digest
    else:
        digest = definition.get("data.digest")
    if isinstance(digest, str) and digest:
        parts.append(f"SHA-256 {digest[:12]}…")
    return ", ".join(parts)


def format_prediction(prediction: InputPrediction) -> str:
    """Formats the prediction for an input as one line: its name, class or numbers, and a note."""
    parts = [prediction.name]
    if prediction.confidence is not None:  # of a class
        parts.append(prediction.class_name or str(prediction.label))
        parts.append(f"{prediction.confidence:.4f}")
    elif math.prod(prediction.shape) > MOST_PRINTED:
        parts.append(_summarize_map(prediction))
    else:  # numbers, or a small map
        if prediction.shape:
            parts.append(format_shape(prediction.shape))
        for value in prediction.values:
            parts.append(format_value(value).replace("−", "-"))  # programs may read the numbers
        parts += map(str, prediction.labels)
    if prediction.note:
        parts.append(prediction.note)
    return "\t".join(parts)


def _summarize_map(prediction: InputPrediction) -> str:
    """Summarizes a map of classes or numbers."""
    size = format_shape(prediction.shape)
    labels = prediction.labels
    if labels:
        counts = Counter(labels).most_common(MOST_CLASSES)
        shares = [f"{label} {count / len(labels):.1%}" for label, count in counts]
        return f"{size} classes, most {', '.join(shares)}; --json prints all"
    low = format_value(min(prediction.values))
    high = format_value(max(prediction.values))
    return f"{size} numbers from {low} to {high}; --json prints all"


# The first lines of the configurations that are written with a result


def comment_winner_config(result: Result, command: Sequence[str] | None) -> str:
    """Returns the comment at the top of winner.yaml.

    Args:
        command: the command that trains the winner again; None if no command can.
    """
    if command is None:
        return f"# {_title(result)}.\n"
    line = one_line(shlex.join(command))
    return f"# {_title(result)}; this command trains it again:\n# {line}\n"


def comment_simple_config(result: Result) -> str:
    """Returns the comment at the top of winner.simple.yaml."""
    assert result.ablation is not None
    names = result.ablation.simple_defaults or ()
    defaults = one_line(f"with the defaults of {', '.join(names)}: {describe_simple(result)}")
    return f"# {_title(result)}, {defaults}\n"


def _title(result: Result) -> str:
    """Names the study and the trial of a winner."""
    return one_line(f"The winner of {result.study}, {name_trial(result.winner)}")
