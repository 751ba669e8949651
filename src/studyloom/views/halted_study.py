"""A study that has stopped itself: how many of its trials failed alike, where, and what to do."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import one_line, printable


@dataclass(frozen=True)
class Halt:
    """Why a study has stopped itself.

    Args:
        headline: how many trials failed alike, and with which error.
        traceback: the end of the traceback of one of them; empty if none is stored.
    """

    headline: str
    traceback: str = ""


def explain_halt(stored: StoredStudy) -> Halt | None:
    """Explains why a study has stopped itself; returns None if it has not."""
    reason = stored.halted()
    if reason is None:
        return None
    ended = 0
    alike = 0
    traceback = ""
    for trial in stored.trials():
        record = TrialRecord(trial)
        if trial.state.is_finished():
            ended += 1
        if record.reason == reason:
            alike += 1
            traceback = traceback or printable(str(record.traceback or ""))
    if ended == alike == 1:
        failures = "its first trial failed"
    else:
        failures = f"{alike} of {ended} trials failed alike"
    return Halt(f"The study stopped itself, since {failures}: {one_line(reason)}", traceback)


def suggest_redo(run_dir: Path) -> str:
    """Says how the failed trials are trained once their cause is fixed, as the end of an error."""
    return (
        f"; fix it: then studyloom redo {shlex.quote(str(run_dir))} --failed opens the failed "
        "trials, and the same command trains them, if the code has changed with "
        "study.accept_code_change=true"
    )
