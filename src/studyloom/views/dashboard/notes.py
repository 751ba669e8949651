"""The notes of a study and its artifacts: what `studyloom dashboard` shows in optuna-dashboard."""

import csv
import io
import json
import os
import re
import shlex
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from os.path import lexists
from pathlib import Path
from typing import Any, BinaryIO

from optuna.artifacts import ArtifactMeta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial

from studyloom.files import open_below, read_below, remove_below, write_below
from studyloom.storage.attributes import EPOCHS, FAILURE, REASON
from studyloom.study.failures import NO_REASON, reason_of
from studyloom.study.rows import quantities
from studyloom.study.stored_study import StoredStudy
from studyloom.text import fence_for, printable, without_formula
from studyloom.views.snapshot import front_rows, take_snapshot

# It stands in stored notes, and must not change.
MARGIN = "*studyloom writes what stands above anew; what you write below stays.*"
FILES = {
    "best.yaml": "application/yaml",
    "winner.yaml": "application/yaml",
    "report.html": "text/html",
}
FOLDER = "artifacts"  # below the run directory


def publish(stored: StoredStudy, run_dir: Path | None, headline: str) -> None:
    """Writes the study's results to where the dashboard shows them, or brings them up to date.

    The study gets a note with the headline and the next commands, and a failed trial one with the
    reason. The files of the run become artifacts, with the learning curves as `curves.csv`. What a
    user wrote into notes stays.

    Args:
        stored: the study.
        run_dir: the folder in which it runs; None writes no artifacts.
        headline: where the study stands, in one line.

    Raises:
        StorageError: the database cannot be used.
        OSError: the folder cannot be written to.
    """
    # Imported here, as it takes 1.7 s.
    from optuna_dashboard import get_note, save_note  # type: ignore[import-untyped]

    before = get_note(stored.optuna)
    above, margin, below = before.partition(MARGIN)
    users = below if margin else f"\n\n{above}"
    note = f"{study_note(stored, run_dir, headline)}\n\n---\n\n{MARGIN}{users}".rstrip()
    if note != before:
        save_note(stored.optuna, note)
    # The attributes include the notes of trials and all artifacts.
    attributes = stored.storage.get_study_system_attrs(stored.ledger.study_id)
    _publish_trial_notes(stored, attributes)
    if run_dir is not None:
        _publish_artifacts(stored, run_dir, attributes)


def _publish_trial_notes(stored: StoredStudy, attributes: Mapping[str, Any]) -> None:
    from optuna_dashboard._note import note_ver_key, split_body  # type: ignore[import-untyped]

    for trial in stored.trials():
        version = note_ver_key(trial._trial_id)
        failed = REASON in trial.user_attrs and trial.state.is_finished()
        if failed and version not in attributes:
            # As save_note does, but save_note reads all notes to write one: a thousand took 60 s.
            note = {**split_body(trial_note(trial), trial._trial_id), version: 1}
            for key, value in note.items():
                stored.storage.set_study_system_attr(stored.ledger.study_id, key, value)


def _publish_artifacts(stored: StoredStudy, run_dir: Path, attributes: Mapping[str, Any]) -> None:
    contents = {name: read_below(run_dir, name) for name in FILES if lexists(run_dir / name)}
    if curves := curves_csv(stored.trials(), stored.metric):
        contents["curves.csv"] = curves.encode()
    store = Artifacts(run_dir)
    for name, content in contents.items():
        # Each name has one id for good. Optuna's upload_artifact would add another entry with each
        # call, and storages cannot delete one.
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{stored.name}/{name}"))
        store.write(identity, io.BytesIO(content))
        key, kind = f"artifacts:{identity}", FILES.get(name, "text/csv")
        meta = json.dumps(asdict(ArtifactMeta(identity, name, kind, None)))
        if attributes.get(key) != meta:
            stored.storage.set_study_system_attr(stored.ledger.study_id, key, meta)


class Artifacts:
    """Optuna's protocol of an artifact store, on the folder in which a run keeps its artifacts.

    Optuna's own follows a link in that folder, to read from where it points to and to write there.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        (run_dir / FOLDER).mkdir(exist_ok=True)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        try:
            return os.fdopen(open_below(self.run_dir, self._name(artifact_id)), "rb")
        except FileNotFoundError as error:
            raise ArtifactNotFound("not found") from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        write_below(self.run_dir, self._name(artifact_id), content_body.read())

    def remove(self, artifact_id: str) -> None:
        try:
            remove_below(self.run_dir, self._name(artifact_id))
        except FileNotFoundError as error:
            raise ArtifactNotFound("not found") from error

    @staticmethod
    def _name(artifact_id: str) -> str:
        """Returns the path of an artifact. The database, which names them, may be a foreign one."""
        if not re.fullmatch(r"[0-9a-fA-F-]{1,64}", artifact_id):
            raise ValueError(f"an artifact's id must be hexadecimal; got {artifact_id!r}")
        return f"{FOLDER}/{artifact_id}"


def study_note(stored: StoredStudy, run_dir: Path | None, headline: str) -> str:
    """Writes the note of a study, in Markdown: where it stands, and what can be typed next.

    Args:
        stored: the study.
        run_dir: the folder in which it runs; None names commands that need no folder.
        headline: where the study stands, in one line.
    """
    if run_dir is not None:
        folder = shlex.quote(str(run_dir.absolute()))  # the reader may work in another folder
        commands = [
            f"studyloom {verb} {folder}"
            for verb in ("status", "report", "winner", "doctor", "dashboard")
        ]
    else:
        commands = [
            'studyloom doctor --storage "$STUDYLOOM_STORAGE"',
            f"studyloom dashboard --study {shlex.quote(stored.name)}",
        ]
    return "\n\n".join((as_text(headline), *front_note(stored), as_code("\n".join(commands))))


def front_note(stored: StoredStudy) -> list[str]:
    """Writes the Pareto front as a table, and how the best is chosen.

    Returns:
        Paragraphs of Markdown; none if the study has no front.
    """
    snapshot = take_snapshot(stored)
    if not snapshot.front:
        return []
    heads, *rows = ([as_text(cell) for cell in row] for row in front_rows(snapshot))
    table = [heads, ["---:"] * len(heads), *rows]
    return [
        "\n".join(f"| {' | '.join(row)} |" for row in table),
        f"The best by *{as_text(str(snapshot.rule))}*",
    ]


def trial_note(trial: FrozenTrial) -> str:
    """Writes the note of a failed trial, in Markdown: why it failed."""
    kind, reason = str(trial.user_attrs.get(FAILURE, "failed")), reason_of(trial) or NO_REASON
    return f"**{as_text(kind)}**\n\n{as_text(reason)}"


def as_text(text: str) -> str:
    """Escapes a text for Markdown, on one line.

    A study may be called `<img …>` or `[a](javascript:…)`.
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(printable(text).split()))


def as_code(text: str) -> str:
    """Fences lines as code in Markdown; the fence is longer than any in the text."""
    fence = fence_for(text, 3)
    return f"{fence}\n{printable(text)}\n{fence}"


def curves_csv(trials: Iterable[FrozenTrial], metric: str) -> str:
    """Writes the learning curves as CSV, a line for each epoch of each trial.

    Args:
        trials: the trials.
        metric: the name of the values.

    Returns:
        The text; empty if no trial stored an epoch.
    """
    rows: list[list[Any]] = []
    trials = [*trials]
    names = quantities(trials)
    for trial in trials:
        epochs = trial.user_attrs.get(EPOCHS, {})
        numbers = epochs.get("number", [])
        columns = [epochs.get(name, [None] * len(numbers)) for name in ("value", *names)]
        rows += [[trial.number, *row] for row in zip(numbers, *columns, strict=False)]
    text = io.StringIO()
    if rows:
        lines = [("trial", "epoch", metric, *names), *rows]
        csv.writer(text, lineterminator="\n").writerows(map(without_formula, one) for one in lines)
    return text.getvalue()
