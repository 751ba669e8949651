"""The limits of trials, and why trials failed, for people and for the sampler.

Importing this module imports no torch: `studyloom status` uses it.
"""

import traceback
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.errors import (
    CommandFailed,
    ConfigError,
    Diverged,
    Infeasible,
    TimedOut,
    UndefinedMetric,
)
from studyloom.storage.attributes import FAILURE, REASON, TRACEBACK
from studyloom.study.trial_record import TrialRecord
from studyloom.text import error_text, mask_passwords

TRACEBACK_LINES = 12
# How libraries say that memory ran out, in lower case: PyTorch on CUDA, HIP, MPS, XPU and the CPU,
# cuBLAS, cuDNN and cuFFT, JAX, TensorFlow, C++ and the operating system.
NO_MEMORY = (
    "out of memory",
    "out_of_memory",
    "out_of_device_memory",
    "out_of_host_memory",
    "error_out_of_resources",
    "allocate memory",  # can't, cannot, failed to
    "not enough memory",
    "alloc_failed",
    "allocation_failed",
    "oom when allocating",
    "bad_alloc",
)
# How CUDA, HIP and XPU say that a process can no longer use its GPU, in lower case: each later call
# there raises the same error. Statuses are those of cuBLAS, cuDNN, cuSOLVER, cuSPARSE and hipBLAS.
BROKEN_GPU = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction was encountered",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "not supported on global/shared address space",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "context is destroyed",
    "unhandled cuda error",
    "cuda error: unknown error",
    "device_lost",
    "_status_execution_failed",
    "_status_internal_error",
    "_status_mapping_error",
    "_status_not_initialized",
    "cufft_exec_failed",
    "cufft_internal_error",
)
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


def explain(error: BaseException) -> Failure:
    """Returns the record of an exception that ended a trial."""
    text = error_text(error)
    reason = f"{type(error).__name__}: {text}".removesuffix(": ")
    match error:
        case Diverged():
            return Failure(DIVERGED, text)
        case Infeasible():
            return Failure(INFEASIBLE, text)
        case UndefinedMetric():
            return Failure(UNDEFINED, text)
        case TimedOut():
            return Failure(TIMEOUT, text)
        case _ if ran_out_of_memory(error):
            return Failure(OUT_OF_MEMORY, text if isinstance(error, CommandFailed) else reason)
        case CommandFailed():
            return Failure(ERROR, text, error.output)
        case ConfigError():  # the words say it all
            reason = text
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return Failure(ERROR, reason, "\n".join(lines[-TRACEBACK_LINES:]))


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of a GPU or of the host did not suffice.

    Also the message of a command that failed, which has the last lines that the command printed.
    """
    import torch  # here, because importing this module must not import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = error_text(error).lower()
    return any(words in text for words in NO_MEMORY)


def broken_by(error: BaseException) -> str | None:
    """Returns which error has left this process unable to use its GPU; None if none has.

    The user's code may have met that error and raised another one, such as optuna.TrialPruned. The
    process of a command that failed is another one.
    """
    link: BaseException | None = error
    while link is not None:
        text = error_text(link)
        says_so = any(words in text.lower() for words in BROKEN_GPU)
        if says_so and not ran_out_of_memory(link) and not isinstance(link, CommandFailed):
            return f"{type(link).__name__}: {text}".splitlines()[0]
        link = link.__cause__ or link.__context__
    return None


def gpu_is_lost() -> bool:
    """Whether this process has used a GPU by CUDA or HIP, and can no longer."""
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


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


def resumed_words(number: int, resumed: Mapping[str, Any], streams: Sequence[str] = ()) -> str:
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
