"""The limits of trials, and why trials failed, for people and for the sampler.

Each failure has a *kind*, which decides what follows from it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.storage.attributes import FAILURE, REASON, TRACEBACK
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import mask_passwords

# The kinds of failures
DIVERGED = "diverged"
OUT_OF_MEMORY = "out_of_memory"
TIMEOUT = "timeout"
CRASHED = "crashed"
ERROR = "error"
INFEASIBLE = "infeasible"  # the network costs more than it may
UNDEFINED = "undefined"  # the metric is not a finite number
NO_REASON = "no reason is stored"
UNEXPLAINED = "unexplained"  # nothing is stored, as when another program ended the trial
# Kinds from which the sampler learns: it is to avoid a region where training diverges or does not
# fit. Samplers look only at complete and pruned trials, so a trial with such a failure ends as
# pruned with a broken constraint: from trials in the state FAIL the sampler would learn nothing.
TEACHING_KINDS = (DIVERGED, OUT_OF_MEMORY, INFEASIBLE)
# Kinds with which a training has used up its attempts or its time, so that it is not tried again.
FINAL_KINDS = (CRASHED, TIMEOUT)
# Kinds of errors in the user's code: the study stops if all trials end this way.
CODE_ERROR_KINDS = (ERROR, UNDEFINED)
# Kinds that halt the study if `max_failures` trials in a row fail for one reason.
HALTING_KINDS = (*CODE_ERROR_KINDS, CRASHED)


@dataclass(frozen=True)
class Limits:
    """The limits of a trial and of a study.

    Attributes:
        lease: Seconds for which a worker keeps its trial without a sign of life.
        trial_timeout: Seconds that a trial may take; None for no limit.
        max_attempts: How many workers a trial may crash before it has failed.
        max_failures: Trials in a row that may fail for the same reason before the study stops; in a
            search in rounds they are counted by segment, see `decisions.rounds`.
        allow_repeats: Whether several trials may have the same configuration.
    """

    lease: float = 60.0
    trial_timeout: float | None = None
    max_attempts: int = 3
    max_failures: int = 5
    allow_repeats: bool = True


@dataclass(frozen=True)
class Failure:
    """Why one trial failed. Its texts have no passwords, since they are stored and printed.

    Attributes:
        kind: The kind of failure, such as DIVERGED.
        reason: The message of the error, mostly one line.
        details: The end of the traceback, or the last lines of a command; empty unless the kind is
            ERROR.
    """

    kind: str
    reason: str
    details: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", mask_passwords(self.reason))
        object.__setattr__(self, "details", mask_passwords(self.details))

    @classmethod
    def read(cls, trial: FrozenTrial) -> "Failure | None":
        """Reads the failure that a trial stored, without its details; None if it stored none."""
        record = TrialRecord(trial)
        if record.failure is None:
            return None
        return cls(str(record.failure), str(record.reason))

    def attributes(self) -> dict[str, str]:
        """Returns the attributes with which a trial stores its failure."""
        attributes = {FAILURE: self.kind, REASON: self.reason}
        if self.details:
            attributes[TRACEBACK] = self.details
        return attributes


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
        trials_by_reason = defaultdict[str, list[FrozenTrial]](list)
        for trial in self.trials:
            reason = TrialRecord(trial).reason or NO_REASON
            trials_by_reason[reason].append(trial)
        return trials_by_reason


def count_failures(trials: Sequence[FrozenTrial]) -> list[FailureCount]:
    """Counts the failed trials by the kind of failure, the most frequent kind first."""
    trials_by_kind = defaultdict[str, list[FrozenTrial]](list)
    for trial in trials:
        record = TrialRecord(trial)
        if record.outcome == "failed":
            kind = str(record.failure or UNEXPLAINED)
            trials_by_kind[kind].append(trial)
    counts = [FailureCount(kind, failed_trials) for kind, failed_trials in trials_by_kind.items()]
    return sorted(counts, key=lambda count: -count.count)


def describe_resumption(
    number: int, resumed: Mapping[str, Any], streams: Sequence[str] = ()
) -> str:
    """Returns a sentence that says where a trial resumes, and how its last worker died.

    Args:
        number: The number of the trial.
        resumed: Its attribute RESUMED: the epoch of its checkpoint, and the death of the worker.
            `has_files` is true if a command trains the trial, and its working folder has files from
            which the command may resume by itself.
        streams: The names of streams of examples that it reads from the start again, since its
            checkpoint does not have their positions.
    """
    epoch = resumed["epoch"]  # None without a checkpoint
    if epoch:
        start = f"resumes after epoch {epoch}"
    elif resumed.get("has_files"):
        start = "runs its command again, in the same folder"
    else:
        start = "starts again from the beginning"
    sentence = f"trial {number} {start}, since its worker died: {resumed['death']}"
    if epoch and streams:
        names = ", ".join(streams)
        sentence += f"; stream {names} starts again, so the value may be another"
    return sentence
