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
from studyloom.storage.database import Connection
from studyloom.storage.opening import open_only_study
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.urls import parse_url, start_embedded_server, without_password

NO_RETRY = 0.0  # seconds to try again: a database that does not answer is an error at once


@dataclass(frozen=True)
class ReadLimits:
    """The limits within which an earlier study is read; by default, none."""

    seconds: float | None = None
    trials: float = math.inf


UNTRUSTED_LIMITS = ReadLimits(seconds=3.0, trials=10_000)  # to read 10,000 trials takes 0.5 s


@dataclass(frozen=True)
class EarlierStudy:
    """An earlier study, as it was read.

    Attributes:
        label: Names it for people, without a password: "runs/earlier".
        ranked_trials: The trials that may be taken, the best first.
        open_count: How many of its trials have not ended.
        uuid: The random id of the study, by which two sources are known to be one study; "" if
            another program made it.
    """

    label: str
    ranked_trials: Sequence[FrozenTrial]
    open_count: int = 0
    uuid: str = ""


def source_label(source: str) -> str:
    """Returns a source of `study.warm_start` without its password, for people.

    A source is a run directory, or a study in a database as `URL#NAME` or `URL`.
    """
    if "://" not in source:
        return str(Path(source))
    url, _, name = source.partition("#")
    label = f"{without_password(parse_url(url))}#{name}"
    return label.removesuffix("#")  # without a name


def read_earlier(source: str) -> EarlierStudy:
    """Reads an earlier study that a user names.

    A run directory that another user made is untrusted, and so is the database that it names: they
    are read within limits. If the database is a server in the run directory, it is started.

    Args:
        source: A run directory, or a study in a database as `URL#NAME`; `URL` is enough if the
            database holds only one study.

    Raises:
        StorageError: The database cannot be used, or exceeds the limits.
    """
    limits = ReadLimits()
    if "://" in source:  # the user names the database, and so trusts it
        url, _, name = source.partition("#")
    else:
        folder = Path(source)
        run_url, name = read_run(folder)
        url = start_embedded_server(run_url)
        if not is_trusted(folder):
            limits = UNTRUSTED_LIMITS
    label = source_label(source)
    with untrusted(limits.seconds):  # without a limit, the files are trusted
        # The message is for a database without a study, or with several and no name.
        stored = open_only_study(url, name, deadline=NO_RETRY, message=f"{label}: write URL#NAME")
        with contextlib.closing(stored):
            return _read_trials(stored, label, limits.trials)


def _read_trials(stored: StoredStudy, label: str, most_trials: float) -> EarlierStudy:
    """Reads the trials of an earlier study; raises StorageError if there are too many.

    Args:
        stored: The study in its database.
        label: The name of the study for people.
        most_trials: The most trials that are read.
    """
    parameters = {"study": stored.ledger.study_id}

    def count_trials(connection: Connection) -> int:
        return int(connection.execute(sql.COUNT, parameters).scalar_one())

    trial_count = stored.ledger.storage.read(count_trials)
    if trial_count > most_trials:
        raise StorageError(f"it has {trial_count} trials, and at most {most_trials:g} are read")
    # Each trial has a slot in the ledger: held by a worker, done once the trial has ended, or free.
    counts_by_state = stored.ledger.counts()
    open_count = counts_by_state["free"] + counts_by_state["held"]
    return EarlierStudy(
        label,
        ranked_trials=stored.ranked(),
        open_count=open_count,
        uuid=stored.ledger.uuid,
    )


@dataclass(frozen=True)
class NamedStudies:
    """The earlier studies that `study.warm_start` names.

    Attributes:
        labels: The labels of all sources, each once.
        studies: The studies that were read.
        errors: A message for each source that cannot be read.
        notes: A line for each study that is not finished.
    """

    labels: Sequence[str] = ()
    studies: Sequence[EarlierStudy] = ()
    errors: Sequence[str] = ()
    notes: Sequence[str] = ()


def read_named(sources: Any, used_labels: Sequence[str]) -> NamedStudies:
    """Reads the earlier studies that `study.warm_start` names, each once.

    Args:
        sources: The value of `study.warm_start`: a source, or a list of them. A source is a run
            directory, or a study in a database as `URL#NAME`.
        used_labels: The labels of studies that need not be read: their trials were used before.
    """
    if not isinstance(sources, list):
        sources = [sources]
    labels: list[str] = []
    studies: dict[str, EarlierStudy] = {}  # by uuid, since two sources may name the same study
    errors: list[str] = []
    notes: list[str] = []
    for source in sources:
        try:
            label = source_label(_check_source(source))
            if label in labels:
                continue
            labels.append(label)
            if label in used_labels:
                continue
            earlier = read_earlier(source)
        except ValueError as error:  # ConfigError and StorageError too
            messages = list_messages(error, otherwise=str(error))
            errors += [f"study.warm_start: {message}" for message in messages]
            continue
        if earlier.open_count > 0:
            notes.append(f"{earlier.label}: is not finished: {earlier.open_count} trials are open")
        studies.setdefault(earlier.uuid or source, earlier)
    return NamedStudies(labels, [*studies.values()], errors, notes)


def _check_source(source: object) -> str:
    """Returns a source of `study.warm_start`; raises ValueError unless it is a text."""
    if not isinstance(source, str) or not source:
        raise ValueError(
            "must be run directories, or studies in databases as URL#NAME, such as "
            f"[runs/a, runs/b]; got {source!r}"
        )
    return source
