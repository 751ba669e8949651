"""What a command has done with each trial that its workers have ended."""

from collections.abc import Callable, Sequence

from optuna.trial import FrozenTrial

from studyloom.config.study_config import StudyConfig
from studyloom.storage.stored_study import StoredStudy


class TrialCallback:
    """A callback that gets the trials of a search, such as one that writes them to trackers.

    A command makes it from its config, as each of its workers does. It must neither raise nor take
    time, since training waits for it.
    """

    def __call__(self, stored: StoredStudy, trial: FrozenTrial) -> None:
        """Takes a trial that has ended, in the process of the worker that ran it."""

    def report(self, stored: StoredStudy, trial_id: int) -> None:
        """Takes a trial of which the worker has just committed a report or a renewed lease.

        Args:
            trial_id: The id of the trial in Optuna's tables.
        """

    def close(self) -> None:
        """Completes what the calls have begun, at the end of the worker."""

    def finish(self, stored: StoredStudy, *, ended: bool) -> None:
        """Completes what workers have left, since they may be killed, at the end of the command.

        Args:
            ended: Whether the study has its result.
        """


# Makes the callbacks of a config; raises ConfigError for all errors in it.
MakeCallbacks = Callable[[StudyConfig], Sequence[TrialCallback]]
