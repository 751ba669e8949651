"""What a study looks like while it runs, and when it has ended."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from studyloom.failures import FAILURE
from studyloom.metrics import amount, shown
from studyloom.record import Record, is_part
from studyloom.study import BASELINE, STANDARD_ERROR, TIMES, WORKER

REFRESH = 0.5  # seconds, on a terminal
LINE = 5.0  # seconds between plain lines
WIDE = 72  # columns from which on a worker and its lease, or a trial and its parameters, stand side by side


@dataclass(frozen=True)
class Seat:
    """A worker and what it is at; number, epoch and value are None before there are any.

    left, age: seconds that its lease has left, and since it took its slot; as time passes, nothing has changed.
    """

    owner: str
    number: int | None = None
    epoch: int | None = None
    value: float | None = None
    left: float | None = field(default=None, compare=False)
    age: float | None = field(default=None, compare=False)

    @property
    def alive(self) -> bool:
        return self.left is None or self.left > 0


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment: slots by state, trials by outcome, the two trials to know, and who works on what.

    costs: what the values of a trial are beside the metric. front: where there are any, the trials that none beats, the
    best by the metric first. rule: how the best is chosen; None where the metric alone says so.
    """

    name: str
    slots: Mapping[str, int]
    outcomes: Mapping[str, int]
    best: FrozenTrial | None
    baseline: FrozenTrial | None
    seats: tuple[Seat, ...]
    metric: str = "value"
    costs: tuple[str, ...] = ()
    front: tuple[FrozenTrial, ...] = ()
    rule: str | None = None

    @property
    def budget(self) -> int:
        return sum(self.slots.values())

    @property
    def done(self) -> int:
        return self.slots["done"]


def take(record: Record) -> Snapshot:
    """Reads a study: unfinished trials, and those that ended since the last time."""
    trials = record.trials()
    by_id = {trial._trial_id: trial for trial in trials}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    seats = []
    for held in record.ledger.held():
        trial = by_id.get(held.trial_id) if held.trial_id is not None else None
        step = None if trial is None else trial.last_step
        value = None if trial is None or step is None else trial.intermediate_values[step]
        seats.append(Seat(held.owner, None if trial is None else trial.number, step, value, held.left, held.age))
    rule, costs = record.rule(), tuple(aim.name for aim in record.aims[1:])
    return Snapshot(
        name=record.name,
        slots=record.ledger.counts(),
        outcomes=Counter(outcome(trial) for trial in trials),
        best=next(iter(record.ranked(rule)), None),
        baseline=next((trial for trial in complete if BASELINE in trial.user_attrs), None),
        seats=tuple(seats),
        metric=record.metric,
        costs=costs,
        front=tuple(record.front()) if costs else (),
        rule=str(rule) if costs or rule.conditions or rule.goal.name != record.metric else None,
    )


def outcome(trial: FrozenTrial) -> str:
    """complete, pruned, failed, running; a trial that diverged has failed, whatever the sampler is told of it."""
    if FAILURE in trial.user_attrs or trial.state == TrialState.FAIL:
        return "failed"
    return trial.state.name.lower()


class Display:
    """Shows a study while the body of a `with` works on it: live on a terminal, else a line every few seconds.

    current: the study that is worked on just now, for a run goes from one to the next.
    """

    def __init__(self, current: Callable[[], Record], console: Console) -> None:
        self.current = current
        self.console = console
        self._begin(take(current()))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Display":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        if not self.console.is_terminal:
            while not self._end.wait(LINE):
                if (snapshot := self._take()) is not None:
                    self.console.print(Text(self.line(snapshot)), soft_wrap=True)
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while not self._end.wait(REFRESH):
                if (snapshot := self._take()) is not None:
                    live.update(self.render(snapshot), refresh=True)

    def _begin(self, snapshot: Snapshot) -> None:
        self.name, self.done_before, self.started = snapshot.name, snapshot.done, time.monotonic()

    def _take(self) -> Snapshot | None:
        try:
            snapshot = take(self.current())
            if snapshot.name != self.name:
                self._begin(snapshot)
            return snapshot
        except Exception:  # a busy or absent database is the workers' affair; the next look may succeed
            return None

    def rest(self, snapshot: Snapshot) -> str:
        """The time that the open slots will take at the pace since this command began on them."""
        done = snapshot.done - self.done_before
        if not done:
            return "ETA –"
        return f"ETA {seconds((time.monotonic() - self.started) / done * (snapshot.budget - snapshot.done))}"

    def line(self, snapshot: Snapshot) -> str:
        best = f"best {told(snapshot.best)} (trial {snapshot.best.number})" if snapshot.best else "no result yet"
        parts = [snapshot.name, f"{snapshot.done}/{snapshot.budget}", *([] if is_part(snapshot.name) else [best])]
        return "  ".join([*parts, f"{len(snapshot.seats)} running", self.rest(snapshot)])

    def render(self, snapshot: Snapshot) -> RenderableType:
        width = self.console.width
        return Group(head(snapshot, self.rest(snapshot), width), seats_table(snapshot, width))


def head(snapshot: Snapshot, rest: str, width: int) -> RenderableType:
    """Name, bar, best and time left; in one line if there is room."""
    best = Text("no result yet", style="dim")
    if snapshot.best is not None:
        best = Text(f"best {told(snapshot.best)}", style="bold green")
        best.append(f" trial {snapshot.best.number}", style="dim")
    found = [] if is_part(snapshot.name) else [best]  # of what was found already, no trial is best
    name, done = Text(snapshot.name, style="bold"), Text(f"{snapshot.done}/{snapshot.budget}")
    bar = ProgressBar(total=max(1, snapshot.budget), completed=snapshot.done, width=20)
    beside = sum(2 + width for width in (20, done.cell_len, *(one.cell_len for one in found), len(rest)))
    if name.cell_len + beside <= width:
        return row(name, bar, done, *found, Text(rest))
    return Group(name, row(bar, done), row(*found, Text(rest)))


def row(*parts: RenderableType) -> Table:
    table = Table.grid(*("" for _ in parts), padding=(0, 2))
    table.add_row(*parts)
    return table


def seats_table(snapshot: Snapshot, width: int) -> RenderableType:
    """A line per worker: who, its trial, epoch and value, and since when and for how long it holds its slot."""
    if width < WIDE:
        return Group(*(Text("\n").join(narrow(seat)) for seat in snapshot.seats))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  worker", overflow="fold")
    for name in ("trial", "epoch", "value", "held", "lease"):
        table.add_column(name, justify="right", no_wrap=True)
    for seat in snapshot.seats:
        table.add_row(Padding(Text(seat.owner), (0, 0, 0, 2)), *cells(seat))
    return table


def cells(seat: Seat) -> list[str]:
    """Trial, epoch, value, and the time that a slot is held and that its lease has left."""
    value = None if seat.value is None else shown(seat.value)
    age = None if seat.age is None else seconds(seat.age)
    left = None if seat.left is None else seconds(seat.left) if seat.alive else "over"
    return ["–" if said is None else str(said) for said in (seat.number, seat.epoch, value, age, left)]


def narrow(seat: Seat) -> list[Text]:
    number, epoch, value, age, left = cells(seat)
    return [
        Text(f"trial {number}  epoch {epoch}  {value}"),
        Text(f"  {seat.owner}", overflow="fold"),
        Text(f"  held {age}, lease {left}", style="dim"),
    ]


def times(trials: Sequence[FrozenTrial], began: datetime) -> str:
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
    return ", ".join(f"{kind} {100 * part / total:.1f} %" for kind, part in kinds.most_common() if part)


def headline(snapshot: Snapshot) -> str:
    """Slots and trials in one line."""
    parts = [f"{snapshot.outcomes.get(name, 0)} {name}" for name in ("complete", "pruned", "failed")]
    if snapshot.seats:
        parts.append(f"{len(snapshot.seats)} running")
    return f"{snapshot.name}: {snapshot.done} of {snapshot.budget} trials – {', '.join(parts)}"


def answers_table(snapshot: Snapshot, width: int) -> RenderableType:
    """The baseline's and the best trial's value, with its standard error over several jobs, and parameters."""
    answers = [(what, trial) for what in ("baseline", "best") if (trial := getattr(snapshot, what)) is not None]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in ("what", "value", "trial"):
        table.add_column(name, no_wrap=True)
    table.add_column("parameters", overflow="fold")
    stacked: list[RenderableType] = []
    for what, trial in answers:
        error = trial.user_attrs.get(STANDARD_ERROR)
        spread = "" if error is None else f" ± {shown(error)}"
        first, *costs = values(trial)
        said = [f"{snapshot.metric} {first}{spread}", *map(" ".join, zip(snapshot.costs, costs, strict=False))]
        value = Text((", " if width < WIDE else "\n").join(said), style="bold green" if what == "best" else "")
        if width < WIDE:
            stacked.append(Text.assemble(f"{what:8}  ", value, f"  trial {trial.number}"))
            stacked += [Text(f"  {name}={shorten(given)}", overflow="fold") for name, given in trial.params.items()]
        else:
            table.add_row(Text(what), value, f"trial {trial.number}", Text(parameters(trial.params)))
    return Group(*stacked) if width < WIDE else table


def told(trial: FrozenTrial) -> str:
    """Its value, or all of them."""
    return ", ".join(values(trial))


def values(trial: FrozenTrial) -> list[str]:
    """Its value, and what it costs beside it."""
    if not trial.values:
        return ["–"]
    return [shown(trial.values[0]), *map(amount, trial.values[1:])]


def front_rows(snapshot: Snapshot) -> list[list[str]]:
    """The Pareto front under its heads: values, trial, and which is the best; with the baseline, beaten or not."""
    known = {trial.number: trial for trial in snapshot.front}
    marks: dict[int, list[str]] = {}
    for what, trial in (("best", snapshot.best), ("baseline", snapshot.baseline)):
        if trial is not None:
            beaten = "" if trial.number in known else ", beaten"
            marks.setdefault(trial.number, []).append(f"{what}{beaten}")
            known[trial.number] = trial
    order = sorted(known.values(), key=lambda trial: [*trial.values[1:], trial.number])
    rows = [[*values(trial), str(trial.number), ", ".join(marks.get(trial.number, []))] for trial in order]
    return [[snapshot.metric, *snapshot.costs, "trial", ""], *rows]


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


def parameters(params: Mapping[str, Any]) -> str:
    return "  ".join(f"{name}={shorten(value)}" for name, value in params.items()) or "as composed"


def shorten(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def seconds(duration: float) -> str:
    """A duration for people: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(duration)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def console() -> Console:
    """Shows text as it is: a study may be called `[red]` or `:bug:`."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
