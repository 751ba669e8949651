"""The lines of a worker's log: how they are written, and what the live report reads from them."""

import re
from dataclasses import dataclass
from datetime import datetime

from studyloom.text import format_value

LINE = "%(asctime)s %(message)s"
# The beginning of a line such as "2026-01-31 12:00:00,123 trial 7: complete 0.9725".
END = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) trial (\d+): (?:complete|pruned|fail)\b")


@dataclass(frozen=True)
class TrialEnd:
    """The end of a trial: its number, and the local time."""

    trial: int
    time: datetime


def format_trial_end(trial: int, state: str, value: float | None) -> str:
    """Formats the message that a trial has ended, such as `trial 7: complete 0.9725`."""
    message = f"trial {trial}: {state.lower()}"
    if value is not None:
        message += f" {format_value(value)}"
    return message


def read_trial_end(line: str) -> TrialEnd | None:
    """Reads the end of a trial from a line of a log; returns None for any other line."""
    match = END.match(line)
    if match is None:
        return None
    try:
        local_time = match[1].replace(",", ".")  # `logging` writes a comma before milliseconds
        return TrialEnd(int(match[2]), datetime.fromisoformat(local_time))
    except ValueError:  # no date, or a number of thousands of digits
        return None
