"""Texts as numbers: where they are in an input, and which word each number stands for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studyloom.errors import DataError
from studyloom.text import shorten_end

LONGEST = 40  # letters of a word that are shown


@dataclass(frozen=True, eq=False)
class Tokens:
    """Which words the numbers of a text stand for, so that a report can show the text.

    A text is a row of whole numbers that is filled up at its end, if at all. A Dataset has this as
    its attribute `tokens`, a `Split` in its field of that name.

    Args:
        names: the word of each number, from 0 on.
        first: where in the row the text begins, after numbers of another kind, such as a table.
        path: the positions and keys that lead to the row in an item of a Dataset: (0,) in
            `(row, target)`, (0, "text") in `({"text": row, …}, target)`. In a Split each input is
            such a row.
        nothing: the number that fills up a row.

    Raises:
        DataError: `names` is no list of words.
    """

    names: Sequence[str]
    first: int = 0
    path: Sequence[int | str] = (0,)
    nothing: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not all(isinstance(name, str) for name in self.names):
            raise DataError(
                "Tokens.names must be a list of words, one for each number from 0 on; "
                f"got {str(self.names)[:60]!r}"
            )

    def row_of(self, item: Any) -> Tensor | None:
        """Returns the row of an item; None if there is none where `path` leads."""
        try:
            for step in self.path:
                item = item[step]
        except (LookupError, TypeError):
            return None
        row = torch.from_numpy(item) if isinstance(item, np.ndarray) else item
        return row if isinstance(row, Tensor) and self.fits(row) else None

    def fits(self, row: Tensor) -> bool:
        """Whether a tensor is a row of whole numbers that has room for a text."""
        whole = not row.is_floating_point() and not row.is_complex()
        return whole and row.ndim == 1 and len(row) > self.first

    def numbers_of(self, row: Tensor) -> list[int]:
        """Returns the numbers of the text in a row, without those that fill it up."""
        return [number for number in row[self.first :].tolist() if number != self.nothing]

    def without(self, row: Tensor, number: int) -> Tensor:
        """Returns a row whose text lacks a number; what follows moves up."""
        text = row[self.first :]
        kept = text[text != number]
        end = text.new_full((len(text) - len(kept),), self.nothing)
        return torch.cat([row[: self.first], kept, end])

    def word(self, number: int) -> str:
        """Returns the word of a number; #7 for one that has none."""
        known = 0 <= number < len(self.names)
        return shorten_end(self.names[number], LONGEST) if known else f"#{number}"
