"""Data sets in CSV files: tables of independent rows, and series in time order.

Inputs are the numbers as the file has them. Standardising them is up to the network: its first
layer learns how from the training part alone (`studyloom.models.Standardise`).
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from studyloom.data.folds import make_folds
from studyloom.data.split import Split, digest_of
from studyloom.errors import DataError
from studyloom.files import ASSETS
from studyloom.text import nearest

OWN = "studyloom:"  # before the name of a file that comes with the package


@dataclass(frozen=True)
class Table:
    """A CSV file with a header, of which one column is predicted from the others.

    All other columns must hold numbers.

    Args:
        path: the file, or studyloom:NAME for one that comes with the package.
        target: the column to predict: classes, in any words, or numbers.
        sealed: how many rows are the test part, a stratified sample that depends on the file alone.
        validation: how many of the other rows are held out to choose by.
        numbers: whether the target column holds numbers, and not classes.

    Raises:
        DataError: from `train` and `test`, if the file or a setting cannot be used.
    """

    path: str
    target: str
    sealed: int
    validation: int
    numbers: bool = False

    def train(self) -> Split:
        return self._part(0)

    def test(self) -> Split:
        return self._part(1)

    def _part(self, part: int) -> Split:
        """Reads the training part (0) or the test part (1)."""
        names, rows, ends = read(self.path)
        target = _column(self.path, names, self.target, "data.target")
        words = [row.pop(target) for row in rows]
        columns = [name for name in names if name != self.target]
        inputs = _numbers(self.path, columns, rows, ends)
        if self.numbers:
            targets = _numbers(self.path, [self.target], [[word] for word in words], ends)
            classes = [self.target]
        else:
            classes = sorted(
                {*words},
                key=lambda word: (not word.isdigit(), int(word) if word.isdigit() else 0, word),
            )
            targets = torch.tensor([classes.index(word) for word in words])
        if not 0 < self.sealed < len(rows):
            raise DataError(
                f"data.sealed must be from 1 to {len(rows) - 1}, for {len(rows)} rows; "
                f"got {self.sealed}"
            )
        chosen = make_folds(targets, 1, self.sealed, 0)[0][part]
        inputs, targets = inputs[chosen], targets[chosen]
        digest = digest_of(inputs, targets)
        return Split(
            inputs, targets, len(classes), digest, names=tuple(classes), columns=tuple(columns)
        )


@dataclass(frozen=True)
class Series:
    """A column of a CSV file in time order, whose next value is predicted from those before it.

    An example is a window of values (window, 1) and the value that follows (1,). No window of an
    earlier part holds a value that a later part predicts. The rule to beat is persistence: the next
    value is the last one.

    Args:
        path: the file, or studyloom:NAME for one that comes with the package.
        column: the column.
        window: how many values an input holds.
        sealed: how many of the last values are the targets of the test part.
        validation: how many values before those are held out to choose by.

    Raises:
        DataError: from `train` and `test`, if the file or a setting cannot be used.
    """

    path: str
    column: str
    window: int
    sealed: int
    validation: int

    def train(self) -> Split:
        return self._part(0)

    def test(self) -> Split:
        return self._part(1)

    def _part(self, part: int) -> Split:
        """Reads the training part (0) or the test part (1)."""
        names, rows, ends = read(self.path)
        column = _column(self.path, names, self.column, "data.column")
        values = _numbers(self.path, [self.column], [[row[column]] for row in rows], ends)
        count = len(values) - self.window
        for key, value, most in (
            ("window", self.window, len(values) - 2),
            ("sealed", self.sealed, count - 1),
        ):
            if not 0 < value <= most:
                raise DataError(
                    f"data.{key} must be from 1 to {most}, for {len(values)} values in "
                    f"{self.path}; got {value}"
                )
        windows = torch.stack([values[start : start + self.window] for start in range(count)])
        first_sealed = count - self.sealed
        chosen = slice(None, first_sealed) if part == 0 else slice(first_sealed, None)
        inputs, targets = windows[chosen].clone(), values[self.window :][chosen].clone()
        return Split(
            inputs,
            targets,
            1,
            digest_of(inputs, targets),
            ordered=True,
            names=(self.column,),
            references={"persistence": inputs[:, -1]},
        )


def read(path: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Reads a CSV file; empty lines are skipped.

    Args:
        path: the file, or studyloom:NAME for one that comes with the package.

    Returns:
        the names of the columns, the rows, and the number of the line in which each row ends.

    Raises:
        DataError: the file cannot be read, has no header, or a row of another length.
    """
    file = ASSETS / path.removeprefix(OWN) if path.startswith(OWN) else Path(path).expanduser()
    try:
        # Spreadsheet programs put a byte order mark before the first name.
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            names = [name.strip() for name in next(reader, [])]
            rows, ends = [], []
            for row in reader:
                if row and len(row) != len(names):
                    raise DataError(
                        f"data.path={path}: line {reader.line_num} has {len(row)} fields; "
                        f"the header has {len(names)}"
                    )
                if row:
                    rows.append([word.strip() for word in row])
                    ends.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"data.path={path}: cannot be read as a CSV file: {reason}") from error
    if len({*names}) != len(names) or not all(names) or len(rows) < 2:
        raise DataError(
            f"data.path={path}: must begin with a line of column names, all different, and have "
            "two lines of values or more"
        )
    return names, rows, ends


def _column(path: str, names: Sequence[str], name: str, key: str) -> int:
    """Returns the position of a column."""
    if name not in names:
        raise DataError(
            f"{key}={name}: {path} has no such column; it has {', '.join(names)}"
            f"{nearest(name, names)}"
        )
    return names.index(name)


def _numbers(
    path: str, columns: Sequence[str], rows: Sequence[Sequence[str]], ends: Sequence[int]
) -> Tensor:
    """Converts the fields of rows, which end in these lines of the file, to numbers, float32."""
    numbers: list[list[float]] = []
    for line, row in zip(ends, rows, strict=True):
        values = []
        for name, word in zip(columns, row, strict=True):
            try:
                value = float(word)
            except ValueError:
                value = float("nan")
            if not abs(value) < float("inf"):
                raise DataError(
                    f"data.path={path}: line {line} must have a finite number for {name}; "
                    f"got {word!r}"
                )
            values.append(value)
        numbers.append(values)
    return torch.tensor(numbers, dtype=torch.float32)
