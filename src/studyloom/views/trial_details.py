"""The details that a report shows of one trial: how it ended, its times, and its lines of the logs.

A command has a log for each of its trials. A worker has one log for all of its trials, in which a
line says when each has ended.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.storage.failures import NO_REASON, describe_resumption
from studyloom.storage.trial_record import INTERRUPTED, TrialRecord, describe_state, shown_state
from studyloom.text import format_value, plural, shorten_end
from studyloom.views.trial_values import finite_curves
from studyloom.views.words import begin_sentence
from studyloom.worker_log import read_trial_end

MOST_LINES = 40  # of the log of a trial
MOST_CHARACTERS = 300  # of a line
MOST_LOGGED = 60_000  # characters of all logs in a report
MOST_WORKER_LOGS = 64  # that are read, the latest ones
TAIL = 2**18  # bytes at the end of a log that are read
LATE = timedelta(seconds=10)  # a log may report an end so much later than the database


def collect_details(
    trial: FrozenTrial, log: str, live_trials: Collection[int] | None = None
) -> dict[str, Any]:
    """Returns what a report shows of a trial when its row is opened, without empty values.

    Args:
        log: the last lines of its log.
        live_trials: the numbers of the trials that living workers hold, as in `Snapshot`.
    """
    record = TrialRecord(trial)
    began = ""
    if trial.datetime_start is not None:
        began = f"{trial.datetime_start:%Y-%m-%d %H:%M:%S}"
    times = {}
    for kind, seconds in record.times.items():
        if 0 < seconds < math.inf:
            times[kind] = float(f"{seconds:.3g}")
    details = {
        "end": describe_end(trial, live_trials),
        "facts": {"began": began, "worker": str(record.worker or "")},
        "times": times,
        "traceback": str(record.traceback or ""),
        "log": log,
        "replayable": bool(record.provenance),
    }
    return {name: value for name, value in details.items() if value}


def describe_end(trial: FrozenTrial, live_trials: Collection[int] | None = None) -> str:
    """Says how a trial ended and why, or how far it has come.

    Args:
        live_trials: the numbers of the trials that living workers hold, as in `Snapshot`.
    """
    record = TrialRecord(trial)
    sentence = _describe_state(trial, live_trials)
    if record.reused is not None:
        sentence += f" It was not trained: its result is that of {record.reused}."
    if record.resumed:
        # Its streams are iterators over the examples that it reads from the start again.
        resumption = describe_resumption(trial.number, record.resumed, record.streams)
        sentence += f" {begin_sentence(resumption)}."
    return sentence


def _describe_state(trial: FrozenTrial, live_trials: Collection[int] | None) -> str:
    """Says in a sentence in which state a trial is, and after how many epochs."""
    record = TrialRecord(trial)
    state = shown_state(trial, live_trials)
    epochs = _describe_epochs(record)
    curve = finite_curves([trial]).get(trial.number)
    if curve and state != "complete":
        _, last_value = curve[-1]
        epochs += f", at {format_value(last_value)}"
    if state == "complete":
        return f"It is complete, after {epochs}."
    if state == "failed":
        return f"It failed after {epochs}: {record.reason or NO_REASON}"
    if state == "pruned" and record.is_stop_requested:
        return f"It was pruned after {epochs}: it was stopped on request."
    if record.is_stop_requested and not trial.state.is_finished():
        return f"It has trained {epochs}, and ends at its next report, as was requested."
    if state == "pruned" and record.rungs:
        return f"It was pruned after {epochs}: it waited at a rung, and others were promoted."
    if state == "pruned":
        return f"It was pruned after {epochs}."
    if state == "paused":
        return f"It is paused after {epochs}, until it is promoted or the search has ended."
    if state == "running":
        return f"It runs, and has trained {epochs}."
    if state == INTERRUPTED:
        return f"It is {describe_state(trial, live_trials)}: it has trained {epochs}."
    return "No worker has begun it yet."


def _describe_epochs(record: TrialRecord) -> str:
    """Says how many epochs a trial has trained, or how many folds and seeds of its loop."""
    done = record.steps_done
    planned = record.steps_planned
    is_several_calls = record.planned_jobs is not None  # of a loop, for its folds and seeds
    if is_several_calls:
        return f"{done} of {planned} folds and seeds"
    if planned:
        return f"{done} of {plural(planned, 'epoch')}"
    return plural(done, "epoch")


def read_logs(run_dir: Path, trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """Returns the last log lines of trials by number, up to a limit for each and for all.

    Failed trials come first, then the latest, until all logs together are too long.
    """
    lines_by_trial = _read_trial_lines(_list_logs(run_dir), trials)
    failed = []
    others = []
    for trial in sorted(trials, key=lambda trial: -trial.number):
        if TrialRecord(trial).outcome == "failed":
            failed.append(trial)
        else:
            others.append(trial)
    logs: dict[int, str] = {}
    characters = 0
    for trial in [*failed, *others]:
        if trial.number not in lines_by_trial:
            continue
        last_lines = lines_by_trial[trial.number][-MOST_LINES:]
        log = "\n".join(shorten_end(line, MOST_CHARACTERS) for line in last_lines)
        characters += len(log)
        if characters > MOST_LOGGED:
            break
        logs[trial.number] = log
    return logs


def _read_trial_lines(paths: Sequence[Path], trials: Sequence[FrozenTrial]) -> dict[int, list[str]]:
    """Returns the last log lines of trials, by number.

    The log of a command's trial has its number in its name: `trial-7.log`. Any other log is written
    by a worker, and has the lines of all its trials.
    """
    worker_logs = []
    trial_logs = {}
    for path in paths:
        if path.name.startswith("trial-"):
            trial_logs[path.name] = path
        else:
            worker_logs.append(path)
    lines_by_trial: dict[int, list[str]] = {}
    end_times = {trial.number: trial.datetime_complete for trial in trials}
    for path in worker_logs[:MOST_WORKER_LOGS]:
        lines_by_trial |= _split_worker_log(_read_tail(path), end_times)
    for trial in trials:
        name = f"trial-{trial.number}.log"
        if name in trial_logs:
            lines = _read_tail(trial_logs[name])
            if lines:
                lines_by_trial[trial.number] = lines
    return lines_by_trial


def _list_logs(run_dir: Path) -> list[Path]:
    """Returns the logs of a run, the latest first; none if they cannot be listed.

    A link that leads out of the run directory is left out, since a report may be published.
    """
    logs = []
    try:
        folder = run_dir.resolve()
        for path in (folder / "logs").glob("*.log"):
            if path.is_file() and path.resolve().is_relative_to(folder):
                logs.append(path)
        logs.sort(key=lambda path: -path.stat().st_mtime)
    except OSError:
        return []
    return logs


def _split_worker_log(
    lines: Iterable[str], end_times: dict[int, datetime | None]
) -> dict[int, list[str]]:
    """Splits the log of a worker after each line that reports the end of a trial.

    Args:
        end_times: when each trial ended, by number; None while it runs.

    Returns:
        The lines of each trial of the search, by its number.
    """
    lines_by_trial = {}
    trial_lines: list[str] = []  # since the end of the previous trial
    for line in lines:
        trial_lines.append(line)
        end = read_trial_end(line)
        if end is None:
            continue
        # A trial of another stage may have the same number, but ended at another time.
        end_time = end_times.get(end.trial)
        is_of_search = end_time is not None and abs(end.time - end_time) < LATE
        if is_of_search and len(trial_lines) > 1:  # a log with only the end adds nothing
            lines_by_trial[end.trial] = trial_lines
        trial_lines = []
    return lines_by_trial


def _read_tail(path: Path) -> list[str]:
    """Returns the last lines of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            return file.read(TAIL).decode(errors="replace").splitlines()
    except OSError:
        return []
