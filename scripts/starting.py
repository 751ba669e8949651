"""Measures the start of commands, and of looking ones: now, and at an earlier commit.

`import torch`, which every training needs, is measured next to them in the same turns: the machine
differs from one minute to the next, and the ratio to it much less. Each command is a new process.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("study.trials=1", "train.epochs=1", "winner.enabled=false", "launcher.workers=1")
FIRST, TORCH = "to the first trial", "import torch"
LOOKS = {"status": ("status", "{}"), "trials": ("trials", "{}"), "--help": ("--help",)}
Measured = dict[str, list[tuple[float, float]]]  # seconds, and those of the processor, by command


def measure_start(repeats: int, before: str | None) -> None:
    """Prints the times of commands, each the median of several, and their range.

    Args:
        repeats: how many times each command runs; if more than once, after a time that warms the
            caches and does not count.
        before: an earlier commit that is measured in the same turns; None for none.
    """
    with tempfile.TemporaryDirectory() as folder, checkout(before, Path(folder)) as earlier:
        ways = {} if earlier is None else {f"at {before}": earlier}
        ways["now"] = ROOT
        took: dict[str, Measured] = {way: {} for way in ways}
        turns = range(-1 if repeats > 1 else 0, repeats)
        for turn in turns:
            for way, root in ways.items():
                for name, spent in measure(root, Path(folder, "run"), Path(folder, "cache")):
                    if turn >= 0:
                        took[way].setdefault(name, []).append(spent)
    for way, measured in took.items():
        show(way, measured)


@contextmanager
def checkout(commit: str | None, folder: Path) -> Iterator[Path | None]:
    """Gives the body a folder with the files of a commit."""
    if commit is None:
        yield None
        return
    earlier = folder / "earlier"
    git = ("git", "-C", str(ROOT), "worktree")
    subprocess.run([*git, "add", "--quiet", "--detach", earlier, commit], check=True)
    try:
        yield earlier
    finally:
        subprocess.run([*git, "remove", "--force", earlier], check=True)


def measure(root: Path, run_dir: Path, cache: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    """Runs each command once.

    Args:
        root: a checkout.
        run_dir: of the study, which is made again.
        cache: of compiled modules, as an installed package has them.

    Yields:
        The name of the command; its seconds, and those of processors.
    """
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPATH": str(root / "src"), "PYTHONPYCACHEPREFIX": str(cache / root.name)}
    shutil.rmtree(run_dir, ignore_errors=True)
    yield TORCH, run(("-c", "import torch"), root, env)
    module = ("-m", "studies.mnist")
    yield "--dry-run", run((*module, "--dry-run"), root, env)
    began = time.time()
    seconds, processor = run((*module, *QUICK, f"run_dir={run_dir}"), root, env)
    with closing(sqlite3.connect(run_dir / "study.db")) as connection:
        (started,) = connection.execute("SELECT min(datetime_start) FROM trials").fetchone()
    yield FIRST, (datetime.fromisoformat(started).timestamp() - began, processor)
    yield "to the end of one trial", (seconds, processor)
    for name, command in LOOKS.items():
        arguments = (part.format(run_dir) for part in command)
        yield name, run(("-m", "studyloom", *arguments), root, env)


def run(arguments: tuple[str, ...], cwd: Path, env: Mapping[str, str]) -> tuple[float, float]:
    """Runs Python; returns the seconds, and those of processors in it and what it waited for."""
    before, began = os.times(), time.monotonic()
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.monotonic() - began, os.times()
    spent = after.children_user + after.children_system
    return seconds, spent - before.children_user - before.children_system


def show(way: str, measured: Measured) -> None:
    """Prints a line for each command."""
    print(f"{way:26} {'seconds':>8} {'range':>15}   of processors   times import torch", flush=True)
    torch = [median(column) for column in zip(*measured[TORCH], strict=True)]
    for name, spent in measured.items():
        seconds, processor = zip(*spent, strict=True)
        spread = f"{min(seconds):.2f} … {max(seconds):.2f}"
        ratios = f"{median(seconds) / torch[0]:.2f}, {median(processor) / torch[1]:.2f}"
        taken = f"{median(seconds):8.2f} {spread:>15} {median(processor):15.2f}"
        print(f"  {name:24} {taken} {ratios:>20}")
