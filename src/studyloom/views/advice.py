"""The sentences that an expert would say of a study: at most three, each computed from its trials.

Whether the gain over the baseline is real, which hyperparameters mattered, and which range is too
narrow, with the line of the search space to copy.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.distributions import IntDistribution

from studyloom.storage.attributes import SPACE
from studyloom.storage.command_record import StoredCommand
from studyloom.storage.stored_study import StoredStudy
from studyloom.text import one_line, plural
from studyloom.views.importances import ENOUGH, Importances, collect_names
from studyloom.views.narrow_ranges import BEST, NarrowRange, NumberRange, find_narrow_range
from studyloom.views.plain_names import name_plainly
from studyloom.views.searched import describe_values, format_number_briefly
from studyloom.views.snapshot import Snapshot
from studyloom.views.words import (
    NO_INTERVAL,
    format_gain,
    format_mean,
    format_number,
    name_trial,
)
from studyloom.winner.result import Candidate, Comparison, Result, Scores

MOST_NAMED = 3  # hyperparameters that mattered
SEEDS_OF_INTERVAL = 3  # new seeds without which a lead has no interval
NO_BASELINE = "No gain is known: there is no baseline to compare the winner with."
ENDS = {"low": "lower", "high": "upper"}


@dataclass(frozen=True)
class Advice:
    """A sentence of an expert.

    Attributes:
        text: the sentence, or two.
        line: a line of the search space, or an override of a command, to copy; may be empty.
        is_about_gain: whether it says if the gain over the baseline is real.
    """

    text: str
    line: str = ""
    is_about_gain: bool = False


def list_advice(
    stored: StoredStudy, snapshot: Snapshot, result: Result | None, importances: Importances
) -> list[Advice]:
    """Returns what an expert would say of a study, at most three sentences.

    Args:
        result: the result of the study; None before there is one.
        importances: those of the hyperparameters for the metric.
    """
    advice = []
    reality = judge_gain(result, snapshot, stored.sign)
    if reality:
        advice.append(Advice(reality, is_about_gain=True))
    return [*advice, *list_search_advice(stored, snapshot, importances)]


def list_search_advice(
    stored: StoredStudy, snapshot: Snapshot, importances: Importances
) -> list[Advice]:
    """Returns the sentences that need no result: what mattered, and which range is too narrow."""
    advice = []
    matters = describe_importances(importances, snapshot)
    if matters:
        advice.append(Advice(matters))
    narrow_range = find_narrow_range(snapshot.trials, stored.sign, importances)
    if narrow_range is not None:
        text = describe_narrow_range(narrow_range, collect_names(snapshot.trials))
        advice.append(Advice(text, write_wider_range(stored, narrow_range)))
    return advice


# Whether the gain is real


def judge_gain(result: Result | None, snapshot: Snapshot, sign: int) -> str:
    """Says whether the gain over the baseline is real, and whether the winner's lead is.

    Args:
        sign: 1 if more of the metric is better, -1 if less is.

    Returns:
        Empty while the search runs, and if there is nothing to compare.
    """
    if result is None:
        return _explain_unknown_gain(snapshot)
    winner = result.winner
    if winner.baseline:
        return _explain_won_baseline(result.comparison)
    sentences = []
    if result.test is not None:
        sentences.append(_judge_test(result.test, sign))
    elif result.comparison is not None:
        sentences.append(_judge_comparison(result.comparison))
    else:
        sentences.append(NO_BASELINE)
    if winner.costs:
        # Candidates with a better value may break the rule, or cost more.
        sentences.append(f"The winner was chosen by {_format_rule(result.rule)}.")
    runner_up = _find_runner_up(result, sign)
    best_number = None
    if snapshot.best is not None:
        best_number = snapshot.best.number
    if runner_up is None or runner_up.trial != best_number:
        sentences.append(_explain_fall(result, best_number, sign))
    if runner_up is not None:
        sentences.append(_judge_lead(result, runner_up, best_number, sign))
    return " ".join(filter(None, sentences))


def _format_rule(rule: str) -> str:
    """Formats the rule of a winner, with commas in its numbers: 50,000 for 50_000."""
    return re.sub(r"(?<=\d)_(?=\d)", ",", one_line(rule))


def _explain_fall(result: Result, best_number: int | None, sign: int) -> str:
    """Says that the best trial of the search did worse than the winner on new seeds, if it did."""
    winner = result.winner
    for candidate in result.candidates:
        is_best = candidate.trial == best_number
        if not is_best or candidate.mean is None or winner.mean is None:
            continue
        if sign * candidate.mean < sign * winner.mean:
            name = f"Trial {candidate.trial}, the best of the search,"
            return f"{name} has a worse mean on new seeds."
    return ""


def _explain_unknown_gain(snapshot: Snapshot) -> str:
    """Says that the best trial of a search that has ended may owe its value to luck."""
    best = snapshot.best
    baseline = snapshot.baseline
    is_compared = best is not None and baseline is not None and best.number != baseline.number
    if not is_compared or snapshot.left > 0:
        return ""
    return (
        "Whether the gain over the baseline is real is not known: the best of "
        f"{plural(snapshot.done, 'trial')} is partly luck, and only trainings with new seeds show "
        "how much."
    )


def _explain_won_baseline(comparison: Comparison | None) -> str:
    """Says that no trial is better than the baseline by more than chance explains."""
    if comparison is None or comparison.gain <= 0:
        return "No gain: no trial beat the baseline on new seeds."
    return (
        f"No gain is shown: trial {comparison.trial} beat the baseline by only "
        f"{_format_gain(comparison)}, which chance may explain."
    )


def _format_gain(comparison: Comparison) -> str:
    """Formats the gain of the best candidate, with its standard error and the number of seeds."""
    return f"{format_gain(comparison)} on {plural(comparison.seeds, 'new seed')}"


def _judge_test(test: Scores, sign: int) -> str:
    """Says whether the difference to the baseline on the test set is more than chance."""
    difference = test.difference
    if difference is None:
        return NO_BASELINE
    if test.used_in_selection:
        return (
            "Whether the gain over the baseline is real is not known: the winner was chosen by the "
            "values of these networks."
        )
    if difference.interval is None:
        reason = NO_INTERVAL.partition(": ")[2]
        return f"Whether the gain over the baseline is real is not known: an interval {reason[3:]}."
    low, high = difference.interval
    interval = f"{format_number(low, '+')} to {format_number(high, '+')}"
    if low <= 0 <= high:
        return (
            f"The gain over the baseline may be chance: its 95% interval, {interval}, has 0 in it."
        )
    if sign * difference.mean < 0:
        return (
            "On the test set the winner is worse than the baseline: the 95% interval of the "
            f"difference, {interval}, excludes 0."
        )
    return f"The gain over the baseline is real: its 95% interval, {interval}, excludes 0."


def _judge_comparison(comparison: Comparison) -> str:
    """Says whether the gain on new seeds is more than chance, if there is no test."""
    gain = _format_gain(comparison)
    if comparison.error > 0 and not comparison.margin_is_set:
        return (
            f"The gain over the baseline is probably real: {gain}, above the margin for chance; no "
            "test has confirmed it."
        )
    return f"Whether the gain over the baseline is real is not known: {gain}, and no interval."


def _find_runner_up(result: Result, sign: int) -> Candidate | None:
    """Returns the best candidate after the winner that has a value on each of the same new seeds.

    The baseline is none. Returns None if the winner is not ahead: another rule has chosen it.
    """
    winner = result.winner
    compared = []
    for candidate in result.candidates:
        if candidate != winner and not candidate.baseline and _has_all_values(candidate, winner):
            compared.append(candidate)
    if not compared or len(winner.values) < SEEDS_OF_INTERVAL:
        return None
    runner_up = max(compared, key=lambda candidate: sign * _mean_of(candidate))
    if sign * (_mean_of(winner) - _mean_of(runner_up)) <= 0:
        return None
    return runner_up


def _has_all_values(candidate: Candidate, winner: Candidate) -> bool:
    """Returns whether a candidate has a value on each new seed of the winner."""
    return len(candidate.values) == len(winner.values) and not candidate.failed_trainings


def _judge_lead(result: Result, runner_up: Candidate, best_number: int | None, sign: int) -> str:
    """Says whether the winner's lead over the next best candidate is more than chance.

    The noise of a training is pooled over all candidates.

    Args:
        best_number: the best trial of the search.
    """
    winner = result.winner
    series = [winner.values]  # those of all candidates, which show the noise
    for candidate in result.candidates:
        if candidate != winner and _has_all_values(candidate, winner):
            series.append(candidate.values)
    from studyloom.winner.statistics import estimate_difference_error  # scipy takes 0.4 s

    name = name_trial(runner_up)
    if runner_up.trial == best_number:
        name += ", the best of the search"
    error = estimate_difference_error(series)
    if error is None or error.half_interval == 0:
        return ""
    means = (
        f"{_format_candidate(winner)} against {_format_candidate(runner_up)} on "
        f"{plural(len(winner.values), 'new seed')}"
    )
    lead = sign * (_mean_of(winner) - _mean_of(runner_up))
    if lead > error.half_interval:
        return f"The winner's lead over {name} ({means}) is more than chance explains."
    return f"The winner's lead over {name} ({means}) is within chance."


def _mean_of(candidate: Candidate) -> float:
    """Returns the mean of a candidate that has been trained with new seeds."""
    assert candidate.mean is not None
    return candidate.mean


def _format_candidate(candidate: Candidate) -> str:
    """Formats the mean of a candidate on new seeds, with its spread."""
    assert candidate.reevaluation is not None
    return format_mean(candidate.reevaluation)


# Hyperparameters that mattered


def describe_importances(importances: Importances, snapshot: Snapshot) -> str:
    """Says which hyperparameters mattered, or how many trials are needed to know it.

    Returns:
        Empty for a single hyperparameter, and while the search runs unless some stand out.
    """
    if len(importances.shares) == 1:
        return ""
    plain_names = name_plainly(collect_names(snapshot.trials))
    named = [name for name in importances.shares if name in importances.outstanding]
    if named:
        # A sentence that began with a name would change it: x is not X.
        return f"Most important: {_join_shares(named[:MOST_NAMED], importances, plain_names)}."
    if snapshot.left > 0 or importances.compared == 0:
        return ""
    if not importances.shares:
        return explain_no_importances(importances)
    first = next(iter(importances.shares))
    share = format_share(importances.shares[first])
    return (
        f"No hyperparameter clearly matters: {plain_names[first]} has the largest share, {share}, "
        "which chance may explain."
    )


def _join_shares(
    names: Sequence[str], importances: Importances, plain_names: Mapping[str, str]
) -> str:
    """Joins names with their shares: "learning rate (47%), then model (27%)"."""
    first, *others = names
    text = f"{plain_names[first]} ({format_share(importances.shares[first])})"
    texts = []
    for name in others:
        texts.append(f"{plain_names[name]} ({format_share(importances.shares[name])})")
    if texts:
        text += f", then {' and '.join(texts)}"
    return text


def format_share(share: float) -> str:
    """Formats the importance of a hyperparameter, in percent without decimals."""
    return f"{100 * share:.0f}%"


def explain_no_importances(importances: Importances) -> str:
    """Says why hyperparameters have no importances."""
    if importances.has_enough_trials:
        return "No hyperparameter sets the best trials apart."
    if importances.compared == 0:
        reason = "none has one yet"
    elif importances.compared == 1:
        reason = "1 has one"
    else:
        reason = f"{importances.compared} have one"
    return f"Which hyperparameters matter shows from {ENOUGH} trials with a value on; {reason}."


def explain_basis(importances: Importances) -> str:
    """Says which trials the importances compare, and why optuna-dashboard shows others."""
    trials = f"{importances.compared:,} trials"
    if importances.epoch is None:
        return (
            f"The best quarter of {trials} is compared with all of them, by their final values. "
            "optuna-dashboard shows other numbers: it takes the best tenth."
        )
    return (
        f"The best quarter of {trials} is compared with all of them, by their values at epoch "
        f"{importances.epoch}, which nearly all have reached. optuna-dashboard shows other "
        "numbers: it takes the best tenth of the complete trials only."
    )


# Which range is too narrow


def describe_narrow_range(narrow_range: NarrowRange, names: Sequence[str]) -> str:
    """Says which trials lie at an end of a range.

    Args:
        names: the names of all hyperparameters, among which the plain name must be unique.
    """
    name = name_plainly([*names, narrow_range.name])[narrow_range.name]
    end = ENDS[narrow_range.end]
    values = describe_values(narrow_range.distribution)
    best = f"{narrow_range.best_at_end} of the best {BEST}"
    if narrow_range.best_at_end == BEST:
        best = f"all of the best {BEST}"
    return (
        f"{narrow_range.at_end} of {plural(narrow_range.trials, 'trial')} and {best} lie at the "
        f"{end} end of {name}, {values}: widen it, in a study of another name."
    )


def write_wider_range(stored: StoredStudy, narrow_range: NarrowRange) -> str:
    """Writes a wider range in the language of the study: an override, Python's space, or Optuna's.

    Returns:
        Such as `'space.optimizer.lr.float=[1e-4,0.1]'`, `space["lr"] = sl.Float(1e-4, 0.1)` or
        `trial.suggest_float("lr", 1e-4, 0.1)`.
    """
    (attribute,) = stored.attributes(SPACE)
    tree: object = None
    if isinstance(attribute, Mapping):
        tree = attribute.get("tree")
    wider = narrow_range.wider
    kind = "float"
    function = "sl.Float"
    if isinstance(wider, IntDistribution):
        kind = "int"
        function = "sl.Int"
    place = _find_place(tree, narrow_range.name)
    if place is None:
        name = _quote(narrow_range.name)
        return f"trial.suggest_{kind}({name}, {', '.join(_list_arguments(wider, None))})"
    record = StoredCommand.read(stored).record
    if record is not None and record.is_call:
        keys = "".join(f"[{_quote(key)}]" for key in place.keys)
        return f"space{keys} = {function}({', '.join(_list_arguments(wider, place.default))})"
    low, high, *_ = _list_arguments(wider, None)
    override = f"space.{'.'.join(place.keys)}.{kind}=[{low},{high}]"
    name = f"study.name={stored.name}-wider"
    return f"{shlex.quote(one_line(name))} {shlex.quote(one_line(override))}"


@dataclass(frozen=True)
class _Place:
    """Where the range of a hyperparameter is in the tree of the space, and its own default."""

    keys: Sequence[str]
    default: object


def _find_place(tree: object, name: str) -> _Place | None:
    """Finds the range of a hyperparameter in a stored tree; None if it has none of that name.

    The range of `hidden.0` is at the key `list` of `hidden`, and that of `hidden.length` at its key
    `length`.
    """
    keys: list[str] = []
    for part in name.split("."):
        if not isinstance(tree, Mapping):
            return None
        key = part
        if part.isdecimal() and "list" in tree:
            key = "list"
        if key not in tree:
            return None
        keys.append(key)
        tree = tree[key]
    if not isinstance(tree, Mapping):
        return None
    return _Place(keys, tree.get("default"))


def _list_arguments(distribution: NumberRange, default: object) -> list[str]:
    """Returns the arguments of a range in Python: its ends, and what differs from the defaults."""
    arguments = [format_number_briefly(distribution.low), format_number_briefly(distribution.high)]
    if distribution.log:
        arguments.append("log=True")
    has_step = distribution.step is not None and distribution.step != 1
    if has_step and not distribution.log:
        arguments.append(f"step={distribution.step:g}")
    if isinstance(default, int | float):
        arguments.append(f"default={default!r}")
    return arguments


def _quote(name: str) -> str:
    """Quotes a name as a string of Python."""
    return json.dumps(one_line(name), ensure_ascii=False)
