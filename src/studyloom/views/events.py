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

from studyloom.storage.attributes import PLANNED_EPOCHS, RESUMED, WORKER
from studyloom.study.failures import outcome, reason_of
from studyloom.study.stored_study import seconds_spent, value_of
from studyloom.views.progress import Progress

# What an event of the job tells; it is told again when this has changed.
TOLD = {"best": "trial", "control": "wish", "halted": "reason", "answer": "answer"}


@dataclass
class History:
    """The events so far: of each trial the last epoch, and how many deaths of workers it outlived.

    The epoch is -1 before the first, and infinity after the end. Also the last event of each kind
    of TOLD.
    """

    epochs: dict[tuple[str, int], float] = field(default_factory=dict)
    deaths: dict[tuple[str, int], int] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        """Takes note of an event that was told."""
        if (kind := event["event"]) in TOLD:
            self.last[kind] = event[TOLD[kind]]
        elif kind != "exit":
            key = str(event["stage"]), int(event["trial"])
            if kind == "resumed":
                self.deaths[key] = int(event["deaths"])
                return
            epoch = {"began": -1.0, "ended": math.inf}.get(kind) or float(event["epoch"])
            self.epochs[key] = max(epoch, self.epochs.get(key, -1.0))

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
    for title, trial in ((title, t) for title, own in progress.trials.items() for t in own):
        told = history.epochs.get((title, trial.number))
        ended, attributes = trial.state.is_finished(), trial.user_attrs
        # Between its claim and its first commit a trial has no parameters yet.
        known = trial.params or trial.intermediate_values or ended
        if told == math.inf or trial.datetime_start is None or not known:
            continue
        same = {"stage": title, "trial": trial.number}
        if told is None:
            worker = attributes.get(WORKER)
            yield {"event": "began", **same, "params": trial.params, "worker": worker}
        resumed = attributes.get(RESUMED)
        if resumed and resumed["deaths"] > history.deaths.get((title, trial.number), 0):
            told_of = {"epoch": resumed["epoch"], "deaths": resumed["deaths"]}
            yield {"event": "resumed", **same, **told_of, "reason": resumed["death"]}
        epochs = attributes.get(PLANNED_EPOCHS)
        for epoch, value in sorted(trial.intermediate_values.items()):
            if told is None or epoch > told:
                said = {"epoch": epoch, "value": value, "epochs": epochs}
                yield {"event": "reported", **same, **said}
        if ended:
            yield {"event": "ended", **same, **_ended(trial)}


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
