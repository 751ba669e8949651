"""A study that has stopped itself: how many of its trials failed alike, where, and what to do."""

import re
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
        summary: how many trials failed alike.
        reason: the error with which they failed.
        traceback: the end of the traceback of one of them; empty if none is stored.
    """

    summary: str
    reason: str
    traceback: str = ""

    @property
    def headline(self) -> str:
        """How many trials failed alike, and with which error."""
        return f"{self.summary}: {self.reason}"


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
        if record.reason is not None and _mask_numbers(record.reason) == _mask_numbers(reason):
            alike += 1
            traceback = traceback or printable(str(record.traceback or ""))
    if ended == alike == 1:
        failures = "its first trial failed"
    else:
        failures = f"{alike} of {ended} trials failed alike"
    return Halt(f"The study stopped itself, since {failures}", one_line(reason), traceback)


def _mask_numbers(reason: str) -> str:
    """Masks the numbers of an error, which depend on the hyperparameters: shapes, or a loss."""
    return re.sub(r"\d+", "0", reason)


def write_redo(run_dir: Path) -> str:
    """Writes the command that opens the failed trials of a study again."""
    return f"studyloom redo {shlex.quote(str(run_dir))} --failed"


def suggest_redo(run_dir: Path, accept_code_change: str) -> str:
    """Says how the failed trials are trained once their cause is fixed, as the end of an error.

    Args:
        accept_code_change: the setting of that name, as the user gives it.
    """
    return (
        f"; if you fix your code: then {write_redo(run_dir)} opens the failed trials, and the same "
        f"command trains them, with {accept_code_change}; with another metric, space or argument "
        "it is another study"
    )
