"""What a study prints on a terminal: its status, its trials, its result, and its failures."""

import io
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from importlib import import_module
from statistics import median
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment
from rich.table import Table
from rich.text import Text

from studyloom.processes import discard_output
from studyloom.storage.failures import FailureCount, count_failures, describe_resumption
from studyloom.storage.stored_study import SEARCH, StoredStudy
from studyloom.storage.trial_record import TrialRecord, describe_state
from studyloom.storage.urls import parse_url, without_password
from studyloom.text import (
    format_duration,
    format_error,
    one_line,
    printable,
)
from studyloom.user_code.digests import CODE
from studyloom.views.last_trials import last_trials
from studyloom.views.progress import WORDS, History, Progress, ProgressReader, Status, wrap
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.views.words import (
    describe_stored_result,
    explain_choice,
    format_parameters,
    format_trial_values,
    front_rows,
    headline,
    list_ablation,
    list_facts,
    name_trial,
    trial_values,
    worker_cells,
)
from studyloom.winner.result import Result
from studyloom.worker.stopping import Stop

if TYPE_CHECKING:
    from studyloom.definition.definition import Definition
    from studyloom.winner.evaluation import Evaluation
    from studyloom.worker.task import Command

WHOLE = 130  # columns of the table of variants with the percentiles of their latencies


def say(console: Console, words: str, style: str = "", indent: int = 0) -> None:
    """Prints lines; a terminal gets them broken between words, a pipe or a file gets them whole.

    Args:
        indent: how many spaces stand after a break.
    """
    for line in words.splitlines():
        parts = wrap([line], room_of(console), indent=indent, fold=False)
        console.print(Text("\n".join(parts), style), soft_wrap=True)


def room_of(console: Console) -> int:
    """Returns how many columns a line may have: any number in a pipe or a file."""
    return console.width if console.is_terminal else sys.maxsize


def winner_lines(result: Result, best: int | None = None, *, brief: bool = False) -> Iterator[str]:
    """Formats a result for a terminal, line by line.

    Args:
        best: the best trial of the search; None if it is not to be named.
        brief: whether to leave out what `±` means, and the interval of the mean.
    """
    of_search = "" if best is None else f"best of the search: trial {best}; "
    yield f"{of_search}winner: {name_trial(result.winner)}, {explain_choice(result)}"
    first, *others = list_facts(result, with_uncertainty=not brief)
    name = "winner   " if result.test is None else "test      winner"
    yield f"{name} {first.value}  {first.explanation}"
    yield from (f"{'':10}{fact}" for fact in others)
    yield from (f"{'':12}{line}" for line in list_ablation(result))


def render_rows(
    rows: Sequence[Sequence[str]], words: Sequence[int], best: str = "best"
) -> RenderableType:
    """Renders rows in columns, their header dim.

    Args:
        words: the columns to align left.
        best: a word that a row of the best has in its first or last column, which is bold.
    """
    marks = ({row[0], *row[-1].split(", ")} for row in rows[1:])
    styles = ["dim", *("bold" if best in each else "" for each in marks)]
    return Group(*map(Text, aligned(rows, words), styles))


def format_times(trials: Sequence[FrozenTrial], began: datetime) -> list[str]:
    """Formats how the workers spent their time, in percent by kind, the largest share first.

    Args:
        began: the start of this command. After it, the time from a worker's last trial to the end
            of the last trial of all counts as idle.
    """
    kinds: Counter[str] = Counter()
    last: dict[str, datetime] = {}
    for trial in trials:
        record = TrialRecord(trial)
        kinds.update(record.times)
        if trial.datetime_complete is not None and trial.datetime_complete > began:
            last[record.worker or ""] = trial.datetime_complete
    kinds.update({"idle": sum((max(last.values()) - end).total_seconds() for end in last.values())})
    total = kinds.total()
    return [f"{kind} {100 * part / total:.1f}%" for kind, part in kinds.most_common() if part]


def compare_with_baseline(snapshot: Snapshot, width: int) -> RenderableType:
    """Renders the baseline and the best trial: values, standard error, hyperparameters."""
    lines, spread = list[str](), False
    for name, trial in (("baseline", snapshot.baseline), ("best", snapshot.best)):
        if trial is not None:
            values = ", ".join(_named_values(snapshot, trial))
            number = f"trial {trial.number}{proposer_words(trial)}"
            parts = [f"{name:8}", values, number, *format_parameters(trial.params).split("  ")]
            lines += wrap(parts, width, "  ", indent=10)
            spread |= TrialRecord(trial).standard_error is not None
    if spread:
        lines.append(f"{'':10}± is the standard error of the mean over folds and seeds")
    return Text("\n".join(lines))


def _named_values(snapshot: Snapshot, trial: FrozenTrial) -> list[str]:
    """Formats each value of a trial with its name, the metric's with its standard error."""
    error = TrialRecord(trial).standard_error
    value, *costs = trial_values(trial)
    spread = "" if error is None else f" ± {format_error(error, value)}"
    named_costs = map(" ".join, zip(snapshot.costs, costs, strict=False))
    return [f"{snapshot.metric} {value}{spread}", *named_costs]


def front_table(snapshot: Snapshot) -> RenderableType:
    """Renders the Pareto front, the cheapest trial first, and the rule that chooses the best."""
    rule = Text(f"rule      {snapshot.rule}", overflow="fold")
    if not snapshot.front:
        return rule
    heads, *rows = front_rows(snapshot)
    rows = [["front", *heads], *(["", *row] for row in rows)]
    return Group(render_rows(rows, (0, len(heads))), rule)


def proposer_words(trial: FrozenTrial) -> str:
    """Says who proposed a trial, and why; empty for the sampler's trials."""
    record = TrialRecord(trial)
    by, why = record.proposer(), record.proposer("why")
    return one_line(f", proposed by {by}{f': {why}' if why else ''}") if by else ""


def more_trials(snapshot: Snapshot, definition: "Definition") -> str:
    """Returns the override that continues a search that has ended; empty if it has not."""
    study, ended = definition.config.study, snapshot.forecast.ending
    if ended is not None and ended.gain is not None:
        assert study.min_improvement is not None
        return f"study.min_improvement={study.min_improvement / 2:g}"
    if ended is not None and ended.spent is not None:
        limit = definition.config.cost.limit
        assert limit is not None
        return f"cost.limit={2 * limit:g}"
    if ended is not None:
        return f"study.epochs={2 * ended.epochs}"
    spent = snapshot.done == snapshot.budget == study.trials
    return f"study.trials={2 * snapshot.budget}" if spent else ""


class SafeConsole(Console):
    """A console that escapes control sequences in text; only Rich's styles use them."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)

    lasting = False  # whether the program continues if the reader of its output closes it

    def on_broken_pipe(self) -> None:
        if not self.lasting:
            raise  # BrokenPipeError, and not SystemExit
        discard_output(self.file.fileno())


def make_console(file: Any = None, **options: Any) -> SafeConsole:
    """Makes a console that shows text verbatim: a study may be called `[red]` or `:bug:`."""
    options |= {"file": file or sys.stdout, "highlight": False, "markup": False, "emoji": False}
    console = SafeConsole(**options)
    return CellConsole(**options) if console.is_jupyter else console


class CellConsole(SafeConsole):
    """A console that prints into one output of a notebook's cell."""

    _printed: tuple[Any, ...] = ()
    _output: Any = None  # the display handle

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as any other console, below what it has printed before."""
        self._printed += ((objects, options),)
        self.show()

    def show(self, *block: RenderableType) -> None:
        """Shows everything printed so far, and a block below it until the next call."""
        lines = make_console(io.StringIO(), record=True, width=self.width, force_jupyter=False)
        for objects, options in [*self._printed, *[(block, {})] * bool(block)]:
            lines.print(*objects, **options)
        style = "white-space:pre-wrap;word-break:normal;line-height:normal;font-family:monospace"
        page = f'<pre style="{style}">{{code}}</pre>'
        html = lines.export_html(inline_styles=True, code_format=page, clear=False)
        content = {"text/html": html, "text/plain": lines.export_text()}
        if self._output is not None:
            self._output.update(content, raw=True)
        elif not self.quiet:  # in the main thread, so that it belongs to the running cell
            display = import_module("IPython.display").display
            self._output = display(content, raw=True, display_id=True)


def print_failures(stored: StoredStudy, console: Console) -> None:
    """Prints why trials failed, the most frequent kind of failure first."""
    say(console, "\n".join(failure_lines(count_failures(stored.trials()))))


def print_not_kept(stored: StoredStudy, console: Console) -> None:
    """Warns about state of the user's loop that a trial resumed after a crash would lack."""
    known = (TrialRecord(trial).not_kept for trial in stored.trials())
    if names := next(filter(None, known), None):
        missing = ", ".join(f"{name}={name}" for name in map(one_line, names))
        say(console, f"run.keep lacks {missing}: a trial resumed after a crash gets another value")


def print_warnings(stored: StoredStudy, console: Console) -> None:
    """Prints what trials have warned of, each line once."""
    warnings = (line for trial in stored.trials() for line in TrialRecord(trial).warnings)
    for line in dict.fromkeys(warnings):
        say(console, one_line(line))


def failure_lines(failures: Sequence[FailureCount]) -> list[str]:
    """Says how many trials failed for each kind of reason, with the first reason of the kind."""
    lines = [f"{each.kind}  {each.count} × such as: {each.first_reason}" for each in failures]
    return [*map(one_line, lines)]


def print_trials(stored: StoredStudy, console: Console) -> None:
    """Prints a line for each trial: number, state, values, time, hyperparameters or reason."""
    head = (
        "trial",
        "state",
        ", ".join(g.name for g in stored.objectives),
        "time",
        "hyperparameters",
    )
    rows = [head]
    snapshot = take_snapshot(stored)
    for trial in snapshot.trials:
        record = TrialRecord(trial)
        spent = "" if record.seconds is None else format_duration(record.seconds)
        about = one_line(record.reason or format_parameters(trial.params)) + proposer_words(trial)
        state = describe_state(trial, snapshot.alive)
        rows.append((str(trial.number), state, format_trial_values(trial), spent, about))
    say(console, "\n".join(aligned(rows, words=(1, 4))))


def aligned(rows: Sequence[Sequence[str]], words: Sequence[int]) -> Iterator[str]:
    """Yields rows as lines of untruncated columns; `words` are the columns to align left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def print_code_changes(stored: StoredStudy, console: Console) -> None:
    """Prints for each accepted change of the user's code which trials ran before it."""
    for change in stored.code_changes():
        names = ", ".join(key.removeprefix(CODE) for key in change["changed"])
        say(console, f"trials 0 to {change['from'] - 1} ran other code: {names} has changed")


def print_next_steps(
    evaluation: "Evaluation",
    command: "Command",
    snapshot: Snapshot,
    console: Console,
    began: datetime,
) -> None:
    """Prints the paths of the results, and the next commands."""
    study, stored = evaluation.study, evaluation.study.stored
    if not console.is_jupyter:
        curves = (TrialRecord(trial).curve for trial in stored.trials())
        if times := [seconds for columns in curves for seconds in columns.get("seconds", ())]:
            console.print(f"{median(times):.2f} s per epoch (median of {len(times)})")
        trials = [trial for stage in evaluation.stages for trial in stage.stored.trials()]
        say(console, ", ".join(format_times(trials, began)))
    lines = [f"study  {without_password(parse_url(study.prepared.url))}"]
    files = {"best": "best.yaml", "winner": "winner.yaml", "report": "report.html"}
    lines += [
        f"{what:6} {study.run_dir / name}"
        for what, name in files.items()
        if (study.run_dir / name).exists()
    ]
    if console.is_jupyter:  # `study` and `study.winner` show the rest
        lines = [line for line in lines if line.startswith("report")]
    say(console, "\n".join(lines))
    nexts = [["studyloom", verb, str(study.run_dir)] for verb in ("status", "dashboard")]
    if study.definition.space.size() > 1 and (more := more_trials(snapshot, study.definition)):
        key = more.partition("=")[0]
        called = f"{command.again} with {more.removeprefix('study.')}".split()
        again = [*command.as_typed, *command.without(key), more]
        nexts.insert(0, called if command.is_call else again)
    for n, words in enumerate(nexts[:1] if console.is_jupyter else nexts):
        parts = [f"{'' if n else 'next':6}", *map(shlex.quote, words)]
        lines = wrap(parts, room_of(console) - 2, " ", indent=7, fold=False)
        console.print(Text(" \\\n".join(lines)), soft_wrap=True)  # a shell continues them


# The status of a study: printed once, watched until the job has ended, or live during its work.

TICK = 0.1  # seconds between looks at whether to stop
LIVE_INTERVAL = 0.5  # seconds between looks at a job that this process works on, at least
LOOKING = 0.05  # the share of time that these looks may take: trials run in this process
LINE_INTERVAL = 5.0  # seconds between plain lines if something has changed
QUIET_INTERVAL = 60.0  # seconds between plain lines if nothing has
BAR_WIDTH = 20  # columns


def render_status(status: Status, width: int) -> RenderableType:
    """Renders the whole status, no wider than `width`; the least important lines come last."""
    progress, snapshot = status.progress, status.progress.search
    ended = snapshot.forecast.ending
    parts: list[RenderableType] = []

    def line(words: str, style: str = "") -> None:
        if words:
            parts.append(Text(words, style=style, overflow="fold"))

    line(headline(snapshot))
    if progress.result is not None:
        line(describe_stored_result(progress.result), "bold green")
    if ended is not None:
        line(ended.reason)
    else:
        left = max(0, snapshot.slots["free"] - snapshot.outcomes.get("paused", 0))
        line(f"budget left: {left:,} trial{'' if left == 1 else 's'}")
    now = progress.now_words()  # the headline has the progress of the search
    line("\n".join(wrap(now[1:] if progress.title == SEARCH else now, width)))
    if ended is None:
        line(snapshot.forecast.describe_gain(snapshot.metric) or "")
    if progress.halted is not None:
        why = "the study stopped itself, since its trials fail with this"
        line(f"{why}: {one_line(progress.halted)}", "bold red")
    for worker in progress.current.workers:
        trial, _, _, age, lease = worker_cells(worker)
        line(f"worker {one_line(worker.owner)}: trial {trial} for {age}, {lease}")
    table = last_trials(progress, width, with_best=False)  # the line "best" below names it
    if len(table) > 1:
        parts.append(render_rows(table, range(width)))
    line("\n".join(failure_lines(status.failures)))
    if status.importances:
        line("what matters", "dim")
        longest = max(map(len, status.importances))
        for name, share in status.importances.items():
            line(f"  {one_line(name):{longest}}  {share:3.0%}")
    parts.append(compare_with_baseline(snapshot, width))
    if snapshot.rule is not None:
        parts.append(front_table(snapshot))
    return Group(*parts)


class LiveLines(Live):
    """Lines that are drawn again in their place, also after a resize.

    A terminal that has become narrower has wrapped them, so that they take more rows than lines.
    """

    cells: Sequence[int] = ()  # how many columns each line took when it was drawn

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        """Clears the rows that the last lines take now; then prints, and draws the lines."""
        console = self.console
        wrapped = sum(max(0, cells - 1) // console.width for cells in self.cells)
        clear = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * wrapped
        lines = console.render_lines(self.get_renderable(), pad=False)[: console.height]
        self.cells = [sum(segment.cell_length for segment in line) for line in lines]
        first, *others = super().process_renderables(renderables)
        return [first, Control(*clear), *others]

    def get_renderable(self) -> RenderableType:
        """Returns the lines, and an empty one, where the cursor stays at any width."""
        return Group(super().get_renderable(), "")


class LinePrinter:
    """Prints a changed line at most every few seconds, and an unchanged one every minute.

    Args:
        interval: the least seconds between two lines that differ.
    """

    def __init__(self, console: Console, interval: float) -> None:
        self.console, self.interval = console, interval
        self._last, self._at = "", time.monotonic()

    def show(self, line: str, progress: Progress | None) -> None:
        """Prints a line with the time left of a job, if one is due."""
        now = time.monotonic()
        if now - self._at >= (self.interval if line != self._last else QUIET_INTERVAL):
            self._last, self._at = line, now
            eta = f"  {progress.eta_words}" if progress is not None else ""
            say(self.console, f"{datetime.now():%H:%M:%S}  {line}{eta}")


def watch(reader: ProgressReader, console: Console) -> None:
    """Shows a job until it has ended: live on a terminal, otherwise a line for each change."""
    if not console.is_interactive:
        lines = LinePrinter(console, 0.0)
        for status in reader.statuses():
            progress = status.progress if isinstance(status, Status) else None
            lines.show(progress.line if progress else str(status), progress)
        return
    view: RenderableType = ""
    with LiveLines(console=console, auto_refresh=False) as live:
        for status in reader.statuses():
            if isinstance(status, Status):
                view = render_status(status, console.width)
                live.update(view, refresh=True)
            else:
                error = Text(str(status), style="red", overflow="fold")
                live.update(Group(view, error), refresh=True)


def watch_json(reader: ProgressReader, write: Callable[[str], object]) -> None:
    """Writes a line of JSON, with its line break, for each change until a job has ended."""
    last = None
    for status in reader.statuses():
        if isinstance(status, Status) and status != last:
            write(f"{status.as_json()}\n")
            last = status


class Resumptions:
    """Prints a line for each trial that is resumed after its worker has died, from now on.

    Another line comes first, and once, if loops read streams whose position is not kept.
    """

    def __init__(self, progress: Progress, console: Console) -> None:
        self.console, self._history = console, History()
        list(self._history.new(progress))  # past events are not printed
        self._streams_shown = False

    def __call__(self, progress: Progress) -> None:
        if not self._streams_shown:
            self._show_streams(progress)
        for event in self._history.new(progress):
            if event["event"] == "resumed":
                title, resumed = event["stage"], event | {"death": event["reason"]}
                stage = "" if title == SEARCH else f"{WORDS.get(title, title)}: "
                streams = _streams_of(progress.trials[title], event["trial"])
                words = f"{stage}{describe_resumption(event['trial'], resumed, streams)}"
                say(self.console, words)

    def _show_streams(self, progress: Progress) -> None:
        for trials in progress.trials.values():
            for trial in trials:
                if streams := TrialRecord(trial).streams:
                    names = ", ".join(map(one_line, streams))
                    say(
                        self.console,
                        f"stream {names}: its position is not kept, so that a resumed trial reads "
                        "it from its start and may get another value; create it in each epoch",
                    )
                    self._streams_shown = True
                    return


def _streams_of(trials: Sequence[FrozenTrial], number: int) -> list[str]:
    """Returns the names of a trial's streams whose position is not kept."""
    for trial in trials:
        if trial.number == number:
            return [one_line(name) for name in TrialRecord(trial).streams]
    return []


class Display:
    """Shows a job while the body of a `with` runs it: live, in a notebook, or as plain lines.

    Args:
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
        self.read, self.console, self.stop, self.listeners = read, console, stop, listeners
        self._notes = Text("\n".join(notes))
        self._lines = LinePrinter(console, LINE_INTERVAL)
        self._stop_shown = False  # whether it was shown that the process is stopping
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Display":
        if isinstance(self.console, CellConsole):
            self.console.show(self._notes)
        elif self._notes:
            self.console.print(self._notes, soft_wrap=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if isinstance(self.console, CellConsole):
            self.console.show()
        if self.listeners:
            self._take()

    def _watch(self) -> None:
        """Redraws the job repeatedly; messages of signals are printed above and stay."""
        cell = self.console if isinstance(self.console, CellConsole) else None
        if cell is None and not self.console.is_interactive:
            self._look(lambda progress: self._lines.show(progress.line, progress))
            return
        if self.stop is not None:
            self.stop.is_shown = True
        try:
            if cell is not None:
                self._look(lambda progress: cell.show(self._notes, self.render(progress)))
                return
            with LiveLines(console=self.console, auto_refresh=False, transient=True) as live:
                self._look(
                    lambda progress: live.update(self.render(progress), refresh=True), self._tell
                )
                live.update("", refresh=True)
        finally:
            if self.stop is not None:
                self.stop.is_shown = False
            if cell is None:
                self._tell()  # a signal since the last look, which the process has not reported

    def _tell(self) -> None:
        """Prints once that the process is stopping."""
        if not self._stop_shown and self.stop is not None and self.stop():
            self._stop_shown = True
            say(self.console, stopping_words(self.stop.reason))

    def _look(
        self, draw: Callable[[Progress], None], tell: Callable[[], None] = lambda: None
    ) -> None:
        """Looks at the job until the body ends; `tell` is called at each tick."""
        due = 0.0
        while not self._end.wait(min(TICK, LIVE_INTERVAL)):
            tell()
            if (began := time.monotonic()) >= due:
                if (progress := self._take()) is not None:
                    draw(progress)
                took = time.monotonic() - began
                due = began + max(LIVE_INTERVAL, took / LOOKING)

    def _take(self) -> Progress | None:
        try:
            progress = self.read()
        except Exception:
            # The workers handle a database that is busy or away; the next look may succeed.
            return None
        for listener in self.listeners:
            listener(progress)
        return progress

    def render(self, progress: Progress) -> RenderableType:
        """Renders a job for a terminal, as wide as the console."""
        width, share, words = self.console.width, progress.share, progress.control_words
        if self.stop is not None and self.stop():
            words = stopping_words(self.stop.reason)
        head = wrap([one_line(progress.search.name), progress.stage_words], width, "  ")
        bar, times = Table.grid(padding=(0, 2)), [*progress.time_words()]
        drawn = ProgressBar(1.0, share, width=BAR_WIDTH)
        bar.add_row(drawn, f"{share:4.0%}", Text(", ".join(times[:2])))
        more = wrap(filter(None, [progress.later_words, *times[2:], words]), width)
        table = render_rows(last_trials(progress, width), range(width))
        return Group(Text("\n".join(head), "bold"), bar, *map(Text, more), table)


def stopping_words(reason: str) -> str:
    """Says that a process is stopping, and why, from `Stop.reason`."""
    if reason == "stopped":
        return "stopping; once more stops at once"
    return f"stopping: {reason}"
