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

MOST_BYTES = 100_000_000  # in a file
LONGEST_LINE = 1_000_000  # bytes
MOST_ROWS = 200_000
LARGEST = 2**53  # of an integer; larger ones are not exact as the floats that Optuna stores
LONGEST = 300  # characters of a list of names in a message; one name has at most 80
TRUTHS = {"true": True, "false": False}
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
        return _error(self.path, problem, line, column)

    def place(self, column: str) -> int:
        """Returns the position of a column.

        Raises:
            DataError: there is no such column, or there are several.
        """
        count = self.columns.count(column)
        name = shorten(one_line(column), 80)
        if count == 0:
            names = [other for other in self.columns if other]
            hint = nearest(column, names)
            listed = shorten(one_line(", ".join(names) or "none"), LONGEST)
            raise self.error(f"there is no column {name}{hint}; it has {listed}")
        if count > 1:
            raise self.error(f"{count} columns are called {name}; rename or remove the others", 1)
        return self.columns.index(column)

    def numbers(self, column: str) -> list[float | None]:
        """Reads a column of numbers, which may be NaN or infinite; None for an empty cell.

        Raises:
            DataError: a cell holds something else.
        """
        position = self.place(column)
        numbers: list[float | None] = []
        for row in self.rows:
            cell = row.cells[position]
            number = parse_number(cell)
            if number is None and cell:
                problem = f"must be a number; got {shorten(one_line(cell), 80)}"
                fix = "correct it, or leave it empty"
                raise self.error(f"{problem}; {fix}", row.line, column)
            numbers.append(number)
        return numbers

    def domain(self, column: str) -> Domain:
        """Decides how the cells of a column are read, by all cells that are not empty.

        Raises:
            DataError: an integer is too large.
        """
        position = self.place(column)
        filled_rows = [row for row in self.rows if row.cells[position]]
        cells = [row.cells[position] for row in filled_rows]
        if not cells:
            return Domain(CategoricalDistribution([""]), str)
        if all(cell.lower() in TRUTHS for cell in cells):
            return Domain(CategoricalDistribution([False, True]), parse_truth)
        if all(INTEGER.fullmatch(cell) for cell in cells):
            self._check_integers(column, filled_rows)
            integers = [int(cell) for cell in cells]
            return Domain(IntDistribution(min(integers), max(integers)), int)
        numbers = [number for number in map(parse_number, cells) if _is_finite(number)]
        if len(numbers) == len(cells):
            return Domain(FloatDistribution(min(numbers), max(numbers)), float)
        different = list(dict.fromkeys(cells))
        return Domain(CategoricalDistribution(different), str)

    def _check_integers(self, column: str, rows: Sequence[Row]) -> None:
        """Raises DataError if one of the integers in a column is too large."""
        position = self.place(column)
        for row in rows:
            cell = row.cells[position]
            # Python refuses to read an integer of over 4,300 digits, but not as a float.
            if abs(float(cell)) > LARGEST:
                problem = f"the integer {shorten(cell, 40)} is larger than 2**53"
                fix = "remove the column, or list the others with --params"
                raise self.error(f"{problem}; {fix}", row.line, column)


def parse_truth(cell: str) -> bool:
    """Returns the truth value in a cell."""
    return TRUTHS[cell.lower()]


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
        raise _error(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _error(path, f"cannot be read: {error}; name an exported CSV file") from None
    with file:
        reader = csv.reader(_lines(path, file), strict=True)
        try:
            columns = next(reader, [])
            rows = list(_rows(path, reader, columns))
        except csv.Error as error:
            problem = f"cannot be read as CSV: {error}; export the file again"
            raise _error(path, problem, reader.line_num) from None
    return CsvFile(path, columns, rows)


def _rows(path: Path, reader: Any, columns: Sequence[str]) -> Iterator[Row]:
    """Yields the rows below the header; empty lines are skipped."""
    count = 0
    last_line = reader.line_num  # of the row before; a row has several if a cell in quotes has
    for cells in reader:
        line = last_line + 1
        last_line = reader.line_num
        if not cells:
            continue
        count += 1
        if count > MOST_ROWS:
            problem = f"more than {MOST_ROWS:,} rows follow the header; split the file"
            raise _error(path, problem, line)
        extra = cells[len(columns) :]
        if any(extra):
            problem = f"{len(cells)} cells are in a row, and the header has {len(columns)} columns"
            raise _error(path, f"{problem}; put quotes around a cell with a comma", line)
        missing = [""] * (len(columns) - len(cells))
        yield Row(line, [*cells[: len(columns)], *missing])


def _lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    """Yields the lines of a file of UTF-8 text."""
    number = 0
    size = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        size += len(line)
        if len(line) > LONGEST_LINE:
            problem = f"the line is longer than {LONGEST_LINE:,} bytes; name an exported CSV file"
            raise _error(path, problem, number)
        if size > MOST_BYTES:
            problem = f"the file has more than {MOST_BYTES // 10**6} MB; export fewer columns"
            raise _error(path, problem, number)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:  # the file may be UTF-16
            fix = f"export it as UTF-8, or convert it with iconv -f {_encoding(line)} -t UTF-8"
            raise _error(path, f"the line is not UTF-8 text; {fix}", number)
        yield from io.StringIO(text, newline="")  # several lines, if only \r ends them


def _encoding(line: bytes) -> str:
    """Guesses the encoding of a line that is not UTF-8."""
    begins_with_mark = line.startswith((b"\xff\xfe", b"\xfe\xff"))  # the byte order mark of UTF-16
    if begins_with_mark or b"\0" in line:
        return "UTF-16"
    return "LATIN1"


def _error(
    path: Path, problem: str, line: int | None = None, column: str | None = None
) -> DataError:
    where = one_line(str(path))
    if line is not None:
        where += f", line {line}"
    if column is not None:
        where += f", column {shorten(one_line(column), 80)}"
    return DataError(f"{where}: {problem}")
