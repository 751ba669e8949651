"""Data sets in CSV files: tables of independent rows, and series in the order of time.

Inputs are the numbers as they stand there. What they are standardised by is learnt from the training part alone, by a
network's first layer (`studyloom.models.Standardise`).
"""

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from studyloom.data.folds import make_folds
from studyloom.data.split import Split, digest_of
from studyloom.errors import DataError
from studyloom.files import ASSETS

OWN = "studyloom:"  # before the name of a file that comes with the package


@dataclass(frozen=True)
class Table:
    """A CSV file with a header, of which one column is to be told from the others, all of which hold numbers.

    path: of the file; studyloom:NAME for one that comes with the package. target: the column to be told: of classes, by
    any words, or, with numbers=true, of numbers. sealed: rows of the test part, a stratified sample that depends on the
    file alone; validation: of the others, rows to choose by. Raises DataError.
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
        names, rows = read(self.path)
        place = _column(self.path, names, self.target, "data.target")
        words = [row.pop(place) for row in rows]
        columns = [name for name in names if name != self.target]
        inputs = torch.tensor(_numbers(self.path, columns, rows), dtype=torch.float32)
        if self.numbers:
            targets = torch.tensor(
                _numbers(self.path, [self.target], [[word] for word in words]), dtype=torch.float32
            )
            classes = [self.target]
        else:
            classes = sorted(
                {*words},
                key=lambda word: (not word.isdigit(), int(word) if word.isdigit() else 0, word),
            )
            targets = torch.tensor([classes.index(word) for word in words])
        if not 0 < self.sealed < len(rows):
            raise DataError(
                f"data.sealed is {self.sealed}: expected 1 to {len(rows) - 1}, of {len(rows)} rows"
            )
        kept = make_folds(targets, 1, self.sealed, 0)[0][part]
        inputs, targets = inputs[kept], targets[kept]
        digest = digest_of(inputs, targets)
        return Split(
            inputs, targets, len(classes), digest, names=tuple(classes), columns=tuple(columns)
        )


@dataclass(frozen=True)
class Series:
    """A column of a CSV file whose rows are in the order of time: the next value is to be told from those before it.

    An example is a window of `window` values (window, 1) and the value that follows (1,). Those of the last `sealed`
    values are the test part; of the others the last `validation` are there to choose by. No window of an earlier part
    holds a value that a later part is to tell. A rule to be beaten is persistence: the next value is the last one.
    Raises DataError.
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
        names, rows = read(self.path)
        place = _column(self.path, names, self.column, "data.column")
        values = torch.tensor(
            _numbers(self.path, [self.column], [[row[place]] for row in rows]), dtype=torch.float32
        )
        count = len(values) - self.window
        for key, given, most in (
            ("window", self.window, len(values) - 2),
            ("sealed", self.sealed, count - 1),
        ):
            if not 0 < given <= most:
                raise DataError(
                    f"data.{key} is {given}: expected 1 to {most}, of {len(values)} values in {self.path}"
                )
        windows = torch.stack([values[start : start + self.window] for start in range(count)])
        kept = slice(None, count - self.sealed) if part == 0 else slice(count - self.sealed, None)
        inputs, targets = windows[kept].clone(), values[self.window :][kept].clone()
        return Split(
            inputs,
            targets,
            1,
            digest_of(inputs, targets),
            ordered=True,
            names=(self.column,),
            references={"persistence": inputs[:, -1]},
        )


def read(path: str) -> tuple[list[str], list[list[str]]]:
    """The names and rows of a CSV file.

    Raises:
        DataError: it cannot be read, has no header, or a row with another number of fields.
    """
    file = ASSETS / path.removeprefix(OWN) if path.startswith(OWN) else Path(path).expanduser()
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            reader = csv.reader(lines)
            names = [name.strip() for name in next(reader, [])]
            rows = []
            for row in reader:
                if row and len(row) != len(names):
                    raise DataError(
                        f"data.path={path}: line {reader.line_num} has {len(row)} fields, the header {len(names)}"
                    )
                if row:
                    rows.append([word.strip() for word in row])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"data.path={path}: cannot be read as a CSV file: {why}") from error
    if len({*names}) != len(names) or not all(names) or len(rows) < 2:
        raise DataError(
            f"data.path={path}: expected a line of different names, and two lines of values or more"
        )
    return names, rows


def _column(path: str, names: Sequence[str], name: str, key: str) -> int:
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"{key}={name}: {path} has no such column; it has {', '.join(names)}{hint}")
    return names.index(name)


def _numbers(path: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[float]]:
    found: list[list[float]] = []
    for line, row in enumerate(rows, 2):
        values = []
        for name, word in zip(columns, row, strict=True):
            try:
                value = float(word)
            except ValueError:
                value = float("nan")
            if not abs(value) < float("inf"):
                raise DataError(
                    f"data.path={path}: line {line} has {word!r} for {name}; a finite number is wanted"
                )
            values.append(value)
        found.append(values)
    return found
