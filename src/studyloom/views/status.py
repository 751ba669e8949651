"""The status of a study: printed once, watched until the job has ended, or as JSON."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from studyloom.errors import StorageError
from studyloom.study.failures import FailureCount, count_failures
from studyloom.study.job import SEARCH
from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.text import one_line
from studyloom.views.importances import importances, varied_parameters
from studyloom.views.live import QUIET_INTERVAL, timed
from studyloom.views.progress.events import finite
from studyloom.views.progress.job import DONE, JobReader, Progress, describe_answer
from studyloom.views.progress.words import (
    all_stages,
    best_words,
    control_words,
    eta_words,
    stage_words,
    time_words,
    wrap,
)
from studyloom.views.snapshot import Snapshot
from studyloom.views.terminal import answers_table, front_table, headline, workers_table

REFRESH = 1.0  # seconds between looks
DATABASE_DEADLINE = 2.0  # seconds that a look waits for a busy database
# Importances mean something from this many complete trials and two varied parameters on.
ENOUGH = 10
TOP = 5  # parameters whose importance is shown


@dataclass(frozen=True)
class Status:
    """A study and its job at one moment. Two are equal if nothing but the time differs.

    Args:
        progress: the search and the stages after it.
        importances: the shares of the most important parameters, in all at most 1; empty as long
            as they would mean nothing.
        failures: the failed trials by kind, the most frequent kind first.
    """

    progress: Progress
    importances: Mapping[str, float]
    failures: Sequence[FailureCount]

    @property
    def snapshot(self) -> Snapshot:
        """The search."""
        return self.progress.search


def read_status(source: JobReader | StoredStudy, before: Status | None = None) -> Status:
    """Reads the status of a study.

    Args:
        source: the study, or the reader of its job, which keeps the later stages open.
        before: an earlier status. Its importances are taken if no trial was completed since.

    Raises:
        StorageError: the database cannot be read.
    """
    reader = reader_of(source)
    stored, progress = reader.stored, reader.read()
    snapshot, trials = progress.search, stored.trials()
    complete = snapshot.outcomes.get("complete")
    if before is not None and before.snapshot.outcomes.get("complete") == complete:
        shares = before.importances
    else:
        shares = top_importances(trials, stored.sign)
    return Status(progress, shares, count_failures(trials))


def reader_of(source: JobReader | StoredStudy) -> JobReader:
    """Returns what reads the job of a study."""
    return source if isinstance(source, JobReader) else JobReader(source)


def top_importances(trials: Sequence[FrozenTrial], sign: int) -> dict[str, float]:
    """Returns the shares of the most important parameters, the largest first.

    Args:
        trials: of a study.
        sign: 1 if more of the value is better, -1 if less is.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    names = varied_parameters(complete)
    if len(complete) < ENOUGH or len(names) < 2:
        return {}
    return {found.name: found.share for found in importances(trials, names, sign)[:TOP]}


def render(status: Status, width: int) -> RenderableType:
    """Renders the whole status; what a low window may cut off comes last.

    Args:
        status: what to render.
        width: the width of the terminal in columns; no line is longer.
    """
    snapshot, progress = status.snapshot, status.progress
    left = max(0, snapshot.slots["free"] - snapshot.outcomes.get("paused", 0))
    ended = snapshot.outlook.ending
    parts: list[RenderableType] = [Text(headline(snapshot), overflow="fold")]
    if progress.answer is not None:
        words = describe_answer(progress.answer)
        parts.append(Text(words, style="bold green", overflow="fold"))
    if ended is not None:
        parts.append(Text(ended.words, overflow="fold"))
    else:
        parts.append(Text(f"budget left: {left} trial{'' if left == 1 else 's'}"))
    parts += [Text(line) for line in wrap([all_stages(progress)], width) if line]
    parts += [Text(line) for line in wrap(time_words(progress), width)]
    if words := control_words(progress):
        parts.append(Text(words, style="bold", overflow="fold"))
    if ended is None and (gain := snapshot.outlook.words(snapshot.metric)):
        parts.append(Text(gain, overflow="fold"))
    if progress.halted is not None:
        words = one_line(progress.halted)
        why = f"the study has stopped, since its trials fail with this: {words}"
        parts.append(Text(why, style="bold red", overflow="fold"))
    if progress.current.workers:
        parts.append(workers_table(progress.current, width))
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
    progress = status.progress
    best = status.snapshot.best
    result = "no result yet" if best is None else best_words(progress)
    stage = "" if progress.title in (SEARCH, DONE) else f"; {stage_words(progress)}"
    ended = status.snapshot.outlook.ending
    why = "" if ended is None else f"; {ended.words}"
    asked = f"; {words}" if (words := control_words(progress)) else ""
    return f"{headline(status.snapshot)}{stage}; {result}{why}{asked}"


def as_json(status: Status) -> str:
    """Formats a status as JSON, for other programs.

    Returns:
        One line, as `status` in assets/schemas.json says. Numbers are not rounded; what is missing
        or not finite is null.
    """
    return json.dumps(finite(status_document(status)), allow_nan=False)


def status_document(status: Status) -> dict[str, Any]:
    """Returns a status as nested mappings, for programs."""
    snapshot, progress = status.snapshot, status.progress
    states = ("complete", "pruned", "failed", "paused", "running", "waiting")
    eta = progress.eta
    return {
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
                "epochs": worker.epochs,
                "value": worker.value,
                "params": dict(worker.params),
                "held": worker.age,
                "lease": worker.left,
            }
            for worker in progress.current.workers
        ],
        "failures": {
            failure.kind: {"count": failure.count, "reason": failure.reason}
            for failure in status.failures
        },
        "halted": progress.halted,
        "eta": None if eta is None else eta.seconds,
        "foreign": snapshot.foreign,
        "ended": None if snapshot.outlook.ending is None else snapshot.outlook.ending.words,
        "gain": snapshot.outlook.gain,
        "stage": progress.title,
        "stages": [
            {"stage": stage.title, "done": stage.done, "left": stage.left}
            for stage in progress.stages
        ],
        "eta_interval": None if eta is None else [eta.low, eta.high],
        "elapsed": progress.elapsed,
        "hours": {"cores": progress.hours.cores, "gpus": progress.hours.gpus},
        "cost": progress.cost,
        "control": progress.control,
        "answer": None if progress.answer is None else dict(progress.answer),
        "exit_code": progress.exit_code,
    }


def _trial_json(snapshot: Snapshot, trial: FrozenTrial | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    costs = dict(zip(snapshot.costs, (trial.values or ())[1:], strict=False))
    return {"trial": trial.number, "value": value_of(trial), "params": trial.params} | costs


def print_status(status: Status, console: Console) -> None:
    """Prints a status, as wide as the console."""
    console.print(render(status, console.width))


def watch(source: JobReader | StoredStudy, console: Console) -> None:
    """Shows a job until it has ended: live on a terminal, else a line for each change.

    If nothing changes there is a line a minute.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        last, at = "", 0.0
        for status in watch_statuses(source):
            line = status_line(status) if isinstance(status, Status) else str(status)
            if line != last or time.monotonic() - at >= QUIET_INTERVAL:
                last, at = line, time.monotonic()
                eta = eta_words(status.progress) if isinstance(status, Status) else ""
                console.print(Text(timed("; ".join(filter(None, (line, eta))))), soft_wrap=True)
        return
    view: RenderableType = ""
    with Live(console=console, auto_refresh=False) as live:
        for status in watch_statuses(source):
            if isinstance(status, Status):
                view = render(status, console.width)
                live.update(view, refresh=True)
            else:
                error = Text(str(status), style="red", overflow="fold")
                live.update(Group(view, error), refresh=True)


def watch_json(source: JobReader | StoredStudy, write: Callable[[str], object]) -> None:
    """Writes a line of JSON for each change until a job has ended.

    Args:
        source: the study, or the reader of its job.
        write: takes each line, with its line break.
    """
    last = None
    for status in watch_statuses(source):
        if isinstance(status, Status) and status != last:
            write(f"{as_json(status)}\n")
            last = status


def watch_statuses(source: JobReader | StoredStudy) -> Iterator[Status | StorageError]:
    """Looks at a job every second until it has ended.

    Yields:
        The status, or the error if the database cannot be read; the next look may succeed.
    """
    reader = reader_of(source)
    status: Status | None = None
    while status is None or not status.progress.ended:
        try:
            status = read_status(reader, status)
            yield status
        except StorageError as error:
            yield error
        if status is None or not status.progress.ended:
            time.sleep(REFRESH)
