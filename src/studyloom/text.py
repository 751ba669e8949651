"""Text for people: how values, names, shapes and durations are written, and made safe to show.

Names, exceptions and attributes come from databases and run directories that anybody may have
written. They are shown through `printable`, `one_line` or `indented`, and are stored unchanged.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from html import escape
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

# What a terminal or browser does not show but obeys: control characters of both sets, marks that
# change the direction of writing, line breaks that only some programs know, characters of no width;
# and halves of surrogate pairs, which cannot be encoded.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
# What is shown instead, by character code; of all others U+FFFD.
SHOWN = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421"}

ITEM = re.compile(r"(\d+|length)(\.|\Z)")  # of a list, with which a shortened name does not begin

# What begins a formula, where a cell of a spreadsheet begins.
FORMULA = re.compile(r"(\A|[;\t\r\n])([=+\-@]|\A[\t\r])")


def printable(text: str) -> str:
    """Makes a text of any origin safe to show; lines and tabs stay.

    Control characters are replaced by visible ones: ␛ for an escape.
    """
    return UNPRINTABLE.sub(lambda match: SHOWN.get(ord(match[0]), "\ufffd"), text)


def one_line(text: str) -> str:
    """Makes a text of any origin safe to show within a line."""
    return re.sub(r"\s*[\n\t]\s*", " ", printable(text).strip())


def indented(text: str) -> str:
    """Makes a text of any origin safe to show; all lines but the first are indented.

    So no text can imitate the next message.
    """
    return re.sub(r"\n(?=[^\s])", "\n  ", printable(text))


def in_markdown(text: str) -> str:
    """Makes a text of any origin safe within a line of Markdown: no HTML, link, image or cell.

    HTML's characters are escaped as entities: not all renderers accept a backslash.
    """
    return re.sub(r"([\\`*\[\]|])", r"\\\1", escape(one_line(text), quote=False))


def code_in_markdown(text: str) -> str:
    """Returns a text of any origin as code within a line of Markdown, also in a table."""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    space = " " * ("`" in text)
    return f"{fence}{space}{one_line(text)}{space}{fence}".replace("|", "\\|")


class PrintableFormatter(logging.Formatter):
    """Formats log records as `indented` does: a message may hold the text of any exception."""

    def format(self, record: logging.LogRecord) -> str:
        return indented(super().format(record))


def format_value(value: float, sign: str = "") -> str:
    """Formats the value of a metric: 0.9725, 1523.4, 2.1e-05.

    Args:
        sign: "+" writes the sign of positive values too; "" only that of negative ones.
    """
    size = abs(value)
    if value == 0 or 1e-3 <= size < 100 or not math.isfinite(value):
        return format(value, sign + ".4f")
    return format(value, sign + (".3g" if size < 1 else ".6g"))


def format_error(error: float, mean: str) -> str:
    """Formats the error after ±, with as many decimals as its mean if they suffice."""
    _, point, decimals = mean.partition(".")
    alike = format(error, f".{len(decimals)}f") if "e" not in mean else ""
    return alike if point and float(alike or 0) else format_value(error)


def format_cost(value: float) -> str:
    """Formats what a network costs, in the digits that a rule accepts: 50_890, 0.0412."""
    return f"{value:_.0f}" if value >= 100 else f"{value:.4g}"


def without_formula(value: Any) -> Any:
    """Returns a cell of a CSV file: a text that a spreadsheet would run gets an apostrophe.

    That is what begins with =, +, - or @, also behind a semicolon, a tab or a line break, where a
    cell begins in some languages. What reads as a number stays.
    """
    if not isinstance(value, str):
        return value
    try:
        float(value)
    except ValueError:
        return FORMULA.sub(r"\1'\2", value)
    return value


def error_text(error: BaseException) -> str:
    """Returns the text of any exception; "" if its own `__str__` raises."""
    try:
        return str(error)
    except (Exception, SystemExit):
        return ""


def name_error(error: BaseException, length: int | None = None) -> str:
    """Returns the type and the text of any exception on one line.

    Args:
        length: the most characters of the text; None for all.
    """
    words = " ".join(error_text(error).split())[:length]
    return f"{type(error).__name__}: {words}".removesuffix(": ")


def is_scalar(value: Any) -> bool:
    """Whether YAML writes the value as one word: a string, a number, true, false or null."""
    return value is None or isinstance(value, str | int | float | bool)


def kind_of(value: Any) -> str:
    """Names the kind of a YAML value with its article: "an integer", "a list", "null"."""
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        type(None): "null",
    }
    return names.get(type(value), "a list" if isinstance(value, Sequence) else "a mapping")


def as_yaml(value: Any) -> str:
    """Writes a value as YAML does: true, null, 0.1."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def nearest(name: Any, names: Sequence[Any]) -> str:
    """Returns "; did you mean NAME?" for a misspelt name, or "" if none of the names is close."""
    close = get_close_matches(str(name), [as_yaml(other) for other in names], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def no_such_key(key: str, known: Sequence[str]) -> str:
    """Says that a config has no key such as model.hiden, and which keys its section has."""
    above, _, name = key.rpartition(".")
    holder = f"{above} has" if above else "there are"
    return f"{key}: no such key; {holder} {', '.join(known) or 'no keys'}{nearest(name, known)}"


def line_to_add(name: str, value: str, file: Path, section: str = "") -> str:
    """Says which line adds a missing key to a file of the user's."""
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    where = f"to {f'{section} in ' * bool(section)}{shown}"
    return f"; to have it, add `{name}: {value}` {where}, with the value to start from"


PLUS = "\xa0±\xa0"  # a value and its error stay in one line


def html_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table for a notebook, without columns that are empty.

    Args:
        columns: the heads of the columns; all empty for a table without a head.
        rows: their cells, which are shown as text and never as HTML; None for an empty one.
    """
    cells = [
        ["" if cell is None else escape(printable(str(cell))).replace(" ± ", PLUS) for cell in row]
        for row in (columns, *rows)
    ]
    kept = [column for column in zip(*cells, strict=True) if any(column[1:])]
    head, *body = zip(*kept, strict=True) if kept else ((),)
    lines = [("th", head)] * any(head) + [("td", line) for line in body]
    html = (
        "".join(f'<{tag} style="text-align:left">{cell}</{tag}>' for cell in line)
        for tag, line in lines
    )
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in html)}</table>"


def format_ranges(numbers: Sequence[int]) -> str:
    """Formats ascending integers as ranges: 0-3, 5, 7-8."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def format_shape(shape: Sequence[int]) -> str:
    """Formats the sizes of a tensor's dimensions: 1 × 28 × 28."""
    return " × ".join(map(str, shape))


def format_parameter(value: Any) -> str:
    """Formats the value of a trial's parameter in one line; floats have four digits."""
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value))


def format_duration(duration: float) -> str:
    """Formats a duration in seconds: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(duration)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# In a URL the password ends at the last @ of the word, or else at the first @ of the line; the
# second form is password=…, or password: …; libpq has sslpassword and oauth_client_secret too.
PASSWORDS = re.compile(
    r"""(?P<url>\b[\w+.-]+://[^\s:/]*:)(?:\S*|[^@\n]*)(?=@)|"""
    r"""(?P<key>(?:password|client_secret)["']?[ \t]*[=:][ \t]*)"""
    r"""(?:'[^'\n]*'|"[^"\n]*"|[^\s&'"]+)""",
    re.IGNORECASE,
)


def mask_passwords(words: str) -> str:
    """Replaces the passwords of URLs and of `password=…` in a text by ***."""
    return PASSWORDS.sub(lambda match: (match["url"] or match["key"]) + "***", words)


def shorten_end(text: str, length: int) -> str:
    """Replaces the end of a text by … if it has more than `length` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def shorten(text: str, length: int) -> str:
    """Replaces the middle of a text by … if it has more than `length` characters."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - half]}…{text[-half:]}"


def shorten_names(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Shortens dotted names to as few of their last parts as tell them apart.

    Of optimizer.adamw.lr remains lr, or adamw.lr if there is an optimizer.sgd.lr too. An item of a
    list, such as hidden.0 or hidden.length, keeps the name of the list.

    Args:
        taken: titles with which no name may be confused.
    """
    ends = {
        name: [*accumulate(reversed(name.rsplit(".", 3)), lambda end, part: f"{part}.{end}")]
        for name in names
    }
    count = Counter([*chain.from_iterable(ends.values()), *taken])
    return {
        name: next((end for end in own if count[end] == 1 and not ITEM.match(end)), name)
        for name, own in ends.items()
    }
