"""The sections of the workers: their timeline, and why trials failed."""

from collections.abc import Iterator, Sequence

from optuna.trial import FrozenTrial

from studyloom.storage.attributes import TRACEBACK
from studyloom.study.failures import count_failures
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_value
from studyloom.views.figures.chart import Table
from studyloom.views.figures.timeline import timeline
from studyloom.views.report.blocks import Absent, Block, Folded, Part, Section, Words, drawn
from studyloom.views.sample import MOST
from studyloom.views.snapshot import Snapshot, WorkerStatus
from studyloom.views.terminal import format_parameters

TIMELINE = (
    "Each row is a worker and each bar one of its trials, without its pauses; gaps are time "
    "without a trial. Idle is the share of gaps between the first start and the last end."
)
RUNNING = (
    "What each worker trains at this moment, and the value of the last epoch that it reported."
)
FAILURES = "The trials that failed, by kind of failure, with the messages that they stored."
MOST_MESSAGES = 10  # of one kind of failure


def running_sections(snapshot: Snapshot, trials: Sequence[FrozenTrial]) -> Iterator[Section]:
    """Renders what runs at this moment: each worker's trial, epoch, value and parameters.

    Args:
        snapshot: the study of the stage that runs.
        trials: of the same.
    """
    params = {trial.number: trial.params for trial in trials}
    rows = [
        (
            worker.owner,
            "–" if worker.number is None else worker.number,
            _epoch(worker),
            "–" if worker.value is None else format_value(worker.value),
            "" if worker.alive else "its lease is over",
            "" if worker.number is None else format_parameters(params.get(worker.number, {})),
        )
        for worker in snapshot.workers
    ]
    if rows:
        head = ("worker", "trial", "epoch", snapshot.metric, "", "parameters")
        yield Section("running", "Running now", [Table(head, rows, words=(0, 4, 5))], RUNNING)


def _epoch(worker: WorkerStatus) -> str:
    """Words which epoch a worker has reported, and of how many, if that is known."""
    if worker.epoch is None:
        return "–"
    return f"{worker.epoch}" if worker.epochs is None else f"{worker.epoch} of {worker.epochs}"


def worker_sections(stored: StoredStudy) -> Iterator[Section]:
    """Renders the timeline of the workers, and the failures."""
    trials = stored.trials()
    alive = {
        held.trial_id
        for held in stored.ledger.held()
        if held.trial_id is not None and held.left > 0
    }
    latest = trials[-MOST:]
    some = (
        ""
        if len(latest) == len(trials)
        else f" These are the latest {MOST} of {len(trials)} trials."
    )
    bars = drawn(timeline(latest, alive))
    yield Section("workers", "Workers", [bars], f"{TIMELINE}{some}")
    yield Section("failures", "Failures", [*failures(trials)], FAILURES)


def failures(trials: Sequence[FrozenTrial]) -> Iterator[Block]:
    """Yields the failures by kind, the most frequent first, each message with its trials."""
    counts = count_failures(trials)
    if not counts:
        yield Absent("No trial has failed.")
    for failure in counts:
        reasons = failure.by_reason()
        blocks: list[Block] = []
        for reason, members in [*reasons.items()][:MOST_MESSAGES]:
            blocks += _message(reason, members)
        if len(reasons) > MOST_MESSAGES:
            blocks.append(Words(f"and {len(reasons) - MOST_MESSAGES} other messages", "quiet"))
        yield Part(failure.kind, blocks, f"{failure.count} ×")


def _message(reason: str, trials: Sequence[FrozenTrial]) -> Iterator[Block]:
    """Yields a failure's message, the trials that stored it, and one of their tracebacks."""
    numbers = ", ".join(str(trial.number) for trial in trials[:MOST_MESSAGES])
    numbers += ", …" if len(trials) > MOST_MESSAGES else ""
    yield Words(reason, "bad")
    yield Words(f"trial {numbers}", "quiet")
    tracebacks = (t.user_attrs[TRACEBACK] for t in trials if TRACEBACK in t.user_attrs)
    if (traceback := next(tracebacks, None)) is not None:
        yield Folded("traceback", str(traceback))
