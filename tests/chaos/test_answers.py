"""Real commands that are killed while they write the result of a study."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, study, studyloom

from studyloom.storage.opening import open_study

pytestmark = pytest.mark.chaos

FILES = ("winner.yaml", "winner.json", "report.html")
# Weights of one activation in a network of another result as neither.
OVERRIDES = (
    *(*QUICK, "winner.enabled=true", "winner.top=1", "winner.seeds=2", "launcher.workers=1"),
    *("+space.model.activation.choice=[relu,tanh,sigmoid]", "study.seed=2"),
)


class Commands:
    """The commands of one study."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.digits = folder / "digits.npy"
        folder.mkdir(exist_ok=True)
        digits = np.random.default_rng(0).random((5, 1, 28, 28), "float32")
        np.save(self.digits, digits)
        self.overrides = [*OVERRIDES, f"run_dir={self.run_dir}"]

    def run(self, trials: int) -> str:
        done = study(*self.overrides, f"study.trials={trials}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run_killed(self, trials: int, file: str) -> None:
        """Runs a command whose process SIGKILL ends just before it puts a file into its place."""
        done = study(*self.overrides, f"study.trials={trials}", STUDYLOOM_TEST_KILL=file)
        assert done.returncode == -signal.SIGKILL, (file, done.stdout, done.stderr)

    def predict(self) -> str:
        """What `predict` prints, or its error."""
        done = studyloom("predict", self.run_dir, self.digits)
        assert done.returncode == (2 if done.stderr else 0)
        return done.stderr or done.stdout.replace(str(self.digits), "")

    def result(self):
        return json.loads((self.run_dir / "winner.json").read_text())

    def uses(self) -> int:
        stored = open_study(f"sqlite:///{self.run_dir}/study.db", "mnist")
        uses = stored.test_uses()
        stored.close()
        return uses


def test_a_command_killed_between_two_files_of_a_result_leaves_no_mixture(tmp_path):
    """Killed before each file in turn; the same command mends it, and opens the test set once."""
    commands = Commands(tmp_path)
    commands.run(2)
    small, told = commands.predict(), []
    for file in FILES:
        commands.run_killed(6, file)
        told.append(commands.predict())
    commands.run(6)
    large, result = commands.predict(), commands.result()
    assert result["trials"] == 6
    assert small != large
    for file, words in zip(FILES, told, strict=True):
        mended = "is incomplete" in words and "run the study again" in words
        assert words in (small, large) or mended, file
    page = (commands.run_dir / "report.html").read_text()
    assert f"trial {result['winner']['trial']}" in page
    assert commands.uses() == 2, "one of each result"
    assert "used 2 times" in (commands.run_dir / "model_card.md").read_text()
