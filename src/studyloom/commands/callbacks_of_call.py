"""The functions that a call of `studyloom.search` gives as `callbacks`, as in Optuna.

Each is called with the study and a trial of its search that has ended. Workers may be other
processes, so the calling process looks at the database, about once a second, and calls them there.
"""

from collections.abc import Callable, Sequence

import optuna
from optuna.trial import FrozenTrial

from studyloom.storage.stored_study import SEARCH, StoredStudy
from studyloom.views.progress import Progress
from studyloom.worker.stopping import Stop, set_control

Callback = Callable[[optuna.Study, FrozenTrial], object]


class CallbackStudy(optuna.Study):
    """The study that callbacks get; its `stop` stops the study of studyloom.

    Args:
        stored: The study in its database.
        request_stop: The stop of the process that has called `search`.
    """

    def __init__(self, stored: StoredStudy, request_stop: Stop) -> None:
        super().__init__(stored.name, stored.storage)
        self._stored = stored
        self._request_stop = request_stop

    def stop(self) -> None:
        """Stops the study wherever it runs, as `studyloom stop` does; the same call resumes it."""
        self._request_stop.request("a callback")
        set_control(self._stored, "stop")  # for workers that another command has started

    def enqueue_trial(self, *_: object, **__: object) -> None:
        """Raises NotImplementedError: a trial beside the budget would never run."""
        raise NotImplementedError(
            "a callback cannot enqueue a trial: set study={'enqueue': [{…}]} before the search, or "
            "propose a configuration by studyloom propose"
        )


class CallbackListener:
    """Calls functions for each trial of the search that ends after `attach`.

    An exception of a function stops the study, and is raised by the call of `search`.

    Attributes:
        functions: The functions, which are called with the study and a trial.
        error: The exception that one of them has raised; None without one.
    """

    def __init__(self, functions: Sequence[Callback], stop: Stop) -> None:
        self.functions = functions
        self.error: Exception | None = None
        self._stop = stop
        self._study: CallbackStudy | None = None
        self._ended_numbers: set[int] = set()

    def attach(self, stored: StoredStudy) -> None:
        """Begins to look at a study; trials that have ended before are left out."""
        self._study = CallbackStudy(stored, self._stop)
        for trial in stored.trials():
            if trial.state.is_finished():
                self._ended_numbers.add(trial.number)

    def __call__(self, progress: Progress) -> None:
        for trial in progress.trials.get(SEARCH, ()):
            if trial.state.is_finished() and trial.number not in self._ended_numbers:
                self._ended_numbers.add(trial.number)
                self._call_for(trial)

    def _call_for(self, trial: FrozenTrial) -> None:
        """Calls each function with a trial, unless one has raised an exception before."""
        assert self._study is not None
        for function in self.functions:
            if self.error is not None:
                return
            try:
                function(self._study, trial)
            except Exception as error:  # whatever the user's code raises
                self.error = error
                self._stop.request("a callback that raised an exception")

    def finish(self, code: int, reason: str | None) -> None:
        """Reports nothing at the end of the call."""
