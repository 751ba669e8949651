"""The events of a job: a JSON object each, for programs.

Events are found by comparing the stored trials with what was told before. So they are the same
whichever process trained a trial, and on whichever host; nothing is told twice, and nothing that is
stored is left out, also if the command was killed in between.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.storage.attributes import PLANNED_EPOCHS, WORKER
from studyloom.study.failures import outcome, reason_of
from studyloom.study.rows import seconds_spent
from studyloom.study.stored_study import value_of
from studyloom.views.progress import Progress

KINDS = ("began", "reported", "ended", "best", "control", "halted", "answer", "exit")


OF_TRIALS = ("began", "reported", "ended")
# What an event of the job tells; it is told again when this has changed.
TOLD = {"best": "trial", "control": "wish", "halted": "reason", "answer": "answer"}


def _key(event: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(event.get(name) for name in ("event", "stage", "trial", "epoch"))


@dataclass
class History:
    """The events so far: those of trials by key, and the last of each kind of the whole job."""

    trials: set[tuple[Any, ...]] = field(default_factory=set)
    last: dict[str, Any] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        """Takes note of an event that was told."""
        if (kind := event["event"]) in OF_TRIALS:
            self.trials.add(_key(event))
        elif kind in TOLD:
            self.last[kind] = event[TOLD[kind]]

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
    for event in [*_of_trials(history, progress), *_of_job(history, progress)]:
        history.take(event)
        yield event


def _of_trials(history: History, progress: Progress) -> Iterator[dict[str, Any]]:
    for title, trials in progress.trials.items():
        for trial in trials:
            if ("ended", title, trial.number, None) not in history.trials:
                for event in _of_trial(trial):
                    told = {"event": event.pop("event"), "stage": title, **event}
                    if _key(told) not in history.trials:
                        yield told


def _of_trial(trial: FrozenTrial) -> Iterator[dict[str, Any]]:
    """Yields all that has happened to a trial."""
    ended = trial.state.is_finished()
    # Between its claim and its first commit a trial has no parameters yet.
    if trial.datetime_start is None or not (trial.params or trial.intermediate_values or ended):
        return
    worker = trial.user_attrs.get(WORKER)
    yield {"event": "began", "trial": trial.number, "params": trial.params, "worker": worker}
    epochs = trial.user_attrs.get(PLANNED_EPOCHS)
    for epoch, value in sorted(trial.intermediate_values.items()):
        reported = {"trial": trial.number, "epoch": epoch, "value": value, "epochs": epochs}
        yield {"event": "reported", **reported}
    if ended:
        yield {"event": "ended", **_ended(trial)}


def _of_job(history: History, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yields what has changed of the job; only of a wish it is told that it is no more."""
    last, best = history.last, progress.search.best
    if best is not None and best.number != last.get("best"):
        yield {"event": "best", "stage": "search", **_ended(best)}
    if progress.control != last.get("control"):
        yield {"event": "control", "wish": progress.control}
    if progress.halted is not None and progress.halted != last.get("halted"):
        yield {"event": "halted", "reason": progress.halted}
    if progress.answer is not None and progress.answer != last.get("answer"):
        yield {"event": "answer", "answer": dict(progress.answer)}


def _ended(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": outcome(trial),
        "value": value_of(trial),
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
