"""The key of every attribute that studyloom stores with a study or a trial, and its value's type.

The keys are part of stored studies: add new ones, but never rename one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NotRequired, TypedDict, TypeVar

import msgspec
from optuna.trial import FrozenTrial

T = TypeVar("T")
Attributes = Mapping[str, Any]  # attributes of a study or trial, by key; their values are JSON
LARGEST = 2**31 - 1  # of an integer in Optuna's tables and ours on PostgreSQL

# Attributes of a study
FORMAT = "format"  # int: of all that is stored with a study and its trials
VERSION = "studyloom"  # str: the version of studyloom that made the study
DEFINITION = "definition"  # dict[str, Any]: the study definition, by config key
HALTED = "halted"  # str | None: why the study has stopped itself
HALTED_AT = "halted_at"  # int: how many segments a search in rounds had when it halted last
BOUNDS = "bounds"  # dict[str, Any]: what ends the search before its budget is spent
EARLY_END = "early_end"  # dict[str, Any] | None: the decision that ended it early, see `early_end`
RULE = "rule"  # str | None: how the winner is chosen, where winner.rule states it
WARM_START = "warm_start"  # list[str]: the earlier studies that gave its first configurations
TEST_USES = "test_uses"  # int: how often the test set was used
CODE_CHANGES = "code_changes"  # list[dict]: accepted ones: what is `changed`, `from` which trial
TESTED = "tested"  # dict[str, Any], of a final training: its test result, as in winner.json
COMMAND = "command"  # dict[str, Any]: what the last command does, when it began and ended
STAGES = "stages"  # dict[str, str]: the studies of the later stages, by title
RESULT = "result"  # dict[str, Any]: the winner and its test, in short, and by which stage
CONTROL = "control"  # str | None: stop or pause, as another terminal requested
SPACE = "space"  # dict[str, Any]: the space and its default values, for proposals
DEFINED = "defined"  # dict[str, str]: the sources of what a notebook or script defines, by name
SAMPLER = "sampler"  # str: what sampler=auto stands for in the study, gp or tpe, decided once
PROPOSAL_TIME = "proposal_time"  # float: processor seconds of a proposal of its Gaussian process
RUNG = "rung"  # int | None: the epoch of its lowest rung, 0 without rungs, None until it is decided
UUID = "uuid"  # str: random, since SQLite gives the id of a deleted study to the next one

STUDY_KEYS = [key for name, key in vars().items() if name.isupper() and isinstance(key, str)]

# Attributes of a trial
SLOT = "slot"  # int: the slot of the ledger that the trial fills; without it, a trial is external
FORMER_SLOT = "former_slot"  # int: the slot that it filled until it was set aside for another trial
WORKER = "worker"  # str: the id of the worker that started it
BASELINE = "baseline"  # True: the trial is the default configuration
ENQUEUED = "enqueued"  # str: the source of a configuration queued before any worker started it
PROPOSED = "proposed"  # dict[str, str]: `by` whom it was proposed, `why`, and a random `id`
EPOCHS = "epochs"  # dict[str, list[float]]: the learning curve, a column for each quantity
JOBS = "jobs"  # list[int], a column of EPOCHS: the number of jobs that each epoch is the mean of
STANDARD_ERROR = "standard_error"  # float, of the value; also a column of EPOCHS, list[float]
# The names of the columns of EPOCHS, besides the quantities that were measured.
COLUMNS = ("number", "value", "seconds", "samples_per_second", JOBS, STANDARD_ERROR)
TIMES = "times"  # dict[str, float]: the worker's seconds by kind
PROCESSOR_TIME = "processor_time"  # float: seconds that processors worked for its workers
PROVENANCE = "provenance"  # dict[str, Any]: from which the trial can be trained again
PAUSED = "paused"  # int | None: the step of the rung at which it waits while no worker has it
PLANNED_EPOCHS = "planned_epochs"  # int: how many epochs it has unless something ends it before
PLANNED_JOBS = "planned_jobs"  # int: instead, how many calls a loop has, for several folds or seeds
STOP_REQUESTED = "stop_requested"  # True: a person or program has asked that the trial ends
RUNGS = "rungs"  # list[int]: the steps of the rungs at which it was paused or promoted
SEGMENTS = "segments"  # list[tuple[int, int | None]]: of its training, see `ledger.Segment`
KEPT = "kept"  # True: its weights, or what its loop kept, are in a file of the run directory
NOT_KEPT = "not_kept"  # list[str]: what of a loop has a state that run.keep was not given
STREAMS = "streams"  # list[str]: the streams of a loop whose position no checkpoint has
WARNINGS = "warnings"  # list[str]: what the command prints about the trial at its end
RESUMED = "resumed"  # dict[str, Any]: the epoch of its checkpoint, and the number of deaths
REPEATS = "repeats"  # int: the failed training of a candidate that it repeats, by its number
REUSED = "reused"  # str: the stage and trial whose result this one has, without a training
FAILURE = "failure"  # str: the class of failure, such as diverged or timeout
REASON = "reason"  # str: the failure, as its error says it, often in one line
TRACEBACK = "traceback"  # str: the last lines of the traceback
# Prefixes of system attributes in which Optuna's CMA-ES keeps a pickle. A forged pickle would run
# code here, so they are not read; the CMA-ES of `decisions.samplers` works without them.
PICKLE_PREFIXES = ("cma:optimizer", "sepcma:optimizer", "cmawm:optimizer")
# The costs of a trial are stored under their names: those of a network, `metrics.COSTS`, and what a
# loop reports, which may have none of these names. float
TRIAL_KEYS = (
    *(SLOT, FORMER_SLOT, WORKER, BASELINE, ENQUEUED, PROPOSED, EPOCHS, STANDARD_ERROR, TIMES),
    *(PROVENANCE, PLANNED_EPOCHS, PAUSED, RUNGS, SEGMENTS, KEPT, NOT_KEPT, RESUMED, REUSED),
    *(PLANNED_JOBS, STREAMS, FAILURE, REASON, TRACEBACK, REPEATS, WARNINGS, PROCESSOR_TIME),
    STOP_REQUESTED,
)
# Attributes that no sampler and no pruner reads; they are most of what a trial stores.
HEAVY_KEYS = (EPOCHS, PROVENANCE, TRACEBACK)


# The types of attributes that are read by name; another program may have stored something else.
class Resumed(TypedDict):
    epoch: int | None
    deaths: int
    death: str | None
    has_files: NotRequired[bool]  # whether there are files of its command, which it runs again


TYPES: dict[str, Any] = {
    **dict.fromkeys((DEFINITION, STAGES, RESULT, PROVENANCE), dict[str, Any]),
    **dict.fromkeys((HALTED, RULE, FAILURE, REASON), str | None),
    **dict.fromkeys((HALTED_AT, TEST_USES, PLANNED_EPOCHS, PLANNED_JOBS, REPEATS), int),
    EPOCHS: dict[str, list[float | int | None]],
    TIMES: dict[str, float | int],
    STANDARD_ERROR: float | int,
    PROCESSOR_TIME: float | int,
    RUNGS: list[int],
    SEGMENTS: list[tuple[int, int | None]],
    STOP_REQUESTED: bool,
    RESUMED: Resumed,
    **dict.fromkeys((NOT_KEPT, STREAMS, WARNINGS), list[str]),
}


def has_attribute_type(key: str, value: object) -> bool:
    """Returns whether a value has the type of its attribute; else it counts as missing."""
    try:
        msgspec.convert(value, TYPES.get(key, Any))
    except msgspec.ValidationError:
        return False
    return True


def parse(stored: object, kind: type[T]) -> T | None:
    """Parses an untrusted stored value as a class; None if it does not fit."""
    try:
        return msgspec.convert(stored, kind)
    except msgspec.ValidationError:
        return None


class Stored(Generic[T]):
    """Reads an attribute of a trial by its key; the default if the trial lacks it.

    Attributes of another type than in TYPES are dropped when the trial is read.
    """

    def __init__(self, key: str, default: T) -> None:
        self.key = key
        self.default = default

    def __get__(self, record: "TrialAttributes", owner: type) -> T:
        value: T | None = record.trial.user_attrs.get(self.key)
        if value is None:
            return self.default
        return value


@dataclass(frozen=True)
class TrialAttributes:
    """Reads the attributes of a worker's trial; a missing one is its default."""

    trial: FrozenTrial

    slot = Stored[int | None](SLOT, None)
    worker = Stored[str | None](WORKER, None)
    failure = Stored[str | None](FAILURE, None)  # its class
    error = Stored[str | None](REASON, None)  # of its failure, in words
    times = Stored[Mapping[str, float]](TIMES, {})
    processor_time = Stored[float | None](PROCESSOR_TIME, None)
    paused = Stored[int | None](PAUSED, None)
    rungs = Stored[Sequence[int]](RUNGS, ())
    planned_epochs = Stored[int | None](PLANNED_EPOCHS, None)
    planned_jobs = Stored[int | None](PLANNED_JOBS, None)
    standard_error = Stored[float | None](STANDARD_ERROR, None)
    resumed = Stored[Resumed | None](RESUMED, None)
    reused = Stored[str | None](REUSED, None)
    repeats = Stored[int | None](REPEATS, None)
    is_stop_requested = Stored[bool](STOP_REQUESTED, False)
    is_kept = Stored[bool](KEPT, False)
    not_kept = Stored[Sequence[str]](NOT_KEPT, ())
    streams = Stored[Sequence[str]](STREAMS, ())
    warnings = Stored[Sequence[str]](WARNINGS, ())
    provenance = Stored[Mapping[str, Any]](PROVENANCE, {})
    traceback = Stored[str | None](TRACEBACK, None)
    proposed = Stored[Any](PROPOSED, None)
    columns = Stored[dict[str, list[Any]]](EPOCHS, {})  # from a rung or the end on

    @property
    def is_baseline(self) -> bool:
        return BASELINE in self.trial.user_attrs

    @property
    def is_given(self) -> bool:
        """Returns whether a user, a program or an earlier study gave its configuration."""
        return self.is_baseline or ENQUEUED in self.trial.user_attrs
