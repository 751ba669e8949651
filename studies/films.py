"""Ratings of films in time order, with what was known before each, and networks that predict them.

It is what the study `ratings` trains on and with; `studies.movielens` reads the ratings.

    python -m studies.films runs/ratings       # NDCG@10 of the winner on the test ratings
"""

import studyloom
from studyloom.data import DataSource, Reader, Split

import csv
import functools
import hashlib
import io
import math
import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from studies import movielens
from studies.movielens import GENRES, Tables, folder_of, tables

HISTORY = 30  # earlier ratings of a user that are inputs, the latest of them
SLOW = 5  # ratings that a mean of before counts as
IDS = ("user", "film")  # 0 for those that the training set does not have
PEOPLE = ("age", "woman", "occupation")
BEFORE = ("film_mean", "film_ratings", "leaning", "leaning_here", "user_ratings")
COLUMNS = (
    *(*IDS, *PEOPLE, "year", *GENRES, *BEFORE),
    *(f"earlier_{kind}_{k}" for kind in ("film", "rating") for k in range(HISTORY)),
)
PLACE = {name: place for place, name in enumerate(COLUMNS)}
SETTINGS = ("test_size", "validation", "known", "root")  # of Ratings
KINDS = ("factors", "neural", "content", "history")
STRANGER = (33, 0, 0)  # the mean age, and the commonest sex and occupation but one
STRANGE_FILM = (1990, *(0 for _ in GENRES))


@dataclass
class Past:
    """Facts about films and users at a moment: all ratings before it.

    Attributes:
        total: sum and number of all ratings.
        films: sum and number of the ratings of each film.
        users: of each user and genre, and of each user under -1, sum and number of the deviations
            of ratings from the means that their films then had.
        latest: the films and deviations of the latest ratings of each user.
    """

    total: list[float] = field(default_factory=lambda: [3.5 * SLOW, SLOW])
    films: dict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))
    users: dict[tuple[int, int], list[float]] = field(
        default_factory=lambda: defaultdict(lambda: [0.0, 0])
    )
    latest: dict[int, deque[tuple[int, float]]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=HISTORY))
    )

    def mean(self, film: int) -> float:
        """Returns the mean rating of a film, drawn towards that of all."""
        total, count = self.films[film]
        return (total + SLOW * self.total[0] / self.total[1]) / (count + SLOW)

    def of(self, user: int, film: int, genres: Sequence[int]) -> list[float]:
        """Returns BEFORE, and the earlier films and deviations of the user."""
        total, count = self.users[user, -1]
        leaning = total / (count + SLOW)
        here = [self.users[user, genre] for genre in genres]
        near = sum(sum_ + SLOW * leaning for sum_, _ in here)
        near /= max(1, sum(number + SLOW for _, number in here))
        seen = [*self.latest[user]]
        empty = [0.0] * (HISTORY - len(seen))
        return [
            *(self.mean(film), math.log1p(self.films[film][1]), leaning, near, math.log1p(count)),
            *(*(float(other) for other, _ in seen), *empty),
            *(*(deviation for _, deviation in seen), *empty),
        ]

    def add(self, user: int, film: int, genres: Sequence[int], rating: int) -> None:
        """Learns of a rating."""
        deviation = rating - self.mean(film)
        for sums, value in (
            (self.total, rating),
            (self.films[film], rating),
            *((self.users[user, genre], deviation) for genre in (-1, *genres)),
        ):
            sums[0] += value
            sums[1] += 1
        self.latest[user].append((film, deviation))


def genres_of(kinds: Sequence[int]) -> list[int]:
    return [genre for genre, there in enumerate(kinds[1:]) if there]


def inputs_of(data: Tables, test_size: int, known: bool = True) -> tuple[Tensor, Past]:
    """Makes the inputs of all ratings, float32 (100,000, columns), from what was before each.

    No rating of the same second or later is in an input.

    Args:
        data: all of it.
        test_size: how many of the last ratings are the test set.
        known: whether a test rating is an input of later ones, as in a running service.

    Returns:
        the inputs, and what is known after all.
    """
    past, rows, waiting = Past(), [], []
    first_test, now = len(data.ratings) - test_size, -1
    for number, (user, film, rating, second) in enumerate(data.ratings.tolist()):
        if second != now:
            for earlier in waiting:
                past.add(*earlier)
            waiting, now = [], second
        kinds = data.films[film]
        genres = genres_of(kinds)
        rows.append([user, film, *data.users[user], *kinds, *past.of(user, film, genres)])
        if known or number < first_test:
            waiting.append((user, film, genres, rating))
    for earlier in waiting:
        past.add(*earlier)
    return torch.tensor(rows, dtype=torch.float32), past


@functools.cache
def made(folder: Path, test_size: int, known: bool) -> tuple[Tensor, Past]:
    """Returns `inputs_of` the files of a folder, made once in a process, in 3 s."""
    return inputs_of(tables(folder), test_size, known)


def known_ids(inputs: Tensor, first: np.ndarray) -> Tensor:
    """Returns inputs in which each user and film that the training set lacks is 0.

    Args:
        inputs: (n, columns).
        first: the ratings of the training set.
    """
    inputs = inputs.clone()
    films = [PLACE["film"], *range(len(COLUMNS) - 2 * HISTORY, len(COLUMNS) - HISTORY)]
    for column, places in ((0, [PLACE["user"]]), (1, films)):
        known = torch.from_numpy(np.unique(first[:, column])).float()
        inputs[:, places] *= torch.isin(inputs[:, places], known)
    return inputs


@dataclass(frozen=True)
class Ratings(DataSource):
    """MovieLens 100k in time order, the last ratings of which are the test set.

    Args:
        test_size: how many these are.
        validation: how many ratings before them are held out to choose by.
        known: whether a test rating, once it is given, is an input of later ones.
        root: the folder of the three files; None: STUDYLOOM_DATA/ml-100k, or the package recbole.
        transform: how `predict` reads a file.
    """

    test_size: int
    validation: int
    known: bool = True
    root: str | None = None
    transform: Reader | None = None

    def train(self) -> Split:
        return self._part(slice(None, -self.test_size))

    def test(self) -> Split:
        return self._part(slice(-self.test_size, None))

    def users(self) -> Tensor:
        """Returns the user of each test rating."""
        return torch.from_numpy(tables(folder_of(self.root)).ratings[-self.test_size :, 0].copy())

    def _part(self, chosen: slice) -> Split:
        most = movielens.RATINGS - self.validation - 1
        if not 1 <= self.test_size <= most:
            raise ValueError(f"data.test_size must be from 1 to {most}; got {self.test_size}")
        folder = folder_of(self.root)
        data = tables(folder)
        first = data.ratings[: -self.test_size]
        inputs, _ = made(folder, self.test_size, self.known)
        inputs = known_ids(inputs, first)[chosen].clone()
        targets = torch.from_numpy(data.ratings[chosen, 2:3].copy()).float()
        digest = hashlib.sha256(inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()
        film, leaning = (inputs[:, [PLACE[name]]] for name in ("film_mean", "leaning"))
        rules = {
            "mean": torch.full_like(targets, float(first[:, 2].mean())),
            "film's mean": film,
            "film's and user's mean": (film + leaning).clamp(1, 5),
        }
        return Split(
            *(inputs, targets, 1, digest), ordered=True, names=("rating",), references=rules
        )


class RatingFile(Reader):
    """Reads a CSV file of users and films for `predict`, as of after the last rating.

    Args:
        test_size: as of the study.
        root: as of the study.
    """

    def __init__(self, test_size: int, root: str | None = None) -> None:
        self.test_size, self.root = test_size, root

    def __call__(self, content: bytes) -> tuple[Tensor, Sequence[str]]:
        try:
            asked = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"it must be a CSV file in UTF-8: {error}") from None
        if not asked or not {*IDS} <= {*asked[0]}:
            raise ValueError("it must be a CSV file whose first line names user and film")
        folder = folder_of(self.root)
        data = tables(folder)
        first = data.ratings[: -self.test_size]
        _, past = made(folder, self.test_size, True)
        rows, notes = [], []
        for number, row in enumerate(asked, 1):
            words = [(row[name] or "").strip() for name in IDS]
            if not all(word.isascii() and word.isdecimal() and len(word) < 8 for word in words):
                raise ValueError(f"rating {number} must name a user and a film by their numbers")
            user, film = map(int, words)
            kinds = data.films.get(film, STRANGE_FILM)
            about = data.users.get(user, STRANGER)
            rows.append([user, film, *about, *kinds, *past.of(user, film, genres_of(kinds))])
            notes.append("; ".join(stand_ins(user, film, data, first)))
        return known_ids(torch.tensor(rows, dtype=torch.float32), first), notes


def stand_ins(user: int, film: int, data: Tables, first: np.ndarray) -> list[str]:
    """Says what stands in for a user or a film that training never saw."""
    said = []
    if user not in data.users:
        said.append(f"user {user} unknown, taken as one of age {STRANGER[0]} without ratings")
    elif user not in first[:, 0]:
        said.append(f"user {user} not in training, taken by age, occupation and later ratings")
    if film not in data.films:
        said.append(f"film {film} unknown, taken as one without genres and ratings")
    elif film not in first[:, 1]:
        said.append(f"film {film} not in training, taken by year, genres and later ratings")
    return said


class Recommender(nn.Module):
    """Predicts ratings.

    Args:
        kind: factors, of users and films, with a bias of each (Koren et al. 2009); neural, a layer
            on both vectors (He et al. 2017); content, that with age, occupation, year and genres;
            history, that with what was known before, and with the films that a user has rated
            before, weighed by how (after Koren 2008).
        width: of the vectors.
        hidden: of the layer.
        dropout: the probability, of the layer's units.
        forget: the share of ratings in training whose user is hidden; so it learns to rate for
            users who were not there.
    """

    def __init__(
        self,
        kind: str = "factors",
        width: int = 16,
        hidden: int = 64,
        dropout: float = 0.2,
        forget: float = 0.5,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"model.kind must be {', '.join(KINDS)}; got {kind!r}")
        self.kind, self.forget = kind, forget
        users, films = movielens.USERS + 1, movielens.FILMS + 1
        self.user, self.film = nn.Embedding(users, width), nn.Embedding(films, width)
        self.user_bias, self.film_bias = nn.Embedding(users, 1), nn.Embedding(films, 1)
        vectors, inputs = [self.user, self.film, self.user_bias, self.film_bias], 2 * width
        self.register_buffer("mean", torch.tensor(3.5))
        if kind in ("content", "history"):
            self.occupation = nn.Embedding(32, 4)
            inputs += 4 + 3 + len(GENRES)
        if kind == "history":
            self.seen = nn.Embedding(films, width)
            vectors.append(self.seen)
            inputs += 2 * width + len(BEFORE)
        if kind != "factors":
            self.layers = nn.Sequential(
                nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
            )
        for table in vectors:
            nn.init.normal_(table.weight, std=0.05)

    def adapt(self, inputs: Tensor, targets: Tensor) -> None:
        """Learns the mean of the training ratings."""
        self.mean.copy_(targets.mean())

    def forward(self, rows: Tensor) -> Tensor:
        users, films = (rows[:, PLACE[name]].long() for name in IDS)
        if self.training and self.forget:
            users = users * (torch.rand(users.shape, device=users.device) >= self.forget)
        user, film = self.user(users), self.film(films)
        plain = self.mean + self.user_bias(users) + self.film_bias(films)
        if self.kind == "factors":
            return plain + (user * film).sum(1, keepdim=True)
        parts = [user, film]
        if self.kind in ("content", "history"):
            parts += self.content(rows)
        if self.kind == "history":
            before = rows[:, PLACE[BEFORE[0]] : PLACE[BEFORE[-1]] + 1]
            liked = self.liked(rows)
            parts += [before - before.new_tensor([3.5, 3.0, 0.0, 0.0, 3.0]), liked, liked * film]
            plain = before[:, :1] + before[:, 2:3] + self.film_bias(films)
        return plain + self.layers(torch.cat(parts, 1))

    def content(self, rows: Tensor) -> list[Tensor]:
        """Returns the features of user and film other than their ids."""
        age, woman, year = (rows[:, [PLACE[name]]] for name in ("age", "woman", "year"))
        occupation = self.occupation(rows[:, PLACE["occupation"]].long())
        genres = rows[:, PLACE[GENRES[0]] : PLACE[GENRES[-1]] + 1]
        return [occupation, (age - 33) / 12, woman, (year - 1990) / 10, genres]

    def liked(self, rows: Tensor) -> Tensor:
        """Returns the vectors of the films that a user has rated before, weighed by how."""
        films = rows[:, -2 * HISTORY : -HISTORY].long()
        weights = rows[:, -HISTORY:] / (films > 0).sum(1, keepdim=True).clamp(min=1).sqrt()
        return (self.seen(films) * weights[:, :, None]).sum(1)


def ndcg(scores: Tensor, ratings: Tensor, users: Tensor, first: int = 10) -> float:
    """Returns NDCG of the first ten, as a mean over users with two different ratings or more.

    The films that a user has rated are ranked by score. One of rating r gains 2^r - 1, divided by
    log2(1 + rank); the sum is divided by the largest that an order has (Järvelin and Kekäläinen
    2002).

    Args:
        scores: (n,); equal ones stay in their order.
        ratings: (n,).
        users: of each rating, (n,).
        first: how many ranks count.
    """
    values = []
    for user in users.unique():
        mine = users == user
        gains = 2 ** ratings[mine].double() - 1
        if len(gains.unique()) > 1:
            discounts = torch.log2(torch.arange(2, len(gains) + 2).double())[:first]
            order = scores[mine].argsort(descending=True, stable=True)[:first]
            best = gains.sort(descending=True).values[:first]
            values.append(float((gains[order] / discounts).sum() / (best / discounts).sum()))
    return sum(values) / len(values)


def main(run_dir: str) -> None:
    """Prints NDCG@10 of a winner on the test ratings, and of rules without a network."""
    config = OmegaConf.load(Path(run_dir, "winner.yaml"))
    source = Ratings(**{name: config.data[name] for name in SETTINGS})
    part = source.test()
    network = studyloom.load_winner(run_dir, trust=["studies"]).network
    with torch.no_grad():
        scores = {"winner": network(part.inputs), **part.references}
    for name, score in scores.items():
        value = ndcg(score[:, 0], part.targets[:, 0], source.users())
        print(f"ndcg@10   {name} {value:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
