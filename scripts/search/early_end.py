"""Measures savings and costs of `study.stop=improvement`, compared with two plain rules.

The rules are an end without an improvement above `study.min_improvement` in 10 trials, and one
after the share of the budget that `study.stop=improvement` used in the mean. The cost of an end is
by how much less accurate the best trial is than that of the whole budget. The constants of
`studyloom.decisions.early_end` were chosen on HPOLib, which is not measured here. The first trials
of a search of 100 trials by TPE are the shorter search; trial 0 is in the middle of the space,
where the default configuration would be.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from studyloom.decisions.early_end import Bounds, Outcome, estimate_gain

from .methods import Run
from .simulator import Tape, replay
from .statistics import Floats
from .tables import Recorded, Task, load, size

REGRET = 0.005
BUDGETS = (40, 100)
TRIALS = max(BUDGETS)

Rule = Callable[[list[float], int], int]  # values and budget to the number of trials at the end


def search_table(job: tuple[str, str, int]) -> list[int]:
    """Searches a task of a family with a seed; returns the configurations of the trials."""
    family, name, seed = job
    results = load(family, name).begin(seed)
    middle = {f"params.{name}": size(node) // 2 for name, node in results.task.space.items()}
    method = ("sampler=tpe", "pruner=none")
    return replay(results, method, seed, TRIALS, first=(middle,)).configurations


def as_run(results: Recorded, tried: Sequence[int]) -> Run:
    """Returns a search that tried some configurations, in trials of one epoch."""
    tape = Tape(len(tried))
    for trial, one in enumerate(tried):
        tape.add(trial, one, 1, float(results.curve(one)[-1]))
    return Run(results, tape)


def by_regret(values: list[float], budget: int) -> int:
    outcomes = [Outcome(slot, True, value, 1) for slot, value in enumerate(values)]
    for count in range(1, len(outcomes) + 1):
        gain = estimate_gain(Bounds(trials=budget), outcomes[:count])
        if gain is not None and gain < REGRET:
            return count
    return budget


def by_patience(values: list[float], budget: int, patience: int = 10) -> int:
    best = np.maximum.accumulate(values)
    late = (n for n in range(patience + 1, budget) if best[n - 1] - best[n - 1 - patience] < REGRET)
    return next(late, budget)


def final_values(task: Task) -> Floats:
    """Returns the final accuracies of a task, (configurations, seeds)."""
    values: Floats = task.values[:, :, -1].astype(np.float64)
    return values


def evaluate(runs: Sequence[Run], rule: Rule, budget: int) -> tuple[Floats, Floats]:
    """Returns for each run the share of the budget that a rule uses, and what the end costs."""
    values = final_values(runs[0].results.task)
    used: list[float] = []
    cost: list[float] = []
    for run in runs:
        tried, order = run.tape.configurations[:budget], run.results.order
        several = order.shape[1] > 1
        seen = values[tried, order[tried, 0]]
        end = rule(seen.tolist(), budget)

        best, chosen = tried[int(seen.argmax())], tried[int(seen[:end].argmax())]
        seeds = [order[one, 1:] if several else order[one] for one in (best, chosen)]
        used.append(end / budget)
        cost.append(values[best, seeds[0]].mean() - values[chosen, seeds[1]].mean())
    return np.array(used), np.array(cost)


def _row(name: str, used: Floats, cost: Floats) -> str:
    numbers = (np.median(cost), cost.mean(), np.quantile(cost, 0.9))
    return f"{name:36}{1 - used.mean():8.0%}" + "".join(f"{number:9.4f}" for number in numbers)


def show_early_ends(families: Mapping[str, Sequence[Sequence[Run]]]) -> None:
    """Prints what each rule saves and costs.

    Args:
        families: runs of each task of each.
    """
    print(
        f"\nends: study.stop=improvement study.min_improvement={REGRET}, "
        "by seeds that the search has not seen"
    )
    for budget in BUDGETS:
        print(f"{f'of {budget} trials':36}{'saved':>8}   median     mean  q of .9")
        for family, tasks in families.items():
            found = [evaluate(runs, by_regret, budget) for runs in tasks]
            for runs, each in zip(tasks, found, strict=True):
                print(_row(f"  {runs[0].results.task.name}", *each))
            share = float(np.mean([used for used, _ in found]))

            def at_share(_: list[float], budget: int, share: float = share) -> int:
                return max(1, round(share * budget))

            rules: dict[str, Rule] = {
                "study.stop=improvement": by_regret,
                "no gain in 10 trials": by_patience,
                "the same share always": at_share,
            }
            for name, rule in rules.items():
                pairs = [evaluate(runs, rule, budget) for runs in tasks]
                used, cost = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
                print(_row(f"{family}: {name}", used, cost))
