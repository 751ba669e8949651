"""What a study prints on a terminal: tables, the answer, and why trials failed."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from optuna.trial import FrozenTrial
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from studyloom.config.values import plain_sections
from studyloom.definition.sources import CODE
from studyloom.space.outline import outline
from studyloom.space.samplers import any_point
from studyloom.storage.urls import parse_url, without_password
from studyloom.study.failures import FailureCount, count_failures
from studyloom.study.stored_study import StoredStudy
from studyloom.study.trial_record import TrialRecord
from studyloom.text import (
    format_duration,
    format_error,
    format_parameter,
    one_line,
    printable,
    shorten_end,
)
from studyloom.views.progress import wrap
from studyloom.views.snapshot import Snapshot, format_parameters, format_trial_values, trial_values
from studyloom.winner.result import CHOSEN, Compressed, Result

if TYPE_CHECKING:
    from studyloom.definition.definition import Definition
    from studyloom.launch.task import Command
    from studyloom.winner.stages import ResultStages

# Columns from which on a worker and its lease, or a trial and its parameters, fit side by side.
WIDE = 72
WHOLE = 130  # columns of the variants of a winner with the percentiles of their latencies


def winner_lines(result: Result) -> Iterator[str]:
    """Formats a result for a terminal, line by line."""
    first, *others = result.facts()
    name = "winner   " if result.test is None else "test      winner"
    yield f"{name} {first.value}  {first.explanation}"
    yield from (f"{'':10}{fact}" for fact in others)


def workers_table(snapshot: Snapshot, width: int) -> RenderableType:
    """Renders each worker with its trial, epoch and value, and its times."""
    lines: list[RenderableType] = []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  worker", overflow="fold")
    for name in ("trial", "epoch", "value", "for", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for worker in snapshot.workers:
        number, epoch, value, age, left = cells = worker.cells
        owner = Text(f"{one_line(worker.owner)}", overflow="fold")
        table.add_row(Padding(owner, (0, 0, 0, 2)), *cells)
        if width < WIDE:
            lines.append(Text(f"trial {number}  epoch {epoch}  {value}"))
            lines.append(Text(f"  {one_line(worker.owner)}", overflow="fold"))
            lines.append(Text(f"  for {age}, {left}", style="dim"))
        elif worker.params:  # cut where the terminal ends
            line = f"  trial {worker.trial}: {format_parameters(worker.params)}"
            lines.append(Text(shorten_end(line, width), style="dim", no_wrap=True))
    return Group(*lines) if width < WIDE else Group(table, *lines)


def format_times(trials: Sequence[FrozenTrial], began: datetime) -> list[str]:
    """Formats how the workers spent their time, in percent by kind, the largest share first.

    Args:
        began: when this command began. From then on, a worker is also idle between its last trial
            and the end of the last trial of all.
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
    return [f"{kind} {100 * part / total:.1f} %" for kind, part in kinds.most_common() if part]


def answers_table(snapshot: Snapshot, width: int) -> RenderableType:
    """Renders the baseline and the best trial: values, standard error if known, and parameters."""
    answers = {"baseline": snapshot.baseline, "best": snapshot.best}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in ("what", "value", "trial"):
        table.add_column(name, no_wrap=True)
    table.add_column("parameters", overflow="fold")
    lines: list[RenderableType] = []
    for name, trial in answers.items():
        if trial is None:
            continue
        values, style = _named_values(snapshot, trial), "bold" if name == "best" else ""
        number, by = f"trial {trial.number}", proposer_words(trial)
        if width < WIDE:
            value = Text(", ".join(values), style=style)
            lines.append(Text.assemble(f"{name:8}  ", value, f"  {number}{by}"))
            for parameter, setting in trial.params.items():
                line = f"  {one_line(parameter)}={format_parameter(setting)}"
                lines.append(Text(line, overflow="fold"))
        else:
            value = Text("\n".join(values), style=style)
            table.add_row(name, value, number, format_parameters(trial.params) + by)
    if any(trial and TrialRecord(trial).standard_error is not None for trial in answers.values()):
        legend = f"{'':10}± is the standard error of the mean over folds and seeds"
        lines.append(Text(legend, style="dim"))
    return Group(*lines) if width < WIDE else Group(table, *lines)


def _named_values(snapshot: Snapshot, trial: FrozenTrial) -> list[str]:
    """Formats each value of a trial with its name, the metric's with its standard error."""
    error = TrialRecord(trial).standard_error
    value, *costs = trial_values(trial)
    spread = "" if error is None else f" ± {format_error(error, value)}"
    named_costs = map(" ".join, zip(snapshot.costs, costs, strict=False))
    return [f"{snapshot.metric} {value}{spread}", *named_costs]


def front_table(snapshot: Snapshot, width: int) -> RenderableType:
    """Renders the Pareto front, the cheapest trial first, and the rule that chooses the best."""
    rule = Text(f"rule      {snapshot.rule}", overflow="fold")
    if not snapshot.front:
        return rule
    heads, *rows = snapshot.front_rows()
    indent = ["front   "] if width >= WIDE else []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in indent:
        table.add_column(name, header_style="")
    for head in heads[:-1]:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column()
    for *cells, mark in rows:
        style = "bold" if "best" in mark.split(", ") else ""
        table.add_row(*("" for _ in indent), *cells, mark, style=style)
    return Group(table, rule)


def proposer_words(trial: FrozenTrial) -> str:
    """Words who proposed a trial, and why; empty if nobody has."""
    record = TrialRecord(trial)
    by, why = record.proposer(), record.proposer("why")
    return one_line(f", proposed by {by}{f': {why}' if why else ''}") if by else ""


def more_trials(snapshot: Snapshot, plan: "ResultStages") -> str:
    """Returns the override by which a search that has ended goes on; empty if it has not."""
    study, ended = plan.definition.config.study, snapshot.outlook.ending
    if ended is not None and ended.gain is not None:
        return f"study.regret={study.regret / 2:g}"
    if ended is not None and ended.spent is not None:
        return f"cost.limit={2 * plan.definition.config.cost.limit:g}"
    if ended is not None:
        return f"study.epochs={2 * ended.epochs}"
    spent = snapshot.done == snapshot.budget == study.trials
    return f"study.trials={2 * snapshot.budget}" if spent else ""


class SafeConsole(Console):
    """A console on which no text controls the terminal; only styles of Rich's do."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)

    lasting = False  # whether what prints here goes on without a reader, as a study does

    def on_broken_pipe(self) -> None:
        if not self.lasting:
            raise  # BrokenPipeError, and not SystemExit
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def make_console(file: Any = None, **options: Any) -> SafeConsole:
    """Makes a console that shows text verbatim: a study may be called `[red]` or `:bug:`."""
    return SafeConsole(
        file=file or sys.stdout, highlight=False, markup=False, emoji=False, **options
    )


def print_compressed(record: Compressed, console: Console) -> None:
    """Prints the variants of a winner that was made small, and the one that was chosen."""
    heads, *rows = record.rows()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(heads[0], min_width=len("PyTorch,"))
    for head in heads[1:-1]:
        table.add_column(head, justify="right", min_width=len("+0.0000"))
    table.add_column(heads[-1], no_wrap=True, min_width=len(CHOSEN))
    for name, *cells in rows:
        # A narrow terminal shows medians alone; the report has their percentiles too.
        kept = cells if console.width >= WHOLE else [cell.partition(" (")[0] for cell in cells]
        table.add_row(name, *kept, style="bold green" if cells[-1] == CHOSEN else "")
    console.print(table)
    console.print(Text("\n".join(record.lines())), soft_wrap=True)


def print_failures(stored: StoredStudy, console: Console) -> None:
    """Prints why trials failed, the most frequent kind of failure first."""
    for line in failure_lines(count_failures(stored.trials())):
        console.print(Text(line), soft_wrap=True)


def print_forgotten(stored: StoredStudy, console: Console) -> None:
    """Prints what of the user's loop a trial that goes on after a crash would lack."""
    known = (TrialRecord(trial).forgotten for trial in stored.trials())
    if names := next(filter(None, known), None):
        missing = ", ".join(f"{name}={name}" for name in map(one_line, names))
        words = f"run.keep lacks {missing}: after a crash, a trial comes to another value"
        console.print(Text(words), soft_wrap=True)


def failure_lines(failures: Sequence[FailureCount]) -> list[str]:
    """Words how many trials failed for each kind of reason, with the first of these reasons."""
    lines = [f"{each.kind}  {each.count} × such as: {each.first_reason}" for each in failures]
    return [*map(one_line, lines)]


def print_trials(stored: StoredStudy, console: Console) -> None:
    """Prints a line for each trial: number, outcome, values, time, and parameters or reason."""
    head = ("trial", "state", ", ".join(goal.name for goal in stored.goals), "time", "parameters")
    rows = [head]
    for trial in stored.trials():
        record = TrialRecord(trial)
        seconds = record.seconds
        spent = "" if seconds is None else format_duration(seconds)
        about = one_line(record.reason or format_parameters(trial.params))
        about += proposer_words(trial)
        rows.append((str(trial.number), record.outcome, format_trial_values(trial), spent, about))
    for line in aligned(rows, words=(1, 4)):
        console.print(Text(line), soft_wrap=True)


def aligned(rows: Sequence[Sequence[str]], words: Sequence[int]) -> Iterator[str]:
    """Yields rows as lines of columns, which nothing cuts; `words` are columns aligned left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def print_code_changes(stored: StoredStudy, console: Console) -> None:
    """Prints for each accepted change of the user's own code which trials were made before it."""
    for change in stored.code_changes():
        names = ", ".join(key.removeprefix(CODE) for key in change["changed"])
        before = f"trials 0 to {change['from'] - 1} were made with other code: {names} has changed"
        console.print(Text(before), soft_wrap=True)


def print_next_steps(
    plan: "ResultStages",
    command: "Command",
    snapshot: Snapshot,
    console: Console,
    began: datetime,
) -> None:
    """Prints the paths of the results, and the next commands."""
    stored = plan.search.stored
    curves = (TrialRecord(trial).curve for trial in stored.trials())
    if times := [seconds for columns in curves for seconds in columns.get("seconds", ())]:
        console.print(f"{median(times):.2f} s per epoch (median of {len(times)})")
    trials = [trial for stage in plan for trial in stage.stored.trials()]
    for line in wrap(format_times(trials, began), console.width):
        console.print(line)
    lines = [f"study  {without_password(parse_url(plan.prepared.url))}"]
    files = {"best": "best.yaml", "winner": "winner.yaml", "report": "report.html"}
    lines += [
        f"{what:6} {plan.run_dir / name}"
        for what, name in files.items()
        if (plan.run_dir / name).exists()
    ]
    folder = shlex.quote(str(plan.run_dir))
    nexts = [f"studyloom {verb} {folder}" for verb in ("status", "dashboard")]
    if plan.definition.space.size() > 1 and (more := more_trials(snapshot, plan)):
        key = more.partition("=")[0]
        again = shlex.join([*command.page, *command.without(key), more])
        called = f"the same call with {more.removeprefix('study.')}"
        nexts.insert(0, called if command.is_call else again)
    lines += [f"{'' if n else 'next':6} {command}" for n, command in enumerate(nexts)]
    console.print(Text("\n".join(lines)), soft_wrap=True)


# The sections of the sampled configuration that are printed.
SHOWN = ("model", "optimizer", "scheduler", "train", "params")


def print_dry_run(definition: "Definition", console: Console) -> None:
    """Prints the space as a tree, and one configuration that is sampled from it."""
    console.print(outline(definition.space))
    if definition.suggests:
        return
    point = any_point(definition.space, definition.seed)
    assert point is not None  # one was found when the question was checked
    sample = definition.at(point)
    console.print(Text("\none configuration of it:", style="bold"))
    sections = plain_sections(sample, *SHOWN)
    sections["train"].pop("loss")
    if not definition.reads_train:
        del sections["train"]
    words = OmegaConf.to_yaml(OmegaConf.create(sections)).rstrip()
    console.print(Padding(Text(words), (0, 0, 0, 2)))
