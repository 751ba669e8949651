"""The events of a job: a JSON object each, for programs.

Events are found by comparing the stored trials with what was told before. So they are the same
whichever process trained a trial, and on whichever host; nothing is told twice, and nothing that is
stored is left out, also if the command was killed in between.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.storage.attributes import PLANNED_EPOCHS, WORKER
from studyloom.study.failures import outcome, reason_of
from studyloom.study.rows import seconds_spent
from studyloom.views.progress import Progress

KINDS = ("began", "reported", "ended", "best", "control", "halted", "answer", "exit")


@dataclass
class TrialHistory:
    """The events of a trial so far.

    Attributes:
        epoch: the last epoch that was told; -1 for none.
    """

    began: bool = False
    epoch: int = -1
    ended: bool = False


@dataclass
class History:
    """The events of a job so far."""

    trials: dict[tuple[str, int], TrialHistory] = field(
        default_factory=lambda: defaultdict(TrialHistory)
    )
    best: int | None = None
    control: str | None = None
    halted: str | None = None
    answer: Mapping[str, Any] | None = None

    def take(self, event: Mapping[str, Any]) -> None:
        """Takes note of an event that was told."""
        kind = event.get("event")
        if kind in ("began", "reported", "ended"):
            trial = self.trials[str(event.get("stage")), int(event["trial"])]
            trial.began = True
            if kind == "reported":
                trial.epoch = max(trial.epoch, int(event["epoch"]))
            trial.ended |= kind == "ended"
        elif kind == "best":
            self.best = int(event["trial"])
        elif kind == "control":
            self.control = event.get("wish")
        elif kind == "halted":
            self.halted = event.get("reason")
        elif kind == "answer":
            self.answer = event.get("answer")

    @classmethod
    def read(cls, lines: Iterable[str], study_id: str | None) -> "History":
        """Reads the events of an earlier command, from its lines.

        Args:
            lines: of JSON; others, such as half a line of a command that was killed, are passed by.
        """
        history = cls()
        for line in lines:
            try:
                event = json.loads(line)
                if isinstance(event, dict) and event.get("id") == study_id:
                    history.take(event)
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
        return history


def new_events(history: History, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yields the new events since the last time, and takes note of them."""
    for event in _find_events(history, progress):
        history.take(event)
        yield event


def _find_events(history: History, progress: Progress) -> Iterator[dict[str, Any]]:
    for title, trials in progress.trials.items():
        for trial in trials:
            yield from _of_trial(title, trial, history.trials[title, trial.number])
    best = progress.search.best
    if best is not None and best.number != history.best:
        yield {"event": "best", "stage": "search"} | _ended(best)
    if progress.control != history.control:
        yield {"event": "control", "wish": progress.control}
    if progress.halted is not None and progress.halted != history.halted:
        yield {"event": "halted", "reason": progress.halted}
    if progress.answer is not None and progress.answer != history.answer:
        yield {"event": "answer", "answer": dict(progress.answer)}


def _of_trial(title: str, trial: FrozenTrial, told: TrialHistory) -> Iterator[dict[str, Any]]:
    ended = trial.state.is_finished()
    if told.ended or trial.datetime_start is None:
        return
    same = {"stage": title, "trial": trial.number}
    # Between its claim and its first commit a trial has no parameters yet.
    if not told.began and (trial.params or trial.intermediate_values or ended):
        worker = trial.user_attrs.get(WORKER)
        yield {"event": "began"} | same | {"params": trial.params, "worker": worker}
    for epoch, value in sorted(trial.intermediate_values.items()):
        if epoch > told.epoch:
            of = {"epochs": trial.user_attrs.get(PLANNED_EPOCHS)}
            yield {"event": "reported"} | same | {"epoch": epoch, "value": value} | of
    if ended:
        yield {"event": "ended", "stage": title} | _ended(trial)


def _ended(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": outcome(trial),
        "value": None if not trial.values else trial.values[0],
        "values": trial.values,
        "params": trial.params,
        "seconds": seconds_spent(trial),
        "reason": reason_of(trial),
    }


def write_event(event: Mapping[str, Any], study: str, study_id: str | None) -> str:
    """Formats an event as one line of JSON; what is not finite is null."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    document = {"event": event["event"], "at": at, "study": study, "id": study_id, **event}
    return json.dumps(finite(document), allow_nan=False, default=str) + "\n"


def finite(value: Any) -> Any:
    """Replaces what is not finite in nested mappings and lists by null, which JSON can say."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
