"""A snapshot: a study at one moment, as all views show it.

Its quotable sentence is the first line of report, terminal and comparison, such as "A CNN with 16
channels, AdamW at 0.0033: 97.7% ± 0.4 on 1,000 unseen images, 4.4 points over the baseline".
"""

import itertools
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.decisions.early_end import Forecast, read_forecast
from studyloom.metrics import METRICS
from studyloom.storage.ledger import HeldSlot
from studyloom.storage.optuna_internals import ped_anova
from studyloom.storage.stored_study import StoredStudy, value_of
from studyloom.storage.trial_record import INTERRUPTED, TrialRecord, shown_state
from studyloom.text import (
    format_cost,
    format_duration,
    format_error,
    format_parameter,
    format_value,
    one_line,
)
from studyloom.winner.result import Result, Scores, Summary, plural

MOST_DETAILS = 2  # of a network
MOST_SETTINGS = 3  # of a trial without a network
# The keys that describe a network best, if the search varied none of its keys.
TELLING = ("channels", "hidden", "width", "layers")
SPELT = "AEFHILMNORSX"  # letters whose names begin with a vowel: an MLP, a CNN
VOWEL = r"[aeio]|u(?!-?net|ni)"  # with which a name begins that takes "an": not a U-Net
NOUNS = {"Image": "images", "Sound": "recordings"}  # by what makes a file an input
ENOUGH = 10  # complete trials, of which the best tenth is one
TOO_FEW = (
    f"No importances yet: of fewer than {ENOUGH} complete trials, the best tenth is less than one. "
    "optuna-dashboard shows some from 2 on."
)
ALL_ALIKE = "No hyperparameter sets the best trials apart; optuna-dashboard shows equal shares."


@dataclass(frozen=True)
class WorkerStatus:
    """A worker and its trial. Two are equal if they differ only by the time.

    Args:
        trial: the number of the trial; None before it begins.
        epoch: the last epoch that the trial reported, with its value; None before the first.
        epochs: the number of epochs of the trial; None if unknown. If a loop is called several
            times, for folds and seeds, both count its calls.
        held: the seconds since the worker claimed its slot.
        lease: the seconds left of its lease; negative after it has expired.
    """

    owner: str
    trial: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    value: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    held: float | None = field(default=None, compare=False)
    lease: float | None = field(default=None, compare=False)

    @property
    def alive(self) -> bool:
        """Whether its lease has not expired."""
        return self.lease is None or self.lease > 0

    @property
    def cells(self) -> list[str]:
        """Trial, epoch and value, the time since the claim, and until silence ends it."""
        value = None if self.value is None else format_value(self.value)
        held = None if self.held is None else format_duration(self.held)
        left = None if self.lease is None else f"expires in {format_duration(self.lease)}"
        epoch = self.epoch
        of = "" if self.epochs is None else f"/{self.epochs}"
        shown = None if epoch is None else f"{epoch}{of}"
        cells = (self.trial, shown, value, held, left if self.alive else "expired")
        return ["–" if cell is None else str(cell) for cell in cells]


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment.

    Args:
        slots: the number of slots by state: free, held, done; of an Optuna study, of trials.
        outcomes: the number of trials by outcome: complete, pruned, failed, paused,
            running, waiting.
        baseline: the complete trial of the default configuration, if there is one.
        metric: the name of the first value of a trial; `costs` are those of the others.
        rule: how the best is chosen; None if only the metric decides.
        foreign: the number of trials that another program has added.
        aside: the number of trials that another trial has replaced in their slot.
        trials: all that fill slots, from which the counts follow.
        alive: the numbers of the trials that living workers hold; None for an Optuna study.
    """

    name: str
    slots: Mapping[str, int]
    outcomes: Mapping[str, int]
    best: FrozenTrial | None
    baseline: FrozenTrial | None
    workers: tuple[WorkerStatus, ...]
    metric: str = "value"
    costs: tuple[str, ...] = ()
    front: tuple[FrozenTrial, ...] = ()
    rule: str | None = None
    foreign: int = 0
    aside: int = 0
    forecast: Forecast = field(default_factory=Forecast)
    trials: Sequence[FrozenTrial] = field(default=(), compare=False, repr=False)
    alive: frozenset[int] | None = None

    @property
    def left(self) -> int:
        """The number of trials still to be done."""
        return self.budget - self.done if self.forecast.ending is None else self.forecast.running

    @property
    def budget(self) -> int:
        """The number of slots."""
        return sum(self.slots.values())

    @property
    def done(self) -> int:
        """The number of slots whose trial has ended."""
        return self.slots["done"]

    @property
    def why_no_best(self) -> str:
        """Why the study has no best trial, without the full stop."""
        if self.rule is not None and self.outcomes.get("complete"):
            return f"No complete trial satisfies {one_line(self.rule)}"
        return "No trial is complete yet"

    @property
    def uncounted_words(self) -> list[str]:
        """How many trials are paused, interrupted, or kept but not counted; only counts above 0."""
        states = [shown_state(trial, self.alive) for trial in self.trials]
        counts = {
            "paused": self.outcomes.get("paused"),
            INTERRUPTED: states.count(INTERRUPTED),
            "foreign": self.foreign,
            "set aside": self.aside,
        }
        return [f"{count:,} {kind}" for kind, count in counts.items() if count]

    @property
    def counts_words(self) -> list[str]:
        """How many trials are complete, pruned, failed, running or not counted."""
        outcomes = self.outcomes
        counts = [f"{outcomes.get(kind, 0):,} {kind}" for kind in ("complete", "pruned", "failed")]
        count = sum(worker.alive for worker in self.workers)
        running = [f"{count} running"] if count else []
        return [*counts, *running, *self.uncounted_words]

    @property
    def headline(self) -> str:
        """The name of the study, its slots and its trials in one line."""
        counts = ", ".join(self.counts_words)
        done = f"{self.done:,} of {self.budget:,} trials"
        return f"{one_line(self.name)}: {done} – {counts}"

    @property
    def sentence(self) -> str:
        """The progress of the search in one sentence: its best trial so far."""
        trials = f"{self.done:,} of {self.budget:,} trials"
        if (best := self.best) is None or (value := value_of(best)) is None:
            return f"{self.why_no_best}, after {trials}"
        who = describe(best, best.params)
        shown = format_metric(value, self.metric)
        words = f"{who}: {shown} in the search, the best after {trials}"
        start = value_of(self.baseline)
        if start is None or self.baseline is None or self.baseline.number == best.number:
            return words
        return f"{words}; the baseline has {format_metric(start, self.metric)}"

    def quotable(self, stored: StoredStudy, result: Result | None) -> str:
        """Describes a study in one sentence: by its tested winner, or by its best trial."""
        tested = None if result is None else result_sentence(result, stored)
        return tested or self.sentence

    def front_rows(self) -> list[list[str]]:
        """Formats the Pareto front as rows, with best trial and baseline even if dominated.

        Returns:
            The header, and a row for each trial, the cheapest first: its values, its number,
            and a mark if it is the best or the baseline.
        """
        known = {trial.number: trial for trial in self.front}
        marks: dict[int, list[str]] = {}
        for name, trial in (("best", self.best), ("baseline", self.baseline)):
            if trial is not None:
                beaten = "" if trial.number in known else ", beaten"
                marks.setdefault(trial.number, []).append(f"{name}{beaten}")
                known[trial.number] = trial
        order = sorted(known.values(), key=lambda trial: [*trial.values[1:], trial.number])
        rows = [
            [*trial_values(trial), str(trial.number), ", ".join(marks.get(trial.number, []))]
            for trial in order
        ]
        return [[self.metric, *self.costs, "trial", ""], *rows]


def take_snapshot(stored: StoredStudy) -> Snapshot:
    """Reads a study; fetches only trials that are unfinished or ended since the last call.

    All counts follow from one list of trials: trials end between two reads. They are read from the
    database, since a worker of this process lists paused trials as pruned, for its sampler.

    Raises:
        StorageError: the database cannot be read.
    """
    held_before = stored.ledger.held()
    trials = stored.trials(whole=True)
    ended = {trial._trial_id for trial in trials if trial.state.is_finished()}
    held = [slot for slot in stored.ledger.held() if slot.trial_id not in ended]
    # The trial of a slot that is claimed or released between the reads is not interrupted.
    living = {slot.trial_id for slot in [*held_before, *held] if slot.left > 0}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    foreign, aside = stored.uncounted()
    rule, costs = stored.rule(), tuple(objective.name for objective in stored.objectives[1:])
    slots = _as_slots(trials)
    alive = None
    if stored.ours:
        alive = frozenset(trial.number for trial in trials if trial._trial_id in living)
        slots = _count_slots(stored, len(held), len(ended))
    return Snapshot(
        name=stored.name,
        slots=slots,
        outcomes=Counter(TrialRecord(trial).outcome for trial in trials),
        best=next(iter(stored.ranked(rule)), None),
        baseline=next((trial for trial in complete if TrialRecord(trial).is_baseline), None),
        workers=_workers(held, trials),
        metric=stored.metric,
        costs=costs,
        front=tuple(stored.front()) if costs else (),
        rule=str(rule)
        if costs or rule.conditions or rule.objective.name != stored.metric
        else None,
        foreign=len(foreign),
        aside=len(aside),
        forecast=read_forecast(stored),
        trials=trials,
        alive=alive,
    )


def _count_slots(stored: StoredStudy, held: int, done: int) -> dict[str, int]:
    """Counts the slots of a study by state.

    Args:
        held: the number of slots whose trials run; read later than those that are done.
        done: the number of trials that have ended.
    """
    budget = max(done, sum(stored.ledger.counts().values()))
    held = min(held, budget - done)
    return {"free": budget - done - held, "held": held, "done": done}


def _as_slots(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Counts the trials of an Optuna study as slots, of which it has none."""
    states = Counter(trial.state for trial in trials)
    free, held = states[TrialState.WAITING], states[TrialState.RUNNING]
    return {"free": free, "held": held, "done": len(trials) - free - held}


def _workers(held: Sequence[HeldSlot], trials: Sequence[FrozenTrial]) -> tuple[WorkerStatus, ...]:
    by_id = {trial._trial_id: trial for trial in trials}
    workers = []
    for slot in held:
        worker = WorkerStatus(slot.owner, held=slot.age, lease=slot.left)
        if slot.trial_id in by_id:
            trial = by_id[slot.trial_id]
            step = trial.last_step
            worker = replace(
                worker,
                trial=trial.number,
                epoch=step,
                epochs=TrialRecord(trial).steps_planned,
                value=None if step is None else trial.intermediate_values[step],
                params=trial.params,
            )
        workers.append(worker)
    return tuple(workers)


def format_trial_values(trial: FrozenTrial) -> str:
    """Formats the value of a trial, or all of its values, in one line."""
    return ", ".join(trial_values(trial))


def trial_values(trial: FrozenTrial) -> list[str]:
    """Formats each value of a trial: the metric, then the costs; only a dash without values."""
    values = trial.values or ()
    return [*map(format_value, values[:1]), *map(format_cost, values[1:])] or ["–"]


def format_parameters(params: Mapping[str, Any]) -> str:
    """Formats the hyperparameters of a trial in one line."""
    pairs = (f"{one_line(name)}={format_parameter(value)}" for name, value in params.items())
    return "  ".join(pairs) or "default configuration"


def result_sentence(result: Result, stored: StoredStudy) -> str | None:
    """Returns the result in one sentence; None if its winner has only the value of the search."""
    winner, test = result.winner, result.test
    trial = next((trial for trial in stored.trials() if trial.number == winner.trial), None)
    who = describe(trial, winner.params)
    if test is not None:
        words = f"{who}: {format_summary(test.winner, stored.metric)} on {_examples(result, test)}"
        return f"{words}{_over_baseline(test, stored.metric)}"
    if winner.reevaluation is None:
        return None
    seeds = plural(len(winner.values), "new seed")
    return f"{who}: {format_summary(winner.reevaluation, stored.metric)} on {seeds}, untested"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def describe(trial: FrozenTrial | None, params: Mapping[str, Any]) -> str:
    """Describes a trial: its network and optimizer, or else its first hyperparameters."""
    config = _mapping(trial and TrialRecord(trial).config)
    network, optimizer = _mapping(config.get("model")), _mapping(config.get("optimizer"))
    parts = []
    if name := _class_of(network):
        parts.append(_network(name, network, params))
    if name := _class_of(optimizer):
        rate = optimizer.get("lr")
        parts.append(name + (f" at {_short(rate)}" if isinstance(rate, int | float) else ""))
    if not parts:
        few = [f"{key.rpartition('.')[2]} {value}" for key, value in join_lists(params).items()]
        parts = few[:MOST_SETTINGS] or ["The default configuration"]
    return one_line(", ".join(parts))


def join_lists(params: Mapping[str, Any]) -> dict[str, str]:
    """Formats each hyperparameter; the items of a list are joined."""
    words: dict[str, str] = {}
    for key, value in params.items():
        above, _, last = key.rpartition(".")
        if f"{above}.0" in params and (last == "length" or last.isdecimal()):
            places = (f"{above}.{place}" for place in itertools.count())
            items = itertools.takewhile(params.__contains__, places)
            words[above] = "-".join(_short(params[item]) for item in items)
        else:
            words[key] = _short(value)
    return words


def _class_of(section: Mapping[str, Any]) -> str:
    return str(section.get("_target_") or "").rpartition(".")[2]


def _network(name: str, network: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Describes a network: a CNN with 16 channels."""
    if isinstance(cell := network.get("cell"), str):  # the kind of a Recurrent
        name = cell.upper() if len(cell) <= 4 else cell
    acronym = len(name) <= 4 and name.isupper()
    vowel = name[:1] in SPELT if acronym else re.match(VOWEL, name.lower())
    searched = {
        key.partition("[")[0].rpartition(".")[2] for key in params if key.startswith("model.")
    }
    keys = [key for key in network if key in searched] or [key for key in TELLING if key in network]
    keys.sort(key=lambda key: key not in TELLING)
    details = [_detail(key, network[key]) for key in keys]
    details = [detail for detail in details if detail][:MOST_DETAILS]
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


def format_summary(values: Summary, metric: str) -> str:
    """Formats mean ± standard deviation over the seeds."""
    mean, error = values.mean, values.std
    if error is None or values.same:
        return format_metric(mean, metric)
    if _is_share(metric, mean):
        return f"{format_metric(mean, metric, error)} ± {100 * error:.{_decimals(error)}f}"
    return f"{format_metric(mean, metric)} ± {format_error(error, format_value(mean))}"


def _examples(result: Result, test: Scores) -> str:
    """Describes the test set, such as 1,000 unseen images."""
    data = result.data
    noun = NOUNS.get(_class_of((data and data.transform) or {}), "examples")
    if data and data.columns:
        noun = "rows"
    if test.examples is None:
        return f"unseen {noun}"
    return f"{test.examples:,} unseen {noun}"


def _over_baseline(test: Scores, metric: str) -> str:
    """Says how far the winner is from the baseline, and whether the interval includes 0."""
    if (difference := test.difference) is None:
        return ""
    gain, ends = difference.mean, difference.interval
    side = "over" if gain >= 0 else "under"
    size = abs(100 * gain)
    points = f"{size:.{_decimals(difference.std)}f} points"
    words = points if _is_share(metric, test.winner.mean) else format_value(abs(gain))
    open_ = " (the 95% interval includes 0)" if ends and ends[0] <= 0 <= ends[1] else ""
    return f", {words} {side} the baseline{open_}"


def varied_parameters(trials: Sequence[FrozenTrial], least: int = 2) -> list[str]:
    """Returns the hyperparameters that had different values in at least `least` of the trials."""
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, []).append(value)
    return sorted(name for name, seen in values.items() if len(seen) >= least and len({*seen}) > 1)


def importances(stored: StoredStudy, position: int = 0) -> dict[str, float] | str:
    """Returns the importances of hyperparameters, as optuna-dashboard shows them.

    PED-ANOVA (Watanabe et al., IJCAI 2023) compares the distribution of each hyperparameter in the
    best tenth of the complete trials with that in all of them.

    Args:
        position: the position of the objective.

    Returns:
        The share of each hyperparameter, the largest first, with a sum of 1. Even one that never
        varied may have a share if it is conditional, since it may matter whether a trial has it.
        Or a sentence that says why there are no importances.
    """
    trials = [
        trial
        for trial in stored.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if math.isfinite(trial.values[position])
    ]
    if len(trials) < ENOUGH:
        return TOO_FEW
    sign = stored.objectives[position].sign
    with warnings.catch_warnings():  # that it minimizes, and that few trials have a hyperparameter
        warnings.simplefilter("ignore")
        found = ped_anova().evaluate(
            stored.optuna, target=lambda trial: -sign * trial.values[position]
        )
    varied, total = varied_parameters(trials), sum(found.values())
    if not varied or not total:
        return ALL_ALIKE
    # Optuna's order of equal importances is random.
    order = sorted(found, key=lambda name: (-found[name], name))
    return {name: found[name] / total for name in order if found[name] or name in varied}
