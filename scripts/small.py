"""Small searches against plain Optuna, as whole processes; run by `bench.py small`.

python scripts/small.py digits ours 0 FOLDER          # one search; SEED, and a folder
python scripts/small.py trivial plain 0 FOLDER        # of study.optimize, in memory
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn

EPOCHS = 10
# The first of each kind is what the others are compared with.
DIGITS = ("sqlite", "memory", "ours", "ours-1")
TRIVIAL = ("plain", "ours", "plain-random", "ours-random")
AT = (100, 0.95)  # where the rate is measured: a trial, and a part of all
AROUND = 50  # trials before and after it


class Net(nn.Sequential):
    """A network of one hidden layer for the 8 x 8 digits of scikit-learn."""

    def __init__(self, *, shape=(64,), outputs=10, width=32, dropout=0.0) -> None:
        hidden = nn.Linear(*shape, width), nn.ReLU(), nn.Dropout(dropout)
        super().__init__(*hidden, nn.Linear(width, outputs))


def load() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def digits_ours(seed: int, folder: str, trials: int, workers: int | None) -> None:
    """Searches, re-evaluates and tests."""
    import studyloom as sl

    model = {"width": sl.Int(8, 128, log=True), "dropout": sl.Float(0.0, 0.5)}
    space = {"model": model, "optimizer": {"lr": sl.Float(1e-4, 1e-1, log=True)}}
    own = {"seed": seed, "workers": workers, "run_dir": folder, "quiet": True}
    sl.search(Net, data=load(), space=space, trials=trials, train={"epochs": EPOCHS}, **own)


def digits_plain(seed: int, storage: str | None, trials: int) -> None:
    """Searches as an example of Optuna does: without re-evaluation, and without a test."""
    import optuna
    from torch.utils.data import DataLoader, TensorDataset, random_split

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.manual_seed(seed)
    train, valid, _ = random_split(TensorDataset(*load()), [0.64, 0.16, 0.2])

    def objective(trial: optuna.Trial) -> float:
        width = trial.suggest_int("width", 8, 128, log=True)
        net = Net(width=width, dropout=trial.suggest_float("dropout", 0.0, 0.5))
        rate = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        optimizer = torch.optim.AdamW(net.parameters(), rate)
        loader = DataLoader(train, 64, shuffle=True)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))
        for epoch in range(EPOCHS):
            net.train()
            for inputs, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(inputs), labels).backward()
                optimizer.step()
                rates.step()
            net.eval()
            with torch.no_grad():
                hits = [(net(x).argmax(1) == y).sum().item() for x, y in DataLoader(valid, 256)]
            value = sum(hits) / len(valid)
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize", storage=storage, sampler=sampler)
    study.optimize(objective, n_trials=trials)


def trivial(trial):
    """Two hyperparameters and five reports, and nothing to train."""
    from optuna import TrialPruned

    value = trial.suggest_float("x", -10, 10) ** 2 + trial.suggest_float("y", -10, 10) ** 2
    for step in range(5):
        trial.report(value / (step + 1), step)
        if trial.should_prune():
            raise TrialPruned
    return value


def trivial_search(seed: int, folder: str, trials: int, *, ours: bool, random: bool) -> None:
    """Searches in this process, and prints the rates at two trials."""
    import optuna

    samplers, pruner = optuna.samplers, optuna.pruners.MedianPruner
    if ours:
        import studyloom as sl

        own = {"seed": seed, "workers": 1, "run_dir": folder, "quiet": True, "winner": False}
        sampler = "random" if random else None
        study = sl.search(trivial, trials=trials, sampler=sampler, pruner=pruner, **own).optuna
    else:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = (samplers.RandomSampler if random else samplers.TPESampler)(seed=seed)
        study = optuna.create_study(sampler=sampler, pruner=pruner())
        study.optimize(trivial, n_trials=trials)
    ends = sorted(t.datetime_complete.timestamp() for t in study.trials)
    around, rates = min(AROUND, trials // 4), []
    for at in (min(AT[0], trials // 3), int(AT[1] * trials)):
        first, last = ends[max(0, at - around)], ends[min(trials - 1, at + around)]
        rates.append(2 * around / (last - first))
    print(json.dumps(rates))


def run(kind: str, way: str, seed: int, folder: str, trials: int) -> tuple[float, float, str]:
    """Runs a search as a process: returns its seconds, those of processors, and its output."""
    before, began = os.times(), time.monotonic()
    command = [sys.executable, __file__, kind, way, str(seed), folder, str(trials)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, after = time.monotonic() - began, os.times()
    spent = after.children_user + after.children_system
    return seconds, spent - before.children_user - before.children_system, done.stdout


def small(repeats: int, digits: int, trials: int) -> None:
    """Prints medians and ratios; the ways take turns, each of them `repeats` times.

    Args:
        digits: the trials of a search on digits.
        trials: those of an objective that does nothing.
    """
    for kind, ways, count in (("digits", DIGITS, digits), ("trivial", TRIVIAL, trials)):
        took = defaultdict(list)
        for seed in range(repeats):
            for way in ways:
                with tempfile.TemporaryDirectory() as folder:
                    took[way].append(run(kind, way, seed, folder, count))
        print(f"{kind}, {count} trials: seconds, of processors; and times {ways[0]}", flush=True)
        base = medians([each[:2] for each in took[ways[0]]])
        for way, runs in took.items():
            wall, processor = medians([each[:2] for each in runs])
            ratios = f"{wall / base[0]:.2f}, {processor / base[1]:.2f}"
            rates = ""
            if kind == "trivial":
                early, late = medians([json.loads(printed) for *_, printed in runs])
                rates = f"   {early:.0f} and {late:.0f} trials/s, {late / early:.2f}"
            print(f"  {way:14} {wall:7.2f} {processor:7.2f}   {ratios}{rates}", flush=True)


def medians(rows: Iterable[Sequence[float]]) -> list[float]:
    """Returns the median of each column."""
    return [median(column) for column in zip(*rows, strict=True)]


if __name__ == "__main__":
    kind, way, seed, folder, trials = sys.argv[1:]
    if kind == "trivial":
        ours, random = way.startswith("ours"), way.endswith("random")
        trivial_search(int(seed), folder, int(trials), ours=ours, random=random)
    elif way.startswith("ours"):
        digits_ours(int(seed), folder, int(trials), 1 if way == "ours-1" else None)
    else:
        storage = f"sqlite:///{Path(folder, 'study.db')}" if way == "sqlite" else None
        digits_plain(int(seed), storage, int(trials))
