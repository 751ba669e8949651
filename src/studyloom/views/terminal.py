"""A study on a terminal: its status, its trials, its result, and its failures.

`watch` and `Display` show a study that runs. On a terminal they draw lines again in their place, in
a notebook they replace the output of a cell, and in a pipe or a file they print a line for each
change.
"""

import io
import shlex
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from statistics import median
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
from studyloom.views.words import (
    describe_counts,
    describe_stored_result,
    describe_worker,
    explain_choice,
    format_each_value,
    format_parameters,
    format_trial_values,
    list_ablation,
    list_facts,
    list_front,
    list_parameters,
    name_trial,
)
from studyloom.winner.result import Result
from studyloom.worker.stopping import Stop

if TYPE_CHECKING:
    from studyloom.definition.definition import Definition
    from studyloom.winner.evaluation import Evaluation
    from studyloom.worker.open_study import OpenStudy
    from studyloom.worker.task import Command


INDENT = " " * 10  # of a line that continues one with a label


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


def describe_winner(
    result: Result, best: int | None = None, *, brief: bool = False
) -> Iterator[str]:
    """Yields a result as the lines that a terminal shows.

    Args:
        best: the number of the best trial of the search; None if it is not to be named.
        brief: whether to leave out what `±` means, and the interval of the mean.
    """
    best_text = ""
    if best is not None:
        best_text = f"best of the search: trial {best}; "
    yield f"{best_text}winner: {name_trial(result.winner)}, {explain_choice(result)}"
    winner_fact, *other_facts = list_facts(result, with_uncertainty=not brief)
    winner_value = f"{winner_fact.value}  {winner_fact.explanation}"
    label_width = len(INDENT)
    if result.test is None:
        yield f"{'winner':{label_width}}{winner_value}"
    else:
        yield f"{'test':{label_width}}winner {winner_value}"
    for fact in other_facts:
        yield f"{INDENT}{fact}"
    for line in list_ablation(result):
        yield f"{INDENT}  {line}"


def render_rows(
    rows: Sequence[Sequence[str]], text_columns: Sequence[int] | None = None, best: str = "best"
) -> RenderableType:
    """Renders rows in columns; the first row is their header, and dim.

    Args:
        text_columns: the columns to align left; None for all.
        best: the row with this word is bold: its first column is the word, or its last column is a
            list such as "baseline, best".
    """
    texts = []
    for row, line in zip(rows, align_rows(rows, text_columns), strict=True):
        style = ""
        if row is rows[0]:
            style = "dim"
        elif row[0] == best or best in row[-1].split(", "):
            style = "bold"
        texts.append(Text(line, style))
    return Group(*texts)


def format_times(trials: Sequence[FrozenTrial], began: datetime) -> list[str]:
    """Formats how the workers spent their time, such as "training 60.0%", the largest share first.

    A worker is idle from the end of its last trial until the last worker has ended its trial.

    Args:
        began: the start of this command; only workers that have ended a trial since then are idle.
    """
    seconds_by_kind: dict[str, float] = defaultdict(float)
    last_ends: dict[str, datetime] = {}  # by worker
    for trial in trials:
        record = TrialRecord(trial)
        for kind, seconds in record.times.items():
            seconds_by_kind[kind] += seconds
        end = trial.datetime_complete
        if end is not None and end > began:
            # A trial that was paused and continued may end after a later one of the same worker.
            worker = record.worker or ""
            last_ends[worker] = max(end, last_ends.get(worker, began))
    latest_end = max(last_ends.values(), default=began)
    for worker_end in last_ends.values():
        seconds_by_kind["idle"] += (latest_end - worker_end).total_seconds()
    total = sum(seconds_by_kind.values())
    shares = []
    for kind in sorted(seconds_by_kind, key=lambda kind: -seconds_by_kind[kind]):
        if seconds_by_kind[kind]:
            shares.append(f"{kind} {100 * seconds_by_kind[kind] / total:.1f}%")
    return shares


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


def find_continuation(snapshot: Snapshot, definition: "Definition") -> str:
    """Returns the override that continues a search that has ended; empty if it has not.

    The override doubles the limit that ended the search, such as "study.trials=80" after 40 trials:
    the number of trials, the cost, or the epochs. A limit of the expected gain is halved.
    """
    study = definition.config.study
    ending = snapshot.forecast.ending
    if ending is None:
        # The budget is larger than this command's trials if another command has raised it.
        if snapshot.done == snapshot.budget == study.trials:
            return f"study.trials={2 * snapshot.budget}"
        return ""
    if ending.gain is not None:
        assert study.min_improvement is not None
        return f"study.min_improvement={study.min_improvement / 2:g}"
    if ending.spent is not None:
        limit = definition.config.cost.limit
        assert limit is not None
        return f"cost.limit={2 * limit:g}"
    return f"study.epochs={2 * ending.epochs}"  # the only limit that is left


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


def print_failures(stored: StoredStudy, console: Console) -> None:
    """Prints why trials failed, the most frequent kind of failure first."""
    say(console, "\n".join(list_failures(count_failures(stored.trials()))))


def print_not_kept(stored: StoredStudy, console: Console) -> None:
    """Warns about state of the user's loop that a trial resumed after a crash would lack.

    A loop passes its state to `run.keep`, and studyloom finds what is missing there.
    """
    for trial in stored.trials():
        names = [one_line(name) for name in TrialRecord(trial).not_kept]
        if names:
            arguments = ", ".join(f"{name}={name}" for name in names)
            reason = "a trial resumed after a crash gets another value"
            say(console, f"run.keep lacks {arguments}: {reason}")
            return  # the other trials run the same loop


def print_warnings(stored: StoredStudy, console: Console) -> None:
    """Prints what trials have warned of, each line once."""
    warnings: dict[str, None] = {}  # a dict keeps the order, unlike a set
    for trial in stored.trials():
        warnings |= dict.fromkeys(TrialRecord(trial).warnings)
    for warning in warnings:
        say(console, one_line(warning))


def list_failures(failures: Sequence[FailureCount]) -> list[str]:
    """Says how many trials failed for each kind of reason, with the first reason of the kind."""
    lines = []
    for failure in failures:
        line = f"{failure.kind}  {failure.count} × such as: {failure.first_reason}"
        lines.append(one_line(line))
    return lines


def print_trials(stored: StoredStudy, console: Console) -> None:
    """Prints a line for each trial: number, state, values, time, hyperparameters or reason."""
    objectives = ", ".join(objective.name for objective in stored.objectives)
    rows = [("trial", "state", objectives, "time", "hyperparameters")]
    snapshot = take_snapshot(stored)
    for trial in snapshot.trials:
        record = TrialRecord(trial)
        time_text = ""
        if record.seconds is not None:
            time_text = format_duration(record.seconds)
        text = one_line(record.reason or format_parameters(trial.params)) + describe_proposer(trial)
        state = describe_state(trial, snapshot.live_trials)
        rows.append((str(trial.number), state, format_trial_values(trial), time_text, text))
    say(console, "\n".join(align_rows(rows, text_columns=(1, 4))))


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
    if console.is_jupyter:  # `study` and `study.winner` show the rest
        report = evaluation.study.run_dir / "report.html"
        if report.exists():
            say(console, f"report {report}")
    else:
        _print_times(evaluation, console, began)
        _print_paths(evaluation.study, console)
    commands = _list_next_commands(evaluation.study, command, snapshot)
    if console.is_jupyter:
        commands = commands[:1]  # in a cell, `study` shows what the others show
    # A backslash before a line break lets a shell read on, so that the command can be copied.
    line_break = " \\\n"
    width = width_of(console) - len(" \\")
    label = "next"
    for arguments in commands:
        parts = [f"{label:6}", *map(shlex.quote, arguments)]
        lines = wrap_parts(parts, width, " ", indent=7, breaks_words=False)
        console.print(Text(line_break.join(lines)), soft_wrap=True)
        label = ""  # only the first command has it


def _print_times(evaluation: "Evaluation", console: Console, began: datetime) -> None:
    """Prints the seconds of an epoch, and how the workers spent their time."""
    seconds: list[float] = []
    for trial in evaluation.study.stored.trials():
        seconds += TrialRecord(trial).curve.get("seconds", ())
    if seconds:
        console.print(f"{median(seconds):.2f} s per epoch (median of {len(seconds)})")
    trials: list[FrozenTrial] = []
    for stage in evaluation.stages:
        trials += stage.stored.trials()
    say(console, ", ".join(format_times(trials, began)))


def _print_paths(study: "OpenStudy", console: Console) -> None:
    """Prints the address of the database, and the paths of the result files that exist."""
    lines = [f"study  {without_password(parse_url(study.prepared.url))}"]
    files = {"best": "best.yaml", "winner": "winner.yaml", "report": "report.html"}
    for label, name in files.items():
        path = study.run_dir / name
        if path.exists():
            lines.append(f"{label:6} {path}")
    say(console, "\n".join(lines))


def _list_next_commands(
    study: "OpenStudy", command: "Command", snapshot: Snapshot
) -> list[list[str]]:
    """Returns commands as lists of words: one that continues the search, and those that show it.

    An example of a command that shows it is `["studyloom", "status", "runs/mnist"]`. The command
    that continues is missing if the search has not ended, or has tried all of the search space.
    """
    commands = []
    override = ""
    if study.definition.space.size() > 1:
        override = find_continuation(snapshot, study.definition)
    if override and command.is_call:  # a study from Python is continued by the same call
        setting = override.removeprefix("study.")
        sentence = f"{command.again} with {setting}"  # such as "the same call with trials=80"
        commands.append(sentence.split())
    elif override:
        key, _, _ = override.partition("=")
        commands.append([*command.as_typed, *command.without(key), override])
    for verb in ("status", "dashboard"):
        commands.append(["studyloom", verb, str(study.run_dir)])
    return commands


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

    add_text(describe_counts(snapshot))
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
    if status.importances:
        add_text("what matters", "dim")
        add_text("\n".join(_list_importances(status.importances)))
    parts.append(compare_with_baseline(snapshot, width))
    if snapshot.rule is not None:
        parts.append(render_front(snapshot))
    return Group(*parts)


def _list_importances(shares: Mapping[str, float]) -> list[str]:
    """Returns a line for each hyperparameter, with its importance in percent."""
    longest = max(map(len, shares))
    return [f"  {one_line(name):{longest}}  {share:3.0%}" for name, share in shares.items()]


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
                        "it from its start and may get another value; create it in each epoch",
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
            self.console.print(self._notes, soft_wrap=True)
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
