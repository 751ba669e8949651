"""A very large study with a sample of its trials, since drawing all takes too much memory."""

from dataclasses import dataclass

from optuna.trial import FrozenTrial

from studyloom.storage.stored_study import StoredStudy
from studyloom.views.snapshot import Snapshot
from studyloom.views.trial_values import best_so_far, complete_trials

MOST_TRIALS = 2000  # that are drawn, besides the notable ones; at 100,000, all of them took 22 GB
MOST_RANKED = 100  # trials that are drawn for their value


@dataclass(frozen=True)
class SampledStudy(StoredStudy):
    """A study that shows views only some of its trials.

    Attributes:
        sampled_trials: the trials that views see.
        note: a sentence that says how many of the trials are shown, and which.
    """

    sampled_trials: tuple[FrozenTrial, ...] = ()
    note: str = ""

    def trials(self, *, all_attributes: bool = False) -> list[FrozenTrial]:
        return [*self.sampled_trials]


def sample_trials(
    stored: StoredStudy, snapshot: Snapshot, winner_number: int | None
) -> SampledStudy | None:
    """Samples the trials of a very large study, since drawing all takes too much memory.

    Keeps trials at even distances, and the notable ones.

    Args:
        winner_number: the trial of the winner, which is kept; None without one.

    Returns:
        The study with the sampled trials; None if it is small enough to draw all of its trials.
    """
    trials = stored.trials()
    if len(trials) <= MOST_TRIALS:
        return None
    notable = [*snapshot.front[:MOST_RANKED], *stored.ranked()[:MOST_RANKED]]
    notable += best_so_far(complete_trials(trials), stored.sign)
    for trial in trials:
        if not trial.state.is_finished():
            notable.append(trial)
    for named_trial in (snapshot.best, snapshot.baseline):
        if named_trial is not None:
            notable.append(named_trial)
    numbers = {trial.number for trial in notable}
    if winner_number is not None:
        numbers.add(winner_number)
    for index in range(MOST_TRIALS):
        evenly_spaced = trials[len(trials) * index // MOST_TRIALS]
        numbers.add(evenly_spaced.number)
    sampled = tuple(trial for trial in trials if trial.number in numbers)
    note = (
        f"{len(sampled)} of {len(trials)} trials are shown: {MOST_TRIALS} at even distances, "
        "and those that stand out."
    )
    return SampledStudy(stored.name, stored.storage, stored.optuna, stored.ledger, sampled, note)
