"""What a study looks like while it runs, and when it has ended."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from studyloom.failures import FAILURE
from studyloom.study import BASELINE, STANDARD_ERROR, Record

REFRESH = 0.5  # seconds, on a terminal
LINE = 5.0  # seconds between plain lines


@dataclass(frozen=True)
class Seat:
    """A worker and what it is at; number, epoch and value are None before there are any."""

    owner: str
    number: int | None = None
    epoch: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment: slots by state, trials by outcome, the two trials to know, and who works on what."""

    name: str
    slots: Mapping[str, int]
    outcomes: Mapping[str, int]
    best: FrozenTrial | None
    baseline: FrozenTrial | None
    seats: tuple[Seat, ...]

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
        if trial is None:
            seats.append(Seat(held.owner))
        else:
            step = trial.last_step
            value = None if step is None else trial.intermediate_values[step]
            seats.append(Seat(held.owner, trial.number, step, value))
    return Snapshot(
        name=record.name,
        slots=record.ledger.counts(),
        outcomes=Counter(outcome(trial) for trial in trials),
        best=max(complete, key=lambda trial: trial.value or 0.0, default=None),
        baseline=next((trial for trial in complete if BASELINE in trial.user_attrs), None),
        seats=tuple(seats),
    )


def outcome(trial: FrozenTrial) -> str:
    """complete, pruned, failed, running; a trial that diverged has failed, whatever the sampler is told of it."""
    if FAILURE in trial.user_attrs or trial.state == TrialState.FAIL:
        return "failed"
    return trial.state.name.lower()


class Display:
    """Shows a study while the body of a `with` works on it: live on a terminal, else a line every few seconds."""

    def __init__(self, record: Record, console: Console) -> None:
        self.record = record
        self.console = console
        self.started = time.monotonic()
        self.done_before = take(record).done
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

    def _take(self) -> Snapshot | None:
        try:
            return take(self.record)
        except Exception:  # a busy or absent database is the workers' affair; the next look may succeed
            return None

    def rest(self, snapshot: Snapshot) -> str:
        """The time that the open slots will take at the pace so far."""
        done = snapshot.done - self.done_before
        if not done:
            return "ETA –"
        return f"ETA {seconds((time.monotonic() - self.started) / done * (snapshot.budget - snapshot.done))}"

    def line(self, snapshot: Snapshot) -> str:
        best = f"best {snapshot.best.value:.4f} (trial {snapshot.best.number})" if snapshot.best else "no result yet"
        working = f"{len(snapshot.seats)} running"
        return f"{snapshot.name}  {snapshot.done}/{snapshot.budget}  {best}  {working}  {self.rest(snapshot)}"

    def render(self, snapshot: Snapshot) -> RenderableType:
        head = Table.grid(padding=(0, 2))
        head.add_column(overflow="ellipsis", no_wrap=False, max_width=40)
        for _ in range(4):
            head.add_column(no_wrap=True)
        best = Text("no result yet", style="dim")
        if snapshot.best is not None:
            best = Text(f"best {snapshot.best.value:.4f}", style="bold green")
            best.append(f" trial {snapshot.best.number}", style="dim")
        bar = ProgressBar(total=max(1, snapshot.budget), completed=snapshot.done, width=20)
        done = f"{snapshot.done}/{snapshot.budget}"
        head.add_row(Text(snapshot.name, style="bold"), bar, done, best, self.rest(snapshot))
        return Group(head, Padding(seats_table(snapshot), (0, 0, 0, 2)))


def seats_table(snapshot: Snapshot) -> Table:
    """A line per worker: who, and its trial, epoch and value."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("worker", overflow="fold")
    for name in ("trial", "epoch", "value"):
        table.add_column(name, justify="right", no_wrap=True)
    for seat in snapshot.seats:
        value = "–" if seat.value is None else f"{seat.value:.4f}"
        table.add_row(Text(seat.owner), *("–" if v is None else str(v) for v in (seat.number, seat.epoch)), value)
    return table


def headline(snapshot: Snapshot) -> str:
    """Slots and trials in one line."""
    parts = [f"{snapshot.outcomes.get(name, 0)} {name}" for name in ("complete", "pruned", "failed")]
    if snapshot.seats:
        parts.append(f"{len(snapshot.seats)} running")
    return f"{snapshot.name}: {snapshot.done} of {snapshot.budget} trials – {', '.join(parts)}"


def answers_table(snapshot: Snapshot) -> Table:
    """The baseline's and the best trial's accuracy, with its standard error over several jobs, and parameters."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in ("what", "value", "trial"):
        table.add_column(name, no_wrap=True)
    table.add_column("parameters", overflow="fold")
    for what, trial, style in (("baseline", snapshot.baseline, ""), ("best", snapshot.best, "bold green")):
        if trial is not None:
            error = trial.user_attrs.get(STANDARD_ERROR)
            value = Text(f"{trial.value:.4f}" + ("" if error is None else f" ± {error:.4f}"), style=style)
            table.add_row(Text(what), value, f"trial {trial.number}", Text(parameters(trial.params)))
    return table


def show(snapshot: Snapshot, console: Console) -> None:
    """Prints where a study stands."""
    console.print(Text(headline(snapshot)), soft_wrap=True)
    console.print(answers_table(snapshot))
    if snapshot.seats:
        console.print(seats_table(snapshot))
    left = snapshot.slots["free"]
    console.print(f"budget left: {left} trial{'' if left == 1 else 's'}")


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
