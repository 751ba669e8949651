"""Records learning curves that a search is replayed on: random trials, all trained to the end.

    python scripts/bench.py record            # needs: STUDYLOOM_DATA, an hour of two quiet cores

There are 27 epochs. A trial of `fashion` sees as many examples as one of its study as shipped,
38,016 and 38,400; one of `rows` about half as many, 10,800 and 19,200; and one of `digits`
4.5 times as many, 86,400 and 19,200. `fashion` needs `STUDYLOOM_DATA`, the folder with
`fashion-mnist/`.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from optuna.trial import TrialState

from studyloom.storage.opening import open_study

from .tables import CURVES, RECORDED

ROOT = Path(__file__).resolve().parent.parent.parent
EPOCHS = 27
RANDOM = ("sampler=random", "pruner=none", "winner.enabled=false", f"train.epochs={EPOCHS}")
TRIALS = {"digits": 240, "fashion": 400, "rows": 400}
SIZES = {"digits": (), "fashion": ("train.samples_per_epoch=1408",)}
SIZES["rows"] = ("train.samples_per_epoch=400",)


def record(
    run_dir: Path, trials: int | None = None, names: tuple[str, ...] = tuple(RECORDED)
) -> None:
    """Trains the trials of each study, and writes its file of curves.

    Args:
        run_dir: the folder for the studies; those that are there resume.
        trials: of each study; None for as many as are recorded, and only these are written where
            `search` reads them.
        names: of the studies.
    """
    for name in names:
        module, overrides = RECORDED[name]
        given = (*overrides, *RANDOM, *SIZES[name], f"study.trials={trials or TRIALS[name]}")
        given += (f"study.name={name}", f"run_dir={run_dir / name}", "launcher.workers=2")
        subprocess.run([sys.executable, "-m", f"studies.{module}", *given], cwd=ROOT, check=True)
        write_curves(run_dir / name, name, (run_dir if trials else CURVES) / f"{name}.npz")


def write_curves(run_dir: Path, name: str, path: Path) -> None:
    """Writes the hyperparameters and curves of a study's complete trials, and their costs if any.

    Args:
        run_dir: of the study.
        name: of the study.
        path: of the file.
    """
    stored = open_study(f"sqlite:///{run_dir}/study.db", name)
    trials = [trial for trial in stored.trials() if trial.state == TrialState.COMPLETE]
    curves = [
        [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        for trial in trials
    ]
    stored.close()
    path.parent.mkdir(exist_ok=True)
    found = {
        "params": np.array([json.dumps(trial.params) for trial in trials]),
        "values": np.array(curves, np.float32),
    }
    if len(trials[0].values) > 1:
        found["costs"] = np.array([trial.values[1] for trial in trials])
    np.savez_compressed(path, **found)
