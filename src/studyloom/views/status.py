"""The status of a study: printed once, followed until the job has ended, or as JSON."""

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from importlib import import_module
from typing import Any, NotRequired, TypedDict

from optuna.trial import FrozenTrial
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from studyloom.errors import StorageError
from studyloom.study.early_end import Hours
from studyloom.study.failures import FailureCount, count_failures, resumed_words
from studyloom.study.stopping import Stop, Wish
from studyloom.study.stored_study import SEARCH, StoredStudy, value_of
from studyloom.study.trial_record import TrialRecord
from studyloom.text import one_line
from studyloom.views.importances import importances
from studyloom.views.progress import WORDS, History, JobReader, Progress, StageTitle, to_json, wrap
from studyloom.views.snapshot import Snapshot, WorkerStatus
from studyloom.views.terminal import (
    answers_table,
    failure_lines,
    front_table,
    make_console,
    workers_table,
)
from studyloom.winner.result import ShortResult, short_words

TICK = 0.1  # seconds between looks at whether to stop
LIVE_INTERVAL = 0.5  # seconds between looks at a job that this process works on
WATCH_INTERVAL = 1.0  # seconds between looks at a job of others
LINE_INTERVAL = 5.0  # seconds between plain lines if something has changed
QUIET_INTERVAL = 60.0  # seconds between plain lines if nothing has
BAR_WIDTH = 20  # columns
DATABASE_DEADLINE = 2.0  # seconds that a look waits for a busy database
TOP = 5  # hyperparameters whose importance is shown


@dataclass(frozen=True)
class Status:
    """A study and its job at one moment. Two are equal if nothing but the time differs.

    Args:
        importances: of the most important hyperparameters, in all at most 1; empty as long as
            there are none.
    """

    progress: Progress
    importances: Mapping[str, float]
    failures: Sequence[FailureCount]


def read_status(source: JobReader | StoredStudy, before: Status | None = None) -> Status:
    """Reads the status of a study.

    Args:
        before: an earlier status. Its importances are taken if no trial was completed since.

    Raises:
        StorageError: the database cannot be read.
    """
    reader = source if isinstance(source, JobReader) else JobReader(source)
    stored, progress = reader.stored, reader.read()
    trials, complete = stored.trials(), progress.search.outcomes.get("complete")
    if before is not None and before.progress.search.outcomes.get("complete") == complete:
        shares = before.importances
    else:
        shares = top_importances(stored)
    return Status(progress, shares, count_failures(trials))


def top_importances(stored: StoredStudy) -> dict[str, float]:
    """Returns the importances of the most important hyperparameters, the largest first."""
    found = importances(stored)
    return {} if isinstance(found, str) else dict([*found.items()][:TOP])


def render(status: Status, width: int) -> RenderableType:
    """Renders the whole status, no wider than `width`; what a low window may cut off comes last."""
    progress, snapshot = status.progress, status.progress.search
    ended = snapshot.outlook.ending
    parts: list[RenderableType] = []

    def line(words: str, style: str = "") -> None:
        if words:
            parts.append(Text(words, style=style, overflow="fold"))

    line(snapshot.headline)
    if progress.answer is not None:
        line(short_words(progress.answer), "bold green")
    if ended is not None:
        line(ended.words)
    else:
        left = max(0, snapshot.slots["free"] - snapshot.outcomes.get("paused", 0))
        line(f"budget left: {left} trial{'' if left == 1 else 's'}")
    for words in job_lines(progress, width):
        line(words)
    line(progress.control_words, "bold")
    if ended is None:
        line(snapshot.outlook.words(snapshot.metric) or "")
    if progress.halted is not None:
        why = one_line(progress.halted)
        line(f"the study has stopped, since its trials fail with this: {why}", "bold red")
    if progress.current.workers:
        parts.append(workers_table(progress.current, width))
    for words in failure_lines(status.failures):
        line(words)
    if status.importances:
        line("what matters", "dim")
        longest = max(map(len, status.importances))
        for name, share in status.importances.items():
            line(f"  {one_line(name):{longest}}  {share:3.0%}")
    parts.append(answers_table(snapshot, width))
    if snapshot.rule is not None:
        parts.append(front_table(snapshot, width))
    return Group(*parts)


def job_lines(progress: Progress, width: int) -> list[str]:
    """Formats the stages of a job and its time in lines of at most `width` columns."""
    return [*wrap([progress.all_stages], width), *wrap(progress.time_words(), width)]


class BestTrial(TypedDict):
    """The best trial of a search."""

    trial: int
    value: float | None
    params: dict[str, Any]
    proposed_by: NotRequired[str | None]


@dataclass(frozen=True)
class SlotCounts:
    """The slots of the ledger by state."""

    free: int
    held: int
    done: int


@dataclass(frozen=True)
class OutcomeCounts:
    """The trials of the search by state."""

    complete: int
    pruned: int
    failed: int
    paused: int
    running: int
    waiting: int


@dataclass(frozen=True)
class FailuresOfKind:
    """How many trials have failed for a kind of reason, and the first of these."""

    count: int
    reason: str


@dataclass(frozen=True)
class StageCounts:
    """How many trials of a stage have ended, and how many are left, at most before it begins."""

    stage: StageTitle
    done: int
    left: int


@dataclass(frozen=True)
class StatusDocument:
    """The status of a study, by `studyloom status --json`; with --watch one a line.

    `best` is by the rule of the study, `front` the Pareto front, `ended` why the search ended
    before its budget was spent, `gain` what the trials that are left are expected to gain. `eta` is
    of the whole job; foreign trials are those of other programs.
    """

    study: str
    metric: str
    budget: int
    done: int
    slots: SlotCounts
    trials: OutcomeCounts
    best: BestTrial | None
    baseline: BestTrial | None
    front: list[BestTrial]
    rule: str | None
    importances: dict[str, float | None]
    workers: Sequence[WorkerStatus]
    failures: dict[str, FailuresOfKind]
    halted: str | None
    eta: float | None
    foreign: int
    ended: str | None
    gain: float | None
    stage: StageTitle
    stages: list[StageCounts]
    elapsed: float | None
    hours: Hours
    cost: float | None
    control: Wish | None
    answer: ShortResult | None
    exit_code: int | None


def as_json(status: Status) -> str:
    """Formats a status as one line of JSON, for other programs.

    What is missing or not finite is null.
    """
    return to_json(asdict(status_document(status)))


def status_document(status: Status) -> StatusDocument:
    """Makes the document of a status."""
    progress, snapshot = status.progress, status.progress.search
    answer: Any = progress.answer
    ended, outcomes = snapshot.outlook.ending, snapshot.outcomes
    return StatusDocument(
        study=snapshot.name,
        metric=snapshot.metric,
        budget=snapshot.budget,
        done=snapshot.done,
        slots=SlotCounts(**snapshot.slots),
        trials=OutcomeCounts(*(outcomes.get(state.name, 0) for state in fields(OutcomeCounts))),
        best=_best_trial(snapshot, snapshot.best),
        baseline=_best_trial(snapshot, snapshot.baseline),
        front=[_best_trial(snapshot, trial) for trial in snapshot.front],
        rule=snapshot.rule,
        importances={**status.importances},
        workers=progress.current.workers,
        failures={
            each.kind: FailuresOfKind(each.count, each.first_reason) for each in status.failures
        },
        halted=progress.halted,
        eta=progress.eta,
        foreign=snapshot.foreign,
        ended=None if ended is None else ended.words,
        gain=snapshot.outlook.gain,
        stage=progress.title,
        stages=[StageCounts(stage.title, stage.done, stage.left) for stage in progress.stages],
        elapsed=progress.elapsed,
        hours=progress.hours,
        cost=progress.cost,
        control=progress.control,
        answer=answer,
        exit_code=progress.exit_code,
    )


def _best_trial(snapshot: Snapshot, trial: FrozenTrial | None) -> Any:
    if trial is None:
        return None
    costs = dict(zip(snapshot.costs, (trial.values or ())[1:], strict=False))
    known = {"trial": trial.number, "value": value_of(trial), "params": trial.params}
    return known | {"proposed_by": TrialRecord(trial).proposer()} | costs


def print_status(status: Status, console: Console) -> None:
    console.print(render(status, console.width))


def is_plain(console: Console) -> bool:
    """Whether a console gets plain lines, since nothing can be drawn anew on it."""
    return not console.is_terminal or console.is_dumb_terminal


class LinePrinter:
    """Prints lines: one that has changed, at most every few seconds; else one a minute.

    Args:
        interval: seconds between two lines if something has changed.
    """

    def __init__(self, console: Console, interval: float) -> None:
        self.console, self.interval = console, interval
        self._last, self._at = "", time.monotonic()

    def show(self, line: str, progress: Progress | None) -> None:
        """Prints a line, if it is time for it, with the time left of a job."""
        now = time.monotonic()
        if now - self._at >= (self.interval if line != self._last else QUIET_INTERVAL):
            self._last, self._at = line, now
            eta = f"  {progress.eta_words}" if progress is not None else ""
            shown = f"{datetime.now():%H:%M:%S}  {line}{eta}"
            self.console.print(Text(shown), soft_wrap=True)


def watch(source: JobReader | StoredStudy, console: Console) -> None:
    """Shows a job until it has ended: live on a terminal, else a line for each change."""
    if is_plain(console):
        lines = LinePrinter(console, 0.0)
        for status in watch_statuses(source):
            progress = status.progress if isinstance(status, Status) else None
            lines.show(progress.line if progress else str(status), progress)
        return
    view: RenderableType = ""
    with Live(console=console, auto_refresh=False) as live:
        for status in watch_statuses(source):
            if isinstance(status, Status):
                view = render(status, console.width)
                live.update(view, refresh=True)
            else:
                error = Text(str(status), style="red", overflow="fold")
                live.update(Group(view, error), refresh=True)


def watch_json(source: JobReader | StoredStudy, write: Callable[[str], object]) -> None:
    """Writes a line of JSON, with its line break, for each change until a job has ended."""
    last = None
    for status in watch_statuses(source):
        if isinstance(status, Status) and status != last:
            write(f"{as_json(status)}\n")
            last = status


def watch_statuses(source: JobReader | StoredStudy) -> Iterator[Status | StorageError]:
    """Looks at a job every second until it has ended.

    Yields:
        The status, or the error if the database cannot be read; the next look may succeed.
    """
    reader = source if isinstance(source, JobReader) else JobReader(source)
    status: Status | None = None
    while True:
        try:
            status = read_status(reader, status)
            yield status
        except StorageError as error:
            yield error
        if status is not None and status.progress.ended:
            return
        time.sleep(WATCH_INTERVAL)


class Resumptions:
    """Prints once for each time that a trial goes on whose worker has died, from now on."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.console, self._told = console, History()
        list(self._told.new(progress))  # which are not told

    def __call__(self, progress: Progress) -> None:
        for event in self._told.new(progress):
            if event["event"] == "resumed":
                title, resumed = event["stage"], event | {"death": event["reason"]}
                stage = "" if title == SEARCH else f"{WORDS.get(title, title)}: "
                words = f"{stage}{resumed_words(event['trial'], resumed)}"
                self.console.print(Text(words), soft_wrap=True)


class Display:
    """Shows a job while the body of a `with` works on it: live, in a notebook, or as plain lines.

    Args:
        stop: whether the process stops, which is then shown; None if nothing stops it.
        listeners: called with each progress that was read, and with the last after the body.
    """

    def __init__(
        self,
        read: Callable[[], Progress],
        console: Console,
        stop: Stop | None = None,
        listeners: Sequence[Callable[[Progress], None]] = (),
    ) -> None:
        self.read, self.console, self.stop, self.listeners = read, console, stop, listeners
        self._cell: Any = None  # the handle of what a notebook's cell shows
        self._lines = LinePrinter(console, LINE_INTERVAL)
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
            self._cell.update(import_module("IPython.display").HTML(""))
        if self.listeners:
            self._take()

    def _watch(self) -> None:
        """Draws the job anew and anew; what a signal says stands above, where it stays."""
        if self._cell is not None or is_plain(self.console):
            self._look(self._show)
            return
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
        """Looks at the job until the body ends; `tell` is called at each tick."""
        looked = 0.0
        while not self._end.wait(min(TICK, LIVE_INTERVAL)):
            tell()
            if time.monotonic() - looked >= LIVE_INTERVAL:
                looked = time.monotonic()
                if (progress := self._take()) is not None:
                    draw(progress)

    def _take(self) -> Progress | None:
        try:
            progress = self.read()
        except Exception:
            # The workers deal with a database that is busy or away; the next look may succeed.
            return None
        for listener in self.listeners:
            listener(progress)
        return progress

    def _show(self, progress: Progress) -> None:
        """Shows in a notebook what a terminal would show, with text escaped; else prints a line."""
        if self._cell is None:
            self._lines.show(progress.line, progress)
            return
        width = self.console.width
        console = make_console(io.StringIO(), record=True, width=width, force_jupyter=False)
        console.print(self.render(progress))
        style = "white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace"
        page = f'<pre style="{style}">{{code}}</pre>'
        html = console.export_html(inline_styles=True, code_format=page)
        self._cell.update(import_module("IPython.display").HTML(html))

    def render(self, progress: Progress) -> RenderableType:
        """Renders a job for a terminal, as wide as the console."""
        width = self.console.width
        lines = [Text(line, style="dim") for line in job_lines(progress, width)]
        words = progress.control_words
        if self.stop is not None and self.stop():
            words = stopping_words(self.stop.ended_by)
        said = [Text(words, style="bold", overflow="fold")] if words else []
        head, workers = live_head(progress, width), workers_table(progress.current, width)
        return Group(head, *lines, *said, workers)


def stopping_words(ended_by: str) -> str:
    """Says that a process stops, and why, as `Stop.ended_by` does."""
    if ended_by == "stopped":
        return "stopping; once more stops at once"
    return f"stopping: {ended_by}"


def live_head(progress: Progress, width: int) -> RenderableType:
    """Renders name, bar, stage and best; in one line if there is room."""
    style = "" if progress.search.best is not None else "dim"
    best, done = Text(progress.best_words, style=style), Text(progress.stage_words)
    name = Text(one_line(progress.search.name), style="bold")
    bar = ProgressBar(max(1, progress.budget), progress.done, width=BAR_WIDTH)

    table = Table.grid(padding=(0, 2))
    if name.cell_len + done.cell_len + best.cell_len + BAR_WIDTH + 6 <= width:
        table.add_row(name, bar, done, best)
        return table
    table.add_row(bar, done)
    return Group(name, table, best)
