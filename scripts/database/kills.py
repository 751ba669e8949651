"""A search with and without kills."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time

from training.commands import ROOT

from studyloom.storage.opening import open_study


def kills(trials: int) -> None:
    """A search undisturbed, and with a kill every third trial; values must be the same."""
    times, values = [], []
    overrides = (f"study.trials={trials}", "sampler=random", "pruner=none", "winner.enabled=false")
    # One trial may be hit again and again, and must not be given up for it.
    overrides += ("study.max_attempts=99", "launcher.workers=2")
    for deaths in (0, trials // 3):
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{folder}/run/study.db"
            command = [sys.executable, "-m", "studies.mnist", *overrides, f"run_dir={folder}/run"]
            quiet = subprocess.DEVNULL
            began = time.monotonic()
            process = subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet)
            killed = storm(process, url, trials, deaths)
            assert process.wait() == 0
            times.append(time.monotonic() - began)
            found = open_study(url, "mnist").trials()
            values.append([(trial.number, trial.params, trial.value) for trial in found])
            print(f"{len(found)} trials, {killed} kills: {times[-1]:.0f} s", flush=True)
    verdict = "the same" if values[0] == values[1] else "DIFFERENT"
    print(f"ratio {times[1] / times[0]:.2f}; values {verdict}")


def storm(process: subprocess.Popen[bytes], url: str, trials: int, deaths: int) -> int:
    """Kills a worker at a random moment after every third trial; returns the number killed."""
    fate, stored, killed = random.Random(0), None, 0
    while process.poll() is None and killed < deaths:
        time.sleep(0.1)
        try:
            stored = stored or open_study(url, "mnist")
        except ValueError:
            continue  # the study is not there yet
        held = stored.ledger.held()
        if held and stored.ledger.counts()["done"] >= killed * trials // (deaths + 1):
            time.sleep(fate.random())
            try:
                os.kill(int(fate.choice(held).owner.rpartition(":")[2]), signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                continue
    return killed
