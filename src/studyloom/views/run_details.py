"""The details of a run that has few lines on a terminal at its end: `studyloom status` prints them.

They are the reasons for the winner, its ablation, the time of an epoch and of the workers, what
trials have warned of, and the paths of the files.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median

from optuna.trial import FrozenTrial
from rich.console import Console

from studyloom.storage.command_record import StoredCommand
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.storage.urls import parse_url, without_password
from studyloom.text import one_line
from studyloom.views.headline import make_headline
from studyloom.views.snapshot import take_snapshot
from studyloom.views.terminal_lines import say
from studyloom.views.words import explain_choice, list_ablation, list_facts, name_trial
from studyloom.winner.result import Result

INDENT = " " * 10  # of a line that continues one with a label
FILES = {"best": "best.yaml", "winner": "winner.yaml", "report": "report.html"}


def print_run_details(stored: StoredStudy, url: str, run_dir: Path, console: Console) -> None:
    """Prints the details of a run.

    Args:
        url: the address of the database.
        run_dir: the folder with the result and the other files.
    """
    result = Result.read(run_dir, stored)
    if result is not None:
        _print_reasons(stored, result, console)
    for line in (*list_not_kept(stored), *list_warnings(stored), *_list_times(stored)):
        say(console, line)
    say(console, f"{'study':10}{without_password(parse_url(url))}", indent=len(INDENT))
    for label, name in FILES.items():
        path = run_dir / name
        if path.exists():
            say(console, f"{label:10}{path}", indent=len(INDENT))


def print_result(stored: StoredStudy, result: Result, console: Console) -> None:
    """Prints a result: the sentence that sums it up, and its details."""
    style = ""
    if result.test is not None:
        style = "bold green"
    say(console, make_headline(take_snapshot(stored), result), style)
    _print_reasons(stored, result, console)


def _print_reasons(stored: StoredStudy, result: Result, console: Console) -> None:
    """Prints why the winner has won, its values, and its ablation."""
    best_number = None
    ranked = stored.ranked()
    if ranked:
        best_number = ranked[0].number
    for line in describe_winner(result, best_number):
        say(console, line, indent=len(INDENT))


def describe_winner(result: Result, best: int | None = None) -> Iterator[str]:
    """Yields a result as the lines that a terminal shows.

    Args:
        best: the number of the best trial of the search; None if it is not to be named.
    """
    best_text = ""
    if best is not None:
        best_text = f"best of the search: trial {best}; "
    yield f"{best_text}winner: {name_trial(result.winner)}, {explain_choice(result)}"
    winner_fact, *other_facts = list_facts(result)
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


def list_not_kept(stored: StoredStudy) -> Iterator[str]:
    """Yields a warning of state of the user's loop that a trial resumed after a crash would lack.

    A loop passes its state to `run.keep`, and studyloom finds what is missing there.
    """
    for trial in stored.trials():
        names = [one_line(name) for name in TrialRecord(trial).not_kept]
        if names:
            arguments = ", ".join(f"{name}={name}" for name in names)
            reason = "a trial resumed after a crash gets another value"
            yield f"run.keep lacks {arguments}: {reason}"
            return  # the other trials run the same loop


def list_warnings(stored: StoredStudy) -> list[str]:
    """Returns what trials have warned of, each line once."""
    warnings: dict[str, None] = {}  # a dict keeps the order, unlike a set
    for trial in stored.trials():
        warnings |= dict.fromkeys(TrialRecord(trial).warnings)
    return [one_line(warning) for warning in warnings]


def _list_times(stored: StoredStudy) -> Iterator[str]:
    """Yields the seconds of an epoch, and how the workers of all stages spent their time."""
    seconds: list[float] = []
    trials = [*stored.trials()]
    for trial in trials:
        seconds += TrialRecord(trial).curve.get("seconds", ())
    if seconds:
        yield f"{median(seconds):.2f} s per epoch (median of {len(seconds)})"
    for stage in stored.later_stages():
        trials += stored.storage.get_all_trials(stage.study._study_id, deepcopy=False)
    shares = format_times(trials, _find_beginning(stored))
    if shares:
        yield f"workers: {', '.join(shares)}"


def _find_beginning(stored: StoredStudy) -> datetime:
    """Returns when the last command began, in local time as trials have it."""
    record = StoredCommand.read(stored).record
    if record is not None and record.began is not None:
        try:
            return datetime.fromisoformat(record.began).astimezone().replace(tzinfo=None)
        except (ValueError, TypeError):  # another program may have written it
            pass
    return datetime.min
