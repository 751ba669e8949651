"""A search of a small network for a large one, next to searches of the large one."""

import json
import tempfile
from pathlib import Path
from statistics import fmean

import numpy as np
from search.statistics import describe

from .commands import ROOT, run

SEARCH = (
    *("data=mnist", "model=mlp", "space=lr", "optimizer=adam"),
    *("train.epochs=4", "train.samples_per_epoch=5000", "winner.seeds=1"),
)
SMALL, TARGET = [32, 32], [256, 256]


def tested(run_dir: Path, seed: int, trials: int, override: str) -> tuple[float, float | None]:
    """Returns the test accuracy of a search's winner, and the share of operations that it took."""
    given = (*SEARCH, override, f"study.seed={seed}", f"study.trials={trials}")
    run("-m", "studies.mnist", f"run_dir={run_dir}", *given, cwd=ROOT)
    written = json.loads((run_dir / "winner.json").read_text())
    transfer = written.get("transfer") or {}
    return written["test"]["winner"]["mean"], transfer.get("share")


def transfer(seeds: int, trials: int) -> None:
    """Tests the winners of a small search, and of one at the target with all trials or fewer."""
    ways = {
        "small": (trials, f"scale={{model.hidden:[{SMALL},{TARGET}]}}"),
        "small, by mup": (trials, f"scale={{model.hidden:[{SMALL},{TARGET}],rule:mup}}"),
        "at the target": (trials, f"model.hidden={TARGET}"),
        "at the target, a third": (-(-trials // 3), f"model.hidden={TARGET}"),
        "at the target, a fifth": (-(-trials // 5), f"model.hidden={TARGET}"),
    }
    found: dict[str, list[tuple[float, float | None]]] = {way: [] for way in ways}
    for seed in range(seeds):
        for way, (number, override) in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                found[way].append(tested(Path(folder, "run"), seed, number, override))
            print(f"  seed {seed}: {way:26} tested {found[way][-1][0]:.4f}", flush=True)
    ours = found["small"]
    for way, all_of in found.items():
        gains = np.array([[a - b for (a, _), (b, _) in zip(ours, all_of, strict=True)]])
        shares = [share for _, share in all_of if share is not None]
        cost = f"; {fmean(shares):.0%} of the operations" if shares else ""
        print(
            f"  {way:26} tested {fmean(value for value, _ in all_of):.4f}; ours less this "
            f"{describe(gains, 4)}{cost}"
        )
