"""Reviews of clothes as words and as a row of a table, and a network that reads either or both.

It is what the study `reviews` trains on and with. The reviews came with studyloom.
"""

from studyloom.data import Reader, Tokens, asset

import bz2
import csv
import functools
import hashlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from studies.words import UNKNOWN, Vocabulary, cut, words_of

COUNT = 22_634  # reviews
TEST_SHARE = 0.2  # of all reviews, in whole kinds of clothes
LONGEST = 116  # words that are read; the longest review has as many
PAIRS = 30_000  # buckets into which pairs of neighboring words are hashed
NAMED = ("division", "class")  # columns of words
COLUMNS = ("age", "likes", "rating", *NAMED)
MIDDLE = {"age": 43, "likes": 2, "rating": 4}  # of the training set; taken where nothing is said
RANGE = {"age": (0, 120), "likes": (0, 1000), "rating": (1, 5)}
SPREAD = {"age": 12, "likes": 6, "rating": 1}
Row = Mapping[str, str]


@functools.cache
def reviews() -> list[Row]:
    """Returns all reviews, in the order of the asset."""
    with asset("reviews.csv.bz2") as file:
        text = bz2.decompress(file.read()).decode()
        rows = list(csv.DictReader(io.StringIO(text)))
        if len(rows) != COUNT:
            raise ValueError(f"must have {COUNT} reviews; got {len(rows)}")
    return rows


@functools.cache
def clothes_of_test() -> frozenset[str]:
    """Returns the numbers of the clothes whose reviews are the test set.

    They are drawn by a hash until they have a fifth of the reviews, which no release changes.
    """
    clothes = [row["clothing"] for row in reviews()]
    drawn = sorted({*clothes}, key=lambda name: hashlib.sha256(f"reviews {name}".encode()).digest())
    counts = np.cumsum([clothes.count(name) for name in drawn])
    return frozenset(drawn[: int(np.searchsorted(counts, TEST_SHARE * len(clothes)))])


@functools.cache
def known() -> tuple[Vocabulary, dict[str, list[str]]]:
    """Returns the words of the training set, and the options of its columns of words."""
    rows = [row for row in reviews() if row["clothing"] not in clothes_of_test()]
    options = {name: sorted({row[name] for row in rows} - {""}) for name in NAMED}
    return Vocabulary(words_of(row["review"]) for row in rows), options


def encode(row: Row) -> tuple[list[int], list[str]]:
    """Makes an input of a review.

    Args:
        row: what is known of it, by the names of COLUMNS and `review`; all may be missing.

    Returns:
        the numbers of COLUMNS, of words their place in the training set from 1 on, and LONGEST
        words; and what was done to them.

    Raises:
        ValueError: a field is not a number, or out of its range.
    """
    vocabulary, options = known()
    table, done = [], []
    for name in COLUMNS:
        said = (row.get(name) or "").strip()
        if name in NAMED:
            table.append(options[name].index(said) + 1 if said in options[name] else 0)
            if not said or not table[-1]:
                done.append(f"{name} {said} unknown" if said else f"no {name}")
            continue
        if not said:
            done.append(f"no {name}, taken as {MIDDLE[name]}")
        elif not (said.isascii() and said.isdecimal() and is_within(name, said)):
            low, high = RANGE[name]
            raise ValueError(
                f"{name} must be an integer from {low} to {high}, or nothing; got {said[:40]!r}"
            )
        table.append(int(said or MIDDLE[name]))
    words = words_of(row.get("review") or "")
    numbers = vocabulary.number(words[:LONGEST])
    if not words:
        done.append("no text: answered by the table, or a guess if the winner reads none")
    elif UNKNOWN in numbers:
        done.append(f"{numbers.count(UNKNOWN)} of {len(numbers)} words unknown")
    if len(words) > LONGEST:
        done.append(f"the first {LONGEST} of {len(words)} words")
    return table + numbers + [0] * (LONGEST - len(numbers)), done


def is_within(name: str, digits: str) -> bool:
    """Whether a number that may be long is in the range of a column."""
    low, high = RANGE[name]
    return len(digits) < 9 and low <= int(digits) <= high


class Reviews(Dataset[tuple[Tensor, int]]):
    """The reviews of some clothes.

    An item is an input, int64 (5 + 116,), and its class.

    Args:
        part: train or test.
    """

    classes = ("not recommended", "recommended")

    def __init__(self, part: str) -> None:
        rows = [
            row for row in reviews() if (row["clothing"] in clothes_of_test()) == (part == "test")
        ]
        self.clothing = [row["clothing"] for row in rows]
        self.targets = np.array([int(row["recommended"]) for row in rows])
        self.inputs = torch.tensor([encode(row)[0] for row in rows])
        self.tokens = Tokens(known()[0].names, first=len(COLUMNS))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], int(self.targets[index])


def clothing(reviews: Reviews) -> list[str]:
    """Returns the piece of clothing of each review: the groups that no fold divides."""
    return reviews.clothing


class ReviewFile(Reader):
    """Reads a CSV file whose first line names columns, `review` among them, for `predict`."""

    def __call__(self, content: bytes) -> tuple[Tensor, Sequence[str]]:
        try:
            text = io.StringIO(content.decode("utf-8-sig"), newline="")
            rows = list(csv.DictReader(text, strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"it must be a CSV file in UTF-8: {error}") from None
        if not rows or "review" not in rows[0]:
            columns = ", ".join(COLUMNS)
            raise ValueError(
                f"it must be a CSV file whose first line names review and any of {columns}"
            )
        made = []
        for number, row in enumerate(rows, 1):
            if None in row:
                raise ValueError(
                    f"review {number}: has more fields than the first line names; a text with "
                    'commas must be in quotes: "…"'
                )
            try:
                made.append(encode(row))
            except ValueError as error:
                raise ValueError(f"review {number}: {error}") from None
        return torch.tensor([input for input, _ in made]), ["; ".join(done) for _, done in made]


class ReviewNet(nn.Module):
    """Predicts whether a piece of clothing is recommended, from words, a table, or both.

    Args:
        outputs: how many classes there are.
        fusion: text or table, to read only one; or how to read both: join, by a layer on the
            features of both; add, by the sum of the logits of each; gate, in which the table
            weighs the features of the text.
        columns: of the table; the others are not looked at.
        vocabulary: how many of the most frequent words are known.
        width: of the vector of a word.
        hidden: of the layers.
        dropout: the probability, of whole words and of features.
    """

    def __init__(
        self,
        outputs: int,
        fusion: str = "text",
        columns: Sequence[str] = COLUMNS,
        vocabulary: int = 5000,
        width: int = 32,
        hidden: int = 64,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if fusion not in ("text", "table", "join", "add", "gate"):
            raise ValueError(f"model.fusion must be text, table, join, add or gate; got {fusion}")
        if unknown := {*columns} - {*COLUMNS}:
            raise ValueError(
                f"model.columns must be of {', '.join(COLUMNS)}; got {', '.join(sorted(unknown))}"
            )
        self.fusion, self.vocabulary, self.dropout = fusion, vocabulary, dropout
        self.columns = tuple(columns)
        self.options = {name: len(known()[1][name]) + 1 for name in NAMED}
        if fusion != "table":
            self.words = nn.Embedding(vocabulary, width, padding_idx=0)
            self.bag = nn.Embedding(vocabulary + PAIRS, hidden, padding_idx=0)
            self.bag.weight.data *= 0.02
            self.order = nn.Conv1d(width, hidden, 2, padding=1)
            self.text = nn.Sequential(nn.Linear(3 * hidden, hidden), nn.ReLU(), nn.Dropout(dropout))
        if fusion != "text":
            numbers = sum(self.options.get(name, 1) for name in self.columns)
            self.table = nn.Sequential(nn.Linear(numbers, hidden), nn.ReLU(), nn.Dropout(dropout))
        if fusion == "add":
            self.of_table = nn.Linear(hidden, outputs)
        if fusion == "gate":
            self.gate = nn.Sequential(nn.Linear(hidden, hidden), nn.Sigmoid())
        self.head = nn.Linear(hidden * (2 if fusion in ("join", "gate") else 1), outputs)

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows.long()
        if self.fusion == "text":
            return self.head(self.read(rows))
        if self.fusion == "table":
            return self.head(self.look(rows))
        text, table = self.read(rows), self.look(rows)
        if self.fusion == "add":
            return self.head(text) + self.of_table(table)
        if self.fusion == "gate":
            text = text * self.gate(table)
        return self.head(torch.cat([text, table], 1))

    def read(self, rows: Tensor) -> Tensor:
        """Returns the features of a text: of its words in order, and of words and pairs counted."""
        words = cut(rows[:, len(COLUMNS) :], self.vocabulary)
        words = words[:, : max(2, int((words > 0).sum(1).max()))]
        if self.training and self.dropout:
            gone = torch.rand(words.shape, device=words.device) < self.dropout / 2
            words = words.masked_fill(gone & (words > 0), UNKNOWN)
        there = (words > 0)[:, None]
        seen = self.order(self.words(words).transpose(1, 2))[:, :, 1:].relu() * there
        first, second = words[:, :-1], words[:, 1:]
        pairs = self.vocabulary + (first * 1_000_003 + second * 7_919) % PAIRS
        pairs = pairs.masked_fill((first <= UNKNOWN) | (second <= UNKNOWN), 0)
        counted = torch.cat([words, pairs], 1)
        bag = self.bag(counted).sum(1) / (counted > 0).sum(1, keepdim=True).clamp(min=1).sqrt()
        mean = seen.sum(2) / there.sum(2).clamp(min=1)
        return self.text(torch.cat([mean, seen.amax(2), bag], 1))

    def look(self, rows: Tensor) -> Tensor:
        """Returns the features of the table."""
        parts = []
        for name in self.columns:
            column = rows[:, COLUMNS.index(name)]
            if name in NAMED:
                parts.append(nn.functional.one_hot(column, self.options[name]).float())
            else:
                parts.append(((column.float() - MIDDLE[name]) / SPREAD[name])[:, None].clamp(-4, 4))
        return self.table(torch.cat(parts, 1))
