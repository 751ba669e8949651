"""Real commands under faults: starts, watches and ends them, and checks what they leave behind."""

import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from commands import CANARY, QUICK, ROOT, start, study
from harness import check
from live_processes import until

from studyloom.errors import StorageError
from studyloom.processes import is_alive
from studyloom.storage.ledger import HeldSlot
from studyloom.storage.opening import open_study
from studyloom.storage.stored_study import StoredStudy

TRIALS = 8
EPOCHS = 12
# Trials of some tenths of a second that depend on seed and number alone.
STUDY = (
    *(*QUICK, "model._target_=gate.Net", f"train.epochs={EPOCHS}"),
    *(f"study.trials={TRIALS}", "launcher.workers=2", "study.lease=5"),
)
# What no output and no log may hold: bugs of ours, and errors that only a library's words explain.
NEVER = re.compile(
    r"AssertionError|UnboundLocalError|sqlalchemy\.exc|sqlite3\.|psycopg\.(?!extras)|Traceback"
)


# The traceback of an error in the code of these tests, which a worker's log shows as it is.
OF_USER = re.compile(
    r'Traceback \(most recent call last\):\n(?:  File "[^"]*/tests/chaos/.*\n(?:    .*\n)*)+'
)


class Run:
    """A study with a budget of trials below a folder, which commands with these overrides run."""

    at_once = 2  # workers

    def __init__(
        self,
        folder: Path,
        url: str,
        overrides: tuple[str, ...] = STUDY,
        *,
        name: str = "mnist",
        trials: int = TRIALS,
    ) -> None:
        self.folder = folder
        self.name = name
        self.trials = trials
        self.page, self.cwd = "mnist", ROOT
        self.url = url
        self._stored: StoredStudy | None = None
        self.overrides = (*overrides, f"run_dir={folder}")
        self.mark = uuid.uuid4().hex  # in the environment of all processes of this run
        self.environment = {
            "STUDYLOOM_TEST": self.mark,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}",
        }
        if url.startswith("postgresql"):
            self.overrides += ("storage=postgres",)
            self.environment["STUDYLOOM_STORAGE"] = url

    def start(
        self, *overrides: str, within: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen:
        self.latest = start(
            *(*self.overrides, *overrides),
            within=within,
            page=self.page,
            cwd=self.cwd,
            **self.environment | environment,
        )
        return self.latest

    def end(self, process: subprocess.Popen, code: int, seconds: float = 300.0) -> str:
        """Waits for a command, checks its exit code and I6 to I9, and returns what it printed."""
        out, err = process.communicate(timeout=seconds)
        return self.ended(process.returncode, out, err, code)

    def ended(self, returned: int | None, out: str, err: str, code: int) -> str:
        assert returned == code, (out, err, self.logs())
        self.until_gone(10)  # I6
        printed = out + err
        for text in (printed, self.logs()):
            rest = OF_USER.sub("", text)
            assert not (match := NEVER.search(rest)), f"I7: {match}\n{rest}"
        assert CANARY not in printed, "I8"
        # In a process of its own: this one would lose its locks on a SQLite file if it closed
        # another handle of the file.
        files = subprocess.run(
            ["grep", "-rlF", CANARY, self.folder], capture_output=True, text=True
        ).stdout
        assert files == "", f"I8: {files}"
        if returned == 0:
            self.check_success(printed)
        return printed

    def check_success(self, printed: str) -> None:
        """Checks the law of every command that ends with 0: N of N, and a result or a reason."""
        if "scancel" in printed or "the time is up" in printed:  # a job goes on; a time limit
            return
        stored = open_study(self.url, self.name, deadline=30.0)  # knows of no trial deleted since
        counts, trials = stored.ledger.counts(), stored.trials()
        stored.close()
        said = re.search(r": (\d+) of (\d+) trials –", printed)
        assert said, f"I9: {printed}"
        assert {said[1], said[2]} == {str(counts["done"])}, f"I9: {counts}\n{printed}"
        assert counts["free"] == counts["held"] == 0, f"I9: {counts}"
        assert all(trial.state.is_finished() for trial in trials), "I9: a trial runs for ever"
        assert len(trials) == counts["done"], f"I9: {len(trials)} trials in {counts}"
        result = "best.yaml" if "winner.enabled=false" in self.overrides else "winner.yaml"
        reasons = ("no trial satisfies winner.rule",)
        assert (self.folder / result).exists() or any(map(printed.__contains__, reasons)), "I9"

    def finish(self, clean: set | None) -> str:
        """Runs the command undisturbed to its end, with one worker, and checks the study."""
        done = study(*self.overrides, "launcher.workers=1", **self.environment)
        printed = self.ended(done.returncode, done.stdout, done.stderr, 0)
        self.check(clean)
        return printed

    def go_on(self, clean: set | None) -> str:
        """The same with the command's own launcher and all its workers."""
        printed = self.end(self.start(), 0)
        self.check(clean)
        return printed

    def check(self, clean: set | None) -> None:
        check(self.stored(), self.trials, clean, EPOCHS)

    def stored(self) -> StoredStudy:
        """Opens the study once for all looks, because each has connections of its own."""
        if self._stored is None:
            self._stored = open_study(self.url, self.name, deadline=30.0)
        return self._stored

    def processes(self) -> list[int]:
        """All processes of this run, even if the processes that started them are gone."""
        pids, mark = [], f"STUDYLOOM_TEST={self.mark}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (process / "environ").read_bytes():
                    assert CANARY.encode() not in (process / "cmdline").read_bytes(), "I8: in ps"
                    pids.append(int(process.name))
        return pids

    def until_gone(self, seconds: float) -> None:
        until(lambda: not self.processes(), seconds)

    def workers(self) -> list[int]:
        """The worker processes of its commands: commands themselves, or forks with a log."""
        pids = []
        for pid in self.processes():
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                logged = os.readlink(f"/proc/{pid}/fd/1").startswith(str(self.folder / "logs"))
                forked = logged and os.getsid(pid) == pid and b"studies.mnist" in command
                if forked or b"launcher=join" in command:
                    pids.append(pid)
        return pids

    def logs(self) -> str:
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob("logs/*.log"))
        )

    def until_done(self, trials: int) -> None:
        """Waits until a number of trials are done."""
        self.until_stored(lambda stored: stored.ledger.counts()["done"] >= trials)

    def at_work(
        self,
        *overrides: str,
        starter: Callable[..., subprocess.Popen] | None = None,
        meanwhile: Callable[[], object] = lambda: None,
        **environment: str,
    ) -> subprocess.Popen:
        """Starts a command, and returns when its workers are in the second epoch of a trial.

        They waited there for a file, and go on then; `meanwhile` is called while they wait.
        """
        gate = self.folder.with_name(f"gate-{uuid.uuid4().hex}")
        own = (*overrides, "checkpoints.interval=0")  # of epochs of milliseconds, all are looked at
        process = (starter or self.start)(*own, STUDYLOOM_TEST_GATE=str(gate), **environment)

        def at_work(stored):
            held = {slot.trial_id for slot in stored.ledger.held() if is_alive(holder(slot))}
            begun = [trial for trial in stored.trials() if trial.intermediate_values]
            # A loop with several folds reports only their ends: by then it has saved two epochs.
            saved = len([*self.folder.glob("checkpoints/*.previous")])
            at_work = sum(trial._trial_id in held for trial in begun)
            return max(at_work, min(saved, len(held))) >= self.at_once

        self.until_stored(at_work)
        meanwhile()
        gate.parent.mkdir(exist_ok=True)
        gate.touch()
        return process

    def until_stored(self, condition: Callable[[StoredStudy], bool]) -> None:
        errors = []

        def holds():
            ended = self.latest.poll() is not None  # before the look, which it may precede
            try:
                if condition(self.stored()):
                    return True
            except StorageError as error:  # it is being created
                errors[:] = [error]
            assert not ended, (self.latest.communicate(), self.logs(), errors)
            return False

        until(holds, 180, pause=0.05)


def holder(slot: HeldSlot) -> int:
    """The process that holds a slot, or held it when it died."""
    return int(slot.owner.rpartition(":")[2])


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def nap(seconds: float) -> None:
    """Lets a fault last for some seconds. Do not wait for anything with it: that is `until`."""
    time.sleep(seconds)


def device(pid: int) -> str | None:
    """The GPUs that a process was told to use."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(each.partition("=")[::2] for each in variables).get("CUDA_VISIBLE_DEVICES")
