"""Trains a trial again, and prints epoch by epoch how the result compares."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna import TrialPruned
from rich.console import Console
from rich.table import Table
from rich.text import Text

from studyloom.errors import ConfigError
from studyloom.extras.replay.course_comparison import Course, Tolerance
from studyloom.extras.replay.replayed_objective import make_objective
from studyloom.extras.replay.stored_trial import find_trial, is_loop, load_data, rebuild
from studyloom.objectives.objective import Objective, Report, Step
from studyloom.storage.opening import differences, name_of_change
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_value, one_line
from studyloom.training.steps import on_threads
from studyloom.user_code.digests import code_digests
from studyloom.worker.failure_causes import explain
from studyloom.worker.provenance import Provenance, current_environment
from studyloom.worker.stopping import Stop

MOST_THREADS = 1024  # a greater number in a database is ignored
# The parts of an environment that change the order in which numbers are added.
REORDERING = ("torch", "device", "threads")


def replay(
    stored: StoredStudy, run_dir: Path, number: int, trusted: Sequence[str], console: Console
) -> int:
    """Trains a trial again and prints how it compares, epoch by epoch.

    Returns:
        The exit code: 0 if the result is equal or within tolerance, else 1.

    Raises:
        ValueError: there is no such trial, it stored too little, it calls code that is not
            trusted, or the data is not the same.
    """
    trial = find_trial(stored.trials(), number)
    record = TrialRecord(trial)
    try:
        provenance = Provenance.read(record.provenance)
        cfg = rebuild(provenance, run_dir, trusted)
        loop, objective = is_loop(cfg), cfg.objective
        expected = Course.read(trial, stored.metric, loop=loop)
        several_calls = loop and objective.folds * objective.seeds > 1
        if several_calls and not record.columns:
            raise ValueError("its workers died, and it reported only the end of each fold or seed")
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"trial {number} cannot be replayed: {error}") from None
    data = load_data(cfg, provenance, run_dir)
    to_the_end = loop and (expected.value is not None or expected.failed_inside)
    last = (expected.jobs if several_calls else expected.epochs) + expected.failed_inside
    if not last and not to_the_end:
        raise ValueError(f"trial {number} cannot be replayed: it ended before its first epoch did")
    ending = trial.state.name.lower()
    if expected.failure is not None:
        ending = f"failed: {one_line(expected.failure.reason)}"
    head = f"trial {number} of {one_line(stored.name)}, {ending}; epochs stored: {expected.epochs}"
    console.print(Text(head))

    def print_epoch(number: int, epoch: Step) -> None:
        value = f"{stored.metric} {format_value(epoch.value)}"
        console.print(Text(f"epoch {number}/{last}  {value}  {epoch.seconds:.1f} s"))

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    threads: Any = provenance.environment.get("threads")
    usable = type(threads) is int and 1 <= threads <= MOST_THREADS
    with on_threads(threads if usable else torch.get_num_threads()):
        again = make_objective(cfg, provenance, data)
        now = train_again(again, stored.metric, None if to_the_end else last, print_epoch)
        here = current_environment(data.device)
    console.print(comparison_table(expected, now))
    examples = len(data.folds[0][1]) if data.folds else 0
    tolerance = Tolerance(stored.metric, examples)
    changes = code_changes(stored, provenance)
    return print_verdict(provenance, expected, now, here, tolerance, changes, console)


def code_changes(stored: StoredStudy, provenance: Provenance) -> list[str]:
    """Returns a line for each change since the study began of the code that a trial names."""
    now = code_digests(provenance.config)
    was = {key: digest for key, digest in stored.code().items() if key in now}
    return [f"{name_of_change(change)} has changed" for change in differences(was, now)]


class _Enough(Exception):
    """Ends a training after as many epochs as the trial has stored."""


def train_again(
    objective: Objective, metric: str, until: int | None, report: Callable[[int, Step], None]
) -> Course:
    """Trains the first epochs of a trial again.

    Args:
        until: how many epochs to train; those of each call of a loop count. None to train to the
            end.
        report: called with each epoch, and how many there are with it.
    """
    value, failure, count = None, None, 0

    def take(step: Step | None) -> None:
        nonlocal count
        assert step is not None  # nothing is stored
        if isinstance(step, Report) and step.ends_job:
            return
        count += 1
        report(count, step)
        if count == until:
            raise _Enough

    try:
        value = objective.run(take, Stop())
    except ConfigError:
        raise
    except (_Enough, TrialPruned):
        pass
    except Exception as error:  # as in the trial
        failure = explain(error)
    columns = objective.curves()
    return Course({metric: columns.get("value", ()), **columns}, failure, value)


def print_verdict(
    provenance: Provenance,
    expected: Course,
    now: Course,
    here: Mapping[str, Any],
    tolerance: Tolerance,
    changes: Sequence[str],
    console: Console,
) -> int:
    """Prints whether two trainings are equal bit for bit or within tolerance, or where they differ.

    The tolerance counts if something may sum in another order; otherwise every bit must be equal.

    Args:
        changes: of the code that the trial names, a line for each.

    Returns:
        The exit code: 0 if they are equal or within tolerance, else 1.
    """
    difference = expected.differs(now, None)
    if difference is None:
        same_failure = expected.failure is not None and now.failure is not None
        epochs = f"{expected.epochs} epoch{'' if expected.epochs == 1 else 's'}"
        quantities = ", ".join(expected.curve)
        again = ", and the same failure" if same_failure else ""
        again += ", and the value at the end" if expected.value is not None else ""
        line = f"equal bit for bit: {epochs} of {quantities}{again}"
        console.print(Text(line, style="bold green"))
        return 0
    made = provenance.environment
    reordered = any(made.get(name) != here[name] for name in REORDERING)
    reasons = [*changes, *differences(made, here)]
    if provenance.device != "cpu":
        reasons.append("a GPU may add in another order each time")
    if provenance.claims > 1:
        reasons.append(f"of {provenance.claims} workers, only the last one's environment is known")
    verdict, style, code = f"different from {difference}", "bold red", 1
    if reordered or provenance.device != "cpu" or provenance.claims > 1:
        difference = expected.differs(now, tolerance)
        verdict = f"different from {difference} (beyond the tolerance: {tolerance})"
        if difference is None:
            verdict, style, code = f"equal within tolerance: {tolerance}", "bold green", 0
    console.print(Text(verdict, style=style))
    if code:
        reasons = reasons or ["nothing differs in code, versions, device, threads and commit"]
    for reason in reasons:
        console.print(Text(f"  {reason}"))
    return code


def comparison_table(expected: Course, now: Course) -> Table:
    """Renders each stored number with the difference to the number now; = if they are equal."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("epoch", justify="right")
    for name in expected.curve:
        table.add_column(name.replace("_", " "), justify="right")
    for position in range(expected.epochs):
        cells = [str(position + 1)]
        for name, values in expected.curve.items():
            before, found = values[position], now.curve.get(name, ())[position : position + 1]
            if before is None:  # a loop reported it in other epochs
                cells.append("–")
                continue
            change = "–"
            if (again := next(iter(found), None)) is not None:
                change = f"{again - before:+.1e}" if again != before else "="
            # Before a training diverges, a loss may have thirty digits.
            shown = f"{before:.5f}" if abs(before) < 100 else f"{before:.1e}"
            cells.append(f"{shown} {change}")
        table.add_row(*cells)
    return table
