"""The answer of a study in one sentence that a person can quote.

"A CNN with 16 channels, AdamW at 0.0033: 97.7 % ± 0.4 on 1 000 unseen pictures, 4.4 points over the
baseline". Report, terminal and comparison begin with it.
"""

import math
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.metrics import METRICS
from studyloom.storage.attributes import MADE
from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.text import format_parameter, format_value, one_line
from studyloom.views.snapshot import Snapshot, why_no_best

MOST_DETAILS = 2  # of a network
# Of a network, what says most of it, where the search varied nothing of it.
TELLING = ("channels", "hidden", "width", "layers")
SPELT = "AEFHILMNORSX"  # letters whose names begin with a vowel: an MLP, a CNN
NOUNS = {"Picture": "pictures", "Sound": "recordings"}  # by what makes a file an input


def quotable(stored: StoredStudy, answer: Mapping[str, Any] | None, snapshot: Snapshot) -> str:
    """Returns where a study stands in one sentence: its tested winner, or else its best trial."""
    tested = None if answer is None else answer_sentence(answer, stored)
    return tested or search_sentence(snapshot)


def answer_sentence(answer: Mapping[str, Any], stored: StoredStudy) -> str | None:
    """Returns the answer in one sentence; None if it names no winner with a value."""
    winner, test = _mapping(answer.get("winner")), _mapping(answer.get("test"))
    number = winner.get("trial")
    trial = next((trial for trial in stored.trials() if trial.number == number), None)
    who = _describe(_config_of(trial), _mapping(winner.get("params")))
    tested = _mapping(test.get("winner"))
    if (value := _mean(tested)) is not None:
        words = f"{who}: {_spread(tested, stored.metric)} on {_examples(answer, test)}"
        return f"{words}{_over_baseline(test, value, stored.metric)}"
    if _mean(winner) is None:
        return None
    seeds = len(winner.get("values") or ())
    return f"{who}: {_spread(winner, stored.metric)} on {seeds} fresh seeds, untested"


def search_sentence(snapshot: Snapshot) -> str:
    """Returns where a search stands in one sentence: its best trial so far."""
    trials = f"{snapshot.done} of {snapshot.budget} trials"
    if (best := snapshot.best) is None or (value := value_of(best)) is None:
        return f"{why_no_best(snapshot)}, after {trials}"
    who = _describe(_config_of(best), best.params)
    shown = _value(value, snapshot.metric)
    words = f"{who}: {shown} on the validation part, the best after {trials}"
    start = value_of(snapshot.baseline)
    if start is None or snapshot.baseline is None or snapshot.baseline.number == best.number:
        return words
    return f"{words}; the baseline has {_value(start, snapshot.metric)}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mean(values: Mapping[str, Any]) -> float | None:
    mean = values.get("mean")
    known = isinstance(mean, int | float) and not isinstance(mean, bool) and math.isfinite(mean)
    return float(mean) if known else None  # type: ignore[arg-type]


def _config_of(trial: FrozenTrial | None) -> Mapping[str, Any]:
    """Returns the configuration that a trial was made of; empty if it stored none."""
    return {} if trial is None else _mapping(_mapping(trial.user_attrs.get(MADE)).get("config"))


def _describe(config: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Describes a trial: its network and optimizer, or else its first parameters."""
    network, optimizer = _mapping(config.get("model")), _mapping(config.get("optimizer"))
    parts = []
    if name := _class_of(network):
        parts.append(_network(name, network, params))
    if name := _class_of(optimizer):
        rate = optimizer.get("lr")
        parts.append(name + (f" at {_short(rate)}" if isinstance(rate, int | float) else ""))
    if not parts:
        few = [f"{key.rpartition('.')[2]} {_short(v)}" for key, v in [*params.items()][:3]]
        parts = few or ["The configuration as composed"]
    return one_line(", ".join(parts))


def _class_of(section: Mapping[str, Any]) -> str:
    return str(section.get("_target_") or "").rpartition(".")[2]


def _network(name: str, network: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Describes a network: a CNN with 16 channels."""
    if isinstance(cell := network.get("cell"), str):  # Recurrent says which by a key
        name = cell.upper() if len(cell) <= 4 else cell
    acronym = len(name) <= 4 and name.isupper()
    vowel = name[:1] in SPELT if acronym else name[:1].lower() in "aeiou"
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


def _value(value: float, metric: str, error: float | None = None) -> str:
    if _is_share(metric):
        return f"{100 * value:.{_decimals(error)}f} %"
    return f"{one_line(metric)} {format_value(value)}"


def _spread(values: Mapping[str, Any], metric: str) -> str:
    """Words mean ± standard deviation over the seeds."""
    mean, error = _mean(values) or 0.0, values.get("std")
    if not isinstance(error, int | float) or isinstance(error, bool):
        return _value(mean, metric)
    if _is_share(metric):
        return f"{_value(mean, metric, error)} ± {100 * error:.{_decimals(error)}f}"
    return f"{_value(mean, metric)} ± {format_value(error)}"


def _examples(answer: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    """Words what the test part holds: 1 000 unseen pictures."""
    data = _mapping(answer.get("data"))
    noun = NOUNS.get(_class_of(_mapping(data.get("transform"))), "examples")
    if data.get("columns"):
        noun = "rows"
    count = test.get("examples")
    if not isinstance(count, int) or isinstance(count, bool):
        return f"unseen {noun}"
    return f"{count:,} unseen {noun}".replace(",", " ")


def _over_baseline(test: Mapping[str, Any], value: float, metric: str) -> str:
    """Words how far the winner is from the baseline, and whether the interval shows it at all."""
    difference = _mapping(test.get("difference"))
    gain, other = _mean(difference), _mean(_mapping(test.get("baseline")))
    if gain is None and other is not None:
        gain = value - other
    if gain is None:
        return ""
    side = "over" if gain >= 0 else "under"
    error = difference.get("std")
    known = error if isinstance(error, int | float) else None
    size = abs(100 * gain)
    words = f"{size:.{_decimals(known)}f} points" if _is_share(metric) else format_value(abs(gain))
    open_ = " (the 95 % interval includes 0)" if _covers_0(difference) else ""
    return f", {words} {side} the baseline{open_}"


def _covers_0(difference: Mapping[str, Any]) -> bool:
    ends = difference.get("interval")
    if not isinstance(ends, list) or not all(isinstance(end, int | float) for end in ends):
        return False
    return len(ends) == 2 and ends[0] <= 0 <= ends[1]
