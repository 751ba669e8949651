"""Words of a text as numbers, by how frequent they are in the texts that one trains on.

The studies `reviews` and `newsgroups` read texts with it; it imports nothing of studyloom.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[!?]")
NOTHING, UNKNOWN = 0, 1  # beyond the end of a text; a word that is not in the vocabulary


def words_of(text: str) -> list[str]:
    """Splits a text into words in lower case, and its marks ! and ?."""
    return WORD.findall(text.lower())


class Vocabulary:
    """The words of some texts, numbered from 2 on by how often they occur, the most frequent first.

    A network that knows only the n most frequent words takes any greater number as UNKNOWN; so the
    size of the vocabulary is a number that a search may choose. See `cut`.

    Args:
        texts: the words of each.
        least: how often a word must occur.
    """

    def __init__(self, texts: Iterable[Sequence[str]], least: int = 2) -> None:
        counts = Counter(word for words in texts for word in words)
        kept = sorted((-count, word) for word, count in counts.items() if count >= least)
        self.numbers = {word: number for number, (_, word) in enumerate(kept, UNKNOWN + 1)}

    @property
    def names(self) -> list[str]:
        """The word of each number."""
        return ["", "[unknown]", *self.numbers]

    def __len__(self) -> int:
        return len(self.numbers) + UNKNOWN + 1

    def number(self, words: Sequence[str]) -> list[int]:
        """Returns the number of each word."""
        return [self.numbers.get(word, UNKNOWN) for word in words]


def cut(numbers: Tensor, size: int) -> Tensor:
    """Returns numbers of words with all from `size` on as UNKNOWN."""
    return torch.where(numbers < size, numbers, UNKNOWN)
