"""Reads the earlier studies that `study.warm_start` names.

`warm_start` chooses among their trials, and `placement` places them in the space of a new study.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.config.runs import read_run
from studyloom.errors import StorageError, list_messages
from studyloom.files import is_trusted
from studyloom.storage import sql
from studyloom.storage.connections import untrusted
from studyloom.storage.opening import open_only_study
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.urls import parse_url, serve, without_password

MOST_TRIALS = 10_000  # that are read of an untrusted study; 10,000 take 0.5 s
MOST_SECONDS = 3.0  # for reading an untrusted study


@dataclass(frozen=True)
class EarlierStudy:
    """An earlier study, as it was read.

    Attributes:
        label: names it for people, without a password: "runs/earlier".
        ranked: the trials that may be taken, the best first.
        open: how many of its trials have not ended.
        uuid: two sources with the same one are one study; "" if another program made it.
    """

    label: str
    ranked: Sequence[FrozenTrial]
    open: int = 0
    uuid: str = ""


def source_label(source: str) -> str:
    """Returns a source of `study.warm_start`, a run directory or a URL, without its password."""
    if "://" not in source:
        return str(Path(source))
    url, _, name = source.partition("#")
    return f"{without_password(parse_url(url))}#{name}".removesuffix("#")


def read_earlier(source: str) -> EarlierStudy:
    """Reads an earlier study that a user names.

    A run directory that another user made is untrusted, and so is the database that it names: they
    are read within limits.

    Args:
        source: a run directory, or a study in a database as `URL#NAME`; `URL` is enough if the
            database holds only one study.
    """
    url, _, name = source.partition("#")
    unlimited = True
    if "://" not in source:
        folder = Path(source)
        url, name = read_run(folder)
        url = serve(url)
        unlimited = is_trusted(folder)
    seconds: float | None = None
    most_trials = math.inf
    if not unlimited:
        seconds = MOST_SECONDS
        most_trials = MOST_TRIALS
    label = source_label(source)
    with untrusted(seconds):
        stored = open_only_study(url, name, 0.0, f"{label}: write URL#NAME")
        with contextlib.closing(stored):
            return _read_trials(stored, label, most_trials)


def _read_trials(stored: StoredStudy, label: str, most_trials: float) -> EarlierStudy:
    """Reads the trials of a study; raises StorageError if there are more than so many."""
    where = {"study": stored.ledger.study_id}
    count = stored.ledger.storage.read(lambda c: c.execute(sql.COUNT, where).scalar_one())
    if count > most_trials:
        raise StorageError(f"it has {count} trials, and at most {most_trials:g} are read")
    counts = stored.ledger.counts()
    open_trials = counts["free"] + counts["held"]
    return EarlierStudy(label, stored.ranked(), open_trials, stored.ledger.uuid)


@dataclass(frozen=True)
class NamedStudies:
    """The earlier studies that `study.warm_start` names.

    Attributes:
        labels: those of all sources, each once.
        studies: those that were read.
    """

    labels: Sequence[str]
    studies: Sequence[EarlierStudy]


def read_named(
    sources: Any, begun: Sequence[str], errors: list[str], notes: list[str]
) -> NamedStudies:
    """Reads the earlier studies that `study.warm_start` names, each once.

    Args:
        sources: the value of `study.warm_start`: a source, or a list of them.
        begun: the labels of those that are not read again.
        errors: gets a message for each source that cannot be read.
        notes: gets a line for each study that is not finished.
    """
    if not isinstance(sources, list):
        sources = [sources]
    labels: list[str] = []
    studies: dict[str, EarlierStudy] = {}  # by uuid: two sources may be one study
    for source in sources:
        try:
            _check_source(source)
            label = source_label(source)
            if label in labels:
                continue
            labels.append(label)
            if label in begun:
                continue
            earlier = read_earlier(source)
        except ValueError as error:
            errors += [f"study.warm_start: {line}" for line in list_messages(error, str(error))]
            continue
        if earlier.open:
            notes.append(f"{earlier.label}: is not finished: {earlier.open} trials are open")
        studies.setdefault(earlier.uuid or source, earlier)
    return NamedStudies(labels, [*studies.values()])


def _check_source(source: object) -> None:
    """Raises ValueError for a source that is not a string."""
    if not isinstance(source, str) or not source:
        raise ValueError(
            "must be run directories, or studies in databases as URL#NAME, such as "
            f"[runs/a, runs/b]; got {source!r}"
        )
