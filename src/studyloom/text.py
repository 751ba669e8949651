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
from pathlib import Path

# Characters that a terminal or browser obeys instead of showing them: both sets of control
# characters, marks that change the direction of writing, line breaks that only some programs know,
# and characters of no width. Halves of surrogate pairs are here too: they cannot be encoded.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
# The visible character for a control character, by its code. U+FFFD stands for all others.
VISIBLE = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421"}

# The beginning of a name that is the item of a list or its length, such as 0 or length: a shortened
# name does not begin with it, since it says nothing without the name of the list, as in hidden.0.
LIST_ITEM = re.compile(r"(\d+|length)(\.|\Z)")

# The beginning of a formula where a cell of a spreadsheet may begin: = in "=1+2" and "text;=1+2".
FORMULA = re.compile(r"(\A|[;\t\r\n])([=+\-@]|\A[\t\r])")


def printable(text: str) -> str:
    """Makes a text of any origin safe to show; lines and tabs stay.

    Control characters are replaced by visible ones: ␛ for an escape.
    """
    return UNPRINTABLE.sub(lambda match: VISIBLE.get(ord(match[0]), "\ufffd"), text)


def one_line(text: str) -> str:
    """Makes a text of any origin safe to show within a line."""
    text_without_margins = printable(text).strip()
    return re.sub(r"\s*[\n\t]\s*", " ", text_without_margins)


def indented(text: str) -> str:
    """Makes a text of any origin safe to show, and indents all lines but the first.

    Without the indent, a line of the text could look like the next message.
    """
    unindented_line = r"\n(?=[^\s])"  # the break before a line that begins with a character
    return re.sub(unindented_line, "\n  ", printable(text))


def in_markdown(text: str) -> str:
    """Makes a text of any origin safe within a line of Markdown: no HTML, link, image or cell.

    HTML's characters become entities, since not all renderers accept a backslash before them.
    """
    html = escape(one_line(text), quote=False)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html)  # a backslash before \ ` * [ ] and |


def code_in_markdown(text: str) -> str:
    """Returns a text of any origin as code within a line of Markdown, also in a table."""
    # A fence must be longer than each run of backticks in the text, and apart from them.
    longest_run = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest_run + 1)
    code = one_line(text)
    if longest_run > 0:
        code = f" {code} "
    return f"{fence}{code}{fence}".replace("|", "\\|")


class PrintableFormatter(logging.Formatter):
    """Formats log records as `indented` does: a message may hold the text of any exception."""

    def format(self, record: logging.LogRecord) -> str:
        return indented(super().format(record))


def write_minus(number: str) -> str:
    """Gives a formatted number, such as -0.5 or 1e-05, a real minus sign for people who read it.

    A number that is copied into a config, or read by a program, keeps its hyphen.
    """
    return number.replace("-", "−")


def format_value(value: float, sign: str = "") -> str:
    """Formats the value of a metric for people, with a real minus sign: −0.9725, 1523.4, 2.1e−05.

    From 0.001 to 100 it has four decimals. Smaller values have three digits, and larger ones six.

    Args:
        value: the value.
        sign: "+" writes the sign of positive values too; "" only that of negative ones.
    """
    size = abs(value)
    if value == 0 or 0.001 <= size < 100 or not math.isfinite(value):
        digits = ".4f"
    elif size < 1:
        digits = ".3g"
    else:
        digits = ".6g"
    return write_minus(format(value, f"{sign}{digits}"))


def format_error(error: float, mean: str) -> str:
    """Formats the standard error that follows ±, with as many decimals as the mean before it.

    If it would then be 0, or if the mean has no decimals or an exponent such as 2.1e−05, it is
    formatted as any value.

    Args:
        error: the standard error.
        mean: the formatted mean.
    """
    _, point, decimals = mean.partition(".")
    if point and "e" not in mean:
        rounded = format(error, f".{len(decimals)}f")
        if float(rounded) != 0:
            return rounded
    return format_value(error)


def format_cost(value: float) -> str:
    """Formats a cost of a network, such as its number of parameters: 50,890, 0.0412."""
    if value >= 100:
        return f"{value:,.0f}"
    return write_minus(f"{value:.4g}")


def escape_formula(value: object) -> object:
    """Returns a cell for a CSV file, in which no spreadsheet runs a text as a formula.

    A spreadsheet runs a text that begins with =, +, - or @, also after a semicolon, a tab or a line
    break, where a cell begins in some languages. An apostrophe before it prevents that. Numbers
    stay unchanged.
    """
    if not isinstance(value, str):
        return value
    try:
        float(value)  # the text of a number, such as -3, is no formula
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
    """Returns the type and the text of any exception on one line: "ValueError: no such option".

    Args:
        error: the exception.
        length: the most characters of the text; None for all.
    """
    words = error_text(error).split()
    text = " ".join(words)[:length]
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def is_scalar(value: object) -> bool:
    """Returns whether YAML writes a value as one word: a string, number, true, false or null."""
    return value is None or isinstance(value, str | int | float | bool)


def describe_kind(value: object) -> str:
    """Names the kind of a YAML value with its article: "an integer", "a list", "null"."""
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        type(None): "null",
    }
    if type(value) in names:
        return names[type(value)]
    if isinstance(value, Sequence):
        return "a list"
    return "a mapping"


def format_scalar(value: object) -> str:
    """Writes a value as YAML does: true, null, 0.1."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def nearest(name: object, names: Iterable[object]) -> str:
    """Returns "; did you mean NAME?" for a misspelt name, or "" if none of the names is close."""
    candidates = [format_scalar(candidate) for candidate in names]
    close_names = get_close_matches(str(name), candidates, n=1, cutoff=0.5)
    if not close_names:
        return ""
    return f"; did you mean {close_names[0]}?"


def describe_unknown_key(key: str, keys: Sequence[str], suggestion: str = "") -> str:
    """Says that a config has no key such as model.hiden, and which keys its section has.

    Args:
        key: the dotted name that the config lacks.
        keys: the names of the keys in its section.
        suggestion: the end of the message, such as "; did you mean study.trials?"; "" to suggest
            the nearest of `keys`.
    """
    section, _, name = key.rpartition(".")
    subject = "there are"
    if section:
        subject = f"{section} has"
    names = ", ".join(keys) or "no keys"
    if not suggestion:
        suggestion = nearest(name, keys)
    return f"{key}: no such key; {subject} {names}{suggestion}"


def suggest_line(name: str, value: str, file: Path, section: str = "") -> str:
    """Says which line adds a missing key to a user's file, as the end of an error message.

    Args:
        name: the missing key.
        value: the value that the line gives it.
        file: the absolute path of the file; the message has it relative to the working directory.
        section: the section of the file for the line; "" for the top level.
    """
    location = str(file)
    if file.is_relative_to(Path.cwd()):
        location = str(file.relative_to(Path.cwd()))
    if section:
        location = f"{section} in {location}"
    return f"; to have it, add `{name}: {value}` to {location}, with the value to start from"


UNBROKEN_PLUS_MINUS = "\xa0±\xa0"  # keeps a value and its error in one line


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table for a notebook, without columns that are empty.

    Args:
        columns: the heads of the columns; all empty for a table without a head.
        rows: the cells of each row, which are shown as text and never as HTML; None is empty.
    """
    head = [_html_text(name) for name in columns]
    body = [list(map(_html_text, row)) for row in rows]
    indices = []  # of the columns that are not empty
    for index in range(len(head)):
        if any(row[index] for row in body):
            indices.append(index)
    if not indices:
        return "<table></table>"
    html_rows = []
    shown_head = [head[index] for index in indices]
    if any(shown_head):
        html_rows.append(_html_row("th", shown_head))
    for row in body:
        shown_cells = [row[index] for index in indices]
        html_rows.append(_html_row("td", shown_cells))
    return f"<table>{''.join(html_rows)}</table>"


def _html_text(value: object) -> str:
    """Returns a value of any origin as HTML that shows its text; "" for None."""
    if value is None:
        return ""
    return escape(printable(str(value))).replace(" ± ", UNBROKEN_PLUS_MINUS)


def _html_row(tag: str, cells: Iterable[str]) -> str:
    """Returns a row of a table; its tag is th for a head and td for a body."""
    html = [f'<{tag} style="text-align:left">{cell}</{tag}>' for cell in cells]
    return f"<tr>{''.join(html)}</tr>"


def plural(count: int, noun: str) -> str:
    """Counts a noun: 1 trial, 2 trials."""
    if count == 1:
        return f"{count} {noun}"
    return f"{count} {noun}s"


def format_ranges(numbers: Sequence[int]) -> str:
    """Formats ascending integers as ranges: 0-3, 5, 7-8."""
    ranges: list[list[int]] = []  # the numbers of each range
    for number in numbers:
        continues_range = bool(ranges) and number == ranges[-1][-1] + 1
        if continues_range:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    texts = []
    for members in ranges:
        text = str(members[0])
        if len(members) > 1:
            text = f"{members[0]}-{members[-1]}"
        texts.append(text)
    return ", ".join(texts)


def format_shape(shape: Sequence[int]) -> str:
    """Formats the sizes of a tensor's dimensions: 1 × 28 × 28."""
    return " × ".join(map(str, shape))


def format_parameter(value: object) -> str:
    """Formats the value of a hyperparameter in one line; floats have four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return one_line(str(value))


def format_duration(duration: float) -> str:
    """Formats a duration in seconds: 8 s, 3 min 20 s, 2 h 5 min."""
    total_seconds = round(duration)
    minutes, seconds = divmod(total_seconds, 60)
    if total_seconds < 60:
        return f"{total_seconds} s"
    if total_seconds < 3600:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


# Passwords have two forms. In a URL, such as postgresql://ada:secret@host, the password ends at the
# last @ of the word, or else at the first @ of the line. The other form is password=secret or
# "password": "secret"; libpq, the client library of PostgreSQL, has sslpassword and
# oauth_client_secret too.
PASSWORDS = re.compile(
    r"""(?P<url>\b[\w+.-]+://[^\s:/]*:)(?:\S*|[^@\n]*)(?=@)|"""
    r"""(?P<key>(?:password|client_secret)["']?[ \t]*[=:][ \t]*)"""
    r"""(?:'[^'\n]*'|"[^"\n]*"|[^\s&'"]+)""",
    re.IGNORECASE,
)


def mask_passwords(text: str) -> str:
    """Replaces the passwords of URLs and of `password=…` in a text by ***."""
    return PASSWORDS.sub(lambda match: (match["url"] or match["key"]) + "***", text)


def shorten_end(text: str, length: int) -> str:
    """Replaces the end of a text by … if it has more than `length` characters."""
    if len(text) <= length:
        return text
    return f"{text[: length - 1]}…"


def shorten(text: str, length: int) -> str:
    """Replaces the middle of a text by … if it has more than `length` characters."""
    if len(text) <= length:
        return text
    remaining_length = length - 1  # without the …
    end_length = remaining_length // 2
    start_length = remaining_length - end_length
    return f"{text[:start_length]}…{text[-end_length:]}"


def shorten_names(names: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """Shortens dotted names to as few of their last parts as distinguish them.

    The short name of optimizer.adamw.lr is lr, or adamw.lr if there is an optimizer.sgd.lr too. An
    item of a list, such as hidden.0 or hidden.length, keeps the name of the list.

    Args:
        names: the dotted names.
        reserved: titles with which no short name may be confused.

    Returns:
        The short name of each name.
    """
    endings_by_name = {name: _list_endings(name) for name in names}
    ending_counts = Counter(reserved)
    for endings in endings_by_name.values():
        ending_counts.update(endings)
    short_names = {}
    for name, endings in endings_by_name.items():
        short_names[name] = name
        for ending in endings:
            is_distinct = ending_counts[ending] == 1
            if is_distinct and not LIST_ITEM.match(ending):
                short_names[name] = ending
                break
    return short_names


def _list_endings(name: str) -> list[str]:
    """Returns the endings of a dotted name, the shortest first: c, b.c and a.b.c for a.b.c.

    Of more than three dots the first ones are not split: the last ending is the whole name.
    """
    parts = name.rsplit(".", maxsplit=3)
    endings = []
    for part_count in range(1, len(parts) + 1):
        endings.append(".".join(parts[-part_count:]))
    return endings
