"""Studies against the plain way of scripts/plain.py: a search, a tested winner, the tutorial."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
import optuna
from database.toy import show
from search.statistics import describe, interval
from starting import checkout

from training.commands import ROOT, run, run_search, unpacked

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
            seconds, stored = run_search(
                "fashion", folder, *overrides, f"launcher.workers={processes}"
            )
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


def answer(repeats: int, trials: int, before: str | None, study: str) -> None:
    """A study to its tested winner, next to an earlier commit, or the plain loop of mnist."""
    with tempfile.TemporaryDirectory() as folder, checkout(before, Path(folder)) as earlier:
        ways = {"plain": ROOT} if earlier is None else {f"ours at {before}": earlier}
        ways["ours"] = ROOT
        took: dict[str, list[Tested]] = {way: [] for way in ways}
        for seed in range(repeats):
            for way, root in ways.items():
                run_dir = Path(folder, "run")
                took[way].append(run_to_test(way == "plain", root, run_dir, study, seed, trials))
                print(f"  seed {seed}: {way:18} {took[way][-1]}", flush=True)
    ours = took["ours"]
    for way, all_of in took.items():
        seconds = [each.seconds for each in all_of]
        show(way, seconds)
        pairs = [*zip(ours, all_of, strict=True)]
        share = describe_ratio([a.seconds / b.seconds for a, b in pairs])
        worked = describe_ratio([a.worked / b.worked for a, b in pairs])
        gains = np.array([[a.tested - b.tested for a, b in pairs]])
        print(
            f"    ours takes {share} of its time, {worked} of its processor time; "
            f"epochs of the search {fmean(a.epochs for a in all_of):.0f}; "
            f"tested, mean {fmean(a.tested for a in all_of):.4f}; "
            f"ours less this, paired {describe(gains, 4)}"
        )


def describe_ratio(ratios: list[float]) -> str:
    """Returns the geometric mean of ratios in pairs, and its interval."""
    logarithms = np.log([ratios])
    mean, low, high = np.exp([logarithms.mean(), *interval(logarithms)])
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True)
class Tested:
    """A run to its tested winner.

    Args:
        worked: the seconds of processor time, which other work on the machine changes little.
        tested: the accuracy of the winner.
        epochs: of the search; 0 of the plain way, which counts none.
    """

    seconds: float
    worked: float
    tested: float
    epochs: int = 0

    def __str__(self) -> str:
        took = f"{self.seconds:6.1f} s, {self.worked:6.1f} s of processor time"
        return f"{took}, {self.epochs} epochs, tested {self.tested:.4f}"


def run_to_test(
    plain: bool, root: Path, run_dir: Path, study: str, seed: int, trials: int
) -> Tested:
    """Runs one way to its tested winner."""
    began = processor_time()
    if plain:
        seconds, printed = run(str(PLAIN), "answer", "-", str(seed), str(trials))
        return Tested(seconds, processor_time() - began, float(printed))
    shutil.rmtree(run_dir, ignore_errors=True)
    command = ("-m", f"studies.{study}", f"run_dir={run_dir}", f"study.seed={seed}")
    command += (f"study.trials={trials}",)
    seconds, _ = run(*command, cwd=root, PYTHONPATH=str(root / "src"))
    written = json.loads((run_dir / "winner.json").read_text())
    stored = optuna.load_study(study_name=study, storage=f"sqlite:///{run_dir}/study.db")
    epochs = sum(len(trial.intermediate_values) for trial in stored.trials)
    worked = processor_time() - began
    return Tested(seconds, worked, written["test"]["winner"]["mean"], epochs)


def processor_time() -> float:
    """Returns that of all processes that this one has waited for, and of theirs, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def tutorial(repeats: int, epochs: int) -> None:
    """The tutorial network: the same 55,000 images to train on, and 5,000 to validate."""
    plain, ours, plain_accuracy, our_accuracy = [], [], [], []
    overrides = ("study.name=plain", "data=mnist", "space=none", "model.hidden=[128]")
    overrides += ("optimizer=adam", "scheduler=constant", "train.batch_size=100")
    overrides += (f"train.epochs={epochs}",)
    with unpacked("mnist") as root, tempfile.TemporaryDirectory() as folder:
        for seed in range(repeats):
            seconds, printed = run(str(PLAIN), "tutorial", root, str(seed), str(epochs))
            plain.append(seconds)
            plain_accuracy.append(float(printed))
            seconds, stored = run_search("mnist", folder, *overrides, f"study.seed={seed}")
            ours.append(seconds)
            our_accuracy.append(stored.optuna.best_value)
            stored.close()
    show("plain", plain)
    show("ours", ours)
    print(
        f"  ratio {median(plain) / median(ours):.1f}; accuracy, mean: "
        f"plain {fmean(plain_accuracy):.4f}, ours {fmean(our_accuracy):.4f}"
    )
