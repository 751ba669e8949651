"""A study on a real terminal: its first line, its display at any width, and what Ctrl-C says."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import QUICK, ROOT, environment

from studyloom.storage.opening import open_study

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
        assert "search: 0 of 3 trials" in shown
        os.killpg(process.pid, signal.SIGINT)
        shown = read(ours)
        assert process.wait(60) == 130
        assert "stopping; once more stops at once" in shown
        assert "stopped; the same command resumes here" in shown
    finally:
        process.kill()
        os.close(ours)


SCRIPT = """
import time
from pathlib import Path
import studyloom as sl

def train(run, *, learning_rate=0.01, number_of_hidden_layers=2,
          activation_function="hyperbolic_tangent", label_smoothing=0.1):
    for epoch in run.epochs(2):
        while run.stage == "search" and run.trial == 6 and not Path("gate").exists():
            time.sleep(0.01)
        run.report(accuracy=0.9 - abs(learning_rate - 0.05) + 0.01 * (run.seed % 2))
    return run.value

sl.search(
    train, name="toy", maximize="accuracy", trials=8, workers=1, sampler="random", pruner="none",
    winner={"top": 2, "seeds": 3},
    space={
        "learning_rate": sl.Float(1e-4, 1e-1, log=True),
        "number_of_hidden_layers": sl.Int(1, 9),
        "activation_function": sl.Choice("rectified_linear_unit", "hyperbolic_tangent"),
        "label_smoothing": sl.Float(0.0, 0.3),
    },
).close()
"""
NAMES = ("learning_rate", "number_of_hidden_layers", "activation_function", "label_smoothing")
ROWS = 3 + 1 + 6  # of name, bar and later stages; the header; the best and five others


@pytest.fixture
def tmux(tmp_path):
    """Returns a function that calls tmux, with a server of its own, and returns what it prints."""
    command = ["tmux", "-S", f"{tmp_path}/socket", "-f", "/dev/null"]

    def call(*words):
        env = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'src'}")
        env.pop("COLUMNS")  # of a terminal that never changes
        done = subprocess.run([*command, *map(str, words)], env=env, capture_output=True, text=True)
        return done.stdout

    yield call
    call("kill-server")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_width_breaks_a_word_and_a_resize_leaves_nothing_behind(tmp_path, tmux, width):
    """What is on the screen, before and after the study has ended."""
    (tmp_path / "script.py").write_text(SCRIPT)
    script = f"{sys.executable} script.py; echo ended; cat"
    tmux("new-session", "-d", "-x", width, "-y", 40, "-c", tmp_path, script)

    def until(condition):
        end = time.monotonic() + 60
        while not condition(lines := tmux("capture-pane", "-p").split("\n")):
            assert time.monotonic() < end, "\n".join(lines)
            time.sleep(0.05)
        return lines

    def is_whole(lines):
        """Whether the lines of the display, and no others, are as wide as the terminal allows."""
        shown = [line for line in lines if line.strip()]
        while shown and not shown[0].startswith("toy  search"):
            del shown[0]  # what was printed before the search
        rows = [line.split() for line in shown]
        heads = [row for row in rows if row[:2] == ["trial", "state"]]
        begun = [row[1:3] == ["running", "0"] for row in rows if row[0] == "6"]
        if len(rows) != ROWS or len(heads) != 1 or begun != [True]:
            return False
        known = [name for name in NAMES if name in heads[0]]
        cells, used = len(heads[0]), max(map(len, shown))
        if heads[0] != ["trial", "state", "epochs", "accuracy", *known]:
            return False  # a name is broken
        left = [len(name) for name in NAMES if name not in known]
        values = [len(row) for row in rows[-6:]]
        return (
            values == [cells + 1, *[cells] * 4, cells - 1]
            and used + 2 + min(left, default=columns) > columns
        )

    for columns in (width, *({60, 80, 120} - {width}), width):
        tmux("resize-window", "-x", columns, "-y", 40)
        until(is_whole)
    (tmp_path / "gate").touch()
    lines = until(lambda lines: "ended" in lines)
    stored = open_study(f"sqlite:///{tmp_path}/runs/toy/study.db", "toy")
    best = stored.ranked()[0]
    stored.close()
    assert not any("━" in line for line in lines)
    words = " ".join(lines).split()
    rows = [line.split() for line in lines]
    assert any(row[:4] == ["accuracy", "trial", "search", "re-evaluation"] for row in rows)
    assert any("best" in row and str(best.number) in row for row in rows)
    assert "on 3 new seeds, untested" in " ".join(words)
