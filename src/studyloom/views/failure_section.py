"""The section of the report about the trials that failed."""

from collections.abc import Iterable, Iterator, Sequence

from optuna.trial import FrozenTrial

from studyloom.storage.failures import count_failures
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.views import page
from studyloom.views.charts import Block

MOST_MESSAGES = 10  # of one kind of failure


def render_failures(stored: StoredStudy, *, opens_traceback: bool = False) -> page.Section:
    """Renders the failures; the section is absent if there are none.

    Args:
        opens_traceback: whether the traceback of the most frequent failure is shown at once.
    """
    failures: list[Block] = [*_render_failures(stored.trials(), opens_traceback=opens_traceback)]
    if not failures:
        failures = [page.Absent("No trial has failed.")]
    return page.make_section("failures", failures)


def _render_failures(
    trials: Sequence[FrozenTrial], *, opens_traceback: bool
) -> Iterator[page.Part]:
    """Yields the failures by kind, the most frequent first.

    Each message has its trials and one of their tracebacks.
    """
    for failure in count_failures(trials):
        trials_by_message = [*failure.by_reason().items()]
        blocks: list[Block] = []
        for message, failed_trials in trials_by_message[:MOST_MESSAGES]:
            numbers = ", ".join(str(trial.number) for trial in failed_trials[:MOST_MESSAGES])
            if len(failed_trials) > MOST_MESSAGES:
                numbers += ", …"
            blocks.append(page.Paragraph(message, "bad"))
            blocks.append(page.Paragraph(f"trial {numbers}", "quiet"))
            traceback = _find_traceback(failed_trials)
            if traceback is not None:
                blocks.append(page.Folded("traceback", traceback, is_open=opens_traceback))
                opens_traceback = False  # the others stay folded
        further = len(trials_by_message) - MOST_MESSAGES
        if further > 0:
            blocks.append(page.Paragraph(f"and {further} other messages", "quiet"))
        yield page.Part(failure.kind, blocks, f"{failure.count} ×")


def _find_traceback(trials: Iterable[FrozenTrial]) -> str | None:
    """Returns the first traceback that a trial has stored; None if none has."""
    for trial in trials:
        traceback = TrialRecord(trial).traceback
        if traceback is not None:
            return str(traceback)
    return None
