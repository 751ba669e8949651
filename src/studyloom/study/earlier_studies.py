"""Earlier studies: which are found, and which of their points are good together.

A portfolio is a few points of several studies. A point was tried in one of them, and its rank in
the others is not known; there it is estimated from the ranks of the points that were tried nearby.
"""

import contextlib
import logging
import math
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from studyloom.config.runs import read_run
from studyloom.config.schema import AUTO
from studyloom.config.values import describe_error
from studyloom.errors import StorageError, StorageLost
from studyloom.files import is_own
from studyloom.storage import sql
from studyloom.storage.attributes import UUID
from studyloom.storage.database import read, untrusted
from studyloom.storage.urls import folder_of, parse_url, serve, without_password
from studyloom.study.opening import differences, open_only_study, open_study, study_names
from studyloom.study.stored_study import StoredStudy
from studyloom.text import mask_passwords, one_line

MOST_STUDIES = 50  # that are looked at, the newest first; opening one takes 0.04 s
MOST_TRIALS = 10_000  # of a study that is read; 10 000 take 0.5 s
MOST_SECONDS = 3.0  # for reading a study that nobody has named, or that is untrusted
MOST_OF_ALL = 10.0  # seconds after which no further one is read
PATIENCE = 2.0  # seconds until a line says what a command waits for
SCAN = 0.5  # seconds for the names of what lies next to a run directory
MOST_NOTES = 5  # about studies that are left out
BANDWIDTH = 0.25  # of nearness, as a root mean square over parameters whose ranges are [0, 1]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Earlier:
    """An earlier study, as it was read.

    Attributes:
        label: names it for people, without a password: "runs/earlier".
        ranked: the trials that may be taken, the best first; the others are `behind`.
        uuid: tells whether two sources are one study; None if another program made it.
    """

    label: str
    ranked: Sequence[FrozenTrial]
    behind: Sequence[FrozenTrial] = ()
    open: int = 0
    uuid: str | None = None


def source_label(source: str) -> str:
    """Returns a source of `study.from`, a run directory or a URL, without its password."""
    if "://" not in source:
        return str(Path(source))
    url, _, name = source.partition("#")
    return f"{without_password(parse_url(url))}#{name}".removesuffix("#")


def read_earlier(source: str) -> Earlier:
    """Reads an earlier study that a user names.

    Args:
        source: a run directory, or a study in a database as `URL#NAME`; `URL` alone will do if the
            database holds only one study.
    """
    url, _, name = source.partition("#")
    own = "://" in source
    if not own:
        url, name = read_run(Path(source))
        url, own = serve(url), is_own(Path(source))
    label = source_label(source)
    with (
        untrusted(None if own else MOST_SECONDS),
        contextlib.closing(open_only_study(url, name, 0.0, f"{label}: write URL#NAME")) as stored,
    ):
        return _as_earlier(stored, label, math.inf if own else MOST_TRIALS)


def _as_earlier(stored: StoredStudy, label: str, most: float) -> Earlier:
    """Reads the trials of a study, unless there are more than so many."""
    where = {"study": stored.ledger.study_id}
    count = read(stored.ledger.storage, lambda c: c.execute(sql.COUNT, where).scalar_one())
    if count > most:
        raise StorageError(f"it has {count} trials, and at most {most:g} are read")
    ranked = stored.ranked()
    numbers, judged = {trial.number for trial in ranked}, (TrialState.COMPLETE, TrialState.PRUNED)
    behind = [t for t in stored.trials() if t.number not in numbers and t.state in judged]
    counts = stored.ledger.counts()
    left = counts["free"] + counts["held"]
    return Earlier(label, ranked, behind, left, stored.optuna.user_attrs.get(UUID))


@dataclass
class Remembered:
    """The finished studies of a database, and of the run directories beside a folder.

    Nothing that they hold is executed, and no server is started: a run directory with an embedded
    one is read if `study.from` names it.

    Args:
        question: what the study that begins asks, by config key. Whatever study asks the same is
            left out: to go on with that is to resume it.
    """

    definition: Mapping[str, Any] = field(default_factory=dict)
    studies: list[Earlier] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _left_out: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)  # UUIDs
    _unreachable: set[str] = field(default_factory=set)  # URLs

    def search(self, url: str, name: str, run_dir: Path) -> None:
        """Looks in the database of the study that begins, which may not exist yet, and beside."""
        names, end = list[str](), time.monotonic() + MOST_OF_ALL
        try:
            names = [each for each in reversed(study_names(url, 0.0)) if each != name]
        except StorageError:  # there is none yet; or the command will say itself what is wrong
            self._unreachable.add(url)
        found: list[str | Path] = [*names, *_siblings(run_dir)]
        for study in found[:MOST_STUDIES]:
            if time.monotonic() > end:
                self._left_out.append(f"{study} and later ones: there was no time")
                break
            label = str(study) if isinstance(study, Path) else f"study {study!r} of this database"
            try:
                with untrusted(MOST_SECONDS):
                    its_url, its_name = read_run(study) if isinstance(study, Path) else (url, study)
                    if isinstance(study, str) or folder_of(its_url) is None:
                        self._look(its_url, its_name, label)
            except Exception as error:  # whatever is made of what somebody else has written
                self._left_out.append(f"{label} cannot be read: {describe_error(error)}")
        if len(found) > MOST_STUDIES:
            self.notes.append(
                f"study.from={AUTO}: looked at the newest {MOST_STUDIES} of {len(found)} earlier "
                "studies; study.from=[…] names others"
            )
        for line in self._left_out[:MOST_NOTES]:
            self.notes.append(f"study.from={AUTO}: {mask_passwords(one_line(line))}; left out")
        if (more := len(self._left_out) - MOST_NOTES) > 0:
            self.notes.append(f"study.from={AUTO}: {more} more are left out")

    def _look(self, url: str, name: str, label: str) -> None:
        """Reads a study, if it is a finished one of ours that asks another question."""
        if url in self._unreachable:
            return
        try:
            stored = open_study(url, name, deadline=0.0)
        except StorageLost:  # and not a database that answers, but lacks this study alone
            self._unreachable.add(url)
            raise
        with contextlib.closing(stored):
            uuid, definition = stored.optuna.user_attrs.get(UUID), stored.definition()
            if (
                uuid in self._seen
                or definition is None
                or not differences(definition, self.definition)
            ):
                return
            self._seen.add(str(uuid))
            counts = stored.ledger.counts()
            if counts["free"] or counts["held"]:
                return
            self.studies.append(_as_earlier(stored, label, MOST_TRIALS))


def find_earlier(url: str, name: str, run_dir: Path, definition: Mapping[str, Any]) -> Remembered:
    """Finds the earlier studies for `study.from=auto`; see `Remembered`.

    It waits for a thread, so that a Ctrl-C is heard whatever that reads.
    """
    remembered = Remembered(definition)
    search = threading.Thread(target=remembered.search, args=(url, name, run_dir), daemon=True)
    search.start()
    search.join(PATIENCE)
    if search.is_alive():
        log.warning("study.from=auto: reads earlier studies, for at most %g s", MOST_OF_ALL)
        search.join()
    return remembered


def _siblings(run_dir: Path) -> list[Path]:
    """Returns the run directories beside a folder, the newest first."""
    found, end = [], time.monotonic() + SCAN
    with contextlib.suppress(OSError):
        for path in run_dir.parent.iterdir():
            with contextlib.suppress(OSError):  # another user's
                if path.name != run_dir.absolute().name:
                    (path / ".hydra" / "config.yaml").lstat()
                    found.append((path.lstat().st_mtime, path))
            if time.monotonic() > end:
                break
    return [path for _, path in sorted(found, reverse=True)]


def offer_earlier(run_dir: Path) -> list[str]:
    """Returns a line that offers a new study what lies next to it, by names and sizes only."""
    if (run_dir / ".hydra").exists():  # it has begun
        return []
    holds = 0
    for folder in _siblings(run_dir):
        with contextlib.suppress(OSError):
            status = (folder / "study.db").lstat()
            holds += stat.S_ISREG(status.st_mode) and status.st_size > 0
    lie = "1 earlier study lies" if holds == 1 else f"{holds} earlier studies lie"
    fits = "study.from=auto tries the best configurations of those that fit first"
    return [f"{lie} next to {run_dir}: {fits}"] if holds else []


@dataclass(frozen=True)
class EarlierStudy:
    """The results of an earlier study, in the space of the study that begins.

    Args:
        points: (trials, parameters); a number in [0, 1] for each parameter, or the index of its
            choice if it is categorical; NaN where the trial does not have the parameter.
        scores: (trials,) the rank of each trial in its study: near 1 for the best, 0 for the worst.
        eligible: (trials,) whether the point of a trial may be chosen.
    """

    points: NDArray[np.float64]
    scores: NDArray[np.float64]
    eligible: NDArray[np.bool_]


def rank_scores(ranked: int, behind: int) -> NDArray[np.float64]:
    """Scores the trials of a study by rank, so that studies of different scales can be compared.

    A trial of n has the share of the others, and half of itself, that it beats. So the best of
    forty has 0.99, and one that was alone has 0.5: it shows little.

    The trials `behind` those with a rank are all equally bad, such as pruned ones.
    """
    places = np.concatenate([np.arange(ranked) + 0.5, np.full(behind, ranked + behind / 2)])
    return np.asarray(1.0 - places / max(1, ranked + behind))


def choose_points(
    studies: Sequence[EarlierStudy], categorical: NDArray[np.bool_], count: int
) -> list[tuple[int, int]]:
    """Chooses points of earlier studies, each adding most to those before it.

    The greedy choice maximises the mean over studies of the best score that a chosen point has
    there. What score a point has in a study is known as a distribution only, `scores_nearby`; so it
    is the expected best score. That is submodular, so the greedy choice comes within 1 - 1/e of the
    best set (Nemhauser, Wolsey and Fisher, 1978). Auto-sklearn 2.0 makes portfolios of
    configurations so, from a matrix of all of them on all tasks (Feurer et al., 2022,
    arXiv:2007.04074).

    Returns:
        The study and the trial of each point, in the order in which they are to be tried; none
        twice, and fewer than `count` if there are no more.
    """
    candidates = [
        (number, int(trial))
        for number, study in enumerate(studies)
        for trial in np.flatnonzero(study.eligible)
    ]
    if not candidates:
        return []
    points = np.stack([studies[number].points[trial] for number, trial in candidates])
    nearby = [scores_nearby(points, study, categorical) for study in studies]
    below = [np.ones(len(steps)) for _, steps in nearby]  # that no chosen point is as good
    left = np.ones(len(candidates), dtype=bool)
    chosen: list[tuple[int, int]] = []
    while left.any() and len(chosen) < count:
        gains = sum(
            at_least @ (steps * rest) for (at_least, steps), rest in zip(nearby, below, strict=True)
        )
        place = int(np.where(left, gains, -np.inf).argmax())
        chosen.append(candidates[place])
        below = [
            rest * (1 - at_least[place]) for (at_least, _), rest in zip(nearby, below, strict=True)
        ]
        left &= squared_distances(points, points[[place]], categorical)[:, 0] > 0
    return chosen


def scores_nearby(
    points: NDArray[np.float64], study: EarlierStudy, categorical: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimates the scores that points have in a study: those of its trials, by their nearness.

    The weights are those of Nadaraya and Watson (1964), also at points that the study has tried: a
    trial's own rank owes much to the luck of its seed.

    Returns:
        (points, trials) the probability that a point is as good as a trial, for the trials in the
        order of their scores, the best first; (trials,) by how much the score of a trial is above
        the next one's.
    """
    order = np.argsort(-study.scores, kind="stable")
    scores = study.scores[order]
    distances = squared_distances(points, study.points[order], categorical)
    nearest = distances.min(axis=1, keepdims=True, initial=np.inf)
    weights = np.exp((nearest - distances) / (2 * BANDWIDTH**2))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.cumsum(axis=1), scores - np.append(scores[1:], 0.0)


def squared_distances(
    one: NDArray[np.float64], other: NDArray[np.float64], categorical: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Measures how far points, (a, parameters), are from others, (b, parameters).

    Returns:
        (a, b) means of the squared differences over the parameters that either point has. It is 1
        where only one has the parameter, and where the choices differ.
    """
    sums, counts = np.zeros((len(one), len(other))), np.zeros((len(one), len(other)))
    for column, choice in enumerate(categorical):
        a, b = one[:, column, None], other[None, :, column]
        lacks_a, lacks_b = np.isnan(a), np.isnan(b)
        difference = (a != b).astype(float) if choice else (a - b) ** 2
        sums += np.where(lacks_a & lacks_b, 0.0, np.where(lacks_a | lacks_b, 1.0, difference))
        counts += ~(lacks_a & lacks_b)
    return np.asarray(sums / np.maximum(counts, 1.0))
