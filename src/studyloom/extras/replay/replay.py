"""Trains a trial again, and prints epoch by epoch how the result compares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna import TrialPruned
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table
from rich.text import Text

from studyloom.config.study_config import StudyConfig
from studyloom.errors import ConfigError
from studyloom.extras.replay.course_comparison import Course, Tolerance
from studyloom.extras.replay.replayed_objective import make_objective
from studyloom.extras.replay.stored_trial import find_trial, is_loop, load_data, rebuild
from studyloom.objectives.objective import Objective, Report, Step
from studyloom.storage.opening import list_differences, name_of_change
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_value, one_line, plural
from studyloom.training.steps import on_threads
from studyloom.user_code.digests import compute_code_digests
from studyloom.worker.failure_causes import explain
from studyloom.worker.provenance import Provenance, current_environment
from studyloom.worker.stopping import Stop

MAX_THREADS = 1024  # a greater number in a database is ignored
MAX_PLAIN_NUMBER = 100  # from here on the table has numbers as 1.2e+05
# The parts of an environment that change the order in which numbers are added.
REORDERING_PARTS = ("torch", "device", "threads")


def replay(
    stored: StoredStudy, run_dir: Path, number: int, trusted: Sequence[str], console: Console
) -> int:
    """Trains a trial again and prints how it compares, epoch by epoch.

    Args:
        number: the number of the trial.
        trusted: the packages of the user's that the trial may name; their code is executed.

    Returns:
        The exit code: 0 if the result is equal or within tolerance, else 1.

    Raises:
        ValueError: there is no such trial, it stored too little, it calls code that is not
            trusted, or the data is not the same.
    """
    trial = find_trial(stored.trials(), number)
    original = _read_original(stored, trial, run_dir, trusted)
    provenance = original.provenance
    expected = original.course
    data = load_data(original.config, provenance, run_dir)
    if original.last_epoch == 0 and not original.trains_to_end:
        raise ValueError(f"trial {number} cannot be replayed: it ended before its first epoch did")
    console.print(Text(_describe_trial(stored, trial, expected)))

    def print_epoch(number: int, epoch: Step) -> None:
        value = f"{stored.metric} {format_value(epoch.value)}"
        text = f"epoch {number}/{original.last_epoch}  {value}  {epoch.seconds:.1f} s"
        console.print(Text(text))

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with on_threads(_count_threads(provenance)):
        objective = make_objective(original.config, provenance, data)
        epoch_limit = None
        if not original.trains_to_end:
            epoch_limit = original.last_epoch
        replayed = train_again(objective, stored.metric, epoch_limit, print_epoch)
        environment = current_environment(data.device)

    console.print(comparison_table(expected, replayed))
    validation_count = 0
    if data.folds:
        _, validation_examples = data.folds[0]
        validation_count = len(validation_examples)
    comparison = Comparison(expected, replayed, Tolerance(stored.metric, validation_count))
    changes = find_code_changes(stored, provenance)
    return print_verdict(comparison, provenance, environment, changes, console)


@dataclass(frozen=True)
class _Original:
    """The stored trial.

    Args:
        last_epoch: the epoch at which its replay ends, counted over all calls of a loop.
    """

    config: StudyConfig
    provenance: Provenance
    course: Course
    last_epoch: int

    @property
    def trains_to_end(self) -> bool:
        """True if its replay goes on after `last_epoch`, until the loop ends by itself.

        A loop may return another value than it reported last, or fail, after its last epoch.
        """
        ended_by_itself = self.course.value is not None or self.course.failed_by_itself
        return is_loop(self.config) and ended_by_itself


def _read_original(
    stored: StoredStudy, trial: FrozenTrial, run_dir: Path, trusted: Sequence[str]
) -> _Original:
    """Reads what is stored of a trial; raises ValueError if it does not suffice for a replay."""
    record = TrialRecord(trial)
    try:
        provenance = Provenance.read(record.provenance)
        config = rebuild(provenance, run_dir, trusted)
        course = Course.read(trial, stored.metric, is_loop=is_loop(config))
        # A loop is called once for each fold and seed.
        calls_loop_repeatedly = (
            is_loop(config) and config.objective.folds * config.objective.seeds > 1
        )
        if calls_loop_repeatedly and not record.columns:  # the epochs of the calls are not stored
            raise ValueError("its workers died, and it reported only the end of each fold or seed")
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"trial {trial.number} cannot be replayed: {error}") from None
    last_epoch = course.epochs
    if calls_loop_repeatedly:  # the replay trains the epochs of all calls one after the other
        last_epoch = course.trained_epochs
    if course.failed_by_itself:
        last_epoch += 1  # the epoch in which it must fail again
    return _Original(config, provenance, course, last_epoch)


def _describe_trial(stored: StoredStudy, trial: FrozenTrial, course: Course) -> str:
    """Returns which trial is replayed, and how it ended."""
    state = trial.state.name.lower()
    if course.failure is not None:
        state = f"failed: {one_line(course.failure.reason)}"
    name = one_line(stored.name)
    return f"trial {trial.number} of {name}, {state}; epochs stored: {course.epochs}"


def _count_threads(provenance: Provenance) -> int:
    """Returns how many threads the trial had; if that is unknown, as many as PyTorch has now."""
    threads = provenance.environment.get("threads")
    if type(threads) is int and 1 <= threads <= MAX_THREADS:
        return threads
    return torch.get_num_threads()


def find_code_changes(stored: StoredStudy, provenance: Provenance) -> list[str]:
    """Returns a line for each part of the code that the trial names and that has changed since."""
    digests = compute_code_digests(provenance.config)
    stored_digests = {}
    for key, digest in stored.code().items():
        if key in digests:
            stored_digests[key] = digest
    changes = list_differences(stored_digests, digests)
    return [f"{name_of_change(change)} has changed" for change in changes]


class _EpochLimitReached(Exception):
    """Ends a training after as many epochs as the trial has stored."""


def train_again(
    objective: Objective,
    metric: str,
    epoch_limit: int | None,
    report_epoch: Callable[[int, Step], None],
) -> Course:
    """Trains the first epochs of a trial again, and returns how that went.

    Args:
        epoch_limit: how many epochs to train, counted over all calls of a loop. None to train to
            the end.
        report_epoch: called with the number of each epoch and the epoch.
    """
    value = None
    failure = None
    epoch = 0

    def count_epoch(step: Step | None) -> None:
        """Counts and reports the end of an epoch; ends the training after the last one."""
        nonlocal epoch
        # With None an objective would ask to store the trial without a step; here none does.
        assert step is not None
        if isinstance(step, Report) and step.ends_job:  # the end of a call of a loop is no epoch
            return
        epoch += 1
        report_epoch(epoch, step)
        if epoch == epoch_limit:
            raise _EpochLimitReached

    try:
        value = objective.run(count_epoch, Stop())
    except ConfigError:
        raise
    except (_EpochLimitReached, TrialPruned):
        pass
    except Exception as error:  # the training failed, as that of the trial may have
        failure = explain(error)
    columns = objective.curves()  # the numbers of each epoch; those of the metric are called value
    values = columns.get("value", ())
    curve = {metric: values, **columns}
    return Course(curve, failure, value)


@dataclass(frozen=True)
class Comparison:
    """The course of a trial, that of its replay, and how far apart they may be."""

    expected: Course
    replayed: Course
    tolerance: Tolerance


def print_verdict(
    comparison: Comparison,
    provenance: Provenance,
    environment: Mapping[str, Any],
    changes: Sequence[str],
    console: Console,
) -> int:
    """Prints whether two trainings are equal bit for bit or within tolerance, or where they differ.

    The tolerance is used only if numbers may have been added in another order, which changes their
    rounding. Otherwise every bit must be equal.

    Args:
        provenance: how the trial was made, with its environment.
        environment: the environment of the replay.
        changes: the changes of the code that the trial names, a line for each.

    Returns:
        The exit code: 0 if they are equal or within tolerance, else 1.
    """
    expected = comparison.expected
    replayed = comparison.replayed
    tolerance = comparison.tolerance
    exact_difference = expected.find_difference(replayed, tolerance=None)
    if exact_difference is None:
        line = f"equal bit for bit: {_describe_equal(expected, replayed)}"
        console.print(Text(line, style="bold green"))
        return 0

    reorderings = _find_reorderings(provenance)
    is_reordered = bool(reorderings)
    for name in REORDERING_PARTS:
        if provenance.environment.get(name) != environment[name]:
            is_reordered = True
    code = 1
    verdict = Text(f"different from {exact_difference}", style="bold red")
    if is_reordered:
        difference = expected.find_difference(replayed, tolerance)
        if difference is None:
            code = 0
            verdict = Text(f"equal within tolerance: {tolerance}", style="bold green")
        else:
            text = f"different from {difference} (beyond the tolerance: {tolerance})"
            verdict = Text(text, style="bold red")
    console.print(verdict)

    reasons = [*changes, *list_differences(provenance.environment, environment), *reorderings]
    if code == 1 and not reasons:
        reasons = ["nothing differs in code, versions, device, threads and commit"]
    for reason in reasons:
        console.print(Text(f"  {reason}"))
    return code


def _find_reorderings(provenance: Provenance) -> list[str]:
    """Returns why the trial itself may have added numbers in an unknown order."""
    reasons = []
    if provenance.device != "cpu":
        reasons.append("a GPU may add in another order each time")
    if provenance.claims > 1:  # the workers before the last may have had other threads
        reasons.append(f"of {provenance.claims} workers, only the last one's environment is known")
    return reasons


def _describe_equal(expected: Course, replayed: Course) -> str:
    """Returns what was compared of two courses that are equal."""
    parts = f"{plural(expected.epochs, 'epoch')} of {', '.join(expected.curve)}"
    if expected.failure is not None and replayed.failure is not None:
        parts += ", and the same failure"
    if expected.value is not None:
        parts += ", and the value at the end"
    return parts


def comparison_table(expected: Course, replayed: Course) -> Table:
    """Returns a table with a row for each epoch, and a column for each quantity of the trial.

    A cell has the stored number, and the difference to the number of the replay.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("epoch", justify="right")
    for name in expected.curve:
        table.add_column(name.replace("_", " "), justify="right")
    for position in range(expected.epochs):
        cells = [str(position + 1)]
        for name, stored_numbers in expected.curve.items():
            replayed_number = None
            replayed_numbers = replayed.curve.get(name, ())
            if position < len(replayed_numbers):
                replayed_number = replayed_numbers[position]
            cells.append(_format_change(stored_numbers[position], replayed_number))
        table.add_row(*cells)
    return table


def _format_change(stored: float | None, replayed: float | None) -> str:
    """Formats a stored number with the difference to the number of the replay.

    Such as `0.51200 =` if they are equal, `0.51200 +1.0e-03`, or `0.51200 –` without a replay.
    """
    if stored is None:  # the trial has no number for this epoch; its loop has for others
        return "–"
    number = f"{stored:.5f}"
    if abs(stored) >= MAX_PLAIN_NUMBER:  # before a training diverges, a loss has up to 30 digits
        number = f"{stored:.1e}"
    change = "="
    if replayed is None:
        change = "–"
    elif replayed != stored:
        change = f"{replayed - stored:+.1e}"
    return f"{number} {change}"
