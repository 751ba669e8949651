"""Tells trackers what a study has found, and what its workers have left out."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from studyloom.errors import FileError
from studyloom.extras.trackers import Answer, Feed, Recalling, TrackedStudy
from studyloom.files import digest_below, size_below
from studyloom.study.failures import outcome
from studyloom.study.stored_study import StoredStudy
from studyloom.study.tracking import close, endings, tracked_study
from studyloom.winner.answer import belongs_to, read_answer
from studyloom.winner.stages import Plan

# The files of an answer that a tracker may want, in the order in which they are shown.
FILES = ("winner.yaml", "winner.json", "winner.pt", "model_card.md", "best.yaml", "report.html")

log = logging.getLogger(__name__)


def tell_trackers(trackers: Mapping[str, Recalling], plan: Plan) -> None:
    """Has trackers come up with the database, which takes a minute at most for each of them.

    What a worker had not told when it was killed, or while a tracker was away, is told now.

    Args:
        trackers: by name.
        plan: of the command, which has done what it can.
    """
    if not trackers:
        return
    stored = plan.search.stored
    study = tracked_study(stored, plan.run_dir)
    told = endings(stored, study)
    answer = None if plan.todo() else find_answer(stored, study)
    feeds = [Feed(name, tracker, plan.run_dir, alone=True) for name, tracker in trackers.items()]
    for feed in feeds:
        feed.complete(study, told)
        if answer is not None:
            feed.answer(answer)
    close(feeds)


def find_answer(stored: StoredStudy, study: TrackedStudy) -> Answer:
    """Returns what a study has found: its winner, or its best trial if none was chosen.

    Args:
        stored: the study of the search.
        study: the same, for trackers.
    """
    trials = stored.trials()
    counts = Counter(outcome(trial) for trial in trials)
    values = {f"trials.{state}": float(count) for state, count in sorted(counts.items())}
    written = read_answer(study.run_dir)
    names: tuple[str, ...] = FILES
    if written is not None and belongs_to(written, stored):
        number, found = written["winner"]["trial"], _values(written)
    else:
        names = ("best.yaml", "report.html")
        best = next(iter(stored.ranked()), None)
        number = None if best is None else best.number
        found = {}
    trial = next((trial for trial in trials if trial.number == number), None)
    for goal, value in zip(stored.goals, (trial and trial.values) or (), strict=False):
        values[f"search.{goal.name}"] = value
    values |= found
    paths = {name: study.run_dir / name for name in names if _is_there(study.run_dir, name)}
    params = {} if trial is None else dict(trial.params)
    said = json.dumps(
        [number, params, values, _digests(study.run_dir, paths)], sort_keys=True, default=str
    )
    digest = hashlib.sha256(said.encode()).hexdigest()
    return Answer(study, number, params, values, paths, digest)


def _values(written: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of winner.json: of the winner and the baseline, fresh and tested."""
    test = written.get("test") or {}
    found = {
        "fresh.mean": written["winner"].get("mean"),
        "test.mean": test.get("winner", {}).get("mean"),
        "test.baseline": test.get("baseline", {}).get("mean"),
    }
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _is_there(run_dir: Path, name: str) -> bool:
    """Whether a file is there; a link, which may lead to any file of the user's, is none."""
    try:
        size_below(run_dir, name)
    except FileNotFoundError:
        return False
    except FileError as error:
        log.warning("track: %s is left out: %s", name, error)
        return False
    return True


def _digests(run_dir: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the digests of the files of an answer; a report is made anew from the same."""
    return {name: digest_below(run_dir, name) for name in names if name != "report.html"}
