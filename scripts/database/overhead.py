"""Storage and sampling in milliseconds a trial, against Optuna's own loop on its own storage."""

import tempfile
import time
from collections.abc import Sequence

import optuna
import torch

from studyloom.storage.attributes import TIMES
from studyloom.storage.opening import create_study, open_study

from .toy import Bare, fill, postgres, show, work


def shipped(url: str, trials: int) -> list[float]:
    """Returns the milliseconds of each trial of Optuna's own loop, on its storage as shipped."""
    study = optuna.load_study(
        study_name="bench", storage=url, pruner=Bare().pruner(), sampler=Bare().sampler(0)
    )

    def objective(trial: optuna.Trial) -> float:
        value = sum(trial.suggest_float(f"x{k}", 0.0, 1.0) for k in range(6))
        for step in range(1, 11):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    times = []
    for _ in range(trials):
        began = time.perf_counter()
        study.optimize(objective, n_trials=1)
        times.append(1000 * (time.perf_counter() - began))
    return times


def overhead(repeats: int, sizes: Sequence[int]) -> None:
    """Storage and sampling in milliseconds a trial: TPE, MedianPruner, 6 parameters, 10 reports.

    Args:
        repeats: ten trials each.
        sizes: numbers of trials that have ended before.
    """
    torch.set_num_threads(1)
    count = 10 * repeats
    with tempfile.TemporaryDirectory() as folder, postgres(folder) as new_database:
        for done in sizes:
            urls = {"SQLite": f"sqlite:///{folder}/{done}.db", "PostgreSQL": new_database()}
            for kind, url in urls.items():
                stored = create_study(url, "bench", {"bench": done}, done + count)
                fill(stored, done)
                stored.close()
                began = time.perf_counter()
                stored = open_study(url, "bench")
                stored.trials()
                opened = time.perf_counter() - began
                work(Bare(), stored, folder, done + count)
                times = [trial.user_attrs[TIMES] for trial in stored.trials()[done:]]
                ours = [1000 * (spent["storage"] + spent["sampling"]) for spent in times]
                stored.close()
                print(f"{kind}, {done} finished trials; a new worker reads them in {opened:.2f} s")
                show("ours", ours, "ms")
                show(
                    "ours: the sampler's part", [1000 * spent["sampling"] for spent in times], "ms"
                )
                show("plain", shipped(url, count if done < 5000 else max(2, count // 4)), "ms")
