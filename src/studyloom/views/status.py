"""The status of a study: printed once, watched until the budget is spent, or as JSON."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from studyloom.errors import StorageError
from studyloom.storage.attributes import TIMES
from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.study.trials.failures import FailureCount, count_failures
from studyloom.text import format_duration, one_line
from studyloom.views.figures.plot_study import plot_study
from studyloom.views.importances import importances, varied_parameters
from studyloom.views.snapshot import Snapshot, format_trial_values, take_snapshot
from studyloom.views.terminal import answers_table, front_table, headline, workers_table

REFRESH = 1.0  # seconds between looks
DATABASE_DEADLINE = 2.0  # seconds that a look waits for a busy database
# Importances mean something from this many complete trials and two varied parameters on.
ENOUGH = 10
TOP = 5  # parameters whose importance is shown


@dataclass(frozen=True)
class Status:
    """A study at one moment. Two are equal if nothing but the time differs.

    Args:
        snapshot: its slots, trials and workers.
        importances: the shares of the most important parameters, in all at most 1; empty as long
            as they would mean nothing.
        failures: the failed trials by kind, the most frequent kind first.
        halted: why the study has stopped itself, if it has.
        eta: the seconds until the budget is spent; None if nobody works, or no trial has ended.
    """

    snapshot: Snapshot
    importances: Mapping[str, float]
    failures: Sequence[FailureCount]
    halted: str | None
    eta: float | None = field(compare=False)


def read_status(stored: StoredStudy, before: Status | None = None) -> Status:
    """Reads the status of a study.

    Args:
        stored: the study.
        before: an earlier status. Its importances are taken if no trial was completed since.

    Raises:
        StorageError: the database cannot be read.
    """
    snapshot = take_snapshot(stored)
    trials = stored.trials()
    complete = snapshot.outcomes.get("complete")
    if before is not None and before.snapshot.outcomes.get("complete") == complete:
        shares = before.importances
    else:
        plain = len(stored.goals) == 1 and not snapshot.foreign
        study = stored.optuna if plain else plot_study(trials, stored.sign)
        shares = top_importances(study, study.get_trials(deepcopy=False))
    failures = count_failures(trials)
    return Status(snapshot, shares, failures, stored.halted(), remaining(snapshot, trials))


def top_importances(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Returns the shares of the most important parameters, the largest first.

    Args:
        study: a study with one value per trial.
        trials: its trials.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    names = varied_parameters(complete)
    if len(complete) < ENOUGH or len(names) < 2:
        return {}
    return dict(list(importances(study, names).items())[:TOP])


def remaining(snapshot: Snapshot, trials: Sequence[FrozenTrial]) -> float | None:
    """Estimates the seconds until the budget is spent.

    The estimate assumes that the present workers go on, and that trials take as long as the mean
    of those that have ended.

    Args:
        snapshot: the study.
        trials: its trials.

    Returns:
        The seconds; None if nobody works, or no trial has ended.
    """
    durations = [duration(trial) for trial in trials if trial.state.is_finished()]
    working = [worker for worker in snapshot.workers if worker.alive]
    left = snapshot.left
    if not left:
        return 0.0
    if not durations or not working:
        return None
    mean = fmean(durations)
    spent = sum(min(worker.age or 0.0, mean) for worker in working)
    return (left * mean - spent) / min(len(working), left)


def duration(trial: FrozenTrial) -> float:
    """Returns the seconds that workers spent on a trial.

    A trial that did not store them counts from its start to its end, interruptions included.
    """
    times: Mapping[str, float] = trial.user_attrs.get(TIMES) or {}
    if "training" in times:
        return sum(times.values())
    return trial.duration.total_seconds() if trial.duration is not None else 0.0


def render(status: Status, width: int) -> RenderableType:
    """Renders the whole status; what a low window may cut off comes last.

    Args:
        status: what to render.
        width: the width of the terminal in columns; no line is longer.
    """
    snapshot = status.snapshot
    left = max(0, snapshot.slots["free"] - snapshot.outcomes.get("paused", 0))
    ended = snapshot.outlook.ending
    eta = ""
    if status.eta is not None and snapshot.workers:
        eta = f", ETA {format_duration(status.eta)}"
    parts: list[RenderableType] = [
        Text(headline(snapshot), overflow="fold"),
        Text(f"budget left: {left} trial{'' if left == 1 else 's'}{eta}")
        if ended is None
        else Text(f"{ended.words}{eta}", overflow="fold"),
    ]
    if ended is None and (gain := snapshot.outlook.words(snapshot.metric)):
        parts.append(Text(gain, overflow="fold"))
    if status.halted is not None:
        words = one_line(status.halted)
        why = f"the study has stopped, since its trials fail with this: {words}"
        parts.append(Text(why, style="bold red", overflow="fold"))
    if snapshot.workers:
        parts.append(workers_table(snapshot, width))
    for failure in status.failures:
        line = one_line(f"{failure.kind}  {failure.count} × such as: {failure.reason}")
        parts.append(Text(line, overflow="fold"))
    if status.importances:
        parts += [Text("what matters", style="dim"), importances_table(status.importances)]
    parts.append(answers_table(snapshot, width))
    if snapshot.rule is not None:
        parts.append(front_table(snapshot, width))
    return Group(*parts)


def importances_table(shares: Mapping[str, float]) -> Table:
    """Renders importances as percentages.

    Args:
        shares: the share of each parameter, from 0 to 1.
    """
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column("parameter", overflow="fold")
    table.add_column("share", justify="right", no_wrap=True)
    for name, share in shares.items():
        table.add_row(Text(f"  {one_line(name)}"), f"{share:.0%}")
    return table


def status_line(status: Status) -> str:
    """Formats a status in one line, without what changes every second."""
    best = status.snapshot.best
    result = "no result yet"
    if best is not None:
        result = f"best {format_trial_values(best)} (trial {best.number})"
    ended = status.snapshot.outlook.ending
    why = "" if ended is None else f"; {ended.words}"
    return f"{headline(status.snapshot)}; {result}{why}"


def as_json(status: Status) -> str:
    """Formats a status as JSON, for other programs.

    Returns:
        One line. Numbers are not rounded; what is missing or not finite is null. The keys are:

        - study, metric, budget, done, and the counts by state in slots and trials;
        - best, baseline: trial, value, params, and the costs by name if these are objectives too;
        - front: the trials of the Pareto front; rule: how the best is chosen;
        - importances: the share of each parameter;
        - workers: owner, trial, epoch, value, held (seconds since it claimed its slot), and lease
          (seconds left);
        - failures: count and last reason by kind; halted: why the study has stopped itself;
        - eta: the seconds left; foreign: the count of trials that another program has added;
        - ended: why the search has ended before its budget was spent; gain: what the trials that
          are left are expected to gain, together.
    """
    snapshot = status.snapshot
    states = ("complete", "pruned", "failed", "paused", "running", "waiting")
    document = {
        "study": snapshot.name,
        "metric": snapshot.metric,
        "budget": snapshot.budget,
        "done": snapshot.done,
        "slots": dict(snapshot.slots),
        "trials": {state: snapshot.outcomes.get(state, 0) for state in states},
        "best": _trial_json(snapshot, snapshot.best),
        "baseline": _trial_json(snapshot, snapshot.baseline),
        "front": [_trial_json(snapshot, trial) for trial in snapshot.front],
        "rule": snapshot.rule,
        "importances": dict(status.importances),
        "workers": [
            {
                "owner": worker.owner,
                "trial": worker.number,
                "epoch": worker.epoch,
                "value": worker.value,
                "held": worker.age,
                "lease": worker.left,
            }
            for worker in snapshot.workers
        ],
        "failures": {
            failure.kind: {"count": failure.count, "reason": failure.reason}
            for failure in status.failures
        },
        "halted": status.halted,
        "eta": status.eta,
        "foreign": snapshot.foreign,
        "ended": None if snapshot.outlook.ending is None else snapshot.outlook.ending.words,
        "gain": snapshot.outlook.gain,
    }
    return json.dumps(_finite(document), allow_nan=False)


def _trial_json(snapshot: Snapshot, trial: FrozenTrial | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    costs = dict(zip(snapshot.costs, (trial.values or ())[1:], strict=False))
    return {"trial": trial.number, "value": value_of(trial), "params": trial.params} | costs


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_status(status: Status, console: Console) -> None:
    """Prints a status, as wide as the console."""
    console.print(render(status, console.width))


def watch(stored: StoredStudy, console: Console) -> None:
    """Shows a study until its budget is spent: live on a terminal, else a line for each change."""
    if not console.is_terminal:
        last = None
        for status in watch_statuses(stored):
            line = status_line(status) if isinstance(status, Status) else str(status)
            if line != last:
                console.print(Text(line), soft_wrap=True)
                last = line
        return
    view: RenderableType = ""
    with Live(console=console, auto_refresh=False) as live:
        for status in watch_statuses(stored):
            if isinstance(status, Status):
                view = render(status, console.width)
                live.update(view, refresh=True)
            else:
                error = Text(str(status), style="red", overflow="fold")
                live.update(Group(view, error), refresh=True)


def watch_json(stored: StoredStudy, write: Callable[[str], object]) -> None:
    """Writes a line of JSON for each change until the budget of a study is spent.

    Args:
        stored: the study.
        write: takes each line, with its line break.
    """
    last = None
    for status in watch_statuses(stored):
        if isinstance(status, Status) and status != last:
            write(f"{as_json(status)}\n")
            last = status


def watch_statuses(stored: StoredStudy) -> Iterator[Status | StorageError]:
    """Looks at a study every second until its budget is spent.

    Yields:
        The status, or the error if the database cannot be read; the next look may succeed.
    """
    status: Status | None = None
    while status is None or status.snapshot.left:
        try:
            status = read_status(stored, status)
            yield status
        except StorageError as error:
            yield error
        if status is None or status.snapshot.left:
            time.sleep(REFRESH)
