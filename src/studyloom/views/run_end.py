"""The end of a run on a terminal: the result first, in at most MOST_LINES lines.

`studyloom status` has the rest, see `views.run_details`.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from studyloom.text import format_cost, format_duration, format_error
from studyloom.views import words
from studyloom.views.notable_trials import NotableTrial, list_notable_trials
from studyloom.views.snapshot import Snapshot
from studyloom.views.state_colors import color_counts
from studyloom.views.terminal_lines import align_rows, width_of, wrap_parts
from studyloom.winner.result import Result

MOST_LINES = 12
# What follows the sign ± in a column of the table: over folds and seeds, or over seeds alone.
SPREADS = {"search": "standard error", "re-evaluation": "std", "test": "std"}
INDENT = 10  # columns before the text of a line with a label


@dataclass(frozen=True)
class RunEnd:
    """A run that has ended, as a terminal shows it.

    Args:
        headline: the study in one sentence.
        seconds: how long the command has run; None if it had nothing to do.
        is_halted: whether the study has stopped itself, since its trials fail.
        traceback: where trials failed, if the study has stopped itself because of it.
        notes: sentences that the user should not miss, the most important first.
        advice: sentences on what the trials have shown; they are left out if there is no room.
        has_report: whether the run directory has a report.
        next_command: the words of the command that continues the search; empty if none does.
        next_call: the same for a search from Python, such as "the same call with trials=80".
        last: why the run was stopped, or why nothing was left to do; may be empty.
    """

    headline: str
    snapshot: Snapshot
    run_dir: Path
    result: Result | None = None
    seconds: float | None = None
    is_halted: bool = False
    traceback: str = ""
    notes: Sequence[str] = ()
    advice: Sequence[str] = ()
    has_report: bool = False
    next_command: Sequence[str] = ()
    next_call: str = ""
    last: str = ""


def print_run_end(end: RunEnd, console: Console) -> None:
    """Prints the end of a run; a pipe or a file gets lines of any length."""
    for line in render_run_end(end, width_of(console), in_notebook=console.is_jupyter):
        console.print(line, soft_wrap=True)


def render_run_end(end: RunEnd, width: int, *, in_notebook: bool = False) -> list[Text]:
    """Renders the end of a run as lines, the result first.

    If there were more than MOST_LINES of them, the last pieces of advice are left out, and then the
    last notes.

    Args:
        width: the columns of a line.
        in_notebook: whether `study` in a cell shows the table and the commands.
    """
    head = [*_render_headline(end, width)]
    foot = [*_render_foot(end, width, in_notebook=in_notebook)]
    if end.traceback:
        room = MOST_LINES - len(head) - len(foot)
        head += _render_traceback(end.traceback, room)
    elif not in_notebook:
        head += _render_values(end.snapshot, end.result)
    if end.result is not None and end.result.test is not None:
        head += _render_difference(end.result, width)
    room = MOST_LINES - len(head) - len(foot)
    remarks: list[Text] = []
    for sentence in (*end.notes, *end.advice):
        lines = _wrap(sentence, width)
        if len(remarks) + len(lines) > room:
            break
        remarks += lines
    return [*head, *remarks, *foot]


def _wrap(text: str, width: int, *, style: str = "", indent: int = 0) -> list[Text]:
    """Breaks lines between words; a word that is longer than a line stays whole."""
    lines = []
    for part in text.splitlines():
        for line in wrap_parts([part], width, indent=indent, breaks_words=False):
            lines.append(Text(line, style))
    return lines


def _render_headline(end: RunEnd, width: int) -> Iterator[Text]:
    """Yields the sentence on the study, green if it is tested, and the counts of its trials."""
    style = "bold"
    if end.is_halted:
        style = "bold red"
    elif end.result is not None and end.result.test is not None:
        style = "bold green"
    yield from _wrap(end.headline, width, style=style)
    counts = words.describe_counts(end.snapshot)
    if end.seconds is not None:
        counts += f", {format_duration(end.seconds)}"
    for line in _wrap(counts, width):
        yield color_counts(line)


def _render_traceback(traceback: str, room: int) -> Iterator[Text]:
    """Yields the last lines of a traceback, as many as there is room for."""
    lines = traceback.splitlines()
    for line in lines[-max(room, 1) :]:
        yield Text(line, "dim")


# The table of values


def _render_values(snapshot: Snapshot, result: Result | None) -> Iterator[Text]:
    """Yields a table: the winner, the best trial of the search and the baseline, with each value.

    Its columns are the trial, its values in the search, the mean on new seeds, and the mean on the
    test set. A column without a value is left out.
    """
    notable_trials = list_notable_trials(snapshot, result)
    if not notable_trials:
        return
    rows = [[snapshot.metric, "trial", "search", *snapshot.costs, "re-evaluation", "test"]]
    for trial in notable_trials:
        rows.append(_format_row(trial, snapshot.costs))
    filled_columns = []
    for head, *cells in zip(*rows, strict=True):
        if any(cells):
            filled_columns.append([_name_spread(head, cells), *cells])
    text_columns = range(2, len(filled_columns))  # their values have as many decimals as digits
    head, *lines = align_rows([*zip(*filled_columns, strict=True)], (0, *text_columns))
    yield Text(head, "dim")
    for line in lines:
        yield Text(line)


def _name_spread(head: str, cells: Sequence[str]) -> str:
    """Returns the head of a column, with what follows the sign ± in it: see SPREADS."""
    if any("±" in cell for cell in cells):
        return f"{head} ± {SPREADS[head]}"
    return head


def _format_row(trial: NotableTrial, costs: Sequence[str]) -> list[str]:
    """Formats the values of a trial as the cells of its row."""
    candidate = trial.candidate
    search_value = words.describe_search_value(candidate)
    if trial.search_error is not None:
        search_value += f" ± {format_error(trial.search_error, search_value)}"
    cells = [trial.name, str(candidate.trial), search_value]
    for name in costs:
        cells.append(format_cost(candidate.costs[name]))
    for summary in (candidate.reevaluation, trial.test):
        mean = ""
        if summary is not None:
            mean = words.format_mean(summary)
        cells.append(mean)
    return cells


def _render_difference(result: Result, width: int) -> list[Text]:
    """Returns the difference to the baseline on the test set, with its interval."""
    assert result.test is not None
    difference = words.describe_difference(result.test)
    if not difference:
        return []
    return _wrap(f"difference {difference}", width)


# What follows


def _render_foot(end: RunEnd, width: int, *, in_notebook: bool) -> Iterator[Text]:
    """Yields where the rest is, the command that continues the search, and why the run ended."""
    status = shlex.join(["studyloom", "status", str(end.run_dir)])
    parts = []
    if end.has_report:
        parts.append(f"{'report':{INDENT}}{end.run_dir / 'report.html'}")
        if not in_notebook:
            parts.append(f"details: {status}")
    elif not in_notebook:
        parts.append(f"{'status':{INDENT}}{status}")
    for line in wrap_parts(parts, width, "; ", indent=INDENT, breaks_words=False):
        yield Text(line)
    if end.next_command:
        yield from _render_command(end.next_command, width)
    if end.next_call:
        yield from _wrap(f"{'next':{INDENT}}{end.next_call}", width)
    if end.last:
        yield from _wrap(end.last, width)


def _render_command(command: Sequence[str], width: int) -> Iterator[Text]:
    """Yields a command in lines that can be copied: a backslash lets a shell read on."""
    line_break = " \\"
    parts = [f"{'next':{INDENT - 1}}", *map(shlex.quote, command)]
    *lines, last_line = wrap_parts(
        parts, width - len(line_break), " ", indent=INDENT, breaks_words=False
    )
    for line in lines:
        yield Text(f"{line}{line_break}")
    yield Text(last_line)
