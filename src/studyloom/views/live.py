"""The display of a job while it runs: live on a terminal and in a notebook, else plain lines."""

import io
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import import_module
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from studyloom.text import one_line
from studyloom.views.progress.job import Progress
from studyloom.views.progress.words import (
    all_stages,
    best_words,
    control_words,
    eta_words,
    progress_line,
    stage_words,
    time_words,
    wrap,
)
from studyloom.views.terminal import make_console, workers_table

TICK = 0.1  # seconds between looks at whether to stop
REFRESH = 0.5  # seconds between looks at the study
LINE_INTERVAL = 5.0  # seconds between plain lines if something has changed
QUIET_INTERVAL = 60.0  # seconds between plain lines if nothing has
BAR_WIDTH = 20  # columns


class Stopping(Protocol):
    """Whether the process stops, and who says so."""

    telling: bool

    @property
    def ended_by(self) -> str: ...
    def __call__(self) -> bool: ...


class Display:
    """Shows a job while the body of a `with` works on it.

    Args:
        read: reads the job; an error is no harm, since the next look may succeed.
        console: where to show it.
        stop: whether the process stops, which is then shown; None if nothing stops it.
        listeners: called with each progress that was read, and with the last after the body.
    """

    def __init__(
        self,
        read: Callable[[], Progress],
        console: Console,
        stop: Stopping | None = None,
        listeners: Sequence[Callable[[Progress], None]] = (),
    ) -> None:
        self.read, self.console, self.stop, self.listeners = read, console, stop, listeners
        self._cell: Any = None  # the handle of what a notebook's cell shows
        self._line: tuple[str, float] = "", time.monotonic()  # the last one, and when it came
        self._told = False  # that the process stops
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
        if self.listeners:
            self._take()

    def _watch(self) -> None:
        if self._cell is not None:
            self._look(lambda p: self._show(as_html(self.render(p), self.console.width)))
        elif not self.console.is_terminal or self.console.is_dumb_terminal:
            self._look(self._print_line)
        else:
            self._watch_live()

    def _watch_live(self) -> None:
        """Draws the job anew and anew; what a signal says stands above, where it stays."""
        if self.stop is not None:
            self.stop.telling = True
        try:
            with Live(console=self.console, auto_refresh=False, transient=True) as live:
                self._look(
                    lambda progress: live.update(self.render(progress), refresh=True), self._tell
                )
        finally:
            if self.stop is not None:
                self.stop.telling = False
                self._tell()  # of a signal since the last look, about which the process is silent

    def _tell(self) -> None:
        """Says once that the process stops."""
        if not self._told and self.stop is not None and self.stop():
            self._told = True
            self.console.print(Text(stopping_words(self.stop.ended_by)), soft_wrap=True)

    def _look(
        self, draw: Callable[[Progress], None], tell: Callable[[], None] = lambda: None
    ) -> None:
        """Looks at the job until the body ends.

        Args:
            draw: shows what was read.
            tell: says that the process stops, if it does; called at each tick.
        """
        looked = 0.0
        while not self._end.wait(min(TICK, REFRESH)):
            tell()
            if time.monotonic() - looked >= REFRESH:
                looked = time.monotonic()
                if (progress := self._take()) is not None:
                    draw(progress)

    def _show(self, html: str) -> None:
        self._cell.update(import_module("IPython.display").HTML(html))

    def _take(self) -> Progress | None:
        try:
            progress = self.read()
        except Exception:
            # The workers deal with a database that is busy or away; the next look may succeed.
            return None
        for listener in self.listeners:
            listener(progress)
        return progress

    def _print_line(self, progress: Progress) -> None:
        """Prints a line if something has changed, at most one in a few seconds; else one a minute.

        An epoch changes nothing; a trial does.
        """
        line, (last, at), now = progress_line(progress), self._line, time.monotonic()
        if now - at >= (LINE_INTERVAL if line != last else QUIET_INTERVAL):
            self._line = line, now
            self.console.print(Text(timed(f"{line}  {eta_words(progress)}")), soft_wrap=True)

    def render(self, progress: Progress) -> RenderableType:
        """Renders a job for a terminal, as wide as the console."""
        width = self.console.width
        parts: list[RenderableType] = [live_head(progress, width)]
        times = [*time_words(progress)]
        parts += [Text(line, style="dim") for line in wrap([all_stages(progress)], width) if line]
        parts += [Text(line, style="dim") for line in wrap(times, width)]
        words = control_words(progress)
        if self.stop is not None and self.stop():
            words = stopping_words(self.stop.ended_by)
        if words:
            parts.append(Text(words, style="bold", overflow="fold"))
        return Group(*parts, workers_table(progress.current, width))


def as_html(content: RenderableType, width: int) -> str:
    """Renders as HTML what a terminal of a width in columns would show; text is escaped."""
    console = make_console(io.StringIO(), record=True, width=width, force_jupyter=False)
    console.print(content)
    style = "white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace"
    page = f'<pre style="{style}">{{code}}</pre>'
    return console.export_html(inline_styles=True, code_format=page)


def stopping_words(ended_by: str) -> str:
    """Says that a process stops.

    Args:
        ended_by: what has asked for it, see `Stop.ended_by`.
    """
    if ended_by == "stopped":
        return "stopping; once more stops at once"
    return f"stopping: {ended_by}"


def timed(line: str) -> str:
    """Puts the local time before a line."""
    return f"{datetime.now():%H:%M:%S}  {line}"


def live_head(progress: Progress, width: int) -> RenderableType:
    """Renders name, bar, stage and best; in one line if there is room.

    Args:
        progress: of the job.
        width: the width of the terminal in columns.
    """
    style = "" if progress.search.best is not None else "dim"
    best, done = Text(best_words(progress), style=style), Text(stage_words(progress))
    name = Text(one_line(progress.search.name), style="bold")
    total = max(1, progress.budget)
    bar = ProgressBar(total=total, completed=progress.done, width=BAR_WIDTH)
    widths = (BAR_WIDTH, done.cell_len, best.cell_len)
    if name.cell_len + sum(2 + columns for columns in widths) <= width:
        return _row(name, bar, done, best)
    return Group(name, _row(bar, done), best)


def _row(*parts: RenderableType) -> Table:
    table = Table.grid(*("" for _ in parts), padding=(0, 2))
    table.add_row(*parts)
    return table
