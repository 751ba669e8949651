"""What a study looks like while it runs, and when it has ended."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from studyloom.storage.attributes import FAILURE, REASON, STANDARD_ERROR, TIMES, WORKER
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_duration, format_parameter, format_value
from studyloom.views.snapshot import Snapshot, WorkerStatus, front_rows, trial_values
from studyloom.winner.answer import format_costs, format_difference, format_mean


def winner_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The answer, for a terminal."""
    test, chosen = found["test"], found["winner"]
    if test is None:
        much = f"trial {chosen['trial']}, {len(found['seeds'])} fresh seeds"
        yield f"winner    {found['metric']['name']} {format_mean(chosen)}  {much}"
        for row in found["candidates"]:
            if row.get("baseline") and "mean" in row and row["trial"] != chosen["trial"]:
                yield f"          baseline {format_mean(row)}"
        yield f"          selection gap {format_value(chosen['gap'], '+')}"
        yield f"          {found['note']}"
        return
    much = f"trial {chosen['trial']}, {len(found['seeds'])} seeds, {test['examples']} examples{format_costs(chosen)}"
    yield f"test      winner {found['metric']['name']} {format_mean(test['winner'])}  {much}"
    if "difference" in test:
        yield f"          baseline {format_mean(test['baseline'])}"
        yield f"          difference {format_difference(test)}"
    for rule, value in test["references"].items():
        yield f"          {rule} {format_value(value)}"
    if "gap" in chosen:
        yield f"          selection gap {format_value(chosen['gap'], '+')}: {format_mean(chosen)} on fresh seeds and validation parts"
    if not found.get("keeps", True):
        yield f"          on fresh seeds no candidate keeps to {found['rule']}; this one is the best of them"


WIDE = 72  # columns from which on a worker and its lease, or a trial and its parameters, stand side by side


def workers_table(snapshot: Snapshot, width: int) -> RenderableType:
    """A line per worker: who, its trial, epoch and value, and since when and for how long it holds its slot."""
    if width < WIDE:
        return Group(*(Text("\n").join(_narrow_worker(worker)) for worker in snapshot.workers))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  worker", overflow="fold")
    for name in ("trial", "epoch", "value", "held", "lease"):
        table.add_column(name, justify="right", no_wrap=True)
    for worker in snapshot.workers:
        table.add_row(Padding(Text(worker.owner), (0, 0, 0, 2)), *_worker_cells(worker))
    return table


def _worker_cells(worker: WorkerStatus) -> list[str]:
    """Trial, epoch, value, and the time that a slot is held and that its lease has left."""
    value = None if worker.value is None else format_value(worker.value)
    age = None if worker.age is None else format_duration(worker.age)
    left = None if worker.left is None else format_duration(worker.left) if worker.alive else "over"
    return [
        "–" if said is None else str(said)
        for said in (worker.number, worker.epoch, value, age, left)
    ]


def _narrow_worker(worker: WorkerStatus) -> list[Text]:
    number, epoch, value, age, left = _worker_cells(worker)
    return [
        Text(f"trial {number}  epoch {epoch}  {value}"),
        Text(f"  {worker.owner}", overflow="fold"),
        Text(f"  held {age}, lease {left}", style="dim"),
    ]


def format_times(trials: Sequence[FrozenTrial], began: datetime) -> str:
    """Where the workers' time went that was spent on these trials, in percent, most of it first.

    began: of this command. Its workers are idle too from their last trial to the end of the last of all.
    """
    kinds: Counter[str] = Counter()
    last: dict[str, datetime] = {}
    for trial in trials:
        kinds.update(trial.user_attrs.get(TIMES, {}))
        if trial.datetime_complete is not None and trial.datetime_complete > began:
            last[trial.user_attrs.get(WORKER, "")] = trial.datetime_complete
    kinds.update({"idle": sum((max(last.values()) - end).total_seconds() for end in last.values())})
    total = kinds.total()
    return ", ".join(
        f"{kind} {100 * part / total:.1f} %" for kind, part in kinds.most_common() if part
    )


def headline(snapshot: Snapshot) -> str:
    """Slots and trials in one line."""
    parts = [
        f"{snapshot.outcomes.get(name, 0)} {name}" for name in ("complete", "pruned", "failed")
    ]
    if snapshot.workers:
        parts.append(f"{len(snapshot.workers)} running")
    return f"{snapshot.name}: {snapshot.done} of {snapshot.budget} trials – {', '.join(parts)}"


def answers_table(snapshot: Snapshot, width: int) -> RenderableType:
    """The baseline's and the best trial's value, with its standard error over several jobs, and parameters."""
    answers = [
        (what, trial)
        for what in ("baseline", "best")
        if (trial := getattr(snapshot, what)) is not None
    ]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in ("what", "value", "trial"):
        table.add_column(name, no_wrap=True)
    table.add_column("parameters", overflow="fold")
    stacked: list[RenderableType] = []
    for what, trial in answers:
        error = trial.user_attrs.get(STANDARD_ERROR)
        spread = "" if error is None else f" ± {format_value(error)}"
        first, *costs = trial_values(trial)
        said = [
            f"{snapshot.metric} {first}{spread}",
            *map(" ".join, zip(snapshot.costs, costs, strict=False)),
        ]
        value = Text(
            (", " if width < WIDE else "\n").join(said),
            style="bold green" if what == "best" else "",
        )
        if width < WIDE:
            stacked.append(Text.assemble(f"{what:8}  ", value, f"  trial {trial.number}"))
            stacked += [
                Text(f"  {name}={format_parameter(given)}", overflow="fold")
                for name, given in trial.params.items()
            ]
        else:
            table.add_row(
                Text(what), value, f"trial {trial.number}", Text(format_parameters(trial.params))
            )
    return Group(*stacked) if width < WIDE else table


def front_table(snapshot: Snapshot, width: int) -> RenderableType:
    """The Pareto front, the cheapest first, and how the best of it is chosen."""
    rule = Text(f"rule      {snapshot.rule}", overflow="fold")
    if not snapshot.front:
        return rule
    (*heads, _), *rows = front_rows(snapshot)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    title = ["front   "] if width >= WIDE else []
    for name in title:
        table.add_column(name, header_style="")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column()
    for *cells, mark in rows:
        style = "bold green" if "best" in mark.split(", ") else ""
        table.add_row(*("" for _ in title), *cells, mark, style=style)
    return Group(table, rule)


def format_parameters(params: Mapping[str, Any]) -> str:
    return (
        "  ".join(f"{name}={format_parameter(value)}" for name, value in params.items())
        or "as composed"
    )


def make_console() -> Console:
    """Shows text as it is: a study may be called `[red]` or `:bug:`."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def print_failures(stored: StoredStudy, console: Console) -> None:
    """Why trials failed, the most frequent reason first."""
    failed = [trial.user_attrs for trial in stored.trials() if FAILURE in trial.user_attrs]
    for kind, count in Counter(attrs[FAILURE] for attrs in failed).most_common():
        message = next(attrs[REASON] for attrs in failed if attrs[FAILURE] == kind)
        console.print(Text(f"{kind}  {count} × such as: {message}"), soft_wrap=True)
