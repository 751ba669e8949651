"""Finds and reads earlier studies for a warm start.

`placement` places their configurations in the space of a new study, and chooses among them.
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

from optuna.trial import FrozenTrial, TrialState

from studyloom.config.runs import read_run
from studyloom.config.schema import AUTO
from studyloom.config.values import describe_error
from studyloom.errors import StorageError, StorageLost, messages_of
from studyloom.files import is_own
from studyloom.storage import sql
from studyloom.storage.database import untrusted
from studyloom.storage.urls import folder_of, parse_url, serve, without_password
from studyloom.study.opening import differences, open_only_study, open_study, study_names
from studyloom.study.stored_study import StoredStudy
from studyloom.text import mask_passwords, one_line

MOST_STUDIES = 50  # that are looked at, the newest first; opening one takes 0.04 s
MOST_TRIALS = 10_000  # of a study that is read; 10,000 take 0.5 s
MOST_SECONDS = 3.0  # for reading a study that `auto` has found, or that is untrusted
MOST_OF_ALL = 10.0  # seconds after which no further one is read
PATIENCE = 2.0  # seconds until a line says what a command waits for
SCAN = 0.5  # seconds for the names of what lies next to a run directory
MOST_NOTES = 5  # about studies that are left out
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EarlierStudy:
    """An earlier study, as it was read.

    Attributes:
        label: names it for people, without a password: "runs/earlier".
        ranked: the trials that may be taken, the best first; the others are `behind`.
        uuid: two sources with the same one are one study; "" if another program made it.
    """

    label: str
    ranked: Sequence[FrozenTrial]
    behind: Sequence[FrozenTrial] = ()
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
        url, own = serve(url), is_own(Path(source))
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
    ranked = stored.ranked()
    numbers, judged = {trial.number for trial in ranked}, (TrialState.COMPLETE, TrialState.PRUNED)
    behind = [t for t in stored.trials() if t.number not in numbers and t.state in judged]
    counts = stored.ledger.counts()
    left = counts["free"] + counts["held"]
    return EarlierStudy(label, ranked, behind, left, stored.ledger.uuid)


@dataclass
class EarlierStudies:
    """The finished studies of a database, and of the run directories next to a folder.

    Nothing that they hold is executed, and no server is started: a run directory with an embedded
    server is read only if `study.warm_start` names it.

    Args:
        definition: that of the new study, by config key. A study with the same definition is left
            out, since it should be resumed instead.
    """

    definition: Mapping[str, Any] = field(default_factory=dict)
    studies: list[EarlierStudy] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _left_out: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)  # UUIDs
    _unreachable: set[str] = field(default_factory=set)  # URLs

    def search(self, url: str, name: str, run_dir: Path) -> None:
        """Searches the new study's database, if it exists, and the sibling run directories."""
        names, end = list[str](), time.monotonic() + MOST_OF_ALL
        try:
            names = [each for each in reversed(study_names(url, 0.0)) if each != name]
        except StorageError:  # it does not exist yet; or the command will report what is wrong
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
            except Exception as error:  # from reading untrusted content
                self._left_out.append(f"{label} cannot be read: {describe_error(error)}")
        if len(found) > MOST_STUDIES:
            self.notes.append(
                f"study.warm_start={AUTO}: looked at the newest {MOST_STUDIES} of {len(found)} "
                "earlier studies; study.warm_start=[…] names others"
            )
        for line in self._left_out[:MOST_NOTES]:
            self.notes.append(
                f"study.warm_start={AUTO}: {mask_passwords(one_line(line))}; left out"
            )
        if (more := len(self._left_out) - MOST_NOTES) > 0:
            self.notes.append(f"study.warm_start={AUTO}: {more} more are left out")

    def _look(self, url: str, name: str, label: str) -> None:
        """Reads a study, if it is a finished one of ours with another definition."""
        if url in self._unreachable:
            return
        try:
            stored = open_study(url, name, deadline=0.0)
        except StorageLost:  # but not a database that is there and only lacks this study
            self._unreachable.add(url)
            raise
        with contextlib.closing(stored):
            uuid, definition = stored.ledger.uuid, stored.definition()
            if uuid in self._seen or not definition or not differences(definition, self.definition):
                return
            self._seen.add(uuid)
            counts = stored.ledger.counts()
            if not counts["free"] and not counts["held"]:
                self.studies.append(_as_earlier(stored, label, MOST_TRIALS))


def find_earlier(
    url: str, name: str, run_dir: Path, definition: Mapping[str, Any]
) -> EarlierStudies:
    """Finds the earlier studies for `study.warm_start=auto`; see `EarlierStudies`.

    It waits for a thread that reads them, so that Ctrl-C works at any time.
    """
    found = EarlierStudies(definition)
    search = threading.Thread(target=found.search, args=(url, name, run_dir), daemon=True)
    search.start()
    search.join(PATIENCE)
    if search.is_alive():
        log.warning("study.warm_start=auto: reads earlier studies, for at most %g s", MOST_OF_ALL)
        search.join()
    return found


def _siblings(run_dir: Path) -> list[Path]:
    """Returns the run directories next to a folder, the newest first."""
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
    fits = "study.warm_start=auto tries the best configurations of those that fit first"
    return [f"{lie} next to {run_dir}: {fits}"] if holds else []


def read_named(
    wanted: Any, begun: Sequence[str], errors: list[str], notes: list[str]
) -> tuple[list[str], list[EarlierStudy]]:
    """Reads the earlier studies that `study.warm_start` names, each once.

    Returns:
        The label of each, and the studies but those that have begun.
    """
    labels: list[str] = []
    studies: dict[str, EarlierStudy] = {}
    for source in wanted if isinstance(wanted, list) else [wanted]:
        try:
            if not isinstance(source, str) or source in ("", AUTO):
                raise ValueError(
                    "must be run directories or URLs of databases, or only auto, which looks for "
                    f"earlier studies itself; got {source!r}"
                )
            labels.append(source_label(source))
            if labels[-1] in (*begun, *labels[:-1]):
                continue
            earlier = read_earlier(source)
        except ValueError as error:
            errors += [f"study.warm_start: {line}" for line in messages_of(error, str(error))]
            continue
        if earlier.open:
            notes.append(f"{earlier.label}: is not finished: {earlier.open} trials are open")
        studies.setdefault(earlier.uuid or source, earlier)
    return labels, [*studies.values()]
