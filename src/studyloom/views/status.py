"""Where a study stands: once, again and again, or as JSON for other programs."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import optuna  # its importance is imported when it is first used; it takes scipy along, where there is one
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from studyloom.errors import StorageError
from studyloom.storage.attributes import FAILURE, REASON, TIMES
from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.text import format_duration
from studyloom.views.figures.plot_study import plot_study, quiet_optuna
from studyloom.views.snapshot import Snapshot, format_trial_values, outcome, take_snapshot
from studyloom.views.terminal import answers_table, front_table, headline, workers_table

REFRESH = 1.0  # seconds between looks
DATABASE_DEADLINE = 2.0  # seconds that a look waits for a database that is busy
ENOUGH = (
    10  # complete trials, and two parameters that were varied, before importances mean anything
)
TOP = 5


@dataclass(frozen=True)
class Failed:
    """A class of failures: how many, and the reason of the last."""

    count: int
    reason: str


@dataclass(frozen=True)
class Status:
    """A study at one moment.

    importances: of the most important parameters, out of 1 for all; empty as long as they would mean nothing. failures:
    by class, the most frequent first. halted: why the study has stopped itself. eta: seconds until the budget is spent;
    None where nobody works or nothing has ended yet. Two are equal if nothing but the clock has gone on.
    """

    snapshot: Snapshot
    importances: Mapping[str, float]
    failures: Mapping[str, Failed]
    halted: str | None
    eta: float | None = field(compare=False)


def read_status(stored: StoredStudy, before: Status | None = None) -> Status:
    """Reads a study; takes the importances from a status of before if no trial was completed since."""
    snapshot = take_snapshot(stored)
    trials = stored.trials()
    if before is not None and before.snapshot.outcomes.get("complete") == snapshot.outcomes.get(
        "complete"
    ):
        weights = before.importances
    else:
        study = stored.optuna if len(stored.goals) == 1 else plot_study(trials, stored.sign)
        weights = importances(study, study.get_trials(deepcopy=False))
    return Status(snapshot, weights, failures(trials), stored.halted(), remaining(snapshot, trials))


def importances(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """How much of the differences in value the most important parameters explain."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    values: dict[str, set[Any]] = {}
    for trial in complete:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    varied = sorted(name for name, seen in values.items() if len(seen) > 1)
    if len(complete) < ENOUGH or len(varied) < 2:
        return {}
    with quiet_optuna():
        found = optuna.importance.get_param_importances(study, params=varied)
    return dict(list(found.items())[:TOP])


def failures(trials: Sequence[FrozenTrial]) -> dict[str, Failed]:
    failed = [trial.user_attrs for trial in trials if outcome(trial) == "failed"]
    reasons = {
        str(attrs.get(FAILURE, "unexplained")): str(attrs.get(REASON, "no reason is stored"))
        for attrs in failed
    }
    counts = Counter(str(attrs.get(FAILURE, "unexplained")) for attrs in failed)
    return {kind: Failed(count, reasons[kind]) for kind, count in counts.most_common()}


def remaining(snapshot: Snapshot, trials: Sequence[FrozenTrial]) -> float | None:
    """Seconds until all slots are done, if those who work now go on and trials take what they took so far."""
    took = [duration(trial) for trial in trials if trial.state.is_finished()]
    working = [worker for worker in snapshot.workers if worker.alive]
    left = snapshot.budget - snapshot.done
    if not left:
        return 0.0
    if not took or not working:
        return None
    usual = fmean(took)
    gone = sum(min(worker.age or 0.0, usual) for worker in working)
    return (left * usual - gone) / min(len(working), left)


def duration(trial: FrozenTrial) -> float:
    """Seconds that were spent on a trial; from its begin to its end where it did not say, with all interruptions."""
    times: Mapping[str, float] = trial.user_attrs.get(TIMES) or {}
    if "training" in times:
        return sum(times.values())
    return trial.duration.total_seconds() if trial.duration is not None else 0.0


def render(status: Status, width: int) -> RenderableType:
    """All of it, in lines of at most `width` columns; last what a low window may cut off."""
    snapshot = status.snapshot
    left = snapshot.slots["free"]
    eta = (
        "" if status.eta is None or not snapshot.workers else f", ETA {format_duration(status.eta)}"
    )
    parts: list[RenderableType] = [
        Text(headline(snapshot), overflow="fold"),
        Text(f"budget left: {left} trial{'' if left == 1 else 's'}{eta}"),
    ]
    if status.halted is not None:
        why = f"the study has stopped, since its trials fail with this: {status.halted}"
        parts.append(Text(why, style="bold red", overflow="fold"))
    if snapshot.workers:
        parts.append(workers_table(snapshot, width))
    for kind, failed in status.failures.items():
        parts.append(Text(f"{kind}  {failed.count} × such as: {failed.reason}", overflow="fold"))
    if status.importances:
        parts += [Text("what matters", style="dim"), shares(status.importances)]
    parts.append(answers_table(snapshot, width))
    if snapshot.rule is not None:
        parts.append(front_table(snapshot, width))
    return Group(*parts)


def shares(importances: Mapping[str, float]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column("parameter", overflow="fold")
    table.add_column("share", justify="right", no_wrap=True)
    for name, share in importances.items():
        table.add_row(Text(f"  {name}"), f"{share:.0%}")
    return table


def status_line(status: Status) -> str:
    """One line, without what changes by the second."""
    best = status.snapshot.best
    found = (
        "no result yet"
        if best is None
        else f"best {format_trial_values(best)} (trial {best.number})"
    )
    return f"{headline(status.snapshot)}; {found}"


def as_json(status: Status) -> str:
    """One line for machines; numbers as they are stored, null for what is not there and for NaN and infinities.

    study, metric, budget, done; slots and trials: counts by state; best and baseline: trial, value, params, and what it
    costs where that is an objective too; front: those that none beats then; rule: how the best is chosen;
    importances: by parameter; workers: owner, trial, epoch, value, held (seconds since it took its slot), lease
    (seconds left); failures: by class a count and the last reason; halted; eta in seconds.
    """
    snapshot = status.snapshot

    def answer(trial: FrozenTrial | None) -> dict[str, Any] | None:
        if trial is None:
            return None
        told = {"trial": trial.number, "value": value_of(trial), "params": trial.params}
        return told | dict(zip(snapshot.costs, (trial.values or ())[1:], strict=False))

    states = ("complete", "pruned", "failed", "running", "waiting")
    stands = {
        "study": snapshot.name,
        "metric": snapshot.metric,
        "budget": snapshot.budget,
        "done": snapshot.done,
        "slots": dict(snapshot.slots),
        "trials": {state: snapshot.outcomes.get(state, 0) for state in states},
        "best": answer(snapshot.best),
        "baseline": answer(snapshot.baseline),
        "front": [answer(trial) for trial in snapshot.front],
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
            kind: {"count": f.count, "reason": f.reason} for kind, f in status.failures.items()
        },
        "halted": status.halted,
        "eta": status.eta,
    }
    return json.dumps(_finite(stands), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_status(status: Status, console: Console) -> None:
    console.print(render(status, console.width))


def watch(stored: StoredStudy, console: Console) -> None:
    """Shows a study until its budget is spent: live on a terminal, else a line for each change."""
    if not console.is_terminal:
        said = None
        for status in watch_statuses(stored):
            words = status_line(status) if isinstance(status, Status) else str(status)
            if words != said:
                console.print(Text(words), soft_wrap=True)
                said = words
        return
    view: RenderableType = ""
    with Live(console=console, auto_refresh=False) as live:
        for status in watch_statuses(stored):
            if isinstance(status, Status):
                view = render(status, console.width)
                live.update(view, refresh=True)
            else:
                live.update(
                    Group(view, Text(str(status), style="red", overflow="fold")), refresh=True
                )


def watch_json(stored: StoredStudy, write: Callable[[str], object]) -> None:
    """Writes a line of JSON for each change until the budget of a study is spent."""
    said = None
    for status in watch_statuses(stored):
        if isinstance(status, Status) and status != said:
            write(f"{as_json(status)}\n")
            said = status


def watch_statuses(stored: StoredStudy) -> Iterator[Status | StorageError]:
    """A status every second until the budget is spent, or why there is none: the next look may succeed."""
    status: Status | None = None
    while status is None or status.snapshot.done < status.snapshot.budget:
        try:
            status = read_status(stored, status)
            yield status
        except StorageError as error:
            yield error
        if status is None or status.snapshot.done < status.snapshot.budget:
            time.sleep(REFRESH)
