"""Reads earlier studies, whose trials another study may begin with.

Those that `study.from` names are the user's word. Those that `study.from=auto` finds in sibling run
directories may be somebody else's: they are read as data, and what cannot be read is left out.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.config.runs import read_run
from studyloom.config.values import describe_error
from studyloom.errors import QuestionError, StorageError, StorageLost
from studyloom.storage.attributes import UUID
from studyloom.storage.embedded_server import folder_of, serve
from studyloom.study.earlier import AUTO, Earlier
from studyloom.study.identity import check_question
from studyloom.study.opening import open_study, study_names
from studyloom.study.stored_study import StoredStudy
from studyloom.study.warm_start import Remembered, source_label
from studyloom.text import mask_passwords, one_line

MOST_STUDIES = 50  # that are looked at, the newest first; opening one takes 0.04 s
MOST_TRIALS = 10_000  # of a study that is read; 10 000 take 0.5 s
MOST_SERVERS = 3  # embedded servers of sibling run directories that are started
MOST_NOTES = 5  # about studies that are left out


def read_earlier(source: str) -> Earlier:
    """Reads an earlier study that a user names.

    Args:
        source: a run directory, or a study in a database as `URL#NAME`; `URL` alone will do if the
            database holds only one study.

    Raises:
        ConfigError: the folder is not a run directory.
        StorageError: there is no such database, or no such study in it.
    """
    if "://" not in source:
        url, name = read_run(Path(source))
        return _read(serve(url), name, source_label(source))
    url, _, name = source.partition("#")
    if not name:
        names = study_names(url, 0.0)
        if len(names) != 1:
            raise StorageError(
                f"{source_label(source)}: holds {', '.join(names) or 'no study'}; write URL#NAME"
            )
        name = names[0]
    return _read(url, name, source_label(source))


def _read(url: str, name: str, label: str) -> Earlier:
    stored = open_study(url, name, deadline=0.0)
    try:
        return _as_earlier(stored, label)
    finally:
        stored.close()


def _as_earlier(stored: StoredStudy, label: str) -> Earlier:
    ranked = stored.ranked()
    numbers = {trial.number for trial in ranked}
    behind = [t for t in stored.trials() if t.number not in numbers and _is_worse(t)]
    counts = stored.ledger.counts()
    left = counts["free"] + counts["held"]
    return Earlier(label, ranked, behind, left, stored.optuna.user_attrs.get(UUID))


def _is_worse(trial: FrozenTrial) -> bool:
    """Whether a trial that has no rank is worse than those that have one: it was pruned, say."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass
class _Search:
    """Looks for earlier studies.

    Args:
        question: what the study that begins asks, by config key.
        studies: what was found.
        left_out: lines about what was not read.
        seen: the UUIDs of the studies that were met.
        unreachable: the URLs of databases that cannot be opened.
        servers: how many embedded servers were started.
    """

    question: Mapping[str, Any]
    studies: list[Earlier] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    unreachable: set[str] = field(default_factory=set)
    servers: int = 0

    def look(self, url: str, name: str, label: str) -> None:
        """Reads a study, if it is a finished one of ours that asks another question."""
        if url in self.unreachable:
            return
        try:
            stored = open_study(url, name, deadline=0.0)
        except StorageLost:  # and not a database that answers, but lacks this study alone
            self.unreachable.add(url)
            raise
        try:
            uuid = stored.optuna.user_attrs.get(UUID)
            if uuid in self.seen or not self.is_another(stored.question()):
                return
            if isinstance(uuid, str):
                self.seen.add(uuid)
            counts = stored.ledger.counts()
            if counts["free"] or counts["held"]:
                self.left_out.append(f"{label} is not finished")
            elif counts["done"] > MOST_TRIALS:
                self.left_out.append(f"{label} has more than {MOST_TRIALS} trials")
            else:
                self.studies.append(_as_earlier(stored, label))
        finally:
            stored.close()

    def is_another(self, question: Mapping[str, Any] | None) -> bool:
        """Whether a study of ours asks something else than the one that begins."""
        if question is None:  # another program's
            return False
        try:
            check_question("", question, self.question)
        except QuestionError:
            return True
        return False

    def look_into(self, folder: Path) -> None:
        """Reads the study of a run directory, which may be somebody else's."""
        if folder.is_symlink():
            raise StorageError("it is a link, which is not followed")
        url, name = read_run(folder)
        if folder_of(url) is not None:
            if self.servers == MOST_SERVERS:
                raise StorageError(f"only {MOST_SERVERS} servers are started for this")
            url = serve(url)  # refuses one that no command of the user's own has made
            self.servers += 1
        self.look(url, name, str(folder))

    def attempt(self, label: str, read: Any, *arguments: Any) -> None:
        """Calls a function that reads a study, and notes why it cannot be read."""
        try:
            read(*arguments)
        except Exception as error:  # whatever is made of what somebody else has written
            self.left_out.append(f"{label} cannot be read: {describe_error(error)}")


def find_earlier(url: str, name: str, run_dir: Path, question: Mapping[str, Any]) -> Remembered:
    """Finds the finished studies of a database, and of the run directories beside a folder.

    Nothing that they hold is executed, no link out of them is followed, and no server is started
    but the user's own.

    Args:
        url: of the database of the study that begins, which may not exist yet.
        name: of that study, which is left out.
        run_dir: its folder, which is left out too.
        question: what it asks, by config key. Whatever study asks the same is left out: to go on
            with that is to resume it.
    """
    search = _Search(question)
    inside, beside = _names(search, url, name), _siblings(run_dir)
    for other in islice(inside, MOST_STUDIES):
        label = f"study {other!r} of this database"
        search.attempt(label, search.look, url, other, label)
    room = max(0, MOST_STUDIES - len(inside))
    for folder in beside[:room]:
        search.attempt(str(folder), search.look_into, folder)
    return Remembered(search.studies, [*_notes(search, len(inside) + len(beside))])


def _names(search: _Search, url: str, name: str) -> list[str]:
    """Returns the names of the other studies of a database, the newest first."""
    try:
        return [each for each in reversed(study_names(url, 0.0)) if each != name]
    except StorageError:  # there is none yet; or the command will say itself what is wrong
        search.unreachable.add(url)
        return []


def _siblings(run_dir: Path) -> list[Path]:
    """Returns the run directories beside a folder, the newest first."""
    here = run_dir.absolute()
    try:
        with os.scandir(run_dir.parent) as entries:
            found = [
                (entry.stat(follow_symlinks=False).st_mtime, entry.name)
                for entry in entries
                if entry.name != here.name
                and os.path.lexists(os.path.join(entry.path, ".hydra", "config.yaml"))
            ]
    except OSError:
        return []
    return [run_dir.parent / name for _, name in sorted(found, reverse=True)]


def _notes(search: _Search, count: int) -> Iterator[str]:
    """Words what was left out."""
    if count > MOST_STUDIES:
        yield (
            f"study.from={AUTO}: looked at the newest {MOST_STUDIES} of {count} earlier studies; "
            "study.from=[…] names others"
        )
    for line in search.left_out[:MOST_NOTES]:
        yield f"study.from={AUTO}: {mask_passwords(one_line(line))}; left out"
    if (more := len(search.left_out) - MOST_NOTES) > 0:
        yield f"study.from={AUTO}: {more} more are left out"
