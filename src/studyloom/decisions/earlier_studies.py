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
from studyloom.errors import StorageError, messages_of
from studyloom.files import is_own
from studyloom.storage import sql
from studyloom.storage.connections import untrusted
from studyloom.storage.opening import open_only_study
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.urls import parse_url, serve, without_password

MOST_TRIALS = 10_000  # of an untrusted study that is read; 10,000 take 0.5 s
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

    Args:
        source: a run directory, or a study in a database as `URL#NAME`; `URL` is enough if the
            database holds only one study.
    """
    url, _, name = source.partition("#")
    own = "://" in source
    if not own:
        url, name = read_run(Path(source))
        url = serve(url)
        own = is_own(Path(source))
    label = source_label(source)
    with (
        untrusted(None if own else MOST_SECONDS),
        contextlib.closing(open_only_study(url, name, 0.0, f"{label}: write URL#NAME")) as stored,
    ):
        return _as_earlier(stored, label, math.inf if own else MOST_TRIALS)


def _as_earlier(stored: StoredStudy, label: str, most: float) -> EarlierStudy:
    """Reads the trials of a study, unless there are more than so many."""
    where = {"study": stored.ledger.study_id}
    count = stored.ledger.storage.read(lambda c: c.execute(sql.COUNT, where).scalar_one())
    if count > most:
        raise StorageError(f"it has {count} trials, and at most {most:g} are read")
    counts = stored.ledger.counts()
    open_trials = counts["free"] + counts["held"]
    return EarlierStudy(label, stored.ranked(), open_trials, stored.ledger.uuid)


def read_named(
    sources: Any, begun: Sequence[str], errors: list[str], notes: list[str]
) -> tuple[list[str], list[EarlierStudy]]:
    """Reads the earlier studies that `study.warm_start` names, each once.

    Args:
        sources: the value of `study.warm_start`: a source, or a list of them.
        begun: the labels of those that are not read again.

    Returns:
        The label of each, and the studies but those that have begun.
    """
    labels: list[str] = []
    studies: dict[str, EarlierStudy] = {}
    for source in sources if isinstance(sources, list) else [sources]:
        try:
            if not isinstance(source, str) or not source:
                raise ValueError(
                    "must be run directories, or studies in databases as URL#NAME, such as "
                    f"[runs/a, runs/b]; got {source!r}"
                )
            label = source_label(source)
            if label in labels:
                continue
            labels.append(label)
            if label in begun:
                continue
            earlier = read_earlier(source)
        except ValueError as error:
            errors += [f"study.warm_start: {line}" for line in messages_of(error, str(error))]
            continue
        if earlier.open:
            notes.append(f"{earlier.label}: is not finished: {earlier.open} trials are open")
        studies.setdefault(earlier.uuid or source, earlier)
    return labels, [*studies.values()]
