"""TODO views.live."""

import threading
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from studyloom.study.stored_study import StoredStudy, is_stage_name
from studyloom.text import format_duration
from studyloom.views.snapshot import Snapshot, format_trial_values, take_snapshot
from studyloom.views.terminal import workers_table

REFRESH = 0.5  # seconds, on a terminal
LINE_INTERVAL = 5.0  # seconds between plain lines


class Display:
    """Shows a study while the body of a `with` works on it: live on a terminal, else a line every few seconds.

    current: the study that is worked on just now, for a run goes from one to the next.
    """

    def __init__(self, current: Callable[[], StoredStudy], console: Console) -> None:
        self.current = current
        self.console = console
        self._begin(take_snapshot(current()))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Display":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        if not self.console.is_terminal:
            while not self._end.wait(LINE_INTERVAL):
                if (snapshot := self._take()) is not None:
                    self.console.print(Text(self.line(snapshot)), soft_wrap=True)
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while not self._end.wait(REFRESH):
                if (snapshot := self._take()) is not None:
                    live.update(self.render(snapshot), refresh=True)

    def _begin(self, snapshot: Snapshot) -> None:
        self.name, self.done_before, self.started = snapshot.name, snapshot.done, time.monotonic()

    def _take(self) -> Snapshot | None:
        try:
            snapshot = take_snapshot(self.current())
            if snapshot.name != self.name:
                self._begin(snapshot)
            return snapshot
        except (
            Exception
        ):  # a busy or absent database is the workers' affair; the next look may succeed
            return None

    def rest(self, snapshot: Snapshot) -> str:
        """The time that the open slots will take at the pace since this command began on them."""
        done = snapshot.done - self.done_before
        if not done:
            return "ETA –"
        return f"ETA {format_duration((time.monotonic() - self.started) / done * (snapshot.budget - snapshot.done))}"

    def line(self, snapshot: Snapshot) -> str:
        best = (
            f"best {format_trial_values(snapshot.best)} (trial {snapshot.best.number})"
            if snapshot.best
            else "no result yet"
        )
        parts = [
            snapshot.name,
            f"{snapshot.done}/{snapshot.budget}",
            *([] if is_stage_name(snapshot.name) else [best]),
        ]
        return "  ".join([*parts, f"{len(snapshot.workers)} running", self.rest(snapshot)])

    def render(self, snapshot: Snapshot) -> RenderableType:
        width = self.console.width
        return Group(
            live_head(snapshot, self.rest(snapshot), width), workers_table(snapshot, width)
        )


def live_head(snapshot: Snapshot, rest: str, width: int) -> RenderableType:
    """Name, bar, best and time left; in one line if there is room."""
    best = Text("no result yet", style="dim")
    if snapshot.best is not None:
        best = Text(f"best {format_trial_values(snapshot.best)}", style="bold green")
        best.append(f" trial {snapshot.best.number}", style="dim")
    found = (
        [] if is_stage_name(snapshot.name) else [best]
    )  # of what was found already, no trial is best
    name, done = Text(snapshot.name, style="bold"), Text(f"{snapshot.done}/{snapshot.budget}")
    bar = ProgressBar(total=max(1, snapshot.budget), completed=snapshot.done, width=20)
    beside = sum(
        2 + width for width in (20, done.cell_len, *(one.cell_len for one in found), len(rest))
    )
    if name.cell_len + beside <= width:
        return _row(name, bar, done, *found, Text(rest))
    return Group(name, _row(bar, done), _row(*found, Text(rest)))


def _row(*parts: RenderableType) -> Table:
    table = Table.grid(*("" for _ in parts), padding=(0, 2))
    table.add_row(*parts)
    return table
