"""The result of a study in one sentence that a person can quote.

"A CNN with 16 channels, AdamW at 0.0033: 97.7 % ± 0.4 on 1 000 unseen pictures, 4.4 points over the
baseline". Report, terminal and comparison begin with it.
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.metrics import METRICS
from studyloom.study.stored_study import StoredStudy
from studyloom.study.trial_record import TrialRecord
from studyloom.text import format_error, format_parameter, format_value, one_line
from studyloom.winner.result import Result, Scores, Summary, Transfer, plural

MOST_DETAILS = 2  # of a network
MOST_SETTINGS = 3  # of a trial without a network
# Of a network, what says most of it, where the search varied nothing of it.
TELLING = ("channels", "hidden", "width", "layers")
SPELT = "AEFHILMNORSX"  # letters whose names begin with a vowel: an MLP, a CNN
VOWEL = r"[aeio]|u(?!-?net|ni)"  # with which a name begins that takes "an": not a U-Net
NOUNS = {"Picture": "pictures", "Sound": "recordings"}  # by what makes a file an input


def result_sentence(answer: Result, stored: StoredStudy) -> str | None:
    """Returns the answer in one sentence; None if its winner has but the value of the search."""
    winner, test, carried = answer.winner, answer.test, answer.transfer
    trial = next((trial for trial in stored.trials() if trial.number == winner.trial), None)
    who = describe(trial, winner.params, carried)
    if carried is not None:
        warning = "" if carried.held else "The order of the search did not hold at the target: "
        who = f"{warning}{who}, searched with {carried.small_words}"
    if test is not None:
        words = f"{who}: {_spread(test.winner, stored.metric)} on {_examples(answer, test)}"
        return f"{words}{_over_baseline(test, stored.metric)}"
    if winner.fresh is None:
        return None
    seeds = plural(len(winner.values), "fresh seed")
    return f"{who}: {_spread(winner.fresh, stored.metric)} on {seeds}, untested"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def describe(
    trial: FrozenTrial | None, params: Mapping[str, Any], carried: Transfer | None = None
) -> str:
    """Describes a trial: its network and optimizer, or else its first parameters.

    Args:
        carried: to the size of the winner.
    """
    config = _mapping(trial and TrialRecord(trial).config)
    if carried is not None:
        config, params = carried.carry(config), {**params, **carried.values}
    network, optimizer = _mapping(config.get("model")), _mapping(config.get("optimizer"))
    parts = []
    if name := _class_of(network):
        parts.append(_network(name, network, params))
    if name := _class_of(optimizer):
        rate = optimizer.get("lr")
        parts.append(name + (f" at {_short(rate)}" if isinstance(rate, int | float) else ""))
    if not parts:
        few = [f"{key.rpartition('.')[2]} {value}" for key, value in _settings(params).items()]
        parts = few[:MOST_SETTINGS] or ["The configuration as composed"]
    return one_line(", ".join(parts))


def _settings(params: Mapping[str, Any]) -> dict[str, str]:
    """Words each parameter, and a list of the space, whose items are parameters, as one."""
    told: dict[str, str] = {}
    for key, value in params.items():
        above, _, last = key.rpartition(".")
        if f"{above}.0" in params and (last == "length" or last.isdecimal()):
            places = (f"{above}.{place}" for place in itertools.count())
            items = itertools.takewhile(params.__contains__, places)
            told[above] = "-".join(_short(params[item]) for item in items)
        else:
            told[key] = _short(value)
    return told


def _class_of(section: Mapping[str, Any]) -> str:
    return str(section.get("_target_") or "").rpartition(".")[2]


def _network(name: str, network: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Describes a network: a CNN with 16 channels."""
    if isinstance(cell := network.get("cell"), str):  # Recurrent says which by a key
        name = cell.upper() if len(cell) <= 4 else cell
    acronym = len(name) <= 4 and name.isupper()
    vowel = name[:1] in SPELT if acronym else re.match(VOWEL, name.lower())
    searched = {
        key.partition("[")[0].rpartition(".")[2] for key in params if key.startswith("model.")
    }
    keys = [key for key in network if key in searched] or [key for key in TELLING if key in network]
    keys.sort(key=lambda key: key not in TELLING)
    told = [_detail(key, network[key]) for key in keys]
    details = [detail for detail in told if detail][:MOST_DETAILS]
    have = f" with {' and '.join(details)}" if details else ""
    return f"{'An' if vowel else 'A'} {name}{have}"


def _detail(key: str, value: Any) -> str:
    if isinstance(value, list | tuple) and value and all(isinstance(n, int) for n in value):
        return f"{key} {'-'.join(map(str, value))}"
    if not isinstance(value, int) or isinstance(value, bool):
        return ""
    return f"{value} {key}" if key.endswith("s") and value != 1 else f"{key} {value}"


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else format_parameter(value)


def _is_share(metric: str) -> bool:
    """Whether a metric is a share of 1, such as the accuracy, which people read in percent."""
    known = METRICS.get(metric)
    return known is not None and known.scale == "unit"


def _decimals(error: float | None) -> int:
    """Returns the decimals of a percentage: as many as show its error, one to three."""
    if not error or not math.isfinite(error):
        return 1
    return min(3, max(1, -math.floor(math.log10(100 * abs(error)))))


def format_metric(value: float, metric: str, error: float | None = None) -> str:
    """Formats a value of a metric, a share of 1 in percent."""
    if _is_share(metric):
        return f"{100 * value:.{_decimals(error)}f} %"
    return f"{one_line(metric)} {format_value(value)}"


def _spread(values: Summary, metric: str) -> str:
    """Words mean ± standard deviation over the seeds."""
    mean, error = values.mean, values.std
    if error is None or values.same:
        return format_metric(mean, metric)
    if _is_share(metric):
        return f"{format_metric(mean, metric, error)} ± {100 * error:.{_decimals(error)}f}"
    return f"{format_metric(mean, metric)} ± {format_error(error, format_value(mean))}"


def _examples(answer: Result, test: Scores) -> str:
    """Words what the test part holds: 1 000 unseen pictures."""
    data = answer.data
    noun = NOUNS.get(_class_of((data and data.transform) or {}), "examples")
    if data and data.columns:
        noun = "rows"
    if test.examples is None:
        return f"unseen {noun}"
    return f"{test.examples:,} unseen {noun}".replace(",", " ")


def _over_baseline(test: Scores, metric: str) -> str:
    """Words how far the winner is from the baseline, and whether the interval shows it at all."""
    if (difference := test.difference) is None:
        return ""
    gain, ends = difference.mean, difference.interval
    side = "over" if gain >= 0 else "under"
    size = abs(100 * gain)
    points = f"{size:.{_decimals(difference.std)}f} points"
    words = points if _is_share(metric) else format_value(abs(gain))
    open_ = " (the 95 % interval includes 0)" if ends and ends[0] <= 0 <= ends[1] else ""
    return f", {words} {side} the baseline{open_}"
