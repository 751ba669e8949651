"""What comes after a search, judged on the same searches: which answer is named, and when it ends.

The searches are those of today's default on HPOBench, whose tables have five seeds of each
configuration. A trial has had one of them. Up to three more serve to judge candidates again, and
the last, which nothing has seen, is what an answer is worth.
"""

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np

from .methods import Run
from .statistics import Floats, interval

TRAININGS, FRESH = 40, 3
USED = 1 + FRESH  # seeds that an answer may have seen
REGRET = 0.005  # study.regret, in units of the accuracy


def luckiest(run: Run, trials: int = TRAININGS) -> int:
    """Names the configuration of the best trial."""
    return max(run.tape.configurations[:trials], key=lambda one: run.seen(one, 1))


def judged_again(run: Run, top: int = 3) -> int:
    """Names the best of the top trials by fresh seeds, at as many trainings: fewer trials."""
    candidates = ranked(run, TRAININGS - top * FRESH)[:top]
    return max(candidates, key=lambda one: float(fresh(run, one).mean()))


def ranked(run: Run, trials: int) -> list[int]:
    """Returns the configurations of the first trials, each once, the best first."""
    tried = dict.fromkeys(run.tape.configurations[:trials])
    return sorted(tried, key=lambda one: -run.seen(one, 1))


def fresh(run: Run, configuration: int) -> Floats:
    """Returns the values of a configuration on the seeds for candidates, (FRESH,)."""
    seeds = run.order[configuration, 1:USED]
    return run.task.values[configuration, seeds, -1].astype(np.float64)


ANSWERS: dict[str, Callable[[Run], int]] = {
    f"luckiest of {TRAININGS}": luckiest,
    f"top 3 of {TRAININGS - 3 * FRESH} on {FRESH} seeds": judged_again,
}


def show_answers(runs: Sequence[Sequence[Run]]) -> None:
    """Prints what each way to an answer is worth, and what an early end saves and costs.

    Args:
        runs: of the default: for each task, for each seed.
    """
    if min(len(run.tape.configurations) for task in runs for run in task) < TRAININGS:
        return
    print(f"\nanswers after {TRAININGS} trainings of HPOBench, by a seed that nothing has seen")
    print(f"{'':36}  regret   less than the luckiest by, 95 %")
    base = np.array([[run.regret(luckiest(run), USED) for run in task] for task in runs])
    for name, answer in ANSWERS.items():
        found = np.array([[run.regret(answer(run), USED) for run in task] for task in runs])
        low, high = interval(base - found)
        gain = (base - found).mean()
        share = 100 * gain / base.mean()
        print(
            f"{name:36}{found.mean():8.4f}   {gain:+.4f} [{low:+.4f}, {high:+.4f}], {share:.0f} %"
        )
    show_early_end(runs)


def show_early_end(runs: Sequence[Sequence[Run]]) -> None:
    """Prints what `study.stop=regret` saves and costs, if it is there."""
    if importlib.util.find_spec("studyloom.search.regret") is None:
        print("not there yet: study.stop=regret")
        return
    from studyloom.search.regret import gains

    saved, cost = [], []
    for task in runs:
        for run in task:
            configurations = run.tape.configurations[:TRAININGS]
            values = [run.seen(one, 1) for one in configurations]
            asked = enumerate(gains(values, TRAININGS), 1)
            small = (count for count, gain in asked if gain is not None and gain < REGRET)
            end = next(small, TRAININGS)
            saved.append(1 - end / TRAININGS)
            scale = run.task.scale  # regrets as accuracies, as study.regret is
            cost.append(scale * (run.regret(luckiest(run, end)) - run.regret(luckiest(run))))
    print(
        f"study.stop=regret study.regret={REGRET}: {100 * np.mean(saved):.0f} % of {TRAININGS} "
        f"trials saved, regret more by {np.median(cost):.4f} in the median, {np.mean(cost):.4f} in "
        f"the mean, {np.quantile(cost, 0.9):.4f} in one of ten"
    )
