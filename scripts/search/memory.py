"""Measures `study.from=auto`: each task in turn is new, and has studies of the others.

The earlier studies are searches of the other tasks, in 40 trials each. They give a portfolio,
`studyloom.study.earlier_studies`, that is tried after the same trial 0 as without; TPE goes on from
there. Regret is that of the best trial so far, by seeds that the search has not seen; 1 is that of
the median configuration.
"""

from collections.abc import Sequence

import numpy as np

from studyloom.study.earlier_studies import EarlierStudy, choose_points, rank_scores
from studyloom.study.warm_start import CANDIDATES

from .methods import Run, last_seen
from .searches import Searches, digits, middle
from .statistics import Floats, interval
from .tables import SPACES, size

TRIALS, TOP = 40, 7  # TOP is study.top
MARKS = (5, 8, 10, 20, 34, 40)
SHORT, LONG = 10, 34  # where TPE's regret after LONG trials is to be reached


def plan_memory(runs: Sequence[Sequence[Run]], block: int) -> list[Searches]:
    """Returns the searches with a portfolio, of which each seed has its own.

    Args:
        runs: without: of each task.
        block: how many seeds a process searches with.
    """
    seeds = len(runs[0])
    jobs = []
    for number, own in enumerate(runs):
        others = [each for other, each in enumerate(runs) if other != number]
        for begin in range(0, seeds, block):
            chosen = range(begin, min(seeds, begin + block))
            first = {seed: portfolio([each[seed] for each in others]) for seed in chosen}
            task = own[0].task
            jobs.append(Searches(task.family, task.name, tuple(chosen), first, TRIALS))
    return jobs


def portfolio(studies: Sequence[Run]) -> list[int]:
    """Chooses configurations of earlier studies, as `studyloom.study.warm_start` does."""
    task = studies[0].task
    sizes = np.array([size(node) for node in SPACES[task.family].values()])
    categorical = np.array(["choice" in node for node in SPACES[task.family].values()])
    earlier, tried = [], []
    for run in studies:
        trials = sorted(run.tape.configurations[:TRIALS], key=lambda one: -run.seen(one, 1))
        others = np.array([one != middle(task) for one in trials])  # the middle is tried anyway
        eligible = others & (others.cumsum() <= CANDIDATES)
        places = digits(task, trials) / np.where(categorical, 1, sizes - 1)
        earlier.append(EarlierStudy(places, rank_scores(len(trials), 0), eligible))
        tried.append(trials)
    return [tried[study][trial] for study, trial in choose_points(earlier, categorical, TOP)]


def regrets(runs: Sequence[Sequence[Run]]) -> Floats:
    """Returns the regret of the best trial so far, (tasks, seeds, trials)."""

    def curve(run: Run) -> list[float]:
        return [run.regret(one) for one in last_seen(run)[:TRIALS] if one is not None]

    return np.array([[curve(run) for run in own] for own in runs])


def show_memory(plain: Sequence[Sequence[Run]], with_memory: Sequence[Sequence[Run]]) -> None:
    """Prints mean regrets, their difference with its interval, and who reaches TPE's level.

    Args:
        plain: runs without memory: for each task, for each seed.
        with_memory: the same studies with it.
    """
    without, memory = regrets(plain), regrets(with_memory)
    tasks, seeds, _ = without.shape
    print(f"\nmemory: study.from=auto study.top={TOP}, HPOBench, {tasks} tasks, {seeds} seeds")
    print("after      without    with   less by, 95 %")
    for count in MARKS:
        gain = without[:, :, count - 1] - memory[:, :, count - 1]
        low, high = interval(gain)
        means = [each[:, :, count - 1].mean() for each in (without, memory)]
        print(
            f"{count:3} trials {means[0]:8.4f}{means[1]:8.4f}"
            f"   {gain.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        )
    level, reached = without[:, :, LONG - 1].mean(1), memory[:, :, SHORT - 1].mean(1)
    at_end = (without - memory)[:, :, TRIALS - 1].mean(1)
    print(
        f"regret at {LONG} without is reached at {SHORT} with it on {(reached <= level).sum()} of "
        f"{tasks} tasks; the most by which one is worse at {TRIALS}: {max(0.0, -at_end.min()):.4f}"
    )
    for own, *numbers in zip(plain, level, reached, at_end, strict=True):
        print(
            f"  {own[0].task.name:18} {numbers[0]:.3f} at {LONG} without, {numbers[1]:.3f} at "
            f"{SHORT} with it, and at {TRIALS} less by {numbers[2]:+.4f}"
        )
