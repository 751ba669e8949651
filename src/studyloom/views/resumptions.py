"""Lines about trials that are resumed after their worker has died, while a study runs."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial
from rich.console import Console

from studyloom.storage.failures import describe_resumption
from studyloom.storage.stored_study import SEARCH
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import one_line
from studyloom.views.events import History
from studyloom.views.progress import STAGE_NAMES, Progress
from studyloom.views.terminal_lines import say


class Resumptions:
    """Prints a line for each trial that is resumed after its worker has died, from now on.

    Another line comes first, and once, if loops read streams: iterators over examples that go on
    from epoch to epoch, and whose position no checkpoint keeps.
    """

    def __init__(self, progress: Progress, console: Console) -> None:
        self.console = console
        self._history = History()
        self._streams_shown = False
        for _ in self._history.record_new(progress):
            pass  # past events are not printed

    def __call__(self, progress: Progress) -> None:
        """Prints the trials that were resumed since the last call, and once the loop's streams."""
        if not self._streams_shown:
            self._show_streams(progress)
        for event in self._history.record_new(progress):
            if event["event"] != "resumed":
                continue
            stage = event["stage"]
            prefix = ""
            if stage != SEARCH:
                prefix = f"{STAGE_NAMES.get(stage, stage)}: "
            streams = _list_streams(progress.trials[stage], event["trial"])
            # An event of --json calls the reason what a stored resumption calls the death.
            resumed = {**event, "death": event["reason"]}
            resumption = describe_resumption(event["trial"], resumed, streams)
            say(self.console, f"{prefix}{resumption}")

    def _show_streams(self, progress: Progress) -> None:
        """Prints the streams of the first trial that has some.

        A stream is an iterator over examples that goes on from epoch to epoch, and whose position
        no checkpoint keeps.
        """
        for trials in progress.trials.values():
            for trial in trials:
                streams = TrialRecord(trial).streams
                if streams:
                    names = ", ".join(map(one_line, streams))
                    say(
                        self.console,
                        f"stream {names}: its position is not kept, so that a resumed trial reads "
                        "it from its start and may get another value; create it in each epoch, or "
                        "keep it as run.keep(stream=studyloom.Stream(…))",
                    )
                    self._streams_shown = True
                    return


def _list_streams(trials: Sequence[FrozenTrial], number: int) -> list[str]:
    """Returns the names of a trial's streams: iterators whose position no checkpoint keeps."""
    for trial in trials:
        if trial.number == number:
            return [one_line(name) for name in TrialRecord(trial).streams]
    return []
