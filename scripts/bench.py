"""Figures, measured here and now: ratios in one run, since absolute times differ from machine to machine.

python scripts/bench.py kills            # the main job's search without and with 20 killed workers, about 5 minutes
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from studyloom.record import open_record

ROOT = Path(__file__).resolve().parent.parent
TRIALS, KILLS = 60, 20


def kills() -> None:
    """A search of 60 trials, undisturbed and with a worker killed after every third; their values must be the same."""
    times, values = [], []
    for deaths in (0, KILLS):
        with tempfile.TemporaryDirectory() as folder:
            overrides = [f"study.trials={TRIALS}", "sampler=random", "pruner=none", "winner.enabled=false"]
            command = [sys.executable, "-m", "studies.mnist", *overrides, "launcher.workers=2", f"run_dir={folder}/run"]
            began = time.monotonic()
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            killed = storm(process, f"sqlite:///{folder}/run/study.db", deaths)
            assert process.wait() == 0
            times.append(time.monotonic() - began)
            trials = open_record(f"sqlite:///{folder}/run/study.db", "mnist").trials()
            values.append([(trial.number, trial.params, trial.value) for trial in trials])
            print(f"{len(trials)} trials, {killed} kills: {times[-1]:.0f} s", flush=True)
    print(f"ratio {times[1] / times[0]:.2f}; values {'the same' if values[0] == values[1] else 'DIFFERENT'}")


def storm(process: subprocess.Popen[bytes], url: str, deaths: int) -> int:
    """Kills a worker at a random moment after every so many trials; how often it did."""
    fate, record, killed = random.Random(0), None, 0
    while process.poll() is None and killed < deaths:
        time.sleep(0.1)
        try:
            record = record or open_record(url, "mnist")
        except ValueError:
            continue  # its maker is at it
        held = record.ledger.held()
        if held and record.ledger.counts()["done"] >= killed * TRIALS // (KILLS + 1):
            time.sleep(fate.random())
            try:
                os.kill(int(fate.choice(held).owner.rpartition(":")[2]), signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                continue
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills"])
    {"kills": kills}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
