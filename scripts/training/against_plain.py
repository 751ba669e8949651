"""Studies against the plain way of scripts/plain.py: a search, an answer, the tutorial."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, median

import optuna
from database.toy import show
from starting import checkout

from training.commands import ROOT, page, run, unpacked

PLAIN = ROOT / "scripts" / "plain.py"


def example(repeats: int, processes: int, trials: int) -> None:
    """A search that the median prunes: the plain loop in memory, or in two processes on SQLite."""
    plain, ours, plain_best, our_best = [], [], [], []
    with unpacked("fashion_mnist") as root, tempfile.TemporaryDirectory() as folder:
        for seed in range(repeats):
            if processes == 1:
                seconds, printed = run(str(PLAIN), "example", root, str(seed), str(trials))
                value = float(printed)
            else:
                seconds, value = plain_processes(root, folder, seed, processes, trials)
            plain.append(seconds)
            plain_best.append(value)
            overrides = (f"study.seed={seed}", f"study.trials={trials}")
            seconds, stored = page("fashion", folder, *overrides, f"launcher.workers={processes}")
            ours.append(seconds)
            our_best.append(stored.optuna.best_value)
            stored.close()
            print(
                f"  seed {seed}: plain {plain[-1]:.1f} s {plain_best[-1]:.4f}, "
                f"ours {ours[-1]:.1f} s {our_best[-1]:.4f}",
                flush=True,
            )
    show(f"plain, {processes} processes", plain)
    show(f"ours, {processes} workers", ours)
    print(
        f"  ratio {median(plain) / median(ours):.1f}; "
        f"best, mean: plain {fmean(plain_best):.4f}, ours {fmean(our_best):.4f}"
    )


def plain_processes(
    root: str, folder: str, seed: int, processes: int, trials: int
) -> tuple[float, float]:
    """Runs the plain example in several processes on one SQLite file; seconds, and best value."""
    path = Path(folder, "plain.db")
    path.unlink(missing_ok=True)
    url = f"sqlite:///{path}"
    optuna.create_study(study_name="plain", storage=url, direction="maximize")
    began = time.monotonic()
    arguments = ("example", root, str(seed), str(trials // processes), url)
    command = [sys.executable, str(PLAIN), *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for _ in range(processes)
    ]
    assert [process.wait() for process in running] == [0] * processes
    return time.monotonic() - began, optuna.load_study(study_name="plain", storage=url).best_value


def answer(repeats: int, trials: int, before: str | None) -> None:
    """The whole of studies.mnist: the plain loop, this checkout, and an earlier commit of it."""
    with tempfile.TemporaryDirectory() as folder, checkout(before, Path(folder)) as earlier:
        ways = {"plain": ROOT, "ours": ROOT}
        if earlier is not None:
            ways = {"plain": ROOT, f"ours at {before}": earlier, "ours": ROOT}
        took: dict[str, list[float]] = {way: [] for way in ways}
        tested: dict[str, list[float]] = {way: [] for way in ways}
        for seed in range(repeats):
            for way, root in ways.items():
                run_dir = Path(folder, "run")
                seconds, accuracy = answered(way == "plain", root, run_dir, seed, trials)
                took[way].append(seconds)
                tested[way].append(accuracy)
                line = f"  seed {seed}: {way:18} {seconds:6.1f} s, tested {accuracy:.4f}"
                print(line, flush=True)
    for way, seconds in took.items():
        show(way, seconds)
        faster = median(seconds) / median(took["ours"])
        gains = [a - b for a, b in zip(tested["ours"], tested[way], strict=True)]
        spread = f"{min(gains):+.4f} … {max(gains):+.4f}"
        print(
            f"    ratio {faster:.2f}; tested, mean {fmean(tested[way]):.4f}; "
            f"ours less this, paired {fmean(gains):+.4f}, {spread}"
        )


def answered(plain: bool, root: Path, run_dir: Path, seed: int, trials: int) -> tuple[float, float]:
    """Runs one way to its answer; returns the seconds it took, and the accuracy of the winner."""
    if plain:
        seconds, printed = run(str(PLAIN), "answer", "-", str(seed), str(trials))
        return seconds, float(printed)
    shutil.rmtree(run_dir, ignore_errors=True)
    command = ("-m", "studies.mnist", f"run_dir={run_dir}", f"study.seed={seed}")
    command += (f"study.trials={trials}",)
    seconds, _ = run(*command, cwd=root, PYTHONPATH=str(root / "src"))
    written = json.loads((run_dir / "winner.json").read_text())
    return seconds, written["test"]["winner"]["mean"]


def tutorial(repeats: int, epochs: int) -> None:
    """The tutorial network: the same 55 000 images to train on, and 5 000 to validate."""
    plain, ours, plain_accuracy, our_accuracy = [], [], [], []
    overrides = ("study.name=plain", "data=mnist", "space=none", "model.hidden=[128]")
    overrides += ("optimizer=adam", "scheduler=constant", "train.batch_size=100")
    overrides += (f"train.epochs={epochs}",)
    with unpacked("mnist") as root, tempfile.TemporaryDirectory() as folder:
        for seed in range(repeats):
            seconds, printed = run(str(PLAIN), "tutorial", root, str(seed), str(epochs))
            plain.append(seconds)
            plain_accuracy.append(float(printed))
            seconds, stored = page("mnist", folder, *overrides, f"study.seed={seed}")
            ours.append(seconds)
            our_accuracy.append(stored.optuna.best_value)
            stored.close()
    show("plain", plain)
    show("ours", ours)
    print(
        f"  ratio {median(plain) / median(ours):.1f}; accuracy, mean: "
        f"plain {fmean(plain_accuracy):.4f}, ours {fmean(our_accuracy):.4f}"
    )
