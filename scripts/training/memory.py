"""Measures the memory of workers on one host that share a training set."""

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from database.toy import show

from studyloom.storage.opening import open_study
from training.commands import ROOT

SHAPE, WORKERS = (3, 32, 32), 4
LOAD = """
import os, numpy, torch
def load(part):
    file = numpy.load(os.environ["BENCH_FILE"], mmap_mode="r")
    pixels = file if os.environ["BENCH_KIND"] == "map" else numpy.array(file)
    return (pixels if part == "train" else pixels[:100]), torch.arange(len(pixels)) % 10
"""


def memory(size: int) -> None:
    """Prints the memory of a command and 4 workers that train on so many bytes.

    Args:
        size: of an array and of a map; of another array it is a hundredth.
    """
    overrides = (
        "study.trials=4",
        "sampler=random",
        "pruner=none",
        "space=lr",
        "winner.enabled=false",
    )
    overrides += ("model.hidden=[64]", "train.batch_size=100", "train.samples_per_epoch=200")
    overrides += ("data._target_=studyloom.data.Loaded", "~data.transform", "data.validation=100")
    overrides += ("+data.load={_target_: bench_load.load, _partial_: true}", "train.epochs=400")
    overrides += (f"launcher.workers={WORKERS}",)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bench_load.py").write_text(LOAD)
        for kind, count in (("array", size // 100), ("array", size), ("map", size)):
            file = Path(folder, "pixels.npy")
            rows = np.random.default_rng(0).integers(
                0, 256, (count // math.prod(SHAPE), *SHAPE), np.uint8
            )
            np.save(file, rows)
            del rows
            env = {"BENCH_FILE": str(file), "BENCH_KIND": kind, "PYTHONPATH": folder}
            label = f"{count / 1e6:g} MB, {kind}"
            run_dir = Path(folder, "run")
            shutil.rmtree(run_dir, ignore_errors=True)
            command = [sys.executable, "-m", "studies.mnist", *overrides, f"run_dir={run_dir}"]
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | env, stdout=subprocess.DEVNULL
            )
            loading, training = weigh(process, f"sqlite:///{run_dir}/study.db")
            assert process.wait() == 0
            show(f"{label}: {WORKERS} at work", training, "GB")
            show(f"{label}: before", loading, "GB")


def weigh(process: subprocess.Popen[bytes], url: str) -> tuple[list[float], list[float]]:
    """Weighs a command with all processes below it until it ends, twice a second.

    Returns:
        the proportional set sizes in gigabytes: before all workers had a trial, and while they had.
    """
    stored, before, at_work = None, [], []
    while process.poll() is None:
        time.sleep(0.5)
        size = 0.0
        for pid in [
            process.pid,
            *[each.pid for each in psutil.Process(process.pid).children(recursive=True)],
        ]:
            with suppress(OSError, StopIteration):  # it has ended
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                size += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        with suppress(ValueError):  # the study is not there yet
            stored = stored or open_study(url, "mnist")
        if stored is not None and len(stored.ledger.held()) == WORKERS:
            at_work.append(size * 1024 / 1e9)
        elif not at_work:
            before.append(size * 1024 / 1e9)
    return before, at_work
