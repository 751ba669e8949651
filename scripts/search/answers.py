"""Which answer is named after a search: the luckiest trial, or one that is judged by fresh seeds.

HPOBench has five seeds of each configuration. A trial has had one of them, three serve to judge
candidates again, and the last, which neither has seen, is what an answer is worth; each of the four
is the last in turn. All ways have as many trainings: the luckiest has all of them as trials.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from studyloom.study.race import count_entrants, run_race

from .methods import Run
from .searches import as_run
from .statistics import Floats, interval_of_share
from .tables import load

SPENT = ((40, 20), (20, 20), (28, 12))  # trials, and trainings to judge again
FRESH = 3
USED = 1 + FRESH  # seeds that an answer may have seen
BLIND = 2  # searches at random for each of TPE, which cost little


def luckiest(run: Run, trials: int, budget: int) -> tuple[int, int]:
    """Names the best trial of a search with all the trainings; returns also that none follow."""
    return ranked(run, trials + budget)[0], 0


def judged_again(run: Run, trials: int, budget: int) -> tuple[int, int]:
    """Names the best by fresh seeds, of which all candidates have as many; and the trainings."""
    candidates = with_baseline(run, trials, budget // FRESH)
    best = max(candidates, key=lambda one: float(fresh(run, one).mean()))
    return best, len(candidates) * FRESH


def raced(run: Run, trials: int, budget: int) -> tuple[int, int]:
    """Names the winner of a race, and how many trainings it took."""
    candidates = with_baseline(run, trials, count_entrants(budget, FRESH))
    entrants, results = range(len(candidates)), dict[tuple[int, int], float | None]()
    values = [fresh(run, one) for one in candidates]
    while (race := run_race(entrants, results, budget)).open:
        if race.open[0][1] == FRESH:  # the table has no further seed
            break
        results |= {(entrant, seed): float(values[entrant][seed]) for entrant, seed in race.open}
    return candidates[race.running[0]], len(results)


ANSWERS: dict[str, Callable[[Run, int, int], tuple[int, int]]] = {
    "luckiest": luckiest,
    "fixed": judged_again,
    "race": raced,
}


def ranked(run: Run, trials: int) -> list[int]:
    """Returns the configurations of the first trials, each once, the best first."""
    tried = dict.fromkeys(run.tape.configurations[:trials])
    return sorted(tried, key=lambda one: -run.seen(one, 1))


def with_baseline(run: Run, trials: int, count: int) -> list[int]:
    """Returns the best of the first trials; trial 0 takes the last place if it has none."""
    best, baseline = ranked(run, trials)[:count], run.tape.configurations[0]
    return best if baseline in best else [*best[:-1], baseline]


def fresh(run: Run, configuration: int) -> Floats:
    """Returns the values of a configuration on the seeds for candidates, (FRESH,)."""
    seeds = run.order[configuration, 1:USED]
    values: Floats = run.task.values[configuration, seeds, -1].astype(np.float64)
    return values


@dataclass(frozen=True)
class Judging:
    """Searches of a task whose answers a process judges.

    Args:
        family: of the task.
        task: its name.
        searches: the configurations of each, by seed; None for trials at random.
        seeds: how many searches.
        shared: see `seed_order`.
    """

    family: str
    task: str
    searches: Sequence[Sequence[int]] | None
    seeds: int
    shared: bool = False

    @property
    def world(self) -> tuple[str, str]:
        """How trials are drawn, and how seeds."""
        return (
            "random" if self.searches is None else "tpe",
            "one order for all" if self.shared else "each its own",
        )


def plan_answers(runs: Sequence[Sequence[Run]]) -> Iterator[Judging]:
    """Yields the judgings: searches of TPE, and those at random, with seeds drawn in two ways."""
    for own in runs:
        task, searches = own[0].task, [run.tape.configurations for run in own]
        yield Judging(task.family, task.name, searches, len(own))
        yield Judging(task.family, task.name, None, BLIND * len(own))
        yield Judging(task.family, task.name, None, BLIND * len(own), shared=True)


def judge_answers(job: Judging) -> tuple[Judging, Floats]:
    """Returns regrets and trainings of each answer, (spent, answers, seeds, 2), in a process."""
    task = load(job.family, job.task)
    found = np.empty((len(SPENT), len(ANSWERS), job.seeds, 2))
    for seed in range(job.seeds):
        if job.searches is None:
            drawn = np.random.default_rng([seed, 1]).integers(0, len(task.values), 100).tolist()
        else:
            drawn = [*job.searches[seed]]
        run = as_run(task, seed, drawn, shared=job.shared)
        turns = [_turned(run, by) for by in range(USED)]
        for row, spent in enumerate(SPENT):
            for column, answer in enumerate(ANSWERS.values()):
                named = [answer(each, *spent) for each in turns]
                pairs = zip(turns, named, strict=True)
                regret = fmean(each.regret(one, USED) for each, (one, _) in pairs)
                found[row, column, seed] = regret, fmean(count for _, count in named)
    return job, found


def _turned(run: Run, by: int) -> Run:
    """Returns a run in which another seed is the last; the search has had the first."""
    others = np.roll(run.order[:, 1:], by, axis=1)
    return replace(run, order=np.concatenate([run.order[:, :1], others], axis=1))


def show_answers(judged: Sequence[tuple[Judging, Floats]]) -> None:
    """Prints what each way to an answer is worth."""
    print("\nanswers at equal trainings, HPOBench, regret by a seed that nothing has seen")
    print(f"fixed: all candidates on {FRESH} seeds; race: winner.race=true, on at most {FRESH}")
    for world in dict.fromkeys(job.world for job, _ in judged):
        of = np.stack([values for job, values in judged if job.world == world])
        tasks, _, _, seeds, _ = of.shape
        print(
            f"{tasks} × {seeds} searches, sampler={world[0]}, seeds of configurations: {world[1]}"
        )
        print(f"{'trials':>8}{'luckiest':>10}{'fixed':>8}{'race':>8}{'trainings':>11}", end="")
        print("   fixed less than luckiest   race less than luckiest   race less than fixed")
        for row, (trials, budget) in enumerate(SPENT):
            lucky, fixed, race = (of[:, row, column, :, 0] for column in range(len(ANSWERS)))
            gains = [_share(*pair) for pair in ((fixed, lucky), (race, lucky), (race, fixed))]
            print(
                f"{f'{trials} + {budget}':>8}{lucky.mean():10.4f}{fixed.mean():8.4f}"
                f"{race.mean():8.4f}{of[:, row, 2, :, 1].mean():11.1f}   {'   '.join(gains)}"
            )


def _share(ours: Floats, theirs: Floats) -> str:
    low, high = interval_of_share(ours, theirs)
    return f"{1 - ours.mean() / theirs.mean():+.1%} [{low:+.1%}, {high:+.1%}]"
