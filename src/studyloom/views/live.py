"""The display of a study while it runs: live on a terminal and in a notebook, else plain lines."""

import io
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from studyloom.study.stored_study import StoredStudy, is_stage_name
from studyloom.text import format_duration, one_line
from studyloom.views.snapshot import (
    Snapshot,
    format_trial_values,
    paused,
    take_snapshot,
    uncounted,
)
from studyloom.views.terminal import make_console, workers_table

REFRESH = 0.5  # seconds, on a terminal
LINE_INTERVAL = 5.0  # seconds between plain lines
BAR_WIDTH = 20  # columns


class Display:
    """Shows a study while the body of a `with` works on it.

    Args:
        current: returns the study that is worked on now: a run has several stages, and each stage
            is a study.
        console: where to show it.
    """

    def __init__(self, current: Callable[[], StoredStudy], console: Console) -> None:
        self.current = current
        self.console = console
        self._begin(take_snapshot(current()))
        self._cell: Any = None  # the handle of what a notebook's cell shows
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Display":
        if self.console.is_jupyter and not self.console.quiet:
            # In this thread, so that it belongs to the output of the cell that runs.
            html = import_module("IPython.display")
            self._cell = html.display(html.HTML(""), display_id=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self._cell is not None:
            self._show("")

    def _watch(self) -> None:
        if self._cell is not None:
            while not self._end.wait(REFRESH):
                if (snapshot := self._take()) is not None:
                    self._show(as_html(self.render(snapshot), self.console.width))
            return
        if not self.console.is_terminal:
            while not self._end.wait(LINE_INTERVAL):
                if (snapshot := self._take()) is not None:
                    self.console.print(Text(self.line(snapshot)), soft_wrap=True)
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while not self._end.wait(REFRESH):
                if (snapshot := self._take()) is not None:
                    live.update(self.render(snapshot), refresh=True)

    def _show(self, html: str) -> None:
        self._cell.update(import_module("IPython.display").HTML(html))

    def _begin(self, snapshot: Snapshot) -> None:
        self.name, self.done_before, self.started = snapshot.name, snapshot.done, time.monotonic()

    def _take(self) -> Snapshot | None:
        try:
            snapshot = take_snapshot(self.current())
            if snapshot.name != self.name:
                self._begin(snapshot)
            return snapshot
        except Exception:
            # The workers deal with a database that is busy or away; the next look may succeed.
            return None

    def time_left(self, snapshot: Snapshot) -> str:
        """Formats the time that the open slots will take at this command's pace so far."""
        done = snapshot.done - self.done_before
        if not done:
            return "ETA –"
        pace = (time.monotonic() - self.started) / done
        return f"ETA {format_duration(pace * snapshot.left)}"

    def line(self, snapshot: Snapshot) -> str:
        """Formats a snapshot as one line."""
        parts = [one_line(snapshot.name), f"{snapshot.done}/{snapshot.budget}"]
        if not is_stage_name(snapshot.name):
            best = snapshot.best
            parts.append(
                f"best {format_trial_values(best)} (trial {best.number})"
                if best
                else "no result yet"
            )
        parts += [f"{len(snapshot.workers)} running", *paused(snapshot), *uncounted(snapshot)]
        return "  ".join([*parts, self.time_left(snapshot)])

    def render(self, snapshot: Snapshot) -> RenderableType:
        """Renders a snapshot for a terminal, as wide as the console."""
        width = self.console.width
        head = live_head(snapshot, self.time_left(snapshot), width)
        return Group(head, workers_table(snapshot, width))


def as_html(content: RenderableType, width: int) -> str:
    """Renders as HTML what a terminal of a width in columns would show; text is escaped."""
    console = make_console(io.StringIO(), record=True, width=width, force_jupyter=False)
    console.print(content)
    style = "white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace"
    page = f'<pre style="{style}">{{code}}</pre>'
    return console.export_html(inline_styles=True, code_format=page)


def live_head(snapshot: Snapshot, time_left: str, width: int) -> RenderableType:
    """Renders name, bar, best and time left; in one line if there is room.

    Args:
        snapshot: the study.
        time_left: the time left, as text.
        width: the width of the terminal in columns.
    """
    best = Text("no result yet", style="dim")
    if snapshot.best is not None:
        best = Text(f"best {format_trial_values(snapshot.best)}", style="bold green")
        best.append(f" trial {snapshot.best.number}", style="dim")
    # A stage trains again what the search has found: no trial of it is the best.
    shown = [] if is_stage_name(snapshot.name) else [best]
    name = Text(one_line(snapshot.name), style="bold")
    done = Text(", ".join([f"{snapshot.done}/{snapshot.budget}", *uncounted(snapshot)]))
    total = max(1, snapshot.budget)
    bar = ProgressBar(total=total, completed=snapshot.done, width=BAR_WIDTH)
    widths = (BAR_WIDTH, done.cell_len, *(part.cell_len for part in shown), len(time_left))
    if name.cell_len + sum(2 + columns for columns in widths) <= width:
        return _row(name, bar, done, *shown, Text(time_left))
    return Group(name, _row(bar, done), _row(*shown, Text(time_left)))


def _row(*parts: RenderableType) -> Table:
    table = Table.grid(*("" for _ in parts), padding=(0, 2))
    table.add_row(*parts)
    return table
