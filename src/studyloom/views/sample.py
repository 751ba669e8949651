"""Which trials a report shows of a study that has very many: a page of all would open nowhere."""

from dataclasses import dataclass, fields
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.study.stored_study import StoredStudy
from studyloom.views.figures.trials import best_so_far, complete_trials
from studyloom.views.snapshot import Snapshot

MOST = 2000  # trials that are shown, apart from those that stand out; at 100 000, all took 22 GB
BEST = 100  # trials that are shown for their value


@dataclass(frozen=True)
class SampledStudy(StoredStudy):
    """A study of which views see some trials.

    Args:
        shown: these trials, by number.
    """

    shown: tuple[FrozenTrial, ...] = ()

    def trials(self) -> list[FrozenTrial]:
        return [*self.shown]


def sample(stored: StoredStudy, snapshot: Snapshot, won: Any) -> tuple[StoredStudy, str]:
    """Takes some trials of a study that has very many: at even distances, and those that stand out.

    Args:
        stored: the study.
        snapshot: the same at this moment.
        won: the number of the winner's trial, if there is one.

    Returns:
        The study, with so many trials; and what is to be said of it, empty if all are shown.
    """
    trials = stored.trials()
    if len(trials) <= MOST:
        return stored, ""
    marked = [snapshot.best, snapshot.baseline, *snapshot.front[:BEST], *stored.ranked()[:BEST]]
    kept = {trial.number for trial in marked if trial is not None} | {won}
    kept |= {trial.number for trial in trials if not trial.state.is_finished()}
    kept |= {trial.number for trial in best_so_far(complete_trials(trials), stored.sign)}
    kept |= {trials[len(trials) * place // MOST].number for place in range(MOST)}
    shown = tuple(trial for trial in trials if trial.number in kept)
    note = (
        f"{len(shown)} of {len(trials)} trials are shown: {MOST} at even distances, the {BEST} "
        "best, each that was the best so far, and those that run."
    )
    known = {field.name: getattr(stored, field.name) for field in fields(StoredStudy)}
    return SampledStudy(**known, shown=shown), note
