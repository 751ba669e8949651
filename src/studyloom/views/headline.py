"""The headline of a study: one sentence that can be quoted, the same in all views.

An example is "A CNN with 16 channels, AdamW, learning rate 0.0033: 97.7% ± 0.4 on 1,000 unseen
images, 4.4 points over the baseline". Before there is a winner, it describes the best trial so far.
"""

import re
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.metrics import COSTS
from studyloom.storage.stored_study import value_of
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_cost, one_line, plural
from studyloom.views import words
from studyloom.views.halted_study import Halt
from studyloom.views.plain_names import describe_settings, format_briefly
from studyloom.views.snapshot import Snapshot
from studyloom.winner.result import Result, Scores

MOST_DETAILS = 2  # settings of a network that a sentence names
MOST_SETTINGS = 3  # hyperparameters that a sentence names of a trial without a network
# The keys that describe a network best, if the search varied none of its keys.
SIZE_KEYS = ("channels", "hidden", "width", "layers")
# Letters whose names begin with a vowel: an acronym such as MLP takes "an", and CNN takes "a".
LETTERS_WITH_AN = "AEFHILMNORSX"
NAMES_WITH_AN = r"[aeio]|u(?!-?net|ni)"  # the beginnings of other names with "an": not a U-Net
NOUNS = {"Image": "images", "Sound": "recordings"}  # by the transform that makes a file an input

COSTS_OF_NETWORK = frozenset(COSTS)  # counted without training

# The whole sentence


def make_headline(
    snapshot: Snapshot, result: Result | None = None, halt: Halt | None = None
) -> str:
    """Describes a study in one sentence: its winner, or the best trial so far.

    The winner is described by its test, or else by its mean on new seeds. If it has neither, the
    sentence is about the best trial of the search.

    Args:
        result: the result of the study; None before there is one.
        halt: why the study stopped itself, which the sentence says if no trial is the best.
    """
    if result is not None and result.test is not None:
        return _describe_tested(snapshot, result, result.test)
    if result is not None and result.winner.reevaluation is not None:
        return _describe_untested(snapshot, result)
    if halt is not None and snapshot.best is None:
        return halt.summary
    return _describe_best(snapshot)


def _describe_tested(snapshot: Snapshot, result: Result, test: Scores) -> str:
    """Describes the winner by its value on the test set, next to the baseline."""
    value = words.format_summary(test.winner, snapshot.metric)
    gain = _compare_with_baseline(test, snapshot.metric)
    costs = _compare_costs(result)
    test_set = _name_test_set(result, test)
    return f"{_name_winner(snapshot, result)}: {value} on {test_set}{gain}{costs}"


def _describe_untested(snapshot: Snapshot, result: Result) -> str:
    """Describes the winner by its mean on new seeds."""
    winner = result.winner
    assert winner.reevaluation is not None
    value = words.format_summary(winner.reevaluation, snapshot.metric)
    seeds = plural(len(winner.values), "new seed")
    costs = _compare_costs(result)
    return f"{_name_winner(snapshot, result)}: {value} on {seeds}{costs}, untested"


def _describe_best(snapshot: Snapshot) -> str:
    """Describes the best trial so far by its value in the search, next to the baseline's."""
    trials = f"{words.format_done(snapshot)} trials"
    best = snapshot.best
    best_value = value_of(best)
    if best is None or best_value is None:
        return words.begin_sentence(f"{words.explain_no_best(snapshot)}, after {trials}")
    description = describe_trial(best, best.params)
    value = words.format_metric(best_value, snapshot.metric) + _list_costs(snapshot, best)
    sentence = f"{description}: {value} in the search, the best after {trials}"
    baseline = snapshot.baseline
    baseline_value = value_of(baseline)
    if baseline is None or baseline_value is None or baseline.number == best.number:
        return sentence
    value = words.format_metric(baseline_value, snapshot.metric) + _list_costs(snapshot, baseline)
    return f"{sentence}; the baseline has {value}"


# The configuration


def _name_winner(snapshot: Snapshot, result: Result) -> str:
    """Describes the configuration of the winner."""
    winner_trial = None
    for trial in snapshot.trials:
        if trial.number == result.winner.trial:
            winner_trial = trial
    return describe_trial(winner_trial, result.winner.params)


def describe_trial(trial: FrozenTrial | None, params: Mapping[str, Any]) -> str:
    """Describes a trial: its network and optimizer, or else its first hyperparameters."""
    config: Mapping[str, Any] = {}
    if trial is not None:
        config = _as_mapping(TrialRecord(trial).config)
    network = _as_mapping(config.get("model"))
    optimizer = _as_mapping(config.get("optimizer"))
    parts = []
    network_name = _class_of(network)
    if network_name:
        parts.append(_describe_network(network_name, network, params))
    optimizer_name = _class_of(optimizer)
    if optimizer_name:
        parts.append(optimizer_name)
        rate = optimizer.get("lr")
        if isinstance(rate, int | float):
            parts.append(f"learning rate {format_briefly(rate)}")
    if not parts:
        parts = describe_settings(params)[:MOST_SETTINGS]
    if not parts:
        parts = ["The default configuration"]
    return one_line(", ".join(parts))


def _as_mapping(value: object) -> Mapping[str, Any]:
    """Returns a section of a stored config; empty for a value that is no section."""
    if isinstance(value, Mapping):
        return value
    return {}


def _class_of(section: Mapping[str, Any]) -> str:
    """Returns the name of the class or function that a section names; empty without one."""
    return str(section.get("_target_") or "").rpartition(".")[2]


def _describe_network(name: str, network: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Describes a network: a CNN with 16 channels.

    Args:
        name: the name of its class.
        network: its settings in the configuration of the trial.
        params: the hyperparameters of the trial, of which those of the network are described.
    """
    cell = network.get("cell")
    if isinstance(cell, str):  # the kind of a Recurrent, such as lstm
        name = cell
        if len(cell) <= 4:
            name = cell.upper()
    details = []
    for key in _choose_network_keys(network, params):
        detail = _describe_setting(key, network[key])
        if detail:
            details.append(detail)
    description = f"{_choose_article(name)} {name}"
    if details:
        description += f" with {' and '.join(details[:MOST_DETAILS])}"
    return description


def _choose_network_keys(network: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """Returns the keys of a network to describe: those that were searched, or else its size.

    The keys of its size come first.
    """
    searched_keys = set()
    for param in params:
        if param.startswith("model."):
            # Both `model.cnn.channels` and its first item, `model.cnn.channels[0]`, are `channels`.
            name_of_list, _, _ = param.partition("[")
            _, _, key = name_of_list.rpartition(".")
            searched_keys.add(key)
    size_keys = []
    other_keys = []
    for key in network:
        if key in searched_keys and key in SIZE_KEYS:
            size_keys.append(key)
        elif key in searched_keys:
            other_keys.append(key)
    if not size_keys and not other_keys:
        return [key for key in SIZE_KEYS if key in network]
    return size_keys + other_keys


def _choose_article(name: str) -> str:
    """Returns A or An, as the name of a network is spoken: an acronym letter by letter."""
    is_acronym = len(name) <= 4 and name.isupper()
    if is_acronym:
        has_vowel = name[0] in LETTERS_WITH_AN
    else:
        has_vowel = re.match(NAMES_WITH_AN, name.lower()) is not None
    if has_vowel:
        return "An"
    return "A"


def _describe_setting(key: str, value: object) -> str:
    """Describes a setting of a network, such as 16 channels, hidden 64-32, or width 8.

    It is empty if the setting is neither an integer nor a list of integers.
    """
    if isinstance(value, list | tuple):
        has_integers = bool(value) and all(isinstance(item, int) for item in value)
        if not has_integers:
            return ""
        return f"{key} {'-'.join(map(str, value))}"
    if not isinstance(value, int) or isinstance(value, bool):
        return ""
    if key.endswith("s") and value != 1:
        return f"{value} {key}"
    return f"{key} {value}"


# The test set, the baseline and the costs


def _name_test_set(result: Result, test: Scores) -> str:
    """Names the test set, such as 1,000 unseen images."""
    data = result.data
    noun = "examples"
    if data is not None and data.columns:
        noun = "rows"
    elif data is not None and data.transform:
        noun = NOUNS.get(_class_of(data.transform), noun)
    if test.examples is None:
        return f"unseen {noun}"
    return f"{test.examples:,} unseen {noun}"


def _compare_with_baseline(test: Scores, metric: str) -> str:
    """Says how far the winner is from the baseline, and whether the interval includes 0."""
    difference = test.difference
    if difference is None:
        return ""
    distance = words.format_distance(difference, test.winner, metric)
    side = "under"
    if difference.mean >= 0:
        side = "over"
    text = f", {distance} {side} the baseline"
    if difference.interval is not None:
        low, high = difference.interval
        if low <= 0 <= high:
            text += " (the 95% interval includes 0)"
    return text


def _compare_costs(result: Result) -> str:
    """Says what the winner costs instead of the baseline; empty without further objectives.

    An example is ", with 18,940 instead of 101,770 parameters". A cost that is not counted from the
    network alone is the one in the search.
    """
    baseline_costs: Mapping[str, float] = {}
    for candidate in result.candidates:
        if candidate.baseline and candidate.trial != result.winner.trial:
            baseline_costs = candidate.costs
    texts = []
    for name, cost in result.winner.costs.items():
        amount = format_cost(cost)
        baseline_cost = baseline_costs.get(name)
        if baseline_cost is not None and format_cost(baseline_cost) != amount:
            amount += f" instead of {format_cost(baseline_cost)}"
        texts.append(_name_cost(name, amount))
    if not texts:
        return ""
    text = f", with {' and '.join(texts)}"
    if not COSTS_OF_NETWORK.issuperset(result.winner.costs):
        text += " in the search"
    return text


def _list_costs(snapshot: Snapshot, trial: FrozenTrial) -> str:
    """Lists the costs of a trial, such as " with 18,940 parameters"; empty without any."""
    texts = []
    for name, cost in words.map_costs(snapshot, trial).items():
        texts.append(_name_cost(name, format_cost(cost)))
    if not texts:
        return ""
    return f" with {' and '.join(texts)}"


def _name_cost(name: str, amount: str) -> str:
    """Names a cost with its amount: "18,940 parameters", or "latency 3.2" for any other."""
    if name in COSTS_OF_NETWORK:
        return f"{amount} {name}"
    return f"{one_line(name)} {amount}"
