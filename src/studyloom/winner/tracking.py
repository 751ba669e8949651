"""The findings of a study, as trackers are given them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from studyloom.study.failures import outcome
from studyloom.study.stored_study import StoredStudy
from studyloom.study.tracking import TrackedResult, Tracker, project, track_study
from studyloom.winner.result import belongs_to, read_result

# The files of an answer that a tracker may want, in the order in which they are shown.
FILES = ("winner.yaml", "winner.json", "winner.pt", "model_card.md", "best.yaml", "report.html")


def track_result(stored: StoredStudy, run_dir: Path) -> TrackedResult:
    """Returns the answer of a study: its winner, or its best trial if none was chosen."""
    study, trials = track_study(stored, run_dir), stored.trials()
    counts = Counter(outcome(trial) for trial in trials)
    values = {f"trials.{state}": float(count) for state, count in sorted(counts.items())}
    names: tuple[str, ...] = FILES
    number: int | None = None
    written = read_result(run_dir)
    if written is not None and belongs_to(written, stored):
        number, test = written.winner.trial, written.test
        found = {
            "fresh.mean": written.winner.mean,
            "test.mean": test.winner.mean if test else None,
            "test.baseline": test.baseline.mean if test and test.baseline else None,
        }
    else:
        names = ("best.yaml", "report.html")
        best = next(iter(stored.ranked()), None)
        number, found = None if best is None else best.number, {}
    chosen = next((trial for trial in trials if trial.number == number), None)
    for goal, value in zip(stored.goals, (chosen and chosen.values) or (), strict=False):
        values[f"search.{goal.name}"] = value
    values |= {name: float(value) for name, value in found.items() if value is not None}
    paths = {name: study.run_dir / name for name in names if (study.run_dir / name).is_file()}
    params = {} if chosen is None else dict(chosen.params)
    return TrackedResult(study, number, params, values, paths)


def update_trackers(
    stored: StoredStudy, trackers: Mapping[str, Tracker], run_dir: Path, *, ended: bool
) -> None:
    """Brings trackers up to the database, with the answer if the command has `ended` its work."""
    project(stored, trackers, run_dir, track_result(stored, run_dir) if ended else None)
