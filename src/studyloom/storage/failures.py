"""The limits of trials, and why trials failed, for people and for the sampler."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.storage.attributes import FAILURE, REASON, TRACEBACK
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import mask_passwords

DIVERGED = "diverged"
OUT_OF_MEMORY = "out_of_memory"
TIMEOUT = "timeout"
CRASHED = "crashed"
ERROR = "error"
INFEASIBLE = "infeasible"  # the network costs more than it may
UNDEFINED = "undefined"  # the metric is not a finite number
NO_REASON = "no reason is stored"
UNEXPLAINED = "unexplained"  # nothing is stored, as when another program ended the trial
# The sampler is to avoid a region where training diverges or does not fit. Samplers look only at
# complete and pruned trials, so these end as pruned with a broken constraint: from trials in the
# state FAIL the sampler would learn nothing.
TEACHES = (DIVERGED, OUT_OF_MEMORY, INFEASIBLE)
# They have used up their attempts or their time, so that no candidate is trained again after one.
USED_UP = (CRASHED, TIMEOUT)
CODE_ERRORS = (ERROR, UNDEFINED)  # in the user's code: the study stops if all trials end this way
HALTING = (*CODE_ERRORS, CRASHED)  # of which `max_failures` in a row for one reason halt the study


@dataclass(frozen=True)
class Limits:
    """The limits of a trial and of a study.

    Args:
        lease: seconds for which a worker keeps its trial without a sign of life.
        trial_timeout: seconds that a trial may take; None for no limit.
        max_attempts: how many workers a trial may crash before it has failed.
        max_failures: trials in a row that may fail for the same reason before the study stops; in a
            search in rounds they are counted by segment, see `rounds`.
        repeats: whether several trials may have the same configuration.
    """

    lease: float = 60.0
    trial_timeout: float | None = None
    max_attempts: int = 3
    max_failures: int = 5
    repeats: bool = True


@dataclass(frozen=True)
class Failure:
    """Why one trial failed. Its words have no passwords, since they are stored and printed.

    Args:
        reason: for people, as the error says it; mostly one line.
        details: the end of the traceback, or the last lines of a command; empty unless the kind is
            ERROR.
    """

    kind: str
    reason: str
    details: str = ""

    def __post_init__(self) -> None:
        for name in ("reason", "details"):
            object.__setattr__(self, name, mask_passwords(getattr(self, name)))

    @classmethod
    def read(cls, trial: FrozenTrial) -> "Failure | None":
        """Reads the failure that a trial stored, without its details; None if it stored none."""
        record = TrialRecord(trial)
        return None if record.failure is None else cls(str(record.failure), str(record.reason))

    def attributes(self) -> dict[str, str]:
        """Returns the attributes with which a trial stores its failure."""
        details = {TRACEBACK: self.details} if self.details else {}
        return {FAILURE: self.kind, REASON: self.reason, **details}


@dataclass(frozen=True)
class FailureCount:
    """The failed trials of one kind, by number; at least one."""

    kind: str
    trials: Sequence[FrozenTrial]

    @property
    def count(self) -> int:
        return len(self.trials)

    @property
    def first_reason(self) -> str:
        """The reason that the first of the trials stored."""
        return TrialRecord(self.trials[0]).reason or NO_REASON

    def by_reason(self) -> dict[str, list[FrozenTrial]]:
        """Returns the trials by their reason, in the order in which the reasons first occurred."""
        trials = defaultdict[str, list[FrozenTrial]](list)
        for trial in self.trials:
            trials[TrialRecord(trial).reason or NO_REASON].append(trial)
        return trials


def count_failures(trials: Sequence[FrozenTrial]) -> list[FailureCount]:
    """Counts the failed trials by kind, the most frequent kind first."""
    failed = defaultdict[str, list[FrozenTrial]](list)
    for trial in trials:
        record = TrialRecord(trial)
        if record.outcome == "failed":
            failed[str(record.failure or UNEXPLAINED)].append(trial)
    counts = (FailureCount(kind, of_kind) for kind, of_kind in failed.items())
    return sorted(counts, key=lambda count: -count.count)


def describe_resumption(
    number: int, resumed: Mapping[str, Any], streams: Sequence[str] = ()
) -> str:
    """Says where a trial resumes by its checkpoint, and how its last worker died.

    Args:
        streams: the names of its streams, which it reads from the start all the same.
    """
    epoch = resumed["epoch"]
    if epoch:
        where = f"resumes after epoch {epoch}"
    elif resumed.get("files"):
        where = "runs its command again, in the same folder"
    else:
        where = "starts again from the beginning"
    words = f"trial {number} {where}, since its worker died: {resumed['death']}"
    if epoch and streams:
        names = ", ".join(streams)
        words += f"; stream {names} starts again, so the value may be another"
    return words
