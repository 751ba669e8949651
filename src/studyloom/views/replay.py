"""TODO views.replay."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from studyloom.storage.attributes import EPOCHS, MADE
from studyloom.study.failures import Failure
from studyloom.study.provenance import Provenance, current_environment
from studyloom.study.replay import (
    COUNTED,
    LOSS,
    OUTSIDE,
    REORDERING,
    ExpectedTrial,
    Tolerance,
    compare,
    find_trial,
    load_data,
    read_trial,
    rebuild,
    threads,
    train_again,
)
from studyloom.study.stored_study import StoredStudy, differences
from studyloom.text import format_value
from studyloom.training.job import Epoch


def replay(
    stored: StoredStudy, run_dir: Path, number: int, trusted: Sequence[str], console: Console
) -> int:
    """Trains a trial again and tells how it compares; the exit code, 0 where it is equal or within tolerance, else 1.

    Raises:
        ValueError: no such trial, one that stored too little, code that is not trusted, or other data.
    """
    trial = find_trial(stored.trials(), number)
    try:
        provenance, expected = (
            Provenance.read(trial.user_attrs[MADE]),
            read_trial(trial, stored.metric),
        )
        if provenance.in_turn and EPOCHS not in trial.user_attrs:
            raise ValueError(
                "its workers died, and of jobs in turn had reported only how each ended"
            )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"trial {number} cannot be replayed: {error}") from None
    cfg = rebuild(provenance, trusted)
    split, folds = load_data(cfg, provenance, run_dir)
    ends = expected.failure is not None and expected.failure.kind not in OUTSIDE
    until = (sum(expected.jobs) if provenance.in_turn else expected.epochs) + ends
    if not until:
        raise ValueError(f"trial {number} cannot be replayed: it ended before its first epoch did")
    how = f"failed: {expected.failure.reason}" if expected.failure else trial.state.name.lower()
    console.print(Text(f"trial {number} of {stored.name}, {how}; epochs stored: {expected.epochs}"))

    def say(epoch: Epoch) -> None:
        said = f"{stored.metric} {format_value(epoch.value)}"
        console.print(Text(f"epoch {epoch.number}/{until}  {said}  {epoch.seconds:.1f} s"))

    with threads(provenance.environment.get("threads")):
        now, failure = train_again(cfg, provenance, split, folds, until, say)
        here = current_environment(split.inputs.device)
    console.print(comparison_table(expected, now))
    return print_verdict(provenance, expected, now, failure, here, len(folds[0][1]), console)


def print_verdict(
    provenance: Provenance,
    expected: ExpectedTrial,
    now: Sequence[Epoch],
    failure: Failure | None,
    here: Mapping[str, Any],
    examples: int,
    console: Console,
) -> int:
    """Prints the verdict: equal bit for bit, within tolerance, or where it differs first; the exit code.

    There is a tolerance where something adds in another order. Where nothing does, the same bits are wanted.
    """
    found = compare(expected, now, failure, None)
    if not found:
        again = "" if expected.failure is None or failure is None else ", and the same failure"
        epochs = f"{expected.epochs} epoch{'' if expected.epochs == 1 else 's'}"
        console.print(
            Text(
                f"equal bit for bit: {epochs} of {', '.join(map(expected.called, expected.curve))}{again}",
                style="bold green",
            )
        )
        return 0
    reordered = any(provenance.environment.get(name) != here[name] for name in REORDERING)
    reasons = differences(provenance.environment, here)
    if provenance.device == "cuda":
        reasons.append("a GPU may add in another order each time")
    if provenance.claims > 1:
        reasons.append(
            f"{provenance.claims} workers had a part in the trial; its environment is that of the last"
        )
    tolerance = None
    if reordered or provenance.device == "cuda" or provenance.claims > 1:
        tolerance = Tolerance(
            LOSS, max(1, math.ceil(COUNTED * examples)), examples, expected.metric
        )
        if not (found := compare(expected, now, failure, tolerance)):
            console.print(Text(f"equal within tolerance: {tolerance}", style="bold green"))
            print_reasons(reasons, console)
            return 0
    allowed = f" (beyond the tolerance: {tolerance})" if tolerance is not None else ""
    console.print(Text(f"different from {found[0]}{allowed}", style="bold red"))
    print_reasons(reasons or ["nothing differs in versions, device, threads and commit"], console)
    return 1


def print_reasons(reasons: Sequence[str], console: Console) -> None:
    for reason in reasons:
        console.print(Text(f"  {reason}"))


def comparison_table(expected: ExpectedTrial, now: Sequence[Epoch]) -> Table:
    """A line per epoch: what was stored, and what is added to it now; = where that is the same number."""
    lines = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    lines.add_column("epoch", justify="right")
    for name in expected.curve:
        lines.add_column(expected.called(name).replace("_", " "), justify="right")
    for place in range(expected.epochs):
        cells = []
        for quantity, values in expected.curve.items():
            was = values[place]
            cell = (
                f"{was:.5f}" if abs(was) < 100 else f"{was:.1e}"
            )  # on the way to divergence a loss has 30 digits
            if place >= len(now):
                cells.append(f"{cell} –")
            else:
                delta = getattr(now[place], quantity) - was
                cells.append(f"{cell} {f'{delta:+.1e}' if delta else '='}")
        lines.add_row(str(place + 1), *cells)
    return lines
