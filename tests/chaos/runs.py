"""Real commands under faults: how they are started, watched and ended, and what must hold of all that they leave."""

import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from commands import CANARY, QUICK, ROOT, start, study
from harness import check, until

from studyloom.errors import StorageError
from studyloom.study.stored_study import StoredStudy, open_study

TRIALS = 10
EPOCHS = 30
# Trials of some tenths of a second that depend on seed and number alone.
STUDY = (
    *(*QUICK, "model._target_=gate.Net", f"train.epochs={EPOCHS}"),
    *(f"study.trials={TRIALS}", "launcher.workers=2", "study.lease=5"),
)
# What no output and no log may hold: errors that are ours, or that a library's words are left to explain.
NEVER = re.compile(
    r"AssertionError|UnboundLocalError|sqlalchemy\.exc|sqlite3\.|psycopg\.(?!extras)|Traceback"
)


class Run:
    """A study of TRIALS trials below a folder, in SQLite there or in the database of a URL; commands run it."""

    def __init__(self, folder: Path, url: str, overrides: tuple[str, ...] = STUDY) -> None:
        self.folder = folder
        self.url = url
        self._record: StoredStudy | None = None
        self.overrides = (*overrides, f"run_dir={folder}")
        self.mark = uuid.uuid4().hex  # in the environment of all processes of this run
        self.environment = {
            "STUDYLOOM_TEST": self.mark,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        }
        if url.startswith("postgresql"):
            self.overrides += ("storage=postgres",)
            self.environment["STUDYLOOM_STORAGE"] = url

    def start(
        self, *overrides: str, within: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen:
        self.latest = start(
            *self.overrides, *overrides, within=within, **self.environment, **environment
        )
        return self.latest

    def end(self, process: subprocess.Popen, code: int, seconds: float = 300.0) -> str:
        """Waits for a command; its exit code, and I6, I7 and I8. What it printed."""
        out, err = process.communicate(timeout=seconds)
        return self.ended(process.returncode, out, err, code)

    def ended(self, returned: int | None, out: str, err: str, code: int) -> str:
        assert returned == code, (out, err, self.logs())
        until(lambda: not self.processes(), 10)  # I6
        printed = out + err
        for text in (printed, self.logs()):
            assert not (found := NEVER.search(text)), f"I7: {found}\n{text}"
        assert CANARY not in printed, "I8"
        # In a process of its own: this one would lose its locks on a SQLite file when it closes another handle on it.
        found = subprocess.run(
            ["grep", "-rlF", CANARY, self.folder], capture_output=True, text=True
        ).stdout
        assert found == "", f"I8: {found}"
        return printed

    def finish(self, clean: set | None) -> str:
        """Runs the command to its end, with nothing in its way and one worker, and checks what there is then."""
        done = study(*self.overrides, "launcher.workers=1", **self.environment)
        printed = self.ended(done.returncode, done.stdout, done.stderr, 0)
        self.check(clean)
        return printed

    def go_on(self, clean: set | None) -> str:
        """The same with the very command, its launcher and all its workers."""
        printed = self.end(self.start(), 0)
        self.check(clean)
        return printed

    def check(self, clean: set | None) -> None:
        check(self.stored(), TRIALS, clean, EPOCHS)

    def stored(self) -> StoredStudy:
        """One for all looks: each has connections of its own."""
        if self._record is None:
            self._record = open_study(self.url, "mnist", deadline=30.0)
        return self._record

    def processes(self) -> list[int]:
        """All processes of this run, whatever became of those that started them."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"STUDYLOOM_TEST={self.mark}".encode() in (process / "environ").read_bytes()
                assert not mine or CANARY.encode() not in (process / "cmdline").read_bytes(), (
                    "I8: seen in ps"
                )
            except OSError:
                continue
            if mine:
                found.append(int(process.name))
        return found

    def workers(self) -> list[int]:
        """The worker processes of its commands: such commands themselves, or forks that write to a log."""
        found = []
        for pid in self.processes():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                logged = os.readlink(f"/proc/{pid}/fd/1").startswith(str(self.folder / "logs"))
                forked = logged and os.getsid(pid) == pid and b"studies.mnist" in command
                if forked or b"launcher=join" in command:
                    found.append(pid)
            except OSError:
                continue
        return found

    def logs(self) -> str:
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob("logs/*.log"))
        )

    def until_done(self, trials: int) -> None:
        """Waits until so many trials are done."""
        self._until(lambda stored: stored.ledger.counts()["done"] >= trials)

    def at_work(
        self, *overrides: str, starter: Callable[..., subprocess.Popen] | None = None
    ) -> subprocess.Popen:
        """A command whose workers are in the second epoch of a trial each; just then they are let go on."""
        gate = self.folder.with_name(f"gate-{uuid.uuid4().hex}")
        process = (starter or self.start)(*overrides, STUDYLOOM_TEST_GATE=str(gate))

        def look(stored):
            held = {h.trial_id for h in stored.ledger.held()}
            return (
                sum(t._trial_id in held and bool(t.intermediate_values) for t in stored.trials())
                >= 2
            )

        self._until(look)
        gate.parent.mkdir(exist_ok=True)
        gate.touch()
        return process

    def _until(self, condition: Callable[[StoredStudy], bool]) -> None:
        errors = []

        def look():
            try:
                if condition(self.stored()):
                    return True
            except StorageError as error:  # its maker is at it
                errors[:] = [error]
            assert self.latest.poll() is None, (self.latest.communicate(), self.logs(), errors)
            return False

        until(look, 180, pause=0.05)


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def nap(seconds: float) -> None:
    """How long a fault lasts; nothing is waited for with it."""
    time.sleep(seconds)
