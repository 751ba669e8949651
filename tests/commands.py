"""Real commands, run as a user runs them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CANARY = "canary-password"  # of a database; must show up in no output and no file
ROOT = Path(__file__).parent.parent

# Trials of some milliseconds on a narrow space, for tests of everything around them.
QUICK = (
    "winner.enabled=false",
    "data.validation=100",
    "train.epochs=2",
    "train.samples_per_epoch=64",
    "train.batch_size=32",
    "model.hidden=[16]",
    "space=lr",
    "sampler=random",
    "pruner=none",
)


# The keys of model=mlp, taken away: for a network of one's own in its place.
BARE = ("~model.hidden", "~model.activation", "~model.dropout", "~model.init", "~model.standardise")


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STUDYLOOM_", "HYDRA_"))}
    return kept | {"COLUMNS": "80"} | extra


def study(*overrides: str, page: str = "mnist", cwd: Path = ROOT, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m studies.PAGE OVERRIDES` to its end."""
    command = [sys.executable, "-m", f"studies.{page}", *overrides]
    env = environment(**{"PYTHONPATH": str(ROOT)} | extra)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=180)


def start(*overrides: str, within: Sequence[str] = (), cwd: Path = ROOT, **extra: str) -> subprocess.Popen[str]:
    """Starts `python -m studies.mnist OVERRIDES`, as an argument of the command `within`."""
    command = [*within, sys.executable, "-m", "studies.mnist", *overrides]
    env = environment(**{"PYTHONPATH": str(ROOT)} | extra)
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
