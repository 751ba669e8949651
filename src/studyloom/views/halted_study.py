"""A study whose trials fail: why it has stopped itself, and how its failed trials are repeated."""

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

    @property
    def further_lines(self) -> str:
        """The traceback; empty if the reason has all of its lines, as that of a command has."""
        has_all_lines = all(one_line(line) in self.reason for line in self.traceback.splitlines())
        if has_all_lines:
            return ""
        return self.traceback


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


def suggest_repetition(failed: int, run_dir: Path, kind: str) -> str:
    """Says how failed trials are repeated.

    Args:
        failed: the number of the failed trials.
        kind: the kind of thing that the user repeats, such as "command".
    """
    if failed == 1:
        trials = "it"
    else:
        trials = "them"
    return f"{failed:,} failed: {write_redo(run_dir)}, then the same {kind}, repeats {trials}"


def suggest_redo(run_dir: Path, accept_code_change: str, correction: str) -> str:
    """Says how the failed trials are trained once their cause is fixed, as the end of an error.

    Args:
        accept_code_change: the setting of that name, as the user gives it.
        correction: what to do if the cause is a wrong metric, space or argument instead.
    """
    return (
        f"; {correction}; if you fix your code: then {write_redo(run_dir)} opens the failed "
        f"trials, and the same command trains them, with {accept_code_change}"
    )
