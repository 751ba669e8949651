"""Reads the cells of a CSV file, which may be untrusted, as truth values, numbers or text.

It must be a regular file of UTF-8 text whose lines, rows and bytes have limits. An error names the
file, the line and the column, and how to fix it.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeGuard

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from studyloom.errors import DataError
from studyloom.files import open_regular
from studyloom.text import nearest, one_line, shorten

MAX_BYTES = 100_000_000  # in a file
MAX_LINE_BYTES = 1_000_000
MAX_ROWS = 200_000
MAX_INTEGER = 2**53  # larger ones are not exact as the floats that Optuna stores
MAX_LIST_LENGTH = 300  # characters of a list of names in a message
MAX_NAME_LENGTH = 80  # characters of a name or cell in a message
MAX_INTEGER_LENGTH = 40  # digits of an integer in a message
TRUTH_VALUES = {"true": True, "false": False}
INTEGER = re.compile(r"[+-]?[0-9]+")


class Domain(NamedTuple):
    """The distribution of a column, and the function that reads one of its cells."""

    distribution: BaseDistribution
    read: Callable[[str], Any]


class Row(NamedTuple):
    """A row, with a cell for each column of the file; `line` is its first line, from 1."""

    line: int
    cells: Sequence[str]


@dataclass(frozen=True)
class CsvFile:
    """Holds the rows of a CSV file below its header."""

    path: Path
    columns: Sequence[str]
    rows: Sequence[Row]

    def error(self, problem: str, line: int | None = None, column: str | None = None) -> DataError:
        """Returns the error of a cell, a line or the whole file."""
        return _make_error(self.path, problem, line, column)

    def position(self, column: str) -> int:
        """Returns the position of a column.

        Raises:
            DataError: there is no such column, or there are several.
        """
        count = self.columns.count(column)
        name = shorten(one_line(column), MAX_NAME_LENGTH)
        if count == 0:
            columns_with_name = [other for other in self.columns if other]
            hint = nearest(column, columns_with_name)
            column_list = one_line(", ".join(columns_with_name) or "none")
            column_list = shorten(column_list, MAX_LIST_LENGTH)
            raise self.error(f"there is no column {name}{hint}; it has {column_list}")
        if count > 1:
            problem = f"{count} columns are called {name}; rename or remove the others"
            raise self.error(problem, line=1)
        return self.columns.index(column)

    def numbers(self, column: str) -> list[float | None]:
        """Reads a column of numbers, which may be NaN or infinite; None for an empty cell.

        Raises:
            DataError: a cell holds something else.
        """
        position = self.position(column)
        numbers: list[float | None] = []
        for row in self.rows:
            cell = row.cells[position]
            number = parse_number(cell)
            if number is None and cell:
                problem = f"must be a number; got {shorten(one_line(cell), MAX_NAME_LENGTH)}"
                fix = "correct it, or leave it empty"
                raise self.error(f"{problem}; {fix}", row.line, column)
            numbers.append(number)
        return numbers

    def domain(self, column: str) -> Domain:
        """Decides how the cells of a column are read: as truth values, integers, floats or text.

        All cells that are not empty must be of the kind.

        Raises:
            DataError: an integer is too large.
        """
        position = self.position(column)
        filled_rows = []
        cells = []
        for row in self.rows:
            cell = row.cells[position]
            if cell:
                filled_rows.append(row)
                cells.append(cell)
        if cells and all(INTEGER.fullmatch(cell) for cell in cells):
            self._check_integers(column, filled_rows)
        return choose_domain(cells)

    def _check_integers(self, column: str, rows: Sequence[Row]) -> None:
        """Raises DataError if one of the integers in a column is too large."""
        position = self.position(column)
        for row in rows:
            cell = row.cells[position]
            # Python refuses to read an integer of over 4,300 digits, but not as a float.
            if abs(float(cell)) > MAX_INTEGER:
                problem = f"the integer {shorten(cell, MAX_INTEGER_LENGTH)} is larger than 2**53"
                fix = "remove the column, or list the others with --params"
                raise self.error(f"{problem}; {fix}", row.line, column)


def choose_domain(cells: Sequence[str]) -> Domain:
    """Decides how cells are read: as truth values, integers, floats or text.

    Args:
        cells: none of them is empty; all must be of the kind.
    """
    if not cells:
        return Domain(CategoricalDistribution([""]), str)
    if all(cell.lower() in TRUTH_VALUES for cell in cells):
        return Domain(CategoricalDistribution([False, True]), parse_truth_value)
    if all(_is_exact_integer(cell) for cell in cells):
        integers = [int(cell) for cell in cells]
        return Domain(IntDistribution(min(integers), max(integers)), int)
    numbers = [number for number in map(parse_number, cells) if _is_finite(number)]
    are_all_numbers = len(numbers) == len(cells)
    if are_all_numbers:
        return Domain(FloatDistribution(min(numbers), max(numbers)), float)
    different_cells = list(dict.fromkeys(cells))  # each once, in order
    return Domain(CategoricalDistribution(different_cells), str)


def _is_exact_integer(cell: str) -> bool:
    """Returns True if a cell holds an integer that a float can hold too.

    Python refuses to read an integer of over 4,300 digits, but not as a float.
    """
    return INTEGER.fullmatch(cell) is not None and abs(float(cell)) <= MAX_INTEGER


def parse_truth_value(cell: str) -> bool:
    """Returns the truth value in a cell."""
    return TRUTH_VALUES[cell.lower()]


def parse_number(cell: str) -> float | None:
    """Returns the number in a cell; None if it holds none."""
    try:
        return float(cell)
    except ValueError:
        return None


def _is_finite(number: float | None) -> TypeGuard[float]:
    return number is not None and math.isfinite(number)


def read_csv_file(path: Path) -> CsvFile:
    """Reads a CSV file.

    Raises:
        DataError: it is not a CSV file, or exceeds a limit.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise _make_error(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _make_error(path, f"cannot be read: {error}; name an exported CSV file") from None
    with file:
        reader = csv.reader(_read_lines(path, file), strict=True)
        try:
            columns = next(reader, [])
            rows = list(_read_rows(path, reader, columns))
        except csv.Error as error:
            problem = f"cannot be read as CSV: {error}; export the file again"
            raise _make_error(path, problem, reader.line_num) from None
    return CsvFile(path, columns, rows)


def _read_rows(path: Path, reader: Any, columns: Sequence[str]) -> Iterator[Row]:
    """Yields the rows below the header, each with a cell for each column.

    Empty lines are skipped. A row may have several lines, if a cell in quotes has.

    Args:
        path: the file, for errors.
        reader: a `csv.reader` that has read the header.

    Raises:
        DataError: there are too many rows, or a row has more cells than the header.
    """
    count = 0
    last_line = reader.line_num
    for cells in reader:
        line = last_line + 1
        last_line = reader.line_num
        if not cells:
            continue
        count += 1
        if count > MAX_ROWS:
            problem = f"more than {MAX_ROWS:,} rows follow the header; split the file"
            raise _make_error(path, problem, line)
        extra_cells = cells[len(columns) :]
        if any(extra_cells):
            problem = f"{len(cells)} cells are in a row, and the header has {len(columns)} columns"
            raise _make_error(path, f"{problem}; put quotes around a cell with a comma", line)
        missing_cells = [""] * (len(columns) - len(cells))
        yield Row(line, [*cells[: len(columns)], *missing_cells])


def _read_lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    """Yields the lines of a file of UTF-8 text; raises DataError if it is something else.

    A line is read up to its limit, so that a file without line breaks does not fill the memory.
    """
    number = 0
    size = 0  # bytes
    while True:
        line = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        number += 1
        size += len(line)
        if len(line) > MAX_LINE_BYTES:
            problem = f"the line is longer than {MAX_LINE_BYTES:,} bytes; name an exported CSV file"
            raise _make_error(path, problem, number)
        if size > MAX_BYTES:
            problem = f"the file has more than {MAX_BYTES // 10**6} MB; export fewer columns"
            raise _make_error(path, problem, number)
        encoding = "utf-8"
        if number == 1:
            encoding = "utf-8-sig"  # leaves out a byte order mark
        try:
            text = line.decode(encoding)
            is_text = "\0" not in text
        except UnicodeDecodeError:
            is_text = False
        if not is_text:
            other_encoding = _guess_encoding(line)
            fix = f"export it as UTF-8, or convert it with iconv -f {other_encoding} -t UTF-8"
            raise _make_error(path, f"the line is not UTF-8 text; {fix}", number)
        yield from io.StringIO(text, newline="")  # several lines, if only \r ends them


def _guess_encoding(line: bytes) -> str:
    """Guesses the encoding of a line that is not UTF-8."""
    begins_with_mark = line.startswith((b"\xff\xfe", b"\xfe\xff"))  # the byte order mark of UTF-16
    if begins_with_mark or b"\0" in line:
        return "UTF-16"
    return "LATIN1"


def _make_error(
    path: Path, problem: str, line: int | None = None, column: str | None = None
) -> DataError:
    """Returns an error that begins with its place, such as `runs.csv, line 3, column lr: …`."""
    place = one_line(str(path))
    if line is not None:
        place += f", line {line}"
    if column is not None:
        place += f", column {shorten(one_line(column), MAX_NAME_LENGTH)}"
    return DataError(f"{place}: {problem}")
