"""The sentences about studies: each is made here, from data, for all views.

A study is described in one sentence that can be quoted, such as "A CNN with 16 channels, AdamW at
0.0033: 97.7% ± 0.4 on 1,000 unseen images, 4.4 points over the baseline". Further functions explain
a snapshot, a result with its candidates, test and ablation, and the data that a network takes.
"""

import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.metrics import METRICS, ObjectiveValue
from studyloom.space.rule import Rule
from studyloom.storage.stored_study import StoredStudy, value_of
from studyloom.storage.trial_record import INTERRUPTED, TrialRecord, shown_state
from studyloom.text import (
    format_cost,
    format_duration,
    format_error,
    format_parameter,
    format_shape,
    format_value,
    one_line,
    plural,
)
from studyloom.views.snapshot import ENOUGH, Importances, Snapshot, WorkerStatus
from studyloom.winner.result import (
    SIMPLE,
    Ablation,
    AblationRow,
    Candidate,
    DataFacts,
    InputPrediction,
    Result,
    Scores,
    Summary,
)

MOST_DETAILS = 2  # of a network
MOST_SETTINGS = 3  # of a trial without a network
# The keys that describe a network best, if the search varied none of its keys.
TELLING = ("channels", "hidden", "width", "layers")
SPELT = "AEFHILMNORSX"  # letters whose names begin with a vowel: an MLP, a CNN
VOWEL = r"[aeio]|u(?!-?net|ni)"  # begins a name that takes "an": not a U-Net
NOUNS = {"Image": "images", "Sound": "recordings"}  # by what makes a file an input
MOST_PRINTED = 100  # numbers of a map that are printed
MOST_CLASSES = 3  # of a larger map that are printed
NO_INTERVAL = "no interval: it needs three seeds that differ"
FOLLOW_SEED = (
    "if the training sets its seed itself, let it use the trial's: run.seed in a loop, {seed} "
    "in a command, objective.seed of a Hydra application"
)
NO_TEST = "there is no objective.test, so nothing was tested"
OWN_TEST = "your test function measured it, so there are no predictions to show"
TOO_FEW = (
    f"No importances yet: of fewer than {ENOUGH} complete trials, the best tenth is less than one. "
    "optuna-dashboard shows some from 2 on."
)
ALL_ALIKE = "No hyperparameter sets the best trials apart; optuna-dashboard shows equal shares."
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

    def __str__(self) -> str:
        named = f"{self.label} {self.value}" if self.label else self.value
        return f"{named}: {self.explanation}" if self.explanation else named


def number(value: object, sign: str = "") -> str:
    """Formats a number with a real minus sign; a dash for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–"
    return format_value(value, sign).replace("-", "−")


def begin_sentence(words: str) -> str:
    """Capitalizes the first letter, and leaves the others."""
    return f"{words[:1].upper()}{words[1:]}"


# Trials


def describe_objective(objective: ObjectiveValue) -> str:
    """Says which values of an objective are better."""
    better = "more" if objective.sign > 0 else "less"
    return f"{objective.name}, {better} is better"


def format_trial_values(trial: FrozenTrial) -> str:
    """Formats the value of a trial, or all of its values, in one line."""
    return ", ".join(trial_values(trial))


def trial_values(trial: FrozenTrial) -> list[str]:
    """Formats each value of a trial: the metric, then the costs; only a dash without values."""
    if not trial.values:
        return ["–"]
    metric, *costs = trial.values
    return [format_value(metric), *map(format_cost, costs)]


def format_parameters(params: Mapping[str, Any]) -> str:
    """Formats the hyperparameters of a trial in one line."""
    pairs = (f"{one_line(name)}={format_parameter(value)}" for name, value in params.items())
    return "  ".join(pairs) or "default configuration"


def format_costs(costs: Mapping[str, float]) -> str:
    """Formats costs by name, each after a comma; empty if the metric is the only objective."""
    return "".join(f", {name} {format_cost(cost)}" for name, cost in costs.items())


def costs_of(snapshot: Snapshot, trial: FrozenTrial) -> dict[str, float]:
    """Returns the costs of a complete trial by their names."""
    return dict(zip(snapshot.costs, trial.values[1:], strict=False))


def describe_trial(trial: FrozenTrial | None, params: Mapping[str, Any]) -> str:
    """Describes a trial: its network and optimizer, or else its first hyperparameters."""
    record = None if trial is None else TrialRecord(trial)
    config = _mapping(None if record is None else record.config)
    network = _mapping(config.get("model"))
    optimizer = _mapping(config.get("optimizer"))
    parts = []
    network_name = _class_of(network)
    if network_name:
        parts.append(_describe_network(network_name, network, params))
    optimizer_name = _class_of(optimizer)
    if optimizer_name:
        rate = optimizer.get("lr")
        if isinstance(rate, int | float):
            optimizer_name += f" at {_short(rate)}"
        parts.append(optimizer_name)
    if not parts:
        settings = join_lists(params).items()
        parts = [f"{key.rpartition('.')[2]} {value}" for key, value in settings][:MOST_SETTINGS]
    return one_line(", ".join(parts or ["The default configuration"]))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _class_of(section: Mapping[str, Any]) -> str:
    return str(section.get("_target_") or "").rpartition(".")[2]


def join_lists(params: Mapping[str, Any]) -> dict[str, str]:
    """Formats each hyperparameter; the items of a list are joined."""
    formatted: dict[str, str] = {}
    for key, value in params.items():
        above, _, last = key.rpartition(".")
        if f"{above}.0" in params and (last == "length" or last.isdecimal()):
            places = (f"{above}.{place}" for place in itertools.count())
            items = itertools.takewhile(params.__contains__, places)
            formatted[above] = "-".join(_short(params[item]) for item in items)
        else:
            formatted[key] = _short(value)
    return formatted


def _describe_network(name: str, network: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Describes a network: a CNN with 16 channels."""
    cell = network.get("cell")
    if isinstance(cell, str):  # the kind of a Recurrent
        name = cell.upper() if len(cell) <= 4 else cell
    if len(name) <= 4 and name.isupper():
        article = "An" if name[:1] in SPELT else "A"
    else:
        article = "An" if re.match(VOWEL, name.lower()) else "A"
    searched = {
        key.partition("[")[0].rpartition(".")[2] for key in params if key.startswith("model.")
    }
    keys = [key for key in network if key in searched]
    if not keys:
        keys = [key for key in TELLING if key in network]
    keys.sort(key=lambda key: key not in TELLING)
    details = [detail for key in keys if (detail := _describe_setting(key, network[key]))]
    if not details:
        return f"{article} {name}"
    return f"{article} {name} with {' and '.join(details[:MOST_DETAILS])}"


def _describe_setting(key: str, value: Any) -> str:
    """Describes a setting of a network, such as 16 channels; empty if it is no integer."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, int) for item in value):
        return f"{key} {'-'.join(map(str, value))}"
    if not isinstance(value, int) or isinstance(value, bool):
        return ""
    return f"{value} {key}" if key.endswith("s") and value != 1 else f"{key} {value}"


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else format_parameter(value)


# Values


def _is_share(metric: str, value: float) -> bool:
    """Whether a value of a metric is a share of 1, such as the accuracy, and shown in percent.

    A loop may give the name of a known metric to another quantity.
    """
    known = METRICS.get(metric)
    return known is not None and known.scale == "unit" and known.can_be(value)


def _decimals(error: float | None) -> int:
    """Returns the decimals of a percentage, one to three, enough to show its error."""
    if not error or not math.isfinite(error):
        return 1
    return min(3, max(1, -math.floor(math.log10(100 * abs(error)))))


def format_metric(value: float, metric: str, error: float | None = None) -> str:
    """Formats a value of a metric, a share of 1 in percent."""
    if _is_share(metric, value):
        return f"{100 * value:.{_decimals(error)}f}%"
    return f"{one_line(metric)} {format_value(value)}"


def format_summary(summary: Summary, metric: str) -> str:
    """Formats mean ± standard deviation over the seeds, shares of 1 in percent."""
    mean, error = summary.mean, summary.std
    if error is None or summary.same:
        return format_metric(mean, metric)
    if _is_share(metric, mean):
        return f"{format_metric(mean, metric, error)} ± {100 * error:.{_decimals(error)}f}"
    return f"{format_metric(mean, metric)} ± {format_error(error, format_value(mean))}"


def format_mean(summary: Summary) -> str:
    """Formats mean ± standard deviation; for two values, the mean and both."""
    mean = format_value(summary.mean)
    if summary.same or len(summary.values) < 2:
        return mean
    if summary.std is None:
        return f"{mean} ({' and '.join(map(format_value, summary.values))})"
    return f"{mean} ± {format_error(summary.std, mean)}"


def explain_spread(summary: Summary) -> str:
    """Explains the `±` of a mean, or why it is missing; empty for one seed."""
    seeds = len(summary.values)
    if summary.same:
        return f"the same value with each of {seeds} seeds, so that no spread is known"
    if summary.std is None:
        return ""
    return f"± is the standard deviation over {seeds} seeds"


# A snapshot of the study


def explain_no_best(snapshot: Snapshot) -> str:
    """Says why a study has no best trial."""
    if snapshot.rule is not None and snapshot.outcomes.get("complete"):
        return f"no complete trial satisfies {one_line(snapshot.rule)}"
    return "no trial is complete yet"


def count_uncounted(snapshot: Snapshot) -> list[str]:
    """Says how many trials are paused, interrupted, or kept but not counted, if any."""
    states = [shown_state(trial, snapshot.live_trials) for trial in snapshot.trials]
    counts = {
        "paused": snapshot.outcomes.get("paused"),
        INTERRUPTED: states.count(INTERRUPTED),
        "foreign": snapshot.external,
        "set aside": snapshot.replaced,
    }
    return [f"{count:,} {kind}" for kind, count in counts.items() if count]


def count_trials(snapshot: Snapshot) -> list[str]:
    """Says how many trials are complete, pruned, failed, running or not counted."""
    counts = [
        f"{snapshot.outcomes.get(outcome, 0):,} {outcome}"
        for outcome in ("complete", "pruned", "failed")
    ]
    running = sum(worker.is_alive for worker in snapshot.workers)
    if running:
        counts.append(f"{running} running")
    return [*counts, *count_uncounted(snapshot)]


def format_done(snapshot: Snapshot) -> str:
    """Says how many of the trials are done."""
    return f"{snapshot.done:,} of {snapshot.budget:,}"


def headline(snapshot: Snapshot) -> str:
    """Describes the study in one line: its name and its trials."""
    counts = ", ".join(count_trials(snapshot))
    return f"{one_line(snapshot.name)}: {format_done(snapshot)} trials – {counts}"


def describe_best(snapshot: Snapshot) -> str:
    """Describes the progress of the search in one sentence: its best trial so far."""
    trials = f"{format_done(snapshot)} trials"
    best, baseline = snapshot.best, snapshot.baseline
    value = value_of(best)
    if best is None or value is None:
        return begin_sentence(f"{explain_no_best(snapshot)}, after {trials}")
    shown = format_metric(value, snapshot.metric)
    described = describe_trial(best, best.params)
    sentence = f"{described}: {shown} in the search, the best after {trials}"
    baseline_value = value_of(baseline)
    if baseline is None or baseline_value is None or baseline.number == best.number:
        return sentence
    return f"{sentence}; the baseline has {format_metric(baseline_value, snapshot.metric)}"


def describe_study(snapshot: Snapshot, stored: StoredStudy, result: Result | None) -> str:
    """Describes a study in one sentence: by its tested winner, or by its best trial."""
    sentence = None if result is None else describe_result(result, stored)
    return sentence or describe_best(snapshot)


def explain_no_importances(importances: Importances) -> str:
    """Says why hyperparameters have no importances."""
    if importances.has_enough_trials:
        return ALL_ALIKE
    return TOO_FEW


def make_trials_fact(stored: StoredStudy, snapshot: Snapshot) -> Fact:
    """Says how many trials of how many hyperparameters were searched."""
    names = {name for trial in stored.trials() for name in trial.params}
    counts = ", ".join(count_trials(snapshot))
    hyperparameters = plural(len(names), "hyperparameter")
    return Fact("Trials", format_done(snapshot), f"{hyperparameters}; {counts}")


def make_best_fact(snapshot: Snapshot) -> Fact:
    """Says which trial is the best of the search, and which value the baseline has there."""
    best, baseline = snapshot.best, snapshot.baseline
    explanation = explain_no_best(snapshot)
    if best is not None:
        explanation = f"trial {best.number}{format_costs(costs_of(snapshot, best))}"
    if baseline is not None:
        value, costs = number(value_of(baseline)), format_costs(costs_of(snapshot, baseline))
        explanation += f"; the baseline has {value}{costs}"
    return Fact("Best, search", number(value_of(best)), explanation)


def worker_cells(worker: WorkerStatus) -> list[str]:
    """Formats trial, epoch and value of a worker, its time since the claim, and its lease."""
    cells = ["–"] * 5
    if worker.trial is not None:
        cells[0] = str(worker.trial)
    if worker.epoch is not None:
        cells[1] = str(worker.epoch)
        if worker.epochs is not None:
            cells[1] += f"/{worker.epochs}"
    if worker.value is not None:
        cells[2] = format_value(worker.value)
    if worker.held is not None:
        cells[3] = format_duration(worker.held)
    if not worker.is_alive:
        cells[4] = "expired"
    elif worker.lease is not None:
        cells[4] = f"expires in {format_duration(worker.lease)}"
    return cells


def front_rows(snapshot: Snapshot) -> list[list[str]]:
    """Formats the Pareto front as rows, with best trial and baseline even if dominated.

    Returns:
        The header, and a row for each trial, the cheapest first: its values, its number,
        and a mark if it is the best or the baseline.
    """
    trials = {trial.number: trial for trial in snapshot.front}
    marks: dict[int, list[str]] = {}
    for name, trial in (("best", snapshot.best), ("baseline", snapshot.baseline)):
        if trial is not None:
            mark = name if trial.number in trials else f"{name}, beaten"
            marks.setdefault(trial.number, []).append(mark)
            trials[trial.number] = trial
    order = sorted(trials.values(), key=lambda trial: [*trial.values[1:], trial.number])
    rows = [
        [*trial_values(trial), str(trial.number), ", ".join(marks.get(trial.number, []))]
        for trial in order
    ]
    return [[snapshot.metric, *snapshot.costs, "trial", ""], *rows]


# A result


def name_trial(candidate: Candidate) -> str:
    """Names a candidate by its trial."""
    return f"trial {candidate.trial}"


def describe_result(result: Result, stored: StoredStudy) -> str | None:
    """Describes a result in one sentence; None if its winner has only the value of the search."""
    winner, test = result.winner, result.test
    trial = next((trial for trial in stored.trials() if trial.number == winner.trial), None)
    described = describe_trial(trial, winner.params)
    if test is not None:
        value = format_summary(test.winner, stored.metric)
        gain = _compare_in_short(test, stored.metric)
        return f"{described}: {value} on {_describe_test_set(result, test)}{gain}"
    if winner.reevaluation is None:
        return None
    value = format_summary(winner.reevaluation, stored.metric)
    return f"{described}: {value} on {plural(len(winner.values), 'new seed')}, untested"


def _describe_test_set(result: Result, test: Scores) -> str:
    """Describes the test set, such as 1,000 unseen images."""
    data, noun = result.data, "examples"
    if data is not None and data.columns:
        noun = "rows"
    elif data is not None and data.transform:
        noun = NOUNS.get(_class_of(data.transform), noun)
    if test.examples is None:
        return f"unseen {noun}"
    return f"{test.examples:,} unseen {noun}"


def _compare_in_short(test: Scores, metric: str) -> str:
    """Says how far the winner is from the baseline, and whether the interval includes 0."""
    difference = test.difference
    if difference is None:
        return ""
    gain, interval = difference.mean, difference.interval
    size = format_value(abs(gain))
    if _is_share(metric, test.winner.mean):
        size = f"{abs(100 * gain):.{_decimals(difference.std)}f} points"
    side = "over" if gain >= 0 else "under"
    sentence = f", {size} {side} the baseline"
    if interval is not None and interval[0] <= 0 <= interval[1]:
        sentence += " (the 95% interval includes 0)"
    return sentence


def list_facts(result: Result, *, with_uncertainty: bool = True) -> Iterator[Fact]:
    """Yields the winner, then what it is compared with, and notes without a label.

    The winner's explanation says what its value is based on.

    Args:
        with_uncertainty: whether notes say what `±` means for a test, and give the interval of
            the winner's mean.
    """
    if result.test is None:
        yield from _list_untested(result)
    else:
        yield from _list_tested(result, result.test, with_uncertainty=with_uncertainty)


def _list_untested(result: Result) -> Iterator[Fact]:
    winner, reevaluation = result.winner, result.winner.reevaluation
    assert reevaluation is not None  # a winner without a test was re-evaluated
    basis = plural(len(reevaluation.values), "new seed")
    yield Fact("winner", f"{result.metric.name} {format_mean(reevaluation)}", basis)
    for candidate in result.candidates:
        if candidate.baseline and candidate.reevaluation and candidate != winner:
            yield Fact("baseline", format_mean(candidate.reevaluation))
    yield Fact("selection gap", format_value(winner.gap or 0.0, "+"))
    yield from _list_ablation(result)
    spread = explain_spread(reevaluation)
    if result.is_of_loop and reevaluation.same:
        spread += f"; {FOLLOW_SEED}"
    yield from _notes(spread, describe_reuse(result), explain_no_test(result))


def _list_tested(result: Result, test: Scores, *, with_uncertainty: bool) -> Iterator[Fact]:
    winner, metric = result.winner, result.metric.name
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
    if winner.reevaluation is not None:
        mean = f"{format_mean(winner.reevaluation)} {describe_new_seeds(test)}"
        yield Fact("selection gap", format_value(winner.gap or 0.0, "+"), mean)
    yield from _list_ablation(result)
    if with_uncertainty:
        yield from _notes(*explain_uncertainty(test))
    if result.is_of_loop and test.winner.same:
        yield from _notes(FOLLOW_SEED)
    yield from _notes(describe_reuse(result))
    if test.uses > 1:
        yield from _notes(f"the test set was {format_uses(test.uses)}, and each use proves less")
    if not result.keeps:
        yield from _notes(f"on new seeds no candidate satisfies {result.rule}; this is the best")


def _list_ablation(result: Result) -> Iterator[Fact]:
    if result.ablation is not None:
        yield Fact("ablation", summarize_ablation(result.ablation))


def _notes(*notes: str) -> Iterator[Fact]:
    """Yields facts without a label; none of empty notes."""
    for note in notes:
        if note:
            yield Fact("", note)


def make_winner_fact(result: Result) -> Fact:
    """Says whether the best is real: the value of the winner on the test set, or on new seeds."""
    winner, test = result.winner, result.test
    values = winner.reevaluation if test is None else test.winner
    value = number(winner.search_value) if values is None else format_mean(values)
    name = f"{name_trial(winner)}{format_costs(winner.costs)}"
    if test is None:
        seeds = plural(len(winner.values), "new seed")
        return Fact("Winner, re-evaluation", value, f"{name}; {seeds}, untested")
    compared = "the baseline" if winner.baseline else "no baseline to compare with"
    if test.difference is not None:
        difference = describe_difference(test, with_cover=False)
        compared = f"difference to the baseline {difference}"
    return Fact("Winner, test", value, f"{name}; {compared}")


def explain_decision(result: Result, budget: int, sign: int) -> Iterator[str]:
    """Yields the reasons for a result, a sentence each.

    Args:
        budget: the number of trials of the study.
        sign: 1 if more of the metric is better, else -1.
    """
    winner = result.winner
    chosen = begin_sentence(f"{name_trial(winner)} was {describe_choice(result, budget)}")
    yield f"{chosen}, {explain_choice(result)}."
    means = [row.mean for row in result.candidates if row != winner and row.mean is not None]
    if means and winner.mean is not None:
        best = max(means, key=lambda mean: sign * mean)
        yield f"Its mean is {number(winner.mean)}, the best of the others {number(best)}."
    if result.test is not None:
        yield f"The test set was {describe_test_use(result.test)}."


def describe_choice(result: Result, budget: int | None = None) -> str:
    """Says which trials the winner was chosen from: all of the study, or its first ones."""
    total = budget or result.study_trials or result.trials
    if result.trials < total:
        return f"chosen from the first {result.trials} of {total} trials"
    return f"chosen from {result.trials} trials"


def explain_choice(result: Result) -> str:
    """Says why the winner is not another candidate, and which of them failed in re-evaluations."""
    failures = [describe_failures(row) for row in result.candidates if row.failed]
    return "; ".join([_explain_comparison(result), *failures])


def _explain_comparison(result: Result) -> str:
    winner, sign = result.winner, result.metric.sign
    if winner.mean is None or len(result.candidates) == 1:
        return "the only candidate"
    complete = [
        row.mean
        for row in result.candidates
        if row != winner and row.mean is not None and not row.failed
    ]
    seeds = plural(len(winner.values), "new seed")
    if winner.baseline and winner.failed:
        return f"since no candidate beats it by more than chance explains, on {seeds}"
    if not complete:
        return f"the only candidate with values on all of {seeds}"
    if all(sign * winner.mean >= sign * mean for mean in complete):
        return f"since it had the best mean on {seeds}"
    if winner.baseline and result.rule == str(Rule(result.metric)):
        reason = "since the best mean beats the baseline by no more than chance explains,"
        return f"{reason} on {seeds}"
    return f"by {result.rule}, on {seeds}"


def describe_failures(candidate: Candidate) -> str:
    """Says how many re-evaluations of a candidate failed; some have."""
    who = "the baseline" if candidate.baseline else name_trial(candidate)
    count = plural(candidate.failed + len(candidate.values), "re-evaluation")
    failures = f"{who} failed in {candidate.failed} of {count}"
    if candidate.baseline and not candidate.values:
        failures += ", so that nothing is compared with it"
    return failures


def describe_reuse(result: Result) -> str:
    """Says how many trainings were reused from earlier results or stages; empty if none."""
    reused = [
        f"{count} of {total} {TRAININGS.get(title, title)}"
        for title, (count, total) in result.reused.items()
        if count
    ]
    return f"reused, as trained before: {', '.join(reused)}" if reused else ""


def explain_no_test(result: Result) -> str:
    """Says why a winner is not tested."""
    return result.untested or NO_TEST


def explain_no_predictions(result: Result) -> str:
    """Says why a result has no predictions to show; empty if it should have some."""
    if result.test is None:
        return explain_no_test(result)
    return OWN_TEST if result.own_test else ""


# The test


def describe_cover(test: Scores) -> str:
    """Says what the intervals cover."""
    seeds = len(test.winner.values)
    if test.covers == "examples" and seeds > 1:  # each of which may lie outside
        return f"over examples, for the mean of these {seeds} seeds only"
    if test.covers == "seeds":
        return "over seeds only"
    return f"over {test.covers}"


def describe_difference(test: Scores, *, with_cover: bool = True) -> str:
    """Formats the difference to the baseline, and says whether its interval includes 0.

    Args:
        with_cover: whether to say what the interval covers.
    """
    difference = test.difference
    if difference is None:
        return ""
    mean = format_value(difference.mean, "+")
    if difference.interval is None:
        return f"{mean}, {NO_INTERVAL}" if len(difference.values) > 1 else mean
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
    if test.earlier:
        when = "for these networks when an earlier result had the same winner"
    else:
        when = "after the winner was chosen"
    return f"{format_uses(test.uses)}, {when}"


def format_uses(uses: int) -> str:
    """Says how often the test set was used."""
    return "used once" if uses == 1 else f"used {uses} times"


# The ablation


def summarize_ablation(ablation: Ablation) -> str:
    """Says which changes to the default configuration are needed."""
    changes = f"{plural(len(ablation.rows), 'change')} to the default configuration"
    if ablation.error is None:
        return f"{changes}; one seed does not show which are needed" if ablation.rows else changes
    names = [one_line(row.name) for row in ablation.rows if row.needed]
    summary = f"{len(names)} of {changes} needed"
    return f"{summary}: {', '.join(names)}" if names else summary


def ablation_rows(ablation: Ablation) -> list[tuple[str, ...]]:
    """Formats a row for each change: both values, how much worse, and whether it is needed."""
    return [_ablation_row(ablation, row) for row in ablation.rows]


def _ablation_row(ablation: Ablation, row: AblationRow) -> tuple[str, ...]:
    error, digits = ablation.error or 0.0, 4
    if error > 0:
        digits = max(0, 1 - math.floor(math.log10(min(1e9, error))))
    loss = "no value: a training failed"
    if row.loss is not None:
        loss = f"{row.loss:+.{digits}f} ± {error:.{digits}f}"
    is_default = ablation.simple is not None and row.name in ablation.simple
    return (
        one_line(row.name),
        one_line(format_parameter(row.value)),
        one_line(format_parameter(row.default)),
        loss,
        "needed" if row.needed else "not needed",
        "default" if is_default else "",
    )


def list_ablation(result: Result) -> Iterator[str]:
    """Yields a line for each change of the ablation, and what winner.simple.yaml has."""
    ablation = result.ablation
    if ablation is None:
        return
    for name, value, default, loss, verdict, _ in ablation_rows(ablation):
        yield f"{name} {value} → {default}: {loss}, {verdict}"
    if ablation.rows:
        yield "how much worse the winner is without the change, ± half of the 95% interval"
    if ablation.simple is not None:
        names = ", ".join(map(one_line, ablation.simple))
        yield f"{SIMPLE} has the defaults of {names}: {describe_simple(result)}"


def describe_simple(result: Result) -> str:
    """Says how well winner.simple.yaml does on new seeds and on the test set; empty without one."""
    ablation, test = result.ablation, result.test
    if ablation is None or ablation.simple is None:
        return ""
    loss = f"worse by {format_value(ablation.simple_loss)} on new seeds"
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


def _format_stored_mean(values: Any) -> str:
    """Formats a mean ± its standard deviation; empty for anything else that may be stored."""
    match values:
        case {"mean": int() | float() as mean, "std": int() | float() as std}:
            return f"{format_value(mean)} ± {format_value(std)}"
        case {"mean": int() | float() as mean}:
            return format_value(mean)
    return ""


# Data and predictions


def describe_accepted_files(data: DataFacts) -> str:
    """Describes the files that `studyloom predict` takes."""
    shape, transform = data.shape, data.transform or {}
    if data.reads:
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
            sizes += f", those without a {background} background inverted"
        return f"images of any size, made {sizes}, and {arrays}"
    if data.columns:
        return f"CSV files with the columns {', '.join(data.columns)}, and {arrays}"
    return f"CSV files with {math.prod(shape)} numbers in a line, and {arrays}"


def describe_data(stored: StoredStudy, result: Result | None) -> str:
    """Says what the networks of a study were trained and tested on."""
    definition = stored.definition() or {}
    data = None if result is None else result.data
    test = None if result is None else result.test
    parts = []
    source = definition.get("data._target_")
    if isinstance(source, str):
        parts.append(source.rpartition(".")[2])
    if data is not None and data.shape:
        parts.append(f"inputs of {format_shape(data.shape)}")
    if data is not None and data.outputs is not None:
        parts.append(f"{data.outputs} {'classes' if data.classifies else 'outputs'}")
    validation = definition.get("data.validation")
    if isinstance(validation, int) and definition.get("objective.folds") in (None, 1):
        parts.append(f"{validation:,} examples to validate")
    if test is not None and test.examples is not None:
        parts.append(f"{test.examples:,} to test")
    digest = definition.get("data.digest") if data is None else data.digest
    if isinstance(digest, str) and digest:
        parts.append(f"SHA-256 {digest[:12]}…")
    return ", ".join(parts)


def format_prediction(prediction: InputPrediction) -> str:
    """Formats the prediction for an input as one line: its name, class or numbers, and a note."""
    parts = [prediction.name]
    if prediction.confidence is not None:
        parts.append(prediction.word or str(prediction.label))
        parts.append(f"{prediction.confidence:.4f}")
    elif math.prod(prediction.shape) > MOST_PRINTED:
        parts.append(_summarize_map(prediction))
    else:
        if prediction.shape:
            parts.append(format_shape(prediction.shape))
        parts += map(format_value, prediction.values)
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
    low, high = format_value(min(prediction.values)), format_value(max(prediction.values))
    return f"{size} numbers from {low} to {high}; --json prints all"


# The first lines of the configurations that are written with a result


def head_winner_config(result: Result, again: Sequence[str], *, is_importable: bool) -> str:
    """Returns the comment of winner.yaml.

    Args:
        again: the command that trains the winner again.
        is_importable: whether that command can import what the study was defined with.
    """
    if not is_importable:
        return f"# {_title(result)}.\n"
    command = one_line(shlex.join(again))
    return f"# {_title(result)}; this command trains it again:\n# {command}\n"


def head_simple_config(result: Result) -> str:
    """Returns the comment of winner.simple.yaml."""
    assert result.ablation is not None
    names = result.ablation.simple or ()
    defaults = one_line(f"with the defaults of {', '.join(names)}: {describe_simple(result)}")
    return f"# {_title(result)}, {defaults}\n"


def _title(result: Result) -> str:
    return one_line(f"The winner of {result.study}, {name_trial(result.winner)}")
