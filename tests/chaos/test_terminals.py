"""A study on a real terminal: its first line, its display, and what Ctrl-C says."""

import os
import pty
import re
import select
import signal
import subprocess
import sys

import pytest
from commands import QUICK, ROOT, environment

pytestmark = pytest.mark.chaos


def read(terminal, words=None):
    """Reads until these words are there, or to the end; without codes that move and color."""
    text = ""
    while words is None or words not in text:
        assert select.select([terminal], [], [], 120)[0], text
        try:
            text += os.read(terminal, 2**16).decode(errors="replace")
        except OSError:  # the other end is closed
            break
        text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    return text


def test_ctrl_c_is_answered_by_a_line(tmp_path):
    long = (item for item in QUICK if not item.startswith("train.epochs"))
    overrides = ("train.epochs=100000", "study.trials=3", "launcher.workers=2")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "studies.mnist", *long, *overrides, f"run_dir={tmp_path}"],
        cwd=ROOT,
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'src'}", TERM="xterm-256color"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        shown = read(ours, "/100000")  # the epoch of one that runs
        assert "mnist: starting" in shown
        assert "search 0/3" in shown
        os.killpg(process.pid, signal.SIGINT)
        shown = read(ours)
        assert process.wait(60) == 130
        assert "stopping; once more stops at once" in shown
        assert "stopped; the same command resumes here" in shown
    finally:
        process.kill()
        os.close(ours)
