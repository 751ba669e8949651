"""A study on a real terminal: its first line, its display, and what Ctrl-C says."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from commands import QUICK, ROOT, environment

pytestmark = pytest.mark.chaos

CODES = re.compile(r"\x1b\[([\d;?]*)([A-Za-z])|(.)", re.DOTALL)


class Screen:
    """The lines of a terminal that moves its cursor up and erases lines, as a display does."""

    def __init__(self):
        self.lines, self.row, self.column = [""], 0, 0

    def write(self, text):
        for number, code, character in CODES.findall(text):
            if code == "A":
                self.row = max(0, self.row - int(number or 1))
            elif code == "K":
                self.lines[self.row] = "" if number == "2" else self.lines[self.row][: self.column]
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif character and character >= " ":
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
                self.column += 1

    def has(self, words):
        return any(words in line for line in self.lines)


class Terminal:
    """A command on a terminal of 80 columns."""

    def __init__(self, *overrides, **extra):
        self.screen, self.raw = Screen(), ""
        self._ours, theirs = pty.openpty()
        path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "studies.mnist", *overrides],
            cwd=ROOT,
            env=environment(PYTHONPATH=path, **{"TERM": "xterm-256color"} | extra),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def until(self, words, seconds=120):
        """Reads until the screen has these words; None for the end of the command."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if words is not None and self.screen.has(words):
                return True
            if select.select([self._ours], [], [], 0.2)[0]:
                try:
                    text = os.read(self._ours, 2**16).decode(errors="replace")
                except OSError:  # the other end is closed
                    return words is None
                self.raw += text
                self.screen.write(text)
        return False

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(tmp_path):
    """Returns a function that starts a study of long trials on a terminal."""
    started = []
    long = [item for item in QUICK if not item.startswith("train.epochs")]

    def start(*overrides, **extra):
        command = (*long, "train.epochs=100000", "study.trials=3", f"run_dir={tmp_path}")
        started.append(Terminal(*command, *overrides, **extra))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_ctrl_c_is_answered_by_a_line_that_stays(terminal):
    shown = terminal("launcher.workers=2")
    assert shown.until("mnist: starting")
    assert shown.until("search 0/3")
    assert shown.until("/100000"), shown.screen.lines  # the epoch of one that runs
    os.killpg(shown.process.pid, signal.SIGINT)
    assert shown.until(None)
    assert shown.process.wait(60) == 130
    assert shown.screen.has("stopping; once more stops at once"), shown.screen.lines
    assert shown.screen.has("stopped; the same command goes on from here")
    assert max(map(len, shown.screen.lines)) <= 80 or "next" in "".join(shown.screen.lines)
