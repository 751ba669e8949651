"""A study that runs, on a terminal, in a notebook, or as plain lines.

`watch` shows a study of other processes, and `Display` one that this process works on. On a
terminal they draw lines again in their place, in a notebook they replace the output of a cell, and
in a pipe or a file they print a line for each change.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

from studyloom.text import one_line
from studyloom.views.consoles import CellConsole
from studyloom.views.last_trials import last_trials
from studyloom.views.progress import Progress
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.status import Status
from studyloom.views.terminal import render_status
from studyloom.views.terminal_lines import render_rows, say, wrap_parts
from studyloom.worker.stopping import Stop

TICK = 0.1  # seconds between looks at whether to stop
LIVE_INTERVAL = 0.5  # seconds between looks at a study that this process works on, at least
LOOKING = 0.05  # the share of time that these looks may take: trials run in this process
LINE_INTERVAL = 5.0  # seconds between plain lines if something has changed
QUIET_INTERVAL = 60.0  # seconds between plain lines if nothing has
BAR_WIDTH = 20  # columns


class LiveLines(Live):
    """Lines that are drawn again in their place, also after a resize.

    Rich moves the cursor up by as many rows as it has drawn lines. A terminal that has become
    narrower has wrapped these lines, so that they take more rows, and the first would stay.
    """

    line_widths: Sequence[int] = ()  # the columns that each line took when it was last drawn

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        """Returns what Rich prints: control codes that clear the old lines, and the new ones.

        Rich clears a row for each line. This method adds the rows of lines that have wrapped.
        """
        console = self.console
        old_line_widths = self.line_widths
        wrapped_rows = 0  # a line of 100 columns takes a further row if only 80 are left
        for width in old_line_widths:
            wrapped_rows += max(0, width - 1) // console.width
        erase_whole_line = 2  # the argument of that control code
        clear_row = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, erase_whole_line)]
        new_lines = console.render_lines(self.get_renderable(), pad=False)[: console.height]
        new_line_widths = []
        for line in new_lines:
            new_line_widths.append(sum(segment.cell_length for segment in line))
        self.line_widths = new_line_widths  # for the next drawing
        clear_old_lines, *drawing = super().process_renderables(renderables)
        return [clear_old_lines, Control(*(clear_row * wrapped_rows)), *drawing]

    def get_renderable(self) -> RenderableType:
        """Returns the lines, and an empty one, where the cursor stays at any width."""
        return Group(super().get_renderable(), "")


class LinePrinter:
    """Prints a changed line at most every few seconds, and an unchanged one every minute.

    Args:
        interval: the least seconds between two lines that differ.
    """

    def __init__(self, console: Console, interval: float) -> None:
        self.console = console
        self.interval = interval
        self._last_line = ""
        self._last_time = time.monotonic()

    def show(self, line: str, progress: Progress | None) -> None:
        """Prints a line with the time left of the study, unless the last line is too recent.

        After a line that was different, `self.interval` must have passed; after an equal line, the
        longer QUIET_INTERVAL.

        Args:
            line: the study in one line.
            progress: the progress with the time left; None if the study could not be read.
        """
        if line == self._last_line:
            interval = QUIET_INTERVAL
        else:
            interval = self.interval
        now = time.monotonic()
        if now - self._last_time < interval:
            return
        self._last_line = line
        self._last_time = now
        eta = ""
        if progress is not None:
            eta = f"  {progress.eta_text}"
        say(self.console, f"{datetime.now():%H:%M:%S}  {line}{eta}")


def watch(reader: ProgressReader, console: Console) -> None:
    """Shows a study until it has ended: live on a terminal, otherwise a line for each change."""
    if not console.is_interactive:
        printer = LinePrinter(console, 0.0)
        for status in reader.statuses():
            if isinstance(status, Status):
                printer.show(status.progress.line, status.progress)
            else:  # the error of a read that failed
                printer.show(str(status), None)
        return
    view: RenderableType = ""
    with LiveLines(console=console, auto_refresh=False) as live:
        for status in reader.statuses():
            if isinstance(status, Status):
                view = render_status(status, console.width)
                live.update(view, refresh=True)
            else:  # the error of a read that failed, below the last view
                error = Text(str(status), style="red", overflow="fold")
                live.update(Group(view, error), refresh=True)


def watch_json(reader: ProgressReader, write: Callable[[str], object]) -> None:
    """Writes a line of JSON, with its line break, for each change until a study has ended."""
    last_status = None
    for status in reader.statuses():
        if isinstance(status, Status) and status != last_status:
            write(f"{status.as_json()}\n")
            last_status = status


class Display:
    """Shows a study while the body of a `with` runs it: live, in a notebook, or as plain lines.

    A thread looks at the study every LIVE_INTERVAL until the body ends.

    Args:
        read: reads the progress of the study.
        stop: whether the process is stopping, which is shown; None if nothing stops it.
        listeners: called with each progress that is read, and with the last one after the body.
        notes: lines that are printed first; a cell shows them only until the body ends.
    """

    def __init__(
        self,
        read: Callable[[], Progress],
        console: Console,
        stop: Stop | None = None,
        listeners: Sequence[Callable[[Progress], None]] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.read = read
        self.console = console
        self.stop = stop
        self.listeners = listeners
        self._notes = Text("\n".join(notes))
        self._lines = LinePrinter(console, LINE_INTERVAL)
        self._stop_printed = False  # whether it was printed that the process is stopping
        self._body_ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Display":
        if isinstance(self.console, CellConsole):
            self.console.show(self._notes)
        elif self._notes:
            say(self.console, self._notes.plain)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._body_ended.set()
        self._thread.join()
        if isinstance(self.console, CellConsole):
            self.console.show()
        if self.listeners:
            self._read_progress()

    def _watch(self) -> None:
        """Shows the study until the body ends, in the way that suits the console."""
        if isinstance(self.console, CellConsole):
            with self._showing_stop():
                self._watch_in_cell(self.console)
        elif self.console.is_interactive:
            try:
                with self._showing_stop():
                    self._watch_on_terminal()
            finally:
                self._print_stop()  # the signal may have come after the last look
        else:
            self._look_repeatedly(lambda progress: self._lines.show(progress.line, progress))

    @contextmanager
    def _showing_stop(self) -> Iterator[None]:
        """Lets this display say that the process is stopping, and not the handler of the signal.

        The handler would print into the lines that are drawn.
        """
        if self.stop is None:
            yield
            return
        self.stop.is_shown = True
        try:
            yield
        finally:
            self.stop.is_shown = False

    def _watch_in_cell(self, console: CellConsole) -> None:
        """Draws the study below the notes, in the output of the cell."""
        self._look_repeatedly(lambda progress: console.show(self._notes, self.render(progress)))

    def _watch_on_terminal(self) -> None:
        """Draws the study repeatedly in its place; other lines are printed above it, and stay."""
        with LiveLines(console=self.console, auto_refresh=False, transient=True) as live:

            def draw(progress: Progress) -> None:
                live.update(self.render(progress), refresh=True)

            self._look_repeatedly(draw, at_tick=self._print_stop)
            live.update("", refresh=True)

    def _print_stop(self) -> None:
        """Prints once that the process is stopping."""
        if not self._stop_printed and self.stop is not None and self.stop():
            self._stop_printed = True
            say(self.console, describe_stop(self.stop.reason))

    def _look_repeatedly(
        self, draw: Callable[[Progress], None], at_tick: Callable[[], None] | None = None
    ) -> None:
        """Reads the study and draws it until the body ends.

        The next look comes after LIVE_INTERVAL, or later if looks take more than the share LOOKING.

        Args:
            at_tick: called each TICK, more often than the study is read.
        """
        next_look = 0.0  # by time.monotonic()
        while not self._body_ended.wait(min(TICK, LIVE_INTERVAL)):
            if at_tick is not None:
                at_tick()
            began = time.monotonic()
            if began >= next_look:
                progress = self._read_progress()
                if progress is not None:
                    draw(progress)
                duration = time.monotonic() - began
                next_look = began + max(LIVE_INTERVAL, duration / LOOKING)

    def _read_progress(self) -> Progress | None:
        """Reads the progress and passes it to the listeners; returns None if it cannot be read."""
        try:
            progress = self.read()
        except Exception:
            # The workers handle a database that is busy or away; the next look may succeed.
            return None
        for listener in self.listeners:
            listener(progress)
        return progress

    def render(self, progress: Progress) -> RenderableType:
        """Renders a study for a terminal, as wide as the console."""
        width = self.console.width
        head = wrap_parts([one_line(progress.search.name), progress.stage_text], width, "  ")
        times = [*progress.list_times()]
        elapsed_and_eta = times[:2]
        spent = times[2:]

        # The bar, with the share of the work that is done, the time so far, and the time left.
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(1.0, progress.share, width=BAR_WIDTH),
            f"{progress.share:4.0%}",
            Text(", ".join(elapsed_and_eta)),
        )
        request = progress.control_text
        if self.stop is not None and self.stop():
            request = describe_stop(self.stop.reason)
        details = [text for text in (progress.later_text, *spent, request) if text]
        table = render_rows(last_trials(progress, width))
        return Group(
            Text("\n".join(head), "bold"), bar, *map(Text, wrap_parts(details, width)), table
        )


def describe_stop(reason: str) -> str:
    """Says that a process is stopping, and why, from `Stop.reason`."""
    if reason == "stopped":
        return "stopping; once more stops at once"
    return f"stopping: {reason}"
