"""What a page shows of one trial beside its row of the table: its end, its times, its log."""

import math
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.storage.attributes import (
    MADE,
    PLANNED_EPOCHS,
    RESUMED,
    REUSED,
    RUNGS,
    TIMES,
    TRACEBACK,
    WORKER,
)
from studyloom.study.failures import NO_REASON, outcome, reason_of, resumed_words
from studyloom.study.stored_study import epochs_of
from studyloom.text import format_value, shorten_end
from studyloom.views import figures
from studyloom.views.charts import Point
from studyloom.views.figures import Curve
from studyloom.winner.wording import plural
from studyloom.worker_log import read_end

MOST_LINES, LONGEST = 40, 300  # of a trial's log, and the characters of one
MOST_LOGGED = 60_000  # characters of all logs of a page
MOST_LOGS, TAIL = 64, 2**18  # worker logs that are read, and the bytes at the end of each
MOST_POINTS = 24  # of a curve that no figure draws
LATE = timedelta(seconds=10)  # a log may tell of an end so much later than the database


def details(trial: FrozenTrial, log: str, curve: Curve) -> dict[str, Any]:
    """Returns what a page shows of a trial, empty values left out.

    Args:
        curve: its learning curve, if that is in no figure.
    """
    attrs, began = trial.user_attrs, trial.datetime_start
    spent = {kind: s for kind, s in attrs.get(TIMES, {}).items() if 0 < s < math.inf}
    told = {
        "end": ending(trial),
        "facts": {
            "began": "" if began is None else f"{began:%Y-%m-%d %H:%M:%S}",
            "worker": str(attrs.get(WORKER, "")),
        },
        "times": {kind: float(f"{seconds:.3g}") for kind, seconds in spent.items()},
        "traceback": str(attrs.get(TRACEBACK, "")),
        "log": log,
        "curve": thinned(curve),
        "made": MADE in attrs,
    }
    return {name: value for name, value in told.items() if value}


def ending(trial: FrozenTrial) -> str:
    """Words how a trial ended, and why, or how far it is."""
    attrs, kind, done = trial.user_attrs, outcome(trial), epochs_of(trial)
    planned = attrs.get(PLANNED_EPOCHS)
    epochs = f"{done} of {plural(planned, 'epoch')}" if planned else plural(done, "epoch")
    if kind != "complete" and (last := figures.finite_curves([trial]).get(trial.number)):
        epochs += f", at {format_value(last[-1][1])}"
    rung = ": it waited at a rung, and others were promoted" if attrs.get(RUNGS) else ""
    words = {
        "failed": f"It failed after {epochs}: {reason_of(trial) or NO_REASON}",
        "pruned": f"It was pruned after {epochs}{rung}.",
        "paused": f"It is paused after {epochs}, until it is promoted or the search has ended.",
        "running": f"It runs, and has trained {epochs}.",
        "waiting": "No worker has begun it yet.",
    }.get(kind, f"It is complete, after {epochs}.")
    if REUSED in attrs:
        words += f" It was not trained: its result is that of {attrs[REUSED]}."
    if resumed := attrs.get(RESUMED):
        words += f" T{resumed_words(trial.number, resumed)[1:]}."
    return words


def thinned(curve: Curve) -> list[Point]:
    """Returns some points of a learning curve, the last among them."""
    step = math.ceil(len(curve) / MOST_POINTS) or 1
    return [(epoch, float(f"{value:.4g}")) for epoch, value in curve[::-step][::-1]]


def read_logs(run_dir: Path, trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """Returns the last lines that trials have written, by number: of each, and of all, not many.

    A command has a log of its own for each trial. A worker has one log, of which a trial gets what
    is between its end and that of the trial before it. What failed comes first, then the latest.
    """
    texts = dict(_written(run_dir, trials))
    failed = {trial.number for trial in trials if outcome(trial) == "failed"}
    kept, left = dict[int, str](), MOST_LOGGED
    for number in sorted(texts, key=lambda number: (number not in failed, -number)):
        lines = [shorten_end(line, LONGEST) for line in texts[number][-MOST_LINES:]]
        text = "\n".join(lines)
        left -= len(text)
        if left < 0:
            break
        kept[number] = text
    return kept


def _written(run_dir: Path, trials: Sequence[FrozenTrial]) -> Iterator[tuple[int, list[str]]]:
    try:
        folder = run_dir.resolve()
        files = [path for path in (folder / "logs").glob("*.log") if _is_within(path, folder)]
        files.sort(key=lambda path: -path.stat().st_mtime)
    except OSError:
        return
    ends = {trial.number: trial.datetime_complete for trial in trials}
    own = {f"trial-{number}.log": number for number in ends}
    for path in [path for path in files if not path.name.startswith("trial-")][:MOST_LOGS]:
        lines: list[str] = []
        for line in _tail(path):
            lines.append(line)
            if (end := read_end(line)) is None:
                continue
            (number, said), own_lines, lines = end, lines, []
            ended = ends.get(number)
            # Another stage has a trial of this number too. What says but how it ended says nothing.
            if ended is not None and abs(said - ended) < LATE and len(own_lines) > 1:
                yield number, own_lines
    for path in files:
        if path.name in own and (lines := _tail(path)):
            yield own[path.name], lines


def _is_within(path: Path, folder: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(folder)


def _tail(path: Path) -> list[str]:
    """Returns the last lines of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            return file.read(TAIL).decode(errors="replace").splitlines()
    except OSError:
        return []
