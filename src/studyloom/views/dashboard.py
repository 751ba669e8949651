"""optuna-dashboard on a study, with what the study came to, and with a guard at its door.

By itself optuna-dashboard takes the storage URL from its command line, which `ps` shows, asks nobody who they are,
answers to any Host header, so that any page in the browser can reach it by DNS rebinding, and serves HTML artifacts on
its own origin, where their scripts could delete the study.
"""

import csv
import io
import json
import re
import secrets
import shlex
import signal
import threading
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    pass

from studyloom.errors import StorageError
from studyloom.storage.attributes import EPOCHS, FAILURE, REASON
from studyloom.study.stored_study import StoredStudy, open_study, study_names
from studyloom.views.guard import LOOPBACK, Guard, bind, is_address
from studyloom.views.snapshot import front_rows, take_snapshot

DEADLINE = 10.0  # seconds that a page waits for a database that is away
MARGIN = "*studyloom writes what stands above anew; what you write below stays.*"
FILES = {
    "best.yaml": "application/yaml",
    "winner.yaml": "application/yaml",
    "report.html": "text/html",
}
CURVES = ("epoch", "value", "train_loss", "valid_loss")


def open_only_study(url: str, name: str | None) -> StoredStudy:
    """The study of that name; without a name, the only one in the database.

    Raises:
        StorageError: no such database, no such study, or several where none was named.
    """
    if name is None:
        names = study_names(url, DEADLINE)
        if len(names) != 1:
            held = f"{len(names)} studies: {', '.join(names)}" if names else "no study"
            raise StorageError(f"--study: which study is not said, and the database holds {held}")
        name = names[0]
    return open_study(url, name, DEADLINE)


def publish(stored: StoredStudy, run_dir: Path | None, headline: str) -> None:
    """Lays down what the study came to where the dashboard shows it; done again, it is brought up to date.

    The study has a note with `headline` and the next commands, trials that failed have one with the reason, and the
    files of `run_dir` that are there become artifacts, with the learning curves as `curves.csv`. What a user wrote
    into notes stays.

    Raises:
        StorageError: the database cannot be used.
        OSError: `run_dir` cannot be written.
    """
    from optuna_dashboard import get_note, save_note  # type: ignore[import-untyped]  # 1.7 s to import
    from optuna_dashboard._note import note_ver_key, split_body  # type: ignore[import-untyped]

    was = get_note(stored.optuna)
    above, margin, below = was.partition(MARGIN)
    theirs = below if margin else f"\n\n{above}"
    note = f"{study_note(stored, run_dir, headline)}\n\n---\n\n{MARGIN}{theirs}".rstrip()
    if note != was:
        save_note(stored.optuna, note)
    storage, study_id = stored.storage, stored.ledger.study_id
    attributes = storage.get_study_system_attrs(
        study_id
    )  # with the trials' notes and all artifacts
    trials = stored.trials()
    for trial in trials:
        version = note_ver_key(trial._trial_id)
        if REASON in trial.user_attrs and trial.state.is_finished() and version not in attributes:
            # As save_note does, but that it reads all notes to write one: a thousand took 60 s.
            for key, value in {
                **split_body(trial_note(trial), trial._trial_id),
                version: 1,
            }.items():
                storage.set_study_system_attr(study_id, key, value)
    if run_dir is None:
        return
    contents = {name: (run_dir / name).read_bytes() for name in FILES if (run_dir / name).is_file()}
    if curves := curves_csv(trials, stored.metric):
        contents["curves.csv"] = curves.encode()
    store = artifact_store(run_dir)
    for name, content in contents.items():
        # An id for each name, and not a new one for each time: Optuna's upload_artifact makes another entry whenever
        # it is called, and storages know no way to delete one.
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{stored.name}/{name}"))
        store.write(identity, io.BytesIO(content))
        meta = json.dumps(asdict(ArtifactMeta(identity, name, FILES.get(name, "text/csv"), None)))
        if attributes.get(f"artifacts:{identity}") != meta:
            storage.set_study_system_attr(study_id, f"artifacts:{identity}", meta)


def artifact_store(run_dir: Path) -> FileSystemArtifactStore:
    folder = run_dir / "artifacts"
    folder.mkdir(exist_ok=True)
    return FileSystemArtifactStore(folder)


def study_note(stored: StoredStudy, run_dir: Path | None, headline: str) -> str:
    """Markdown: where the study stands, and what can be typed next."""
    if run_dir is not None:
        place = shlex.quote(str(run_dir.absolute()))  # whoever reads it may be elsewhere
        commands = [
            f"studyloom {verb} {place}"
            for verb in ("status", "report", "winner", "doctor", "dashboard")
        ]
    else:
        commands = [
            'studyloom doctor --storage "$STUDYLOOM_STORAGE"',
            f"studyloom dashboard --study {shlex.quote(stored.name)}",
        ]
    return "\n\n".join((as_text(headline), *front_note(stored), as_code("\n".join(commands))))


def front_note(stored: StoredStudy) -> list[str]:
    """Markdown: the Pareto front as a table, where a study has one, and how the best of it is chosen."""
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
    """Markdown: why a trial came to nothing."""
    kind, reason = (str(trial.user_attrs.get(name, "failed")) for name in (FAILURE, REASON))
    return f"**{as_text(kind)}**\n\n{as_text(reason)}"


def as_text(text: str) -> str:
    """Markdown that shows a text as it is, on one line: a study may be called `<img …>` or `[a](javascript:…)`."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def as_code(text: str) -> str:
    """Markdown that shows lines as they are, in a box; the fence is longer than any within."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def curves_csv(trials: Iterable[FrozenTrial], metric: str) -> str:
    """A line for each epoch of each trial, under the name of its value; empty where there is none."""
    rows: list[list[Any]] = []
    for trial in trials:
        epochs = trial.user_attrs.get(EPOCHS, {})
        columns = [epochs.get("number" if name == "epoch" else name, []) for name in CURVES]
        rows += [[trial.number, *row] for row in zip(*columns, strict=False)]
    written = io.StringIO()
    if rows:
        csv.writer(written, lineterminator="\n").writerows(
            [("trial", "epoch", metric, *CURVES[2:]), *rows]
        )
    return written.getvalue()


def application(stored: StoredStudy, run_dir: Path | None, host: str, token: str | None) -> "Guard":
    """The dashboard, for requests that address it by `host` or a name of this machine to itself, and bear the token."""
    from optuna_dashboard import wsgi

    # A storage that is no RDBStorage: of one, the dashboard would compare Optuna's table versions with each page.
    app = wsgi(stored.storage, artifact_store=None if run_dir is None else artifact_store(run_dir))
    return Guard(app, (*LOOPBACK, host.casefold()), token)


def serve(
    stored: StoredStudy,
    run_dir: Path | None,
    headline: str,
    host: str,
    port: int,
    token: str | None,
    console: Console,
) -> None:
    """Publishes the study and serves the dashboard until Ctrl-C or SIGTERM.

    Whoever is at this machine may use it, unless there is a token; others reach it on another host than loopback,
    which always has one.

    Raises:
        ValueError: the address or the database cannot be used.
    """
    if token == "":
        raise ValueError("--token: is empty; leave it out, and one is made where it is needed")
    if token is None and host not in LOOPBACK and not is_address(host, "is_loopback"):
        token = secrets.token_urlsafe()
    with bind(host, port) as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(
                number, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start()
            )
        publish(stored, run_dir, headline)
        server.set_app(application(stored, run_dir, host, token))
        netloc = f"{f'[{host}]' if ':' in host else host}:{server.server_port}"
        address = f"http://{netloc}/" + ("" if token is None else f"?token={quote(token, safe='')}")
        console.print(Text(f"{headline}\n{address}  (Ctrl-C ends it)"), soft_wrap=True)
        server.serve_forever()
