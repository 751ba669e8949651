"""A study on a terminal: its status, its trials, its result, and its failures.

`watch` and `Display` show a study that runs. On a terminal they draw lines again in their place, in
a notebook they replace the output of a cell, and in a pipe or a file they print a line for each
change.
"""

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any

from optuna.trial import FrozenTrial
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment
from rich.table import Table
from rich.text import Text

from studyloom.processes import discard_output
from studyloom.storage.failures import FailureCount, describe_resumption
from studyloom.storage.stored_study import SEARCH, StoredStudy, rank_by_value
from studyloom.storage.trial_record import TrialRecord, describe_state
from studyloom.text import (
    format_duration,
    format_error,
    one_line,
    printable,
)
from studyloom.user_code.digests import CODE
from studyloom.views import advice_lines
from studyloom.views.events import History
from studyloom.views.last_trials import last_trials
from studyloom.views.progress import (
    STAGE_NAMES,
    Progress,
    ProgressReader,
    Status,
    wrap_parts,
)
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.views.state_colors import color_counts, color_state
from studyloom.views.words import (
    describe_counts,
    describe_stored_result,
    describe_worker,
    format_each_value,
    format_trial_values,
    list_front,
    list_parameters,
)
from studyloom.worker.stopping import Stop

if TYPE_CHECKING:
    pass


INDENT = " " * 10  # of a line that continues one with a label
COLUMN_GAP = "  "


def say(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Prints lines; a terminal gets them broken between words, a pipe or a file gets them whole.

    Args:
        indent: how many spaces stand after a break.
    """
    for line in text.splitlines():
        parts = wrap_parts([line], width_of(console), indent=indent, breaks_words=False)
        console.print(Text("\n".join(parts), style), soft_wrap=True)


def width_of(console: Console) -> int:
    """Returns how many columns a line may have: any number in a pipe or a file."""
    if console.is_terminal:
        return console.width
    return sys.maxsize


def render_rows(
    rows: Sequence[Sequence[str]], text_columns: Sequence[int] | None = None, best: str = "best"
) -> RenderableType:
    """Renders rows in columns; the first row is their header, and dim.

    Args:
        text_columns: the columns to align left; None for all.
        best: the row with this word is bold: its first column is the word, or its last column is a
            list such as "baseline, best".
    """
    head = rows[0]
    texts = []
    for row, line in zip(rows, align_rows(rows, text_columns), strict=True):
        style = ""
        if row is head:
            style = "dim"
        elif row[0] == best or best in row[-1].split(", "):
            style = "bold"
        text = Text(line, style)
        if "state" in head and row is not head:
            column = head.index("state")
            color_state(text, _find_column_start(rows, column), row[column])
        texts.append(text)
    return Group(*texts)


def _find_column_start(rows: Sequence[Sequence[str]], column: int) -> int:
    """Returns where a column that is aligned left begins in the lines of `align_rows`."""
    start = 0
    for earlier_column in range(column):
        start += max(len(row[earlier_column]) for row in rows) + len(COLUMN_GAP)
    return start


def compare_with_baseline(snapshot: Snapshot, width: int) -> RenderableType:
    """Renders the baseline and the best trial: values, standard error, hyperparameters."""
    lines: list[str] = []
    has_error = False
    for role, trial in (("baseline", snapshot.baseline), ("best", snapshot.best)):
        if trial is None:
            continue
        values = ", ".join(_name_values(snapshot, trial))
        number = f"trial {trial.number}{describe_proposer(trial)}"
        parts = [f"{role:8}", values, number, *list_parameters(trial.params)]
        lines += wrap_parts(parts, width, "  ", indent=len(INDENT))
        if TrialRecord(trial).standard_error is not None:
            has_error = True
    if has_error:
        lines.append(f"{INDENT}± is the standard error of the mean over folds and seeds")
    return Text("\n".join(lines))


def _name_values(snapshot: Snapshot, trial: FrozenTrial) -> list[str]:
    """Formats each value of a trial with its name, the metric's with its standard error."""
    value, *costs = format_each_value(trial)  # without costs if the trial has no values
    metric = f"{snapshot.metric} {value}"
    error = TrialRecord(trial).standard_error
    if error is not None:
        metric += f" ± {format_error(error, value)}"
    texts = [metric]
    for name, cost in zip(snapshot.costs, costs, strict=False):
        texts.append(f"{name} {cost}")
    return texts


def render_front(snapshot: Snapshot) -> RenderableType:
    """Renders the Pareto front, the cheapest trial first, and the rule that chooses the best."""
    rule = Text(f"rule      {snapshot.rule}", overflow="fold")
    if not snapshot.front:
        return rule
    head, *rows = list_front(snapshot)
    labeled_rows = [["front", *head]]
    for row in rows:
        labeled_rows.append(["", *row])
    last_column = len(head)  # the label "front" comes first
    return Group(render_rows(labeled_rows, text_columns=(0, last_column)), rule)


def describe_proposer(trial: FrozenTrial) -> str:
    """Says who proposed a trial, and why; empty for the sampler's trials."""
    record = TrialRecord(trial)
    if not record.proposer:
        return ""
    text = f", proposed by {record.proposer}"
    if record.proposal_reason:
        text += f": {record.proposal_reason}"
    return one_line(text)


class SafeConsole(Console):
    """A console that escapes control sequences in text; only Rich's styles use them."""

    lasting = False  # whether the program continues if the reader of its output closes it

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Renders as Rich does; only its own control segments may hold control sequences."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Raises the BrokenPipeError that Rich handles here, where Rich would raise SystemExit."""
        if not self.lasting:
            raise
        discard_output(self.file.fileno())


def make_console(file: IO[str] | None = None, **options: Any) -> SafeConsole:
    """Makes a console that shows text verbatim: a study may be called `[red]` or `:bug:`."""
    options |= {"file": file or sys.stdout, "highlight": False, "markup": False, "emoji": False}
    console = SafeConsole(**options)
    if console.is_jupyter:
        return CellConsole(**options)
    return console


@dataclass(frozen=True)
class _PrintCall:
    """The arguments of a call of `Console.print`."""

    objects: Sequence[Any]
    options: Mapping[str, Any] = field(default_factory=dict)


class CellConsole(SafeConsole):
    """A console that prints into one output of a notebook's cell.

    A cell would show each call of `print` as a separate output, with a gap before it. Here each
    call replaces the output by one with all that was printed.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._printed: list[_PrintCall] = []
        self._output: Any = None  # IPython's handle of the output; None before the first print

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as any other console, below what it has printed before."""
        self._printed.append(_PrintCall(objects, options))
        self.show()

    def show(self, *block: RenderableType) -> None:
        """Shows everything printed so far, and a block below it until the next call.

        All of it is printed again by a console that records it as HTML, since a cell's output can
        only be replaced as a whole.
        """
        recorder = make_console(
            io.StringIO(),
            record=True,
            width=self.width,
            force_jupyter=False,  # with it, Rich would show an output that cannot be replaced
        )
        calls = [*self._printed]
        if block:
            calls.append(_PrintCall(block))
        for call in calls:
            recorder.print(*call.objects, **call.options)
        style = "white-space:pre-wrap;word-break:normal;line-height:normal;font-family:monospace"
        template = f'<pre style="{style}">{{code}}</pre>'
        html = recorder.export_html(inline_styles=True, code_format=template, clear=False)
        text = recorder.export_text(clear=False)
        content = {"text/html": html, "text/plain": text}
        if self._output is not None:
            self._output.update(content, raw=True)
        elif not self.quiet:
            # Jupyter shows the output in the running cell, as the first call is made in the main
            # thread. Later calls update that output, also from other threads.
            display = import_module("IPython.display").display
            self._output = display(content, raw=True, display_id=True)


def list_failures(failures: Sequence[FailureCount]) -> list[str]:
    """Says how many trials failed for each kind of reason, with the first reason of the kind."""
    lines = []
    for failure in failures:
        line = f"{failure.kind}  {failure.count} × such as: {failure.first_reason}"
        lines.append(one_line(line))
    return lines


def print_trials(stored: StoredStudy, console: Console) -> None:
    """Prints each trial: number, state, values, time, hyperparameters or reason.

    The best trial comes first, and those without a value come last, as in the table of a report.
    A pipe or a file gets a line for each. In a terminal, hyperparameters that do not fit follow in
    lines below the first ones.
    """
    objectives = ", ".join(objective.name for objective in stored.objectives)
    rows = [("trial", "state", objectives, "time")]
    details = [["hyperparameters"]]
    snapshot = take_snapshot(stored)
    for trial in rank_by_value(snapshot.trials, stored.sign):
        record = TrialRecord(trial)
        time_text = ""
        if record.seconds is not None:
            time_text = format_duration(record.seconds)
        texts = list_parameters(trial.params)
        if record.reason:
            texts = [one_line(record.reason)]
        texts[-1] += describe_proposer(trial)
        details.append(texts)
        state = describe_state(trial, snapshot.live_trials)
        rows.append((str(trial.number), state, format_trial_values(trial), time_text))
    starts = [*align_rows(rows, text_columns=(1,))]
    start_width = max(map(len, starts))
    state_column = _find_column_start(rows, 1)
    for row, start, texts in zip(rows, starts, details, strict=True):
        parts = [start.ljust(start_width), *texts]
        indent = start_width + len(COLUMN_GAP)
        if indent > width_of(console) // 2:
            indent = state_column  # too little is left beside the other columns
        lines = wrap_parts(parts, width_of(console), COLUMN_GAP, indent=indent, breaks_words=False)
        text = Text("\n".join(lines))
        if row is not rows[0]:
            color_state(text, state_column, row[1])
        console.print(text, soft_wrap=True)


def align_rows(rows: Sequence[Sequence[str]], text_columns: Sequence[int] | None) -> Iterator[str]:
    """Yields rows as lines of untruncated columns.

    Args:
        text_columns: the columns to align left; the others are aligned right, as numbers are. None
            to align all left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = []
        for column, cell in enumerate(row):
            if text_columns is None or column in text_columns:
                cells.append(cell.ljust(widths[column]))
            else:
                cells.append(cell.rjust(widths[column]))
        yield COLUMN_GAP.join(cells).rstrip()


def print_code_changes(stored: StoredStudy, console: Console) -> None:
    """Prints for each accepted change of the user's code which trials ran before it."""
    for change in stored.code_changes():
        names = ", ".join(key.removeprefix(CODE) for key in change["changed"])
        say(console, f"trials 0 to {change['from'] - 1} ran other code: {names} has changed")


# The status of a study: printed once, watched until the study has ended, or live during its work.

TICK = 0.1  # seconds between looks at whether to stop
LIVE_INTERVAL = 0.5  # seconds between looks at a study that this process works on, at least
LOOKING = 0.05  # the share of time that these looks may take: trials run in this process
LINE_INTERVAL = 5.0  # seconds between plain lines if something has changed
QUIET_INTERVAL = 60.0  # seconds between plain lines if nothing has
BAR_WIDTH = 20  # columns


def render_status(status: Status, width: int) -> RenderableType:
    """Renders the whole status, no wider than `width`.

    The least important lines come last, since a small terminal shows only the first.
    """
    progress = status.progress
    snapshot = progress.search
    parts: list[RenderableType] = []

    def add_text(text: str, style: str = "") -> None:
        if text:
            parts.append(Text(text, style=style, overflow="fold"))

    parts.append(color_counts(Text(describe_counts(snapshot), overflow="fold")))
    add_text("\n".join(advice_lines.wrap_searched(status.searched, width)), "dim")
    if progress.result is not None:
        add_text(describe_stored_result(progress.result), "bold green")
    add_text(_describe_budget(snapshot))
    stage, *details = progress.describe_now()
    if progress.title != SEARCH:  # the headline has the progress of the search
        details.insert(0, stage)
    add_text("\n".join(wrap_parts(details, width)))
    if snapshot.forecast.ending is None:
        add_text(snapshot.forecast.describe_gain(snapshot.metric))
    if progress.halted is not None:
        explanation = "the study stopped itself, since its trials fail with this"
        add_text(f"{explanation}: {one_line(progress.halted)}", "bold red")
    for worker in progress.current.workers:
        texts = describe_worker(worker)
        trial = f"trial {texts.trial} for {texts.held}, {texts.lease}"
        add_text(f"worker {one_line(worker.owner)}: {trial}")
    table = last_trials(progress, width, with_best=False)  # the line "best" below names it
    if len(table) > 1:
        parts.append(render_rows(table))
    add_text("\n".join(list_failures(status.failures)))
    add_text("\n".join(advice_lines.wrap_advice(status.advice, width)))
    bars = advice_lines.list_importances(status.list_largest_shares(), snapshot)
    if bars:
        add_text("what matters", "dim")
        add_text("\n".join(bars))
    parts.append(compare_with_baseline(snapshot, width))
    if snapshot.rule is not None:
        parts.append(render_front(snapshot))
    return Group(*parts)


def _describe_budget(snapshot: Snapshot) -> str:
    """Says how many trials of the budget are left, or why the search has ended before it."""
    if snapshot.forecast.ending is not None:
        return snapshot.forecast.ending.reason
    left = max(0, snapshot.slots["free"] - snapshot.outcomes.get("paused", 0))
    if left == 1:
        return "budget left: 1 trial"
    return f"budget left: {left:,} trials"


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
