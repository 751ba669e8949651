"""Which answer is named after a search, at equal trainings: the best trial, or one judged again.

A trial has had one seed of its configuration. The others serve to judge candidates again, but the
last, which nothing has seen, is what an answer is worth; each of them is the last in turn.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from .methods import Run
from .searches import as_run
from .statistics import Floats, interval_of_share
from .tables import Recorded, Task, load

SEVERAL_SEEDS = ("hpobench",)  # five of each configuration, so that answers can be judged again
SPENT = (40, 60)  # trainings in all
JUDGED = ((3, 1), (5, 1), (3, 2), (3, 3))  # candidates, and new seeds of each
BLIND = 2  # searches at random for each of TPE, which cost little


WAYS = {"the best trial": (1, 0)} | {f"{top} × {seeds}": (top, seeds) for top, seeds in JUDGED}


def answer(run: Run, way: tuple[int, int], budget: int) -> int:
    """Names the best candidate on new seeds, or without any the best trial.

    Args:
        way: how many candidates there are, and how many seeds each is judged by.
        budget: trainings, also those of candidates.
    """
    top, seeds = way
    results, tried = run.results, dict.fromkeys(run.tape.configurations[: budget - top * seeds])
    candidates = sorted(tried, key=lambda one: -results.curve(one)[-1])[:top]

    def fresh(one: int) -> float:
        order = results.order[one, 1 : 1 + seeds]
        return float(results.task.values[one, order, -1].mean())

    return max(candidates, key=fresh) if seeds else candidates[0]


@dataclass(frozen=True)
class Judging:
    """Searches of a task whose answers a process judges.

    Args:
        family: of the task.
        task: its name.
        searches: the configurations of each, by seed; None for trials at random.
        seeds: how many searches.
    """

    family: str
    task: str
    searches: Sequence[Sequence[int]] | None
    seeds: int


def plan_answers(
    runs: Mapping[str, Sequence[Sequence[Run]]], families: Sequence[str]
) -> Iterator[Judging]:
    """Yields the judgings: of searches of TPE, and of those at random."""
    for family in families:
        for own in runs[family]:
            name, searches = own[0].results.task.name, [run.tape.configurations for run in own]
            yield Judging(family, name, searches, len(own))
            yield Judging(family, name, None, BLIND * len(own))


def judge_answers(job: Judging) -> tuple[Judging, Floats]:
    """Returns regrets of each answer, (spent, ways, seeds), in a process of its own."""
    task = load(job.family, job.task)
    assert isinstance(task, Task)
    found = np.empty((len(SPENT), len(WAYS), job.seeds))
    for seed in range(job.seeds):
        generator = np.random.default_rng([seed, 1])
        drawn = generator.integers(0, len(task.values), SPENT[-1]).tolist()
        tried = drawn if job.searches is None else job.searches[seed]
        results = task.begin(seed)
        for row, budget in enumerate(SPENT):
            for column, way in enumerate(WAYS.values()):
                regrets = []
                for turn in range(task.seeds - 1):
                    turned = _turned(results, turn)
                    named = answer(as_run(turned, tried), way, budget)
                    regrets.append(turned.regret(named, task.seeds - 1))
                found[row, column, seed] = fmean(regrets)
    return job, found


def _turned(results: Recorded, by: int) -> Recorded:
    """Returns trainings of which another seed is the last; the search has had the first."""
    others = np.roll(results.order[:, 1:], by, axis=1)
    return replace(results, order=np.concatenate([results.order[:, :1], others], axis=1))


def show_answers(judged: Sequence[tuple[Judging, Floats]]) -> None:
    """Prints what each way to an answer is worth."""
    for family in dict.fromkeys(job.family for job, _ in judged):
        for sampler, blind in (("tpe", False), ("random", True)):
            of = np.stack(
                [
                    regrets
                    for job, regrets in judged
                    if job.family == family and (job.searches is None) == blind
                ]
            )
            print(f"\nanswers, {family}, {len(of)} tasks × {of.shape[-1]} searches by {sampler}")
            print(f"{'regret at equal trainings':28}" + "".join(f"{n:>9}" for n in SPENT))
            for column, way in enumerate(WAYS):
                means = "".join(f"{of[:, row, column].mean():9.4f}" for row in range(len(SPENT)))
                shares = [_share(of[:, row, column], of[:, row, 0]) for row in range(len(SPENT))]
                print(
                    f"{way:28}{means}   less than the best trial: {'  '.join(shares)}", flush=True
                )


def _share(ours: Floats, theirs: Floats) -> str:
    low, high = interval_of_share(ours, theirs)
    return f"{1 - ours.mean() / theirs.mean():+.1%} [{low:+.1%}, {high:+.1%}]"
