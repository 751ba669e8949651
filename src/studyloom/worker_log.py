"""The lines of a worker's log: how they are written, and what the live report reads from them."""

import re
from datetime import datetime

from studyloom.text import format_value

LINE = "%(asctime)s %(message)s"
END = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) trial (\d+): (?:complete|pruned|fail)\b")


def end_message(trial: int, state: str, value: float | None) -> str:
    """Formats the message that a trial has ended, such as `trial 7: complete 0.9725`."""
    return f"trial {trial}: {state.lower()}{'' if value is None else f' {format_value(value)}'}"


def read_end(line: str) -> tuple[int, datetime] | None:
    """Reads the number of a trial that has ended, and when it did; None from any other line."""
    if (match := END.match(line)) is None:
        return None
    try:
        return int(match[2]), datetime.fromisoformat(match[1].replace(",", "."))
    except ValueError:  # no date, or a number of thousands of digits
        return None
