"""The events of a study, as `--events FILE` has them: trials that begin, report, end, and so on.

Events are found by comparing the stored trials with the events so far. An event then does not
depend on the process and host that trained a trial, and is reported exactly once, even if the
command is killed before it could report it.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NotRequired, TypedDict

from optuna.trial import FrozenTrial

from studyloom.json_text import to_json
from studyloom.storage.stored_study import value_of
from studyloom.storage.trial_record import TrialRecord
from studyloom.views.progress import Progress
from studyloom.winner.result import ShortResult
from studyloom.worker.stopping import Request


class Event(TypedDict):
    """The fields of each line of --events FILE.

    An event says that a trial has begun, has reported an epoch, is resumed after its worker died,
    has ended, or is the new best; that another terminal has requested to stop, pause or resume;
    that the study was aborted; that the winner is known; or that the command ends.

    `id` differs between studies of one name. `has_files` is true if a resumed trial has no
    checkpoint, and finds the files that its command has left.
    """

    event: Literal[
        "began", "reported", "resumed", "ended", "best", "control", "halted", "result", "exit"
    ]
    at: str
    study: str
    id: str | None
    stage: NotRequired[Literal["search", "re-evaluation", "ablation", "final-training"]]
    trial: NotRequired[int]
    params: NotRequired[dict[str, Any]]
    worker: NotRequired[str | None]
    epoch: NotRequired[int | None]
    deaths: NotRequired[int]
    has_files: NotRequired[bool]
    epochs: NotRequired[int | None]
    state: NotRequired[Literal["complete", "pruned", "failed"]]
    value: NotRequired[float | None]
    values: NotRequired[list[float | None] | None]
    seconds: NotRequired[float | None]
    request: NotRequired[Request | None]
    reason: NotRequired[str | None]
    result: NotRequired[ShortResult]
    exit_code: NotRequired[int]


# The events of the study itself, not of a trial, each with its field. If the value of the field
# differs from the last event of this kind, the event is reported again.
STUDY_EVENTS = {"best": "trial", "control": "request", "halted": "reason", "result": "result"}
# The last epoch of a trial that has not begun, has begun and reported none, or has ended. The first
# two are below every epoch, the last is above.
NOT_BEGUN = -math.inf
NO_EPOCH = -1.0
ENDED = math.inf


@dataclass
class History:
    """The events so far, by which those of a later moment are found.

    Attributes:
        epochs: the last epoch of each trial, by stage and number: NO_EPOCH before the first, and
            ENDED after the end.
        deaths: how often the worker of each trial has died, by stage and number.
        last: the value of the last event of each kind that is in STUDY_EVENTS.
    """

    epochs: dict[tuple[str, int], float] = field(default_factory=dict)
    deaths: dict[tuple[str, int], int] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)

    def record(self, event: Mapping[str, Any]) -> None:
        """Records an event, so that `record_new` does not yield it again.

        Raises:
            KeyError, TypeError or ValueError: it has not the fields of an event.
        """
        kind = event["event"]
        if kind in STUDY_EVENTS:
            self.last[kind] = event[STUDY_EVENTS[kind]]
            return
        if kind == "exit":  # each command has one, and `record_new` yields none
            return
        trial = (str(event["stage"]), int(event["trial"]))
        if kind == "resumed":
            self.deaths[trial] = int(event["deaths"])
            return
        if kind == "began":
            epoch = NO_EPOCH
        elif kind == "ended":
            epoch = ENDED
        else:
            epoch = float(event["epoch"])
        # NO_EPOCH is below every epoch, and ENDED is above.
        self.epochs[trial] = max(epoch, self.epochs.get(trial, NO_EPOCH))

    @classmethod
    def read(cls, lines: Iterable[str], study_id: str | None) -> "History":
        """Reads the events of an earlier command, from its lines.

        Args:
            lines: lines of JSON; others, such as the half line of a killed command, are skipped.
        """
        history = cls()
        for line in lines:
            try:
                event = json.loads(line)
                if isinstance(event, dict) and event.get("id") == study_id:
                    history.record(event)
            except (ValueError, TypeError, KeyError, RecursionError):
                continue  # it is not an event
        return history

    def record_new(self, progress: Progress) -> Iterator[dict[str, Any]]:
        """Yields the events since the last call, and records them."""
        events: list[dict[str, Any]] = []
        for stage, trials in progress.trials.items():
            for trial in trials:
                events += self._find_trial_events(stage, trial)
        events += self._find_study_events(progress)
        for event in events:
            self.record(event)
            yield event

    def _find_trial_events(self, stage: str, trial: FrozenTrial) -> Iterator[dict[str, Any]]:
        """Yields the events of a trial that are not recorded, in the order in which they came."""
        # NOT_BEGUN is below every epoch, and ENDED is above.
        last_epoch = self.epochs.get((stage, trial.number), NOT_BEGUN)
        if last_epoch == ENDED or trial.datetime_start is None:
            return
        has_ended = trial.state.is_finished()
        # A worker claims a trial before it stores its hyperparameters; the trial begins with them.
        has_content = bool(trial.params or trial.intermediate_values)
        if not has_content and not has_ended:
            return
        record = TrialRecord(trial)
        subject = {"stage": stage, "trial": trial.number}
        if last_epoch == NOT_BEGUN:
            yield {"event": "began", **subject, "params": trial.params, "worker": record.worker}
        resumed = record.resumed
        if resumed and resumed["deaths"] > self.deaths.get((stage, trial.number), 0):
            resumption = {"epoch": resumed["epoch"], "deaths": resumed["deaths"]}
            if resumed.get("has_files"):
                resumption["has_files"] = True
            yield {"event": "resumed", **subject, **resumption, "reason": resumed["death"]}
        for epoch, value in sorted(trial.intermediate_values.items()):
            if epoch > last_epoch:
                report = {"epoch": epoch, "value": value, "epochs": record.steps_planned}
                yield {"event": "reported", **subject, **report}
        if has_ended:
            yield {"event": "ended", **subject, **_describe_end(trial)}

    def _find_study_events(self, progress: Progress) -> Iterator[dict[str, Any]]:
        """Yields an event if the best trial, the request to stop, the halt or the result changed.

        When a request to stop or pause is withdrawn, the event has None as its request. Nothing is
        reported when a best trial, a halt or a result is gone.
        """
        last = self.last
        best = progress.search.best
        if best is not None and best.number != last.get("best"):
            yield {"event": "best", "stage": "search", **_describe_end(best)}
        if progress.control != last.get("control"):
            yield {"event": "control", "request": progress.control}
        if progress.halted is not None and progress.halted != last.get("halted"):
            yield {"event": "halted", "reason": progress.halted}
        if progress.result is not None and progress.result != last.get("result"):
            yield {"event": "result", "result": dict(progress.result)}


def _describe_end(trial: FrozenTrial) -> dict[str, Any]:
    """Returns the fields of an event about a trial that has ended."""
    record = TrialRecord(trial)
    return {
        "trial": trial.number,
        "state": record.outcome,
        "value": value_of(trial),
        "values": trial.values,
        "params": trial.params,
        "seconds": record.seconds,
        "reason": record.reason,
    }


def format_event(event: Mapping[str, Any], study: str, study_id: str | None) -> str:
    """Formats an event as one line of JSON, with its line break."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    document = {"event": event["event"], "at": at, "study": study, "id": study_id, **event}
    return f"{to_json(document)}\n"
