"""The functions that a call of `studyloom.search` gives as `callbacks`, as in Optuna.

Each is called with the study and a trial of its search that has ended. Workers may be other
processes, so the calling process looks at the database, about once a second, and calls them there.
"""

from collections.abc import Callable, Sequence

import optuna
from optuna.trial import FrozenTrial

from studyloom.storage.stored_study import SEARCH, StoredStudy
from studyloom.views.progress import Progress
from studyloom.worker.stopping import Stop

Callback = Callable[[optuna.Study, FrozenTrial], object]


class CallbackStudy(optuna.Study):
    """The study that callbacks get; its `stop` stops the study of studyloom.

    Args:
        stored: The study in its database.
        request_stop: The stop of the process that has called `search`.
    """

    def __init__(self, stored: StoredStudy, request_stop: Stop) -> None:
        super().__init__(stored.name, stored.storage)
        self._request_stop = request_stop

    def stop(self) -> None:
        """Stops all workers of the study, as `studyloom stop`; the same call resumes it."""
        self._request_stop.request("a callback")


class CallbackListener:
    """Calls the callbacks for each trial of the search that ends from now on.

    An exception of a callback stops the study, and is raised by the call of `search`.

    Attributes:
        error: The exception that a callback has raised; None without one.
    """

    def __init__(self, callbacks: Sequence[Callback], stored: StoredStudy, stop: Stop) -> None:
        self.error: Exception | None = None
        self._callbacks = callbacks
        self._stop = stop
        self._study = CallbackStudy(stored, stop)
        self._ended_numbers: set[int] = set()
        for trial in stored.trials():
            if trial.state.is_finished():
                self._ended_numbers.add(trial.number)

    def __call__(self, progress: Progress) -> None:
        for trial in progress.trials.get(SEARCH, ()):
            if trial.state.is_finished() and trial.number not in self._ended_numbers:
                self._ended_numbers.add(trial.number)
                self._call_for(trial)

    def _call_for(self, trial: FrozenTrial) -> None:
        """Calls each callback with a trial, unless one has raised an exception before."""
        for callback in self._callbacks:
            if self.error is not None:
                return
            try:
                callback(self._study, trial)
            except Exception as error:  # whatever the user's code raises
                self.error = error
                self._stop.request("a callback that raised an exception")

    def finish(self, code: int, reason: str | None) -> None:
        """Reports nothing at the end of the call."""
