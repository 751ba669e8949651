"""Text for people: values, names and durations as they are shown, and passwords hidden."""

import math
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any


def format_value(value: float, sign: str = "") -> str:
    """A value for people: 0.9725, 1523.4, 2.1e-05; with sign="+" also of those above 0."""
    size = abs(value)
    if value == 0 or 1e-3 <= size < 100 or not math.isfinite(value):
        return format(value, sign + ".4f")
    return format(value, sign + (".3g" if size < 1 else ".6g"))


def format_cost(value: float) -> str:
    """What a network costs, for people and as a rule may name it: 50_890, 0.0412."""
    return f"{value:_.0f}" if value >= 100 else f"{value:.4g}"


def is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def kind_of(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        type(None): "null",
    }
    return names.get(type(value), "a list" if isinstance(value, Sequence) else "a mapping")


def as_yaml(value: Any) -> str:
    """A plain value as YAML writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def nearest(name: Any, names: Sequence[Any]) -> str:
    """`; did you mean x?` where one of the names is close to the one given, else nothing."""
    close = get_close_matches(str(name), [as_yaml(other) for other in names], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def format_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers for people: 0-3, 5, 7-8."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def format_shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def format_parameter(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_duration(duration: float) -> str:
    """A duration for people: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(duration)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# In a URL the password ends at the last @ of the word, or at the first of the line; or password=…
PASSWORDS = re.compile(
    r"""(?P<url>\b[\w+.-]+://[^\s:/]*:)(?:\S*|[^@\n]*)(?=@)|"""
    r"""(?P<key>password["']?[ \t]*[=:][ \t]*)(?:'[^'\n]*'|"[^"\n]*"|[^\s&'"]+)""",
    re.IGNORECASE,
)
# A database URL as SQLAlchemy reads it, with a password before the host or in the query.
URL_WITH_PASSWORD = re.compile(r"[\w+]+://(?:[^:/]*:[^@]*@|[^?]*\?(?:.*&)?password=)")


def has_password(url: str) -> bool:
    """Whether a database URL carries a password."""
    return URL_WITH_PASSWORD.match(url) is not None


def mask_passwords(words: str) -> str:
    """A text with *** in place of passwords."""
    return PASSWORDS.sub(lambda found: (found["url"] or found["key"]) + "***", words)


def shorten(text: str, length: int) -> str:
    """A text without its middle, if it is too long."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - half]}…{text[-half:]}"
