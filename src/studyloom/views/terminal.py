"""A study on a terminal: its status, its trials, and its accepted changes of code."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial
from rich.console import Console, Group, RenderableType
from rich.text import Text

from studyloom.storage.failures import FailureCount
from studyloom.storage.stored_study import SEARCH, StoredStudy, rank_by_value
from studyloom.storage.trial_record import TrialRecord, describe_state
from studyloom.text import format_duration, format_error, one_line
from studyloom.user_code.digests import CODE
from studyloom.views import advice_lines
from studyloom.views.last_trials import last_trials
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.views.state_colors import color_counts, color_state
from studyloom.views.status import Status
from studyloom.views.terminal_lines import (
    COLUMN_GAP,
    align_rows,
    find_column_start,
    render_rows,
    say,
    width_of,
    wrap_parts,
)
from studyloom.views.words import (
    describe_counts,
    describe_stored_result,
    describe_worker,
    format_each_value,
    format_trial_values,
    list_front,
    list_parameters,
)

INDENT = " " * 10  # of a line that continues one with a label


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
    state_column = find_column_start(rows, 1)
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


def print_code_changes(stored: StoredStudy, console: Console) -> None:
    """Prints for each accepted change of the user's code which trials ran before it."""
    for change in stored.code_changes():
        names = ", ".join(key.removeprefix(CODE) for key in change["changed"])
        say(console, f"trials 0 to {change['from'] - 1} ran other code: {names} has changed")


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
