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
from studyloom.views.figures import finite_curves
from studyloom.views.words import begin_sentence
from studyloom.worker_log import read_trial_end

MOST_LINES = 40  # of the log of a trial
MOST_CHARACTERS = 300  # of a line
MOST_LOGGED = 60_000  # characters of all logs in a report
MOST_WORKER_LOGS = 64  # that are read, the latest ones
TAIL = 2**18  # bytes at the end of a log that are read
LATE = timedelta(seconds=10)  # a log may report an end so much later than the database


def trial_details(
    trial: FrozenTrial, log: str, live_trials: Collection[int] | None = None
) -> dict[str, Any]:
    """Returns what a report shows of a trial, without empty values.

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
    state = shown_state(trial, live_trials)
    epochs = _describe_epochs(record)
    curve = finite_curves([trial]).get(trial.number)
    if curve and state != "complete":
        _, last_value = curve[-1]
        epochs += f", at {format_value(last_value)}"
    if state == "failed":
        sentence = f"It failed after {epochs}: {record.reason or NO_REASON}"
    elif state == "pruned":
        sentence = f"It was pruned after {epochs}"
        if record.rungs:
            sentence += ": it waited at a rung, and others were promoted"
        sentence += "."
    elif state == "paused":
        sentence = f"It is paused after {epochs}, until it is promoted or the search has ended."
    elif state == "running":
        sentence = f"It runs, and has trained {epochs}."
    elif state == INTERRUPTED:
        sentence = f"It is {describe_state(trial, live_trials)}: it has trained {epochs}."
    elif state == "waiting":
        sentence = "No worker has begun it yet."
    else:
        sentence = f"It is complete, after {epochs}."
    if record.reused is not None:
        sentence += f" It was not trained: its result is that of {record.reused}."
    if record.resumed:
        resumption = describe_resumption(trial.number, record.resumed, record.streams)
        sentence += f" {begin_sentence(resumption)}."
    return sentence


def _describe_epochs(record: TrialRecord) -> str:
    """Says how many epochs a trial has trained, or how many folds and seeds of its loop."""
    done = record.steps_done
    planned = record.steps_planned
    if record.planned_jobs is not None:
        return f"{done} of {planned} folds and seeds"
    if planned:
        return f"{done} of {plural(planned, 'epoch')}"
    return plural(done, "epoch")


def read_logs(run_dir: Path, trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """Returns the last log lines of trials by number, up to a limit for each and for all.

    Failed trials come first, then the latest, until all logs together are too long.
    """
    lines_by_trial: dict[int, list[str]] = {}
    worker_logs = []
    command_logs = []
    for path in _list_logs(run_dir):
        if path.name.startswith("trial-"):
            command_logs.append(path)
        else:
            worker_logs.append(path)
    end_times = {trial.number: trial.datetime_complete for trial in trials}
    for path in worker_logs[:MOST_WORKER_LOGS]:
        lines_by_trial |= _split_worker_log(_read_tail(path), end_times)
    numbers = {f"trial-{number}.log": number for number in end_times}
    for path in command_logs:
        if path.name in numbers:
            lines = _read_tail(path)
            if lines:
                lines_by_trial[numbers[path.name]] = lines

    failed = {trial.number for trial in trials if TrialRecord(trial).outcome == "failed"}
    logs: dict[int, str] = {}
    room = MOST_LOGGED
    for number in sorted(lines_by_trial, key=lambda number: (number not in failed, -number)):
        last_lines = lines_by_trial[number][-MOST_LINES:]
        log = "\n".join(shorten_end(line, MOST_CHARACTERS) for line in last_lines)
        room -= len(log)
        if room < 0:
            break
        logs[number] = log
    return logs


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
    """Returns the lines of each trial in the log of a worker, from the end of the one before.

    Args:
        end_times: when each trial ended, by number; None while it runs.
    """
    lines_by_trial = {}
    trial_lines: list[str] = []
    for line in lines:
        trial_lines.append(line)
        end = read_trial_end(line)
        if end is None:
            continue
        # Another stage has a trial of this number too, which has ended at another time.
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
