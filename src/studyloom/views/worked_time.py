"""The time that workers spent on trials."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from optuna.trial import FrozenTrial

from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord


@dataclass(frozen=True)
class Period:
    """A period of time, such as the one in which a trial was trained."""

    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        """The length of the period."""
        return (self.end - self.start).total_seconds()


def find_period(trials: Sequence[FrozenTrial]) -> Period | None:
    """Returns the period from the start of the first of some trials to the end of the last.

    It is None before a trial has begun and one has ended.
    """
    starts = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    if not starts or not ends:
        return None
    return Period(min(starts), max(ends))


def collect_trials_of_stages(stored: StoredStudy) -> list[FrozenTrial]:
    """Returns the trials of the search, and the trainings of the later stages."""
    trials = [*stored.trials()]
    for stage in stored.later_stages():
        trials += stored.storage.get_all_trials(stage.study._study_id, deepcopy=False)
    return trials


def sum_worked_seconds(trials: Iterable[FrozenTrial]) -> float:
    """Returns the seconds that workers spent on trials, without their start-up.

    A reused training took no time.
    """
    durations = []
    for trial in trials:
        record = TrialRecord(trial)
        if record.reused is None:
            for kind, seconds in record.times.items():
                if kind != "start-up":
                    durations.append(float(seconds))
    return sum(durations)
